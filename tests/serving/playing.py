"""The traffic player as a program of its own, for tests, and files for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.serving.small_model import CARRIERS, ORIGINS

from aifactory.settings import REPOSITORY


class Playing:
    """The program at work."""

    def __init__(self, url: str, file: Path, *options: str, line: str = "small", **environment: str) -> None:
        self.file = file.with_name(f"report-{line}.json")
        self.log = file.with_name(f"player-{line}.log")
        command = [sys.executable, "-m", "outside.traffic", "play", "--file", str(file), "--url", url, "--line", line]
        command += ["--report", str(self.file), "--every", "0.2", *options]
        paths = os.pathsep.join([str(REPOSITORY / "include"), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | {"PYTHONPATH": paths} | environment, stdout=log, stderr=log
            )

    def counted(self) -> dict[str, Any]:
        """The report as it is now."""
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def reach(self, name: str, count: int) -> int:
        """Wait until it has counted so many; how many it has."""
        wait(lambda: self.file.exists() and self.counted()[name] >= count)
        return int(self.counted()[name])

    def stop(self) -> dict[str, Any]:
        """Have it end; its report, which has every request."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> dict[str, Any]:
        """Wait for its end; its report, which has every request."""
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]
        found = self.counted()
        assert found["ended_at"] is not None
        assert found["due"] == found["sent"] + found["shed"]
        assert found["sent"] == found["answered"] + found["failed"]
        return found


def wait(until: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when it has come about."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if until():
                return
        except KeyError:
            pass
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def write_day(path: Path, num_rows: int = 600, every_s: int = 90) -> Path:
    """A file of requests to the small graph, evenly over a day from 9 o'clock."""
    begin = datetime(2026, 3, 2, 9, tzinfo=UTC)
    times = [begin + timedelta(seconds=every_s * n) for n in range(num_rows)]
    columns = {
        "carrier": pa.array([[*CARRIERS, ""][n % 4] for n in range(num_rows)]),
        "origin": pa.array([[*ORIGINS, "EWR"][n % 3] for n in range(num_rows)]),
        "flight": pa.array(range(num_rows)),
        "prediction_time": pa.array(times, pa.timestamp("us", tz="UTC")),
        "distance": pa.array([float(n) if n % 5 else float("nan") for n in range(num_rows)], pa.float32()),
        "dep_hour": pa.array([float(n % 24) for n in range(num_rows)], pa.float32()),
    }
    said = {
        "unit": ["carrier", "origin", "flight", "prediction_time"],
        "prediction_time": "prediction_time",
        "strings": ["carrier", "origin"],
        "floats": ["distance", "dep_hour"],
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"requests": json.dumps(said)}), path)
    return path
