"""A plant whose training goes to a real cluster.

Needs `KUBECONFIG` (any cluster), `AIF_TRAINER_IMAGE` (an image of the target `trainer` that the cluster has), and
`AIF_POD_DOORWAY` (an address of this machine that pods reach). `.ci/run` provides all three.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException
from tests.cluster.tcp_gate import Gate, gated
from tests.far_lines import lines_that_do_not_start_by_themselves

import plant
from aifactory.factory import Factory
from aifactory.line import LineSpec, find_line
from aifactory.settings import Settings
from orchestration.sweeper import MIN_AGE
from plant import cluster
from plant.api import AirflowApi
from plant.demo import Demo

LINE = "flight_delay"
COMPUTE = (
    "{in_pods: [build_features, train, evaluate, score], cpus: 1, memory_gb: 1.5, scratch_gb: 1, timeout_minutes: 20, "
    "queue_minutes: 1, start_minutes: 1}"
)
CHECKPOINT_EVERY, REPORT_EVERY = 100, 20
SLOW = f"{{epochs: 10, batch_rows: 256, checkpoint_every: {CHECKPOINT_EVERY}, report_every: {REPORT_EVERY}}}"
NAMESPACE = "ai-factory-test"
INVENTORY = """
cool_off_minutes: 0.2
clusters:
  near: {connection: kubernetes_default, region: local, offers: {cpu: {units: 8, unit_power_w: 100}}}
"""
_NEEDED = ("KUBECONFIG", "AIF_TRAINER_IMAGE", "AIF_POD_DOORWAY")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    for item in items:
        if item.get_closest_marker("kubernetes") and missing:
            item.add_marker(pytest.mark.skip(reason=f"needs a cluster: {', '.join(missing)} not set"))


@dataclass
class Lab:
    """A plant, a cluster, and what a test does to them."""

    settings: Settings
    demo: Demo
    core: Any
    gate: Gate
    lines: Path

    @property
    def api(self) -> AirflowApi:
        return plant.airflow_api(self.settings)

    @property
    def factory(self) -> Factory:
        return Factory(self.settings)

    @property
    def spec(self) -> LineSpec:
        return find_line(self.settings.lines_dir, LINE)

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(NAMESPACE).items)

    def wait(self, what: str, found: Callable[[], Any], timeout_s: float = 120) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < deadline, f"{what}: not after {timeout_s:.0f} s"
            time.sleep(0.2)
        return value

    def running_pod(self, timeout_s: float = 120) -> Any:
        """A pod whose container runs."""

        def one() -> Any:
            return next((p for p in self.pods() if p.status.phase == "Running"), None)

        return self.wait("a running pod", one, timeout_s)

    def log_of(self, name: str) -> str:
        from kubernetes.client.exceptions import ApiException

        try:
            return str(self.core.read_namespaced_pod_log(name, NAMESPACE))
        except ApiException:
            return ""

    def hold_releases(self, hold: bool) -> None:
        """While they are held no champion comes, and the same days can be trained on again and again."""
        self.api.wait_dag(f"{LINE}.deploy")
        self.api.request("PATCH", f"/dags/{LINE}.deploy", json={"is_paused": hold})

    def take_in_the_history(self) -> None:
        days = self.demo.world.history(8)
        self.demo.world.land(days)
        self.demo._ingest(days[0], days[-1])
        self.demo._come_to_rest()

    def train(self, why: str, recipe: str = "tabular_mlp") -> str:
        """Ask for a training; the id of its run."""
        return self.api.trigger_dag(f"{LINE}.train", {"recipe": recipe, "force": True, "why": why})

    def ended(self, run_id: str, timeout_s: float = 400) -> str:
        return self.api.wait_run(f"{LINE}.train", run_id, timeout_s)

    def cancel(self, run_id: str) -> None:
        """End a run as an operator does."""
        self.api.request("PATCH", f"/dags/{LINE}.train/dagRuns/{run_id}", json={"state": "failed"})

    def sweep(self) -> list[str]:
        """Names of the pods that the sweeper removes, of those that are old enough for it."""
        run = self.api.trigger_dag(f"{LINE}.sweep")
        assert self.api.wait_run(f"{LINE}.sweep", run) == "success"
        return list(self.api.xcom(f"{LINE}.sweep", run, "remove_orphans")["removed"])

    def wait_for_old_pods(self) -> None:
        """Until every pod that is there is old enough for the sweeper."""

        def youngest_s() -> float:
            now = datetime.now(UTC)
            return min(((now - p.metadata.creation_timestamp).total_seconds() for p in self.pods()), default=1e9)

        self.wait("pods to be old", lambda: youngest_s() > MIN_AGE.total_seconds() + 1)

    def order_of(self, run_id: str) -> str:
        return str(self.api.xcom(f"{LINE}.train", run_id, "resolve"))

    def in_the_middle(self, told: int = 12) -> tuple[Any, str]:
        """A running pod that has told of its progress so often, and its log."""

        def found() -> Any:
            pod = next((p for p in self.pods() if p.status.phase == "Running"), None)
            log = self.log_of(pod.metadata.name) if pod else ""
            return (pod, log) if log.count("step") >= told else None

        pod, log = self.wait("a pod in the middle of its training", found, 180)
        return pod, str(log)

    @contextlib.contextmanager
    def edited(self, pattern: str, text: str) -> Iterator[None]:
        """The line's spec is another for a while, as an engineer would change it."""
        spec = self.lines / LINE / "line.yaml"
        before = spec.read_text()
        after, found = re.subn(pattern, text, before)
        assert found == 1
        spec.write_text(after)
        try:
            yield
        finally:
            spec.write_text(before)

    def compute(self, shape: str) -> contextlib.AbstractContextManager[None]:
        """The line asks for another shape."""
        return self.edited(r"compute: {.*}", f"compute: {shape}")

    def task(self, run_id: str, task_id: str) -> dict[str, Any]:
        """A task of the train DAG."""
        [found] = [t for t in self.api.task_instances(f"{LINE}.train", run_id) if t["task_id"] == task_id]
        return dict(found)

    def curve(self, run_id: str, phase: str = "challenger") -> dict[int, float]:
        """The training loss by step, as MLflow has it."""
        from aifactory.training.tracking import Tracker, mlflow_client

        tracker = Tracker(self.settings, LINE, self.order_of(run_id), phase)
        found = mlflow_client(self.settings).get_metric_history(tracker.run_id, "train_loss")
        return {m.step: m.value for m in found}

    def tries(self, run_id: str, task_id: str) -> list[str]:
        """The logs of every try of a task of the train DAG."""
        num_tries = self.task(run_id, task_id)["try_number"]
        return [self.api.logs(f"{LINE}.train", run_id, task_id, n) for n in range(1, num_tries + 1)]


def _make_small_and_slow(spec: Path) -> None:
    """Pods that fit a small node, and a network that trains long enough to be disturbed."""
    text = spec.read_text()
    text = re.sub(r"compute: {.*}", f"compute: {COMPUTE}", text)
    text, found = re.subn(r"(tabular_mlp:\n\s+parameters:) {}", rf"\1 {SLOW}", text)
    assert found == 1
    spec.write_text(text)


@pytest.fixture(scope="module")
def core() -> Any:
    """The core API of the cluster."""
    from kubernetes import config
    from kubernetes.client import CoreV1Api

    return CoreV1Api(config.new_client_from_config())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, environments: None, core: Any) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("plant")
    lines = lines_that_do_not_start_by_themselves(tmp_path_factory.mktemp("lines"))
    _make_small_and_slow(lines / LINE / "line.yaml")
    inventory = home.parent / "capacity.yaml"
    inventory.write_text(INVENTORY)
    os.environ |= {"AIF_LINES_DIR": str(lines), "AIF_CAPACITY_FILE": str(inventory)}
    settings = plant.temporary_settings(home)
    try:
        plant.up(settings)
        settings = plant.load(home)
        gate, kubeconfig = gated(Path(os.environ["KUBECONFIG"]), tmp_path_factory.mktemp("kube") / "config")
        cluster.connect(settings, kubeconfig, namespace=NAMESPACE)
        yield Lab(settings, Demo.quiet(settings), core, gate, lines)
    finally:
        plant.down(settings)
        del os.environ["AIF_LINES_DIR"], os.environ["AIF_CAPACITY_FILE"]
        with contextlib.suppress(NotFoundException):
            core.delete_namespace(NAMESPACE)
