"""What waits for a person, as the ledger knows it; and a person's word that it was seen.

A hold or a failure goes when its unit is good after all (of an order or a release: when a later one is; of a batch also
when its run makes a dataset version), a late run after a week, anything when somebody acknowledges it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from aifactory.errors import NotFound
from aifactory.floor.history import rows
from aifactory.ledger import EventKind, Ledger, ProductionEvent, event_of
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from sqlalchemy import Connection

SHOWN_FOR = timedelta(days=30)
LATE_SHOWN_FOR = timedelta(days=7)

_WAITING = """
    WITH stops AS MATERIALIZED ( -- of all lines: the index of stops knows times first
        SELECT * FROM production_event
        WHERE at >= :begin AND at < :now AND event IN ('failed', 'held', 'rolled_back')
    )
    SELECT e.* FROM stops e
    WHERE e.line = ANY(:lines)
      AND NOT (e.event = 'rolled_back' AND e.reason = 'ROLLED_BACK')
      AND NOT (e.reason = 'DEADLINE_MISSED' AND e.event = 'held' AND e.at < :late_since)
      AND NOT EXISTS (
          SELECT 1 FROM production_event a
          WHERE a.event = 'acknowledged' AND a.detail ->> 'acknowledges' = e.key AND a.line = e.line
      )
      AND NOT EXISTS (
          SELECT 1 FROM production_event g
          WHERE g.line = e.line AND g.station = e.station AND g.unit = e.unit AND g.unit_kind = e.unit_kind
            AND g.event IN ('passed', 'reworked', 'promoted') AND g.id > e.id
      )
      AND NOT (e.station = 'ingest' AND e.run_id <> '' AND EXISTS (
          SELECT 1 FROM production_event g
          WHERE g.line = e.line AND g.run_id = e.run_id AND g.run_id <> '' AND g.unit_kind = 'dataset' AND g.id > e.id
      ))
      AND NOT (e.station IN ('train', 'deploy') AND e.unit_kind = 'model' AND EXISTS (
          SELECT 1 FROM production_event g
          WHERE g.line = e.line AND g.station = e.station AND g.id > e.id
            AND g.event IN ('passed', 'reworked', 'promoted') AND g.unit_kind = 'model' AND g.unit NOT LIKE '%/%'
            AND g.event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back')
      ))
      AND NOT EXISTS (
          SELECT 1 FROM production_event l
          WHERE l.line = e.line AND l.station = e.station AND l.unit = e.unit AND l.unit_kind = e.unit_kind
            AND l.event IN ('failed', 'held', 'rolled_back') AND l.id > e.id
      )
    ORDER BY e.id DESC
"""


@dataclass(frozen=True)
class Waiting:
    """One thing that waits: its kind ("held", "failed", "rolled_back", "late") and its event."""

    kind: str
    event: ProductionEvent


def waiting(connection: Connection, lines: Sequence[str], now: datetime) -> list[Waiting]:
    """What waits for a person on these lines, newest first; of each unit its newest stop."""
    found = rows(
        connection,
        _WAITING,
        lines=list(lines),
        begin=now - SHOWN_FOR,
        now=now,
        late_since=now - LATE_SHOWN_FOR,
    )
    return [Waiting(_kind(row), event_of(row)) for row in found]


def acknowledge(ledger: Ledger, line: str, key: str, *, by: str, why: str, at: datetime) -> ProductionEvent:
    """Write to the ledger that a person has seen something; again is allowed.

    Raises:
        NotFound: the line has no such event that could wait.
    """
    with ledger.reading() as connection:
        found = rows(
            connection,
            "SELECT * FROM production_event WHERE key = :key AND line = :line "
            "AND event IN ('failed', 'held', 'rolled_back')",
            key=key,
            line=line,
        )
    if not found:
        raise NotFound(f"{line} has no event {key!r} that waits for a person; read again what waits")
    seen = event_of(found[0])
    word = ProductionEvent(
        line=line,
        station=seen.station,
        unit_kind=seen.unit_kind,
        unit=seen.unit,
        event=EventKind.ACKNOWLEDGED,
        key=hashlib.sha256(f"acknowledged {key}".encode()).hexdigest(),
        reason=ReasonCode.OPERATOR,
        at=at,
        partition=seen.partition,
        run_id=f"operator:{by}",
        detail={"acknowledges": key, "by": by, "why": why},
    )
    ledger.record(word)
    return word


def _kind(row: Mapping[str, Any]) -> str:
    late = row["event"] == "held" and row["reason"] == ReasonCode.DEADLINE_MISSED.value
    return "late" if late else str(row["event"])
