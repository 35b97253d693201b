"""Whatever is sent becomes a request that the graph can run, or a refusal that names the field; nothing else."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.small_model import FLOATS, STRINGS, expected, small_graph
from tritonclient.grpc import service_pb2 as pb

from aifactory.serving.server.oip import (
    InferRequest,
    Refusal,
    Signature,
    TensorSpec,
    answer_json,
    fill_answer,
    parse_json,
    parse_message,
)

INPUTS = {n: TensorSpec(n, "BYTES", (-1, 1)) for n in STRINGS} | {n: TensorSpec(n, "FP32", (-1, 1)) for n in FLOATS}
SIGNATURE = Signature(INPUTS, {"probability": TensorSpec("probability", "FP32", (-1,))}, 100)
ROWS: dict[str, Any] = {"carrier": ["AA", "?"], "origin": ["JFK", ""], "distance": [1.0, 2.0], "dep_hour": [3.0, 4.0]}
SESSION = ort.InferenceSession(small_graph(0.0))

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([2**63, -1, 1e300])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def _document() -> dict[str, Any]:
    return {
        "id": "x",
        "parameters": {"units": "{}"},
        "inputs": [
            {"name": n, "datatype": spec.datatype, "shape": [2, 1], "data": list(ROWS[n])} for n, spec in INPUTS.items()
        ],
        "outputs": [{"name": "probability"}],
    }


def _message() -> Any:
    message = pb.ModelInferRequest(model_name="small", id="x")
    for name, spec in INPUTS.items():
        tensor = message.inputs.add(name=name, datatype=spec.datatype, shape=[2, 1])
        if spec.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(value.encode() for value in ROWS[name])
        else:
            tensor.contents.fp32_contents.extend(ROWS[name])
    return message


def _assert_runs(request: InferRequest) -> None:
    assert set(request.inputs) == set(INPUTS)
    rows = len(request.inputs["carrier"])
    scores = SESSION.run(None, request.inputs)[0]
    assert scores.shape == (rows,)
    assert 1 <= rows <= SIGNATURE.max_rows
    body, _length = answer_json("small", "1", request, {"probability": scores}, SIGNATURE)
    assert body
    fill_answer(pb.ModelInferResponse(), request, {"probability": scores}, SIGNATURE)


def _assert_runs_or_refused(parse: Callable[[], InferRequest]) -> None:
    refusal = None
    try:
        request = parse()
    except Refusal as error:
        refusal = error
    if refusal is None:
        _assert_runs(request)
    else:
        assert 400 <= refusal.status < 500
        assert refusal.message


def _assert_answered_or_refused(body: bytes, header_length: str | None = None) -> None:
    _assert_runs_or_refused(lambda: parse_json(body, header_length, SIGNATURE))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += _paths(value[key], (*path, key))
    return found


def test_a_good_document_is_read() -> None:
    request = parse_json(json.dumps(_document()).encode(), None, SIGNATURE)
    assert (request.id, request.outputs, request.parameters) == ("x", ("probability",), {"units": "{}"})
    np.testing.assert_allclose(SESSION.run(None, request.inputs)[0], expected(0.0, ROWS), atol=1e-5)


def test_a_good_message_is_read() -> None:
    request = parse_message(_message(), SIGNATURE)
    np.testing.assert_allclose(SESSION.run(None, request.inputs)[0], expected(0.0, ROWS), atol=1e-5)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    _assert_answered_or_refused(body)


@settings(deadline=None)
@given(documents)
def test_any_json(document: Any) -> None:
    _assert_answered_or_refused(json.dumps(document).encode())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_paths(_document())), documents)
def test_a_document_with_anything_at_any_place(path: tuple[Any, ...], value: Any) -> None:
    document = _document()
    target: Any = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    _assert_answered_or_refused(json.dumps(document).encode())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_document_of_which_bytes_changed(data: st.DataObject) -> None:
    body = bytearray(json.dumps(_document()).encode())
    for _unused in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _assert_answered_or_refused(bytes(body))


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(-2, 70), st.text(max_size=6) | st.none(), st.integers(0, 500))
def test_any_binary_data(blob: bytes, size: int, header: str | None, cut: int) -> None:
    document = _document()
    for name in ("carrier", "distance"):
        tensor = next(t for t in document["inputs"] if t["name"] == name)
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
    head = json.dumps(document).encode()
    for length in (header, str(len(head)), str(cut)):
        _assert_answered_or_refused(head + blob, length)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_message(data: st.DataObject) -> None:
    raw = bytearray(_message().SerializeToString())
    for _unused in range(data.draw(st.integers(0, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(bytes(raw))
    except DecodeError:
        return  # refused before it comes to us
    message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=20), max_size=5)))
    if data.draw(st.booleans()):
        for tensor in message.inputs:
            tensor.ClearField("contents")
    _assert_runs_or_refused(lambda: parse_message(message, SIGNATURE))


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.data())
def test_raw_contents_come_through_as_they_are(strings: list[str], data: st.DataObject) -> None:
    rows = len(strings)
    floats = data.draw(st.lists(st.floats(width=32), min_size=rows, max_size=rows))
    encoded = [s.encode() for s in strings]
    blobs = {
        "BYTES": b"".join(struct.pack("<I", len(s)) + s for s in encoded),
        "FP32": np.array(floats, dtype="<f4").tobytes(),
    }
    message = pb.ModelInferRequest()
    for name, spec in INPUTS.items():
        message.inputs.add(name=name, datatype=spec.datatype, shape=[rows, 1])
        message.raw_input_contents.append(blobs[spec.datatype])
    request = parse_message(message, SIGNATURE)
    assert request.inputs["carrier"].ravel().tolist() == strings
    np.testing.assert_array_equal(request.inputs["distance"].ravel(), np.array(floats, dtype=np.float32))


@pytest.mark.parametrize("datatype", ["INT8", "UINT8", "INT64", "UINT64", "FP16", "FP64", "BOOL"])
def test_every_datatype_comes_through_as_values_and_as_bytes(datatype: str) -> None:
    good: list[Any] = [True, False] if datatype == "BOOL" else [0.5, 1.5] if datatype.startswith("FP") else [1, 100]
    signature = Signature({"x": TensorSpec("x", datatype, (-1,))}, SIGNATURE.outputs, 10)
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [2], "data": good}
    values = parse_json(json.dumps({"inputs": [tensor]}).encode(), None, signature).inputs["x"]
    assert values.tolist() == good
    message = pb.ModelInferRequest()
    message.inputs.add(name="x", datatype=datatype, shape=[2])
    message.raw_input_contents.append(values.tobytes())
    raw = parse_message(message, signature).inputs["x"]
    assert raw.tolist() == good
    assert raw.dtype == values.dtype


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("UINT8", -1), ("INT64", 1.5), ("UINT64", 2**64)])
def test_integers_beyond_their_type_are_refused(datatype: str, value: Any) -> None:
    signature = Signature({"x": TensorSpec("x", datatype, (-1,))}, SIGNATURE.outputs, 10)
    tensor = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
    with pytest.raises(Refusal, match="input 'x'"):
        parse_json(json.dumps({"inputs": [tensor]}).encode(), None, signature)


def test_nan_and_infinity_as_python_writes_them_are_read() -> None:
    document = _document()
    document["inputs"][2]["data"] = [math.nan, -math.inf]
    found = parse_json(json.dumps(document).encode(), None, SIGNATURE).inputs["distance"].ravel()
    assert math.isnan(found[0])
    assert found[1] == -math.inf


@pytest.mark.parametrize("name", ["x" * 10_000, "\x00", "Ünbekannt"])
def test_a_message_repeats_little_of_what_was_sent(name: str) -> None:
    document = copy.deepcopy(_document())
    document["inputs"][0]["name"] = name
    with pytest.raises(Refusal) as refused:
        parse_json(json.dumps(document).encode(), None, SIGNATURE)
    assert len(refused.value.message) < 300


def test_outputs_are_given_as_bytes_where_asked() -> None:
    document = _document() | {"outputs": [{"name": "probability", "parameters": {"binary_data": True}}]}
    request = parse_json(json.dumps(document).encode(), None, SIGNATURE)
    scores = np.array([0.25, math.nan], dtype=np.float32)
    body, length = answer_json("small", "1", request, {"probability": scores}, SIGNATURE)
    assert length is not None
    np.testing.assert_array_equal(np.frombuffer(body[length:], dtype="<f4"), scores)
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
