"""train: one order from its request to a registered version, each step safe to run again.

resolve_order   pins revision, recipe, parameters, features, champion and days: the order
train           one phase in a process of its own: challenger, later refit
evaluate        challenger against champion on days that neither has learned; a refusal scraps the order
register        holds the refit against the blessed challenger and makes it a version
edge            makes the version's int8 package for devices, where the line has one
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifactory import jobs
from aifactory.errors import DatasetDefect, InfrastructureFault, NotFound, ReleaseDefect, SpecError, TrainingDefect
from aifactory.evaluation import metric_of
from aifactory.factory import Factory
from aifactory.jobs import CarryOut
from aifactory.judgement import held_out, judge_order
from aifactory.ledger import EventKind, ProductionEvent, event_key, station
from aifactory.line import LineSpec
from aifactory.packaging import load_package, read_manifest
from aifactory.reasons import ReasonCode
from aifactory.store import Conflict

if TYPE_CHECKING:
    from aifactory.datasets import DatasetVersion

log = logging.getLogger(__name__)

MIN_REFIT_CORRELATION = 0.5
MAX_REFIT_SHIFT = 0.05
MAX_REFIT_LOSS = 0.02
_TOLD = ("mlflow_url", "seconds", "pod", "schedule_s", "start_s", "work_s", "telemetry")

Program = Callable[[str, str], dict[str, Any]]
"""Runs the training program for (order id, phase) to its end; gives what it made, see `training.run.run`."""


def resolve_order(f: Factory, spec: LineSpec, request: Mapping[str, Any]) -> dict[str, Any]:
    """Pin everything that training needs, so that the same request on the same data is the same order.

    Args:
        f: the open factory.
        spec: the line.
        request: `reason`, `signal`, and optionally `revision`, `recipe`, `drop_features`, `force`, `why`, `by`.

    Returns:
        The order, as written to `orders/<line>/<order_id>.json`.

    Raises:
        DatasetDefect: there are too few days to learn from or to judge on.
        SpecError: the request names a recipe or feature that the line does not have.
    """
    from aifactory.recipes import check_parameters

    dataset = _dataset(f, spec, request.get("revision"))
    recipe = request.get("recipe") or spec.model.recipe
    if recipe not in spec.model.recipes:
        raise SpecError(f"{spec.line} declares no recipe {recipe!r}; there are {sorted(spec.model.recipes)}")
    if refused := spec.compute.one_process_only(recipe):
        raise SpecError(f"{spec.line}: {refused}")
    dropped = _dropped(spec, request.get("drop_features") or [])
    champion = _champion(f, spec)
    order = {
        "line": spec.line,
        "recipe": recipe,
        "parameters": check_parameters(recipe, spec.model.recipes[recipe].parameters).model_dump(mode="json"),
        "categorical": [c for c in spec.model.categorical if c not in dropped],
        "numeric": [c for c in spec.model.numeric if c not in dropped],
        "drop_features": dropped,
        "revision": dataset.revision,
        "tag": dataset.tag,
        "dir_md5": dataset.dir_md5,
        "spec_digest": spec.digest,
        "seed": spec.model.seed,
        "days": split_days(spec, dataset.days, champion["trained_until"] if champion else None),
        "champion": champion,
        "attempt": str(request.get("signal", "")) if request.get("force") else "",
    }
    content = hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()
    order |= {
        "order_id": f"{dataset.days[-1].replace('-', '')}-{content[:10]}",
        "spec": spec.model_dump(mode="json"),  # a pod has the image's code, and must not have the image's spec
        **{name: str(request.get(name) or "") for name in ("reason", "signal", "why", "by")},
    }
    return _written(f, spec, order)


def split_days(spec: LineSpec, days: Sequence[str], champion_until: str | None) -> dict[str, list[str]]:
    """Which days the challenger learns, which are held out, which the refit learns: always cut by time.

    Only days that the champion has not learned can be held out. Half of them are, within the line's limits: were all
    of them, a challenger would have learned nothing that the champion had not, and the newest data would be released
    without ever having been tried.

    Raises:
        DatasetDefect: too few days; names the numbers.
    """
    kept = sorted(days)[-spec.dataset.history_days :]
    rules = spec.dataset
    held = rules.holdout_days
    if champion_until is not None:
        fresh = sum(day > champion_until for day in kept)
        if fresh < rules.min_holdout_days:
            raise DatasetDefect(
                ReasonCode.DATASET_TOO_SMALL,
                f"{spec.line}: {fresh} days are newer than {champion_until}, the last that the champion learned, and "
                f"dataset.min_holdout_days is {rules.min_holdout_days}; ingest more days first",
            )
        held = min(rules.holdout_days, max(rules.min_holdout_days, fresh // 2))
    if len(kept) < rules.min_train_days + held:
        raise DatasetDefect(
            ReasonCode.DATASET_TOO_SMALL,
            f"{spec.line}: there are {len(kept)} days, and dataset.min_train_days {rules.min_train_days} plus {held} "
            f"held-out days are needed; ingest more history",
        )
    return {"challenger": kept[:-held], "holdout": kept[-held:], "refit": kept}


def train(
    f: Factory,
    spec: LineSpec,
    order_id: str,
    phase: str,
    *,
    program: Program | None = None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> dict[str, Any]:
    """Carry out one phase of an order, in a process of its own or wherever `program` has it done.

    Args:
        f: the open factory.
        spec: the line.
        order_id: the training order.
        phase: "challenger" or "refit".
        program: runs the training program to its end; default a process of this machine.
        on_start: told how to stop that process.

    Returns:
        {"order_id", "phase", "package", "num_rows", "seconds", "run_id", "mlflow_url", "reused", "telemetry"}
    """
    from aifactory.training.launch import launch

    def process(order_id: str, phase: str) -> dict[str, Any]:
        timeout_s = spec.compute.timeout_minutes * 60
        return launch(
            f.settings, spec.line, order_id, phase, timeout_s, on_start=on_start, processes=_processes_here(spec)
        )

    order = _order(f, spec, order_id)
    with _at_station(f, spec, order, f"{order_id}/{phase}") as work:
        try:
            made = (program or process)(order_id, phase)
        except TrainingDefect:
            work.detail = {"telemetry": _taken(f, spec, order_id, phase)}
            raise
        work.num_in = work.num_good = int(made["num_rows"])
        work.detail = {name: made[name] for name in _TOLD if name in made}
        taken = made.get("telemetry", {})  # a result of an older image has none
        work.gpu_s, work.energy_kwh, work.money = (taken.get(name, 0.0) for name in ("gpu_s", "energy_kwh", "money"))
    return made


def evaluate(f: Factory, spec: LineSpec, order_id: str, carry_out: CarryOut | None = None) -> dict[str, Any]:
    """Judge the challenger. A refusal is a result, not an error: the order is scrapped, on the record.

    Args:
        f: the open factory.
        spec: the line.
        order_id: the training order.
        carry_out: has the comparing done elsewhere; default here.

    Returns:
        {"order_id", "passed", "reasons", "kind", "metrics", "champion_metrics", "gain", "report", "mlflow_url"}
    """
    order = _order(f, spec, order_id)
    with _at_station(f, spec, order, f"{order_id}/evaluation") as work:
        verdict = _verdict(f, spec, order, carry_out)
        work.num_in = work.num_good = int(verdict["metrics"]["num_rows"])
        work.detail = {"passed": verdict["passed"], "report": verdict["report"], "dataset_revision": order["revision"]}
        url = _tell_mlflow(f, spec, order, verdict)
    if not verdict["passed"]:
        first = verdict["reasons"][0]
        detail = {name: verdict[name] for name in ("reasons", "report")} | {n: order[n] for n in ("recipe", "why")}
        f.ledger.record(
            _event(
                spec, order, order_id, EventKind.SCRAPPED, order_id,
                reason=ReasonCode[first["code"]], num_in=1, num_bad=1, detail=detail,
            )
        )  # fmt: skip
    told = ("passed", "reasons", "kind", "metrics", "champion_metrics", "gain", "report")
    return {"order_id": order_id, **{name: verdict[name] for name in told}, "mlflow_url": url}


def register(f: Factory, spec: LineSpec, order_id: str) -> dict[str, Any]:
    """Make the refitted model a version of the registry.

    Returns:
        {"version", "order_id", "revision", "trained_until", "package", "mlflow_url"}

    Raises:
        TrainingDefect: the challenger was not blessed, or the refit strays from it.
    """
    from aifactory.training.run import candidate_prefix
    from aifactory.training.tracking import Tracker

    order = _order(f, spec, order_id)
    verdict = _judged(f, spec, order_id)
    if verdict is None or not verdict["passed"]:
        raise TrainingDefect(
            ReasonCode.GAIN_NOT_PROVEN, f"order {order_id} has not passed its evaluation, so it is not registered"
        )
    with _at_station(f, spec, order, order_id) as work:
        strays = _refit_strays(f, spec, order)
        if strays:
            work.event = EventKind.SCRAPPED
            raise TrainingDefect(
                ReasonCode.REFIT_DIVERGED, f"order {order_id}: {strays}; look at the newest days' drift"
            )
        tracker = Tracker(f.settings, spec.line, order_id, "refit")
        prefix = candidate_prefix(spec.line, order_id, "refit")
        made = f.registry(spec).register(order, prefix, verdict["metrics"], tracker.run_id)
        tracker.tag(verdict="registered", version=made.version)
        work.num_in = work.num_good = 1
        work.detail = {
            "version": made.version,
            "trained_until": made.trained_until,
            "dataset_revision": order["revision"],
            "metrics": verdict["metrics"],
        }
    return {
        "version": made.version,
        "order_id": order_id,
        "revision": made.dataset_revision,
        "trained_until": made.trained_until,
        "package": made.package,
        "mlflow_url": f"{f.settings.mlflow_ui_url}/#/models/{spec.line}/versions/{made.version}",
    }


def edge(f: Factory, spec: LineSpec, order_id: str) -> dict[str, Any]:
    """Make the int8 package of the version of an order. A refusal is a result, not an error, and is on the record.

    Returns:
        See `edge.make_edge`, and "order_id".

    Raises:
        ReleaseDefect: the order has no version.
        PackageDefect: a package was altered.
    """
    from aifactory.edge import make_edge

    if spec.edge is None:
        raise SpecError(f"{spec.line} has no section `edge`, so it has no edge package; add one, with its limits")
    order = _order(f, spec, order_id)
    version = next((v for v in f.registry(spec).versions() if v.order_id == order_id), None)
    if version is None:
        raise ReleaseDefect(ReasonCode.VERSION_UNKNOWN, f"order {order_id} of {spec.line} is no version; register it")
    with _at_station(f, spec, order, f"{order_id}/edge", "edge") as work:
        verdict = make_edge(f, spec, spec.edge, order, version, f"{_report_folder(spec, order_id)}/edge.json")
        work.num_in, work.num_good, work.num_bad = 1, int(verdict["passed"]), int(not verdict["passed"])
        work.detail = dict(verdict)
        if not verdict["passed"]:
            work.reason = ReasonCode[verdict["reasons"][0]["code"]]
            nothing_made = work.reason is ReasonCode.EDGE_NOT_QUANTISABLE
            work.event = EventKind.DECIDED if nothing_made else EventKind.SCRAPPED
    return {"order_id": order_id, **verdict}


def _taken(f: Factory, spec: LineSpec, order_id: str, phase: str) -> dict[str, Any]:
    """What the attempts at a phase have taken so far.

    Of a failure it goes into the detail alone: the sums of the ledger are those of the attempt that succeeds, and have
    those of the failed ones in them. A store that is away must not hide the failure, so there is nothing then.
    """
    from aifactory.training import attempts
    from aifactory.training.run import candidate_prefix

    try:
        return attempts.total(attempts.read(f.store, candidate_prefix(spec.line, order_id, phase)))
    except InfrastructureFault as error:
        log.warning("what %s of order %s took is not known: %s", phase, order_id, error)
        return {}


def _processes_here(spec: LineSpec) -> int:
    """Training processes where the line's machines are this one. GPUs that it has not are not stood in for."""
    asked = spec.compute
    wanted = asked.num_processes if not asked.gpus else min(asked.num_processes, os.cpu_count() or 1)
    if asked.nodes > 1:
        log.info("no cluster: %d processes of this machine stand for %d machines", wanted, asked.nodes)
    return wanted


# --- the order
def _dataset(f: Factory, spec: LineSpec, revision: str | None) -> DatasetVersion:
    datasets = f.datasets(spec)
    found = datasets.version(revision) if revision else datasets.latest()
    if found is None or not found.days:
        raise DatasetDefect(
            ReasonCode.DATASET_TOO_SMALL, f"{spec.line} has no dataset version yet; run {spec.line}.ingest"
        )
    return found


def _dropped(spec: LineSpec, asked: Sequence[str]) -> list[str]:
    unknown = sorted(set(asked) - set(spec.model.features))
    if unknown:
        raise SpecError(f"drop_features names {unknown}, which are no features of {spec.line}")
    if set(asked) >= set(spec.model.features):
        raise SpecError(f"drop_features leaves {spec.line} no feature at all")
    return sorted(set(asked))


def _champion(f: Factory, spec: LineSpec) -> dict[str, Any] | None:
    """What an order has to know of the champion."""
    champion = f.registry(spec).champion()
    if champion is None:
        return None
    manifest = read_manifest(f.store, champion.package)
    return {
        "version": champion.version,
        "package": champion.package,
        "trained_until": champion.trained_until,
        **{name: manifest[name] for name in ("recipe", "parameters", "features")},
    }


def _written(f: Factory, spec: LineSpec, order: dict[str, Any]) -> dict[str, Any]:
    """Write the order once; a rerun gets the one that stands."""
    from aifactory.training.run import order_key

    try:
        f.store.put_json(order_key(spec.line, order["order_id"]), order, if_absent=True)
    except Conflict:
        return _order(f, spec, order["order_id"])
    return order


def _order(f: Factory, spec: LineSpec, order_id: str) -> dict[str, Any]:
    from aifactory.training.run import order_key

    try:
        return f.store.get_json(order_key(spec.line, order_id))
    except NotFound as error:
        raise TrainingDefect(
            ReasonCode.TRAINING_FAILED, f"{spec.line} has no training order {order_id!r}; resolve one first"
        ) from error


# --- the judgement
def _verdict(f: Factory, spec: LineSpec, order: Mapping[str, Any], carry_out: CarryOut | None) -> dict[str, Any]:
    """The verdict, with its report; judged once, then read again."""
    judged = _judged(f, spec, order["order_id"])
    if judged is not None:
        return judged
    from aifactory.training.report import evaluation_page

    if carry_out is None:
        verdict = judge_order(f, spec, order)
    else:
        with jobs.asked(f, spec, "evaluate", _judged_content(f, spec, order), carry_out) as made:
            verdict = made["verdict"]
    folder = _report_folder(spec, order["order_id"])
    page = f"{folder}/index.html"
    judged = verdict | {"report": page}
    f.store.put(page, evaluation_page(order, judged).encode(), content_type="text/html; charset=utf-8")
    f.store.put_json(f"{folder}/evaluation.json", judged)
    return judged


def _judged_content(f: Factory, spec: LineSpec, order: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict depends on."""
    from aifactory.training.run import candidate_prefix

    packages = [candidate_prefix(spec.line, order["order_id"], "challenger")]
    packages += [order["champion"]["package"]] if order["champion"] else []
    return {
        "order_id": order["order_id"],
        "models": [read_manifest(f.store, package)["digest"] for package in packages],
    }


def _refit_strays(f: Factory, spec: LineSpec, order: Mapping[str, Any]) -> str:
    """How the refit strays from the blessed challenger on the held-out days, which it has learned; empty if not."""
    import numpy as np

    from aifactory.training.run import candidate_prefix

    packages = [load_package(f, candidate_prefix(spec.line, order["order_id"], p)) for p in ("challenger", "refit")]
    table = held_out(f, spec, order, packages)
    blessed, refit = (package.predict(table) for package in packages)
    labels = table[spec.model.target].to_numpy()
    correlation = float(np.corrcoef(blessed, refit)[0, 1])
    # In a real drift the mean score must move, towards what happened: only moving away from it is a fault.
    strayed, before = (abs(float(scores.mean()) - float(labels.mean())) for scores in (refit, blessed))
    lost = metric_of(spec.evaluation.metric, labels, blessed) - metric_of(spec.evaluation.metric, labels, refit)
    found = [
        (not correlation >= MIN_REFIT_CORRELATION, f"correlation {correlation:.3f} is below {MIN_REFIT_CORRELATION}"),
        (
            strayed - before > MAX_REFIT_SHIFT,
            f"its mean score is {strayed:.3f} off the share of positives, the blessed one's {before:.3f}",
        ),
        (lost > MAX_REFIT_LOSS, f"it is worse by {lost:.4f} on days that it has learned"),
    ]
    return "; ".join(message for strays, message in found if strays)


def _judged(f: Factory, spec: LineSpec, order_id: str) -> dict[str, Any] | None:
    try:
        return f.store.get_json(f"{_report_folder(spec, order_id)}/evaluation.json")
    except NotFound:
        return None


def _report_folder(spec: LineSpec, order_id: str) -> str:
    return f"reports/{spec.line}/train/{order_id}"


# --- the record
def _at_station(f: Factory, spec: LineSpec, order: Mapping[str, Any], unit: str, kind: str = "model") -> Any:
    return station(
        f.ledger, spec.line, "train", kind, unit,
        partition=order["days"]["refit"][-1], run_id=order["signal"], revision=order["order_id"],
    )  # fmt: skip


def stopped(f: Factory, spec: LineSpec, order_id: str, phase: str, fault: InfrastructureFault, after: str) -> None:
    """Record that a training was stopped and goes on at once from its checkpoint: its task has not failed.

    Args:
        f: the open factory.
        spec: the line.
        order_id: the training order.
        phase: "challenger" or "refit".
        fault: why.
        after: the checkpoint that it goes on from.
    """
    detail = {"message": fault.message[:2000], "goes_on_after": after}
    f.ledger.record(
        _event(
            spec, _order(f, spec, order_id), f"{order_id}/{phase}", EventKind.FAILED, f"{order_id}:{after}",
            reason=fault.reason, detail=detail,
        )
    )  # fmt: skip


def _event(
    spec: LineSpec, order: Mapping[str, Any], unit: str, kind: EventKind, once_per: str, **rest: Any
) -> ProductionEvent:
    return ProductionEvent(
        line=spec.line, station="train", unit_kind="model", unit=unit, event=kind,
        key=event_key(spec.line, "train", unit, kind, once_per),
        partition=order["days"]["refit"][-1], run_id=order["signal"], **rest,
    )  # fmt: skip


def _tell_mlflow(f: Factory, spec: LineSpec, order: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """Put the judgement on the challenger's run; gives the run's URL."""
    from aifactory.training.tracking import Tracker

    tracker = Tracker(f.settings, spec.line, order["order_id"], "challenger")
    codes = ",".join(reason["code"] for reason in verdict["reasons"])
    said = "; ".join(reason["message"] for reason in verdict["reasons"])
    tracker.tag(verdict="passed" if verdict["passed"] else "refused", refused_codes=codes, refused_because=said)
    measured = {f"holdout.{k}": v for k, v in verdict["metrics"].items()}
    if verdict["gain"]:
        measured |= {f"gain.{k}": verdict["gain"][k] for k in ("mean", "low", "high")}
    tracker.progress(0, measured)
    tracker.flush()
    tracker.artifact(json.dumps(verdict, indent=1), "evaluation.json")
    return tracker.url
