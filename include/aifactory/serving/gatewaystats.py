"""What the gateway has seen, read from Envoy's admin interface (a unix socket of its owner)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import InfrastructureFault
from aifactory.reasons import ReasonCode
from aifactory.serving.envoy import LISTENER, SERVER

if TYPE_CHECKING:
    import httpx

_VERSIONS = ("cluster_manager.cds", "listener_manager.lds", f"http.{LISTENER}.rds.{LISTENER}")
_GRPC_STATUS = re.compile(r"^grpc\..+\.ModelInfer\.(?P<code>\d+)$")
_COUNTERS = r"^cluster\..+/(http|grpc)\.(upstream_rq_(completed|4xx|5xx)|grpc\..+\.ModelInfer\.[0-9]+)$"
_HISTOGRAMS = r"^cluster\..+/(http|grpc)\.upstream_rq_time$"
_CALLERS_FAULT = (3, 5, 6, 7, 9, 10, 11, 12, 16)  # gRPC: INVALID_ARGUMENT, NOT_FOUND, ... UNAUTHENTICATED


@dataclass(frozen=True)
class Latency:
    """A histogram of milliseconds, whole ones: Envoy measures no finer.

    Args:
        bounds_ms: upper bounds of its buckets, rising.
        counts: how many took no longer than each bound: cumulative.
        total: how many there were.
    """

    bounds_ms: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    total: int = 0

    def since(self, earlier: Latency) -> Latency:
        """Those that came after an earlier reading."""
        known = dict(zip(earlier.bounds_ms, earlier.counts, strict=True))
        counts = tuple(n - known.get(bound, 0) for bound, n in zip(self.bounds_ms, self.counts, strict=True))
        return Latency(self.bounds_ms, counts, self.total - earlier.total)

    def plus(self, other: Latency) -> Latency:
        """Both together."""
        if not self.bounds_ms or not other.bounds_ms:
            return self if self.bounds_ms else other
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Latency(self.bounds_ms, counts, self.total + other.total)


@dataclass(frozen=True)
class SlotReading:
    """One line in one slot, both protocols together, since Envoy started.

    Args:
        answered: requests that were this slot's to answer and are answered, by it or, after it failed, by the other.
        client_errors: of these, whose caller got a 4xx, or a gRPC status that means the same.
        server_errors: of these, whose caller got a 5xx, or a gRPC status that means the same.
        attempts: requests that were sent to this slot, again after a failure included; copies not.
        failed_attempts: of these, answered with a server's error or not at all.
        latency: of `answered`, as the caller waited, tries included; up to half a second behind the counts.
        mirrored: copies that this slot got and has answered.
        mirrored_errors: of these, answered with a server's error.
        mirrored_latency: of `mirrored`.
        in_flight: attempts and copies that it works on now.
        healthy: whether it has the line's model ready.
    """

    answered: int = 0
    client_errors: int = 0
    server_errors: int = 0
    attempts: int = 0
    failed_attempts: int = 0
    latency: Latency = Latency()
    mirrored: int = 0
    mirrored_errors: int = 0
    mirrored_latency: Latency = Latency()
    in_flight: int = 0
    healthy: bool = False

    def since(self, earlier: SlotReading) -> SlotReading:
        """What happened after an earlier reading; all of it, where Envoy has started anew between the two."""
        changes: dict[str, Any] = {}
        for each in fields(self):
            now, then = getattr(self, each.name), getattr(earlier, each.name)
            if each.name in ("in_flight", "healthy"):
                changes[each.name] = now
            elif isinstance(now, Latency):
                changes[each.name] = now.since(then)
            else:
                changes[each.name] = now - then
        restarted = any(isinstance(value, int) and value < 0 for value in changes.values())
        return self if restarted else SlotReading(**changes)


Reading = Mapping[tuple[str, str], SlotReading]
"""(line, slot) → what was seen there."""


class GatewayAdmin:
    """Envoy's admin interface.

    Args:
        socket: where it listens.
        timeout_s: of one question.
    """

    def __init__(self, socket: Path, timeout_s: float = 5.0) -> None:
        self.socket = socket
        self.timeout_s = timeout_s

    def ready(self) -> bool:
        """Whether the public port is open."""
        try:
            return self._ask("/ready").text.strip() == "LIVE"
        except InfrastructureFault:
            return False

    def live(self, generation: int) -> bool:
        """Whether all files of this generation are in force, every slot asked for its health once.

        Limits and keys hold for connections made from now on; older ones are closed within seconds, between requests.
        """
        warming = ("cluster_manager.warming_clusters", "listener_manager.total_listeners_warming")
        versions = [f"{source}.version_text" for source in _VERSIONS]
        stats = self._stats(f"^({'|'.join((*warming, *versions))})$")
        in_force = all(stats.get(name) == str(generation) for name in versions)
        return in_force and not any(stats[name] for name in warming)

    def rejected(self) -> int:
        """How many files Envoy has refused since it started; it stays with what it had."""
        return sum(self._stats(r".*\.[clr]ds\.(.*\.)?update_rejected$").values())

    def drain(self) -> None:
        """Ask callers to go: connections are closed as their requests are answered, then the port."""
        self._ask("/drain_listeners?graceful&skip_exit", "POST")

    def connections(self) -> int:
        """Connections of callers now."""
        return int(sum(self._stats(rf"^http\.{LISTENER}\.downstream_cx_active$").values()))

    def read(self) -> Reading:
        """Everything seen of every line, cumulative: the difference of two readings is a window."""
        found: dict[tuple[str, str], SlotReading] = {}
        for line, slot, seen in [*self._hosts(), *self._counters(), *self._histograms()]:
            found[line, slot] = _plus(found.get((line, slot), SlotReading()), seen)
        return found

    def _hosts(self) -> Iterator[tuple[str, str, SlotReading]]:
        """What the slots did with what was sent to them."""
        for cluster in self._ask("/clusters", format="json").json()["cluster_statuses"]:
            line, leg, protocol = cluster["name"].split("/")
            if line == SERVER:
                continue
            for host in cluster.get("host_statuses", ()):
                stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
                sent, answered, active = stats["rq_total"], stats["rq_success"], stats["rq_active"]
                done, slot = sent - active, leg[-1]
                if leg.startswith("shadow-"):
                    yield line, slot, SlotReading(mirrored=done, mirrored_errors=done - answered, in_flight=active)
                else:
                    healthy = protocol == "http" and host["health_status"].get("eds_health_status") == "HEALTHY"
                    healthy = healthy and not host["health_status"].get("failed_active_health_check", False)
                    yield (
                        line,
                        slot,
                        SlotReading(attempts=done, failed_attempts=done - answered, in_flight=active, healthy=healthy),
                    )

    def _counters(self) -> Iterator[tuple[str, str, SlotReading]]:
        """What callers got, of those whose request was a slot's to answer: the first of its leg."""
        for name, value in self._stats(_COUNTERS).items():
            line, leg, protocol, stat = _parts(name)
            if line == SERVER or leg.startswith("shadow-") or len(leg) == 1:
                continue
            slot = _first(leg)
            status = _GRPC_STATUS.match(stat)
            if stat == "upstream_rq_completed":
                yield line, slot, SlotReading(answered=value)
            elif stat == "upstream_rq_4xx" and protocol == "http":
                yield line, slot, SlotReading(client_errors=value)
            elif stat == "upstream_rq_5xx" and protocol == "http":
                yield line, slot, SlotReading(server_errors=value)
            elif status and int(status["code"]) in _CALLERS_FAULT:
                yield line, slot, SlotReading(client_errors=value)
            elif status and int(status["code"]) > 0:
                yield line, slot, SlotReading(server_errors=value)

    def _histograms(self) -> Iterator[tuple[str, str, SlotReading]]:
        answer = self._ask("/stats", format="json", histogram_buckets="cumulative", filter=_HISTOGRAMS).json()["stats"]
        for histogram in (each for stat in answer for each in stat.get("histograms", ())):
            line, leg, _, _ = _parts(histogram["name"])
            latency = _latency(histogram["buckets"])
            if line == SERVER or not latency.total:
                continue
            if leg.startswith("shadow-"):
                yield line, leg[-1], SlotReading(mirrored_latency=latency)
            elif len(leg) > 1:
                yield line, _first(leg), SlotReading(latency=latency)

    def _stats(self, pattern: str) -> dict[str, Any]:
        answer = self._ask("/stats", format="json", filter=pattern).json()
        return {stat["name"]: stat["value"] for stat in answer["stats"] if "name" in stat}

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        # A connection each time: Envoy may be another one by now
        transport = httpx.HTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_keepalive_connections=0))
        return httpx.Client(transport=transport, base_url="http://gateway", timeout=self.timeout_s)

    def _ask(self, path: str, method: str = "GET", **query: str) -> httpx.Response:
        import httpx

        try:
            return self._client.request(method, path, params=query or None).raise_for_status()
        except httpx.HTTPError as error:
            message = (
                f"the gateway's admin interface at {self.socket} does not answer {path}: {error}; is Envoy running?"
            )
            raise InfrastructureFault(ReasonCode.GATEWAY_UNREACHABLE, message) from error


def _parts(name: str) -> tuple[str, str, str, str]:
    """Line, leg, protocol and statistic of `cluster.<line>/<leg>/<protocol>.<statistic>`."""
    line, leg, rest = name.removeprefix("cluster.").split("/")
    protocol, _, stat = rest.partition(".")
    return line, leg, protocol, stat


def _first(leg: str) -> str:
    """The slot that a leg (`only-a`, `ab`, ...) asks first."""
    return leg[-1] if leg.startswith("only-") else leg[0]


def _latency(buckets: list[dict[str, float]]) -> Latency:
    """Envoy's cumulative buckets; its last stands for those longer than any bound."""
    bounds = tuple(float(bucket["upper_bound"]) for bucket in buckets)
    counts = tuple(int(bucket["cumulative"]) for bucket in buckets)
    return Latency(bounds, counts, counts[-1] if counts else 0)


def _plus(one: SlotReading, other: SlotReading) -> SlotReading:
    changes: dict[str, Any] = {}
    for each in fields(one):
        first, second = getattr(one, each.name), getattr(other, each.name)
        if isinstance(first, Latency):
            changes[each.name] = first.plus(second)
        else:
            changes[each.name] = first or second if isinstance(first, bool) else first + second
    return SlotReading(**changes)
