"""A bare torch loop for a pod of the trainer's image: the steps and nothing else. `bench_pods` sends this file there.

The arguments come as JSON: sizes, num_numbers, num_rows, batch_rows, epochs, threads, skip_steps, learning_rate,
weight_decay. The answer is the last line, as JSON: rows and seconds after the skipped steps, and how long it took to
import what the training program imports before it reads its data.
"""

import importlib
import json
import os
import sys
import time
from typing import Any


def main(asked: dict[str, Any]) -> dict[str, float]:
    """Import, make data of the size that was asked for, step."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    began = time.perf_counter()
    for name in (
        "aifactory.training.__main__",
        "aifactory.training.run",
        "boto3",
        "mlflow.tracking",
        "aifactory.recipes.tabular_mlp",
    ):
        importlib.import_module(name)
    import_s = time.perf_counter() - began

    import torch

    from aifactory.recipes.tabular_mlp import Network, TabularMlpParameters

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(1)
    num_rows, batch_rows = asked["num_rows"], asked["batch_rows"]
    categories = torch.stack([torch.randint(0, size, (num_rows,)) for size in asked["sizes"]], dim=1)
    numbers, labels = torch.randn(num_rows, asked["num_numbers"]), (torch.rand(num_rows) < 0.2).float()
    network = Network(asked["sizes"], asked["num_numbers"], TabularMlpParameters.model_validate({}))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=asked["learning_rate"], weight_decay=asked["weight_decay"], fused=True
    )
    loss_of = torch.nn.BCEWithLogitsLoss()
    network.train()
    step = rows_done = 0
    stepping = time.perf_counter()
    for _ in range(asked["epochs"]):
        for rows in torch.randperm(num_rows).split(batch_rows):
            loss = loss_of(network(categories[rows], numbers[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, rows_done = step + 1, rows_done + len(rows)
            if step == asked["skip_steps"]:
                stepping, rows_done = time.perf_counter(), 0
    return {"rows": rows_done, "seconds": time.perf_counter() - stepping, "import_s": import_s}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
