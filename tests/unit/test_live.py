"""Served predictions as a table, read for feedback, put into fewer files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.logged import IDENTITY, inputs_of, units_of
from tests.memory_store import MemoryStore
from tests.model_rows import small_line

from aifactory import feedback
from aifactory.scoring import predict_day
from aifactory.serving import live
from aifactory.serving.predictionlog import Limits, PredictionLog, Request, read_segment

SPEC = small_line()
NOON = 1_800_000_000_000_000


def requests_of(folder: Path, *said: dict[str, Any]) -> list[Request]:
    """Requests as they come out of the log, served a second apart."""
    log = PredictionLog.open(folder, IDENTITY, Limits(flush_s=0.001))
    for each in said:
        rows = each.get("rows", 1)
        scores = np.full(rows, each.get("score", 0.5), np.float32)
        inputs = inputs_of(rows, carrier=each.get("carrier", b"UA"))
        log.record(each.get("id", "r"), each.get("units"), inputs, scores, each.get("shadow", False))
    log.close()
    found = [r for path in sorted(folder.glob("*.segment")) for r in read_segment(path).requests]
    return [r._replace(served_at=NOON + n * 1_000_000) for n, r in enumerate(found)]


def table(folder: Path, *said: dict[str, Any], **identity: Any) -> pa.Table:
    from dataclasses import replace

    return live.table_of(SPEC, replace(IDENTITY, **identity), requests_of(folder, *said))[0]


def test_the_table_begins_as_that_of_batch_predictions(tmp_path: Path) -> None:
    made, num_unknown = live.table_of(SPEC, IDENTITY, requests_of(tmp_path, {"units": units_of([7, 8]), "rows": 2}))
    keys = {
        "carrier": pa.array(["UA"], pa.string()),
        "flight": pa.array([7]),
        "origin": pa.array(["JFK"]),
        "prediction_time": pa.array([0], pa.timestamp("us", tz="UTC")),
    }
    batch = predict_day(SPEC, SimpleNamespace(predict=lambda t: np.zeros(1, np.float32)), pa.table(keys), "7", "abc")
    assert made.schema.names[: batch.num_columns] == batch.schema.names
    for field in batch.schema:
        assert made.schema.field(field.name).type == field.type
    assert made.schema.names[batch.num_columns :] == [
        "request_id", "row", "slot", "served_at", "shadow", "dest", "hour", "distance",
    ]  # fmt: skip
    assert num_unknown == 0
    first, second = made.to_pylist()
    assert (first["flight"], second["flight"], second["row"], second["distance"]) == (7, 8, 1, 1.0)
    assert (first["dest"], first["hour"], first["model_version"], first["slot"]) == ("LAX", None, "7", "a")
    assert first["prediction_time"].isoformat() == "2013-02-01T08:00:00+00:00"


GOOD = json.loads(units_of([7]))


@pytest.mark.parametrize(
    "units",
    [
        None, "", "{", "[]", "7", "null", "[" * 100_000,
        json.dumps({k: v for k, v in GOOD.items() if k != "flight"}),
        json.dumps(GOOD | {"flight": [7, 8]}),
        json.dumps(GOOD | {"flight": 7}),
        json.dumps(GOOD | {"flight": [None]}),
        json.dumps(GOOD | {"flight": ["7"]}),
        json.dumps(GOOD | {"flight": [True]}),
        json.dumps(GOOD | {"flight": [2**63]}),
        json.dumps(GOOD | {"carrier": [3]}),
        json.dumps(GOOD | {"carrier": ["AA"]}),
        json.dumps(GOOD | {"origin": ["\ud800"]}),
        json.dumps(GOOD | {"prediction_time": ["yesterday"]}),
        json.dumps(GOOD | {"prediction_time": [0]}),
        json.dumps(GOOD | {"prediction_time": ["2013-02-01T08:00:00"]}),
        json.dumps(GOOD | {"prediction_time": ["0001-01-01T00:00:00+14:00"]}),
    ],
)  # fmt: skip
def test_units_that_say_nothing_cost_the_request_nothing(tmp_path: Path, units: str | None) -> None:
    made, num_unknown = live.table_of(SPEC, IDENTITY, requests_of(tmp_path, {"units": units}, {"units": units_of([7])}))
    assert num_unknown == 1
    bad, good = made.to_pylist()
    assert (bad["prediction_time"], bad["flight"], bad["carrier"], bad["score"]) == (None, None, "UA", 0.5)
    assert good["flight"] == 7
    assert [day for day, _ in live.days_of(SPEC, made)] == ["2013-02-01", "2027-01-15"], "that of serving"


def test_a_client_cannot_make_days_without_end(tmp_path: Path) -> None:
    days = [f"2013-{m:02d}-{d:02d}T00:00:00Z" for m in range(1, 13) for d in range(1, 29)]
    said = [{"units": units_of([n], at=day)} for n, day in enumerate(days)]
    made, num_unknown = live.table_of(SPEC, IDENTITY, requests_of(tmp_path, *said))
    assert len(list(live.days_of(SPEC, made))) <= 33
    assert num_unknown == len(days) - 32
    assert sum(part.num_rows for _, part in live.days_of(SPEC, made)) == len(days)


# --- reading
DAY = "2013-02-01"


def factory_with(**parts: pa.Table) -> Any:
    store = MemoryStore()
    for name, part in parts.items():
        store.put_table(f"{live.day_prefix(SPEC.line, DAY)}{name}.parquet", part)
    return SimpleNamespace(store=store)


def test_of_one_unit_the_first_answer_of_a_version_and_slot_counts(tmp_path: Path) -> None:
    retried = {"units": units_of([1, 2]), "rows": 2, "id": "x"}
    a = table(
        tmp_path / "a",
        retried | {"score": 0.1},
        retried | {"score": 0.2},
        {"units": units_of([1]), "score": 0.3, "id": "later"},
        {"units": None, "score": 0.4},
        {"units": units_of([1]), "score": 0.5, "shadow": True},
    )
    b = table(tmp_path / "b", {"units": units_of([1]), "score": 0.6}, slot="b", version="8")
    f = factory_with(a=a, b=b, again=a)  # a segment that was shipped twice
    read = live.live_predictions(f, SPEC, DAY)
    assert read is not None
    found = [(r["flight"], r["slot"], r["model_version"], r["shadow"], round(r["score"], 3)) for r in read.to_pylist()]
    assert sorted(found) == [
        (1, "a", "7", False, 0.1), (1, "a", "7", True, 0.5), (1, "b", "8", False, 0.6), (2, "a", "7", False, 0.1),
    ]  # fmt: skip
    assert live.live_predictions(f, SPEC, "2013-02-02") is None
    assert live.live_predictions(factory_with(a=a.slice(5, 1)), SPEC, DAY) is None, "nobody knows who that was"


# --- fewer files
def rows(f: Any) -> list[dict[str, Any]]:
    _, parts = live.read_day(f.store, live.day_prefix(SPEC.line, DAY))
    return sorted({json.dumps(r, default=str): r for part in parts for r in part.to_pylist()})


@pytest.mark.parametrize("whole", [True, False])
def test_compaction_keeps_every_row_and_can_be_cut_off_anywhere(tmp_path: Path, whole: bool) -> None:
    parts = {
        name: table(tmp_path / name, *[{"units": units_of([n]), "id": f"{name}{n}"} for n in range(3)])
        for name in ("a-1", "a-2", "b-1")
    }
    f = factory_with(**parts)
    before = rows(f)
    assert len(before) == 9
    for allowed in range(5):  # deletes that a crash leaves done
        left = [allowed]

        def delete(key: str, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            f.store.objects.pop(key)

        f.store.delete = delete
        try:
            live.compact(f.store, SPEC.line, DAY, whole=whole)
        except KeyboardInterrupt:
            assert rows(f) == before
    del f.store.delete
    live.compact(f.store, SPEC.line, DAY, whole=True)
    assert rows(f) == before
    assert len(f.store.objects) == 1
    [only] = f.store.objects
    stored = f.store.get_table(only)
    assert stored.num_rows == 9, "what a crash left twice is there once"
    assert live.compact(f.store, SPEC.line, DAY, whole=True) == 1
    assert list(f.store.objects) == [only]

    f.store.put_table(
        f"{live.day_prefix(SPEC.line, DAY)}b-2.parquet", parts["a-1"].set_column(5, "model_version", pa.repeat("9", 3))
    )
    assert live.compact(f.store, SPEC.line, DAY, whole=True) == 1
    assert len(rows(f)) == 12


def test_a_reader_outlives_a_compaction_under_it(tmp_path: Path) -> None:
    f = factory_with(
        a=table(tmp_path / "a", {"units": units_of([1])}), b=table(tmp_path / "b", {"units": units_of([2])})
    )
    listed = f.store.list

    def then_compacted(prefix: str) -> Any:
        found = listed(prefix)
        f.store.list = listed
        live.compact(f.store, SPEC.line, DAY, whole=True)
        return found

    f.store.list = then_compacted
    read = live.live_predictions(f, SPEC, DAY)
    assert read is not None
    assert read["flight"].to_pylist() == [1, 2]


# --- the metric
def test_shadow_answers_never_count_for_the_champion() -> None:
    right, wrong = [0.1, 0.9, 0.2, 0.8], [0.9, 0.1, 0.8, 0.2]
    target = [0, 1, 0, 1]
    made = pa.table(
        {
            "day": ["2013-02-03"] * 13,
            "score": pa.array([*right, *wrong, *wrong, 0.5], pa.float32()),
            "model_version": ["7"] * 4 + ["8"] * 4 + ["7"] * 5,
            "slot": ["a"] * 4 + ["b"] * 4 + ["a"] * 5,
            "shadow": [False] * 4 + [True] * 9,
            SPEC.model.target: pa.array([*target * 3, None], pa.int8()),
        }
    )
    champion, own_shadow, challenger = feedback.served_metrics(SPEC, made)
    assert (champion["model_version"], champion["slot"], champion["shadow"]) == ("7", "a", False)
    assert champion["metrics"]["roc_auc"] == 1.0
    assert (champion["num_scored"], champion["num_outcomes"]) == (4, 4)
    assert (own_shadow["num_scored"], own_shadow["num_outcomes"], own_shadow["metrics"]["roc_auc"]) == (5, 4, 0.0)
    assert (challenger["model_version"], challenger["shadow"], challenger["metrics"]["roc_auc"]) == ("8", True, 0.0)
    assert feedback.served_metrics(SPEC, made.slice(0, 0)) == []
