"""Trains a small network several times, in as many processes as it is started in: the program of `test_parallel`.

`python -m torch.distributed.run --nproc-per-node 2 tests/parallel_program.py FOLDER NAME ...` does the jobs of `JOBS`
and `DECODERS` by their names; the first process writes FOLDER/<name>-<number of processes>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tests.folder_store import FolderStore
from tests.streamed_rows import stream_of

from aifactory.recipes import decoder
from aifactory.recipes.base import Stopped, TrainingFrame
from aifactory.recipes.tabular_mlp import RECIPE, TabularMlpParameters
from aifactory.training import group
from aifactory.training.checkpoints import StoreCheckpoints
from aifactory.training.stop import StopSignal

NUM_STEPS = 15
STOP_AT = 7
SMALL = {"epochs": 3, "batch_rows": 128, "hidden": (16, 8), "dropout": 0.0, "report_every": 1}
JOBS: dict[str, dict[str, Any]] = {
    "copies": {},
    "parts": {"sharding": "full"},
    "copies_added_up": {"accumulate": 3},
    "parts_added_up": {"sharding": "full", "accumulate": 3},
    "tiny_batches": {"batch_rows": 529},
    "dropout": {"dropout": 0.5},
    "streamed": {"data": "stream", "window_rows": 256},
}
TINY_DECODER = {"layers": 2, "heads": 2, "width": 16, "context": 8, "vocabulary": 32, "learning_rate": 1e-3}
DECODERS: dict[str, dict[str, Any]] = {
    "decoder_copies": {"batch_rows": 5, "epochs": 5, "report_every": 1},
    "decoder_parts": {"batch_rows": 5, "epochs": 5, "report_every": 1, "sharding": "full", "accumulate": 2},
}


def frame() -> TrainingFrame:
    """530 rows, so that the last batch of 128 has 18, and of 529 has one."""
    generator = np.random.default_rng(1)
    x, noise = generator.normal(size=(530, 3)).astype(np.float32), generator.normal(size=530)
    columns: dict[str, Any] = {name: x[:, i] for i, name in enumerate("abc")}
    columns["place"] = [f"p{int(n)}" for n in generator.integers(0, 4, size=530)]
    columns["late"] = (x[:, 0] + 0.5 * noise > 0.3).astype(np.int8)
    return TrainingFrame(pa.table(columns), ("place",), ("a", "b", "c"), "late")


def train(name: str, store: FolderStore | None, stop_at: int = 0) -> dict[str, Any]:
    """Do one job; with a store it goes on from a checkpoint that is there, and may be asked to stop after a step."""
    losses: dict[int, float] = {}
    stop = StopSignal()
    asked_at = stop_at - 1 if group.size() > 1 else stop_at  # several agree within the next step

    def progress(step: int, steps: int, values: Any) -> None:
        losses[step] = values["train_loss"]
        if step == asked_at and group.rank() == group.size() - 1:
            stop.requested = True  # the last process alone

    checkpoints = None
    if store is not None:
        if group.size() > 1:
            from aifactory.training.shards import ShardedCheckpoints

            checkpoints = ShardedCheckpoints(store, name, stop)  # type: ignore[arg-type]
        else:
            checkpoints = StoreCheckpoints(store, name, stop)  # type: ignore[arg-type]
    try:
        scores = scores_of(name, progress, checkpoints)
    except Stopped:
        return {"losses": losses, "stopped": True}
    return {"losses": losses, "stopped": False, "scores": scores}


def scores_of(name: str, progress: Any, checkpoints: Any) -> list[float]:
    """Some of what the trained network says."""
    if name in DECODERS:
        stream = torch.arange(113) * 3 % 32  # 14 sequences of 8, so that the last batch of 5 has 4
        params = decoder.DecoderParameters.model_validate(TINY_DECODER | DECODERS[name])
        network = decoder.fit(stream, params, seed=7, progress=progress, checkpoints=checkpoints)
        with torch.inference_mode():
            return network.logits(stream[:8].unsqueeze(0)).flatten()[:20].tolist()  # type: ignore[no-any-return]
    mlp = TabularMlpParameters.model_validate(SMALL | JOBS[name])
    rows = stream_of(frame(), day_rows=60) if mlp.streams else frame()
    fitted = RECIPE.fit(rows, mlp, seed=7, threads=1, progress=progress, checkpoints=checkpoints)
    return fitted.predict(frame().table)[:20].tolist()


def main(folder: Path, names: list[str]) -> None:
    with group.joined():
        for word in names:
            name, _, what = word.partition(":")
            store = FolderStore(folder) if what else None
            told = train(name, store, STOP_AT if what == "stop" else 0)
            if group.rank() == 0:
                (folder / f"{name}-{what or 'whole'}-{group.size()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
