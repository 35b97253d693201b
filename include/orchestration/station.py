"""What a task knows while it works: its factory, its partition, its run, and how to hand on what it made.

Nothing here relies on a logical date: runs that assets or people trigger have none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from aifactory.errors import FactoryError, ReleaseDefect, Waiting
from aifactory.reasons import ReasonCode
from orchestration import links

if TYPE_CHECKING:
    from airflow.sdk import Asset

    from aifactory.factory import Factory
    from aifactory.line import LineSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Station:
    """One task at work.

    Args:
        spec: the line.
        context: Airflow's context of the task.
    """

    spec: LineSpec
    context: Mapping[str, Any]
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when the task is told to end: nothing new may be begun."""

    @cached_property
    def factory(self) -> Factory:
        """The stores."""
        from aifactory.factory import open_factory

        return open_factory()

    @property
    def run(self) -> str:
        """Id of the DAG run."""
        return str(self.context["run_id"])

    @property
    def params(self) -> dict[str, Any]:
        """What the form was filled with, or its defaults."""
        return dict(self.context["params"])

    @property
    def partition(self) -> str | None:
        """The partition that the form names, else the run's own; None where it has none."""
        named: str | None = self.params.get("partition") or self.context["dag_run"].partition_key
        return named

    @property
    def days(self) -> list[str]:
        """The partitions to take in: one, or the range that the form names; yesterday where nothing is named."""
        from orchestration.schedule import yesterday

        first = self.partition or yesterday(self.spec.schedule.timezone)
        return days_between(first, self.params.get("partition_to") or first)

    @property
    def operator(self) -> str:
        """Who triggered the run."""
        return str(getattr(self.context["dag_run"], "triggering_user_name", None) or "scheduler")

    def event(self, asset: Asset) -> dict[str, Any]:
        """The extra of the newest event of an asset that triggered this run; empty for a run by hand."""
        events = self.context["triggering_asset_events"]
        found = events.get(asset, [])
        return dict(found[-1].extra) if found else {}

    def request(self, signal: Asset) -> dict[str, Any]:
        """What training is asked for: by a retrain signal, or by the operator who filled in the form."""
        asked = {name: self.params[name] for name in ("recipe", "drop_features", "force", "why")}
        called = self.event(signal) or {"reason": ReasonCode.OPERATOR.value, "signal": f"manual/{self.run}"}
        return asked | called | {"by": self.operator}

    def version(self, candidate: Asset) -> str:
        """The model version to release: the form's, else that of the candidate which triggered the run.

        Raises:
            ReleaseDefect: neither names one.
        """
        named = self.params.get("version") or self.event(candidate).get("version")
        if not named:
            raise ReleaseDefect(
                ReasonCode.VERSION_UNKNOWN, "the run names no version and no candidate triggered it; fill in the form"
            )
        return str(named)

    def made(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Log what a stage made and point the task's buttons at it; what comes back is fit for XCom."""
        told = {name: value for name, value in result.items() if isinstance(value, str | int | float | bool)}
        log.info("%s", ", ".join(f"{name}={value}" for name, value in told.items()))
        for name in ("docs", "report"):
            if told.get(name):
                links.set_report(str(told[name]))
        if told.get("mlflow_url"):
            links.set_mlflow(str(told["mlflow_url"]))
        return dict(result)

    def emit(self, asset: Asset, made: Mapping[str, Any], partition: str | None = None) -> None:
        """Hand on what was made: ids and counts, under the run's partition key unless another is given."""
        accessor = self.context["outlet_events"][asset]
        accessor.extra = {name: value for name, value in made.items() if isinstance(value, str | int | float | bool)}
        if key := partition or self.partition:
            accessor.add_partitions(key)

    def on_kill(self, end: Callable[[], object]) -> None:
        """Call this when the task is cancelled, marked or out of time: its work must not outlive it.

        Airflow asks the operator; a function task's operator has no answer of its own.
        """

        def cancel() -> None:
            self.cancelled.set()
            end()

        self.context["ti"].task.on_kill = cancel

    def end_here(self, made: Mapping[str, Any], why: str) -> NoReturn:
        """Succeed with a result, and skip every task that comes after this one.

        Raises:
            DownstreamTasksSkipped: how Airflow is told; raising it costs no further task process.
        """
        from airflow.sdk.exceptions import DownstreamTasksSkipped

        log.info("the rest is skipped: %s", why)
        ti = self.context["ti"]
        ti.xcom_push("return_value", dict(made))
        ti.xcom_push("reason", why[:1000])
        later = [task.task_id for task in ti.task.get_flat_relatives(upstream=False)]
        raise DownstreamTasksSkipped(tasks=later)  # type: ignore[no-untyped-call]


@contextmanager
def station(spec: LineSpec, report: str = "") -> Iterator[Station]:
    """Work at a station of a line; a failure is named in the log, in XCom and on the task's report button.

    Args:
        spec: the line.
        report: prefix under `reports/<line>/` that the report button leads to.
    """
    from airflow.sdk import get_current_context

    here = Station(spec, get_current_context())
    links.set_report(f"reports/{spec.line}/{report}")
    with _failure_named(here.context):
        yield here


def step_of_rollout(spec: LineSpec, proposed: Mapping[str, Any], step: str) -> dict[str, Any]:
    """Take a rollout through one step; a candidate that is taken back skips the rest of the run."""
    from aifactory.stages import rollout

    with station(spec, "deploy/") as here:
        asked = bool(here.params.get("version"))  # a person may go backwards; a late retry of an older run may not
        made = here.made(
            rollout.advance(here.factory, spec, proposed["version"], here.run, rollout.STEPS[step], backwards=asked)
        )
        if "reason" in made:
            rollout.taken_back(here.factory, spec, made, here.run)
            here.end_here(made, f"taken back: {made['reason']}: {made['explanation']}")
        return made


@contextmanager
def plant_task() -> Iterator[tuple[Factory, str]]:
    """Work for the plant as a whole: the stores, and the run's id; a failure is named in the log and in XCom."""
    from airflow.sdk import get_current_context

    from aifactory.factory import open_factory

    context = get_current_context()
    with _failure_named(context):
        yield open_factory(), str(context["run_id"])


@contextmanager
def _failure_named(context: Mapping[str, Any]) -> Iterator[None]:
    from airflow.sdk.exceptions import AirflowRescheduleException

    try:
        yield
    except Waiting as waiting:
        log.info("%s; until then no worker is held", waiting)
        raise AirflowRescheduleException(waiting.until) from waiting  # type: ignore[no-untyped-call]
    except FactoryError as error:
        log.error("%s: %s %s", error.reason.value, error.reason.sentence, error.message)  # noqa: TRY400 - Airflow logs the traceback
        context["ti"].xcom_push("reason", f"{error.reason.value}: {error.message}"[:1000])
        raise


def days_between(first: str, last: str) -> list[str]:
    """Partition keys from the first to the last day, both included.

    Raises:
        ValueError: the last is before the first.
    """
    from datetime import date, timedelta

    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    if end < begin:
        raise ValueError(f"partition_to {last} is before partition {first}; exchange them")
    return [(begin + timedelta(days=n)).isoformat() for n in range((end - begin).days + 1)]


def refusals(verdict: Mapping[str, Any]) -> str:
    """Why a challenger was refused, in one line."""
    return "refused: " + "; ".join(f"{reason['code']}: {reason['message']}" for reason in verdict["reasons"])
