"""The stores alone (Postgres, S3, on request MLflow), for tests and benches; ended with the caller."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from aifactory.settings import Settings
from plant import mlflow_server, objectstore, ports, postgres, processes
from plant.secrets import Secrets, ensure_secrets, with_secrets
from plant.supervision import Supervisor

log = logging.getLogger(__name__)


@contextmanager
def start_stores(
    home: Path | None = None, *, mlflow: bool = False, bucket_wildcards: bool = False
) -> Iterator[Settings]:
    """Run Postgres and S3 on free ports, with the buckets made and the ledger migrated.

    Args:
        home: where their state is kept; default a temporary folder that is removed.
        mlflow: whether to run an MLflow server too.
        bucket_wildcards: whether the factory's key is good for every bucket `factory*` and `landing*` (tests
            that make buckets of their own).

    Yields:
        The settings that reach them.
    """
    with tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True) as temporary:
        Path(temporary).chmod(0o711)  # Postgres may run as another account
        settings = temporary_settings(home or Path(temporary) / "home")
        secrets = ensure_secrets(settings)
        settings = with_secrets(settings, secrets)
        supervisor = Supervisor(settings.home)
        try:
            _start(supervisor, settings, secrets, mlflow=mlflow, bucket_wildcards=bucket_wildcards)
            yield settings
        finally:
            if supervisor.running():
                supervisor.stop_programs([str(s["name"]) for s in supervisor.states()])
                supervisor.shutdown()
            processes.end_all(settings.home)


def temporary_settings(home: Path) -> Settings:
    """Settings of a plant of its own on free ports."""
    home.mkdir(parents=True, exist_ok=True)
    airflow, mlflow, database, s3, serving, block = ports.free_ports(6, block=32)
    return Settings(
        home=home.resolve(), airflow_port=airflow, mlflow_port=mlflow, postgres_port=database, s3_port=s3,
        serving_port=serving, internal_port=block, _env_file=None,
    )  # type: ignore[call-arg]  # fmt: skip


def start_postgres(supervisor: Supervisor, settings: Settings, secrets: Secrets) -> None:
    """Start Postgres and make its databases and roles."""
    supervisor.start_program(postgres.NAME)
    supervisor.wait_healthy(postgres.NAME, lambda: postgres.accepts(settings, secrets), 90)
    postgres.ensure_databases(settings, secrets)


def start_s3(supervisor: Supervisor, settings: Settings) -> None:
    """Start S3 and make its buckets."""
    supervisor.start_program(objectstore.NAME)
    supervisor.wait_healthy(objectstore.NAME, lambda: objectstore.answers(settings), 60)
    objectstore.ensure_buckets(settings)


def migrate_ledger(settings: Settings) -> None:
    """Bring the ledger's tables to this version of the factory."""
    from aifactory import ledger

    ledger.migrate(settings.ledger_dsn.get_secret_value())


def _start(
    supervisor: Supervisor, settings: Settings, secrets: Secrets, *, mlflow: bool, bucket_wildcards: bool
) -> None:
    began = time.monotonic()
    processes.end_all(settings.home)
    postgres.remove_stale_lock(settings)
    with ThreadPoolExecutor() as pool:
        installed = pool.submit(mlflow_server.install, settings) if mlflow else None
        programs = [postgres.prepare(settings, secrets)]
        programs += [objectstore.prepare(settings, secrets, wildcards=bucket_wildcards)]
        programs += [mlflow_server.prepare(settings, secrets)] if mlflow else []
        supervisor.start(programs, {}, bound=True)
        s3 = pool.submit(start_s3, supervisor, settings)
        start_postgres(supervisor, settings, secrets)
        migrated = pool.submit(migrate_ledger, settings)
        s3.result()
        if installed is not None:
            installed.result()
            supervisor.start_program(mlflow_server.NAME)
            supervisor.wait_healthy(mlflow_server.NAME, lambda: mlflow_server.answers(settings), 120)
        migrated.result()
    log.info("the stores are up after %.1f s", time.monotonic() - began)
