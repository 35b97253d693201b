"""The gate: its metrics are those of the literature, and noise does not pass for proof."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from tests.model_rows import small_line

from aifactory.evaluation import (
    average_precision,
    brier,
    calibration_table,
    expected_calibration_error,
    judge,
    paired_bootstrap,
    roc_auc,
)

NUM_ROWS = 6000
DAYS = 7


@pytest.fixture
def world() -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Outcomes, their true chances, and a holdout of seven days."""
    rng = np.random.default_rng(1)
    chance = 1 / (1 + np.exp(-(rng.normal(size=NUM_ROWS) * 1.2 - 1.2)))
    outcome = (rng.random(NUM_ROWS) < chance).astype(np.int8)
    hours = np.sort(rng.integers(0, DAYS * 24, NUM_ROWS))
    times = np.datetime64("2026-01-01T00:00:00", "us") + hours * np.timedelta64(3600, "s")
    table = pa.table(
        {
            "delayed": pa.array(outcome, pa.int8()),
            "prediction_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "carrier": pa.array(np.where(np.arange(NUM_ROWS) % 10 == 0, "AA", "UA")),
            "origin": pa.array(np.where(np.arange(NUM_ROWS) % 2 == 0, "JFK", "LGA")),
        }
    )
    return outcome, chance, table


def noisy(chance: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Scores that are off the true chances by so much, in log-odds."""
    logit = np.log(chance / (1 - chance)) + np.random.default_rng(seed).normal(size=len(chance)) * size
    return 1 / (1 + np.exp(-logit))


def verdict(world: Any, challenger: np.ndarray, champion: np.ndarray | None, **given: Any) -> Any:
    rules = given.pop("evaluation", {})
    spec = small_line(evaluation=rules)
    asked: dict[str, Any] = {"refresh": False, "latency_ms": 1.0, "size_mb": 1.0} | given
    return judge(spec, world[2], challenger, champion, **asked)


def codes(found: Any) -> list[str]:
    return [reason["code"] for reason in found.reasons]


@pytest.mark.parametrize("decimals", [8, 1], ids=["distinct", "many ties"])
def test_metrics_are_those_of_scikit_learn(world: Any, decimals: int) -> None:
    y, chance, _ = world
    p = np.round(noisy(chance, 0.5, 3), decimals)
    assert roc_auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert average_precision(y, p) == pytest.approx(average_precision_score(y, p), abs=1e-12)
    assert brier(y, p) == pytest.approx(brier_score_loss(y, p), abs=1e-12)


def test_calibration_error_by_hand() -> None:
    y, p = np.array([0, 1, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])
    assert expected_calibration_error(y, p) == pytest.approx(0.5 * 0.45 + 0.5 * 0.025)
    assert [row["num_rows"] for row in calibration_table(y, p)] == [2, 2]


def test_one_class_gives_no_number() -> None:
    assert np.isnan(roc_auc(np.zeros(5), np.linspace(0, 1, 5)))


def test_bootstrap_is_fast_and_repeats(world: Any) -> None:
    import time

    y, chance, _ = world
    a, b = noisy(chance, 0.3, 1), noisy(chance, 0.6, 2)
    rules: dict[str, Any] = {"metric": "roc_auc", "confidence": 0.9, "rounds": 300, "required": 0.0}
    began = time.process_time()
    first = paired_bootstrap(y, a, b, np.arange(NUM_ROWS) // 50, **rules)
    assert time.process_time() - began < 2
    assert first == paired_bootstrap(y, a, b, np.arange(NUM_ROWS) // 50, **rules)
    assert first.low < first.mean < first.high
    assert first.proved


def test_equal_models_differ_by_nothing(world: Any) -> None:
    y, chance, _ = world
    gain = paired_bootstrap(
        y, chance, chance, np.arange(NUM_ROWS), metric="average_precision", confidence=0.9, rounds=100, required=0.0
    )
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)


def test_resampling_hours_is_more_careful_than_resampling_rows(world: Any) -> None:
    """Where the rows of an hour share their error, rows taken for independent would prove too much."""
    y, chance, table = world
    hours = table["prediction_time"].to_numpy().astype("datetime64[h]")
    _, hour = np.unique(hours, return_inverse=True)
    shared = np.random.default_rng(5).normal(size=hour.max() + 1)[hour]
    logit = np.log(chance / (1 - chance))
    tilted = 1 / (1 + np.exp(-(logit + shared)))
    rules: dict[str, Any] = {"metric": "roc_auc", "confidence": 0.9, "rounds": 300, "required": 0.0}
    by_hour = paired_bootstrap(y, tilted, chance, hours, **rules)
    by_row = paired_bootstrap(y, tilted, chance, np.arange(NUM_ROWS), **rules)
    assert by_hour.high - by_hour.low > 1.2 * (by_row.high - by_row.low)


def test_noise_is_not_promoted(world: Any) -> None:
    """Equally good models of another make: out of twenty pairs no more than chance allows may look better."""
    _, chance, _ = world
    passed = sum(verdict(world, noisy(chance, 0.5, 2 * n), noisy(chance, 0.5, 2 * n + 1)).passed for n in range(20))
    assert passed <= 5  # 2 expected at confidence 0.9


def test_a_real_gain_is_proved(world: Any) -> None:
    _, chance, _ = world
    found = verdict(world, noisy(chance, 0.2, 1), noisy(chance, 1.0, 2))
    assert found.passed, found.reasons
    assert found.kind == "another make"
    assert found.gain["low"] > 0


def test_a_refresh_need_not_gain_but_must_not_lose(world: Any) -> None:
    _, chance, _ = world
    same = noisy(chance, 0.5, 1)
    nearly = noisy(same, 0.02, 2)
    assert verdict(world, nearly, same, refresh=True).passed
    assert codes(verdict(world, nearly, same)) == ["GAIN_NOT_PROVEN"]
    worse = verdict(world, noisy(chance, 1.2, 3), same, refresh=True)
    assert "GAIN_NOT_PROVEN" in codes(worse)
    assert "a refresh may lose no more than" in worse.reasons[0]["message"]


def test_a_first_model_is_held_against_the_floor_and_the_budgets(world: Any) -> None:
    _, chance, _ = world
    assert verdict(world, chance, None).passed
    assert codes(verdict(world, chance, None, evaluation={"floor": 0.99})) == ["METRIC_BELOW_FLOOR"]
    assert codes(verdict(world, chance, None, latency_ms=99, size_mb=99)) == ["LATENCY_BUDGET", "SIZE_BUDGET"]


def test_calibration_is_held_against_the_limit_or_the_champion(world: Any) -> None:
    _, chance, _ = world
    off = np.clip(chance * 0.3, 0, 1)  # the same order, other probabilities
    assert codes(verdict(world, off, None)) == ["CALIBRATION"]
    assert verdict(world, off, off, refresh=True).passed
    assert codes(verdict(world, off, chance, refresh=True)) == ["CALIBRATION"]


def test_a_slice_that_falls_is_named(world: Any) -> None:
    y, chance, table = world
    champion = chance
    small = np.asarray(table["carrier"].to_pylist()) == "AA"
    challenger = np.where(small, np.random.default_rng(0).permutation(chance), chance)
    found = verdict(world, challenger, champion, refresh=True)
    assert "SLICE_DROP" in codes(found)
    assert "carrier=AA (600 rows)" in next(r["message"] for r in found.reasons if r["code"] == "SLICE_DROP")
    assert {(s["column"], s["value"]) for s in found.slices} == {
        ("carrier", "AA"), ("carrier", "UA"), ("origin", "JFK"), ("origin", "LGA"),
    }  # fmt: skip
    assert len(y) == NUM_ROWS


def test_a_slice_with_few_rows_is_not_judged(world: Any) -> None:
    _, chance, _ = world
    found = verdict(world, chance, chance, refresh=True, evaluation={"min_slice_rows": 601})
    assert ("carrier", "AA") not in {(s["column"], s["value"]) for s in found.slices}
