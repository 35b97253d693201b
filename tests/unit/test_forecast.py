"""Forecast: what it learns from the past alone, and that nothing strange in the past makes it strange."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifactory import gates
from aifactory.capacity.feeds import accept, fetch
from aifactory.capacity.forecast import DAY, LEAST_DAYS, WEEK, Floats, forecast
from aifactory.capacity.inventory import Feed
from aifactory.settings import Settings


def noise(num_days: int, seed: int = 0) -> Floats:
    """A level that drifts, a shape of the day, and cheap weekends, [24 num_days]."""
    chance = np.random.default_rng(seed)
    level = np.repeat(np.cumsum(chance.normal(0, 0.01, num_days)), DAY)
    shape = np.tile(0.05 * np.cos(np.arange(DAY) * np.pi / 12), num_days)
    weekend = np.repeat(np.arange(num_days) % WEEK >= 5, DAY) * -0.1
    values: Floats = 0.1 + level + shape + weekend + chance.normal(0, 0.005, DAY * num_days)
    return values


def mean_of_week(values: Floats, num_hours: int) -> Floats:
    means: Floats = np.resize(values[-WEEK * DAY :].reshape(WEEK, DAY).mean(axis=0), num_hours)
    return means


def test_it_tells_working_days_from_weekends():
    values = noise(420)
    errors, errors_of_means = [], []
    for end in range(400 * DAY, 414 * DAY, DAY):
        coming = values[end : end + 2 * DAY]
        found = forecast(values[:end], len(coming))
        assert found is not None
        errors.append(np.abs(found - coming).mean())
        errors_of_means.append(np.abs(mean_of_week(values[:end], len(coming)) - coming).mean())
    assert np.mean(errors) < 0.5 * np.mean(errors_of_means)


def test_it_knows_no_hour_that_it_is_not_told():
    values = noise(200)
    later = values.copy()
    later[-DAY:] = 99.0
    before, after = forecast(values[:-DAY], DAY), forecast(later[:-DAY], DAY)
    assert before is not None
    assert after is not None
    assert list(before) == list(after)


@pytest.mark.parametrize("num_hours", [1, 23, 24, 25, 168])
def test_as_many_hours_as_are_asked_for(num_hours: int):
    found = forecast(noise(200)[5:-7], num_hours)
    assert found is not None
    assert found.shape == (num_hours,)
    assert np.isfinite(found).all()


def test_with_too_short_a_past_there_is_none():
    needed = (LEAST_DAYS + WEEK + 1) * DAY
    values = noise(120)
    assert forecast(values[-needed:], DAY) is not None
    assert forecast(values[-needed + 1 :], DAY) is None
    assert forecast(np.concatenate([np.full(90 * DAY, np.nan), values[: 10 * DAY]]), DAY) is None


def test_gaps_are_bridged_and_too_many_are_not():
    values = noise(300)
    whole = forecast(values, DAY)
    values[3000:3030] = np.nan
    some = forecast(values, DAY)
    assert whole is not None
    assert some is not None
    assert np.abs(some - whole).max() < 0.02
    values[1000:3000] = np.nan
    assert forecast(values, DAY) is None


def test_what_never_changed_will_not():
    found = forecast(np.full(200 * DAY, 0.3), 48)
    assert found is not None
    assert list(found) == pytest.approx([0.3] * 48)


def test_it_stays_within_what_was():
    rising = np.linspace(0.0, 1.0, 200 * DAY)
    found = forecast(rising, 48)
    assert found is not None
    assert found.max() == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_the_unit_does_not_matter(seed: int, scale: float, offset: float):
    values = noise(120, seed)
    found, scaled = forecast(values, 30), forecast(scale * values + offset, 30)
    assert found is not None
    assert scaled is not None
    assert scaled == pytest.approx(scale * found + offset, rel=1e-6, abs=1e-6 * scale)


def test_on_real_prices_it_errs_less_than_the_mean_of_the_last_week(request: pytest.FixtureRequest):
    from outside import energy

    path = energy.day_ahead_prices(request.config.rootpath / "var" / "cache" / "energy")
    feed = Feed(
        source=str(path), quantity="price_per_mwh", time_column=energy.TIME_COLUMN, value_column=energy.VALUE_COLUMN,
        time_formats=energy.TIME_FORMATS, low=-600, high=5000, default=80,
    )  # fmt: skip
    with gates.connect(Settings(_env_file=None)) as con:
        series = accept("nl", feed, fetch(feed, Path()), con, datetime(2025, 1, 8, tzinfo=UTC)).series
    begin = (datetime(2023, 1, 1, tzinfo=UTC) - series.first).days * DAY
    errors, errors_of_means = [], []
    for end in range(begin, begin + 360 * DAY, 6 * DAY):
        past, coming = series.values[:end], series.values[end : end + DAY]
        found = forecast(past, DAY)
        assert found is not None
        errors.append(np.nanmean(np.abs(found - coming)))
        errors_of_means.append(np.nanmean(np.abs(mean_of_week(past, DAY) - coming)))
    assert np.mean(errors) < 0.8 * np.mean(errors_of_means)
