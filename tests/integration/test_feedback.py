"""feedback with the real stores: what is judged, and that a retrain is called for exactly once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, small_line
from tests.served import commit, commit_days, contents, days_between, rows_of, serve

from aifactory.factory import Factory
from aifactory.ledger import EventKind
from aifactory.line import LineSpec
from aifactory.scoring import predictions_key
from aifactory.stages.feedback import decide, judge, window_key
from aifactory.stages.score import score

pytestmark = pytest.mark.integration

LIMITS = {
    "window_days": 2,
    "rule_violations": 2,
    "rule_windows": 3,
    "cadence_days": 30,
    "cooldown_days": 2,
    "max_metric_drop": 1.0,
    "max_calibration_error": 1.0,
    "max_score_psi": 1000.0,
    "max_drifted_share": 1.0,
    "label_delay_hours": 0,
}


@pytest.fixture
def line() -> LineSpec:
    return small_line(feedback=LIMITS)


def strict() -> LineSpec:
    """Breaks its limits whatever comes."""
    return small_line(feedback=LIMITS | {"max_calibration_error": 0.0})


def night(f: Factory, spec: LineSpec, day: str) -> dict:
    """One night without the training."""
    commit_days(f, spec, day, day)
    score(f, spec, day, f"score-{day}")
    judge(f, spec, day, f"judge-{day}")
    return decide(f, spec, day, f"decide-{day}")


# --- judging
def test_a_window_says_what_came_true(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "run")
    said = judge(f, line, "2013-02-03", "run")
    assert said["days"] == ["2013-02-01", "2013-02-02", "2013-02-03"]
    window = f.store.get_json(window_key(line.line, "2013-02-03"))
    assert window["num_days"] == 2
    assert window["model_version"] == "1"
    assert window["dataset_revision"]

    rows = pa.concat_tables([rows_of("2013-02-02"), rows_of("2013-02-03")])
    scores = np.concatenate(
        [f.store.get_table(predictions_key(line.line, d))["score"].to_numpy() for d in ("2013-02-02", "2013-02-03")]
    )
    known = np.asarray(pc.is_valid(rows[TARGET]))
    y, p = rows[TARGET].filter(pa.array(known)).to_numpy(), scores[known]
    assert window["num_scored"] == len(scores)
    assert window["num_outcomes"] == known.sum() < len(scores), "cancelled flights have no outcome"
    assert window["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-6)
    assert window["metrics"]["average_precision"] == pytest.approx(average_precision_score(y, p), abs=1e-6)
    assert window["metrics"]["brier"] == pytest.approx(brier_score_loss(y, p), abs=1e-6)
    assert set(window["drift"]["features"]) == {*CATEGORICAL, *NUMERIC}
    moved = window["drift"]["features"]["day_of_week"]  # a weekend
    assert moved["psi"] > 0.5
    assert moved["ks"] == pytest.approx(5 / 7, abs=0.08)
    assert "day_of_week" in window["drift"]["drifted"]
    assert window["drift"]["features"]["carrier"]["psi"] < 0.1

    page = f.store.get(window["report"]).decode()
    assert "day_of_week" in page
    for name in ("metric", "drift", "calibration"):
        assert f.store.get(window["report"].replace("index.html", f"{name}.png")).startswith(b"\x89PNG")


def test_judging_twice_is_judging_once_and_a_correction_is_judged_anew(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "run")
    judge(f, line, None, "run")
    before = contents(f, "feedback/", "reports/flight_delay/feedback/")
    assert judge(f, line, None, "again")["days"] == []
    f.store.delete(f"feedback/{line.line}/index.json")  # a crash before the index was written
    assert len(judge(f, line, None, "crashed")["days"]) == 3
    assert contents(f, "feedback/", "reports/flight_delay/feedback/") == before

    commit(f, line, {"2013-02-02": rows_of("2013-02-02").slice(10)})
    score(f, line, None, "corrected")
    assert judge(f, line, None, "corrected")["days"] == ["2013-02-02", "2013-02-03"], "both windows that hold the day"


def test_outcomes_that_are_not_in_yet_are_waited_for(factory: Factory) -> None:
    f, line = factory, small_line(feedback=LIMITS | {"label_delay_hours": 24})
    commit_days(f, line, "2013-02-01", "2013-02-02")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "run")
    assert judge(f, line, None, "run")["days"] == ["2013-02-01"]


def test_nothing_to_judge_is_no_failure(factory: Factory, line: LineSpec) -> None:
    assert judge(factory, line, "2013-02-01", "run") == {"days": [], "day": None, "docs": None, "violations": []}
    assert not decide(factory, line, "2013-02-01", "run")["retrain"]


# --- deciding
def test_the_first_model_is_called_for_once(factory: Factory, line: LineSpec) -> None:
    f = factory
    needed = line.dataset.min_train_days + line.dataset.holdout_days
    days = days_between("2013-01-01", "2013-02-20")[:needed]
    commit_days(f, line, days[0], days[-2])
    assert not decide(f, line, None, "early")["retrain"]
    commit_days(f, line, days[-1], days[-1])
    first = decide(f, line, None, "a")
    assert (first["retrain"], first["reason"], first["emit"]) == (True, "FIRST_MODEL", True)
    assert not decide(f, line, None, "b")["emit"]


def test_drift_calls_once_and_again_only_after_the_cooldown(factory: Factory) -> None:
    f, line = factory, strict()
    serve(f, line, ("1", "2013-01-31"))
    said = {day: night(f, line, day) for day in days_between("2013-02-01", "2013-02-08")}
    called = {day: s["reason"] for day, s in said.items() if s["emit"]}
    # windows of two days: full from the 2nd on; two broken ones on the 3rd. Nothing came of it: cooldown until the
    # 5th, when the windows of the 4th and 5th are new; and so on
    assert called == {"2013-02-03": "DRIFT", "2013-02-05": "DRIFT", "2013-02-07": "DRIFT"}
    assert "2 of the 2 newest windows broke a limit" in said["2013-02-03"]["explanation"]
    assert [w["day"] for w in said["2013-02-03"]["windows"]] == ["2013-02-02", "2013-02-03"]

    after = contents(f, "feedback/")
    for day in said:
        for run in ("again", "and-again"):
            assert not decide(f, line, day, run)["emit"]
    assert contents(f, "feedback/") == after
    decided = f.ledger.events(line=line.line, kind=EventKind.DECIDED, partition="2013-02-03")
    assert [e.detail["signal"] for e in decided if e.detail["retrain"]] == ["1-001"]


def test_a_champion_is_not_blamed_for_the_one_before(factory: Factory) -> None:
    f, line = factory, strict()
    serve(f, line, ("1", "2013-01-31"))
    for day in days_between("2013-02-01", "2013-02-03"):
        night(f, line, day)
    serve(f, line, ("1", "2013-01-31"), ("2", "2013-02-03"))
    assert not night(f, line, "2013-02-04")["retrain"]
    calm = night(f, line, "2013-02-05")
    assert not calm["retrain"]
    assert [w["day"] for w in calm["windows"]] == ["2013-02-05"], "the first full window of its own"


def test_the_cadence_calls_and_calls_again_after_a_refusal(factory: Factory) -> None:
    f, line = factory, small_line(feedback=LIMITS | {"cadence_days": 3})
    serve(f, line, ("1", "2013-01-31"))
    said = {day: night(f, line, day) for day in days_between("2013-02-01", "2013-02-06")}
    assert {d: s["reason"] for d, s in said.items() if s["emit"]} == {
        "2013-02-03": "CADENCE_DUE",
        "2013-02-05": "CADENCE_DUE",
    }


def test_of_many_runs_at_once_one_calls(factory: Factory) -> None:
    f, line = factory, small_line(feedback=LIMITS | {"cadence_days": 1})
    serve(f, line, ("1", "2013-01-31"))
    commit_days(f, line, "2013-02-01", "2013-02-03")
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda n: decide(Factory(f.settings), line, None, f"run-{n}"), range(6)))
    assert sum(s["emit"] for s in said) == 1
    assert len(f.store.list(f"feedback/{line.line}/signals/")) == 1


def test_a_run_that_died_after_its_decision_calls_when_it_is_tried_again(factory: Factory) -> None:
    f, line = factory, small_line(feedback=LIMITS | {"cadence_days": 1})
    serve(f, line, ("1", "2013-01-31"))
    commit_days(f, line, "2013-02-01", "2013-02-03")
    first, retried = decide(f, line, None, "run"), decide(f, line, None, "run")
    assert first["emit"]
    assert {k: retried[k] for k in ("retrain", "reason", "signal", "emit", "explanation", "day")} == {
        k: first[k] for k in ("retrain", "reason", "signal", "emit", "explanation", "day")
    }
    assert not decide(f, line, None, "other")["emit"]
