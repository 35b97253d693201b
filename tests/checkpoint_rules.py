"""What checkpoints promise, whatever the store: run against a bucket in memory and against the real one."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from aifactory.training.checkpoints import KEPT, StoreCheckpoints
from aifactory.training.stop import StopSignal

PREFIX = "candidates/line/order/challenger"


def checkpoints(store: Any) -> StoreCheckpoints:
    return StoreCheckpoints(store, PREFIX, StopSignal())


def keep(store: Any, *steps: int) -> None:
    place = checkpoints(store)
    for step in steps:
        place.save(step, lambda step=step: f"content {step}".encode() * 10)
        assert place.flush(20)


def found(store: Any) -> list[tuple[int, bytes]]:
    return list(checkpoints(store).candidates())


def contents(store: Any) -> list[str]:
    return [o.key for o in store.list(f"{PREFIX}.checkpoints/") if o.key.endswith(".safetensors")]


class CheckpointRules:
    """Mixed into a test class that has a fixture `store`."""

    def test_the_newest_comes_first_and_old_ones_are_removed(self, store: Any):
        keep(store, 10, 20, 30, 40)
        assert [step for step, _ in found(store)] == [40, 30]
        assert len(store.list(f"{PREFIX}.checkpoints/")) == 2 * KEPT

    def test_a_torn_one_is_passed_over(self, store: Any, caplog: pytest.LogCaptureFixture):
        keep(store, 10, 20)
        newest = contents(store)[-1]
        store.put(newest, store.get(newest)[:-7])
        with caplog.at_level(logging.WARNING):
            assert found(store) == [(10, b"content 10" * 10)]
        assert "bytes of" in caplog.text

    def test_a_tampered_one_is_passed_over(self, store: Any, caplog: pytest.LogCaptureFixture):
        keep(store, 10, 20)
        newest = contents(store)[-1]
        store.put(newest, store.get(newest).replace(b"2", b"3", 1))
        with caplog.at_level(logging.WARNING):
            assert found(store) == [(10, b"content 10" * 10)]
        assert "not the content that was written" in caplog.text

    def test_one_whose_content_is_gone_is_passed_over(self, store: Any):
        keep(store, 10, 20)
        store.delete(contents(store)[-1])
        assert [step for step, _ in found(store)] == [10]

    def test_a_note_that_is_none_is_passed_over(self, store: Any):
        keep(store, 10)
        store.put(f"{PREFIX}.checkpoints/0000000099.json", b"{half a no")
        store.put_json(f"{PREFIX}.checkpoints/0000000098.json", {"step": 98})
        assert [step for step, _ in found(store)] == [10]

    def test_a_crash_between_content_and_note_leaves_the_one_before(self, store: Any):
        keep(store, 10)
        store.put(f"{PREFIX}.checkpoints/0000000020-0000000000000000.safetensors", b"content without a note")
        assert [step for step, _ in found(store)] == [10]

    def test_the_same_step_written_again_differently_is_whole_at_every_moment(self, store: Any):
        keep(store, 10)
        again = checkpoints(store)
        again.save(10, lambda: b"another content")
        assert again.flush(20)
        assert found(store) == [(10, b"another content")]

    def test_after_damaged_ones_an_earlier_step_is_kept_and_they_are_removed(self, store: Any):
        keep(store, 900, 920)
        for key in contents(store):
            store.put(key, b"torn")
        assert found(store) == []
        keep(store, 20, 40)
        assert [step for step, _ in found(store)] == [40, 20]
        assert len(store.list(f"{PREFIX}.checkpoints/")) == 2 * KEPT

    def test_none_is_left_of_a_training_that_is_over(self, store: Any):
        keep(store, 10, 20)
        checkpoints(store).clear()
        assert store.list(f"{PREFIX}.checkpoints/") == []
        assert found(store) == []
