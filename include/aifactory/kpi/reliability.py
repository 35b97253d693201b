"""MTBF and MTTR: of the line, which infrastructure stops, and of the model, which breaks the limits of feedback.

Where nothing failed, the mean is not known but from below: it is more than the time watched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from aifactory.kpi.record import PRODUCT, cause, distinct
from aifactory.kpi.stations import Outage, outages
from aifactory.ledger import GOOD, EventKind, ProductionEvent
from aifactory.reasons import Cause


@dataclass(frozen=True)
class Span:
    """A mean duration: seconds, whether it is more than that, and how many failures or repairs it rests on."""

    value_s: float | None
    more_than: bool
    num: int


@dataclass(frozen=True)
class Reliability:
    """Mean time between failures, and to repair."""

    mtbf: Span
    mttr: Span


def of_line(events: Iterable[ProductionEvent], begin: datetime, end: datetime) -> Reliability:
    """Of the line: failures are outages by infrastructure at any of its stations."""
    return of_outages(outages(events), begin, end)


def of_model(events: Iterable[ProductionEvent], begin: datetime, end: datetime) -> Reliability:
    """Of the model: from the judgement that found a limit broken to healthy traffic."""
    return of_outages(breaches(events), begin, end)


def of_outages(found: Sequence[Outage], begin: datetime, end: datetime) -> Reliability:
    """MTBF = operating time ÷ failures, MTTR = time to repair ÷ repairs.

    ISO 22400-2 has both as means over failure events. Operating time is the time watched without the time in which
    something was down, which counts once where two stations were. With an outage that lasts, and none repaired, MTTR
    is more than that outage's length until now; without any failure MTBF is more than the time watched, the usual
    one-sided statement about a censored time (IEC 60605-4).

    Args:
        found: outages within the time; of one that began before, what lies within counts as down.
        begin: when watching began.
        end: when it ended.
    """
    watched, down = (end - begin).total_seconds(), _union(found, begin, end)
    mtbf = (
        Span((watched - down) / len(found), more_than=False, num=len(found))
        if found
        else Span(max(0.0, watched), more_than=True, num=0)
    )
    repaired = [o.seconds(end) for o in found if o.end is not None]
    lasting = [o.seconds(end) for o in found if o.end is None]
    if repaired:
        total = sum(repaired) + sum(lasting)
        return Reliability(mtbf, Span(total / len(repaired), more_than=bool(lasting), num=len(repaired)))
    return Reliability(mtbf, Span(max(lasting, default=None), more_than=bool(lasting), num=0))


def breaches(events: Iterable[ProductionEvent]) -> list[Outage]:
    """Times in which the model in service was not good enough, oldest first.

    One begins when a window is judged to break a limit, and ends when a later window keeps them all, or when another
    model takes all traffic or an operator puts one back. What counts of a window is its last judgement.
    """
    found: list[Outage] = []
    since: datetime | None = None
    for e in _judgements_and_switches(events):
        healthy = e.station == "deploy" or not e.detail.get("violations")
        if not healthy:
            since = since or e.at
        elif since is not None:
            found.append(Outage("feedback", since, e.at))
            since = None
    return [*found, Outage("feedback", since, None)] if since is not None else found


def change_failures(events: Iterable[ProductionEvent]) -> tuple[int, int]:
    """Releases, and those of them that an operator took back later: the two numbers of DORA's change failure rate.

    A candidate that its canary takes back has not been released; it counts against the yield of deploy.
    """
    released: set[str] = set()
    failed: set[str] = set()
    for e in distinct(events):
        if e.station != "deploy":
            continue
        if e.event is EventKind.PROMOTED:
            released.add(e.unit)
        elif e.event is EventKind.ROLLED_BACK and e.detail.get("to") and e.unit in released:
            failed.add(e.unit)
    return len(released), len(failed)


def _judgements_and_switches(events: Iterable[ProductionEvent]) -> list[ProductionEvent]:
    judged: dict[str, ProductionEvent] = {}
    switches = []
    for e in distinct(events):
        if e.station == "feedback" and e.unit_kind == PRODUCT["feedback"] and e.event in GOOD:
            judged[e.unit] = e
        elif e.station == "deploy" and (e.event is EventKind.PROMOTED or _put_back(e)):
            switches.append(e)
    return sorted([*judged.values(), *switches], key=lambda e: (e.at, e.station != "deploy", e.unit, e.key))


def _put_back(event: ProductionEvent) -> bool:
    return event.event is EventKind.ROLLED_BACK and bool(event.detail.get("to")) and cause(event) is Cause.DEFECT


def _union(found: Sequence[Outage], since: datetime, now: datetime) -> float:
    """Seconds between two instants in which at least one outage lasted."""
    total, until = 0.0, since
    for o in sorted(found, key=lambda o: o.begin):
        end = min(o.end or now, now)
        total += max(0.0, (end - max(o.begin, until)).total_seconds())
        until = max(until, end)
    return total
