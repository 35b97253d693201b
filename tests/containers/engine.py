"""Commands to the container engine, and a plant in containers as tests see it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifactory.settings import REPOSITORY, Settings
from plant.api import AirflowApi
from plant.secrets import read_secrets

TAG = "test"
PARTS = (
    "postgres", "s3", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dags", "airflow-triggerer",
    "outside-world", "serving",
)  # fmt: skip

NUM_NIGHTS = 3
"""Nights of the demo, of which the embedded plant plays all: enough for a refused model and one that is taken back."""


@functools.cache
def engine_is_missing() -> str:
    """Why no containers can run here; empty where they can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command, what in ((["docker", "compose", "version"], "no compose plugin"), (["docker", "ps"], "no daemon")):
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            return f"docker: {what}"
    return ""


def build_environment() -> dict[str, str]:
    """What this machine's builds need: its stand-in for an index of wheels, where CI has made one."""
    environment = dict(os.environ) | {"AIF_IMAGE_TAG": TAG, "AIF_TRIAL": "containers"}
    local = "ai-factory-wheels:local"
    if subprocess.run(["docker", "image", "inspect", local], capture_output=True, check=False).returncode == 0:
        environment.setdefault("AIF_WHEELS_IMAGE", local)
    return environment


def run(
    *words: str, environment: dict[str, str] | None = None, timeout: float = 900, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A command in the repository, its output kept."""
    return subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout, check=False, **more
    )


def docker(*words: str, **more: Any) -> str:
    done = run("docker", *words, **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


@dataclass
class ContainerPlant:
    """A plant in containers and how to reach it from outside."""

    environment: dict[str, str]
    settings: Settings
    report: dict[str, Any]

    @property
    def folder(self) -> Path:
        return REPOSITORY / "var" / "compose" / self.environment["COMPOSE_PROJECT_NAME"]

    @property
    def api(self) -> AirflowApi:
        password = read_secrets(self.folder / "secrets" / "plant.env")["PLANT_AIRFLOW_ADMIN_PASSWORD"]
        return AirflowApi(self.settings, "admin", password)

    def compose(self, *words: str, timeout: float = 900, **more: Any) -> subprocess.CompletedProcess[str]:
        return run("scripts/compose.sh", *words, environment=self.environment, timeout=timeout, **more)

    def container(self, part: str) -> str:
        return self.compose("ps", "--all", "--quiet", part).stdout.strip()

    def inspect(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container(part)))[0]
        return found

    def inside(self, *words: str, service: str = "airflow-triggerer") -> Any:
        """Run `inside.py` in a container of its own beside the parts; what it printed last."""
        program = (Path(__file__).parent / "inside.py").read_text()
        done = self.compose("run", "--rm", "-T", "--no-deps", service, "python", "-", *words, input=program)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def wait_healthy(self, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while unhealthy := {part: state for part, state in self.states().items() if state != "running healthy"}:
            assert time.monotonic() < deadline, unhealthy
            time.sleep(1)

    def states(self) -> dict[str, str]:
        states = {part: self.inspect(part)["State"] for part in PARTS}
        return {
            part: f"{state['Status']} {state.get('Health', {}).get('Status', 'healthy')}"
            for part, state in states.items()
        }
