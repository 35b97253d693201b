"""Training orders and the launching of the program: days, makes, exit codes, environment."""

from __future__ import annotations

import json
import signal
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr
from tests.model_rows import small_line

from aifactory.errors import DatasetDefect, InfrastructureFault, TrainingDefect
from aifactory.judgement import is_refresh
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.stages.train import split_days
from aifactory.training.launch import environment, failure
from aifactory.training.pace import Pace
from aifactory.training.profile import bin_shares, category_shares, numeric_profile
from aifactory.training.report import evaluation_page


def days(number: int) -> list[str]:
    return [str(date(2026, 1, 1) + timedelta(days=n)) for n in range(number)]


def test_a_first_model_holds_out_the_newest_week() -> None:
    split = split_days(small_line(), days(60), None)
    assert split["holdout"] == days(60)[-7:]
    assert split["challenger"] == days(60)[:-7]
    assert split["refit"] == days(60)


@pytest.mark.parametrize(("fresh", "held"), [(2, 2), (3, 2), (5, 2), (7, 3), (10, 5), (14, 7), (40, 7)])
def test_half_of_what_the_champion_has_not_learned_is_held_out(fresh: int, held: int) -> None:
    until = days(100)[-fresh - 1]
    split = split_days(small_line(), days(100), until)
    assert len(split["holdout"]) == held
    assert min(split["holdout"]) > until
    assert max(split["challenger"]) < min(split["holdout"])


def test_only_the_newest_days_of_history_are_used() -> None:
    split = split_days(small_line(dataset={"history_days": 50}), days(100), None)
    assert split["refit"] == days(100)[-50:]


def test_too_few_days_is_a_defect_that_names_the_numbers() -> None:
    with pytest.raises(DatasetDefect, match=r"34 days, and dataset.min_train_days 28 plus 7") as caught:
        split_days(small_line(), days(34), None)
    assert caught.value.reason is ReasonCode.DATASET_TOO_SMALL
    with pytest.raises(DatasetDefect, match=r"1 days are newer than 2026-02-28.*min_holdout_days is 2"):
        split_days(small_line(), days(60), "2026-02-28")


def test_a_refresh_is_of_the_same_make() -> None:
    make = {"recipe": "gradient_boosting", "parameters": {"num_trees": 3}}
    features = {"categorical": ["a"], "numeric": ["b", "c"]}
    order = {**make, **features, "champion": {**make, "features": features}}
    assert is_refresh(order)
    assert not is_refresh({**order, "numeric": ["b"]})
    assert not is_refresh({**order, "parameters": {"num_trees": 4}})
    assert not is_refresh({**order, "recipe": "tabular_mlp"})
    assert not is_refresh({**order, "champion": None})


def test_exit_codes_become_errors() -> None:
    told = json.dumps({"reason": "LOSS_NOT_FINITE", "message": "the loss is nan"})
    defect = failure(3, ["noise", told], "challenger of order x")
    assert isinstance(defect, TrainingDefect)
    assert defect.reason is ReasonCode.LOSS_NOT_FINITE
    assert "challenger of order x: the loss is nan" in defect.message
    fault = failure(4, [json.dumps({"reason": "STORE_UNREACHABLE", "message": "no S3"})], "x")
    assert isinstance(fault, InfrastructureFault)
    crash = failure(1, ["Traceback", "KeyError: 'x'"], "x")
    assert isinstance(crash, TrainingDefect)
    assert "KeyError" in crash.message
    assert failure(-signal.SIGKILL, [], "x").reason is ReasonCode.OUT_OF_MEMORY
    assert failure(-signal.SIGTERM, [], "x").reason is ReasonCode.PROCESS_KILLED
    assert failure(143, [], "x").reason is ReasonCode.PROCESS_KILLED
    assert failure(1, ["MemoryError"], "x").reason is ReasonCode.OUT_OF_MEMORY
    assert isinstance(failure(-signal.SIGSEGV, [], "x"), InfrastructureFault)


def test_the_process_gets_what_it_needs_and_no_more() -> None:
    settings = Settings(
        threads=3,
        s3_secret_key=SecretStr("s3-secret"),
        ledger_dsn=SecretStr("postgresql://ledger-secret"),
        _env_file=None,
    )  # type: ignore[call-arg]
    found = environment(settings)
    assert found["AIF_S3_SECRET_KEY"] == "s3-secret"
    assert "ledger-secret" not in json.dumps(found)
    assert found["OMP_NUM_THREADS"] == "3"
    assert Settings(_env_file=None).threads == 2  # type: ignore[call-arg]


def test_profile_of_numbers() -> None:
    values = np.array([*range(1000), np.nan, np.nan], dtype=np.float32)
    profile = numeric_profile(values)
    assert len(profile["edges"]) == 9
    assert profile["shares"] == pytest.approx([0.1] * 10, abs=0.002)
    assert profile["missing_share"] == pytest.approx(2 / 1002)
    assert len(profile["quantiles"]) == 201
    assert sum(bin_shares(np.array([-5.0, 5000.0]), profile["edges"])) == 1
    assert json.loads(json.dumps(profile)) == profile


def test_profile_of_a_number_that_is_mostly_one_value_or_never_there() -> None:
    rain = np.zeros(1000)
    rain[:30] = 0.4
    profile = numeric_profile(rain)
    assert sum(profile["shares"]) == pytest.approx(1)
    assert len(profile["shares"]) == len(profile["edges"]) + 1
    empty = numeric_profile(np.full(10, np.nan))
    assert empty["missing_share"] == 1
    assert empty["quantiles"] == []


def test_category_shares_count_the_missing() -> None:
    assert category_shares(pa.chunked_array([["UA", None], ["UA", "AA"]])) == {"": 0.25, "AA": 0.25, "UA": 0.5}


def test_the_report_escapes_what_people_wrote() -> None:
    order = {
        "line": "l", "order_id": "o", "recipe": "r", "parameters": {}, "drop_features": [], "tag": "v1",
        "revision": "abc",
        "days": {"challenger": ["a", "b"], "holdout": ["c"]}, "champion": None, "reason": "OPERATOR",
        "why": "<script>alert(1)</script>",
    }  # fmt: skip
    verdict = {
        "passed": False, "kind": "first model", "reasons": [{"code": "CALIBRATION", "message": "0.2 > 0.1"}],
        "metrics": {"roc_auc": 0.7}, "champion_metrics": None, "gain": None, "slices": [], "calibration": [],
        "latency_ms": 1.0, "size_mb": 2.0, "limits": {"max_latency_ms": 20, "max_size_mb": 20},
    }  # fmt: skip
    page = evaluation_page(order, verdict)
    assert "<script>" not in page
    assert "Refused" in page
    assert "0.2 &gt; 0.1" in page


def test_the_time_to_go_is_by_the_speed_since_it_was_resumed() -> None:
    now = iter([100.0, 110.0, 130.0, 140.0])
    pace = Pace(lambda: next(now))
    assert pace.to_go(500, 1000) == "?"
    assert pace.to_go(520, 1000) == "0:04:00"
    assert pace.to_go(560, 1000) == "0:03:40"
    assert pace.to_go(1000, 1000) == "0:00:00"
