"""`python -m aifactory.training --line L --order ORDER_ID --phase challenger|refit`: one phase of one order.

The same program with the same arguments runs as a local process and in a pod. Where the stores are, it reads from
the environment (`AIF_...`), so no secret is on the command line. What it made is the last line of stdout, as JSON;
an error that it foresaw is the last line of stderr, as JSON. Both are in S3 too, see `outcome`, as are the reserved
exit codes.

Where `AIF_PROCESSES` or `AIF_NODES` say that several processes share the training, this is their launcher: it starts
the same program as often as needed, see `elastic`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.settings import load_settings
from aifactory.training import group, outcome
from aifactory.training.launch import end_with_parent
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
    if group.started_by_launcher():
        return one_of_several(asked, stop, failure)
    settings = load_settings()
    if settings.processes > 1 or settings.nodes != "1":
        return outcome.told(lambda f: launch_all(f, argv, asked, failure), failure=failure)
    return outcome.told(lambda f: train(f, asked.line, asked.order, asked.phase, stop), failure=failure)


def launch_all(f: Factory, argv: list[str], asked: argparse.Namespace, failure: str) -> dict[str, Any]:
    """Start the processes that share the training, and end as they do."""
    from aifactory.training.elastic import lead

    return lead(f, argv, f"{asked.order}-{asked.phase}", failure)


def one_of_several(asked: argparse.Namespace, stop: StopSignal, failure: str) -> int:
    """Be one of the processes that a launcher has started; it hears of what nobody foresaw, and does not outlive it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    end_with_parent()
    if group.rank() > 0:
        logging.getLogger("aifactory").setLevel(logging.WARNING)  # the first one tells the progress of all

    @record  # type: ignore[untyped-decorator]
    def work() -> int:
        return outcome.told(
            lambda f: train(f, asked.line, asked.order, asked.phase, stop), failure=failure, one_of_several=True
        )

    return int(work())


def train(f: Factory, line: str, order_id: str, phase: str, stop: StopSignal) -> dict[str, Any]:
    """One phase of one order. The line's spec is the order's: an image is older than the newest edit of a spec."""
    from aifactory.training.run import order_key, run

    order = f.store.get_json(order_key(line, order_id))
    return run(f, LineSpec.model_validate(order["spec"]), order, phase, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
