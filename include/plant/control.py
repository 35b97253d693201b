"""`python -m plant.control`: the controller of serving, in the embedded plant. See `aifactory.serving.control`."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifactory.factory import Factory, open_factory
from aifactory.serving.control import TURN_S, Controller, ServedSlot
from aifactory.serving.repository import ModelRepository
from aifactory.serving.routing import Routing
from aifactory.serving.slot import Slot
from aifactory.settings import Settings
from aifactory.signing import read_released
from plant import gateway, serving, slots

log = logging.getLogger(__name__)


def controller(f: Factory) -> Controller:
    """The controller of this plant's slots and gateway."""
    settings = f.settings
    served = {
        name: ServedSlot(
            Slot(name, slots.grpc_address(settings, name)),
            ModelRepository(slots.repository_folder(settings, name), settings.threads),
        )
        for name in slots.SLOTS
    }
    routing = Routing(serving.gateway_of(settings), gateway.folder(settings), gateway.admin(settings))

    def fetch(line: str, version: str) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        return read_released(settings, f.store, f"models/{line}/{version}")

    return Controller(f.store, served, routing, fetch)


def beat(settings: Settings) -> Path:
    """A file that is as old as the last turn."""
    return settings.home / "run" / "control.turn"


def main() -> int:
    """Turn after turn until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every question to the gateway
    f, stopped = open_factory(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    turning, turned = controller(f), beat(f.settings)
    log.info("the controller follows the documents under %s", f.store.uri("serving"))
    while not stopped.wait(TURN_S):
        lines = sorted(path.parent.name for path in f.settings.lines_dir.glob("*/line.yaml"))
        try:
            turning.turn(lines)
        except Exception:  # an unforeseen fault of one turn must not end the one program that can mend it
            log.exception("a turn failed; what is in force stays in force")
        turned.touch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
