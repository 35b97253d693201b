"""# Feedback: predictions meet outcomes, and the line decides whether to remake its model

Runs when predictions are new and judges every window whose outcomes are in: live metric, calibration, drift of the
features and of the score. It then decides by the line's rule and calls for a retrain once, however often it runs.

Of an online line, a new champion is on probation: if what it answers to callers breaks a limit within
`deployment.rollback_window_hours`, `take_back` puts the champion before it back (`LIVE_BREACH` in the ledger), live
requests first. A champion that was put back is on no probation.

**Why**: nobody has to watch the model. The line notices by itself that the world has moved.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a decision means**

| reason | the line says |
|---|---|
| `FIRST_MODEL` | there is data enough and no model yet |
| `DRIFT` | enough of the newest windows broke a limit |
| `LIVE_DECAY` | so many broke one only together with those of live answers |
| `CADENCE_DUE` | the champion is as old as the cadence allows |

**What a failure usually means**: `DATASET_CORRUPT` or `PACKAGE_INVALID`: stored content does not match its hash,
somebody wrote to the bucket; `ROLLOUT_STUCK`: the servers did not load the champion before in time, the one that broke
its limit serves on, see `make status`, then trigger `<line>.rollback`; `STORE_UNREACHABLE`: S3 or Postgres is down, it
was retried, see `make status`.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration.assets import assets_of, whenever
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import day_form
from orchestration.links import with_links
from orchestration.station import station


@every_line
def feedback(spec: LineSpec) -> None:
    """predictions + outcomes → retrain, when the rule says so."""
    assets = assets_of(spec.line)

    with stage_dag(spec, "feedback", __doc__, schedule=whenever(assets.predictions), params=day_form()):

        @task(doc_md="Joins predictions with outcomes; measures quality and drift of every window that is due.")
        def judge() -> dict[str, Any]:
            from aifactory.stages import feedback as stage

            with station(spec, "feedback/") as here:
                return here.made(stage.judge(here.factory, spec, here.partition, here.run))

        @task(doc_md="Applies the line's rule to the newest windows. Keeping the model skips the call for a retrain.")
        def decide() -> dict[str, Any]:
            from aifactory.stages import feedback as stage

            with station(spec, "feedback/") as here:
                decision = here.made(stage.decide(here.factory, spec, here.partition, here.run))
                return decision if decision["emit"] else here.end_here(decision, str(decision["explanation"]))

        @task(outlets=[assets.retrain], doc_md="Emits the retrain signal: the asset event that starts training.")
        def call_for_retrain(decision: dict[str, Any]) -> None:
            with station(spec, "feedback/") as here:
                here.emit(assets.retrain, decision)

        @task(doc_md="Looks at what a new champion has answered. One that keeps its limits skips the rollback.")
        def watch() -> dict[str, Any]:
            from aifactory.stages import probation as stage

            with station(spec, "feedback/") as here:
                found = here.made(stage.watch(here.factory, spec))
                return found if found["breach"] else here.end_here(found, str(found["explanation"]))

        @task(outlets=[assets.champion], doc_md="Puts the champion before it back: live requests first, then batches.")
        def take_back(breach: dict[str, Any]) -> dict[str, Any]:
            from aifactory.stages import probation as stage

            with station(spec, "feedback/") as here:
                restored = here.made(stage.take_back(here.factory, spec, breach, here.run))
                here.emit(assets.champion, restored)
                return restored

        judged, decided = with_links(judge()), with_links(decide())
        judged >> decided
        call_for_retrain(decided)
        if spec.deployment.online:
            watched = with_links(watch())
            judged >> watched
            with_links(take_back(watched))
