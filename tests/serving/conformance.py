"""Conformance with the Open Inference Protocol v2, over REST and gRPC, of any server or gateway.

    endpoint = Endpoint("http://127.0.0.1:8000", "127.0.0.1:8001", line, version, columns, scores)
    @pytest.mark.parametrize("check", CHECKS, ids=str)
    def test_conforms(check): check.run(endpoint)

Or `outcomes(endpoint)` for a table. A check of bad input is satisfied by a 4xx (INVALID_ARGUMENT, NOT_FOUND, ...) whose
message names what is wrong, and by the right answer to the next good request. `Check.deviation` is not empty where a
bare Triton was seen to answer otherwise; a gateway in front of it has to make the difference good.
"""

from __future__ import annotations

import copy
import json
import math
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

TOLERANCE = 1e-5
_TIMEOUT_S = 20.0
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


@dataclass(frozen=True)
class Column:
    """One input of the model: `BYTES` or `FP32`, shape [-1, 1], with a good value for each row."""

    name: str
    datatype: str
    values: tuple[str, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Endpoint:
    """A server to be asked, and what it must answer.

    Args:
        rest_url: base URL, without `/v2`.
        grpc_target: host:port.
        line: name of the model.
        version: a loaded version.
        columns: its inputs with good values, at least one `BYTES` and one `FP32`, two rows or more, no NaN.
        scores: the output for these rows, [rows].
        output: name of the only output, `FP32`, shape [-1].
        max_rows: most rows of a request; None where the server states no limit.
        max_bytes: most bytes of a request; None where the server states no limit.
        headers: sent with every request, such as an API key; gRPC metadata too.
    """

    rest_url: str
    grpc_target: str
    line: str
    version: str
    columns: tuple[Column, ...]
    scores: tuple[float, ...]
    output: str = "probability"
    max_rows: int | None = None
    max_bytes: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """Name of the first string input."""
        return next(c.name for c in self.columns if c.datatype == "BYTES")

    @property
    def number(self) -> str:
        """Name of the first float input."""
        return next(c.name for c in self.columns if c.datatype == "FP32")

    @property
    def model(self) -> str:
        """Path of the model."""
        return f"/v2/models/{self.line}"

    @property
    def infer(self) -> str:
        """Path of inference."""
        return f"{self.model}/infer"


@dataclass(frozen=True)
class Check:
    """One check: raises AssertionError where the endpoint does not conform."""

    name: str
    run: Callable[[Endpoint], None]
    deviation: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What came of a check; `failure` is empty where it passed."""

    check: Check
    failure: str


CHECKS: list[Check] = []


def outcomes(endpoint: Endpoint) -> list[Outcome]:
    """Run every check; none stops another."""
    found = []
    for check in CHECKS:
        try:
            check.run(endpoint)
        except Exception as error:  # whatever went wrong, the check has not passed
            found.append(Outcome(check, f"{type(error).__name__}: {error}"))
        else:
            found.append(Outcome(check, ""))
    return found


def check(name: str, deviation: str = "") -> Callable[[Callable[[Endpoint], None]], Callable[[Endpoint], None]]:
    """Make a function a check of the suite."""

    def add(run: Callable[[Endpoint], None]) -> Callable[[Endpoint], None]:
        CHECKS.append(Check(name, run, deviation))
        return run

    return add


# --- asking over REST


@lru_cache(maxsize=8)
def _client(rest_url: str) -> httpx.Client:
    return httpx.Client(base_url=rest_url, timeout=_TIMEOUT_S, trust_env=False)


def _get(e: Endpoint, path: str) -> httpx.Response:
    return _client(e.rest_url).get(path, headers=e.headers)


def _post(e: Endpoint, body: Any, path: str = "", headers: Mapping[str, str] = {}) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _client(e.rest_url).post(
        path or e.infer, content=raw, headers={"content-type": "application/json", **e.headers, **headers}
    )


def _body(e: Endpoint, rows: Collection[int] | None = None) -> dict[str, Any]:
    """A good request over some of the rows (default all), data flat."""
    chosen = range(len(e.scores)) if rows is None else rows
    return {
        "id": "conformance-1",
        "inputs": [
            {"name": c.name, "datatype": c.datatype, "shape": [len(chosen), 1], "data": [c.values[n] for n in chosen]}
            for c in e.columns
        ],
    }


def _json(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, f"{response.status_code} {response.text[:300]}"
    return response.json()


def _scores(e: Endpoint, answer: Any) -> list[float]:
    outputs = {o["name"]: o for o in answer["outputs"]}
    assert list(outputs) == [e.output], outputs
    output = outputs[e.output]
    assert output["datatype"] == "FP32"
    assert output["shape"] == [len(output["data"])]
    return list(output["data"])


def _same(found: Collection[float], wanted: Collection[float]) -> None:
    assert len(found) == len(wanted), (found, wanted)
    np.testing.assert_allclose(list(found), list(wanted), atol=TOLERANCE, rtol=0)


def _still_serves(e: Endpoint) -> None:
    _same(_scores(e, _json(_post(e, _body(e)))), e.scores)
    _same(_grpc_scores(e, _stub(e).ModelInfer(_request(e), **_how(e))), e.scores)


# --- asking over gRPC


@lru_cache(maxsize=8)
def _channel(target: str) -> grpc.Channel:
    return grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])


def _stub(e: Endpoint) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(_channel(e.grpc_target))


def _how(e: Endpoint) -> dict[str, Any]:
    metadata = [(name.lower(), value) for name, value in e.headers.items()]
    return {"timeout": _TIMEOUT_S, "metadata": metadata, "wait_for_ready": True}


def _request(e: Endpoint, rows: Collection[int] | None = None) -> pb.ModelInferRequest:
    """A good request with typed contents."""
    chosen = range(len(e.scores)) if rows is None else rows
    request = pb.ModelInferRequest(model_name=e.line, id="conformance-2")
    for c in e.columns:
        tensor = request.inputs.add(name=c.name, datatype=c.datatype, shape=[len(chosen), 1])
        if c.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(str(c.values[n]).encode() for n in chosen)
        else:
            tensor.contents.fp32_contents.extend(float(c.values[n]) for n in chosen)
    return request


def _raw(column: Column, rows: Collection[int]) -> bytes:
    if column.datatype == "BYTES":
        values = [str(column.values[n]).encode() for n in rows]
        return b"".join(struct.pack("<I", len(v)) + v for v in values)
    return np.array([column.values[n] for n in rows], dtype="<f4").tobytes()


def _raw_request(e: Endpoint) -> pb.ModelInferRequest:
    """A good request with raw contents."""
    rows = range(len(e.scores))
    request = pb.ModelInferRequest(model_name=e.line, id="conformance-3")
    for c in e.columns:
        request.inputs.add(name=c.name, datatype=c.datatype, shape=[len(rows), 1])
        request.raw_input_contents.append(_raw(c, rows))
    return request


def _grpc_scores(e: Endpoint, response: Any) -> list[float]:
    assert [o.name for o in response.outputs] == [e.output]
    output = response.outputs[0]
    assert output.datatype == "FP32"
    raw = list(response.raw_output_contents)
    found = np.frombuffer(raw[0], dtype="<f4").tolist() if raw else list(output.contents.fp32_contents)
    assert list(output.shape) == [len(found)]
    return [float(value) for value in found]


def _tensor(request: pb.ModelInferRequest, name: str) -> Any:
    return next(t for t in request.inputs if t.name == name)


# --- health and metadata


@check("rest: server live")
def _(e: Endpoint) -> None:
    assert _get(e, "/v2/health/live").status_code == 200


@check("rest: server ready")
def _(e: Endpoint) -> None:
    assert _get(e, "/v2/health/ready").status_code == 200


@check("rest: model ready")
def _(e: Endpoint) -> None:
    assert _get(e, f"{e.model}/ready").status_code == 200


@check("rest: version ready")
def _(e: Endpoint) -> None:
    assert _get(e, f"{e.model}/versions/{e.version}/ready").status_code == 200


@check("rest: unknown model is not ready")
def _(e: Endpoint) -> None:
    assert 400 <= _get(e, "/v2/models/no_such_model/ready").status_code < 500


@check("rest: unknown version is not ready")
def _(e: Endpoint) -> None:
    assert 400 <= _get(e, f"{e.model}/versions/987654/ready").status_code < 500


@check("rest: version that is no number is not ready")
def _(e: Endpoint) -> None:
    assert 400 <= _get(e, f"{e.model}/versions/newest/ready").status_code < 500


@check("rest: server metadata")
def _(e: Endpoint) -> None:
    found = _json(_get(e, "/v2"))
    assert found["name"]
    assert found["version"]
    assert isinstance(found["extensions"], list)


def _assert_metadata(e: Endpoint, found: Any) -> None:
    assert found["name"] == e.line
    assert e.version in found["versions"]
    assert found["platform"]
    inputs = {i["name"]: (i["datatype"], i["shape"]) for i in found["inputs"]}
    assert inputs == {c.name: (c.datatype, [-1, 1]) for c in e.columns}
    assert found["outputs"] == [{"name": e.output, "datatype": "FP32", "shape": [-1]}]


@check("rest: model metadata")
def _(e: Endpoint) -> None:
    _assert_metadata(e, _json(_get(e, e.model)))


@check("rest: metadata of a version")
def _(e: Endpoint) -> None:
    _assert_metadata(e, _json(_get(e, f"{e.model}/versions/{e.version}")))


@check("rest: metadata of an unknown model")
def _(e: Endpoint) -> None:
    _assert_refused(_get(e, "/v2/models/no_such_model"), ("no_such_model", "model", "not found"))


@check("rest: unknown path")
def _(e: Endpoint) -> None:
    assert 400 <= _get(e, "/v2/no/such/path").status_code < 500


@check("grpc: server live")
def _(e: Endpoint) -> None:
    assert _stub(e).ServerLive(pb.ServerLiveRequest(), **_how(e)).live


@check("grpc: server ready")
def _(e: Endpoint) -> None:
    assert _stub(e).ServerReady(pb.ServerReadyRequest(), **_how(e)).ready


@check("grpc: model ready")
def _(e: Endpoint) -> None:
    assert _stub(e).ModelReady(pb.ModelReadyRequest(name=e.line), **_how(e)).ready


@check("grpc: version ready")
def _(e: Endpoint) -> None:
    assert _stub(e).ModelReady(pb.ModelReadyRequest(name=e.line, version=e.version), **_how(e)).ready


@check("grpc: unknown model is not ready")
def _(e: Endpoint) -> None:
    _assert_not_ready(e, pb.ModelReadyRequest(name="no_such_model"))


@check("grpc: unknown version is not ready")
def _(e: Endpoint) -> None:
    _assert_not_ready(e, pb.ModelReadyRequest(name=e.line, version="987654"))


def _assert_not_ready(e: Endpoint, request: pb.ModelReadyRequest) -> None:
    answers: list[Any] = []
    error = _grpc_error(lambda: answers.append(_stub(e).ModelReady(request, **_how(e))))
    assert error.code() in _REFUSALS if error else not answers[0].ready, (error, answers)


@check("grpc: server metadata")
def _(e: Endpoint) -> None:
    found = _stub(e).ServerMetadata(pb.ServerMetadataRequest(), **_how(e))
    assert found.name
    assert found.version


@check("grpc: model metadata")
def _(e: Endpoint) -> None:
    found = _stub(e).ModelMetadata(pb.ModelMetadataRequest(name=e.line, version=e.version), **_how(e))
    assert found.name == e.line
    assert e.version in found.versions
    inputs = {i.name: (i.datatype, list(i.shape)) for i in found.inputs}
    assert inputs == {c.name: (c.datatype, [-1, 1]) for c in e.columns}
    assert [(o.name, o.datatype, list(o.shape)) for o in found.outputs] == [(e.output, "FP32", [-1])]


@check("grpc: metadata of an unknown model")
def _(e: Endpoint) -> None:
    def ask() -> None:
        _stub(e).ModelMetadata(pb.ModelMetadataRequest(name="no_such_model"), **_how(e))

    _assert_grpc_refused(ask, ("no_such_model",))


# --- inference over REST


@check("rest: infer")
def _(e: Endpoint) -> None:
    _same(_scores(e, _json(_post(e, _body(e)))), e.scores)


@check("rest: infer names model and version")
def _(e: Endpoint) -> None:
    answer = _json(_post(e, _body(e), f"{e.model}/versions/{e.version}/infer"))
    assert answer["model_name"] == e.line
    assert answer["model_version"] == e.version
    _same(_scores(e, answer), e.scores)


@check("rest: infer without an id")
def _(e: Endpoint) -> None:
    body = _body(e)
    del body["id"]
    _same(_scores(e, _json(_post(e, body))), e.scores)


@check("rest: request id comes back")
def _(e: Endpoint) -> None:
    assert _json(_post(e, _body(e) | {"id": 'Zürich/1 "quoted"'}))["id"] == 'Zürich/1 "quoted"'


@check("rest: a single row")
def _(e: Endpoint) -> None:
    for row in range(len(e.scores)):
        _same(_scores(e, _json(_post(e, _body(e, [row])))), [e.scores[row]])


@check("rest: a batch of many rows, in order")
def _(e: Endpoint) -> None:
    rows = _many(e)
    _same(_scores(e, _json(_post(e, _body(e, rows)))), [e.scores[n] for n in rows])


def _many(e: Endpoint) -> list[int]:
    return [n % len(e.scores) for n in range(min(200, e.max_rows or 200))]


@check("rest: nested data")
def _(e: Endpoint) -> None:
    body = _body(e)
    for tensor in body["inputs"]:
        tensor["data"] = [[value] for value in tensor["data"]]
    _same(_scores(e, _json(_post(e, body))), e.scores)


@check("rest: inputs in another order")
def _(e: Endpoint) -> None:
    body = _body(e)
    body["inputs"].reverse()
    _same(_scores(e, _json(_post(e, body))), e.scores)


@check("rest: requested outputs")
def _(e: Endpoint) -> None:
    _same(_scores(e, _json(_post(e, _body(e) | {"outputs": [{"name": e.output}]}))), e.scores)


@check("rest: parameters are accepted")
def _(e: Endpoint) -> None:
    parameters = {"units": json.dumps({"id": ["x"] * len(e.scores)}), "note": "text", "number": 3, "flag": True}
    _same(_scores(e, _json(_post(e, _body(e) | {"parameters": parameters}))), e.scores)


@check("rest: strings beyond ASCII, empty and unknown")
def _(e: Endpoint) -> None:
    body = _body(e, [0, 0])
    next(t for t in body["inputs"] if t["name"] == e.text)["data"] = ["", "Ünbekannt 航空"]
    found = _scores(e, _json(_post(e, body)))
    assert len(found) == 2
    assert all(math.isfinite(score) for score in found)


@check("rest: eight connections get each their own answer")
def _(e: Endpoint) -> None:
    def ask(n: int) -> None:
        row = n % len(e.scores)
        answer = _json(_post(e, _body(e, [row]) | {"id": f"own-{n}"}))
        assert answer["id"] == f"own-{n}"
        _same(_scores(e, answer), [e.scores[row]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(64)))


def _binary(e: Endpoint, *, answer_binary: bool) -> httpx.Response:
    """Ask with the binary tensor extension: JSON first, then the inputs' bytes one after the other."""
    rows = range(len(e.scores))
    blobs = [_raw(c, rows) for c in e.columns]
    body = {
        "id": "conformance-4",
        "inputs": [
            {
                "name": c.name,
                "datatype": c.datatype,
                "shape": [len(rows), 1],
                "parameters": {"binary_data_size": len(blob)},
            }
            for c, blob in zip(e.columns, blobs, strict=True)
        ],
        "outputs": [{"name": e.output, "parameters": {"binary_data": answer_binary}}],
    }
    head = json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return _post(e, head + b"".join(blobs), headers=headers)


def _offers_binary(e: Endpoint) -> bool:
    return any(x in _json(_get(e, "/v2"))["extensions"] for x in ("binary_tensor_data", "binary_data"))


@check("rest: binary inputs, where offered")
def _(e: Endpoint) -> None:
    if _offers_binary(e):
        _same(_scores(e, _json(_binary(e, answer_binary=False))), e.scores)


@check("rest: binary output, where offered")
def _(e: Endpoint) -> None:
    if not _offers_binary(e):
        return
    response = _binary(e, answer_binary=True)
    assert response.status_code == 200, response.text
    cut = int(response.headers["inference-header-content-length"])
    output = json.loads(response.content[:cut])["outputs"][0]
    assert output["parameters"]["binary_data_size"] == len(response.content) - cut
    assert output["shape"] == [len(e.scores)]
    _same(np.frombuffer(response.content[cut:], dtype="<f4").tolist(), e.scores)


@check("rest: NaN in binary data is answered, where offered")
def _(e: Endpoint) -> None:
    if _offers_binary(e):
        response = _binary(_with_nan(e), answer_binary=True)
        assert response.status_code == 200, response.text
    _still_serves(e)


def _with_nan(e: Endpoint) -> Endpoint:
    nan = (math.nan,) * len(e.scores)
    columns = tuple(Column(c.name, c.datatype, nan) if c.name == e.number else c for c in e.columns)
    return Endpoint(e.rest_url, e.grpc_target, e.line, e.version, columns, e.scores, e.output, headers=e.headers)


@check("rest: a NaN literal in JSON is answered or refused")
def _(e: Endpoint) -> None:
    response = _post(e, _body(_with_nan(e)))
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    _still_serves(e)


# --- inference over gRPC


@check("grpc: infer with typed contents")
def _(e: Endpoint) -> None:
    _same(_grpc_scores(e, _stub(e).ModelInfer(_request(e), **_how(e))), e.scores)


@check("grpc: infer with raw contents")
def _(e: Endpoint) -> None:
    _same(_grpc_scores(e, _stub(e).ModelInfer(_raw_request(e), **_how(e))), e.scores)


@check("grpc: infer names model and version")
def _(e: Endpoint) -> None:
    request = _request(e)
    request.model_version = e.version
    response = _stub(e).ModelInfer(request, **_how(e))
    assert (response.model_name, response.model_version) == (e.line, e.version)
    _same(_grpc_scores(e, response), e.scores)


@check("grpc: request id comes back")
def _(e: Endpoint) -> None:
    assert _stub(e).ModelInfer(_request(e), **_how(e)).id == "conformance-2"


@check("grpc: a single row")
def _(e: Endpoint) -> None:
    _same(_grpc_scores(e, _stub(e).ModelInfer(_request(e, [1]), **_how(e))), [e.scores[1]])


@check("grpc: a batch of many rows, in order")
def _(e: Endpoint) -> None:
    rows = _many(e)
    found = _grpc_scores(e, _stub(e).ModelInfer(_request(e, rows), **_how(e)))
    _same(found, [e.scores[n] for n in rows])


@check("grpc: requested outputs")
def _(e: Endpoint) -> None:
    request = _request(e)
    request.outputs.add(name=e.output)
    _same(_grpc_scores(e, _stub(e).ModelInfer(request, **_how(e))), e.scores)


@check("grpc: parameters are accepted")
def _(e: Endpoint) -> None:
    request = _request(e)
    request.parameters["units"].string_param = json.dumps({"id": ["x"] * len(e.scores)})
    request.parameters["number"].int64_param = 3
    request.parameters["flag"].bool_param = True
    _same(_grpc_scores(e, _stub(e).ModelInfer(request, **_how(e))), e.scores)


@check("grpc: NaN is answered")
def _(e: Endpoint) -> None:
    spoilt = _with_nan(e)
    for request in (_request(spoilt), _raw_request(spoilt)):
        assert len(_grpc_scores(e, _stub(e).ModelInfer(request, **_how(e)))) == len(e.scores)
    _still_serves(e)


# --- bad input over REST


def _assert_refused(response: httpx.Response, names: Collection[str]) -> None:
    assert 400 <= response.status_code < 500, f"{response.status_code} {response.text[:300]}"
    said = response.text.lower()
    assert any(name.lower() in said for name in names), f"{response.text[:300]!r} says none of {list(names)}"


_Spoil = Callable[[dict[str, Any], Endpoint], Any]


def _set(where: str, key: str, value: Any) -> _Spoil:
    """Set (or, with None, take out) a key of the request (`where` ""), or of the `text` or `number` input."""

    def spoil(body: dict[str, Any], e: Endpoint) -> dict[str, Any]:
        name = {"text": e.text, "number": e.number}.get(where)
        target = next(t for t in body["inputs"] if t["name"] == name) if name else body
        if value is None:
            del target[key]
        else:
            target[key] = value
        return body

    return spoil


def _fresh(change: Callable[[dict[str, Any], Endpoint], Any]) -> _Spoil:
    def spoil(body: dict[str, Any], e: Endpoint) -> Any:
        changed = copy.deepcopy(body)
        change(changed, e)
        return changed

    return spoil


def _row_more(body: dict[str, Any], e: Endpoint) -> None:
    tensor = next(t for t in body["inputs"] if t["name"] == e.number)
    tensor["data"].append(tensor["data"][0])
    tensor["shape"] = [len(tensor["data"]), 1]


def _no_rows(body: dict[str, Any], e: Endpoint) -> None:
    for tensor in body["inputs"]:
        tensor["shape"], tensor["data"] = [0, 1], []


_NAMED = ("{number}", "{text}")

_BAD_REST: list[tuple[str, _Spoil, tuple[str, ...]]] = [
    ("malformed JSON", lambda b, e: b'{"inputs": [', ("json", "parse")),
    ("not JSON at all", lambda b, e: b"\x00\xff\xfe", ("json", "parse")),
    ("JSON that is no object", lambda b, e: b"[1, 2]", ("object", "inputs", "json")),
    ("deeply nested JSON", lambda b, e: b"[" * 100_000, ("json", "parse", "object", "nest")),
    ("an empty body", lambda b, e: b"", ("json", "parse", "body", "empty", "inputs")),
    ("no inputs", _set("", "inputs", None), ("inputs",)),
    ("an empty list of inputs", _set("", "inputs", []), (*_NAMED, "inputs")),
    ("inputs that are no list", _set("", "inputs", "all"), ("inputs", "array", "list")),
    ("an input that is no object", _set("", "inputs", [5]), ("input",)),
    ("an id that is no string", _set("", "id", [1]), ("id", "string")),
    ("parameters that are no object", _set("", "parameters", [1]), ("parameters", "object")),
    ("a missing input", _fresh(lambda b, e: b["inputs"].pop(0)), ("{first}",)),
    (
        "an extra input",
        _fresh(lambda b, e: b["inputs"].append(b["inputs"][0] | {"name": "no_such_input"})),
        ("no_such_input",),
    ),
    ("the same input twice", _fresh(lambda b, e: b["inputs"].append(b["inputs"][0])), ("{first}",)),
    ("a wrong name", _set("number", "name", "no_such_input"), ("no_such_input", "{number}")),
    ("no name", _set("number", "name", None), ("name",)),
    ("a name that is no string", _set("number", "name", 7), ("name", "string")),
    ("a wrong datatype", _set("number", "datatype", "INT64"), ("{number}", "data")),
    ("an unknown datatype", _set("number", "datatype", "FP33"), ("{number}", "fp33")),
    ("no datatype", _set("number", "datatype", None), ("datatype",)),
    ("strings declared as floats", _set("text", "datatype", "FP32"), ("{text}", "data")),
    ("no shape", _set("number", "shape", None), ("shape",)),
    ("a shape that is no list", _set("number", "shape", "two"), ("shape", "array")),
    ("a shape of strings", _set("number", "shape", ["2", "1"]), ("shape", "{number}", "int")),
    ("a negative shape", _set("number", "shape", [-2, 1]), ("shape", "{number}")),
    ("a shape beyond all bounds", _set("number", "shape", [2**62, 4]), ("shape", "{number}")),
    ("a shape beyond 64 bits", _set("number", "shape", [2**80, 1]), ("shape", "{number}", "int")),
    ("a wrong rank", _set("number", "shape", [1, 1, 1]), ("{number}", "shape")),
    ("a wrong width", _set("number", "shape", [1, 2]), ("{number}", "shape")),
    ("fewer data than the shape", _set("number", "data", [1.0]), ("{number}", "shape")),
    ("more data than the shape", _set("number", "data", [1.0] * 1000), ("{number}", "shape")),
    ("no data", _set("number", "data", None), ("data",)),
    ("data that are no list", _set("number", "data", "many"), ("data", "array", "{number}")),
    ("a string among floats", _fresh(lambda b, e: _first_datum(b, e.number, "1.5")), ("{number}", "data")),
    ("null among floats", _fresh(lambda b, e: _first_datum(b, e.number, None)), ("{number}", "data")),
    ("a boolean among floats", _fresh(lambda b, e: _first_datum(b, e.number, True)), ("{number}", "data")),
    ("a number among strings", _fresh(lambda b, e: _first_datum(b, e.text, 5)), ("{text}", "data", "string")),
    ("null among strings", _fresh(lambda b, e: _first_datum(b, e.text, None)), ("{text}", "data", "string")),
    ("an object among floats", _fresh(lambda b, e: _first_datum(b, e.number, {})), ("{number}", "data")),
    ("inputs of different lengths", _fresh(_row_more), _NAMED),
    ("an empty batch", _fresh(_no_rows), (*_NAMED, "shape", "batch", "rows")),
    ("an unknown output", _set("", "outputs", [{"name": "no_such_output"}]), ("no_such_output",)),
    ("outputs that are no list", _set("", "outputs", 5), ("outputs", "array")),
    ("an output without a name", _set("", "outputs", [{}]), ("outputs", "name")),
    (
        "a binary size without binary data",
        _fresh(lambda b, e: b["inputs"][0].update(parameters={"binary_data_size": 10**9})),
        ("{first}", "binary"),
    ),
]


def _first_datum(body: dict[str, Any], name: str, value: Any) -> None:
    next(t for t in body["inputs"] if t["name"] == name)["data"][0] = value


def _words(names: tuple[str, ...], e: Endpoint) -> list[str]:
    return [n.format(number=e.number, text=e.text, first=e.columns[0].name) for n in names]


def _bad_rest(spoil: _Spoil, names: tuple[str, ...]) -> Callable[[Endpoint], None]:
    def run(e: Endpoint) -> None:
        _assert_refused(_post(e, spoil(_body(e), e)), _words(names, e))
        _still_serves(e)

    return run


_DEVIATION = "Triton 2.51 answers 500, not 4xx, to JSON that it cannot read as the request it expects"
_TRITON_CANNOT_READ = {
    "malformed JSON",
    "not JSON at all",
    "JSON that is no object",
    "deeply nested JSON",
    "no inputs",
    "inputs that are no list",
    "an id that is no string",
    "parameters that are no object",
    "no name",
    "a name that is no string",
    "a wrong datatype",
    "no datatype",
    "strings declared as floats",
    "no shape",
    "a shape that is no list",
    "a shape of strings",
    "a negative shape",
    "a shape beyond 64 bits",
    "a wrong rank",
    "a wrong width",
    "fewer data than the shape",
    "more data than the shape",
    "data that are no list",
    "a string among floats",
    "null among floats",
    "a boolean among floats",
    "a number among strings",
    "null among strings",
    "an object among floats",
    "outputs that are no list",
    "an output without a name",
}

CHECKS.extend(
    Check(f"rest refuses: {name}", _bad_rest(spoil, names), _DEVIATION if name in _TRITON_CANNOT_READ else "")
    for name, spoil, names in _BAD_REST
)


@check("rest: invalid UTF-8 in an id is answered or refused")
def _(e: Endpoint) -> None:
    response = _post(e, json.dumps(_body(e)).encode().replace(b"conf", b"\xff\xfe"))
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    _still_serves(e)


@check("rest refuses: an unknown model")
def _(e: Endpoint) -> None:
    _assert_refused(_post(e, _body(e), "/v2/models/no_such_model/infer"), ("no_such_model", "model", "not found"))
    _still_serves(e)


@check("rest refuses: an unknown version")
def _(e: Endpoint) -> None:
    _assert_refused(_post(e, _body(e), f"{e.model}/versions/987654/infer"), ("987654", "version"))
    _still_serves(e)


@check("rest refuses: a version that is no number")
def _(e: Endpoint) -> None:
    _assert_refused(_post(e, _body(e), f"{e.model}/versions/newest/infer"), ("newest", "version", "not found"))
    _still_serves(e)


@check("rest refuses: a batch beyond the limit")
def _(e: Endpoint) -> None:
    rows = [0] * ((e.max_rows or 20_000) + 1)
    response = _post(e, _body(e, rows))
    if e.max_rows is None and response.status_code == 200:
        return
    _assert_refused(response, ("rows", "batch", "shape", "large", "limit"))
    _still_serves(e)


@check("rest refuses: a body beyond the limit")
def _(e: Endpoint) -> None:
    if e.max_bytes is not None:
        response = _post(e, b" " * (e.max_bytes + 1))
        assert response.status_code == 413, response.text[:300]
    _still_serves(e)


@check("rest refuses: a header of binary data that lies")
def _(e: Endpoint) -> None:
    for length in ("0", "-1", "999999999", "many"):
        response = _post(e, _body(e), headers={"inference-header-content-length": length})
        assert 400 <= response.status_code < 500, f"{length}: {response.status_code} {response.text[:200]}"
    _still_serves(e)


@check("rest: another content type is answered or refused")
def _(e: Endpoint) -> None:
    response = _post(e, _body(e), headers={"content-type": "text/csv"})
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    _still_serves(e)


@check("rest refuses: other methods")
def _(e: Endpoint) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = _client(e.rest_url).request(method, e.infer, headers=e.headers)
        assert 400 <= response.status_code < 500, f"{method}: {response.status_code}"
    assert 400 <= _post(e, {}, "/v2/health/live").status_code < 500
    _still_serves(e)


def _over_socket(e: Endpoint, lines: list[str], body: bytes = b"") -> int:
    """Status of a request written by hand; 0 where the server only closed the connection."""
    url = urlsplit(e.rest_url)
    head = [*lines, f"host: {url.netloc}", "connection: close", *(f"{k}: {v}" for k, v in e.headers.items()), "", ""]
    with socket.create_connection((url.hostname or "", url.port or 80), timeout=_TIMEOUT_S) as connection:
        connection.sendall("\r\n".join(head).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1]) if answer else 0


@check("rest refuses: a body without its length")
def _(e: Endpoint) -> None:
    status = _over_socket(e, [f"POST {e.infer} HTTP/1.1", "content-type: application/json"])
    assert 400 <= status < 500, status
    _still_serves(e)


@check("rest refuses: what is no HTTP")
def _(e: Endpoint) -> None:
    status = _over_socket(e, ["NO SUCH THING"])
    assert status == 0 or 400 <= status < 500, status
    _still_serves(e)


@check("rest: a body in chunks is answered or refused")
def _(e: Endpoint) -> None:
    raw = json.dumps(_body(e)).encode()
    body = f"{len(raw):x}\r\n".encode() + raw + b"\r\n0\r\n\r\n"
    status = _over_socket(
        e, [f"POST {e.infer} HTTP/1.1", "content-type: application/json", "transfer-encoding: chunked"], body
    )
    assert status == 200 or 400 <= status < 500, status
    _still_serves(e)


@check("rest: a caller that goes away half way")
def _(e: Endpoint) -> None:
    url = urlsplit(e.rest_url)
    for _unused in range(8):
        with socket.create_connection((url.hostname or "", url.port or 80), timeout=_TIMEOUT_S) as connection:
            connection.sendall(f"POST {e.infer} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{{".encode())
    _still_serves(e)


# --- bad input over gRPC


def _grpc_error(ask: Callable[[], Any]) -> Any:
    """The error of a call; None where it was answered."""
    try:
        ask()
    except grpc.RpcError as error:
        return error
    return None


def _assert_grpc_refused(ask: Callable[[], Any], names: Collection[str]) -> None:
    error = _grpc_error(ask)
    assert error is not None, "it was answered"
    assert error.code() in _REFUSALS, f"{error.code()} {error.details()}"
    said = str(error.details()).lower()
    assert any(name.lower() in said for name in names), f"{said[:300]!r} says none of {list(names)}"


def _grpc_data(name: str, *, add: list[float] | None = None, clear: bool = False) -> Callable[[Any, Endpoint], None]:
    def spoil(request: Any, e: Endpoint) -> None:
        contents = _tensor(request, getattr(e, name)).contents
        if clear:
            contents.Clear()
        contents.fp32_contents.extend(add or [])

    return spoil


def _grpc_shape(shape: list[int]) -> Callable[[Any, Endpoint], None]:
    def spoil(request: Any, e: Endpoint) -> None:
        _tensor(request, e.number).shape[:] = shape

    return spoil


def _grpc_field(where: str, field_name: str, value: str) -> Callable[[Any, Endpoint], None]:
    def spoil(request: Any, e: Endpoint) -> None:
        setattr(_tensor(request, getattr(e, where)) if where else request, field_name, value)

    return spoil


def _grpc_no_rows(request: Any, e: Endpoint) -> None:
    for tensor in request.inputs:
        tensor.shape[:] = [0, 1]
        tensor.contents.Clear()


def _grpc_row_more(request: Any, e: Endpoint) -> None:
    tensor = _tensor(request, e.number)
    tensor.contents.fp32_contents.append(1.0)
    tensor.shape[:] = [len(e.scores) + 1, 1]


def _grpc_extra(request: Any, e: Endpoint) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])
    request.inputs[-1].name = "no_such_input"


_BAD_GRPC: list[tuple[str, Callable[[Any, Endpoint], Any], tuple[str, ...]]] = [
    ("an unknown model", _grpc_field("", "model_name", "no_such_model"), ("no_such_model",)),
    ("an empty model name", _grpc_field("", "model_name", ""), ("model", "name")),
    ("an unknown version", _grpc_field("", "model_version", "987654"), ("987654", "version")),
    ("a version that is no number", _grpc_field("", "model_version", "newest"), ("newest", "version")),
    ("no inputs", lambda r, e: r.ClearField("inputs"), (*_NAMED, "inputs")),
    ("a missing input", lambda r, e: r.inputs.pop(0), ("{first}",)),
    ("an extra input", _grpc_extra, ("no_such_input",)),
    ("the same input twice", lambda r, e: r.inputs.add().CopyFrom(r.inputs[0]), ("{first}",)),
    ("a wrong name", _grpc_field("number", "name", "no_such_input"), ("no_such_input", "{number}")),
    ("a wrong datatype", _grpc_field("number", "datatype", "INT64"), ("{number}",)),
    ("an unknown datatype", _grpc_field("number", "datatype", "FP33"), ("{number}", "fp33")),
    ("a negative shape", _grpc_shape([-2, 1]), ("{number}", "shape")),
    ("a shape beyond all bounds", _grpc_shape([2**62, 4]), ("{number}", "shape")),
    ("a wrong rank", _grpc_shape([1, 1, 1]), ("{number}",)),
    ("a wrong width", _grpc_shape([1, 2]), ("{number}",)),
    ("no shape", _grpc_shape([]), ("{number}",)),
    ("fewer data than the shape", _grpc_data("number", clear=True, add=[1.0]), ("{number}",)),
    ("more data than the shape", _grpc_data("number", add=[1.0]), ("{number}",)),
    ("no data", _grpc_data("number", clear=True), ("{number}",)),
    ("contents of another type", _grpc_data("text", clear=True, add=[1.0, 1.0]), ("{text}",)),
    ("inputs of different lengths", _grpc_row_more, _NAMED),
    ("an empty batch", _grpc_no_rows, (*_NAMED, "shape", "batch", "rows")),
    ("an unknown output", lambda r, e: r.outputs.add(name="no_such_output"), ("no_such_output",)),
    ("raw and typed contents together", lambda r, e: r.raw_input_contents.append(b"1234"), ("raw", "contents")),
]


def _bad_grpc(spoil: Callable[[Any, Endpoint], Any], names: tuple[str, ...]) -> Callable[[Endpoint], None]:
    def run(e: Endpoint) -> None:
        request = _request(e)
        spoil(request, e)
        _assert_grpc_refused(lambda: _stub(e).ModelInfer(request, **_how(e)), _words(names, e))
        _still_serves(e)

    return run


CHECKS.extend(Check(f"grpc refuses: {name}", _bad_grpc(spoil, names)) for name, spoil, names in _BAD_GRPC)


def _bad_raw(e: Endpoint, blob: bytes, name: str) -> None:
    request = _raw_request(e)
    at = next(n for n, c in enumerate(e.columns) if c.name == name)
    request.raw_input_contents[at] = blob
    _assert_grpc_refused(lambda: _stub(e).ModelInfer(request, **_how(e)), (name,))


@check("grpc refuses: raw floats cut short")
def _(e: Endpoint) -> None:
    for blob in (b"", b"\x00\x00\x80", b"\x00" * 1000):
        _bad_raw(e, blob, e.number)
    _still_serves(e)


@check("grpc refuses: raw strings whose lengths lie")
def _(e: Endpoint) -> None:
    for blob in (b"", b"\x05", struct.pack("<I", 2**32 - 1) + b"AA", struct.pack("<I", 1) + b"AAAA"):
        _bad_raw(e, blob, e.text)
    _still_serves(e)


@check("grpc refuses: fewer raw contents than inputs")
def _(e: Endpoint) -> None:
    request = _raw_request(e)
    request.raw_input_contents.pop()
    _assert_grpc_refused(lambda: _stub(e).ModelInfer(request, **_how(e)), ("raw", "contents", e.columns[-1].name))
    _still_serves(e)


@check("grpc refuses: a batch beyond the limit")
def _(e: Endpoint) -> None:
    request = _request(e, [0] * ((e.max_rows or 20_000) + 1))
    error = _grpc_error(lambda: _stub(e).ModelInfer(request, **_how(e)))
    assert error is not None or e.max_rows is None, "it was answered"
    if error is not None:
        assert error.code() in _REFUSALS, error
        assert error.details(), "no message"
    _still_serves(e)


@check("grpc: a message that is none is an error of this call only")
def _(e: Endpoint) -> None:
    call = _channel(e.grpc_target).unary_unary("/inference.GRPCInferenceService/ModelInfer")
    error = _grpc_error(lambda: call(b"\xff" * 64, **_how(e)))
    assert error is not None, "it was answered"
    assert error.code() != grpc.StatusCode.UNKNOWN, error
    _still_serves(e)


@check("grpc: an unknown method is unimplemented")
def _(e: Endpoint) -> None:
    call = _channel(e.grpc_target).unary_unary("/inference.GRPCInferenceService/NoSuchMethod")
    error = _grpc_error(lambda: call(b"", **_how(e)))
    assert error is not None, "it was answered"
    assert error.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}, error
    _still_serves(e)


@check("rest and grpc give the same scores")
def _(e: Endpoint) -> None:
    rest = _scores(e, _json(_post(e, _body(e))))
    rpc = _grpc_scores(e, _stub(e).ModelInfer(_raw_request(e), **_how(e)))
    assert np.array_equal(np.array(rest, dtype=np.float32), np.array(rpc, dtype=np.float32))
