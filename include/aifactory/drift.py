"""How far data has moved from what the model learned from: pure functions of numbers.

The training window is kept as a sketch: quantiles of numeric columns, shares of categories. Missing values are a bin of
their own, so that a sensor that falls silent counts as drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUM_BINS = 10
"""Bins of the population stability index, the usual number."""
EPSILON = 1e-4
"""Smallest share that a bin counts with, so that an empty bin gives a finite index."""


def psi(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Population stability index: sum over bins of (a - e) ln(a / e), in nats.

    Below 0.1 is usually read as stable, above 0.25 as moved (Siddiqi, Credit Risk Scorecards, 2006). It is the symmetric
    Kullback-Leibler divergence (Jeffreys). Shares below `EPSILON` count as that.

    Args:
        expected: share of each bin in the reference, summing to 1.
        actual: share of each bin now, summing to 1.

    Raises:
        ValueError: not equally many bins, or none.
    """
    import numpy as np

    if len(expected) != len(actual) or not len(expected):
        raise ValueError(f"psi needs equally many bins, got {len(expected)} and {len(actual)}")
    e = np.maximum(np.asarray(expected, dtype=np.float64), EPSILON)
    a = np.maximum(np.asarray(actual, dtype=np.float64), EPSILON)
    e, a = e / e.sum(), a / a.sum()
    return float(np.sum((a - e) * np.log(a / e)))


def bin_edges(quantiles: Sequence[float]) -> list[float]:
    """Inner edges of `NUM_BINS` bins that hold equal shares of the reference; ties make fewer bins.

    Args:
        quantiles: equally spaced quantiles of the reference, minimum first, maximum last.
    """
    steps = len(quantiles) - 1
    inner = [float(quantiles[round(steps * n / NUM_BINS)]) for n in range(1, NUM_BINS)]
    return sorted(set(inner))


def bin_shares(values: npt.NDArray[np.floating[Any]], edges: Sequence[float]) -> list[float]:
    """Share of the values in each bin (edge belongs to the bin below it), and last the share of missing ones."""
    import numpy as np

    missing = np.isnan(values)
    counts = np.bincount(np.searchsorted(np.asarray(edges), values[~missing], side="left"), minlength=len(edges) + 1)
    return [float(n) / max(len(values), 1) for n in (*counts, missing.sum())]


def category_shares(values: Sequence[str | None], known: Sequence[str]) -> list[float]:
    """Share of each known category, and last the share of all others (unknown or missing)."""
    from collections import Counter

    counts = Counter(values)
    total = max(len(values), 1)
    shares = [counts[name] / total for name in known]
    return [*shares, max(1.0 - sum(shares), 0.0)]


def ks(quantiles: Sequence[float], values: npt.NDArray[np.floating[Any]], num_reference: int) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov test of values against a reference that is known by its quantiles.

    The statistic is the largest distance between the two distribution functions, the reference's interpolated between
    its quantiles; the p-value is that of the asymptotic distribution (Smirnov, 1948).

    Args:
        quantiles: equally spaced quantiles of the reference.
        values: the sample; missing values are left out.
        num_reference: how many values the reference was made of.

    Returns:
        (statistic, p-value); (0, 1) for an empty sample.
    """
    import numpy as np
    from scipy.stats import kstwobign

    sample = np.sort(values[~np.isnan(values)])
    if not len(sample) or num_reference < 1:
        return 0.0, 1.0
    grid = np.asarray(quantiles, dtype=np.float64)
    levels = np.linspace(0.0, 1.0, len(grid))
    upper = np.array(
        [levels[np.searchsorted(grid, v, side="right") - 1] if v >= grid[0] else 0.0 for v in np.unique(sample)]
    )
    points = np.unique(sample)
    inside = np.interp(points, grid, levels)
    reference = np.maximum(upper, inside)
    ours = np.searchsorted(sample, points, side="right") / len(sample)
    statistic = float(np.max(np.abs(ours - reference)))
    effective = len(sample) * num_reference / (len(sample) + num_reference)
    return statistic, float(kstwobign.sf(np.sqrt(effective) * statistic))


def chi_square(expected: Sequence[float], counts: Sequence[float]) -> float:
    """p-value of Pearson's chi-square test that counts come from the expected shares.

    Bins that expect fewer than five are merged into one (Cochran's rule).
    """
    from scipy.stats import chisquare

    total = float(sum(counts))
    pairs = [(share * total, count) for share, count in zip(expected, counts, strict=True)]
    large = [p for p in pairs if p[0] >= 5]
    rest = (sum(p[0] for p in pairs if p[0] < 5), sum(p[1] for p in pairs if p[0] < 5))
    bins = [*large, rest] if rest[0] > 0 else large
    if len(bins) < 2:
        return 1.0
    scale = sum(b[1] for b in bins) / sum(b[0] for b in bins)
    return float(chisquare([b[1] for b in bins], [b[0] * scale for b in bins]).pvalue)


def num_over(values: Mapping[str, float], limit: float) -> int:
    """How many values lie above a limit."""
    return sum(value > limit for value in values.values())
