"""# Train: a challenger is trained, judged, and only if it wins made into a candidate

Runs when feedback calls for a retrain, or by hand with the form. One dataset revision is resolved first and everything
after it uses that one. The challenger is compared with the champion on the newest days, which neither has seen; the
winner is then trained again on all days, the newest too, and registered.

**Why**: a model is released because it was proved better, not because it is newer.

**Owner**: the line's team (see the owner above and `line.yaml`).

**A refused challenger is no failure**: `evaluate` succeeds, the rest is skipped, and the reasons are in its XCom
`reason`, in the report, in MLflow and in the ledger (scrapped): `METRIC_BELOW_FLOOR`, `GAIN_NOT_PROVEN`, `CALIBRATION`,
`SLICE_DROP`, `LATENCY_BUDGET`, `SIZE_BUDGET`.

**The edge package** (lines with a section `edge`): a refused one is no failure either, the candidate goes on without:
`EDGE_NOT_QUANTISABLE`, `EDGE_ACCURACY`, `EDGE_CALIBRATION`, `EDGE_SCORES`, `EDGE_SIZE`, `EDGE_LATENCY`.

**What a failure usually means**

* `DATASET_TOO_SMALL`: a new line. Wait, or ingest more history.
* `LOSS_NOT_FINITE`: a learning rate too high, or a feature without bounds. Change the recipe's parameters.
* `TRAINING_FAILED`: an error in the recipe. Read the training log above the message.
* `PACKAGE_MISMATCH`: the exported model computes something else. A bug in the recipe's export.
* `REFIT_DIVERGED`: the newest days differ wildly. Look at the drift, train again tomorrow.
* `PACKAGE_UNSIGNED`, `PACKAGE_INVALID`: a released package was altered in the store. Find out by whom.
* `OUT_OF_MEMORY`, `PROCESS_KILLED`: too little memory; it was retried. Raise `compute.memory_gb`.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import chain, task

from aifactory.line import LineSpec
from orchestration import compute
from orchestration.assets import assets_of, whenever
from orchestration.defaults import every_line, stage_dag
from orchestration.forms import train_form
from orchestration.links import with_links
from orchestration.station import refusals, station


@every_line
def train(spec: LineSpec) -> None:
    """dataset + retrain → candidate."""
    assets = assets_of(spec.line)

    with stage_dag(spec, "train", __doc__, schedule=whenever(assets.retrain), params=train_form(spec)):

        @task(doc_md="Pins the dataset revision, the recipe and its parameters: the training order.")
        def resolve() -> str:
            from aifactory.stages import train as stage

            with station(spec, "train/") as here:
                order = here.made(stage.resolve_order(here.factory, spec, here.request(assets.retrain)))
                return str(order["order_id"])

        @task(
            **compute.limits(spec, "train"), doc_md="Trains on all days but the held-out ones, in a process of its own."
        )
        def train_challenger(order_id: str) -> dict[str, Any]:
            with station(spec, f"train/{order_id}/") as here:
                return here.made(compute.train(here, order_id, "challenger"))

        @task(
            **compute.limits(spec, "evaluate"),
            doc_md="Challenger against champion on the same newest days. A refusal skips the rest.",
        )
        def evaluate(order_id: str) -> dict[str, Any]:
            from aifactory.stages import train as stage

            with station(spec, f"train/{order_id}/") as here:
                verdict = here.made(stage.evaluate(here.factory, spec, order_id, compute.elsewhere(here, "evaluate")))
                return verdict if verdict["passed"] else here.end_here(verdict, refusals(verdict))

        @task(**compute.limits(spec, "train"), doc_md="Trains the blessed recipe again, with the newest days too.")
        def refit(order_id: str) -> dict[str, Any]:
            with station(spec, f"train/{order_id}/") as here:
                return here.made(compute.train(here, order_id, "refit"))

        @task(outlets=[assets.candidate], doc_md="Makes the refitted model a version in the registry.")
        def register(order_id: str) -> dict[str, Any]:
            from aifactory.stages import train as stage

            with station(spec, f"train/{order_id}/") as here:
                candidate = here.made(stage.register(here.factory, spec, order_id))
                here.emit(assets.candidate, candidate, partition=candidate["trained_until"])
                return candidate

        @task(doc_md="Makes the version's int8 package for devices: measured, signed. A refusal keeps it from them.")
        def edge(order_id: str) -> dict[str, Any]:
            from aifactory.stages import train as stage

            with station(spec, f"train/{order_id}/") as here:
                verdict = here.made(stage.edge(here.factory, spec, order_id))
                return verdict if verdict["passed"] else here.end_here(verdict, refusals(verdict))

        order_id = with_links(resolve())
        asked = (train_challenger, evaluate, refit, register, *([edge] if spec.edge else []))
        steps = [with_links(step(order_id)) for step in asked]
        chain(*steps)
