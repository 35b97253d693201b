"""Drift measures: worked examples, bounds, and agreement with scipy's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aifactory import drift

shares = st.lists(st.floats(0.001, 1), min_size=2, max_size=12).map(lambda v: [x / sum(v) for x in v])


def test_psi_worked_example():
    # (0.6 - 0.5) ln(0.6 / 0.5) + (0.4 - 0.5) ln(0.4 / 0.5) = 0.01823 + 0.02231
    assert drift.psi([0.5, 0.5], [0.6, 0.4]) == pytest.approx(0.04055, abs=1e-5)


@given(shares)
def test_psi_of_the_same_is_zero(e):
    assert drift.psi(e, e) == pytest.approx(0, abs=1e-12)


@given(shares, st.data())
def test_psi_is_symmetric_and_not_negative(e, data):
    a = data.draw(st.permutations(e))
    assert drift.psi(e, a) == pytest.approx(drift.psi(a, e))
    assert drift.psi(e, a) >= 0


def test_psi_is_finite_for_an_empty_bin():
    assert math.isfinite(drift.psi([0.5, 0.5], [1.0, 0.0]))
    assert drift.psi([0.5, 0.5], [1.0, 0.0]) > 1


def test_psi_wants_equal_bins():
    with pytest.raises(ValueError, match="2 and 3"):
        drift.psi([0.5, 0.5], [0.2, 0.3, 0.5])


def test_bins_hold_equal_shares_of_the_reference():
    values = np.random.default_rng(0).normal(size=20_000)
    edges = drift.bin_edges(np.quantile(values, np.linspace(0, 1, 201)))
    assert len(edges) == 9
    assert drift.bin_shares(values, edges)[:-1] == pytest.approx([0.1] * 10, abs=0.01)


def test_missing_values_are_a_bin_of_their_own():
    assert drift.bin_shares(np.array([1.0, 2.0, np.nan, np.nan]), [1.5]) == [0.25, 0.25, 0.5]


def test_ties_make_fewer_bins():
    assert drift.bin_edges([0.0] * 190 + [1.0] * 11) == [0.0, 1.0] or drift.bin_edges([0.0] * 190 + [1.0] * 11) == [0.0]


def test_unknown_categories_count_as_others():
    assert drift.category_shares(["a", "b", "z", None], ["a", "b"]) == [0.25, 0.25, 0.5]


def test_ks_agrees_with_scipy_on_the_full_sample():
    rng = np.random.default_rng(1)
    reference, now = rng.normal(size=50_000), rng.normal(0.15, 1, size=900)
    statistic, p = drift.ks(np.quantile(reference, np.linspace(0, 1, 2001)), now, len(reference))
    exact = stats.ks_2samp(reference, now)
    assert statistic == pytest.approx(exact.statistic, abs=0.003)
    assert (p < 0.01) == (exact.pvalue < 0.01)


def test_ks_of_the_same_distribution_is_calm_also_with_ties():
    rng = np.random.default_rng(2)
    reference, now = rng.integers(0, 5, 50_000).astype(float), rng.integers(0, 5, 900).astype(float)
    _, p = drift.ks(np.quantile(reference, np.linspace(0, 1, 201)), now, len(reference))
    assert p > 0.001


def test_ks_of_nothing_says_nothing():
    assert drift.ks([0, 1], np.array([np.nan]), 10) == (0.0, 1.0)


def test_chi_square_agrees_with_scipy():
    counts = [30, 50, 20]
    assert drift.chi_square([0.3, 0.5, 0.2], counts) == pytest.approx(1.0)
    assert drift.chi_square([0.5, 0.3, 0.2], counts) == pytest.approx(stats.chisquare(counts, [50, 30, 20]).pvalue)


def test_chi_square_merges_rare_bins():
    assert 0 <= drift.chi_square([0.98, 0.01, 0.01], [98, 2, 0]) <= 1
