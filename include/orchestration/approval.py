"""A person's word before a release, where the line's tier asks for one: Airflow's human in the loop."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import task

from orchestration.links import with_links
from orchestration.notices import ApprovalWaits
from orchestration.station import station

if TYPE_CHECKING:
    from aifactory.line import LineSpec

APPROVE, REJECT = "Approve", "Reject"


def approval(spec: LineSpec, proposed: Any) -> list[Any]:
    """The tasks that a release waits in; none where the line's tier is not high.

    Nobody's answer within `approval_hours` counts as `approval_default`. A refusal skips the rest of the run, and is
    kept in the ledger with who gave it.
    """
    if spec.deployment.tier != "high":
        return []
    from airflow.providers.standard.operators.hitl import HITLOperator

    approve = HITLOperator(
        task_id="approve",
        subject=f"Release version {{{{ ti.xcom_pull('propose')['version'] }}}} of {spec.title}?",
        body="{{ ti.xcom_pull('propose')['body'] }}",
        options=[APPROVE, REJECT],
        defaults=APPROVE if spec.deployment.approval_default == "approve" else REJECT,
        response_timeout=timedelta(hours=spec.deployment.approval_hours),
        execution_timeout=None,
        notifiers=[ApprovalWaits(spec.line)],
        doc_md="Waits for a person: see Required actions.",
    )

    @task(doc_md="Goes on where the release was approved; else the rest is skipped.")
    def approved(proposed: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        from aifactory.stages import deploy as stage

        with station(spec, "deploy/") as here:
            person = answer.get("responded_by_user") or {}
            yes = answer["chosen_options"] == [APPROVE]
            said = stage.approval(here.factory, spec, proposed["version"], here.run, yes=yes, by=person.get("name", ""))
            return said if yes else here.end_here(said, said["explanation"])

    proposed >> approve
    return [approve, with_links(approved(proposed, approve.output))]
