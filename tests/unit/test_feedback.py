"""The retrain rule and the choice of an honest model: pure decisions."""

from __future__ import annotations

import pytest

from aifactory import scoring
from aifactory.feedback import decide, violations
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")


@pytest.fixture
def spec():
    rule = SPEC.feedback.model_copy(
        update={"rule_violations": 2, "rule_windows": 5, "cooldown_days": 3, "cadence_days": 14}
    )
    return SPEC.model_copy(update={"feedback": rule})


def windows(*broken: int) -> list[dict]:
    return [{"day": f"2026-06-{n + 1:02d}", "violations": ["x"] if b else []} for n, b in enumerate(broken)]


def test_two_of_five_call_and_one_does_not(spec):
    called = decide(spec, windows(0, 1, 0, 0, 1), "2026-05-31", "2026-06-05", [])
    assert called.retrain
    assert called.reason is ReasonCode.DRIFT
    assert "2 of the 5" in called.explanation
    assert not decide(spec, windows(0, 1, 0, 0, 0), "2026-05-31", "2026-06-05", []).retrain


def test_only_the_newest_windows_count(spec):
    assert not decide(spec, windows(1, 1, 0, 0, 0, 0, 0), "2026-05-31", "2026-06-07", []).retrain


def test_cooldown_holds_and_earlier_windows_do_not_call_twice(spec):
    assert not decide(spec, windows(1, 1, 1), "2026-05-31", "2026-06-03", ["2026-06-02"]).retrain
    assert not decide(spec, windows(1, 1, 0, 0, 0, 0), "2026-05-31", "2026-06-06", ["2026-06-02"]).retrain
    assert decide(spec, windows(1, 1, 1, 1, 0, 0), "2026-05-31", "2026-06-06", ["2026-06-02"]).retrain


def test_cadence(spec):
    due = decide(spec, windows(0), "2026-05-31", "2026-06-14", [])
    assert due.reason is ReasonCode.CADENCE_DUE
    assert not decide(spec, windows(0), "2026-05-31", "2026-06-13", []).retrain


def test_violations_name_the_number_and_the_limit():
    limits = SPEC.feedback.model_copy(
        update={"max_metric_drop": 0.05, "max_calibration_error": 0.1, "max_score_psi": 0.25, "max_drifted_share": 0.3}
    )
    calm = {
        "primary": "roc_auc",
        "metrics": {"roc_auc": 0.74, "calibration_error": 0.05},
        "drift": {"score_psi": 0.1, "drifted_share": 0.1, "num_drifted": 1, "features": {"a": {}}},
    }
    assert violations(limits, calm, 0.75) == []
    assert violations(limits, calm | {"metrics": {"roc_auc": 0.69}}, 0.75) == [
        "roc_auc 0.690 is 0.060 below the released 0.750 (limit 0.05)"
    ]
    assert "calibration error 0.200" in violations(limits, calm | {"metrics": {"calibration_error": 0.2}}, 0.75)[0]
    assert "score PSI 0.400" in violations(limits, calm | {"drift": calm["drift"] | {"score_psi": 0.4}}, None)[0]


REIGNS = [
    {"version": "1", "trained_until": "2026-06-10"},
    {"version": "2", "trained_until": "2026-06-20"},
]


def test_a_day_is_scored_by_the_newest_model_that_has_not_learned_from_it():
    assert scoring.honest_reign(REIGNS, "2026-06-21")["version"] == "2"
    assert scoring.honest_reign(REIGNS, "2026-06-20")["version"] == "1"
    assert scoring.honest_reign(REIGNS, "2026-06-10") is None


def test_a_rollback_counts_as_the_newest_reign():
    assert scoring.honest_reign([*REIGNS, REIGNS[0]], "2026-06-25")["version"] == "1"


def test_pending_days():
    content = {"2026-06-09": "a", "2026-06-12": "b", "2026-06-21": "c", "2026-06-22": "d"}
    done = {
        "2026-06-12": {"content": "b", "model_version": "1"},
        "2026-06-21": {"content": "before", "model_version": "1"},
    }
    todo = [(day, reign["version"]) for day, reign in scoring.pending(REIGNS, content, done)]
    assert todo == [("2026-06-21", "1"), ("2026-06-22", "2")]
