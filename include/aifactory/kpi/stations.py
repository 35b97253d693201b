"""Counts, work and downtime of one station; its OEE and its load. Stations are never averaged with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from aifactory.kpi import formulas
from aifactory.kpi.record import (
    STATIONS,
    End,
    at_station,
    began,
    by_product,
    distinct,
    ends,
    in_progress,
    is_breakdown,
    rollouts,
    works,
)
from aifactory.ledger import ProductionEvent


@dataclass(frozen=True)
class Plan:
    """What a line's plan asks of its stations.

    Args:
        takt_s: station -> seconds in which one good unit is wanted.
        ideal_cycle_s: station -> seconds that a unit takes at its best, where the line declares it.
    """

    takt_s: Mapping[str, float] = field(default_factory=dict)
    ideal_cycle_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outage:
    """A time in which infrastructure kept a station from its work; `end` is None while it lasts."""

    station: str
    begin: datetime
    end: datetime | None

    def seconds(self, now: datetime) -> float:
        """Length until its end, or until now."""
        return max(0.0, ((self.end or now) - self.begin).total_seconds())


@dataclass(frozen=True)
class StationFigures:
    """One station over a time; see `orchestration.floormodels.StationKpis` for each field's meaning."""

    station: str
    num_units: int = 0
    num_good: int = 0
    num_first_pass: int = 0
    num_rework: int = 0
    num_scrap: int = 0
    num_rows_in: int = 0
    num_rows_good: int = 0
    num_rows_bad: int = 0
    wip: int = 0
    num_outages: int = 0
    work_s: float = 0.0
    down_s: float = 0.0
    is_down: bool = False
    best_cycle_s: float | None = None
    last_at: datetime | None = None

    @property
    def first_pass_yield(self) -> float | None:
        """See `formulas.first_pass_yield`."""
        return formulas.first_pass_yield(self.num_first_pass, self.num_units)

    @property
    def row_yield(self) -> float | None:
        """Good rows ÷ rows in."""
        return formulas.quality_ratio(self.num_rows_good, self.num_rows_in)

    @property
    def cycle_s(self) -> float | None:
        """See `formulas.effective_cycle`."""
        return formulas.effective_cycle(self.work_s + self.down_s, self.num_good)

    def load(self, plan: Plan) -> float | None:
        """Effective cycle ÷ takt: utilisation, above 1 where the station cannot keep up."""
        wanted = plan.takt_s.get(self.station)
        return None if self.cycle_s is None or wanted is None else formulas.ratio(self.cycle_s, wanted)

    def ideal_cycle(self, plan: Plan) -> tuple[float | None, str | None]:
        """The ideal cycle, s, and whether it is "declared" or "demonstrated"."""
        declared = plan.ideal_cycle_s.get(self.station)
        if declared is not None:
            return declared, "declared"
        return self.best_cycle_s, "demonstrated" if self.best_cycle_s is not None else None

    def oee(self, plan: Plan) -> formulas.Oee:
        """The OEE index: planned busy time is the work with the downtime, idle hours of the night are not planned."""
        ideal, _ = self.ideal_cycle(plan)
        return formulas.Oee(
            formulas.availability(self.work_s, self.work_s + self.down_s),
            None if ideal is None else formulas.effectiveness(ideal, self.num_units, self.work_s),
            formulas.quality_ratio(self.num_good, self.num_units),
        )


def outages(events: Iterable[ProductionEvent]) -> list[Outage]:
    """Times in which infrastructure kept a station from its work, oldest first.

    One begins when the work began that broke down, and ends when the next work began that did not; breakdowns until
    then belong to it.
    """
    found: list[Outage] = []
    mine = works(events)
    for station in STATIONS:
        since: datetime | None = None
        broke: datetime | None = None
        for e in at_station(mine, station):
            if e.reason and is_breakdown(e):
                since, broke = since or began(e), e.at
            elif since is not None and broke is not None and e.duration_s > 0:
                found.append(Outage(station, since, max(broke, began(e))))
                since = None
        if since is not None:
            found.append(Outage(station, since, None))
    return sorted(found, key=lambda o: (o.begin, o.station))


def work_of_products(events: Iterable[ProductionEvent]) -> dict[str, float]:
    """Seconds of work of a station, not lost to infrastructure, by product.

    Of an order with its parts, of a batch with the dataset version that it closed. A rollout works from its first
    decision to its last: it holds the station while it bakes. What of that its events tell as their own seconds comes
    after.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    mine = distinct(events)
    for e in works(mine):
        if not (e.reason and is_breakdown(e)):
            spent[_product(e)] += e.duration_s
    for (version, _), steps in rollouts(mine).items():
        spent[version] += (steps[-1].at - steps[0].at).total_seconds()
    return dict(spent)


def figures(events: Iterable[ProductionEvent], station: str, now: datetime) -> StationFigures:
    """What happened at one station.

    Args:
        events: of one line and one time.
        station: which.
        now: end of the time; an outage that lasts counts until then.
    """
    mine = at_station(events, station)
    done = works(mine)
    products = by_product(ends(done))
    down = outages(done)
    lasts = [found[-1] for found in products.values()]
    good = [end for end in lasts if end.good]
    reworked = [found for found in products.values() if found[-1].good and _was_reworked(found)]
    spent = work_of_products(mine)
    return StationFigures(
        station,
        num_units=len(lasts),
        num_good=len(good),
        num_first_pass=len(good) - len(reworked),
        num_rework=len(reworked),
        num_scrap=len(lasts) - len(good),
        num_rows_in=sum(end.event.num_in for end in lasts),
        num_rows_good=sum(end.event.num_good for end in lasts),
        num_rows_bad=sum(end.event.num_bad for end in lasts),
        wip=len(in_progress(mine, now)),
        num_outages=len(down),
        work_s=sum(spent.values()),
        down_s=sum(outage.seconds(now) for outage in down),
        is_down=any(outage.end is None for outage in down),
        best_cycle_s=min((spent[end.unit] for end in good if spent.get(end.unit)), default=None),
        last_at=mine[-1].at if mine else None,
    )


def bottleneck(stations: Sequence[StationFigures], plan: Plan) -> tuple[str, float] | None:
    """The station with the highest load, and that load; the first in the loop of equal ones (Goldratt, *The Goal*)."""
    loads = [(f.load(plan), f.station) for f in stations]
    known = [(load, station) for load, station in loads if load is not None]
    if not known:
        return None
    load, station = max(known, key=lambda each: each[0])
    return station, load


def _was_reworked(found: Sequence[End]) -> bool:
    return any(end.reworked or not end.good for end in found)


def _product(event: ProductionEvent) -> str:
    if event.station == "train":
        return event.unit.partition("/")[0]
    return event.partition or event.unit if event.unit_kind == "dataset" else event.unit
