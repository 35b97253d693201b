"""The analyser: it rarely errs though it looks after every request, and it says what it saw.

Simulations are seeded. Their bounds are those that the confidence promises, which the runs keep by a wide margin.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm

from aifactory.line import CanaryStep, Deployment
from aifactory.reasons import ReasonCode
from aifactory.serving.analysis import (
    LATENCY_EDGES_MS,
    PAIRED_EDGES,
    SCORE_EDGES,
    Comparison,
    Counts,
    Histogram,
    Outcome,
    Verdict,
    judge,
    mean_bounds,
    quantile_bounds,
    share_bounds,
    silent,
)

LIMITS = Deployment(
    shadow_minutes=0,
    canary=[CanaryStep(percent=50, bake_minutes=1)],
    max_error_excess=0.05,
    max_latency_ratio=2,
    latency_floor_ms=1,
    max_score_shift=0.25,
)
ENOUGH = 300
RANK = {Verdict.ROLL_BACK: 0, Verdict.NO_TRAFFIC: 1, Verdict.WAIT: 1, Verdict.GO_ON: 2}


def histogram(edges: tuple[float, ...], values: npt.ArrayLike) -> Histogram:
    where = np.searchsorted(edges, np.asarray(values, dtype=float), side="left")
    return Histogram(edges=edges, counts=tuple(np.bincount(where, minlength=len(edges) + 1).tolist()))


def role(errors: int, latency_ms: npt.ArrayLike, scores: npt.ArrayLike) -> Counts:
    return Counts(
        requests=len(np.asarray(latency_ms)),
        errors=errors,
        latency_ms=histogram(LATENCY_EDGES_MS, latency_ms),
        scores=histogram(SCORE_EDGES, scores),
    )


def steady(num: int, errors: int = 0, latency_ms: float = 10.0) -> Counts:
    """So many requests, their latencies and scores spread evenly, no chance in it."""
    at = (np.arange(num) + 0.5) / max(num, 1)
    return role(errors, latency_ms * (0.5 + at), at**2)


def compared(champion: Counts, challenger: Counts, paired: Histogram | None = None) -> Comparison:
    return Comparison(generation=1, champion=champion, challenger=challenger, paired=paired)


def outcome(seen: Comparison, reason: ReasonCode) -> Outcome:
    return next(f.outcome for f in judge(seen, LIMITS, min_requests=ENOUGH).findings if f.reason is reason)


# --- worked examples
def test_bounds_of_a_share_solve_the_equation_of_the_mixture() -> None:
    lower, upper = share_bounds([0, 2, 5], [0, 2, 100], 0.05)
    assert (lower[0], upper[0]) == (0, 1)  # nothing seen, nothing known
    # of 2 in 2: the mixture is B(2.5, .5) / B(.5, .5) = 3/8, and 3/8 / p² = 20 at the lower end
    assert (lower[1], upper[1]) == (pytest.approx(math.sqrt(3 / 8 / 20), abs=1e-9), 1)
    assert 0 < lower[2] < 0.05 < upper[2] < 0.2


def test_bounds_of_a_share_cost_little_more_than_those_of_one_look() -> None:
    num, alpha = 1000, 0.05
    lower, upper = share_bounds(num // 2, num, alpha)
    one_look = 2 * norm.isf(alpha / 2) * math.sqrt(0.25 / num)
    assert one_look < upper - lower < 2 * one_look


def test_bounds_of_a_quantile_are_edges_around_it() -> None:
    values = histogram(LATENCY_EDGES_MS, (np.arange(4000) + 0.5) / 100)  # 0 to 40 ms, p95 at 38
    lower, upper = quantile_bounds(values, 0.95, 0.01)
    assert lower in LATENCY_EDGES_MS
    assert upper in LATENCY_EDGES_MS
    assert 30 < lower < 38 < upper < 41
    assert quantile_bounds(histogram(LATENCY_EDGES_MS, []), 0.95, 0.01) == (0, math.inf)


def test_bounds_of_a_mean_adapt_to_the_variance() -> None:
    close = mean_bounds(histogram(PAIRED_EDGES, [0.011, 0.031] * 250), (-1, 1), 0.01)
    wide = mean_bounds(histogram(PAIRED_EDGES, [-0.979, 0.999, 0.021, 0.041] * 125), (-1, 1), 0.01)
    assert close[0] < 0.021 < close[1]
    assert close[1] - close[0] < 0.06
    assert wide[1] - wide[0] > 0.2
    assert mean_bounds(histogram(PAIRED_EDGES, []), (-1, 1), 0.01) == (pytest.approx(-1), pytest.approx(1))


def test_equal_roles_go_on_once_there_is_enough() -> None:
    judgement = judge(compared(steady(2000), steady(2000)), LIMITS, min_requests=ENOUGH)
    assert judgement.verdict is Verdict.GO_ON
    assert [f.outcome for f in judgement.findings] == [Outcome.NO_HARM] * 3


def test_errors_roll_back_long_before_the_minimum() -> None:
    judgement = judge(compared(steady(1000), steady(8, errors=8)), LIMITS, min_requests=ENOUGH)
    assert judgement.verdict is Verdict.ROLL_BACK
    assert [f.reason for f in judgement.harms] == [ReasonCode.CANARY_ERRORS]
    for number in ["1 (surely", "exceeds 0.05", "8 requests of the challenger", "1000 of the champion"]:
        assert number in judgement.explanation


def test_errors_of_both_roles_alike_are_not_the_challengers() -> None:
    assert (
        outcome(compared(steady(20000, errors=6000), steady(20000, errors=6000)), ReasonCode.CANARY_ERRORS) == "no_harm"
    )


def test_slow_is_against_the_ratio_and_never_below_the_floor() -> None:
    slow = compared(steady(2000), steady(2000, latency_ms=40))
    assert judge(slow, LIMITS, min_requests=ENOUGH).harms[0].reason is ReasonCode.CANARY_SLOW
    fast_enough = LIMITS.model_copy(update={"latency_floor_ms": 80})
    assert judge(slow, fast_enough, min_requests=ENOUGH).verdict is Verdict.GO_ON
    tolerated = compared(steady(2000), steady(2000, latency_ms=15))
    assert judge(tolerated, LIMITS, min_requests=ENOUGH).verdict is Verdict.GO_ON


def test_slow_beyond_the_last_edge_is_slow() -> None:
    stuck = compared(steady(500), steady(500, latency_ms=2e6))
    assert judge(stuck, LIMITS, min_requests=ENOUGH).harms[0].reason is ReasonCode.CANARY_SLOW


def test_scores_with_the_same_mean_and_another_shape_have_shifted() -> None:
    champion = role(0, np.full(2000, 10), np.linspace(0, 1, 2000))
    constant = role(0, np.full(2000, 10), np.full(2000, 0.5))
    judgement = judge(compared(champion, constant), LIMITS, min_requests=ENOUGH)
    assert judgement.harms[0].reason is ReasonCode.CANARY_SCORES_SHIFTED


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.02, Verdict.GO_ON), (0.4, Verdict.ROLL_BACK), (-0.4, Verdict.ROLL_BACK)]
)
def test_shadow_compares_the_scores_of_the_same_requests(shift: float, expected: Verdict) -> None:
    differences = histogram(PAIRED_EDGES, shift + np.linspace(-0.1, 0.1, 500))
    judgement = judge(compared(steady(500), steady(500), differences), LIMITS, min_requests=ENOUGH)
    assert judgement.verdict is expected
    assert [f.reason for f in judgement.harms] == [ReasonCode.SHADOW_MISMATCH] * (expected is Verdict.ROLL_BACK)


@pytest.mark.parametrize(("champion", "challenger"), [(0, 0), (1000, 0), (1000, 1), (1, 1), (0, 1)])
def test_none_and_one_request_are_no_traffic_and_never_more(champion: int, challenger: int) -> None:
    for errors in {0, challenger}:
        judgement = judge(compared(steady(champion), steady(challenger, errors)), LIMITS, min_requests=ENOUGH)
        assert judgement.verdict is Verdict.NO_TRAFFIC
        assert judgement.explanation


def test_requests_of_the_challenger_alone_prove_nothing() -> None:
    assert judge(compared(steady(0), steady(5000)), LIMITS, min_requests=ENOUGH).verdict is Verdict.WAIT


def test_an_answer_without_a_score_does_not_count_as_good() -> None:
    mute = steady(2000).model_copy(update={"scores": histogram(SCORE_EDGES, [])})
    assert judge(compared(steady(2000), mute), LIMITS, min_requests=ENOUGH).verdict is Verdict.WAIT


@pytest.mark.parametrize(
    ("champion", "challenger", "percent", "expected"),
    [
        (1000, 0, 5, True),
        (60, 0, 5, False),
        (0, 0, 5, False),
        (950, 50, 5, False),
        (4750, 50, 5, True),
        (500, 0, 50, True),
    ],
)
def test_silence_of_the_challenger_alone_is_told_from_silence(
    champion: int, challenger: int, percent: int, expected: bool
) -> None:
    assert silent(compared(steady(champion), steady(challenger)), percent, LIMITS) is expected


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: Histogram(edges=(1.0, 2.0), counts=(1, 2)), "2 edges need 3 counts"),
        (lambda: Histogram(edges=(2.0, 1.0), counts=(1, 2, 3)), "edges must rise"),
        (lambda: Histogram(edges=(1.0,), counts=(1, -2)), "-2"),
        (lambda: steady(1).model_validate({**vars(steady(1)), "errors": 2}), "errors 2 exceed requests 1"),
        (
            lambda: compared(steady(1), Counts(**{**vars(steady(1)), "scores": histogram((0.5,), [1])})),
            "between the same edges",
        ),
    ],
)
def test_counts_that_cannot_be_are_refused(broken, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        broken()


# --- simulations, a look after every request
RUNS, LENGTH = 500, 1500


def looks(seed: int, share: float) -> npt.NDArray[np.int64]:
    """Running number of failures, run by request."""
    return np.cumsum(np.random.default_rng(seed).random((RUNS, LENGTH)) < share, axis=1)


def bounds_of(seen: npt.NDArray[np.int64], alpha: float) -> npt.NDArray[np.float64]:
    """`share_bounds` after every request of every run; equal counts are worked out once."""
    cells, where = np.unique(seen * (LENGTH + 1) + np.arange(1, LENGTH + 1), return_inverse=True)
    bounds = share_bounds(cells // (LENGTH + 1), cells % (LENGTH + 1), alpha)
    return np.stack(bounds)[:, where].reshape(2, RUNS, LENGTH)


def ever(champion: float, challenger: float, margin: float, alpha: float) -> tuple[float, float]:
    """Shares of the runs that ever show harm, and that ever show its absence, looking after every pair of requests."""
    old = bounds_of(looks(1, champion), alpha / 2)
    new = bounds_of(looks(2, challenger), alpha / 2)
    harm = (new[0] - old[1] > margin).any(axis=1).mean()
    safe = (new[1] - old[0] <= margin).any(axis=1).mean()
    return float(harm), float(safe)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_a_share_is_ever_outside_its_bounds_as_rarely_as_promised(share: float) -> None:
    lower, upper = bounds_of(looks(3, share), 0.05)
    assert ((share < lower) | (share > upper)).any(axis=1).mean() <= 0.05


def test_looking_often_would_deceive_a_test_of_one_look() -> None:
    num = np.arange(1, LENGTH + 1)
    share = looks(3, 0.2) / num
    z = np.abs(share - 0.2) / np.sqrt(0.2 * 0.8 / num)
    assert (z[:, 30:] > norm.isf(0.025)).any(axis=1).mean() > 0.25  # and 0.05 is what it promises


def test_errors_under_the_null_rarely_roll_back_and_go_on_in_the_end() -> None:
    harm, safe = ever(0.02, 0.02, margin=0.05, alpha=0.05)
    assert harm <= 0.05
    assert safe > 0.95


def test_errors_at_the_margin_go_neither_way_but_rarely() -> None:
    harm, safe = ever(0.02, 0.07, margin=0.05, alpha=0.05)
    assert harm <= 0.05
    assert safe <= 0.05


def test_errors_under_harm_rarely_go_on_and_roll_back_in_the_end() -> None:
    harm, safe = ever(0.02, 0.17, margin=0.05, alpha=0.05)
    assert safe <= 0.05
    assert harm > 0.95


def verdicts(seed: int, runs: int, *, error: float = 0.01, slower: float = 1.0, moved: float = 0.0) -> list[Verdict]:
    """The first verdict of each run that decides, looking whole every 150 requests; WAIT where 2,000 decide nothing."""
    rng = np.random.default_rng(seed)
    decided = []
    for _ in range(runs):
        old_ms, new_ms = rng.lognormal(2, 0.4, 2000), slower * rng.lognormal(2, 0.4, 2000)
        old_scores, new_scores = rng.beta(2, 5, 2000), np.clip(rng.beta(2, 5, 2000) + moved, 0, 1)
        failed = rng.random((2, 2000)) < np.array([[0.01], [error]])
        verdict = Verdict.WAIT
        for n in range(50, 2001, 150):
            old = role(int(failed[0, :n].sum()), old_ms[:n], old_scores[:n])
            new = role(int(failed[1, :n].sum()), new_ms[:n], new_scores[:n])
            verdict = judge(compared(old, new), LIMITS, min_requests=ENOUGH).verdict
            if verdict in {Verdict.ROLL_BACK, Verdict.GO_ON}:
                break
        decided.append(verdict)
    return decided


def test_a_good_challenger_goes_on() -> None:
    assert verdicts(5, 60).count(Verdict.GO_ON) >= 57


@pytest.mark.parametrize("harm", [{"error": 0.2}, {"slower": 4.0}, {"moved": 0.4}])
def test_a_bad_challenger_is_rolled_back_and_never_goes_on(harm: dict[str, float]) -> None:
    assert verdicts(6, 20, **harm) == [Verdict.ROLL_BACK] * 20


def test_means_are_ever_outside_their_bounds_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(7)
    outside = 0
    for _ in range(40):
        values = 2 * rng.beta(8, 12, 400) - 1  # mean -0.2
        bounds = [mean_bounds(histogram(PAIRED_EDGES, values[:n]), (-1, 1), 0.05) for n in (50, 150, 400)]
        outside += any(not low <= -0.2 <= high for low, high in bounds)
    assert outside <= 2


# --- monotony
counts = st.integers(0, 400)


@given(st.integers(1, 400), st.data())
def test_bounds_rise_with_successes_and_close_in_on_the_share(total: int, data: st.DataObject) -> None:
    s = data.draw(st.integers(0, total - 1))
    lower, upper = share_bounds([s, s + 1], total, 0.01)
    assert lower[0] <= s / total <= upper[0]
    assert lower[0] <= lower[1]
    assert upper[0] <= upper[1]


@settings(deadline=None, max_examples=60)
@given(champion=counts, challenger=st.integers(1, 400), data=st.data())
def test_more_errors_never_help(champion: int, challenger: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, challenger - 1))
    old = steady(champion, errors=data.draw(st.integers(0, champion)))
    fewer, more = (
        judge(compared(old, steady(challenger, errors=e)), LIMITS, min_requests=100).verdict
        for e in (errors, errors + 1)
    )
    assert RANK[more] <= RANK[fewer]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.2, 200), min_size=1, max_size=300), st.data())
def test_a_slower_answer_never_helps(latencies: list[float], data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(latencies) - 1))
    slower = [*latencies]
    slower[which] *= data.draw(st.floats(1, 1000))
    champion = steady(data.draw(counts))
    before, after = (
        judge(compared(champion, role(0, v, np.linspace(0, 1, len(v)) ** 2)), LIMITS, min_requests=100).verdict
        for v in (latencies, slower)
    )
    assert RANK[after] <= RANK[before]


@settings(deadline=None)
@given(champion=counts, challenger=counts, data=st.data())
def test_below_the_minimum_nothing_goes_on(champion: int, challenger: int, data: st.DataObject) -> None:
    new = steady(challenger, errors=data.draw(st.integers(0, challenger)))
    verdict = judge(compared(steady(champion), new), LIMITS, min_requests=challenger + 1).verdict
    assert verdict in {Verdict.NO_TRAFFIC, Verdict.ROLL_BACK}
