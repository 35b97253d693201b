"""Placement on real clusters: two namespaces stand for two regions, and the way to one of them can be closed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.cluster.tcp_gate import Gate, gated
from tests.cluster.test_pod_ends import FAILURE, Work

from aifactory.errors import Defect, InfrastructureFault
from aifactory.factory import Factory
from aifactory.reasons import ReasonCode
from orchestration import clusterwork
from orchestration.placing import Place, carried_out

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
        self.near = {"units": 2, "unit_power_w": 100}

    def place(self, program: str, regions: tuple[str, ...] = ("here", "there")) -> tuple[str, str]:
        """Run a program where it is placed: the name of the cluster, and of the pod."""
        inventory = {
            "clusters": {
                "near": {"connection": "near", "region": "here", "offers": {"cpu": self.near}},
                "far": {
                    "connection": "far", "region": "there",
                    "offers": {"cpu": {"units": 2, "unit_power_w": 100, "unit_hour": 1.0, "tariff": "on_demand"}},
                },
            },
        }  # fmt: skip
        path = self.folder / "capacity.yaml"
        path.write_text(yaml.safe_dump(inventory))
        here = self.work.here
        here.spec = here.spec.model_copy(
            update={"residency": here.spec.residency.model_copy(update={"regions": list(regions)})}
        )
        here.run = "test"
        here.cancelled = threading.Event()
        here.context["dag_run"] = SimpleNamespace(start_date=datetime.now(UTC))
        here.factory = SimpleNamespace(
            settings=self.work.settings.model_copy(update={"capacity_file": path}),
            store=here.factory.store,
            ledger=SimpleNamespace(record=lambda event: None),
        )

        def run(place: Place) -> tuple[str, str]:
            limits = {"queue_s": 15, "start_s": 20}
            manifest = self.work.manifest(program)
            end = clusterwork.run_in_pod(here, place.cluster, manifest, "a training", FAILURE, limits)
            return place.name, end.name

        return carried_out(here, "train", self.work.here.context["ti"].task_id, run)


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
    for name in NAMES:
        made.work.here.factory.store.delete(f"capacity/cooling/{name}.json")


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
    def cut() -> None:
        while not [
            p for p in clusters.core.list_namespaced_pod("ai-factory-near").items if p.status.phase == "Running"
        ]:
            threading.Event().wait(0.2)
        clusters.gate.close()

    threading.Thread(target=cut, daemon=True).start()
    name, _ = clusters.place("import time; time.sleep(12)")
    assert name == "far"


def test_residency_when_the_only_allowed_cluster_is_away(clusters: Clusters):
    clusters.gate.close()
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
    cooling = [o.key for o in clusters.work.here.factory.store.list("capacity/cooling/")]
    assert cooling == ["capacity/cooling/far.json", "capacity/cooling/near.json"]
