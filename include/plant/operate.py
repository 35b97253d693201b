"""Starting, stopping and watching the whole plant.

    postgres ─┬─ airflow's tables ──┬─ api, scheduler, dag processor, triggerer
              ├─ ledger's tables  ──┤
    s3 ───────┴─────────────────────┴─ outside world
    mlflow's environment ─ (postgres, s3) ─ mlflow
    triton's environment ─ s3 ─ model servers, gateway, controller, prediction log

What does not wait for each other runs at the same time.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aifactory.settings import Settings, load_settings
from plant import (
    airflow,
    doorway,
    gateway,
    mlflow_server,
    objectstore,
    ports,
    postgres,
    processes,
    serving,
    world,
)
from plant.errors import PlantError
from plant.secrets import Secrets, ensure_secrets, private_folder, read_secrets, with_secrets
from plant.stores import migrate_ledger, start_postgres, start_s3
from plant.supervision import Program, Supervisor

log = logging.getLogger(__name__)

Report = Callable[[str, str], None]
"""Told (part, what it is doing) while the plant starts and stops."""

_PORT_SETTINGS = ("airflow_port", "mlflow_port", "postgres_port", "s3_port", "serving_port", "internal_port")


@dataclass(frozen=True)
class PartStatus:
    """One part of the plant now.

    Args:
        name: of the part.
        state: of its process as the supervisor says: RUNNING, STOPPED, BACKOFF, FATAL, ...
        pid: of its first process.
        memory_bytes: proportional set size of it and its descendants.
        up_s: seconds since it was started.
        url: where it answers, where a person would go there.
    """

    name: str
    state: str
    pid: int | None = None
    memory_bytes: int = 0
    up_s: float = 0.0
    url: str = ""

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.state == "RUNNING"


def up(settings: Settings, report: Report | None = None) -> dict[str, float]:
    """Start the plant, or what of it does not run; returns when every part is healthy.

    Returns:
        Wall seconds: `install` (building the MLflow server's environment; 0 where it stood), `start` (the
        rest), and how long after the beginning each part was healthy.

    Raises:
        PortTaken: a port is in use by somebody else.
        PartFailed: a part does not become healthy.
        PlantError: anything else that an operator must put right.
    """
    began = time.monotonic()
    settings = _absolute(settings)
    with _one_operator(settings):
        supervisor = Supervisor(settings.home)
        secrets = _open(settings, supervisor)
        settings = with_secrets(settings, secrets)
        return _Start(settings, secrets, supervisor, report or _log, began).run()


def down(settings: Settings, report: Report | None = None) -> int:
    """Stop the plant; all state stays. Returns how many processes had to be ended by force.

    Raises:
        PlantError: a process cannot be ended.
    """
    settings, say = _absolute(settings), report or _log
    if not (settings.home / "run").exists():
        return 0
    with _one_operator(settings):
        supervisor = Supervisor(settings.home)
        if supervisor.running():
            stores = [postgres.NAME, objectstore.NAME]
            say("airflow", "stopping")
            gateway.drain(settings)
            supervisor.stop_programs([s["name"] for s in supervisor.states() if s["name"] not in stores])
            say("stores", "stopping")
            supervisor.stop_programs(stores)
            supervisor.shutdown()
        ended = processes.end_all(settings.home)
        left = processes.plant_processes(settings.home)
        if left:
            raise PlantError(f"these processes of the plant cannot be ended: {[p.pid for p in left]}; end them by hand")
        say("plant", "stopped")
        return ended


def status(settings: Settings) -> list[PartStatus]:
    """Every part of the plant, whether it runs or not."""
    settings = _absolute(settings)
    supervisor, urls = Supervisor(settings.home), _urls(settings)
    if not supervisor.running():
        return [PartStatus(name, "STOPPED", url=urls.get(name, "")) for name in _names(settings)]
    parts = []
    for state in supervisor.states():
        pid = int(state["pid"]) or None
        memory = sum(processes.memory_bytes(p) for p in processes.family(pid)) if pid else 0
        up_s = float(state["now"] - state["start"]) if pid else 0.0
        parts.append(PartStatus(state["name"], state["statename"], pid, memory, up_s, urls.get(state["name"], "")))
    return parts


def memory(settings: Settings) -> int:
    """Memory of all processes of the plant, bytes: the sum of their proportional set sizes."""
    return sum(processes.memory_bytes(p) for p in processes.plant_processes(_absolute(settings).home))


def load(home: Path | None = None) -> Settings:
    """The settings of a plant that was started before."""
    return load_settings(home)


def login(settings: Settings, user: str = "admin") -> tuple[str, str]:
    """Name and password of an Airflow user. For the operator's terminal, never for a log."""
    secrets, name = read_secrets(settings.secrets_file), f"PLANT_AIRFLOW_{user.upper()}_PASSWORD"
    if name not in secrets:
        raise PlantError(f"{settings.secrets_file} holds no {name}: start the plant first (`make up`)")
    return user, secrets[name]


class _Start:
    """One start of the plant."""

    def __init__(
        self, settings: Settings, secrets: Secrets, supervisor: Supervisor, report: Report, began: float
    ) -> None:
        self.settings = settings
        self.secrets = secrets
        self.supervisor = supervisor
        self.report = report
        self.began = began
        self.seconds: dict[str, float] = {}
        self.install_s = 0.0

    def run(self) -> dict[str, float]:
        """Start all parts; the first failure ends the others' waiting."""
        with ThreadPoolExecutor(max_workers=12) as pool:
            built, servers = pool.submit(self._build_mlflow), pool.submit(self._build_servers)
            if not self.supervisor.running():
                self.supervisor.start(self._programs(), {})
            s3 = pool.submit(self._part, objectstore.NAME, lambda: start_s3(self.supervisor, self.settings))
            database = pool.submit(
                self._part, postgres.NAME, lambda: start_postgres(self.supervisor, self.settings, self.secrets)
            )
            mlflow = pool.submit(self._mlflow, database, s3, built)
            ledger = pool.submit(self._ledger, database)
            served = pool.submit(self._serving, s3, servers)
            rest = pool.submit(self._airflow, database, s3, ledger, pool)
            for future in (built, servers, database, s3, ledger, mlflow, served, rest):
                future.result()
        self.report("plant", "healthy")
        total = time.monotonic() - self.began
        return {"install": round(self.install_s, 1), "start": round(total - self.install_s, 1), **self.seconds}

    def _programs(self) -> list[Program]:
        self.report(postgres.NAME, "preparing")
        return [
            postgres.prepare(self.settings, self.secrets),
            objectstore.prepare(self.settings, self.secrets),
            mlflow_server.prepare(self.settings, self.secrets),
            *airflow.prepare(self.settings, self.secrets),
            *serving.prepare(self.settings),
            *doorway.prepare(self.settings),
            *world.prepare(self.settings, self.secrets),
        ]

    def _build_mlflow(self) -> None:
        self.report(mlflow_server.NAME, "installing")
        if mlflow_server.install(self.settings):
            self.install_s = max(self.install_s, time.monotonic() - self.began)

    def _build_servers(self) -> None:
        self.report(serving.NAME, "installing")
        if serving.install(self.settings):
            self.install_s = max(self.install_s, time.monotonic() - self.began)

    def _serving(self, *needs: Future[None]) -> None:
        _wait(needs)
        for name in serving.PARTS:
            self._program(name, partial(serving.answers, self.settings, name), 120)

    def _mlflow(self, *needs: Future[None]) -> None:
        _wait(needs)
        self._program(mlflow_server.NAME, lambda: mlflow_server.answers(self.settings), 180)

    def _ledger(self, *needs: Future[None]) -> None:
        _wait(needs)
        migrate_ledger(self.settings)

    def _airflow(
        self, database: Future[None], s3: Future[None], ledger: Future[None], pool: ThreadPoolExecutor
    ) -> None:
        _wait([database])
        since = 0.0
        if self._stopped(airflow.SCHEDULER):
            self.report(airflow.API_SERVER, "migrating the database")
            airflow.migrate(self.settings)
            airflow.prune_logs(self.settings)
            since = time.time()
        _wait([s3, ledger])
        parts = [pool.submit(self._airflow_part, name, since) for name in airflow.PARTS]
        for extra in [*doorway.prepare(self.settings), *world.prepare(self.settings, self.secrets)]:
            self.supervisor.start_program(extra.name)
            self.report(extra.name, "running")
        _wait(parts)

    def _airflow_part(self, name: str, since: float) -> None:
        self._program(name, lambda: airflow.beats_since(self.settings, name, since), 180)

    def _program(self, name: str, healthy: Callable[[], bool], timeout_s: float) -> None:
        def start() -> None:
            self.supervisor.start_program(name)
            self.supervisor.wait_healthy(name, healthy, timeout_s)

        self._part(name, start)

    def _part(self, name: str, start: Callable[[], None]) -> None:
        self.report(name, "starting")
        start()
        self.seconds[name] = round(time.monotonic() - self.began, 1)
        self.report(name, "healthy")

    def _stopped(self, name: str) -> bool:
        return bool(self.supervisor.state(name)["statename"] != "RUNNING")


def _open(settings: Settings, supervisor: Supervisor) -> Secrets:
    """Make way for a start: end what a dead supervisor left, look at the ports, generate missing secrets."""
    if supervisor.running():
        known = read_secrets(settings.secrets_file)
        moved = [n for n in _PORT_SETTINGS if known.get(f"AIF_{n.upper()}") != str(getattr(settings, n))]
        if moved:
            raise PlantError(f"the plant runs on other ports ({', '.join(moved)} differ): `make down` first")
        return known
    processes.end_all(settings.home, grace_s=5)
    postgres.remove_stale_lock(settings)
    ports.check_free(settings.host, _ports(settings))
    if settings.pod_doorway:
        both = {settings.s3_port: "AIF_S3_PORT", settings.mlflow_port: "AIF_MLFLOW_PORT"}
        ports.check_free(settings.pod_doorway, both)
    return ensure_secrets(settings)


def _ports(settings: Settings) -> dict[int, str]:
    named = {getattr(settings, name): f"AIF_{name.upper()}" for name in _PORT_SETTINGS if name != "internal_port"}
    inside = ("s3", "serving")
    return named | {port: name for prefix in inside for port, name in ports.internal_ports(settings, prefix).items()}


def _urls(settings: Settings) -> dict[str, str]:
    return {
        airflow.API_SERVER: settings.airflow_url,
        mlflow_server.NAME: settings.mlflow_url,
        gateway.NAME: settings.serving_url,
        objectstore.NAME: settings.s3_url,
        postgres.NAME: f"postgresql://{settings.host}:{settings.postgres_port}",
    }


def _names(settings: Settings) -> list[str]:
    return [postgres.NAME, objectstore.NAME, mlflow_server.NAME, *airflow.PARTS, *serving.PARTS, world.NAME]


def _wait(futures: list[Future[None]] | tuple[Future[None], ...]) -> None:
    for future in futures:
        future.result()


def _absolute(settings: Settings) -> Settings:
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})


@contextmanager
def _one_operator(settings: Settings) -> Iterator[None]:
    """Keep a second `up` or `down` of the same plant waiting until the first is done."""
    settings.home.mkdir(parents=True, exist_ok=True)
    folder = private_folder(settings.home / "run")
    with (folder / "operator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _log(part: str, doing: str) -> None:
    log.info("%s: %s", part, doing)
