"""How far data has moved from what the model learned from: pure functions of numbers.

The training window is known by a sketch that travels with the model (`training.profile`): shares of bins and of
categories, and quantiles. So a night's drift costs the night's rows alone, however long the history is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

EPSILON = 1e-4
"""Smallest share that a bin counts with, so that an empty bin gives a finite index."""
MIN_EXPECTED = 5
"""Fewest expected rows of a bin in the chi-square test (Cochran, 1954)."""


def psi(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Population stability index: sum over bins of (a - e) ln(a / e), in nats.

    It is the symmetric Kullback-Leibler divergence of Jeffreys. Below 0.1 is usually read as stable and above 0.25 as
    moved (Siddiqi, Credit Risk Scorecards, 2006); that is for large independent samples, so a line sets its own limits.
    Shares below `EPSILON` count as that.

    Args:
        expected: share of each bin in the reference, summing to 1.
        actual: share of each bin now, summing to 1.

    Raises:
        ValueError: not equally many bins, or none.
    """
    import numpy as np

    if len(expected) != len(actual) or not len(expected):
        raise ValueError(f"psi needs equally many bins, at least one, got {len(expected)} and {len(actual)}")
    e = np.maximum(np.asarray(expected, dtype=np.float64), EPSILON)
    a = np.maximum(np.asarray(actual, dtype=np.float64), EPSILON)
    e, a = e / e.sum(), a / a.sum()
    return float(np.sum((a - e) * np.log(a / e)))


def ks(quantiles: Sequence[float], values: npt.NDArray[Any], num_reference: int) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov test of values against a reference that is known by its quantiles.

    The statistic is the largest distance between the two distribution functions, exact to one over the number of
    quantiles; ties count in both at once. The p-value is that of Kolmogorov's asymptotic distribution (Smirnov, 1948)
    and takes rows for independent. Rows of one day are not, so a line decides by PSI and shows this beside it.

    Args:
        quantiles: equally spaced quantiles of the reference, minimum first, maximum last.
        values: the sample; missing values are left out.
        num_reference: how many values the reference was made of.

    Returns:
        (statistic, p-value); (0, 1) where either side is empty.
    """
    import numpy as np
    from scipy.stats import kstwobign

    sample = np.sort(values[~np.isnan(values)])
    if not len(sample) or not len(quantiles) or num_reference < 1:
        return 0.0, 1.0
    grid = np.asarray(quantiles, dtype=np.float64)
    points = np.union1d(grid, sample)
    below = np.searchsorted(grid, points, side="right") / len(grid)
    ours = np.searchsorted(sample, points, side="right") / len(sample)
    statistic = float(np.max(np.abs(ours - below)))
    effective = len(sample) * num_reference / (len(sample) + num_reference)
    return statistic, float(kstwobign.sf(np.sqrt(effective) * statistic))


def chi_square(expected: Sequence[float], counts: Sequence[float]) -> float:
    """p-value of Pearson's chi-square test that counts come from the expected shares (Pearson, 1900).

    Bins that expect fewer than `MIN_EXPECTED` rows are merged into one, and that one into the smallest other bin where
    it holds fewer rows than that too: what was rare and is rare says nothing, what was rare and is common must show.
    1 where fewer than two bins are left.

    Raises:
        ValueError: not equally many shares and counts.
    """
    import numpy as np
    from scipy.stats import chisquare

    if len(expected) != len(counts):
        raise ValueError(f"chi_square needs equally many shares and counts, got {len(expected)} and {len(counts)}")
    shares = np.maximum(np.asarray(expected, dtype=np.float64), EPSILON)
    order = np.argsort(shares, kind="stable")
    observed = np.asarray(counts, dtype=np.float64)[order]
    wanted = (shares / shares.sum())[order] * observed.sum()
    num_merged = max(int((wanted < MIN_EXPECTED).sum()), 1)
    if max(wanted[:num_merged].sum(), observed[:num_merged].sum()) < MIN_EXPECTED:
        num_merged += 1
    if len(wanted) - num_merged < 1:
        return 1.0
    observed = np.r_[observed[:num_merged].sum(), observed[num_merged:]]
    wanted = np.r_[wanted[:num_merged].sum(), wanted[num_merged:]]
    return float(chisquare(observed, wanted).pvalue)
