"""Batch scoring: which days are pending, which model may honestly score them, and the predictions of a day.

A day is scored only by a model that has not learned from it. What is written depends on the day's rows and on the model
alone, so that scoring again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifactory.dayindex import DayIndex, Entry
from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.line import LineSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from aifactory.packaging import Package


def predictions_key(line: str, day: str) -> str:
    """Key of one day's predictions."""
    return f"predictions/{line}/date={day}.parquet"


def scored_days(f: Factory, spec: LineSpec) -> DayIndex:
    """What was made of each day.

    An entry has `content` (hash of the rows), `model_version`, `dataset_revision`, `num_rows`, `mean_score`, `docs`
    and `refused`: whether the gate held the predictions back.
    """
    return DayIndex(f.store, f"predictions/{spec.line}/index.json")


def honest_reign(reigns: Sequence[Mapping[str, Any]], day: str) -> Mapping[str, Any] | None:
    """The newest reign whose model had not learned from a day; None where every model has seen it."""
    return next((reign for reign in reversed(reigns) if str(reign["trained_until"]) < day), None)


def pending(
    reigns: Sequence[Mapping[str, Any]],
    content: Mapping[str, str],
    done: Mapping[str, Entry],
    asked: str | None = None,
) -> list[tuple[str, Mapping[str, Any]]]:
    """Days to score with the reign that scores each, oldest first.

    A day is pending when it was never scored or its rows have changed since. A newer model does not make a scored day
    pending: its predictions are what the line said in time, and are not rewritten in hindsight, so a corrected day is
    scored again by the model that scored it first. A day whose predictions were refused is tried again when its rows
    or its model have changed, or when it is asked for.

    Args:
        reigns: the champions so far, oldest first.
        content: hash of every dataset day.
        done: what was made of each day.
        asked: the day that an operator or a run asks for.
    """
    found = []
    for day, rows in sorted(content.items()):
        entry = done.get(day)
        reign = _first_scorer(reigns, entry) or honest_reign(reigns, day)
        if reign is not None and not _settled(entry, rows, reign["version"], day == asked):
            found.append((day, reign))
    return found


def _settled(entry: Entry | None, rows: str, version: str, asked: bool) -> bool:
    """Whether nothing is left to do for these rows."""
    if entry is None or entry["content"] != rows:
        return False
    return not entry["refused"] or (entry["model_version"] == version and not asked)


def _first_scorer(reigns: Sequence[Mapping[str, Any]], entry: Entry | None) -> Mapping[str, Any] | None:
    if entry is None or entry["refused"]:
        return None
    return next((reign for reign in reigns if reign["version"] == entry["model_version"]), None)


def predict_day(spec: LineSpec, package: Package, units: pa.Table, version: str, revision: str) -> pa.Table:
    """The predictions of one day: entity key, prediction time, score, model version, dataset revision on every row."""
    import pyarrow as pa

    kept = units.select([*spec.model.entity_key, spec.model.prediction_time])
    return (
        kept.append_column("score", pa.array(package.predict(units), pa.float32()))
        .append_column("model_version", pa.repeat(version, kept.num_rows))
        .append_column("dataset_revision", pa.repeat(revision, kept.num_rows))
    )


def needed_columns(spec: LineSpec, package: Package) -> list[str]:
    """The dataset columns that scoring reads."""
    return list(
        dict.fromkeys([*spec.model.entity_key, spec.model.prediction_time, *package.categorical, *package.numeric])
    )


def problems(spec: LineSpec, num_units: int, made: Entry, recent: Sequence[Entry]) -> list[str]:
    """What is wrong with a day's predictions as a whole, each with its number.

    Args:
        spec: the line.
        num_units: how many units the day has.
        made: of these predictions: `num_scored` (finite scores), `num_rows`, `mean_score`.
        recent: the same of the recent days, oldest first.
    """
    limits, found = spec.scoring, []
    coverage = made["num_scored"] / max(num_units, 1)
    if coverage < limits.min_coverage:
        found.append(f"coverage {coverage:.3f} is below scoring.min_coverage {limits.min_coverage}")
    if not recent:
        return found
    shift = made["mean_score"] - sum(r["mean_score"] for r in recent) / len(recent)
    if abs(shift) > limits.max_mean_shift:
        found.append(
            f"the mean score moved by {shift:+.3f} against {len(recent)} recent days, more than "
            f"scoring.max_mean_shift {limits.max_mean_shift}"
        )
    volume = made["num_rows"] / max(sum(r["num_rows"] for r in recent) / len(recent), 1)
    if not spec.quality.volume_min_ratio <= volume <= spec.quality.volume_max_ratio:
        found.append(
            f"the number of predictions is {volume:.2f} of that of {len(recent)} recent days, outside "
            f"quality.volume_min_ratio {spec.quality.volume_min_ratio} to "
            f"volume_max_ratio {spec.quality.volume_max_ratio}"
        )
    return found


def recent_entries(spec: LineSpec, done: Mapping[str, Entry], day: str) -> list[Entry]:
    """The scored days before a day that its predictions are compared with, oldest first."""
    before = [entry for each, entry in sorted(done.items()) if each < day and not entry["refused"]]
    return before[-spec.scoring.recent_days :]


def read_predictions(f: Factory, spec: LineSpec, day: str) -> pa.Table | None:
    """One day's predictions; None where there are none."""
    try:
        return f.store.get_table(predictions_key(spec.line, day))
    except NotFound:
        return None
