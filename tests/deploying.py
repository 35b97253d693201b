"""`python -m tests.deploying LINE VERSION RUN PULSE_S`: what the tasks of the deploy DAG do, without Airflow.

It says that it is ready, and begins when it is given a line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from aifactory.errors import Waiting
from aifactory.factory import Factory, open_factory
from aifactory.line import LineSpec, find_line
from aifactory.stages import rollout
from aifactory.stages.deploy import promote

log = logging.getLogger(__name__)


def deploy(
    f: Factory, spec: LineSpec, version: str, run: str, *, backwards: bool = False, pulse_s: float = 60
) -> dict[str, Any]:
    """Load, shadow, canary, promote; asked again at once where a task would be asked again later."""
    for step in rollout.STEPS.values():
        made = None
        while made is None:
            try:
                made = rollout.advance(f, spec, version, run, step, backwards=backwards, hold_s=10, pulse_s=pulse_s)
            except Waiting as waiting:
                log.info("%s", waiting)
        if "reason" in made:
            rollout.taken_back(f, spec, made, run)
            return made
    return promote(f, spec, version, run)


def main() -> int:
    """One run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    line, version, run, pulse_s = sys.argv[1:]
    f = open_factory()
    f.registry(find_line(f.settings.lines_dir, line)).champion()  # its libraries are imported by then
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    log.info("%s", deploy(f, find_line(f.settings.lines_dir, line), version, run, pulse_s=float(pulse_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
