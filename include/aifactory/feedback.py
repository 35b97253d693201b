"""The judgement of a model in service: what it said against what happened, and how far its world has moved.

A window is the newest scored days of one model, up to a day. A window of fewer days than the line asks for is still
forming: it is measured and shown, and breaks no limit, because a single day says more about its weather than about the
model. What is known of a window depends on stored content alone, and is what the line's rule decides from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from aifactory import drift
from aifactory.line import Feedback, LineSpec
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa


@dataclass(frozen=True)
class Decision:
    """What the rule says. `explanation` is one sentence with the numbers."""

    retrain: bool
    reason: ReasonCode | None
    explanation: str


# --- what a window is made of
def outcomes_due(spec: LineSpec, day: str, newest_day: str) -> bool:
    """Whether the outcomes of a day are complete by the newest day that the factory has seen.

    The data's own calendar is the clock, so that a replay and a backfill decide as the nights did.
    """
    return days_apart(day, newest_day) * 24 >= spec.feedback.label_delay_hours


def window_days(spec: LineSpec, day: str, scored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The days of the window that ends with a day: the newest ones that the same model scored, oldest first.

    Days of an earlier life of the model (it was rolled back to) do not count: none is older than two window lengths.
    """
    model, span = scored[day]["model_version"], spec.feedback.window_days
    own = [d for d in sorted(scored) if d <= day and scored[d]["model_version"] == model]
    return [d for d in own if days_apart(d, day) < 2 * span][-span:]


def join_outcomes(
    spec: LineSpec, predictions: pa.Table, units: pa.Table, columns: Sequence[str] = ("score",)
) -> pa.Table:
    """One day's predictions with the units' features and outcomes, in the units' order.

    Units without a prediction fall out. To be called day by day: the entity key is unique within a partition only.

    Args:
        spec: the line.
        predictions: of the day; a unit may have several.
        units: of the day.
        columns: of the predictions that are wanted.
    """
    import pyarrow as pa

    keys = spec.model.entity_key
    numbered = units.append_column("_row", pa.array(range(units.num_rows), pa.int64()))
    joined = numbered.join(predictions.select([*keys, *columns]), keys=keys, join_type="inner").sort_by("_row")
    return joined.drop_columns(["_row"])


# --- measuring
def live_metrics(target: npt.NDArray[Any], score: npt.NDArray[Any]) -> dict[str, float]:
    """The metrics of the evaluation gate on live rows; without those that are undefined for one class alone."""
    from aifactory.evaluation import metrics

    if not len(target):
        return {}
    return {name: round(value, 6) for name, value in metrics(target, score).items() if math.isfinite(value)}


def served_metrics(spec: LineSpec, rows: pa.Table) -> list[dict[str, Any]]:
    """What every version said in every slot, against what happened, by version and slot.

    Answers that went to callers and those of the shadow are never mixed: the former are the live metric of a model in
    service, the latter only serve to compare a challenger with it.

    Args:
        spec: the line.
        rows: joined served predictions: day, model_version, slot, shadow, score, target.

    Returns:
        model_version, slot, shadow, num_days, num_scored, num_outcomes, metrics of each.
    """
    import pyarrow.compute as pc

    names, target = ["model_version", "slot", "shadow"], spec.model.target
    found = []
    for group in rows.group_by(names).aggregate([]).sort_by([(n, "ascending") for n in names]).to_pylist():
        own = rows
        for name in names:
            own = own.filter(pc.equal(own[name], group[name]))
        known = own.filter(pc.is_valid(own[target]))
        measured = live_metrics(known[target].to_numpy(), known["score"].to_numpy())
        counts = {"num_scored": own.num_rows, "num_outcomes": known.num_rows}
        found.append(group | {"num_days": pc.count_distinct(own["day"]).as_py(), **counts, "metrics": measured})
    return found


def feature_drift(profile: Mapping[str, Any], rows: pa.Table) -> dict[str, dict[str, float]]:
    """PSI and the p-value of a second test (Kolmogorov-Smirnov, chi-square) for every feature of the model."""
    from aifactory.packaging import numeric_column

    num_rows = int(profile["num_rows"])
    numeric = {n: numeric_drift(p, numeric_column(rows, n), num_rows) for n, p in profile["numeric"].items()}
    return numeric | {n: categorical_drift(p["shares"], rows[n]) for n, p in profile["categorical"].items()}


def numeric_drift(profile: Mapping[str, Any], values: npt.NDArray[Any], num_reference: int) -> dict[str, float]:
    """Drift of one numeric column from its profile; missing values are a bin, so a silent sensor counts as drift.

    Args:
        profile: see `training.profile`.
        values: the column now, NaN where missing.
        num_reference: rows that the profile was made of.
    """
    import numpy as np

    from aifactory.training.profile import bin_shares

    missing = float(np.isnan(values).mean()) if len(values) else 0.0
    expected = _with_missing(profile["shares"], float(profile["missing_share"]))
    actual = _with_missing(bin_shares(values, profile["edges"]), missing)
    known = round(num_reference * (1 - profile["missing_share"]))
    statistic, p_value = drift.ks(profile["quantiles"], values, known)
    return {"psi": round(drift.psi(expected, actual), 4), "ks": round(statistic, 4), "p_value": _rounded(p_value)}


def categorical_drift(expected: Mapping[str, float], column: pa.ChunkedArray) -> dict[str, float]:
    """Drift of one column of categories; one that training never saw counts under "never seen"."""
    from aifactory.training.profile import category_shares

    now = category_shares(column)
    wanted = [*expected.values(), 0.0]
    actual = [*(now.get(name, 0.0) for name in expected), sum(s for name, s in now.items() if name not in expected)]
    p_value = drift.chi_square(wanted, [share * len(column) for share in actual])
    return {"psi": round(drift.psi(wanted, actual), 4), "p_value": _rounded(p_value)}


def measure(spec: LineSpec, manifest: Mapping[str, Any], rows: pa.Table) -> dict[str, Any]:
    """Everything about a window but its verdict.

    Args:
        spec: the line.
        manifest: of the model that made the scores.
        rows: joined rows of the window's days.
    """
    import pyarrow.compute as pc

    profile, limit = manifest["training_profile"], spec.feedback.max_feature_psi
    known = rows.filter(pc.is_valid(rows[spec.model.target]))
    features = feature_drift(profile, rows)
    drifted = sorted(name for name, moved in features.items() if moved["psi"] > limit)
    num_reference = int(profile["baseline"].get("num_rows", 0))
    scored = numeric_drift(profile["score"], rows["score"].to_numpy(), num_reference)
    return {
        "primary": spec.evaluation.metric,
        "metrics": live_metrics(known[spec.model.target].to_numpy(), known["score"].to_numpy()),
        "released": {name: round(value, 6) for name, value in profile["baseline"].items()},
        "num_scored": rows.num_rows,
        "num_outcomes": known.num_rows,
        "drift": {
            "score_psi": scored["psi"],
            "score_ks": scored["ks"],
            "score_p_value": scored["p_value"],
            "num_drifted": len(drifted),
            "drifted": drifted,
            "drifted_share": round(len(drifted) / max(len(features), 1), 4),
            "features": features,
        },
    }


def violations(limits: Feedback, window: Mapping[str, Any]) -> list[str]:
    """Which limits a measured window breaks, each with its number; none while it is forming."""
    if window["num_days"] < limits.window_days:
        return []
    moved = window["drift"]
    found = outcome_violations(limits, window["primary"], window["released"], window["metrics"])
    if moved["score_psi"] > limits.max_score_psi:
        found.append(f"score PSI {moved['score_psi']:.3f} (limit {limits.max_score_psi})")
    if moved["drifted_share"] > limits.max_drifted_share:
        found.append(
            f"{moved['num_drifted']} of {len(moved['features'])} features have a PSI over {limits.max_feature_psi} "
            f"(limit {limits.max_drifted_share:.0%})"
        )
    return found


def outcome_violations(
    limits: Feedback, primary: str, released: Mapping[str, float], metrics: Mapping[str, float]
) -> list[str]:
    """Which limits of what came true are broken, each with its number; a metric that is undefined breaks none."""
    found = []
    drop = released.get(primary, math.nan) - metrics.get(primary, math.nan)
    if drop > limits.max_metric_drop:
        found.append(
            f"{primary} {metrics[primary]:.3f} is {drop:.3f} below the {released[primary]:.3f} that the model was "
            f"released with (limit {limits.max_metric_drop})"
        )
    error = metrics.get("calibration_error", 0.0)
    if error > limits.max_calibration_error:
        found.append(f"calibration error {error:.3f} (limit {limits.max_calibration_error})")
    return found


def live_enough(limits: Feedback, served: Mapping[str, Any]) -> bool:
    """Whether answers of one version from one slot are a window of live judgement.

    They went to callers, on as many days as a window has, and enough of them have an outcome. Such a window is judged
    by its outcomes alone: of which units callers ask says nothing of drift, which every day's batch is judged by.

    Args:
        limits: the line's.
        served: one of `served_metrics`.
    """
    return (
        not served["shadow"]
        and served["num_days"] >= limits.window_days
        and served["num_outcomes"] >= limits.min_live_outcomes
    )


# --- deciding
def decide(
    spec: LineSpec,
    windows: Sequence[Mapping[str, Any]],
    trained_until: str,
    newest_day: str,
    called_on: Sequence[str],
) -> Decision:
    """Apply the line's rule to the life of its champion.

    Args:
        spec: the line.
        windows: `day`, `violations` and `live_violations` of the champion's full windows, oldest first: of its batches,
            and of its answers to callers. A window that is broken in both is one broken window.
        trained_until: last day that the champion learned from.
        newest_day: newest day of the dataset.
        called_on: days on which a retrain of this champion was called for before. A champion that outlived such a call
            (its challenger was refused) is judged by the windows after it, and the cadence stays due.
    """
    rule, last = spec.feedback, max(called_on, default="")
    if last and resting(spec, last, newest_day):
        return Decision(False, None, f"a retrain was called for on {last}, the cooldown is {rule.cooldown_days} days")
    newest = [w for w in windows if w["day"] > last][-rule.rule_windows :]
    broken = [w for w in newest if w["violations"] or w["live_violations"]]
    by_batch = [w for w in newest if w["violations"]]
    live = f", {len(broken) - len(by_batch)} by live answers alone" if len(broken) > len(by_batch) else ""
    count = f"{len(broken)} of the {len(newest)} newest windows broke a limit{live}"
    if len(broken) >= rule.rule_violations:
        reason = ReasonCode.DRIFT if len(by_batch) >= rule.rule_violations else ReasonCode.LIVE_DECAY
        said = [*broken[-1]["violations"], *(f"live {each}" for each in broken[-1]["live_violations"])]
        what = f"on {broken[-1]['day']}: {'; '.join(said)}"
        return Decision(True, reason, f"{count}, {rule.rule_violations} call for a retrain; {what}")
    age = days_apart(trained_until, newest_day)
    if age >= rule.cadence_days:
        return Decision(
            True,
            ReasonCode.CADENCE_DUE,
            f"the champion's data ends {age} days ago, the cadence is {rule.cadence_days} days",
        )
    return Decision(
        False,
        None,
        f"{count}, {rule.rule_violations} would call for a retrain; the champion's data ends {age} days ago, "
        f"the cadence is {rule.cadence_days}",
    )


def decide_first(spec: LineSpec, num_days: int, newest_day: str, called_on: Sequence[str]) -> Decision:
    """Whether a line without a model has data enough for one.

    Args:
        spec: the line.
        num_days: partitions of its dataset.
        newest_day: the newest of them.
        called_on: days on which the first model was called for before.
    """
    last, needed = max(called_on, default=""), spec.dataset.min_train_days + spec.dataset.holdout_days
    if num_days < needed:
        return Decision(False, None, f"there are {num_days} days of data, a first model needs {needed}")
    if last and resting(spec, last, newest_day):
        return Decision(
            False, None, f"the first model was called for on {last}, the cooldown is {spec.feedback.cooldown_days} days"
        )
    return Decision(True, ReasonCode.FIRST_MODEL, f"there are {num_days} days of data and no model yet")


def resting(spec: LineSpec, called_on: str, newest_day: str) -> bool:
    """Whether the last call for a retrain is so near that none may follow; never twice on the same day."""
    return days_apart(called_on, newest_day) < max(spec.feedback.cooldown_days, 1)


def days_apart(earlier: str, later: str) -> int:
    """Days from one partition to another."""
    return (date.fromisoformat(later) - date.fromisoformat(earlier)).days


def _with_missing(shares: Sequence[float], missing: float) -> list[float]:
    """Shares of the present values, and last the share of the missing ones."""
    return [*(share * (1 - missing) for share in shares), missing]


def _rounded(p_value: float) -> float:
    """Four significant digits: what lies beyond differs between machines."""
    return float(f"{p_value:.4g}")
