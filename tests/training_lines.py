"""Lines and datasets for tests of the real training program, and the processes that it is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from tests.model_rows import days_of, small_line

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.store import parquet_bytes

REQUEST = {"reason": "FIRST_MODEL", "signal": "test/1"}
__all__ = ["REQUEST", "children", "command_line", "commit", "shipped", "small_line"]


def commit(f: Factory, spec: LineSpec, first: str, last: str) -> Any:
    table = days_of(first, last)
    parts = {
        day: parquet_bytes(table.filter(pc.equal(table["date"], day))) for day in sorted(set(table["date"].to_pylist()))
    }
    datasets = f.datasets(spec)
    datasets.init()
    return datasets.commit(parts, f"{first} to {last}")


def shipped(f: Factory, tmp_path: Path, spec: LineSpec) -> LineSpec:
    """Write the line where the program will look for it."""
    folder = tmp_path / "lines" / spec.line
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "line.yaml").write_text(json.dumps(spec.model_dump(mode="json")))  # JSON is YAML
    object.__setattr__(f, "settings", f.settings.model_copy(update={"lines_dir": tmp_path / "lines"}))
    commit(f, spec, "2013-01-01", "2013-02-14")
    return spec


def children() -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    pids = [int(pid) for pid in found.stdout.split()]
    return [pid for pid in pids if "aifactory.training" in command_line(pid)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # it has ended; `ps` itself is such a child
        return ""
