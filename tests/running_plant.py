"""A whole plant that the demo has run on, as the end-to-end tests share it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import plant
from aifactory.factory import Factory
from aifactory.settings import REPOSITORY, Settings
from plant.api import AirflowApi


@dataclass
class RunningPlant:
    """Its settings, the demo's report, and the environment of its commands."""

    settings: Settings
    report: dict[str, Any]
    environment: dict[str, str]

    @property
    def factory(self) -> Factory:
        """Its stores."""
        return Factory(self.settings)

    @property
    def api(self) -> AirflowApi:
        """Airflow, logged in as admin."""
        api = plant.airflow_api(self.settings)
        api.log_in()
        return api

    def command(self, *words: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """Run a command of the plant."""
        return subprocess.run(
            [sys.executable, "-m", "plant", *words],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
