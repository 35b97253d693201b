"""A small graph with the contract of the lines' models, and a model repository in Triton's layout that holds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

STRINGS = ("carrier", "origin")
FLOATS = ("distance", "dep_hour")
CARRIERS = {"AA": 0.5, "UA": -0.25, "B6": 1.0}
ORIGINS = {"JFK": 0.1, "LGA": -0.2}
WEIGHTS = {"distance": 0.001, "dep_hour": 0.05}


def small_graph(bias: float) -> bytes:
    """probability = sigmoid(bias + labels of the strings + weighted floats); what is unknown or NaN adds nothing."""
    nodes, terms = [], ["bias"]
    constants = [helper.make_tensor("bias", TensorProto.FLOAT, [1, 1], [bias])]
    constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0]))
    for name, labels in zip(STRINGS, (CARRIERS, ORIGINS), strict=True):
        encoder = helper.make_node(
            "LabelEncoder",
            [name],
            [f"{name}_term"],
            domain="ai.onnx.ml",
            keys_strings=list(labels),
            values_floats=list(labels.values()),
            default_float=0.0,
        )
        nodes.append(encoder)
        terms.append(f"{name}_term")
    for name, weight in WEIGHTS.items():
        constants.append(helper.make_tensor(f"{name}_weight", TensorProto.FLOAT, [1, 1], [weight]))
        nodes += [
            helper.make_node("IsNaN", [name], [f"{name}_nan"]),
            helper.make_node("Where", [f"{name}_nan", "zero", name], [f"{name}_known"]),
            helper.make_node("Mul", [f"{name}_known", f"{name}_weight"], [f"{name}_term"]),
        ]
        terms.append(f"{name}_term")
    constants.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))
    nodes += [
        helper.make_node("Sum", terms, ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["probability"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n", 1]) for n in STRINGS]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1]) for n in FLOATS]
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "small", inputs, [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    body: bytes = model.SerializeToString()
    return body


def expected(bias: float, rows: dict[str, list[str] | list[float]]) -> list[float]:
    """What the graph answers, computed beside it."""
    logit = np.full(len(rows["carrier"]), bias)
    for name, labels in zip(STRINGS, (CARRIERS, ORIGINS), strict=True):
        logit += [labels.get(str(value), 0.0) for value in rows[name]]
    for name, weight in WEIGHTS.items():
        logit += np.nan_to_num(np.array(rows[name], dtype=np.float64)) * weight
    return [float(p) for p in 1 / (1 + np.exp(-logit))]


def write_version(repository: Path, line: str, version: str, onnx_bytes: bytes) -> None:
    """Put one version into a model repository, all versions of which are served."""
    folder = repository / line
    (folder / version).mkdir(parents=True, exist_ok=True)
    part = folder / version / "model.onnx.part"
    part.write_bytes(onnx_bytes)
    part.rename(folder / version / "model.onnx")
    (folder / "config.pbtxt").write_text(config_text(line))


def drop_version(repository: Path, line: str, version: str) -> None:
    """Take one version out of a model repository."""
    shutil.rmtree(repository / line / version)


def config_text(line: str) -> str:
    """`config.pbtxt` of the small graph."""
    inputs = [(name, "TYPE_STRING") for name in STRINGS] + [(name, "TYPE_FP32") for name in FLOATS]
    return "\n".join(
        [
            f'name: "{line}"',
            'backend: "onnxruntime"',
            "max_batch_size: 0",
            *(f'input [{{ name: "{name}" data_type: {kind} dims: [ -1, 1 ] }}]' for name, kind in inputs),
            'output [{ name: "probability" data_type: TYPE_FP32 dims: [ -1 ] }]',
            "version_policy: { all {} }",
            "",
        ]
    )
