"""Feedback: predictions meet outcomes, and the line decides whether its model must be remade."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from aifactory import feedback as rules
from aifactory import scoring
from aifactory.errors import NotFound
from aifactory.evaluation import metrics as measure
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent, event_key, station
from aifactory.line import LineSpec
from aifactory.packaging import read_manifest
from aifactory.reasons import ReasonCode
from aifactory.registry import Champion
from aifactory.reports import write_report
from aifactory.store import Conflict

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

TREND_DAYS = 30
"""Windows that the report's trend shows."""


def window_key(line: str, day: str) -> str:
    """Key of the judgement of the window that ends with a day."""
    return f"feedback/{line}/windows/{day}.json"


# --- judging
def judge(f: Factory, spec: LineSpec, day: str | None, run: str) -> dict[str, Any]:
    """Judge every scored day whose window is not judged for its present content.

    Args:
        f: the open factory.
        spec: the line.
        day: the partition that the run is for; every day that is due is judged.
        run: id of the run.

    Returns:
        days judged now, and the newest window's figures and report.
    """
    receipts = scoring.receipts(f, spec)
    judged = []
    for each in sorted(receipts):
        receipt = _window_receipts(spec, each, receipts)
        name = _content_name(receipt)
        if _window(f, spec, each).get("content") != name:
            _judge_day(f, spec, each, receipt, name, run)
            judged.append(each)
    newest = _window(f, spec, max(receipts)) if receipts else {}
    if not judged:
        log.info("no window is due (asked for %s)", day or "whatever is due")
    return {"days": judged, "day": newest.get("day"), "docs": newest.get("report"), **newest.get("metrics", {})}


def _window_receipts(
    spec: LineSpec, day: str, receipts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The scored days of the window that ends with a day, as far as the same model scored them."""
    first = (date.fromisoformat(day) - timedelta(days=spec.feedback.window_days - 1)).isoformat()
    model = receipts[day]["model_version"]
    return {d: r for d, r in receipts.items() if first <= d <= day and r["model_version"] == model}


def _content_name(receipts: Mapping[str, Mapping[str, Any]]) -> str:
    named = "|".join(f"{d}:{r['content']}:{r['model_version']}" for d, r in sorted(receipts.items()))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _judge_day(
    f: Factory, spec: LineSpec, day: str, receipts: Mapping[str, Mapping[str, Any]], name: str, run: str
) -> None:
    version, revision = receipts[day]["model_version"], receipts[day]["dataset_revision"]
    with station(f.ledger, spec.line, "feedback", "window", day, partition=day, run_id=run, revision=name) as work:
        rows = _joined(f, spec, sorted(receipts), revision)
        manifest = read_manifest(f.store, f.registry(spec).package_prefix(version))
        window = _measure(spec, rows, manifest) | {
            "day": day,
            "content": name,
            "model_version": version,
            "dataset_revision": revision,
        }
        released = manifest["metrics"].get(spec.evaluation.metric)
        window["violations"] = rules.violations(spec.feedback, window, released)
        window["report"] = _report(f, spec, window, rows)
        f.store.put_json(window_key(spec.line, day), window)
        work.num_in, work.num_good = window["num_scored"], window["num_outcomes"]
        work.detail = {"metrics": window["metrics"], "violations": window["violations"]}
    log.info("%s: %s; %s", day, window["metrics"], "; ".join(window["violations"]) or "within its limits")


def _joined(f: Factory, spec: LineSpec, days: Sequence[str], revision: str) -> pa.Table:
    import pyarrow as pa

    units = f.datasets(spec).read(revision, list(days))
    written = [t for t in (scoring.read_predictions(f, spec, day) for day in days) if t is not None]
    return rules.join_outcomes(spec, pa.concat_tables(written), units)


def _measure(spec: LineSpec, rows: pa.Table, manifest: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np
    import pyarrow.compute as pc

    profile = manifest["training_profile"]
    known = rows.filter(pc.is_valid(rows[spec.model.target]))
    target, score = known[spec.model.target].to_numpy(), known["score"].to_numpy()
    features = rules.feature_drift(spec, profile, rows)
    over = [name for name, moved in features.items() if moved["psi"] > spec.feedback.max_feature_psi]
    scored = rules.numeric_drift(profile["score"], np.asarray(rows["score"].to_numpy()), int(profile["num_rows"]))
    return {
        "primary": spec.evaluation.metric,
        "metrics": {k: round(v, 6) for k, v in measure(target, score).items()} if len(set(target.tolist())) > 1 else {},
        "num_scored": rows.num_rows,
        "num_outcomes": known.num_rows,
        "drift": {
            "score_psi": scored["psi"],
            "score_ks": scored["ks"],
            "num_drifted": len(over),
            "drifted": sorted(over),
            "drifted_share": round(len(over) / max(len(features), 1), 4),
            "features": features,
        },
    }


# --- deciding
def decide(f: Factory, spec: LineSpec, day: str | None, run: str) -> dict[str, Any]:
    """Decide by the line's rule whether the model must be remade; call for it once.

    However often this runs, also at the same time, `emit` is true exactly once for a decision: the signal is an object
    that is written only where it is not there yet.

    Returns:
        retrain, reason, explanation, signal, emit, day.
    """
    version = f.datasets(spec).latest()
    champion = f.registry(spec).champion()
    newest = version.days[-1] if version else None
    if version is None or newest is None:
        decision = rules.Decision(False, None, "there is no dataset yet")
    elif champion is None:
        decision = _first_model(spec, version.num_partitions)
    else:
        signals = _signals(f, spec, champion)
        decision = rules.decide(
            spec, _windows_of(f, spec, champion), champion.trained_until, newest, [s["day"] for s in signals]
        )
    signal = f"{champion.version if champion else 'first'}-{newest}"
    emit = decision.retrain and _call(f, spec, signal, decision, newest, run)
    said = {
        "retrain": decision.retrain,
        "reason": decision.reason.value if decision.reason else None,
        "explanation": decision.explanation,
        "signal": signal if decision.retrain else None,
        "emit": emit,
        "day": newest,
    }
    _record(f, spec, said, champion, run)
    log.info("%s: %s", "retrain" if decision.retrain else "keep", decision.explanation)
    return said


def _first_model(spec: LineSpec, num_days: int) -> rules.Decision:
    needed = spec.dataset.min_train_days + spec.dataset.min_holdout_days
    if num_days < needed:
        return rules.Decision(False, None, f"{num_days} days of data, a first model needs {needed}")
    return rules.Decision(True, ReasonCode.FIRST_MODEL, f"{num_days} days of data and no model yet")


def _call(f: Factory, spec: LineSpec, signal: str, decision: rules.Decision, day: str | None, run: str) -> bool:
    """Write the signal; False where it was written before."""
    content = {"signal": signal, "day": day, "reason": decision.reason, "explanation": decision.explanation, "run": run}
    try:
        f.store.put_json(f"feedback/{spec.line}/signals/{signal}.json", content, if_absent=True)
    except Conflict:
        return False
    return True


def _signals(f: Factory, spec: LineSpec, champion: Champion) -> list[dict[str, Any]]:
    """The calls for a retrain in this champion's life."""
    found = f.store.list(f"feedback/{spec.line}/signals/{champion.version}-")
    return [f.store.get_json(o.key) for o in found]


def _record(f: Factory, spec: LineSpec, said: Mapping[str, Any], champion: Champion | None, run: str) -> None:
    unit, day = champion.version if champion else "none", str(said["day"])
    revision = f"{unit}:{day}:{said['retrain']}:{said['explanation']}"
    f.ledger.record(
        ProductionEvent(
            line=spec.line,
            station="feedback",
            unit_kind="model",
            unit=unit,
            event=EventKind.DECIDED,
            key=event_key(spec.line, "feedback", unit, EventKind.DECIDED, revision),
            reason=ReasonCode[said["reason"]] if said["reason"] else None,
            partition=said["day"],
            run_id=run,
            detail={k: said[k] for k in ("retrain", "explanation", "signal")},
        )
    )


def _windows_of(f: Factory, spec: LineSpec, champion: Champion) -> list[dict[str, Any]]:
    """The judged windows of the version in service, oldest first."""
    windows = [f.store.get_json(o.key) for o in f.store.list(f"feedback/{spec.line}/windows/")[-TREND_DAYS:]]
    return [w for w in windows if w["model_version"] == champion.version]


def _window(f: Factory, spec: LineSpec, day: str) -> dict[str, Any]:
    try:
        return f.store.get_json(window_key(spec.line, day))
    except NotFound:
        return {}


# --- the report
def _report(f: Factory, spec: LineSpec, window: Mapping[str, Any], rows: pa.Table) -> str:
    day = window["day"]
    earlier = [f.store.get_json(o.key) for o in f.store.list(f"feedback/{spec.line}/windows/")[-TREND_DAYS:]]
    trend = [*(w for w in earlier if w["day"] < day), window]
    drifted = sorted(window["drift"]["features"].items(), key=lambda item: -item[1]["psi"])
    verdict = "; ".join(window["violations"]) or "every limit is kept"
    return write_report(
        f,
        f"reports/{spec.line}/feedback/{day}",
        f"{spec.title}: {day}, version {window['model_version']}",
        [f"{window['num_outcomes']} of {window['num_scored']} scored units have an outcome. {verdict}."],
        {
            "live metrics": [window["metrics"]] if window["metrics"] else [],
            "drift by feature": [{"feature": name, **moved} for name, moved in drifted],
        },
        {
            "metric": _trend_figure(spec, trend),
            "drift": _drift_figure(spec, drifted),
            "calibration": _calibration_figure(spec, rows),
        },
    )


def _figure(title: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _trend_figure(spec: LineSpec, windows: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure(f"live {spec.evaluation.metric}")
    shown = [w for w in windows if spec.evaluation.metric in w["metrics"]]
    axes.plot([w["day"][5:] for w in shown], [w["metrics"][spec.evaluation.metric] for w in shown], marker="o")
    broken = [w for w in shown if w["violations"]]
    axes.plot(
        [w["day"][5:] for w in broken], [w["metrics"][spec.evaluation.metric] for w in broken], "rx", markersize=10
    )
    axes.tick_params(axis="x", rotation=60)
    return figure


def _drift_figure(spec: LineSpec, drifted: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    figure, axes = _figure("population stability index, most moved features")
    top = list(drifted[:15])[::-1]
    axes.barh([name for name, _ in top], [moved["psi"] for _, moved in top])
    axes.axvline(spec.feedback.max_feature_psi, color="red", linestyle="--")
    return figure


def _calibration_figure(spec: LineSpec, rows: pa.Table) -> Figure:
    import numpy as np
    import pyarrow.compute as pc

    known = rows.filter(pc.is_valid(rows[spec.model.target]))
    target, score = known[spec.model.target].to_numpy(), known["score"].to_numpy()
    figure, axes = _figure("calibration: outcome against score, ten bins")
    bins = np.minimum((score * 10).astype(int), 9)
    used = [b for b in range(10) if (bins == b).any()]
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot([score[bins == b].mean() for b in used], [target[bins == b].mean() for b in used], marker="o")
    return figure
