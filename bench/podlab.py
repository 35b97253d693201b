"""A plant of its own whose training goes to a real cluster, and somebody who watches its pods.

Needs the same as the cluster's tests: `KUBECONFIG`, `AIF_TRAINER_IMAGE` (an image that the cluster has) and
`AIF_POD_DOORWAY` (an address of this machine that pods reach).
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.far_lines import lines_that_do_not_start_by_themselves

import plant
from aifactory.factory import Factory
from aifactory.line import LineSpec, find_line
from aifactory.settings import REPOSITORY, Settings
from bench.podtime import Track
from bench.ratio import Skipped
from orchestration.pods import CONTAINER, TASK_ANNOTATIONS, Shape, describe
from outside.flights import World
from plant import cluster
from plant.api import AirflowApi

LINE = "flight_delay"
NAMESPACE = "ai-factory-bench"
TASK = "train_challenger"
NUM_NIGHTS = 8
_COMPUTE = "{cpus: 1, memory_gb: 1.5, scratch_gb: 1, gpus: 0, timeout_minutes: 60, queue_minutes: 2, start_minutes: 2}"
_NEEDED = ("KUBECONFIG", "AIF_TRAINER_IMAGE", "AIF_POD_DOORWAY")
_EVICTION = "policy/v1beta1"  # the body's version; clusters from 1.22 on take it as policy/v1
_REST_S = 3.0
_GONE = 404
FAULTS = ("killed", "stopped", "evicted")
"""Deleted without grace, which still is SIGTERM and two seconds where the node lives; deleted; evicted by the API."""


def check_needs() -> None:
    """Look for what the benches need.

    Raises:
        Skipped: it is not there.
    """
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise Skipped(f"needs a cluster: {', '.join(missing)} not set")


@dataclass
class PodLab:
    """A plant, its cluster, and what a bench does to them."""

    settings: Settings
    core: Any
    lines: Path

    @cached_property
    def api(self) -> AirflowApi:
        return plant.airflow_api(self.settings)

    @cached_property
    def factory(self) -> Factory:
        return Factory(self.settings)

    @property
    def spec(self) -> LineSpec:
        return find_line(self.settings.lines_dir, LINE)

    def take_in_the_history(self) -> None:
        """Data to train on, and no champion: the same days can be trained on again and again."""
        self.api.wait_dag(f"{LINE}.deploy")
        self.api.request("PATCH", f"/dags/{LINE}.deploy", json={"is_paused": True})
        world = World(self.settings)
        days = world.history(NUM_NIGHTS)
        world.land(days)
        run = self.api.trigger_dag(f"{LINE}.ingest", {"partition": days[0], "partition_to": days[-1]})
        self.api.wait_run(f"{LINE}.ingest", run)
        self.come_to_rest()
        failed = self.api.failed_runs(prefix=f"{LINE}.")
        if failed:
            raise RuntimeError(f"{failed[0].dag_id} failed: {self.api.run_url(failed[0].dag_id, failed[0].run_id)}")

    def come_to_rest(self) -> None:
        """Wait until there is no pod and no run of the line is active."""
        deadline, quiet_since = time.monotonic() + 600, time.monotonic()
        while time.monotonic() - quiet_since < _REST_S:
            if self.api.active_runs(prefix=f"{LINE}.") or self.core.list_namespaced_pod(NAMESPACE).items:
                quiet_since = time.monotonic()
            if time.monotonic() > deadline:
                raise RuntimeError("the plant did not come to rest")
            time.sleep(0.5)

    def set_parameters(self, parameters: str) -> None:
        """Edit the recipe's parameters in the line's spec."""
        path = self.lines / LINE / "line.yaml"
        text, found = re.subn(r"(tabular_mlp:\n\s+parameters:) {.*}", rf"\1 {parameters}", path.read_text())
        if found != 1:
            raise RuntimeError("the line's spec names the parameters of tabular_mlp in another way now")
        path.write_text(text)

    def train(self, why: str) -> str:
        """Ask for a training; the id of its run."""
        return self.api.trigger_dag(f"{LINE}.train", {"recipe": "tabular_mlp", "force": True, "why": why})

    def wait_trained(self, run_id: str) -> None:
        """Wait for the end of the challenger's task, whose pod has ended, and call off the rest of its run."""
        deadline = time.monotonic() + 120
        while (state := self.task(run_id)["state"]) != "success":
            if time.monotonic() > deadline or state in {"failed", "upstream_failed"}:
                raise RuntimeError(f"{TASK} is {state}: {self.api.run_url(f'{LINE}.train', run_id)}")
            time.sleep(0.5)
        self.api.request("PATCH", f"/dags/{LINE}.train/dagRuns/{run_id}", json={"state": "failed"})

    def task(self, run_id: str) -> dict[str, Any]:
        """The challenger's task as Airflow describes it."""
        [found] = [t for t in self.api.task_instances(f"{LINE}.train", run_id) if t["task_id"] == TASK]
        return found

    def tries(self, run_id: str) -> list[dict[str, Any]]:
        """The tries of the challenger's task, oldest first."""
        path = f"/dags/{LINE}.train/dagRuns/{run_id}/taskInstances/{TASK}/tries"
        return sorted(self.api.request("GET", path)["task_instances"], key=lambda each: int(each["try_number"]))

    def made(self, run_id: str) -> dict[str, Any]:
        """What the challenger's task handed on."""
        return dict(self.api.xcom(f"{LINE}.train", run_id, TASK))

    def vocabulary_sizes(self, run_id: str) -> list[int]:
        """Rows of the embeddings of a training's network."""
        from aifactory.packaging import load_package
        from aifactory.recipes.keeper import metadata

        weights = load_package(self.factory, self.made(run_id)["package"]).weights
        if weights is None:
            raise RuntimeError("the package has no weights to go on from")
        return [len(names) + 1 for names in metadata(weights)["preparation"]["vocabularies"].values()]

    @contextmanager
    def bare(self, name: str, program: str, argument: str) -> Iterator[None]:
        """A Python program in a pod of the trainer's image and the line's shape; removed at the end."""
        compute = self.spec.compute
        task = dict.fromkeys(TASK_ANNOTATIONS, name)
        pod = describe(self.settings, compute, Shape.of(compute), "bench", [], line=LINE, task=task)
        pod["metadata"] = {"name": name, "labels": {"app": "bench"}}  # no pod of the factory: nothing sweeps it
        [container] = [c for c in pod["spec"]["containers"] if c["name"] == CONTAINER]
        container |= {"command": ["python", "-c", program], "args": [argument]}
        self.core.create_namespaced_pod(NAMESPACE, pod)
        try:
            yield
        finally:
            self.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)

    def log_of(self, name: str) -> list[str]:
        """Lines that a pod has said so far; none before its start.

        Raises:
            RuntimeError: it failed.
        """
        phase = self.core.read_namespaced_pod(name, NAMESPACE).status.phase
        if phase == "Pending":
            return []
        said = self.core.read_namespaced_pod_log(name, NAMESPACE, _preload_content=False).data.decode()
        if phase == "Failed":
            raise RuntimeError(f"pod {name} failed: {said[-1000:]}")
        return str(said).splitlines()

    def strike(self, name: str, kind: str) -> bool:
        """Let a fault happen to a pod; whether it was there."""
        from kubernetes.client.exceptions import ApiException

        try:
            if kind == "evicted":
                named = {"name": name, "namespace": NAMESPACE}
                body = {"apiVersion": _EVICTION, "kind": "Eviction", "metadata": named}
                self.core.create_namespaced_pod_eviction(name, NAMESPACE, body)
            else:
                grace = {"grace_period_seconds": 0} if kind == "killed" else {}
                self.core.delete_namespaced_pod(name, NAMESPACE, **grace)
        except ApiException as error:
            if error.status != _GONE:
                raise
            return False
        return True


@contextmanager
def connected_plant() -> Iterator[PodLab]:
    """A plant of its own, connected to the cluster; both are left without a trace."""
    from kubernetes import config
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(config.new_client_from_config())
    with tempfile.TemporaryDirectory(prefix="bench-pods-", ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o711)  # Postgres may run as another account
        lines = lines_that_do_not_start_by_themselves(Path(temporary) / "lines")
        spec = lines / LINE / "line.yaml"
        spec.write_text(re.sub(r"compute: {.*}", f"compute: {_COMPUTE}", spec.read_text()))
        shared = {f"AIF_{name.upper()}_ENV": str(REPOSITORY / "var" / f"{name}-env") for name in ("mlflow", "triton")}
        with _environment(AIF_LINES_DIR=str(lines), **{k: os.environ.get(k) or v for k, v in shared.items()}):
            settings = plant.temporary_settings(Path(temporary) / "home")
            try:
                plant.up(settings)
                settings = plant.load(settings.home)
                cluster.connect(settings, Path(os.environ["KUBECONFIG"]), namespace=NAMESPACE)
                yield PodLab(settings, core, lines)
            finally:
                plant.down(settings)
                _remove_namespace(core)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _remove_namespace(core: Any) -> None:
    from kubernetes.client.exceptions import ApiException

    with suppress(ApiException):
        core.delete_namespace(NAMESPACE)
        for _ in range(120):  # until it is gone, for the next bench makes it anew
            core.read_namespace(NAMESPACE)
            time.sleep(0.5)


class Watcher:
    """Follows every pod of the namespace and its log, and keeps what it saw, as `Track`s."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._over = threading.Event()
        self.tracks: dict[str, Track] = {}

    def __enter__(self) -> Watcher:
        threading.Thread(target=self._watch, name="pods-seen", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def of(self, run_id: str) -> list[Track]:
        """The challenger's pods of a run, in the order of their making."""
        owner = {"run_id": run_id, "task_id": TASK}
        found = [t for t in list(self.tracks.values()) if owner.items() <= t.owner.items()]
        return sorted(found, key=lambda track: track.made_at)

    def wait(self, what: str, found: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something was seen."""
        deadline = time.monotonic() + timeout_s
        while not found():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not seen within {timeout_s:.0f} s")
            time.sleep(0.1)

    def _watch(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from kubernetes.watch import Watch
        from urllib3.exceptions import HTTPError

        version: str | None = None
        while not self._over.is_set():
            watch = Watch()
            try:
                for event in watch.stream(
                    self._core.list_namespaced_pod, NAMESPACE, timeout_seconds=60, resource_version=version
                ):
                    version = event["object"].metadata.resource_version
                    self._see(event["type"], event["object"], time.time())
            except (ApiException, HTTPError):  # too old a version, or a lost connection: from the start
                version = None
                self._over.wait(0.2)

    def _see(self, kind: str, pod: Any, now: float) -> None:
        name = pod.metadata.name
        if name not in self.tracks:
            annotations = pod.metadata.annotations or {}
            owner = {key: annotations.get(written, "") for key, written in TASK_ANNOTATIONS.items()}
            self.tracks[name] = Track(name, now, owner)
        track = self.tracks[name]
        if pod.spec.node_name and track.placed_at is None:
            track.placed_at = now
        state = next((s.state for s in pod.status.container_statuses or [] if s.name == CONTAINER), None)
        ran = (state.running or state.terminated) if state else None
        if ran and ran.started_at and track.started_at is None:
            # to the second, rounded down: the middle of that second is closest, and it was seen afterwards
            track.started_at = max(min(ran.started_at.timestamp() + 0.5, now), track.placed_at or track.made_at)
            threading.Thread(target=self._follow, args=(track,), name=f"log-{name}", daemon=True).start()
        if pod.status.phase in {"Succeeded", "Failed"} and track.ended_at is None:
            track.ended_at, track.succeeded = now, pod.status.phase == "Succeeded"
        if kind == "DELETED":
            track.gone_at = now

    def _follow(self, track: Track) -> None:
        """Read a pod's log to its end, over lost connections."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        newest = 0.0
        while not self._over.is_set():
            known = newest  # a second reading begins at the beginning
            ended = track.ended_at is not None or track.gone_at is not None
            with suppress(ApiException, HTTPError):
                answer = self._core.read_namespaced_pod_log(
                    track.name, NAMESPACE, follow=True, timestamps=True, _preload_content=False
                )
                for raw in answer:
                    written, _, line = raw.decode(errors="replace").rstrip("\n").partition(" ")
                    with suppress(ValueError):
                        at = datetime.fromisoformat(written).timestamp()
                        if at > known:
                            track.log.append((at, line))
                            newest = at
            if ended:
                return
            self._over.wait(0.2)
