"""The plant in containers, for tests: the images, and one plant of them on free ports that is removed in the end."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.containers.engine import NUM_NIGHTS, TAG, ContainerPlant, build_environment, docker, engine_is_missing, run
from tests.far_lines import lines_that_do_not_start_by_themselves

from aifactory.settings import REPOSITORY, Settings
from plant.ports import free_ports


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    if engine_is_missing():
        pytest.skip(f"{engine_is_missing()} (.ci/engine up installs and starts one on Debian 12)")


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Name → tag of each image, built."""
    services = {"airflow": "prepare"} | {name: name for name in ("mlflow", "serving", "trainer")}
    done = run("scripts/compose.sh", "build", *services.values(), environment=build_environment(), timeout=2400)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return {name: f"ai-factory-{name}:{TAG}" for name in services}


@pytest.fixture(scope="module")  # it would slow down every test that comes after
def running(
    images: dict[str, str], tmp_path_factory: pytest.TempPathFactory, demo_reports: dict[str, Any]
) -> Iterator[ContainerPlant]:
    """A plant that has shown its demo."""
    folder = tmp_path_factory.mktemp("containers")
    lines = lines_that_do_not_start_by_themselves(folder / "lines")
    mount = {"volumes": [f"{lines}:/factory/include/lines:ro"]}
    changed = ("airflow-api", "airflow-scheduler", "airflow-dags", "airflow-triggerer", "serving", "demo")
    (folder / "lines.yaml").write_text(json.dumps({"services": dict.fromkeys(changed, mount)}))
    for path in [lines, *lines.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "notices.yaml").write_text("repeat_hours: 7\n")
    (folder / "token").write_text(f"{uuid.uuid4().hex}\n")
    for name in ("notices.yaml", "token"):
        (folder / name).chmod(0o600)
    airflow, mlflow, serving = free_ports(3)
    environment = build_environment() | {
        "COMPOSE_PROJECT_NAME": f"aif-test-{uuid.uuid4().hex[:6]}",
        "COMPOSE_FILE": f"{REPOSITORY / 'docker-compose.yaml'}:{folder / 'lines.yaml'}",
        "AIF_AIRFLOW_PORT": str(airflow),
        "AIF_MLFLOW_PORT": str(mlflow),
        "AIF_SERVING_PORT": str(serving),
        "AIF_DEMO_NIGHTS": str(NUM_NIGHTS),
        "AIF_DEMO_REPORT": str(folder / "report.json"),
        "AIF_NOTICES_FILE": str(folder / "notices.yaml"),
        "AIF_METRICS_TOKEN_FILE": str(folder / "token"),
    }
    settings = Settings(
        airflow_port=airflow, mlflow_port=mlflow, serving_port=serving, _env_file=None,
    )  # type: ignore[call-arg]  # fmt: skip
    self = ContainerPlant(environment, settings, {})
    try:
        done = self.compose("demo", timeout=1500)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        self.report = demo_reports["containers"] = json.loads((folder / "report.json").read_text())
        yield self
    finally:
        if os.environ.get("AIF_KEEP_CONTAINERS"):
            sys.stdout.write(f"kept: {environment['COMPOSE_PROJECT_NAME']}\n")
        else:
            gone = self.compose("down", "1", timeout=300)
            assert gone.returncode == 0, gone.stderr
            label = f"label=com.docker.compose.project={environment['COMPOSE_PROJECT_NAME']}"
            left = {kind: docker(*kind.split(), "--filter", label, "--quiet") for kind in ("ps --all", "volume ls")}
            assert not any(left.values()), left
            assert not self.folder.exists()
