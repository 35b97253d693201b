"""# Rollback: an operator takes the champion back

Runs by hand only. The form takes the version (empty: the one before) and the reason, which is written to the ledger
with the operator's name. Live requests go back first, as soon as that version is loaded and has given its golden
outputs (seconds), then batch scoring, with the next one. It is itself taken back in the same way.

**Why**: whoever is on call at night needs one button, not a procedure.

**Owner**: the line's team (see the owner above and `line.yaml`).

**What a failure usually means**: `NO_PREVIOUS`: there is no earlier champion; `VERSION_UNKNOWN`: the registry has no
such version; `PACKAGE_INVALID`: that version's files are incomplete; `ROLLOUT_STUCK`: the servers did not load it in
time, see `make status`. The champion in service stays in service.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from aifactory.line import LineSpec
from orchestration.assets import assets_of
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import rollback_form
from orchestration.links import with_links
from orchestration.station import station


@every_line
def rollback(spec: LineSpec) -> None:
    """champion → the champion before."""
    champion = assets_of(spec.line).champion

    with stage_dag(spec, "rollback", __doc__, schedule=None, params=rollback_form()):

        @task(outlets=[champion], doc_md="Switches the champion back, atomically.")
        def roll_back() -> dict[str, Any]:
            from aifactory.stages import deploy as stage

            with station(spec, "deploy/") as here:
                version, why = here.params["version"], here.params["why"]
                restored = here.made(stage.rollback(here.factory, spec, version, here.run, here.operator, why))
                here.emit(champion, restored)
                return restored

        with_links(roll_back())
