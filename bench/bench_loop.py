"""The scheduler's own cost: nights of the loop by the scheduler ÷ the same stations called in one process.

Two plants take the same history and then the same nights, one of which remakes the model. A night's wall by the
scheduler goes from the trigger of its ingest to the end of the last run that followed from it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import plant
from aifactory.factory import Factory
from aifactory.line import find_line
from aifactory.stages.loop import turn
from bench.ratio import Ratio
from outside.flights import World
from plant.api import AirflowApi
from plant.demo import LINE, NUM_NIGHTS, Demo

GOAL = 1.25


def run() -> list[Ratio]:
    """Ratios of all nights together, and of the median night without training."""
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as home:
        here = _in_one_process(Path(home))
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as home:
        scheduled = _by_scheduler(Path(home))
    detail = {"scheduler_s": [round(s, 2) for s in scheduled], "one_process_s": [round(s, 2) for s in here]}
    overhead = median(scheduled) - median(here)
    return [
        Ratio("loop by the scheduler ÷ in one process", sum(scheduled) / sum(here), GOAL, detail=detail),
        Ratio("seconds that the scheduler adds to the median night", overhead, 3.0),
    ]


def _in_one_process(home: Path) -> list[float]:
    with plant.start_stores(home, mlflow=True) as settings:
        factory, spec, world = Factory(settings), find_line(settings.lines_dir, LINE), World(settings)
        world.land(world.history(NUM_NIGHTS))
        turn(factory, spec, world.history(NUM_NIGHTS), "history")
        seconds = []
        for day in world.nights(NUM_NIGHTS):
            world.land([day])
            began = time.perf_counter()
            turn(factory, spec, [day], day)
            seconds.append(time.perf_counter() - began)
    return seconds


def _by_scheduler(home: Path) -> list[float]:
    settings = plant.temporary_settings(home)
    plant.up(settings)
    try:
        demo = Demo.quiet(plant.load(home))
        demo.make_first_champion(time.time())
        seconds = []
        for day in demo.world.nights(NUM_NIGHTS):
            began = time.time()
            demo.play(day)
            seconds.append(_last_end(demo.api, began) - began)
    finally:
        plant.down(settings)
    return seconds


def _last_end(api: AirflowApi, since: float) -> float:
    """When the last run that was queued since then ended."""
    return max(run.ended_at for run in api.runs(prefix=f"{LINE}.") if run.queued_at >= since - 1)
