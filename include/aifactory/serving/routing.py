"""Routes as the controller wants them, and what the gateway counted while a generation of a document was in force."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field

from aifactory.errors import NotFound
from aifactory.serving.analysis import Histogram
from aifactory.serving.gateway import Gateway, LineRoute, write_files
from aifactory.serving.gatewaystats import GatewayAdmin, Latency, SlotReading
from aifactory.serving.traffic import SlotName, Stage, Traffic
from aifactory.specfile import Spec

if TYPE_CHECKING:
    from aifactory.store import Store

_LIVE_S, _LOOK_S = 3.0, 0.02


class CountedRole(Spec):
    """Requests of one role. See `analysis.Counts`, which has the scores too."""

    requests: int = Field(ge=0)
    errors: int = Field(ge=0)
    latency_ms: Histogram


class Counted(Spec):
    """`serving/<line>/counts.json`: what the gateway counted while a challenger was tried."""

    line: str
    generation: int = Field(ge=0, description="Of the traffic document since whose coming into force it is.")
    since: AwareDatetime
    champion: CountedRole
    challenger: CountedRole


def counted_key(line: str) -> str:
    """Key of what was counted."""
    return f"serving/{line}/counts.json"


def read_counted(store: Store, line: str) -> Counted | None:
    """What was counted last; None before anything was."""
    try:
        return Counted.model_validate_json(store.get(counted_key(line)))
    except NotFound:
        return None


class Routing:
    """The gateway, as the controller uses it.

    Args:
        gateway: ports, limits and keys; its lines are replaced.
        folder: of the files that Envoy watches.
        admin: Envoy's admin interface.
    """

    def __init__(self, gateway: Gateway, folder: Path, admin: GatewayAdmin) -> None:
        self._gateway = gateway
        self._folder = folder
        self._admin = admin
        self._generation = time.time_ns()  # higher than that of any controller before
        self._written: tuple[LineRoute, ...] | None = None
        self._baseline: dict[str, Mapping[tuple[str, str], SlotReading]] = {}

    def ensure(self, lines: tuple[LineRoute, ...]) -> bool:
        """Have these routes, and no others; whether they are live now.

        Raises:
            InfrastructureFault: the gateway does not answer.
        """
        if lines != self._written:
            self._generation += 1
            write_files(self._folder, replace(self._gateway, lines=lines), self._generation)
            self._written = lines
        deadline = time.monotonic() + _LIVE_S
        while not (live := self._admin.live(self._generation)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return live

    def begin_counting(self, line: str) -> None:
        """From now on counts of the line begin at nought."""
        self._baseline[line] = self._admin.read()

    def counted(self, document: Traffic, since: datetime) -> Counted:
        """What both roles did since `begin_counting`; all since the gateway started, where it started anew."""
        reading, before = self._admin.read(), self._baseline.get(document.line, {})

        def role(slot: SlotName, *, copies: bool) -> CountedRole:
            key = (document.line, slot)
            seen = reading.get(key, SlotReading()).since(before.get(key, SlotReading()))
            if copies:
                return CountedRole(
                    requests=seen.mirrored, errors=seen.mirrored_errors, latency_ms=_histogram(seen.mirrored_latency)
                )
            requests = max(seen.attempts - seen.client_errors, seen.failed_attempts)
            return CountedRole(requests=requests, errors=seen.failed_attempts, latency_ms=_histogram(seen.latency))

        return Counted(
            line=document.line,
            generation=document.generation,
            since=since,
            champion=role(document.champion_slot, copies=False),
            challenger=role(document.challenger_slot, copies=document.stage is Stage.SHADOW),
        )


def _histogram(latency: Latency) -> Histogram:
    """Counts of each bucket from cumulative ones."""
    from aifactory.serving.envoy import LATENCY_BUCKETS_MS

    edges = latency.bounds_ms or tuple(float(edge) for edge in LATENCY_BUCKETS_MS)
    up_to = (0, *(latency.counts or (0,) * len(edges)), latency.total)
    return Histogram(edges=edges, counts=tuple(max(b - a, 0) for a, b in pairwise(up_to)))
