"""The registry with the real MLflow and S3: versions, the atomic pointer, aliases that follow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of

from aifactory.errors import PackageDefect, ReleaseDefect
from aifactory.factory import Factory
from aifactory.packaging import golden, load_package, write_package
from aifactory.reasons import ReasonCode
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
from aifactory.registry import Registry
from aifactory.store import Conflict

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fitted() -> Any:
    rows = TrainingFrame.of(days_of("2013-01-01", "2013-01-10"), CATEGORICAL, NUMERIC, TARGET)
    params = check_parameters("gradient_boosting", {"num_trees": 5})
    return load_recipe("gradient_boosting").fit(rows, params, seed=1, threads=1)


@pytest.fixture
def registry(factory_mlflow: Factory) -> Registry:
    return Registry(factory_mlflow.settings, "small_line", factory_mlflow.store)


def register(f: Factory, registry: Registry, fitted: Any, number: int) -> str:
    rows = days_of("2013-01-01", "2013-01-01").slice(0, 8)
    inputs = golden(rows, CATEGORICAL, NUMERIC)
    manifest = {
        "order_id": f"order-{number}",
        "trained_until": f"2013-01-{number:02d}",
        "features": {"categorical": CATEGORICAL, "numeric": NUMERIC},
        "golden": {"inputs": inputs, "outputs": [float(p) for p in fitted.predict(rows)]},
    }
    prefix = f"candidates/small_line/order-{number}/refit"
    write_package(f.store, prefix, manifest, fitted.to_onnx(), None)
    order = {"order_id": f"order-{number}", "recipe": "gradient_boosting", "revision": "abc", "dir_md5": "def"}
    return registry.register(order, prefix, {"roc_auc": 0.7}, None).version


def test_versions_champion_and_aliases(factory_mlflow: Factory, registry: Registry, fitted: Any) -> None:
    f = factory_mlflow
    assert registry.champion() is None
    assert registry.champions() == []
    assert registry.versions() == []
    first, second = register(f, registry, fitted, 1), register(f, registry, fitted, 2)
    assert register(f, registry, fitted, 1) == first, "the same order is the same version"
    assert [v.version for v in registry.versions()] == [first, second]
    assert registry.version(first).tags["metric.roc_auc"] == "0.700000"
    assert load_package(f, registry.package_prefix(first)).trained_until == "2013-01-01"

    one = registry.switch(first, expected_etag=None)
    assert (one.version, one.previous) == (first, None)
    two = registry.switch(second, expected_etag=one.etag)
    assert (two.version, two.previous, two.trained_until) == (second, first, "2013-01-02")
    back = registry.switch(first, expected_etag=two.etag, how="rolled_back", by="anna", why="late again")
    assert [(r["version"], r["how"]) for r in back.history] == [
        (first, "promoted"), (second, "promoted"), (first, "rolled_back"),
    ]  # fmt: skip
    assert back.history[-1]["by"] == "anna"
    assert registry.champion() == back
    assert registry.client.get_model_version_by_alias("small_line", "champion").version == first
    assert registry.client.get_model_version_by_alias("small_line", "previous").version == second


def test_a_rerun_changes_nothing_and_repairs_the_aliases(
    factory_mlflow: Factory, registry: Registry, fitted: Any
) -> None:
    first = register(factory_mlflow, registry, fitted, 1)
    one = registry.switch(first, expected_etag=None)
    registry.client.delete_registered_model_alias("small_line", "champion")
    assert registry.switch(first, expected_etag=one.etag) == one
    assert registry.client.get_model_version_by_alias("small_line", "champion").version == first


def test_one_of_two_releases_wins(factory_mlflow: Factory, registry: Registry, fitted: Any) -> None:
    f = factory_mlflow
    versions = [register(f, registry, fitted, n) for n in (1, 2, 3)]
    one = registry.switch(versions[0], expected_etag=None)
    with pytest.raises(Conflict):
        registry.switch(versions[1], expected_etag=None)

    def release(version: str) -> str | None:
        try:
            own = Registry(f.settings, "small_line", f.store)
            return own.switch(version, expected_etag=one.etag).version
        except Conflict:
            return None

    with ThreadPoolExecutor(2) as pool:
        won = [v for v in pool.map(release, versions[1:]) if v]
    champion = registry.champion()
    assert champion is not None
    assert won == [champion.version]
    assert len(champion.history) == 2


def test_a_half_made_version_is_finished(factory_mlflow: Factory, registry: Registry, fitted: Any) -> None:
    """A crash after MLflow knew the version and before its package was whole."""
    f = factory_mlflow
    version = register(f, registry, fitted, 1)
    f.store.delete(f"{registry.package_prefix(version)}/manifest.json")
    registry.client.delete_model_version_tag("small_line", version, "package")
    assert registry.versions() == []
    with pytest.raises(PackageDefect):
        load_package(f, registry.package_prefix(version))
    assert register(f, registry, fitted, 1) == version
    assert [v.version for v in registry.versions()] == [version]
    load_package(f, registry.package_prefix(version))


def test_an_unknown_version_is_named(registry: Registry) -> None:
    with pytest.raises(ReleaseDefect, match="no version '7'") as caught:
        registry.switch("7", expected_etag=None)
    assert caught.value.reason is ReasonCode.VERSION_UNKNOWN
