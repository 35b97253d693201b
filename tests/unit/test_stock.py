"""The stock of compute: what counts of what clusters say, and a real client before API servers that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.memory_store import MemoryStore

from aifactory.capacity.inventory import Inventory
from aifactory.capacity.stock import MOST, ClusterSeen, Node, OfferSeen, capped, count, keep, kept, seen_units, usable
from aifactory.errors import Defect, InfrastructureFault
from aifactory.ledger import ProductionEvent
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from orchestration import pools, stock

CLASS = "nvidia.com/gpu.product"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def inventory(**offers: dict[str, Any]) -> Inventory:
    """One cluster, `near`, with these offers."""
    power = {"unit_power_w": 900}
    return Inventory.model_validate(
        {
            "clusters": {
                "near": {
                    "connection": "kubernetes_near",
                    "region": "eu-nl",
                    "offers": {name: power | offer for name, offer in offers.items()},
                }
            }
        }
    )


OWN = inventory(own={"gpu_class": "H200", "units": 8})


# --- what counts
@given(st.integers(0, MOST), st.none() | st.integers(0, MOST))
def test_never_more_than_declared_never_more_than_seen(declared: int, seen: int | None):
    found = usable(declared, seen)
    assert found.units == (declared if seen is None else min(declared, seen))
    assert (found.told is ReasonCode.STOCK_DIFFERS) == (seen not in (None, declared))


@given(st.integers(0, MOST), st.integers(max_value=-1) | st.integers(min_value=MOST + 1))
def test_what_no_cluster_has_is_refused(declared: int, seen: int):
    with pytest.raises(Defect) as caught:
        usable(declared, seen)
    assert caught.value.reason is ReasonCode.STOCK_ABSURD


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["H200", "A100"]), st.sampled_from(["own", "spot"])), st.integers(0, 20), min_size=1
    ),
    st.lists(
        st.tuples(
            st.integers(0, 8), st.sampled_from(["H200", "A100", "V100"]), st.sampled_from(["own", "spot", "other"])
        )
    ),
)
def test_every_gpu_is_counted_where_it_is(offers: dict[tuple[str, str], int], nodes: list[tuple[int, str, str]]):
    declared = inventory(
        **{
            f"{gpu.lower()}_{pool}": {"units": units, "gpu_class": gpu, "node_labels": {"pool": pool}}
            for (gpu, pool), units in offers.items()
        }
    ).clusters["near"]
    there = [Node({CLASS: gpu, "pool": pool, "zone": "a"}, gpus) for gpus, gpu, pool in nodes]
    assert count(declared, there, CLASS) == {
        f"{gpu.lower()}_{pool}": sum(gpus for gpus, *where in nodes if where == [gpu, pool]) for gpu, pool in offers
    }


def test_an_offer_without_a_class_stands_while_a_node_has_its_labels():
    cpu = inventory(cpu={"units": 6, "node_labels": {"pool": "cpu"}}).clusters["near"]
    assert count(cpu, [Node({"pool": "cpu"}, 0)], CLASS) == {"cpu": 6}
    assert count(cpu, [Node({"pool": "other"}, 8)], CLASS) == {"cpu": 0}


@given(st.none() | st.integers(0, 20), st.none() | st.integers(0, 20), st.none() | st.integers(0, 20))
def test_a_quota_takes_and_never_gives(seen: int | None, most_gpus: int | None, most_pods: int | None):
    both = inventory(own={"gpu_class": "H200", "units": 8}, cpu={"units": 8}).clusters["near"]
    found = capped(both, {"own": seen, "cpu": seen}, most_gpus, most_pods)
    for name, most in (("own", most_gpus), ("cpu", most_pods)):
        before = 8 if seen is None else seen
        after = found[name] if found[name] is not None else 8
        assert after == (before if most is None else min(before, most))
        assert found[name] is not None or seen is None


# --- what was kept
def seen(units: int | None, at: datetime = NOW, offer: str = "own") -> ClusterSeen:
    return ClusterSeen(
        seen_at=at, offers={offer: OfferSeen(declared=8, seen=units, units=8 if units is None else min(units, 8))}
    )


@pytest.mark.parametrize(
    ("found", "later", "units"),
    [
        (seen(6), timedelta(0), 6),
        (seen(6), timedelta(hours=24), 6),
        (seen(6), timedelta(hours=24, seconds=1), 8),
        (seen(9), timedelta(0), 8),
        (seen(None), timedelta(0), 8),
        (seen(0), timedelta(0), 0),
        (seen(0, offer="other"), timedelta(0), 8),
        (None, timedelta(0), 8),
    ],
)
def test_what_placing_is_told(found: ClusterSeen | None, later: timedelta, units: int):
    store: Any = MemoryStore()
    if found is not None:
        keep(store, "near", found)
        assert kept(store, "near") == found
    assert seen_units(store, OWN, NOW + later) == {("near", "own"): units}


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"seen_at": "yesterday", "offers": {}}',
    b'{"seen_at": "2026-11-21T12:00:00Z", "offers": {"own": {"declared": 8, "seen": -1, "units": -1}}}'])  # fmt: skip
def test_a_kept_look_that_is_broken_counts_as_none(content: bytes):
    store: Any = MemoryStore()
    store.put("capacity/stock/near.json", content)
    assert seen_units(store, OWN, NOW) == {("near", "own"): 8}


def test_a_store_that_is_away_is_no_stock():
    store: Any = MemoryStore()
    store.away = True
    with pytest.raises(InfrastructureFault):
        seen_units(store, OWN, NOW)


# --- what a cluster says
def node(name: str, gpus: str = "8", *, ready: bool = True, labels: dict[str, str] | None = None, **spec: Any) -> Any:
    return {
        "metadata": {"name": name, "labels": {CLASS: "H200"} if labels is None else labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "64", "nvidia.com/gpu": gpus},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True" if ready else "Unknown"},
            ],
        },
    }


def quota(hard: dict[str, str], **spec: Any) -> Any:
    return {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}}


Answer = tuple[int, bytes]


class Api:
    """A Kubernetes API server with nodes and quotas: the real client asks it over HTTP."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.quotas: list[Any] = []
        self.statuses: dict[str, int] = {}
        self.says: bytes | None = None
        self.page = 500

    def answer(self, url: str) -> Answer:
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        what = path.rsplit("/", 1)[-1]
        status = self.statuses.get(what, 200)
        if status != 200:
            return status, json.dumps({"kind": "Status", "message": "no", "code": status}).encode()
        if what == "nodes" and self.says is not None:
            return 200, self.says
        items = self.nodes if what == "nodes" else self.quotas
        begin = int(query.get("continue", ["0"])[0])
        more = str(begin + self.page) if begin + self.page < len(items) else ""
        kind = "NodeList" if what == "nodes" else "ResourceQuotaList"
        found = items[begin : begin + self.page]
        return 200, json.dumps({"kind": kind, "metadata": {"continue": more}, "items": found}).encode()


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    """An HTTP server; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _say(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _say  # noqa: N815 - the server looks for these names

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Ledger:
    """Keeps events once for each key, as the real one does."""

    def __init__(self) -> None:
        self.events: dict[str, ProductionEvent] = {}

    def record_many(self, events: list[ProductionEvent]) -> int:
        before = len(self.events)
        self.events |= {e.key: e for e in reversed(events) if e.key not in self.events}
        return len(self.events) - before

    def told(self) -> list[tuple[str, int, int]]:
        return [(e.unit, e.detail["before"], e.detail["after"]) for e in self.events.values()]


class Plant:
    """Stores in memory, and a cluster by an Airflow connection."""

    def __init__(self, **changes: Any) -> None:
        self.api = Api()
        self.store: Any = MemoryStore()
        self.ledger = Ledger()
        settings = Settings(_env_file=None, **changes)  # type: ignore[call-arg]
        self.factory: Any = SimpleNamespace(settings=settings, store=self.store, ledger=self.ledger)

    def look(self, declared: Inventory = OWN, run_id: str = "r") -> dict[str, Any]:
        return stock.look(self.factory, declared, "near", run_id)

    def kept(self) -> ClusterSeen:
        found = kept(self.store, "near")
        assert found is not None
        return found


def connection(server: str) -> str:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
    }  # fmt: skip
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config), "namespace": "ours"}})


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    made = Plant()
    with serving(lambda request: made.api.answer(request.path)) as url:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_NEAR", connection(url))
        yield made


def test_gpus_of_nodes_that_take_pods_are_stock(plant: Plant):
    taint = {"key": "team", "value": "other", "effect": "NoSchedule"}
    ours = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    soft = {"key": "team", "value": "other", "effect": "PreferNoSchedule"}
    plant.api.nodes = [
        node("good", "1"), node("dedicated", "2", taints=[ours, soft]),
        node("cordoned", "4", unschedulable=True), node("lost", "4", ready=False),
        node("others", "4", taints=[taint]), node("old", "4", labels={CLASS: "V100"}),
    ]  # fmt: skip
    made = plant.look()
    assert made["units"] == {"own": 3}
    assert made["changed"] == ["own"]
    assert "STOCK_DIFFERS: own has 3 units, 8 are declared" in made["problem"]
    assert plant.kept().offers["own"] == OfferSeen(declared=8, seen=3, units=3)


def test_many_nodes_come_in_pages(plant: Plant):
    plant.api.page = 2
    plant.api.nodes = [node(f"n{i}", "1") for i in range(8)]
    assert plant.look()["units"] == {"own": 8}
    assert plant.kept().problem == ""


def test_nodes_lost_and_added_are_each_one_event(plant: Plant):
    plant.api.nodes = [node("a", "4"), node("b", "4")]
    assert plant.look()["changed"] == []
    assert plant.ledger.told() == []
    lost = plant.api.nodes.pop()
    plant.look()
    plant.look()
    plant.api.nodes.append(lost)
    plant.look()
    plant.look()
    assert plant.ledger.told() == [("near.own", 8, 4), ("near.own", 4, 8)]
    [event, _] = plant.ledger.events.values()
    assert (event.line, event.station, event.reason) == ("plant", "capacity", ReasonCode.STOCK_DIFFERS)


def test_a_look_that_is_cut_off_after_its_event_tells_it_once(plant: Plant):
    plant.api.nodes = [node("a", "4")]
    plant.store.away = True
    plant.store.get = MemoryStore().get  # what was kept can be read, and nothing is
    with pytest.raises(InfrastructureFault):
        plant.look()
    plant.store.away = False
    del plant.store.get
    plant.look()
    assert plant.ledger.told() == [("near.own", 8, 4)]


def test_a_cluster_that_claims_more_gets_no_more_work(plant: Plant):
    plant.api.nodes = [node("a", "80")]
    made = plant.look()
    assert made["units"] == {"own": 8}
    assert made["changed"] == []
    assert "STOCK_DIFFERS: own has 80 units" in made["problem"]
    assert plant.ledger.told() == []
    assert seen_units(plant.store, OWN) == {("near", "own"): 8}


@pytest.mark.parametrize("gpus", ["-1", "0.5", "100001", "many", "", "NaN", "Infinity", "1e999999999", "8Gi"])
def test_absurd_numbers_are_refused_and_change_nothing(plant: Plant, gpus: str):
    plant.api.nodes = [node("a", "4")]
    plant.look()
    before = plant.kept()
    plant.api.nodes = [node("a", "4"), node("liar", gpus)]
    with pytest.raises(Defect, match=r"cluster near: .*stays") as caught:
        plant.look()
    assert caught.value.reason is ReasonCode.STOCK_ABSURD
    assert plant.kept() == before
    assert len(plant.ledger.told()) == 1


def test_nodes_that_are_absurd_together_are_refused(plant: Plant):
    plant.api.nodes = [node(f"n{i}", "100000") for i in range(2)]
    with pytest.raises(Defect, match="200000 units") as caught:
        plant.look()
    assert caught.value.reason is ReasonCode.STOCK_ABSURD


def test_a_list_without_end_is_refused(plant: Plant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stock, "_MOST_NODES", 3)
    plant.api.says = json.dumps({"metadata": {"continue": "again"}, "items": [node("a")]}).encode()
    with pytest.raises(Defect, match="more than 3 nodes"):
        plant.look()


@pytest.mark.parametrize(
    "said",
    [b"", b"<html>welcome</html>", b"[]", b"7", b"{}", b'{"items": null}', b'{"items": [{}]}', b'{"items": 7}',
     b'{"items": [{"metadata": {}, "spec": {}, "status": {"conditions": 7}}], "metadata": {}}'],
)  # fmt: skip
def test_answers_that_are_none_are_refused(plant: Plant, said: bytes):
    plant.api.says = said
    with pytest.raises(Defect) as caught:
        plant.look()
    assert caught.value.reason is ReasonCode.STOCK_ABSURD
    assert plant.store.objects == {}


def test_without_the_right_to_list_nodes_what_is_declared_stands(plant: Plant):
    plant.api.statuses = {"nodes": 403, "resourcequotas": 403}
    made = plant.look()
    assert made["units"] == {"own": 8}
    assert "may not list nodes" in made["problem"]
    assert plant.kept().offers["own"].seen is None


@pytest.mark.parametrize("may_list_nodes", [True, False])
def test_the_quota_of_the_namespace_caps_it(plant: Plant, may_list_nodes: bool):
    plant.api.nodes = [node("a", "8")]
    plant.api.statuses = {} if may_list_nodes else {"nodes": 403}
    plant.api.quotas = [
        quota({"requests.nvidia.com/gpu": "5", "pods": "3"}), quota({"requests.nvidia.com/gpu": "6"}),
        quota({"requests.nvidia.com/gpu": "0"}, scopes=["BestEffort"]),
    ]  # fmt: skip
    both = inventory(own={"gpu_class": "H200", "units": 8}, cpu={"units": 8})
    assert plant.look(both)["units"] == {"own": 5, "cpu": 3}


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_cluster_that_gives_no_answer_keeps_what_it_was_seen_to_have(plant: Plant, status: int):
    plant.api.nodes = [node("a", "4")]
    plant.look()
    before = plant.kept()
    plant.api.statuses = {"nodes": status}
    made = plant.look()
    assert made["units"] == {"own": 4}
    assert made["changed"] == []
    assert ("CLUSTER_DENIED" if status == 401 else "CLUSTER_UNREACHABLE") in made["problem"]
    assert plant.kept() == before


def test_a_cluster_that_is_not_connected_keeps_what_is_declared(plant: Plant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIRFLOW_CONN_KUBERNETES_NEAR")
    made = plant.look()
    assert made["units"] == {"own": 8}
    assert "not connected" in made["problem"]
    assert plant.store.objects == {}


def test_a_cluster_that_has_left_the_inventory_is_passed_over(plant: Plant):
    assert stock.look(plant.factory, OWN, "gone", "r")["problem"].endswith("names it no more")
    assert plant.store.objects == {}


def test_where_nodes_come_on_demand_those_that_are_there_say_nothing(plant: Plant):
    plant.factory.settings = Settings(cluster_grows=True, _env_file=None)  # type: ignore[call-arg]
    assert plant.look()["units"] == {"own": 8}


# --- Airflow's pools
class Airflow:
    """The pools of Airflow's REST API: bodies are held against Airflow's own models."""

    def __init__(self) -> None:
        self.pools: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.status = 0
        self.pool("default_pool", 128, None)

    def pool(self, name: str, slots: int, description: str | None, running: int = 0) -> None:
        self.pools[name] = {
            "name": name, "slots": slots, "description": description, "running_slots": running, "queued_slots": 0,
            "scheduled_slots": 0, "deferred_slots": 0,
        }  # fmt: skip

    def answer(self, request: BaseHTTPRequestHandler) -> Answer:
        from airflow.api_fastapi.core_api.datamodels.pools import PoolBody, PoolPatchBody

        size = int(request.headers.get("content-length") or 0)
        body = json.loads(request.rfile.read(size) or b"{}")
        url = urlsplit(request.path)
        name = url.path.removeprefix("/api/v2/pools").removeprefix("/")
        if self.status:
            return self.status, b"{}"
        if url.path == "/auth/token":
            good = body == {"username": "capacity", "password": "secret"}
            return (201, b'{"access_token": "t"}') if good else (401, b"{}")
        assert request.headers["authorization"] == "Bearer t"
        if request.command == "GET":
            begin = int(parse_qs(url.query)["offset"][0])
            page = list(self.pools.values())[begin : begin + 100]
            return 200, json.dumps({"pools": page, "total_entries": len(self.pools)}).encode()
        self.calls.append(f"{request.command} {name}".strip())
        if request.command == "POST":
            made = PoolBody.model_validate(body)
            self.pool(made.pool, made.slots, made.description)
        elif name not in self.pools:
            return 404, b"{}"
        elif request.command == "PATCH":
            changed = PoolPatchBody.model_validate(body)
            assert changed.name == name
            self.pools[name] |= {"slots": changed.slots, "description": changed.description}
        else:
            del self.pools[name]
        return 200, b"{}"

    def slots(self) -> dict[str, int]:
        return {name: each["slots"] for name, each in self.pools.items()}


@pytest.fixture
def airflow(plant: Plant) -> Iterator[Airflow]:
    made = Airflow()
    with serving(made.answer) as url:
        plant.factory.settings = Settings(airflow_endpoint=url, capacity_password="secret", _env_file=None)  # type: ignore[call-arg]
        yield made


def test_pools_follow_the_stock(plant: Plant, airflow: Airflow):
    assert pools.reconcile(plant.factory, OWN)["made"] == ["stock.near.own"]
    assert airflow.pools["stock.near.own"]["description"] == f"{pools.MARK}8 declared, not looked at yet"
    plant.api.nodes = [node("a", "4")]
    plant.look()
    made = pools.reconcile(plant.factory, OWN)
    assert made["changed"] == ["stock.near.own"]
    assert made["slots"] == {"stock.near.own": 4}
    assert airflow.slots() == {"default_pool": 128, "stock.near.own": 4}
    assert "8 declared, 4 seen at 2" in airflow.pools["stock.near.own"]["description"]
    assert pools.reconcile(plant.factory, OWN)["changed"] == []


def test_what_was_seen_long_ago_says_so(plant: Plant, airflow: Airflow):
    keep(plant.store, "near", seen(4, datetime.now(UTC) - timedelta(hours=30)))
    pools.reconcile(plant.factory, OWN)
    assert airflow.slots()["stock.near.own"] == 8
    assert "(30 h ago: what is declared counts)" in airflow.pools["stock.near.own"]["description"]


def test_pools_of_what_left_the_inventory_go_when_nothing_uses_them(plant: Plant, airflow: Airflow):
    airflow.pool("stock.far.own", 4, f"{pools.MARK}4 declared")
    airflow.pool("stock.far.used", 4, f"{pools.MARK}4 declared", running=1)
    made = pools.reconcile(plant.factory, OWN)
    assert (made["removed"], made["left"]) == (["stock.far.own"], ["stock.far.used"])
    assert set(airflow.pools) == {"default_pool", "stock.near.own", "stock.far.used"}


def test_pools_of_others_are_not_touched(plant: Plant, airflow: Airflow):
    airflow.pool("stock.near.own", 3, "a team's own")
    airflow.pool("stock.other", 3, None)
    airflow.pool("team", 3, f"{pools.MARK}copied")
    made = pools.reconcile(plant.factory, OWN)
    assert airflow.calls == []
    assert made["left"] == ["stock.near.own"]


def test_more_pools_than_a_page(plant: Plant, airflow: Airflow):
    for number in range(150):
        airflow.pool(f"other{number}", 1, None)
    airflow.pool("stock.near.own", 1, pools.MARK)
    pools.reconcile(plant.factory, OWN)
    assert airflow.calls == ["PATCH stock.near.own"]


@pytest.mark.parametrize(("status", "kind"), [(401, Defect), (403, Defect), (500, InfrastructureFault)])
def test_an_airflow_that_refuses_is_named_without_the_password(
    plant: Plant, airflow: Airflow, status: int, kind: type[Exception]
):
    airflow.status = status
    with pytest.raises(kind, match=str(status)) as caught:
        pools.reconcile(plant.factory, OWN)
    assert "secret" not in str(caught.value)


def test_a_plant_without_the_password_is_told_what_to_do(plant: Plant):
    with pytest.raises(Defect, match="AIF_CAPACITY_PASSWORD") as caught:
        pools.reconcile(plant.factory, OWN)
    assert caught.value.reason is ReasonCode.POOLS_DENIED


def test_an_airflow_that_is_away_is_tried_again(plant: Plant):
    plant.factory.settings = Settings(airflow_endpoint="http://127.0.0.1:9", capacity_password="x", _env_file=None)  # type: ignore[call-arg]
    with pytest.raises(InfrastructureFault):
        pools.reconcile(plant.factory, OWN)
