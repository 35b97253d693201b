"""`python -m plant.doorway HOST PORT [PORT ...]`: S3 and MLflow for pods, on one more address of this machine.

The plant listens on loopback, where pods do not reach it. This passes connections to the named ports of one other
address on to the same ports of loopback, and nothing else: S3's inner parts, Postgres and Airflow stay out of reach.
S3 asks pods for their key; MLflow asks nobody, so the address should be one that only the cluster reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

from aifactory.settings import REPOSITORY, Settings
from plant.supervision import Program

NAME = "doorway"
_CHUNK = 1 << 18


def prepare(settings: Settings) -> list[Program]:
    """How to run it; nothing where pods need no doorway."""
    if not settings.pod_doorway:
        return []
    ports = [str(settings.s3_port), str(settings.mlflow_port)]
    command = [sys.executable, "-m", "plant.doorway", settings.host, settings.pod_doorway, *ports]
    return [Program(NAME, command, {"PYTHONPATH": str(REPOSITORY / "include")}, order=150)]


async def serve(inside: str, outside: str, ports: list[int]) -> None:
    """Pass connections on until cancelled."""
    servers = [
        await asyncio.start_server(partial(_pass_on, inside, port), outside, port, limit=_CHUNK) for port in ports
    ]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        await asyncio.gather(*(server.serve_forever() for server in servers))


async def _pass_on(inside: str, port: int, caller: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
    try:
        reader, writer = await asyncio.open_connection(inside, port, limit=_CHUNK)
    except OSError:
        answer.close()  # the part is away; the caller tries again
        return
    await asyncio.gather(_pump(caller, writer), _pump(reader, answer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(_CHUNK):
            sink.write(chunk)
            await sink.drain()
    with contextlib.suppress(ConnectionError, RuntimeError):
        sink.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[3:]]))
