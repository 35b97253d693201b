"""A dataset version with one new 20 MB partition, against hashing and uploading the same number of bytes.

At 30, 365 and 2,000 partitions that are there already: the cost of a version is to follow the new bytes alone.
"""

from __future__ import annotations

import gc
import hashlib
import io
import statistics
import time
import uuid
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aifactory.datasets import DatasetRepository
from aifactory.settings import Settings
from aifactory.store import Store
from bench.ratio import Ratio
from plant.stores import start_stores

HISTORIES = (30, 365, 2000)
ROUNDS = 11
NUM_VALUES = 2_500_000  # 20 MB of doubles that do not compress


def run() -> list[Ratio]:
    """Medians of interleaved rounds: commit and push ÷ MD5 and put, and the slowest history ÷ the fastest."""
    with start_stores() as settings:
        store = Store(settings, settings.factory_bucket)
        repositories = {n: _with_history(settings, store, n) for n in HISTORIES}
        ours: dict[int, list[float]] = {n: [] for n in HISTORIES}
        bare: dict[int, list[float]] = {n: [] for n in HISTORIES}
        for number in range(ROUNDS + 1):
            for history, repository in repositories.items():
                seconds = _bare(store), _commit(repository, number)
                if number:  # the first round warms up
                    bare[history].append(seconds[0])
                    ours[history].append(seconds[1])
    return [*(_ratio(n, ours[n], bare[n]) for n in HISTORIES), _flatness(ours)]


def _ratio(history: int, ours: list[float], bare: list[float]) -> Ratio:
    took, limit = statistics.median(ours), statistics.median(bare)
    return Ratio(
        f"commit and push of a 20 MB partition to {history} / hash and upload",
        took / limit,
        1.5,
        detail={"ours_s": round(took, 3), "bare_s": round(limit, 3)},
    )


def _flatness(ours: dict[int, list[float]]) -> Ratio:
    medians = {n: statistics.median(each) for n, each in ours.items()}
    detail = {f"s_at_{n}": round(each, 3) for n, each in medians.items()}
    return Ratio(
        "commit and push at the slowest history / at the fastest",
        max(medians.values()) / min(medians.values()),
        1.2,
        detail=detail,
    )


def _with_history(settings: Settings, store: Store, num_partitions: int) -> DatasetRepository:
    """A repository that holds small partitions, each with content of its own."""
    repository = DatasetRepository(settings, f"bench_{num_partitions}", store)
    first = date(2013, 1, 1)
    days = [(first + timedelta(days=n)).isoformat() for n in range(num_partitions)]
    repository.commit({day: _parquet(np.random.default_rng(n).random(8)) for n, day in enumerate(days)}, "history")
    return repository


def _commit(repository: DatasetRepository, number: int) -> float:
    day = (date(2030, 1, 1) + timedelta(days=number)).isoformat()
    body = _fresh()
    began = time.perf_counter()
    repository.commit({day: body}, "one day more")
    return time.perf_counter() - began


def _bare(store: Store) -> float:
    key, body = f"bare/{uuid.uuid4().hex}", _fresh()
    began = time.perf_counter()
    hashlib.md5(body, usedforsecurity=False).hexdigest()
    store.client.put_object(Bucket=store.bucket, Key=key, Body=body)
    seconds = time.perf_counter() - began
    store.delete(key)
    return seconds


def _fresh() -> bytes:
    """20 MB of parquet that nobody has seen."""
    body = _parquet(np.random.default_rng().random(NUM_VALUES))
    gc.collect()
    return body


def _parquet(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"value": values}), buffer, use_dictionary=False)
    return buffer.getvalue()
