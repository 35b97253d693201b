"""`python -m aifactory.training --line L --order ORDER_ID --phase challenger|refit`: one phase of one order.

The same program with the same arguments runs as a local process and in a pod. Where the stores are, it reads from
the environment (`AIF_...`), so no secret is on the command line. What it made is the last line of stdout, as JSON;
an error that it foresaw is the last line of stderr, as JSON. Exit codes: 0 done, 3 defect (do not retry),
4 infrastructure fault (retry), 143 asked to stop.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from types import FrameType

from aifactory.errors import Defect, FactoryError
from aifactory.factory import Factory
from aifactory.line import find_line
from aifactory.settings import load_settings

DONE, DEFECT, FAULT, STOPPED = 0, 3, 4, 143


def main(argv: list[str]) -> int:
    """Parse, train, tell."""
    parser = argparse.ArgumentParser(prog="aifactory.training", description=__doc__)
    parser.add_argument("--line", required=True, help="name of the line")
    parser.add_argument("--order", required=True, help="id of the training order")
    parser.add_argument("--phase", required=True, choices=["challenger", "refit"], help="phase of the order")
    asked = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    try:
        made = train(asked.line, asked.order, asked.phase)
    except FactoryError as error:
        told = {"reason": error.reason.value, "message": error.message}
        sys.stderr.write(f"{json.dumps(told)}\n")
        return DEFECT if isinstance(error, Defect) else FAULT
    sys.stdout.write(f"{json.dumps(made)}\n")
    return DONE


def train(line: str, order_id: str, phase: str) -> dict[str, object]:
    """One phase of one order."""
    from aifactory.training.run import order_key, run

    f = Factory(load_settings())
    spec = find_line(f.settings.lines_dir, line)
    return run(f, spec, f.store.get_json(order_key(line, order_id)), phase)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly end: the MLflow run is marked as killed, the checkpoint stays."""
    raise SystemExit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
