"""A whole plant that the demo has run on, as the end-to-end tests share it."""

from __future__ import annotations

import subprocess
import sys
import time
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

    def ingest(self, line: str, first: str, last: str | None = None, *, user: str = "admin") -> str:
        """Have a day, or a range of days, taken in; the run's id."""
        api, dag = plant.airflow_api(self.settings, user), f"{line}.ingest"
        run = api.trigger_dag(dag, conf={"partition": first} | ({"partition_to": last} if last else {}))
        state = api.wait_run(dag, run, timeout_s=600)
        assert state == "success", f"{api.run_url(dag, run)} is {state}: {tasks_of(api, dag, run)}"
        return run

    def come_to_rest(self, line: str, timeout_s: float = 600) -> None:
        """Wait until no run of the line has been active for five seconds."""
        api, deadline, quiet_since = self.api, time.monotonic() + timeout_s, time.monotonic()
        while time.monotonic() - quiet_since < 5:
            if active := [f"{run.dag_id} {run.run_id}" for run in api.active_runs(prefix=f"{line}.")]:
                quiet_since = time.monotonic()
            assert time.monotonic() < deadline, f"{line} is not at rest after {timeout_s:g} s: {active}"
            time.sleep(0.5)

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


def tasks_of(api: AirflowApi, dag_id: str, run_id: str) -> dict[str, str]:
    """Task → its state, of one run."""
    return {task["task_id"]: task["state"] for task in api.task_instances(dag_id, run_id)}
