"""Score: the champion predicts every pending day; the predictions pass a gate before they are written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aifactory import gates, scoring
from aifactory.datasets import DatasetVersion
from aifactory.errors import GateRefused
from aifactory.factory import Factory
from aifactory.ledger import station
from aifactory.line import LineSpec
from aifactory.packaging import Package, load_package
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def score(f: Factory, spec: LineSpec, day: str | None, run: str) -> dict[str, Any]:
    """Score what is pending: every dataset day without predictions for its present rows.

    Args:
        f: the open factory.
        spec: the line.
        day: the partition that the run is for; it is logged where it is not pending. Every pending day is scored.
        run: id of the run.

    Returns:
        days, num_rows, model_version, docs; `reason` where nothing could be scored.

    Raises:
        GateRefused: PREDICTIONS_GATE; those predictions were not written.
    """
    version, reigns = f.datasets(spec).latest(), f.registry(spec).champions()
    if version is None or not reigns:
        reason = ReasonCode.NO_CHAMPION
        log.info("nothing is scored: %s", reason.sentence)
        return {"days": [], "num_rows": 0, "model_version": None, "reason": reason.value, "docs": None}
    done = scoring.receipts(f, spec)
    content = f.datasets(spec).content(version.revision)
    todo = scoring.pending(reigns, content, done)
    if not todo:
        log.info("no day is pending (asked for %s)", day or "whatever is pending")
    outcome: dict[str, Any] = {"days": [], "num_rows": 0, "model_version": reigns[-1]["version"], "docs": None}
    packages: dict[str, Package] = {}
    for pending_day, reign in todo:
        package = packages.setdefault(reign["version"], load_package(f, reign["package"]))
        made = _score_day(f, spec, pending_day, reign, package, (version, content[pending_day]), run)
        outcome["days"].append(pending_day)
        outcome["num_rows"] += made["num_rows"]
        outcome["docs"] = made["docs"]
    return outcome


def _score_day(
    f: Factory,
    spec: LineSpec,
    day: str,
    reign: Mapping[str, Any],
    package: Package,
    dataset: tuple[DatasetVersion, str],
    run: str,
) -> dict[str, Any]:
    version, content = dataset
    model = str(reign["version"])
    with station(
        f.ledger, spec.line, "score", "predictions", day, partition=day, run_id=run, revision=f"{model}:{content}"
    ) as work:
        units = f.datasets(spec).read(version.revision, [day])
        work.num_in = units.num_rows
        predictions = scoring.predict_day(spec, package, units, model, version.revision)
        docs, mean = _gate(f, spec, day, predictions, units)
        f.store.put_table(scoring.predictions_key(spec.line, day), predictions)
        receipt = {
            "day": day,
            "content": content,
            "model_version": model,
            "dataset_revision": version.revision,
            "num_rows": predictions.num_rows,
            "mean_score": mean,
            "docs": docs,
        }
        f.store.put_json(scoring.receipt_key(spec.line, day), receipt)
        work.num_good, work.detail = predictions.num_rows, {"model_version": model, "mean_score": mean}
    log.info("%s: %d flights scored by version %s, mean %.3f", day, predictions.num_rows, model, mean)
    return receipt


def _gate(f: Factory, spec: LineSpec, day: str, predictions: pa.Table, units: pa.Table) -> tuple[str, float]:
    """Judge a day's predictions by the line's suite, and against the recent days; returns the docs and the mean score.

    Raises:
        GateRefused: PREDICTIONS_GATE.
    """
    import pyarrow.compute as pc

    suites = gates.load_suites(f.settings, spec)
    with gates.connect(f.settings) as con:
        verdict = gates.judge(suites.predictions(spec), predictions, con)
    prefix = f"reports/{spec.line}/score/{day}"
    mean = float(pc.mean(predictions["score"]).as_py() or 0.0)
    problems = [f"{x.expectation}: {x.num_failed} rows" for x in verdict.failures]
    problems += _against_recent(f, spec, day, predictions.num_rows / max(units.num_rows, 1), mean)
    docs = gates.publish_docs(f, {"predictions": verdict}, prefix, "; ".join(problems) or f"mean score {mean:.4f}")
    if problems:
        raise GateRefused(ReasonCode.PREDICTIONS_GATE, f"predictions of {day}: {'; '.join(problems)}; see {docs}")
    return docs, mean


def _against_recent(f: Factory, spec: LineSpec, day: str, coverage: float, mean: float) -> list[str]:
    found = []
    if coverage < spec.scoring.min_coverage:
        found.append(f"coverage {coverage:.3f} is below scoring.min_coverage {spec.scoring.min_coverage}")
    before = [r["mean_score"] for d, r in sorted(scoring.receipts(f, spec).items()) if d < day]
    recent = before[-spec.scoring.recent_days :]
    if recent:
        shift = abs(mean - sum(recent) / len(recent))
        if shift > spec.scoring.max_mean_shift:
            found.append(
                f"the mean score moved by {shift:.3f}, more than scoring.max_mean_shift {spec.scoring.max_mean_shift}"
            )
    return found
