"""Batch scoring: which days are pending, which model may honestly score them, and the predictions of a day.

A day is scored only by a model that has not learned from it. What is written depends on the day's rows and on the model
alone, so that scoring again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.line import LineSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from aifactory.packaging import Package


def predictions_key(line: str, day: str) -> str:
    """Key of one day's predictions."""
    return f"predictions/{line}/date={day}.parquet"


def receipt_key(line: str, day: str) -> str:
    """Key of what one day's predictions were made from."""
    return f"predictions/{line}/receipts/{day}.json"


def honest_reign(reigns: Sequence[Mapping[str, Any]], day: str) -> Mapping[str, Any] | None:
    """The newest reign whose model had not learned from a day; None where every model has seen it."""
    return next((reign for reign in reversed(reigns) if str(reign["trained_until"]) < day), None)


def pending(
    reigns: Sequence[Mapping[str, Any]], content: Mapping[str, str], done: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Days to score with the reign that scores each, oldest first.

    A day is pending when no predictions stand, or its rows have changed since. A newer model does not make a scored day
    pending: its predictions are what the line said in time, and are not rewritten in hindsight.

    Args:
        reigns: the champions so far, oldest first.
        content: hash of every dataset day.
        done: receipts by day.
    """
    found = []
    for day, md5 in sorted(content.items()):
        receipt = done.get(day)
        if receipt is not None and receipt["content"] == md5:
            continue
        reign = _same_version(reigns, receipt) or honest_reign(reigns, day)
        if reign is not None:
            found.append((day, reign))
    return found


def _same_version(reigns: Sequence[Mapping[str, Any]], receipt: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A corrected day is scored again by the model that scored it first."""
    if receipt is None:
        return None
    return next((r for r in reigns if r["version"] == receipt["model_version"]), None)


def predict_day(spec: LineSpec, package: Package, units: pa.Table, version: str, revision: str) -> pa.Table:
    """The predictions of one day: entity key, prediction time, score, model version and dataset revision on every row."""
    import pyarrow as pa

    kept = units.select([*spec.model.entity_key, spec.model.prediction_time])
    rows = kept.num_rows
    return (
        kept.append_column("score", pa.array(package.predict(units), pa.float32()))
        .append_column("model_version", pa.array([version] * rows, pa.string()))
        .append_column("dataset_revision", pa.array([revision] * rows, pa.string()))
    )


def receipts(f: Factory, spec: LineSpec) -> dict[str, dict[str, Any]]:
    """What every scored day was made from, by day."""
    prefix = f"predictions/{spec.line}/receipts/"
    days = [o.key.removeprefix(prefix).removesuffix(".json") for o in f.store.list(prefix)]
    return {day: f.store.get_json(receipt_key(spec.line, day)) for day in days}


def read_predictions(f: Factory, spec: LineSpec, day: str) -> pa.Table | None:
    """One day's predictions; None where there are none."""
    try:
        return f.store.get_table(predictions_key(spec.line, day))
    except NotFound:
        return None
