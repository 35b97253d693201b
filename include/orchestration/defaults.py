"""What every DAG of the factory has, so that a DAG file is left with its flow alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from aifactory.capacity.inventory import Inventory, load_inventory
from aifactory.errors import SpecError
from aifactory.line import PLANT, LineSpec, lines_under
from aifactory.notices import Routes, load_routes
from orchestration.deadlines import deadline_of, deadline_within
from orchestration.retries import FIRST_DELAY, MAX_DELAY, NUM_RETRIES, TwoBudgets

if TYPE_CHECKING:
    from airflow.sdk.definitions.deadline import DeadlineAlert


@cache
def read_lines() -> tuple[tuple[LineSpec, ...], tuple[SpecError, ...]]:
    """Every line whose spec is valid, and what is wrong with the others."""
    import os
    from pathlib import Path

    good, bad = lines_under(Path(os.environ.get("AIF_LINES_DIR") or Path(__file__).parents[1] / "lines"))
    return good, tuple(bad.values())


@cache
def read_inventory() -> tuple[Inventory | None, SpecError | None]:
    """The inventory that AIF_CAPACITY_FILE names, or what is wrong with it; neither where it names none."""
    import os
    from pathlib import Path

    path = os.environ.get("AIF_CAPACITY_FILE")
    if not path:
        return None, None
    try:
        return load_inventory(Path(path)), None
    except SpecError as error:
        return None, error


@cache
def read_routes() -> tuple[Routes | None, SpecError | None]:
    """The routes of the file that AIF_NOTICES_FILE names, or what is wrong with it; no routes where it names none."""
    import os
    from pathlib import Path

    path = os.environ.get("AIF_NOTICES_FILE")
    good, bad = read_lines()
    try:
        return load_routes(Path(path), [] if bad else good) if path else Routes(), None
    except SpecError as error:
        return None, error


def _all_bad() -> list[SpecError]:
    _, bad = read_lines()
    _, bad_inventory = read_inventory()
    _, bad_routes = read_routes()
    return [*bad, *(error for error in (bad_inventory, bad_routes) if error)]


def report_bad_specs() -> None:
    """Show what is wrong with specs as an import error of the calling DAG file: the fields, without a stack trace.

    Airflow shows what a DAG's own validation says as one line; an exception at import would bring its traceback.
    """
    if _all_bad():
        with _BadSpecs(dag_id="specs", schedule=None):
            pass  # a DAG registers itself when its context ends


class _BadSpecs(DAG):
    def validate(self) -> None:
        raise SpecError("; and ".join(error.args[0] for error in _all_bad()))


def every_line(build: Callable[[LineSpec], None]) -> Callable[[LineSpec], None]:
    """Build a stage's DAG for every valid line. A bad one is reported by `dags/specs.py` and stops no other."""
    good, _ = read_lines()
    for spec in good:
        build(spec)
    return build


def with_inventory(build: Callable[[Inventory], None]) -> Callable[[Inventory], None]:
    """Build a DAG of the plant where it has an inventory. A bad one is reported by `dags/specs.py`."""
    inventory, _ = read_inventory()
    if inventory is not None:
        build(inventory)
    return build


def with_routes(build: Callable[[Routes, Mapping[str, LineSpec]], None]) -> Callable[..., None]:
    """Build a DAG of the plant by the routes of its notices. Bad ones are reported by `dags/specs.py`."""
    routes, _ = read_routes()
    if routes is not None:
        build(routes, {spec.line: spec for spec in read_lines()[0]})
    return build


def stage_dag(spec: LineSpec, stage: str, doc: str | None, *, schedule: Any, params: dict[str, Param]) -> DAG:
    """The DAG `<line>.<stage>`: owner, tags, docs, deadline, retries, time limit, one run at a time."""
    return _dag(
        f"{spec.line}.{stage}",
        doc,
        schedule=schedule,
        params=params,
        tags={spec.line, stage, *spec.tags},
        owner=spec.owner.team,
        limit_minutes=spec.schedule.stage_timeout_minutes,
        deadline=deadline_of(spec, stage),
    )


def plant_dag(name: str, doc: str | None, *, schedule: Any, limit_minutes: int) -> DAG:
    """The DAG `plant.<name>`, which works for all lines; a run is late after four times the limit of a task."""
    return _dag(
        f"{PLANT}.{name}",
        doc,
        schedule=schedule,
        params={},
        tags={PLANT, name},
        owner=PLANT,
        limit_minutes=limit_minutes,
        deadline=deadline_within(4 * limit_minutes, PLANT, name),
    )


def _dag(
    dag_id: str,
    doc: str | None,
    *,
    schedule: Any,
    params: dict[str, Param],
    tags: set[str],
    owner: str,
    limit_minutes: int,
    deadline: DeadlineAlert,
) -> DAG:
    return DAG(
        dag_id=dag_id,
        description=(doc or "").strip().splitlines()[0].lstrip("# "),
        doc_md=doc,
        schedule=schedule,
        params=params,
        tags=tags,
        default_args={
            "owner": owner,
            "retries": NUM_RETRIES,
            "retry_delay": FIRST_DELAY,
            "retry_exponential_backoff": 2,
            "max_retry_delay": MAX_DELAY,
            "retry_policy": TwoBudgets(),
            "execution_timeout": timedelta(minutes=limit_minutes),
        },
        deadline=deadline,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
    )
