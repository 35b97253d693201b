"""Runs in a container beside the parts, fed by stdin: `python - COMMAND ARGUMENT`; the answer is JSON.

Commands: days AFTER, land DAY, night DAY, serve VERSION, logged SLOT.
"""

from __future__ import annotations

import collections
import io
import json
import sys
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq

from aifactory.factory import Factory
from aifactory.line import find_line
from aifactory.serving import shipper, traffic
from aifactory.settings import load_settings

LINE = "flight_delay"
KEY = ["carrier", "flight", "origin", "scheduled_departure"]


def night(day: str) -> dict[str, Any]:
    """What the stores hold of a day, and of everything."""
    f = Factory(load_settings())
    spec = find_line(f.settings.lines_dir, LINE)
    datasets = f.datasets(spec)
    version = datasets.latest()
    key = f"predictions/{LINE}/date={day}.parquet"
    scored = pq.read_table(io.BytesIO(f.store.get(key))) if f.store.head(key) else None
    events = f.ledger.events(line=LINE)
    of_day = [e for e in events if e.partition == day]
    return {
        "version": version.number,
        "revision": version.revision,
        "days": len(version.days),
        "last_day": version.days[-1],
        "commits": len(datasets.log(1000)),
        "dataset_rows": version.partitions[day].rows if day in version.partitions else 0,
        "predictions": scored.num_rows if scored is not None else 0,
        "distinct_predictions": scored.group_by(KEY).aggregate([]).num_rows if scored is not None else 0,
        "accepted": f.store.get_json(f"accepted/{LINE}/{day}.json") if day in version.partitions else None,
        "window": f.store.head(f"feedback/{LINE}/windows/{day}.json") is not None,
        "champion": f.store.get_json(f"serving/{LINE}/champion.json")["version"],
        "events": dict(collections.Counter(f"{e.station} {e.unit_kind} {e.event.value}" for e in of_day)),
        "num_events": len(events),
        "doubled_keys": len(events) - len({e.key for e in events}),
    }


def land(day: str) -> list[str]:
    """Deliver a day, as the outside world."""
    from outside.flights import World

    return World(load_settings()).land([day])


def days(after: str) -> list[str]:
    """The days that the world has after one."""
    from outside.flights import World

    return [d for d in World(load_settings()).days() if d > after]


def serve(version: str) -> dict[str, Any]:
    """Ask for a version in slot a; what is to be known of it to hold its answers against its golden rows."""
    f = Factory(load_settings())
    now = datetime.now(UTC)
    before = traffic.read(f.store, LINE, now)
    asked = traffic.Traffic(
        line=LINE,
        generation=before.generation + 1,
        slots={"a": version, "b": None},
        stage=traffic.Stage.PROMOTED,
        since=now,
    )
    traffic.write(f.store, asked)
    manifest = f.store.get_json(f"models/{LINE}/{version}/manifest.json")
    return {"version": version, "golden": manifest["golden"], "features": manifest["features"]}


def logged(slot: str) -> int:
    """How many rows that a slot served are in S3."""
    return shipper.read_status(Factory(load_settings()), LINE).slots[slot].shipped


def main(command: str, argument: str = "") -> None:
    """Answer one question."""
    answer = {"night": night, "land": land, "days": days, "serve": serve, "logged": logged}[command](argument)
    sys.stdout.write(json.dumps(answer) + "\n")


main(*sys.argv[1:])
