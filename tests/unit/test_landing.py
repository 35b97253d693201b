"""What is made of a landed table's columns."""

from __future__ import annotations

import pyarrow as pa
import pytest

from aifactory.errors import LandingDefect
from aifactory.landing import conform
from aifactory.line import SourceTable
from aifactory.reasons import ReasonCode

SOURCE = SourceTable(
    key=["id"],
    event_time="at",
    columns={"id": "int", "at": "timestamp", "name": "string", "value": "float", "ok": "bool", "day": "date"},
    nullable=["value"],
)
AT = pa.array([0, 60_000], pa.timestamp("ms", tz="Europe/Berlin"))


def table(**changed: pa.Array) -> pa.Table:
    columns = {
        "id": pa.array([1, 2], pa.int32()),
        "at": AT,
        "name": pa.array(["a", "b"]).dictionary_encode(),
        "value": pa.array([1, 2], pa.int64()),
        "ok": pa.array([True, False]),
        "day": pa.array([0, 1], pa.date32()),
    }
    return pa.table({n: c for n, c in (columns | changed).items() if c is not None})


def test_lossless_other_types_are_brought_to_the_spec() -> None:
    got = conform(table(extra=pa.array([0, 0])), SOURCE, "s3://x")

    assert got.column_names == list(SOURCE.columns)
    assert [str(t) for t in got.schema.types] == [
        "int64", "timestamp[us, tz=UTC]", "string", "double", "bool", "date32[day]",
    ]  # fmt: skip
    assert got["at"].to_pylist()[1].isoformat() == "1970-01-01T00:01:00+00:00"


@pytest.mark.parametrize(
    ("changed", "reason", "word"),
    [
        ({"name": None}, ReasonCode.COLUMN_MISSING, "name"),
        ({"name": None, "title": pa.array(["a", "b"])}, ReasonCode.COLUMN_MISSING, "title"),
        ({"value": pa.array(["1", "2"])}, ReasonCode.COLUMN_TYPE, "value is string"),
        ({"id": pa.array([1.5, 2.0])}, ReasonCode.COLUMN_TYPE, "id is double"),
        ({"at": pa.array([0, 1], pa.timestamp("us"))}, ReasonCode.COLUMN_TYPE, "at is timestamp"),
        ({"ok": pa.array([1, 0])}, ReasonCode.COLUMN_TYPE, "ok is int64"),
        ({"name": pa.array([None, None], pa.string())}, ReasonCode.COLUMN_ALL_NULL, "name"),
        ({"id": pa.nulls(2)}, ReasonCode.COLUMN_ALL_NULL, "id"),
    ],
)
def test_defect_names_the_column(changed: dict, reason: ReasonCode, word: str) -> None:
    with pytest.raises(LandingDefect) as defect:
        conform(table(**changed), SOURCE, "s3://landing/x.parquet")

    assert defect.value.reason is reason
    assert word in defect.value.message
    assert "s3://landing/x.parquet" in defect.value.message


def test_nullable_column_may_be_null_on_every_row() -> None:
    got = conform(table(value=pa.nulls(2)), SOURCE, "s3://x")

    assert got["value"].null_count == 2
