"""One plant for all tests of this folder: the demo runs once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tests.far_lines import lines_that_do_not_start_by_themselves
from tests.running_plant import RunningPlant

import plant
from aifactory.settings import REPOSITORY, Settings


@pytest.fixture(scope="package")  # it would slow down every test that comes after
def running(
    tmp_path_factory: pytest.TempPathFactory, environments: None, demo_reports: dict[str, Any]
) -> Iterator[RunningPlant]:
    home = tmp_path_factory.mktemp("plant")
    lines = lines_that_do_not_start_by_themselves(tmp_path_factory.mktemp("lines"))
    ports = plant.free_ports(6, block=32)
    environment = os.environ | {
        "AIF_HOME": str(home),
        "AIF_LINES_DIR": str(lines),
        "PYTHONPATH": str(REPOSITORY / "include"),
        "AIF_AIRFLOW_PORT": str(ports[0]),
        "AIF_MLFLOW_PORT": str(ports[1]),
        "AIF_POSTGRES_PORT": str(ports[2]),
        "AIF_S3_PORT": str(ports[3]),
        "AIF_SERVING_PORT": str(ports[4]),
        "AIF_INTERNAL_PORT": str(ports[5]),
    }
    self = RunningPlant(Settings(home=home), {}, dict(environment))
    try:
        done = self.command("demo")
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        self.report = demo_reports["embedded"] = json.loads((home / "demo" / "report.json").read_text())
        self.settings = plant.load(home).model_copy(update={"lines_dir": lines})
        yield self
    finally:
        stopped = self.command("down", timeout=180)
    assert stopped.returncode == 0, stopped.stderr
    left = [p.info for p in psutil.process_iter(["pid", "cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]
    assert left == []
