"""Checkpoints: what is kept and taken up, that the loop does not wait for it, and what SIGTERM does."""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

import pytest
from tests.checkpoint_rules import CheckpointRules, checkpoints, contents, found, keep
from tests.memory_store import MemoryStore

from aifactory.errors import InfrastructureFault
from aifactory.reasons import ReasonCode
from aifactory.recipes.base import Stopped
from aifactory.training.checkpoints import COST_SHARE, StoreCheckpoints
from aifactory.training.stop import StopSignal


@pytest.fixture
def store() -> Any:
    return MemoryStore()


class TestInMemory(CheckpointRules):
    pass


def test_the_loop_does_not_wait_and_the_newest_of_those_that_wait_is_written(store: Any):
    store.put_s = 0.2
    place = checkpoints(store)
    began = time.perf_counter()
    for step in range(1, 51):
        place.save(step, lambda step=step: str(step).encode())
    assert time.perf_counter() - began < 0.15
    assert place.flush(10)
    assert found(store)[0] == (50, b"50")
    assert len(store.objects) <= 4, "most of the fifty were replaced before they were written"


def test_a_store_that_is_away_costs_a_checkpoint_and_not_the_training(store: Any, caplog: pytest.LogCaptureFixture):
    store.away = True
    with caplog.at_level(logging.WARNING):
        keep(store, 10)
    assert "the next one is tried" in caplog.text
    store.away = False
    keep(store, 20)
    assert [step for step, _ in found(store)] == [20]


def test_a_store_that_is_away_when_a_training_is_resumed_is_a_fault_and_no_start_anew(store: Any):
    keep(store, 10, 20)
    store.away = True
    with pytest.raises(InfrastructureFault):
        found(store)


def test_one_object_that_the_store_cannot_give_costs_one_interval(store: Any):
    keep(store, 10, 20)
    get, [_, newest] = store.get, contents(store)

    def get_but_one(key: str) -> bytes:
        if key == newest:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "its volume is broken")
        return bytes(get(key))

    store.get = get_but_one
    step, content = next(checkpoints(store).candidates())
    assert (step, content) == (10, b"content 10" * 10)


def test_what_cannot_be_removed_does_not_fail_a_training_that_is_over(store: Any, caplog: pytest.LogCaptureFixture):
    keep(store, 10)

    def refuse(_: str) -> None:
        raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "away")

    store.delete = refuse
    with caplog.at_level(logging.WARNING):
        checkpoints(store).clear()
    assert "are left under" in caplog.text


def test_content_that_cannot_be_made_costs_a_checkpoint_too(store: Any):
    place = checkpoints(store)
    place.save(10, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert place.flush(10)
    keep(store, 20)
    assert [step for step, _ in found(store)] == [20]


def test_it_is_due_by_steps_but_never_takes_more_than_its_share(store: Any):
    place = checkpoints(store)
    assert not place.due(99, 100)
    assert place.due(100, 100)
    place.save(100, lambda: b"x", snapshot_s=0.1)
    assert place.flush(10)
    assert not place.due(10_000, 100), "it cost 0.1 s: the next is not before 5 s are over"
    place._saved_at -= 0.11 / COST_SHARE
    assert place.due(10_000, 100)
    assert not place.due(110, 100)


def test_a_slow_store_costs_the_loop_nothing_and_does_not_put_off_the_next(store: Any):
    place = checkpoints(store)
    store.put_s = 0.5
    place.save(100, lambda: b"x")
    assert place.flush(10)
    place._saved_at -= 5
    assert place.due(200, 100)


def test_it_is_due_after_a_minute_however_few_the_steps(store: Any):
    place = checkpoints(store)
    place._saved_at -= 61
    assert place.due(1, 10_000)


def test_sigterm_ends_the_program_at_once_but_for_a_loop_that_looks():
    stop = StopSignal()
    with pytest.raises(Stopped) as caught:
        stop._on_signal(signal.SIGTERM, None)
    assert caught.value.code == 143
    with stop.attended():
        stop._on_signal(signal.SIGTERM, None)
        stop._on_signal(signal.SIGTERM, None)
        assert stop.requested, "signals of one moment are one: a checkpoint is not lost to the second"
        stop._asked_at -= 10
        with pytest.raises(Stopped):
            stop._on_signal(signal.SIGTERM, None)


def test_a_loop_hears_of_it_through_its_checkpoints(store: Any):
    stop = StopSignal()
    place = StoreCheckpoints(store, "p", stop)
    with place.attended():
        assert not place.stopping
        stop._on_signal(signal.SIGTERM, None)
        assert place.stopping
