"""What checkpoints cost: the training loop with them, to the real S3 at the default cadence, against without."""

from __future__ import annotations

import statistics
import time
from typing import Any

import plant
from aifactory.recipes.keeper import Keeper
from aifactory.recipes.loop import deterministic, train_loop
from aifactory.recipes.tabular_mlp import TabularMlpParameters, log_loss
from aifactory.settings import Settings
from aifactory.store import Store
from aifactory.training.checkpoints import StoreCheckpoints
from aifactory.training.stop import StopSignal
from bench.bench_mlp import NUM_ROWS, new_network, no_progress, synthetic
from bench.ratio import Ratio

NUM_ROUNDS = 10
EPOCHS = 38  # 1520 steps: at the default of one in 500 steps, three checkpoints, as many a step as in a long training


def run() -> list[Ratio]:
    """Rate with checkpoints ÷ rate without, at least 0.98; share of the time that the loop stood still, at most 2 %."""
    params = TabularMlpParameters(epochs=EPOCHS)
    device, data = synthetic()
    with_s: list[float] = []
    without_s: list[float] = []
    lost_s: list[float] = []
    nums_kept: list[int] = []
    with deterministic(1, Settings(_env_file=None).threads), plant.start_stores() as settings:
        store = Store(settings, settings.factory_bucket)
        for number in range(NUM_ROUNDS + 1):
            place = StoreCheckpoints(store, f"candidates/bench/{number}", StopSignal())
            keeper = Keeper(place, "bench", params.checkpoint_every)
            contenders: list[tuple[list[float], Keeper | None]] = [(with_s, keeper), (without_s, None)]
            for seconds, own in contenders if number % 2 else reversed(contenders):
                seconds.append(_seconds(new_network(params, device), data, params, own))
                place.flush(30)  # what is still being written must not slow the other one down
            lost_s.append(place.lost_s)
            nums_kept.append(place.num_saved)
    with_s, without_s, lost_s, num_kept = (
        with_s[1:],
        without_s[1:],
        lost_s[1:],
        sum(nums_kept[1:]),
    )  # the first warms up
    ratios = [b / r for b, r in zip(without_s, with_s, strict=True)]
    detail = {
        "rows_per_s": round(NUM_ROWS * EPOCHS / statistics.median(with_s)),
        "checkpoints_a_round": round(num_kept / NUM_ROUNDS, 1),
        "round_s": round(statistics.median(with_s), 2),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }
    share = sum(lost_s) / sum(with_s)
    each_ms = {"ms_a_checkpoint": round(1000 * sum(lost_s) / max(num_kept, 1), 2)}
    return [
        Ratio(
            "training with checkpoints ÷ without, samples/s",
            statistics.median(ratios),
            0.98,
            at_most=False,
            detail=detail,
        ),
        Ratio("share of the time that the loop stands still for checkpoints", share, 0.02, detail=each_ms),
    ]


def _seconds(network: Any, data: Any, params: TabularMlpParameters, keeper: Keeper | None) -> float:
    began = time.perf_counter()
    train_loop(network, log_loss, data, params, 1, no_progress, keeper)
    return time.perf_counter() - began
