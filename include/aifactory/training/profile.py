"""What the training window and the scores looked like: what the feedback stage measures drift against.

    {
      "num_rows": rows learned from, "first_day", "last_day",
      "base_rate": share of positives learned from,
      "numeric":     {feature: {"edges": [..], "shares": [..], "missing_share": s, "quantiles": [201 values]}},
      "categorical": {feature: {"shares": {value: share}}},          null counts as ""
      "score":       {"edges", "shares", "quantiles", "missing_share", "mean"}   of the held-out rows
      "baseline":    metrics of the held-out rows; see `evaluation.metrics`
    }

A bin of `edges` e is: bin 0 below e[0], bin i from e[i-1] up to but not e[i], the last one from e[-1] on
(`bin_shares`). Shares are of the rows that are not missing. Quantiles are at 0, 0.005, ..., 1: enough for a
Kolmogorov-Smirnov statistic to within 0.005. A feature that was missing on every row has no edges and no quantiles.
Of a streamed training window `numeric` is that of a sample of its rows, see `stream.SAMPLE_ROWS`; the rest is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aifactory.recipes.base import category_counts
from aifactory.recipes.stream import TrainingRows

NUM_BINS = 10
NUM_QUANTILES = 201


def bin_shares(values: npt.NDArray[Any], edges: Sequence[float]) -> list[float]:
    """Share of the values that are not NaN in each of `len(edges) + 1` bins; zeros where there is none."""
    present = values[~np.isnan(values)]
    counts = np.bincount(np.searchsorted(np.asarray(edges), present, side="right"), minlength=len(edges) + 1)
    return [float(share) for share in counts / max(len(present), 1)]


def category_shares(column: pa.ChunkedArray) -> dict[str, float]:
    """Share of every value, null as ""."""
    return _shares(category_counts(column))


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = max(sum(counts.values()), 1)
    return {name: counts[name] / total for name in sorted(counts)}


def numeric_profile(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Decile bins, quantiles and the share of missing values."""
    present = np.asarray(values[~np.isnan(values)], dtype=np.float64)
    missing = 1 - len(present) / max(len(values), 1)
    if not len(present):
        return {"edges": [], "shares": [0.0], "missing_share": missing, "quantiles": []}
    quantiles = np.quantile(present, np.linspace(0, 1, NUM_QUANTILES))
    deciles = quantiles[:: (NUM_QUANTILES - 1) // NUM_BINS][1:-1]
    edges = [float(e) for e in np.unique(deciles) if e > quantiles[0]]
    return {
        "edges": edges,
        "shares": bin_shares(present, edges),
        "missing_share": missing,
        "quantiles": [float(q) for q in quantiles],
    }


def features_profile(frame: TrainingRows) -> dict[str, Any]:
    """The features of the training window."""
    return {
        "num_rows": frame.num_rows,
        "base_rate": frame.base_rate,
        "numeric": {name: numeric_profile(frame.values(name)) for name in frame.numeric},
        "categorical": {name: {"shares": _shares(frame.category_counts(name))} for name in frame.categorical},
    }


def scores_profile(scores: npt.NDArray[Any], baseline: Mapping[str, float]) -> dict[str, Any]:
    """The scores of the held-out rows, and how good they were."""
    score = numeric_profile(np.asarray(scores, dtype=np.float64)) | {"mean": float(np.mean(scores))}
    return {"score": score, "baseline": dict(baseline)}
