"""deploy and rollback with the real MLflow and S3."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.model_rows import small_line
from tests.served import trained

from aifactory.errors import PackageDefect, ReleaseDefect
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.line import LineSpec
from aifactory.packaging import write_package
from aifactory.reasons import ReasonCode
from aifactory.signing import SIGNATURE_FILE
from aifactory.stages.deploy import promote, rollback
from aifactory.store import Conflict

pytestmark = pytest.mark.integration


@pytest.fixture
def line(factory_mlflow: Factory) -> LineSpec:
    """A line with a name of its own: the ledger and MLflow are shared by the session."""
    return small_line().model_copy(update={"line": factory_mlflow.settings.factory_bucket.replace("-", "_")})


def candidate(f: Factory, spec: LineSpec, number: int) -> str:
    until = f"2013-01-{20 + number}"
    onnx, manifest = trained("2013-01-01", until)
    prefix = f"candidates/{spec.line}/order-{number}/refit"
    write_package(f.store, prefix, manifest, onnx, None)
    order = {"order_id": f"order-{number}", "recipe": "gradient_boosting", "revision": "r", "dir_md5": "d"}
    return f.registry(spec).register(order, prefix, {"roc_auc": 0.7}, None).version


def happened(f: Factory, spec: LineSpec, *kinds: EventKind) -> list[ProductionEvent]:
    return [e for e in f.ledger.events(line=spec.line, station="deploy") if e.event in kinds]


def alias(f: Factory, spec: LineSpec, name: str) -> str:
    return str(f.registry(spec).client.get_model_version_by_alias(spec.line, name).version)


def test_promote_switches_pointer_and_aliases_once(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    first, second = candidate(f, line, 1), candidate(f, line, 2)
    promote(f, line, first, "run-1")
    said = promote(f, line, second, "run-2")
    assert (said["version"], said["previous"], said["trained_until"]) == (second, first, "2013-01-22")
    assert (alias(f, line, "champion"), alias(f, line, "previous")) == (second, first)
    before = f.store.head(f"serving/{line.line}/champion.json")
    assert promote(f, line, second, "run-3") == said
    assert f.store.head(f"serving/{line.line}/champion.json") == before
    assert [(e.unit, e.run_id) for e in happened(f, line, EventKind.PROMOTED)] == [(first, "run-1"), (second, "run-2")]


def test_only_what_the_plant_has_signed_goes_into_service(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    version = candidate(f, line, 1)
    prefix = f.registry(line).package_prefix(version)
    signature = f.store.get(f"{prefix}/{SIGNATURE_FILE}")
    f.store.delete(f"{prefix}/{SIGNATURE_FILE}")
    with pytest.raises(PackageDefect, match=r"has no model\.sig"):
        promote(f, line, version, "run-1")
    f.store.put(f"{prefix}/{SIGNATURE_FILE}", signature)
    onnx, manifest = trained("2013-01-01", "2013-01-22")
    f.store.delete(f"{prefix}/manifest.json")
    write_package(f.store, prefix, manifest, onnx, None)  # whole, its hashes right, and not what was signed
    with pytest.raises(PackageDefect, match="Hash mismatch") as caught:
        promote(f, line, version, "run-2")
    assert caught.value.reason is ReasonCode.PACKAGE_UNSIGNED
    assert f.registry(line).champion() is None
    assert [e.reason for e in happened(f, line, EventKind.FAILED)] == [ReasonCode.PACKAGE_UNSIGNED]


def test_back_by_default_to_the_one_before_and_forward_again(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    first, second = candidate(f, line, 1), candidate(f, line, 2)
    promote(f, line, first, "run-1")
    promote(f, line, second, "run-2")
    back = rollback(f, line, None, "back-1", by="anna", why="too many false alarms")
    assert back["version"] == first
    assert rollback(f, line, None, "back-1", by="anna", why="too many false alarms") == back, "a retry goes back once"
    assert (alias(f, line, "champion"), alias(f, line, "previous")) == (first, second)
    [event] = happened(f, line, EventKind.ROLLED_BACK)
    assert (event.unit, event.reason) == (second, ReasonCode.ROLLED_BACK)
    assert (event.detail["by"], event.detail["why"]) == ("anna", "too many false alarms")

    assert rollback(f, line, second, "back-2", by="anna", why="it was the data")["version"] == second
    assert promote(f, line, first, "run-3")["version"] == first
    units = [(e.event, e.unit) for e in happened(f, line, EventKind.PROMOTED, EventKind.ROLLED_BACK)]
    assert units == [
        (EventKind.PROMOTED, first),
        (EventKind.PROMOTED, second),
        (EventKind.ROLLED_BACK, second),
        (EventKind.ROLLED_BACK, first),
        (EventKind.PROMOTED, first),
    ], "promoted again is a reign of its own"


def test_a_late_retry_of_a_rollback_leaves_the_release_after_it_alone(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    versions = [candidate(f, line, n) for n in (1, 2, 3)]
    promote(f, line, versions[0], "run-1")
    promote(f, line, versions[1], "run-2")
    rollback(f, line, None, "back", by="anna", why="bad")
    promote(f, line, versions[2], "run-3")
    assert rollback(f, line, None, "back", by="anna", why="bad")["version"] == versions[2]


def test_rolling_back_to_what_serves_changes_nothing(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    first = candidate(f, line, 1)
    promote(f, line, first, "run")
    assert rollback(f, line, first, "back", by="anna", why="sure is sure")["version"] == first
    assert happened(f, line, EventKind.ROLLED_BACK) == []


def test_what_cannot_be_released_is_refused_with_its_reason(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    with pytest.raises(ReleaseDefect) as caught:
        rollback(f, line, None, "back-0", by="anna", why="bad")
    assert caught.value.reason is ReasonCode.NO_CHAMPION
    first, second = candidate(f, line, 1), candidate(f, line, 2)
    promote(f, line, first, "run-1")
    with pytest.raises(ReleaseDefect) as caught:
        rollback(f, line, None, "back-1", by="anna", why="bad")
    assert caught.value.reason is ReasonCode.NO_PREVIOUS
    for attempt in (lambda: promote(f, line, "99", "run-99"), lambda: rollback(f, line, "99", "b-99", by="a", why="b")):
        with pytest.raises(ReleaseDefect) as caught:
            attempt()
        assert caught.value.reason is ReasonCode.VERSION_UNKNOWN

    graph = f"models/{line.line}/{second}/model.onnx"
    f.store.put(graph, f.store.get(graph)[:-10])
    with pytest.raises(PackageDefect):
        promote(f, line, second, "run-2")
    champion = f.registry(line).champion()
    assert champion is not None
    assert champion.version == first, "the champion in service stays in service"
    failed = {(e.unit, e.reason) for e in happened(f, line, EventKind.FAILED)}
    assert (second, ReasonCode.PACKAGE_INVALID) in failed
    assert ("99", ReasonCode.VERSION_UNKNOWN) in failed


def test_two_releases_at_once_lose_neither_history_nor_order(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    versions = [candidate(f, line, n) for n in (1, 2, 3)]
    promote(f, line, versions[0], "run-1")

    def release(version: str) -> bool:
        try:
            promote(Factory(f.settings), line, version, f"run-{version}")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(release, versions[1:]))
    champion = f.registry(line).champion()
    assert champion is not None
    assert len(champion.history) == 1 + sum(won)
    assert any(won)
