"""The fallback server over sockets: the conformance suite, loads under traffic, broken models, a graceful end."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
from tests.serving.conformance import CHECKS, Check
from tests.serving.fallback import COLUMNS, ROWS, FallbackServer, fallback_server
from tests.serving.small_model import config_text, drop_version, expected, small_graph, write_version
from tritonclient import grpc as triton

LINE = "small"
BIAS = {"1": -0.5, "2": 0.75, "3": 2.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FallbackServer]:
    repository = tmp_path_factory.mktemp("serving") / "repository"
    write_version(repository, LINE, "1", small_graph(BIAS["1"]))
    with fallback_server(repository, "--load-model", LINE) as running:
        yield running


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conforms(server: FallbackServer, check: Check) -> None:
    check.run(server.endpoint(LINE, "1", BIAS["1"]))


def test_the_suite_is_as_large_as_promised() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) >= 37


def test_the_public_client_is_served(server: FallbackServer) -> None:
    with triton.InferenceServerClient(server.grpc_target) as client:
        inputs = []
        for column in COLUMNS:
            tensor = triton.InferInput(column.name, [3, 1], column.datatype)
            kind = np.object_ if column.datatype == "BYTES" else np.float32
            tensor.set_data_from_numpy(np.array(column.values, dtype=kind).reshape(3, 1))
            inputs.append(tensor)
        answer = client.infer(LINE, inputs, request_id="public", parameters={"units": "{}"})
        np.testing.assert_allclose(answer.as_numpy("probability"), expected(BIAS["1"], ROWS), atol=1e-5)
        assert answer.get_response().id == "public"


def test_units_that_are_no_text_are_refused(server: FallbackServer) -> None:
    response = httpx.post(f"{server.rest_url}/v2/models/{LINE}/infer", json=_body() | {"parameters": {"units": 5}})
    assert response.status_code == 400
    assert "units" in response.json()["error"]


@pytest.mark.parametrize("line", ["../small", ".", "", "no_such_line", "a/b"])
def test_only_what_is_in_the_repository_can_be_loaded(server: FallbackServer, line: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.load(line)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not in the repository" in refused.value.details()


def test_metrics_tell_requests_errors_and_latency_of_each_version(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_version(repository, LINE, "1", small_graph(BIAS["1"]))
    with fallback_server(repository, "--load-model", LINE) as server:
        infer = f"{server.rest_url}/v2/models/{LINE}/infer"
        for _unused in range(3):
            assert httpx.post(infer, json=_body()).status_code == 200
        assert httpx.post(infer, json={}).status_code == 400
        assert httpx.post(f"{server.rest_url}/v2/models/invented/infer", json=_body()).status_code == 404
        told = httpx.get(server.metrics_url).text
    assert 'aif_serving_requests_total{model="small",status="200",version="1"} 3.0' in told
    assert 'aif_serving_requests_total{model="small",status="400",version="1"} 1.0' in told
    assert 'aif_serving_requests_total{model="",status="404",version=""} 1.0' in told
    assert 'aif_serving_request_seconds_count{model="small",version="1"} 3.0' in told
    assert 'aif_serving_rows_total{model="small",version="1"} 9.0' in told
    assert "invented" not in told


def test_loads_and_unloads_under_traffic_fail_no_request(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_version(repository, LINE, "1", small_graph(BIAS["1"]))
    with fallback_server(repository, "--load-model", LINE) as server, _Traffic(server) as traffic:
        traffic.wait_for_version("1")
        write_version(repository, LINE, "2", small_graph(BIAS["2"]))
        server.load(LINE)
        traffic.wait_for_version("2")
        drop_version(repository, LINE, "1")
        server.load(LINE)
        assert server.index() == {(LINE, "2"): "READY"}
        write_version(repository, "other", "1", small_graph(BIAS["3"]))
        for _unused in range(3):
            server.load("other")
            server.unload("other")
        write_version(repository, LINE, "3", small_graph(BIAS["3"]))
        server.load(LINE)
        traffic.wait_for_version("3")
    assert traffic.failures == []
    assert set(traffic.answered) == {"1", "2", "3"}


def test_versions_are_served_side_by_side(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for version in ("9", "10"):
        write_version(repository, LINE, version, small_graph(float(version) / 10))
    with fallback_server(repository, "--load-model", LINE) as server:
        for version in ("9", "10"):
            found = _ask(server, f"/v2/models/{LINE}/versions/{version}/infer")
            np.testing.assert_allclose(found["outputs"][0]["data"], expected(float(version) / 10, ROWS), atol=1e-5)
        assert _ask(server, f"/v2/models/{LINE}/infer")["model_version"] == "10"
        newest_only = config_text(LINE).replace("all {}", "latest { num_versions: 1 }")
        (repository / LINE / "config.pbtxt").write_text(newest_only)
        server.load(LINE)
        assert server.index() == {(LINE, "9"): "UNAVAILABLE", (LINE, "10"): "READY"}
        server.unload(LINE)
        assert httpx.get(f"{server.rest_url}/v2/models/{LINE}/ready").status_code == 404


def _corrupt(folder: Path) -> str:
    graph = folder / "2" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-40])
    return "not a usable graph"


def _missing(folder: Path) -> str:
    (folder / "2" / "model.onnx").unlink()
    return "cannot be read"


def _altered(folder: Path) -> str:
    (folder / "2" / "identity.json").write_text(json.dumps({"sha256": "0" * 64}))
    return "does not match the hash"


def _no_identity(folder: Path) -> str:
    (folder / "2" / "identity.json").write_text("[]")
    return "identity.json"


def _other_inputs(folder: Path) -> str:
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(
        config.replace('"dep_hour" data_type: TYPE_FP32', '"hour" data_type: TYPE_INT64')
    )
    return "['dep_hour', 'hour']"


def _no_config(folder: Path) -> str:
    (folder / "config.pbtxt").write_text("name: {{{")
    return "config.pbtxt"


def _other_name(folder: Path) -> str:
    (folder / "config.pbtxt").write_text('name: "else"')
    return "'else'"


def _lost_version(folder: Path) -> str:
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace("all {}", "specific { versions: [1, 7] }"))
    return "['7']"


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FallbackServer, Path]]:
    repository = tmp_path_factory.mktemp("breakable") / "repository"
    repository.mkdir()
    with fallback_server(repository) as running:
        yield running, repository


@pytest.mark.parametrize(
    "spoil",
    [_corrupt, _missing, _altered, _no_identity, _other_inputs, _no_config, _other_name, _lost_version],
    ids=lambda spoil: spoil.__name__,
)
def test_a_broken_model_is_refused_and_the_old_version_serves(
    breakable: tuple[FallbackServer, Path], spoil: Callable[[Path], str]
) -> None:
    server, repository = breakable
    line = f"line{spoil.__name__}"
    write_version(repository, line, "1", small_graph(BIAS["1"]))
    server.load(line)
    write_version(repository, line, "2", small_graph(BIAS["2"]))
    said = spoil(repository / line)
    with pytest.raises(grpc.RpcError) as refused:
        server.load(line)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert said in refused.value.details()
    answer = _ask(server, f"/v2/models/{line}/infer")
    assert answer["model_version"] == "1"
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected(BIAS["1"], ROWS), atol=1e-5)
    assert server.index()[line, "1"] == "READY"


def test_a_broken_model_at_the_start_is_an_error_that_names_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_version(repository, LINE, "1", b"no graph")
    with pytest.raises(AssertionError, match="not a usable graph"), fallback_server(repository, "--load-model", LINE):
        pass


def test_sigterm_answers_what_was_taken(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_version(repository, LINE, "1", small_graph(BIAS["1"]))
    with fallback_server(repository, "--load-model", LINE) as server:
        url = urlsplit(server.rest_url)
        body = json.dumps(_body()).encode()
        with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as connection:
            head = f"POST /v2/models/{LINE}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:20])
            _ask(server, f"/v2/models/{LINE}/infer")  # the first half has been read by the time that this is answered
            server.process.send_signal(signal.SIGTERM)
            _wait_until_closed(url.port or 0)
            connection.sendall(body[20:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0


def test_more_requests_than_may_wait_are_told_to_try_again(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_version(repository, LINE, "1", small_graph(BIAS["1"]))
    with fallback_server(repository, "--load-model", LINE, "--max-waiting", "0") as server:
        response = httpx.post(f"{server.rest_url}/v2/models/{LINE}/infer", json=_body())
        assert response.status_code == 503
        assert "try again" in response.json()["error"]
        assert 'status="503"' in httpx.get(server.metrics_url).text


# --- what the tests ask with


class _Traffic:
    """Four callers that never pause: every answer must be that of the version that gave it."""

    def __init__(self, server: FallbackServer) -> None:
        self.failures: list[str] = []
        self.answered: dict[str, int] = {}
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        self._wanted = {version: expected(bias, ROWS) for version, bias in BIAS.items()}

    def __enter__(self) -> _Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_version(self, version: str) -> None:
        deadline = time.monotonic() + 30
        while self.answered.get(version, 0) < 20:
            assert time.monotonic() < deadline, (version, self.answered, self.failures[:3])
            time.sleep(0.01)

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.rest_url, trust_env=False, timeout=20) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"/v2/models/{LINE}/infer", json=_body()).raise_for_status().json()
                    wanted = self._wanted[answer["model_version"]]
                    np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, atol=1e-5)
                except Exception as error:  # whatever it is, a caller was failed
                    self.failures.append(repr(error))
                else:
                    version = answer["model_version"]
                    self.answered[version] = self.answered.get(version, 0) + 1


def _body() -> dict[str, Any]:
    return {
        "inputs": [
            {"name": c.name, "datatype": c.datatype, "shape": [len(c.values), 1], "data": list(c.values)}
            for c in COLUMNS
        ]
    }


def _ask(server: FallbackServer, path: str) -> Any:
    return httpx.post(f"{server.rest_url}{path}", json=_body(), trust_env=False).raise_for_status().json()


def _wait_until_closed(port: int) -> None:
    """Wait until nobody listens any more: the server is stopping."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("the server still listens")
