"""GX judges from the metrics of one scan, and the rows are split by the same expectations."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pytest

from aifactory import expectations as e
from aifactory import gates
from aifactory.errors import GateRefused
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings

ROWS = pa.table(
    {
        "_day": ["2026-01-01"] * 6 + ["2026-01-02"] * 2,
        "_row": [0, 1, 2, 3, 4, 5, 0, 1],
        "id": [1, 2, 2, 4, 5, 5, 1, 7],
        "name": ["ab", "cd", "cd", None, "xyz", "ab", "ab", "q'"],
        "a": [1.0, 2.0, 3.0, 4.0, None, 500.0, 1.0, -1.0],
        "b": [2.0, 1.0, 4.0, 5.0, 6.0, 600.0, 1.0, None],
    }
)
EXPECTATIONS = [
    e.not_null("name"),
    e.between("a", 0, 100),
    e.in_set("name", ["ab", "cd", "xyz", "q'"]),
    e.matches("name", "^[a-z]{2}$"),
    e.greater("b", "a"),
    e.never("a > 400 AND b > 500", "a and b are not both huge"),
    e.unique(["_day", "id"]),
]


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with gates.connect(Settings(_env_file=None)) as connection:
        yield connection


def test_verdict_counts_what_failed(con: duckdb.DuckDBPyConnection) -> None:
    verdict = gates.judge(e.suite("s", EXPECTATIONS), ROWS, con)

    assert verdict.num_rows == 8
    assert {f.expectation: f.num_failed for f in verdict.failures} == {
        "name is not null": 1,
        "a between 0.0 and 100.0": 2,
        "name matches ^[a-z]{2}$": 2,
        "b is greater than a": 2,
        "a and b are not both huge": 1,
        "['_day', 'id'] are unique together": 4,
    }


def test_verdict_is_that_of_gx_own_engine(con: duckdb.DuckDBPyConnection) -> None:
    """The same expectations judged by GX's pandas engine: equal success and equal counts."""
    theirs = [x for x in EXPECTATIONS if not isinstance(x, gxe.UnexpectedRowsExpectation)]
    ours = gates.judge(e.suite("ours", theirs), ROWS, con).result
    source = gx.get_context(mode="ephemeral").data_sources.add_pandas("p").add_dataframe_asset("t")
    batch = source.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": ROWS.to_pandas()})
    judged = batch.validate(e.suite("theirs", theirs), result_format="SUMMARY")

    def outcome(result: object) -> dict:
        return {
            gates.describe(r.expectation_config): (r.success, r.result["unexpected_count"], r.result["element_count"])
            for r in result.results
        }

    assert outcome(ours) == outcome(judged)


def test_each_row_is_split_off_by_its_first_failure(con: duckdb.DuckDBPyConnection) -> None:
    verdict = gates.judge(e.suite("s", EXPECTATIONS), ROWS, con)

    found = gates.failing_rows(verdict.at("row"), ROWS, con).to_pylist()

    assert [(r["_day"][-2:], r["_row"], r["reason"]) for r in found] == [
        ("01", 1, "CROSS_COLUMN"),
        ("01", 3, "VALUE_NULL"),
        ("01", 4, "VALUE_FORMAT"),
        ("01", 5, "VALUE_OUT_OF_RANGE"),
        ("02", 0, "CROSS_COLUMN"),
        ("02", 1, "VALUE_OUT_OF_RANGE"),
    ]


def test_first_good_row_of_a_key_stays(con: duckdb.DuckDBPyConnection) -> None:
    rows = pa.table({"_day": ["d"] * 4, "_row": [0, 1, 2, 3], "id": [1, 1, 1, 2], "a": [-1.0, 1.0, 1.0, 1.0]})
    verdict = gates.judge(e.suite("s", [e.between("a", 0, 9), e.unique(["_day", "id"])]), rows, con)

    found = gates.failing_rows(verdict.at("row"), rows, con).to_pylist()

    assert [(r["_row"], r["reason"]) for r in found] == [(0, "VALUE_OUT_OF_RANGE"), (2, "KEY_DUPLICATE")]


def test_passing_data_passes(con: duckdb.DuckDBPyConnection) -> None:
    verdict = gates.judge(e.suite("s", [e.between("a", -10, 1000), e.not_null("id")]), ROWS, con)

    assert verdict.passed
    assert verdict.result.statistics["evaluated_expectations"] == 2


@pytest.mark.parametrize(
    "broken",
    [
        e.between("no_such_column", 0, 1),
        e.never("nonsense(", "what"),
        gxe.ExpectColumnValueLengthsToEqual(column="name", value=2, meta={"reason": "VALUE_FORMAT", "level": "row"}),
        gxe.ExpectColumnMeanToBeBetween(column="a", min_value=0, meta={"reason": "VALUE_FORMAT", "level": "batch"}),
    ],
)
def test_gate_that_cannot_run_has_failed(con: duckdb.DuckDBPyConnection, broken: gxe.Expectation) -> None:
    with pytest.raises(GateRefused) as refused:
        gates.judge(e.suite("s", [e.not_null("id"), broken]), ROWS, con)

    assert refused.value.reason is ReasonCode.GATE_BROKEN


def test_text_in_values_is_no_sql(con: duckdb.DuckDBPyConnection) -> None:
    rows = pa.table({'we"ird': ["x'); DROP TABLE t; --", "ok"]})

    verdict = gates.judge(e.suite("s", [e.in_set('we"ird', ["x'); DROP TABLE t; --", "ok"])]), rows, con)

    assert verdict.passed


def test_nan_is_out_of_range(con: duckdb.DuckDBPyConnection) -> None:
    rows = pa.Table.from_pandas(pd.DataFrame({"a": [1.0]})).append_column("n", pa.array([float("nan")]))

    assert not gates.judge(e.suite("s", [e.between("n", 0, 1)]), rows, con).passed
