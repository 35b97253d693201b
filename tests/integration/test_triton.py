"""The real Triton with real packages: versions beside each other, refusals, deaths, loads under traffic."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
from tests.served import trained
from tritonclient.utils import InferenceServerException

import plant
from aifactory.errors import InfrastructureFault, PackageDefect
from aifactory.packaging import MODEL_FILE, TOLERANCE, golden_table
from aifactory.packaging import feeds as feeds_of
from aifactory.reasons import ReasonCode
from aifactory.serving import predictionlog
from aifactory.serving.repository import ModelRepository
from aifactory.serving.slot import Slot
from aifactory.settings import Settings
from plant import processes, slots, triton
from plant.ports import internal
from plant.supervision import Supervisor

pytestmark = pytest.mark.integration

LINE = "small_line"

log = logging.getLogger(__name__)


def package(until: str = "2013-01-10") -> tuple[dict[str, Any], bytes]:
    """A really trained model: manifest and graph."""
    onnx, manifest = trained("2013-01-01", until)
    return manifest | {"files": {MODEL_FILE: {"sha256": hashlib.sha256(onnx).hexdigest(), "size": len(onnx)}}}, onnx


def golden_feeds(manifest: dict[str, Any]) -> dict[str, Any]:
    features = manifest["features"]
    table = golden_table(manifest["golden"]["inputs"], features["categorical"], features["numeric"])
    return feeds_of(table, features["categorical"], features["numeric"])


def tensors(feeds: dict[str, Any]) -> list[Any]:
    kinds = {np.dtype(object): "BYTES", np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64"}
    return [grpc.InferInput(name, list(a.shape), kinds[a.dtype]).set_data_from_numpy(a) for name, a in feeds.items()]


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


class Servers:
    """Both slots of a plant that has nothing else."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings = settings
        self.supervisor = supervisor
        self.repositories = {slot: ModelRepository(slots.repository_folder(settings, slot)) for slot in slots.SLOTS}
        self.slots = {slot: Slot(slot, slots.grpc_address(settings, slot)) for slot in slots.SLOTS}

    def pid(self, slot: str) -> int:
        return int(self.supervisor.state(slots.name(slot))["pid"])

    def start(self, slot: str) -> None:
        self.supervisor.start_program(slots.name(slot))
        self.supervisor.wait_healthy(slots.name(slot), lambda: slots.answers(self.settings, slot), 60)


@pytest.fixture(scope="module")
def servers(environments: None) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True) as folder:
        settings = plant.temporary_settings(Path(folder) / "home")
        triton.install(settings)
        supervisor = Supervisor(settings.home)
        try:
            supervisor.start(triton.prepare(settings), {}, bound=True)
            both = Servers(settings, supervisor)
            for slot in slots.SLOTS:
                both.start(slot)
            yield both
        finally:
            if supervisor.running():
                supervisor.shutdown()
            processes.end_all(settings.home)


@pytest.fixture
def slot(servers: Servers) -> Iterator[Slot]:
    """Slot a, which serves nothing."""
    servers.start("a")
    yield servers.slots["a"]
    servers.start("a")
    for version in servers.repositories["a"].versions(LINE):
        servers.repositories["a"].remove(LINE, version)
    servers.slots["a"].unload(LINE)
    assert servers.slots["a"].loaded() == {}


@pytest.fixture
def repository(servers: Servers) -> ModelRepository:
    return servers.repositories["a"]


@pytest.fixture
def released(slot: Slot, repository: ModelRepository) -> dict[str, Any]:
    """The manifest of the version that slot a serves."""
    manifest, onnx = package()
    repository.write(LINE, "1", manifest, onnx)
    slot.load(LINE)
    return manifest


def test_an_empty_server_is_ready_and_on_loopback_alone(servers: Servers, slot: Slot) -> None:
    assert slot.ready()
    assert slot.loaded() == {}
    pids = {p.pid for name in slots.SLOTS for p in processes.family(servers.pid(name))}
    listening = [c for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    wanted = {
        internal(servers.settings, f"serving_{name}_{kind}") for name in slots.SLOTS
        for kind in ("http", "grpc", "metrics")
    }  # fmt: skip
    assert {c.laddr.port for c in listening} == wanted


def test_golden_rows_through_the_server(slot: Slot, repository: ModelRepository) -> None:
    manifest, onnx = package()
    repository.write(LINE, "1", manifest, onnx)
    assert slot.loaded() == {}
    slot.load(LINE)
    assert slot.loaded() == {LINE: ["1"]}
    slot.check_golden(LINE, "1", manifest)
    wrong = manifest | {"golden": manifest["golden"] | {"outputs": [p + 1e-4 for p in manifest["golden"]["outputs"]]}}
    with pytest.raises(PackageDefect, match=r"small_line version 1 in slot a: the graph is 1\.00e-04 off") as raised:
        slot.check_golden(LINE, "1", wrong)
    assert raised.value.reason == ReasonCode.PACKAGE_MISMATCH


def test_clients_see_the_shapes_of_the_graph(servers: Servers, slot: Slot, repository: ModelRepository) -> None:
    repository.write(LINE, "1", *package())
    slot.load(LINE)
    url = f"http://127.0.0.1:{internal(servers.settings, 'serving_a_http')}/v2/models/{LINE}"
    said = httpx.get(url).json()
    assert {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]} in said["inputs"]
    assert {"name": "hour", "datatype": "FP32", "shape": [-1, 1]} in said["inputs"]
    assert said["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
    config = httpx.get(f"{url}/config").json()
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 0


def test_two_versions_side_by_side_and_one_taken_out(slot: Slot, repository: ModelRepository) -> None:
    first, second = package("2013-01-10"), package("2013-01-20")
    assert first[1] != second[1]
    repository.write(LINE, "1", *first)
    slot.load(LINE)
    repository.write(LINE, "2", *second)
    slot.load(LINE)
    assert slot.loaded() == {LINE: ["1", "2"]}
    slot.check_golden(LINE, "1", first[0])
    slot.check_golden(LINE, "2", second[0])
    repository.remove(LINE, "1")
    slot.load(LINE)
    until(lambda: slot.loaded() == {LINE: ["2"]})
    slot.check_golden(LINE, "2", second[0])
    with pytest.raises(InfrastructureFault, match="version 1 and cannot now"):
        slot.check_golden(LINE, "1", first[0])


@pytest.mark.parametrize("corrupt", ["altered on the disk", "no graph"])
def test_a_corrupt_version_is_refused_and_the_old_one_serves(
    servers: Servers, slot: Slot, repository: ModelRepository, corrupt: str
) -> None:
    manifest, onnx = package()
    repository.write(LINE, "1", manifest, onnx)
    slot.load(LINE)
    junk = onnx[: len(onnx) // 2]
    if corrupt == "no graph":
        sha256 = hashlib.sha256(junk).hexdigest()
        repository.write(LINE, "2", manifest | {"files": {MODEL_FILE: {"sha256": sha256, "size": len(junk)}}}, junk)
    else:
        repository.write(LINE, "2", manifest, onnx)
        (repository.folder / LINE / "2" / MODEL_FILE).write_bytes(junk)
    message = "does not match the hash" if corrupt == "altered on the disk" else "protobuf|INVALID_PROTOBUF"
    with pytest.raises(PackageDefect, match=f"(?s)asked to load small_line and refused.*version 2.*({message})"):
        slot.load(LINE)
    assert slot.loaded() == {LINE: ["1"]}
    slot.check_golden(LINE, "1", manifest)
    assert slots.answers(servers.settings, "a"), "one refused version must not take the slot from the other lines"
    repository.remove(LINE, "2")
    slot.load(LINE)
    assert slot.loaded() == {LINE: ["1"]}


def test_a_line_that_is_not_there(slot: Slot) -> None:
    with pytest.raises(PackageDefect, match="asked to load no_line and refused"):
        slot.load("no_line")
    slot.unload("no_line")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hour": np.ones((3, 1), dtype=np.float32)}, "'hour' has shape [3, 1]"),
        ({"hour": np.ones((8,), dtype=np.float32)}, "unexpected shape for input 'hour'"),
        ({"hour": np.ones((8, 1), dtype=np.float64)}, "input 'hour' data-type is 'FP64'"),
        ({"hour": None}, "missing required input(s) ['hour']"),
        ({"more": np.ones((8, 1), dtype=np.float32)}, "expected 8 inputs but got 9"),
        ({"carrier": np.array([[b"\xff"]] * 8, dtype=object)}, "'carrier', row 0: b'\\xff' is no UTF-8"),
    ],
)
def test_a_wrong_request_fails_alone(
    slot: Slot, released: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    asked = {k: v for k, v in {**golden_feeds(released), **change}.items() if v is not None}
    with (
        grpc.InferenceServerClient(slot.address) as client,
        pytest.raises(InferenceServerException) as raised,
    ):
        client.infer(LINE, tensors(asked))
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in raised.value.message()
    slot.check_golden(LINE, "1", released)


@pytest.mark.parametrize("rows", [1, 5000])
def test_any_number_of_rows(slot: Slot, released: dict[str, Any], rows: int) -> None:
    some = {n: np.resize(a, (rows, 1)) for n, a in golden_feeds(released).items()}
    with grpc.InferenceServerClient(slot.address) as client:
        scores = client.infer(LINE, tensors(some)).as_numpy("probability")
    assert np.allclose(scores, np.resize(released["golden"]["outputs"], rows), atol=TOLERANCE)


def test_no_rows_are_refused(slot: Slot, released: dict[str, Any]) -> None:
    none = {n: a[:0] for n, a in golden_feeds(released).items()}
    with (
        grpc.InferenceServerClient(slot.address) as client,
        pytest.raises(InferenceServerException, match="has no rows") as raised,
    ):
        client.infer(LINE, tensors(none))
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_requests_are_logged_with_who_asked_about_whom(
    servers: Servers, slot: Slot, repository: ModelRepository, released: dict[str, Any]
) -> None:
    asked = golden_feeds(released)
    with grpc.InferenceServerClient(slot.address) as client:
        client.infer(LINE, tensors(asked), request_id="its-own", headers={"x-request-id": "gateway"})
        client.infer(LINE, tensors(asked), headers={"x-request-id": "mirrored", "x-shadow": "1"})
    numbers = {n: a for n, a in asked.items() if a.dtype != object}
    plain = {n: np.nan_to_num(a) if n in numbers else a for n, a in asked.items()}
    body = {
        "parameters": {"units": '{"flight": [1]}'},
        "inputs": [
            {"name": n, "shape": [8, 1], "datatype": "FP32" if n in numbers else "BYTES", "data": a[:, 0].tolist()}
            for n, a in plain.items()
        ],
    }
    url = f"http://127.0.0.1:{internal(servers.settings, 'serving_a_http')}/v2/models/{LINE}/infer"
    assert httpx.post(url, json=body, headers={"X-Request-Id": "by-rest"}).status_code == 200
    slot.unload(LINE)
    repository.remove(LINE, "1")
    spool = servers.settings.home / "spool" / "a"
    newest = max(spool.glob(f"*{predictionlog.SEGMENT}"), key=lambda p: p.stat().st_mtime_ns)
    segment = predictionlog.read_segment(newest)
    assert (segment.identity.line, segment.identity.version, segment.identity.slot) == (LINE, "1", "a")
    assert [(r.request_id, r.shadow, r.units) for r in segment.requests] == [
        ("its-own", False, None),
        ("mirrored", True, None),
        ("by-rest", False, '{"flight": [1]}'),
    ]
    expected = np.asarray(released["golden"]["outputs"])
    assert np.allclose(np.frombuffer(segment.requests[0].scores, np.float32), expected, atol=TOLERANCE)
    logged = np.frombuffer(segment.requests[0].numbers, np.float32).reshape(len(numbers), -1)
    assert np.array_equal(logged, np.stack([a[:, 0] for a in numbers.values()]), equal_nan=True)


def test_a_killed_server_leaves_no_stub_and_comes_back_with_its_models(
    servers: Servers, slot: Slot, released: dict[str, Any]
) -> None:
    before = processes.family(servers.pid("a"))
    segments = triton.shared_memory_prefix(servers.settings, "a") + "*"
    memory = set(Path("/dev/shm").glob(segments))
    assert len(before) == 2
    assert memory
    os.kill(before[0].pid, signal.SIGKILL)
    psutil.wait_procs(before, timeout=5)
    assert not [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    began = time.monotonic()
    until(lambda: servers.pid("a") != before[0].pid and slots.answers(servers.settings, "a"))
    log.info("up again %.2f s after the kill", time.monotonic() - began)
    until(lambda: slot.ready() and slot.loaded() == {LINE: ["1"]})
    slot.check_golden(LINE, "1", released)
    assert servers.pid("a") != before[0].pid
    assert not memory & set(Path("/dev/shm").glob(segments)), "its shared memory is cleared away"


def test_a_model_whose_process_died_is_seen_and_started_anew(
    servers: Servers, slot: Slot, repository: ModelRepository, released: dict[str, Any]
) -> None:
    server, *stubs = processes.family(servers.pid("a"))
    for stub in stubs:
        stub.kill()
    with pytest.raises(InfrastructureFault, match="is not healthy"):
        slot.check_golden(LINE, "1", released)
    repository.renew(LINE)
    slot.load(LINE)
    slot.check_golden(LINE, "1", released)
    assert servers.pid("a") == server.pid


def test_a_stopped_server_leaves_nothing_and_has_logged_all(
    servers: Servers, slot: Slot, released: dict[str, Any]
) -> None:
    before = processes.family(servers.pid("a"))
    slot.check_golden(LINE, "1", released)
    servers.supervisor.stop_programs([slots.name("a")])
    assert servers.supervisor.state(slots.name("a"))["statename"] == "STOPPED"
    assert not [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    newest = max(
        (servers.settings.home / "spool" / "a").glob(f"*{predictionlog.COUNTS}"), key=lambda p: p.stat().st_mtime
    )
    counts = predictionlog.read_counts(newest)
    assert counts.ended
    assert counts.recorded == counts.spooled == len(released["golden"]["outputs"])


def test_a_server_starts_with_what_it_can_load(servers: Servers, slot: Slot, repository: ModelRepository) -> None:
    manifest, onnx = package()
    servers.supervisor.stop_programs([slots.name("a")])
    repository.write(LINE, "1", manifest, onnx)
    repository.write("bad_line", "1", manifest, onnx)
    (repository.folder / "bad_line" / "1" / MODEL_FILE).write_bytes(b"junk")
    servers.start("a")
    assert slot.loaded() == {LINE: ["1"]}
    repository.remove("bad_line", "1")


@contextmanager
def traffic(address: str, feeds: dict[str, Any], expected: list[Any], connections: int = 4) -> Iterator[list[Any]]:
    """One-row requests, each connection some 50 a second; yields seconds of each request, or what was wrong with it."""
    found: list[Any] = []
    stop = threading.Event()
    one = {n: a[:1] for n, a in feeds.items()}

    def ask() -> None:
        with grpc.InferenceServerClient(address) as client:
            while not stop.wait(0.02):
                began = time.perf_counter()
                try:
                    score = client.infer(LINE, tensors(one), client_timeout=10).as_numpy("probability")
                    right = any(abs(float(score[0]) - e) <= TOLERANCE for e in expected)
                    found.append(time.perf_counter() - began if right else score)
                except InferenceServerException as error:
                    found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        yield found
        time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_load_under_traffic_fails_no_request(slot: Slot, repository: ModelRepository) -> None:
    first, second = package("2013-01-10"), package("2013-01-20")
    repository.write(LINE, "1", *first)
    slot.load(LINE)
    expected = [p[0]["golden"]["outputs"][0] for p in (first, second)]
    loads = []
    with traffic(slot.address, golden_feeds(first[0]), expected) as found:
        before = len(found)
        for new, old in (("2", "1"), ("3", "2"), ("4", "3")):
            repository.write(LINE, new, *second)
            began = time.perf_counter()
            slot.load(LINE)
            loads.append(time.perf_counter() - began)
            repository.remove(LINE, old)
            slot.load(LINE)
            time.sleep(0.3)
    failed = [f for f in found if not isinstance(f, float)]
    assert failed == []
    quiet, loud = sorted(found[:before]), sorted(found[before:])
    log.info(
        "%d requests; seconds: median %.4f, worst before %.3f, worst while loading %.3f, loads %s",
        len(found),
        quiet[len(quiet) // 2],
        quiet[-1],
        loud[-1],
        [round(s, 3) for s in loads],
    )
    assert loud[-1] < 2


def test_what_a_server_costs(servers: Servers, slot: Slot, repository: ModelRepository) -> None:
    manifest, onnx = package()
    repository.write(LINE, "1", manifest, onnx)
    servers.supervisor.stop_programs([slots.name("a")])
    began = time.monotonic()
    servers.start("a")
    started_s = time.monotonic() - began
    slot.check_golden(LINE, "1", manifest)
    used = {p.name(): processes.memory_bytes(p) / 1e6 for p in processes.family(servers.pid("a"))}
    log.info("ready with one model after %.2f s; PSS, MB: %s", started_s, used)
    assert sum(used.values()) < 250
