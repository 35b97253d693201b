"""# Deploy: a candidate becomes the champion, step by step

Runs when a candidate is registered. What it does depends on the line's `deployment` section:

* a tier of `high`: `approve` waits for a person, see *Required actions*; the evaluation report is linked there;
* `online`: the candidate is loaded beside the champion (`load`), gets copies of live requests (`shadow`), then a rising
  share of them (`canary`), and is compared with the champion all the while; worse, slower, failing: it is taken back
  at once, and no caller notices;
* then `promote` switches the champion, for batch scoring too; the version before is kept for `<line>.rollback`.

**Why**: what serves is always one verified version, a worse one is found out on a few requests, and taking it back
takes seconds.

**Owner**: the line's team (see the owner above and `line.yaml`).

**A candidate that is taken back is no failure**: the task succeeds, the rest is skipped, and the reasons with their
numbers are in its XCom `reason` and in the ledger (rolled_back): `CANARY_ERRORS`, `CANARY_SLOW`,
`CANARY_SCORES_SHIFTED`, `SHADOW_MISMATCH`, `CHALLENGER_LOST`, `NOT_PROVEN`, `NO_TRAFFIC`, `APPROVAL_REJECTED`.

**What a failure usually means**: `PACKAGE_INVALID`, `PACKAGE_UNSIGNED` or `PACKAGE_MISMATCH`: the package in S3 is
incomplete or was altered, train again; `VERSION_UNKNOWN`: the version was deleted from the registry;
`ROLLOUT_SUPERSEDED`, `ROLLOUT_RUNNING`: a newer version or an operator's rollback came first, name the version in the
form to release an older one all the same; `STORE_UNREACHABLE`: S3 or MLflow is down, it was retried, see
`make status`. The champion in service stays in service.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import chain, task

from aifactory.line import LineSpec
from orchestration.approval import approval
from orchestration.assets import assets_of, whenever
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import deploy_form
from orchestration.links import with_links
from orchestration.station import station, step_of_rollout


@every_line
def deploy(spec: LineSpec) -> None:
    """candidate → champion."""
    assets = assets_of(spec.line)

    with stage_dag(spec, "deploy", __doc__, schedule=whenever(assets.candidate), params=deploy_form()):

        @task(doc_md="Names the version, and what is known of it.")
        def propose() -> dict[str, Any]:
            from aifactory.stages import deploy as stage

            with station(spec, "deploy/") as here:
                return here.made(stage.propose(here.factory, spec, here.version(assets.candidate)))

        @task(doc_md="Loads it beside the champion; warm-up and golden rows.")
        def load(proposed: dict[str, Any]) -> dict[str, Any]:
            return step_of_rollout(spec, proposed, "load")

        @task(doc_md="Copies of live requests go to it; nobody gets its answers.")
        def shadow(proposed: dict[str, Any]) -> dict[str, Any]:
            return step_of_rollout(spec, proposed, "shadow")

        @task(doc_md="A rising share of live requests; worse than the champion, it is taken back.")
        def canary(proposed: dict[str, Any]) -> dict[str, Any]:
            return step_of_rollout(spec, proposed, "canary")

        @task(outlets=[assets.champion], doc_md="Verifies the package and switches the champion, atomically.")
        def promote(proposed: dict[str, Any]) -> dict[str, Any]:
            from aifactory.stages import deploy as stage

            with station(spec, "deploy/") as here:
                champion = here.made(stage.promote(here.factory, spec, proposed["version"], here.run))
                here.emit(assets.champion, champion)
                return champion

        proposed = with_links(propose())
        steps = [load, shadow, canary, promote] if spec.deployment.online else [promote]
        chain(*approval(spec, proposed), *[with_links(step(proposed)) for step in steps])
