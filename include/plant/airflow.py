"""Airflow: its configuration, its four processes, and the question whether they are healthy."""

from __future__ import annotations

import configparser
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aifactory.capacity.stock import POOL_KEEPER
from aifactory.settings import REPOSITORY, Settings
from plant.errors import PlantError
from plant.ports import internal
from plant.secrets import Secrets, database_url, private_folder, write_private
from plant.supervision import Program

API_SERVER = "airflow-api"
SCHEDULER = "airflow-scheduler"
DAG_PROCESSOR = "airflow-dags"
TRIGGERER = "airflow-triggerer"
PARTS = (API_SERVER, SCHEDULER, DAG_PROCESSOR, TRIGGERER)
USERS = {"admin": "admin", "operator": "user", "viewer": "viewer"}
"""Names and Airflow's simple roles: a `user` runs DAGs and decides in them; connections and pools are an admin's."""
_POOL_KEEPERS_ROLE = "op"
"""The least of Airflow's simple roles that may change pools."""
LOG_RETENTION_DAYS = 60
_PASSED_ON = (
    "lines_dir", "s3_region", "landing_bucket", "factory_bucket", "mlflow_uri", "dataset_git_root", "threads",
    "memory_limit_gb", "trial", "capacity_file", "notices_file",
)  # fmt: skip
"""Settings that an operator may have set for `up` and that tasks must see too; the rest is in `plant.env`."""
_HEARTBEATS = {SCHEDULER: "scheduler", DAG_PROCESSOR: "dag_processor", TRIGGERER: "triggerer"}


def home(settings: Settings) -> Path:
    """`AIRFLOW_HOME` of the plant."""
    return settings.home / "airflow"


def environment(settings: Settings) -> dict[str, str]:
    """What every Airflow process gets; the secrets are in `airflow.cfg` and `plant.env`, both of mode 0600."""
    return settings.variables(name for name in _PASSED_ON if name in settings.model_fields_set) | {
        "AIRFLOW_HOME": str(home(settings)),
        "PYTHONPATH": str(REPOSITORY / "include"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "AIF_HOME": str(settings.home),
        "PYTHONDONTWRITEBYTECODE": "",  # bytecode halves the time that a start and a parse take
        "PYTHONUNBUFFERED": "1",
        "MPLCONFIGDIR": str(home(settings) / "matplotlib"),
        "MALLOC_ARENA_MAX": "2",
        "OPENBLAS_NUM_THREADS": str(settings.threads),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def prepare(settings: Settings, secrets: Secrets) -> list[Program]:
    """Write the configuration and say how to run each part."""
    write_configuration(settings, secrets)
    shared = environment(settings)
    airflow = [sys.executable, "-m", "airflow"]
    bind = ["--host", settings.host, "--port", str(settings.airflow_port)]
    return [
        Program(API_SERVER, [*airflow, "api-server", "--workers", "1", *bind], shared, order=200),
        # Tasks get the time of a stop to end; the log servers are left out: they would listen on every address
        Program(SCHEDULER, [*airflow, "scheduler", "--skip-serve-logs"], shared, order=300, stop_wait_s=10),
        Program(DAG_PROCESSOR, [*airflow, "dag-processor"], shared, order=300),
        # Its child must hear of the end from it alone, or the two wait ten seconds for each other
        Program(TRIGGERER, [*airflow, "triggerer", "--skip-serve-logs"], shared, order=300, as_group=False),
    ]


def write_configuration(settings: Settings, secrets: Secrets) -> None:
    """Write what all parts read: `airflow.cfg`, the users' passwords, and the link to the local settings."""
    folder = private_folder(home(settings))
    private_folder(folder / "config")
    write_private(folder / "airflow.cfg", _configuration(settings, secrets))
    passwords = {user: secrets[f"PLANT_AIRFLOW_{user.upper()}_PASSWORD"] for user in USERS}
    passwords[POOL_KEEPER] = secrets["AIF_CAPACITY_PASSWORD"]
    write_private(folder / "passwords.json", json.dumps(passwords) + "\n")
    _link(folder / "config" / "airflow_local_settings.py", Path(__file__).with_name("airflow_local_settings.py"))


def migrate(settings: Settings) -> None:
    """Make or bring up to date the metadata database.

    What `airflow db migrate` does, without the command line's imports. On a fresh database Airflow itself
    creates the tables from its models and stamps them, which takes a second.
    """
    code = "from airflow.utils.db import upgradedb; upgradedb()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(settings)},
        cwd=home(settings),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise PlantError(f"Airflow's database cannot be migrated: {(done.stderr or done.stdout).strip()[-3000:]}")


def beats_since(settings: Settings, part: str, since: float) -> bool:
    """Whether a part has shown life after a moment (epoch seconds): a heartbeat of an earlier run does not count."""
    from datetime import datetime

    health = _health(settings)
    if part == API_SERVER:
        return bool(health.get("metadatabase", {}).get("status") == "healthy")
    beat = health.get(_HEARTBEATS[part], {})
    latest = beat.get(f"latest_{_HEARTBEATS[part]}_heartbeat")
    if beat.get("status") != "healthy" or latest is None:
        return False
    return datetime.fromisoformat(latest).timestamp() >= since


def prune_logs(settings: Settings) -> int:
    """Remove task and parse logs older than `LOG_RETENTION_DAYS`; Airflow itself keeps them for ever."""
    oldest, removed = time.time() - LOG_RETENTION_DAYS * 86400, 0
    for file in (home(settings) / "logs").rglob("*.log"):
        if file.stat().st_mtime < oldest:
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _health(settings: Settings) -> dict[str, Any]:
    import httpx

    try:
        answer = httpx.get(f"{settings.airflow_api_url}/api/v2/monitor/health", timeout=5)
        return dict(answer.json()) if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _configuration(settings: Settings, secrets: Secrets) -> str:
    """The plant's `airflow.cfg`: only what differs from Airflow's defaults."""
    folder = home(settings)
    options: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": settings.dags_dir,
            "plugins_folder": REPOSITORY / "plugins",
            "executor": "LocalExecutor",
            "parallelism": 4,  # twice the cores of a small machine: tasks mostly wait for stores and training
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "fernet_key": secrets["PLANT_AIRFLOW_FERNET_KEY"],
            "simple_auth_manager_users": ",".join(
                f"{user}:{role}" for user, role in {**USERS, POOL_KEEPER: _POOL_KEEPERS_ROLE}.items()
            ),
            "simple_auth_manager_passwords_file": folder / "passwords.json",
            "execution_api_server_url": f"{settings.airflow_api_url}/execution/",
            "sensitive_var_conn_names": "kube_config",  # a connection's credentials for a cluster are not shown
        },
        "database": {
            "sql_alchemy_conn": database_url(settings, "airflow", secrets["PLANT_DB_AIRFLOW_PASSWORD"]),
            "load_default_connections": False,
        },
        "logging": {
            "base_log_folder": folder / "logs",
            "worker_log_server_port": internal(settings, "airflow_worker_log"),
            "trigger_log_server_port": internal(settings, "airflow_trigger_log"),
        },
        "api": {
            "host": settings.host,
            "port": settings.airflow_port,
            "base_url": settings.airflow_url,
            "workers": 1,
            "secret_key": secrets["PLANT_AIRFLOW_SECRET_KEY"],
            "instance_name": "AI factory",
        },
        "api_auth": {"jwt_secret": secrets["PLANT_AIRFLOW_JWT_SECRET"]},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.1,
            # What a killed scheduler was running is taken up after a minute, not after six
            "orphaned_tasks_check_interval": 30,
        },
        # A task waits about a minute for an API server that is being started again, instead of losing its work
        "workers": {"execution_api_retries": 10, "execution_api_retry_wait_max": 15},
        "dag_processor": {"refresh_interval": 5, "min_file_process_interval": 60, "parsing_processes": 1},
        "usage_data_collection": {"enabled": False},
    }
    parser = configparser.RawConfigParser()
    for section, values in options.items():
        # Airflow interpolates: a percent sign in a value is written twice
        parser[section] = {name: str(value).replace("%", "%%") for name, value in values.items()}
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
