"""What a line's `expectations.py` is written with: Great Expectations' own classes, each with its reason code.

A suite is code. Every expectation carries `meta = {"reason": ReasonCode, "level": "row" | "batch"}`: rows that fail a
row expectation go to quarantine, a failed batch expectation refuses the partition. The rules that follow from
`line.yaml` alone (nulls, keys, event times, volume, freshness) are made here; a line writes only what is its own.

A *row suite* judges the rows of one table, with two columns of the gate's own: `_day` (partition key) and `_row`
(position in the source file). A *batch suite* judges a small table with one row a partition: `num_rows`,
`volume_ratio` (rows ÷ median of recent partitions) and `newest_event_age_hours` (before the partition's UTC end).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

DAY_COLUMN, ROW_COLUMN = "_day", "_row"


def suite(name: str, expectations: Sequence[Expectation]) -> ExpectationSuite:
    """A suite of these expectations."""
    from great_expectations import ExpectationSuite

    return ExpectationSuite(name=name, expectations=list(expectations))


def not_null(column: str, *, level: str = "row") -> Expectation:
    """The column has a value on every row."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToNotBeNull(column=column, meta=_meta(ReasonCode.VALUE_NULL, level))


def between(
    column: str,
    low: float | None,
    high: float | None,
    *,
    reason: ReasonCode = ReasonCode.VALUE_OUT_OF_RANGE,
    level: str = "row",
    why: str | None = None,
) -> Expectation:
    """Values lie within these bounds, both included; nulls are another expectation's business."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, description=why, meta=_meta(reason, level)
    )


def in_set(column: str, values: Sequence[str], *, level: str = "row") -> Expectation:
    """Values are among these."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), meta=_meta(ReasonCode.VALUE_NOT_IN_SET, level)
    )


def matches(column: str, regex: str, *, level: str = "row") -> Expectation:
    """Values match this regular expression."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToMatchRegex(column=column, regex=regex, meta=_meta(ReasonCode.VALUE_FORMAT, level))


def unique(columns: Sequence[str], *, level: str = "row") -> Expectation:
    """The columns together identify a row. The first row of a key stays, those after it fail."""
    from great_expectations import expectations as gxe

    meta = _meta(ReasonCode.KEY_DUPLICATE, level)
    if len(columns) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=columns[0], meta=meta)
    return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(columns), meta=meta)


def greater(a: str, b: str, *, or_equal: bool = False, level: str = "row") -> Expectation:
    """Column `a` is greater than column `b` where both are there."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=a,
        column_B=b,
        or_equal=or_equal,
        ignore_row_if="either_value_is_missing",
        meta=_meta(ReasonCode.CROSS_COLUMN, level),
    )


def never(condition: str, why: str, *, reason: ReasonCode = ReasonCode.CROSS_COLUMN, level: str = "row") -> Expectation:
    """No row fulfils this SQL condition; `why` says in words what must hold instead."""
    from great_expectations import expectations as gxe

    return gxe.UnexpectedRowsExpectation(
        unexpected_rows_query=f"SELECT * FROM {{batch}} WHERE {condition}",  # noqa: S608
        description=why,
        meta=_meta(reason, level),
    )


def raw_rows(spec: LineSpec, table: str) -> list[Expectation]:
    """The rules for raw rows that follow from `line.yaml`: nulls, keys, event times."""
    source = spec.source.tables[table]
    slack = spec.source.event_time_slack_hours
    required = [c for c in source.columns if c not in source.nullable]
    early = f"{source.event_time} < CAST({DAY_COLUMN} AS TIMESTAMPTZ) - INTERVAL '{slack:g}' HOUR"
    late = f"{source.event_time} >= CAST({DAY_COLUMN} AS TIMESTAMPTZ) + INTERVAL '{slack + 24:g}' HOUR"
    return [
        *(not_null(c) for c in required),
        never(
            f"{early} OR {late}",
            f"{source.event_time} lies within the partition's day, {slack:g} h around it allowed",
            reason=ReasonCode.EVENT_TIME_OUTSIDE,
        ),
        unique([DAY_COLUMN, *source.key]),
    ]


def raw_batches(spec: LineSpec) -> list[Expectation]:
    """The rules for whole partitions that follow from `line.yaml`: volume and freshness."""
    quality = spec.quality
    return [
        between(
            "volume_ratio",
            quality.volume_min_ratio,
            quality.volume_max_ratio,
            reason=ReasonCode.VOLUME_ABNORMAL,
            level="batch",
            why=f"rows ÷ median rows of the last {quality.volume_window_days} accepted partitions",
        ),
        between(
            "newest_event_age_hours",
            None,
            spec.source.freshness_hours,
            reason=ReasonCode.FRESHNESS,
            level="batch",
            why="hours between the newest event and the partition's UTC end",
        ),
    ]


def _meta(reason: ReasonCode, level: str) -> dict[str, Any]:
    return {"reason": reason.value, "level": level}
