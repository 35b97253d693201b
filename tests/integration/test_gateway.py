"""The gateway: the real Envoy before two small servers that say who they are."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from aifactory.serving.gateway import Gateway, Limits, LineRoute, Ports, write_files
from aifactory.serving.routing import Routing
from plant import gateway, serving
from plant.stores import temporary_settings

pytestmark = pytest.mark.integration

SERVICE = "/inference.GRPCInferenceService/"
STUB = Path(__file__).parents[1] / "upstream.py"


def message(name: str, version: str = "", rest: bytes = b"") -> bytes:
    """A ModelInferRequest that names its model."""
    return b"".join(_field(n, text.encode()) for n, text in ((1, name), (2, version)) if text) + rest


def _field(number: int, value: bytes) -> bytes:
    size, head = len(value), bytes([number * 8 + 2])
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + value


class Rig:
    """Two servers and the gateway, all in processes of their own."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = temporary_settings(home).model_copy(update=settings)
        self.slots = serving.slots_of(self.settings)
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.generation = 0
        self.log = home / "gateway.log"
        for slot in "ab":
            self.start(slot)
        self.admin = gateway.admin(self.settings)
        self.url = f"http://127.0.0.1:{self.settings.serving_port}"
        self.start_gateway()
        self.connect()

    def start_gateway(self) -> None:
        """As the plant does, by the settings as they are."""
        command = gateway.prepare(self.settings, serving.gateway_of(self.settings)).command
        with self.log.open("ab") as log:
            self.envoy = subprocess.Popen(command, stdout=log, stderr=log)
        wait(self.admin.ready)

    def connect(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=20)
        self.channel = self.new_channel()

    def new_channel(self) -> grpc.Channel:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(f"127.0.0.1:{self.settings.serving_port}", options)

    def start(self, slot: str) -> None:
        own: Ports = getattr(self.slots, slot)
        self.servers[slot] = subprocess.Popen([sys.executable, str(STUB), slot, str(own.http), str(own.grpc)])

    def kill(self, slot: str) -> None:
        self.servers[slot].kill()
        self.servers[slot].wait()

    def write(self, *lines: LineRoute, limits: Limits | None = None, keys: dict[str, str] | None = None) -> None:
        self.generation += 1
        asked = Gateway(self.settings.serving_port, self.slots, lines, limits or Limits(), keys or {})
        write_files(gateway.folder(self.settings), asked, self.generation)

    def apply(self, *lines: LineRoute, **more: Any) -> None:
        self.write(*lines, **more)
        wait(lambda: self.admin.live(self.generation))
        self.http.close()
        self.channel.close()
        self.connect()
        for route, slot in itertools.product(lines, "ab"):
            wait(lambda line=route.line, slot=slot: self.admin.read()[line, slot].healthy)

    def rest(self, line: str = "alpha", content: Any = b"{}", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"/v2/models/{line}/infer", content=content, headers=named)

    def grpc(self, body: bytes, method: str = "ModelInfer", path: str = SERVICE, **headers: str) -> tuple[str, str]:
        """Slot that answered and its own words, or status and message."""
        metadata = [(name.replace("_", "-"), value) for name, value in headers.items()]
        try:
            answer, call = self.channel.unary_unary(path + method).with_call(body, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return dict(call.initial_metadata())["x-slot"], answer.decode()

    def seen(self) -> dict[str, Counter[str]]:
        return {
            slot: Counter(self.http.get(f"http://127.0.0.1:{getattr(self.slots, slot).http}/seen").json())
            for slot in "ab"
        }

    def stop(self) -> None:
        self.http.close()
        self.channel.close()
        for process in (self.envoy, *self.servers.values()):
            process.kill()
            process.wait()


def wait(until: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if until():
                return
        except (httpx.HTTPError, KeyError):
            pass
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("gateway"))
    try:
        yield made
        assert made.envoy.poll() is None, "Envoy has lived through all of it"
    finally:
        made.stop()


@contextmanager
def load(rig: Rig, threads: int = 3, line: str = "alpha") -> Iterator[Counter[str]]:
    """REST and gRPC requests without a pause; counts `slot` or `error` of each."""
    results: Counter[str] = Counter()
    lock, over = threading.Lock(), threading.Event()

    def work(number: int) -> None:
        client, channel = httpx.Client(base_url=rig.url, timeout=20), rig.new_channel()
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        while not over.is_set():
            try:
                if number % 2:
                    answer = client.post(f"/v2/models/{line}/infer", content=b"{}")
                    result = (
                        answer.headers["x-slot"] if answer.is_success else f"error {answer.status_code} {answer.text}"
                    )
                else:
                    result = json.loads(infer(message(line), timeout=20))["slot"]
            except grpc.RpcError as error:
                result = f"error {error.code().name} {error.details()}"
            except httpx.HTTPError as error:
                result = f"error {error!r}"
            with lock:
                results[result] += 1
        client.close()
        channel.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield results
    finally:
        over.set()
        for worker in workers:
            worker.join()


def _failed(results: Counter[str]) -> dict[str, int]:
    return {result: count for result, count in results.items() if result.startswith("error")}


# --- the allow-list


FORBIDDEN = [
    "/v2/repository/index", "/v2/repository/models/alpha/load", "/v2/repository/models/alpha/unload",
    "/v2/models/alpha/stats", "/v2/models/stats", "/v2/models/alpha/versions/1/stats",
    "/v2/models/alpha/trace/setting", "/v2/trace/setting", "/v2/logging",
    "/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/x/register",
    "/v2/systemsharedmemory/region/x/unregister", "/v2/systemsharedmemory/unregister",
    "/v2/cudasharedmemory/status", "/v2/cudasharedmemory/region/x/register", "/v2/cudasharedmemory/unregister",
    "/v2/models/alpha/config", "/v2/models/alpha/versions/1/config", "/v2/models/alpha/generate",
    "/v2/models/alpha/generate_stream", "/v2/models/alpha/infer/x", "/v2/models/other/infer", "/v2/models/other",
    "/v2/models/alpha/versions/x/infer", "/metrics", "/", "/seen", "/v2/health", "/v1/models/alpha:predict",
    "/v2/models/alpha/../../repository/index", "/v2//repository/index", "/v2/models/alpha%2finfer",
    "/v2/health/live/../../repository/index", "/V2/models/alpha/infer",
]  # fmt: skip


def test_what_is_not_allowed_never_reaches_a_server(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    before = rig.seen()
    for path, method in itertools.product(FORBIDDEN, ("GET", "POST")):
        request = rig.http.build_request(method, httpx.URL(rig.url).copy_with(raw_path=path.encode()))
        answer = rig.http.send(request)
        assert answer.status_code in (400, 404), path
        assert "error" in answer.json(), path
    methods = [
        "ServerStatistics", "ModelStatistics", "ModelConfig", "TraceSetting", "LogSettings", "ModelInfer?x",
        "modelinfer", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    ]  # fmt: skip
    for method in methods:
        assert rig.grpc(message("alpha"), method)[0] == "UNIMPLEMENTED", method
    assert rig.grpc(message("alpha"), "ServerLive", "/inference.Other/")[0] == "UNIMPLEMENTED"
    assert rig.grpc(message("alpha"), "Check", "/grpc.health.v1.Health/")[0] == "UNIMPLEMENTED"
    assert rig.grpc(message("other")) == ("NOT_FOUND", "there is no such model: other")
    assert rig.grpc(message("other"), x_line="alpha")[0] == "NOT_FOUND", "the body says it, not the caller's header"
    assert rig.seen() == before


def test_what_is_allowed(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "b"), LineRoute("beta", "a"))
    model = "/v2/models/alpha"
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready", f"{model}/versions/3/ready"):
        assert rig.http.get(path).status_code == 200, path
    for path in (f"{model}/infer", f"{model}/versions/3/infer"):
        answer = rig.http.post(path, content=b"{}")
        assert (answer.json()["slot"], answer.headers["x-slot"], answer.json()["path"]) == ("b", "b", path)
    for method in ("ServerLive", "ServerReady", "ServerMetadata"):
        assert rig.grpc(b"", method)[0] == "a", method
    for method in ("ModelReady", "ModelMetadata", "ModelInfer"):
        assert rig.grpc(message("alpha"), method)[0] == "b", method
        assert rig.grpc(message("beta", "3"), method)[0] == "a", method
    stream = rig.channel.stream_stream(SERVICE + "ModelStreamInfer")
    answers = [
        json.loads(each)["slot"] for each in stream(iter([b"x"] * 3), metadata=[("x-line", "alpha")], timeout=20)
    ]
    assert answers == ["b"] * 3
    with pytest.raises(grpc.RpcError, match="a stream says by the metadata x-line"):
        list(stream(iter([message("alpha")]), timeout=20))


def test_requests_have_an_id_that_comes_back(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    own, given = rig.rest(), rig.rest(x_request_id="mine-1")
    assert own.headers["x-request-id"] == own.json()["headers"]["x-request-id"] != ""
    assert given.headers["x-request-id"] == given.json()["headers"]["x-request-id"] == "mine-1"


# --- champion, challenger, shadow


def test_shares(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a", 50), LineRoute("beta", "b", 0), LineRoute("gamma", "b", 100))
    got = Counter(rig.rest().json()["slot"] for _ in range(300))
    got.update(rig.grpc(message("alpha"))[0] for _ in range(300))
    assert 225 <= got["a"] <= 375, "half of 600, within six standard deviations"
    assert {rig.rest("beta").json()["slot"] for _ in range(100)} == {"b"}
    assert {rig.grpc(message("gamma"))[0] for _ in range(100)} == {"a"}
    assert rig.rest("alpha", b"{}").status_code == 200


def test_an_entity_stays_where_it_is_while_the_share_grows(rig: Rig) -> None:
    entities = [f"tail-{number}" for number in range(200)]
    challenged: set[str] = set()
    for percent, low, high in ((20, 10, 80), (60, 80, 160)):
        rig.apply(LineRoute("alpha", "a", percent))
        rest = {entity for entity in entities if rig.rest(x_entity_id=entity).json()["slot"] == "b"}
        assert rest == {entity for entity in entities if rig.grpc(message("alpha"), x_entity_id=entity)[0] == "b"}
        assert low <= len(rest) <= high, "the hash is the same in every run"
        assert challenged <= rest
        challenged = rest


def test_a_shadow_gets_a_marked_copy_of_every_request(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a", 0, 100))
    before, before_reading = rig.seen(), rig.admin.read()
    for _ in range(20):
        assert "x-shadow" not in rig.rest(x_shadow="1").json()["headers"], "no caller may pass for a copy"
        assert rig.grpc(message("alpha"), x_fail_b="1")[0] == "a", "what the shadow does is nobody's trouble"
    wait(lambda: rig.seen()["b"]["shadow"] - before["b"]["shadow"] == 40)
    after = rig.seen()
    assert after["a"] - before["a"] == Counter(live=40)
    assert after["b"]["live"] == before["b"]["live"]
    window = rig.admin.read()["alpha", "b"].since(before_reading["alpha", "b"])
    assert (window.mirrored, window.mirrored_errors, window.answered, window.attempts) == (40, 20, 0, 0)


# --- limits


def test_large_requests(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"), limits=Limits(max_request_bytes=100_000))
    before = rig.seen()
    for content in (b" " * 100_001, iter([b" " * 10_000] * 11)):
        answer = rig.rest(content=content)
        assert (answer.status_code, answer.json()) == (413, {"error": "the request is larger than 100000 bytes"})
    assert rig.grpc(message("alpha", rest=_field(7, b"x" * 100_001)))[0] == "RESOURCE_EXHAUSTED"
    assert rig.seen() == before
    stream = rig.channel.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError):  # reset, or RESOURCE_EXHAUSTED where no answer has begun
        list(stream(iter([b"x" * 60_000] * 2), metadata=[("x-line", "alpha")], timeout=20))
    assert rig.rest(content=iter([b" " * 10_000] * 9)).json()["headers"]["content-length"] == "90000"
    assert rig.grpc(message("alpha", rest=_field(7, b"x" * 90_000)))[0] == "a"
    assert rig.http.get("/v2", headers={"x-long": "x" * 20_000}).status_code == 431


def test_too_many_requests(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"), limits=Limits(requests_per_s=1, burst=5))
    answers = [rig.rest() for _ in range(30)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 20 <= len(refused) <= 25
    assert refused[0].json() == {"error": "more than 1 requests a second; try again later"}
    assert "RESOURCE_EXHAUSTED" in {rig.grpc(message("alpha"))[0] for _ in range(10)}


def test_a_slow_server_is_not_waited_for(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a", 100), LineRoute("beta", "b"), limits=Limits(timeout_s=1, try_timeout_s=0.3))
    assert rig.rest(x_sleep_b="5").headers["x-slot"] == "a", "where another may answer, it does"
    answer = rig.rest("beta", x_sleep_b="5")
    assert (answer.status_code, answer.json()) == (504, {"error": "no answer within 1 s"})
    assert rig.grpc(message("beta"), x_sleep_b="5")[0] == "DEADLINE_EXCEEDED"
    assert rig.rest("beta", x_sleep_b="0.6", x_envoy_upstream_rq_timeout_ms="9000").status_code == 504


def test_keys(rig: Rig) -> None:
    key = "a-key-that-nobody-guesses"
    rig.apply(LineRoute("alpha", "a"), keys={"planner": key})
    for wrong in ({}, {"x_api_key": "guess"}, {"authorization": "Bearer guess"}):
        answer = rig.rest(**wrong)
        assert answer.status_code == 401
        assert answer.json() == {"error": "a valid API key is needed, as x-api-key or as a bearer token"}
        assert rig.grpc(message("alpha"), **wrong)[0] == "UNAUTHENTICATED"
    for right in ({"x_api_key": key}, {"authorization": f"Bearer {key}"}):
        answer = rig.rest(**right)
        assert answer.json()["headers"]["x-client"] == "planner"
        assert key not in answer.text, "servers need not know it"
        assert rig.grpc(message("alpha"), **right)[0] == "a"
    assert rig.http.get("/v2/health/ready").status_code == 200
    assert rig.http.get("/v2").status_code == 401
    assert rig.grpc(b"", "ServerReady")[0] == "a"
    assert key not in rig.admin._ask("/config_dump").text
    assert key not in rig.log.read_text()


def test_settings_reach_the_gateway(tmp_path: Path) -> None:
    key, path = "a-key-that-nobody-guesses", tmp_path / "clients.keys"
    path.write_text(f"# who may ask\nplanner={key}\n")
    path.chmod(0o600)
    own = Rig(tmp_path / "home")
    try:
        own.apply(LineRoute("alpha", "a"))
        assert own.rest().status_code == 200, "without a file no key is asked"
        own.envoy.kill()
        own.envoy.wait()
        limits = {"serving_keys_file": path, "serving_requests_per_s": 40, "serving_max_request_mb": 0.1}
        own.settings = own.settings.model_copy(update=limits)
        own.start_gateway()
        own.connect()
        for wrong in ({}, {"x_api_key": "a-key-of-nobody-at-all"}):
            wait(lambda wrong=wrong: own.rest(**wrong).status_code == 401)  # before the controller's first turn
        routing = Routing(serving.gateway_of(own.settings), gateway.folder(own.settings), own.admin)
        assert routing.ensure((LineRoute("alpha", "a"),))
        for wrong in ({}, {"x_api_key": "a-key-of-nobody-at-all"}):
            answer = own.rest(**wrong)
            assert (answer.status_code, "x-api-key" in answer.json()["error"]) == (401, True)
            status, words = own.grpc(message("alpha"), **wrong)
            assert (status, "x-api-key" in words) == ("UNAUTHENTICATED", True)
        assert own.rest(x_api_key=key).json()["headers"]["x-client"] == "planner"
        assert own.grpc(message("alpha"), x_api_key=key)[0] == "a"
        large = own.rest(content=b" " * 100_001, x_api_key=key)
        assert (large.status_code, large.json()) == (413, {"error": "the request is larger than 100000 bytes"})
        assert own.grpc(message("alpha", rest=_field(7, b"x" * 100_001)), x_api_key=key)[0] == "RESOURCE_EXHAUSTED"
        assert own.rest(content=b" " * 99_999, x_api_key=key).status_code == 200
        answers = (own.rest(x_api_key=key) for _ in range(2000))
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json() == {"error": "more than 40 requests a second; try again later"}
        assert key not in own.log.read_text()
        assert key.encode() not in Path(f"/proc/{own.envoy.pid}/cmdline").read_bytes()
        assert key.encode() not in Path(f"/proc/{own.envoy.pid}/environ").read_bytes()
        files = gateway.folder(own.settings).iterdir()
        assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
    finally:
        own.stop()


# --- bodies that would hurt


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"inputs":[{"name":"X","shape":[1000000000000,3],"datatype":"FP32","data":[1]}]}', "Unable to parse 'shape'"),
        ('{"inputs":[{"shape" \n:\t[ 99 ,\n 99 ]}]}', "Unable to parse 'shape'"),
        ('{"inputs":[{"shape":[20]},{"shape":[20]},{"shape":[20]}]}', "Unable to parse 'shape'"),
        ('{"x":"a\\"","shape":[99,99]}', "Unable to parse 'shape'"),
        (f'{{"shape":[1{"0" * 400}]}}', "Unable to parse 'shape'"),
        ('{"sh\\u0061pe":[99,99]}', "escape sequence"),
        ("[" * 33 + "]" * 33, "nested deeper than 32"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested deeper than 32"),
    ],
)
def test_a_body_that_would_end_a_server_is_refused(rig: Rig, body: str, says: str) -> None:
    rig.apply(LineRoute("alpha", "a"))
    before = rig.seen()
    for path in ("infer", "versions/1/infer", "infer?x=1"):
        answer = rig.http.post(f"/v2/models/alpha/{path}", content=body)
        assert answer.status_code == 400
        assert says in answer.json()["error"]
    assert rig.seen() == before


def test_what_hides_a_body_is_refused(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    before, harm = rig.seen(), b'{"shape":[99,99]}'
    assert rig.rest(content=gzip.compress(harm), content_encoding="gzip").status_code == 415
    for told in ("99", "-1", "x", "0x1", "1e1", ""):
        assert rig.rest(content=harm, inference_header_content_length=told).status_code == 400, told
    several = [("inference-header-content-length", "0"), ("inference-header-content-length", "17")]
    assert rig.http.post("/v2/models/alpha/infer", content=harm, headers=several).status_code == 400
    assert rig.seen() == before
    assert rig.rest(content=b'{"shape":[1]}' + harm, inference_header_content_length="13").status_code == 200


def test_ordinary_bodies_pass(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    odd = 'a "quoted" \\ [[[[ {"shape":[99,99]} \u2708 \n'
    inputs = [
        {"name": "X", "shape": [3, 2], "datatype": "FP32", "data": [[1, 2], [3, 4], [5, 6.5e3]]},
        {"name": "S", "shape": [2, 1], "datatype": "BYTES", "data": [odd, ""]},
        {"name": "none", "shape": [0, 3], "datatype": "FP32", "data": []},
    ]
    body = {"id": odd, "inputs": inputs, "parameters": {"units": json.dumps({"shape": odd})}}
    for text in (json.dumps(body), json.dumps(body, indent=3, ensure_ascii=False), "", "{", '"', '{"a', "\\"):
        assert rig.rest(content=text.encode()).status_code == 200, text


def test_malformed_grpc(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    before, chance = rig.seen(), random.Random(7)
    bodies = [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x00\x00",
        b"\x08\x01",
        b"\x0b\x0c",
        b"\x0a\x05ab",
    ]
    bodies += [
        message("alpha") + b"\x3a\x7f",
        message("al\npha"),
        message("alpha", "one"),
        message("al pha"),
        b"\x12\x01" + b"1",
    ]
    bodies += [b"\x0a\xfe" + chance.randbytes(chance.randrange(1, 90)) for _ in range(100)]
    bodies += [message("alpha") + b"\x40\x01" * 10_001]
    for body in bodies:
        assert rig.grpc(body)[0] in ("INVALID_ARGUMENT", "NOT_FOUND"), body
    metadata, gzipped = [("x-line", "alpha")], grpc.Compression.Gzip
    with pytest.raises(grpc.RpcError, match="compressed messages are not taken here"):
        rig.channel.unary_unary(SERVICE + "ModelInfer")(message("alpha") * 99, metadata=metadata, compression=gzipped)
    assert rig.seen() == before
    assert rig.grpc(message("other") + message("alpha"))[0] == "a", "of two names the last counts, as in protobuf"
    assert rig.grpc(b"\x2a\x02\x08\x01\x40\x07\x49" + b"8" * 8 + b"\x55" + b"4" * 4 + message("alpha"))[0] == "a"


@pytest.mark.parametrize(
    "said",
    ["failed to parse the request JSON buffer: Invalid value. at 3", "Unable to parse 'data': Shape does not match"],
)
def test_a_callers_mistake_is_no_error_of_the_server(rig: Rig, said: str) -> None:
    rig.apply(LineRoute("alpha", "a", 100))
    before = rig.admin.read()
    answer = rig.rest(x_fail_a="500", x_fail_b="500", x_error=said)
    assert (answer.status_code, answer.json()) == (400, {"error": said})
    window = rig.admin.read()["alpha", "b"].since(before["alpha", "b"])
    assert (window.answered, window.client_errors, window.server_errors, window.attempts) == (1, 1, 0, 1)
    assert rig.rest(x_fail_a="500", x_fail_b="500", x_error="out of memory").status_code == 500
    status, words = rig.grpc(message("alpha"), x_fail_a="1", x_fail_b="1", x_error="Unable to parse request")
    assert (status, words) == ("INVALID_ARGUMENT", "Unable to parse request")


@pytest.mark.parametrize(
    "said",
    ["Request for unknown model: 'alpha' is not found", "model 'alpha' is not found: it is unknown or not loaded"],
)
def test_a_server_that_has_come_back_empty_fails_no_request(rig: Rig, said: str) -> None:
    rig.apply(LineRoute("alpha", "a", 100))
    before = rig.admin.read()
    answer = rig.rest(x_fail_b="404", x_error=said)
    assert (answer.status_code, answer.headers["x-slot"]) == (200, "a")
    assert rig.grpc(message("alpha"), x_fail_b="404", x_error=said)[0] == "a"
    window = rig.admin.read()["alpha", "b"].since(before["alpha", "b"])
    assert (window.answered, window.client_errors, window.failed_attempts) == (2, 0, 2), "it counts against the slot"
    rig.apply(LineRoute("alpha", "a"))
    assert rig.rest(x_fail_a="404", x_error=said).status_code == 503, "no other slot may answer"
    assert rig.grpc(message("alpha"), x_fail_a="404", x_error=said) == ("UNAVAILABLE", said)
    of_version = "version '9' of model 'alpha' is not found; loaded are ['1']"
    assert rig.rest(x_fail_a="404", x_error=of_version).status_code == 404, "that is its caller's mistake"
    assert rig.grpc(message("alpha"), x_fail_a="404", x_error=of_version) == ("NOT_FOUND", of_version)


# --- what is seen


def test_readings_are_what_was_sent(rig: Rig) -> None:
    rig.apply(LineRoute("gamma", "a", 0), LineRoute("delta", "b", 100))
    before = rig.admin.read()  # of lines that no test before has asked: latencies follow later than counts
    for _ in range(7):
        rig.rest("gamma")
        rig.grpc(message("gamma"))
        rig.http.get("/v2/models/gamma")
        rig.rest("delta", x_fail_a="500")
        rig.grpc(message("delta"), x_fail_a="1")
    for _ in range(3):
        rig.rest("gamma", x_fail_a="500")
        rig.rest("gamma", x_fail_a="422")
        rig.grpc(message("gamma"), x_fail_a="1")
    rig.rest("gamma", x_sleep_a="0.3")
    wait(lambda: rig.admin.read()["gamma", "a"].since(before["gamma", "a"]).latency.total == 24)
    wait(lambda: rig.admin.read()["delta", "a"].since(before["delta", "a"]).latency.total == 14)
    after = {key: value.since(before[key]) for key, value in rig.admin.read().items()}
    champion, challenger = after["gamma", "a"], after["delta", "a"]
    assert (champion.answered, champion.client_errors, champion.server_errors) == (24, 3, 6)
    assert (champion.attempts, champion.failed_attempts) == (31 + 12, 18), "a failed one is tried twice more"
    assert (challenger.answered, challenger.server_errors, challenger.failed_attempts) == (14, 0, 14)
    assert (after["delta", "b"].answered, after["delta", "b"].attempts) == (0, 14), "who failed is seen, who helped too"
    slow = champion.latency.counts[champion.latency.bounds_ms.index(250)]
    assert slow < champion.latency.counts[-1] == 24
    assert rig.admin.read()["gamma", "a"].in_flight == 0
    with load(rig, line="gamma") as _:
        wait(lambda: rig.admin.read()["gamma", "a"].in_flight > 0)


def test_a_file_that_is_wrong_changes_nothing(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    refused, generation = rig.admin.rejected(), rig.generation
    path = gateway.folder(rig.settings) / "routes.json"
    wrong = path.with_name("wrong.json")
    wrong.write_text(path.read_text().replace('"safe_regex"', '"unsafe_regex"'))
    wrong.replace(path)
    wait(lambda: rig.admin.rejected() == refused + 1)
    assert rig.admin.live(generation)
    assert rig.rest().status_code == 200


def test_only_its_owner_may_ask_the_admin_interface(rig: Rig) -> None:
    assert rig.admin.socket.stat().st_mode & 0o777 == 0o600
    assert rig.admin.socket.parent.stat().st_mode & 0o777 == 0o700


# --- nothing is lost


def test_changes_of_shares_and_champions_under_load_lose_nothing(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"))
    with load(rig) as results:
        for number in range(12):
            rig.write(LineRoute("alpha", "ab"[number % 2], number * 8), LineRoute(f"other{number}", "a"))
            wait(lambda: rig.admin.live(rig.generation))
    assert not _failed(results)
    assert min(results["a"], results["b"]) > 50


def test_a_killed_challenger_loses_nothing(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a", 50))
    with load(rig) as results:
        wait(lambda: results["b"] > 100)
        rig.kill("b")
        count = results["a"]
        wait(lambda: results["a"] > count + 300)
        wait(lambda: not rig.admin.read()["alpha", "b"].healthy)
        rig.start("b")
        count = results["b"]
        wait(lambda: results["b"] > count + 100)
    assert not _failed(results)


def test_a_killed_champion_loses_nothing_where_the_other_may_answer(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a", fallback=True))
    with load(rig) as results:
        wait(lambda: results["a"] > 100)
        rig.kill("a")
        wait(lambda: results["b"] > 300)
        rig.start("a")
        count = results["a"]
        wait(lambda: results["a"] > count + 100)
    assert not _failed(results)


def test_a_champion_that_seems_unready_is_asked_all_the_same_where_no_other_may_answer(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"), LineRoute("beta", "a", fallback=True))
    say = f"http://127.0.0.1:{rig.slots.a.http}/say"
    try:
        rig.http.get(f"{say}/503")
        wait(lambda: not any(rig.admin.read()[line, "a"].healthy for line in ("alpha", "beta")))
        assert rig.rest().json()["slot"] == "a", "who is only slow to say so is no reason to refuse a caller"
        assert rig.grpc(message("alpha"))[0] == "a"
        assert rig.rest("beta").json()["slot"] == rig.grpc(message("beta"))[0] == "b"
    finally:
        rig.http.get(f"{say}/200")
    wait(lambda: rig.rest("beta").json()["slot"] == "a")


def test_a_killed_champion_is_said_clearly_where_no_other_may_answer(rig: Rig) -> None:
    rig.apply(LineRoute("alpha", "a"), LineRoute("beta", "b"))
    rig.kill("a")
    wait(lambda: rig.rest().status_code == 503)
    assert rig.rest().json()["error"].startswith("no server can answer for this model at the moment; try again later")
    status, words = rig.grpc(message("alpha"))
    assert status == "UNAVAILABLE"
    assert words.startswith("no server can answer")
    assert rig.rest("beta").json()["slot"] == "b"
    assert rig.http.get("/v2/health/ready").headers["x-slot"] == "b"
    rig.start("a")
    wait(lambda: rig.rest().is_success and rig.grpc(message("alpha"))[0] == "a")


def test_what_is_being_answered_is_answered_before_the_end(tmp_path: Path) -> None:
    own = Rig(tmp_path)
    try:
        own.apply(LineRoute("alpha", "a"))
        got: list[httpx.Response] = []
        slow = threading.Thread(target=lambda: got.append(own.rest(x_sleep_a="1.0")))
        slow.start()
        wait(lambda: own.admin.read()["alpha", "a"].in_flight == 1)
        own.channel.close()
        gateway.drain(own.settings)
        own.envoy.terminate()
        assert own.envoy.wait(10) == 0
        slow.join()
        assert got[0].status_code == 200
        gateway.drain(own.settings)
        assert not gateway.answers(own.settings)
        assert os.access(gateway.folder(own.settings), os.R_OK)
    finally:
        own.stop()
