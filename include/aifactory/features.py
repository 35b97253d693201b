"""Features by the line's `features.sql`: one portable text, run here by DuckDB.

The text sees the accepted raw tables by their names, and a `calendar` with one row a wanted day: `partition_date`,
`previous_date`, `day_of_week` (1 Monday to 7 Sunday), because date arithmetic is what SQL engines agree on least.
It must give a column `partition_date`, the entity key, the prediction time, the target and every feature of the spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import TYPE_CHECKING

from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.gates import connect
from aifactory.line import LineSpec
from aifactory.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_DAYS = 45
"""Days built by one statement: bounds the memory of a long history without costing time."""
NUM_CONNECTIONS = 8
"""Objects that are read or written at the same time."""


def text(settings: Settings, spec: LineSpec) -> str:
    """The line's feature SQL."""
    return (settings.lines_dir / spec.line / "features.sql").read_text()


def needed_days(spec: LineSpec, days: Sequence[str]) -> list[str]:
    """The partitions whose raw rows inform the features of these days, where they exist."""
    reach = range(spec.dataset.lookback_days + 1)
    return sorted({(date.fromisoformat(d) - timedelta(days=n)).isoformat() for d in days for n in reach})


def accepted_key(spec: LineSpec, table: str, day: str) -> str:
    """Key of the raw rows of one day that passed the raw gate."""
    return f"accepted/{spec.line}/{table}/date={day}.parquet"


def accepted(f: Factory, spec: LineSpec, days: Sequence[str]) -> dict[str, dict[str, pa.Table]]:
    """The accepted rows of these days, as far as there are any: table -> day -> rows."""

    def one(where: tuple[str, str]) -> tuple[str, str, pa.Table | None]:
        try:
            return (*where, f.store.get_table(accepted_key(spec, *where)))
        except NotFound:
            return (*where, None)

    found: dict[str, dict[str, pa.Table]] = {name: {} for name in spec.source.tables}
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        for name, day, table in pool.map(one, [(n, d) for n in spec.source.tables for d in days]):
            if table is not None:
                found[name][day] = table
    return found


def build(
    settings: Settings,
    spec: LineSpec,
    days: Sequence[str],
    raw: Mapping[str, Mapping[str, pa.Table]],
    sql: str | None = None,
) -> pa.Table:
    """Build the features of these days.

    Args:
        settings: threads and memory that the work may use.
        spec: the line.
        days: partition keys to build.
        raw: table -> day -> accepted rows, for `needed_days(spec, days)` as far as they exist.
        sql: the feature SQL; default the line's own file.

    Returns:
        `date`, entity key, prediction time, target (int8), categorical (string) and numeric (float32) features, in
        this order, sorted by date and entity key; equal input gives equal tables.
    """
    import pyarrow as pa

    ordered = sorted(days)
    chunks = [ordered[n : n + CHUNK_DAYS] for n in range(0, len(ordered), CHUNK_DAYS)]
    query = sql or text(settings, spec)
    return pa.concat_tables([_build(settings, spec, chunk, raw, query) for chunk in chunks])


def _build(
    settings: Settings, spec: LineSpec, days: Sequence[str], raw: Mapping[str, Mapping[str, pa.Table]], sql: str
) -> pa.Table:
    import pyarrow as pa

    from aifactory.landing import arrow_type

    wanted = set(needed_days(spec, days))
    with connect(settings) as con:
        for name, by_day in raw.items():
            declared = pa.schema([(c, arrow_type(k)) for c, k in spec.source.tables[name].columns.items()])
            parts = [t for day, t in sorted(by_day.items()) if day in wanted]
            con.register(name, pa.concat_tables(parts) if parts else declared.empty_table())
        con.register("calendar", calendar(days))
        built = con.sql(sql).to_arrow_table()
    return _finish(built, spec)


def calendar(days: Sequence[str]) -> pa.Table:
    """The wanted days with what the SQL needs to know of each."""
    import pyarrow as pa

    dates = [date.fromisoformat(d) for d in days]
    return pa.table(
        {
            "partition_date": pa.array(dates, pa.date32()),
            "previous_date": pa.array([d - timedelta(days=1) for d in dates], pa.date32()),
            "day_of_week": pa.array([d.isoweekday() for d in dates], pa.int32()),
        }
    )


def _finish(built: pa.Table, spec: LineSpec) -> pa.Table:
    """The contract's columns, types and order."""
    import pyarrow as pa

    model = spec.model
    columns = {"date": built.column("partition_date").cast(pa.string())}
    for name in [*model.entity_key, model.prediction_time]:
        columns[name] = built.column(name)
    columns[model.target] = built.column(model.target).cast(pa.int8())
    columns |= {name: built.column(name).cast(pa.string()) for name in model.categorical}
    columns |= {name: built.column(name).cast(pa.float64()).cast(pa.float32()) for name in model.numeric}
    return pa.table(columns).sort_by([(c, "ascending") for c in ["date", *model.entity_key]]).combine_chunks()
