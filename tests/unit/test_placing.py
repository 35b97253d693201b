"""Placing: the promise, the cluster that fails, the window that has not come, and what is never done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowRescheduleException
from tests.memory_store import MemoryStore

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY, Settings
from orchestration import clusterwork, placing
from orchestration.placing import Place, carried_out

HOUR = timedelta(hours=1)
NOW = datetime(2024, 3, 1, 10, 20, tzinfo=UTC)


class Plant:
    """A task of a line, an inventory of three clusters, and prices by the hour from this one on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.events: list[ProductionEvent] = []
        self.connected = {"near", "far", "abroad"}
        self.spec = find_line(REPOSITORY / "include" / "lines", "flight_delay")
        self.changes: dict[str, Any] = {"gpus": 4, "expected_minutes": 60.0, "timeout_minutes": 60}
        self.regions = ["eu"]
        self.now = NOW
        self.origin = self.now.replace(minute=0, second=0, microsecond=0)
        self.cents = {"near": [10.0] * 48, "far": [20.0] * 48, "abroad": [1.0] * 48}
        self.content: dict[str, Any] = {
            "feeds": {},
            "clusters": {
                name: {
                    "connection": name, "region": region, "energy": name,
                    "offers": {"own": {"gpu_class": "H200", "units": 8, "unit_power_w": 1000}},
                }
                for name, region in (("near", "eu"), ("far", "eu"), ("abroad", "us"))
            },
        }  # fmt: skip
        self.asked: list[Place] = []

    def inventory(self) -> Path:
        for name, cents in self.cents.items():
            rows = [f"{self.origin + n * HOUR:%Y-%m-%d %H:%M:%S},{value / 100}" for n, value in enumerate(cents)]
            (self.folder / f"{name}.csv").write_text("\n".join(["hour,price", *rows]))
            self.content["feeds"][name] = {
                "source": f"{name}.csv", "quantity": "price_per_kwh", "time_column": "hour", "value_column": "price",
                "low": -1, "high": 5, "default": 0.1,
            }  # fmt: skip
        path = self.folder / "capacity.yaml"
        path.write_text(yaml.safe_dump(self.content))
        return path

    def here(self, run: str = "run") -> Any:
        compute = self.spec.compute.model_copy(update=self.changes)
        spec = self.spec.model_copy(
            update={"compute": compute, "residency": self.spec.residency.model_copy(update={"regions": self.regions})}
        )
        settings = Settings(_env_file=None, capacity_file=self.inventory())  # type: ignore[call-arg]
        ledger = SimpleNamespace(record=self.events.append)
        return SimpleNamespace(
            spec=spec,
            run=run,
            factory=SimpleNamespace(settings=settings, store=self.store, ledger=ledger),
            context={
                "ti": SimpleNamespace(dag_id="flight_delay.train"),
                "dag_run": SimpleNamespace(start_date=self.now),
            },
        )

    def place(
        self,
        answer: Callable[[Place], Any] = lambda place: place.name,
        *,
        unit: str = "order/refit",
        waits: bool = True,
    ) -> Any:
        def run(place: Place) -> Any:
            self.asked.append(place)
            return answer(place)

        return carried_out(self.here(), "train", unit, run, waits=waits)

    def promises(self) -> list[str]:
        return [key for key in self.store.objects if key.startswith("capacity/promises/")]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    plant = Plant(tmp_path)
    monkeypatch.setattr(placing, "_now", lambda: NOW)
    monkeypatch.setattr(
        clusterwork,
        "connected_cluster",
        lambda name: clusterwork.Cluster(name) if name in plant.connected else None,
    )
    return plant


def fails(error: FactoryError, *names: str) -> Callable[[Place], str]:
    """Fails in the clusters of these names."""

    def answer(place: Place) -> str:
        if place.name in names:
            raise error
        return place.name

    return answer


AWAY = InfrastructureFault(ReasonCode.CLUSTER_UNREACHABLE, "no answer")


def test_the_cheapest_of_those_allowed_and_its_reasons(plant: Plant):
    promised: list[str] = []

    def answer(place: Place) -> str:
        promised.extend(plant.promises())
        return place.name

    assert plant.place(answer) == "near"
    assert plant.asked[0].gpu_class == "H200"
    assert plant.asked[0].cluster.conn_id == "near"
    assert len(promised) == 1
    assert plant.promises() == []
    [event] = plant.events
    assert event.event is EventKind.DECIDED
    assert event.detail["placed"] == "near.own"
    told = {row["site"]: row for row in event.detail["alternatives"]}
    assert told["abroad.own"]["obstacle"] == "RESIDENCY"
    assert told["near.own"]["energy"] == pytest.approx(0.1 * 1.2 * 4, rel=0.01)
    assert told["far.own"]["energy"] == pytest.approx(0.2 * 1.2 * 4, rel=0.01)


def test_a_cluster_that_is_away_cools_off_and_the_work_goes_elsewhere(plant: Plant):
    assert plant.place(fails(AWAY, "near")) == "far"
    assert plant.store.get_json("capacity/cooling/near.json")["reason"] == "CLUSTER_UNREACHABLE"
    assert plant.place(unit="another") == "far"
    assert plant.promises() == []


def test_a_cluster_that_has_cooled_off_is_used_again(plant: Plant):
    plant.place(fails(AWAY, "near"))
    note = plant.store.get_json("capacity/cooling/near.json")
    plant.store.put_json("capacity/cooling/near.json", note | {"until": (plant.now - HOUR).isoformat()})
    assert plant.place() == "near"


def test_the_works_own_failure_is_not_the_clusters(plant: Plant):
    with pytest.raises(Defect) as caught:
        plant.place(fails(Defect(ReasonCode.TRAINING_FAILED, "a bug"), "near"))
    assert caught.value.reason is ReasonCode.TRAINING_FAILED
    assert len(plant.asked) == 1
    assert plant.promises() == []


def test_residency_holds_when_all_else_fails(plant: Plant):
    with pytest.raises(AirflowRescheduleException):
        plant.place(fails(AWAY, "near", "far"))
    assert [place.name for place in plant.asked] == ["near", "far"]
    plant.regions = ["mars"]
    with pytest.raises(Defect) as caught:
        plant.place()
    assert caught.value.reason is ReasonCode.NO_PLACE
    assert "mars" in caught.value.message
    assert len(plant.asked) == 2


def test_where_nothing_is_left_a_clusters_defect_is_told(plant: Plant):
    with pytest.raises(Defect) as caught:
        plant.place(fails(Defect(ReasonCode.REQUEST_TOO_LARGE, "too large"), "near", "far"))
    assert caught.value.reason is ReasonCode.REQUEST_TOO_LARGE


def test_all_cool_off_what_may_wait_is_woken_then(plant: Plant):
    with pytest.raises(AirflowRescheduleException) as caught:
        plant.place(fails(AWAY, "near", "far"))
    assert plant.now < caught.value.reschedule_date <= NOW + timedelta(minutes=30)


def test_all_cool_off_what_may_not_wait_is_a_fault(plant: Plant):
    with pytest.raises(InfrastructureFault) as caught:
        plant.place(fails(AWAY, "near", "far"), waits=False)
    assert caught.value.reason is ReasonCode.NO_PLACE
    assert "COOLING_OFF" in caught.value.message


def test_a_cluster_that_is_not_connected_is_passed_over(plant: Plant):
    plant.connected = {"far"}
    assert plant.place() == "far"


def test_a_window_is_waited_for_without_a_worker(plant: Plant):
    plant.changes["flexible_hours"] = 12
    plant.cents["near"] = [10.0, 10.0, 10.0, 10.0, 1.0, *[10.0] * 43]
    with pytest.raises(AirflowRescheduleException) as caught:
        plant.place()
    assert caught.value.reschedule_date - NOW <= placing.LOOK_AGAIN
    assert plant.asked == []
    [promise] = plant.promises()
    assert datetime.fromisoformat(plant.store.get_json(promise)["begin"]) == plant.origin + 4 * HOUR
    assert plant.place(waits=False) == "near"


def test_a_promise_that_has_begun_is_kept_though_another_place_is_cheaper_now(plant: Plant):
    with pytest.raises(KeyboardInterrupt):
        plant.place(lambda place: (_ for _ in ()).throw(KeyboardInterrupt))  # a worker that dies says nothing
    assert len(plant.promises()) == 1
    plant.cents = {name: [0.1] * 48 if name == "far" else [50.0] * 48 for name in plant.cents}
    plant.store.objects = {key: body for key, body in plant.store.objects.items() if not key.startswith("feeds/")}
    assert plant.place() == "near"
    assert plant.place() == "far"


def test_what_others_were_promised_is_theirs(plant: Plant):
    ends = plant.now + 2 * HOUR
    promise = {"line": "other", "cluster": "near", "offer": "own", "units": 6, "begin": plant.now.isoformat()}
    plant.store.put_json("capacity/promises/other.json", promise | {"end": ends.isoformat()})
    assert plant.place() == "far"
    plant.store.put_json("capacity/promises/other.json", promise | {"end": (plant.now - 2 * HOUR).isoformat()})
    assert plant.place() == "near"
    assert plant.promises() == []


def test_one_without_flexibility_waits_for_room_as_it_would_in_a_queue(plant: Plant):
    plant.connected = {"near"}
    promise = {"line": "other", "cluster": "near", "offer": "own", "units": 6, "begin": plant.now.isoformat()}
    plant.changes["queue_minutes"] = 180
    plant.store.put_json("capacity/promises/other.json", promise | {"end": (plant.origin + 2 * HOUR).isoformat()})
    with pytest.raises(AirflowRescheduleException):
        plant.place()
    with pytest.raises(InfrastructureFault) as caught:
        plant.place(waits=False)
    assert "NO_ROOM" in caught.value.message
    plant.changes["queue_minutes"] = 1
    with pytest.raises(InfrastructureFault):
        plant.place()


def test_one_without_flexibility_does_not_wait_for_a_better_price(plant: Plant):
    plant.cents = {name: [dear, 0.1, *[dear] * 46] for name, dear in (("near", 49.0), ("far", 50.0), ("abroad", 1.0))}
    assert plant.place() == "near"


def test_a_reservation_is_honoured(plant: Plant):
    plant.content["reservations"] = [{"line": "urgent", "cluster": "near", "offer": "own", "units": 6}]
    assert plant.place() == "far"


def test_without_an_inventory_there_is_one_cluster(plant: Plant):
    here = plant.here()
    here.factory.settings = here.factory.settings.model_copy(update={"capacity_file": None})
    place = carried_out(here, "train", "unit", lambda place: place)
    assert (place.cluster.conn_id, place.name, place.gpu_class) == ("kubernetes_default", "", None)
    assert placing.connections(here) == ["kubernetes_default"]
    assert not placing.goes_to_pods(here, "train")
    plant.connected = {"kubernetes_default"}
    assert placing.goes_to_pods(here, "train")
    assert not placing.goes_to_pods(here, "score")
