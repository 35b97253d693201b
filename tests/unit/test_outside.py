"""The outside world's derivations and calendar. Its delivery is tested with the real store."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from outside import flights


@pytest.fixture(scope="module")
def year() -> pa.Table:
    return pa.concat_tables(flights._year()["flights"].values())


def test_year_is_whole(year: pa.Table) -> None:
    weather = flights._year()["weather"]
    assert len(year) == 336_776
    assert sum(map(len, weather.values())) == 26_115
    assert dt.date(2013, 12, 31) not in weather, "no weather was ever observed on the last day"
    assert pc.sum(year["cancelled"]).as_py() == 8_255


def test_instants_follow_from_the_delays_over_midnight_too(year: pa.Table) -> None:
    for delay, actual, scheduled in (
        ("dep_delay", "departure", "scheduled_departure"),
        ("arr_delay", "arrival", "scheduled_arrival"),
    ):
        known = year.filter(pc.is_valid(year[delay]))
        minutes = pc.divide(pc.subtract(known[actual], known[scheduled]).cast(pa.int64()), 60_000_000)
        assert minutes.cast(pa.float64()).equals(known[delay])


def test_midnight_as_2400_is_kept_and_means_the_end_of_the_day(year: pa.Table) -> None:
    midnight = year.filter(pc.equal(year["dep_time"], 2400))
    assert len(midnight) == 29
    for row in midnight.to_pylist():
        assert row["departure"].minute == 0
        assert row["departure"].hour in {4, 5}, "midnight in New York, in UTC"


def test_arrivals_are_possible(year: pa.Table) -> None:
    """Time zones of the destinations are right: no flight takes less time than it spends in the air."""
    flown = year.filter(pc.is_valid(year["air_time"]))
    minutes = pc.divide(pc.subtract(flown["arrival"], flown["departure"]).cast(pa.int64()), 60_000_000)
    ground = pc.subtract(minutes.cast(pa.float64()), flown["air_time"])
    assert pc.min(ground).as_py() >= 0
    assert pc.max(ground).as_py() < 6 * 60
    block = pc.divide(pc.subtract(year["scheduled_arrival"], year["scheduled_departure"]).cast(pa.int64()), 60_000_000)
    assert (pc.min(block).as_py(), pc.max(block).as_py()) == (50, 700)


def test_diverted_flights_arrive_without_a_delay(year: pa.Table) -> None:
    diverted = year.filter(pc.and_(pc.is_valid(year["arrival"]), pc.is_null(year["arr_delay"])))
    assert len(diverted) == 717
    assert pc.all(pc.greater(diverted["arrival"], diverted["departure"])).as_py()


@pytest.mark.parametrize("weekday", range(7))
def test_yesterday_is_the_chosen_day_or_within_a_week_after(weekday: int) -> None:
    today = dt.date(2026, 11, 16) + dt.timedelta(days=weekday)
    world = flights.World.__new__(flights.World)
    yesterday = today - dt.timedelta(days=1)
    chosen = dt.date.fromisoformat(flights.CHOSEN_DAY)
    world.__dict__["_clock"] = {"weeks": (yesterday - chosen).days // 7, "yesterday": yesterday.isoformat()}

    was = yesterday - world.shift

    assert 0 <= (was - chosen).days < 7
    assert was.weekday() == yesterday.weekday()
    assert world.nights(8)[-1] == world.yesterday
    assert len(world.history(8)) >= 100
    assert world.days()[0] == world.history(8)[0] == world.first_day
    assert (dt.date.fromisoformat(world.last_day) - yesterday).days >= 90, "months of nights are still to come"


def test_only_ended_days_are_due() -> None:
    world = flights.World.__new__(flights.World)
    world.__dict__["_clock"] = {"weeks": 0, "yesterday": "2013-06-10"}

    assert world.due_days(dt.date(2013, 1, 4)) == ["2013-01-01", "2013-01-02", "2013-01-03"]
    assert world.due_days(dt.date(2014, 6, 1))[-1] == "2013-12-31"
    assert world.due_days(dt.date(2013, 1, 1)) == []


def test_delivered_table_is_shifted_whole() -> None:
    world = flights.World.__new__(flights.World)
    world.__dict__["_clock"] = {"weeks": 52, "yesterday": "2014-06-09"}

    table = world.table("flights", "2014-06-09")
    original = flights._year()["flights"][dt.date(2013, 6, 10)]

    assert set(table["flight_date"].to_pylist()) == {dt.date(2014, 6, 9)}
    gap = pc.unique(pc.subtract(table["arrival"], original["arrival"])).drop_null().to_pylist()
    assert gap == [dt.timedelta(weeks=52)]
    assert len(world.table("weather", "2014-12-30")) == 0, "an empty file, as nothing was observed"
