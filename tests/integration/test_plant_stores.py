"""The stores of the plant: who may do what, what survives a power cut, what is left behind."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.settings import Settings
from aifactory.store import Store
from plant import postgres, processes
from plant.secrets import read_secrets
from plant.stores import start_stores

pytestmark = pytest.mark.integration


def _connect(settings: Settings, role: str, database: str, password: str | None = None):  # type: ignore[no-untyped-def]
    secrets = read_secrets(settings.secrets_file)
    return psycopg2.connect(
        host=settings.host,
        port=settings.postgres_port,
        user=role,
        dbname=database,
        password=password or secrets[f"PLANT_DB_{role.upper()}_PASSWORD"],
    )


def test_the_world_may_deliver_and_nothing_else(factory: Factory) -> None:
    settings = factory.settings
    keys = {"access_key": settings.world_access_key, "secret_key": settings.world_secret_key.get_secret_value()}
    Store(settings, settings.landing_bucket, **keys).put("day", b"1")
    assert factory.landing.get("day") == b"1"
    for forbidden in (lambda s: s.put("x", b""), lambda s: s.list(""), lambda s: s.get("x")):
        with pytest.raises(InfrastructureFault, match="AccessDenied"):
            forbidden(Store(settings, settings.factory_bucket, **keys))


def test_the_factory_only_reads_the_landing(factory: Factory) -> None:
    with pytest.raises(InfrastructureFault, match="AccessDenied"):
        factory.landing.put("x", b"")


def test_s3_refuses_a_stranger(factory: Factory) -> None:
    with pytest.raises(InfrastructureFault):
        Store(factory.settings, factory.settings.factory_bucket, access_key="nobody", secret_key="x" * 20).list("")


def test_roles_cannot_enter_each_others_databases(plant_settings: Settings) -> None:
    for role in postgres.DATABASES:
        _connect(plant_settings, role, role).close()
        for other in set(postgres.DATABASES) - {role}:
            with pytest.raises(psycopg2.OperationalError, match="permission denied"):
                _connect(plant_settings, role, other)


def test_postgres_asks_for_the_password(plant_settings: Settings) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        _connect(plant_settings, "factory", "factory", password="guess")


def test_everything_listens_on_loopback_alone(plant_settings: Settings) -> None:
    pids = {p.pid for p in processes.plant_processes(plant_settings.home)}
    listening = [c for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 8
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_secrets_are_neither_in_arguments_nor_readable_by_others(plant_settings: Settings) -> None:
    values = [v for k, v in read_secrets(plant_settings.secrets_file).items() if k.endswith(("PASSWORD", "SECRET_KEY"))]
    for process in processes.plant_processes(plant_settings.home):
        arguments = " ".join(process.cmdline())
        assert not [v for v in values if v in arguments]
    for folder in ("secrets", "run", "s3", "logs"):
        assert stat.S_IMODE((plant_settings.home / folder).stat().st_mode) == 0o700
    for file in ("secrets/plant.env", "run/supervisord.conf", "s3/identities.json"):
        assert stat.S_IMODE((plant_settings.home / file).stat().st_mode) == 0o600
    for log in (plant_settings.home / "logs").iterdir():
        assert not [v for v in values if v in log.read_text(errors="replace")]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder).resolve()


def test_a_power_cut_loses_nothing_and_an_end_leaves_nothing(open_folder: Path) -> None:
    home = open_folder / "home"
    with start_stores(home) as settings:
        Factory(settings).store.put("kept", b"1")
        with _connect(settings, "factory", "factory") as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (x int)")
            cursor.execute("INSERT INTO kept VALUES (7)")
        connection.close()
        password = settings.ledger_dsn
        for process in processes.plant_processes(home.resolve()):
            process.kill()
        assert not [p for p in processes.plant_processes(home.resolve()) if p.name() not in ("postgres", "weed")]
    # A lock whose process id is somebody else's by now, as after a reboot
    lock = postgres.data_folder(settings) / "postmaster.pid"
    if not lock.exists():
        lock.write_text(f"{os.getpid()}\n{postgres.data_folder(settings)}\n0\n{settings.postgres_port}\n\n127.0.0.1\n")
    with start_stores(home) as settings:
        assert Factory(settings).store.get("kept") == b"1"
        with _connect(settings, "factory", "factory") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT x FROM kept")
            assert cursor.fetchall() == [(7,)]
        connection.close()
        assert settings.ledger_dsn.get_secret_value().split("@")[0] == password.get_secret_value().split("@")[0]
    assert processes.plant_processes(home.resolve()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another account")
def test_a_home_that_no_other_account_may_enter(tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "--user", "true"], check=False).returncode != 0:
        pytest.skip("this machine does not let root make user namespaces")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with start_stores(closed / "home") as settings:
        _connect(settings, "factory", "factory").close()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert processes.plant_processes((closed / "home").resolve()) == []
