"""What must be true of the flight delay line's data. Suites in code; see aifactory/expectations.py for the words.

Ranges are physical or operational limits with room, not the extremes of one year: the real feed once reported a wind
of 1,048 mph, which is to be caught, and a `dep_time` of 2400 for midnight, which is its way of saying so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifactory.expectations import (
    between,
    greater,
    in_set,
    matches,
    never,
    not_null,
    raw_batches,
    raw_rows,
    suite,
    unique,
)
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

AIRPORTS = ("EWR", "JFK", "LGA")


def raw(spec: LineSpec, table: str) -> ExpectationSuite:
    """The rows of one landed table."""
    own = {"flights": _flights, "weather": _weather}[table]()
    return suite(f"{spec.line}.{table}", [*raw_rows(spec, table), *own])


def batches(spec: LineSpec, table: str) -> ExpectationSuite:
    """Whole landed partitions of one table."""
    return suite(f"{spec.line}.{table}.partitions", raw_batches(spec))


def _flights() -> list[Expectation]:
    minutes = "{} - EXTRACT(EPOCH FROM {} - {}) / 60"
    return [
        matches("carrier", "^[A-Z0-9]{2}$"),
        between("flight", 1, 9999),
        matches("tailnum", "^[A-Z0-9]{3,7}$"),
        in_set("origin", AIRPORTS),
        matches("dest", "^[A-Z]{3}$"),
        between("scheduled_hour", 0, 23),
        between("dep_time", 1, 2400),
        between("dep_delay", -90, 2880),
        between("arr_delay", -180, 2880),
        between("air_time", 10, 1200),
        between("distance", 10, 10000),
        never(
            "CAST(flight_date AS VARCHAR) <> _day",
            "flight_date is the partition's day",
            reason=ReasonCode.EVENT_TIME_OUTSIDE,
        ),
        greater("scheduled_arrival", "scheduled_departure"),
        greater("arrival", "departure"),
        never("origin = dest", "origin and destination differ"),
        never("cancelled <> (departure IS NULL)", "a flight is cancelled if, and only if, it never departed"),
        never("arrival IS NOT NULL AND departure IS NULL", "what arrived has departed"),
        never(
            f"ABS({minutes.format('dep_delay', 'departure', 'scheduled_departure')}) > 1",
            "dep_delay is departure - scheduled_departure, in minutes",
        ),
        never(
            f"ABS({minutes.format('arr_delay', 'arrival', 'scheduled_arrival')}) > 1",
            "arr_delay is arrival - scheduled_arrival, in minutes",
        ),
    ]


def _weather() -> list[Expectation]:
    return [
        in_set("origin", AIRPORTS),
        between("temp", -40, 130),
        between("dewp", -60, 100),
        between("humid", 0, 100),
        between("wind_dir", 0, 360),
        between("wind_speed", 0, 150),
        between("wind_gust", 0, 200),
        between("precip", 0, 10),
        between("pressure", 900, 1085),
        between("visib", 0, 10),
        never("dewp > temp + 2", "the dew point does not exceed the temperature (2 F of rounding allowed)"),
    ]


def features(spec: LineSpec) -> ExpectationSuite:
    """The built features: one row a unit, shares within 0 and 1, delays and schedule within possible bounds."""
    shares = [f for f in spec.model.numeric if "_late_" in f]
    delays = [f for f in spec.model.numeric if "_delay_" in f]
    return suite(
        f"{spec.line}.features",
        [
            unique(["date", *spec.model.entity_key], level="batch"),
            *(not_null(c, level="batch") for c in [*spec.model.categorical, spec.model.prediction_time]),
            *(not_null(c, level="batch") for c in ("scheduled_hour", "day_of_week", "distance", "flights_this_hour")),
            between(spec.model.target, 0, 1, level="batch"),
            between("day_of_week", 1, 7, level="batch"),
            between("block_minutes", 1, 1440, level="batch"),
            *(between(c, 0, 1, level="batch") for c in shares),
            *(between(c, -180, 2880, level="batch") for c in delays),
            never(
                f"{spec.model.prediction_time} >= scheduled_departure",
                "a flight is predicted before its scheduled departure",
                level="batch",
            ),
        ],
    )


def predictions(spec: LineSpec) -> ExpectationSuite:
    """A partition of predictions: a probability and its origin on every row, one row a unit."""
    return suite(
        f"{spec.line}.predictions",
        [
            *(not_null(c, level="batch") for c in ("score", "model_version", "dataset_revision")),
            between("score", 0, 1, level="batch"),
            unique(spec.model.entity_key, level="batch"),
        ],
    )
