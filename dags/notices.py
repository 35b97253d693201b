"""# Notices: people are told what of production they must know

Runs every five minutes. What the ledger has anew of a gate that refused, a rollout or a champion taken back, a missed
deadline, a release that waits for a person, or more rows in quarantine than a line tolerates becomes a notice: one in
the log of this task, and one to each channel that the file of AIF_NOTICES_FILE names for it (docs/notices.md).

**Why**: a line that runs unattended for years must call somebody when, and only when, it needs somebody.

**Owner**: whoever keeps the file of the routes.

**What is told**: the same of the same unit once in `repeat_hours`, then with how often it happened. What could not be
sent is tried again for half a day, through restarts, then given up; both are told in this log and in `/floor/metrics`.

**What a failure usually means**: `STORE_UNREACHABLE`: the ledger's Postgres was away; it was retried, and nothing is
lost. A channel that is away (`CHANNEL_FAILED` in the log) fails no task. While the file of the routes is wrong there is
no such DAG and an import error instead; what happens meanwhile is told when it is mended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from aifactory.notices import Routes
from orchestration.defaults import plant_dag, with_routes
from orchestration.station import plant_task


@with_routes
def notices(routes: Routes, lines: Mapping[str, LineSpec]) -> None:
    """ledger → people."""
    with plant_dag("notices", __doc__, schedule="*/5 * * * *", limit_minutes=5):

        @task(doc_md="Makes notices of what is new in the ledger, and sends what is due.")
        def tell() -> dict[str, Any]:
            from orchestration import notices as told

            with plant_task() as (factory, _):
                return told.tell(factory, routes, lines)

        tell()
