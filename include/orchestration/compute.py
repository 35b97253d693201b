"""Where training runs.

Now: a process of its own on the worker's machine, `python -m aifactory.training`, so that its memory and its
crashes are not the task's. A `KubernetesPodOperator` takes the same program and the same arguments; that is the
seam, and DAG files do not change with it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifactory.line import LineSpec
    from orchestration.station import Station

_MARGIN = timedelta(minutes=5)


def train(here: Station, order_id: str, phase: str) -> dict[str, Any]:
    """Carry out one phase of a training order, `challenger` or `refit`; ids and counts come back."""
    from aifactory.stages import train as stage

    done: dict[str, Any] = stage.train(here.factory, here.spec, order_id, phase)
    return done


def limits(spec: LineSpec) -> dict[str, Any]:
    """Arguments of a task that trains: the process is stopped by its own limit first, the task soon after."""
    return {"execution_timeout": timedelta(minutes=spec.compute.timeout_minutes) + _MARGIN}
