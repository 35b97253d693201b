"""One phase of a training order: read the days, fit the recipe, write the package.

    challenger   learns everything before the held-out days, and is judged on those
    refit        the blessed recipe again, on the held-out days too: what is released knows the newest days

A package that is already there for the order and phase is taken as it is: training is not repeated. A training that
was stopped goes on from its checkpoint in the same MLflow run; the steps since then are told again, with equal losses.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aifactory.errors import InfrastructureFault, PackageDefect, SpecError
from aifactory.evaluation import metrics
from aifactory.factory import Factory
from aifactory.line import ONE_PROCESS_RECIPES, LineSpec
from aifactory.packaging import (
    OUTPUT,
    TOLERANCE,
    feeds,
    golden,
    golden_table,
    load_package,
    open_session,
    package_exists,
    read_manifest,
    write_package,
)
from aifactory.reasons import ReasonCode
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import Fitted, Progress, TrainingFrame
from aifactory.recipes.clock import Part, StepClock
from aifactory.recipes.stream import TrainingRows, TrainingStream
from aifactory.settings import REPOSITORY
from aifactory.training import attempts, group, outcome, profile
from aifactory.training.checkpoints import LAST_WRITE_S, StoreCheckpoints
from aifactory.training.pace import Pace
from aifactory.training.stop import StopSignal
from aifactory.training.telemetry import Telemetry, as_metrics
from aifactory.training.tracking import Tracker

log = logging.getLogger(__name__)

PHASES = ("challenger", "refit")
_NUM_GOLDEN = 24
_NUM_PROOF = 4096


def order_key(line: str, order_id: str) -> str:
    """Key of a training order."""
    return f"orders/{line}/{order_id}.json"


def candidate_prefix(line: str, order_id: str, phase: str) -> str:
    """Where training leaves the package of a phase."""
    return f"candidates/{line}/{order_id}/{phase}"


def result_key(line: str, order_id: str, phase: str) -> str:
    """Key of what a phase has made; there when all of it is. See `outcome`."""
    return f"{candidate_prefix(line, order_id, phase)}.result.json"


def failure_key(line: str, order_id: str, phase: str) -> str:
    """Key of why the newest attempt at a phase failed. See `outcome`."""
    return f"{candidate_prefix(line, order_id, phase)}.failure.json"


def run(
    f: Factory, spec: LineSpec, order: Mapping[str, Any], phase: str, stop: StopSignal | None = None
) -> dict[str, Any]:
    """Carry out one phase of an order, and say in S3 what was made.

    Args:
        f: the open factory; of its stores, S3 alone.
        spec: the line.
        order: the training order.
        phase: "challenger" or "refit".
        stop: how the program hears that it is to stop.

    Returns:
        {"order_id", "phase", "package", "num_rows", "seconds", "run_id", "mlflow_url", "reused", "telemetry"}; of the
        last see `attempts.total`. Nothing in a process that is not the first of several, which only learns with the
        others.

    Raises:
        SpecError: several processes cannot train this recipe.
    """
    if group.size() > 1 and order["recipe"] in ONE_PROCESS_RECIPES:
        raise SpecError(f"recipe {order['recipe']!r} trains in one process; this is one of {group.size()}")
    if group.rank() > 0:
        _help(f, spec, order, phase, stop or StopSignal())
        return {}
    made = _make(f, spec, order, phase, stop or StopSignal())
    outcome.succeeded(f.store, result_key(spec.line, order["order_id"], phase), made)
    return made


def _make(f: Factory, spec: LineSpec, order: Mapping[str, Any], phase: str, stop: StopSignal) -> dict[str, Any]:
    """The package of a phase: the one that is there, or a new one."""
    prefix = candidate_prefix(spec.line, order["order_id"], phase)
    tracker = Tracker(f.settings, spec.line, order["order_id"], phase)
    made = {"order_id": order["order_id"], "phase": phase, "package": prefix, "run_id": tracker.run_id}
    if package_exists(f.store, prefix):
        manifest = read_manifest(f.store, prefix)
        log.info("%s is there already: training is not repeated", f.store.uri(prefix))
        StoreCheckpoints(f.store, prefix, stop).clear()
        tracker.end("FINISHED")  # the process may have ended between the package and the end of its run
        told = {"seconds": 0.0, "reused": True, "telemetry": attempts.total(attempts.read(f.store, prefix))}
        return made | {"num_rows": manifest["num_rows"], "mlflow_url": tracker.url} | told
    if f.store.head(result_key(spec.line, order["order_id"], phase)):  # of a package that somebody removed
        f.store.delete(result_key(spec.line, order["order_id"], phase))
        attempts.clear(f.store, prefix)
    tracker.begin(
        {name: order[name] for name in ("recipe", "seed", "drop_features")} | order["parameters"],
        _tags(spec, order, f.settings.trial),
    )
    began = time.perf_counter()
    try:
        with Telemetry(f.settings, f.store, prefix, tracker.note) as telemetry:
            manifest = _train(f, spec, order, phase, tracker, stop, telemetry.clock)
    except BaseException as error:
        _end_failed(tracker, error)
        raise
    seconds = round(time.perf_counter() - began, 2)
    tracker.artifact(json.dumps({k: v for k, v in manifest.items() if k != "golden"}, indent=1), "manifest.json")
    tracker.progress(0, {"seconds": seconds, "num_rows": manifest["num_rows"], **_finite(manifest["metrics"])})
    totals = telemetry.totals()
    tracker.progress(telemetry.clock.read().step, as_metrics(totals))
    source, currency = totals["energy_source"], totals["currency"]
    tracker.tag(energy_source=source, energy_estimated=totals["estimated"], currency=currency)
    tracker.end("FINISHED")
    told = {"seconds": seconds, "reused": False, "telemetry": totals}
    return made | {"num_rows": manifest["num_rows"], "mlflow_url": tracker.url} | told


def _train(
    f: Factory,
    spec: LineSpec,
    order: Mapping[str, Any],
    phase: str,
    tracker: Tracker,
    stop: StopSignal,
    clock: StepClock,
) -> dict[str, Any]:
    """Read, fit, export, prove, write: the way of a model, top to bottom."""
    clock.enter(Part.READ)
    frame, held_out = _learned(f, spec, order, phase), _held_out(f, spec, order)
    clock.enter(Part.PREPARE)
    log.info("%s learns %d rows of %d days", phase, frame.num_rows, len(order["days"][phase]))

    pace = Pace()

    def progress(step: int, steps: int, values: Mapping[str, float]) -> None:
        told = " ".join(f"{k}={v:.5g}" for k, v in values.items())
        log.info("step %d/%d %s, %s to go", step, steps, told, pace.to_go(step, steps))
        tracker.progress(step, values)

    fitted = _fit(f, spec, order, phase, frame, progress, stop, clock)
    clock.enter(Part.EXPORT)
    onnx = fitted.to_onnx()
    rows = golden(_golden_rows(held_out), order["categorical"], order["numeric"])
    outputs = _prove(fitted, onnx, held_out, rows, order)
    manifest = build_manifest(spec, order, phase, frame) | {
        "golden": {"inputs": rows, "outputs": outputs},
        **_held_out_part(f, spec, order, phase, fitted, held_out, frame),
    }
    whole = write_package(
        f.store, candidate_prefix(spec.line, order["order_id"], phase), manifest, onnx, fitted.to_safetensors()
    )
    StoreCheckpoints(f.store, candidate_prefix(spec.line, order["order_id"], phase), stop).clear()
    return whole


def _fit(
    f: Factory,
    spec: LineSpec,
    order: Mapping[str, Any],
    phase: str,
    frame: TrainingRows,
    progress: Progress,
    stop: StopSignal,
    clock: StepClock | None = None,
) -> Fitted:
    """Learn from the frame, together with the other processes where there are any."""
    prefix = candidate_prefix(spec.line, order["order_id"], phase)
    with group.joined():
        checkpoints = _checkpoints(f, prefix, stop)
        fitted = load_recipe(order["recipe"]).fit(
            frame,
            check_parameters(order["recipe"], order["parameters"]),
            seed=order["seed"],
            threads=f.settings.threads,
            warm_start=_champion_weights(f, order),
            progress=progress,
            checkpoints=checkpoints,
            clock=clock,
        )
        if group.size() > 1:
            checkpoints.flush(LAST_WRITE_S)  # nobody leaves while a checkpoint is written together
    return fitted


def _checkpoints(f: Factory, prefix: str, stop: StopSignal) -> StoreCheckpoints:
    if group.size() == 1:
        return StoreCheckpoints(f.store, prefix, stop)
    from aifactory.training.shards import ShardedCheckpoints

    return ShardedCheckpoints(f.store, prefix, stop)


def _help(f: Factory, spec: LineSpec, order: Mapping[str, Any], phase: str, stop: StopSignal) -> None:
    """Learn with the first process, who does the rest: MLflow, the package, the result."""
    if package_exists(f.store, candidate_prefix(spec.line, order["order_id"], phase)):
        return
    frame = _learned(f, spec, order, phase)
    _fit(f, spec, order, phase, frame, lambda step, steps, values: None, stop)


def build_manifest(spec: LineSpec, order: Mapping[str, Any], phase: str, frame: TrainingRows) -> dict[str, Any]:
    """What the model is and where it comes from."""
    days = order["days"][phase]
    return {
        "line": spec.line,
        "order_id": order["order_id"],
        "phase": phase,
        "recipe": order["recipe"],
        "parameters": order["parameters"],
        "seed": order["seed"],
        "features": {"categorical": list(order["categorical"]), "numeric": list(order["numeric"])},
        "dropped_features": list(order["drop_features"]),
        "target": spec.model.target,
        "dataset_revision": order["revision"],
        "dir_md5": order["dir_md5"],
        "trained_from": days[0],
        "trained_until": days[-1],
        "holdout_days": list(order["days"]["holdout"]),
        "num_rows": frame.num_rows,
        "code_revision": code_revision(),
        "spec_digest": order["spec_digest"],
        "signature": {
            "inputs": dict.fromkeys(order["categorical"], "string [n, 1]")
            | dict.fromkeys(order["numeric"], "float32 [n, 1]"),
            "outputs": {OUTPUT: "float32 [n]"},
        },
    }


def code_revision() -> str:
    """Commit of the code, with `-dirty` where files differ from it; outside git what `AIF_CODE_REVISION` says.

    An image has no git folder: it is told its commit when it is built.
    """
    if shutil.which("git") is None:
        return os.environ.get("AIF_CODE_REVISION", "")
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or os.environ.get("AIF_CODE_REVISION", "")


def _learned(f: Factory, spec: LineSpec, order: Mapping[str, Any], phase: str) -> TrainingRows:
    """The rows to learn from: in memory, or known by one pass over them where the recipe streams."""
    names, numbers, target = order["categorical"], order["numeric"], spec.model.target
    datasets, content, days = f.datasets(spec), order["dir_md5"], order["days"][phase]
    if check_parameters(order["recipe"], order["parameters"]).streams:
        source = datasets.stream_content(content, days, [*names, *numbers, target])
        return TrainingStream.of(source, names, numbers, target)
    return TrainingFrame.of(datasets.read_content(content, days, [*names, *numbers, target]), names, numbers, target)


def _held_out(f: Factory, spec: LineSpec, order: Mapping[str, Any]) -> pa.Table:
    """The held-out rows with an outcome (which a refit learns too); in memory, however the others are read."""
    columns = [*order["categorical"], *order["numeric"], spec.model.target]
    held_out = f.datasets(spec).read_content(order["dir_md5"], order["days"]["holdout"], columns)
    return held_out.filter(pc.is_valid(held_out[spec.model.target]))


def _champion_weights(f: Factory, order: Mapping[str, Any]) -> bytes | None:
    """What a recipe may go on from. The champion has not seen the held-out days: the order saw to that."""
    champion = order["champion"]
    if champion is None or champion["recipe"] != order["recipe"]:
        return None
    return load_package(f, champion["package"]).weights


def _golden_rows(held_out: pa.Table) -> pa.Table:
    """Rows spread over the held-out days, in their order."""
    step = max(1, held_out.num_rows // _NUM_GOLDEN)
    return held_out.take(list(range(0, held_out.num_rows, step))[:_NUM_GOLDEN])


def _prove(
    fitted: Fitted, onnx: bytes, held_out: pa.Table, rows: Mapping[str, list[Any]], order: Mapping[str, Any]
) -> list[float]:
    """Hold the graph against the trained model on real rows, worn ones too; gives the golden outputs."""
    names, numbers = order["categorical"], order["numeric"]
    session = open_session(onnx, 1)
    proof = held_out.slice(0, _NUM_PROOF).select([*names, *numbers])
    table = golden_table(rows, names, numbers)
    for what, each in (("held-out", proof), ("worn", worn(proof, names, numbers)), ("golden", table)):
        distance = np.abs(session.run([OUTPUT], feeds(each, names, numbers))[0] - fitted.predict(each))
        if not float(np.max(distance, initial=0.0)) <= TOLERANCE:
            raise PackageDefect(
                ReasonCode.PACKAGE_MISMATCH,
                f"the exported graph is {np.max(distance):.2e} off the trained model on {each.num_rows} {what} rows, "
                f"more than {TOLERANCE:.0e}: the export of recipe {order['recipe']!r} is wrong",
            )
    return [float(v) for v in fitted.predict(table)]


def worn(table: pa.Table, categorical: list[str], numeric: list[str]) -> pa.Table:
    """The same rows with unseen categories, nulls and NaN put in, at places that differ from column to column."""
    places = np.arange(table.num_rows)
    for shift, name in enumerate(categorical):
        values = np.array(table[name].to_pylist(), dtype=object)
        values[(places + shift) % 3 == 0] = "\x00 never seen"
        values[(places + shift) % 5 == 0] = None
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    for shift, name in enumerate(numeric):
        values = np.array(table[name].to_numpy(), dtype=np.float32)
        values[(places + shift) % 4 == 0] = np.nan
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))
    return table


def _held_out_part(
    f: Factory,
    spec: LineSpec,
    order: Mapping[str, Any],
    phase: str,
    fitted: Fitted,
    held_out: pa.Table,
    frame: TrainingRows,
) -> dict[str, Any]:
    """Metrics and profile. What a refit says of the held-out days is the challenger's, who has not learned them."""
    days = {"first_day": order["days"][phase][0], "last_day": order["days"][phase][-1]}
    features = profile.features_profile(frame) | days
    if phase == "refit":
        judged = read_manifest(f.store, candidate_prefix(spec.line, order["order_id"], "challenger"))
        kept = {name: judged["training_profile"][name] for name in ("score", "baseline")}
        return {"metrics": judged["metrics"], "training_profile": features | kept}
    scores = fitted.predict(held_out)
    found = _finite(metrics(np.asarray(held_out[spec.model.target].to_numpy()), scores))
    return {"metrics": found, "training_profile": features | profile.scores_profile(scores, found)}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without what JSON and MLflow cannot carry: a metric of a holdout with one class only is not a number."""
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _tags(spec: LineSpec, order: Mapping[str, Any], trial: str) -> dict[str, str]:
    return {
        "line": spec.line,
        "dataset_revision": order["revision"],
        "dataset_tag": order["tag"],
        "dir_md5": order["dir_md5"],
        "spec_digest": order["spec_digest"],
        "reason": order["reason"],
        "why": order["why"],
        "champion": (order["champion"] or {}).get("version", ""),
        "trial": trial,
    }


def _end_failed(tracker: Tracker, error: BaseException) -> None:
    """End the run as failed; the error that caused it stays the one that is told."""
    try:
        tracker.tag(error=str(error)[:1000])
        tracker.end("FAILED" if isinstance(error, Exception) else "KILLED")
    except InfrastructureFault as second:
        log.warning("the MLflow run could not be ended: %s", second)
