"""Supervisord: its configuration from typed programs, and its XML-RPC over a private unix socket."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from plant.errors import PartFailed, PlantError
from plant.processes import MARKER, remember_session
from plant.secrets import private_folder, write_private

_SOCKET_FOLDER_LIMIT = 75  # bytes; the kernel allows 107 for a whole path, and supervisord appends a process id to it
_GIVE_UP_S = 12.0  # how long a program may keep ending at once before a start counts as failed, s
_LOST = ("FATAL", "EXITED", "UNKNOWN")


@dataclass(frozen=True)
class Program:
    """One supervised process.

    Args:
        name: of the part, as `status` shows it.
        command: program and arguments; no secrets, every user of the machine can read them.
        environment: variables beside those of the plant; kept in a file of mode 0600.
        user: account to run as, where it is not the plant's own.
        order: parts of a higher order stop earlier.
        stop_signal: what asks it to stop.
        stop_wait_s: seconds before it is killed.
        folder: its working folder, where it is not the plant's run folder.
        as_group: whether the stop signal goes to its whole process group.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    order: int = 500
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
    folder: Path | None = None
    as_group: bool = True


def sockets_folder(home: Path) -> Path:
    """Where a plant's unix sockets are: with its other passing state, or where that path is too long, aside."""
    folder = home / "run"
    if len(os.fsencode(folder)) <= _SOCKET_FOLDER_LIMIT:
        return folder
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ai-factory-{os.geteuid()}-{name}"


class Supervisor:
    """The supervisor of one plant.

    Args:
        home: the plant's.
        console: whether it and its programs log to the standard output, as a container does, and not to files.
    """

    def __init__(self, home: Path, *, console: bool = False) -> None:
        self.home = home
        self.console = console
        self.run_folder = home / "run"
        self.log_folder = home / "logs"
        self.config_file = self.run_folder / "supervisord.conf"
        self.pid_file = self.run_folder / "supervisord.pid"

    @property
    def socket(self) -> Path:
        """Its own socket."""
        return sockets_folder(self.home) / "supervisor.sock"

    def running(self) -> bool:
        """Whether the supervisor answers."""
        try:
            return bool(self._call("getState")["statename"] in ("RUNNING", "RESTARTING"))
        except (OSError, xmlrpc.client.Error):
            return False

    def start(self, programs: list[Program], environment: Mapping[str, str], *, bound: bool = False) -> None:
        """Start supervisord with its programs all stopped.

        Args:
            programs: what it looks after.
            environment: what every program gets, beside its own.
            bound: whether it ends with the calling process (tests), or outlives it.
        """
        private_folder(self.run_folder)
        private_folder(self.log_folder)
        if private_folder(self.socket.parent).stat().st_uid != os.geteuid():
            raise PlantError(
                f"{self.socket.parent} belongs to somebody else; remove it, or set AIF_HOME to a shorter path"
            )
        write_private(self.config_file, self._config(programs, environment))
        self.pid_file.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        log = nullcontext() if self.console else (self.log_folder / "supervisord.out").open("ab")
        with log as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.config_file)],
                env=_clean_environment() | {MARKER: str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.run_folder,
                start_new_session=True,
                umask=0o077,
                preexec_fn=_end_with_parent if bound else None,  # noqa: PLW1509 - one prctl, before any thread of the child
            )
        remember_session(self.home, process.pid)
        deadline = time.monotonic() + 20
        while not self.running():
            if process.poll() is not None or time.monotonic() > deadline:
                raise PlantError(f"supervisord did not start: {_tail(self.log_folder / 'supervisord.out')}")
            time.sleep(0.02)

    def start_program(self, name: str) -> None:
        """Start one program unless it runs."""
        if self.state(name)["statename"] not in ("RUNNING", "STARTING"):
            self._call("startProcess", name, False)

    def stop_programs(self, names: list[str], timeout_s: float = 40) -> None:
        """Ask programs to stop, all at once, and wait until they have."""
        for name in names:
            if self.state(name)["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
                self._call("stopProcess", name, False)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and any(self.state(n)["statename"] == "STOPPING" for n in names):
            time.sleep(0.05)

    def state(self, name: str) -> dict[str, Any]:
        """What the supervisor knows of one program: statename, pid, start, now, exitstatus."""
        return dict(self._call("getProcessInfo", name))

    def states(self) -> list[dict[str, Any]]:
        """What the supervisor knows of every program, those that stop last first."""
        return sorted((dict(s) for s in self._call("getAllProcessInfo")), key=lambda s: int(s["start"] or 0))

    def wait_healthy(self, name: str, healthy: Callable[[], bool], timeout_s: float) -> None:
        """Wait until a started program is healthy.

        Raises:
            PartFailed: it ended for good, or the time is over; with the end of its log.
        """
        began = time.monotonic()
        while not healthy():
            state, waited_s = self.state(name), time.monotonic() - began
            lost = state["statename"] in _LOST or (state["statename"] == "BACKOFF" and waited_s > _GIVE_UP_S)
            if lost or waited_s > timeout_s:
                log = self.log_folder / f"{name}.log"
                raise PartFailed(
                    f"{name} is not healthy after {waited_s:.0f} s, its process is "
                    f"{state['statename']}; the end of {log}:\n{_tail(log)}"
                )
            time.sleep(0.1)

    def shutdown(self, timeout_s: float = 60) -> None:
        """Stop every program and the supervisor itself."""
        pid = int(self._call("getPID"))
        self._call("shutdown")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and _runs(pid):
            time.sleep(0.05)
        if self.socket.parent != self.run_folder:
            shutil.rmtree(self.socket.parent, ignore_errors=True)

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(serverurl=f"unix://{self.socket}")
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    def _config(self, programs: list[Program], environment: Mapping[str, str]) -> str:
        lines = [
            "[unix_http_server]",
            f"file={_escape(str(self.socket))}",
            "chmod=0700",
            "[supervisord]",
            *self._log("logfile", "supervisord.log", "5MB", 2),
            f"pidfile={_escape(str(self.pid_file))}",
            f"childlogdir={_escape(str(self.log_folder))}",
            "umask=077",
            "minfds=1024",
            *(["user=root"] if os.geteuid() == 0 else []),
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for program in programs:
            lines += self._section(program, environment)
        return "\n".join(lines) + "\n"

    def _section(self, program: Program, environment: Mapping[str, str]) -> list[str]:
        variables = {**environment, **program.environment, MARKER: str(self.home)}
        group = "true" if program.as_group else "false"
        return [
            f"[program:{program.name}]",
            f"command={_escape(shlex.join(program.command))}",
            "environment=" + ",".join(f"{name}={_quoted(name, value)}" for name, value in variables.items()),
            f"directory={_escape(str(program.folder or self.run_folder))}",
            *([f"user={program.user}"] if program.user else []),
            f"priority={program.order}",
            "autostart=false",
            "autorestart=true",
            "startsecs=3",
            "startretries=10",
            f"stopsignal={program.stop_signal}",
            f"stopwaitsecs={program.stop_wait_s}",
            f"stopasgroup={group}",
            "killasgroup=true",
            "redirect_stderr=true",
            *self._log("stdout_logfile", f"{program.name}.log", "10MB", 3),
        ]

    def _log(self, option: str, name: str, maxbytes: str, backups: int) -> list[str]:
        if self.console:  # supervisord itself writes there anyway when it runs in the foreground
            return [f"{option}={'/dev/stdout' if option == 'stdout_logfile' else '/dev/null'}", f"{option}_maxbytes=0"]
        path = _escape(str(self.log_folder / name))
        return [f"{option}={path}", f"{option}_maxbytes={maxbytes}", f"{option}_backups={backups}"]


def _quoted(name: str, value: str) -> str:
    if '"' in value or "\n" in value:
        raise PlantError(f"{name} holds a double quote or a line break, which supervisord's configuration cannot carry")
    return f'"{_escape(value)}"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _clean_environment() -> dict[str, str]:
    """The caller's environment without settings of a factory: each program gets its own, and no other's secrets."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AIF_", "PLANT_", "AIRFLOW_", "MLFLOW_", "PG"))}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
