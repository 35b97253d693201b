"""A small model server that says who it is: REST and gRPC, in a process of its own, so that it can be killed.

    python upstream.py NAME HTTP_PORT GRPC_PORT

Every answer to REST is a JSON object with `slot`, `path` and the request's headers; to gRPC, the same JSON as bytes.
What a request asks of it, by headers: `x-fail-b: 500` fails in slot b alone (REST: that status; gRPC: NOT_FOUND for
404, else INTERNAL), `x-sleep-b: 0.2` takes that long there. `GET /seen` tells how many requests it had, and how many
were shadows; `GET /say/503` has it answer so from now on whether it is ready.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
from aiohttp import web


class Upstream:
    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = {"live": 0, "shadow": 0}
        self.ready = 200

    async def rest(self, request: web.Request) -> web.Response:
        if request.path == "/seen":
            return web.json_response(self.seen)
        if request.path.endswith("/ready"):
            return web.Response(status=self.ready)
        if request.path.startswith("/say/"):
            self.ready = int(request.path.removeprefix("/say/"))
            return web.Response()
        body = await request.read()
        headers = {k.lower(): v for k, v in request.headers.items()}
        await self.count(headers)
        told = headers.get(f"x-fail-{self.name}")
        if told:
            return web.json_response({"error": headers.get("x-error", "told to")}, status=int(told))
        answer = {"slot": self.name, "path": request.path, "headers": headers, "bytes": len(body)}
        return web.json_response(answer)

    async def grpc(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        headers = dict(context.invocation_metadata())
        await self.count(headers)
        if told := headers.get(f"x-fail-{self.name}"):
            code = grpc.StatusCode.NOT_FOUND if told == "404" else grpc.StatusCode.INTERNAL
            await context.abort(code, headers.get("x-error", "told to"))
        return json.dumps({"slot": self.name, "headers": {k: str(v) for k, v in headers.items()}}).encode()

    async def stream(self, requests: Any, context: grpc.aio.ServicerContext) -> Any:
        async for body in requests:
            yield await self.grpc(body, context)

    async def count(self, headers: Any) -> None:
        self.seen["shadow" if "x-shadow" in headers else "live"] += 1
        await asyncio.sleep(float(headers.get(f"x-sleep-{self.name}", 0)))


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self.upstream.stream)
        return grpc.unary_unary_rpc_method_handler(self.upstream.grpc)


async def main(name: str, http_port: int, grpc_port: int) -> None:
    upstream = Upstream(name)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{tail:.*}", upstream.rest)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([Handlers(upstream)])
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
