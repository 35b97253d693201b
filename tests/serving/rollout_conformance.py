"""What every rollout adapter must do, whatever it drives: subclass `RolloutConformance` and give it a `world`.

A world is an adapter and the thing behind it, with two ways to hurt that thing. The suite only asks the adapter.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest

from aifactory.line import CanaryStep, Deployment
from aifactory.reasons import ReasonCode
from aifactory.rollout import RolloutAdapter
from aifactory.serving.analysis import LATENCY_EDGES_MS, SCORE_EDGES, Comparison, Counts, Histogram
from aifactory.serving.traffic import Action, Evidence, Observed, Stage, Traffic, abort, begin, next_state
from aifactory.store import Conflict

STEPS = Deployment(
    shadow_minutes=1,
    shadow_min_requests=500,
    canary=[CanaryStep(percent=20, bake_minutes=1), CanaryStep(percent=50, bake_minutes=1)],
    max_error_excess=0.1,
    max_latency_ratio=3,
    max_score_shift=0.5,
)


class World(Protocol):
    """An adapter and what it drives."""

    adapter: RolloutAdapter

    def settle(self) -> None:
        """Return when what was applied last is in force, as far as it can be, and observed."""

    def spoil(self, version: str, reason: ReasonCode, message: str) -> None:
        """Make a version one that is refused when it is loaded."""

    def crash(self, slot: str) -> None:
        """Empty a slot behind the adapter's back; return when that can be observed, before it is repaired."""


def now() -> datetime:
    return datetime.now(UTC)


def healthy(traffic: Traffic) -> Comparison:
    role = Counts(
        requests=4000,
        errors=0,
        latency_ms=Histogram(edges=LATENCY_EDGES_MS, counts=(4000, *[0] * len(LATENCY_EDGES_MS))),
        scores=Histogram(edges=SCORE_EDGES, counts=(200,) * 20),
    )
    return Comparison(generation=traffic.generation, champion=role, challenger=role)


def observed(world: World) -> Observed:
    seen = world.adapter.observe()
    assert seen is not None
    return seen


def ask(world: World, version: str, *, run: str = "r") -> Traffic:
    """Begin a rollout; the document is applied and in force."""
    traffic, decision = begin(world.adapter.wanted(), version, run=run, now=now())
    assert decision.action is Action.ADVANCE
    return put(world, traffic)


def put(world: World, traffic: Traffic) -> Traffic:
    world.adapter.apply(traffic)
    world.settle()
    return traffic


def turn(world: World) -> Traffic:
    """One healthy turn of a deploy task, long after the stage began; it knows what the adapter says alone."""
    traffic = world.adapter.wanted()
    evidence = Evidence(observed=world.adapter.observe(), counts=healthy(traffic))
    later = max(now(), traffic.since) + timedelta(minutes=5)
    return put(world, next_state(traffic, evidence, STEPS, later)[0])


def reach(world: World, *stages: Stage, percent: int = 0) -> Traffic:
    traffic = world.adapter.wanted()
    while (traffic.stage, traffic.percent) not in {(stage, percent) for stage in stages}:
        before, traffic = traffic, turn(world)
        assert traffic.generation > before.generation, f"{before.stage} goes no further: {observed(world)}"
    return traffic


def with_champion(world: World) -> Traffic:
    ask(world, "1", run="first")
    return reach(world, Stage.PROMOTED)


class RolloutConformance:
    """The suite; see the module."""

    @pytest.fixture
    def world(self) -> World:
        raise NotImplementedError

    def test_before_anything_is_asked_nothing_serves(self, world: World) -> None:
        assert (world.adapter.wanted().generation, world.adapter.wanted().champion) == (0, None)
        seen = world.adapter.observe()
        assert seen is None or {s.version for s in seen.slots.values()} == {None}

    def test_what_is_asked_comes_into_force_and_is_observed(self, world: World) -> None:
        began = now()
        traffic = ask(world, "1")
        assert world.adapter.wanted() == traffic
        seen = observed(world)
        assert (seen.line, seen.generation, seen.percent) == (traffic.line, traffic.generation, 0)
        assert {name: slot.version for name, slot in seen.slots.items()} == traffic.slots
        assert began - timedelta(seconds=1) <= seen.since <= now()

    def test_what_is_in_force_keeps_the_time_since_when(self, world: World) -> None:
        with_champion(world)
        first = observed(world)
        world.settle()
        assert observed(world).since == first.since
        ask(world, "2")
        assert observed(world).since >= first.since
        assert observed(world).generation > first.generation

    def test_every_stage_of_a_rollout_is_observed_as_asked(self, world: World) -> None:
        with_champion(world)
        traffic = ask(world, "2")
        percents = []
        while not traffic.at_rest:
            traffic = turn(world)
            seen = observed(world)
            percents.append(seen.percent)
            assert (seen.generation, seen.percent) == (traffic.generation, traffic.percent)
            assert {seen.slots["a"].version, seen.slots["b"].version} == {"1", "2"}
        assert percents == [0, 0, 20, 50, 0]
        assert (traffic.champion, traffic.previous) == ("2", "1")

    def test_applying_again_changes_nothing(self, world: World) -> None:
        traffic = with_champion(world)
        before = observed(world)
        put(world, traffic)
        assert (world.adapter.wanted(), observed(world).since) == (traffic, before.since)

    def test_of_two_that_follow_the_same_document_one_wins(self, world: World) -> None:
        champion = with_champion(world)
        results: dict[str, bool] = {}
        asked = {v: begin(champion, v, run=v, now=now())[0] for v in ["2", "3", "4"]}

        def apply(version: str) -> None:
            try:
                world.adapter.apply(asked[version])
                results[version] = True
            except Conflict:
                results[version] = False

        threads = [threading.Thread(target=apply, args=(version,)) for version in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results.values()) == [False, False, True]
        winner = next(v for v, won in results.items() if won)
        world.settle()
        assert world.adapter.wanted() == asked[winner]
        assert observed(world).slots[champion.challenger_slot].version == winner

    def test_a_document_that_does_not_follow_the_last_is_refused(self, world: World) -> None:
        first = with_champion(world)
        second = ask(world, "2")
        skipping = second.model_copy(update={"generation": second.generation + 2})
        for stale in [first, skipping, begin(first, "3", run="s", now=now())[0]]:
            with pytest.raises(Conflict, match="read it again"):
                world.adapter.apply(stale)
        assert world.adapter.wanted() == second

    def test_a_refused_version_says_why_and_touches_nothing(self, world: World) -> None:
        champion = with_champion(world)
        world.spoil("2", ReasonCode.PACKAGE_INVALID, "model.onnx was altered")
        traffic = ask(world, "2")
        slot = observed(world).slots[traffic.challenger_slot]
        assert slot.version is None
        assert slot.refused is not None
        assert (slot.refused.version, slot.refused.reason) == ("2", ReasonCode.PACKAGE_INVALID)
        assert "model.onnx was altered" in slot.refused.message
        assert observed(world).slots[champion.champion_slot].version == "1"
        assert turn(world).reason is ReasonCode.PACKAGE_INVALID
        assert observed(world).slots[champion.champion_slot].version == "1"

    def test_another_version_is_loaded_where_one_was_refused(self, world: World) -> None:
        with_champion(world)
        world.spoil("2", ReasonCode.PACKAGE_INVALID, "altered")
        ask(world, "2")
        turn(world)
        traffic = ask(world, "3")
        assert observed(world).slots[traffic.challenger_slot].version == "3"
        assert observed(world).slots[traffic.challenger_slot].refused is None

    @pytest.mark.parametrize(("stage", "percent"), [(Stage.SHADOW, 0), (Stage.CANARY, 20), (Stage.CANARY, 50)])
    def test_a_challenger_that_crashes_is_seen_gone_and_taken_back(
        self, world: World, stage: Stage, percent: int
    ) -> None:
        with_champion(world)
        ask(world, "2")
        traffic = reach(world, stage, percent=percent)
        world.crash(traffic.challenger_slot)
        seen = observed(world)
        assert seen.slots[traffic.challenger_slot].version is None
        assert seen.slots[traffic.champion_slot].version == "1"
        back = turn(world)
        assert (back.stage, back.reason) == (Stage.ROLLED_BACK, ReasonCode.CHALLENGER_LOST)
        assert observed(world).percent == 0

    def test_a_champion_that_crashes_comes_back(self, world: World) -> None:
        traffic = with_champion(world)
        world.crash(traffic.champion_slot)
        assert observed(world).slots[traffic.champion_slot].version is None
        world.settle()
        assert observed(world).slots[traffic.champion_slot].version == "1"

    @pytest.mark.parametrize(("stage", "percent"), [(Stage.LOADING, 0), (Stage.SHADOW, 0), (Stage.CANARY, 50)])
    def test_a_rollback_gives_the_champion_everything_and_empties_the_slot(
        self, world: World, stage: Stage, percent: int
    ) -> None:
        champion = with_champion(world)
        ask(world, "2")
        traffic = put(world, abort(reach(world, stage, percent=percent), ReasonCode.OPERATOR, "no time", now())[0])
        seen = observed(world)
        assert (seen.generation, seen.percent) == (traffic.generation, 0)
        assert seen.slots[champion.champion_slot].version == "1"
        assert seen.slots[champion.challenger_slot].version is None

    def test_an_operator_takes_a_champion_back_in_one_step(self, world: World) -> None:
        with_champion(world)
        ask(world, "2")
        promoted = reach(world, Stage.PROMOTED)
        put(world, begin(promoted, "1", run="op", now=now(), direct=True)[0])
        back = reach(world, Stage.PROMOTED)
        assert (back.champion, back.previous) == ("1", "2")
        assert observed(world).slots[back.champion_slot].version == "1"
