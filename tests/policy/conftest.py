"""The DAGs as Airflow loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aifactory.settings import REPOSITORY

INVENTORY = """
clusters:
  near:
    connection: kubernetes_near
    region: eu-nl
    offers: {own: {gpu_class: H200, units: 8, unit_power_w: 900}}
"""


@pytest.fixture(scope="session")
def capacity_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inventory: with it a plant has every DAG that there is."""
    path = tmp_path_factory.mktemp("capacity") / "capacity.yaml"
    path.write_text(INVENTORY)
    return path


@pytest.fixture(scope="session")
def dagbag(capacity_file: Path) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIF_CAPACITY_FILE", str(capacity_file))
        return DagBag(str(REPOSITORY / "dags"))
