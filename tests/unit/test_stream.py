"""Streamed training: every row once an epoch, bounded windows, the same preparation, the same losses when resumed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint_rules import checkpoints
from tests.memory_store import MemoryStore
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of
from tests.streamed_rows import by_day, stored, stream_of

from aifactory.errors import DatasetDefect, FactoryError, InfrastructureFault, TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.recipes import check_parameters, load_recipe, stream
from aifactory.recipes.base import Moments, TrainingFrame
from aifactory.recipes.batches import Batches, StreamedBatches, order_of_days, order_of_rows
from aifactory.recipes.clock import Part, StepClock
from aifactory.recipes.stream import TrainingStream
from aifactory.recipes.tabular_mlp import TabularMlpParameters, _prepare
from aifactory.training.profile import features_profile

STREAMED = {
    "data": "stream", "window_rows": 600, "epochs": 2, "hidden": [16], "batch_rows": 256, "report_every": 1,
    "checkpoint_every": 10,
}  # fmt: skip
PIECE_ROWS = 7


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith(("read ahead", "download"))] == []


class Numbered:
    """Days of rows that are numbered through; every third row of the days in `unknown` has no outcome."""

    def __init__(self, sizes: Sequence[int], unknown: int = 0) -> None:
        self.days: Sequence[str] = [f"2026-01-{n + 1:02d}" for n in range(len(sizes))]
        self.num_given = 0
        numbers = iter(range(sum(sizes)))
        self._rows = {day: [next(numbers) for _ in range(size)] for day, size in zip(self.days, sizes, strict=True)}
        self._unknown = {n for day in self.days[:unknown] for n in self._rows[day] if n % 3 == 0}

    @property
    def known(self) -> list[int]:
        return [n for day in self.days for n in self._rows[day] if n not in self._unknown]

    def read(self, days: Sequence[str]) -> Generator[tuple[str, pa.Table], None, None]:
        for day in days:
            for begin in range(0, len(self._rows[day]), PIECE_ROWS):
                rows = self._rows[day][begin : begin + PIECE_ROWS]
                self.num_given += len(rows)
                labels = [None if n in self._unknown else n % 2 for n in rows]
                columns = {"number": pa.array(rows, pa.float32()), "late": pa.array(labels, pa.int8())}
                yield day, pa.table(columns)


def encode(rows: TrainingFrame) -> Batches:
    numbers = torch.from_numpy(rows.values("number").copy()).view(-1, 1)
    return Batches(torch.empty(rows.num_rows, 0, dtype=torch.int64), numbers, torch.from_numpy(rows.labels))


def numbered(source: Numbered, window_rows: int) -> StreamedBatches:
    rows = TrainingStream.of(source, [], ["number"], "late")
    return StreamedBatches(rows, encode, window_rows, torch.device("cpu"))


def taken(data: StreamedBatches, start: int, num_steps: int, batch_rows: int, seed: int) -> list[list[int]]:
    """The numbers of the rows of each batch."""
    with closing(data.batches(start, num_steps, batch_rows, seed)) as batches:
        return [batch.take(slice(None))[1][:, 0].int().tolist() for batch in batches]


shapes = {
    "sizes": st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 2),
    "batch_rows": st.integers(1, 30), "window_rows": st.integers(1, 90), "seed": st.integers(0, 3),
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(**shapes, unknown=st.integers(0, 8), share=st.floats(0, 1))
def test_every_row_comes_once_an_epoch_and_the_order_is_of_seed_and_step_alone(
    sizes: list[int], batch_rows: int, window_rows: int, seed: int, unknown: int, share: float
) -> None:
    source = Numbered(sizes, unknown)
    if not source.known:
        return
    data = numbered(source, window_rows)
    steps_an_epoch = -(-len(source.known) // batch_rows)
    num_steps = 2 * steps_an_epoch
    whole = taken(data, 0, num_steps, batch_rows, seed)
    assert len(whole) == num_steps
    for epoch in (whole[:steps_an_epoch], whole[steps_an_epoch:]):
        assert sorted(n for batch in epoch for n in batch) == source.known
        assert [len(batch) for batch in epoch[:-1]] == [batch_rows] * (steps_an_epoch - 1)
    start = round(share * num_steps)
    assert taken(data, start, num_steps, batch_rows, seed) == whole[start:]


@settings(deadline=None, max_examples=30)
@given(**shapes)
def test_no_more_than_this_window_and_the_next_is_read(
    sizes: list[int], batch_rows: int, window_rows: int, seed: int
) -> None:
    source = Numbered(sizes)
    data = numbered(source, window_rows)
    before, size = source.num_given, max(1, window_rows // batch_rows) * batch_rows
    seen: list[weakref.ref[Any]] = []
    learned = 0
    with closing(data.batches(0, -(-sum(sizes) // batch_rows), batch_rows, seed)) as batches:
        for batch in batches:
            held = batch.window
            assert source.num_given - before <= (learned // size + 2) * size + PIECE_ROWS
            assert held.num_rows <= size
            if not seen or seen[-1]() is not held.labels:
                seen.append(weakref.ref(held.labels))
            learned += batch.num_rows
            gc.collect(0)
            assert sum(each() is not None for each in seen) == 1, "a window that is learned is let go"
    assert learned == sum(sizes)


def test_a_streamed_batch_is_a_slice_of_its_window_in_the_order_that_was_drawn() -> None:
    source, seed = Numbered([40, 30, 20]), 3
    read = [n for day in order_of_days(list(source.days), seed, 0) for n in source._rows[day]]
    windows = [read[:48], read[48:]]
    drawn = [window[i] for n, window in enumerate(windows) for i in order_of_rows(len(window), seed, 0, n)]
    data, found = numbered(source, 50), []
    with closing(data.batches(0, 6, 16, seed)) as batches:
        for batch in batches:
            for whole, tensor in zip(batch.window.tensors, batch.take(slice(None)), strict=True):
                assert tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), "nothing is copied"
            found += batch.take(slice(5))[1][:, 0].int().tolist() + batch.take(slice(5, 16))[1][:, 0].int().tolist()
    assert found == drawn


def test_epochs_windows_and_seeds_differ() -> None:
    days = [f"day {n}" for n in range(20)]
    orders = {tuple(order_of_days(days, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == sorted(days) for order in orders)
    rows = {tuple(order_of_rows(50, *which)) for which in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))}
    assert len(rows) == 4
    assert order_of_rows(50, 1, 2, 3).tolist() == order_of_rows(50, 1, 2, 3).tolist()


@given(
    values=st.lists(
        st.tuples(*[st.one_of(st.just(float("nan")), st.floats(-1e3, 1e3, width=32))] * 2), min_size=1, max_size=60
    ),
    cut=st.integers(0, 60),
)
def test_moments_of_parts_are_those_of_the_whole(values: list[tuple[float, float]], cut: int) -> None:
    rows = np.array(values, dtype=np.float32)
    joined, whole = Moments.of(rows[:cut]).joined(Moments.of(rows[cut:])), Moments.of(rows)
    assert joined.count.tolist() == whole.count.tolist()
    assert joined.mean == pytest.approx(whole.mean, abs=1e-9)
    assert joined.std == pytest.approx(whole.std, abs=1e-6)


@pytest.fixture(scope="module")
def rows() -> TrainingFrame:
    return TrainingFrame.of(days_of("2013-01-01", "2013-01-25"), CATEGORICAL, NUMERIC, TARGET)


def test_what_one_pass_knows_is_what_is_known_in_memory(rows: TrainingFrame) -> None:
    streamed = stream_of(rows, day_rows=300)
    params = TabularMlpParameters()
    ours, theirs = (_prepare(each, params, None) for each in (streamed, rows))
    assert ours.vocabularies == theirs.vocabularies
    assert ours.mean == pytest.approx(theirs.mean, rel=1e-6)
    assert ours.std == pytest.approx(theirs.std, rel=1e-6)
    assert (streamed.num_rows, streamed.labels_sha256) == (rows.num_rows, rows.labels_sha256)
    profile, expected = features_profile(streamed), features_profile(rows)
    assert profile.pop("base_rate") == pytest.approx(expected.pop("base_rate"))
    assert profile == expected, "all rows are in the sample"


def test_the_profile_of_more_rows_than_are_sampled(monkeypatch: pytest.MonkeyPatch, rows: TrainingFrame) -> None:
    monkeypatch.setattr(stream, "SAMPLE_ROWS", 2000)
    streamed = stream_of(rows, day_rows=300)
    assert streamed.values("hour").shape == (2000,)
    assert rows.num_rows > 3 * 2000
    profile, expected = features_profile(streamed), features_profile(rows)
    assert profile["num_rows"] == rows.num_rows
    assert profile["categorical"] == expected["categorical"]
    for name, exact in expected["numeric"].items():
        values = np.sort(rows.values(name)[~np.isnan(rows.values(name))])
        for level, quantile in zip(np.linspace(0, 1, 201), profile["numeric"][name]["quantiles"], strict=True):
            low, high = (np.searchsorted(values, quantile, side) / len(values) for side in ("left", "right"))
            assert low - 0.05 <= level <= high + 0.05
        assert profile["numeric"][name]["missing_share"] == pytest.approx(exact["missing_share"], abs=0.02)


def test_days_without_outcomes_are_a_defect() -> None:
    with pytest.raises(TrainingDefect, match="no row of 1 days has a known late"):
        TrainingStream.of(Numbered([1], unknown=1), [], ["number"], "late")


def fit(rows: Any, **given: Any) -> Any:
    params = check_parameters("tabular_mlp", STREAMED | given.pop("change", {}))
    return load_recipe("tabular_mlp").fit(rows, params, seed=7, threads=1, **given)


def test_it_is_a_recipe_parameter_and_trees_have_none() -> None:
    assert check_parameters("tabular_mlp", {"data": "stream"}).streams
    assert not check_parameters("tabular_mlp", {}).streams
    assert not check_parameters("gradient_boosting", {}).streams
    with pytest.raises(FactoryError, match="data"):
        check_parameters("gradient_boosting", {"data": "stream"})


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("broken_at", [1, 12, 33])
def test_a_resumed_training_gives_the_same_loss_curve(rows: TrainingFrame, broken_at: int) -> None:
    streamed, store = stream_of(rows, day_rows=300), MemoryStore()
    whole: dict[int, float] = {}
    pieces: dict[int, float] = {}
    steps: list[int] = []
    uninterrupted = fit(streamed, progress=lambda step, _, values: whole.setdefault(step, values["train_loss"]))

    def note(step: int, _: int, values: Any) -> None:
        if step == broken_at and not steps:
            raise Interrupted
        pieces[step] = values["train_loss"]

    place = checkpoints(store)
    place.due = lambda step, every: step % every == 0  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        fit(streamed, progress=note, checkpoints=place)
    assert place.flush(10)
    steps.append(max(pieces, default=0))
    resumed = fit(streamed, progress=note, checkpoints=checkpoints(store))
    assert len(whole) > 33
    assert pieces == whole
    assert resumed.to_safetensors() == uninterrupted.to_safetensors()


def test_the_loop_waits_in_data_wait(rows: TrainingFrame) -> None:
    clock = StepClock()
    streamed = stream_of(replace(rows, table=rows.table.slice(0, 900)), day_rows=300)
    read, waited = streamed.source.read, []

    def slow(days: Sequence[str]) -> Generator[tuple[str, pa.Table], None, None]:
        for day, table in read(days):
            until = time.monotonic() + 30
            while clock._part is not Part.DATA_WAIT and time.monotonic() < until and not waited:
                time.sleep(0.001)
            waited.append(clock._part)
            yield day, table

    streamed.source.read = slow  # type: ignore[method-assign]
    fit(streamed, clock=clock)
    assert waited[0] is Part.DATA_WAIT
    assert clock.read().seconds()["data_wait"] > 0


def test_a_store_that_goes_away_is_the_fault_that_the_loop_raises(rows: TrainingFrame) -> None:
    store = MemoryStore()
    streamed = stream_of(rows, 300, store)

    def leave(step: int, _: int, __: Any) -> None:
        store.away = True

    with pytest.raises(InfrastructureFault, match="the store is away") as caught:
        fit(streamed, progress=leave)
    assert caught.value.reason is ReasonCode.STORE_UNREACHABLE


def test_altered_content_is_the_defect_that_the_loop_raises(rows: TrainingFrame) -> None:
    store = MemoryStore()
    streamed = stream_of(rows, 300, store)
    for key in list(store.objects):
        store.objects[key] = store.objects[key][:-1] + b"x"
    with pytest.raises(DatasetDefect, match="does not match its hash"):
        fit(streamed)


def test_an_interrupt_leaves_no_thread(rows: TrainingFrame) -> None:
    def interrupt(step: int, _: int, __: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(stream_of(rows, 300), progress=interrupt)


def test_a_stream_gives_the_rows_that_a_reading_gives() -> None:
    table = pa.table({"a": pa.array(range(40_000), pa.int32()), "b": pa.array([None, "x"] * 20_000)})
    days = by_day(table, 17_000)
    first, *_ = days
    days[first] = days[first].drop_columns(["b"])
    repository, content = stored(MemoryStore(), days)
    source = repository.stream_content(content, list(days), ["b", "a"])
    pieces = list(source.read(source.days))
    assert len(pieces) > len(days), "a large day comes in pieces"
    assert pa.concat_tables([piece for _, piece in pieces], promote_options="default").equals(
        repository.read_content(content, None, ["b", "a"])
    )
    backwards = [day for day, _ in source.read(source.days[::-1])]
    assert backwards == sorted(backwards, reverse=True)


def test_a_stream_refuses_what_a_reading_refuses() -> None:
    number, word = pa.table({"a": pa.array([1], pa.int32())}), pa.table({"a": ["x"]})
    repository, content = stored(MemoryStore(), {"2026-01-01": number, "2026-01-02": word})
    with pytest.raises(DatasetDefect) as caught:
        list(repository.stream_content(content, ["2026-01-01", "2026-01-02"], ["a"]).read(["2026-01-01", "2026-01-02"]))
    assert caught.value.reason is ReasonCode.COLUMN_TYPE
    with pytest.raises(DatasetDefect, match="has no column z"):
        list(repository.stream_content(content, ["2026-01-01"], ["z"]).read(["2026-01-01"]))
    with pytest.raises(DatasetDefect, match="has no partition 2026-01-09"):
        repository.stream_content(content, ["2026-01-09"], ["a"])
