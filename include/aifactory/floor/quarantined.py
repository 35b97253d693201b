"""The quarantine browser: which days have rows in quarantine (from the ledger), and the rows (from the store)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aifactory import quarantine
from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.floor.history import rows
from aifactory.line import LineSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection


@dataclass(frozen=True)
class Row:
    """One row in quarantine with the newest decision on it; `by` and `decided_at` where an operator took one."""

    row_number: int
    row: dict[str, Any]
    reason: str
    expectation: str
    decision: str
    by: str | None
    decided_at: datetime | None
    source_uri: str
    source_etag: str


def days(connection: Connection, line: str, *, before: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
    """What the raw gate said last of each batch that left rows in quarantine, newest day first, before a day."""
    return rows(
        connection,
        """
        SELECT * FROM (
            SELECT DISTINCT ON (unit) * FROM production_event
            WHERE line = :line AND station = 'ingest' AND unit_kind = 'batch'
              AND event IN ('passed', 'reworked', 'held') AND reason IS DISTINCT FROM 'DEADLINE_MISSED'
              AND NOT detail ? 'step'
              AND (CAST(:before AS text) IS NULL OR unit < :before)
            ORDER BY unit DESC, id DESC
        ) last WHERE num_bad > 0 ORDER BY unit DESC LIMIT :limit
        """,
        line=line,
        before=before,
        limit=limit,
    )


def rows_of(f: Factory, spec: LineSpec, table: str, day: str, *, reason: str | None, decision: str | None) -> list[Row]:
    """The rows of one day's quarantine, by their position.

    Raises:
        NotFound: nothing of this table and day is in quarantine.
    """
    held = quarantine.read(f, spec, table, day)
    if held is None:
        raise NotFound(f"nothing of {table} of {day} is in quarantine (any more)")
    etag = str(held.column("source_etag")[0].as_py())
    said = quarantine.decided(f, spec, table, day, etag)
    found = [_row(each, said.get(each["row_number"], {})) for each in held.to_pylist()]
    wanted = [r for r in found if reason in (None, r.reason) and decision in (None, r.decision)]
    return sorted(wanted, key=lambda r: r.row_number)


def _row(stored: dict[str, Any], said: dict[str, Any]) -> Row:
    return Row(
        stored["row_number"],
        json.loads(stored["row"]),
        stored["reason"],
        stored["expectation"],
        said.get("decision", "pending"),
        said.get("by"),
        datetime.fromisoformat(said["at"]) if said else None,
        stored["source_uri"],
        stored["source_etag"],
    )
