"""Requests and answers of the Open Inference Protocol v2, as JSON (with binary tensors) and as protobuf messages.

Pure functions. Whatever comes in gives an `InferRequest` that fits the model's signature, or a `Refusal` whose message
names the field; never another exception. https://github.com/kserve/open-inference-protocol, and Triton's extension
`binary_tensor_data`: bytes of inputs behind the JSON, whose length the header Inference-Header-Content-Length gives.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

Array = npt.NDArray[Any]
Parameter = str | int | float | bool

BYTES = "BYTES"
DATATYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    BYTES: np.object_,
}
_PYTHON_TYPES: dict[str, frozenset[type]] = {
    **{datatype: frozenset({int}) for datatype in DATATYPES},
    **{datatype: frozenset({int, float}) for datatype in ("FP16", "FP32", "FP64")},
    "BOOL": frozenset({bool}),
    BYTES: frozenset({str, bytes}),
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}  # FP16 has raw contents only
_SHOWN = 80  # characters of a caller's value that a message repeats: gRPC messages travel in headers


class Refusal(Exception):
    """A request that is not answered with scores; the caller is told why.

    Args:
        status: of HTTP; gRPC has a code for each.
        message: what is wrong, with the field, its value, and what would be right.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(status, message)

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model: name, OIP datatype, shape with -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As model metadata show it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Args:
        inputs: by name.
        outputs: by name.
        max_rows: most rows of a request.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_rows: int


@dataclass(frozen=True)
class InferRequest:
    """A request that fits its model.

    Args:
        id: the caller's; empty where there is none.
        inputs: an array for every input of the model, rows in the first dimension; strings as `str` objects.
        outputs: names asked for, in order; all where the caller named none.
        binary: outputs to be given as bytes behind the JSON.
        parameters: of the request.
    """

    id: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    parameters: dict[str, Parameter]


class _Tensor(NamedTuple):
    """An input as it came: `data` flat or nested values, or raw bytes."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[Any] | bytes


# --- requests


def parse_json(body: bytes, header_length: str | None, signature: Signature) -> InferRequest:
    """A request of REST.

    Args:
        body: JSON, and bytes of inputs behind it where `header_length` is given.
        header_length: the header Inference-Header-Content-Length.
        signature: of the model that is asked.

    Raises:
        Refusal: it is malformed, or does not fit the model.
    """
    head, blob = _split(body, header_length)
    document = _document(head)
    tensors = []
    for n, entry in enumerate(_list(document, "inputs", required=True)):
        try:
            tensor, used = _json_tensor(entry, blob)
        except Refusal as refusal:
            raise Refusal(refusal.status, f"inputs[{n}]{_name_of(entry)}: {refusal.message}") from refusal
        tensors.append(tensor)
        blob = blob[used:]
    if blob:
        raise Refusal(400, f"{len(blob)} bytes of binary data belong to no input: no 'binary_data_size' counts them")
    parameters = _json_parameters(document)
    outputs, binary = _json_outputs(document, bool(parameters.get("binary_data_output", False)), signature)
    request_id = _text(document, "id") if "id" in document else ""
    return InferRequest(request_id, _bind(tensors, signature), outputs, binary, parameters)


def parse_message(message: Any, signature: Signature) -> InferRequest:
    """A request of gRPC, `inference.ModelInferRequest`.

    Raises:
        Refusal: it does not fit the model.
    """
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        typed = [tensor.name for tensor in message.inputs if tensor.HasField("contents")]
        also = f"; typed 'contents' of {typed[:8]} cannot go with raw ones" if typed else ""
        raise Refusal(
            400, f"raw_input_contents has {len(raw)} entries, but there are {len(message.inputs)} inputs{also}"
        )
    tensors = []
    for n, tensor in enumerate(message.inputs):
        if raw and tensor.HasField("contents"):
            raise Refusal(
                400, f"input {_shown(tensor.name)} has 'contents', and raw_input_contents too; send one of them"
            )
        data = raw[n] if raw else _contents(tensor)
        tensors.append(_Tensor(tensor.name, tensor.datatype, list(tensor.shape), data))
    outputs = _known_outputs([output.name for output in message.outputs], signature)
    parameters = {name: _proto_parameter(value) for name, value in message.parameters.items()}
    return InferRequest(message.id, _bind(tensors, signature), outputs, frozenset(), parameters)


def _bind(tensors: Sequence[_Tensor], signature: Signature) -> dict[str, Array]:
    """The model's inputs from what came: every one once, types and shapes right, as many rows in each."""
    names = [tensor.name for tensor in tensors]
    for n, name in enumerate(names):
        if name not in signature.inputs:
            raise Refusal(400, f"input {_shown(name)} is none of this model, which takes {list(signature.inputs)}")
        if name in names[:n]:
            raise Refusal(400, f"input {_shown(name)} is given twice")
    missing = [name for name in signature.inputs if name not in names]
    if missing:
        raise Refusal(400, f"inputs {missing} are missing; every input of the model must be given")
    for tensor in tensors:
        _check_shape(tensor, signature.inputs[tensor.name])
    _check_rows([t for t in tensors if signature.inputs[t.name].shape[:1] == (-1,)], signature.max_rows)
    return {tensor.name: _array(tensor) for tensor in tensors}


def _check_shape(tensor: _Tensor, spec: TensorSpec) -> None:
    name, shape = tensor.name, tensor.shape
    if tensor.datatype != spec.datatype:
        raise Refusal(400, f"input '{name}': datatype {_shown(tensor.datatype)} is not {spec.datatype}")
    fits = len(shape) == len(spec.shape) and all(
        size >= 0 and want in {-1, size} for size, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise Refusal(
            400, f"input '{name}': shape {_shown(list(shape))} does not fit {list(spec.shape)}, -1 is any size"
        )


def _check_rows(tensors: Sequence[_Tensor], max_rows: int) -> None:
    for tensor in tensors:
        rows = tensor.shape[0]
        if rows == 0:
            raise Refusal(400, f"input '{tensor.name}': shape {list(tensor.shape)} has no rows; send one or more")
        if rows > max_rows:
            raise Refusal(
                400, f"input '{tensor.name}': {rows} rows are more than the limit of {max_rows}; split the batch"
            )
        if rows != tensors[0].shape[0]:
            raise Refusal(
                400, f"input '{tensor.name}' has {rows} rows, but input '{tensors[0].name}' has {tensors[0].shape[0]}"
            )


def _array(tensor: _Tensor) -> Array:
    try:
        if isinstance(tensor.data, bytes):
            return _from_raw(tensor.data, tensor.datatype, tensor.shape)
        return _from_values(tensor.data, tensor.datatype, tensor.shape)
    except (ValueError, OverflowError, TypeError, struct.error) as error:
        raise Refusal(400, f"input '{tensor.name}': {error}") from error


def _from_raw(raw: bytes, datatype: str, shape: Sequence[int]) -> Array:
    count = math.prod(shape)
    if datatype == BYTES:
        return _strings(_counted(raw, count), shape)
    stored = np.dtype(np.uint8 if datatype == "BOOL" else DATATYPES[datatype]).newbyteorder("<")
    if len(raw) != count * stored.itemsize:
        raise ValueError(f"{len(raw)} bytes of data, but shape {list(shape)} has {count * stored.itemsize}")
    return np.frombuffer(raw, dtype=stored).astype(DATATYPES[datatype], copy=False).reshape(shape)


def _counted(raw: bytes, count: int) -> list[bytes]:
    """Byte strings that each follow their length, 4 bytes little endian."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        if length > len(raw) - at - 4:
            raise ValueError(f"the length {length} of string {len(found)} goes beyond the {len(raw)} bytes of data")
        found.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
        if len(found) > count:
            break
    if len(found) != count:
        raise ValueError(
            f"data hold {'more than ' if len(found) > count else ''}{min(len(found), count)} of {count} strings"
        )
    return found


def _from_values(values: Sequence[Any], datatype: str, shape: Sequence[int]) -> Array:
    values = _flat(values, shape)
    count = math.prod(shape)
    if len(values) != count:
        raise ValueError(f"data have {len(values)} values, but shape {list(shape)} has {count}")
    wrong = set(map(type, values)) - _PYTHON_TYPES[datatype]
    if wrong:
        raise ValueError(f"data of type {', '.join(sorted(kind.__name__ for kind in wrong))} are no {datatype}")
    if datatype == BYTES:
        return _strings(values, shape)
    with np.errstate(over="ignore"):
        return np.array(values, dtype=DATATYPES[datatype]).reshape(shape)


def _flat(values: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    """Values in row-major order, from nested lists or flat ones."""
    for size in shape[1:]:
        kinds = set(map(type, values))
        if list not in kinds:
            break
        if len(kinds) > 1 or set(map(len, values)) != {size}:
            raise ValueError(f"nested data do not have the shape {list(shape)}")
        values = list(chain.from_iterable(values))
    return values


def _strings(values: Sequence[str | bytes], shape: Sequence[int]) -> Array:
    strings = np.empty(len(values), dtype=object)
    strings[:] = [value.decode() if isinstance(value, bytes) else value for value in values]
    return strings.reshape(shape)


# --- JSON


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise Refusal(400, f"Inference-Header-Content-Length {_shown(header_length)} is no number of bytes")
    if not 0 < int(header_length) <= len(body):
        raise Refusal(400, f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    return body[: int(header_length)], body[int(header_length) :]


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = _lenient(text)
    if not isinstance(document, dict):
        raise Refusal(400, f"the request is {_kind(document)}, but must be a JSON object with 'inputs'")
    return document


def _lenient(text: bytes) -> Any:
    """JSON with the literals NaN and Infinity, which JSON has not, but Python's clients write and Triton reads."""
    try:
        document = json.loads(text.decode())
        orjson.dumps(document)  # refuses the lone surrogates and large integers that json.loads lets through
    except (ValueError, RecursionError, TypeError) as error:
        raise Refusal(400, f"the request cannot be parsed as JSON: {str(error)[:_SHOWN]}") from error
    return document


def _json_tensor(entry: Any, blob: bytes) -> tuple[_Tensor, int]:
    """An input, and how many bytes of the binary data are its own."""
    if not isinstance(entry, dict):
        raise Refusal(400, f"it is {_kind(entry)}, but must be an object")
    name, datatype, shape = _text(entry, "name"), _text(entry, "datatype"), _list(entry, "shape", required=True)
    if not set(map(type, shape)) <= {int}:
        raise Refusal(400, f"shape {_shown(shape)} must be integers")
    size = _json_parameters(entry).get("binary_data_size")
    if size is None:
        return _Tensor(name, datatype, shape, _list(entry, "data", required=True)), 0
    if type(size) is not int or not 0 <= size <= len(blob):
        raise Refusal(400, f"binary_data_size is {_shown(size)}, but {len(blob)} bytes of binary data are left")
    if "data" in entry:
        raise Refusal(400, "it has 'data' and 'binary_data_size'; send one of them")
    return _Tensor(name, datatype, shape, blob[:size]), size


def _json_outputs(
    document: Mapping[str, Any], binary_default: bool, signature: Signature
) -> tuple[tuple[str, ...], frozenset[str]]:
    names, binary = [], set()
    for n, entry in enumerate(_list(document, "outputs")):
        try:
            name, as_bytes = _json_output(entry, binary_default)
        except Refusal as refusal:
            raise Refusal(refusal.status, f"outputs[{n}]{_name_of(entry)}: {refusal.message}") from refusal
        names.append(name)
        if as_bytes:
            binary.add(name)
    outputs = _known_outputs(names, signature)
    return outputs, frozenset(binary if names else outputs if binary_default else ())


def _json_output(entry: Any, binary_default: bool) -> tuple[str, bool]:
    """Name of an output, and whether it is wanted as bytes."""
    if not isinstance(entry, dict):
        raise Refusal(400, f"it is {_kind(entry)}, but must be an object")
    parameters = _json_parameters(entry)
    if "classification" in parameters:
        raise Refusal(400, "'classification' is not offered; ask for the scores themselves")
    return _text(entry, "name"), bool(parameters.get("binary_data", binary_default))


def _known_outputs(names: Sequence[str], signature: Signature) -> tuple[str, ...]:
    for name in names:
        if name not in signature.outputs:
            raise Refusal(400, f"output {_shown(name)} is none of this model, which gives {list(signature.outputs)}")
    return tuple(dict.fromkeys(names)) or tuple(signature.outputs)


def _json_parameters(document: Mapping[str, Any]) -> dict[str, Parameter]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refusal(400, f"'parameters' is {_kind(parameters)}, but must be an object")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise Refusal(400, f"parameter {_shown(name)} is {_kind(value)}, but must be a string, number or boolean")
    return parameters


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise Refusal(400, f"'{key}' is {_kind(value) if key in document else 'missing'}, but must be a string")
    return value


def _list(document: Mapping[str, Any], key: str, *, required: bool = False) -> list[Any]:
    value = document.get(key, [])
    if required and key not in document:
        raise Refusal(400, f"'{key}' is missing")
    if not isinstance(value, list):
        raise Refusal(400, f"'{key}' is {_kind(value)}, but must be a list (JSON array)")
    return value


def _name_of(entry: Any) -> str:
    return f" ({_shown(entry['name'])})" if isinstance(entry, dict) and "name" in entry else ""


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


# --- protobuf


def _contents(tensor: Any) -> Sequence[Any]:
    fields = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    wanted = _CONTENTS.get(tensor.datatype)
    if wanted is None:
        raise Refusal(400, f"input {_shown(tensor.name)}: datatype {_shown(tensor.datatype)} has no typed contents")
    if fields not in ([], [wanted]):
        raise Refusal(
            400, f"input {_shown(tensor.name)}: contents are {fields}, but for {tensor.datatype} must be '{wanted}'"
        )
    return list(getattr(tensor.contents, wanted))


def _proto_parameter(value: Any) -> Parameter:
    kind = value.WhichOneof("parameter_choice")
    parameter: Parameter = getattr(value, kind) if kind else ""
    return parameter


# --- answers


def answer_json(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, Array], signature: Signature
) -> tuple[bytes, int | None]:
    """The body of a REST answer, and the length of its JSON where bytes of outputs follow that."""
    tensors, blobs = [], []
    for name in request.outputs:
        values = outputs[name]
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": signature.outputs[name].datatype,
            "shape": list(values.shape),
        }
        if name in request.binary:
            blobs.append(_raw(values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            flat = values.ravel()
            tensor["data"] = flat.tolist() if flat.dtype in {np.dtype(object), np.dtype(np.float16)} else flat
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id:
        answer["id"] = request.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([head, *blobs]), len(head) if blobs else None


def fill_answer(response: Any, request: InferRequest, outputs: Mapping[str, Array], signature: Signature) -> None:
    """Fill an `inference.ModelInferResponse` with raw contents, as Triton does."""
    response.id = request.id
    for name in request.outputs:
        values = outputs[name]
        response.outputs.add(name=name, datatype=signature.outputs[name].datatype, shape=values.shape)
        response.raw_output_contents.append(_raw(values))


def _raw(values: Array) -> bytes:
    if values.dtype != object:
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    strings = [str(value).encode() for value in values.ravel()]
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)
