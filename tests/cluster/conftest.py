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
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException
from tests.far_lines import lines_that_do_not_start_by_themselves

import plant
from aifactory.factory import Factory
from aifactory.line import LineSpec, find_line
from aifactory.settings import Settings
from plant import cluster
from plant.api import AirflowApi
from plant.demo import Demo

LINE = "flight_delay"
COMPUTE = "{cpus: 1, memory_gb: 1.5, scratch_gb: 1, gpus: 0, timeout_minutes: 20, queue_minutes: 1, start_minutes: 1}"
SLOW = "{epochs: 60, warm_epochs: 60, batch_rows: 256, checkpoint_every: 100, report_every: 20}"
NAMESPACE = "ai-factory-test"
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

    def tries(self, run_id: str, task_id: str) -> list[str]:
        """The logs of every try of a task of the train DAG."""
        [ti] = [t for t in self.api.task_instances(f"{LINE}.train", run_id) if t["task_id"] == task_id]
        return [self.api.logs(f"{LINE}.train", run_id, task_id, n) for n in range(1, ti["try_number"] + 1)]


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
def lab(tmp_path_factory: pytest.TempPathFactory, mlflow_environment: None, core: Any) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("plant")
    lines = lines_that_do_not_start_by_themselves(tmp_path_factory.mktemp("lines"))
    _make_small_and_slow(lines / LINE / "line.yaml")
    os.environ["AIF_LINES_DIR"] = str(lines)
    settings = plant.temporary_settings(home)
    try:
        plant.up(settings)
        settings = plant.load(home)
        cluster.connect(settings, Path(os.environ["KUBECONFIG"]), namespace=NAMESPACE)
        yield Lab(settings, Demo.quiet(settings), core)
    finally:
        plant.down(settings)
        del os.environ["AIF_LINES_DIR"]
        with contextlib.suppress(NotFoundException):
            core.delete_namespace(NAMESPACE)
