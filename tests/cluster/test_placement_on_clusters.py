"""Placement on real clusters: two namespaces stand for two regions, and the way to one of them can be closed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.cluster.tcp_gate import Gate, gated
from tests.cluster.test_pod_ends import FAILURE, SMALL, Work

from aifactory.errors import Defect, InfrastructureFault, Waiting
from aifactory.factory import Factory
from aifactory.ledger import ProductionEvent
from aifactory.reasons import ReasonCode
from orchestration import clusterwork
from orchestration.placing import Place, carried_out, task_ids

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.timeout(300)]

NAMES = ("near", "far")


@pytest.fixture(scope="module")
def namespaces(core: Any) -> Iterator[dict[str, str]]:
    found = {name: f"ai-factory-{name}" for name in NAMES}
    for namespace in found.values():
        core.create_namespace({"metadata": {"name": namespace}})
        core.create_namespaced_secret(namespace, {"metadata": {"name": "ai-factory-trainer"}, "data": {}})
    yield found
    for namespace in found.values():
        core.delete_namespace(namespace)


class Clusters:
    """The way to the first cluster leads through a gate; its machines cost nothing, those of the second do."""

    def __init__(self, factory: Factory, core: Any, folder: Path, task_id: str, gate: Gate) -> None:
        self.core, self.gate = core, gate
        self.folder = folder
        self.work = Work(factory, core, task_id)
        self.state: dict[str, Any] = {}
        self.began = datetime.now(UTC)
        self.follow_minutes = 3.0
        self.offers: dict[str, dict[str, Any]] = {
            "near": {"cpu": {"units": 2, "unit_power_w": 100}},
            "far": {"cpu": {"units": 2, "unit_power_w": 100, "unit_hour": 1.0, "tariff": "on_demand"}},
        }
        self.changes: dict[str, Any] = {}
        self.reservations: list[dict[str, Any]] = []
        self.told: list[ProductionEvent] = []

    def place(self, program: str, regions: tuple[str, ...] = ("here", "there"), **who: str) -> tuple[str, str]:
        """Run a program where it is placed: the name of the cluster, and of the pod."""
        path = self.folder / "capacity.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "follow_minutes": self.follow_minutes,
                    "clusters": {
                        name: {"connection": name, "region": region, "offers": self.offers[name]}
                        for name, region in (("near", "here"), ("far", "there"))
                    },
                    "reservations": self.reservations,
                }
            )
        )
        here = self.here(path, regions, **who)
        shape = replace(SMALL, gpus=here.spec.compute.gpus)

        def run(place: Place) -> tuple[str, str]:
            limits = {"queue_s": 15, "start_s": 20}
            manifest = self.work.manifest(program, shape, task_ids(here))
            end = clusterwork.run_in_pod(here, place.cluster, manifest, "a training", FAILURE, limits, place.life)
            return place.name, end.name

        return carried_out(here, "train", here.context["ti"].task_id, run, timedelta(hours=1))

    def here(self, inventory: Path, regions: tuple[str, ...], line: str = "flight_delay", task_id: str = "") -> Any:
        """A task of a line."""
        work, state = self.work, self.state
        spec = work.here.spec.model_copy(
            update={
                "line": line,
                "compute": work.compute.model_copy(update=self.changes),
                "residency": work.here.spec.residency.model_copy(update={"regions": list(regions)}),
            }
        )
        ti = work.here.context["ti"]
        return SimpleNamespace(
            spec=spec,
            run="test",
            cancelled=threading.Event(),
            on_kill=work.here.on_kill,
            factory=SimpleNamespace(
                settings=work.settings.model_copy(update={"capacity_file": inventory}),
                store=work.here.factory.store,
                ledger=SimpleNamespace(record=self.told.append),
            ),
            context=work.here.context
            | {
                "ti": SimpleNamespace(**{**vars(ti), "task_id": task_id or ti.task_id}),
                "dag_run": SimpleNamespace(start_date=self.began),
                "task_state_store": SimpleNamespace(get=state.get, set=state.__setitem__),
            },
        )


@pytest.fixture
def clusters(
    factory: Factory, core: Any, namespaces: dict[str, str], request: Any, monkeypatch: Any, tmp_path: Path
) -> Iterator[Clusters]:
    gate, through = gated(Path(os.environ["KUBECONFIG"]), tmp_path / "through-the-gate")
    for name, path in (("near", through), ("far", os.environ["KUBECONFIG"])):
        extra = {"kube_config_path": str(path), "namespace": namespaces[name], "in_cluster": False}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    made = Clusters(factory, core, tmp_path, request.node.name[:60], gate)
    yield made
    for namespace in namespaces.values():
        core.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)
    store = made.work.here.factory.store
    for left in store.list("capacity/"):
        store.delete(left.key)


def test_the_cheaper_cluster_is_used_and_then_the_other(clusters: Clusters):
    assert clusters.place("print('done')")[0] == "near"
    clusters.gate.close()
    assert clusters.place("print('done')")[0] == "far"
    store = clusters.work.here.factory.store
    assert store.get_json("capacity/cooling/near.json")["reason"] == "CLUSTER_UNREACHABLE"
    clusters.gate.open()
    assert clusters.place("print('done')")[0] == "far"  # it cools off
    store.delete("capacity/cooling/near.json")
    assert clusters.place("print('done')")[0] == "near"
    assert store.list("capacity/promises/") == []


def test_a_cluster_that_goes_away_while_it_works(clusters: Clusters):
    threading.Thread(target=_cut_when_it_works, args=(clusters,), daemon=True).start()
    with pytest.raises(InfrastructureFault) as caught:
        clusters.place("import time; time.sleep(30)")
    assert caught.value.reason is ReasonCode.CLUSTER_UNREACHABLE  # its pod lives: the next try looks for it
    clusters.follow_minutes = 0
    assert clusters.place("print('done')")[0] == "far"
    assert clusters.told[-1].detail["failed_before"]["near"].startswith("CLUSTER_UNREACHABLE")
    clusters.gate.open()


@pytest.mark.thorough
def test_one_that_is_back_in_time_is_followed_and_no_other_pod_is_made(clusters: Clusters):
    threading.Thread(target=_cut_when_it_works, args=(clusters,), daemon=True).start()
    program = "import time; time.sleep(40)"
    with pytest.raises(InfrastructureFault):
        clusters.place(program)
    [pod] = clusters.core.list_namespaced_pod("ai-factory-near").items
    clusters.gate.open()
    assert clusters.place(program) == ("near", pod.metadata.name)


def test_residency_when_the_only_allowed_cluster_is_away(clusters: Clusters):
    clusters.gate.close()
    clusters.changes["queue_minutes"] = 0.0001
    with pytest.raises(InfrastructureFault) as caught:
        clusters.place("print('done')", regions=("here",))
    assert caught.value.reason is ReasonCode.CLUSTER_UNREACHABLE
    with pytest.raises(InfrastructureFault) as caught:
        clusters.place("print('done')", regions=("here",))
    assert caught.value.reason is ReasonCode.NO_PLACE
    assert "far.cpu RESIDENCY" in caught.value.message
    assert clusters.core.list_namespaced_pod("ai-factory-far").items == []
    with pytest.raises(Defect) as refused:
        clusters.place("print('done')", regions=("nowhere",))
    assert refused.value.reason is ReasonCode.NO_PLACE


def test_a_cluster_that_lies_about_its_stock(clusters: Clusters):
    clusters.work.compute = clusters.work.compute.model_copy(update={"node_labels": {"factory/pool": "none"}})
    with pytest.raises(Defect) as caught:
        clusters.place("print('done')")
    assert caught.value.reason is ReasonCode.NO_SUCH_NODE
    assert clusters.work.here.factory.store.list("capacity/cooling/") == []


def test_the_third_of_three_on_two_gpus_waits_and_then_runs(clusters: Clusters):
    clusters.offers["near"] = {"gpu": {"gpu_class": "lab", "units": 2, "unit_power_w": 100}}
    clusters.changes["gpus"] = 1
    ends: dict[str, tuple[str, str]] = {}

    def work(task_id: str) -> None:
        ends[task_id] = clusters.place("import time; time.sleep(40)", ("here",), task_id=task_id)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    while len(_working(clusters)) < len(threads):
        threading.Event().wait(0.2)
    with pytest.raises(Waiting) as waits:
        work("third")
    assert "near.gpu NO_ROOM" in waits.value.why
    assert len(_working(clusters)) == 2
    for thread in threads:
        thread.join(120)
    work("third")
    assert {name for name, _ in ends.values()} == {"near"}
    assert len(ends) == 3


def test_a_reservation_is_honoured_under_load(clusters: Clusters):
    clusters.offers["near"] = {"gpu": {"gpu_class": "lab", "units": 2, "unit_power_w": 100}}
    clusters.changes["gpus"] = 1
    clusters.reservations = [{"line": "urgent", "cluster": "near", "offer": "gpu", "units": 1}]
    others = threading.Thread(
        target=lambda: clusters.place("import time; time.sleep(40)", ("here",), task_id="of-others"), daemon=True
    )
    others.start()
    while not _working(clusters):
        threading.Event().wait(0.2)
    with pytest.raises(Waiting):
        clusters.place("print('done')", ("here",), task_id="more-of-others")
    assert clusters.place("print('done')", ("here",), line="urgent", task_id="urgent")[0] == "near"
    assert others.is_alive()
    others.join(120)


def _working(clusters: Clusters) -> list[Any]:
    pods = clusters.core.list_namespaced_pod("ai-factory-near").items
    return [pod for pod in pods if pod.status.phase == "Running"]


def _cut_when_it_works(clusters: Clusters) -> None:
    while not _working(clusters):
        threading.Event().wait(0.2)
    clusters.gate.close()
