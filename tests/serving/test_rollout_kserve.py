"""The KServe adapter over an API in memory, KServe played: the suites, every place to die at, what statuses mean."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from tests.serving.custom_objects_conformance import CustomObjectsConformance
from tests.serving.played_kserve import PLACE, KServeWorld, MemoryObjects, a_line
from tests.serving.rollout_conformance import (
    RolloutConformance,
    World,
    ask,
    now,
    observed,
    put,
    reach,
    turn,
    with_champion,
)

from aifactory.errors import PackageDefect, ReleaseDefect
from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.kserve import Object, Place
from aifactory.serving.kserveadapter import HTTP_ROUTES, INFERENCE_SERVICES, KServeAdapter
from aifactory.serving.traffic import Evidence, Stage, Traffic, abort, begin, next_state
from aifactory.store import Conflict

LINE = a_line().line


class Died(Exception):
    """A writer is killed."""


@pytest.fixture
def memory() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def world(memory: MemoryObjects) -> KServeWorld:
    return KServeWorld(memory, a_line())


class TestMemory(CustomObjectsConformance):
    @pytest.fixture
    def cluster(self) -> MemoryObjects:
        return MemoryObjects()

    @pytest.fixture
    def place(self) -> Place:
        return PLACE


class TestKServe(RolloutConformance):
    @pytest.fixture
    def world(self) -> World:
        return KServeWorld(MemoryObjects(), a_line())


def service(memory: MemoryObjects) -> Object:
    found = memory.get(INFERENCE_SERVICES, kserve.service_name(LINE))
    assert found is not None
    return found


def route(memory: MemoryObjects) -> Object:
    found = memory.get(HTTP_ROUTES, kserve.route_name(LINE))
    assert found is not None
    return found


def share_of(version: str, memory: MemoryObjects) -> int:
    """Percent of the live requests that KServe and the trial's route give to a version."""
    name = kserve.predictor_name(version)
    there, trial = service(memory), memory.get(HTTP_ROUTES, kserve.route_name(LINE))
    if trial and kserve.attached(trial):
        backends = trial["spec"]["rules"][0]["backendRefs"]
        mine = [b.get("weight", 100) for b in backends if b["name"].endswith(f"-{name}-predictor")]
        assert sum(b.get("weight", 100) for b in backends) == 100
        return sum(mine)
    canaries = {c["predictor"]["name"]: c["trafficPercent"] for c in there["spec"]["canary"]}
    if there["spec"]["predictor"].get("name") == name:
        return 100 - sum(canaries.values())
    return int(canaries.get(name, 0))


def watch(memory: MemoryObjects) -> list[int]:
    """Hold every write against the document of that moment; the champion's shares that were seen."""
    shares: list[int] = []

    def look() -> None:
        traffic = kserve.document(service(memory))
        if traffic.champion is not None:
            shares.append(share_of(traffic.champion, memory))
            assert shares[-1] >= 100 - traffic.percent

    memory.after_write = look
    return shares


def test_the_champion_never_has_less_than_the_document_says(world: KServeWorld, memory: MemoryObjects) -> None:
    with_champion(world)
    shares = watch(memory)
    ask(world, "2")
    reach(world, Stage.PROMOTED)
    ask(world, "3")
    put(world, abort(reach(world, Stage.SHADOW), ReasonCode.OPERATOR, "no", now())[0])
    put(world, begin(world.adapter.wanted(), "1", run="op", now=now(), direct=True)[0])
    assert reach(world, Stage.PROMOTED).champion == "1"
    assert {100, 80, 50} <= set(shares)


def test_a_shadow_that_is_promoted_straight_gives_up_its_route_first(world: KServeWorld, memory: MemoryObjects) -> None:
    with_champion(world)
    ask(world, "2")
    shadow = reach(world, Stage.SHADOW)
    assert kserve.attached(route(memory))
    watch(memory)
    promoted = {"stage": "promoted", "champion_slot": shadow.challenger_slot, "previous": "1"}
    put(world, Traffic.model_validate({**shadow.model_dump(), **promoted, "generation": shadow.generation + 1}))
    assert share_of("2", memory) == 100


@pytest.mark.parametrize("writes", range(1, 4))
@pytest.mark.parametrize("stage", [Stage.IDLE, Stage.SELF_TESTED, Stage.SHADOW, Stage.CANARY])
@pytest.mark.parametrize("way", ["on", "back"])
def test_a_writer_that_dies_after_any_write_leaves_what_the_next_one_finishes(
    world: KServeWorld, memory: MemoryObjects, stage: Stage, writes: int, way: str
) -> None:
    champion = with_champion(world)
    before = champion if stage is Stage.IDLE else ask(world, "2")
    if stage is not Stage.IDLE:
        before = reach(world, stage, percent=20 if stage is Stage.CANARY else 0)
    following = (
        begin(before, "2", run="r", now=now())[0]
        if stage is Stage.IDLE
        else abort(before, ReasonCode.OPERATOR, "no", now())[0]
        if way == "back"
        else Traffic.model_validate({**before.model_dump(), **NEXT[stage], "generation": before.generation + 1})
    )
    shares, left = watch(memory), [writes]
    look = memory.after_write

    def die() -> None:
        look()
        left[0] -= 1
        if not left[0]:
            memory.after_write = look
            raise Died

    memory.after_write = die
    with suppress(Died):
        world.adapter.apply(following)
    memory.after_write = look
    world.settle()
    there = world.adapter.wanted()
    assert there in (before, following)
    assert observed(world).generation == there.generation
    assert kserve.attached(route(memory)) is (there.stage in (Stage.SHADOW, Stage.CANARY))
    put(world, following)
    assert (world.adapter.wanted(), observed(world).generation) == (following, following.generation)
    assert shares


NEXT: dict[Stage, dict[str, Any]] = {
    Stage.SELF_TESTED: {"stage": "shadow"},
    Stage.SHADOW: {"stage": "canary", "percent": 20},
    Stage.CANARY: {"percent": 50},
}


def test_a_document_whose_route_is_missing_is_not_in_force_and_is_mended(
    world: KServeWorld, memory: MemoryObjects
) -> None:
    with_champion(world)
    ask(world, "2")
    shadow = reach(world, Stage.SHADOW)
    there = route(memory)
    memory.replace(HTTP_ROUTES, {**there, "spec": {"parentRefs": []}})
    assert observed(world).generation == shadow.generation, "once in force, the record says so"
    assert kserve.attached(route(memory))


def test_a_shadow_that_the_gateway_has_not_taken_is_not_in_force(world: KServeWorld, memory: MemoryObjects) -> None:
    with_champion(world)
    ask(world, "2")
    tested = reach(world, Stage.SELF_TESTED)
    shadow = Traffic.model_validate({**tested.model_dump(), "stage": "shadow", "generation": tested.generation + 1})
    world.adapter.apply(shadow)
    assert observed(world).generation == tested.generation
    refusing = {"parents": [{"parentRef": {"name": "g"}, "controllerName": "c", "conditions": []}]}
    memory.put_status(HTTP_ROUTES, {**route(memory), "status": refusing})
    assert observed(world).generation == tested.generation
    world.settle()
    assert observed(world).generation == shadow.generation


def test_a_canary_that_kserve_has_not_seen_is_not_in_force(world: KServeWorld) -> None:
    with_champion(world)
    ask(world, "2")
    shadow = reach(world, Stage.SHADOW)
    canary = Traffic.model_validate({**shadow.model_dump(), **NEXT[Stage.SHADOW], "generation": shadow.generation + 1})
    world.adapter.apply(canary)
    seen = observed(world)
    assert (seen.generation, seen.percent) == (shadow.generation, 0)
    assert next_state(canary, Evidence(observed=world.adapter.observe()), a_line().deployment, now())[0] == canary
    world.settle()
    assert (observed(world).generation, observed(world).percent) == (canary.generation, 20)


def test_writers_and_observers_and_kserve_at_once_leave_one_consistent_world(
    world: KServeWorld, memory: MemoryObjects
) -> None:
    champion = with_champion(world)
    watch(memory)
    stop = threading.Event()
    failures: list[BaseException] = []

    def disturb() -> None:
        while not stop.is_set():
            world.follow()

    def roll(version: str) -> None:
        try:
            for _ in range(5):
                adapter = KServeAdapter(memory, a_line(), PLACE, lambda _: None)
                there = adapter.wanted()
                following = (
                    begin(there, version, run=version, now=now())[0]
                    if there.at_rest
                    else abort(there, ReasonCode.OPERATOR, "no", now())[0]
                )
                try:
                    adapter.apply(following)
                    adapter.observe()
                except Conflict:
                    continue
        except BaseException as error:
            failures.append(error)

    disturbing = threading.Thread(target=disturb)
    rolling = [threading.Thread(target=roll, args=(version,)) for version in ("2", "3", "4")]
    disturbing.start()
    for thread in rolling:
        thread.start()
    for thread in rolling:
        thread.join()
    stop.set()
    disturbing.join()
    assert failures == []
    memory.after_write = lambda: None
    world.settle()
    there = world.adapter.wanted()
    assert there.generation > champion.generation
    assert (observed(world).generation, kserve.generation(route(memory))) == (there.generation, there.generation)


def test_others_labels_and_annotations_stay(world: KServeWorld, memory: MemoryObjects) -> None:
    with_champion(world)
    there = service(memory)
    there["metadata"]["annotations"]["example.com/note"] = "theirs"
    there["metadata"]["labels"]["team"] = "theirs"
    memory.replace(INFERENCE_SERVICES, there)
    ask(world, "2")
    metadata = service(memory)["metadata"]
    assert (metadata["annotations"]["example.com/note"], metadata["labels"]["team"]) == ("theirs", "theirs")


def test_a_line_is_off_the_gateway_until_it_has_a_champion(world: KServeWorld, memory: MemoryObjects) -> None:
    ask(world, "1")
    assert service(memory)["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    reach(world, Stage.PROMOTED)
    assert "networking.kserve.io/visibility" not in service(memory)["metadata"]["labels"]


def test_a_version_is_published_before_it_is_named_and_once(world: KServeWorld) -> None:
    with_champion(world)
    ask(world, "2")
    reach(world, Stage.PROMOTED)
    assert world.published == ["1", "2"]


def test_a_champion_whose_package_is_refused_is_never_written(world: KServeWorld) -> None:
    champion = with_champion(world)
    world.spoil("7", ReasonCode.PACKAGE_UNSIGNED, "no signature")
    odd = {"slots": {**champion.slots, champion.champion_slot: "7"}, "generation": champion.generation + 1}
    with pytest.raises(PackageDefect, match="no signature"):
        world.adapter.apply(Traffic.model_validate({**champion.model_dump(), **odd}))
    assert world.adapter.wanted() == champion


def test_a_first_candidate_that_is_refused_leaves_a_stopped_service(world: KServeWorld, memory: MemoryObjects) -> None:
    world.spoil("1", ReasonCode.PACKAGE_UNSIGNED, "no signature")
    ask(world, "1")
    assert service(memory)["metadata"]["annotations"]["serving.kserve.io/stop"] == "true"
    assert turn(world).reason is ReasonCode.PACKAGE_UNSIGNED
    ask(world, "2")
    assert reach(world, Stage.PROMOTED).champion == "2"


@pytest.mark.parametrize("transition", ["InvalidSpec", "BlockedByFailedLoad"])
def test_what_kserve_could_not_load_is_refused_with_its_words(
    world: KServeWorld, memory: MemoryObjects, transition: str
) -> None:
    with_champion(world)
    traffic = ask(world, "2")
    there = service(memory)
    model = {
        "transitionStatus": transition,
        "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "bad protobuf"},
    }
    canary = {"name": "v2", "ready": False, "trafficPercent": 0, "modelStatus": model}
    memory.put_status(INFERENCE_SERVICES, {**there, "status": {**there["status"], "canaryStatuses": [canary]}})
    refused = observed(world).slots[traffic.challenger_slot].refused
    assert refused is not None
    assert (refused.version, refused.reason) == ("2", ReasonCode.PACKAGE_INVALID)
    assert "ModelLoadFailed bad protobuf" in refused.message
    assert turn(world).stage is Stage.ROLLED_BACK


@pytest.mark.parametrize("content", ["", "{", "[]", '{"line": "x"}'])
def test_a_document_that_cannot_be_read_is_a_named_defect_and_is_never_overwritten(
    world: KServeWorld, memory: MemoryObjects, content: str
) -> None:
    champion = with_champion(world)
    there = service(memory)
    there["metadata"]["annotations"][kserve.TRAFFIC_ANNOTATION] = content
    memory.replace(INFERENCE_SERVICES, there)
    for act in (world.adapter.wanted, world.adapter.observe, lambda: world.adapter.apply(champion)):
        with pytest.raises(ReleaseDefect, match="ai-factory/flight-delay") as caught:
            act()
        assert caught.value.reason is ReasonCode.TRAFFIC_INVALID
    assert service(memory)["metadata"]["annotations"][kserve.TRAFFIC_ANNOTATION] == content


def test_since_is_the_time_when_a_document_was_first_seen_in_force(memory: MemoryObjects) -> None:
    clock = [now()]
    world = KServeWorld(memory, a_line())
    world.adapter = KServeAdapter(memory, a_line(), PLACE, lambda _: None, lambda: clock[0])
    world.adapter.apply(begin(world.adapter.wanted(), "1", run="r", now=clock[0])[0])
    clock[0] += timedelta(minutes=3)
    world.settle()
    seen_at = clock[0]
    clock[0] += timedelta(minutes=3)
    assert observed(world).since == seen_at


def test_a_writer_that_was_overtaken_between_reading_and_writing_loses(
    world: KServeWorld, memory: MemoryObjects
) -> None:
    champion = with_champion(world)
    faster, slower = (begin(champion, version, run=version, now=now())[0] for version in ("3", "2"))

    def overtake(_: str) -> None:
        KServeAdapter(memory, a_line(), PLACE, lambda _: None).apply(faster)

    with pytest.raises(Conflict, match="read it again"):
        KServeAdapter(memory, a_line(), PLACE, overtake).apply(slower)
    assert world.adapter.wanted() == faster


def test_a_writer_that_sleeps_between_its_writes_does_not_bring_an_older_shadow_back(
    world: KServeWorld, memory: MemoryObjects
) -> None:
    with_champion(world)
    ask(world, "2")
    tested = reach(world, Stage.SELF_TESTED)
    shadow = Traffic.model_validate(
        {**tested.model_dump(), **NEXT[Stage.SELF_TESTED], "generation": tested.generation + 1}
    )
    back = abort(shadow, ReasonCode.OPERATOR, "no", now())[0]

    def overtake() -> None:
        memory.after_write = lambda: None
        world.adapter.apply(back)

    memory.after_write = overtake
    world.adapter.apply(shadow)
    world.settle()
    assert (world.adapter.wanted(), observed(world).generation) == (back, back.generation)
    assert not kserve.attached(route(memory))
