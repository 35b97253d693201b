"""Served predictions in S3: their table, the days, reading them for feedback, and few files instead of many.

    live/<line>/date=<day>/<slot>-<number>.parquet   a segment's rows of one day; written by the shipper alone
    live/<line>/date=<day>/all-<hash>.parquet        several of those in one
    live/<line>/index.json                           the days: `num_rows`, `num_files`, `shipped_at`

The day is that of the prediction time (UTC), as of batch predictions; of the time of serving where nobody said who was
scored. A row may be there twice for a moment (a repeat after a crash, a compaction half done): readers take it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from aifactory.dayindex import DayIndex
from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.landing import arrow_type
from aifactory.line import LineSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from aifactory.serving.predictionlog import Identity, Request
    from aifactory.store import Store

_MERGED = "all-"
_READS = 5
_MAX_DAYS = 32
_JSON_TYPES: dict[str, set[type]] = {"string": {str}, "int": {int}, "float": {int, float}, "bool": {bool}}


def day_prefix(line: str, day: str) -> str:
    """Key prefix of one day's served predictions."""
    return f"live/{line}/date={day}/"


def live_days(store: Store, line: str) -> DayIndex:
    """The days that have served predictions."""
    return DayIndex(store, f"live/{line}/index.json")


def key_types(spec: LineSpec) -> dict[str, str]:
    """Kind of every column that says who was scored, as the line's source declares it: entity key, prediction time.

    A key column that the line derives itself is a string.
    """
    declared = spec.source.tables[spec.source.units].columns
    kinds = {name: str(declared.get(name, "string")) for name in spec.model.entity_key}
    return kinds | {spec.model.prediction_time: "timestamp"}


# --- from the log to a table
def table_of(spec: LineSpec, identity: Identity, requests: Sequence[Request]) -> tuple[pa.Table, int]:
    """Logged requests as the table that is shipped, and how many rows nobody said a unit for.

    Its columns: entity key, prediction time, score, model_version, dataset_revision, as batch predictions; request_id
    (null: none), row (within the request), slot, served_at, shadow; the features, missing as null. A feature that is
    part of the entity key is there once.
    """
    import numpy as np
    import pyarrow as pa

    counts = np.array([r.rows for r in requests], np.int64)
    total = int(counts.sum())
    texts = {name: _texts(requests, n) for n, name in enumerate(identity.categorical)}
    units, num_unknown = _units(spec, requests, texts)
    repeat = np.repeat(np.arange(len(requests)), counts)
    columns: dict[str, pa.Array] = dict(units)
    columns["score"] = pa.array(np.frombuffer(b"".join(r.scores for r in requests), np.float32))
    columns["model_version"] = pa.repeat(identity.version, total)
    columns["dataset_revision"] = pa.repeat(identity.dataset_revision, total)
    columns["request_id"] = pa.array([r.request_id or None for r in requests], pa.string()).take(pa.array(repeat))
    columns["row"] = pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in counts]))
    columns["slot"] = pa.repeat(identity.slot, total)
    served = np.array([r.served_at for r in requests], np.int64)
    columns["served_at"] = pa.array(served[repeat], pa.timestamp("us", tz="UTC"))
    columns["shadow"] = pa.array(np.array([r.shadow for r in requests])[repeat])
    features: dict[str, pa.Array] = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    numbers = _numbers(requests, len(identity.numeric))
    features |= {name: pa.array(numbers[n], from_pandas=True) for n, name in enumerate(identity.numeric)}
    return pa.table(features | columns).select([*columns, *(n for n in features if n not in columns)]), num_unknown


def days_of(spec: LineSpec, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The table's rows by day, oldest first."""
    import pyarrow as pa
    import pyarrow.compute as pc

    at = pc.coalesce(table[spec.model.prediction_time], table["served_at"])
    dates = at.cast(pa.timestamp("us", tz="UTC")).cast(pa.date32())
    for day in sorted(pc.unique(dates).to_pylist()):
        yield day.isoformat(), table.filter(pc.equal(dates, pa.scalar(day, pa.date32())))


def _texts(requests: Sequence[Request], column: int) -> list[str | None]:
    """One categorical column; "" is what the graph takes for missing."""
    return [value.decode(errors="replace") or None for r in requests for value in r.texts[column]]


def _numbers(requests: Sequence[Request], num_numeric: int) -> npt.NDArray[np.float32]:
    """The numeric columns, [num_numeric, rows]."""
    import numpy as np

    return np.concatenate([np.frombuffer(r.numbers, np.float32).reshape(num_numeric, r.rows) for r in requests], axis=1)


def _units(
    spec: LineSpec, requests: Sequence[Request], texts: dict[str, list[str | None]]
) -> tuple[dict[str, pa.Array], int]:
    """Who was scored; null for requests that did not say it, or said it wrongly, or against their own features.

    Those that name more days than `_MAX_DAYS` in one segment count as wrong: a caller cannot make files without end.
    """
    import pyarrow as pa

    kinds = key_types(spec)
    values: dict[str, list[Any]] = {name: [] for name in kinds}
    days: set[date] = set()
    num_unknown = at = 0
    for request in requests:
        own = {n: texts[n][at : at + request.rows] for n, kind in kinds.items() if n in texts and kind == "string"}
        said = _said(request.units, kinds, request.rows)
        new = {instant.date() for instant in said[spec.model.prediction_time]} if said else set()
        if said is None or len(days | new) > _MAX_DAYS or any(said[n] != inputs for n, inputs in own.items()):
            said = {name: [None] * request.rows for name in kinds} | own
            num_unknown += request.rows
        else:
            days |= new
        for name, column in said.items():
            values[name] += column
        at += request.rows
    return {name: pa.array(values[name], arrow_type(kind)) for name, kind in kinds.items()}, num_unknown


def _said(units: str | None, kinds: dict[str, str], rows: int) -> dict[str, list[Any]] | None:
    """The columns of a request's `units`; None unless every one is there, of its kind, whole."""
    if units is None:
        return None
    try:
        said = json.loads(units)
        if not isinstance(said, dict) or any(not isinstance(said.get(n), list) or len(said[n]) != rows for n in kinds):
            return None
        return {name: [_value(value, kind) for value in said[name]] for name, kind in kinds.items()}
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _value(value: Any, kind: str) -> Any:
    """One value of a unit's column; raises TypeError or ValueError where it is of another kind."""
    if kind == "date":
        return date.fromisoformat(value)
    if kind == "timestamp":
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return instant.astimezone(UTC)
    if type(value) not in _JSON_TYPES[kind]:  # a bool is no int here
        raise TypeError(f"{value!r} is not {kind}")
    if kind == "string":
        value.encode()  # JSON can spell what is no text: half of a surrogate pair
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} has more than 64 bits")
    return float(value) if kind == "float" else value


# --- reading
def live_predictions(f: Factory, spec: LineSpec, day: str) -> pa.Table | None:
    """One day's served predictions whose unit is known, for feedback; None where there are none.

    Of what the same slot and version answered for one unit, in public or in the shadow, the first answer counts: later
    ones are a client's retry of a request, or were asked when more was known.

    Returns:
        the columns of `scoring.read_predictions`, and slot, shadow, request_id, row, served_at; sorted by these.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = [*spec.model.entity_key, spec.model.prediction_time]
    wanted = [*keys, "score", "model_version", "dataset_revision", "slot", "shadow", "request_id", "row", "served_at"]
    _, parts = read_day(f.store, day_prefix(spec.line, day), wanted)
    if not parts:
        return None
    known = pa.concat_tables(parts).filter(pc.is_valid(pc.field(spec.model.prediction_time)))
    answer = [*spec.model.entity_key, "model_version", "slot", "shadow"]
    ordered = known.sort_by([(c, "ascending") for c in [*answer, "served_at", "request_id", "row"]])
    return ordered.take(_first_of_each(ordered, answer)) if ordered.num_rows else None


def _first_of_each(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Places of the first row of every combination of values, in order."""
    import pyarrow as pa

    numbered = table.select(columns).append_column("_place", pa.array(range(table.num_rows), pa.int64()))
    return numbered.group_by(list(columns)).aggregate([("_place", "min")])["_place_min"].sort()


def read_day(store: Store, prefix: str, columns: list[str] | None = None) -> tuple[list[str], list[pa.Table]]:
    """Keys and tables under a prefix; read anew where a compaction removes files meanwhile."""
    for attempt in range(1, _READS + 1):
        keys = [o.key for o in store.list(prefix)]
        try:
            return keys, [store.get_table(key, columns) for key in keys]
        except NotFound:
            if attempt == _READS:
                raise
    return [], []


# --- few files instead of many
def compact(store: Store, line: str, day: str, *, whole: bool) -> int:
    """Put a day's files into one: the new file first, then the old ones are removed, so that no row is ever missing.

    Cut off anywhere, it can be done again; rows that are twice there are taken once.

    Args:
        store: the factory's bucket.
        line: the line.
        day: the day.
        whole: whether files that were made by an earlier compaction are taken too. Without, a busy day's new files are
            gathered at a cost that does not grow with the day.

    Returns:
        how many files the day has now.
    """
    import pyarrow as pa

    prefix = day_prefix(line, day)
    found = [o.key for o in store.list(prefix)]
    keys = [key for key in found if whole or not key.startswith(f"{prefix}{_MERGED}")]
    if len(keys) < 2:
        return len(found)
    merged = pa.concat_tables([store.get_table(key) for key in keys], promote_options="permissive")
    ordered = merged.sort_by([(c, "ascending") for c in ["served_at", "slot", "shadow", "request_id", "row"]])
    target = f"{prefix}{_MERGED}{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:16]}.parquet"
    store.put_table(target, ordered.take(_first_of_each(ordered, ordered.column_names)))
    for key in keys:
        store.delete(key)
    return len(found) - len(keys) + 1
