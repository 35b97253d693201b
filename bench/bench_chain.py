"""A chain of ten no-op steps through a real scheduler: what the plant itself costs, apart from the work.

On a two-core machine Metaflow takes 2.9 s for such a chain, Prefect 3.2 s and Dagster's multiprocess executor 19 s.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from aifactory.settings import Settings
from bench.ratio import Ratio
from plant import airflow, objectstore, postgres, processes
from plant.api import AirflowApi, airflow_api
from plant.secrets import ensure_secrets, with_secrets
from plant.stores import migrate_ledger, start_postgres, start_s3, temporary_settings
from plant.supervision import Program, Supervisor

ROUNDS = 7
METAFLOW_S, PREFECT_S, DAGSTER_S = 2.9, 3.2, 19.0

CHAIN = """
from airflow.sdk import DAG, chain, task

with DAG("bench.chain", schedule=None, is_paused_upon_creation=False):

    def step(number):
        @task(task_id=f"step_{number}")
        def nothing():
            return number

        return nothing()

    chain(*(step(number) for number in range(10)))
"""


@contextmanager
def scheduler(home: Path, dags: Path | None = None, *, s3: bool = False) -> Iterator[tuple[Settings, AirflowApi]]:
    """A plant without MLflow, ended with the caller: Postgres, the four Airflow processes, on request S3.

    Args:
        home: where its state is.
        dags: folder of the DAG files, where it is not the project's.
        s3: whether to run S3, with its buckets, and to migrate the ledger.
    """
    settings = temporary_settings(home)
    secrets = ensure_secrets(settings)
    settings = with_secrets(settings, secrets)
    extra = {"AIRFLOW__CORE__DAGS_FOLDER": str(dags)} if dags else {}
    parts = [replace(p, environment={**p.environment, **extra}) for p in airflow.prepare(settings, secrets)]
    programs: list[Program] = [postgres.prepare(settings, secrets), *parts]
    programs += [objectstore.prepare(settings, secrets)] if s3 else []
    supervisor = Supervisor(settings.home)
    try:
        supervisor.start(programs, {}, bound=True)
        start_postgres(supervisor, settings, secrets)
        if s3:
            start_s3(supervisor, settings)
            migrate_ledger(settings)
        airflow.migrate(settings)
        since = time.time()
        for name in airflow.PARTS:
            supervisor.start_program(name)
        for name in airflow.PARTS:
            supervisor.wait_healthy(name, lambda part=name: airflow.beats_since(settings, part, since), 180)  # type: ignore[misc]
        yield settings, airflow_api(settings)
    finally:
        if supervisor.running():
            supervisor.shutdown()
        processes.end_all(settings.home)


def run() -> list[Ratio]:
    """Median wall seconds of a run, from trigger to end, once warm; against Metaflow's 2.9 s."""
    with tempfile.TemporaryDirectory(prefix="aif-chain-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        dags = Path(folder) / "dags"
        dags.mkdir()
        (dags / "chain.py").write_text(CHAIN)
        with scheduler(Path(folder) / "home", dags) as (_, api):
            seconds = [_one(api) for _ in range(ROUNDS)]
    warm = statistics.median(seconds[2:])
    detail = {
        "seconds_warm": round(warm, 2),
        "seconds_first": round(seconds[0], 2),
        "metaflow_s": METAFLOW_S,
        "prefect_s": PREFECT_S,
        "dagster_s": DAGSTER_S,
    }
    return [Ratio("chain of ten no-op steps / Metaflow's 2.9 s", warm / METAFLOW_S, 1.0, detail=detail)]


def _one(api: AirflowApi) -> float:
    begun = time.time()
    run_id = api.trigger_dag("bench.chain")
    state = api.wait_run("bench.chain", run_id, timeout_s=120)
    if state != "success":
        raise RuntimeError(f"the chain ended as {state}: {api.run_url('bench.chain', run_id)}")
    return api.run("bench.chain", run_id).ended_at - begun
