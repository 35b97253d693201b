"""Feedback: predictions meet outcomes, and the line decides whether its model must be remade."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifactory import feedback as rules
from aifactory import scoring
from aifactory.dayindex import DayIndex, Entry
from aifactory.evaluation import calibration_table
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent, event_key, station
from aifactory.line import LineSpec
from aifactory.packaging import read_manifest
from aifactory.reasons import ReasonCode
from aifactory.registry import Champion
from aifactory.reports import new_figure, write_report
from aifactory.rollout import open_adapter
from aifactory.serving import live
from aifactory.store import Conflict

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

TREND_WINDOWS = 30
"""Windows that the report's trend shows."""


def window_key(line: str, day: str) -> str:
    """Key of the judgement of the window that ends with a day."""
    return f"feedback/{line}/windows/{day}.json"


def judged_windows(f: Factory, spec: LineSpec) -> DayIndex:
    """The windows in short, by day: `content`, `model_version`, `num_days`, `metrics`, `violations`, `report`.

    And `live`, where answers to callers were enough to be judged: `model_version`, `slot` and `violations` of each.
    """
    return DayIndex(f.store, f"feedback/{spec.line}/index.json")


# --- judging
def judge(f: Factory, spec: LineSpec, day: str | None, run: str) -> dict[str, Any]:
    """Judge every window whose outcomes are in and that has not been judged for its present content.

    Args:
        f: the open factory.
        spec: the line.
        day: the partition that the run is for; every window that is due is judged.
        run: id of the run.

    Returns:
        days judged now; of the newest window: day, docs, its violations and metrics.
    """
    scored = {d: entry for d, entry in scoring.scored_days(f, spec).read().items() if not entry["refused"]}
    served, known = live.live_days(f.store, spec.line).read(), judged_windows(f, spec).read()
    judged = []
    for each in sorted(scored):
        days = rules.window_days(spec, each, scored)
        content = _content([scored[d] for d in days], {d: served[d] for d in days if d in served})
        if rules.outcomes_due(spec, each, max(scored)) and known.get(each, {}).get("content") != content:
            known[each] = _judge_window(f, spec, days, scored[each], content, known, run)
            judged_windows(f, spec).merge({each: known[each]})
            judged.append(each)
    if not judged:
        log.info("no window is due (asked for %s)", day or "whatever is due")
    newest = max(known, default=None)
    if newest is None:
        return {"days": [], "day": None, "docs": None, "violations": []}
    said = known[newest]
    return {"days": judged, "day": newest, "docs": said["report"], "violations": said["violations"], **said["metrics"]}


def _content(entries: Sequence[Entry], served: Mapping[str, Entry]) -> str:
    """Names what a judgement rests on: rows and model, served rows. Other limits do not judge the past anew."""
    parts = [f"{e['content']}:{e['model_version']}" for e in entries]
    parts += [f"{day}:{e['num_rows']}" for day, e in sorted(served.items())]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _judge_window(
    f: Factory, spec: LineSpec, days: Sequence[str], entry: Entry, content: str, known: Mapping[str, Entry], run: str
) -> dict[str, Any]:
    """Measure one window, write it with its report; returns it in short."""
    day, version, revision = days[-1], entry["model_version"], entry["dataset_revision"]
    with station(f.ledger, spec.line, "feedback", "window", day, partition=day, run_id=run, revision=content) as work:
        manifest = read_manifest(f.store, f.registry(spec).package_prefix(version))
        rows = _joined(f, spec, days, revision, manifest)
        window = rules.measure(spec, manifest, rows) | {
            "day": day,
            "num_days": len(days),
            "content": content,
            "model_version": version,
            "dataset_revision": revision,
        }
        window["violations"] = rules.violations(spec.feedback, window)
        window["served"] = _served(f, spec, days, revision)
        short = {
            "content": content,
            "model_version": version,
            "num_days": len(days),
            "metrics": window["metrics"],
            "violations": window["violations"],
            "live": [
                {name: each[name] for name in ("model_version", "slot", "violations")}
                for each in window["served"]
                if each["violations"] is not None
            ],
        }
        window["report"] = short["report"] = _report(f, spec, window, rows, known)
        f.store.put_json(window_key(spec.line, day), window)
        work.num_in, work.num_good = window["num_scored"], window["num_outcomes"]
        work.detail = {name: window[name] for name in ("model_version", "metrics", "violations", "served")}
    log.info("%s: %s", day, "; ".join(window["violations"]) or "within its limits")
    return short


def _joined(f: Factory, spec: LineSpec, days: Sequence[str], revision: str, manifest: Mapping[str, Any]) -> pa.Table:
    """Features, scores and outcomes of some days."""
    import pyarrow as pa

    features = manifest["features"]
    columns = [*spec.model.entity_key, spec.model.target, *features["categorical"], *features["numeric"]]
    parts = []
    for day in days:
        units = f.datasets(spec).read(revision, [day], list(dict.fromkeys(columns)))
        parts.append(rules.join_outcomes(spec, f.store.get_table(scoring.predictions_key(spec.line, day)), units))
    return pa.concat_tables(parts)


def _served(f: Factory, spec: LineSpec, days: Sequence[str], revision: str) -> list[dict[str, Any]]:
    """The live metric of what was served on some days, by version and slot; none where nothing was.

    With `violations`: the limits that it breaks; null where it is not enough to be judged.
    """
    import pyarrow as pa

    parts = [rows for day in days if (rows := served_rows(f, spec, day, revision)) is not None]
    return (
        [live_verdict(f, spec, each) for each in rules.served_metrics(spec, pa.concat_tables(parts))] if parts else []
    )


def served_rows(f: Factory, spec: LineSpec, day: str, revision: str) -> pa.Table | None:
    """One day's served answers with their outcomes; None where there are none."""
    import pyarrow as pa

    answers = live.live_predictions(f, spec, day)
    if answers is None:
        return None
    units = f.datasets(spec).read(revision, [day], [*spec.model.entity_key, spec.model.target])
    rows = rules.join_outcomes(spec, answers, units, ["score", "model_version", "slot", "shadow", "served_at"])
    return rows.append_column("day", pa.repeat(day, rows.num_rows))


def live_verdict(f: Factory, spec: LineSpec, served: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of one version from one slot, see `rules.served_metrics`, with the limits that they break."""
    broken = None
    if rules.live_enough(spec.feedback, served):
        manifest = read_manifest(f.store, f.registry(spec).package_prefix(served["model_version"]))
        released = manifest["training_profile"]["baseline"]
        broken = rules.outcome_violations(spec.feedback, spec.evaluation.metric, released, served["metrics"])
    return {**served, "violations": broken}


# --- deciding
def decide(f: Factory, spec: LineSpec, day: str | None, run: str) -> dict[str, Any]:
    """Decide by the line's rule whether the model must be remade; call for it once.

    The n-th call in a champion's life is one object, written only where it is not there yet. So of all runs that come
    to the same decision, at the same time or later, one has `emit` true; and that one has it again when it is tried
    again, because it may have ended before it could call.

    Args:
        f: the open factory.
        spec: the line.
        day: the partition that the run is for; the decision is always about the newest day of the dataset.
        run: id of the run.

    Returns:
        retrain, reason, explanation, signal, emit, day, and the windows that were looked at.
    """
    version, champion = f.datasets(spec).latest(), f.registry(spec).champion()
    if version is None:
        log.info("there is no dataset yet (asked for %s)", day)
        return _said(rules.Decision(False, None, "there is no dataset yet"), None)
    calls = _calls(f, spec, champion)
    own = next((call for call in calls if call["run"] == run), None)
    if own is not None:
        log.info("this run has called for a retrain already: %s", own["explanation"])
        return _said(rules.Decision(True, ReasonCode[own["reason"]], own["explanation"]), own["day"]) | {
            "signal": own["signal"],
            "emit": True,
        }
    newest, windows = version.days[-1], _windows_of(f, spec, champion)
    called_on = [str(call["day"]) for call in calls]
    if champion is None:
        decision = rules.decide_first(spec, version.num_partitions, newest, called_on)
    else:
        decision = rules.decide(spec, windows, champion.trained_until, newest, called_on)
    said = _said(decision, newest) | {"windows": windows[-spec.feedback.rule_windows :]}
    if decision.retrain:
        signal = f"{champion.version if champion else 'first'}-{len(calls) + 1:03d}"
        said |= {"signal": signal, "emit": _call(f, spec, said | {"signal": signal, "run": run})}
    _record(f, spec, said, champion, len(calls), run)
    log.info("%s: %s", "retrain" if decision.retrain else "keep", decision.explanation)
    return said


def _said(decision: rules.Decision, day: str | None) -> dict[str, Any]:
    return {
        "retrain": decision.retrain,
        "reason": decision.reason.value if decision.reason else None,
        "explanation": decision.explanation,
        "signal": None,
        "emit": False,
        "day": day,
        "windows": [],
    }


def _signals_prefix(line: str) -> str:
    return f"feedback/{line}/signals/"


def _calls(f: Factory, spec: LineSpec, champion: Champion | None) -> list[dict[str, Any]]:
    """The calls for a retrain in this champion's life, oldest first."""
    found = f.store.list(f"{_signals_prefix(spec.line)}{champion.version if champion else 'first'}-")
    return [f.store.get_json(each.key) for each in found]


def _call(f: Factory, spec: LineSpec, said: Mapping[str, Any]) -> bool:
    """Write the signal; whether this run is the one that did."""
    key = f"{_signals_prefix(spec.line)}{said['signal']}.json"
    content = {name: said[name] for name in ("signal", "day", "reason", "explanation", "run")}
    try:
        f.store.put_json(key, content, if_absent=True)
    except Conflict:  # also when the answer to our own write got lost and the client wrote again
        return bool(f.store.get_json(key)["run"] == said["run"])
    return True


def _windows_of(f: Factory, spec: LineSpec, champion: Champion | None) -> list[dict[str, Any]]:
    """Day and violations of the full windows of the version in service, oldest first: one a day, batch and live."""
    if champion is None:
        return []
    slot, found = _live_slot(f, spec, champion), []
    for day, entry in judged_windows(f, spec).read().items():
        batch = entry["model_version"] == champion.version and entry["num_days"] >= spec.feedback.window_days
        served = {(each["model_version"], each["slot"]): each["violations"] for each in entry.get("live", [])}
        live_violations = served.get((champion.version, slot))
        if batch or live_violations is not None:
            violations = list(entry["violations"]) if batch else []
            found.append({"day": day, "violations": violations, "live_violations": live_violations or []})
    return found


def _live_slot(f: Factory, spec: LineSpec, champion: Champion) -> str | None:
    """The slot that the champion serves live requests from; None where it does not."""
    if not spec.deployment.online:
        return None
    document = open_adapter(f, spec).wanted()
    return document.champion_slot if document.champion == champion.version else None


def _record(
    f: Factory, spec: LineSpec, said: Mapping[str, Any], champion: Champion | None, num_calls: int, run: str
) -> None:
    """Tell the ledger, once for each day and decision."""
    unit, day = champion.version if champion else "none", str(said["day"])
    revision = f"{day}:{num_calls}:{said['retrain']}:{said['explanation']}"
    f.ledger.record(
        ProductionEvent(
            line=spec.line,
            station="feedback",
            unit_kind="model",
            unit=unit,
            event=EventKind.DECIDED,
            key=event_key(spec.line, "feedback", unit, EventKind.DECIDED, revision),
            reason=ReasonCode[said["reason"]] if said["reason"] else None,
            partition=day,
            run_id=run,
            detail={name: said[name] for name in ("retrain", "explanation", "signal")},
        )
    )


# --- the report
def _report(f: Factory, spec: LineSpec, window: Mapping[str, Any], rows: pa.Table, known: Mapping[str, Entry]) -> str:
    day, features = window["day"], window["drift"]["features"]
    moved = sorted(features.items(), key=lambda item: -item[1]["psi"])
    forming = window["num_days"] < spec.feedback.window_days
    verdict = "; ".join(window["violations"]) or ("still forming" if forming else "every limit is kept")
    released = {name: window["released"].get(name) for name in window["metrics"]}
    return write_report(
        f.store,
        f"reports/{spec.line}/feedback/{day}",
        f"{spec.title}: version {window['model_version']}, {window['num_days']} days up to {day}",
        [
            f"Verdict: {verdict}.",
            f"{window['num_outcomes']} of {window['num_scored']} scored units have an outcome.",
            f"Score: PSI {window['drift']['score_psi']}, Kolmogorov-Smirnov {window['drift']['score_ks']}.",
        ],
        {
            "Live metrics, and those that the model was released with": [
                {"": "live", **window["metrics"]},
                {"": "released", **released},
            ],
            **(
                {"Served answers that have an outcome, by version and slot": _served_rows(window)}
                if window["served"]
                else {}
            ),
            "Drift from the training window, by feature": [
                {"feature": name, "psi": of["psi"], "ks": of.get("ks", ""), "p-value": of["p_value"]}
                for name, of in moved
            ],
        },
        {
            "metric": _trend_figure(spec, known, window),
            "drift": _drift_figure(spec, moved),
            "calibration": _calibration_figure(spec, rows),
        },
    )


def _served_rows(window: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "version": each["model_version"],
            "slot": each["slot"],
            "went to": "nobody (shadow)" if each["shadow"] else "callers",
            "days": each["num_days"],
            "served": each["num_scored"],
            "with outcome": each["num_outcomes"],
            "verdict": "not enough to judge" if each["violations"] is None else "; ".join(each["violations"]) or "kept",
            **{name: each["metrics"].get(name) for name in window["metrics"]},
        }
        for each in window["served"]
    ]


def _trend_figure(spec: LineSpec, known: Mapping[str, Entry], window: Mapping[str, Any]) -> Figure:
    """The primary metric of the newest windows, the broken ones marked, and the value at release."""
    name = spec.evaluation.metric
    trend = {day: entry for day, entry in sorted(known.items()) if day < window["day"]} | {window["day"]: window}
    shown = [(day, e) for day, e in trend.items() if name in e["metrics"]][-TREND_WINDOWS:]
    figure, axes = new_figure(f"{name} of the newest windows (crosses: a limit was broken)")
    places = range(len(shown))
    axes.plot(places, [e["metrics"][name] for _, e in shown], marker="o")
    broken = [n for n, (_, e) in enumerate(shown) if e["violations"]]
    axes.plot(broken, [shown[n][1]["metrics"][name] for n in broken], "rx", markersize=10)
    axes.axhline(window["released"].get(name, float("nan")), color="grey", linestyle="--", label="at release")
    axes.set_xticks(list(places), [day[5:] for day, _ in shown], rotation=60)
    axes.legend(loc="best")
    return figure


def _drift_figure(spec: LineSpec, moved: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    figure, axes = new_figure("population stability index of the most moved features (line: the limit)")
    top = list(moved[:15])[::-1]
    axes.barh([name for name, _ in top], [of["psi"] for _, of in top])
    axes.axvline(spec.feedback.max_feature_psi, color="red", linestyle="--")
    return figure


def _calibration_figure(spec: LineSpec, rows: pa.Table) -> Figure:
    import pyarrow.compute as pc

    known = rows.filter(pc.is_valid(rows[spec.model.target]))
    figure, axes = new_figure("share that came true against the score, in ten bins")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlabel="mean score", ylabel="share that came true")
    if known.num_rows:
        bins = calibration_table(known[spec.model.target].to_numpy(), known["score"].to_numpy())
        axes.plot([b["probability"] for b in bins], [b["outcome"] for b in bins], marker="o")
    return figure
