"""What every DAG of the factory has, so that a DAG file is left with its flow alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from airflow.sdk import DAG, Param

from aifactory.errors import SpecError
from aifactory.line import LineSpec, load_line
from orchestration.deadlines import deadline_of
from orchestration.retries import FIRST_DELAY, MAX_DELAY, NUM_RETRIES, TwoBudgets


@cache
def read_lines() -> tuple[tuple[LineSpec, ...], tuple[SpecError, ...]]:
    """Every line whose spec is valid, and what is wrong with the others."""
    import os
    from pathlib import Path

    folder = Path(os.environ.get("AIF_LINES_DIR") or Path(__file__).parents[1] / "lines")
    good, bad = [], []
    for path in sorted(folder.glob("*/line.yaml")):
        try:
            good.append(load_line(path.parent))
        except SpecError as error:
            bad.append(error)
    return tuple(good), tuple(bad)


def report_bad_specs() -> None:
    """Show what is wrong with specs as an import error of the calling DAG file: the fields, without a stack trace.

    Airflow shows what a DAG's own validation says as one line; an exception at import would bring its traceback.
    """
    _, bad = read_lines()
    if bad:
        with _BadSpecs(dag_id="specs", schedule=None):
            pass  # a DAG registers itself when its context ends


class _BadSpecs(DAG):
    def validate(self) -> None:
        _, bad = read_lines()
        raise SpecError("; and ".join(error.args[0] for error in bad))


def every_line(build: Callable[[LineSpec], None]) -> Callable[[LineSpec], None]:
    """Build a stage's DAG for every valid line. A bad one is reported by `dags/specs.py` and stops no other."""
    good, _ = read_lines()
    for spec in good:
        build(spec)
    return build


def stage_dag(spec: LineSpec, stage: str, doc: str | None, *, schedule: Any, params: dict[str, Param]) -> DAG:
    """The DAG `<line>.<stage>`: owner, tags, docs, deadline, retries, time limit, one run at a time."""
    return DAG(
        dag_id=f"{spec.line}.{stage}",
        description=(doc or "").strip().splitlines()[0].lstrip("# "),
        doc_md=doc,
        schedule=schedule,
        params=params,
        tags={spec.line, stage, *spec.tags},
        default_args={
            "owner": spec.owner.team,
            "retries": NUM_RETRIES,
            "retry_delay": FIRST_DELAY,
            "retry_exponential_backoff": 2,
            "max_retry_delay": MAX_DELAY,
            "retry_policy": TwoBudgets(),
            "execution_timeout": timedelta(minutes=spec.schedule.stage_timeout_minutes),
        },
        deadline=deadline_of(spec, stage),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
    )
