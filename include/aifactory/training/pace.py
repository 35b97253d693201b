"""How long a training still takes, for people who watch its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class Pace:
    """The time to go, by the speed since the first step that was told; what was done before a stop does not count.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def to_go(self, step: int, steps: int) -> str:
        """Time until step `steps`, `step` of them being done, as h:mm:ss; "?" until there is a speed."""
        now = self._clock()
        if self._first is None:
            self._first = step, now
        done, seconds = step - self._first[0], now - self._first[1]
        if done <= 0:
            return "0:00:00" if step >= steps else "?"
        return str(timedelta(seconds=round(seconds / done * (steps - step))))
