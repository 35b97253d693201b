"""Groups of pods on a real cluster: how they work together, and how they end.

A Kubernetes without indexed Jobs gets the pods one by one; of a Job it then makes one that is not indexed, which is
enough to see that Job and Service are removed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.client import BatchV1Api
from tests.cluster.test_pod_ends import FAILURE, SMALL, Work

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.factory import Factory
from aifactory.reasons import ReasonCode
from orchestration import clusterwork, podgroup, preflight, sweeper
from orchestration.clusterwork import PodEnd
from orchestration.podgroup import INDEX_LABEL, run_in_group
from orchestration.pods import GROUP_LABEL, TASK_LABEL, Shape

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.timeout(300)]

NAMESPACE = "ai-factory-groups"
TORCH = Shape(cpus=0.4, memory_gb=1.2, gpus=0, shared_memory_gb=0.1, scratch_gb=0.2)
MEET = """
import os, socket, sys, time
host, port = os.environ["AIF_RENDEZVOUS"].split(":")
leads = socket.gethostname() == host
def told():
    with socket.create_server(("", int(port))) as door:
        caller, address = door.accept()
        print("heard", caller.recv(100).decode(), "from", address[0], flush=True)
def tell(word):
    for _ in range(100):
        try:
            with socket.create_connection((host, int(port)), 1) as line:
                return line.sendall(word.encode())
        except OSError:
            time.sleep(0.2)
    raise SystemExit("nobody listens")
"""
SUM = """
import torch, torch.distributed as d
d.init_process_group("gloo")
x = torch.ones(1) * (d.get_rank() + 1)
d.all_reduce(x)
print(f"rank {d.get_rank()} of {d.get_world_size()} has {x.item()}\\n", end="", flush=True)
d.destroy_process_group()
"""


@pytest.fixture(scope="module")
def namespace(core: Any) -> Iterator[str]:
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "ai-factory-trainer"}, "data": {}})
    yield NAMESPACE
    core.delete_namespace(NAMESPACE)


class GroupWork(Work):
    """A task whose line asks for two machines."""

    def __init__(self, factory: Factory, core: Any, task_id: str) -> None:
        super().__init__(factory, core, task_id)
        self.asks(nodes=2)
        self.here.factory.ledger = factory.ledger
        self.limits = {"queue_s": 15, "start_s": 20}

    def asks(self, **compute: Any) -> None:
        """Change what the line asks for."""
        self.compute = self.here.spec.compute.model_copy(update=compute)
        self.here.spec = self.here.spec.model_copy(update={"compute": self.compute})

    def run(self, program: str = "", **changes: Any) -> PodEnd:
        manifest = changes.pop("manifest", None) or self.manifest(program, **changes)
        return run_in_group(
            self.here, self.cluster, manifest, "challenger of order x", FAILURE, self.limits, compute=self.compute
        )

    def pods(self) -> list[Any]:
        mine = f"{TASK_LABEL}={self.manifest()['metadata']['labels'][TASK_LABEL]}"
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=mine).items)

    def leaves_no_pod(self) -> None:
        deadline = time.monotonic() + 60
        while self.pods():
            assert time.monotonic() < deadline, [p.metadata.name for p in self.pods()]
            time.sleep(0.2)

    def running(self, index: int) -> Any:
        """The pod of an index, once its container runs."""
        deadline = time.monotonic() + 60
        while True:
            found = [
                p for p in self.pods() if p.metadata.labels[INDEX_LABEL] == str(index) and p.status.phase == "Running"
            ]
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"pod {index} does not run"
            time.sleep(0.2)

    def when(self, index: int, act: Callable[[Any], object]) -> None:
        """Do something to the pod of an index as soon as its container runs."""
        threading.Thread(target=lambda: act(self.running(index)), daemon=True).start()

    def delete(self, pod: Any) -> None:
        self.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)


@pytest.fixture
def work(factory: Factory, core: Any, namespace: str, request: pytest.FixtureRequest, monkeypatch: Any) -> GroupWork:
    connection = {
        "conn_type": "kubernetes",
        "extra": {"kube_config_path": os.environ["KUBECONFIG"], "namespace": namespace, "in_cluster": False},
    }
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    return GroupWork(factory, core, request.node.name[:60].strip("_[]").replace("[", "-"))


def test_two_pods_add_up_with_torch_and_the_leader_s_log_is_the_task_s(work: GroupWork, capsys: Any):
    agent = f"""
import os
from torch.distributed.run import main
env = os.environ
main(["--rdzv-backend=c10d", "--rdzv-endpoint=" + env["AIF_RENDEZVOUS"], "--nnodes=" + env["AIF_NODES"],
      "--nproc-per-node=" + env["AIF_PROCESSES"], "--no-python", "python", "-c", {SUM!r}])
"""
    work.asks(processes=2)
    work.limits = {"queue_s": 30, "start_s": 30}
    end = work.run(agent, shape=TORCH)
    told = capsys.readouterr().out
    assert "-0-" in end.name
    assert set(end.seconds) == {"schedule_s", "start_s", "work_s"}
    assert "rank 0 of 4 has 10.0" in told
    assert "rank 3 of 4 has 10.0" not in told
    work.leaves_no_pod()


def test_a_pod_that_is_killed_is_made_again_and_the_leader_goes_on(work: GroupWork, capsys: Any):
    killed: list[Any] = []
    work.when(1, lambda pod: (killed.append(pod), work.delete(pod)))
    end = work.run(f"{MEET}\nif leads: told()\nelse: time.sleep(8); tell('hello')")
    told = capsys.readouterr().out
    assert "-0-" in end.name
    assert "heard hello" in told
    assert f"heard hello from {killed[0].status.pod_ip}" not in told, "of another pod"
    work.leaves_no_pod()


@pytest.mark.thorough
def test_an_elastic_group_does_not_wait_for_a_pod_that_finds_no_place(work: GroupWork):
    work.limits = {"queue_s": 3, "start_s": 20}
    manifest = work.manifest("import time; time.sleep(100)")
    manifest["spec"]["affinity"] = {  # one of them on a node
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "labelSelector": {"matchLabels": {TASK_LABEL: manifest["metadata"]["labels"][TASK_LABEL]}},
                    "topologyKey": "kubernetes.io/hostname",
                }
            ]
        }
    }
    work.asks(nodes=3)
    work.fails(ReasonCode.START_TIMEOUT, InfrastructureFault, "did not start in time", manifest=manifest)
    work.asks(min_nodes=1)
    manifest["spec"]["containers"][0]["args"] = ["-c", "import time; time.sleep(12)"]
    assert "-0-" in work.run(manifest=manifest).name
    work.leaves_no_pod()


@pytest.mark.thorough
def test_a_bug_in_another_pod_ends_the_group_with_its_words(work: GroupWork):
    work.fails(
        ReasonCode.TRAINING_FAILED, Defect, "no such feature",
        program=f"{MEET}\nif leads: time.sleep(100)\nraise ValueError('no such feature')",
    )  # fmt: skip


@pytest.mark.thorough
def test_out_of_memory_in_another_pod_asks_for_the_larger_shape(work: GroupWork):
    work.fails(
        ReasonCode.OUT_OF_MEMORY, InfrastructureFault, "200M",
        program=f"{MEET}\nif leads: time.sleep(100)\nx = bytearray(10**9); print(len(x), x[::4096])",
    )  # fmt: skip


@pytest.mark.thorough
def test_what_the_program_wrote_to_the_store_is_the_truth_whichever_pod_wrote_it(work: GroupWork):
    def write(pod: Any) -> None:
        told = {"reason": "LOSS_NOT_FINITE", "message": "the loss is nan", "kind": "defect"}
        work.here.factory.store.put_json(FAILURE, told | {"attempt": pod.metadata.name})

    work.when(1, write)
    work.fails(ReasonCode.LOSS_NOT_FINITE, Defect, "the loss is nan", program="import time; time.sleep(9); exit(1)")


def test_the_leader_s_end_is_the_group_s(work: GroupWork):
    threading.Thread(target=lambda: (work.running(1), work.delete(work.running(0))), daemon=True).start()
    work.fails(
        ReasonCode.POD_DELETED, InfrastructureFault,
        program=f"{MEET}\nif leads: time.sleep(100)\ntime.sleep(2); exit(1)",
    )  # fmt: skip


def test_a_cancelled_task_takes_all_of_it_along(work: GroupWork):
    work.when(1, lambda pod: work.kill())
    with pytest.raises(FactoryError):
        work.run("import time; time.sleep(100)")
    work.leaves_no_pod()


def test_a_second_try_follows_the_group_of_the_first_and_completes_it(work: GroupWork):
    program = f"{MEET}\nif leads: told(); told()\nelse: tell('hello'); time.sleep(3)"
    first = multiprocessing.get_context("fork").Process(target=work.run, args=(program,), daemon=True)
    first.start()
    leader = work.running(0)
    work.running(1)
    first.kill()
    first.join()
    for pod in work.pods():
        if pod.metadata.name != leader.metadata.name:
            work.delete(pod)
    again = GroupWork(Factory(work.settings), work.core, work.here.context["ti"].task_id)
    assert again.run(program).name == leader.metadata.name
    work.leaves_no_pod()


def test_a_try_of_another_size_removes_the_group_of_the_first(work: GroupWork):
    program = "import time; time.sleep(1)"
    earlier = podgroup.template(work.manifest(program), work.compute, "of-the-first")
    for index in (0, 1):
        work.core.create_namespaced_pod(NAMESPACE, podgroup.member(earlier, index))
    end = clusterwork.run_in_pod(
        work.here, work.cluster, work.manifest(program), "challenger of order x", FAILURE, work.limits
    )
    assert "of-the-first" not in end.name
    work.leaves_no_pod()


def test_a_group_that_no_task_waits_for_is_swept(work: GroupWork, monkeypatch: Any):
    group = podgroup.template(work.manifest("import time; time.sleep(100)"), work.compute, "left")
    for index in (0, 1):
        work.core.create_namespaced_pod(NAMESPACE, podgroup.member(group, index))
    work.running(1)
    monkeypatch.setattr(sweeper, "MIN_AGE", timedelta(0))
    work.here.context["ti"].get_task_states = lambda **_: {"test": {work.here.context["ti"].task_id: "success"}}
    work.here.run = "sweeping"
    swept = sweeper.sweep(work.here)
    assert swept["num_pods"] == 2
    assert len(swept["removed"]) == 1, "the group is one"
    work.leaves_no_pod()


def test_a_job_and_its_service_are_removed_with_their_pods(work: GroupWork):
    way, batch = podgroup._AsJob(work.cluster), BatchV1Api(work.core.api_client)
    pod = podgroup.template(work.manifest("import time; time.sleep(100)"), work.compute, "as-a-job")
    task = pod["metadata"]["labels"][TASK_LABEL]
    way.try_out(pod, 2)
    assert way.living(task) == []
    way.make(pod, 2)
    way.make(pod, 2)
    [living] = way.living(task)
    assert living.metadata.labels[GROUP_LABEL] == "as-a-job"
    made = work.core.read_namespaced_service("as-a-job-0", NAMESPACE)
    assert made.spec.cluster_ip == "None"
    assert made.metadata.owner_references[0].uid == living.metadata.uid
    deadline = time.monotonic() + 60
    while [p.status.phase for p in work.pods()] != ["Running"] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    work.cluster.remove_group("as-a-job")
    work.leaves_no_pod()
    assert batch.list_namespaced_job(NAMESPACE).items == []
    assert work.core.list_namespaced_service(NAMESPACE).items == []


# --- what can never begin
def test_more_than_the_whole_cluster_holds_at_once(work: GroupWork):
    [node] = work.core.list_node().items
    cpus = float(node.status.allocatable["cpu"]) * 0.6
    with pytest.raises(Defect) as caught:
        work.run(shape=replace(SMALL, cpus=cpus))
    assert caught.value.reason is ReasonCode.REQUEST_TOO_LARGE
    assert "2 pods must run at once and the 1 fitting nodes hold 1" in caught.value.message
    work.leaves_no_pod()


def test_more_than_the_quota_for_all_of_them(work: GroupWork):
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.memory": "300M"}}}
    work.core.create_namespaced_resource_quota(NAMESPACE, quota)
    try:
        work.fails(ReasonCode.REQUEST_TOO_LARGE, Defect, "memory 200M for each of 2 pods", "requests.memory 300M")
    finally:
        work.core.delete_namespaced_resource_quota("small", NAMESPACE)


def test_missing_rights_are_named(work: GroupWork):
    from kubernetes import config
    from kubernetes.client import CoreV1Api

    nobody = config.new_client_from_config()
    nobody.set_default_header("Impersonate-User", "nobody")
    nobody.set_default_header("Impersonate-Group", "system:authenticated")
    with pytest.raises(Defect) as caught:
        preflight.rights(CoreV1Api(nobody), NAMESPACE, podgroup._AsJob.rights, "challenger of order x")
    assert caught.value.reason is ReasonCode.CLUSTER_DENIED
    assert "jobs.batch (create, list, delete); services (create, delete)" in caught.value.message
    preflight.rights(work.core, NAMESPACE, podgroup._AsJob.rights, "challenger of order x")
