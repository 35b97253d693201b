"""Which reasons stop units, most frequent first (Juran's Pareto)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from aifactory.kpi.formulas import cumulative_shares
from aifactory.kpi.record import End, by_product, cause, distinct, ends
from aifactory.ledger import ProductionEvent
from aifactory.reasons import Cause, ReasonCode


@dataclass(frozen=True)
class ParetoItem:
    """One reason; see `orchestration.floormodels.ParetoItem` for each field's meaning."""

    reason: ReasonCode
    num_events: int
    num_units: int
    num_scrap: int
    num_rework: int
    num_rows: int
    lost_s: float
    stations: dict[str, int]
    cumulative_share: float


def pareto(events: Iterable[ProductionEvent]) -> list[ParetoItem]:
    """Reasons of defects and of infrastructure; decisions stop nothing that is to be avoided."""
    mine = distinct(events)
    of_reason: defaultdict[ReasonCode, list[ProductionEvent]] = defaultdict(list)
    for e in mine:
        if e.reason and cause(e) not in (None, Cause.DECISION):
            of_reason[e.reason].append(e)
    products = by_product(ends(mine))
    order = sorted(of_reason, key=lambda reason: (-len(of_reason[reason]), reason.value))
    shares = cumulative_shares([len(of_reason[reason]) for reason in order])
    return [_item(reason, of_reason[reason], products, share) for reason, share in zip(order, shares, strict=True)]


def quarantined(events: Iterable[ProductionEvent]) -> dict[str, int]:
    """Rows that the raw gate put into quarantine, by reason code, most first; of each batch its last end alone."""
    counts: Counter[str] = Counter()
    for (station, _), found in by_product(ends(events)).items():
        if station == "ingest":
            for reasons in found[-1].event.detail.get("quarantined", {}).values():
                for named, num_rows in reasons.items():
                    counts[named.partition(" ")[0]] += num_rows
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _item(
    reason: ReasonCode,
    mine: list[ProductionEvent],
    products: dict[tuple[str, str], list[End]],
    share: float,
) -> ParetoItem:
    units = {(e.station, e.unit.partition("/")[0] if e.station == "train" else e.unit) for e in mine}
    lasts = {unit: products[unit][-1] for unit in units if unit in products}
    scrap = [end for end in lasts.values() if not end.good and end.event.reason is reason]
    return ParetoItem(
        reason,
        num_events=len(mine),
        num_units=len(units),
        num_scrap=len(scrap),
        num_rework=sum(end.good for end in lasts.values()),
        num_rows=sum(end.event.num_bad for end in scrap),
        lost_s=sum(e.duration_s for e in mine),
        stations=dict(Counter(e.station for e in mine)),
        cumulative_share=share,
    )
