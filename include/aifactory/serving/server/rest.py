"""The way in over HTTP: a raw ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort
import orjson

from aifactory.serving.server.answering import Answering, Call
from aifactory.serving.server.oip import Refusal

log = logging.getLogger(__name__)

NAME = "aifactory"
VERSION = str(ort.__version__)
EXTENSIONS = ("binary_tensor_data", "model_repository")
PLATFORM = "onnxruntime_onnx"
_HEADER_LENGTH = "inference-header-content-length"
_CONTENT_TYPES = ("", "application/json", "application/octet-stream")


@dataclass(frozen=True)
class _Response:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


class _Gone(Exception):
    """The caller went away before the request was whole."""


class Rest:
    """The application.

    Args:
        answering: what scores.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._models = answering.models

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        try:
            response = await self._route(scope, receive)
        except _Gone:
            return
        except Refusal as refusal:
            response = _error(refusal.status, refusal.message)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            response = _error(500, "the server failed; its log says why")
        headers = {**response.headers, "content-length": str(len(response.body))}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": raw})
        await send({"type": "http.response.body", "body": response.body})

    async def _route(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]]) -> _Response:
        match scope["path"].strip("/").split("/"):
            case ["v2"]:
                _only("GET", scope)
                return _json({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})
            case ["v2", "health", "live" | "ready"]:
                _only("GET", scope)
                return _Response()
            case ["v2", "models", line, "versions", version, *rest] if rest in ([], ["ready"], ["infer"]):
                return await self._model(scope, receive, line, version, "".join(rest))
            case ["v2", "models", line, *rest] if rest in ([], ["ready"], ["infer"]):
                return await self._model(scope, receive, line, "", "".join(rest))
        raise Refusal(404, f"path {scope['path'][:200]!r} is not found")

    async def _model(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        line: str,
        version: str,
        what: str,
    ) -> _Response:
        _only("POST" if what == "infer" else "GET", scope)
        if what == "infer":
            return await self._infer(scope, receive, line, version)
        loaded = self._models.find(line, version)
        if what == "ready":
            return _Response()
        signature = loaded.signature
        return _json(
            {
                "name": line,
                "versions": self._models.versions(line),
                "platform": PLATFORM,
                "inputs": [spec.as_json() for spec in signature.inputs.values()],
                "outputs": [spec.as_json() for spec in signature.outputs.values()],
            }
        )

    async def _infer(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        line: str,
        version: str,
    ) -> _Response:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in _CONTENT_TYPES:
            raise Refusal(415, f"content-type {kind[:80]!r} is not offered; send application/json")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, f"content-encoding {headers['content-encoding'][:80]!r} is not offered; send it plain")
        body = await self._body(headers.get("content-length", ""), receive)
        call = Call(headers.get("x-request-id", ""), "x-shadow" in headers)
        answer, header_length = await self._answering.json(line, version, body, headers.get(_HEADER_LENGTH), call)
        if header_length is None:
            return _Response(200, answer)
        return _Response(200, answer, {"content-type": "application/octet-stream", _HEADER_LENGTH: str(header_length)})

    async def _body(self, length: str, receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
        limit = self._answering.limits.max_bytes
        parts, size, more = [], int(length or 0), True
        while more and size <= limit:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise _Gone
            parts.append(event.get("body", b""))
            size = max(size, sum(map(len, parts)))
            more = event.get("more_body", False)
        if size > limit:
            raise Refusal(413, f"the body has {size} bytes or more; the limit is {limit}, split the batch")
        return b"".join(parts)


def _only(method: str, scope: Mapping[str, Any]) -> None:
    if scope["method"] != method:
        raise Refusal(405, f"method {scope['method'][:20]} is not offered at this path; use {method}")


def _json(value: Mapping[str, Any]) -> _Response:
    return _Response(200, orjson.dumps(value))


def _error(status: int, message: str) -> _Response:
    return _Response(status, orjson.dumps({"error": message}))
