"""Feeds: what a gate lets through, what is forecast beyond it, and what counts where a source is away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tests.memory_store import MemoryStore

from aifactory import gates
from aifactory.capacity import feeds
from aifactory.capacity.feeds import Delivery, Series, accept, ahead, current, fetch
from aifactory.capacity.forecast import forecast
from aifactory.capacity.inventory import Feed
from aifactory.errors import GateRefused, InfrastructureFault, LandingDefect
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings

FEED = Feed(
    source="prices.csv", quantity="price_per_mwh", time_column="hour", value_column="price",
    time_formats=["%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M"], low=-600, high=5000, default=80,
)  # fmt: skip
FIRST = datetime(2024, 3, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 8, tzinfo=UTC)


def body(*rows: tuple[str, Any]) -> bytes:
    return "\n".join(["hour,price", *(f"{hour},{price}" for hour, price in rows)]).encode()


def hours(num: int, first: datetime = FIRST) -> list[tuple[str, Any]]:
    return [(f"{first + timedelta(hours=n):%Y-%m-%d %H:%M:%S}", 50 + n) for n in range(num)]


def taken(content: bytes, feed: Feed = FEED) -> Delivery:
    with gates.connect(Settings(_env_file=None)) as con:
        return accept("test", feed, content, con, NOW)


def test_prices_become_money_per_kwh():
    series = taken(body(*hours(24))).series
    assert series.first == FIRST
    assert series.end == FIRST + timedelta(days=1)
    assert list(series.values[:2]) == pytest.approx([0.050, 0.051])


def test_dates_of_another_format_are_not_misread():
    series = taken(body(("2024-02-11 22:00:00", 1), ("2024-02-11 23:00:00", 2), ("12/02/2024 00:00", 3))).series
    assert series.end == datetime(2024, 2, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("2024-03-01 05:00:00", 99), ReasonCode.KEY_DUPLICATE),
        (("2024-03-09 05:00:00", ""), ReasonCode.VALUE_NULL),
        (("2024-03-09 05:00:00", "NaN"), ReasonCode.VALUE_NULL),
        (("2024-03-09 05:00:00", "soon"), ReasonCode.VALUE_NULL),
        (("yesterday", 99), ReasonCode.VALUE_NULL),
        (("2024-03-09 05:00:00", -601), ReasonCode.VALUE_OUT_OF_RANGE),
        (("2024-03-09 05:00:00", 1e9), ReasonCode.VALUE_OUT_OF_RANGE),
        (("2124-03-09 05:00:00", 99), ReasonCode.EVENT_TIME_OUTSIDE),
        (("9999-12-31 23:00:00", 99), ReasonCode.EVENT_TIME_OUTSIDE),
        (("1970-01-01 00:00:00", 99), ReasonCode.EVENT_TIME_OUTSIDE),
    ],
)
def test_a_bad_row_is_left_out_and_counted(row: tuple[str, Any], reason: ReasonCode):
    delivery = taken(body(*hours(24), row))
    assert delivery.left_out == {reason: 1}
    assert delivery.series.end == FIRST + timedelta(days=1)
    assert delivery.series.values[5] == pytest.approx(0.055)


def test_minus_500_is_a_price():
    assert taken(body(*hours(24), ("2024-03-02 00:00:00", -500))).series.values[-1] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    "content",
    [
        body(*hours(5), *[("2024-03-09 05:00:00", "soon")] * 5),
        body(*((hour, 1000 * price) for hour, price in hours(24))),  # of another unit
        b"hour,price\n",
    ],
)
def test_too_much_that_is_bad_refuses_it_whole(content: bytes):
    with pytest.raises(GateRefused, match="max_bad_share"):
        taken(content)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x00", b"hour,cost\n1,2\n"])
def test_what_is_no_such_csv(content: bytes):
    with pytest.raises(LandingDefect) as caught:
        taken(content)
    assert caught.value.reason is ReasonCode.LANDING_UNREADABLE


def test_a_format_of_dates_that_is_none():
    with pytest.raises(LandingDefect, match="time_formats"):
        taken(body(*hours(24)), FEED.model_copy(update={"time_formats": ["%Q"]}))


@pytest.mark.parametrize(("now", "num_known"), [(19, 5), (24, 0), (29, 0)])
def test_beyond_what_is_told_is_a_forecast(now: int, num_known: int):
    values = np.random.default_rng(0).normal(0.1, 0.05, 60 * 24)
    origin = FIRST + timedelta(days=59, hours=now)
    seen = ahead(Series(FIRST, values), FEED, origin, 30)
    beyond = forecast(values, now - 24 + 30)
    assert beyond is not None
    assert seen.num_known == num_known
    assert list(seen.values) == [*values[len(values) - num_known :], *beyond[-(30 - num_known) :]]


def test_with_a_short_past_the_last_week_is_repeated():
    daily = np.tile(np.arange(24.0), 10)
    series = Series(FIRST, daily)
    seen = ahead(series, FEED, FIRST + timedelta(days=9, hours=20), 30)
    assert seen.num_known == 4
    assert not seen.from_default
    assert list(seen.values) == [*range(20, 24), *range(24), 0.0, 1.0]


def test_a_missing_hour_is_filled():
    values = np.tile(np.arange(24.0), 10)
    values[9 * 24 + 5] = np.nan
    assert ahead(Series(FIRST, values), FEED, FIRST + timedelta(days=9), 24).values[5] == 5.0


@pytest.mark.parametrize("now", [FIRST - timedelta(days=400), FIRST - timedelta(hours=3), FIRST + timedelta(days=400)])
def test_every_value_is_a_number_whenever_it_is_asked(now: datetime):
    seen = ahead(Series(FIRST, np.arange(5.0)), FEED, now, 48)
    assert np.isfinite(seen.values).all()


def test_a_feed_that_is_not_there_has_its_default():
    seen = ahead(None, FEED, FIRST, 3)
    assert list(seen.values) == pytest.approx([0.08] * 3)
    assert seen.from_default


# --- deliveries
class Stores:
    def __init__(self) -> None:
        self.settings = Settings(_env_file=None)
        self.store = MemoryStore()


def test_the_last_good_delivery_serves_while_the_source_is_away(tmp_path: Path):
    f: Any = Stores()
    now = FIRST + timedelta(hours=20)
    (tmp_path / "prices.csv").write_bytes(body(*hours(24)))
    first = current(f, "nl", FEED, tmp_path, now)
    (tmp_path / "prices.csv").write_bytes(b"<html>out of order</html>")
    again = current(f, "nl", FEED, tmp_path, now + feeds.FRESH)
    assert first is not None
    assert again is not None
    assert again.first == first.first
    assert list(again.values) == list(first.values)


def test_what_was_told_before_is_kept_and_the_newer_word_counts(tmp_path: Path):
    f: Any = Stores()
    later = FIRST + timedelta(hours=18)
    for now, rows in (
        (FIRST + timedelta(hours=20), hours(24)),
        (FIRST + timedelta(hours=30), [(hour, 7) for hour, _ in hours(24, later)]),
        (FIRST + timedelta(days=4), [(hour, 9) for hour, _ in hours(2, FIRST + timedelta(days=4))]),
    ):
        (tmp_path / "prices.csv").write_bytes(body(*rows))
        series = current(f, "nl", FEED, tmp_path, now)
    assert series is not None
    assert (series.first, series.end) == (FIRST, FIRST + timedelta(days=4, hours=2))
    assert list(series.values[:18] * 1000) == pytest.approx([50 + n for n in range(18)])
    assert list(series.values[18:42] * 1000) == pytest.approx([7] * 24)
    assert np.isnan(series.values[42:96]).all()
    assert current(f, "nl", FEED.model_copy(update={"high": 6000}), tmp_path, now) is not None, "it is asked anew"
    other = FEED.model_copy(update={"source": "others.csv"})
    (tmp_path / "others.csv").write_bytes(body(*hours(2, FIRST + timedelta(days=5))))
    series = current(f, "nl", other, tmp_path, FIRST + timedelta(days=5, hours=12))
    assert series is not None
    assert series.first == FIRST + timedelta(days=5), "another market's past says nothing"


def test_an_hour_far_ahead_told_once_by_mistake_does_not_stay(tmp_path: Path):
    f: Any = Stores()
    far = FIRST + timedelta(days=20)
    for now, rows in (
        (FIRST + timedelta(hours=20), [*hours(24), *hours(1, far)]),
        (FIRST + timedelta(days=1), hours(30)),
    ):
        (tmp_path / "prices.csv").write_bytes(body(*rows))
        series = current(f, "nl", FEED, tmp_path, now)
    assert series is not None
    assert series.end == FIRST + timedelta(hours=30)
    assert current(f, "nl", FEED, tmp_path, series.end + timedelta(hours=FEED.stale_hours + 1)) is None


def test_a_source_is_not_asked_at_every_turn(tmp_path: Path):
    f: Any = Stores()
    now = FIRST + timedelta(hours=20)
    for num, at in ((24, now), (30, now + feeds.FRESH / 2), (36, now + feeds.FRESH)):
        (tmp_path / "prices.csv").write_bytes(body(*hours(num)))
        series = current(f, "nl", FEED, tmp_path, at)
        assert series is not None
        assert len(series.values) == (36 if at == now + feeds.FRESH else 24)


def test_a_stale_feed_is_not_used(tmp_path: Path):
    f: Any = Stores()
    (tmp_path / "prices.csv").write_bytes(body(*hours(24)))
    ends = FIRST + timedelta(hours=24 + FEED.stale_hours)
    assert current(f, "nl", FEED, tmp_path, ends) is not None
    assert current(f, "nl", FEED, tmp_path, ends + timedelta(minutes=1)) is None
    assert current(f, "nl", FEED, tmp_path, ends + timedelta(hours=1)) is None


def test_nothing_was_ever_delivered(tmp_path: Path):
    f: Any = Stores()
    assert current(f, "nl", FEED, tmp_path, FIRST) is None


def test_a_feed_by_http():
    content = body(*hours(24))

    class Market(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/prices" else 503)
            self.end_headers()
            self.wfile.write(content if self.path == "/prices" else b"")

        def log_message(self, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Market)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert fetch(FEED.model_copy(update={"source": f"{url}/prices"}), Path()) == content
        with pytest.raises(InfrastructureFault, match="503"):
            fetch(FEED.model_copy(update={"source": f"{url}/away"}), Path())
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeds, "MAX_BYTES", 10)
    (tmp_path / "prices.csv").write_bytes(body(*hours(24)))
    with pytest.raises(LandingDefect, match="larger"):
        fetch(FEED, tmp_path)


def test_the_real_history(request: pytest.FixtureRequest):
    from outside import energy

    path = energy.day_ahead_prices(request.config.rootpath / "var" / "cache" / "energy")
    feed = FEED.model_copy(
        update={"source": str(path), "time_column": energy.TIME_COLUMN, "value_column": energy.VALUE_COLUMN}
    )
    delivery = taken(fetch(feed, Path()), feed)
    assert delivery.num_rows == 94_392
    assert delivery.left_out[ReasonCode.KEY_DUPLICATE] > 6000
    series = delivery.series
    assert (series.first, series.end) == (datetime(2015, 1, 1, tzinfo=UTC), datetime(2025, 1, 8, tzinfo=UTC))
    assert np.isnan(series.values).sum() <= 3
    assert np.nanmin(series.values) == pytest.approx(-0.5)
