"""# Deploy: a candidate becomes the champion

Runs when a candidate is registered. The package is verified against its hashes, its golden inputs are scored, and the
champion pointer is switched in one atomic write; the version before is kept for `<line>.rollback`.

**Why**: what serves is always one verified version, and taking it back takes seconds.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a failure usually means**: `PACKAGE_INVALID` or `PACKAGE_MISMATCH`: the package in S3 is incomplete or was
altered, train again; `VERSION_UNKNOWN`: the version was deleted from the registry; `STORE_UNREACHABLE`: S3 or MLflow is
down, it was retried, see `make status`. The champion in service stays in service.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration.assets import assets_of, whenever
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import deploy_form
from orchestration.links import with_links
from orchestration.station import station


@every_line
def deploy(spec: LineSpec) -> None:
    """candidate → champion."""
    assets = assets_of(spec.line)

    with stage_dag(spec, "deploy", __doc__, schedule=whenever(assets.candidate), params=deploy_form()):

        @task(outlets=[assets.champion], doc_md="Verifies the package and switches the champion, atomically.")
        def promote() -> dict[str, Any]:
            from aifactory.stages import deploy as stage

            with station(spec, "deploy/") as here:
                champion = here.made(stage.promote(here.factory, spec, here.version(assets.candidate), here.run))
                here.emit(assets.champion, champion)
                return champion

        with_links(promote())
