"""A plant with an inventory and a real cluster: nodes lost and added are stock, and Airflow's pools show it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import NotFoundException
from tests.far_lines import lines_that_do_not_start_by_themselves

import plant
from aifactory.capacity import stock
from aifactory.capacity.inventory import load_inventory
from aifactory.factory import Factory
from aifactory.settings import Settings
from plant import cluster
from plant.api import AirflowApi

pytestmark = pytest.mark.kubernetes

NAMESPACE = "ai-factory-stock"
DAG = "plant.capacity"
MOST = 64
"""Declared, and more than a lab has."""
_GPU = "nvidia.com/gpu"


@dataclass
class Plant:
    """A plant that has an inventory of one cluster, the node that the test may cordon, and its GPUs."""

    settings: Settings
    core: Any
    node: str
    gpus: int
    inventory: Path

    @property
    def api(self) -> AirflowApi:
        return plant.airflow_api(self.settings)

    @property
    def factory(self) -> Factory:
        return Factory(self.settings)

    def look(self) -> dict[str, Any]:
        """What a run of the DAG finds of the cluster `near`."""
        run = self.api.trigger_dag(DAG)
        assert self.api.wait_run(DAG, run) == "success"
        tasks = self.api.task_instances(DAG, run)
        assert {t["state"] for t in tasks} == {"success"}
        near = [t["map_index"] for t in tasks if t["rendered_map_index"] == "near"]
        return dict(self.api.xcom(DAG, run, "look", map_index=near[0]))

    def pools(self) -> dict[str, dict[str, Any]]:
        found = self.api.request("GET", "/pools", params={"limit": 100})["pools"]
        return {each["name"]: each for each in found if each["name"] != "default_pool"}

    @contextlib.contextmanager
    def cordoned(self) -> Iterator[None]:
        self.core.patch_node(self.node, {"spec": {"unschedulable": True}})
        try:
            yield
        finally:
            self.core.patch_node(self.node, {"spec": {"unschedulable": None}})


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, environments: None, core: Any) -> Iterator[Plant]:
    nodes = [n for n in core.list_node().items if int(n.status.allocatable.get(_GPU, 0)) and not n.spec.unschedulable]
    if not nodes:
        pytest.skip(f"the cluster has no {_GPU}")
    node = nodes[0]
    label = "kubernetes.io/hostname"
    folder = tmp_path_factory.mktemp("capacity")
    inventory = folder / "capacity.yaml"
    inventory.write_text(
        f"""
clusters:
  near:
    connection: kubernetes_default
    region: eu-nl
    offers:
      own: {{gpu_class: {node.metadata.labels[label]}, units: {MOST}, unit_power_w: 900}}
      cpu: {{units: 3, unit_power_w: 100}}
  far:
    connection: kubernetes_far
    region: eu-de
    offers: {{spot: {{gpu_class: H200, units: 8, tariff: spot, unit_power_w: 900}}}}
"""
    )
    lines = lines_that_do_not_start_by_themselves(tmp_path_factory.mktemp("lines"))
    environment = {
        "AIF_LINES_DIR": str(lines), "AIF_CAPACITY_FILE": str(inventory), "AIF_POD_GPU_CLASS_LABEL": label,
    }  # fmt: skip
    os.environ.update(environment)
    settings = plant.temporary_settings(tmp_path_factory.mktemp("plant"))
    try:
        plant.up(settings)
        settings = plant.load(settings.home)
        cluster.connect(settings, Path(os.environ["KUBECONFIG"]), namespace=NAMESPACE)
        yield Plant(settings, core, node.metadata.name, int(node.status.allocatable[_GPU]), inventory)
    finally:
        plant.down(settings)
        for name in environment:
            del os.environ[name]
        with contextlib.suppress(NotFoundException):
            core.delete_namespace(NAMESPACE)


def test_the_pools_are_there_soon_after_the_start(stocked: Plant):
    stocked.api.wait_dag(DAG)
    [first] = stocked.api.runs(DAG)[:1]
    assert stocked.api.wait_run(DAG, first.run_id) == "success"
    assert {name: each["slots"] for name, each in stocked.pools().items()}["stock.far.spot"] == 8


def test_nodes_lost_and_added_show_up_as_stock(stocked: Plant):
    units = {"own": stocked.gpus, "cpu": 3}
    stocked.look()
    assert stocked.look() == {
        "cluster": "near", "units": units, "changed": [],
        "problem": f"STOCK_DIFFERS: own has {stocked.gpus} units, {MOST} are declared; fewer: that counts",
    }  # fmt: skip
    with stocked.cordoned():
        lost = stocked.look()
    assert (lost["units"], sorted(lost["changed"])) == ({"own": 0, "cpu": 0}, ["cpu", "own"])
    pools = stocked.pools()
    assert {name: each["slots"] for name, each in pools.items()} == {
        "stock.near.own": 0, "stock.near.cpu": 0, "stock.far.spot": 8,
    }  # fmt: skip
    assert f"{MOST} declared, 0 seen at 2" in pools["stock.near.own"]["description"]
    inventory = load_inventory(stocked.inventory)
    assert stock.seen_units(stocked.factory.store, inventory) == {
        ("near", "own"): 0, ("near", "cpu"): 0, ("far", "spot"): 8,
    }  # fmt: skip
    assert stocked.look()["units"] == units
    told = stocked.factory.ledger.events(line="plant", station="capacity", unit="near.own")
    assert [(e.detail["before"], e.detail["after"]) for e in told] == [
        (MOST, stocked.gpus), (stocked.gpus, 0), (0, stocked.gpus),
    ]  # fmt: skip


def test_pools_of_others_stay_and_those_of_what_left_the_inventory_go(stocked: Plant):
    mine = {"name": "stock.mine", "slots": 5, "description": "a team's own", "include_deferred": False}
    stocked.api.request("POST", "/pools", json=mine)
    before = stocked.inventory.read_text()
    stocked.inventory.write_text(before[: before.index("  far:")])
    try:
        stocked.look()
        assert set(stocked.pools()) == {"stock.near.own", "stock.near.cpu", "stock.mine"}
        assert stocked.pools()["stock.mine"]["slots"] == 5
    finally:
        stocked.inventory.write_text(before)


def test_the_password_of_its_user_is_in_no_log(stocked: Plant):
    password = stocked.settings.capacity_password.get_secret_value()
    assert AirflowApi(stocked.settings, "capacity", password).request("GET", "/pools")["total_entries"] >= 1
    logs = [*(stocked.settings.home / "airflow" / "logs").rglob("*.log"), *(stocked.settings.home / "logs").iterdir()]
    assert any("look" in str(log) for log in logs)
    assert not [log for log in logs if password in log.read_text(errors="replace")]
