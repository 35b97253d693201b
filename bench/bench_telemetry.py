"""Telemetry: what it costs the step loop, and what it says of a training whose data lie in S3.

cost        processor time of the recipe's loop ÷ that time with the clock, the sampler, MLflow and the record in S3
data wait   share of the step loop that waits for data, of a training by the real program with no cache of the
            dataset; what was read before the first step is told apart

Two rounds of one loop differ by a tenth and more where others work on the machine, in processor time too, so the cost
is no difference of rounds. One watched loop is run by one thread, and what is beside that thread is the telemetry's:

    cost = watch ÷ wall + clock ÷ loop

with the processor seconds of all other threads, of beginning and of ending (watch; the sampler looks by the wall
clock), those of the loop's thread (loop), and those of the loop's calls to its clock made once more (clock). The loop
waits for the sampler only while that computes, so waiting costs no more than is counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.training_lines import REQUEST, shipped, small_line

import plant
from aifactory.factory import Factory
from aifactory.recipes.batches import Batches
from aifactory.recipes.clock import STEP_PARTS, Part, StepClock
from aifactory.recipes.loop import deterministic, train_loop
from aifactory.recipes.tabular_mlp import TabularMlpParameters, log_loss
from aifactory.settings import Settings
from aifactory.stages import train
from aifactory.training.launch import launch
from aifactory.training.telemetry import Telemetry
from aifactory.training.tracking import Tracker
from bench.bench_mlp import NUM_ROWS, new_network, no_progress, synthetic
from bench.ratio import Ratio

EPOCHS = 40  # 1600 steps: the sampler looks ten times, tells MLflow and writes its record
TRAINING_EPOCHS = 30
CPU = torch.device("cpu")


class Heard(StepClock):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[[StepClock, Any], None], Any]] = []

    def enter(self, part: Part) -> None:
        self.calls.append((StepClock.enter, part))

    def step(self, done: int) -> None:
        self.calls.append((StepClock.step, done))


def run() -> list[Ratio]:
    """Rate with telemetry ÷ without, at least 0.99; share of the step loop that waits for data, at most 5 %."""
    with plant.start_stores(mlflow=True) as settings:
        return [cost(settings), data_wait(settings)]


def cost(settings: Settings) -> Ratio:
    """Processor time, on the CPU whatever else there is."""
    _, data = synthetic()
    data = Batches(*(each.to(CPU) for each in (data.categories, data.numbers, data.labels)))
    params = TabularMlpParameters(epochs=EPOCHS)
    store = Factory(settings).store
    tracker = Tracker(settings, "bench", "cost", "challenger")
    heard = Heard()
    with deterministic(1, 1):
        _loop_s(data, TabularMlpParameters(epochs=1), heard)
        with Telemetry(settings, store, "candidates/bench/warm", tracker.note):
            pass  # imports, connections
        telemetry = Telemetry(settings, store, "candidates/bench/cost", tracker.note)
        began, process_began = time.perf_counter(), time.process_time()
        with telemetry:
            loop_s = _loop_s(data, params, telemetry.clock)
        wall_s, watch_s = time.perf_counter() - began, time.process_time() - process_began - loop_s
    clock_s = EPOCHS * _clock_s(heard)
    detail = {
        "rows_per_cpu_s": round(NUM_ROWS * EPOCHS / loop_s),
        "wall_s": round(wall_s, 1),
        "loop_cpu_s": round(loop_s, 1),
        "watch_cpu_s": round(watch_s, 3),
        "clock_cpu_s": round(clock_s, 4),
    }
    ratio = 1 / (1 + watch_s / wall_s + clock_s / loop_s)
    return Ratio("training with telemetry ÷ without, samples/s", ratio, 0.99, at_most=False, detail=detail)


def data_wait(settings: Settings) -> Ratio:
    """A training by the real program, from nothing."""
    with tempfile.TemporaryDirectory(prefix="aif-bench-") as folder:
        f = Factory(settings.model_copy(update={"dataset_git_root": f"{folder}/git", "dataset_cache_mb": 0}))
        recipes = {name: recipe.model_dump() for name, recipe in small_line().model.recipes.items()}
        recipes["tabular_mlp"]["parameters"] |= {"epochs": TRAINING_EPOCHS}
        spec = shipped(f, Path(folder), small_line(model={"recipes": recipes, "recipe": "tabular_mlp"}))
        order_id = train.resolve_order(f, spec, REQUEST)["order_id"]
        told = launch(f.settings, spec.line, order_id, "challenger", 600)["telemetry"]
    parts_s = told["parts_s"]
    share = parts_s["data_wait"] / sum(parts_s[part.name.lower()] for part in STEP_PARTS)
    detail = {
        "seconds": {name: round(seconds, 2) for name, seconds in parts_s.items()},
        "goodput": round(told["goodput"], 3),
    }
    return Ratio("share of the step loop that waits for data", share, 0.05, detail=detail)


def _loop_s(data: Batches, params: TabularMlpParameters, clock: StepClock) -> float:
    """Processor seconds of the loop's thread."""
    network = new_network(params, CPU)
    began = time.thread_time()
    train_loop(network, log_loss, data, params, 1, no_progress, clock=clock)
    return time.thread_time() - began


def _clock_s(heard: Heard) -> float:
    """Processor seconds of an epoch's calls."""
    clock, began = StepClock(), time.thread_time()
    for tell, what in heard.calls:
        tell(clock, what)
    return time.thread_time() - began
