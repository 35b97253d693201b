"""The manifests of a group, held against the schemas of Kubernetes versions that are in use, and why a group ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError
from tests.memory_store import MemoryStore
from tests.unit.test_pods import GPUS, TASK, VERSIONS, settings

from aifactory.errors import FactoryError, InfrastructureFault, TrainingDefect
from aifactory.line import Compute
from aifactory.reasons import ReasonCode
from orchestration import podgroup
from orchestration.clusterwork import Cluster, PodLife
from orchestration.pods import GROUP_LABEL, QUEUE_LABEL, TASK_ANNOTATIONS, TASK_LABEL, WORK_LABEL, Shape, describe

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SPREAD = Compute(nodes=4, min_nodes=2, cpus=1, memory_gb=2)


def pod(compute: Compute = SPREAD, **changes: Any) -> dict[str, Any]:
    alone = describe(
        settings(**changes), compute, Shape.of(compute), "aifactory.training", ["--line", "l"], line="l", task=TASK
    )
    return podgroup.template(alone, compute, "l-train-0a1b2c")


def variables(described: dict[str, Any]) -> dict[str, str]:
    return {v["name"]: v["value"] for v in described["spec"]["containers"][0]["env"] if "value" in v}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compute", [SPREAD, GPUS.model_copy(update={"nodes": 2})], ids=["cpu", "gpus"])
def test_all_of_a_group_is_known_to_every_version(version: str, compute: Compute):
    described = pod(compute, pod_queue="spare")
    for manifest in (
        podgroup.job(described, compute.nodes),
        podgroup.service(described, "uid"),
        podgroup.member(described, 0),
        podgroup.member(described, 1, "10.0.0.7"),
    ):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_job_with_a_wrong_field_is_not():
    wrong = podgroup.job(pod(), 4)
    wrong["spec"]["completion"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_a_job_makes_the_pods_that_are_made_without_one():
    described = pod()
    made = podgroup.job(described, 4)["spec"]["template"]
    one = podgroup.member(described, 2, "10.0.0.7")
    assert one["metadata"]["labels"].pop(podgroup.INDEX_LABEL) == "2", "the Job's controller gives it"
    assert one["spec"].pop("hostname") == "l-train-0a1b2c-2", "as the Job's controller calls it"
    assert one["spec"].pop("hostAliases") == [{"ip": "10.0.0.7", "hostnames": ["l-train-0a1b2c-0"]}]
    assert one["metadata"].pop("name").startswith("l-train-0a1b2c-2-")
    assert one["spec"] == made["spec"]
    assert one["metadata"] == made["metadata"]


def test_the_name_that_the_others_look_for_is_the_leader_s_own():
    described = pod()
    host = podgroup.member(described, 0)["spec"]["hostname"]
    assert variables(described)["AIF_RENDEZVOUS"] == f"{host}:29400"
    found = podgroup.service(described, "uid")
    assert found["metadata"]["name"] == host
    leader = podgroup.member(described, 0)["metadata"]["labels"]
    assert found["spec"]["selector"].items() <= leader.items()
    assert not found["spec"]["selector"].items() <= podgroup.member(described, 1)["metadata"]["labels"].items()
    assert found["spec"]["publishNotReadyAddresses"], "it is looked for before it is ready"


@pytest.mark.parametrize(
    ("compute", "nodes", "processes"),
    [
        (Compute(nodes=2), "2", "1"),
        (Compute(nodes=2, min_nodes=2, processes=3), "2", "3"),
        (Compute(nodes=4, min_nodes=1, processes=3, gpus=8), "1:4", "8"),
    ],
)
def test_what_the_program_is_told(compute: Compute, nodes: str, processes: str):
    told = variables(pod(compute))
    assert (told["AIF_NODES"], told["AIF_PROCESSES"]) == (nodes, processes)


def test_no_more_machines_can_be_needed_than_there_are():
    with pytest.raises(ValidationError, match="min_nodes 3 exceeds nodes 2"):
        Compute(nodes=2, min_nodes=3)


def test_everything_is_found_by_its_labels_and_says_whose_it_is():
    described = pod()
    job = podgroup.job(described, 4)
    for metadata in (
        job["metadata"],
        job["spec"]["template"]["metadata"],
        podgroup.service(described, "u")["metadata"],
    ):
        assert metadata["labels"][GROUP_LABEL] == "l-train-0a1b2c"
        assert metadata["labels"][TASK_LABEL] == described["metadata"]["labels"][TASK_LABEL]
        assert metadata["annotations"] == {TASK_ANNOTATIONS[name]: value for name, value in TASK.items()}
        assert all(len(value) <= 63 for value in metadata["labels"].values())


def test_a_group_of_another_size_does_other_work():
    works = {
        pod(Compute(nodes=nodes, min_nodes=fewest))["metadata"]["labels"][WORK_LABEL]
        for nodes, fewest in ((2, None), (2, 1), (3, None))
    }
    assert len(works) == 3


def test_a_job_waits_in_kueue_s_queue_and_its_pods_do_not_too():
    described = pod(pod_queue="spare")
    job = podgroup.job(described, 4)
    assert job["metadata"]["labels"][QUEUE_LABEL] == "spare"
    assert QUEUE_LABEL not in job["spec"]["template"]["metadata"]["labels"]
    assert QUEUE_LABEL not in podgroup.job(pod(), 4)["metadata"]["labels"]


def test_the_first_pod_has_the_time_that_the_last_may_wait():
    compute = Compute(nodes=2, timeout_minutes=60, start_minutes=10, queue_minutes=30)
    job = podgroup.job(pod(compute), 2)["spec"]
    assert job["template"]["spec"]["activeDeadlineSeconds"] == 60 * 100
    assert job["activeDeadlineSeconds"] > 60 * 100, "the pod's own deadline comes first: it says why"


def test_only_what_is_stopped_from_outside_is_made_again():
    [ignored, failed] = podgroup.job(pod(), 2)["spec"]["podFailurePolicy"]["rules"]
    assert (ignored["action"], failed["action"]) == ("Ignore", "FailJob")
    assert failed["onExitCodes"] == {"containerName": "base", "operator": "NotIn", "values": [137, 143]}


KILLED = InfrastructureFault(ReasonCode.POD_EVICTED, "evicted")
ECHO = TrainingDefect(ReasonCode.TRAINING_FAILED, "connection closed by peer")
STORE = InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "exit code 4")
NAN = TrainingDefect(ReasonCode.LOSS_NOT_FINITE, "the loss is nan")


@pytest.mark.parametrize(
    ("told", "seen", "expected"),
    [
        (None, [ECHO], ECHO),
        (None, [ECHO, KILLED], KILLED),
        (ECHO, [ECHO, KILLED], KILLED),
        (NAN, [ECHO, KILLED], NAN),
        (STORE, [STORE, KILLED], KILLED),
        (STORE, [ECHO], STORE),
        (ECHO, [STORE], ECHO),
    ],
    ids=["bug", "echo", "told echo", "foreseen", "echo by exit code", "store told", "bug told"],
)
def test_why_a_group_ended(told: FactoryError | None, seen: list[FactoryError], expected: FactoryError):
    assert podgroup.cause(told, seen) is expected


@pytest.mark.parametrize(
    ("age_s", "placed_s", "gates", "late"),
    [
        (29, None, None, False),
        (31, None, None, True),
        (3000, None, ["kueue.x-k8s.io/admission"], False),
        (3000, 9, None, False),
        (3000, 11, None, True),
    ],
    ids=["waits", "waits too long", "queued", "starts", "starts too long"],
)
def test_how_long_a_pod_may_wait(age_s: int, placed_s: int | None, gates: list[str] | None, late: bool):
    placed = SimpleNamespace(
        type="PodScheduled",
        status="False" if placed_s is None else "True",
        last_transition_time=NOW - timedelta(seconds=placed_s or 0),
    )
    waiting: Any = SimpleNamespace(
        metadata=SimpleNamespace(creation_timestamp=NOW - timedelta(seconds=age_s)),
        spec=SimpleNamespace(scheduling_gates=gates),
        status=SimpleNamespace(phase="Pending", conditions=[placed]),
    )
    assert podgroup.waits_too_long(waiting, {"queue_s": 30, "start_s": 10}, NOW) is late


def test_of_a_group_one_is_named():
    def thing(name: str, **labels: str) -> Any:
        return SimpleNamespace(metadata=SimpleNamespace(name=name, labels=labels))

    group = {GROUP_LABEL: "g"}
    found = [thing("g", **group), thing("alone"), thing("g-0-x", **group), thing("g-1-x", **group)]
    assert {t.metadata.name for t in podgroup.once_each(found)} == {"g", "alone"}


class Api:
    """What the Kubernetes API says of a few pods and Jobs."""

    def __init__(self, pods: list[client.V1Pod], jobs: list[client.V1Job]) -> None:
        self.pods, self.jobs = {p.metadata.name: p for p in pods}, jobs

    def list_namespaced_pod(self, namespace: str, label_selector: str, **_: Any) -> Any:
        wanted = dict(part.split("=") for part in label_selector.split(","))
        found = [p for p in self.pods.values() if wanted.items() <= p.metadata.labels.items()]
        return SimpleNamespace(items=found)

    def read_namespaced_pod(self, name: str, namespace: str, **_: Any) -> Any:
        if name not in self.pods:
            raise ApiException(status=404)
        return self.pods[name]

    def delete_namespaced_pod(self, name: str, namespace: str, **_: Any) -> None:
        del self.pods[name]

    def list_namespaced_event(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(items=[])

    def delete_namespaced_service(self, *_: Any, **__: Any) -> None: ...

    def list_namespaced_job(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(items=self.jobs)

    def delete_namespaced_job(self, *_: Any, **__: Any) -> None:
        self.jobs.clear()


def member(index: int, *, exit_code: int | None = None, deleted: bool = False) -> client.V1Pod:
    ended = client.V1ContainerStateTerminated(exit_code=exit_code or 0, reason="Error", message=f"words of {index}")
    state = client.V1ContainerState(terminated=None if exit_code is None else ended)
    status = client.V1ContainerStatus(name="base", state=state, image="", image_id="", ready=False, restart_count=0)
    labels = {GROUP_LABEL: "g", TASK_LABEL: "t", podgroup.INDEX_LABEL: str(index)}
    return client.V1Pod(
        metadata=client.V1ObjectMeta(
            name=f"g-{index}-x", uid=f"{index}", labels=labels, deletion_timestamp=NOW if deleted else None
        ),
        spec=client.V1PodSpec(containers=[client.V1Container(name="base", image="trainer:1")]),
        status=client.V1PodStatus(phase="Running" if exit_code is None else "Failed", container_statuses=[status]),
    )


@pytest.mark.parametrize(
    ("pods", "job_failed", "reason", "words"),
    [
        ([member(0, exit_code=143, deleted=True), member(1, exit_code=1)], True, "TRAINING_FAILED", "words of 1"),
        ([member(1, exit_code=1)], True, "TRAINING_FAILED", "words of 1"),
        ([member(0, exit_code=1), member(1, exit_code=143, deleted=True)], True, "TRAINING_FAILED", "words of 0"),
        ([member(0, exit_code=143, deleted=True), member(1, exit_code=1)], False, "POD_DELETED", "deleted"),
        ([member(1)], False, "POD_DELETED", "gone"),
        ([member(0, exit_code=137), member(1)], False, "PROCESS_KILLED", "SIGKILL"),
    ],
    ids=["another failed", "another failed, leader gone", "leader failed", "leader deleted", "leader gone", "killed"],
)
def test_a_job_that_gives_up_deletes_its_pods_and_the_one_that_failed_is_why(
    pods: list[client.V1Pod], job_failed: bool, reason: str, words: str
):
    conditions = [client.V1JobCondition(type="Failed", status="True")] if job_failed else []
    job = client.V1Job(metadata=client.V1ObjectMeta(name="g"), status=client.V1JobStatus(conditions=conditions))
    api = Api(pods, [job])
    cluster = Cluster("c")
    cluster.__dict__.update(api=api, batch=api, namespace="n", version=podgroup.INDEXED_JOBS_SINCE)
    ti = SimpleNamespace(task_id="train")
    spec = SimpleNamespace(line="l")
    here: Any = SimpleNamespace(spec=spec, context={"ti": ti}, factory=SimpleNamespace(store=MemoryStore()))
    alone = describe(settings(), Compute(nodes=2), Shape.of(Compute()), "p", [], line="l", task=TASK)
    group = podgroup._Group(here, cluster, Compute(nodes=2), alone, "the work", {"queue_s": 1, "start_s": 1})
    group._name = "g"
    with pytest.raises(FactoryError, match=words) as caught:
        group.settle(member(0), "failure.json", None, PodLife())
    assert caught.value.reason.value == reason
    assert api.pods == {}
    assert api.jobs == []
