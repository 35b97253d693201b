"""The fallback server as a process of its own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from tests.serving.conformance import Column, Endpoint
from tests.serving.small_model import FLOATS, STRINGS, expected
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from aifactory.settings import REPOSITORY
from plant.ports import free_ports

ROWS: dict[str, Any] = {
    "carrier": ["AA", "UA", "B6"],
    "origin": ["JFK", "LGA", "EWR"],
    "distance": [100.0, 2475.0, 1.5],
    "dep_hour": [9.0, 23.0, 0.0],
}
COLUMNS = tuple(Column(name, "BYTES" if name in STRINGS else "FP32", tuple(ROWS[name])) for name in (*STRINGS, *FLOATS))
MAX_ROWS, MAX_BYTES = 500, 1 << 20


@dataclass
class FallbackServer:
    """A running server."""

    process: subprocess.Popen[bytes]
    rest_url: str
    grpc_target: str
    metrics_url: str
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def endpoint(self, line: str, version: str, bias: float) -> Endpoint:
        """What the suite asks, of the small graph with a bias."""
        scores = tuple(expected(bias, ROWS))
        return Endpoint(
            self.rest_url, self.grpc_target, line, version, COLUMNS, scores, max_rows=MAX_ROWS, max_bytes=MAX_BYTES
        )

    def load(self, line: str) -> None:
        """Ask for a load; raises grpc.RpcError where it is refused."""
        with grpc.insecure_channel(self.grpc_target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=line), timeout=30)

    def unload(self, line: str) -> None:
        """Ask for an unload."""
        with grpc.insecure_channel(self.grpc_target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=line), timeout=30)

    def index(self) -> dict[tuple[str, str], str]:
        """State of every version."""
        with grpc.insecure_channel(self.grpc_target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            found = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=30)
        return {(m.name, m.version): m.state for m in found.models}


@contextmanager
def fallback_server(repository: Path, *options: str) -> Iterator[FallbackServer]:
    """Start a server over a repository, and end it with SIGTERM; it must end well."""
    http, rpc, metrics = free_ports(3)
    log = repository.parent / "server.log"
    command = [sys.executable, "-m", "aifactory.serving.server", "--repository", str(repository)]
    command += ["--http-port", str(http), "--grpc-port", str(rpc), "--metrics-port", str(metrics)]
    command += ["--max-rows", str(MAX_ROWS), "--max-bytes", str(MAX_BYTES), *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(REPOSITORY / "include")}, stdout=output, stderr=output
        )
    server = FallbackServer(
        process, f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}", f"http://127.0.0.1:{metrics}/metrics", log
    )
    try:
        _wait_ready(server)
        yield server
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == (-signal.SIGKILL if server.killed else 0), log.read_text()[-2000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_ready(server: FallbackServer) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{server.rest_url}/v2/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        assert time.monotonic() < deadline, "the server is not ready after 60 s"
        time.sleep(0.05)
