"""The program: `python -m aifactory.serving.receiver --port N`, in the cluster, once for a namespace of KServe's.

POST /<line>/<version> takes an agent's event; GET /ready answers once the documents are known, /metrics tells counts.
Every second the documents are read from the InferenceServices (`get`, `list`), and what was counted is told; the
shipper runs beside it. SIGTERM closes the logs and ships them.

What kill -9 costs: requests that wait for their answers, rows of the last 50 ms, counts of the last second. Segments on
the disk are shipped by the next one where it finds the same folder.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import uvicorn

from aifactory.errors import FactoryError
from aifactory.factory import open_factory
from aifactory.serving import kserve, shipper
from aifactory.serving.kserve import Object
from aifactory.serving.kserveadapter import INFERENCE_SERVICES, ClusterObjects, Resource
from aifactory.serving.receiver.events import read_event
from aifactory.serving.receiver.receiving import Receiver
from aifactory.serving.server.oip import Refusal

log = logging.getLogger(__name__)

TURN_S = 1.0
_MAX_READING_BYTES = 64 << 20
_GRACE_S = 5
_TOO_LARGE, _TOO_MUCH = 413, 503

Ask = Callable[[], Awaitable[dict[str, Any]]]


class Documents(Protocol):
    """The one verb that the receiver needs of the Kubernetes API."""

    def labelled(self, resource: Resource, label: str) -> list[Object]:
        """All objects that have a label, whatever its value."""


class Way:
    """The way in over HTTP: a raw ASGI application.

    Args:
        receiver: takes the events.
        max_bytes: of one body. A longer one is not read, nor is one where all that is being read has `max_reading`
            bytes; its event is taken without it, for that there was an answer is known by its headers alone.
        max_reading: see there.
    """

    def __init__(self, receiver: Receiver, max_bytes: int, max_reading: int = _MAX_READING_BYTES) -> None:
        self.ready = False
        self._receiver = receiver
        self._max_bytes = max_bytes
        self._max_reading = max_reading
        self._reading = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Ask, send: Callable[..., Awaitable[None]]) -> None:
        """Answer one request."""
        try:
            status, text = await self._answer(scope, receive)
        except Refusal as refusal:
            status, text = refusal.status, refusal.message
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            status, text = 500, "the receiver failed; its log says why"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text.encode()))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    async def _answer(self, scope: Mapping[str, Any], receive: Ask) -> tuple[int, str]:
        match scope["method"], scope["path"].strip("/").split("/"):
            case "GET", ["live"]:
                return 200, "live"
            case "GET", ["ready"]:
                return (200, "ready") if self.ready else (503, "the documents are not known yet")
            case "GET", ["metrics"]:
                return 200, _metrics(self._receiver.seen)
            case "POST", [line, version]:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                return await self._event(line, version, headers, receive)
        self._receiver.note("malformed")
        raise Refusal(404, f"{scope['method'][:20]} {scope['path'][:200]} is not offered; POST /<line>/<version>")

    async def _event(self, line: str, version: str, headers: Mapping[str, str], receive: Ask) -> tuple[int, str]:
        try:
            event = read_event(headers)
        except Refusal:
            self._receiver.note("malformed")
            raise
        status, body = await self._body(headers.get("content-length", ""), receive)
        if status == 0:
            return 400, "the sender went away"
        self._receiver.take(line, version, event, body)
        return status, "" if status == 200 else f"taken without its body of more than {self._max_bytes} bytes"

    async def _body(self, length: str, receive: Ask) -> tuple[int, bytes | None]:
        """Status and body: 0 where the sender went away."""
        if length.isdecimal() and int(length) > self._max_bytes:
            return _TOO_LARGE, None
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return 0, None
                part = message.get("body", b"")
                size += len(part)
                self._reading += len(part)
                parts.append(part)
                if size > self._max_bytes:
                    return _TOO_LARGE, None
                if self._reading > self._max_reading:
                    return _TOO_MUCH, None
                if not message.get("more_body", False):
                    return 200, b"".join(parts)
        finally:
            self._reading -= size


def _metrics(seen: Mapping[str, int]) -> str:
    """Prometheus' text format."""
    lines = [
        "# HELP aif_receiver_events_total What became of KServe's events: aifactory.serving.receiver says of each.",
        "# TYPE aif_receiver_events_total counter",
        *(f'aif_receiver_events_total{{what="{what}"}} {number}' for what, number in sorted(seen.items())),
    ]
    return "\n".join([*lines, ""])


def turns(receiver: Receiver, cluster: Documents, way: Way, stop: threading.Event) -> None:
    """A turn a second until asked to stop."""
    while not stop.is_set():
        services = None
        try:
            services = cluster.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL)
        except FactoryError as error:
            log.warning("the documents stay as they are: %s", error)
        try:
            receiver.turn(services)
            way.ready = way.ready or services is not None
        except FactoryError as error:
            log.warning("tried again: %s", error)
        except Exception:  # an unforeseen fault of one turn must not end the counting
            log.exception("a turn failed")
        stop.wait(TURN_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Receive until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m aifactory.serving.receiver")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - in a pod; its NetworkPolicy says who reaches it
    parser.add_argument("--port", type=int, default=8080)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    f = open_factory()
    spool = shipper.spool_folder(f.settings)
    receiver, stop, stop_shipping = Receiver(f.store, spool), threading.Event(), threading.Event()
    way = Way(receiver, round(f.settings.serving_max_request_mb * 1_000_000))
    shipping = shipper.Shipper(f, spool, f.settings.live_spool_mb << 20)
    cluster = ClusterObjects(f.settings.kserve_namespace)
    turning = threading.Thread(target=turns, args=(receiver, cluster, way, stop), name="turns")
    ships = threading.Thread(target=shipper.run, args=(shipping, stop_shipping), name="shipper")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises again what has ended it
    turning.start()
    ships.start()
    try:
        uvicorn.run(
            way, host=asked.host, port=asked.port, http="httptools", ws="none", lifespan="off", interface="asgi3",
            log_config=None, access_log=False, server_header=False, date_header=False,
            timeout_keep_alive=5, timeout_graceful_shutdown=_GRACE_S,
        )  # fmt: skip
    finally:
        stop.set()
        turning.join()
        receiver.close()
        stop_shipping.set()
        ships.join()
        shipping.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
