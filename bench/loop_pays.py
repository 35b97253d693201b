"""Does the loop pay? A year's replay: the closed loop, weekly decisions, against the model trained once.

Both take the same landed days through the same stages with real stores. The closed loop is let to remake its model
whenever its own feedback asks; the other keeps its first champion for ever. Every day is scored by a model that has
not learned from it, features as of each flight's own prediction time. Pooled AUC over all scored days.

`python -m bench.loop_pays [--until YYYY-MM-DD of 2013]`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import average_precision_score, roc_auc_score

import plant
from aifactory.factory import Factory
from aifactory.line import LineSpec, find_line
from aifactory.packaging import load_package
from aifactory.stages.loop import turn
from outside.flights import World

LINE = "flight_delay"
WEEK = 7


def main(argv: list[str]) -> int:
    """Replay, print the two figures, write `var/loop_pays.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--until", default="2013-12-30", help="last day of 2013 to replay")
    until = parser.parse_args(argv).until
    with (
        tempfile.TemporaryDirectory(prefix="loop-pays-") as home,
        plant.start_stores(Path(home), mlflow=True) as settings,
    ):
        result = replay(
            Factory(settings), find_line(settings.lines_dir, LINE), World(settings, chosen_day=until), until
        )
    out = Path("var/loop_pays.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    sys.stdout.write(json.dumps({k: v for k, v in result.items() if k != "weeks"}, indent=1) + f"\nwritten to {out}\n")
    return 0


def replay(f: Factory, spec: LineSpec, world: World, until: str) -> dict[str, Any]:
    """Take January and February as history, then week by week to the end."""
    started = time.perf_counter()
    history = world.days("2013-01-01", "2013-02-28")
    rest = world.days("2013-03-01", until)
    world.land(history + rest)
    turn(f, spec, history, "history")
    first = f.registry(spec).champion()
    if first is None:
        raise SystemExit("no first champion came out of the history: read the evaluation report in the log above")
    weeks = []
    for n, start in enumerate(range(0, len(rest), WEEK), start=1):
        days = rest[start : start + WEEK]
        done = turn(f, spec, days, f"week{n:02d}")
        outcome = {"reason": done["feedback"].get("reason"), "released": "deploy" in done}
        weeks.append({"week": n, "first_day": days[0], **outcome})
        sys.stdout.write(f"week {n:2d} {days[0]} {outcome}  {time.perf_counter() - started:.0f} s\n")
    closed, target, once = _scores(f, spec, rest, first.version)
    return {
        "closed_loop_auc": round(float(roc_auc_score(target, closed)), 4),
        "trained_once_auc": round(float(roc_auc_score(target, once)), 4),
        "closed_loop_ap": round(float(average_precision_score(target, closed)), 4),
        "trained_once_ap": round(float(average_precision_score(target, once)), 4),
        "num_scored": len(target),
        "num_releases": sum(w["released"] for w in weeks),
        "num_refused": sum(w["reason"] is not None and not w["released"] for w in weeks),
        "wall_s": round(time.perf_counter() - started),
        "weeks": weeks,
    }


def _scores(f: Factory, spec: LineSpec, days: list[str], first: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the loop as it wrote them, outcomes, and the first champion's scores, row by row."""
    repository = f.datasets(spec)
    version = repository.latest()
    if version is None:
        raise SystemExit("no dataset version")
    package = load_package(f, f.registry(spec).package_prefix(first))
    closed, target, once = [], [], []
    for day in days:
        units = repository.read(version.revision, [day])
        written = f.store.get_table(f"predictions/{spec.line}/date={day}.parquet")
        keys = spec.model.entity_key
        joined = units.append_column("row", pa.array(range(units.num_rows))).join(
            written.select([*keys, "score"]), keys=keys, join_type="inner"
        )
        joined = joined.filter(pc.is_valid(joined[spec.model.target])).sort_by("row")
        closed.append(joined["score"].to_numpy())
        target.append(joined[spec.model.target].to_numpy())
        once.append(package.predict(joined))
    return np.concatenate(closed), np.concatenate(target), np.concatenate(once)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
