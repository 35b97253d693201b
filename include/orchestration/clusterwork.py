"""Work in a pod: made once, found again, followed to its end, understood, removed.

A `KubernetesPodOperator` does the making, finding and following. Around it:

* what can never work is refused before the pod is made (`preflight`);
* a try that finds the work done, in S3, makes no pod; one that finds a pod at work follows that one;
* a pod on a node that is lost is let go, not waited for;
* how it ended is read from its status, its events and S3 (`podfaults`), and goes to the budget where it belongs;
* whatever happens, an ended pod is removed, and a cancelled task takes its pod with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.reasons import ReasonCode
from orchestration import podfaults, preflight
from orchestration.pods import TASK_LABEL, WORK_LABEL

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import CoreV1Api, CoreV1Event, V1Pod

    from orchestration.station import Station

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_OVERDUE_S = 30.0
_TIMEOUT_S = 15
_GONE = 404
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Cluster:
    """The cluster of an Airflow connection."""

    conn_id: str

    @cached_property
    def hook(self) -> KubernetesHook:
        """The provider's hook."""
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook

        return KubernetesHook(conn_id=self.conn_id)

    @cached_property
    def namespace(self) -> str:
        """Where pods are made: the connection's, else `default`."""
        return self.hook.get_namespace() or "default"

    @cached_property
    def api(self) -> CoreV1Api:
        """The core API.

        Raises:
            Defect: the connection's kubeconfig cannot be used.
        """
        from kubernetes.config.config_exception import ConfigException

        try:
            return self.hook.core_v1_client
        except (ConfigException, OSError, ValueError) as error:
            raise Defect(
                ReasonCode.CLUSTER_DENIED,
                f"the Airflow connection {self.conn_id!r} gives no cluster: {error}; mend its kubeconfig or context",
            ) from error

    def pod(self, name: str) -> V1Pod | None:
        """One pod as it is now; None where there is none."""
        from kubernetes.client.exceptions import ApiException

        try:
            return self.api.read_namespaced_pod(name, self.namespace, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            if error.status == _GONE:
                return None
            raise

    def events(self, name: str) -> list[CoreV1Event]:
        """What happened to a pod; empty where that cannot be read."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        with suppress(ApiException, HTTPError):
            return list(
                self.api.list_namespaced_event(
                    self.namespace, field_selector=f"involvedObject.name={name}", _request_timeout=_TIMEOUT_S
                ).items
            )
        return []

    def remove(self, name: str, *, now: bool = False) -> None:
        """Delete a pod; no error where there is none. `now` does not wait for its node."""
        from kubernetes.client.exceptions import ApiException

        grace = {"grace_period_seconds": 0} if now else {}
        try:
            self.api.delete_namespaced_pod(name, self.namespace, _request_timeout=_TIMEOUT_S, **grace)
        except ApiException as error:
            if error.status != _GONE:
                raise


def connected_cluster(conn_id: str) -> Cluster | None:
    """The cluster that work goes to; None where no such Airflow connection exists."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        Connection.get(conn_id)
    except AirflowNotFoundException:
        return None
    return Cluster(conn_id)


@dataclass(frozen=True)
class PodEnd:
    """How a pod ended well: its name, and where its seconds went."""

    name: str
    seconds: dict[str, float]


def run_in_pod(
    here: Station, cluster: Cluster, manifest: dict[str, Any], what: str, failure_key: str, limits: Mapping[str, int]
) -> PodEnd:
    """Run a pod to its end.

    Args:
        here: the task that waits.
        cluster: where.
        manifest: the pod, see `pods.describe`.
        what: the work, for messages.
        failure_key: where the program says in S3 why it failed.
        limits: `queue_s` and `start_s`: how long the pod may wait for a place, and then for its start.

    Raises:
        Defect: trying again would give the same.
        InfrastructureFault: it may not.
    """
    operator = _operator(here, cluster, manifest, limits)
    here.on_kill(operator.on_kill)
    with api_errors(what):
        if not _at_work(cluster, manifest["metadata"]["labels"]):
            grows = here.factory.settings.cluster_grows
            preflight.check(cluster.api, cluster.namespace, manifest, what, cluster_grows=grows)
    trouble = _follow(operator, cluster, here)
    if operator.pod is None:
        raise _trouble(what, trouble)
    return _settle(here, cluster, operator.pod.metadata.name, what, failure_key, trouble)


def _operator(
    here: Station, cluster: Cluster, manifest: dict[str, Any], limits: Mapping[str, int]
) -> KubernetesPodOperator:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    class Pod(KubernetesPodOperator):  # type: ignore[misc]
        """Leaves the pod as it is when it stops following it: what becomes of it is decided here."""

        def get_or_create_pod(self, *args: Any, **kwargs: Any) -> V1Pod:
            """None any more once the task is told to end."""
            if here.cancelled.is_set():
                raise OSError("the task was cancelled before its pod was made")
            return super().get_or_create_pod(*args, **kwargs)

        def post_complete_action(self, **kwargs: Any) -> None:
            """Nothing: the stock action would mark a pod that still works as done with."""

    ti = here.context["ti"]
    return Pod(
        task_id=ti.task_id,
        name=f"{here.spec.line}-{ti.task_id}".replace("_", "-").replace(".", "-")[:200],
        kubernetes_conn_id=cluster.conn_id,
        namespace=cluster.namespace,
        pod_template_dict=manifest,
        labels=manifest["metadata"]["labels"],
        durable=True,
        do_xcom_push=False,
        get_logs=True,
        container_name_log_prefix_enabled=False,
        schedule_timeout_seconds=limits["queue_s"],
        startup_timeout_seconds=limits["start_s"],
        startup_check_interval_seconds=1,
        automount_service_account_token=False,
        termination_message_policy="FallbackToLogsOnError",
        on_finish_action="delete_pod",
    )


def tidy(cluster: Cluster, task: str, what: str) -> None:
    """Remove the pods of a task whose work is done: the try that saw to it may not have come so far.

    The work is done whether the cluster answers or not; what is left then, the sweeper removes.
    """
    try:
        with api_errors(what):
            for pod in _pods_of(cluster, task):
                cluster.remove(pod.metadata.name)
    except FactoryError as error:
        log.warning("its pod could not be removed, `sweep` will: %s", error)


def _at_work(cluster: Cluster, labels: Mapping[str, str]) -> bool:
    """Whether a pod of this task is at this very work already; what else it has is removed.

    More than one (an API that answered late): the oldest stays. Other work: what is asked has changed since.
    """
    found = _pods_of(cluster, labels[TASK_LABEL])
    alive = sorted(
        (
            p
            for p in found
            if p.status.phase not in _ENDED
            and p.metadata.deletion_timestamp is None
            and p.metadata.labels.get(WORK_LABEL) == labels[WORK_LABEL]
        ),
        key=lambda p: p.metadata.creation_timestamp,
    )
    for pod in found:
        if pod not in alive[:1]:
            log.info("pod %s (%s) of an earlier try is removed", pod.metadata.name, pod.status.phase)
            cluster.remove(pod.metadata.name, now=True)
    if alive:
        log.info("pod %s is at work already: it is followed, no other is made", alive[0].metadata.name)
    return bool(alive)


def _pods_of(cluster: Cluster, task: str) -> list[V1Pod]:
    """A task's pods, of whichever try."""
    selector = f"{TASK_LABEL}={task}"
    return list(
        cluster.api.list_namespaced_pod(cluster.namespace, label_selector=selector, _request_timeout=_TIMEOUT_S).items
    )


def _follow(operator: KubernetesPodOperator, cluster: Cluster, here: Station) -> BaseException | None:
    """Make or find the pod and stream its log until it ends; gives what went wrong on the way, if anything did."""
    from airflow.sdk.exceptions import AirflowException
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    with _watched(operator, cluster):
        try:
            operator.execute_sync(here.context)
        except (ApiException, HTTPError, AirflowException, OSError) as error:
            log.info("following the pod ended: %s", " ".join(str(error).split())[:500])
            return error
    return None


@contextmanager
def _watched(operator: KubernetesPodOperator, cluster: Cluster) -> Iterator[None]:
    """Let go of a pod whose node does not carry out its deletion: without this it would be waited for for ever."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(operator, cluster, over), name="pod-watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch(operator: KubernetesPodOperator, cluster: Cluster, over: threading.Event) -> None:
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    while not over.wait(_LOOK_EVERY_S):
        if operator.pod is None:
            continue
        name = operator.pod.metadata.name
        with suppress(ApiException, HTTPError):
            pod = cluster.pod(name)
            overdue_s = _overdue_s(pod)
            if overdue_s > _OVERDUE_S:
                log.warning("pod %s should have ended %.0f s ago and its node does not say so: let go", name, overdue_s)
                cluster.remove(name, now=True)


def _overdue_s(pod: V1Pod | None) -> float:
    """Seconds since the end of the grace of a pod that is being deleted."""
    if pod is None or pod.metadata.deletion_timestamp is None:
        return 0.0
    return float((datetime.now(UTC) - pod.metadata.deletion_timestamp).total_seconds())


def _settle(
    here: Station, cluster: Cluster, name: str, what: str, failure_key: str, trouble: BaseException | None
) -> PodEnd:
    """Look at the pod, say what it means, and remove it; one that still works is left for the next try to find."""
    with api_errors(what):
        pod = _ended_pod(cluster, name, trouble)
        if pod is not None and pod.status.phase == "Succeeded":
            cluster.remove(name)
            return PodEnd(name, pod_seconds(pod))
        if trouble is not None and _still_works(pod) and not _launch_failed(trouble):
            raise _trouble(what, trouble)
        events = cluster.events(name)
        for event in events:
            log.info("event of pod %s: %s %s", name, event.reason, event.message)
        error = podfaults.fault_of(what, pod, events, _told(here, failure_key, name))
        cluster.remove(name, now=pod is not None and pod.status.phase == "Pending")  # its node has nothing to end
    raise error from trouble


def _ended_pod(cluster: Cluster, name: str, trouble: BaseException | None) -> V1Pod | None:
    """The pod, given a moment to say how it ended: its status trails behind its log."""
    deadline = time.monotonic() + 30
    while True:
        pod = cluster.pod(name)
        done = pod is None or pod.status.phase in _ENDED or trouble is not None
        if done or time.monotonic() > deadline:
            return pod
        time.sleep(0.5)


def _still_works(pod: V1Pod | None) -> bool:
    return pod is not None and pod.status.phase not in _ENDED and pod.metadata.deletion_timestamp is None


def _launch_failed(trouble: BaseException) -> bool:
    from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchFailedException, PodLaunchTimeoutException

    return isinstance(trouble, PodLaunchFailedException | PodLaunchTimeoutException)


def _told(here: Station, failure_key: str, name: str) -> dict[str, Any] | None:
    """What the program wrote about its failure, where this very pod wrote it."""
    try:
        told = here.factory.store.get_json(failure_key)
    except InfrastructureFault:
        return None
    return told if told.get("attempt") == name else None


def _trouble(what: str, trouble: BaseException | None) -> FactoryError:
    from kubernetes.client.exceptions import ApiException

    if isinstance(trouble, ApiException):
        return podfaults.api_fault(what, trouble)
    return podfaults.unreachable(what, trouble or RuntimeError("no pod was made"))


@contextmanager
def api_errors(what: str) -> Iterator[None]:
    """Turn the Kubernetes client's errors into the factory's."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise podfaults.api_fault(what, error) from error
    except HTTPError as error:
        raise podfaults.unreachable(what, error) from error


def pod_seconds(pod: V1Pod) -> dict[str, float]:
    """Where a pod's seconds went: waiting for a place, starting, working."""
    made = pod.metadata.creation_timestamp
    placed = next((c.last_transition_time for c in pod.status.conditions or [] if c.type == "PodScheduled"), made)
    state = pod.status.container_statuses[0].state.terminated
    return {
        "schedule_s": (placed - made).total_seconds(),
        "start_s": (state.started_at - placed).total_seconds(),
        "work_s": (state.finished_at - state.started_at).total_seconds(),
    }
