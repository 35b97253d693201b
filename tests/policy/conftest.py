"""The DAGs as Airflow loads them, with a database and a home of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

_HOME = tempfile.mkdtemp(prefix="aif-policy-")
os.environ.setdefault("AIRFLOW_HOME", _HOME)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(REPOSITORY / "dags")
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(REPOSITORY / "plugins")


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
