"""What the fallback server keeps of its answers, and what it lets go of when."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conformance import Column
from tests.serving.small_model import FLOATS, STRINGS, drop_version, small_graph, write_version
from tritonclient.grpc import service_pb2 as pb

from aifactory.errors import PackageDefect
from aifactory.serving.server.answering import Answering, Call, Limits
from aifactory.serving.server.loaded import LoadedModels
from aifactory.serving.server.oip import Refusal

COLUMNS = [Column(n, "BYTES", ("a", "b")) for n in STRINGS] + [Column(n, "FP32", (1.0, 2.0)) for n in FLOATS]


class Kept:
    """A prediction log that keeps what it is given."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.records: list[tuple[Any, ...]] = []
        self.closed = False

    def record(self, request_id: str, units_json: str | None, inputs: Any, scores: Any, shadow: bool) -> None:
        assert not self.closed
        self.records.append((request_id, units_json, inputs, scores.tolist(), shadow))

    def close(self) -> None:
        self.closed = True


def _write(repository: Path, version: str) -> None:
    graph = small_graph(float(version))
    write_version(repository, "small", version, graph)
    identity = {"line": "small", "version": version, "sha256": hashlib.sha256(graph).hexdigest()}
    (repository / "small" / version / "identity.json").write_text(json.dumps(identity))


@pytest.fixture
def logs() -> list[Kept]:
    return []


@pytest.fixture
def models(tmp_path: Path, logs: list[Kept]) -> LoadedModels:
    def open_log(identity: Mapping[str, Any]) -> Kept:
        logs.append(Kept(identity))
        return logs[-1]

    _write(tmp_path, "1")
    models = LoadedModels(tmp_path, 100, 1, open_log)
    models.load("small")
    return models


def _body(**more: Any) -> bytes:
    inputs = [{"name": c.name, "datatype": c.datatype, "shape": [2, 1], "data": list(c.values)} for c in COLUMNS]
    return json.dumps({"inputs": inputs} | more).encode()


def _message() -> bytes:
    message = pb.ModelInferRequest(model_name="small")
    for column in COLUMNS:
        tensor = message.inputs.add(name=column.name, datatype=column.datatype, shape=[2, 1])
        if column.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(str(v).encode() for v in column.values)
        else:
            tensor.contents.fp32_contents.extend(float(v) for v in column.values)
    raw: bytes = message.SerializeToString()
    return raw


def test_every_answer_is_logged_with_its_id_units_inputs_and_scores(models: LoadedModels, logs: list[Kept]) -> None:
    answering = Answering(models, Limits())

    async def ask() -> list[float]:
        units = json.dumps({"flight": [1, 2]})
        body, _length = await answering.json(
            "small", "", _body(id="own", parameters={"units": units}), None, Call("of-the-header")
        )
        await answering.json("small", "1", _body(), None, Call("of-the-header", shadow=True))
        await answering.message(_message(), Call("of-the-metadata"))
        with pytest.raises(Refusal):
            await answering.json("small", "", b"{}", None, Call("refused"))
        scores: list[float] = json.loads(body)["outputs"][0]["data"]
        return scores

    scores = asyncio.run(ask())
    answering.close()
    (log,) = logs
    assert log.identity["version"] == "1"
    assert [(r[0], r[1], r[4]) for r in log.records] == [
        ("own", '{"flight": [1, 2]}', False),
        ("of-the-header", None, True),
        ("of-the-metadata", None, False),
    ]
    for record in log.records:
        assert record[3] == pytest.approx(scores)
        assert {name: values.ravel().tolist() for name, values in record[2].items()} == {
            c.name: list(c.values) for c in COLUMNS
        }


def test_a_version_that_is_replaced_answers_what_it_has_begun_and_then_closes_its_log(
    models: LoadedModels, logs: list[Kept], tmp_path: Path
) -> None:
    _write(tmp_path, "2")
    drop_version(tmp_path, "small", "1")
    loading = threading.Thread(target=models.load, args=("small",))
    with models.borrow("small") as borrowed:
        assert borrowed.version == "1"
        loading.start()
        while models.find("small").version == "1":
            pass
        assert loading.is_alive()
        assert not logs[0].closed
    loading.join(30)
    assert [log.closed for log in logs] == [True, False]


def test_a_version_whose_file_is_unchanged_stays_in_memory(
    models: LoadedModels, logs: list[Kept], tmp_path: Path
) -> None:
    first = models.find("small")
    _write(tmp_path, "2")
    models.load("small")
    assert models.find("small", "1") is first
    assert len(logs) == 2
    assert not logs[0].closed


def test_a_load_that_fails_closes_only_what_it_has_opened(
    models: LoadedModels, logs: list[Kept], tmp_path: Path
) -> None:
    _write(tmp_path, "2")
    _write(tmp_path, "3")
    (tmp_path / "small" / "3" / "model.onnx").write_bytes(b"altered")
    with pytest.raises(PackageDefect, match="does not match the hash"):
        models.load("small")
    assert models.versions("small") == ["1"]
    assert [log.closed for log in logs] == [False, True]


def test_everything_is_closed_at_the_end(models: LoadedModels, logs: list[Kept]) -> None:
    models.close()
    assert [log.closed for log in logs] == [True]
    with pytest.raises(Refusal, match="not loaded"):
        models.find("small")
