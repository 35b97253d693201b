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
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.reasons import ReasonCode
from orchestration import podfaults, preflight
from orchestration.pods import GROUP_LABEL, TASK_LABEL, WORK_LABEL

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import BatchV1Api, CoreV1Api, CoreV1Event, V1Pod

    from orchestration.station import Station

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_OVERDUE_S = 30.0
_TIMEOUT_S = 15
_BAD_REQUEST, _DENIED, _GONE, _UNWELL = 400, 403, 404, 500
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

    @cached_property
    def batch(self) -> BatchV1Api:
        """The API of Jobs."""
        from kubernetes.client import BatchV1Api

        return BatchV1Api(self.api.api_client)

    @cached_property
    def version(self) -> tuple[int, int]:
        """Version of the API server, e.g. (1, 31)."""
        from kubernetes.client import VersionApi

        told = VersionApi(self.api.api_client).get_code(_request_timeout=_TIMEOUT_S)
        return int(told.major), int(re.sub(r"\D.*", "", told.minor))  # some say "31+"

    def pods(self, selector: str) -> list[V1Pod]:
        """The pods that a label selector finds."""
        found = self.api.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT_S)
        return list(found.items)

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

    def remove_group(self, name: str, *, now: bool = False) -> None:
        """Delete a group of pods, its Job and its Service, as far as they are there; see `podgroup`."""
        from kubernetes.client.exceptions import ApiException

        how = {"propagation_policy": "Background", "_request_timeout": _TIMEOUT_S}
        for delete, thing in (
            (self.batch.delete_namespaced_job, name),
            (self.api.delete_namespaced_service, leader_host(name)),
        ):
            try:
                delete(thing, self.namespace, **how)
            except ApiException as error:  # who may not delete a Job has made none
                if error.status not in {_DENIED, _GONE}:
                    raise
        for pod in self.pods(f"{GROUP_LABEL}={name}"):
            self.remove(pod.metadata.name, now=now or pod.status.phase != "Running")  # its node has nothing to end

    def remove_with_group(self, pod: V1Pod, *, now: bool = False) -> None:
        """Delete a pod, and the group that it is of."""
        group = pod.metadata.labels.get(GROUP_LABEL)
        if group:
            self.remove_group(group, now=now)
        else:
            self.remove(pod.metadata.name, now=now)


def leader_host(group: str) -> str:
    """Host name of the pod of index 0 of a group: what an indexed Job calls it, and what its Service is called."""
    return f"{group}-0"


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


@dataclass(frozen=True)
class PodLife:
    """Who keeps record of whether work may have a pod.

    Args:
        begins: called when one is about to be made, or is found.
        ended: called when it is known that there is none, or none any more.
    """

    begins: Callable[[], None] = lambda: None
    ended: Callable[[], None] = lambda: None


def run_in_pod(
    here: Station,
    cluster: Cluster,
    manifest: dict[str, Any],
    what: str,
    failure_key: str,
    limits: Mapping[str, int],
    life: PodLife | None = None,
) -> PodEnd:
    """Run a pod to its end.

    Args:
        here: the task that waits.
        cluster: where.
        manifest: the pod, see `pods.describe`.
        what: the work, for messages.
        failure_key: where the program says in S3 why it failed.
        limits: `queue_s` and `start_s`: how long the pod may wait for a place, and then for its start.
        life: is told whether there may be a pod.

    Raises:
        Defect: trying again would give the same.
        InfrastructureFault: it may not.
    """
    life = life or PodLife()
    operator = pod_operator(here, cluster, manifest, limits)
    here.on_kill(operator.on_kill)
    with api_errors(what):
        at_work = _at_work(cluster, manifest["metadata"]["labels"])
        if not at_work:
            life.ended()
            grows = here.factory.settings.cluster_grows
            preflight.check(cluster.api, cluster.namespace, manifest, what, cluster_grows=grows)
    life.begins()
    with _watched(operator, cluster):
        trouble = follow(operator, here)
    if operator.pod is None:
        if refused(trouble) and not at_work:  # so none was made
            life.ended()
        raise trouble_of(what, trouble)
    return _settle(here, cluster, operator.pod.metadata.name, what, failure_key, trouble, life)


def pod_operator(
    here: Station,
    cluster: Cluster,
    manifest: dict[str, Any],
    limits: Mapping[str, int],
    leader: Callable[[], V1Pod] | None = None,
) -> KubernetesPodOperator:
    """What makes, finds and follows a pod; `leader` gives one that is made in another way, with its group."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    class Pod(KubernetesPodOperator):  # type: ignore[misc]
        """Leaves the pod as it is when it stops following it: what becomes of it is decided here."""

        def get_or_create_pod(self, *args: Any, **kwargs: Any) -> V1Pod:
            """None any more once the task is told to end."""
            if here.cancelled.is_set():
                raise OSError("the task was cancelled before its pod was made")
            return leader() if leader else super().get_or_create_pod(*args, **kwargs)

        def find_pod(self, *args: Any, **kwargs: Any) -> V1Pod | None:
            return self.pod if leader else super().find_pod(*args, **kwargs)

        def await_pod_start(self, pod: V1Pod) -> None:
            """Waiting in a queue comes first, and is no trouble."""
            if here.factory.settings.pod_queue:
                while is_queued(self.pod_manager.read_pod(pod)) and not here.cancelled.is_set():
                    time.sleep(_LOOK_EVERY_S)
            super().await_pod_start(pod)

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
            for pod in pods_of(cluster, task):
                cluster.remove_with_group(pod)
    except FactoryError as error:
        log.warning("its pod could not be removed, `sweep` will: %s", error)


def _at_work(cluster: Cluster, labels: Mapping[str, str]) -> bool:
    """Whether a pod of this task is at this very work already; what else it has is removed.

    More than one (an API that answered late): the oldest stays. Other work: what is asked has changed since.
    """
    found = pods_of(cluster, labels[TASK_LABEL])
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
            cluster.remove_with_group(pod, now=True)
    if alive:
        log.info("pod %s is at work already: it is followed, no other is made", alive[0].metadata.name)
    return bool(alive)


def pods_of(cluster: Cluster, task: str) -> list[V1Pod]:
    """A task's pods, of whichever try."""
    return cluster.pods(f"{TASK_LABEL}={task}")


def is_queued(pod: V1Pod) -> bool:
    """Whether something, such as Kueue, keeps the scheduler from looking at a pod."""
    return pod.status.phase == "Pending" and bool(pod.spec.scheduling_gates)


def follow(operator: KubernetesPodOperator, here: Station) -> BaseException | None:
    """Make or find the pod and stream its log until it ends; gives what went wrong on the way, if anything did."""
    from airflow.sdk.exceptions import AirflowException
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        # Found by its labels, not by the name that Airflow keeps: that may be of a pod in another cluster
        operator.execute_sync({**here.context, "task_state_store": None})
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
        with suppress(ApiException, HTTPError):
            let_go_if_overdue(cluster, cluster.pod(operator.pod.metadata.name))


def let_go_if_overdue(cluster: Cluster, pod: V1Pod | None) -> None:
    """Remove a pod whose node does not carry out its deletion."""
    overdue_s = _overdue_s(pod)
    if pod is not None and overdue_s > _OVERDUE_S:
        name = pod.metadata.name
        log.warning("pod %s should have ended %.0f s ago and its node does not say so: let go", name, overdue_s)
        cluster.remove(name, now=True)


def _overdue_s(pod: V1Pod | None) -> float:
    """Seconds since the end of the grace of a pod that is being deleted."""
    if pod is None or pod.metadata.deletion_timestamp is None:
        return 0.0
    return float((datetime.now(UTC) - pod.metadata.deletion_timestamp).total_seconds())


def _settle(
    here: Station,
    cluster: Cluster,
    name: str,
    what: str,
    failure_key: str,
    trouble: BaseException | None,
    life: PodLife,
) -> PodEnd:
    """Look at the pod, say what it means, and remove it; one that still works is left for the next try to find."""
    with api_errors(what):
        pod = ended_pod(cluster, name, trouble)
        if pod is not None and pod.status.phase == "Succeeded":
            cluster.remove(name)
            return PodEnd(name, pod_seconds(pod))
        if trouble is not None and still_works(pod) and not launch_failed(trouble):
            raise trouble_of(what, trouble)
        events = cluster.events(name)
        for event in events:
            log.info("event of pod %s: %s %s", name, event.reason, event.message)
        error = podfaults.fault_of(what, pod, events, _told(here, failure_key, name))
        cluster.remove(name, now=pod is not None and pod.status.phase == "Pending")  # its node has nothing to end
    life.ended()
    raise error from trouble


def ended_pod(cluster: Cluster, name: str, trouble: BaseException | None) -> V1Pod | None:
    """The pod, given a moment to say how it ended: its status trails behind its log."""
    deadline = time.monotonic() + 30
    while True:
        pod = cluster.pod(name)
        done = pod is None or pod.status.phase in _ENDED or trouble is not None
        if done or time.monotonic() > deadline:
            return pod
        time.sleep(0.5)


def still_works(pod: V1Pod | None) -> bool:
    """Whether a pod is neither at its end nor on the way there."""
    return pod is not None and pod.status.phase not in _ENDED and pod.metadata.deletion_timestamp is None


def refused(trouble: BaseException | None) -> bool:
    """Whether the API said no, and is not merely unwell."""
    from kubernetes.client.exceptions import ApiException

    return isinstance(trouble, ApiException) and _BAD_REQUEST <= int(trouble.status or 0) < _UNWELL


def launch_failed(trouble: BaseException) -> bool:
    """Whether it was the pod's start that went wrong."""
    from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchFailedException, PodLaunchTimeoutException

    return isinstance(trouble, PodLaunchFailedException | PodLaunchTimeoutException)


def _told(here: Station, failure_key: str, name: str) -> dict[str, Any] | None:
    """What the program wrote about its failure, where this very pod wrote it."""
    try:
        told = here.factory.store.get_json(failure_key)
    except InfrastructureFault:
        return None
    return told if told.get("attempt") == name else None


def trouble_of(what: str, trouble: BaseException | None) -> FactoryError:
    """The error that trouble with the API stands for."""
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
