"""Objects without a store: parquet bytes, keys, errors that travel."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aifactory.settings import Settings
from aifactory.store import Conflict, Store, parquet_bytes


def test_equal_tables_are_equal_bytes_whatever_their_chunks_and_metadata() -> None:
    whole = pa.table({"text": ["a", "b", None] * 500, "number": list(range(1500))})
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 900), whole.slice(907)])
    noted = whole.replace_schema_metadata({"pandas": "something"})
    assert pieces.column(0).num_chunks == 3
    assert parquet_bytes(whole) == parquet_bytes(pieces) == parquet_bytes(noted)
    assert parquet_bytes(whole) != parquet_bytes(whole.slice(1))


def test_types_survive_parquet() -> None:
    table = pa.table(
        {
            "at": pa.array([0, None], pa.timestamp("us", tz="UTC")),
            "day": pa.array([1, 2], pa.date32()),
            "score": pa.array([0.5, None], pa.float32()),
            "label": pa.array([1, None], pa.int8()),
            "carrier": pa.array(["UA", None]),
        }
    )
    assert pq.read_table(io.BytesIO(parquet_bytes(table))).equals(table)


@pytest.mark.parametrize("key", ["", "/a", "a/"])
def test_a_key_that_the_store_would_lose_is_refused(tmp_path: Path, key: str) -> None:
    store = Store(Settings(home=tmp_path, _env_file=None), "bucket")
    with pytest.raises(ValueError, match="slash"):
        store.put(key, b"x")


def test_a_conflict_survives_the_way_between_processes() -> None:
    copied = pickle.loads(pickle.dumps(Conflict("lost")))
    assert (type(copied), str(copied)) == (Conflict, str(Conflict("lost")))
