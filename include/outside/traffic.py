"""An outside client of the served models: replays the requests of a file against the gateway, as they came in life.

It knows the file (`outside.arrivals`), the gateway's address, the model's name and perhaps a key, no more of the
factory. It speaks the Open Inference Protocol with the public `tritonclient`, REST and gRPC:

- an open loop: a request leaves when it is due, however slow the answers are. What would be more than `--outstanding`
  at a time is shed, what leaves late is late; both are counted.
- no second try of any kind: a request that fails, fails. Who wants none to fail has to see to it behind the gateway.
- an answer counts only if it is one: the request's id, a probability a row.
- `tritonclient` shows no headers of an answer, so answers are told apart by `model_version`, not by the slot.

    python -m outside.traffic play --file F --url HOST:PORT --line L [--speed X | --lasts S] [--loop] [--report R]

SIGTERM and SIGINT end it: nothing more is sent, what is outstanding is waited for, the report is written.
A key is taken from the environment, `AIF_TRAFFIC_KEY`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from outside.arrivals import DAY_S, Rows, arrivals, grouped, offsets, read_rows, spread, whole_days
from outside.tally import Tally

log = logging.getLogger(__name__)

KEY_VARIABLE = "AIF_TRAFFIC_KEY"
OUTPUT = "probability"
_GRPC_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class WrongAnswer(Exception):
    """What came is no answer to what was asked."""


@dataclass(frozen=True)
class Service:
    """Where a model is, and how it is asked.

    Args:
        url: host:port of REST and gRPC alike.
        line: the model's name.
        key: sent as x-api-key, where there is one.
        timeout_s: after which a request has failed.
        channels: gRPC connections.
        outstanding: most requests at a time; REST connections.
    """

    url: str
    line: str
    key: str | None = None
    timeout_s: float = 10.0
    channels: int = 4
    outstanding: int = 256


@dataclass(frozen=True)
class Plan:
    """What is sent when.

    Args:
        rows: what can be asked.
        requests: rows of each request.
        due: when each leaves in a round, s, ascending.
        round_s: length of a round.
        speed: seconds of life in one of these.
    """

    rows: Rows
    requests: list[range]
    due: npt.NDArray[np.float64]
    round_s: float
    speed: float


class Client:
    """Both clients of `tritonclient`; use within `async with`."""

    def __init__(self, service: Service, rows: Rows) -> None:
        self._service = service
        self._rows = rows
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        service = self._service
        rest = tritonclient.http.aio.InferenceServerClient(
            service.url, conn_limit=service.outstanding, conn_timeout=service.timeout_s
        )
        self._rest = await self._stack.enter_async_context(rest)
        self._channels = [
            await self._stack.enter_async_context(
                tritonclient.grpc.aio.InferenceServerClient(service.url, channel_args=_GRPC_OPTIONS)
            )
            for _ in range(service.channels)
        ]
        self._next = 0
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(self, protocol: str, asked: range) -> tuple[str, float]:
        """Ask for some rows once; the version that answered, and how long it took, s.

        Raises:
            Exception: whatever the library raises where there is no answer; `WrongAnswer` where it is a wrong one.
        """
        rows, service, request_id = self._rows, self._service, str(uuid.uuid4())
        headers = {"x-entity-id": rows.entities[asked.start]} | ({"x-api-key": service.key} if service.key else {})
        units = {name: column[asked.start : asked.stop] for name, column in rows.units.items()}
        common: dict[str, Any] = {
            "request_id": request_id,
            "headers": headers,
            "parameters": {"units": json.dumps(units)},
        }
        if protocol == "grpc":
            inputs = self._inputs(tritonclient.grpc.InferInput, asked)
            client = self._channels[self._next % len(self._channels)]
            self._next += 1
            begun = time.monotonic()
            result = await client.infer(service.line, inputs, client_timeout=service.timeout_s, **common)
            took_s, said = time.monotonic() - begun, result.get_response()
            identity, version = said.id, said.model_version
        else:
            inputs = self._inputs(tritonclient.http.InferInput, asked)
            begun = time.monotonic()
            result = await self._rest.infer(service.line, inputs, **common)
            took_s, said = time.monotonic() - begun, result.get_response()
            identity, version = said.get("id"), said.get("model_version")
        if identity != request_id:
            raise WrongAnswer(f"it has the id {identity!r}, the request {request_id!r}")
        scores = result.as_numpy(OUTPUT)
        if scores is None or scores.shape != (len(asked),) or not ((scores >= 0) & (scores <= 1)).all():
            raise WrongAnswer(f"{OUTPUT} is {scores} for {len(asked)} rows")
        return str(version), took_s

    def _inputs(self, kind: Any, asked: range) -> list[Any]:
        """The rows as tensors [rows, 1]; `kind` is the library's class for the protocol."""
        found = []
        for name, column in (self._rows.strings | self._rows.floats).items():
            tensor = kind(name, [len(asked), 1], "BYTES" if name in self._rows.strings else "FP32")
            tensor.set_data_from_numpy(column[asked.start : asked.stop].reshape(-1, 1))
            found.append(tensor)
        return found


class Player:
    """One run: sends, counts, reports.

    Args:
        service: who is asked.
        plan: what is sent when.
        loop: whether it begins again when it is through.
        grpc_share: share of the requests that go over gRPC.
        report: file that the report is written to, at every progress line and at the end.
        every_s: between progress lines.
        drain_s: how long outstanding requests are waited for at the end.
        chance: chooses the protocol of each request.
        facts: what else the report is to say.
    """

    def __init__(
        self,
        service: Service,
        plan: Plan,
        *,
        loop: bool,
        grpc_share: float,
        report: Path | None,
        every_s: float,
        drain_s: float,
        chance: random.Random,
        facts: dict[str, Any],
    ) -> None:
        self._service, self._plan, self._loop, self._grpc_share = service, plan, loop, grpc_share
        self._report, self._every_s, self._drain_s, self._chance = report, every_s, drain_s, chance
        self._facts = facts | {"started_at": _now(), "ended_at": None}
        self._outstanding: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    async def play(self, stop: asyncio.Event) -> dict[str, Any]:
        """Send until the plan is through or `stop` is set, wait for what is outstanding; the report."""
        self._begun = time.monotonic()
        self._write()  # whoever reads on sees no report of an earlier run
        async with Client(self._service, self._plan.rows) as client:
            progress = asyncio.create_task(self._progress())
            sending, stopped = asyncio.create_task(self._send(client)), asyncio.create_task(stop.wait())
            await asyncio.wait([sending, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, stopped):
                task.cancel()
            await asyncio.gather(sending, stopped, return_exceptions=True)
            if self._outstanding:
                _, unanswered = await asyncio.wait(self._outstanding, timeout=self._drain_s)
                for task in unanswered:
                    task.cancel()
                await asyncio.gather(*unanswered, return_exceptions=True)
            progress.cancel()
        self._facts["ended_at"] = _now()
        found = self._write()
        if not sending.cancelled():
            sending.result()
        return found

    async def _send(self, client: Client) -> None:
        for due, number in arrivals(self._plan.due, self._plan.round_s, loop=self._loop):
            await asyncio.sleep(max(0.0, self._begun + due - time.monotonic()))
            if len(self._outstanding) >= self._service.outstanding:
                self.tally.count_shed()
                continue
            protocol = "grpc" if self._chance.random() < self._grpc_share else "rest"
            late_s = time.monotonic() - self._begun - due
            second = int(time.monotonic() - self._begun)
            self.tally.count_sent(protocol, second, len(self._plan.requests[number]), late_s)
            task = asyncio.create_task(self._ask(client, protocol, second, self._plan.requests[number]))
            self._outstanding.add(task)
            task.add_done_callback(self._outstanding.discard)

    async def _ask(self, client: Client, protocol: str, second: int, asked: range) -> None:
        try:
            version, took_s = await client.ask(protocol, asked)
        except asyncio.CancelledError:
            self.tally.count_failed(protocol, second, "unanswered", f"no answer {self._drain_s} s after the end")
        except InferenceServerException as error:
            kind = str(error.status() or "client").removeprefix("StatusCode.")
            self.tally.count_failed(protocol, second, kind, str(error.message()))
        except Exception as error:  # whatever else the libraries below raise: no answer is a failure, and is shown
            self.tally.count_failed(protocol, second, type(error).__name__, str(error) or repr(error))
        else:
            self.tally.count_answered(protocol, second, version, took_s)

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            found = self._write()
            log.info(
                "sent %d, answered %d, failed %d, shed %d, late %d, outstanding %d; p50 %.1f, p99 %.1f ms; versions %s",
                *(found[name] for name in ("sent", "answered", "failed", "shed", "late", "outstanding")),
                found["latency_ms"]["p50"],
                found["latency_ms"]["p99"],
                {version: counts["answered"] for version, counts in found["by_version"].items()},
            )

    def _write(self) -> dict[str, Any]:
        found = self._facts | {"duration_s": round(time.monotonic() - self._begun, 3)} | self.tally.as_json()
        if self._report is not None:
            part = self._report.with_name(f"{self._report.name}.part")
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(self._report)
        return found


def _now() -> str:
    return datetime.now(UTC).isoformat()


def plan(
    rows: Rows,
    chance: random.Random,
    *,
    speed: float,
    lasts_s: float | None = None,
    spread_s: float = 60.0,
    batch_share: float = 0.1,
    batch_rows: int = 8,
) -> Plan:
    """The rows as requests, each due when the last of its rows is.

    Args:
        rows: what can be asked.
        chance: chooses batches, and instants within `spread_s`.
        speed: seconds of life in one second.
        lasts_s: how long a round is to last, whatever `speed` says.
        spread_s: how finely the times are known, s.
        batch_share: share of the requests that have several rows.
        batch_rows: most rows of these.
    """
    requests = grouped(len(rows.times), batch_share, batch_rows, chance)
    times = spread(rows.times, spread_s, chance)
    chosen = whole_days(times) * DAY_S / lasts_s if lasts_s else speed
    due, round_s = offsets(times, chosen)
    return Plan(rows, requests, due[[asked.stop - 1 for asked in requests]], round_s, chosen)


async def _play(player: Player) -> dict[str, Any]:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await player.play(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: see the module's docstring. 0 where it ran to its end, whatever failed: the report says it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        rows = read_rows(asked.file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if asked.report is not None and not asked.report.parent.is_dir():
        parser.error(f"--report: {asked.report.parent} is no folder")
    chance = random.Random(asked.seed)  # noqa: S311 - protocols and batches, no secrets
    planned = plan(
        rows,
        chance,
        speed=asked.speed,
        lasts_s=asked.lasts,
        spread_s=asked.spread,
        batch_share=asked.batch_share,
        batch_rows=asked.batch_rows,
    )
    key = os.environ.get(KEY_VARIABLE)
    player = Player(
        Service(asked.url, asked.line, key, asked.timeout, asked.channels, asked.outstanding),
        planned,
        loop=asked.loop,
        grpc_share=asked.grpc_share,
        report=asked.report,
        every_s=asked.every,
        drain_s=asked.drain,
        chance=chance,
        facts={"url": asked.url, "line": asked.line, "file": asked.file.name, "speed": round(planned.speed, 3)},
    )
    found = asyncio.run(_play(player))
    log.info("ended: %s", {name: found[name] for name in ("due", "sent", "answered", "failed", "shed", "late")})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="outside.traffic", description="A client of the served models.")
    play = parser.add_subparsers(dest="command", required=True).add_parser("play", help="replay a file of requests")
    play.add_argument("--file", type=Path, required=True, help="parquet, see outside/arrivals.py")
    play.add_argument("--url", required=True, metavar="HOST:PORT", help="of the gateway; no scheme")
    play.add_argument("--line", required=True, help="name of the model")
    pace = play.add_mutually_exclusive_group()
    pace.add_argument("--speed", type=_positive, default=60.0, help="seconds of life in one; default %(default)s")
    pace.add_argument("--lasts", type=_positive, metavar="S", help="how long the file's days last, nights and all, s")
    play.add_argument("--loop", action="store_true", help="begin again at the end, until stopped")
    play.add_argument("--spread", type=_natural, default=60.0, metavar="S", help="within which the times are known, s")
    play.add_argument("--grpc-share", type=_share, default=0.5, metavar="SHARE", help="default %(default)s")
    play.add_argument("--batch-share", type=_share, default=0.1, metavar="SHARE", help="requests of several rows")
    play.add_argument("--batch-rows", type=_rows, default=8, metavar="N", help="most rows of these")
    play.add_argument(
        "--outstanding", type=_count, default=Service.outstanding, metavar="N", help="at a time; the rest is shed"
    )
    play.add_argument("--channels", type=_count, default=Service.channels, metavar="N", help="gRPC connections")
    play.add_argument("--timeout", type=_positive, default=Service.timeout_s, metavar="S", help="of a request")
    play.add_argument("--drain", type=_natural, default=15.0, metavar="S", help="wait for answers at the end")
    play.add_argument("--every", type=_positive, default=5.0, metavar="S", help="between lines of progress")
    play.add_argument("--seed", type=int, default=0, help="of spread, batches and protocols")
    play.add_argument("--report", type=Path, metavar="FILE", help="JSON; rewritten at every line of progress")
    return parser


def _positive(text: str) -> float:
    return _within(text, np.nextafter(0, 1), np.finfo(float).max)


def _natural(text: str) -> float:
    return _within(text, 0, np.finfo(float).max)


def _share(text: str) -> float:
    return _within(text, 0, 1)


def _within(text: str, least: float, most: float) -> float:
    value = float(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not within {least:g} to {most:g}")
    return value


def _count(text: str) -> int:
    return _at_least(text, 1)


def _rows(text: str) -> int:
    return _at_least(text, 2)


def _at_least(text: str, least: int) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value


if __name__ == "__main__":
    sys.exit(main())
