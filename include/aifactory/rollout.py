"""How a version goes into service: a stage decides, a target or an adapter makes it so.

Batch scoring follows a target, the champion pointer, which switches at once and whole. Online serving follows an
adapter, which is given the whole document of what is to serve (`aifactory.serving.traffic`) and says what does. Every
adapter passes `tests/serving/rollout_conformance.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from aifactory.registry import Champion, Registry
from aifactory.serving import traffic as documents
from aifactory.serving.traffic import Observed, Traffic

if TYPE_CHECKING:
    from aifactory.factory import Factory
    from aifactory.line import LineSpec
    from aifactory.store import Store


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


class RolloutAdapter(Protocol):
    """Something that serves a line as a document says. It may be slow: what is asked for is not yet what serves."""

    def wanted(self) -> Traffic:
        """The document that was applied last; an empty one, generation 0, before the first.

        Raises:
            ReleaseDefect: TRAFFIC_INVALID.
        """

    def apply(self, traffic: Traffic) -> None:
        """Ask for the next generation of the document. It returns before it is in force; again is allowed.

        Raises:
            Conflict: the document that this one follows is not the last one any more.
        """

    def observe(self) -> Observed | None:
        """What serves now: versions, refusals, live percent, and the generation in force; None before anything is."""


class DocumentAdapter:
    """The plant's slots and gateway: the controller follows the document in S3 and writes what it sees beside it."""

    def __init__(self, store: Store, line: str) -> None:
        self.store = store
        self.line = line

    def wanted(self) -> Traffic:
        """`traffic.json`."""
        return documents.read(self.store, self.line, datetime.now(UTC))

    def apply(self, traffic: Traffic) -> None:
        """One conditional write."""
        documents.write(self.store, traffic)

    def observe(self) -> Observed | None:
        """`observed.json`."""
        return documents.read_observed(self.store, self.line)


def open_adapter(f: Factory, spec: LineSpec) -> RolloutAdapter:
    """The adapter of what serves, by the setting `serving_target`.

    Raises:
        Defect: CLUSTER_DENIED: it is a cluster, and there is none.
    """
    if f.settings.serving_target == "plant":
        return DocumentAdapter(f.store, spec.line)
    from aifactory.serving.kserve import Place
    from aifactory.serving.kserveadapter import ClusterObjects, KServeAdapter, publish_repository

    def publish(version: str) -> str:
        return publish_repository(f.settings, f.store, spec.line, version)

    return KServeAdapter(ClusterObjects(f.settings.kserve_namespace), spec, Place.of(f.settings), publish)
