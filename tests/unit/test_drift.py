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
numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60).map(np.array)


def quantiles(values, num=201):
    return np.quantile(values, np.linspace(0, 1, num)).tolist()


# --- PSI
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


@given(shares, st.data())
def test_psi_does_not_depend_on_the_order_of_bins(e, data):
    a = data.draw(st.permutations(e))
    order = data.draw(st.permutations(range(len(e))))
    assert drift.psi([e[n] for n in order], [a[n] for n in order]) == pytest.approx(drift.psi(e, a))


def test_psi_is_finite_for_an_empty_bin_and_large():
    moved = drift.psi([0.5, 0.5], [1.0, 0.0])
    assert math.isfinite(moved)
    assert moved > 1


@pytest.mark.parametrize(("e", "a"), [([0.5, 0.5], [0.2, 0.3, 0.5]), ([], [])])
def test_psi_wants_equal_bins(e, a):
    with pytest.raises(ValueError, match="equally many bins"):
        drift.psi(e, a)


# --- Kolmogorov-Smirnov
def test_ks_worked_example():
    # reference 0..4, sample all at 4: just below 4 the reference has 4/5 of its mass, the sample none
    assert drift.ks([0, 1, 2, 3, 4], np.full(10, 4.0), 5)[0] == pytest.approx(0.8)


def test_ks_agrees_with_scipy_on_the_full_sample():
    rng = np.random.default_rng(1)
    reference, now = rng.normal(size=50_000), rng.normal(0.15, 1, size=900)
    statistic, p = drift.ks(quantiles(reference), now, len(reference))
    exact = stats.ks_2samp(reference, now)
    assert statistic == pytest.approx(exact.statistic, abs=0.006)
    assert p < 0.001
    assert exact.pvalue < 0.001


def test_ks_of_the_same_distribution_is_calm_also_with_ties():
    rng = np.random.default_rng(2)
    reference, now = rng.integers(0, 5, 50_000).astype(float), rng.integers(0, 5, 900).astype(float)
    assert drift.ks(quantiles(reference), now, len(reference))[1] > 0.05


def test_ks_leaves_missing_values_out():
    now = np.array([1.0, np.nan, 3.0])
    assert drift.ks([0, 1, 2, 3], now, 4) == drift.ks([0, 1, 2, 3], np.array([1.0, 3.0]), 4)


@pytest.mark.parametrize(("reference", "now"), [([0, 1], [math.nan]), ([], [1.0])])
def test_ks_of_nothing_says_nothing(reference, now):
    assert drift.ks(reference, np.array(now), 10) == (0.0, 1.0)


@given(numbers, numbers)
def test_ks_stays_within_its_bounds(reference, now):
    statistic, p = drift.ks(np.sort(reference).tolist(), now, len(reference))
    assert statistic == pytest.approx(stats.ks_2samp(reference, now).statistic)
    assert 0 <= p <= 1


@given(numbers)
def test_ks_of_a_sample_with_itself_is_zero(values):
    assert drift.ks(np.sort(values).tolist(), values, len(values)) == (0.0, 1.0)


# --- chi-square
def test_chi_square_worked_example():
    counts = [30, 50, 20]
    assert drift.chi_square([0.3, 0.5, 0.2], counts) == pytest.approx(1.0)
    assert drift.chi_square([0.5, 0.3, 0.2], counts) == pytest.approx(stats.chisquare(counts, [50, 30, 20]).pvalue)


def test_chi_square_merges_bins_that_expect_too_few():
    # 2 + 2 expected rows are still too few together, so they join the next smallest bin
    merged = stats.chisquare([24, 76], [34, 66]).pvalue
    assert drift.chi_square([0.02, 0.02, 0.3, 0.66], [2, 2, 20, 76]) == pytest.approx(merged)


def test_chi_square_of_one_bin_says_nothing():
    assert drift.chi_square([1.0], [10]) == 1.0
    assert drift.chi_square([0.5, 0.5], [2, 1]) == 1.0


def test_chi_square_sees_a_category_that_was_never_there():
    assert drift.chi_square([0.5, 0.5, 0.0], [300, 300, 400]) < 1e-6
    assert drift.chi_square([0.5, 0.5, 0.0], [500, 0, 500]) < 1e-6
    assert drift.chi_square([0.5, 0.5, 0.0], [500, 498, 2]) > 0.9


def test_chi_square_wants_equal_lengths():
    with pytest.raises(ValueError, match="3 and 2"):
        drift.chi_square([0.2, 0.3, 0.5], [1, 2])


@given(shares, st.data())
def test_chi_square_is_a_probability(e, data):
    counts = data.draw(st.lists(st.integers(0, 1000), min_size=len(e), max_size=len(e)).filter(any))
    assert 0 <= drift.chi_square(e, counts) <= 1
