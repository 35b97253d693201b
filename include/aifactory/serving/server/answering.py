"""From a request's bytes to an answer's bytes, in a bounded pool of threads, counted and logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tritonclient.grpc import service_pb2 as pb

from aifactory.serving.server.loaded import LoadedModels, LoadedVersion
from aifactory.serving.server.oip import (
    Array,
    InferRequest,
    Refusal,
    answer_json,
    fill_answer,
    parse_json,
    parse_message,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True)
class Limits:
    """Bounds of the server.

    Args:
        max_rows: most rows of a request.
        max_bytes: most bytes of a request.
        workers: requests that are scored at the same time.
        max_waiting: requests taken at the same time, scored or waiting; what comes on top is refused with 503.
        threads: of the ONNX runtime for one request.
    """

    max_rows: int = 4096
    max_bytes: int = 8 << 20
    workers: int = 2
    max_waiting: int = 256
    threads: int = 1


@dataclass
class Call:
    """Who asks, as the headers say; `line` and `version` are those that answered, empty where none did.

    Args:
        request_id: where the request has none of its own.
        shadow: whether the answer goes to nobody.
    """

    request_id: str = ""
    shadow: bool = False
    line: str = ""
    version: str = ""


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "aif_serving_requests",
            "Inference requests by status: 200 answered, 4xx refused, 5xx failed.",
            ["model", "version", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "aif_serving_request_seconds",
            "Time from the whole request's arrival to its answer, waiting included, of those that were answered.",
            ["model", "version"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._rows = Counter("aif_serving_rows", "Rows scored.", ["model", "version"], registry=self.registry)
        self._taken = Gauge("aif_serving_taken", "Requests scored or waiting now.", registry=self.registry)

    def ended(self, call: Call, status: int, seconds: float) -> None:
        """One request is over."""
        self._requests.labels(call.line, call.version, str(status)).inc()
        if status == 200:
            self._seconds.labels(call.line, call.version).observe(seconds)

    def scored(self, loaded: LoadedVersion, rows: int) -> None:
        """A version has scored rows."""
        self._rows.labels(loaded.line, loaded.version).inc(rows)

    def taken(self, count: int) -> None:
        """So many requests are scored or wait."""
        self._taken.set(count)


class Answering:
    """Answers inference requests. Its coroutines belong to one event loop."""

    def __init__(self, models: LoadedModels, limits: Limits) -> None:
        self.models = models
        self.limits = limits
        self.metrics = Metrics()
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="infer")
        self._taken = 0

    async def json(
        self, line: str, version: str, body: bytes, header_length: str | None, call: Call
    ) -> tuple[bytes, int | None]:
        """The answer to a request of REST; see `oip.answer_json`.

        Raises:
            Refusal: there is none.
        """

        def work() -> tuple[bytes, int | None]:
            with self.models.borrow(line, version) as loaded:
                call.line, call.version = loaded.line, loaded.version
                request = parse_json(body, header_length, loaded.signature)
                outputs = self._score(loaded, request, call)
                return answer_json(loaded.line, loaded.version, request, outputs, loaded.signature)

        return await self._answer(call, work)

    async def message(self, raw: bytes, call: Call) -> bytes:
        """The answer to a serialised `ModelInferRequest`, serialised.

        Raises:
            Refusal: there is none.
        """

        def work() -> bytes:
            try:
                message = pb.ModelInferRequest.FromString(raw)
            except DecodeError as error:
                raise Refusal(400, "the message is no ModelInferRequest") from error
            with self.models.borrow(message.model_name, message.model_version) as loaded:
                call.line, call.version = loaded.line, loaded.version
                request = parse_message(message, loaded.signature)
                outputs = self._score(loaded, request, call)
                response = pb.ModelInferResponse(model_name=loaded.line, model_version=loaded.version)
                fill_answer(response, request, outputs, loaded.signature)
                answer: bytes = response.SerializeToString()
                return answer

        return await self._answer(call, work)

    def close(self) -> None:
        """Wait for what is being scored."""
        self._pool.shutdown()

    async def _answer(self, call: Call, work: Callable[[], T]) -> T:
        began, status = time.perf_counter(), 500
        try:
            if self._taken >= self.limits.max_waiting:
                raise Refusal(503, f"{self._taken} requests wait already; try again in a moment")
            answer = await self._in_pool(work)
            status = 200
        except Refusal as refusal:
            status = refusal.status
            raise
        finally:
            self.metrics.ended(call, status, time.perf_counter() - began)
        return answer

    async def _in_pool(self, work: Callable[[], T]) -> T:
        self._taken += 1
        self.metrics.taken(self._taken)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._taken -= 1
            self.metrics.taken(self._taken)

    def _score(self, loaded: LoadedVersion, request: InferRequest, call: Call) -> dict[str, Array]:
        units = request.parameters.get("units")
        if units is not None and not isinstance(units, str):
            raise Refusal(400, f"parameter 'units' is {type(units).__name__}, but must be a string of JSON")
        try:
            outputs = loaded.run(request.inputs)
        except Exception as error:  # onnxruntime raises its own classes straight from C++
            log.exception("%s %s cannot score a request", loaded.line, loaded.version)
            raise Refusal(500, f"model '{loaded.line}' version {loaded.version} failed: {error}") from error
        scores = next(iter(outputs.values()))
        self.metrics.scored(loaded, len(scores))
        if loaded.log is not None:
            loaded.log.record(request.id or call.request_id, units, request.inputs, scores, call.shadow)
        return outputs
