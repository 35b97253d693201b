"""The judgement of a model in service: what it said against what happened, and how far its world has moved.

A window is the partitions that end with one day. What is known of a window is written once it has outcomes, depends on
stored content alone, and is what the line's rule decides from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from aifactory import drift
from aifactory.line import Feedback, LineSpec
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


@dataclass(frozen=True)
class Decision:
    """What the rule says. `explanation` is one sentence with the numbers."""

    retrain: bool
    reason: ReasonCode | None
    explanation: str


def join_outcomes(spec: LineSpec, predictions: pa.Table, units: pa.Table) -> pa.Table:
    """Predictions with the units' features and outcomes, in the order of the units; units without prediction fall out."""
    import pyarrow as pa

    keys = spec.model.entity_key
    numbered = units.append_column("_row", pa.array(range(units.num_rows), pa.int64()))
    return numbered.join(predictions.select([*keys, "score"]), keys=keys, join_type="inner").sort_by("_row")


def feature_drift(spec: LineSpec, profile: Mapping[str, Any], rows: pa.Table) -> dict[str, dict[str, float]]:
    """PSI and the p-value of a second test for every feature of the model (Kolmogorov-Smirnov, chi-square)."""
    found = {}
    for name in profile["numeric"]:
        found[name] = numeric_drift(profile["numeric"][name], _floats(rows, name), int(profile["num_rows"]))
    for name, shares in profile["categorical"].items():
        known = sorted(shares)
        expected = [*(float(shares[k]) for k in known), max(1.0 - sum(shares.values()), 0.0)]
        actual = drift.category_shares(rows[name].to_pylist(), known)
        p_value = drift.chi_square(expected, [share * rows.num_rows for share in actual])
        found[name] = {"psi": round(drift.psi(expected, actual), 4), "p_value": p_value}
    return found


def numeric_drift(
    reference: Mapping[str, Any], values: npt.NDArray[np.floating[Any]], num_rows: int
) -> dict[str, float]:
    """PSI (ten bins and one for missing values) and the Kolmogorov-Smirnov test of one numeric column."""
    import numpy as np

    edges = drift.bin_edges(reference["quantiles"])
    missing = float(reference.get("missing", 0.0))
    expected = _reference_shares(reference["quantiles"], edges, missing)
    statistic, p_value = drift.ks(reference["quantiles"], np.asarray(values, dtype=np.float64), num_rows)
    return {
        "psi": round(drift.psi(expected, drift.bin_shares(values, edges)), 4),
        "ks": round(statistic, 4),
        "p_value": p_value,
    }


def violations(limits: Feedback, window: Mapping[str, Any], released: float | None) -> list[str]:
    """Which limits a window breaks, each with its number.

    Args:
        limits: the line's.
        window: with `metrics` and `drift`.
        released: the primary metric that the model was released with.
    """
    metrics, moved = window["metrics"], window["drift"]
    found = []
    primary = metrics.get(window["primary"])
    if released is not None and primary is not None and released - primary > limits.max_metric_drop:
        found.append(
            f"{window['primary']} {primary:.3f} is {released - primary:.3f} below the released {released:.3f} "
            f"(limit {limits.max_metric_drop})"
        )
    error = metrics.get("calibration_error")
    if error is not None and error > limits.max_calibration_error:
        found.append(f"calibration error {error:.3f} (limit {limits.max_calibration_error})")
    if moved["score_psi"] > limits.max_score_psi:
        found.append(f"score PSI {moved['score_psi']:.3f} (limit {limits.max_score_psi})")
    if moved["drifted_share"] > limits.max_drifted_share:
        found.append(
            f"{moved['num_drifted']} of {len(moved['features'])} features have a PSI over {limits.max_feature_psi} "
            f"(limit {limits.max_drifted_share:.0%})"
        )
    return found


def decide(
    spec: LineSpec, windows: Sequence[Mapping[str, Any]], trained_until: str, newest_day: str, called_on: Sequence[str]
) -> Decision:
    """Apply the line's rule.

    Args:
        spec: the line.
        windows: the judged windows of the champion's life, oldest first.
        trained_until: last day that the champion learned from.
        newest_day: newest day of the dataset.
        called_on: days on which a retrain of this champion was called for before.
    """
    rule = spec.feedback
    if called_on and days_apart(max(called_on), newest_day) < rule.cooldown_days:
        return Decision(False, None, f"a retrain was called for on {max(called_on)}, within {rule.cooldown_days} days")
    newest = [w for w in windows if not called_on or w["day"] > max(called_on)][-rule.rule_windows :]
    broken = [w for w in newest if w["violations"]]
    if len(broken) >= rule.rule_violations:
        last = f"{broken[-1]['day']}: {'; '.join(broken[-1]['violations'])}"
        return Decision(
            True, ReasonCode.DRIFT, f"{len(broken)} of the {len(newest)} newest windows broke a limit; {last}"
        )
    age = days_apart(trained_until, newest_day)
    if age >= rule.cadence_days:
        return Decision(
            True, ReasonCode.CADENCE_DUE, f"the champion's data ends {age} days ago, the cadence is {rule.cadence_days}"
        )
    return Decision(
        False,
        None,
        f"{len(broken)} of the {len(newest)} newest windows broke a limit ({rule.rule_violations} would call), "
        f"the champion's data ends {age} days ago",
    )


def days_apart(earlier: str, later: str) -> int:
    """Days from one partition to another."""
    return (date.fromisoformat(later) - date.fromisoformat(earlier)).days


def _reference_shares(quantiles: Sequence[float], edges: Sequence[float], missing: float) -> list[float]:
    """Shares of the reference in the bins of its own edges; ties make bins of unequal shares."""
    import numpy as np

    grid = np.asarray(quantiles, dtype=np.float64)
    below = np.searchsorted(grid, np.asarray(edges), side="right") / len(grid)
    shares = np.diff([0.0, *below, 1.0]) * (1.0 - missing)
    return [*map(float, shares), missing]


def _floats(rows: pa.Table, name: str) -> npt.NDArray[np.floating[Any]]:
    import numpy as np
    import pyarrow as pa

    return np.asarray(rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
