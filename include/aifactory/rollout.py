"""How a version goes into service. The seam for online serving: a target knows how to shift traffic, a stage decides.

Today there is one target: the champion pointer that batch scoring follows, which switches at once and whole.
"""

from __future__ import annotations

from typing import Protocol

from aifactory.registry import Champion, Registry


class RolloutTarget(Protocol):
    """Something that serves one version of a line."""

    def in_service(self) -> Champion | None:
        """The version in service, or None where there is none yet."""

    def switch(self, version: str, seen: Champion | None, *, how: str, by: str, why: str) -> Champion:
        """Put a version into service whole, if what is in service is still what the caller saw.

        Raises:
            Conflict: somebody else switched meanwhile.
        """


class PointerTarget:
    """The champion pointer in the serving repository."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def in_service(self) -> Champion | None:
        """What the pointer says."""
        return self.registry.champion()

    def switch(self, version: str, seen: Champion | None, *, how: str, by: str, why: str) -> Champion:
        """One conditional write."""
        return self.registry.switch(version, expected_etag=seen.etag if seen else None, how=how, by=by, why=why)
