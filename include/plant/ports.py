"""Which port each part listens on, and whether it is free."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

import psutil

from aifactory.settings import Settings
from plant.errors import PortTaken

_INTERNAL = (
    "s3_master",
    "s3_master_grpc",
    "s3_volume",
    "s3_volume_grpc",
    "s3_filer",
    "s3_filer_grpc",
    "s3_grpc",
    "s3_admin",
    "s3_admin_grpc",
    "airflow_worker_log",
    "airflow_trigger_log",
    "serving_a_http",
    "serving_a_grpc",
    "serving_a_metrics",
    "serving_b_http",
    "serving_b_grpc",
    "serving_b_metrics",
    "gateway_admin",
)


def internal(settings: Settings, name: str) -> int:
    """Port of an internal endpoint: its place in the block that starts at `internal_port`."""
    return settings.internal_port + _INTERNAL.index(name)


def internal_ports(settings: Settings, prefix: str) -> dict[int, str]:
    """Internal ports of the parts with a prefix, each with the setting that moves it."""
    return {internal(settings, name): "AIF_INTERNAL_PORT" for name in _INTERNAL if name.startswith(prefix)}


def check_free(host: str, ports: Mapping[int, str]) -> None:
    """Fail with a message that names port, setting and holder where a port is in use.

    Args:
        host: the address to listen on.
        ports: port → the environment variable that sets it.

    Raises:
        PortTaken: one or more are in use.
    """
    taken = [
        f"port {port} ({setting}) is in use by {_holder(port)}" for port, setting in ports.items() if _busy(host, port)
    ]
    if taken:
        raise PortTaken("; ".join(taken) + ". Stop that process, or set the variable to a free port.")


def free_ports(count: int = 1, host: str = "127.0.0.1", *, block: int = 1) -> list[int]:
    """Ports that nobody listens on now, each the first of a free block.

    Below the range from which the kernel takes ports for outgoing connections, so that none is lent
    between this look and the part's start.
    """
    import secrets

    found: list[int] = []
    while len(found) < count:
        start = 20000 + secrets.randbelow(12000 // 32) * 32
        if start not in found and not any(_busy(host, port) for port in range(start, start + block)):
            found.append(start)
    return found


def _busy(host: str, port: int) -> bool:
    """Whether binding the port fails. TIME_WAIT leftovers of an earlier plant do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _holder(port: int) -> str:
    """The process that listens on a port, as far as this user may know."""
    try:
        pids: Iterable[int | None] = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN
        }
        for pid in pids:
            if pid is not None:
                return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:80]})"
    except psutil.Error:
        pass
    return "a process that this user cannot see"
