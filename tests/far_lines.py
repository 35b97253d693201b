"""The lines as tests run them: their nightly hour is far from now, so that no test depends on the time of day."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aifactory.settings import REPOSITORY


def lines_that_do_not_start_by_themselves(folder: Path, line: str = "flight_delay") -> Path:
    """A copy of the lines whose schedule is twelve hours away."""
    shutil.copytree(REPOSITORY / "include" / "lines", folder, dirs_exist_ok=True)
    spec = folder / line / "line.yaml"
    far = (datetime.now(UTC) + timedelta(hours=12)).hour
    spec.write_text(re.sub(r'cron: ".*"', f'cron: "0 {far} * * *"', spec.read_text()))
    return folder
