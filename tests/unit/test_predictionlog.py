"""The prediction log's writer: what is recorded is spooled, dropped, lost or on its way, and nothing waits for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.logged import IDENTITY, QUICK, inputs_of, record

from aifactory.serving import predictionlog
from aifactory.serving.predictionlog import Counts, Limits, PredictionLog, Segment, read_counts, read_segment, recover
from aifactory.settings import REPOSITORY

STILL = Limits(flush_s=0.001, rotate_s=3600)


def segments(folder: Path) -> list[Segment]:
    return [read_segment(path) for path in sorted(folder.glob("*.segment"))]


def whole(folder: Path) -> bool:
    """Whether closed segments end where their last record does."""
    return all(read_segment(path).size == path.stat().st_size for path in folder.glob("*.segment"))


def wait_spooled(log: PredictionLog) -> None:
    deadline = time.monotonic() + 20
    while log.counts.queued:
        assert time.monotonic() < deadline, log.counts
        time.sleep(0.002)


def balanced(counts: Counts) -> bool:
    return counts.queued == 0 and counts.recorded == counts.spooled + sum(counts.dropped.values()) + counts.lost


def test_what_was_recorded_is_read_again_as_it_was(tmp_path: Path) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, STILL)
    record(log, 10, rows=2, request_id="früh", shadow=True)
    log.record("", None, inputs_of(1, 5, carrier="Ü"), np.array([0.5], np.float32), False)
    log.close()
    [found] = segments(tmp_path)
    first, second = found.requests
    assert found.identity == IDENTITY
    assert (first.request_id, first.shadow, first.rows) == ("früh", True, 2)
    assert '"flight": [10, 11]' in (first.units or "")
    assert first.texts == [[b"UA", b"UA"], [b"JFK", b"JFK"], [b"LAX", b"LAX"]]
    np.testing.assert_array_equal(np.frombuffer(first.scores, np.float32), np.array([1e-5, 1.1e-5], np.float32))
    numbers = np.frombuffer(first.numbers, np.float32).reshape(2, 2)
    assert np.isnan(numbers[0]).all()
    assert numbers[1].tolist() == [10, 11]
    assert (second.request_id, second.units, second.texts[0]) == ("", None, ["Ü".encode()])
    assert abs(first.served_at / 1e6 - time.time()) < 60
    assert log.counts == Counts(3, 3, dict.fromkeys(log.counts.dropped, 0), 0, 0, ended=True)


def test_segments_are_closed_by_age_and_by_size(tmp_path: Path) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, Limits(flush_s=0.005, rotate_s=0.05))
    record(log, 0)
    deadline = time.monotonic() + 20
    while not segments(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.close()
    small = PredictionLog.open(tmp_path / "b", IDENTITY, Limits(flush_s=0.001, rotate_s=3600, rotate_bytes=1000))
    for n in range(50):
        record(small, n)
        wait_spooled(small)
    small.close()
    assert len(segments(tmp_path / "b")) > 5
    assert [r.request_id for s in segments(tmp_path / "b") for r in s.requests] == [f"r{n}" for n in range(50)]


@pytest.fixture(scope="module")
def spooled() -> bytes:
    """A segment of twenty requests of two rows."""
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog.open(Path(folder), IDENTITY, STILL)
        for n in range(0, 40, 2):
            record(log, n, rows=2)
        log.close()
        [path] = Path(folder).glob("*.segment")
        return path.read_bytes()


def frame_ends(data: bytes) -> list[int]:
    return [end for _, end in predictionlog._frames(data)]


@given(share=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_a_cut_loses_at_most_the_cut_record(spooled: bytes, share: float) -> None:
    size = round(share * len(spooled))
    ends = [end for end in frame_ends(spooled) if end <= size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dead = folder / "flight_delay.1-2"
        slots = array("Q", [0] * 512)
        slots[predictionlog._RECORDED] = 40
        dead.with_suffix(".1-2.counts").write_bytes(slots.tobytes())
        dead.with_suffix(".1-2-000001.open").write_bytes(spooled[:size])
        assert recover(folder) == 1
        counts = read_counts(dead.with_suffix(".1-2.counts"))
        rows = 2 * max(len(ends) - 1, 0)  # the first frame is the identity
        assert (counts.spooled, counts.lost, counts.ended) == (rows, 40 - rows, True)
        assert counts.cut == (size > max(ends, default=0))
        assert balanced(counts)
        assert sum(s.rows for s in segments(folder)) == rows
        assert whole(folder)
        assert not list(folder.glob("*.open"))
        assert recover(folder) == 0, "once"


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=60)
def test_an_altered_byte_is_never_read_as_a_request(spooled: bytes, place: int, flip: int) -> None:
    altered = bytearray(spooled)
    altered[place % len(spooled)] ^= flip
    before = sum(end <= place % len(spooled) for end in frame_ends(spooled))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.segment"
        path.write_bytes(altered)
        assert len(read_segment(path).requests) == max(before - 1, 0)


def test_a_full_queue_drops_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, reached = threading.Event(), threading.Event()
    write = os.write

    def stuck(descriptor: int, data: bytes) -> int:  # a disk that does not answer
        reached.set()
        held.wait(60)
        return write(descriptor, data)

    log = PredictionLog.open(tmp_path, IDENTITY, Limits(flush_s=0.001, rotate_s=3600, max_queued_bytes=100_000))
    monkeypatch.setattr(predictionlog.os, "write", stuck)
    record(log, 0)
    assert reached.wait(20)
    taken = []
    for n in range(1, 2000):
        began = time.perf_counter()
        record(log, n)
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[len(taken) * 99 // 100] < 0.01, "while the thread stands still"
    assert log.counts.dropped["queue_full"] > 1000
    assert log.counts.recorded == 2000
    held.set()
    log.close()
    assert balanced(log.counts)
    assert sum(s.rows for s in segments(tmp_path)) == log.counts.spooled > 10


def test_what_cannot_be_logged_is_counted_and_never_raises(tmp_path: Path) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, STILL)
    two = np.zeros(2, np.float32)
    log.record("x", None, {}, two, False)
    log.record("x", None, inputs_of(1), two, False)
    log.record("x", None, inputs_of(2) | {"hour": np.zeros((2, 1))}, two, False)
    log.record("x", None, inputs_of(2), two.astype(np.float64), False)
    log.record("x", None, inputs_of(0), np.zeros(0, np.float32), False)
    log.record("x", None, inputs_of(1, carrier=3), np.zeros(1, np.float32), False)
    log.record("x", None, inputs_of(1), None, False)  # type: ignore[arg-type]
    record(log, 1, units_json=7)
    wait_spooled(log)
    assert (log.counts.dropped["malformed"], log.counts.spooled, log.counts.recorded) == (10, 1, 11)
    log.close()
    record(log, 2)
    assert log.counts.dropped["closed"] == 1
    assert balanced(log.counts)


def test_a_disk_that_refuses_costs_rows_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, STILL)
    record(log, 0)
    wait_spooled(log)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:20])

    monkeypatch.setattr(predictionlog.os, "write", full)
    record(log, 1, rows=3)
    wait_spooled(log)
    monkeypatch.undo()
    record(log, 4)
    log.close()
    assert log.counts.dropped["disk"] == 3
    assert [r.request_id for s in segments(tmp_path) for r in s.requests] == ["r0", "r4"]
    assert whole(tmp_path), "what counts as dropped is not in the file either"
    assert balanced(log.counts)


def test_a_full_spool_is_left_as_it_is(tmp_path: Path) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, Limits(flush_s=0.001, rotate_s=0, max_spool_bytes=20_000))
    for n in range(60):
        record(log, n, rows=10)
        wait_spooled(log)
    log.close()
    assert log.counts.dropped["spool_full"] > 0
    assert balanced(log.counts)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 30_000


def test_many_threads_lose_no_count(tmp_path: Path) -> None:
    log = PredictionLog.open(tmp_path, IDENTITY, QUICK)
    threads = [threading.Thread(target=lambda k=k: [record(log, 1000 * k + n) for n in range(300)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert (log.counts.recorded, log.counts.spooled) == (1200, 1200)
    assert len({r.request_id for s in segments(tmp_path) for r in s.requests}) == 1200


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    one = PredictionLog.open(tmp_path, IDENTITY, STILL)
    record(one, 1)
    wait_spooled(one)
    other = PredictionLog.open(tmp_path, IDENTITY, STILL)
    assert len(list(tmp_path.glob("*.open"))) == 1
    for log in (one, other):
        log.close()
    assert one.counts.spooled == 1


def test_after_a_kill_in_the_middle_of_traffic_every_row_is_accounted_for(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.logged", str(tmp_path)],
            stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": "include:."},
        )  # fmt: skip
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(40)][-1]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        before = len(list(tmp_path.glob("*.segment")))
        assert recover(tmp_path) == 1
        [path] = tmp_path.glob("*.counts")
        counts = read_counts(path)
        on_disk = [r for s in segments(tmp_path) for r in s.requests]
        assert len(list(tmp_path.glob("*.segment"))) - before in {0, 1}
        assert balanced(counts)
        assert counts.spooled == sum(r.rows for r in on_disk) >= told > 0
        assert [int(r.request_id[1:]) for r in on_disk] == list(range(0, counts.spooled, 3)), "whole, in order"
        assert counts.recorded - counts.spooled == counts.lost
        for file in tmp_path.iterdir():
            file.unlink()


def test_the_writer_is_one_file_of_the_standard_library() -> None:
    source = Path(predictionlog.__file__).read_text().split("if TYPE_CHECKING:")[0]
    modules = {m.split(".")[0] for m in re.findall(r"^(?:from|import) ([\w.]+)", source, re.MULTILINE)}
    assert modules - {"__future__"} <= sys.stdlib_module_names


def test_a_copy_beside_a_backend_needs_nothing_of_the_factory(tmp_path: Path) -> None:
    shutil.copy(predictionlog.__file__, tmp_path / "predictionlog.py")
    program = """
import sys; sys.path.insert(0, sys.argv[1])
import pathlib, numpy, predictionlog
log = predictionlog.PredictionLog.open(
    pathlib.Path(sys.argv[1], "spool"), predictionlog.Identity("l", "1", "r", "a", (), ("x",))
)
log.record("id", None, {"x": numpy.ones((1, 1), "float32")}, numpy.ones(1, "float32"), False)
log.close()
assert not [name for name in sys.modules if name.startswith("aifactory")]
"""
    subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], check=True)
    assert [s.rows for s in segments(tmp_path / "spool")] == [1]
