"""Real stores for the tests: started once a session, with buckets of its own for every test that asks."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aifactory.factory import Factory
from aifactory.settings import Settings


@pytest.fixture(scope="session")
def mlflow_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share one MLflow server environment between all plants of the session (it takes half a minute to build)."""
    import os

    from aifactory.settings import REPOSITORY

    os.environ.setdefault("AIF_MLFLOW_ENV", str(REPOSITORY / "var" / "mlflow-env"))


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
def mlflow_settings(mlflow_environment: None) -> Iterator[Settings]:
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
