"""The way in over gRPC: `inference.GRPCInferenceService`, with the model repository's control."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from aifactory.errors import PackageDefect
from aifactory.serving.server.answering import Answering, Call
from aifactory.serving.server.oip import Refusal
from aifactory.serving.server.rest import EXTENSIONS, NAME, PLATFORM, VERSION

log = logging.getLogger(__name__)

T = TypeVar("T")

_SERVICE = "inference.GRPCInferenceService"
_DETAILS_LIMIT = 2000  # characters: messages travel in headers, which clients bound to 8 KiB
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Rpc:
    """The service.

    Args:
        answering: what scores.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._models = answering.models
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server of gRPC is given; messages are parsed here, so that a broken one is refused by name."""
        unary: dict[str, Callable[[bytes, Any], Awaitable[bytes]]] = {
            "ServerLive": _answers(pb.ServerLiveRequest, self._live),
            "ServerReady": _answers(pb.ServerReadyRequest, self._ready),
            "ServerMetadata": _answers(pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _answers(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _answers(pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": self._infer,
            "RepositoryIndex": _answers(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": _answers(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": _answers(pb.RepositoryModelUnloadRequest, self._unload),
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(_guarded(answer)) for name, answer in unary.items()}
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(_SERVICE, methods)
        return handler

    def close(self) -> None:
        """Wait for a load that runs."""
        self._loader.shutdown()

    async def _infer(self, raw: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        return await self._answering.message(raw, Call(str(metadata.get("x-request-id", "")), "x-shadow" in metadata))

    async def _live(self, _request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _request: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def _server_metadata(self, _request: Any) -> Any:
        return pb.ServerMetadataResponse(name=NAME, version=VERSION, extensions=EXTENSIONS)

    async def _model_ready(self, request: Any) -> Any:
        try:
            self._models.find(request.name, request.version)
        except Refusal:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: Any) -> Any:
        loaded = self._models.find(request.name, request.version)
        response = pb.ModelMetadataResponse(
            name=loaded.line, versions=self._models.versions(loaded.line), platform=PLATFORM
        )
        for spec in loaded.signature.inputs.values():
            response.inputs.add(**spec.as_json())
        for spec in loaded.signature.outputs.values():
            response.outputs.add(**spec.as_json())
        return response

    async def _index(self, request: Any) -> Any:
        response = pb.RepositoryIndexResponse()
        for line, version, loaded in await self._in_loader(self._models.index):
            if loaded or not request.ready:
                response.models.add(name=line, version=version, state="READY" if loaded else "UNAVAILABLE")
        return response

    async def _load(self, request: Any) -> Any:
        if request.parameters:
            raise Refusal(
                400, f"parameters {sorted(request.parameters)[:8]} of a load are not offered; put files there"
            )
        try:
            versions = await self._in_loader(lambda: self._models.load(request.model_name))
        except PackageDefect as defect:
            log.warning("%s is not loaded: %s", request.model_name, defect)
            raise Refusal(400, f"failed to load '{request.model_name[:80]}': {defect.message}") from defect
        log.info("%s is loaded: versions %s", request.model_name, ", ".join(versions))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any) -> Any:
        await self._in_loader(lambda: self._models.unload(request.model_name))
        log.info("%s is unloaded", request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _in_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)


def _answers(request_type: Any, answer: Callable[[Any], Awaitable[Any]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(raw: bytes, _context: Any) -> bytes:
        try:
            request = request_type.FromString(raw)
        except DecodeError as error:
            raise Refusal(400, f"the message is no {request_type.DESCRIPTOR.name}") from error
        response: bytes = (await answer(request)).SerializeToString()
        return response

    return handle


def _guarded(handle: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def guarded(raw: bytes, context: Any) -> bytes:
        try:
            return await handle(raw, context)
        except Refusal as refusal:
            code, message = _CODES[refusal.status], refusal.message
        except Exception:
            log.exception("a call failed")
            code, message = grpc.StatusCode.INTERNAL, "the server failed; its log says why"
        await context.abort(code, message[:_DETAILS_LIMIT])
        return b""

    return guarded
