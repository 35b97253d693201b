"""# Ingest: one landed day becomes a dataset version

Runs every night for the day before (partition key `YYYY-MM-DD`). Backfill it from the UI or with
`airflow backfill create --dag-id <line>.ingest --from-date 2026-11-01 --to-date 2026-11-03` (both days included), or
trigger it with the form for one day or a range. Running a day twice leaves what running it once left.

**Why**: nothing downstream looks at raw data again. What passes here is what models learn from.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a failure usually means** (the reason code is in the task's log, in its XCom `reason` and in the ledger)

* `LANDING_MISSING`, `LANDING_EMPTY`, `LANDING_UNREADABLE`: the source is late, or its upload broke off. Run the day
  again when it is there.
* `COLUMN_MISSING`, `COLUMN_TYPE`, `COLUMN_ALL_NULL`: the source changed its schema. Agree with it, or
  change `line.yaml`.
* `VOLUME_ABNORMAL`, `FRESHNESS`: a partial delivery, or a day delivered twice. Run it again once corrected.
* `QUARANTINE_SHARE`: too many rows broke a rule. Look at Data Docs and at the quarantine.
* `FEATURE_GATE`: the feature SQL and the data do not fit. Look at Data Docs, mend `features.sql`.
* `GATE_BROKEN`: a gate could not run, and holds what it cannot judge. Mend `expectations.py`, run the day again.
* `DATASET_CONFLICT`: other writers kept winning. Run it again.
* `OUT_OF_MEMORY`, `START_TIMEOUT`, `INTERNAL` of a job: where features are built in a pod; docs/kubernetes.md.
* `STORE_UNREACHABLE`: S3, git or Postgres is down; it was retried. `make status`.

The last good dataset version stays in use whatever fails here.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration import compute
from orchestration.assets import assets_of
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import ingest_form
from orchestration.links import with_links
from orchestration.schedule import NightlyPartitions
from orchestration.station import station


@every_line
def ingest(spec: LineSpec) -> None:
    """landing → dataset."""
    dataset = assets_of(spec.line).dataset
    nightly = NightlyPartitions(spec.schedule.cron, spec.schedule.timezone)

    with stage_dag(spec, "ingest", __doc__, schedule=nightly, params=ingest_form()):

        @task(doc_md="Judges the landed rows; those that fail go to quarantine, a day that fails is held.")
        def gate_raw() -> dict[str, Any]:
            from aifactory.stages import ingest as stage

            with station(spec, "ingest/") as here:
                return here.made(stage.gate_raw(here.factory, spec, here.days, here.run))

        @task(
            **compute.limits(spec, "build_features"),
            doc_md="Computes every unit's features as of its own prediction time, and gates them.",
        )
        def build_features(gated: dict[str, Any]) -> dict[str, Any]:
            from aifactory.stages import ingest as stage

            with station(spec, "ingest/") as here:
                carry_out = compute.elsewhere(here, "build_features")
                return here.made(stage.build_features(here.factory, spec, gated["days"], here.run, carry_out))

        @task(outlets=[dataset], max_active_tis_per_dag=1, doc_md="Commits a dataset version: data first, then git.")
        def commit_dataset(gated: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
            from aifactory.stages import ingest as stage

            with station(spec, "ingest/") as here:
                version = here.made(stage.commit_dataset(here.factory, spec, built["staged"], here.run))
                here.emit(dataset, version | {"day": gated["days"][-1]}, partition=gated["days"][-1])
                return version

        gated = with_links(gate_raw())
        built = with_links(build_features(gated))
        commit_dataset(gated, built)
