"""Training by two processes against one, on this machine: DDP over gloo, one thread each, everything of the loop.

A network large enough that computing is most of a step. The work is the same: the batch of a step is shared out.
What is measured are two cores with their shared memory, caches and loopback; it says nothing of GPUs or of several
machines. Two processes that do not talk share the memory's bandwidth too: what they reach is measured beside it, and
the second ratio is the cost of talking alone. Others at work on the machine lower the first ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aifactory.settings import REPOSITORY
from bench.ratio import Ratio, Skipped

NUM_ROUNDS = 5
NUM_STEPS = 8


def run() -> list[Ratio]:
    """Rate of two ÷ (2 · rate of one), and ÷ the rate of two that do not talk to each other."""
    if (os.cpu_count() or 1) < 2:
        raise Skipped("one core: two processes would only take turns")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        path = os.pathsep.join([str(REPOSITORY / "include"), str(REPOSITORY)])
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, out],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            check=True,
        )
        told = json.loads(out.read_text())
    one, apart, two = (statistics.median(told[name]) for name in ("one", "apart", "two"))
    detail = {
        "steps_per_s_of_one": round(NUM_STEPS / one, 2),
        "steps_per_s_of_two": round(NUM_STEPS / two, 2),
        "num_weights": told["num_weights"],
        "rounds": [round(a / b / 2, 3) for a, b in zip(told["one"], told["two"], strict=True)],
    }
    efficiency = statistics.median(a / b / 2 for a, b in zip(told["one"], told["two"], strict=True))
    talking = statistics.median(a / b for a, b in zip(told["apart"], told["two"], strict=True))
    words = {"efficiency_of_two_apart": round(one / apart / 2, 3)}
    return [
        Ratio("two processes ÷ twice one, samples/s", efficiency, 0.7, at_most=False, detail=detail),
        Ratio("two processes ÷ two that do not talk, samples/s", talking, 0.8, at_most=False, detail=words),
    ]


def measure(out: Path) -> None:
    """As one of two processes: the seconds of the same steps by one, by two halves apart, by two together."""
    import torch
    import torch.distributed as dist

    from aifactory.recipes.batches import Batches
    from aifactory.recipes.loop import deterministic, train_loop
    from aifactory.recipes.parallel import ALONE, team
    from aifactory.recipes.tabular_mlp import Network, TabularMlpParameters, log_loss
    from aifactory.training import group

    params = TabularMlpParameters(hidden=(1024, 1024, 512), batch_rows=2048, epochs=1, dropout=0.1, report_every=1000)
    half = params.model_copy(update={"batch_rows": params.batch_rows // 2})

    def data(num_rows: int) -> Batches:
        generator = torch.Generator().manual_seed(1)
        numbers = torch.randn(num_rows, 140, generator=generator)
        return Batches(torch.empty(num_rows, 0, dtype=torch.int64), numbers, (numbers[:, 0] > 0).float())

    whole, share = data(NUM_STEPS * params.batch_rows), data(NUM_STEPS * half.batch_rows)
    told: dict[str, Any] = {name: [] for name in ("one", "apart", "two")}
    with group.joined(), deterministic(1, 1):
        here = team()
        for name in [*told] * (NUM_ROUNDS + 1):  # the first round warms up
            network = Network([], 140, params)
            told_weights = sum(p.numel() for p in network.parameters())
            trained = here.wrapped(network, "none") if name == "two" else network
            dist.barrier()
            began = time.perf_counter()
            if name == "two":
                train_loop(trained, log_loss, whole, params, 1, no_progress, team=here)
            elif name == "apart":
                train_loop(trained, log_loss, share, half, 1, no_progress, team=ALONE)
            elif here.rank == 0:
                train_loop(trained, log_loss, whole, params, 1, no_progress, team=ALONE)
            dist.barrier()
            told[name].append(time.perf_counter() - began)
        if here.rank == 0:
            out.write_text(json.dumps({name: s[1:] for name, s in told.items()} | {"num_weights": told_weights}))


def no_progress(step: int, steps: int, values: Any) -> None:
    """Nobody is told."""


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
