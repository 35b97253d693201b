"""The program: `python -m aifactory.serving.server --repository DIR --http-port N --grpc-port N --metrics-port N`.

Models are loaded and unloaded over gRPC, or named at the start. The repository's control is open to whoever reaches the
gRPC port: bind to loopback, and put a gateway with an allow-list in front. SIGTERM answers what was taken, then ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import uvicorn
import uvloop
from prometheus_client import start_http_server

from aifactory.errors import PackageDefect
from aifactory.serving.backend import open_log
from aifactory.serving.server.answering import Answering, Limits
from aifactory.serving.server.loaded import LoadedModels
from aifactory.serving.server.rest import Rest
from aifactory.serving.server.rpc import Rpc

log = logging.getLogger(__name__)

GRACE_S = 10
_FRAME_BYTES = 1 << 20  # names and lengths of a message, beside its tensors


class _HttpServer(uvicorn.Server):
    """Leaves signals to the program, which has gRPC to end too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(answering: Answering, host: str, http_port: int, grpc_port: int, metrics_port: int) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was taken."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rpc = Rpc(answering)
    options = [
        ("grpc.max_receive_message_length", answering.limits.max_bytes + _FRAME_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    grpc_server = grpc.aio.server(handlers=[rpc.handler()], options=options)
    grpc_server.add_insecure_port(f"{host}:{grpc_port}")
    http_server = _HttpServer(_http_config(answering, host, http_port))
    metrics_server, _thread = start_http_server(metrics_port, host, answering.metrics.registry)
    await grpc_server.start()
    http = asyncio.create_task(http_server.serve())
    log.info("serving %s: HTTP %d, gRPC %d, metrics %d", host, http_port, grpc_port, metrics_port)
    await asyncio.wait([http, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping")
    http_server.should_exit = True
    await asyncio.gather(http, grpc_server.stop(GRACE_S))
    rpc.close()
    answering.close()
    answering.models.close()
    metrics_server.shutdown()


def _http_config(answering: Answering, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        Rest(answering),
        host=host,
        port=port,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a server."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asked = _parser().parse_args(arguments)
    limits = Limits(asked.max_rows, asked.max_bytes, asked.workers, asked.max_waiting, asked.threads)
    models = LoadedModels(asked.repository, limits.max_rows, limits.threads, open_log)
    for line in asked.load_model:
        try:
            models.load(line)
        except PackageDefect as defect:
            raise SystemExit(str(defect)) from defect
    answering = Answering(models, limits)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(answering, asked.host, asked.http_port, asked.grpc_port, asked.metrics_port))


def _parser() -> argparse.ArgumentParser:
    usual = Limits()
    parser = argparse.ArgumentParser(prog="python -m aifactory.serving.server", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="model repository in Triton's layout")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--load-model", action="append", default=[], metavar="LINE", help="loaded at the start")
    parser.add_argument("--max-rows", type=int, default=usual.max_rows, help="most rows of a request")
    parser.add_argument("--max-bytes", type=int, default=usual.max_bytes, help="most bytes of a request")
    parser.add_argument("--workers", type=int, default=usual.workers, help="requests scored at the same time")
    parser.add_argument("--max-waiting", type=int, default=usual.max_waiting, help="requests taken at the same time")
    parser.add_argument("--threads", type=int, default=usual.threads, help="ONNX runtime threads of one request")
    return parser


if __name__ == "__main__":
    main()
