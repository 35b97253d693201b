"""What a client counts: every request that was due is sent or shed, every one that was sent is answered or failed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

WIDTH = 1.02
"""A bucket of latencies ends this much above where it begins: a quantile is at most 2 % too high."""
FIRST_MESSAGES = 3
LATE_S = 0.05
"""A request that leaves later than this after it was due is late: the client's fault, and counted."""
MAX_SECONDS = 3600
"""Of so many of the newest seconds the counts are kept."""


class Latencies:
    """Durations in buckets, s; bounded, however many there are."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._max = 0.0

    def add(self, duration_s: float) -> None:
        """One more."""
        self._buckets[math.ceil(math.log(max(duration_s, 1e-6)) / math.log(WIDTH))] += 1
        self._max = max(self._max, duration_s)

    @property
    def count(self) -> int:
        """How many there are."""
        return self._buckets.total()

    def quantile(self, share: float) -> float:
        """The duration that this share stays within, s; 0 where there are none."""
        wanted, seen = math.ceil(share * self.count), 0
        for bucket, count in sorted(self._buckets.items()):
            seen += count
            if seen >= wanted:
                return float(min(WIDTH**bucket, self._max))
        return 0.0

    def as_json(self) -> dict[str, float]:
        """p50, p95, p99 and max, ms."""
        found = {f"p{share}": self.quantile(share / 100) for share in (50, 95, 99)} | {"max": self._max}
        return {name: round(duration_s * 1000, 3) for name, duration_s in found.items()}


@dataclass
class _Counts:
    sent: int = 0
    answered: int = 0
    failed: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def as_json(self) -> dict[str, Any]:
        counted = {"sent": self.sent, "answered": self.answered, "failed": self.failed}
        return counted | {"latency_ms": self.latencies.as_json()}


class Tally:
    """The counts of one run; `seconds` are those in which requests were sent, whenever they were answered."""

    def __init__(self) -> None:
        self.all = _Counts()
        self.shed = 0
        self.late = 0
        self.rows = 0
        self._max_late_s = 0.0
        self._protocols: dict[str, _Counts] = {}
        self._versions: dict[str, Latencies] = {}
        self._seconds: dict[int, _Counts] = {}
        self._failures: dict[str, tuple[list[int], list[str]]] = {}

    @property
    def outstanding(self) -> int:
        """Sent, and neither answered nor failed yet."""
        return self.all.sent - self.all.answered - self.all.failed

    def count_shed(self) -> None:
        """A request that was due was not sent."""
        self.shed += 1

    def count_sent(self, protocol: str, second: int, rows: int, late_s: float) -> None:
        """A request left, so much after it was due."""
        self.rows += rows
        self.late += late_s > LATE_S
        self._max_late_s = max(self._max_late_s, late_s)
        for counts in self._of(protocol, second):
            counts.sent += 1
        while len(self._seconds) > MAX_SECONDS:
            del self._seconds[min(self._seconds)]

    def count_answered(self, protocol: str, second: int, version: str, duration_s: float) -> None:
        """Its answer is there and is one."""
        for counts in self._of(protocol, second):
            counts.answered += 1
            counts.latencies.add(duration_s)
        self._versions.setdefault(version, Latencies()).add(duration_s)

    def count_failed(self, protocol: str, second: int, kind: str, message: str) -> None:
        """No answer, a refusal or a wrong answer came."""
        for counts in self._of(protocol, second):
            counts.failed += 1
        count, first = self._failures.setdefault(f"{protocol} {kind}", ([0], []))
        count[0] += 1
        if len(first) < FIRST_MESSAGES:
            first.append(message[:300])

    def _of(self, protocol: str, second: int) -> list[_Counts]:
        return [self.all, self._protocols.setdefault(protocol, _Counts()), self._seconds.setdefault(second, _Counts())]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return self.all.as_json() | {
            "due": self.all.sent + self.shed,
            "shed": self.shed,
            "outstanding": self.outstanding,
            "late": self.late,
            "max_late_ms": round(self._max_late_s * 1000, 1),
            "rows": self.rows,
            "failures": {kind: {"count": n[0], "first": first} for kind, (n, first) in sorted(self._failures.items())},
            "by_protocol": {name: counts.as_json() for name, counts in sorted(self._protocols.items())},
            "by_version": {
                version: {"answered": latencies.count, "latency_ms": latencies.as_json()}
                for version, latencies in sorted(self._versions.items())
            },
            "seconds": [{"second": second, **counts.as_json()} for second, counts in sorted(self._seconds.items())],
        }
