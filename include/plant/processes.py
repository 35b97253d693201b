"""The plant's processes: found by the marks they carry, ended, and their memory counted.

Three marks, because each misses some: the environment variable `AIF_PLANT` (lost where a program
overwrites its own title: Postgres, Airflow), the session of the supervisor that started them (left by
programs that open a session of their own), and being a descendant of a process that carries one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import psutil

from plant.secrets import write_private

MARKER = "AIF_PLANT"


def remember_session(home: Path, session: int) -> None:
    """Note the supervisor's session, with the boot it belongs to: numbers are used anew after a reboot."""
    known = [s for s in _sessions(home) if psutil.pid_exists(s) or _alive_in_session(s)]
    write_private(_session_file(home), json.dumps({"boot": _boot(), "sessions": [*known, session]}))


def plant_processes(home: Path) -> list[psutil.Process]:
    """Every live process of the plant whose state is under `home`, but for the caller and its ancestors."""
    sessions = set(_sessions(home))
    marked = [p for p in psutil.process_iter() if _carries_mark(p, home, sessions)]
    found = {p.pid: p for p in marked}
    for process in marked:
        found |= {child.pid: child for child in _children(process)}
    own = psutil.Process()
    kept_out = {own.pid, *(parent.pid for parent in own.parents())}
    return [p for p in found.values() if p.pid not in kept_out and _alive(p)]


def end(processes: list[psutil.Process], grace_s: float = 10) -> None:
    """Ask processes to stop, then kill what is left after the grace time."""
    for process in processes:
        _signal(process, "terminate")
    _, left = psutil.wait_procs(processes, timeout=grace_s)
    for process in left:
        _signal(process, "kill")
    psutil.wait_procs(left, timeout=10)


def end_all(home: Path, grace_s: float = 10) -> int:
    """End every process of a plant, looking again until none is left; returns how many there were."""
    ended = 0
    for attempt in range(5):
        found = plant_processes(home)
        if not found:
            return ended
        ended += len(found)
        end(found, grace_s if attempt == 0 else 1)
        time.sleep(0.05)
    return ended


def memory_bytes(process: psutil.Process) -> int:
    """Proportional set size of one process, bytes: shared pages are counted once over all that share them.

    Resident size where the kernel does not let this user see more.
    """
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; empty where it is gone."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return []
    return [process, *_children(process)]


def _carries_mark(process: psutil.Process, home: Path, sessions: set[int]) -> bool:
    try:
        if os.getsid(process.pid) in sessions:
            return True
        if process.environ().get(MARKER) == str(home):
            return True
        return process.name() == "postgres" and process.cwd() == str(home / "postgres" / "data")
    except (psutil.Error, OSError):
        return False


def _sessions(home: Path) -> list[int]:
    """Sessions of the plant's supervisors since the machine booted."""
    try:
        noted = json.loads(_session_file(home).read_text())
    except (OSError, ValueError):
        return []
    return [int(s) for s in noted["sessions"]] if noted.get("boot") == _boot() else []


def _session_file(home: Path) -> Path:
    return home / "run" / "session.json"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def _alive_in_session(session: int) -> bool:
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                return True
        except OSError:
            continue
    return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, verb: str) -> None:
    with contextlib.suppress(psutil.Error):
        getattr(process, verb)()
