"""`python -m plant.serve`: serving alone, in the foreground, as the container `serving` runs it.

The programs share loopback, files and a unix socket, and each is to be started again without the others: they are
under the plant's own supervisor here too.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import xmlrpc.client

from aifactory.errors import InfrastructureFault
from aifactory.settings import Settings, load_settings
from plant import gateway, serving
from plant.supervision import Supervisor

log = logging.getLogger(__name__)

_LOOK_S = 1.0


def serve(settings: Settings, stop: threading.Event) -> bool:
    """Run the programs of serving until asked to stop; whether it was that, and not the supervisor's end, that did.

    A program that the supervisor has given up is started again: there is nobody here who would.
    """
    supervisor = Supervisor(settings.home, console=True)
    supervisor.start(serving.prepare(settings), {}, bound=True)
    try:
        while True:
            for state in supervisor.states():
                if state["statename"] in ("STOPPED", "FATAL"):
                    supervisor.start_program(state["name"])
            if stop.wait(_LOOK_S):
                break
        with contextlib.suppress(InfrastructureFault):  # it may end meanwhile
            gateway.drain(settings)
        supervisor.stop_programs(list(serving.PARTS))
        supervisor.shutdown()
    except (OSError, xmlrpc.client.Error):
        log.exception("the supervisor does not answer")
        return False
    return True


def main() -> int:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return 0 if serve(load_settings(), stop) else 1


if __name__ == "__main__":
    sys.exit(main())
