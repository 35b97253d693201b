"""Work on several machines: pods that are made, followed, mended and removed as one.

The pods are alike. The one of index 0, the leader, hosts torch's rendezvous, under its own host name: torch knows by
it that it is the host, and its rank 0 is there, since names are what torch sorts by.

    Kubernetes 1.29 and later    an indexed Job, and a headless Service by the name of the leader's host
    before                       the same pods, made here: the leader first, the others know its address (`hostAliases`)

The second way needs no cluster DNS, and no rights but those on pods. The leader is followed like any pod
(`clusterwork`), and its end is the group's. Of the others

* one that is stopped from outside is made again, a few times; the Job does that by itself;
* one that fails by itself, or does not start in time while too few are at work, ends the group;
* why the group ended, all its pods are asked (`cause`): what breaks in one is heard as an echo in the others.

Whoever comes next makes a new group, which goes on from the checkpoint: see `compute`.
"""

from __future__ import annotations

import copy
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.reasons import ReasonCode
from orchestration import podfaults, preflight
from orchestration.clusterwork import (
    Cluster,
    PodEnd,
    PodLife,
    api_errors,
    ended_pod,
    follow,
    is_queued,
    launch_failed,
    leader_host,
    let_go_if_overdue,
    pod_operator,
    pod_seconds,
    pods_of,
    refused,
    still_works,
    trouble_of,
)
from orchestration.compute import STOPPED_FROM_OUTSIDE
from orchestration.pods import CONTAINER, GROUP_LABEL, QUEUE_LABEL, TASK_LABEL, WORK_LABEL

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import V1Job, V1Pod

    from aifactory.line import Compute
    from orchestration.station import Station

log = logging.getLogger(__name__)

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
"""Label of a pod of an indexed Job; the pods that are made here have it too."""
PORT = 29400
"""Where the leader's rendezvous listens: torch's own default."""
INDEXED_JOBS_SINCE = (1, 29)
"""Since when a pod of a Job has the label of its index, and each index its own limit of failures."""
NUM_MENDS = 5
"""Pods that are stopped from outside and made again in one group; then it ends, and its task's budget takes over."""
_LOOK_EVERY_S = 2.0
_ECHO_S = 60.0
"""What stopped a pod may break the others for so long."""
_GRACE_S = 20.0
"""The leader's time to end by itself, and to say why, once another pod has failed."""
_JOB_MARGIN_S = 300
_ROOM_S = 300
"""Machines wait for each other by so much longer than a pod may wait for its place: who is late is named here first."""
_KILLED, _STOPPED = 137, 143
_TIMEOUT_S = 15
_DENIED, _THERE_ALREADY = 403, 409
_ENDED = ("Succeeded", "Failed")


# --- what is made
def template(manifest: Mapping[str, Any], compute: Compute, name: str) -> dict[str, Any]:
    """A pod of a group, whichever its index.

    Args:
        manifest: the pod as it would be alone, see `pods.describe`.
        compute: how many there are.
        name: of the group.
    """
    pod = copy.deepcopy(dict(manifest))
    pod["metadata"]["labels"] |= {GROUP_LABEL: name, WORK_LABEL: work_label(manifest, compute)}
    fewest = compute.fewest_nodes
    variables = {
        "AIF_NODES": str(compute.nodes) if fewest == compute.nodes else f"{fewest}:{compute.nodes}",
        "AIF_RENDEZVOUS": f"{leader_host(name)}:{PORT}",
        "AIF_RENDEZVOUS_WAIT_S": str(round(60 * (compute.queue_minutes + compute.start_minutes)) + _ROOM_S),
    }
    container = next(c for c in pod["spec"]["containers"] if c["name"] == CONTAINER)
    container["env"] = container["env"] + [{"name": n, "value": value} for n, value in variables.items()]
    pod["spec"]["restartPolicy"] = "Never"  # of a template that does not say so too
    pod["spec"]["activeDeadlineSeconds"] += round(60 * compute.queue_minutes)  # the first one waits for the last
    return pod


def work_label(manifest: Mapping[str, Any], compute: Compute) -> str:
    """Names what a group does: a group of another size does other work."""
    return f"{manifest['metadata']['labels'][WORK_LABEL]}-{compute.fewest_nodes}-{compute.nodes}"


def job(pod: Mapping[str, Any], nodes: int) -> dict[str, Any]:
    """The indexed Job of a group. A pod that is stopped from outside is made again; any other failure ends it."""
    labels = dict(pod["metadata"]["labels"])
    queue = labels.pop(QUEUE_LABEL, None)
    metadata = pod["metadata"] | {"labels": labels}
    ignored = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    failed = {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [_KILLED, _STOPPED]},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata
        | {"name": labels[GROUP_LABEL], "labels": labels | ({QUEUE_LABEL: queue} if queue else {})},
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimitPerIndex": NUM_MENDS,
            "maxFailedIndexes": 0,
            "podFailurePolicy": {"rules": [ignored, failed]},
            "activeDeadlineSeconds": pod["spec"]["activeDeadlineSeconds"] + _JOB_MARGIN_S,
            "template": {"metadata": metadata, "spec": pod["spec"]},
        },
    }


def service(pod: Mapping[str, Any], job_uid: str) -> dict[str, Any]:
    """The headless Service that gives the leader's host name to the others; it goes with the Job."""
    group = pod["metadata"]["labels"][GROUP_LABEL]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": group, "uid": job_uid}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": leader_host(group),
            "labels": pod["metadata"]["labels"],
            "annotations": pod["metadata"]["annotations"],
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {GROUP_LABEL: group, INDEX_LABEL: "0"},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def member(pod: Mapping[str, Any], index: int, leader_ip: str | None = None) -> dict[str, Any]:
    """One pod of a group without a Job; all but the leader know the leader's address."""
    made = copy.deepcopy(dict(pod))
    group = made["metadata"]["labels"][GROUP_LABEL]
    made["metadata"]["name"] = f"{group}-{index}-{secrets.token_hex(3)}"
    made["metadata"]["labels"][INDEX_LABEL] = str(index)
    made["spec"]["hostname"] = f"{group}-{index}"
    if leader_ip:
        made["spec"]["hostAliases"] = [{"ip": leader_ip, "hostnames": [leader_host(group)]}]
    return made


class _Way(Protocol):
    """How the pods of a group come to be."""

    rights: Mapping[tuple[str, str], tuple[str, ...]]
    """What the plant's account must be allowed, beyond what one pod takes."""

    def try_out(self, pod: Mapping[str, Any], nodes: int) -> None:
        """Have the API server check it, without making it."""

    def make(self, pod: Mapping[str, Any], nodes: int) -> None:
        """Make the group, or what is missing of it."""

    def mend(self, pod: Mapping[str, Any], leader: V1Pod, missing: Sequence[int]) -> None:
        """Make the pods of some indexes, which are not there."""

    def living(self, task: str) -> list[V1Job | V1Pod]:
        """What stands for a group of a task that is not at its end: its Job, or its leader."""

    def gave_up(self, pod: Mapping[str, Any]) -> bool:
        """Whether the pods of a group are deleted because one of them failed."""


class _AsJob:
    """An indexed Job, whose controller makes the pods, now and again."""

    rights: Mapping[tuple[str, str], tuple[str, ...]] = {
        ("batch", "jobs"): ("create", "list", "delete"),
        ("", "services"): ("create", "delete"),
    }

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def try_out(self, pod: Mapping[str, Any], nodes: int) -> None:
        self._create(pod, nodes, dry_run="All")

    def make(self, pod: Mapping[str, Any], nodes: int) -> None:
        from kubernetes.client.exceptions import ApiException

        there = jobs(self._cluster, _of_group(pod))
        made = there[0] if there else self._create(pod, nodes)
        try:
            self._cluster.api.create_namespaced_service(
                self._cluster.namespace, service(pod, made.metadata.uid), _request_timeout=_TIMEOUT_S
            )
        except ApiException as error:
            if error.status != _THERE_ALREADY:
                raise

    def mend(self, pod: Mapping[str, Any], leader: V1Pod, missing: Sequence[int]) -> None:
        """Nothing: the Job's controller does."""

    def living(self, task: str) -> list[V1Job | V1Pod]:
        return [j for j in jobs(self._cluster, f"{TASK_LABEL}={task}") if _lives(j)]

    def gave_up(self, pod: Mapping[str, Any]) -> bool:
        return any(_conditions(j) & {"Failed", "FailureTarget"} for j in jobs(self._cluster, _of_group(pod)))

    def _create(self, pod: Mapping[str, Any], nodes: int, **how: Any) -> V1Job:
        return self._cluster.batch.create_namespaced_job(
            self._cluster.namespace, job(pod, nodes), _request_timeout=_TIMEOUT_S, **how
        )


class _AsPods:
    """Pods that are made here: the leader, and the others when it has an address."""

    rights: Mapping[tuple[str, str], tuple[str, ...]] = {}

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def try_out(self, pod: Mapping[str, Any], nodes: int) -> None:
        if QUEUE_LABEL in pod["metadata"]["labels"]:
            raise Defect(
                ReasonCode.CLUSTER_DENIED,
                f"Kueue takes work on several machines as an indexed Job, which Kubernetes "
                f"{'.'.join(map(str, self._cluster.version))} has not: use {'.'.join(map(str, INDEXED_JOBS_SINCE))} "
                f"or later, or unset AIF_POD_QUEUE",
            )

    def make(self, pod: Mapping[str, Any], nodes: int) -> None:
        if not self._cluster.pods(f"{_of_group(pod)},{INDEX_LABEL}=0"):
            self._create(member(pod, 0))

    def mend(self, pod: Mapping[str, Any], leader: V1Pod, missing: Sequence[int]) -> None:
        for index in missing:
            self._create(member(pod, index, leader.status.pod_ip))

    def living(self, task: str) -> list[V1Job | V1Pod]:
        members = [p for p in pods_of(self._cluster, task) if GROUP_LABEL in p.metadata.labels]
        return [p for p in members if _index(p) == 0 and still_works(p)]

    def gave_up(self, pod: Mapping[str, Any]) -> bool:
        return False

    def _create(self, pod: Mapping[str, Any]) -> None:
        self._cluster.api.create_namespaced_pod(self._cluster.namespace, pod, _request_timeout=_TIMEOUT_S)


def _way(cluster: Cluster) -> _Way:
    return _AsJob(cluster) if cluster.version >= INDEXED_JOBS_SINCE else _AsPods(cluster)


def jobs(cluster: Cluster, selector: str) -> list[V1Job]:
    """The Jobs that a label selector finds; none where the plant may not look: then it has made none."""
    from kubernetes.client.exceptions import ApiException

    try:
        found = cluster.batch.list_namespaced_job(
            cluster.namespace, label_selector=selector, _request_timeout=_TIMEOUT_S
        )
    except ApiException as error:
        if error.status == _DENIED:
            return []
        raise
    return list(found.items)


def _of_group(pod: Mapping[str, Any]) -> str:
    return f"{GROUP_LABEL}={pod['metadata']['labels'][GROUP_LABEL]}"


def _lives(found: V1Job) -> bool:
    return not _conditions(found) & {"Complete", "Failed"} and found.metadata.deletion_timestamp is None


def _conditions(found: V1Job) -> set[str]:
    return {c.type for c in found.status.conditions or [] if c.status == "True"}


# --- running it
def run_in_group(
    here: Station,
    cluster: Cluster,
    manifest: dict[str, Any],
    what: str,
    failure_key: str,
    limits: Mapping[str, int],
    life: PodLife | None = None,
    *,
    compute: Compute,
) -> PodEnd:
    """Run a group of `compute.nodes` pods to its end; the rest, and errors, are those of `clusterwork.run_in_pod`."""
    life = life or PodLife()
    with api_errors(what):
        group = _Group(here, cluster, compute, manifest, what, limits)
        here.on_kill(group.remove)
        if not group.found():
            life.ended()
            group.check()
    life.begins()
    operator = pod_operator(here, cluster, manifest, limits, group.leader)
    try:
        with group.watched(operator):
            trouble = follow(operator, here)
    except FactoryError:
        if group.remove():
            life.ended()
        raise
    if operator.pod is None:
        if refused(trouble) and group.remove():  # perhaps when a part of it was made
            life.ended()
        raise trouble_of(what, trouble)
    return group.settle(operator.pod, failure_key, trouble, life)


class _Group:
    """One group of pods, as the task that waits for it sees it."""

    def __init__(
        self,
        here: Station,
        cluster: Cluster,
        compute: Compute,
        manifest: dict[str, Any],
        what: str,
        limits: Mapping[str, int],
    ) -> None:
        self._here = here
        self._cluster = cluster
        self._manifest = manifest
        self._what = what
        self._limits = limits
        self._compute = compute
        self._way = _way(cluster)
        base = f"{here.spec.line}-{here.context['ti'].task_id}".lower().replace("_", "-").replace(".", "-")
        self._name = f"{base[:40]}-{secrets.token_hex(3)}"
        self._known: dict[str, V1Pod] = {}
        self._missing_since: dict[int, float] = {}
        self._num_mended = 0
        self._outside: tuple[float, FactoryError] | None = None
        self.fault: FactoryError | None = None
        """Why the group cannot go on, where another pod than the leader is why."""
        self._fault_at = 0.0
        self._leader_removed = False
        self._refused: FactoryError | None = None

    @property
    def _fewest(self) -> int:
        return self._compute.fewest_nodes

    @property
    def _pod(self) -> dict[str, Any]:
        return template(self._manifest, self._compute, self._name)

    def _pods(self) -> list[V1Pod]:
        return self._cluster.pods(f"{GROUP_LABEL}={self._name}")

    def found(self) -> bool:
        """Whether a group of this task is at this very work already; what else the task has is removed."""
        task = self._manifest["metadata"]["labels"][TASK_LABEL]
        mine = work_label(self._manifest, self._compute)
        living = [g for g in self._way.living(task) if g.metadata.labels.get(WORK_LABEL) == mine]
        oldest = min(living, key=lambda g: g.metadata.creation_timestamp, default=None)
        if oldest is not None:
            self._name = oldest.metadata.labels[GROUP_LABEL]
            log.info("group %s is at work already: it is followed, no other is made", self._name)
        for left in once_each([*jobs(self._cluster, f"{TASK_LABEL}={task}"), *pods_of(self._cluster, task)]):
            if left.metadata.labels.get(GROUP_LABEL) != self._name:
                log.info("%s of an earlier try is removed", left.metadata.name)
                self._cluster.remove_with_group(left, now=True)
        return oldest is not None

    def check(self) -> None:
        """Refuse what can never work, before anything is made."""
        cluster, grows = self._cluster, self._here.factory.settings.cluster_grows
        preflight.rights(cluster.api, cluster.namespace, self._way.rights, self._what)
        preflight.check(cluster.api, cluster.namespace, self._pod, self._what, cluster_grows=grows, count=self._fewest)
        self._way.try_out(self._pod, self._compute.nodes)

    def leader(self) -> V1Pod:
        """The pod of index 0, made with its group where there is none.

        Raises:
            OSError: the task was cancelled meanwhile.
            InfrastructureFault: the Job makes no pod.
        """
        self._way.make(self._pod, self._compute.nodes)
        log.info("group %s has %d pods", self._name, self._compute.nodes)
        deadline = time.monotonic() + self._limits["queue_s"]
        while True:
            if self._here.cancelled.is_set():
                self.remove()  # `on_kill` may have come before there was anything
                raise OSError("the task was cancelled while its group was made")
            leaders = [p for p in self._pods() if _index(p) == 0]
            if leaders:
                return max(leaders, key=lambda p: p.metadata.creation_timestamp)
            if self._is_queued():
                deadline = time.monotonic() + self._limits["queue_s"]
            if time.monotonic() > deadline:
                raise self._no_pod()
            time.sleep(0.5)

    def _is_queued(self) -> bool:
        """Whether the Job waits in a queue, such as Kueue's."""
        return any(j.spec.suspend for j in jobs(self._cluster, f"{GROUP_LABEL}={self._name}"))

    def _no_pod(self) -> InfrastructureFault:
        said = " ".join(e.message or "" for e in self._cluster.events(self._name))[-600:]
        reason = ReasonCode.QUOTA_EXCEEDED if "exceeded quota" in said else ReasonCode.START_TIMEOUT
        return InfrastructureFault(
            reason, f"{self._what}: a pod of its group was not made in time: {said or 'no word'}"
        )

    # --- the others, while the leader is followed
    @contextmanager
    def watched(self, operator: KubernetesPodOperator) -> Iterator[None]:
        """Look after all pods of the group."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(operator, over), name="group-watch", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join(_TIMEOUT_S)

    def _watch(self, operator: KubernetesPodOperator, over: threading.Event) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        while not over.wait(_LOOK_EVERY_S):
            if operator.pod is None:
                continue
            try:
                self._look(operator.pod.metadata.name)
            except (ApiException, HTTPError) as error:
                log.info("looking after group %s: %s", self._name, " ".join(str(error).split())[:300])

    def _look(self, leader_name: str) -> None:
        """See to the pods once."""
        pods = self._pods()
        for pod in pods:
            let_go_if_overdue(self._cluster, pod)
        leader = next((p for p in pods if p.metadata.name == leader_name), None)
        if leader is None or not still_works(leader):
            return
        if self.fault is not None:
            if time.monotonic() - self._fault_at > _GRACE_S:
                self._leader_removed = True
                self._cluster.remove(leader_name)
            return
        others = [p for p in pods if _index(p) != 0]
        self._see_the_gone(others)
        for pod in others:
            self._see(pod)
        num_at_work = sum(p.status.phase == "Running" and still_works(p) for p in pods)
        for pod in others:
            if pod.status.phase == "Pending" and still_works(pod) and num_at_work < self._fewest and not self.fault:
                self._see_pending(pod)
        if leader.status.pod_ip and not self.fault:
            self._mend(leader, others, num_at_work)

    def _see_the_gone(self, others: Sequence[V1Pod]) -> None:
        there = {p.metadata.uid for p in others}
        for uid, pod in list(self._known.items()):
            if uid not in there and pod.status.phase not in _ENDED:
                self._stopped(pod, self._fault_of(pod.metadata.name, None))
            if uid not in there:
                del self._known[uid]

    def _see(self, pod: V1Pod) -> None:
        """Judge a pod that has failed, once."""
        before = self._known.get(pod.metadata.uid)
        self._known[pod.metadata.uid] = pod
        if pod.status.phase != "Failed" or (before is not None and before.status.phase == "Failed"):
            return
        error = self._fault_of(pod.metadata.name, pod)
        if error.reason in STOPPED_FROM_OUTSIDE:
            self._stopped(pod, error)
        else:
            self._end(pod.metadata.name, error)

    def _fault_of(self, name: str, pod: V1Pod | None) -> FactoryError:
        """The error that the end of a pod stands for; one that was deleted may call that a failure."""
        events = self._cluster.events(name)
        for event in events:
            log.info("event of pod %s: %s %s", name, event.reason, event.message)
        error = podfaults.fault_of(self._what, pod, events)
        deleted = pod is not None and pod.metadata.deletion_timestamp is not None
        return podfaults.fault_of(self._what, None, events) if deleted and isinstance(error, Defect) else error

    def _stopped(self, pod: V1Pod, error: FactoryError) -> None:
        """A pod was stopped from outside."""
        self._outside = (time.monotonic(), error)
        self._num_mended += 1
        log.warning("%s: pod %s: %s", error.reason.value, pod.metadata.name, error.message)
        if self._num_mended > NUM_MENDS:
            self._end(pod.metadata.name, error)

    def _see_pending(self, pod: V1Pod) -> None:
        from airflow.providers.cncf.kubernetes.utils.pod_manager import detect_pod_terminate_early_issues

        if detect_pod_terminate_early_issues(pod) or waits_too_long(pod, self._limits, datetime.now(UTC)):
            self._end(pod.metadata.name, self._fault_of(pod.metadata.name, pod))

    def _mend(self, leader: V1Pod, others: Sequence[V1Pod], num_at_work: int) -> None:
        """Make the pods that are missing; a failed one is missing, one that has done its work or still ends is not."""
        from kubernetes.client.exceptions import ApiException

        there = {_index(p) for p in others if p.status.phase != "Failed"}
        missing = [index for index in range(1, self._compute.nodes) if index not in there]
        now = time.monotonic()
        self._missing_since = {index: self._missing_since.get(index, now) for index in missing}
        overdue = any(now - since > self._limits["queue_s"] for since in self._missing_since.values())
        if overdue and num_at_work < self._fewest:
            self._end(leader.metadata.name, self._refused or self._no_pod())
        elif missing and not self._here.cancelled.is_set():
            try:
                self._way.mend(self._pod, leader, missing)
                self._refused = None
            except ApiException as error:
                self._refused = podfaults.api_fault(self._what, error)
                if isinstance(self._refused, Defect):
                    self._end(leader.metadata.name, self._refused)
            if self._here.cancelled.is_set():
                self.remove()

    def _end(self, name: str, error: FactoryError) -> None:
        if self.fault is None:
            log.warning("group %s cannot go on for pod %s: %s", self._name, name, error.message)
            self.fault, self._fault_at = error, time.monotonic()

    # --- its end
    def settle(self, leader: V1Pod, failure_key: str, trouble: BaseException | None, life: PodLife) -> PodEnd:
        """Say what the end of the leader means, and remove the group; one that works on is left for the next try."""
        name = leader.metadata.name
        with api_errors(self._what):
            pod = ended_pod(self._cluster, name, None if self.fault else trouble)
            if pod is not None and pod.status.phase == "Succeeded":
                self._cluster.remove_group(self._name)
                return PodEnd(name, pod_seconds(pod))
            if trouble is not None and still_works(pod) and not launch_failed(trouble) and self.fault is None:
                raise trouble_of(self._what, trouble)
            told = self._told(failure_key)
            error = cause(told, self._seen(pod, name))
            self._cluster.remove_group(self._name)
        life.ended()
        raise error from trouble

    def _seen(self, leader: V1Pod | None, name: str) -> list[FactoryError]:
        """What the pods' statuses say, the leader's first; that it was removed for another's failure says nothing."""
        if (leader is None or leader.metadata.deletion_timestamp is not None) and self._way.gave_up(self._pod):
            for pod in self._pods():
                if _index(pod) != 0 and pod.metadata.deletion_timestamp is None:
                    self._see(pod)
            self._leader_removed = self.fault is not None
        seen = [] if self._leader_removed else [self._fault_of(name, leader)]
        if self.fault is not None:
            seen.append(self.fault)
        if self._outside is not None and time.monotonic() - self._outside[0] < _ECHO_S:
            seen.append(self._outside[1])
        return seen

    def _told(self, failure_key: str) -> FactoryError | None:
        """What the program wrote about its failure, where it was a pod of this group."""
        try:
            told = self._here.factory.store.get_json(failure_key)
        except InfrastructureFault:
            return None
        mine = str(told.get("attempt")).startswith(f"{self._name}-")
        return podfaults.told_fault(self._what, told) if mine else None

    def remove(self) -> bool:
        """Take everything away, as far as the cluster answers; whether it did. What is left, `sweep` removes."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            self._cluster.remove_group(self._name)
        except (ApiException, HTTPError):
            return False
        return True


def cause(told: FactoryError | None, seen: Sequence[FactoryError]) -> FactoryError:
    """Why a group ended.

    A pod that is killed breaks what the others are doing, and they may call it a bug, or a store that does not answer.
    So what happened to a pod counts more than a defect that nobody foresaw, and than what an exit code says.

    Args:
        told: what the program said of its failure.
        seen: what the statuses of pods say, at least one.
    """
    if isinstance(told, Defect) and told.reason is not ReasonCode.TRAINING_FAILED:
        return told
    faults = [error for error in seen if isinstance(error, InfrastructureFault)]
    happened = [error for error in faults if error.reason is not ReasonCode.STORE_UNREACHABLE]
    return next(error for error in (*happened, told, *faults, *seen) if error is not None)


def once_each(found: Sequence[V1Job | V1Pod]) -> list[V1Job | V1Pod]:
    """Of Jobs and pods, one for each group, and every pod that is of none."""
    named = {thing.metadata.labels.get(GROUP_LABEL) or thing.metadata.name: thing for thing in reversed(found)}
    return list(reversed(named.values()))


def waits_too_long(pod: V1Pod, limits: Mapping[str, int], now: datetime) -> bool:
    """Whether a pod that is pending has no place after `queue_s`, or has not started `start_s` after it had one."""
    if is_queued(pod):
        return False
    conditions = pod.status.conditions or []
    placed = next((c for c in conditions if c.type == "PodScheduled" and c.status == "True"), None)
    if placed:
        return bool((now - placed.last_transition_time).total_seconds() > limits["start_s"])
    return bool((now - pod.metadata.creation_timestamp).total_seconds() > limits["queue_s"])


def _index(pod: V1Pod) -> int:
    return int(pod.metadata.labels[INDEX_LABEL])
