"""Hourly feeds of the outside world, energy prices and carbon, gated like any raw material before they count.

A delivery is a CSV file or an http(s) answer. Rows that break a rule are left out and counted; a delivery with too many
of them, or none that is good, is refused whole. The last good delivery is kept in S3 under `feeds/<name>.parquet` and
serves while the source is away; a feed whose newest hour is too old is not used: its default is.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aifactory import gates
from aifactory.capacity.forecast import forecast
from aifactory.errors import FactoryError, GateRefused, InfrastructureFault, LandingDefect, NotFound
from aifactory.expectations import DAY_COLUMN, ROW_COLUMN, between, never, not_null, suite, unique
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import duckdb

    from aifactory.capacity.inventory import Feed
    from aifactory.factory import Factory

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

MAX_BYTES = 64 * 2**20
"""Larger answers are refused."""
FRESH = timedelta(minutes=15)
"""A delivery is not fetched again for so long."""
_TIMEOUT_S = 20
_DOWNLOAD_S = 60.0
_HOUR = timedelta(hours=1)
_KEPT_PAST = timedelta(days=2 * 366)
_EARLIEST = "2000-01-01"
_FUTURE = timedelta(days=31)
_DAYS_OF_FORECAST = 7
_FACTOR = {"price_per_mwh": 1e-3, "price_per_kwh": 1.0, "grams_per_kwh": 1.0}


@dataclass(frozen=True)
class Series:
    """Hourly values, per kWh.

    Args:
        first: the first hour, UTC.
        values: [H], NaN where the feed has none.
    """

    first: datetime
    values: Floats

    @property
    def end(self) -> datetime:
        """The end of the last hour."""
        return self.first + len(self.values) * _HOUR


@dataclass(frozen=True)
class Delivery:
    """What a gate let through, and how many rows it left out, by reason."""

    series: Series
    num_rows: int
    left_out: dict[ReasonCode, int]


@dataclass(frozen=True)
class Ahead:
    """Values per kWh of the hours from a moment on.

    Args:
        values: [H], every one finite.
        num_known: how many of them the feed told; the others are forecast from its past.
        from_default: whether the feed was stale or away, and every value is the declared default.
    """

    values: Floats
    num_known: int
    from_default: bool


def current(f: Factory, name: str, feed: Feed, base: Path, now: datetime) -> Series | None:
    """The newest good series: of the source, else the last that was kept; None where that is stale, or there is none.

    Args:
        f: the open factory.
        name: of the feed.
        feed: what it is.
        base: folder that a relative path starts from.
        now: the moment, UTC.
    """
    key = f"feeds/{name}.parquet"
    kept = _kept(f, key)
    if kept is not None and kept.told_by != _told_by(feed):
        kept = None  # what another source told, or the same was read otherwise
    if kept is not None and now - kept.fetched < FRESH:
        return None if _stale(name, feed, kept.series, now) else kept.series
    series = kept.series if kept else None
    try:
        with gates.connect(f.settings) as con:
            delivery = accept(name, feed, fetch(feed, base), con, now)
    except FactoryError as error:
        log.warning("feed %s is not taken, %s serves: %s", name, "the last delivery" if kept else "its default", error)
    else:
        left_out = ", ".join(f"{count} {reason.value}" for reason, count in delivery.left_out.items()) or "none"
        log.info("feed %s: %d rows, left out %s, until %s", name, delivery.num_rows, left_out, delivery.series.end)
        series = _joined(kept.series, delivery.series) if kept else delivery.series
        f.store.put_table(key, _table_of(_Kept(series, now, _told_by(feed))))
    return None if series is None or _stale(name, feed, series, now) else series


@dataclass(frozen=True)
class _Kept:
    """What good deliveries of a source told, the newer one counts; and when the last of them was fetched."""

    series: Series
    fetched: datetime
    told_by: str


def _kept(f: Factory, key: str) -> _Kept | None:
    try:
        table = f.store.get_table(key)
    except NotFound:
        return None
    if "told_by" not in table.column_names:
        return None
    first, fetched = (datetime.fromisoformat(table[name][0].as_py()) for name in ("first", "fetched"))
    return _Kept(
        Series(first, np.array(table["value"].to_numpy(), dtype=np.float64)), fetched, str(table["told_by"][0].as_py())
    )


def _table_of(kept: _Kept) -> pa.Table:
    about = {
        "first": kept.series.first.isoformat(),
        "fetched": kept.fetched.isoformat(),
        "told_by": kept.told_by,
    }
    values = kept.series.values
    return pa.table({"value": values, **{name: pa.repeat(told, len(values)) for name, told in about.items()}})


def _told_by(feed: Feed) -> str:
    """Names the source, and how it is read."""
    read = feed.model_dump_json(exclude={"max_bad_share", "stale_hours", "default"})
    return hashlib.sha256(read.encode()).hexdigest()[:16]


def _joined(old: Series, new: Series) -> Series:
    """The newer series with the hours before it, as far as the past is kept: a source may send a few days at a time.

    It ends where the newer one does: an hour far ahead, told once by mistake, is not there for ever.
    """
    first = max(min(old.first, new.first), min(new.first, new.end - _KEPT_PAST))
    values = np.full((new.end - first) // _HOUR, np.nan)
    for each in (old, new):
        begin = (each.first - first) // _HOUR
        told = each.values[max(-begin, 0) :][: max(0, len(values) - max(begin, 0))]
        place = values[max(begin, 0) : max(begin, 0) + len(told)]
        place[np.isfinite(told)] = told[np.isfinite(told)]
    return Series(first, values)


def _stale(name: str, feed: Feed, series: Series, now: datetime) -> bool:
    stale = now - series.end > timedelta(hours=feed.stale_hours)
    if stale:
        log.warning("feed %s ends at %s, more than %g h ago: its default is used", name, series.end, feed.stale_hours)
    return stale


def fetch(feed: Feed, base: Path) -> bytes:
    """The bytes of the source.

    Raises:
        LandingDefect: there is no such file, or it is too large.
        InfrastructureFault: its server does not answer with it.
    """
    if urlsplit(feed.source).scheme in ("http", "https"):
        body = _download(feed.source)
    else:
        try:
            with (base / feed.source).open("rb") as file:
                body = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise LandingDefect(
                ReasonCode.LANDING_MISSING, f"feed file {base / feed.source} cannot be read ({error.strerror})"
            ) from error
    if len(body) > MAX_BYTES:
        raise LandingDefect(
            ReasonCode.LANDING_UNREADABLE, f"{feed.source} is larger than {MAX_BYTES / 2**20:.0f} MB, no hourly feed is"
        )
    return body


def _download(url: str) -> bytes:
    import httpx

    body, ends_at = b"", time.monotonic() + _DOWNLOAD_S
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT_S, follow_redirects=True) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                body += part
                if len(body) > MAX_BYTES:
                    break
                if time.monotonic() > ends_at:
                    raise httpx.ReadTimeout(f"it was not there after {_DOWNLOAD_S:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InfrastructureFault(
            ReasonCode.STORE_UNREACHABLE, f"the feed at {url} did not answer with it: {error}"
        ) from error
    return body


def accept(name: str, feed: Feed, body: bytes, con: duckdb.DuckDBPyConnection, now: datetime) -> Delivery:
    """Hold a delivery against its gate; `now` is the moment, UTC.

    Raises:
        LandingDefect: it is no such CSV.
        GateRefused: too many of its rows are bad.
    """
    rows = _parse(feed, body, con)
    rules = [
        not_null("hour"),
        not_null("value"),
        between("value", feed.low, feed.high),
        unique(["hour"]),
        never(
            f"hour < TIMESTAMP '{_EARLIEST}' OR hour > TIMESTAMP '{now + _FUTURE:%Y-%m-%d %H:%M:%S}'",
            f"hours lie between {_EARLIEST} and {_FUTURE.days} days from now",
            reason=ReasonCode.EVENT_TIME_OUTSIDE,
        ),
    ]
    verdict = gates.judge(suite(f"feeds.{name}", rules), rows, con)
    bad = gates.failing_rows(verdict.at("row"), rows, con)
    left_out = {ReasonCode[code]: count for code, count in sorted(Counter(bad["reason"].to_pylist()).items())}
    share = bad.num_rows / max(rows.num_rows, 1)
    if bad.num_rows == rows.num_rows or share > feed.max_bad_share:
        told = ", ".join(f"{count} {reason.value}" for reason, count in left_out.items()) or "it has no rows"
        raise GateRefused(
            ReasonCode.QUARANTINE_SHARE,
            f"feed {name}: {bad.num_rows} of {rows.num_rows} rows are bad ({told}), more than max_bad_share "
            f"{feed.max_bad_share:g}; look at its format and its quantity ({feed.quantity})",
        )
    good = rows.filter(pc.invert(pc.is_in(rows[ROW_COLUMN], bad[ROW_COLUMN].combine_chunks())))
    return Delivery(_hourly(good, _FACTOR[feed.quantity]), rows.num_rows, left_out)


def _parse(feed: Feed, body: bytes, con: duckdb.DuckDBPyConnection) -> pa.Table:
    """The rows as [_day, _row, hour, value]; what is no hour or no number is null."""
    import duckdb
    from pyarrow import csv

    wanted = [feed.time_column, feed.value_column]
    try:
        text = csv.read_csv(
            pa.BufferReader(body),
            convert_options=csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
        )
    except (pa.ArrowInvalid, KeyError) as error:
        raise LandingDefect(
            ReasonCode.LANDING_UNREADABLE, f"{feed.source} is no CSV with the columns {wanted}: {error}"
        ) from error
    con.register("_delivered", text.rename_columns(["told_hour", "told_value"]))
    formats = ", ".join(["?"] * len(feed.time_formats))
    statement = (
        f"SELECT 'feed' AS {DAY_COLUMN}, ROW_NUMBER() OVER () - 1 AS {ROW_COLUMN}, "  # noqa: S608 - names of our own
        f"date_trunc('hour', try_strptime(told_hour, [{formats}])) AS hour, "
        "CASE WHEN isfinite(TRY_CAST(told_value AS DOUBLE)) THEN TRY_CAST(told_value AS DOUBLE) END AS value "
        "FROM _delivered"
    )
    try:
        return con.sql(statement, params=feed.time_formats).to_arrow_table()
    except duckdb.Error as error:
        raise LandingDefect(
            ReasonCode.LANDING_UNREADABLE, f"{feed.source} cannot be read by time_formats {feed.time_formats}: {error}"
        ) from error


def _hourly(rows: pa.Table, factor: float) -> Series:
    """Unique hours as an array without gaps."""
    hours = rows["hour"].to_numpy().astype("datetime64[h]")
    first = hours.min()
    values = np.full(int((hours.max() - first).astype(int)) + 1, np.nan)
    values[(hours - first).astype(int)] = rows["value"].to_numpy() * factor
    return Series(first.astype("datetime64[s]").item().replace(tzinfo=UTC), values)


def ahead(series: Series | None, feed: Feed, now: datetime, num_hours: int) -> Ahead:
    """What hours will cost: as told, beyond that as forecast, or as declared.

    The forecast is that of `forecast`. Where the past is too short for it, and where an hour is missing before the last
    that is told, the mean of the same hour of the last days stands in.

    Args:
        series: see `current`; None: the default.
        feed: what it is.
        now: the moment, UTC; the first hour is the one that it lies in.
        num_hours: how many.
    """
    default = feed.default * _FACTOR[feed.quantity]
    if series is None:
        return Ahead(np.full(num_hours, default), 0, from_default=True)
    span = 24 * _DAYS_OF_FORECAST
    begin = int((now - series.first) // _HOUR) - span  # of the hours that are looked at, in those of the series
    hours = np.full(span + num_hours, np.nan)
    low, high = max(begin, 0), min(begin + len(hours), len(series.values))
    if low < high:
        hours[low - begin : high - begin] = series.values[low:high]
    known = np.isfinite(hours)
    last = int(known.nonzero()[0].max(initial=-1)) + 1  # the first of those that are not told
    beyond = forecast(series.values[: begin + last], len(hours) - last) if 0 < last < len(hours) else None
    to = max(span, last)
    usual = _mean_by_hour(hours[to - span : to], default)
    if beyond is not None:
        hours[last:] = beyond
    hours = np.where(np.isfinite(hours), hours, usual[(np.arange(len(hours)) - to) % 24])
    return Ahead(hours[span:], int(known[span:].sum()), from_default=False)


def _mean_by_hour(before: Floats, default: float) -> Floats:
    """Mean of every hour of the day over whole days, [24]; where none is known, the mean of all, else the default."""
    days = before.reshape(-1, 24)
    known = np.isfinite(days)
    count = known.sum(axis=0)
    overall = float(days[known].mean()) if known.any() else default
    sums = np.where(known, days, 0).sum(axis=0)
    found: Floats = np.where(count > 0, sums / np.maximum(count, 1), overall)
    return found
