"""What a window is, what it measures, and the rule: pure decisions."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifactory import feedback
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY
from aifactory.stages.train import split_days
from aifactory.training import profile

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")


@pytest.fixture
def spec():
    rule = SPEC.feedback.model_copy(
        update={"rule_violations": 2, "rule_windows": 5, "cooldown_days": 3, "cadence_days": 14, "window_days": 3}
    )
    return SPEC.model_copy(update={"feedback": rule})


def with_feedback(spec, **changes):
    return spec.model_copy(update={"feedback": spec.feedback.model_copy(update=changes)})


# --- windows
def scored(*versions: str) -> dict[str, dict]:
    return {f"2026-06-{n:02d}": {"model_version": v} for n, v in enumerate(versions, start=1)}


def test_a_window_is_the_newest_days_of_one_model(spec):
    days = scored("1", "1", "1", "1", "2", "2")
    assert feedback.window_days(spec, "2026-06-04", days) == ["2026-06-02", "2026-06-03", "2026-06-04"]
    assert feedback.window_days(spec, "2026-06-05", days) == ["2026-06-05"]
    assert feedback.window_days(spec, "2026-06-06", days) == ["2026-06-05", "2026-06-06"]


def test_a_window_steps_over_a_gap_but_not_into_an_earlier_life(spec):
    days = scored("1", "1", "1", "2", "1")
    assert feedback.window_days(spec, "2026-06-05", days) == ["2026-06-02", "2026-06-03", "2026-06-05"]
    days["2026-06-20"] = {"model_version": "1"}
    assert feedback.window_days(spec, "2026-06-20", days) == ["2026-06-20"]


def test_outcomes_are_due_by_the_calendar_of_the_data(spec):
    late = with_feedback(spec, label_delay_hours=30)
    assert feedback.outcomes_due(spec, "2026-06-05", "2026-06-05")
    assert not feedback.outcomes_due(late, "2026-06-05", "2026-06-06")
    assert feedback.outcomes_due(late, "2026-06-05", "2026-06-07")


def test_outcomes_are_joined_by_key_in_the_units_order():
    at = datetime(2026, 6, 1, 12, tzinfo=UTC)
    keys = [("AA", 1, "JFK", at), ("AA", 2, "JFK", at), ("AA", 1, "JFK", at + timedelta(hours=1))]
    named = ["carrier", "flight", "origin", "scheduled_departure"]
    units = pa.table({name: [k[n] for k in keys] for n, name in enumerate(named)} | {"delayed": [0, None, 1]})
    made = pa.table({name: [keys[n][i] for n in (2, 0)] for i, name in enumerate(named)} | {"score": [0.9, 0.1]})
    joined = feedback.join_outcomes(SPEC, made, units)
    assert joined["score"].to_pylist() == [0.1, 0.9]
    assert joined["delayed"].to_pylist() == [0, 1]


# --- measuring
def test_numeric_drift_of_the_same_data_is_none_and_of_other_data_is_large():
    rng = np.random.default_rng(0)
    reference = profile.numeric_profile(np.where(rng.random(20_000) < 0.1, np.nan, rng.normal(size=20_000)))
    same = np.where(rng.random(20_000) < 0.1, np.nan, rng.normal(size=20_000))
    assert feedback.numeric_drift(reference, same, 20_000)["psi"] < 0.01
    assert feedback.numeric_drift(reference, same + 1, 20_000)["psi"] > 0.5
    assert feedback.numeric_drift(reference, same + 1, 20_000)["ks"] > 0.3


def test_a_sensor_that_falls_silent_is_drift_also_when_it_was_silent_in_training():
    known = profile.numeric_profile(np.arange(1000.0))
    silent = profile.numeric_profile(np.full(1000, np.nan))
    assert feedback.numeric_drift(known, np.full(100, np.nan), 1000)["psi"] > 1
    assert feedback.numeric_drift(silent, np.arange(100.0), 1000)["psi"] > 1
    assert feedback.numeric_drift(silent, np.full(100, np.nan), 1000)["psi"] == 0


def test_categories_that_training_never_saw_are_drift():
    column = pa.chunked_array([["JFK"] * 500 + ["EWR"] * 500])
    shares = profile.category_shares(column)
    same = feedback.categorical_drift(shares, column)
    assert same["psi"] == 0
    assert same["p_value"] > 0.9
    moved = feedback.categorical_drift(shares, pa.chunked_array([["JFK"] * 500 + ["XXX"] * 500]))
    assert moved["psi"] > 1
    assert moved["p_value"] < 1e-6


def test_metrics_of_one_class_leave_out_what_is_undefined():
    said = feedback.live_metrics(np.zeros(10), np.full(10, 0.2))
    assert "roc_auc" not in said
    assert said["brier"] == pytest.approx(0.04)
    assert feedback.live_metrics(np.array([]), np.array([])) == {}


# --- limits
CALM = {
    "primary": "roc_auc",
    "num_days": 3,
    "released": {"roc_auc": 0.75},
    "metrics": {"roc_auc": 0.74, "calibration_error": 0.05},
    "drift": {"score_psi": 0.1, "drifted_share": 0.1, "num_drifted": 1, "features": {"a": {}, "b": {}}},
}


@pytest.fixture
def limits(spec):
    return spec.feedback.model_copy(
        update={"max_metric_drop": 0.05, "max_calibration_error": 0.1, "max_score_psi": 0.25, "max_drifted_share": 0.3}
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics": {"roc_auc": 0.69}}, "roc_auc 0.690 is 0.060 below the 0.750"),
        ({"metrics": {"roc_auc": 0.75, "calibration_error": 0.2}}, r"calibration error 0.200 \(limit 0.1\)"),
        ({"drift": CALM["drift"] | {"score_psi": 0.4}}, r"score PSI 0.400 \(limit 0.25\)"),
        ({"drift": CALM["drift"] | {"drifted_share": 0.5, "num_drifted": 1}}, "1 of 2 features have a PSI over"),
    ],
)
def test_a_broken_limit_is_named_with_its_number(limits, change, named):
    assert feedback.violations(limits, CALM) == []
    [said] = feedback.violations(limits, CALM | change)
    assert re.search(named, said)
    assert feedback.violations(limits, CALM | change | {"num_days": 2}) == [], "a forming window breaks nothing"


def test_an_undefined_metric_breaks_no_limit(limits):
    assert feedback.violations(limits, CALM | {"metrics": {}}) == []
    assert feedback.violations(limits, CALM | {"released": {}}) == []


@given(
    num_days=st.integers(0, 5),
    num_outcomes=st.integers(0, 1000),
    shadow=st.booleans(),
    window_days=st.integers(1, 5),
    least=st.integers(1, 1000),
)
def test_live_answers_are_judged_where_there_are_enough_of_them(num_days, num_outcomes, shadow, window_days, least):
    limits = SPEC.feedback.model_copy(update={"window_days": window_days, "min_live_outcomes": least})
    served = {"num_days": num_days, "num_outcomes": num_outcomes, "shadow": shadow}
    wanted = not shadow and num_days >= window_days and num_outcomes >= least
    assert feedback.live_enough(limits, served) == wanted


# --- the rule
def windows(*broken: int) -> list[dict]:
    """1: a limit is broken by the batch, 2: by live answers, 3: by both."""
    return [
        {"day": f"2026-06-{n + 1:02d}", "violations": ["x"] if b % 2 else [], "live_violations": ["y"] if b > 1 else []}
        for n, b in enumerate(broken)
    ]


def test_two_of_five_call_and_one_does_not(spec):
    called = feedback.decide(spec, windows(0, 1, 0, 0, 1), "2026-05-31", "2026-06-05", [])
    assert called.retrain
    assert called.reason is ReasonCode.DRIFT
    assert "2 of the 5" in called.explanation
    assert not feedback.decide(spec, windows(0, 1, 0, 0, 0), "2026-05-31", "2026-06-05", []).retrain


def test_live_answers_count_as_batches_do_and_a_window_counts_once(spec):
    called = feedback.decide(spec, windows(0, 2, 0, 0, 1), "2026-05-31", "2026-06-05", [])
    assert (called.retrain, called.reason) == (True, ReasonCode.LIVE_DECAY)
    assert "2 of the 5 newest windows broke a limit, 1 by live answers alone, 2 call" in called.explanation
    live = feedback.decide(spec, windows(0, 2, 0, 0, 2), "2026-05-31", "2026-06-05", [])
    assert live.reason is ReasonCode.LIVE_DECAY
    assert live.explanation.endswith("on 2026-06-05: live y")
    both = feedback.decide(spec, windows(0, 3, 0, 0, 3), "2026-05-31", "2026-06-05", [])
    assert both.reason is ReasonCode.DRIFT, "the batches alone would have called"
    assert not feedback.decide(spec, windows(0, 0, 3, 0, 0), "2026-05-31", "2026-06-05", []).retrain, "one window"


def test_only_the_newest_windows_count(spec):
    assert not feedback.decide(spec, windows(1, 1, 0, 0, 0, 0, 0), "2026-05-31", "2026-06-07", []).retrain


def test_after_a_call_that_came_to_nothing_only_the_windows_since_count(spec):
    def again(*broken: int) -> feedback.Decision:
        return feedback.decide(spec, windows(*broken), "2026-05-31", f"2026-06-{len(broken):02d}", ["2026-06-02"])

    assert not again(1, 1, 1).retrain, "cooldown"
    assert not again(1, 1, 0, 0, 0, 0).retrain, "what called once does not call again"
    assert again(1, 1, 1, 1, 0, 0).reason is ReasonCode.DRIFT


def test_the_cadence_stays_due_after_a_refusal(spec):
    due = with_feedback(spec, cadence_days=7, cooldown_days=3)
    assert feedback.decide(due, [], "2026-06-01", "2026-06-08", []).reason is ReasonCode.CADENCE_DUE
    assert not feedback.decide(due, [], "2026-06-01", "2026-06-07", []).retrain
    assert not feedback.decide(due, [], "2026-06-01", "2026-06-10", ["2026-06-08"]).retrain
    assert feedback.decide(due, [], "2026-06-01", "2026-06-11", ["2026-06-08"]).reason is ReasonCode.CADENCE_DUE


def test_without_cooldown_there_is_still_one_call_a_day(spec):
    eager = with_feedback(spec, cadence_days=1, cooldown_days=0)
    assert not feedback.decide(eager, windows(1, 1), "2026-06-01", "2026-06-08", ["2026-06-08"]).retrain
    assert feedback.decide(eager, [], "2026-06-01", "2026-06-09", ["2026-06-08"]).retrain


def test_the_first_model_waits_for_data_and_for_the_cooldown(spec):
    needed = spec.dataset.min_train_days + spec.dataset.holdout_days
    days = [f"{date(2026, 1, 1) + timedelta(days=n)}" for n in range(needed)]
    assert split_days(spec, days, None)["refit"] == days, "so that a called training is not refused for too few days"
    assert not feedback.decide_first(spec, needed - 1, "2026-06-05", []).retrain
    assert feedback.decide_first(spec, needed, "2026-06-05", []).reason is ReasonCode.FIRST_MODEL
    assert not feedback.decide_first(spec, needed, "2026-06-05", ["2026-06-05"]).retrain
    assert feedback.decide_first(spec, needed, "2026-06-08", ["2026-06-05"]).retrain


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5), st.integers(1, 5))
def test_the_rule_counts_the_newest_windows(broken, least, span):
    spec = with_feedback(SPEC, rule_violations=min(least, span), rule_windows=span, cadence_days=400)
    decision = feedback.decide(spec, windows(*broken), "2026-05-31", "2026-06-25", [])
    assert decision.retrain == (sum(map(bool, broken[-span:])) >= min(least, span))
    if decision.retrain:
        by_batch = sum(b % 2 for b in broken[-span:]) >= min(least, span)
        assert decision.reason is (ReasonCode.DRIFT if by_batch else ReasonCode.LIVE_DECAY)
