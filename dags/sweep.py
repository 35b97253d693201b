"""# Sweep: what no task waits for any more is removed

Runs every ten minutes; finds nothing where no cluster was ever connected. A task that ends, is cancelled or runs out of
time takes its pod with it, and one that dies finds its pod again when it is tried anew. What is left after that (a
machine lost at the wrong moment, a run deleted) is found here, by the plant's label, and removed. So is what a job in a
pod left in S3 for a task that never took it, once it is a day old.

**Why**: a forgotten pod with a GPU costs money every second, and nobody sees it.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a removed pod means**: see its `ORPHAN_REMOVED` event in the ledger, with the task that it belonged to. One now
and then is normal after a lost machine; many are a bug.

**What a failure usually means**

* `CLUSTER_UNREACHABLE`: the Kubernetes API is away; it was retried.
* `CLUSTER_DENIED`: the plant's account may not list or delete pods; see `docs/kubernetes.md`.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration.defaults import every_line, stage_dag
from orchestration.links import with_links
from orchestration.station import station


@every_line
def sweep(spec: LineSpec) -> None:
    """Pods without a task, and jobs that nobody took → none."""
    with stage_dag(spec, "sweep", __doc__, schedule="*/10 * * * *", params={}):

        @task(doc_md="Removes this line's pods whose task is over, each with an event in the ledger, and day-old jobs.")
        def remove_orphans() -> dict[str, Any]:
            from orchestration import sweeper

            with station(spec, "train/") as here:
                return here.made(sweeper.sweep(here))

        with_links(remove_orphans())
