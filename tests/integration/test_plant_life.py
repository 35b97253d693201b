"""The whole plant with a real Airflow: up, down, a power cut, ports."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

import plant
from aifactory.factory import Factory
from aifactory.settings import Settings
from plant import processes
from plant.secrets import read_secrets

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

_DAG = '''
    """A DAG that says which modules a task finds in place."""
    from airflow.sdk import dag, task

    @dag(dag_id="probe", schedule=None)
    def probe():
        @task
        def look():
            import os
            import sys

            from aifactory.settings import load_settings

            loaded = [m for m in ("pandas", "great_expectations", "duckdb", "mlflow") if m in sys.modules]
            return {"loaded": loaded, "home": str(load_settings().home), "threads": load_settings().threads}

        look()

    probe()
'''


@pytest.fixture(scope="module")
def settings(environments: None) -> Iterator[Settings]:
    """Settings of a plant that has its own DAG folder; it is ended with the module."""
    with tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        dags = Path(folder) / "dags"
        dags.mkdir()
        (dags / "probe.py").write_text(textwrap.dedent(_DAG))
        chosen = plant.temporary_settings(Path(folder) / "home")
        chosen = Settings(**{**chosen.model_dump(), "dags_dir": dags, "threads": 3}, _env_file=None)  # type: ignore[call-arg]
        try:
            yield chosen
        finally:
            processes.end_all(chosen.home)


def test_the_life_of_a_plant(settings: Settings) -> None:
    seconds = plant.up(settings)
    assert seconds["start"] < 150
    running = plant.load(settings.home)
    assert {p.state for p in plant.status(running)} == {"RUNNING"}
    assert plant.memory(running) < 3e9

    api = plant.airflow_api(running)
    run = api.trigger_dag("probe")
    assert api.wait_run("probe", run, 60) == "success"
    found = api.xcom("probe", run, "look")
    assert found == {
        "loaded": ["pandas", "great_expectations", "duckdb", "mlflow"],
        "home": str(settings.home),
        "threads": 3,
    }
    with pytest.raises(plant.PlantError, match="403"):
        plant.airflow_api(running, "viewer").trigger_dag("probe")
    _write(running)
    _no_secret_leaks(running)

    _is_restarted(running, "airflow-triggerer")

    assert plant.up(settings)["start"] < 30  # again: nothing to do
    other = settings.model_copy(update={"airflow_port": plant.free_ports()[0]})
    with pytest.raises(plant.PlantError, match="airflow_port"):
        plant.up(other)

    _cut_the_power(settings)
    assert {p.state for p in plant.status(running)} == {"STOPPED"}
    plant.up(settings)
    assert plant.load(settings.home) == running
    _check(running)
    assert [r.run_id for r in plant.airflow_api(running).runs("probe")] == [run]

    plant.down(settings)
    assert processes.plant_processes(settings.home) == []
    assert {p.state for p in plant.status(running)} == {"STOPPED"}
    assert plant.memory(running) == 0
    assert plant.down(settings) == 0


def test_a_dead_supervisor_leaves_no_orphans_in_the_way(settings: Settings) -> None:
    plant.up(settings)
    pid = int((settings.home / "run" / "supervisord.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert processes.plant_processes(settings.home)
    plant.up(settings)
    assert {p.state for p in plant.status(settings)} == {"RUNNING"}
    _check(plant.load(settings.home))
    plant.down(settings)
    assert processes.plant_processes(settings.home) == []


def test_a_taken_port_stops_the_start_before_anything_runs(settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind((settings.host, settings.mlflow_port))
        holder.listen()
        with pytest.raises(plant.PortTaken, match=f"{settings.mlflow_port} .AIF_MLFLOW_PORT.*process {os.getpid()}"):
            plant.up(settings)
    assert processes.plant_processes(settings.home) == []


def _is_restarted(settings: Settings, name: str) -> None:
    before = next(p.pid for p in plant.status(settings) if p.name == name)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = next(p for p in plant.status(settings) if p.name == name)
        if now.running and now.pid != before:
            return
        time.sleep(0.2)
    pytest.fail(f"{name} was not started again")


def _write(settings: Settings) -> None:
    Factory(settings).store.put("kept", b"1")
    with _ledger(settings) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (x int)")
        cursor.execute("INSERT INTO kept VALUES (7)")
    connection.close()


def _check(settings: Settings) -> None:
    assert Factory(settings).store.get("kept") == b"1"
    with _ledger(settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT x FROM kept")
        assert cursor.fetchall() == [(7,)]
    connection.close()


def _ledger(settings: Settings):  # type: ignore[no-untyped-def]
    return psycopg2.connect(settings.ledger_dsn.get_secret_value().replace("+psycopg2", ""))


def _cut_the_power(settings: Settings) -> None:
    """SIGKILL for every process, the supervisor first, so that it cannot start one again."""
    while found := processes.plant_processes(settings.home):
        for process in sorted(found, key=lambda p: p.pid):
            process.kill()
        psutil.wait_procs(found, timeout=5)


def _no_secret_leaks(settings: Settings) -> None:
    secrets = read_secrets(settings.secrets_file)
    secret = ("PASSWORD", "SECRET", "SECRET_KEY")
    values = [v for k, v in secrets.items() if k.endswith(secret) and not k.startswith("AIF_POD_")]  # names of secrets
    assert len(values) > 5
    for process in processes.plant_processes(settings.home):
        assert not [v for v in values if v in " ".join(process.cmdline())]
    for log in (settings.home / "logs").iterdir():
        assert not [v for v in values if v in log.read_text(errors="replace")], log
    for name in ("airflow.cfg", "passwords.json"):
        assert (settings.home / "airflow" / name).stat().st_mode & 0o777 == 0o600
