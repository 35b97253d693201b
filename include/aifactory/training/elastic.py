"""The launcher: starts the training processes of this machine, watches them, and ends as they ended.

torch's elastic agent does the work. A process that is lost takes all of them down; they start again together and go
on from the newest checkpoint. Several machines meet at `AIF_RENDEZVOUS`, whose host keeps the meeting: the training
goes on without other machines, down to the fewest that are allowed, and not without that one.

What is told as a defect or a fault is not tried again here: it ends the launcher with the same code, as SIGTERM does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from aifactory.errors import InfrastructureFault, NotFound, SpecError
from aifactory.factory import Factory
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.training import group
from aifactory.training.outcome import DEFECT, FAULT, STOPPED
from aifactory.training.power import process_age_s

log = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""How often the processes are started again after one was lost."""
STOP_S = 28
"""How long processes that were asked to stop may take, s: more than a last checkpoint, less than a pod's grace."""
_STOPPED = {STOPPED, -signal.SIGTERM}


class Agent(LocalElasticAgent):  # type: ignore[misc]
    """torch's agent, who starts nothing again where the program says that trying again would give the same.

    Args:
        goes_on: whether the training goes on with fewer machines, so that one which is asked to stop ends only itself.
    """

    def __init__(self, *args: Any, goes_on: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._goes_on = goes_on

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        code = cause(list(result.failures.values())).exitcode if result.is_failed() else 0
        if code in {DEFECT, FAULT}:
            self._remaining_restarts = 0
        elif code in _STOPPED:
            self._remaining_restarts = self._remaining_restarts + 1 if self._goes_on else 0
        return result


def lead(f: Factory, arguments: list[str], run_id: str, failure: str) -> dict[str, Any]:
    """Run the training program's processes of this machine to their end.

    Args:
        f: the open factory.
        arguments: of the program.
        run_id: names the training to the machines that meet.
        failure: key of what the program writes where it fails.

    Returns:
        Nothing: the process of rank 0 tells what was made.

    Raises:
        SystemExit: they ended with a reserved exit code, or by SIGTERM.
        InfrastructureFault: the machines did not find each other.
        RuntimeError: a process failed in a way that nobody foresaw, and again after every restart.
    """
    os.environ[group.LAUNCHED_AT] = str(time.time() - process_age_s())
    fewest, most = nodes(f.settings)
    processes = _processes(f.settings)
    share_threads(f.settings, processes, most)
    # a store shared with the agent outlives a restart, and what is left in it of lost processes misleads the next ones
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    log.info("%d processes on this machine, of %s machines", processes, f.settings.nodes)
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        handler = _meeting(f.settings, run_id, fewest, most)
        spec = WorkerSpec(
            role="training",
            local_world_size=processes,
            entrypoint=sys.executable,
            args=("-m", "aifactory.training", *arguments),
            rdzv_handler=handler,
            max_restarts=MAX_RESTARTS,
        )
        logs = DefaultLogsSpecs(log_dir=folder)  # the processes write where this one does
        agent = Agent(spec, logs_specs=logs, shutdown_timeout=STOP_S, goes_on=fewest < most)
        try:
            result = agent.run()
        except SignalException as asked:
            raise SystemExit(128 + int(asked.sigval)) from None  # the meeting stays open for the others
        except RendezvousError as error:
            _as_told(f, failure)
            raise _not_met(f.settings, error) from error
        if result is None:
            raise _not_met(f.settings, RendezvousError("this machine was told to leave"))
        handler.shutdown()
    if result.is_failed():
        _end_as(f, failure, list(result.failures.values()))
    return {}


def nodes(settings: Settings) -> tuple[int, int]:
    """Fewest and most machines, from "2" or "1:2".

    Raises:
        SpecError: they cannot be.
    """
    fewest, _, most = settings.nodes.partition(":")
    asked = int(fewest), int(most or fewest)
    if asked[0] > asked[1]:
        raise SpecError(f"AIF_NODES is {settings.nodes!r}: the fewest machines are more than the most")
    if asked[1] > 1 and not settings.rendezvous:
        raise SpecError(f"AIF_NODES is {settings.nodes!r} and AIF_RENDEZVOUS is empty; set it to host:port of one")
    return asked


def share_threads(settings: Settings, processes: int, machines: int) -> None:
    """Give each process its share of the threads; and have those of one machine talk over its own loopback."""
    threads = str(max(1, settings.threads // processes))
    for name in ("AIF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = threads
    if machines == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def cause(failures: Sequence[Any]) -> Any:
    """The failure that explains the others, which are given in the order in which they were seen.

    One that was told; else the first but for those that were asked to stop: the agent asks all when one is lost.
    """
    told = [failure for failure in failures if failure.exitcode in {DEFECT, FAULT}]
    lost = [failure for failure in failures if failure.exitcode not in _STOPPED]
    return [*told, *lost, *failures][0]


def _processes(settings: Settings) -> int:
    """NCCL does not share a GPU between processes: there are not more of them than GPUs."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and settings.processes > gpus:
        log.info("%d processes were asked for, and there are %d GPUs: one for each", settings.processes, gpus)
        return gpus
    return settings.processes


def _meeting(settings: Settings, run_id: str, fewest: int, most: int) -> Any:
    endpoint = settings.rendezvous if most > 1 else "localhost:0"
    own = _own_address(endpoint) if most > 1 else "localhost"
    wait_s = settings.rendezvous_wait_s
    waits = {"join_timeout": wait_s, "read_timeout": wait_s}
    parameters = RendezvousParameters("c10d", endpoint, run_id, fewest, most, local_addr=own, **waits)
    try:
        return get_rendezvous_handler(parameters)
    except RendezvousError as error:
        raise _not_met(settings, error) from error


def _own_address(endpoint: str) -> str | None:
    """The address of this machine on the way to another; None, its name, where machines meet by name, or no way is yet.

    torch numbers machines in the order of what they are called: by names as pods have them the host comes first.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        if host != "localhost":
            ip_address(host.strip("[]"))
    except ValueError:
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(address)  # sends nothing
            return str(way.getsockname()[0])
    except OSError:
        return None


def _not_met(settings: Settings, error: Exception) -> InfrastructureFault:
    where = settings.rendezvous or "this machine"
    return InfrastructureFault(
        ReasonCode.PROCESS_KILLED,
        f"the machines of the training did not find each other at {where} ({type(error).__name__}: {error}); one was "
        f"lost, or AIF_RENDEZVOUS cannot be reached",
    )


def _end_as(f: Factory, failure: str, failures: list[Any]) -> None:
    """End as the process did whose failure explains the others."""
    first = cause(failures)
    log.info("process %d ended with %d and ends the training", first.pid, first.exitcode)
    if first.exitcode in {DEFECT, FAULT}:
        _as_told(f, failure)
        raise SystemExit(first.exitcode)
    if first.exitcode in _STOPPED:
        raise SystemExit(STOPPED)
    if first.exitcode < 0:
        _die_of(-first.exitcode)
    words = first.message["message"] if isinstance(first.message, dict) else first.message
    raise RuntimeError(f"process {first.pid} ended with exit code {first.exitcode}: {words}")


def _as_told(f: Factory, failure: str) -> None:
    """End as the program said that it failed, on this machine or another; nothing where it said nothing."""
    try:
        told = f.store.get_json(failure)
    except NotFound:
        return
    except InfrastructureFault as error:
        log.warning("why it failed cannot be read: %s", error)
        return
    sys.stderr.write(f"{json.dumps({name: told[name] for name in ('reason', 'message')})}\n")
    raise SystemExit(DEFECT if told["kind"] == "defect" else FAULT)


def _die_of(number: int) -> None:
    """As if the signal had ended this process; the first of a container cannot be, and says it by its exit code."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)
