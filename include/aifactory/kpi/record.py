"""Events of the ledger as the KPIs read them: each once, in order, and what it says of which product.

What a station makes is its product: ingest a batch, train an order, deploy a model version, score the predictions of a
day, feedback a window. The ledger also knows parts of it (`<order>/challenger`), which are work and no product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Self

from aifactory.ledger import BAD, ENDS, GOOD, EventKind, ProductionEvent
from aifactory.reasons import Cause, ReasonCode

STATIONS = ("ingest", "train", "deploy", "score", "feedback")
"""The loop, in its order."""

PRODUCT = {"ingest": "batch", "train": "model", "deploy": "model", "score": "predictions", "feedback": "window"}
"""Kind of unit, as the ledger calls it, of each station's product."""

FORGOTTEN = timedelta(days=2)
"""A start without an end for so long is that of a process that died: no task with its retries takes as long."""

_RANK = {kind: n for n, kind in enumerate(EventKind)}


@dataclass(frozen=True)
class End:
    """How one product's pass through a station ended."""

    station: str
    unit: str
    event: ProductionEvent
    good: bool

    @property
    def reworked(self) -> bool:
        """Whether it was made again."""
        return self.event.event is EventKind.REWORKED


class Record(tuple[ProductionEvent, ...]):
    """Events as `distinct` leaves them; made once, every function takes them as they are.

    They never change, so what `works` and `at_station` make of them is kept with them.
    """

    @cached_property
    def works(self) -> Works:
        """See `works`."""
        found: dict[tuple[str, str, str, str, datetime], ProductionEvent] = {}
        for e in self:
            if e.event in ENDS or e.duration_s > 0:
                found[e.line, e.station, e.unit_kind, e.unit, e.at] = e
        return Works(found.values())

    @cached_property
    def stations(self) -> dict[str, Self]:
        """See `at_station`."""
        found: defaultdict[str, list[ProductionEvent]] = defaultdict(list)
        for e in self:
            found[e.station].append(e)
        made = {station: type(self)(mine) for station, mine in found.items()}
        if not isinstance(self, Works):  # what is one piece of work is so among the events of its station too
            for station, mine in made.items():
                mine.works = self.works.stations.get(station, Works())
        return made


class Works(Record):
    """Events as `works` leaves them."""

    @property
    def works(self) -> Works:
        """Themselves."""
        return self


def distinct(events: Iterable[ProductionEvent]) -> Record:
    """Each event once, oldest first; of equal times in the order of `EventKind`."""
    if isinstance(events, Record):
        return events
    return Record(sorted({e.key: e for e in events}.values(), key=lambda e: (e.at, _RANK[e.event], e.key)))


def cause(event: ProductionEvent) -> Cause | None:
    """What a bad event counts against; None for any other."""
    return event.reason.cause if event.event in BAD and event.reason else None


def is_late(event: ProductionEvent) -> bool:
    """Whether it only says that a run missed its deadline: its unit is that run, and nothing has stopped."""
    return event.event is EventKind.HELD and event.reason is ReasonCode.DEADLINE_MISSED


def is_breakdown(event: ProductionEvent) -> bool:
    """Whether infrastructure stopped work."""
    return cause(event) is Cause.INFRASTRUCTURE and not is_late(event)


def works(events: Iterable[ProductionEvent]) -> Works:
    """The events that tell of work, each piece of work once.

    A corrected batch passes and is reworked at one instant, and both events tell of the same seconds: the later counts.
    """
    return distinct(events).works


def ends(events: Iterable[ProductionEvent]) -> list[End]:
    """How products ended, oldest first: good, or bad by a defect. What infrastructure stopped has not ended.

    A part of an order that fails by a defect ends the order. An operator's way back ends the version that he leaves as
    bad, and the one that he goes back to as good.
    """
    found = []
    for e in works(events):
        if e.unit_kind != PRODUCT.get(e.station):
            continue
        product, _, part = e.unit.partition("/") if e.station == "train" else (e.unit, "", "")
        if e.event in GOOD and not part:
            found.append(End(e.station, product, e, good=True))
        elif cause(e) is Cause.DEFECT:
            found.append(End(e.station, product, e, good=False))
            if e.event is EventKind.ROLLED_BACK and e.detail.get("to"):
                found.append(End(e.station, str(e.detail["to"]), e, good=True))
    return found


def by_product(found: Iterable[End]) -> dict[tuple[str, str], list[End]]:
    """Ends of each (station, product), in their order."""
    grouped: defaultdict[tuple[str, str], list[End]] = defaultdict(list)
    for end in found:
        grouped[end.station, end.unit].append(end)
    return dict(grouped)


def in_progress(events: Iterable[ProductionEvent], now: datetime) -> list[ProductionEvent]:
    """Work in progress: the starts within `FORGOTTEN` of units that have not ended at their station since."""
    open_: dict[tuple[str, str, str, str], ProductionEvent] = {}
    for e in distinct(events):
        if e.event is EventKind.STARTED:
            open_[e.line, e.station, e.unit_kind, e.unit] = e
        elif open_ and e.event in ENDS:
            open_.pop((e.line, e.station, e.unit_kind, e.unit), None)
    return [e for e in open_.values() if now - FORGOTTEN <= e.at <= now]


def at_station(events: Iterable[ProductionEvent], station: str) -> Record:
    """The events of one station, as `distinct` has them."""
    mine = distinct(events)
    return mine.stations.get(station) or type(mine)()


def began(event: ProductionEvent) -> datetime:
    """When the work of an event began."""
    return event.at - timedelta(seconds=event.duration_s)


def rollouts(events: Iterable[ProductionEvent]) -> dict[tuple[str, str], list[ProductionEvent]]:
    """The decisions of each rollout, by version and run, oldest first."""
    grouped: defaultdict[tuple[str, str], list[ProductionEvent]] = defaultdict(list)
    for e in distinct(events):
        if e.station == "deploy" and e.event is EventKind.DECIDED and "stage" in e.detail:
            grouped[e.unit, e.run_id].append(e)
    return dict(grouped)
