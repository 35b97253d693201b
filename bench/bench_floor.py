"""The factory floor's API with 200 lines of three years of nightly history: p95 of each route, uncached.

Airflow's part (who may see which line, which DAGs run) is played; its own tables are not of this bench.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from aifactory.factory import Factory
from aifactory.kpi.formulas import percentile
from aifactory.kpi.record import STATIONS
from aifactory.settings import REPOSITORY, Settings
from bench.floorhistory import history, load
from bench.ratio import Ratio
from plant.stores import start_stores

NUM_LINES, NUM_DAYS, ROUNDS = 200, 1095, 30
GOAL_S = 0.3
ROUTES = {
    "overview": "/overview",
    "overview, all lines": "/overview?limit=200",
    "overview, 30 days": "/overview?days=30",
    "attention": "/attention",
    "line": "/lines/{line}",
    "trends, 90 days": "/lines/{line}/trends",
    "gates": "/lines/{line}/gates",
    "windows": "/lines/{line}/windows",
    "rollouts": "/lines/{line}/rollouts",
    "pareto": "/lines/{line}/pareto",
    "lead times of a year": "/lines/{line}/lead-times",
    "units": "/lines/{line}/units",
    "genealogy of a model": "/lines/{line}/units/model/100",
    "quarantine": "/lines/{line}/quarantine",
    "line, three years": "/lines/{line}?days=1095",
    "trends, three years": "/lines/{line}/trends?days=1095",
}


def run() -> list[Ratio]:
    """p95 in seconds of each route, over lines in turn."""
    with start_stores() as settings, tempfile.TemporaryDirectory(prefix="bench-floor-") as folder:
        names = [f"line_{n:03d}" for n in range(NUM_LINES)]
        num = load(settings.ledger_dsn.get_secret_value(), history(names, datetime.now(UTC), NUM_DAYS))
        return measured(settings, _lines(Path(folder), names), names, {"num_events": num})


def measured(settings: Settings, lines_dir: Path, names: list[str], detail: dict[str, Any]) -> list[Ratio]:
    """The routes of a ledger that is loaded."""
    client = _client(Factory(settings.model_copy(update={"lines_dir": lines_dir}), pooled=True), names)
    found = []
    for name, route in ROUTES.items():
        seconds = []
        for n in range(ROUNDS):
            began = time.perf_counter()
            answer = client.get("/api/v1" + route.format(line=names[n * 7 % len(names)]))
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
        told = {"p50_s": round(percentile(seconds, 0.5) or 0, 3), "bytes": len(answer.content)}
        found.append(Ratio(f"{name}, p95 in s", percentile(seconds, 0.95) or 0, GOAL_S, detail=told | detail))
    return found


def _lines(folder: Path, names: list[str]) -> Path:
    spec = yaml.safe_load((REPOSITORY / "include" / "lines" / "flight_delay" / "line.yaml").read_text())
    for name in names:
        (folder / name).mkdir()
        (folder / name / "line.yaml").write_text(yaml.safe_dump(spec | {"line": name, "title": name}))
    return folder


def _client(f: Factory, names: list[str]) -> Any:
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    from orchestration import floorapi
    from orchestration.floorairflow import AirflowSide, DagNow

    class PlayedAirflow(AirflowSide):
        def may_read(self, user: Any, lines: Iterable[str]) -> set[str]:
            return set(names) & set(lines)

        def may_read_of(self, user: Any, folders: Iterable[str]) -> set[str]:
            return set(folders)

        def may_edit(self, user: Any, lines: Iterable[str]) -> set[str]:
            return set(lines)

        def dags(self, lines: Any) -> dict[str, DagNow]:
            return {f"{line}.{s}": DagNow(False, 0, 0, None) for line in lines for s in STATIONS}

        def approvals(self, lines: Any) -> list[Any]:
            return []

    app = floorapi.create_app()
    app.dependency_overrides |= {
        get_user: lambda: "bench",
        floorapi.factory: lambda: f,
        floorapi.airflow_side: PlayedAirflow,
    }
    gc.collect()
    gc.freeze()  # as the plugin does
    return TestClient(app)
