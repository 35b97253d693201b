"""The edge package of a released version: its graph in int8, for devices, held against the full one and signed.

    edge/<line>/<version>/    a package as in `packaging`, without weights; its manifest has `edge`, the verdict, and
                              golden rows with the outputs of the int8 graph and of the full one
    edge_device               what opens it, here and on a device

Weights of matrix products become 7 of 8 bits, a scale for each column of them: with all 8 bits, processors without
VNNI instructions overflow and give other scores than the rest. Activations become 8 bits as they come. A graph without
such products, as of tree ensembles, has no edge package.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.edge_device import EdgeModel, Refused
from aifactory.errors import NotFound, PackageDefect
from aifactory.evaluation import expected_calibration_error, metric_of
from aifactory.judgement import held_out, latency_ms
from aifactory.packaging import (
    MANIFEST_FILE,
    MODEL_FILE,
    Package,
    feeds,
    open_package,
    open_session,
    write_package,
)
from aifactory.reasons import ReasonCode
from aifactory.signing import SIGNATURE_FILE, read_released, sign_package

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnxruntime as ort
    import pyarrow as pa

    from aifactory.factory import Factory
    from aifactory.line import Edge, LineSpec
    from aifactory.registry import ModelVersion

    Array = npt.NDArray[Any]

OPERATORS = ("MatMul", "Gemm", "Gather")
_MOST_ROWS = 10_000  # one by one they take seconds
_OWN = ("files", "digest", "golden", "training_profile")


@dataclass(frozen=True)
class Measured:
    """An int8 graph beside the full one on the same held-out rows.

    `latency_ms` and `full_latency_ms` are the p95 of scoring one row on this machine; sizes are of the graphs, bytes.
    """

    num_rows: int
    metric: float
    full_metric: float
    metric_drop: float
    calibration_error: float
    full_calibration_error: float
    calibration_rise: float
    max_score_difference: float
    mean_score_difference: float
    size: int
    full_size: int
    size_ratio: float
    latency_ms: float
    full_latency_ms: float


def edge_prefix(line: str, version: str) -> str:
    """Where the edge package of a version lies, immutable once it is signed."""
    return f"edge/{line}/{version}"


def make_edge(
    f: Factory, spec: LineSpec, limits: Edge, order: Mapping[str, Any], version: ModelVersion, verdict_key: str
) -> dict[str, Any]:
    """Quantise a released version, judge it, and where it passes write, sign and open its edge package.

    What is signed stands; a verdict on the same graph by the same limits is not made twice. A package without
    signature is of a try that was cut off, and is written anew.

    Args:
        f: the open factory.
        spec: the line.
        limits: what the edge package must keep to.
        order: the training order of the version: its held-out rows are those that are measured on.
        version: the released version.
        verdict_key: where the verdict is kept.

    Returns:
        {"model", "package", "source", "source_digest", "graph_sha256", "passed", "reasons", "measured", "limits"};
        without a graph and measures where nothing can be quantised.

    Raises:
        PackageDefect: the released package, or a signed edge package that is there, is not what the plant released.
    """
    prefix = edge_prefix(spec.line, version.version)
    if f.store.head(f"{prefix}/{SIGNATURE_FILE}"):
        return dict(load_edge(f, spec.line, version.version).manifest["edge"])
    manifest, bodies = read_released(f.settings, f.store, version.package)
    onnx = quantised(bodies[MODEL_FILE])
    asked = {
        "model": f"{spec.line}/{version.version}",
        "package": prefix,
        "source": version.package,
        "source_digest": manifest["digest"],
        "graph_sha256": hashlib.sha256(onnx).hexdigest() if onnx else "",
        "limits": limits.model_dump(),
    }
    full = open_package(manifest, bodies, f.settings.threads, version.package)
    verdict = _known(f, verdict_key, asked)
    if verdict is None:
        measured = measure(f, spec, order, full, len(bodies[MODEL_FILE]), onnx) if onnx else None
        reasons = refusals(limits, measured, manifest["recipe"])
        verdict = asked | {
            "passed": not reasons,
            "reasons": [{"code": code.value, "message": message} for code, message in reasons],
            "measured": _finite(asdict(measured)) if measured else None,
        }
        f.store.put_json(verdict_key, verdict)
    if onnx and verdict["passed"]:
        f.store.delete(f"{prefix}/{MANIFEST_FILE}")
        write_package(f.store, prefix, _manifest(manifest, verdict, full, onnx), onnx, None)
        sign_package(f.settings, f.store, prefix)
        load_edge(f, spec.line, version.version)
    return verdict


def load_edge(f: Factory, line: str, version: str) -> EdgeModel:
    """Read, verify and open an edge package.

    Raises:
        PackageDefect: it is not whole, not signed by this plant, of another version, or does not compute here what it
            must.
        InfrastructureFault: the store did not answer.
    """
    prefix = edge_prefix(line, version)
    manifest, bodies = read_released(f.settings, f.store, prefix)
    found = manifest.get("edge", {}).get("model")
    if found != f"{line}/{version}":
        raise PackageDefect(
            ReasonCode.PACKAGE_INVALID,
            f"{f.store.uri(prefix)} holds the edge package {found!r}, not that of {line}/{version}; remove it and "
            f"run the task `edge` again",
        )
    model = EdgeModel(manifest, open_session(bodies[MODEL_FILE], f.settings.threads, prefix))
    try:
        model.check()
    except Refused as error:
        raise PackageDefect(ReasonCode.PACKAGE_MISMATCH, f"{prefix}: {error}") from error
    return model


def quantised(onnx: bytes) -> bytes | None:
    """The graph with int8 weights, same inputs and output; None where nothing in it can be quantised."""
    from onnx import TensorProto, load_model_from_string
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        full, small = Path(folder, "full.onnx"), Path(folder, "int8.onnx")
        full.write_bytes(onnx)
        quantize_dynamic(
            full, small, op_types_to_quantize=list(OPERATORS),
            weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        )  # fmt: skip
        made = small.read_bytes()
    bytewise = {TensorProto.INT8, TensorProto.UINT8}
    return made if any(c.data_type in bytewise for c in load_model_from_string(made).graph.initializer) else None


def measure(
    f: Factory, spec: LineSpec, order: Mapping[str, Any], full: Package, full_size: int, onnx: bytes
) -> Measured:
    """Hold an int8 graph against the full one on the held-out rows of an order, of many on some evenly spread ones."""
    import numpy as np

    rows = held_out(f, spec, order, [full])
    rows = rows.take(list(range(0, rows.num_rows, -(-rows.num_rows // _MOST_ROWS))))
    labels = np.asarray(rows[spec.model.target].to_numpy()).astype(np.int8)
    session = open_session(onnx, f.settings.threads)
    own, others = _scores(full, session, rows), full.predict(rows)
    errors = [expected_calibration_error(labels, scores) for scores in (own, others)]
    values = [metric_of(spec.evaluation.metric, labels, scores) for scores in (own, others)]
    distance = np.abs(own.astype(np.float64) - others)
    return Measured(
        num_rows=rows.num_rows,
        metric=values[0],
        full_metric=values[1],
        metric_drop=values[1] - values[0],
        calibration_error=errors[0],
        full_calibration_error=errors[1],
        calibration_rise=errors[0] - errors[1],
        max_score_difference=float(distance.max()),
        mean_score_difference=float(distance.mean()),
        size=len(onnx),
        full_size=full_size,
        size_ratio=len(onnx) / full_size,
        latency_ms=_latency_ms(full, session, rows),
        full_latency_ms=_latency_ms(full, full.session, rows),
    )


def refusals(limits: Edge, measured: Measured | None, recipe: str) -> list[tuple[ReasonCode, str]]:
    """Every limit that is not kept, the gravest first; what is not a number keeps none.

    Args:
        limits: of the line.
        measured: None where nothing could be quantised.
        recipe: for the message.
    """
    if measured is None:
        return [
            (
                ReasonCode.EDGE_NOT_QUANTISABLE,
                f"the graph of recipe {recipe!r} has 0 weights in {', '.join(OPERATORS)}, and at least 1 is needed; "
                f"train with tabular_mlp, or remove the section `edge`",
            )
        ]
    held = (
        (ReasonCode.EDGE_ACCURACY, "metric_drop", "the primary metric drops by {:.5f}"),
        (ReasonCode.EDGE_CALIBRATION, "calibration_rise", "the expected calibration error rises by {:.5f}"),
        (ReasonCode.EDGE_SCORES, "score_difference", "a score differs by {:.5f}"),
        (ReasonCode.EDGE_SIZE, "size_ratio", "the size is {:.3f} of the full graph's"),
        (ReasonCode.EDGE_LATENCY, "latency_ms", "p95 of one row is {:.3f} ms"),
    )
    found = []
    for code, name, words in held:
        value = getattr(measured, "max_score_difference" if name == "score_difference" else name)
        limit = getattr(limits, f"max_{name}")
        if not value <= limit:
            found.append((code, f"{words.format(value)}, more than edge.max_{name} {limit}"))
    return found


def _known(f: Factory, verdict_key: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The verdict that stands on the very same, if there is one."""
    try:
        verdict = f.store.get_json(verdict_key)
    except NotFound:
        return None
    return verdict if all(verdict.get(name) == value for name, value in asked.items()) else None


def _manifest(source: Mapping[str, Any], verdict: Mapping[str, Any], full: Package, onnx: bytes) -> dict[str, Any]:
    """The manifest of the full model, but for what is not the edge package's."""
    session = open_session(onnx, 1)
    golden = source["golden"]
    outputs = EdgeModel(source, session).predict(golden["inputs"])
    full_outputs = EdgeModel(source, full.session).predict(golden["inputs"])
    return {name: value for name, value in source.items() if name not in _OWN} | {
        "golden": {
            "inputs": golden["inputs"],
            "outputs": [float(score) for score in outputs],
            "full_outputs": [float(score) for score in full_outputs],
        },
        "edge": dict(verdict),
    }


def _scores(full: Package, session: ort.InferenceSession, rows: pa.Table) -> Array:
    return EdgeModel(full.manifest, session).score(feeds(rows, full.categorical, full.numeric))


def _latency_ms(full: Package, session: ort.InferenceSession, rows: pa.Table) -> float:
    """p95 of scoring one row from plain values to probability, ms."""
    model = EdgeModel(full.manifest, session)
    return latency_ms(lambda row: model.predict(row.to_pydict()), rows.select([*full.categorical, *full.numeric]))


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """None for what is not a number: JSON has no word for it."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
