"""Training as a process of its own: its memory and its crashes are not the task's."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from aifactory.errors import FactoryError, InfrastructureFault, TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.training.outcome import DEFECT, DONE, FAULT

log = logging.getLogger(__name__)

_GRACE_S = 15.0
_KEPT_LINES = 40
_NOT_HERS = {"ledger_dsn", "world_access_key", "world_secret_key", "capacity_password"}
"""Training needs no database, no landing bucket, and nothing of Airflow."""


def launch(
    settings: Settings,
    line: str,
    order_id: str,
    phase: str,
    timeout_s: float,
    on_line: Callable[[str], None] = lambda line: log.info("%s", line),
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
    processes: int = 1,
) -> dict[str, Any]:
    """Train one phase of an order in a process of its own, and wait for it.

    Args:
        settings: where the stores are; handed on through the environment.
        line: name of the line.
        order_id: the training order.
        phase: "challenger" or "refit".
        timeout_s: the process is stopped after so many seconds.
        on_line: called with every line that the process writes, as it writes it.
        on_start: given what stops the process, for a caller that may be cancelled.
        processes: processes that share the training; see `group`.

    Returns:
        What the program made; see `run.run`.

    Raises:
        TrainingDefect: the program failed by its own fault; trying again would give the same.
        InfrastructureFault: a store was lost, or the process was killed or ran out of time.
    """
    command = [sys.executable, "-m", "aifactory.training", "--line", line, "--order", order_id, "--phase", phase]
    here = settings.model_copy(update={"processes": processes, "nodes": "1", "rendezvous": ""})
    # a session of its own: stopping it stops whatever it started, and nothing else
    process = subprocess.Popen(
        command, env=environment(here), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one prctl: a killed task leaves no training behind
    )  # fmt: skip
    on_start(lambda: _signal(process, signal.SIGTERM))
    out: deque[str] = deque(maxlen=_KEPT_LINES)
    err: deque[str] = deque(maxlen=_KEPT_LINES)
    late = threading.Event()
    clock = threading.Timer(timeout_s, _stop_late, (process, late))
    clock.daemon = True
    clock.start()
    try:
        reader = threading.Thread(target=_drain, args=(process.stderr, err, None), daemon=True)
        reader.start()
        _drain(process.stdout, out, on_line)
        code = process.wait(timeout=_GRACE_S)
        reader.join(timeout=_GRACE_S)
    finally:
        clock.cancel()
        _end(process)
    if late.is_set():
        raise InfrastructureFault(
            ReasonCode.DEADLINE_MISSED,
            f"{phase} of order {order_id} was stopped after {timeout_s:.0f} s; raise compute.timeout_minutes",
        )
    if code != DONE:
        for text in err:
            on_line(text)
        raise failure(code, list(err), f"{phase} of order {order_id}")
    made: dict[str, Any] = json.loads(out[-1])
    return made


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the training process: the settings and explicit thread counts."""
    threads = str(settings.threads)
    names = set(type(settings).model_fields) - _NOT_HERS
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AIF_")}
    return kept | settings.variables(names) | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }  # fmt: skip


def failure(code: int, err: list[str], what: str) -> FactoryError:
    """The error that an exit code and the end of stderr stand for. A negative code is the signal that killed it."""
    if code < 0:
        killed = signal.Signals(-code).name
        reason = ReasonCode.OUT_OF_MEMORY if -code == signal.SIGKILL else ReasonCode.PROCESS_KILLED
        hint = "most likely for its memory: raise compute.memory_gb" if -code == signal.SIGKILL else "from outside"
        return InfrastructureFault(reason, f"{what} was killed by {killed}, {hint}")
    if code == 128 + signal.SIGTERM:
        return InfrastructureFault(ReasonCode.PROCESS_KILLED, f"{what} was asked to stop and did")
    told = _told(err)
    if told and code in {DEFECT, FAULT}:
        kind = TrainingDefect if code == DEFECT else InfrastructureFault
        return kind(_reason(told["reason"]), f"{what}: {told['message']}")
    if "MemoryError" in "".join(err[-3:]):
        return InfrastructureFault(ReasonCode.OUT_OF_MEMORY, f"{what} ran out of memory; raise compute.memory_gb")
    last = err[-1] if err else "it wrote nothing to stderr"
    return TrainingDefect(ReasonCode.TRAINING_FAILED, f"{what} ended with exit code {code}: {last}")


def _told(err: Iterable[str]) -> dict[str, str] | None:
    """The last line of stderr that is the program's own JSON."""
    for text in reversed(list(err)):
        with suppress(ValueError):
            told = json.loads(text)
            if isinstance(told, dict) and {"reason", "message"} <= set(told):
                return told
    return None


def _reason(code: str) -> ReasonCode:
    return next((reason for reason in ReasonCode if reason.value == code), ReasonCode.TRAINING_FAILED)


def _drain(stream: IO[str] | None, kept: deque[str], on_line: Callable[[str], None] | None) -> None:
    for raw in stream or ():
        text = raw.rstrip("\n")
        kept.append(text)
        if on_line:
            on_line(text)


def end_with_parent() -> None:
    """Have this process asked to stop when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop_late(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    _signal(process, signal.SIGTERM)


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[str]) -> None:
    """Leave no process behind, however this one was left: asked first, then made to."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    _signal(process, signal.SIGKILL)
    process.wait()
