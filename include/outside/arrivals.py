"""When a client asks, and what: requests from a file, and the instants to send them at.

The file is parquet; its schema's metadata has `requests`, JSON: `unit` (columns that say who is scored),
`prediction_time` (one of them), `strings` and `floats` (columns that are the model's inputs).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

DAY_S = 86_400.0


@dataclass(frozen=True)
class Rows:
    """What is asked, a row each, oldest first.

    Args:
        times: when each is due, s since 1970, ascending, float64 [n].
        units: who is scored: JSON values by column, each [n].
        strings: inputs by name, UTF-8 bytes [n], "" for missing.
        floats: inputs by name, float32 [n], NaN for missing.
        entities: one text for who is scored, fit for a header, [n].
    """

    times: npt.NDArray[np.float64]
    units: dict[str, list[Any]]
    strings: dict[str, npt.NDArray[np.object_]]
    floats: dict[str, npt.NDArray[np.float32]]
    entities: list[str]


def read_rows(path: Path) -> Rows:
    """The rows of a file.

    Raises:
        ValueError: it is no such file, has no rows, lacks a column or has one of another type.
        OSError: it cannot be read.
    """
    try:
        table = pq.read_table(path)
        said = json.loads((table.schema.metadata or {})[b"requests"])
        time: str = said["prediction_time"]
        table = table.sort_by(time)
        at = table[time].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy() / 1e6
        units = {name: [_json(value) for value in table[name].to_pylist()] for name in said["unit"]}
        strings = {n: np.array([v.encode() for v in table[n].to_pylist()], dtype=object) for n in said["strings"]}
        floats = {n: table[n].cast(pa.float32()).to_numpy() for n in said["floats"]}
    except (pa.ArrowException, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of requests: {error!r}") from error
    if not len(at):
        raise ValueError(f"{path} has no rows")
    keys = [column for name, column in units.items() if name != time]
    entities = [quote("-".join(map(str, key)), safe=":+") for key in zip(*keys, strict=True)]
    return Rows(at, units, strings, floats, entities)


def _json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value  # a datetime is a date


def spread(times: npt.NDArray[np.float64], resolution_s: float, chance: random.Random) -> npt.NDArray[np.float64]:
    """Times that are known to a resolution alone, each at a random instant within it; ascending.

    A timetable knows minutes; those who ask do not all ask at second 0.
    """
    moved = times + np.array([chance.random() for _ in times]) * resolution_s
    return np.sort(moved)


def whole_days(times: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """How many days of 24 h, begun at the first, hold all of the times."""
    return math.floor((times[-1] - times[0]) / DAY_S) + 1


def offsets(times: npt.NDArray[np.float64], speed: float) -> tuple[npt.NDArray[np.float64], float]:
    """When to send, s from the start, and when the next round begins.

    Rounds are whole days long, so that each begins at the same time of day, and nights are as quiet as they were.

    Args:
        times: ascending, s.
        speed: seconds of these that pass in one second, above 0.
    """
    return (times - times[0]) / speed, whole_days(times) * DAY_S / speed


def grouped(num_rows: int, batch_share: float, batch_rows: int, chance: random.Random) -> list[range]:
    """Rows as requests: each has one row, or by this share up to `batch_rows` consecutive ones."""
    found, at = [], 0
    while at < num_rows:
        size = chance.randint(2, batch_rows) if chance.random() < batch_share else 1
        found.append(range(at, min(at + size, num_rows)))
        at += size
    return found


def arrivals(due: npt.NDArray[np.float64], round_s: float, *, loop: bool) -> Iterator[tuple[float, int]]:
    """Offset, s, and number of each request in order; round after round without end if they are looped."""
    number = 0
    while True:
        for request, offset in enumerate(due):
            yield number * round_s + float(offset), request
        if not loop:
            return
        number += 1
