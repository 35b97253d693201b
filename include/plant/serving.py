"""Serving in the embedded plant: two model servers, the gateway, the controller, the shipper of the prediction log."""

from __future__ import annotations

import logging
import sys

from aifactory.serving.gateway import Gateway, Limits, Ports, Slots
from aifactory.settings import REPOSITORY, Settings
from plant import gateway, ownserver, slots, triton
from plant.clients import read_keys
from plant.errors import PlantError
from plant.ports import internal
from plant.slots import SLOTS
from plant.supervision import Program

log = logging.getLogger(__name__)

NAME = "serving"
CONTROL, SHIPPER = "serving-control", "serving-log"
PARTS = (*(slots.name(slot) for slot in SLOTS), gateway.NAME, CONTROL, SHIPPER)

_PASSED_ON = (
    "lines_dir", "host", "serving_port", "internal_port", "s3_endpoint", "s3_region", "factory_bucket", "threads",
    "live_spool_mb", "serving_keys_file", "serving_requests_per_s", "serving_max_request_mb",
)  # fmt: skip
"""Settings that whoever starts serving may have set and that its programs must see too; keys are in `plant.env`."""


def runtime(settings: Settings) -> str:
    """Which model servers are run; where Triton cannot and need not be, the log says why."""
    if settings.serving_runtime != "auto":
        return settings.serving_runtime
    try:
        triton.check_machine()
    except PlantError as error:
        log.warning("models are served by the factory's own server: %s", error)
        return "own"
    return "triton"


def install(settings: Settings) -> bool:
    """Build what the chosen runtime needs; whether it had to."""
    return triton.install(settings) if runtime(settings) == "triton" else False


def prepare(settings: Settings) -> list[Program]:
    """How to run each part."""
    servers = triton if runtime(settings) == "triton" else ownserver
    return [
        *servers.prepare(settings),
        gateway.prepare(settings, gateway_of(settings)),
        _python(settings, CONTROL, "plant.control"),
        _python(settings, SHIPPER, "aifactory.serving.shipper", stop_wait_s=30),
    ]


def slots_of(settings: Settings) -> Slots:
    """Where the model servers listen."""
    a, b = (
        Ports(internal(settings, f"serving_{slot}_http"), internal(settings, f"serving_{slot}_grpc")) for slot in SLOTS
    )
    return Slots(a, b)


def gateway_of(settings: Settings) -> Gateway:
    """The gateway as the settings have it, without a line.

    Raises:
        PlantError: there is to be a file of keys, and it is not valid; see `plant.clients`.
    """
    limits = Limits(
        max_request_bytes=round(settings.serving_max_request_mb * 1_000_000),
        requests_per_s=settings.serving_requests_per_s,
        burst=2 * settings.serving_requests_per_s,
    )
    keys = read_keys(settings.serving_keys_file) if settings.serving_keys_file else {}
    return Gateway(settings.serving_port, slots_of(settings), limits=limits, keys=keys, host=settings.host)


def answers(settings: Settings, part: str) -> bool:
    """Whether a part does its work; of the two programs without a port, that they run is all that is asked."""
    if part == gateway.NAME:
        return gateway.answers(settings)
    if part in (CONTROL, SHIPPER):
        return True
    return slots.answers(settings, part.rpartition("-")[2])


def _python(settings: Settings, name: str, module: str, stop_wait_s: int = 15) -> Program:
    environment = {
        "PYTHONPATH": str(REPOSITORY / "include"),
        "AIF_HOME": str(settings.home),
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    } | settings.variables(n for n in _PASSED_ON if n in settings.model_fields_set)
    return Program(name, [sys.executable, "-m", module], environment, order=250, stop_wait_s=stop_wait_s)
