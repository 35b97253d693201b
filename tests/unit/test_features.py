"""The features of the flight delay line: honest in time, portable, and the same alone as in bulk."""

from __future__ import annotations

import datetime as dt
import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aifactory import features
from aifactory.landing import conform
from aifactory.line import LineSpec, find_line
from aifactory.settings import REPOSITORY, Settings
from outside.flights import _year

SETTINGS = Settings(_env_file=None, lines_dir=REPOSITORY / "include" / "lines")
SPEC: LineSpec = find_line(SETTINGS.lines_dir, "flight_delay")
DAY, BEFORE = "2013-07-10", "2013-07-09"
Raw = dict[str, dict[str, pa.Table]]


def raw_of(*days: str) -> Raw:
    return {
        name: {d: conform(_year()[name][dt.date.fromisoformat(d)], SPEC.source.tables[name], name) for d in days}
        for name in SPEC.source.tables
    }


def nullified(table: pa.Table, columns: list[str], where: pa.ChunkedArray) -> pa.Table:
    for name in columns:
        column = pc.if_else(where, pa.scalar(None, table.schema.field(name).type), table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def without_the_future(raw: Raw, instant: dt.datetime) -> Raw:
    """The raw data as it was known at an instant: later outcomes and later weather never happened."""
    now = pa.scalar(instant, pa.timestamp("us", tz="UTC"))
    known: Raw = {"flights": {}, "weather": {}}
    for day, table in raw["flights"].items():
        departed_later = pc.fill_null(pc.greater(table["departure"], now), False)
        arrived_later = pc.fill_null(pc.greater(table["arrival"], now), False)
        then = nullified(table, ["arrival", "arr_delay", "air_time"], arrived_later)
        then = nullified(then, ["departure", "dep_delay", "dep_time"], departed_later)
        known["flights"][day] = nullified(then, ["cancelled"], pc.greater(table["scheduled_departure"], now))
    for day, table in raw["weather"].items():
        known["weather"][day] = table.filter(pc.less_equal(table["time_hour"], now))
    return known


def row_of(table: pa.Table, like: dict) -> dict:
    for name in SPEC.model.entity_key:
        table = table.filter(pc.equal(table[name], pa.scalar(like[name], table.schema.field(name).type)))
    [row] = table.to_pylist()
    return {name: row[name] for name in SPEC.model.features}


@pytest.fixture(scope="module")
def raw() -> Raw:
    return raw_of(BEFORE, DAY)


@pytest.fixture(scope="module")
def built(raw: Raw) -> pa.Table:
    return features.build(SETTINGS, SPEC, [DAY], raw)


def leaks(raw: Raw, built: pa.Table) -> list[str]:
    """Features that change when everything after the prediction time is deleted, over flights all day long."""
    rows = built.sort_by("scheduled_departure").to_pylist()
    found = set()
    for row in rows[:: len(rows) // 7]:
        instant = row["scheduled_departure"] - dt.timedelta(hours=2)
        again = features.build(SETTINGS, SPEC, [DAY], without_the_future(raw, instant))
        was, now = row_of(built, row), row_of(again, row)
        found |= {name for name in was if repr(was[name]) != repr(now[name])}
    return sorted(found)


def test_no_feature_knows_the_future(raw: Raw, built: pa.Table) -> None:
    assert leaks(raw, built) == []


def test_the_leak_test_finds_a_leak(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = features.text(SETTINGS, SPEC)
    leaky = honest.replace("- INTERVAL '2' HOUR AS prediction_time", "- INTERVAL '30' MINUTE AS prediction_time")
    assert leaky != honest
    monkeypatch.setattr(features, "text", lambda *_: leaky)

    assert "origin_late_1h" in leaks(raw, features.build(SETTINGS, SPEC, [DAY], raw))


def test_a_day_alone_equals_the_day_in_bulk(built: pa.Table) -> None:
    days = [(dt.date(2013, 7, 5) + dt.timedelta(days=n)).isoformat() for n in range(9)]

    bulk = features.build(SETTINGS, SPEC, days[1:], raw_of(*days))

    assert bulk.filter(pc.equal(bulk["date"], DAY)).combine_chunks().equals(built)


def test_every_unit_has_one_row(raw: Raw, built: pa.Table) -> None:
    assert len(built) == len(raw["flights"][DAY])
    assert built.column_names[0] == "date"
    assert set(SPEC.model.features) <= set(built.column_names)
    never_arrived = pc.sum(pc.is_null(raw["flights"][DAY]["arr_delay"])).as_py()
    assert built[SPEC.model.target].null_count == never_arrived


def test_late_share_of_the_last_hour_by_hand(raw: Raw, built: pa.Table) -> None:
    """One feature recomputed the slow way, in Python."""
    row = built.sort_by("scheduled_departure").to_pylist()[600]
    t = row["prediction_time"]
    judged = []
    for day in (BEFORE, DAY):
        for f in raw["flights"][day].to_pylist():
            limit = f["scheduled_departure"] + dt.timedelta(minutes=15)
            left = f["departure"]
            known = left if left and left < limit else limit
            if f["origin"] == row["origin"] and t - dt.timedelta(hours=1) <= known <= t:
                judged.append(not (left and left <= limit))
    assert len(judged) > 5
    assert row["origin_late_1h"] == pytest.approx(sum(judged) / len(judged), abs=1e-6)


def test_history_that_is_not_there_is_null(raw: Raw) -> None:
    alone = features.build(SETTINGS, SPEC, [DAY], {"flights": {DAY: raw["flights"][DAY]}, "weather": {}})

    assert alone["network_late_yesterday"].null_count == len(alone)
    assert alone["temp"].null_count == len(alone)
    assert alone["origin_late_3h"].null_count < len(alone)


@pytest.mark.parametrize("dialect", ["duckdb", "spark", "trino"])
def test_text_parses_everywhere(dialect: str) -> None:
    sqlglot = pytest.importorskip("sqlglot")

    [statement] = sqlglot.parse(features.text(SETTINGS, SPEC), read=dialect)

    assert len(statement.selects) == 7 + 1 + len(SPEC.model.numeric)


def test_text_uses_functions_that_all_engines_have() -> None:
    text = re.sub(r"--.*", "", features.text(SETTINGS, SPEC))
    called = {name.upper() for name in re.findall(r"\b([A-Za-z_]+)\s*\(", text)}

    allowed = {"AVG", "COUNT", "MIN", "CAST", "DATE_TRUNC", "EXTRACT"}
    keywords = {"AS", "OVER", "IN", "AND", "OR", "BY", "WITH", "ON"}
    assert called - keywords <= allowed
    assert not re.search(r"\b(ASOF|QUALIFY|FILTER|GROUP BY ALL|EXCLUDE|LATERAL)\b", text)


@pytest.mark.spark
def test_spark_gives_what_duckdb_gives(raw: Raw, built: pa.Table) -> None:
    pyspark = pytest.importorskip("pyspark.sql")
    spark = (
        pyspark.SparkSession.builder.master("local[2]")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "4")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    try:
        for name, by_day in raw.items():
            spark.createDataFrame(pa.concat_tables(by_day.values()).to_pandas()).createOrReplaceTempView(name)
        spark.createDataFrame(features.calendar([DAY]).to_pandas()).createOrReplaceTempView("calendar")
        got = spark.sql(features.text(SETTINGS, SPEC)).toPandas()
    finally:
        spark.stop()
    key = SPEC.model.entity_key
    got = got.sort_values(key).reset_index(drop=True)
    want = built.to_pandas().sort_values(key).reset_index(drop=True)
    for name in SPEC.model.numeric:
        assert got[name].astype(float).to_numpy() == pytest.approx(want[name].to_numpy(), rel=1e-5, nan_ok=True), name
