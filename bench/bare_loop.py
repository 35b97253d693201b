"""A bare torch loop for a pod of the trainer's image: the steps and nothing else. `bench_pods` sends this file there.

The arguments come as JSON: sizes, num_numbers, num_rows, batch_rows, threads, seconds, mark_every, learning_rate,
weight_decay. Every line of the answer is JSON: first how long it took to import what the training program imports
before and after it reads its data; then, every so many steps, the time and the rows that are done.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

PROGRAM = ("aifactory.training.__main__", "aifactory.training.run", "boto3", "mlflow.tracking")
RECIPE = ("aifactory.recipes.tabular_mlp",)


def main(asked: dict[str, Any]) -> None:
    """Import, make data of the size that was asked for, step."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    tell({"program_s": seconds_to_import(PROGRAM), "recipe_s": seconds_to_import(RECIPE)})

    import torch

    from aifactory.recipes.tabular_mlp import Network, TabularMlpParameters

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(1)
    num_rows = asked["num_rows"]
    categories = torch.stack([torch.randint(0, size, (num_rows,)) for size in asked["sizes"]], dim=1)
    numbers, labels = torch.randn(num_rows, asked["num_numbers"]), (torch.rand(num_rows) < 0.2).float()
    network = Network(asked["sizes"], asked["num_numbers"], TabularMlpParameters.model_validate({}))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=asked["learning_rate"], weight_decay=asked["weight_decay"], fused=True
    )
    loss_of = torch.nn.BCEWithLogitsLoss()
    network.train()
    step = rows_done = 0
    until = time.time() + asked["seconds"]
    while time.time() < until:
        for rows in torch.randperm(num_rows).split(asked["batch_rows"]):
            logits = network(categories.index_select(0, rows), numbers.index_select(0, rows))
            loss = loss_of(logits, labels.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, rows_done = step + 1, rows_done + len(rows)
            if step % asked["mark_every"] == 0:
                tell({"at": time.time(), "rows": rows_done})


def seconds_to_import(names: tuple[str, ...]) -> float:
    """Import modules; how long it took."""
    began = time.perf_counter()
    for name in names:
        importlib.import_module(name)
    return time.perf_counter() - began


def tell(what: dict[str, float]) -> None:
    """A line of the answer."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
