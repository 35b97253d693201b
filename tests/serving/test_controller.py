"""The controller over real model servers: what it fills, refuses, takes for lost, and when it leaves routes alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.serving.fallback import FallbackServer, fallback_server
from tests.serving.rig import GOLDEN, graph
from tests.serving.small_model import FLOATS, STRINGS, expected, small_graph

from aifactory.errors import AnswerLate, InfrastructureFault, PackageDefect
from aifactory.packaging import sealed_files
from aifactory.reasons import ReasonCode
from aifactory.serving import control, pulse
from aifactory.serving.analysis import Histogram
from aifactory.serving.control import Controller, ServedSlot
from aifactory.serving.gateway import LineRoute
from aifactory.serving.repository import ModelRepository
from aifactory.serving.routing import Counted, CountedRole
from aifactory.serving.slot import Slot
from aifactory.serving.traffic import Observed, Rollout, Stage, Traffic, observed_key, traffic_key

pytestmark = pytest.mark.integration

LINE = "small"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONE = CountedRole(requests=0, errors=0, latency_ms=Histogram(edges=(1.0,), counts=(0, 0)))


class Bucket(MemoryStore):
    """With documents."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self.get(key), ""


@dataclass
class Gateway:
    """Stands for Envoy: keeps the routes that it is asked for, takes them or not, or is away."""

    takes: bool = True
    away: bool = False
    routes: dict[str, LineRoute] = field(default_factory=dict)

    def ensure(self, lines: tuple[LineRoute, ...]) -> bool:
        if self.away:
            raise InfrastructureFault(ReasonCode.GATEWAY_UNREACHABLE, "it is away")
        self.routes = {route.line: route for route in lines}
        return self.takes

    def begin_counting(self, line: str) -> None:
        pass

    def counted(self, document: Traffic, since: datetime) -> Counted:
        return Counted(line=document.line, generation=document.generation, since=since, champion=NONE, challenger=NONE)


class SlowSlot(Slot):
    """A slot whose server may be too slow for its golden rows."""

    late = False

    def check_golden(self, line: str, version: str, manifest: Mapping[str, Any], *, first: bool = False) -> None:
        if self.late:
            raise AnswerLate(ReasonCode.SERVER_UNREACHABLE, "it takes its time")
        super().check_golden(line, version, manifest, first=first)


class Plant:
    """Two servers and what the controller has to do with."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.servers: dict[str, FallbackServer] = {}
        self.slots: dict[str, ServedSlot] = {}
        for name in "ab":
            folder = home / name / "models"
            folder.mkdir(parents=True)
            self.servers[name] = stack.enter_context(fallback_server(folder))
            slot = stack.enter_context(SlowSlot(name, self.servers[name].grpc_target, timeout_s=2))
            self.slots[name] = ServedSlot(slot, ModelRepository(folder, 1))
        self.store, self.gateway = Bucket(), Gateway()
        self.outputs = expected(0.3, GOLDEN)
        self.fetched: list[str] = []
        self.controller = Controller(self.store, self.slots, self.gateway, self.fetch, lambda: AT)  # type: ignore[arg-type]

    def fetch(self, line: str, version: str) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        self.fetched.append(version)
        if version == "9":
            raise PackageDefect(ReasonCode.PACKAGE_UNSIGNED, "nobody signed it")
        files = {"model.onnx": small_graph(0.3)}
        manifest = {
            "features": {"categorical": list(STRINGS), "numeric": list(FLOATS)},
            "dataset_revision": "none",
            "files": sealed_files(files),
            "golden": {"inputs": GOLDEN, "outputs": self.outputs},
        }
        return manifest, files

    def want(self, **fields: Any) -> None:
        """A document, as the adapter writes it."""
        document = Traffic.model_validate({"line": LINE, "generation": 1, "since": AT} | fields)
        self.store.put_json(traffic_key(LINE), document.model_dump(mode="json"))
        pulse.beat(self.store, document, AT)  # type: ignore[arg-type]

    def canary(self, generation: int = 1) -> None:
        """Version 1 is the champion in a, version 2 is tried in b."""
        rollout = Rollout(version="2", run="r", began=AT)
        slots = {"a": "1", "b": "2"}
        self.want(generation=generation, slots=slots, stage=Stage.CANARY, percent=20, rollout=rollout)

    def turn(self) -> None:
        self.controller.turn([LINE])

    @property
    def seen(self) -> Observed | None:
        key = observed_key(LINE)
        return Observed.model_validate_json(self.store.get(key)) if key in self.store.objects else None

    @property
    def versions(self) -> dict[str, str | None]:
        """What is said to be in each slot."""
        assert self.seen is not None
        return {name: slot.version for name, slot in self.seen.slots.items()}

    def loaded(self, name: str) -> list[str]:
        """What a server itself says."""
        return self.slots[name].server.loaded().get(LINE, [])


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with ExitStack() as stack:
        yield Plant(tmp_path, stack)


def test_a_version_that_does_not_give_its_golden_outputs_is_refused_once(plant: Plant) -> None:
    plant.want(slots={"a": "1", "b": None})
    plant.turn()
    plant.outputs = [0.5] * 3
    plant.want(generation=2, slots={"a": "1", "b": "2"})
    plant.turn()
    assert plant.seen is not None
    refused = plant.seen.slots["b"].refused
    assert refused is not None
    assert (refused.version, refused.reason) == ("2", ReasonCode.PACKAGE_MISMATCH)
    assert (plant.versions, plant.loaded("b")) == ({"a": "1", "b": None}, []), "the server does not keep it"
    assert plant.gateway.routes == {LINE: LineRoute(LINE, "a")}, "nothing falls back to what was refused"
    plant.turn()
    assert plant.fetched == ["1", "2"], "it would be refused again"
    plant.outputs = expected(0.3, GOLDEN)
    plant.want(generation=3, slots={"a": "1", "b": "2"})
    plant.turn()
    assert plant.versions == {"a": "1", "b": "2"}, "who asks anew is heard anew"


def test_a_package_that_is_refused_is_never_loaded(plant: Plant) -> None:
    plant.want(slots={"a": "1", "b": "9"})
    plant.turn()
    plant.turn()
    assert plant.fetched == ["1", "9"]
    assert plant.seen is not None
    refused = plant.seen.slots["b"].refused
    assert refused is not None
    assert (refused.reason, plant.loaded("b")) == (ReasonCode.PACKAGE_UNSIGNED, [])
    assert plant.versions == {"a": "1", "b": None}


def test_a_server_that_comes_back_without_its_models_is_filled_again(plant: Plant) -> None:
    plant.want(slots={"a": "1", "b": None})
    plant.turn()
    plant.servers["a"].unload(LINE)
    assert plant.loaded("a") == []
    plant.turn()
    assert (plant.versions, plant.loaded("a")) == ({"a": "1", "b": None}, ["1"])
    assert plant.gateway.routes[LINE].champion == "a"


def test_a_challenger_whose_server_lost_it_is_not_filled_again(plant: Plant) -> None:
    plant.canary()
    plant.turn()
    assert plant.gateway.routes[LINE].challenger_percent == 20
    plant.servers["b"].unload(LINE)
    plant.turn()
    plant.turn()
    assert (plant.versions, plant.loaded("b"), plant.fetched) == ({"a": "1", "b": None}, [], ["1", "2"])
    assert plant.seen is not None
    refused = plant.seen.slots["b"].refused
    assert refused is not None
    assert refused.reason is ReasonCode.CHALLENGER_LOST


def test_a_document_that_cannot_be_read_any_more_leaves_what_was_read_in_force(plant: Plant) -> None:
    plant.canary()
    plant.turn()
    before, routes, good = plant.seen, plant.gateway.routes, plant.store.objects[traffic_key(LINE)]
    plant.store.objects[traffic_key(LINE)] = b"{"
    plant.turn()
    assert (plant.seen, plant.gateway.routes) == (before, routes)
    plant.servers["a"].unload(LINE)
    plant.turn()
    assert plant.loaded("a") == ["1"], "the champion is looked after all the same"
    plant.store.objects[traffic_key(LINE)] = good
    plant.canary(generation=2)
    plant.turn()
    assert plant.seen is not None
    assert plant.seen.generation == 2


def test_a_store_that_went_away_leaves_the_champion_everything(plant: Plant) -> None:
    plant.canary()
    plant.turn()
    plant.store.away = True
    plant.turn()
    assert plant.gateway.routes == {LINE: LineRoute(LINE, "a")}, "whether somebody looks after the canary is not known"
    plant.store.away = False
    plant.turn()
    assert plant.seen is not None
    assert plant.seen.percent == plant.gateway.routes[LINE].challenger_percent == 20, "and said again when it is back"


def test_nothing_is_said_to_be_in_force_before_the_gateway_has_it(plant: Plant) -> None:
    plant.want(slots={"a": "1", "b": None})
    plant.gateway.takes = False
    plant.turn()
    assert (plant.seen, plant.loaded("a")) == (None, ["1"])
    plant.gateway.away = True
    plant.turn()
    assert plant.seen is None
    plant.gateway.takes, plant.gateway.away = True, False
    plant.turn()
    assert plant.versions == {"a": "1", "b": None}


def test_a_server_that_answers_late_is_slow_at_first_and_lost_after_a_while(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.canary()
    plant.turn()
    os.kill(plant.servers["b"].process.pid, signal.SIGSTOP)
    try:
        plant.turn()
        assert plant.versions == {"a": "1", "b": "2"}
        monkeypatch.setattr(control, "LATE_S", 0.0)
        plant.turn()
        assert plant.versions == {"a": "1", "b": None}
    finally:
        os.kill(plant.servers["b"].process.pid, signal.SIGCONT)


def test_golden_rows_that_come_late_are_waited_for(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "GOLDEN_EVERY_S", 0.0)
    plant.canary()
    plant.turn()
    slow = plant.slots["b"].server
    assert isinstance(slow, SlowSlot)
    slow.late = True
    plant.turn()
    assert plant.versions == {"a": "1", "b": "2"}
    slow.late = False
    plant.turn()
    assert plant.slots["b"].berth(LINE).patience.since is None, "patience is new after every answer"
    slow.late = True
    monkeypatch.setattr(control, "LATE_S", 0.0)
    plant.turn()
    assert plant.versions == {"a": "1", "b": None}


def test_the_first_answers_may_take_longer(plant: Plant) -> None:
    body = graph(flaw="slow")
    manifest = plant.fetch(LINE, "1")[0] | {"files": sealed_files({"model.onnx": body})}
    plant.slots["a"].repository.write(LINE, "1", manifest, body)
    with Slot("a", plant.servers["a"].grpc_target, timeout_s=0.005) as slot:
        slot.load(LINE)
        slot.check_golden(LINE, "1", manifest, first=True)
        with pytest.raises(AnswerLate, match="was asked to score"):
            slot.check_golden(LINE, "1", manifest)
