"""Events of one line: all of a time for the KPIs, and page by page, newest first, for the panels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aifactory.kpi.record import FORGOTTEN
from aifactory.ledger import BAD, GOOD, ProductionEvent, event_of
from aifactory.reasons import Cause, ReasonCode

if TYPE_CHECKING:
    from sqlalchemy import Connection

GOODS = [kind.value for kind in GOOD]
BADS = [kind.value for kind in BAD]
ENDS = [*GOODS, *BADS]
"""Events that end a unit's pass through a station."""

NOT_DEFECTS = [reason.value for reason in ReasonCode if reason.cause is not Cause.DEFECT]
BREAKDOWNS = [reason.value for reason in ReasonCode if reason.cause is Cause.INFRASTRUCTURE]

_PRODUCTS = "unit_kind IN ('batch', 'model', 'predictions', 'window')"
_SAID = f"""
    event = ANY(:ends) AND {_PRODUCTS}
    AND event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back')
    AND (reason IS NULL OR reason <> ALL(:breakdowns))
    AND NOT (station = 'train' AND unit LIKE '%/%' AND event IN ('passed', 'reworked'))
"""

_OF_LIVES = """
    id, line, station, unit_kind, unit, event, key, reason, at, duration_s, "partition", run_id,
    CASE WHEN station = 'deploy' OR (station = 'ingest' AND event = 'started') THEN detail END AS detail
"""


def rows(connection: Connection, statement: str, **values: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of one statement."""
    return [dict(row) for row in _pairs(connection, statement, values)]


def events(connection: Connection, statement: str, **values: Any) -> list[ProductionEvent]:
    """The events of one statement's rows."""
    return [event_of(row) for row in _pairs(connection, statement, values)]


def _pairs(connection: Connection, statement: str, values: Mapping[str, Any]) -> Iterator[Iterator[tuple[str, Any]]]:
    from sqlalchemy import text

    found = connection.execute(text(statement), values)
    names = tuple(found.keys())
    return (zip(names, row, strict=True) for row in found.all())


def events_between(
    connection: Connection, line: str, begin: datetime, end: datetime, *, quarantined: bool = False
) -> list[ProductionEvent]:
    """The events of a line in a time that KPIs are made of, each with the detail that they need.

    Args:
        connection: to the ledger.
        line: the line.
        begin: from.
        end: until.
        quarantined: whether batches tell of their quarantined rows too, which `kpi.pareto.quarantined` counts.
    """
    return events(
        connection,
        """
        SELECT line, station, unit_kind, unit, event, key, reason, at, duration_s, gpu_s, energy_kwh, money, num_in,
               num_good, num_bad, "partition", run_id, CASE
                   WHEN station = 'deploy' THEN detail
                   WHEN unit_kind = 'window' AND detail -> 'violations' <> '[]'
                       THEN jsonb_build_object('violations', detail -> 'violations')
                   WHEN unit_kind = 'batch' AND :quarantined AND detail -> 'quarantined' <> '{}'
                       THEN jsonb_build_object('quarantined', detail -> 'quarantined')
               END AS detail
        FROM production_event
        WHERE line = :line AND at >= :begin AND at < :end AND event <> 'acknowledged' AND event <> 'overridden'
          AND NOT (event = 'decided' AND station <> 'deploy' AND duration_s = 0)
          AND NOT (event = 'started' AND at < :forgotten)
        """,
        line=line,
        begin=begin,
        end=end,
        forgotten=end - FORGOTTEN,
        quarantined=quarantined,
    )


def lives_of_releases(connection: Connection, line: str, begin: datetime, end: datetime) -> list[ProductionEvent]:
    """What lead times need of the releases in a time: these, and all that was done to their day, order and version."""
    return events(
        connection,
        f"""
        WITH released AS (
            SELECT unit, detail ->> 'trained_until' AS day FROM production_event
            WHERE line = :line AND station = 'deploy' AND event = 'promoted' AND at >= :begin AND at < :end
        )
        SELECT {_OF_LIVES} FROM production_event
        WHERE line = :line AND station IN ('ingest', 'train') AND "partition" IN (SELECT day FROM released)
        UNION ALL
        SELECT {_OF_LIVES} FROM production_event
        WHERE line = :line AND station = 'deploy' AND unit IN (SELECT unit FROM released)
        ORDER BY id
        """,  # noqa: S608 - nothing of a caller is in the text
        line=line,
        begin=begin,
        end=end,
    )


def gate_results(
    connection: Connection, line: str, *, station: str | None, passed: bool | None, before: int | None, limit: int
) -> Sequence[Mapping[str, Any]]:
    """What the gates of a line said of each product, newest first; infrastructure is no gate."""
    return rows(
        connection,
        f"""
        SELECT * FROM production_event
        WHERE line = :line AND {_SAID}
          AND (CAST(:station AS text) IS NULL OR station = :station)
          AND (CAST(:kinds AS text[]) IS NULL OR event = ANY(:kinds))
          AND (CAST(:before AS bigint) IS NULL OR id < :before)
        ORDER BY id DESC LIMIT :limit
        """,  # noqa: S608 - nothing of a caller is in the text
        line=line,
        ends=ENDS,
        breakdowns=BREAKDOWNS,
        station=station,
        kinds=None if passed is None else GOODS if passed else BADS,
        before=before,
        limit=limit,
    )


def windows(connection: Connection, line: str, *, before: int | None, limit: int) -> Sequence[Mapping[str, Any]]:
    """The last judgement of each window, newest judgement first."""
    return rows(
        connection,
        """
        SELECT * FROM (
            SELECT DISTINCT ON (unit) * FROM production_event
            WHERE line = :line AND station = 'feedback' AND unit_kind = 'window' AND event IN ('passed', 'reworked')
            ORDER BY unit DESC, id DESC
        ) last
        WHERE CAST(:before AS bigint) IS NULL OR id < :before
        ORDER BY id DESC LIMIT :limit
        """,
        line=line,
        before=before,
        limit=limit,
    )


def rollouts(connection: Connection, line: str, *, before: int | None, limit: int) -> list[list[Mapping[str, Any]]]:
    """The events of each rollout, a version's in one run, newest rollout first, each oldest event first."""
    found = rows(
        connection,
        """
        WITH mine AS (
            SELECT *, max(id) OVER (PARTITION BY unit, run_id) AS newest FROM production_event
            WHERE line = :line AND station = 'deploy' AND unit_kind = 'model' AND event <> 'acknowledged'
        ), page AS (
            SELECT DISTINCT newest FROM mine WHERE CAST(:before AS bigint) IS NULL OR newest < :before
            ORDER BY newest DESC LIMIT :limit
        )
        SELECT mine.* FROM mine JOIN page USING (newest) ORDER BY newest DESC, id
        """,
        line=line,
        before=before,
        limit=limit,
    )
    grouped: dict[int, list[Mapping[str, Any]]] = {}
    for row in found:
        grouped.setdefault(row["newest"], []).append(row)
    return list(grouped.values())


def of_unit(connection: Connection, line: str, station: str, kind: str, unit: str) -> Sequence[Mapping[str, Any]]:
    """Everything that happened to a unit, as the ledger calls its kind, at a station, oldest first; its parts too."""
    return rows(
        connection,
        """
        SELECT * FROM production_event
        WHERE line = :line AND station = :station AND unit_kind = :kind
          AND (unit = :unit OR starts_with(unit, CAST(:unit AS text) || '/'))
        ORDER BY id
        """,
        line=line,
        station=station,
        kind=kind,
        unit=unit,
    )


def of_runs(
    connection: Connection, line: str, stations: Sequence[str], run_ids: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The last event of each unit that runs worked on, newest first."""
    return rows(
        connection,
        """
        SELECT * FROM (
            SELECT DISTINCT ON (station, unit_kind, unit) * FROM production_event
            WHERE line = :line AND run_id = ANY(:run_ids) AND run_id <> '' AND station = ANY(:stations)
            ORDER BY station, unit_kind, unit, id DESC
        ) last ORDER BY id DESC
        """,
        line=line,
        stations=list(stations),
        run_ids=list(run_ids),
    )
