"""Parse time of each DAG file against a bare `import airflow.sdk`, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from aifactory.settings import REPOSITORY
from bench.ratio import Ratio

ROUNDS = 5
BARE = "import airflow.sdk"


def run() -> list[Ratio]:
    """Interleaved rounds: in each, the bare import and every file once; CPU seconds, which neighbours disturb less."""
    files = sorted((REPOSITORY / "dags").glob("*.py"))
    programs = {"bare": BARE} | {f.stem: f"{BARE}; import runpy; runpy.run_path({str(f)!r})" for f in files}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        _cpu_seconds(program)
    for _ in range(ROUNDS):
        for name, program in programs.items():
            seconds[name].append(_cpu_seconds(program))
    bare = statistics.median(seconds["bare"])
    return [
        Ratio(
            f"parse {name}.py / import airflow.sdk",
            statistics.median(seconds[name]) / bare,
            1.2,
            detail={"bare_s": round(bare, 3), "file_s": round(statistics.median(seconds[name]), 3)},
        )
        for name in programs
        if name != "bare"
    ]


def _cpu_seconds(program: str) -> float:
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": "include"}, cwd=REPOSITORY
    )
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system
