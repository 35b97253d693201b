"""SIGTERM, as a pod that is evicted and an operator who cancels send it: stop soon, and lose nothing."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aifactory.recipes.base import Stopped

log = logging.getLogger(__name__)

_SAME_S = 2.0
"""Signals so close to the first are the same wish: a task that is cancelled sends one, and its end another."""


class StopSignal:
    """Ends the program at once, but for a loop that has promised to look; the second signal ends that one too."""

    def __init__(self) -> None:
        self.requested = False
        self._attended = False
        self._asked_at = 0.0

    def install(self) -> None:
        """Be the answer to SIGTERM from now on; of the main thread alone."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Within, somebody looks at `requested` often, and ends by himself."""
        self._attended = True
        try:
            yield
        finally:
            self._attended = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._attended and not self.requested:
            self.requested, self._asked_at = True, now
            return
        if self._attended and now - self._asked_at < _SAME_S:
            return
        raise Stopped
