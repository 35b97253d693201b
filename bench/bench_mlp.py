"""`tabular_mlp`: samples a second of the recipe's training loop against a bare torch loop.

Same network, same batches, same optimizer. The bare loop does the steps and nothing else: no check of the loss, no
schedule, no progress, no checkpoints.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

import plant
from aifactory.recipes.batches import Batches
from aifactory.recipes.keeper import Keeper
from aifactory.recipes.loop import deterministic, train_loop
from aifactory.recipes.tabular_mlp import Network, TabularMlpParameters, log_loss
from aifactory.settings import Settings
from aifactory.store import Store
from aifactory.training.checkpoints import StoreCheckpoints
from aifactory.training.stop import StopSignal
from bench.ratio import Ratio

NUM_ROWS = 40_000
NUM_NUMBERS = 70
SIZES = [20, 4, 110]
NUM_ROUNDS = 40  # short and many: a shared machine changes its speed from second to second


def run() -> list[Ratio]:
    """Rate of the recipe's loop ÷ rate of the bare loop; at least 0.97."""
    params = TabularMlpParameters(epochs=1)
    device, data = synthetic()
    recipe_s: list[float] = []
    bare_s: list[float] = []
    with deterministic(1, Settings(_env_file=None).threads), plant.start_stores() as settings:
        store = Store(settings, settings.factory_bucket)
        for number in range(NUM_ROUNDS + 1):
            keeper = Keeper(StoreCheckpoints(store, f"candidates/bench/{number}", StopSignal()), "bench", 500)
            contenders = [
                (recipe_s, partial(_ours, keeper, device, data, params)),
                (bare_s, partial(_bare, device, data, params)),
            ]
            for seconds, work in contenders if number % 2 else reversed(contenders):
                seconds.append(_seconds(work))
    recipe_s, bare_s = recipe_s[1:], bare_s[1:]  # the first round warms up
    ours, base = statistics.median(recipe_s), statistics.median(bare_s)
    detail = {
        "device": str(device),
        "samples_per_s": round(NUM_ROWS / ours),
        "bare_samples_per_s": round(NUM_ROWS / base),
    }
    ratio = statistics.median(
        b / r for b, r in zip(bare_s, recipe_s, strict=True)
    )  # neighbours share the machine's mood
    return [Ratio("tabular_mlp ÷ bare torch loop, samples/s", ratio, 0.97, at_most=False, detail=detail)]


def synthetic() -> tuple[torch.device, Batches]:
    """The fastest device that is here, and rows on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(0, size, (NUM_ROWS,), generator=generator) for size in SIZES]
    data = Batches(
        torch.stack(columns, dim=1).to(device),
        torch.randn(NUM_ROWS, NUM_NUMBERS, generator=generator).to(device),
        (torch.rand(NUM_ROWS, generator=generator) < 0.2).float().to(device),
    )
    return device, data


def new_network(params: TabularMlpParameters, device: torch.device) -> Any:
    """The same network every time."""
    torch.manual_seed(1)
    return Network(SIZES, NUM_NUMBERS, params).to(device)


def _ours(keeper: Keeper, device: torch.device, data: Batches, params: TabularMlpParameters) -> None:
    train_loop(new_network(params, device), log_loss, data, params, 1, no_progress, keeper)


def _bare(device: torch.device, data: Batches, params: TabularMlpParameters) -> None:
    network = new_network(params, device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    loss_of = torch.nn.BCEWithLogitsLoss()
    network.train()
    for rows in torch.randperm(NUM_ROWS, device=device).split(params.batch_rows):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(data.categories[rows], data.numbers[rows])
        loss = loss_of(logits.float(), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def no_progress(step: int, steps: int, values: Any) -> None:
    """Nobody is told."""


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
