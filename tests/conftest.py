"""Real stores for the tests: started once a session, with buckets of its own for every test that asks.

Airflow reads where its home and plugins are when it is first imported, so that is settled here, before any test module
imports it: a home of this session's own, and the plugins of this repository.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aifactory.factory import Factory
from aifactory.settings import REPOSITORY, Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_HOME = tempfile.mkdtemp(prefix="aif-tests-airflow-")
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
}


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def environments() -> None:
    """Share one environment of the MLflow server, and one of Triton, between all plants of the session.

    The first takes half a minute to build.
    """
    for name in ("mlflow", "triton"):
        os.environ.setdefault(f"AIF_{name.upper()}_ENV", str(REPOSITORY / "var" / f"{name}-env"))


@pytest.fixture(scope="session")
def demo_reports() -> dict[str, Any]:
    """Reports of the demos of this session, by the kind of plant that showed them: "containers", "embedded"."""
    return {}


@pytest.fixture(scope="session")
def plant_settings() -> Iterator[Settings]:
    """Postgres and S3, really running, ended with the session."""
    from plant.stores import start_stores

    with start_stores(bucket_wildcards=True) as settings:
        yield settings


@pytest.fixture(scope="session")
def mlflow_settings(environments: None) -> Iterator[Settings]:
    """Postgres, S3 and an MLflow server, really running, ended with the session."""
    from plant.stores import start_stores

    with start_stores(mlflow=True, bucket_wildcards=True) as settings:
        yield settings


@pytest.fixture
def factory(plant_settings: Settings, tmp_path: Path) -> Iterator[Factory]:
    """A factory with its own buckets and dataset repositories."""
    yield from _own_factory(plant_settings, tmp_path)


@pytest.fixture
def factory_mlflow(mlflow_settings: Settings, tmp_path: Path) -> Iterator[Factory]:
    """A factory with its own buckets and dataset repositories, and an MLflow server."""
    yield from _own_factory(mlflow_settings, tmp_path)


def _own_factory(settings: Settings, tmp_path: Path) -> Iterator[Factory]:
    from plant import objectstore

    mark = uuid.uuid4().hex[:8]
    git_root = tmp_path / "git"
    own = settings.model_copy(
        update={
            "landing_bucket": f"landing-{mark}",
            "factory_bucket": f"factory-{mark}",
            "dataset_git_root": str(git_root),
        }
    )
    objectstore.ensure_buckets(own)
    yield Factory(own)
    shutil.rmtree(git_root, ignore_errors=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium: the machine's own (Debian's package `chromium`), or the one that `AIF_CHROMIUM` names.

    One a module, not one a session: as long as it is there, Playwright's event loop runs in this thread, and no other
    test can run one.
    """
    from playwright.sync_api import expect, sync_playwright

    path = os.environ.get("AIF_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium; install Debian's package chromium, or set AIF_CHROMIUM")
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, nor in most containers
        expect.set_options(timeout=15_000)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
