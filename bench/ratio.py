"""One measured ratio against a baseline of the same run, with its goal; or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Skipped(Exception):
    """A bench cannot run here; the message says what it needs. It is neither broken nor met."""


@dataclass(frozen=True)
class Ratio:
    """A measurement: `value` is ours ÷ baseline, or baseline ÷ ours, as the name says."""

    name: str
    value: float
    goal: float
    at_most: bool = True
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal
