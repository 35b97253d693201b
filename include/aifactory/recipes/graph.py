"""The parts of an ONNX graph that every recipe needs: raw feature columns in, `probability` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aifactory.packaging import OUTPUT

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8  # read by every runtime since ONNX 1.12, Triton's among them


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, categorical: Sequence[str], numeric: Sequence[str]) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs = [helper.make_tensor_value_info(n, TensorProto.STRING, [None, 1]) for n in categorical]
        self.inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 1]) for n in numeric]

    def add(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; gives the output's name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; gives its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def lookup(self, column: str, values: dict[str, float], otherwise: float) -> str:
        """Replace strings by numbers, float32 [n, 1]; strings that are not there by `otherwise`."""
        return self.add(
            "LabelEncoder", [column], f"{column}_code", domain="ai.onnx.ml",
            keys_strings=list(values), values_floats=[float(v) for v in values.values()], default_float=otherwise,
        )  # fmt: skip

    def join(self, columns: Sequence[str], output: str) -> str:
        """Put columns [n, k] beside each other."""
        return self.add("Concat", columns, output, axis=1)

    def finish(self, logit: str) -> bytes:
        """Turn a logit [n, 1] into `probability` [n] and serialise the graph, the same bytes each time."""
        self.add("Sigmoid", [logit], "sigmoid")
        self.add("Reshape", ["sigmoid", self.constant("flat", np.array([-1], dtype=np.int64))], OUTPUT)
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None])
        graph = helper.make_graph(self.nodes, "model", self.inputs, [output], self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="aifactory")
        onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString(deterministic=True)
        return serialised
