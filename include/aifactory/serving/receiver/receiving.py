"""Events in, counts and prediction log out: what each version of each line was asked, and what became of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import FactoryError
from aifactory.serving import kserve
from aifactory.serving.analysis import LATENCY_EDGES_MS, Histogram
from aifactory.serving.kserve import Object
from aifactory.serving.predictionlog import Identity, Limits, PredictionLog
from aifactory.serving.receiver.events import Event, request_of, scores_of, signature_of
from aifactory.serving.receiver.exchanges import Exchange, Exchanges, Role, Said
from aifactory.serving.routing import Counted, CountedRole, counted_key, read_counted
from aifactory.serving.server.oip import Array, InferRequest, Refusal, Signature
from aifactory.serving.traffic import Stage, Traffic

if TYPE_CHECKING:
    from aifactory.store import Store

log = logging.getLogger(__name__)

_TRIED = (Stage.SHADOW, Stage.CANARY)
_COPIES = (Stage.LOADING, Stage.SELF_TESTED, Stage.SHADOW)


@dataclass
class _Counts:
    """Of one version, over one generation of its document."""

    requests: int = 0
    errors: int = 0
    latency_ms: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))

    def told(self) -> CountedRole:
        latency = Histogram(edges=LATENCY_EDGES_MS, counts=tuple(self.latency_ms))
        return CountedRole(requests=self.requests, errors=self.errors, latency_ms=latency)

    @classmethod
    def of(cls, told: CountedRole) -> _Counts:
        known = told.latency_ms.edges == LATENCY_EDGES_MS
        return cls(told.requests, told.errors, *([list(told.latency_ms.counts)] if known else []))


@dataclass
class _Tally:
    """What is counted since a document is in force, by version."""

    document: Traffic
    since: datetime
    versions: dict[str, _Counts]

    @property
    def generation(self) -> int:
        return self.document.generation


@dataclass(frozen=True)
class _Version:
    """A version whose events are taken."""

    slot: str
    signature: Signature
    log: PredictionLog


class Receiver:
    """What the program does with events and documents. Events may come from any thread, turns from one.

    Args:
        store: of the factory: identities of versions are read, counts written.
        spool: folder of the prediction log; the shipper's.
        exchanges: the memory of what waits.
        now: the time.
    """

    def __init__(
        self,
        store: Store,
        spool: Path,
        exchanges: Exchanges | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._spool = spool
        self._now = now
        self._exchanges = exchanges or Exchanges()
        self._lock = threading.Lock()
        self._documents: dict[str, Traffic] = {}
        self._tallies: dict[str, _Tally] = {}
        self._versions: dict[tuple[str, str], _Version] = {}
        self._told: dict[str, Counted] = {}
        self._seen: Counter[str] = Counter()

    # --- events
    def take(self, line: str, version: str, event: Event, body: bytes | None) -> None:
        """Take an event of a version.

        Args:
            line: the line.
            version: the version whose agent sent it.
            event: what its headers say.
            body: of the request or the answer; None where it was not taken.

        Raises:
            Refusal: 404, the version is in no document; 409 or 503, as `Exchanges.take` says.
        """
        self.note("answers" if event.answer else "requests")
        if (line, version) not in self._versions:
            self.note("unknown_version")
            raise Refusal(404, f"version {version[:20]!r} of {line[:80]!r} is in no document of this namespace")
        if body is None:
            self.note("unread")
        try:
            with self._lock:
                role = self._role(line, version)
                whole = self._exchanges.take((line, version, event.id), Said(event, body), role, time.monotonic())
        except Refusal as refusal:
            self.note("repeated" if refusal.status == 409 else "overloaded")
            raise
        if whole:
            self._end(whole)

    def note(self, what: str, number: int = 1) -> None:
        """Count something for the metrics."""
        with self._lock:
            self._seen[what] += number

    @property
    def seen(self) -> Mapping[str, int]:
        """How often what was seen, since the start."""
        with self._lock:
            return dict(self._seen)

    def _role(self, line: str, version: str) -> Role:
        """A challenger's answers go to nobody until a document is in force that gives it a share."""
        document, tally = self._documents.get(line), self._tallies.get(line)
        said = [d for d in (document, tally.document if tally else None) if d is not None]
        copies = any(version == d.challenger != d.champion and d.stage in _COPIES for d in said)
        return Role(generation=tally.generation if tally else -1, shadow=copies)

    def _end(self, exchange: Exchange) -> None:
        """Count and log an exchange that is over."""
        line, version, _ = exchange.key
        served = self._versions.get((line, version))
        if served is None:
            return
        request = _request(exchange.request, served.signature)
        if exchange.answer is None:
            # Whether a request that was not read was its caller's fault is not known
            if request is None:
                self.note("unfit")
            else:
                self._count(exchange, failed=True)
            return
        if exchange.answer.body is None:
            self._count(exchange, failed=False)
            return
        scores = _scores(exchange.answer.body)
        if scores is None and request is None and exchange.request.body is not None:
            self.note("no_inference")  # metadata, or another model of the server
            return
        told = scores is not None and (request is None or len(scores) == _rows(request))
        self._count(exchange, failed=not told and request is not None)
        if request is not None and scores is not None and told:
            self._log(exchange, served, request, scores)

    def _count(self, exchange: Exchange, *, failed: bool) -> None:
        line, version, _ = exchange.key
        with self._lock:
            self._seen["failed" if failed else "answered"] += 1
            tally = self._tallies.get(line)
            if tally is None or tally.generation != exchange.role.generation or version not in tally.versions:
                return
            counts = tally.versions[version]
            counts.requests += 1
            counts.errors += failed
            latency = _latency_ms(exchange)
            if latency is not None:
                counts.latency_ms[bisect_left(LATENCY_EDGES_MS, latency)] += 1

    def _log(self, exchange: Exchange, served: _Version, request: InferRequest, scores: Array) -> None:
        event = exchange.request.event
        name = request.id or event.headers.get("x-request-id") or event.id
        units = request.parameters.get("units")
        text = units if isinstance(units, str) else None
        served.log.record(name, text, request.inputs, scores, exchange.role.shadow)

    # --- turns
    def turn(self, services: Iterable[Object] | None) -> None:
        """Follow what the cluster says, end what waited too long, tell what was counted.

        Args:
            services: every InferenceService that carries a document; None where the cluster did not answer.
        """
        if services is not None:
            self._follow(services)
        with self._lock:
            failed, num_orphans = self._exchanges.overdue(time.monotonic())
        for exchange in failed:
            self._end(exchange)
        if num_orphans:
            self.note("answers_alone", num_orphans)
        self._tell()

    def close(self) -> None:
        """Take no more and close the logs; what still waits for an answer is dropped."""
        with self._lock:
            versions, self._versions = self._versions, {}
        for version in versions.values():
            version.log.close()

    def _follow(self, services: Iterable[Object]) -> None:
        """Know every document, and the versions in it; what cannot be read stays as it was."""
        documents: dict[str, Traffic] = {}
        tallies: dict[str, _Tally] = {}
        for service in services:
            try:
                document = kserve.document(service)
                documents[document.line] = document
                if tally := self._new_tally(document, service):
                    tallies[document.line] = tally
            except FactoryError as error:
                log.warning("%s", error)
                line = service["metadata"]["labels"][kserve.LINE_LABEL]
                if line in self._documents:
                    documents[line] = self._documents[line]
        wanted = {
            (document.line, version): slot
            for document in documents.values()
            for slot, version in document.slots.items()
            if version is not None
        }
        opened = {key: version for key, slot in wanted.items() if (version := self._opened(*key, slot))}
        with self._lock:
            self._documents = documents
            self._tallies |= tallies
            before, self._versions = self._versions, opened
        for key, version in before.items():
            if opened.get(key) is not version:
                version.log.close()

    def _opened(self, line: str, version: str, slot: str) -> _Version | None:
        """A version's place; None where what it is cannot be read now."""
        known = self._versions.get((line, version))
        if known and known.slot == slot:
            return known
        key = f"{kserve.repository_prefix(line, version)}/{line}/{version}/identity.json"
        try:
            identity: dict[str, Any] = json.loads(self._store.get(key))
            signature = signature_of(identity)
        except (FactoryError, OSError, ValueError, KeyError) as error:
            log.warning("events of version %s of %s are refused until %s can be read: %s", version, line, key, error)
            return None
        features = identity["features"]
        whose = Identity(
            line,
            version,
            identity["dataset_revision"],
            slot,
            tuple(features["categorical"]),
            tuple(features["numeric"]),
        )
        return _Version(slot, signature, PredictionLog.open(self._spool / slot, whose, Limits()))

    def _new_tally(self, document: Traffic, service: Object) -> _Tally | None:
        """Begin to count once a document is in force; go on with what an earlier receiver has told of it."""
        record, before = kserve.recorded(service), self._tallies.get(document.line)
        in_force = record is not None and record.generation == document.generation
        if not in_force or (before and before.generation == document.generation):
            return None
        counts = {version: _Counts() for version in (document.champion, document.challenger) if version}
        made = _Tally(document, self._now(), counts)
        told = read_counted(self._store, document.line) if before is None else None
        if told and told.generation == document.generation and document.champion and document.challenger:
            made.since = told.since
            made.versions[document.champion] = _Counts.of(told.champion)
            made.versions[document.challenger] = _Counts.of(told.challenger)
        return made

    def _tell(self) -> None:
        for line, document in self._documents.items():
            if document.stage not in _TRIED or not document.champion or not document.challenger:
                continue
            with self._lock:
                tally = self._tallies.get(line)
                if tally is None or tally.generation != document.generation:
                    continue
                told = Counted(
                    line=line,
                    generation=tally.generation,
                    since=tally.since,
                    champion=tally.versions[document.champion].told(),
                    challenger=tally.versions[document.challenger].told(),
                )
            if told != self._told.get(line):
                self._store.put_json(counted_key(line), told.model_dump(mode="json"))
                self._told[line] = told


def _request(said: Said, signature: Signature) -> InferRequest | None:
    if said.body is None:
        return None
    try:
        return request_of(said.event, said.body, signature)
    except Refusal:
        return None


def _scores(body: bytes) -> Array | None:
    try:
        return scores_of(body)
    except ValueError:
        return None


def _rows(request: InferRequest) -> int:
    return len(next(iter(request.inputs.values())))


def _latency_ms(exchange: Exchange) -> float | None:
    """Between the sendings of both events by one agent; it sends them side by side, so they may have changed places."""
    asked, answered = exchange.request.event.sent_s, exchange.answer.event.sent_s if exchange.answer else None
    return None if asked is None or answered is None else max(0.0, (answered - asked) * 1000)
