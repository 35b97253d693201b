"""Where the time of a training program goes: at every moment of its life it is in one part.

    START           the program starts: imports, its order, the run in MLflow
    READ            the rows are read from the store; where they are streamed, their first pass
    PREPARE         columns become tensors and a checkpoint is taken up, until the first step
    DATA_WAIT       the loop waits for the rows of its batch, or for the window that they are in
    HOST            the loop's own Python; on a GPU the launching of kernels too, while the device computes
    COMPUTE         on a CPU the passes and the optimizer; on a GPU the wait for the device
    COMMUNICATION   the loop waits for other processes
    CHECKPOINT      the loop stands still for a checkpoint
    EXPORT          what comes after the last step: export, proof, package, and the end of the program

On a GPU nothing is added that would wait for the device: `COMPUTE` is the wait that the loop has anyway, for the loss
of every step, and all that was launched before it is done by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Part(IntEnum):
    """See the module. A number, for it is a place in a list."""

    START = 0
    READ = 1
    PREPARE = 2
    DATA_WAIT = 3
    HOST = 4
    COMPUTE = 5
    COMMUNICATION = 6
    CHECKPOINT = 7
    EXPORT = 8


STEP_PARTS = (Part.DATA_WAIT, Part.HOST, Part.COMPUTE, Part.COMMUNICATION, Part.CHECKPOINT)
"""The parts that a step is made of."""

_HOST = Part.HOST  # Python 3.11 takes longer to find a member of an enum than to look at the clock


@dataclass(frozen=True)
class Spent:
    """What a clock showed at a moment.

    Attributes:
        ns: nanoseconds by part; in the order of `Part`.
        again_ns: what of them went into steps that an earlier attempt had done already.
        first_step: steps that were done when the loop began; None before it did.
        step: steps that are done.
    """

    ns: tuple[int, ...]
    again_ns: tuple[int, ...]
    first_step: int | None = None
    step: int = 0

    @property
    def wall_ns(self) -> int:
        """Nanoseconds since the program started."""
        return sum(self.ns)

    def seconds(self) -> dict[str, float]:
        """Seconds by the name of the part."""
        return {part.name.lower(): self.ns[part] / 1e9 for part in Part}


class StepClock:
    """Shows where the time went; told by the thread that trains, read by any.

    Args:
        age_s: for how long the program has run already, s.
        rework_until: steps that earlier attempts had done: until then a step is done again.
        now_ns: nanoseconds that only rise.
    """

    def __init__(
        self, age_s: float = 0.0, rework_until: int = 0, now_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._now_ns = now_ns
        self._began = self._since = now_ns() - round(age_s * 1e9)
        self._first, self._again = [0] * len(Part), [0] * len(Part)
        self._into = self._first
        self._part = Part.START
        self._first_step: int | None = None
        self._step = 0
        self.rework_until = rework_until

    def enter(self, part: Part) -> None:
        """From now on the program is in this part."""
        now = self._now_ns()
        self._into[self._part] += now - self._since
        self._since, self._part = now, part

    def step(self, done: int) -> None:
        """So many steps are done, and the loop goes on: to be called before the first step, too."""
        self.enter(_HOST)
        self._into = self._again if done < self.rework_until else self._first
        if self._first_step is None:
            self._first_step = done
        self._step = done

    def read(self) -> Spent:
        """What the clock shows. However the loop goes on meanwhile, the parts sum up to the time since the start."""
        part, again = self._part, self._into is self._again
        first_ns, again_ns = list(self._first), list(self._again)
        rest = self._now_ns() - self._began - sum(first_ns) - sum(again_ns)
        (again_ns if again else first_ns)[part] += rest
        both = tuple(a + b for a, b in zip(first_ns, again_ns, strict=True))
        return Spent(both, tuple(again_ns), self._first_step, self._step)
