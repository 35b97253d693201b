"""The document adapter in a real S3, with a controller that follows documents as the plant's does, without servers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.serving.rollout_conformance import RolloutConformance, World

from aifactory.errors import ReleaseDefect
from aifactory.factory import Factory
from aifactory.reasons import ReasonCode
from aifactory.rollout import DocumentAdapter
from aifactory.serving import traffic as documents
from aifactory.serving.traffic import Observed, ObservedSlot, Refusal, SlotName, Traffic
from aifactory.store import Conflict, Store

pytestmark = pytest.mark.integration


class FollowingController:
    """Loads what the document names and writes what it sees; all that it knows is in the store or in its slots."""

    def __init__(self, store: Store, line: str) -> None:
        self.store = store
        self.line = line
        self.adapter = DocumentAdapter(store, line)
        self.loaded: dict[SlotName, ObservedSlot] = {"a": ObservedSlot(), "b": ObservedSlot()}
        self.spoilt: dict[str, Refusal] = {}

    def settle(self) -> None:
        wanted = self.adapter.wanted()
        if wanted.generation:
            self.loaded = {slot: self._filled(version) for slot, version in wanted.slots.items()}
            self._report(wanted)

    def spoil(self, version: str, reason: ReasonCode, message: str) -> None:
        self.spoilt[version] = Refusal(version=version, reason=reason, message=message)

    def crash(self, slot: SlotName) -> None:
        self.loaded[slot] = ObservedSlot()
        self._report(self.adapter.wanted())

    def _filled(self, version: str | None) -> ObservedSlot:
        refused = self.spoilt.get(version or "")
        return ObservedSlot(version=None if refused else version, refused=refused)

    def _report(self, wanted: Traffic) -> None:
        before = self.adapter.observe()
        same = before is not None and before.generation == wanted.generation
        documents.write_observed(
            self.store,
            Observed(
                line=self.line,
                generation=wanted.generation,
                since=before.since if before and same else datetime.now(UTC),
                slots=self.loaded,
                percent=wanted.percent,
            ),
        )


class TestDocuments(RolloutConformance):
    @pytest.fixture
    def world(self, factory: Factory) -> World:
        return FollowingController(factory.store, "flight_delay")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"line": "x"}', b'{"line": "x", "percent": 100}'])
def test_a_document_that_cannot_be_read_is_a_named_defect_and_is_never_overwritten(
    factory: Factory, content: bytes
) -> None:
    adapter = DocumentAdapter(factory.store, "x")
    factory.store.put(documents.traffic_key("x"), content)
    factory.store.put(documents.observed_key("x"), content)
    follower = Traffic(line="x", generation=1, since=datetime.now(UTC))
    for act in [adapter.wanted, adapter.observe, lambda: adapter.apply(follower)]:
        with pytest.raises(ReleaseDefect, match="serving/x/") as caught:
            act()
        assert caught.value.reason is ReasonCode.TRAFFIC_INVALID
    assert factory.store.get(documents.traffic_key("x")) == content


def test_a_write_that_was_overtaken_between_reading_and_writing_loses(factory: Factory) -> None:
    class Overtaken(Store):
        """Another writer is faster, after this one has read."""

        def put_json(self, key: str, value: object, **conditions: object) -> str:  # type: ignore[override]
            factory.store.put_json(key, {**dict(value), "explanation": "the faster one"})  # type: ignore[call-overload]
            return super().put_json(key, value, **conditions)  # type: ignore[arg-type]

    store = Overtaken(factory.settings, factory.store.bucket)
    with pytest.raises(Conflict):
        documents.write(store, Traffic(line="x", generation=1, since=datetime.now(UTC)))
    assert documents.read(factory.store, "x", datetime.now(UTC)).explanation == "the faster one"


def test_lines_do_not_see_each_other(factory: Factory) -> None:
    one, other = DocumentAdapter(factory.store, "one"), DocumentAdapter(factory.store, "other")
    one.apply(Traffic(line="one", generation=1, since=datetime.now(UTC)))
    assert (one.wanted().generation, other.wanted().generation) == (1, 0)
