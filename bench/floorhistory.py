"""Years of nightly history of many lines, made up: what the bench of the factory floor asks about.

Each night a line ingests, scores and judges a window; each week it trains and, six times in seven, releases. Now and
then a batch is held and taken when corrected, a store does not answer, a challenger is refused.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aifactory.ledger import BAD, EventKind, ProductionEvent
from aifactory.reasons import ReasonCode

COLUMNS = (
    "line", "station", "unit_kind", "unit", "event", "key", "reason", "at", "duration_s", "gpu_s", "energy_kwh",
    "money", "num_in", "num_good", "num_bad", "partition", "run_id", "detail",
)  # fmt: skip
_METRICS = {"roc_auc": 0.71, "average_precision": 0.44, "calibration_error": 0.03, "log_loss": 0.5}


@dataclass
class LineOfHistory:
    """One line while its history is made: it counts its versions, and gives each event a key."""

    name: str
    chance: random.Random
    version: int = 0
    made: list[ProductionEvent] = field(default_factory=list)
    num: int = 0

    def tell(self, station: str, kind: str, unit: str, event: EventKind, at: datetime, **rest: Any) -> None:
        """Put one event on the record."""
        self.num += 1
        reason = rest.pop("reason", ReasonCode.VALUE_NULL if event in BAD else None)
        self.made.append(
            ProductionEvent(self.name, station, kind, unit, event, f"{self.name}-{self.num}", reason, at, **rest)
        )

    def work(self, station: str, kind: str, unit: str, at: datetime, seconds: float, **rest: Any) -> datetime:
        """Start a unit and pass it; gives the time after it."""
        end = at + timedelta(seconds=seconds)
        named = {name: rest[name] for name in ("partition", "run_id") if name in rest}
        self.tell(station, kind, unit, EventKind.STARTED, at, **named)
        self.tell(station, kind, unit, rest.pop("event", EventKind.PASSED), end, duration_s=seconds, **rest)
        return end


def night(line: LineOfHistory, day: datetime) -> list[ProductionEvent]:
    """The events of one line in the night after a day, in the order in which they happened."""
    line.made = []
    key, run, chance = day.date().isoformat(), f"scheduled__{day.date()}", line.chance
    named = {"partition": key, "run_id": run}
    at = day + timedelta(hours=30, seconds=chance.uniform(0, 1800))
    if chance.random() < 0.01:
        lost = at + timedelta(seconds=20)
        line.tell("ingest", "batch", key, EventKind.FAILED, lost, reason=ReasonCode.STORE_UNREACHABLE, duration_s=20.0)
        at += timedelta(minutes=5)
    if chance.random() < 0.02:
        line.tell("ingest", "batch", key, EventKind.HELD, at, duration_s=9.0, num_in=900, num_bad=900, **named)
        at += timedelta(hours=1)
    told: dict[str, Any] = {"docs": f"reports/{line.name}/ingest/{key}/raw/index.html", "etags": {"flights": key}}
    bad = chance.randrange(9)
    told |= {"quarantined": {"flights": {"VALUE_NULL (carrier is not null)": bad}} if bad else {}}
    counts = {"num_in": 900, "num_good": 900 - bad, "num_bad": bad}
    at = line.work("ingest", "batch", key, at, chance.uniform(8, 30), detail=told, **counts, **named)
    revision = f"{chance.getrandbits(160):040x}"
    version = {"tag": f"v{key}", "num_partitions": 400, "num_rows": 360000}
    line.tell("ingest", "dataset", revision, EventKind.PASSED, at, duration_s=4.0, detail=version, **named)
    said = {"model_version": str(line.version), "mean_score": 0.2}
    rows = {"num_in": 900, "num_good": 900}
    at = line.work("score", "predictions", key, at, chance.uniform(3, 9), detail=said, **rows, **named)
    judged = {
        "model_version": str(line.version),
        "metrics": {name: value + chance.gauss(0, 0.02) for name, value in _METRICS.items()},
        "violations": ["score PSI 1.2 (limit 1)"] if chance.random() < 0.1 else [],
        "served": [],
    }
    at = line.work("feedback", "window", key, at, chance.uniform(2, 6), detail=judged, **rows, **named)
    due = (day.toordinal() + hash_of(line.name)) % 7 == 0
    decided = {"retrain": due, "explanation": "the cadence is 7 days", "signal": None}
    line.tell("feedback", "model", str(line.version), EventKind.DECIDED, at, detail=decided, **named)
    if due:
        _remake(line, key, revision, at)
    return line.made


def hash_of(name: str) -> int:
    """A number of a name, the same in every process."""
    return sum(name.encode())


def _remake(line: LineOfHistory, key: str, revision: str, at: datetime) -> None:
    chance, order = line.chance, f"{key.replace('-', '')}-{line.chance.getrandbits(40):010x}"
    named = {"partition": key, "run_id": f"{line.version}-001"}
    took = {"gpu_s": 600.0, "energy_kwh": 0.4, "money": 1.2, "num_in": 300000, "num_good": 300000}
    at = line.work("train", "model", f"{order}/challenger", at, chance.uniform(300, 600), **took, **named)
    judged = {"dataset_revision": revision, "report": f"reports/{line.name}/train/{order}/index.html"}
    rows = {"num_in": 6000, "num_good": 6000}
    at = line.work("train", "model", f"{order}/evaluation", at, 20.0, detail=judged, **rows, **named)
    if chance.random() < 1 / 7:
        told = {"reasons": [], "report": f"reports/{line.name}/train/{order}/index.html", "recipe": "x", "why": ""}
        refused = {"reason": ReasonCode.GAIN_NOT_PROVEN, "num_in": 1, "num_bad": 1, "detail": told}
        line.tell("train", "model", order, EventKind.SCRAPPED, at, **refused, **named)
        return
    at = line.work("train", "model", f"{order}/refit", at, chance.uniform(300, 600), **took, **named)
    line.version += 1
    one, version = {"num_in": 1, "num_good": 1}, str(line.version)
    told = {"version": version, "trained_until": key, "dataset_revision": revision}
    at = line.work("train", "model", order, at, 5.0, detail=told, **one, **named)
    run = {"run_id": f"asset_triggered__{key}"}
    for n, stage in enumerate(["loading", "self_tested", "shadow", "canary", "canary", "promoted"]):
        step = {"stage": stage, "percent": 30 if stage == "canary" else 0, "action": "advance", "explanation": "well"}
        line.tell("deploy", "model", version, EventKind.DECIDED, at + timedelta(minutes=10 * n), detail=step, **run)
    told = {"version": version, "previous": str(line.version - 1), "order_id": order, "trained_until": key}
    told |= {"dataset_revision": revision}
    at += timedelta(minutes=51)
    line.work("deploy", "model", version, at, 2.0, event=EventKind.PROMOTED, detail=told, **one, **run)


def history(lines: Iterable[str], end: datetime, num_days: int) -> Iterator[ProductionEvent]:
    """Events of all lines, night by night, of the days that end before an instant."""
    made = [LineOfHistory(name, random.Random(hash_of(name))) for name in lines]
    last = end.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    for n in range(num_days):
        day = last - timedelta(days=num_days - 1 - n)
        for line in made:
            yield from night(line, day)


def load(dsn: str, events: Iterable[ProductionEvent]) -> int:
    """Copy events into the ledger as they come; returns how many. They must be new."""
    import sqlalchemy as sa

    raw = sa.create_engine(dsn, poolclass=sa.pool.NullPool).raw_connection()
    num, chunk = 0, io.StringIO()
    statement = f"COPY production_event ({', '.join(COLUMNS)}) FROM STDIN"

    def send() -> None:
        with raw.cursor() as cursor:
            chunk.seek(0)
            cursor.copy_expert(statement, chunk)
        chunk.seek(0)
        chunk.truncate()

    for each in events:
        num += 1
        chunk.write("\t".join(_text(each, name) for name in COLUMNS) + "\n")
        if chunk.tell() > 8_000_000:
            send()
    send()
    raw.commit()
    raw.driver_connection.autocommit = True
    with raw.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE production_event")  # as three years of nights leave it
    raw.close()
    return num


def _text(event: ProductionEvent, name: str) -> str:
    value = getattr(event, name)
    if value is None:
        return "\\N"
    if isinstance(value, dict):
        value = json.dumps(value).replace("\\", "\\\\")
    return value.isoformat() if isinstance(value, datetime) else str(value)
