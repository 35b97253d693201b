"""What the floor asks of Airflow itself: who may see and edit a line, which DAGs run, what waits for approval.

Airflow's models and its auth manager are no stable interface; all use that the floor makes of them is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.models.asset import AssetEvent
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

from aifactory.kpi.record import STATIONS


@dataclass(frozen=True)
class DagNow:
    """What Airflow says of one DAG now."""

    paused: bool
    num_running: int
    num_queued: int
    last_run_id: str | None


@dataclass(frozen=True)
class Approval:
    """A task that waits for a person."""

    dag_id: str
    run_id: str
    task_id: str
    subject: str
    since: datetime


class AirflowSide:
    """Airflow as the floor sees it, asked anew each time."""

    def may_read(self, user: Any, lines: Iterable[str]) -> set[str]:
        """The lines all of whose stage DAGs a user may read."""
        dags = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        return {line for line in lines if all(f"{line}.{station}" in dags for station in STATIONS)}

    def may_read_of(self, user: Any, folders: Iterable[str]) -> set[str]:
        """Folders of lines, of those whose ingest DAG a user may read, whether Airflow has such a DAG or not."""
        manager = get_auth_manager()

        def may(dag_id: str) -> bool:
            details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
            return bool(manager.is_authorized_dag(method="GET", details=details, user=user))

        return {folder for folder in folders if may(f"{folder}.ingest")}

    def may_edit(self, user: Any, lines: Iterable[str]) -> set[str]:
        """Of lines that a user may read, those whose ingest DAG he may edit."""
        dags = get_auth_manager().get_authorized_dag_ids(user=user, method="PUT")
        return {line for line in lines if f"{line}.ingest" in dags}

    def dags(self, lines: Sequence[str]) -> dict[str, DagNow]:
        """The stage DAGs of some lines, by id."""
        from sqlalchemy import func, select

        wanted = [f"{line}.{station}" for line in lines for station in STATIONS]
        with create_session() as session:
            paused = session.execute(select(DagModel.dag_id, DagModel.is_paused).where(DagModel.dag_id.in_(wanted)))
            found = {dag_id: bool(is_paused) for dag_id, is_paused in paused}
            active = session.execute(
                select(DagRun.dag_id, DagRun.state, func.count())
                .where(DagRun.dag_id.in_(wanted), DagRun.state.in_(["running", "queued"]))
                .group_by(DagRun.dag_id, DagRun.state)
            )
            count = {(dag_id, str(state)): int(num) for dag_id, state, num in active}
            newest = select(func.max(DagRun.id)).where(DagRun.dag_id.in_(wanted)).group_by(DagRun.dag_id)
            last = dict(session.execute(select(DagRun.dag_id, DagRun.run_id).where(DagRun.id.in_(newest))).all())
        return {
            dag_id: DagNow(
                is_paused, count.get((dag_id, "running"), 0), count.get((dag_id, "queued"), 0), last.get(dag_id)
            )
            for dag_id, is_paused in found.items()
        }

    def approvals(self, lines: Sequence[str]) -> list[Approval]:
        """Releases of some lines that wait for a person's word, newest first."""
        from sqlalchemy import select

        wanted = [f"{line}.deploy" for line in lines]
        statement = (
            select(
                TaskInstance.dag_id,
                TaskInstance.run_id,
                TaskInstance.task_id,
                HITLDetail.subject,
                HITLDetail.created_at,
            )
            .join(TaskInstance, TaskInstance.id == HITLDetail.ti_id)
            .where(HITLDetail.responded_at.is_(None), TaskInstance.dag_id.in_(wanted))
            .where(TaskInstance.state.not_in(["success", "failed", "skipped", "upstream_failed", "removed"]))
            .order_by(HITLDetail.created_at.desc())
        )
        with create_session() as session:
            return [Approval(*row) for row in session.execute(statement).all()]

    def ledger_runs(self, dag_id: str, run_id: str) -> list[str]:
        """The ids by which the ledger knows an Airflow run: its own, and of a training that of the signal for it."""
        from sqlalchemy import select

        statement = (
            select(AssetEvent.extra)
            .join(DagRun.consumed_asset_events)
            .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        )
        with create_session() as session:
            extras = session.execute(statement).scalars().all()
        signals = [str(extra["signal"]) for extra in extras if extra and extra.get("signal")]
        return [run_id, f"manual/{run_id}", *signals]


def dag_href(dag_id: str) -> str:
    """Page of a DAG in Airflow."""
    return f"/dags/{quote(dag_id)}"


def run_href(dag_id: str, run_id: str | None) -> str | None:
    """Page of a run in Airflow."""
    return f"/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}" if run_id else None


def approval_href(approval: Approval) -> str:
    """Page in Airflow where a person answers."""
    return f"{run_href(approval.dag_id, approval.run_id)}/tasks/{quote(approval.task_id)}/required_actions"
