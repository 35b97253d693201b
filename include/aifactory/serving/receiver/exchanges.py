"""Which answer belongs to which request, in a bounded memory. Pure; the caller says what time it is.

Events come in any order, and twice, for agents send them side by side. A request that no answer follows within `wait_s`
has failed; an answer that no request follows says nothing, for the request may have come to a receiver that is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from aifactory.serving.receiver.events import Event
from aifactory.serving.server.oip import Refusal

Key = tuple[str, str, str]
"""Line, version, id of the event."""

_HELD_BYTES = 1000  # what Python adds to a held event


class Said(NamedTuple):
    """An event with its body; None where that was not taken: too large, or too much at once."""

    event: Event
    body: bytes | None


@dataclass(frozen=True)
class Role:
    """What a version was when a request came: the generation of the document in force, and whether nobody got its
    answer."""

    generation: int
    shadow: bool


class Exchange(NamedTuple):
    """A request and what became of it; no answer means that there was none in time."""

    key: Key
    role: Role
    request: Said
    answer: Said | None


class _Asked(NamedTuple):
    request: Said
    role: Role
    due: float


class _Early(NamedTuple):
    answer: Said
    due: float


class Exchanges:
    """The requests that wait for their answers, and the answers that came first.

    Args:
        max_bytes: of all that is held; what comes on top is refused.
        wait_s: how long a request waits for its answer, or an answer for its request, s.
        max_known: ids of ended exchanges that are known again.
    """

    def __init__(self, max_bytes: int = 64 << 20, wait_s: float = 20.0, max_known: int = 100_000) -> None:
        self.max_bytes = max_bytes
        self.wait_s = wait_s
        self.held_bytes = 0
        self._max_known = max_known
        self._asked: OrderedDict[Key, _Asked] = OrderedDict()
        self._early: OrderedDict[Key, _Early] = OrderedDict()
        self._known: OrderedDict[Key, None] = OrderedDict()

    def take(self, key: Key, said: Said, role: Role, now: float) -> Exchange | None:
        """Take an event; the exchange that is whole with it.

        An answer to a request that waits is always taken: refused, it would make a failure of a success.

        Raises:
            Refusal: 409, it was taken before; 503, too much is held.
        """
        if key in self._known or key in (self._early if said.event.answer else self._asked):
            raise Refusal(409, f"event {said.event.id[:80]!r} was taken before")
        if said.event.answer:
            if (asked := self._asked.pop(key, None)) is not None:
                return self._ended(key, asked, said)
            self._hold(said)
            self._early[key] = _Early(said, now + self.wait_s)
            return None
        if (early := self._early.pop(key, None)) is not None:
            self._release(early.answer)
            self._know(key)
            return Exchange(key, role, said, early.answer)
        self._hold(said)
        self._asked[key] = _Asked(said, role, now + self.wait_s)
        return None

    def overdue(self, now: float) -> tuple[list[Exchange], int]:
        """The requests that got no answer in time, and how many answers came without a request."""
        failed = []
        while self._asked and next(iter(self._asked.values())).due <= now:
            key, asked = self._asked.popitem(last=False)
            failed.append(self._ended(key, asked, None))
        num_orphans = 0
        while self._early and next(iter(self._early.values())).due <= now:
            key, early = self._early.popitem(last=False)
            self._release(early.answer)
            self._know(key)
            num_orphans += 1
        return failed, num_orphans

    def _ended(self, key: Key, asked: _Asked, answer: Said | None) -> Exchange:
        self._release(asked.request)
        self._know(key)
        return Exchange(key, asked.role, asked.request, answer)

    def _know(self, key: Key) -> None:
        self._known[key] = None
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    def _hold(self, said: Said) -> None:
        if self.held_bytes + _size(said) > self.max_bytes:
            raise Refusal(503, f"{self.held_bytes} bytes of events wait for their counterparts already")
        self.held_bytes += _size(said)

    def _release(self, said: Said) -> None:
        self.held_bytes -= _size(said)


def _size(said: Said) -> int:
    return _HELD_BYTES + len(said.event.id) + len(said.body or b"")
