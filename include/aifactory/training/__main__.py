"""`python -m aifactory.training --line L --order ORDER_ID --phase challenger|refit`: one phase of one order.

The same program with the same arguments runs as a local process and in a pod. Where the stores are, it reads from
the environment (`AIF_...`), so no secret is on the command line. What it made is the last line of stdout, as JSON;
an error that it foresaw is the last line of stderr, as JSON. Both are in S3 too, see `outcome`.

Reserved exit codes:

    0     done
    3     a defect: trying again would give the same
    4     an infrastructure fault: try again
    143   asked to stop by SIGTERM, and did: try again, it goes on from its checkpoint
"""

from __future__ import annotations

import argparse
import json
import logging
import sys

from aifactory.errors import Defect, FactoryError
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.settings import load_settings
from aifactory.training import outcome
from aifactory.training.stop import StopSignal

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
    stop = StopSignal()
    stop.install()
    from aifactory.training.run import failure_key

    f, failure = Factory(load_settings()), failure_key(asked.line, asked.order, asked.phase)
    try:
        outcome.begin(f.store, failure)
        made = train(f, asked.line, asked.order, asked.phase, stop)
    except Exception as error:
        outcome.failed(f.store, failure, error)
        if not isinstance(error, FactoryError):
            raise  # nobody foresaw it: the traceback is what there is to tell
        sys.stderr.write(f"{json.dumps({'reason': error.reason.value, 'message': error.message})}\n")
        return DEFECT if isinstance(error, Defect) else FAULT
    sys.stdout.write(f"{json.dumps(made)}\n")
    return DONE


def train(f: Factory, line: str, order_id: str, phase: str, stop: StopSignal) -> dict[str, object]:
    """One phase of one order. The line's spec is the order's: an image is older than the newest edit of a spec."""
    from aifactory.training.run import order_key, run

    order = f.store.get_json(order_key(line, order_id))
    return run(f, LineSpec.model_validate(order["spec"]), order, phase, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
