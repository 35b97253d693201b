"""Where heavy work runs: in a pod where it is placed on a cluster (see `placing`), else on this machine.

Training is a program of its own, `python -m aifactory.training`, in a pod as in a process. What else `compute.in_pods`
of a line names runs in its task, or in a pod as `python -m aifactory.jobs`. DAG files do not change.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect, InfrastructureFault, TrainingDefect
from aifactory.line import LONGEST_TASK
from aifactory.reasons import ReasonCode
from orchestration import placing

if TYPE_CHECKING:
    from aifactory.jobs import CarryOut
    from aifactory.line import Compute, LineSpec
    from orchestration.clusterwork import PodEnd
    from orchestration.placing import Place
    from orchestration.pods import Shape
    from orchestration.station import Station

log = logging.getLogger(__name__)

_LARGER = "larger_shape"
"""Key of the task's state: set once a pod of this task has run out of memory."""
STOPPED_FROM_OUTSIDE = {
    ReasonCode.POD_EVICTED,
    ReasonCode.POD_PREEMPTED,
    ReasonCode.POD_DELETED,
    ReasonCode.NODE_LOST,
    ReasonCode.PROCESS_KILLED,
}
NUM_REPLACEMENTS = 5
"""New pods that one try may make for a training that is stopped from outside; then the task's budget takes over."""
_TRAININGS = 3
"""The task of a training has the time of so many pods, of fewer where that would be more than `LONGEST_TASK`; another
is made while there is time for the whole of it."""
_JOBS = 2
"""The same of other work, whose pod may have to be made in another cluster."""


def train(here: Station, order_id: str, phase: str) -> dict[str, Any]:
    """Carry out one phase of a training order, `challenger` or `refit`; ids and counts come back."""
    from aifactory.stages import train as stage

    if not placing.goes_to_pods(here, "train"):
        done: dict[str, Any] = stage.train(here.factory, here.spec, order_id, phase, on_start=here.on_kill)
        return done
    return dict(stage.train(here.factory, here.spec, order_id, phase, program=_Pods(here, "train").train))


def elsewhere(here: Station, work: str) -> CarryOut | None:
    """What has this work done in a pod; None where the task does it itself."""
    return _Pods(here, work).job if placing.goes_to_pods(here, work) else None


def limits(spec: LineSpec, work: str) -> dict[str, Any]:
    """Arguments of the task of some work: a training gets the time of three pods, other work in pods that of two.

    The longer a pod may take, the fewer there is time for: a group's first pod waits twice, for its own place and then
    for the others'. Even one pod's time is `LONGEST_TASK` at most, or the line's spec is refused.

    Processes and pods are stopped by their own limit, `compute.timeout_minutes`; the task's is there if that fails.
    """
    compute = spec.compute
    if work not in compute.in_pods and work != "train":
        return {}
    return {"execution_timeout": _num_pods(compute, work) * compute.pod_time}


def _num_pods(compute: Compute, work: str) -> int:
    return min(_TRAININGS if work == "train" else _JOBS, LONGEST_TASK // compute.pod_time)


@dataclass(frozen=True)
class _Work:
    """A program of the trainer image, and where in S3 it says what it made.

    Args:
        what: for messages.
        unit: names it among all work of the line.
        program: module that is run.
        arguments: of the program.
        result: key of what it made.
        failure: key of why it failed.
        order: order and phase of a training, which has checkpoints.
    """

    what: str
    unit: str
    program: str
    arguments: list[str]
    result: str
    failure: str
    order: tuple[str, str] | None = None


class _Pods:
    """Programs of the trainer image in pods."""

    def __init__(self, here: Station, kind: str) -> None:
        self._here = here
        self._kind = kind

    def train(self, order_id: str, phase: str) -> dict[str, Any]:
        """The training program."""
        from aifactory.training.run import failure_key, result_key

        line = self._here.spec.line
        return self._made(
            _Work(
                f"{phase} of order {order_id}",
                f"{order_id}/{phase}",
                "aifactory.training",
                ["--line", line, "--order", order_id, "--phase", phase],
                result_key(line, order_id, phase),
                failure_key(line, order_id, phase),
                (order_id, phase),
            )
        )

    def job(self, job: str) -> dict[str, Any]:
        """A job that was asked for."""
        from aifactory.jobs import key

        line = self._here.spec.line
        return self._made(
            _Work(
                f"job {job}",
                job,
                "aifactory.jobs",
                ["--line", line, "--job", job],
                key(line, job, ".result.json"),
                key(line, job, ".failure.json"),
            )
        )

    def _made(self, work: _Work) -> dict[str, Any]:
        """What the program made, now or in an earlier try."""
        store = self._here.factory.store
        if store.head(work.result):
            log.info("%s is done already, says %s: no pod is made", work.what, store.uri(work.result))
            placing.done(self._here, self._kind, work.unit)
            made = store.get_json(work.result)
            return made | {"pod": made["attempt"], "reused": True}
        compute = self._here.spec.compute
        more_for = (_num_pods(compute, self._kind) - 1) * compute.pod_time
        refit_comes = work.order is not None and work.order[1] == "challenger"
        follows = timedelta(minutes=compute.expected_minutes or 0) if refit_comes else timedelta(0)
        end = placing.carried_out(
            self._here, self._kind, work.unit, lambda place: self._run(work, place), more_for, follows
        )
        log.info("pod %s: %s", end.name, ", ".join(f"{k}={v:.0f}" for k, v in end.seconds.items()))
        return store.get_json(work.result) | end.seconds | {"pod": end.name}

    def _run(self, work: _Work, place: Place) -> PodEnd:
        """Run pods in one place until one ends well.

        A training that is stopped from outside goes on in another pod at once if it had come further than the one
        before, a few times in one try; all else goes to the task's budgets.
        """
        from orchestration import clusterwork, podgroup
        from orchestration.pods import Shape, describe

        here, compute = self._here, _placed(self._here.spec.compute, place)
        larger = bool(self._state.get(_LARGER))
        shape = Shape.of(compute, larger=larger)
        shape = shape if work.order else replace(shape, gpus=0)  # jobs compute on CPUs
        manifest = describe(
            here.factory.settings.model_copy(update=dict(place.tariff)),
            compute,
            shape,
            work.program,
            work.arguments,
            line=here.spec.line,
            task=placing.task_ids(here),
        )
        in_group = work.order is not None and compute.nodes > 1
        run = partial(podgroup.run_in_group, compute=compute) if in_group else clusterwork.run_in_pod
        waits = {"queue_s": int(compute.queue_minutes * 60), "start_s": int(compute.start_minutes * 60)}
        replacements_left = NUM_REPLACEMENTS
        while True:
            before = self._newest_checkpoint(work)
            try:
                return run(here, place.cluster, manifest, work.what, work.failure, waits, place.life)
            except InfrastructureFault as fault:
                if fault.reason is ReasonCode.OUT_OF_MEMORY:
                    self._out_of_memory(fault, shape, larger)
                may_go_on = replacements_left and time.monotonic() < place.no_more_at and not here.cancelled.is_set()
                if fault.reason not in STOPPED_FROM_OUTSIDE or not may_go_on:
                    raise
                try:
                    after = self._newest_checkpoint(work)
                except InfrastructureFault:
                    raise fault from None
                if work.order is None or after <= before:
                    raise
                replacements_left -= 1
                self._goes_on(work.order, fault, after)
            except TrainingDefect as defect:
                if work.order is None and defect.reason is ReasonCode.TRAINING_FAILED:
                    raise Defect(ReasonCode.INTERNAL, defect.message) from defect
                raise

    def _newest_checkpoint(self, work: _Work) -> str:
        """Names the newest checkpoint of a training; empty where there is none."""
        from aifactory.training.checkpoints import newest
        from aifactory.training.run import candidate_prefix

        if work.order is None:
            return ""
        return newest(self._here.factory.store, candidate_prefix(self._here.spec.line, *work.order))

    def _goes_on(self, order: tuple[str, str], fault: InfrastructureFault, after: str) -> None:
        from aifactory.stages.train import stopped

        log.warning("%s: %s. It had saved checkpoint %s: a new pod goes on from there", fault.reason.value,
                    fault.message, after)  # fmt: skip
        stopped(self._here.factory, self._here.spec, *order, fault, after)

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


def _placed(compute: Compute, place: Place) -> Compute:
    """What the line asks for, on the machines of a place."""
    return compute.model_copy(
        update={
            "nodes": place.nodes or compute.nodes,
            "gpu_class": place.gpu_class or compute.gpu_class,
            "node_labels": {**compute.node_labels, **place.node_labels},
        }
    )
