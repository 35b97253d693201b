"""The outside world delivers into the real store, with its own key."""

from __future__ import annotations

import datetime as dt

import pytest

from aifactory.factory import Factory
from outside.flights import World

pytestmark = pytest.mark.integration

TODAY = dt.date(2026, 11, 21)


def test_clock_is_set_once(factory: Factory) -> None:
    first = World(factory.settings, "2013-03-01", today=TODAY)
    was = (first.first_day, first.yesterday)

    later = World(factory.settings, "2013-08-01", today=TODAY + dt.timedelta(days=3))

    assert (later.first_day, later.yesterday) == was
    assert was[1] == "2026-11-20"


def test_play_delivers_what_is_due_and_never_writes_a_file_again(factory: Factory) -> None:
    world = World(factory.settings, "2013-01-05", today=TODAY)
    due = world.play(TODAY)
    assert due == world.days("2013-01-01", dt.date.fromisoformat(world.yesterday) - world.shift)
    mark = f"flight_delay/flights/{due[1]}.parquet"
    world._store.put(mark, b"corrected by hand")

    assert world.play(TODAY) == []
    assert world.play(TODAY + dt.timedelta(days=2)) == [(TODAY + dt.timedelta(days=n)).isoformat() for n in (0, 1)], (
        "missed days are caught up"
    )
    assert factory.landing.get(mark) == b"corrected by hand"


def test_delivering_again_gives_the_same_bytes(factory: Factory) -> None:
    world = World(factory.settings, "2013-09-07", today=TODAY)
    days = world.days("2013-01-01", "2013-01-20")
    world.land(days)
    etags = {o.key: o.etag for o in factory.landing.list("flight_delay/")}
    assert len(etags) == 2 * len(days)

    world.land(days)

    assert {o.key: o.etag for o in factory.landing.list("flight_delay/")} == etags
    with pytest.raises(ValueError, match="not days of this world"):
        world.land(["2013-01-01"])
