"""What happens when a stage is late: somebody is told, and the ledger remembers.

A deadline stops nothing. The callback runs in Airflow's triggerer, which imports it by its path.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from aifactory.line import LineSpec

log = logging.getLogger(__name__)


def deadline_of(spec: LineSpec, stage: str) -> DeadlineAlert:
    """The deadline of every run of a stage, from the moment it is queued."""
    return deadline_within(spec.schedule.deadline_minutes, spec.line, stage)


def deadline_within(minutes: int, line: str, stage: str) -> DeadlineAlert:
    """The deadline of every run of a stage of a line, or of `PLANT`, from the moment it is queued."""
    return DeadlineAlert(
        name=f"{line}.{stage} within {minutes} min",
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(minutes=minutes),
        callback=AsyncCallback(report_late, kwargs={"line": line, "stage": stage, "minutes": minutes}),
    )


async def report_late(line: str, stage: str, minutes: int, context: dict[str, Any] | None = None, **_: Any) -> None:
    """Log a missed deadline and write it to the ledger, once for each run."""
    run = dict((context or {}).get("dag_run") or {})
    run_id = str(run.get("dag_run_id") or run.get("run_id") or "unknown")
    log.warning("%s.%s is late: run %s was queued more than %s minutes ago", line, stage, run_id, minutes)
    await asyncio.to_thread(_record, line, stage, run_id, run.get("partition_key"), minutes)


def _record(line: str, stage: str, run_id: str, partition: str | None, minutes: int) -> None:
    from datetime import UTC, datetime

    from aifactory.factory import open_factory
    from aifactory.ledger import EventKind, ProductionEvent
    from aifactory.reasons import ReasonCode

    open_factory().ledger.record(
        ProductionEvent(
            line=line,
            station={"rollback": "deploy", "sweep": "train", "notices": "capacity"}.get(stage, stage),
            unit_kind="batch",
            unit=run_id,
            event=EventKind.HELD,
            key=f"late/{line}/{stage}/{run_id}",
            reason=ReasonCode.DEADLINE_MISSED,
            at=datetime.now(UTC),
            partition=partition,
            run_id=run_id,
            detail={"deadline_minutes": minutes, "stage": stage},
        )
    )
