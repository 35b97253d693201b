"""The forms that the UI shows when a person triggers a DAG; the REST API checks the same schema (400)."""

from __future__ import annotations

from airflow.sdk import Param

from aifactory.line import LineSpec

_DAY_PATTERN = r"^\d{4}-\d{2}-\d{2}$"


def ingest_form() -> dict[str, Param]:
    """Which partition to take in; a range is taken in by one run."""
    return {
        "partition": _day("Day to ingest, YYYY-MM-DD. Empty: the run's own partition key, else yesterday."),
        "partition_to": _day(
            "Last day of a range, for a history in one run. Days that are held do not stop the others.", "... up to"
        ),
    }


def train_form(spec: LineSpec) -> dict[str, Param]:
    """What to train and why. The defaults are what a retrain signal gets."""
    return {
        "recipe": Param(
            spec.model.recipe,
            type="string",
            enum=sorted(spec.model.recipes),
            title="Recipe",
            description="The recipe to train with.",
        ),
        "drop_features": Param(
            [],
            type="array",
            items={"type": "string", "enum": spec.model.features},
            uniqueItems=True,
            examples=spec.model.features,
            title="Leave out features",
            description="Features that the challenger does not get to see.",
        ),
        "force": Param(
            False,
            type="boolean",
            title="Train again",
            description="Train anew even where the same order was trained before.",
        ),
        "why": Param(
            "", type="string", maxLength=500, title="Why", description="Goes into the ledger and the model's manifest."
        ),
    }


def rollback_form() -> dict[str, Param]:
    """Which version to go back to, and why: an operator's decision never goes without a reason."""
    return {
        "version": _version("Model version to put back into service. Empty: the one before the champion."),
        "why": Param(
            type="string", minLength=3, maxLength=500, title="Why", description="Goes into the ledger. Required."
        ),
    }


def day_form() -> dict[str, Param]:
    """Which day to work on again; empty in every run that an asset triggers."""
    return {"partition": _day("Day, YYYY-MM-DD. Empty: the run's own partition key, else whatever is pending.")}


def deploy_form() -> dict[str, Param]:
    """Which version to release; empty in every run that a candidate triggers."""
    return {"version": _version("Model version to release. Empty: the candidate that triggered the run.")}


def _day(description: str, title: str = "Partition") -> Param:
    return Param(
        None, type=["null", "string"], format="date", pattern=_DAY_PATTERN, title=title, description=description
    )


def _version(description: str) -> Param:
    return Param(None, type=["null", "string"], pattern=r"^\d{1,9}$", title="Version", description=description)
