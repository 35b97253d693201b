"""Training streamed from S3 against the same training in memory: what the loop waits for, and what memory it takes.

Days of some thousand rows lie in the real S3, with no local cache of them; each training is a process of its own, and
every row is read anew in every epoch. The wait for the first window, which nothing hides, counts, and so does the
gather of a batch, which is all that a training in memory waits for. Memory is the peak of the process above what it had
when its libraries were loaded and one day was read.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import plant
from aifactory.datasets import DatasetRepository
from aifactory.recipes.clock import STEP_PARTS, StepClock
from aifactory.settings import REPOSITORY, Settings, load_settings
from aifactory.store import Store, parquet_bytes
from aifactory.training.launch import environment
from bench.ratio import Ratio

NUM_DAYS = 40
DAYS = [str(date(2026, 1, 1) + timedelta(days=n)) for n in range(NUM_DAYS)]
DAY_ROWS = 8_000
SIZES = {"carrier": 20, "origin": 4, "dest": 110}
NUMERIC = [f"x{n}" for n in range(40)]
PARAMETERS = {"epochs": 2, "window_rows": 32_768}
ROUNDS = ("stream", "memory", "stream", "stream")


def run() -> list[Ratio]:
    """Share of the step loop that waits for data, streamed: at most 5 %."""
    with plant.start_stores() as settings, tempfile.TemporaryDirectory(prefix="aif-bench-") as folder:
        own = settings.model_copy(update={"dataset_git_root": f"{folder}/git", "dataset_cache_mb": 0})
        repository = DatasetRepository(own, "bench", Store(own, own.factory_bucket))
        version = repository.commit({day: parquet_bytes(_rows(n)) for n, day in enumerate(DAYS)}, "bench")
        told: dict[str, list[dict[str, Any]]] = {"stream": [], "memory": []}
        for data in ROUNDS:
            told[data].append(_trained(own, version.dir_md5, data, Path(folder) / "told.json"))
    shares = [each["data_wait_s"] / each["loop_s"] for each in told["stream"]]
    middle = {name: {key: statistics.median(e[key] for e in each) for key in each[0]} for name, each in told.items()}
    streamed, memory = middle["stream"], middle["memory"]
    detail = {
        "shares": [round(share, 4) for share in shares],
        "share_in_memory": round(memory["data_wait_s"] / memory["loop_s"], 4),
        "peak_mb_streamed": round(streamed["peak_mb"]),
        "peak_mb_in_memory": round(memory["peak_mb"]),
        "memory_streamed_to_in_memory": round(streamed["peak_mb"] / memory["peak_mb"], 3),
        "rows_held_to_all": round(2 * PARAMETERS["window_rows"] / (NUM_DAYS * DAY_ROWS), 3),
        "loop_streamed_to_in_memory": round(streamed["loop_s"] / memory["loop_s"], 3),
        "first_pass_s": round(streamed["read_s"], 2),
        "rows_per_s": round(PARAMETERS["epochs"] * NUM_DAYS * DAY_ROWS / streamed["loop_s"]),
    }
    name = "share of the step loop that waits for data, streamed from S3"
    return [Ratio(name, statistics.median(shares), 0.05, detail=detail)]


def _rows(number: int) -> pa.Table:
    generator = np.random.default_rng(number)
    columns: dict[str, Any] = {
        name: pa.array([f"{name}{n}" for n in generator.integers(0, size, DAY_ROWS)]) for name, size in SIZES.items()
    }
    columns |= {name: generator.normal(size=DAY_ROWS).astype(np.float32) for name in NUMERIC}
    return pa.table(columns | {"late": (generator.random(DAY_ROWS) < 0.2).astype(np.int8)})


def _trained(settings: Settings, dir_md5: str, data: str, out: Path) -> dict[str, Any]:
    """What a process of its own tells of its training."""
    own = environment(settings)
    own["PYTHONPATH"] += os.pathsep + str(REPOSITORY)
    subprocess.run([sys.executable, __file__, dir_md5, data, str(out)], env=own, check=True)
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def train(settings: Settings, dir_md5: str, data: str) -> dict[str, float]:
    """As that process: read, learn, tell."""
    from aifactory.recipes.base import TrainingFrame
    from aifactory.recipes.stream import TrainingStream
    from aifactory.recipes.tabular_mlp import RECIPE, TabularMlpParameters

    repository = DatasetRepository(settings, "bench", Store(settings, settings.factory_bucket))
    params = TabularMlpParameters.model_validate(PARAMETERS | {"data": data})
    columns, clock = [*SIZES, *NUMERIC, "late"], StepClock()
    repository.read_content(dir_md5, [DAYS[0]], columns)
    before, began = _peak_mb(), time.perf_counter()
    rows: Any
    if params.streams:
        rows = TrainingStream.of(repository.stream_content(dir_md5, DAYS, columns), [*SIZES], NUMERIC, "late")
    else:
        rows = TrainingFrame.of(repository.read_content(dir_md5, None, columns), [*SIZES], NUMERIC, "late")
    read_s = time.perf_counter() - began
    RECIPE.fit(rows, params, seed=1, threads=settings.threads, clock=clock)
    spent = clock.read().seconds()
    loop_s = sum(spent[part.name.lower()] for part in STEP_PARTS)
    return {"data_wait_s": spent["data_wait"], "loop_s": loop_s, "read_s": read_s, "peak_mb": _peak_mb() - before}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(train(load_settings(), sys.argv[1], sys.argv[2])))
