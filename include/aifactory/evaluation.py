"""The evaluation gate: is the challenger good enough, and at least as good as the champion?

Everything is measured on the same newest days, from which neither has learned. The difference is bootstrapped in
pairs, and whole hours are resampled together, not single rows: flights of one hour share their weather and their
congestion, and rows taken for independent would make noise look like proof.

What must be proved depends on what changed.
- A challenger of **another make** (recipe, parameters or features differ) must prove a gain: the lower confidence
  bound of the difference must reach `required_gain`.
- A **refresh** (the same make on newer data) must prove that it is no worse than by `refresh_margin`: the lower bound
  must reach minus the margin. Its gain comes from the newest days, which it only learns in the refit after the
  blessing, so there is no gain to be proved before; poisoned or broken new data still shows as a loss.
- A first model is held against the floor and the budgets alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from aifactory.line import Evaluation, LineSpec

    Array = npt.NDArray[Any]

CALIBRATION_BINS = 10


# --- metrics: y is 0 or 1 [n], p the predicted probability [n], w a weight for each row and round [rounds, n]
def roc_auc(y: Array, p: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half (Fawcett 2006).

    NaN where there is only one class.
    """
    import numpy as np

    return float(_weighted(y, p, np.ones((1, len(y))), "roc_auc")[0])


def average_precision(y: Array, p: Array) -> float:
    """Mean precision over the recalls, Σ (R_k - R_{k-1}) P_k, not interpolated. NaN where there is no positive."""
    import numpy as np

    return float(_weighted(y, p, np.ones((1, len(y))), "average_precision")[0])


def brier(y: Array, p: Array) -> float:
    """Mean squared error of the probability (Brier 1950), lower is better."""
    import numpy as np

    return float(np.mean((np.asarray(p, dtype=np.float64) - y) ** 2))


def expected_calibration_error(y: Array, p: Array, bins: int = CALIBRATION_BINS) -> float:
    """Σ n_b/n · |mean outcome - mean probability| over equal-width bins of p (Guo et al. 2017), 0 to 1."""
    import numpy as np

    table = calibration_table(y, p, bins)
    counts = np.array([row["num_rows"] for row in table], dtype=np.float64)
    gaps = np.array([abs(row["outcome"] - row["probability"]) for row in table])
    return float((counts * gaps).sum() / counts.sum())


def calibration_table(y: Array, p: Array, bins: int = CALIBRATION_BINS) -> list[dict[str, float]]:
    """For each bin of p that has rows: `num_rows`, mean `probability`, mean `outcome`."""
    import numpy as np

    which = np.clip((np.asarray(p, dtype=np.float64) * bins).astype(int), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    probability = np.bincount(which, np.asarray(p, dtype=np.float64), minlength=bins)
    outcome = np.bincount(which, np.asarray(y, dtype=np.float64), minlength=bins)
    return [
        {"num_rows": int(n), "probability": float(s / n), "outcome": float(o / n)}
        for n, s, o in zip(count, probability, outcome, strict=True)
        if n
    ]


def metrics(y: Array, p: Array) -> dict[str, float]:
    """Every metric of a set of scores, with its number of rows and the base rate."""
    import numpy as np

    return {
        "roc_auc": roc_auc(y, p),
        "average_precision": average_precision(y, p),
        "calibration_error": expected_calibration_error(y, p),
        "brier": brier(y, p),
        "base_rate": float(np.mean(y)),
        "mean_score": float(np.mean(p)),
        "num_rows": len(y),
    }


def _weighted(y: Array, p: Array, w: Array, metric: str) -> npt.NDArray[np.float64]:
    """The metric once for each row of weights. One sort serves all rounds; the rest is sums, O(rounds · n)."""
    import numpy as np

    order = np.argsort(-np.asarray(p), kind="stable")
    y, p = np.asarray(y)[order], np.asarray(p)[order]
    starts = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])  # rows of equal score stand or fall together
    w = np.asarray(w, dtype=np.float64)[:, order]
    positive = np.add.reduceat(w * (y == 1), starts, axis=1)
    negative = np.add.reduceat(w * (y == 0), starts, axis=1)
    num_positive, num_negative = positive.sum(axis=1), negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "roc_auc":
            above = np.cumsum(positive, axis=1) - positive
            pairs = ((above + positive / 2) * negative).sum(axis=1)
            return np.asarray(pairs / (num_positive * num_negative))
        hits, shown = np.cumsum(positive, axis=1), np.cumsum(positive + negative, axis=1)
        precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
        return np.asarray((positive * precision).sum(axis=1) / num_positive)


# --- the paired bootstrap
@dataclass(frozen=True)
class Gain:
    """Challenger minus champion in the primary metric; `low` is the one-sided lower confidence bound."""

    mean: float
    low: float
    high: float
    required: float
    confidence: float

    @property
    def proved(self) -> bool:
        """Whether the lower bound reaches what is required."""
        return self.low >= self.required


def paired_bootstrap(
    y: Array,
    challenger: Array,
    champion: Array,
    clusters: Array,
    *,
    metric: str,
    confidence: float,
    rounds: int,
    required: float,
    seed: int = 0,
) -> Gain:
    """Bound the difference of two models on the same rows by resampling clusters of rows (Field & Welsh 2007).

    Args:
        y: outcomes [n].
        challenger: its scores [n].
        champion: its scores [n].
        clusters: a label for each row [n]; rows with the same label are drawn together.
        metric: "roc_auc" or "average_precision".
        confidence: one-sided.
        rounds: number of resamples.
        required: the difference whose proof is asked for.
        seed: of the resampling, so that the same judgement comes out again.
    """
    import numpy as np

    _, cluster = np.unique(clusters, return_inverse=True)
    num_clusters = int(cluster.max()) + 1
    draws = np.random.default_rng(seed).multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=rounds)
    observed = metric_of(metric, y, challenger) - metric_of(metric, y, champion)
    differences = []
    for part in np.array_split(draws, max(1, rounds * len(y) // 4_000_000 + 1)):  # bounds the memory
        weights = part[:, cluster]
        differences.append(_weighted(y, challenger, weights, metric) - _weighted(y, champion, weights, metric))
    spread = np.concatenate(differences)
    low, high = np.nanquantile(spread, [1 - confidence, confidence])
    return Gain(observed, float(low), float(high), required, confidence)


def metric_of(metric: str, y: Array, p: Array) -> float:
    """The primary metric by name."""
    return {"roc_auc": roc_auc, "average_precision": average_precision}[metric](y, p)


# --- the verdict
@dataclass(frozen=True)
class Verdict:
    """What the gate found. `reasons` has a {code, message} for every rule that was broken, the gravest first."""

    passed: bool
    reasons: list[dict[str, str]]
    kind: str
    metrics: dict[str, float]
    champion_metrics: dict[str, float] | None
    gain: dict[str, Any] | None
    slices: list[dict[str, Any]]
    calibration: list[dict[str, float]]
    latency_ms: float
    size_mb: float
    limits: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def judge(
    spec: LineSpec,
    table: pa.Table,
    challenger: Array,
    champion: Array | None,
    *,
    refresh: bool,
    latency_ms: float,
    size_mb: float,
) -> Verdict:
    """Judge a challenger.

    Args:
        spec: the line, for its evaluation rules.
        table: the held-out rows, every one with an outcome.
        challenger: its scores on these rows.
        champion: the champion's scores on the same rows; None where the line has none.
        refresh: whether the challenger is of the champion's make, on newer data.
        latency_ms: p95 of scoring one row.
        size_mb: size of the package.
    """
    import numpy as np

    rules = spec.evaluation
    y = table[spec.model.target].to_numpy().astype(np.int8)
    own = metrics(y, challenger)
    others = metrics(y, champion) if champion is not None else None
    gain, slices = None, []
    if champion is not None:
        hours = table[spec.model.prediction_time].to_numpy().astype("datetime64[h]")
        gain = paired_bootstrap(
            y, challenger, champion, hours, metric=rules.metric, confidence=rules.confidence,
            rounds=rules.bootstrap_rounds, required=-rules.refresh_margin if refresh else rules.required_gain,
            seed=spec.model.seed,
        )  # fmt: skip
        slices = judge_slices(rules, table, y, challenger, champion)
    reasons = [
        *_floor(rules, own),
        *_gain(rules, gain, refresh),
        *_calibration(rules, own, others),
        *_slices(rules, slices),
        *_budgets(rules, latency_ms, size_mb),
    ]
    return Verdict(
        passed=not reasons,
        reasons=[{"code": code.value, "message": message} for code, message in reasons],
        kind="first model" if champion is None else "refresh" if refresh else "another make",
        metrics=own,
        champion_metrics=others,
        gain={**asdict(gain), "proved": gain.proved} if gain else None,
        slices=slices,
        calibration=calibration_table(y, challenger),
        latency_ms=latency_ms,
        size_mb=size_mb,
        limits=rules.model_dump(),
    )


def judge_slices(
    rules: Evaluation, table: pa.Table, y: Array, challenger: Array, champion: Array
) -> list[dict[str, Any]]:
    """The primary metric of both in every slice with enough rows of both classes."""
    import numpy as np

    found = []
    for column, allowed in rules.slices.items():
        values = np.asarray(table[column].to_pylist(), dtype=object)
        for value in sorted({v for v in values if v is not None}):
            rows = values == value
            if rows.sum() < rules.min_slice_rows or len(np.unique(y[rows])) < 2:
                continue
            own = metric_of(rules.metric, y[rows], challenger[rows])
            other = metric_of(rules.metric, y[rows], champion[rows])
            found.append(
                {
                    "column": column,
                    "value": str(value),
                    "num_rows": int(rows.sum()),
                    "challenger": own,
                    "champion": other,
                    "allowed_drop": allowed,
                    "passed": other - own <= allowed,
                }
            )
    return found


Reasons = list[tuple[ReasonCode, str]]


def _floor(rules: Evaluation, own: Mapping[str, float]) -> Reasons:
    value = own[rules.metric]
    if value >= rules.floor:
        return []
    return [(ReasonCode.METRIC_BELOW_FLOOR, f"{rules.metric} is {value:.4f}, below the floor of {rules.floor}")]


def _gain(rules: Evaluation, gain: Gain | None, refresh: bool) -> Reasons:
    if gain is None or gain.proved:
        return []
    asked = (
        f"a refresh may lose no more than {rules.refresh_margin}"
        if refresh
        else f"a challenger of another make must gain {rules.required_gain}"
    )
    return [
        (
            ReasonCode.GAIN_NOT_PROVEN,
            f"{rules.metric} changed by {gain.mean:+.4f} with a lower bound of {gain.low:+.4f} at confidence "
            f"{gain.confidence}; {asked}",
        )
    ]


def _calibration(rules: Evaluation, own: Mapping[str, float], others: Mapping[str, float] | None) -> Reasons:
    """On days unlike those before every model is off: a challenger as well calibrated as the champion may pass."""
    value = own["calibration_error"]
    limit = max(rules.max_calibration_error, others["calibration_error"] if others else 0.0)
    if value <= limit:
        return []
    return [(ReasonCode.CALIBRATION, f"expected calibration error is {value:.4f}, above {limit:.4f}")]


def _slices(rules: Evaluation, slices: list[dict[str, Any]]) -> Reasons:
    return [
        (
            ReasonCode.SLICE_DROP,
            f"{s['column']}={s['value']} ({s['num_rows']} rows): {rules.metric} fell from {s['champion']:.4f} to "
            f"{s['challenger']:.4f}, more than {s['allowed_drop']}",
        )
        for s in slices
        if not s["passed"]
    ]


def _budgets(rules: Evaluation, latency_ms: float, size_mb: float) -> Reasons:
    reasons: Reasons = []
    if latency_ms > rules.max_latency_ms:
        reasons.append(
            (ReasonCode.LATENCY_BUDGET, f"p95 of one row is {latency_ms:.2f} ms, above {rules.max_latency_ms} ms")
        )
    if size_mb > rules.max_size_mb:
        reasons.append((ReasonCode.SIZE_BUDGET, f"the package has {size_mb:.2f} MB, above {rules.max_size_mb} MB"))
    return reasons
