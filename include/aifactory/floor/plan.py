"""What a line's spec asks of its stations."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from aifactory.kpi.stations import Plan
from aifactory.line import LineSpec

DAY_S = 86400.0


def plan_of(spec: LineSpec) -> Plan:
    """Takt and ideal cycle of a line's stations: one batch a tick of its cron, one model a cadence."""
    tick = tick_s(spec.schedule.cron)
    model = spec.feedback.cadence_days * DAY_S
    takt = {"ingest": tick, "train": model, "deploy": model, "score": tick, "feedback": tick}
    return Plan(takt, {str(station): ideal for station, ideal in spec.schedule.ideal_cycle_s.items()})


@lru_cache
def tick_s(cron: str) -> float:
    """Mean seconds between the ticks of a cron expression, over a hundred of them."""
    from croniter import croniter  # type: ignore[import-untyped]

    ticks = croniter(cron, datetime(2026, 1, 1, tzinfo=UTC))
    first = ticks.get_next(float)
    last = [ticks.get_next(float) for _ in range(100)][-1]
    return float((last - first) / 100)
