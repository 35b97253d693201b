"""`python -m aifactory.training --line L --order ORDER_ID --phase challenger|refit`: one phase of one order.

The same program with the same arguments runs as a local process and in a pod. Where the stores are, it reads from
the environment (`AIF_...`), so no secret is on the command line. What it made is the last line of stdout, as JSON;
an error that it foresaw is the last line of stderr, as JSON. Both are in S3 too, see `outcome`, as are the reserved
exit codes.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.training import outcome
from aifactory.training.stop import StopSignal


def main(argv: list[str]) -> int:
    """Parse, train, tell."""
    parser = argparse.ArgumentParser(prog="aifactory.training", description=__doc__)
    parser.add_argument("--line", required=True, help="name of the line")
    parser.add_argument("--order", required=True, help="id of the training order")
    parser.add_argument("--phase", required=True, choices=["challenger", "refit"], help="phase of the order")
    asked = parser.parse_args(argv)
    stop = StopSignal()
    stop.install()
    from aifactory.training.run import failure_key

    failure = failure_key(asked.line, asked.order, asked.phase)
    return outcome.told(lambda f: train(f, asked.line, asked.order, asked.phase, stop), failure=failure)


def train(f: Factory, line: str, order_id: str, phase: str, stop: StopSignal) -> dict[str, Any]:
    """One phase of one order. The line's spec is the order's: an image is older than the newest edit of a spec."""
    from aifactory.training.run import order_key, run

    order = f.store.get_json(order_key(line, order_id))
    return run(f, LineSpec.model_validate(order["spec"]), order, phase, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
