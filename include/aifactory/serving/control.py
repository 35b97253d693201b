"""The controller of serving: makes slots and gateway like the documents, over and over, and says what it sees.

A turn reads every line's document (`traffic`), takes traffic off what is about to change, fills the slots, gives
traffic to what has passed its self-test, and writes what is in force (`observed.json`) and, while one is tried,
what was counted since (`counts.json`). Nothing is remembered that another controller would miss: killed anywhere,
the next one begins a turn. A server that comes back empty is filled again; but a challenger whose server ended while it
was being tried is not, for that is an answer too.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aifactory.errors import AnswerLate, FactoryError, InfrastructureFault, PackageDefect
from aifactory.packaging import MODEL_FILE
from aifactory.reasons import ReasonCode
from aifactory.serving import pulse
from aifactory.serving import traffic as documents
from aifactory.serving.gateway import LineRoute
from aifactory.serving.routing import counted_key
from aifactory.serving.traffic import Observed, ObservedSlot, Refusal, SlotName, Stage, Traffic

if TYPE_CHECKING:
    from aifactory.serving.repository import ModelRepository
    from aifactory.serving.routing import Routing
    from aifactory.serving.slot import Slot
    from aifactory.store import Store

log = logging.getLogger(__name__)

TURN_S = 1.0
GOLDEN_EVERY_S = 15.0
"""A version that serves is asked its golden rows this often, s."""

LATE_S = 15.0
"""What answers late is taken for slow this long, and for lost then, s: loading it anew makes a busy machine slower.
Longer than the gateway lets a caller wait; not much longer, for a model process of Triton's that died under traffic
looks just like this."""

_TRIED = (Stage.SHADOW, Stage.CANARY)

Fetch = Callable[[str, str], tuple[Mapping[str, Any], Mapping[str, bytes]]]
"""Manifest and files of (line, version), verified."""


@dataclass
class Patience:
    """With whoever answers late."""

    since: float | None = None

    def lasts(self) -> bool:
        """Whether another late answer is still waited for; the first one begins it."""
        self.since = time.monotonic() if self.since is None else self.since
        return time.monotonic() - self.since < LATE_S

    def renew(self) -> None:
        """It has answered."""
        self.since = None


@dataclass
class Berth:
    """One line's place in one slot.

    Attributes:
        version: what is loaded and has passed its self-test.
        manifest: of that version.
        asked_at: when it was last asked its golden rows, seconds of a clock that only rises.
        refused: the version that was not taken ...
        refused_in: ... and in which generation of the document that was.
        patience: with its answers to the golden rows.
    """

    version: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    asked_at: float = 0.0
    refused: Refusal | None = None
    refused_in: int = -1
    patience: Patience = field(default_factory=Patience)


@dataclass
class ServedSlot:
    """A model server, its repository, what is known of the lines in it, and patience with what it says of itself."""

    server: Slot
    repository: ModelRepository
    berths: dict[str, Berth] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)

    def berth(self, line: str) -> Berth:
        """The line's place; an empty one at first."""
        return self.berths.setdefault(line, Berth())


@dataclass
class _Force:
    """Which generation of a line's document is in force, since when, with which share routed."""

    generation: int
    since: datetime
    percent: int


class Controller:
    """The one program that speaks to model servers and gateway.

    Args:
        store: of the factory.
        slots: the two servers.
        gateway: writes routes and says which are live.
        fetch: verified packages.
        now: the time.
    """

    def __init__(
        self,
        store: Store,
        slots: Mapping[SlotName, ServedSlot],
        gateway: Routing,
        fetch: Fetch,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._slots = slots
        self._gateway = gateway
        self._fetch = fetch
        self._now = now
        self._documents: dict[str, Traffic] = {}
        self._in_force: dict[str, _Force] = {}
        self._told: dict[str, Observed] = {}

    def turn(self, lines: Iterable[str]) -> None:
        """One turn over these lines. What fails of one line or slot holds up no other; it is tried again next turn."""
        unread = [line for line in lines if not self._read(line)]
        if unread:
            log.warning("routes stay as they are: what serves %s has not been read yet", ", ".join(unread))
            return
        for name, slot in self._slots.items():
            self._look(name, slot)
        self._route()
        for document in self._documents.values():
            for name, slot in self._slots.items():
                self._fill(document, name, slot)
        for line, route in self._route().items():
            try:
                self._tell(self._documents[line], route)
            except FactoryError as error:
                log.warning("what serves %s cannot be told: %s", line, error)

    # --- what is wanted, what is there
    def _read(self, line: str) -> bool:
        """The line's document; where it cannot be read, the one that was read last stays in force.

        Returns:
            whether it is known what the line wants. Without, no routes may be written: they would be without the line.
        """
        try:
            document = documents.read(self._store, line, self._now())
        except FactoryError as error:
            log.warning("what serves %s stays as it is: %s", line, error)
            return line in self._documents
        if document.generation:
            self._documents[line] = document
        return True

    def _look(self, name: SlotName, slot: ServedSlot) -> None:
        """Forget what a server no longer has."""
        try:
            loaded = slot.server.loaded()
            slot.patience.renew()
        except InfrastructureFault as fault:
            log.warning("%s", fault)
            if isinstance(fault, AnswerLate) and slot.patience.lasts():
                return
            loaded = {}
        for line, berth in slot.berths.items():
            if berth.version is None or (berth.version in loaded.get(line, []) and self._answers(slot, line, berth)):
                continue
            log.warning("slot %s has lost version %s of %s", name, berth.version, line)
            document = self._documents.get(line)
            if document and document.stage in _TRIED and name == document.challenger_slot:
                said = f"the server of slot {name} ended or dropped it while it was being tried"
                self._refuse(
                    document, berth, Refusal(version=berth.version, reason=ReasonCode.CHALLENGER_LOST, message=said)
                )
            berth.version = None

    @staticmethod
    def _answers(slot: ServedSlot, line: str, berth: Berth, *, patient: bool = True) -> bool:
        """Whether a version still gives its golden outputs: a server may call ready what answers no more."""
        if time.monotonic() - berth.asked_at < GOLDEN_EVERY_S or berth.version is None:
            return True
        try:
            slot.server.check_golden(line, berth.version, berth.manifest)
        except FactoryError as error:
            log.warning("%s", error)
            if patient and isinstance(error, AnswerLate) and berth.patience.lasts():
                return True
            slot.repository.renew(line)
            return False
        berth.asked_at = time.monotonic()
        berth.patience.renew()
        return True

    # --- the slots
    def _fill(self, document: Traffic, name: SlotName, slot: ServedSlot) -> None:
        """Make a slot hold what its document says of it."""
        line, wanted, berth = document.line, document.slots[name], slot.berth(document.line)
        if wanted == berth.version or (berth.refused_in == document.generation and berth.refused):
            return
        try:
            if wanted is None:
                self._empty(line, slot)
                return
            self._load(line, wanted, slot)
        except PackageDefect as defect:
            log.warning("slot %s refuses version %s of %s: %s", name, wanted, line, defect)
            self._refuse(document, berth, Refusal(version=wanted or "", reason=defect.reason, message=defect.message))
        except InfrastructureFault as fault:
            log.warning("slot %s is not filled with version %s of %s yet: %s", name, wanted, line, fault)

    def _load(self, line: str, version: str, slot: ServedSlot) -> None:
        manifest, bodies = self._fetch(line, version)
        slot.repository.write(line, version, manifest, bodies[MODEL_FILE])
        for other in slot.repository.versions(line):
            if other != version:  # a request that names no version gets the highest one that is there
                slot.repository.remove(line, other)
        berth = slot.berth(line)
        berth.version = None
        slot.server.load(line)
        try:
            slot.server.check_golden(line, version, manifest, first=True)
        except PackageDefect:
            self._empty(line, slot)
            raise
        berth.version, berth.manifest, berth.asked_at, berth.refused = version, manifest, time.monotonic(), None
        berth.patience.renew()
        log.info("slot %s has version %s of %s, and it gives its golden outputs", slot.server.name, version, line)

    def _empty(self, line: str, slot: ServedSlot) -> None:
        berth = slot.berth(line)
        berth.asked_at = -math.inf
        if not self._answers(slot, line, berth, patient=False):
            slot.server.load(line)  # to unload a model whose process died may take for ever: it gets another first
        slot.server.unload(line)
        for version in slot.repository.versions(line):
            slot.repository.remove(line, version)
        slot.berth(line).version = None

    @staticmethod
    def _refuse(document: Traffic, berth: Berth, refusal: Refusal) -> None:
        berth.refused, berth.refused_in = refusal, document.generation

    # --- the gateway
    def _route(self) -> dict[str, LineRoute]:
        """Write the routes that the documents allow now; those that are live, by line."""
        wanted = {line: self._line_route(document) for line, document in self._documents.items()}
        try:
            live = self._gateway.ensure(tuple(wanted.values()))
        except InfrastructureFault as fault:
            log.warning("%s", fault)
            return {}
        return wanted if live else {}

    def _line_route(self, document: Traffic) -> LineRoute:
        """A challenger gets traffic once it is loaded, and then until its document says otherwise.

        Where its server ends, its share falls back to the champion request by request; where nobody looks after the
        rollout, all at once.
        """
        berth = self._slots[document.challenger_slot].berth(document.line)
        there = document.challenger is not None and berth.version == document.challenger
        if document.stage not in _TRIED or not self._looked_after(document):
            return LineRoute(document.line, document.champion_slot, fallback=there and document.at_rest)
        known = self._in_force.get(document.line)
        routed = known is not None and known.generation == document.generation and known.percent > 0
        return LineRoute(
            document.line,
            document.champion_slot,
            challenger_percent=document.percent if there or routed else 0,
            mirror_percent=100 if there and document.stage is Stage.SHADOW else 0,
        )

    def _looked_after(self, document: Traffic) -> bool:
        try:
            return pulse.alive(self._store, document, self._now())
        except FactoryError as error:
            log.warning("whether the rollout of %s is looked after is not known: %s", document.line, error)
            return False

    # --- what is said
    def _tell(self, document: Traffic, route: LineRoute) -> None:
        """Say what is in force, where that is news."""
        line, known = document.line, self._in_force.get(document.line)
        if known is None or known.generation != document.generation:
            self._gateway.begin_counting(line)
            known = self._in_force[line] = _Force(document.generation, self._now(), 0)
        known.percent = route.challenger_percent
        observed = Observed(
            line=line,
            generation=known.generation,
            since=known.since,
            slots={name: self._seen(slot.berth(line)) for name, slot in self._slots.items()},
            percent=known.percent,
        )
        if observed != self._told.get(line):
            documents.write_observed(self._store, observed)
            self._told[line] = observed
        if document.stage in _TRIED:
            self._store.put_json(
                counted_key(line), self._gateway.counted(document, known.since).model_dump(mode="json")
            )

    @staticmethod
    def _seen(berth: Berth) -> ObservedSlot:
        return ObservedSlot(version=berth.version, refused=berth.refused)
