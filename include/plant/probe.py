"""A health check that costs little: asks the API server for one component, with the standard library alone.

`python -I probe.py URL [COMPONENT]`: 0 where the URL answers and, with a component (scheduler, dag_processor,
triggerer, metadatabase), where that one is healthy. Airflow's own `jobs check` costs seconds and hundreds of MB.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def main(url: str, component: str = "") -> int:
    """Ask once."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an address of the compose file
            said = answer.read()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1
    state = json.loads(said)[component]["status"] if component else "healthy"
    sys.stdout.write(f"{state}\n")
    return 0 if state == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
