"""Rows as partitions of a dataset in a store, and streamed from there by the factory's own reader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from tests.memory_store import MemoryStore

from aifactory.datasets import DatasetRepository, Partition, manifest
from aifactory.recipes.base import TrainingFrame
from aifactory.recipes.stream import TrainingStream
from aifactory.settings import Settings
from aifactory.store import parquet_bytes

LINE = "streamed"


def md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def key_of(name: str) -> str:
    return f"dvc/{LINE}/files/md5/{name[:2]}/{name[2:]}"


def stored(store: Any, tables: Mapping[str, pa.Table]) -> tuple[DatasetRepository, str]:
    """A dataset with these days, without the local cache; and the name of its content."""
    partitions = {}
    for day, table in tables.items():
        body = parquet_bytes(table)
        partitions[day] = Partition(md5(body), table.num_rows, len(body))
        store.put(key_of(partitions[day].md5), body)
    listing = manifest(partitions)
    store.put(key_of(f"{md5(listing)}.dir"), listing)
    settings = Settings(home=Path("unused"), dataset_cache_mb=0, _env_file=None)  # type: ignore[call-arg]
    return DatasetRepository(settings, LINE, store), md5(listing)


def by_day(table: pa.Table, day_rows: int) -> dict[str, pa.Table]:
    """So many rows a day."""
    first = date(2026, 1, 1)
    starts = range(0, table.num_rows, day_rows)
    return {str(first + timedelta(days=n)): table.slice(start, day_rows) for n, start in enumerate(starts)}


def stream_of(frame: TrainingFrame, day_rows: int, store: Any = None) -> TrainingStream:
    """The same rows, streamed."""
    days = by_day(frame.table, day_rows)
    repository, content = stored(store or MemoryStore(), days)
    source = repository.stream_content(content, list(days), frame.table.column_names)
    return TrainingStream.of(source, list(frame.categorical), list(frame.numeric), frame.target)
