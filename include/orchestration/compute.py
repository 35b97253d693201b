"""Where training runs: in a pod where an Airflow connection to a cluster exists, else in a process of this machine.

It is the same program with the same arguments, `python -m aifactory.training`; DAG files do not change.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aifactory.errors import InfrastructureFault, TrainingDefect
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from aifactory.line import LineSpec
    from orchestration.clusterwork import Cluster
    from orchestration.pods import Shape
    from orchestration.station import Station

log = logging.getLogger(__name__)

_MARGIN = timedelta(minutes=5)
_LARGER = "larger_shape"
"""Key of the task's state: set once a pod of this task has run out of memory."""


def train(here: Station, order_id: str, phase: str) -> dict[str, Any]:
    """Carry out one phase of a training order, `challenger` or `refit`; ids and counts come back."""
    from aifactory.stages import train as stage
    from orchestration.clusterwork import connected_cluster

    cluster = connected_cluster(here.factory.settings.kubernetes_conn_id)
    if cluster is None:
        done: dict[str, Any] = stage.train(here.factory, here.spec, order_id, phase, on_start=here.on_kill)
        return done
    return dict(stage.train(here.factory, here.spec, order_id, phase, program=_Pod(here, cluster)))


def limits(spec: LineSpec) -> dict[str, Any]:
    """Arguments of a task that trains: the process is stopped by its own limit first, the task soon after."""
    compute = spec.compute
    waiting = timedelta(minutes=compute.queue_minutes + compute.start_minutes)
    return {"execution_timeout": timedelta(minutes=compute.timeout_minutes) + waiting + _MARGIN}


class _Pod:
    """The training program in a pod."""

    def __init__(self, here: Station, cluster: Cluster) -> None:
        self._here = here
        self._cluster = cluster

    def __call__(self, order_id: str, phase: str) -> dict[str, Any]:
        from aifactory.training.run import failure_key, result_key
        from orchestration import clusterwork
        from orchestration.pods import Shape, describe, task_label

        here, spec = self._here, self._here.spec
        store, what = here.factory.store, f"{phase} of order {order_id}"
        result = result_key(spec.line, order_id, phase)
        task = {name: str(getattr(here.context["ti"], name)) for name in ("dag_id", "run_id", "task_id")}
        if store.head(result):
            log.info("%s is done already, says %s: no pod is made", what, store.uri(result))
            clusterwork.tidy(self._cluster, task_label(here.factory.settings, task), what)
            return store.get_json(result) | {"reused": True}
        larger = bool(self._state.get(_LARGER))
        shape = Shape.of(spec.compute, larger=larger)
        manifest = describe(
            here.factory.settings,
            spec.compute,
            shape,
            ["--line", spec.line, "--order", order_id, "--phase", phase],
            line=spec.line,
            task=task,
        )
        waits = {"queue_s": int(spec.compute.queue_minutes * 60), "start_s": int(spec.compute.start_minutes * 60)}
        try:
            end = clusterwork.run_in_pod(
                here, self._cluster, manifest, what, failure_key(spec.line, order_id, phase), waits
            )
        except InfrastructureFault as fault:
            if fault.reason is ReasonCode.OUT_OF_MEMORY:
                self._out_of_memory(fault, shape, larger)
            raise
        log.info("pod %s: %s", end.name, ", ".join(f"{k}={v:.0f}" for k, v in end.seconds.items()))
        return store.get_json(result) | end.seconds | {"pod": end.name}

    def _out_of_memory(self, fault: InfrastructureFault, shape: Shape, larger: bool) -> None:
        """Note that the next try gets the larger shape; there is one such try.

        Raises:
            TrainingDefect: this was it.
        """
        if larger:
            raise TrainingDefect(
                fault.reason, f"{fault.message} and compute.retry_memory_gb: {shape.memory_gb:g} GB were not enough"
            ) from fault
        log.warning(
            "the next try gets %g GB instead of %g GB", self._here.spec.compute.larger_memory_gb, shape.memory_gb
        )
        self._state.set(_LARGER, True)

    @property
    def _state(self) -> Any:
        """The task's own state, which outlives its tries."""
        return self._here.context["task_state_store"]
