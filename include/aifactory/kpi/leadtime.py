"""Lead time of a release: from its newest data's arrival to all traffic, in four parts that sum up to it.

landed ── queue ── ingest ── queue ── train … register ── approval ── load, shadow, canary ── promote
                    touch               touch               approval        bake               touch
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from aifactory.kpi.formulas import percentile
from aifactory.kpi.record import began, distinct, rollouts, works
from aifactory.ledger import GOOD, EventKind, ProductionEvent

Interval = tuple[datetime, datetime]


@dataclass(frozen=True)
class LeadTime:
    """One release; queue_s + touch_s + approval_s + bake_s = total_s."""

    version: str
    order_id: str | None
    landed: datetime
    released: datetime
    touch_s: float
    approval_s: float
    bake_s: float

    @property
    def total_s(self) -> float:
        """From landed to released, s."""
        return (self.released - self.landed).total_seconds()

    @property
    def queue_s(self) -> float:
        """What is left: nobody worked on it, s."""
        return max(0.0, self.total_s - self.touch_s - self.approval_s - self.bake_s)


def split(begin: datetime, end: datetime, kinds: Sequence[Sequence[Interval]]) -> list[float]:
    """Seconds of each kind of interval between two instants; where kinds overlap, the earlier in the list has them.

    Args:
        begin: from.
        end: until.
        kinds: intervals, by kind.

    Returns:
        seconds of each kind; together at most end - begin.
    """
    cuts = {begin, end}
    for intervals in kinds:
        cuts |= {min(max(t, begin), end) for each in intervals for t in each}
    edges = sorted(cuts)
    seconds = [0.0] * len(kinds)
    for left, right in pairwise(edges):
        for n, intervals in enumerate(kinds):
            if any(a <= left and right <= b for a, b in intervals):
                seconds[n] += (right - left).total_seconds()
                break
    return seconds


def lead_times(events: Iterable[ProductionEvent]) -> list[LeadTime]:
    """Of each release, its first time in service, oldest first.

    Landed is when all files of the newest day that the model learned first lay there, see `_landed`: what a correction
    of them took is rework, and part of it. A release whose order or day is not among the events is left out.

    Args:
        events: of one line: the releases, and what was done to their days, orders and versions.
    """
    mine = distinct(events)
    first: dict[str, ProductionEvent] = {}
    for e in mine:
        if e.station == "deploy" and e.event is EventKind.PROMOTED:
            first.setdefault(e.unit, e)
    arrived: dict[str, datetime] = {}
    for e in mine:
        if e.station == "ingest" and e.unit_kind == "batch" and e.event is EventKind.STARTED and (at := _landed(e)):
            arrived[e.unit] = min(arrived.get(e.unit, at), at)
    lives: defaultdict[tuple[str, str], list[ProductionEvent]] = defaultdict(list)
    for e in mine:
        lives[e.station, e.unit.partition("/")[0] if e.station == "train" else e.unit].append(e)
    found = []
    for release in first.values():
        told = release.detail
        landed = arrived.get(str(told.get("trained_until")))
        if landed is not None and landed <= release.at:
            names = [("ingest", "trained_until"), ("ingest", "dataset_revision"), ("train", "order_id")]
            life = [e for station, name in names for e in lives[station, str(told.get(name))]]
            found.append(_lead_time([*life, *lives["deploy", release.unit]], release, landed))
    return sorted(found, key=lambda each: (each.released, each.version))


def quantiles(seconds: Iterable[float]) -> tuple[int, float | None, float | None]:
    """Number, median and 95th percentile."""
    values = list(seconds)
    return len(values), percentile(values, 0.5), percentile(values, 0.95)


def _landed(start: ProductionEvent) -> datetime | None:
    """When the last of the files landed that a batch started with, by the store's clock; None where one was missing.

    No later than the start, whatever the clocks say; the start itself where the event, of an earlier version of the
    factory, does not tell.
    """
    if "landed_at" not in start.detail:
        return start.at
    told = start.detail["landed_at"]
    return min(datetime.fromisoformat(told), start.at) if told else None


def _lead_time(life: Iterable[ProductionEvent], release: ProductionEvent, landed: datetime) -> LeadTime:
    """Of one release, from all that was done to its day, dataset, order and version."""
    mine = distinct(e for e in life if e.at <= release.at)
    touched = [(began(e), e.at) for e in works(mine) if e.at > landed]
    bakes = [(steps[0].at, steps[-1].at) for steps in rollouts(mine).values()]
    approval, bake, touch = split(landed, release.at, [_approvals(mine, release), bakes, touched])
    return LeadTime(release.unit, release.detail.get("order_id"), landed, release.at, touch, approval, bake)


def _approvals(mine: Iterable[ProductionEvent], release: ProductionEvent) -> list[Interval]:
    """The wait for a person's word: from the order's registration to the word."""
    order = release.detail.get("order_id")
    registered = [e.at for e in mine if e.station == "train" and e.unit == order and e.event in GOOD]
    said = [e.at for e in mine if e.station == "deploy" and e.event is EventKind.DECIDED and is_approval(e)]
    return [(max((r for r in registered if r <= at), default=at), at) for at in said]


def is_approval(event: ProductionEvent) -> bool:
    """Whether an event of deploy is a person's word, and not a step of a rollout."""
    return "by" in event.detail and "stage" not in event.detail and "to" not in event.detail
