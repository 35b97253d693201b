"""Raw material as the outside world landed it: read, and told apart from what cannot be read.

Landed parquet is brought to the spec's types where that loses nothing (an int that came as int32, an instant in
milliseconds); anything else is a defect that names the column.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from aifactory.errors import LandingDefect, NotFound
from aifactory.factory import Factory
from aifactory.line import LineSpec, SourceTable
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LandedTable:
    """One landed file: its rows with the spec's columns and types, which content it was, and when it was written."""

    name: str
    table: pa.Table
    uri: str
    etag: str
    written_at: datetime | None = None


def read_day(f: Factory, spec: LineSpec, day: str) -> dict[str, LandedTable]:
    """Read every table of one partition.

    Raises:
        LandingDefect: a file is missing, empty, not parquet, or its columns are not those of the spec.
    """
    return {name: read_table(f, spec, name, day) for name in spec.source.tables}


def landed_days(f: Factory, spec: LineSpec) -> list[str]:
    """The partitions whose units have landed, oldest first."""
    before, after = spec.source.pattern.replace("{table}", spec.source.units).split("{day}")
    keys = [o.key for o in f.landing.list(before)]
    return sorted(k[len(before) : len(k) - len(after)] for k in keys if k.endswith(after))


def read_table(f: Factory, spec: LineSpec, name: str, day: str) -> LandedTable:
    """Read one table of one partition; raises as `read_day` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = spec.source.key(name, day)
    uri = f.landing.uri(key)
    try:
        body, info = f.landing.get_with_info(key)
    except NotFound as error:
        raise LandingDefect(
            ReasonCode.LANDING_MISSING, f"{uri} is not there; ingest {day} again once the source has delivered it"
        ) from error
    if not body:
        raise LandingDefect(ReasonCode.LANDING_EMPTY, f"{uri} has no bytes; ask the source to deliver {day} again")
    try:
        table = pq.ParquetFile(io.BytesIO(body)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LandingDefect(
            ReasonCode.LANDING_UNREADABLE,
            f"{uri} ({len(body)} bytes) is truncated or not parquet: {_first_line(error)}",
        ) from error
    if len(table) == 0:
        raise LandingDefect(ReasonCode.LANDING_EMPTY, f"{uri} has no rows; ask the source to deliver {day} again")
    return LandedTable(name, conform(table, spec.source.tables[name], uri), uri, info.etag, info.written_at)


def conform(table: pa.Table, source: SourceTable, uri: str) -> pa.Table:
    """The spec's columns in the spec's types and order; other columns are left out.

    Raises:
        LandingDefect: COLUMN_MISSING, COLUMN_TYPE or COLUMN_ALL_NULL, naming the columns.
    """
    import pyarrow as pa

    missing = [c for c in source.columns if c not in table.column_names]
    if missing:
        extra = [c for c in table.column_names if c not in source.columns]
        hint = f"; it has {extra} that the line does not know: renamed?" if extra else ""
        raise LandingDefect(ReasonCode.COLUMN_MISSING, f"{uri} lacks {missing}{hint}")
    columns, wrong = [], []
    for name, kind in source.columns.items():
        try:
            columns.append(_as_kind(table.column(name), kind))
        except (TypeError, pa.ArrowException) as error:
            wrong.append(f"{name} is {table.schema.field(name).type}, not {kind} ({_first_line(error)})")
    if wrong:
        raise LandingDefect(ReasonCode.COLUMN_TYPE, f"{uri}: {'; '.join(wrong)}")
    empty = [n for n, c in zip(source.columns, columns, strict=True) if len(c) and c.null_count == len(c)]
    empty = [n for n in empty if n not in source.nullable]
    if empty:
        raise LandingDefect(ReasonCode.COLUMN_ALL_NULL, f"{uri}: {empty} are null on all {len(table)} rows")
    return pa.table(dict(zip(source.columns, columns, strict=True)))


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of one of the spec's types."""
    import pyarrow as pa

    return {
        "string": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "date": pa.date32(),
        "bool": pa.bool_(),
    }[kind]


def _as_kind(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """The column as one of the spec's types, where that is the same kind of thing and loses nothing."""
    import pyarrow as pa

    is_ = pa.types
    same = {
        "string": lambda t: is_.is_string(t) or is_.is_large_string(t) or is_.is_dictionary(t),
        "int": is_.is_integer,
        "float": lambda t: is_.is_floating(t) or is_.is_integer(t),
        "timestamp": lambda t: is_.is_timestamp(t) and t.tz is not None,
        "date": is_.is_date,
        "bool": is_.is_boolean,
    }[kind]
    if not (same(column.type) or is_.is_null(column.type)):
        raise TypeError("another kind of value")
    return column.cast(arrow_type(kind))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
