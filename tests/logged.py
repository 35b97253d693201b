"""Requests to log, and a process that serves them until it is killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aifactory.serving.predictionlog import Identity, Limits, PredictionLog

CATEGORICAL = ("carrier", "origin", "dest")
NUMERIC = ("hour", "distance")
IDENTITY = Identity("flight_delay", "7", "abc", "a", CATEGORICAL, NUMERIC)
QUICK = Limits(flush_s=0.01, rotate_s=0.1)


def inputs_of(rows: int, first: int = 0, carrier: Any = b"UA") -> dict[str, np.ndarray]:
    """Features of some rows, numbered from `first` in the column `distance`."""
    texts = {name: np.full((rows, 1), value, dtype=object) for name, value in zip(CATEGORICAL, (carrier, b"JFK", b"LAX"), strict=True)}  # fmt: skip # noqa: E501
    numbers = np.arange(first, first + rows, dtype=np.float32).reshape(-1, 1)
    return texts | {"hour": np.full((rows, 1), np.nan, np.float32), "distance": numbers}


def units_of(flights: Sequence[int], at: str = "2013-02-01T08:00:00+00:00", carrier: str = "UA") -> str:
    """Who was scored, as a client says it, for a line with the key carrier, flight, origin."""
    n = len(flights)
    said = {"carrier": [carrier] * n, "flight": list(flights), "origin": ["JFK"] * n, "prediction_time": [at] * n}
    return json.dumps(said)


def record(log: PredictionLog, first: int, rows: int = 1, **other: Any) -> None:
    """Log one request for the flights from `first` on; the score is the flight's number / 1e6."""
    numbers = range(first, first + rows)
    said: dict[str, Any] = {"units_json": units_of(numbers), "shadow": False, "request_id": f"r{first}"}
    scores = np.array([n / 1e6 for n in numbers], np.float32)
    log.record(inputs=inputs_of(rows, first), scores=scores, **(said | other))


def main(folder: str) -> None:
    """Serve for ever; tells on stdout how many rows were spooled after each hundred."""
    log = PredictionLog.open(Path(folder), IDENTITY, QUICK)
    for first in range(0, 10**9, 3):
        record(log, first, rows=3)
        if first % 300 == 0:
            sys.stdout.write(f"{log.counts.spooled}\n")
            sys.stdout.flush()
            time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1])
