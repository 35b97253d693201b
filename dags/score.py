"""# Score: the champion predicts a day's units

Runs when a dataset partition is new. Every pending day is scored by the newest champion that has not learned from it,
with each unit's features as of its own prediction time; the predictions are gated before they are written.

**Why**: these predictions are what the line is there for, and what feedback later judges.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a failure usually means**

* `PREDICTIONS_GATE`: features or model went wrong: scores far from those of recent days, or units without one. Look at
  the report; roll back if the model is at fault.
* `PACKAGE_INVALID`: a model file was altered. Roll back, and find out who wrote to `models/`.
* `DATASET_CORRUPT`: stored data does not match its hash. Restore the object, run it again.
* `OUT_OF_MEMORY`, `START_TIMEOUT`, `INTERNAL` of a job: where predictions are made in a pod; docs/kubernetes.md.
* `STORE_UNREACHABLE`: S3 or MLflow is down; it was retried. `make status`.

A line without a champion scores nothing and says so (`NO_CHAMPION`); that is no failure.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration import compute
from orchestration.assets import assets_of, whenever
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import day_form
from orchestration.links import with_links
from orchestration.station import station


@every_line
def score(spec: LineSpec) -> None:
    """dataset + champion → predictions."""
    assets = assets_of(spec.line)

    with stage_dag(spec, "score", __doc__, schedule=whenever(assets.dataset), params=day_form()):

        @task(
            inlets=[assets.champion],
            outlets=[assets.predictions],
            **compute.limits(spec, "score"),
            doc_md="Scores what is pending, gates it, writes one partition a day.",
        )
        def score_pending() -> dict[str, Any]:
            from aifactory.stages import score as stage

            with station(spec, "score/") as here:
                carry_out = compute.elsewhere(here, "score")
                scored = here.made(stage.score(here.factory, spec, here.partition, here.run, carry_out))
                here.emit(assets.predictions, scored)
                return scored

        with_links(score_pending())
