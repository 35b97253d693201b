"""How a pod can end, and what can never begin: each on a real cluster, each with its reason code and its budget."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from aifactory.errors import Defect, FactoryError, InfrastructureFault, SpecError
from aifactory.factory import Factory
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from orchestration import clusterwork, placing
from orchestration.clusterwork import Cluster, PodEnd
from orchestration.pods import Shape, describe

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.timeout(300)]

NAMESPACE = "ai-factory-ends"
SMALL = Shape(cpus=0.2, memory_gb=0.2, gpus=0, shared_memory_gb=0.05, scratch_gb=0.2)
FAILURE = "candidates/flight_delay/x/challenger.failure.json"


@pytest.fixture(scope="module")
def namespace(core: Any) -> Iterator[str]:
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "ai-factory-trainer"}, "data": {}})
    yield NAMESPACE
    core.delete_namespace(NAMESPACE)


class Work:
    """A task as the operator sees one, and the pod that it asks for."""

    def __init__(self, factory: Factory, core: Any, task_id: str) -> None:
        self.core = core
        self.kill: Callable[[], object] = lambda: None
        self.spec = find_line(factory.settings.lines_dir, "flight_delay")
        ti = SimpleNamespace(
            dag_id="flight_delay.train", task_id=task_id, run_id="test", map_index=-1, try_number=1,
            xcom_push=lambda **_: None,
        )  # fmt: skip
        context = {"ti": ti, "run_id": "test", "task_state_store": None, "dag": SimpleNamespace(dag_id=ti.dag_id)}
        self.here: Any = SimpleNamespace(
            context=context, factory=factory, spec=self.spec, on_kill=self._on_kill, cancelled=threading.Event()
        )
        self.compute = self.spec.compute
        self.settings = factory.settings.model_copy(update={"trainer_image": os.environ["AIF_TRAINER_IMAGE"]})
        self.here.factory = SimpleNamespace(settings=self.settings, store=factory.store)
        self.cluster = Cluster("kubernetes_default")

    def _on_kill(self, end: Callable[[], object]) -> None:
        self.kill = lambda: (self.here.cancelled.set(), end())

    def manifest(
        self, program: str = "", shape: Shape = SMALL, task: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        pod = describe(
            self.settings, self.compute, shape, "", ["-c", program], line="flight_delay",
            task=task or placing.task_ids(self.here),
        )  # fmt: skip
        pod["spec"]["containers"][0]["command"] = ["python"]
        pod["spec"]["terminationGracePeriodSeconds"] = 2
        return pod

    def run(self, program: str = "", **changes: Any) -> PodEnd:
        manifest = changes.pop("manifest", None) or self.manifest(program, **changes)
        limits = {"queue_s": 15, "start_s": 20}
        return clusterwork.run_in_pod(self.here, self.cluster, manifest, "challenger of order x", FAILURE, limits)

    def fails(self, reason: ReasonCode, kind: type[FactoryError], *words: str, **how: Any) -> FactoryError:
        with pytest.raises(kind) as caught:
            self.run(**how)
        assert caught.value.reason is reason, str(caught.value)
        for word in words:
            assert word in caught.value.message
        self.leaves_no_pod()
        return caught.value

    def pods(self) -> list[Any]:
        mine = f"task_id={self.here.context['ti'].task_id}"
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=mine).items)

    def leaves_no_pod(self) -> None:
        deadline = time.monotonic() + 20
        while self.pods():
            assert time.monotonic() < deadline, [p.metadata.name for p in self.pods()]
            time.sleep(0.2)

    def when_running(self, act: Callable[[Any], object]) -> threading.Thread:
        """Do something to the pod as soon as its container runs."""

        def wait() -> None:
            while not (found := [p for p in self.pods() if p.status.phase == "Running"]):
                time.sleep(0.2)
            act(found[0])

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def work(factory: Factory, core: Any, namespace: str, request: pytest.FixtureRequest, monkeypatch: Any) -> Work:
    connection = {
        "conn_type": "kubernetes",
        "extra": {"kube_config_path": os.environ["KUBECONFIG"], "namespace": namespace, "in_cluster": False},
    }
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    return Work(factory, core, request.node.name[:60].strip("_[]").replace("[", "-"))


def test_work_that_is_done_leaves_its_times_and_no_pod(work: Work):
    end = work.run("print('done')")
    assert set(end.seconds) == {"schedule_s", "start_s", "work_s"}
    work.leaves_no_pod()


def test_it_runs_with_the_least_rights(work: Work):
    program = """
import os, pathlib
assert os.getuid() == 10001
assert not pathlib.Path("/var/run/secrets/kubernetes.io").exists(), "a token of the cluster"
pathlib.Path("/tmp/scratch").write_text("x")
try:
    pathlib.Path("/factory/x").write_text("x")
except OSError as error:
    assert error.errno == 30, error
else:
    raise SystemExit("the root is writable")
status = pathlib.Path("/proc/self/status").read_text()
assert "CapEff:\\t0000000000000000" in status, status
assert "NoNewPrivs:\\t1" in status
assert "Seccomp:\\t2" in status
"""
    work.run(program)


def test_a_defect_fails_at_once_with_the_words_of_the_program(work: Work):
    work.fails(
        ReasonCode.TRAINING_FAILED, Defect, "exit code 1", "no such feature",
        program="raise ValueError('no such feature')",
    )  # fmt: skip


def test_what_the_program_wrote_to_the_store_is_the_truth(work: Work):
    def write(pod: Any) -> None:
        told = {"reason": "LOSS_NOT_FINITE", "message": "the loss is nan", "kind": "defect"}
        work.here.factory.store.put_json(FAILURE, told | {"attempt": pod.metadata.name})

    work.when_running(write)
    work.fails(ReasonCode.LOSS_NOT_FINITE, Defect, "the loss is nan", program="import time; time.sleep(4); exit(3)")


def test_what_an_earlier_pod_wrote_counts_no_more(work: Work):
    told = {"reason": "LOSS_NOT_FINITE", "message": "the loss is nan", "kind": "defect", "attempt": "another-pod"}
    work.here.factory.store.put_json(FAILURE, told)
    work.fails(ReasonCode.STORE_UNREACHABLE, InfrastructureFault, program="exit(4)")


def test_out_of_memory_is_told_from_a_kill(work: Work):
    work.fails(
        ReasonCode.OUT_OF_MEMORY, InfrastructureFault, "200M", program="x = bytearray(10**9); print(len(x), x[::4096])"
    )
    work.fails(
        ReasonCode.PROCESS_KILLED, InfrastructureFault, "SIGKILL",
        program="import subprocess, sys; sys.exit(137)",
    )  # fmt: skip


def test_a_deleted_pod_is_an_infrastructure_fault(work: Work):
    work.when_running(lambda pod: work.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE))
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)"
    work.fails(ReasonCode.POD_DELETED, InfrastructureFault, program=program)


def test_a_pod_that_vanishes_without_a_word_too(work: Work):
    work.when_running(lambda pod: work.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0))
    work.fails(ReasonCode.POD_DELETED, InfrastructureFault, program="import time; time.sleep(60)")


def test_an_eviction_through_the_api_as_a_drained_node_makes_it(work: Work):
    def evict(pod: Any) -> None:
        name = pod.metadata.name
        body = {
            "apiVersion": "policy/v1beta1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }
        work.core.create_namespaced_pod_eviction(name, NAMESPACE, body)

    work.when_running(evict)
    work.fails(ReasonCode.POD_DELETED, InfrastructureFault, program="import time; time.sleep(60)")


def test_a_cancelled_task_takes_its_pod_with_it(work: Work):
    work.when_running(lambda pod: work.kill())
    with pytest.raises(InfrastructureFault):
        work.run("import time; time.sleep(60)")
    work.leaves_no_pod()


def test_a_second_try_follows_the_pod_of_the_first(work: Work):
    program = "import time\nfor i in range(8): print('second', i, flush=True); time.sleep(1)"

    first = multiprocessing.get_context("fork").Process(target=work.run, args=(program,), daemon=True)
    first.start()
    deadline = time.monotonic() + 30
    while not [p for p in work.pods() if p.status.phase == "Running"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.kill()
    first.join()
    again = Work(Factory(work.settings), work.core, work.here.context["ti"].task_id)
    [before] = work.pods()
    end = again.run(program)
    assert end.name == before.metadata.name
    work.leaves_no_pod()


def test_a_second_try_that_is_asked_for_other_work_does_not_take_that_of_the_first(work: Work):
    earlier = work.manifest("import time; time.sleep(60)")
    earlier["metadata"]["name"] = "of-the-first-try"
    work.core.create_namespaced_pod(NAMESPACE, earlier)
    assert work.run("print('other work')").name != "of-the-first-try"
    work.leaves_no_pod()


# --- what can never begin: refused before a pod is made, or without waiting
def test_a_secret_that_is_not_there(work: Work):
    manifest = work.manifest()
    manifest["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": "nowhere"}}]
    work.fails(ReasonCode.SECRET_MISSING, Defect, "'nowhere'", "cluster-connect", manifest=manifest)


def test_more_than_any_node_has(work: Work):
    work.fails(ReasonCode.REQUEST_TOO_LARGE, Defect, "memory 9000000M", shape=replace(SMALL, memory_gb=9000))


def test_gpus_that_nobody_has(work: Work):
    work.fails(ReasonCode.REQUEST_TOO_LARGE, Defect, "nvidia.com/gpu 64", shape=replace(SMALL, gpus=64))


def test_a_node_label_that_no_node_has(work: Work):
    work.compute = work.compute.model_copy(update={"node_labels": {"factory/pool": "h900"}})
    work.fails(ReasonCode.NO_SUCH_NODE, Defect, "factory/pool=h900")


def test_a_cluster_that_grows_is_waited_for(work: Work):
    work.settings = work.here.factory.settings = work.settings.model_copy(update={"cluster_grows": True})
    work.compute = work.compute.model_copy(update={"node_labels": {"factory/pool": "h900"}})
    work.fails(ReasonCode.START_TIMEOUT, InfrastructureFault, "didn't match", "queue_minutes")


def test_an_image_that_nobody_has(work: Work):
    work.settings = work.settings.model_copy(update={"trainer_image": "ai-factory-trainer:no-such-tag"})
    manifest = work.manifest()
    manifest["spec"]["containers"][0]["imagePullPolicy"] = "Never"
    work.fails(
        ReasonCode.IMAGE_UNKNOWN, Defect, "ai-factory-trainer:no-such-tag", "AIF_TRAINER_IMAGE", manifest=manifest
    )


def test_an_image_name_that_is_none(work: Work):
    work.settings = work.settings.model_copy(update={"trainer_image": "Not An Image"})
    error = work.fails(ReasonCode.IMAGE_UNKNOWN, Defect)
    assert "Not An Image" in error.message


def test_a_registry_that_is_away_is_tried_again(work: Work):
    work.settings = work.settings.model_copy(update={"trainer_image": "registry.invalid:5000/trainer:1"})
    work.fails(ReasonCode.IMAGE_PULL, InfrastructureFault, "registry.invalid")


def test_a_quota_that_is_used_up_is_waited_for_and_one_that_is_too_small_is_not(work: Work):
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.memory": "100M"}}}
    work.core.create_namespaced_resource_quota(NAMESPACE, quota)
    try:
        work.fails(ReasonCode.REQUEST_TOO_LARGE, Defect, "quota 'small'", "requests.memory 100M")
        quota["spec"] = {"hard": {"pods": "0"}}
        work.core.replace_namespaced_resource_quota("small", NAMESPACE, quota)
        time.sleep(2)  # the quota's own controller counts it
        work.fails(ReasonCode.QUOTA_EXCEEDED, InfrastructureFault, "small")
    finally:
        work.core.delete_namespaced_resource_quota("small", NAMESPACE)


def test_a_pod_that_the_api_refuses(work: Work):
    manifest = work.manifest()
    manifest["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "10m"
    work.fails(ReasonCode.POD_INVALID, Defect, "must be less than or equal to cpu limit", manifest=manifest)


def test_a_template_that_is_no_pod(work: Work, tmp_path: Path):
    template = tmp_path / "pod.yaml"
    template.write_text("kind: Deployment\nspec: {containers: []}\n")
    work.settings = work.settings.model_copy(update={"pod_template": template})
    with pytest.raises(SpecError, match="must be a Pod with a container named 'base'"):
        work.manifest()


def test_a_cluster_that_is_away(work: Work, tmp_path: Path, monkeypatch: Any):
    away = tmp_path / "kubeconfig"
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    away.write_text(yaml.safe_dump(config))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(away), "namespace": NAMESPACE}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    with pytest.raises(InfrastructureFault) as caught:
        work.run("print()")
    assert caught.value.reason is ReasonCode.CLUSTER_UNREACHABLE


def test_a_connection_whose_kubeconfig_is_gone(work: Work, monkeypatch: Any):
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": "/nowhere/kubeconfig"}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    with pytest.raises(Defect) as caught:
        work.run("print()")
    assert caught.value.reason is ReasonCode.CLUSTER_DENIED
    assert "kubernetes_default" in caught.value.message
