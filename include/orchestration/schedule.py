"""When ingest runs: once a night, for the day before.

Airflow's own CronPartitionTimetable keys a run by a tick of the cron expression. A tick at 06:00 makes the
partition date 06:00, so that a backfill "from the 18th to the 20th" misses the 20th, and a partition triggered by hand
counts as another one. Here a partition is a whole local day, whatever hour it is ingested at.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pendulum
from airflow.timetables.base import DagRunInfo, TimeRestriction
from airflow.timetables.trigger import CronPartitionTimetable
from pendulum import DateTime

from aifactory.line import DAY

MAKE_UP = timedelta(days=14)
"""Nights that were missed no longer ago than this are made up for when the scheduler is back."""
GRACE = timedelta(minutes=1)
"""A new DAG that is first seen so soon after its hour still runs for it."""


class NightlyPartitions(CronPartitionTimetable):
    """One run at each tick of a cron expression, keyed by the local day before it.

    Args:
        cron: five fields.
        timezone: IANA name; days begin and end in it.
    """

    def __init__(self, cron: str, timezone: str) -> None:
        super().__init__(cron, timezone=timezone, key_format=DAY)
        self._timezone_name = timezone

    def serialize(self) -> dict[str, Any]:
        """What the scheduler rebuilds it from."""
        return {"cron": self._expression, "timezone": self._timezone_name}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> NightlyPartitions:
        """The inverse of `serialize`."""
        return cls(data["cron"], data["timezone"])

    @property
    def summary(self) -> str:
        """What the UI shows as the schedule."""
        return f"{self._expression} {self._timezone_name}, for the day before"

    def _get_partition_date(self, *, run_date: datetime) -> DateTime:
        return self._midnight(run_date).subtract(days=1)

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterable[DagRunInfo]:
        """The days of a backfill, both ends included, as far as they are over."""
        day = self._midnight(self.localize_partition_datetime(earliest))
        newest = self._midnight(pendulum.now("UTC")).subtract(days=1)
        last = min(self._midnight(self.localize_partition_datetime(latest)), newest)
        while day <= last:
            # A second past midnight is no tick, which tells a backfilled run from a scheduled one below
            over = day.add(days=1, seconds=1)
            yield DagRunInfo(
                run_after=over.in_timezone("UTC"),
                data_interval=None,
                partition_date=day.in_timezone("UTC"),
                partition_key=self._format_key(day),
            )
            day = day.add(days=1)

    def next_dagrun_info_v2(
        self, *, last_dagrun_info: DagRunInfo | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next night: the one after the last scheduled run, if that is not too long ago; else the coming one."""
        now = pendulum.now("UTC")
        tick = self._align_to_next(now - GRACE)
        if last_dagrun_info is not None and self._is_tick(last_dagrun_info.run_after):
            after_last = self._get_next(pendulum.instance(last_dagrun_info.run_after))
            tick = max(after_last, self._align_to_next(now - MAKE_UP))
        if restriction.earliest is not None:
            tick = max(tick, self._align_to_next(restriction.earliest))
        if restriction.latest is not None and tick > restriction.latest:
            return None
        partition_date, partition_key = self._get_partition_info(run_date=tick)
        return DagRunInfo(
            run_after=tick, data_interval=None, partition_date=partition_date, partition_key=partition_key
        )

    def _is_tick(self, moment: datetime) -> bool:
        return bool(self._align_to_next(pendulum.instance(moment)) == moment)

    def _midnight(self, moment: datetime) -> DateTime:
        return pendulum.instance(moment).in_timezone(self._timezone_name).start_of("day")


def yesterday(timezone: str) -> str:
    """The newest day that is over, as a partition key."""
    return str(pendulum.now(timezone).subtract(days=1).strftime(DAY))
