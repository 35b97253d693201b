"""A line with data and models in the real stores, for the tests of scoring and feedback."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of

from aifactory.datasets import DatasetVersion
from aifactory.evaluation import metrics
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import golden, write_package
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
from aifactory.store import parquet_bytes
from aifactory.training import profile


def days_between(first: str, last: str) -> list[str]:
    """The days of the test data in a range."""
    return sorted(set(days_of(first, last)["date"].to_pylist()))


def rows_of(day: str) -> pa.Table:
    """One day's units, each key once."""
    table = days_of(day, day)
    seen: set[tuple[Any, ...]] = set()
    keep = []
    for n, key in enumerate(zip(*(table[c].to_pylist() for c in ("carrier", "flight", "origin")), strict=True)):
        if key not in seen:
            seen.add(key)
            keep.append(n)
    return table.take(keep)


def commit(f: Factory, spec: LineSpec, tables: dict[str, pa.Table]) -> DatasetVersion:
    """Make partitions the newest dataset version."""
    return f.datasets(spec).commit({day: parquet_bytes(table) for day, table in tables.items()}, "test")


def commit_days(f: Factory, spec: LineSpec, first: str, last: str) -> DatasetVersion:
    """Commit a range of days as they are."""
    return commit(f, spec, {day: rows_of(day) for day in days_between(first, last)})


@lru_cache(maxsize=4)
def trained(first: str, until: str) -> tuple[bytes, dict[str, Any]]:
    """A really trained model: its graph, and a manifest with all that scoring and feedback read."""
    rows = days_of(first, until)
    frame = TrainingFrame.of(rows, CATEGORICAL, NUMERIC, TARGET)
    params = check_parameters("gradient_boosting", {"num_trees": 20})
    fitted = load_recipe("gradient_boosting").fit(frame, params, seed=1, threads=1)
    shown = rows.slice(0, 8)
    known = rows.filter(pc.is_valid(rows[TARGET]))
    scores = fitted.predict(known)
    own = metrics(known[TARGET].to_numpy().astype(np.int8), scores)
    manifest = {
        "order_id": f"order-{until}",
        "trained_until": until,
        "dataset_revision": "abc",
        "features": {"categorical": CATEGORICAL, "numeric": NUMERIC},
        "golden": {
            "inputs": golden(shown, CATEGORICAL, NUMERIC),
            "outputs": [float(p) for p in fitted.predict(shown)],
        },
        "metrics": own,
        "training_profile": profile.features_profile(frame) | profile.scores_profile(scores, own),
    }
    return fitted.to_onnx(), manifest


def serve(f: Factory, spec: LineSpec, *reigns: tuple[str, str]) -> None:
    """Put versions (version, trained until) into service one after the other, without a registry server."""
    history = []
    for version, until in reigns:
        prefix = f"models/{spec.line}/{version}"
        onnx, manifest = trained("2013-01-01", until)
        write_package(f.store, prefix, manifest, onnx, None)
        history.append(
            {
                "version": version,
                "order_id": f"order-{version}",
                "dataset_revision": "abc",
                "trained_until": until,
                "package": prefix,
                "since": "2026-01-01T00:00:00+00:00",
                "how": "promoted",
                "by": "line",
                "why": "",
            }
        )
    last = {k: v for k, v in history[-1].items() if k not in {"how", "by", "why"}}
    pointer = last | {"previous": history[-2]["version"] if len(history) > 1 else None, "history": history}
    f.store.put_json(f"serving/{spec.line}/champion.json", pointer)


def contents(f: Factory, *prefixes: str) -> dict[str, str]:
    """ETag of every object under some prefixes: equal when equal bytes are stored."""
    return {o.key: o.etag for prefix in prefixes for o in f.store.list(prefix)}
