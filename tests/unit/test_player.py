"""The traffic player's times and counts, and the file it is given. What it sends is tested against the real gateway."""

from __future__ import annotations

import itertools
import json
import math
import random
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifactory.line import find_line
from aifactory.serving.live import _said, key_types
from aifactory.serving.requestfile import request_table
from aifactory.settings import REPOSITORY
from outside.arrivals import DAY_S, arrivals, grouped, offsets, read_rows, spread, whole_days
from outside.tally import MAX_SECONDS, WIDTH, Latencies, Tally
from outside.traffic import main

TIMES = st.lists(st.integers(0, 10 * 86_400), min_size=1, max_size=60).map(lambda t: np.array(sorted(t), float) + 1.6e9)
LINE = find_line(REPOSITORY / "include" / "lines", "flight_delay")


# --- when


@settings(deadline=None)
@given(TIMES, st.floats(0.01, 1e6))
def test_gaps_are_those_of_life_at_the_speed(times: np.ndarray, speed: float) -> None:
    due, round_s = offsets(times, speed)
    assert due[0] == 0
    assert np.allclose(np.diff(due) * speed, np.diff(times), atol=1e-3)
    assert due[-1] < round_s, "a round ends before the next begins"
    assert round_s * speed / DAY_S == pytest.approx(whole_days(times))


@settings(deadline=None)
@given(TIMES, st.floats(0, 3600), st.integers())
def test_nobody_asks_before_the_time_nor_out_of_turn(times: np.ndarray, resolution_s: float, seed: int) -> None:
    moved = spread(times, resolution_s, random.Random(seed))
    assert (moved >= times).all()
    assert (moved <= times + resolution_s).all()
    assert (np.diff(moved) >= 0).all()


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(2, 20), st.integers())
def test_every_row_is_in_one_request(num_rows: int, share: float, most: int, seed: int) -> None:
    found = grouped(num_rows, share, most, random.Random(seed))
    assert [row for asked in found for row in asked] == list(range(num_rows))
    assert all(1 <= len(asked) <= most for asked in found)
    if share == 0:
        assert len(found) == num_rows


def test_rounds_follow_each_other() -> None:
    due = np.array([0.0, 1.0])
    assert list(arrivals(due, 3.0, loop=False)) == [(0.0, 0), (1.0, 1)]
    looped = itertools.islice(arrivals(due, 3.0, loop=True), 5)
    assert list(looped) == [(0.0, 0), (1.0, 1), (3.0, 0), (4.0, 1), (6.0, 0)]


# --- counts


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_never_too_low_and_hardly_too_high(durations: list[float], share: float) -> None:
    latencies = Latencies()
    for duration in durations:
        latencies.add(duration)
    exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
    assert exact * (1 - 1e-9) <= latencies.quantile(share) <= exact * WIDTH * (1 + 1e-9)
    assert latencies.quantile(1.0) == max(durations)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["answered", "failed", "open", "shed"]), st.integers(0, 3)), max_size=80))
def test_nothing_that_was_due_is_lost_from_the_counts(fates: list[tuple[str, int]]) -> None:
    tally = Tally()
    for fate, second in fates:
        if fate == "shed":
            tally.count_shed()
            continue
        tally.count_sent("rest", second, 2, 0.0)
        if fate == "answered":
            tally.count_answered("rest", second, "7", 0.01)
        elif fate == "failed":
            tally.count_failed("rest", second, "503", "no")
    said = tally.as_json()
    assert said["due"] == len(fates)
    assert said["sent"] + said["shed"] == said["due"]
    assert said["answered"] + said["failed"] + said["outstanding"] == said["sent"]
    for name in ("sent", "answered", "failed"):
        assert sum(each[name] for each in said["seconds"]) == said[name]
    assert sum(each["count"] for each in said["failures"].values()) == said["failed"]
    assert sum(each["answered"] for each in said["by_version"].values()) == said["answered"]
    assert said["rows"] == 2 * said["sent"]


def test_failures_by_kind_with_the_first_messages() -> None:
    tally = Tally()
    for number in range(9):
        tally.count_sent("grpc", 0, 1, 0.2 if number else 0.0)
        tally.count_failed("grpc", 0, "UNAVAILABLE", f"message {number}" + "x" * 1000)
    found = tally.as_json()
    assert list(found["failures"]) == ["grpc UNAVAILABLE"]
    assert found["failures"]["grpc UNAVAILABLE"]["count"] == 9
    assert [m[:9] for m in found["failures"]["grpc UNAVAILABLE"]["first"]] == ["message 0", "message 1", "message 2"]
    assert (found["late"], found["max_late_ms"]) == (8, 200.0)


def test_long_runs_keep_the_newest_seconds_alone() -> None:
    tally = Tally()
    for second in range(MAX_SECONDS + 10):
        tally.count_sent("rest", second, 1, 0.0)
    tally.count_answered("rest", 3, "1", 0.1)
    tally.count_sent("rest", MAX_SECONDS + 10, 1, 0.0)
    found = tally.as_json()
    assert [found["seconds"][0]["second"], found["seconds"][-1]["second"]] == [11, MAX_SECONDS + 10]
    assert (found["sent"], found["answered"]) == (MAX_SECONDS + 11, 1)


# --- what


def units() -> pa.Table:
    """Two units of the flight delay line, the later one first, with a missing string and a missing number."""
    at = [datetime(2026, 3, 2, 12, 30, tzinfo=UTC), datetime(2026, 3, 2, 9, 0, tzinfo=UTC)]
    columns = {
        "carrier": pa.array(["UA", "B6"]),
        "flight": pa.array([15, 2**40]),
        "origin": pa.array(["EWR", "JFK"]),
        "dest": pa.array([None, "BOS"]),
        "scheduled_departure": pa.array(at, pa.timestamp("us", tz="UTC")),
        "prediction_time": pa.array(at, pa.timestamp("us", tz="UTC")),
        "delayed": pa.array([1, 0]),
    }
    columns |= {name: pa.array([1.5, None]) for name in LINE.model.numeric}
    return pa.table(columns)


def test_the_file_says_all_that_a_client_needs_and_nothing_more(tmp_path: Path) -> None:
    table = request_table(LINE, units())
    assert "delayed" not in table.column_names, "a client does not know what became of it"
    pq.write_table(table, tmp_path / "f.parquet")
    rows = read_rows(tmp_path / "f.parquet")
    assert rows.times.tolist() == [1772442000.0, 1772454600.0], "oldest first"
    assert set(rows.strings) | set(rows.floats) == set(LINE.model.features)
    assert rows.strings["dest"].tolist() == [b"BOS", b""]
    assert np.isnan(rows.floats["temp"][0])
    assert rows.floats["temp"][1] == np.float32(1.5)
    logged = _said(json.dumps(rows.units), key_types(LINE), 2)
    assert logged is not None, "the prediction log knows who was scored"
    assert logged["prediction_time"] == [
        datetime(2026, 3, 2, hour, minute, tzinfo=UTC) for hour, minute in ((9, 0), (12, 30))
    ]
    assert rows.units["flight"] == [2**40, 15]
    assert rows.entities[1] == "UA-15-EWR-2026-03-02T12:30:00+00:00"
    assert all(entity.isascii() and entity.isprintable() for entity in rows.entities)


def test_dates_are_told_apart_from_instants(tmp_path: Path) -> None:
    said = {"unit": ["day", "at"], "prediction_time": "at", "strings": [], "floats": []}
    at = pa.array([datetime(2026, 3, 2, tzinfo=UTC)], pa.timestamp("ms", tz="UTC"))
    table = pa.table({"day": pa.array([date(2026, 3, 2)]), "at": at})
    pq.write_table(table.replace_schema_metadata({"requests": json.dumps(said)}), tmp_path / "f.parquet")
    assert read_rows(tmp_path / "f.parquet").units == {"day": ["2026-03-02"], "at": ["2026-03-02T00:00:00+00:00"]}


@pytest.mark.parametrize("wrong", ["no parquet", "no metadata", "no rows", "a column is missing", "null"])
def test_a_wrong_file_is_refused_with_what_is_wrong(
    tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table = tmp_path / "f.parquet", request_table(LINE, units())
    if wrong == "no metadata":
        table = table.replace_schema_metadata(None)
    elif wrong == "no rows":
        table = table.slice(0, 0)
    elif wrong == "a column is missing":
        table = table.drop_columns(["origin"])
    elif wrong == "null":
        at = table.column_names.index("dest")
        table = table.set_column(at, "dest", pa.array([None, "BOS"]))
    pq.write_table(table, path)
    if wrong == "no parquet":
        path.write_text("carrier,flight\n")
    with pytest.raises(SystemExit) as ended:
        main(["play", "--file", str(path), "--url", "127.0.0.1:1", "--line", "flight_delay"])
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--speed", "0"], ["--speed", "nan"], ["--lasts", "-1"], ["--grpc-share", "1.1"], ["--batch-rows", "1"],
                ["--speed", "2", "--lasts", "3"], ["--outstanding", "0"], ["--report", "/nowhere/at/all.json"]],
)  # fmt: skip
def test_wrong_options_are_refused(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(request_table(LINE, units()), tmp_path / "f.parquet")
    with pytest.raises(SystemExit) as ended:
        main(["play", "--file", str(tmp_path / "f.parquet"), "--url", "127.0.0.1:1", "--line", "x", *options])
    assert ended.value.code == 2
    assert options[-2] in capsys.readouterr().err.splitlines()[-1]
