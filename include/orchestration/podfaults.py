"""Why a pod stopped: its status, its events and what the program itself said, as one of the factory's errors.

The operator says only that a pod failed. Which budget a failure goes to depends on why: a bug gives the same
again, an evicted pod does not.

    the program said so (failure.json of this very pod)     as it said: defect or infrastructure fault
    exit code 3, 4, 143                                     defect, infrastructure fault, asked to stop
    OOMKilled                                               OUT_OF_MEMORY
    evicted, preempted, deleted, node lost                  infrastructure fault, by that name
    longer than compute.timeout_minutes                     DEADLINE_MISSED
    waiting: image, secret, container                       defect where waiting cannot help
    not placed, not started in time                         START_TIMEOUT
    the API did not answer, or refused                      CLUSTER_UNREACHABLE; CLUSTER_DENIED, QUOTA_EXCEEDED, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect, FactoryError, InfrastructureFault, TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.training.outcome import DEFECT, FAULT, STOPPED
from orchestration.pods import CONTAINER

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Event, V1ContainerState, V1ContainerStateTerminated, V1Pod
    from kubernetes.client.exceptions import ApiException

_SIGKILLED = 137
_BY_STATUS = {
    "Evicted": (ReasonCode.POD_EVICTED, "was evicted"),
    "Preempting": (ReasonCode.POD_PREEMPTED, "was preempted"),
    "NodeLost": (ReasonCode.NODE_LOST, "was on a node that is lost"),
    "NodeShutdown": (ReasonCode.NODE_LOST, "was on a node that shuts down"),
    "Terminated": (ReasonCode.NODE_LOST, "was on a node that shuts down"),
    "Shutdown": (ReasonCode.NODE_LOST, "was on a node that shuts down"),
    "PreemptionByScheduler": (ReasonCode.POD_PREEMPTED, "was preempted"),
    "DeletionByTaintManager": (ReasonCode.NODE_LOST, "was put out by a taint of its node"),
    "EvictionByEvictionAPI": (ReasonCode.POD_EVICTED, "was evicted through the API (a drained node)"),
    "TerminationByKubelet": (ReasonCode.NODE_LOST, "was ended by its node"),
    "DeadlineExceeded": (ReasonCode.DEADLINE_MISSED, "ran longer than compute.timeout_minutes"),
    "DeletionByPodGC": (ReasonCode.NODE_LOST, "was on a node that is gone"),
}
"""`status.reason` of a failed pod, or the reason of its condition DisruptionTarget (Kubernetes 1.26 and later)."""
_NO_SUCH_IMAGE = (
    "not found", "manifest unknown", "does not exist", "invalid reference", "couldn't parse", "unauthorized",
    "denied", "authentication required", "no basic auth", "is not present with pull policy",
)  # fmt: skip


def fault_of(
    what: str, pod: V1Pod | None, events: Iterable[CoreV1Event], told: Mapping[str, Any] | None = None
) -> FactoryError:
    """The error that a pod which did not succeed stands for.

    Args:
        what: the work, for the message.
        pod: the pod as the API last showed it; None where it is gone.
        events: what happened to it.
        told: what the program wrote to S3 about its failure, if it was this pod's.
    """
    seen = list(events)
    if told:
        return told_fault(what, told)
    if pod is None:
        return _disrupted(what, seen) or InfrastructureFault(
            ReasonCode.POD_DELETED, f"{what}: its pod is gone before it ended; somebody or something deleted it"
        )
    state = _state(pod)
    if state is not None and state.terminated is not None:
        return _ended(what, pod, state.terminated, seen)
    return _disruption(what, pod, seen) or _never_started(what, pod, state, seen)


def told_fault(what: str, told: Mapping[str, Any]) -> FactoryError:
    """The error that the program itself told of."""
    kind = TrainingDefect if told.get("kind") == "defect" else InfrastructureFault
    return kind(_reason(str(told.get("reason"))), f"{what}: {told.get('message')}")


def api_fault(what: str, error: ApiException) -> FactoryError:
    """The error that a refusal of the Kubernetes API stands for."""
    message = _api_message(error)
    if error.status == 403 and "exceeded quota" in message:
        return InfrastructureFault(
            ReasonCode.QUOTA_EXCEEDED, f"{what}: {message}; wait for other work, or ask for more quota"
        )
    if error.status in {401, 403}:
        return Defect(
            ReasonCode.CLUSTER_DENIED,
            f"{what}: the Kubernetes API answered {error.status}: {message}; look at the Airflow connection and at "
            f"the rights of its account (docs/kubernetes.md)",
        )
    if error.status in {400, 404, 409, 422}:
        return Defect(ReasonCode.POD_INVALID, f"{what}: the cluster does not accept the pod: {message}")
    return unreachable(what, error)


def unreachable(what: str, error: BaseException) -> InfrastructureFault:
    """The Kubernetes API did not answer; a pod that runs goes on, and the next try finds it."""
    text = " ".join(str(error).split())[:300]
    return InfrastructureFault(
        ReasonCode.CLUSTER_UNREACHABLE, f"{what}: the Kubernetes API did not answer ({type(error).__name__}: {text})"
    )


def _ended(what: str, pod: V1Pod, ended: V1ContainerStateTerminated, events: list[CoreV1Event]) -> FactoryError:
    """The container ran, and ended badly."""
    code = int(ended.exit_code)
    if ended.reason == "OOMKilled":
        limit = pod.spec.containers[0].resources.limits.get("memory")
        return InfrastructureFault(
            ReasonCode.OUT_OF_MEMORY, f"{what} needed more memory than the {limit} of its pod; raise compute.memory_gb"
        )
    if code in {STOPPED, _SIGKILLED, FAULT}:
        found = _disruption(what, pod, events)
        if found:
            return found
        if code == FAULT:
            return InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"{what}: {_last_words(ended)}")
        how = "was asked to stop and did" if code == STOPPED else "was killed from outside (SIGKILL)"
        return InfrastructureFault(ReasonCode.PROCESS_KILLED, f"{what} {how}")
    if ended.reason in {"ContainerCannotRun", "StartError"}:
        return TrainingDefect(ReasonCode.POD_INVALID, f"{what}: its container cannot run: {_last_words(ended)}")
    said = "said it was a defect" if code == DEFECT else f"ended with exit code {code}"
    return TrainingDefect(ReasonCode.TRAINING_FAILED, f"{what} {said}: {_last_words(ended)}")


def _disruption(what: str, pod: V1Pod, events: list[CoreV1Event]) -> FactoryError | None:
    """What the world did to the pod, by its status, its conditions, its deletion, its events."""
    conditions = [c for c in pod.status.conditions or [] if c.type == "DisruptionTarget" and c.status == "True"]
    for reason, message in [(c.reason, c.message) for c in conditions] + [(pod.status.reason, pod.status.message)]:
        if reason in _BY_STATUS:
            code, words = _BY_STATUS[reason]
            return InfrastructureFault(code, f"{what} {words} ({message})")
        if reason and reason.startswith(("OutOf", "UnexpectedAdmission")):
            return InfrastructureFault(ReasonCode.POD_EVICTED, f"{what}: its node had no room after all ({message})")
    by_event = _disrupted(what, events)
    if by_event:
        return by_event
    if pod.metadata.deletion_timestamp is not None:
        return InfrastructureFault(ReasonCode.POD_DELETED, f"{what}: its pod was deleted while it worked")
    return None


def _disrupted(what: str, events: list[CoreV1Event]) -> FactoryError | None:
    for event in events:
        if event.reason == "Preempted":
            return InfrastructureFault(ReasonCode.POD_PREEMPTED, f"{what} was preempted ({event.message})")
        if event.reason == "Evicted":
            return InfrastructureFault(ReasonCode.POD_EVICTED, f"{what} was evicted ({event.message})")
        if event.reason in {"TaintManagerEviction", "NodeNotReady"}:
            return InfrastructureFault(ReasonCode.NODE_LOST, f"{what} was on a node that went away ({event.message})")
    return None


def _never_started(what: str, pod: V1Pod, state: V1ContainerState | None, events: list[CoreV1Event]) -> FactoryError:
    """The pod was made and its container did not run."""
    waiting = state.waiting if state is not None else None
    reason, message = (waiting.reason or "", waiting.message or "") if waiting else ("", "")
    image = pod.spec.containers[0].image
    why = " ".join(message.split())
    if reason in {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}:
        why = _newest(events, ("Failed",), "image") or why
        if reason in {"InvalidImageName", "ErrImageNeverPull"} or any(t in why.lower() for t in _NO_SUCH_IMAGE):
            return Defect(
                ReasonCode.IMAGE_UNKNOWN, f"{what}: image {image!r} cannot be had ({why}); set AIF_TRAINER_IMAGE"
            )
        return InfrastructureFault(ReasonCode.IMAGE_PULL, f"{what}: image {image!r} could not be fetched ({why})")
    if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        code = ReasonCode.SECRET_MISSING if "secret" in why.lower() else ReasonCode.POD_INVALID
        return Defect(code, f"{what}: its container cannot be made: {why}")
    scheduler = _newest(events, ("FailedScheduling", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"))
    return InfrastructureFault(
        ReasonCode.START_TIMEOUT,
        f"{what} did not start in time: {scheduler or why or pod.status.phase}; look at the cluster's stock, or "
        f"raise compute.queue_minutes",
    )


def _newest(events: list[CoreV1Event], reasons: tuple[str, ...], word: str = "") -> str:
    found = [e for e in events if e.reason in reasons and word in (e.message or "").lower()]
    told = [e for e in found if e.last_timestamp or e.event_time] or found
    newest = max(told, key=lambda e: str(e.last_timestamp or e.event_time), default=None)
    return " ".join((newest.message or "").split())[:600] if newest else ""


def _state(pod: V1Pod) -> V1ContainerState | None:
    """State of the container that does the work."""
    return next((s.state for s in pod.status.container_statuses or [] if s.name == CONTAINER), None)


def _last_words(ended: V1ContainerStateTerminated) -> str:
    """The end of the log, as it travels with the status."""
    lines = [line for line in (ended.message or "").strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-800:] or ended.reason or "it said nothing"


def _api_message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _reason(code: str) -> ReasonCode:
    return next((reason for reason in ReasonCode if reason.value == code), ReasonCode.TRAINING_FAILED)
