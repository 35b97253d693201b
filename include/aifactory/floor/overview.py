"""All lines at a glance: each figure of all lines in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aifactory.floor.history import BADS, BREAKDOWNS, ENDS, GOODS, NOT_DEFECTS, events, rows
from aifactory.kpi import stations
from aifactory.kpi.cost import Cost, Prices
from aifactory.kpi.record import FORGOTTEN, STATIONS
from aifactory.kpi.stations import Plan
from aifactory.ledger import ProductionEvent

if TYPE_CHECKING:
    from sqlalchemy import Connection

NUM_POINTS = 30
"""Windows that a sparkline shows."""

_BROKE = "event = ANY(:bad) AND reason = ANY(:breakdowns) AND NOT (event = 'held' AND reason = 'DEADLINE_MISSED')"

_MADE = f"""
    WITH again AS MATERIALIZED (
        -- a corrected batch passes and is reworked at one instant: one piece of work
        SELECT line, station, unit_kind, unit, at FROM production_event
        WHERE at >= :begin AND at < :end AND line = ANY(:lines) AND event = 'reworked' AND (
            event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back') OR duration_s > 0
        )
    ), works AS NOT MATERIALIZED ( -- to scan an index twice costs less than to keep what one scan finds
        SELECT line COLLATE "C" AS line, station COLLATE "C" AS station, unit_kind, unit COLLATE "C" AS unit, event,
               reason, at, id, duration_s, gpu_s, energy_kwh, money, num_good
        FROM production_event
        WHERE at >= :begin AND at < :end AND line = ANY(:lines) AND (
            event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back') OR duration_s > 0
        ) AND NOT (event = 'passed' AND (line, station, unit_kind, unit, at) IN (SELECT * FROM again))
    ), products AS (
        SELECT line, station, CASE WHEN station = 'train' THEN split_part(unit, '/', 1) ELSE unit END AS product, at,
               id, event = ANY(:good) AS is_good, event = 'promoted' AS promoted, num_good
        FROM works
        WHERE (station, unit_kind) IN (('ingest', 'batch'), ('train', 'model'), ('deploy', 'model'),
                                       ('score', 'predictions'), ('feedback', 'window'))
          AND NOT (station = 'train' AND unit LIKE '%/%' AND event = ANY(:good))
          AND (event = ANY(:good) OR (event = ANY(:bad) AND reason <> ALL(:not_defects)))
        UNION ALL
        SELECT line, station, detail ->> 'to', at, id, true, false, num_good FROM production_event
        WHERE at >= :begin AND at < :end AND line = ANY(:lines) AND event IN ('failed', 'held', 'rolled_back')
          AND event = 'rolled_back' AND station = 'deploy' AND detail ->> 'to' <> '' AND reason <> ALL(:not_defects)
    ), made AS (
        SELECT line, station, count(*) FILTER (WHERE last[3] = 1) AS num_good, sum(last[4]) AS num_rows_good,
               count(*) FILTER (WHERE promoted) AS num_promoted
        FROM (
            SELECT line, station, bool_or(promoted) AS promoted,
                   max(ARRAY[date_part('epoch', at), id, CAST(is_good AS int), num_good]) AS last
            FROM products GROUP BY line, station, product
        ) each GROUP BY line, station
    ), done AS (
        SELECT line, station, sum(duration_s) AS all_s, sum(gpu_s) AS gpu_s, sum(energy_kwh) AS energy_kwh,
               sum(money) AS money,
               coalesce(sum(duration_s) FILTER (WHERE NOT ({_BROKE}) OR reason IS NULL), 0) AS work_s,
               coalesce(sum(duration_s) FILTER (WHERE gpu_s = 0 AND energy_kwh = 0 AND money = 0), 0) AS unmeasured_s,
               min(at) FILTER (WHERE {_BROKE}) AS broke_at
        FROM works GROUP BY line, station
    ), baked AS (
        SELECT line, 'deploy' AS station, sum(lasted) AS bake_s FROM (
            SELECT line, extract(epoch FROM max(at) - min(at)) AS lasted FROM production_event
            WHERE at >= :begin AND at < :end AND line = ANY(:lines)
              AND station = 'deploy' AND event = 'decided' AND detail ? 'stage'
            GROUP BY line, unit, run_id
        ) each GROUP BY line
    )
    SELECT * FROM done LEFT JOIN made USING (line, station) LEFT JOIN baked USING (line, station)
"""  # noqa: S608 - nothing of a caller is in the text


@dataclass(frozen=True)
class Made:
    """What a line made in a time, what that took, and the station with the highest load, with that load."""

    cost: Cost
    num_good_models: int
    num_predictions: int
    bottleneck: tuple[str, float] | None


def made(
    connection: Connection, plans: Mapping[str, Plan], begin: datetime, end: datetime, prices: Prices
) -> dict[str, Made]:
    """What each line made; see `kpi.cost.cost` and `kpi.stations`."""
    found = rows(
        connection,
        _MADE,
        lines=list(plans),
        begin=begin,
        end=end,
        good=GOODS,
        bad=BADS,
        not_defects=NOT_DEFECTS,
        breakdowns=BREAKDOWNS,
    )
    down = _down(connection, [row for row in found if row["broke_at"]], end)
    of_line: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(found, key=lambda row: STATIONS.index(row["station"]) if row["station"] in STATIONS else -1):
        of_line[row["line"]].append(row)
    return {line: _made(mine, plans[line], down, prices) for line, mine in of_line.items()}


def wip(connection: Connection, lines: Sequence[str], now: datetime) -> dict[str, int]:
    """Work in progress of each line; see `kpi.record.in_progress`."""
    found = rows(
        connection,
        """
        SELECT line, count(*) AS wip FROM (
            SELECT DISTINCT ON (line, station, unit_kind, unit) line, event FROM production_event
            WHERE at >= :begin AND at <= :now AND line = ANY(:lines) AND (event = 'started' OR event = ANY(:ends))
            ORDER BY line, station, unit_kind, unit, at DESC, event = 'started', id DESC
        ) last WHERE event = 'started' GROUP BY line
        """,
        lines=list(lines),
        begin=now - FORGOTTEN,
        now=now,
        ends=ENDS,
    )
    return {row["line"]: row["wip"] for row in found}


def last_events(connection: Connection, lines: Sequence[str]) -> dict[str, datetime]:
    """When anything happened last on each line."""
    found = rows(
        connection,
        """
        SELECT lines.line, last.at FROM unnest(CAST(:lines AS text[])) AS lines(line) CROSS JOIN LATERAL (
            SELECT at FROM production_event e WHERE e.line = lines.line ORDER BY at DESC LIMIT 1
        ) last
        """,
        lines=list(lines),
    )
    return {row["line"]: row["at"] for row in found}


def champions(connection: Connection, lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The version in service of each line: version, since, trained_until, order_id, dataset_revision, put_back."""
    found = rows(
        connection,
        f"""
        SELECT lines.line, last.* FROM unnest(CAST(:lines AS text[])) AS lines(line) CROSS JOIN LATERAL (
            SELECT at AS since, detail ->> 'version' AS version, detail ->> 'trained_until' AS trained_until,
                   detail ->> 'order_id' AS order_id, detail ->> 'dataset_revision' AS dataset_revision,
                   event = 'rolled_back' AS put_back
            FROM production_event e
            WHERE e.line = lines.line AND station = 'deploy' AND {_PRODUCT_ENDS}
              AND (event = 'promoted' OR (event = 'rolled_back' AND detail ? 'to'))
            ORDER BY id DESC LIMIT 1
        ) last
        """,  # noqa: S608 - nothing of a caller is in the text
        lines=list(lines),
    )
    return {row["line"]: {name: value for name, value in row.items() if name != "line"} for row in found}


def gate_lights(connection: Connection, lines: Sequence[str]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The newest end of a product at each (line, station), but for those that infrastructure stopped."""
    found = rows(
        connection,
        f"""
        SELECT last.* FROM unnest(CAST(:lines AS text[])) AS lines(line)
        CROSS JOIN unnest(CAST(:stations AS text[])) AS stations(station) CROSS JOIN LATERAL (
            SELECT * FROM production_event e
            WHERE e.line = lines.line AND e.station = stations.station AND {_PRODUCT_ENDS}
              AND (reason IS NULL OR reason <> ALL(:breakdowns))
              AND NOT (e.station = 'train' AND unit LIKE '%/%' AND event IN ('passed', 'reworked'))
            ORDER BY id DESC LIMIT 1
        ) last
        """,  # noqa: S608 - nothing of a caller is in the text
        lines=list(lines),
        stations=list(STATIONS),
        breakdowns=BREAKDOWNS,
    )
    return {(row["line"], row["station"]): row for row in found}


def sparklines(connection: Connection, metrics: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The newest windows of each line, oldest first: day, value of the line's metric, model_version, broken.

    Args:
        connection: to the ledger.
        metrics: line -> name of its metric.
    """
    found = rows(
        connection,
        f"""
        SELECT lines.line, last.* FROM unnest(CAST(:lines AS text[]), CAST(:metrics AS text[])) AS lines(line, metric)
        CROSS JOIN LATERAL (
            SELECT id, unit AS day, CAST(detail -> 'metrics' ->> lines.metric AS double precision) AS value,
                   detail ->> 'model_version' AS model_version,
                   coalesce(jsonb_array_length(detail -> 'violations'), 0) > 0 AS broken
            FROM production_event e
            WHERE e.line = lines.line AND station = 'feedback' AND unit_kind = 'window'
              AND event IN ('passed', 'reworked')
            ORDER BY id DESC LIMIT {NUM_POINTS}
        ) last ORDER BY last.id
        """,  # noqa: S608 - nothing of a caller is in the text
        lines=list(metrics),
        metrics=list(metrics.values()),
    )
    points: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in found:
        told = {name: row[name] for name in ("day", "value", "model_version", "broken")}
        points[row["line"]][row["day"]] = told
    return {line: [mine[day] for day in sorted(mine)] for line, mine in points.items()}


_PRODUCT_ENDS = """
    event IN ('passed', 'reworked', 'promoted', 'failed', 'held', 'scrapped', 'rolled_back')
    AND unit_kind IN ('batch', 'model', 'predictions', 'window')
"""
"""As the index `production_event_ends` has it."""


_DOWN = f"""
    WITH broken AS MATERIALIZED (
        SELECT line, station, at FROM unnest(CAST(:lines AS text[]), CAST(:stations AS text[])) AS places(line, station)
        JOIN production_event USING (line, station)
        WHERE at >= :begin AND at < :end AND {_BROKE}
    ), instants AS (
        -- each breakdown, and when next after it work ended that did not break down
        SELECT line, station, at FROM broken
        UNION
        SELECT line, station, after.at FROM broken CROSS JOIN LATERAL (
            SELECT at FROM production_event e
            WHERE e.line = broken.line AND e.station = broken.station AND e.at > broken.at AND e.at < :end
              AND duration_s > 0 AND NOT coalesce({_BROKE}, false)
            ORDER BY at LIMIT 1
        ) after
    )
    SELECT id, line, station, unit_kind, unit, event, key, reason, at, duration_s
    FROM production_event JOIN instants USING (line, station, at) WHERE event = ANY(:ends) OR duration_s > 0
"""  # noqa: S608 - nothing of a caller is in the text


def _down(connection: Connection, broken: Sequence[Mapping[str, Any]], end: datetime) -> dict[tuple[str, str], float]:
    """Downtime of the (line, station) pairs at which something broke down, s; see `kpi.stations.outages`."""
    if not broken:
        return {}
    found = events(
        connection,
        _DOWN,
        lines=[row["line"] for row in broken],
        stations=[row["station"] for row in broken],
        begin=min(row["broke_at"] for row in broken),
        end=end,
        bad=BADS,
        ends=ENDS,
        breakdowns=BREAKDOWNS,
    )
    of_place: defaultdict[tuple[str, str], list[ProductionEvent]] = defaultdict(list)
    for e in found:
        of_place[e.line, e.station].append(e)
    return {place: sum(o.seconds(end) for o in stations.outages(mine)) for place, mine in of_place.items()}


def _made(mine: Sequence[Mapping[str, Any]], plan: Plan, down: Mapping[tuple[str, str], float], prices: Prices) -> Made:
    figures = [
        stations.StationFigures(
            row["station"],
            num_good=row["num_good"] or 0,
            work_s=row["work_s"] + float(row["bake_s"] or 0),
            down_s=down.get((row["line"], row["station"]), 0.0),
        )
        for row in mine
    ]
    seconds = sum(row["unmeasured_s"] for row in mine)
    energy = seconds / 3600 * prices.power_w / 1000
    money = seconds / 3600 * prices.unit_hour + energy * prices.kwh
    return Made(
        Cost(
            sum(row["all_s"] for row in mine),
            sum(row["gpu_s"] for row in mine),
            sum(row["energy_kwh"] for row in mine) + energy,
            sum(row["money"] for row in mine) + money,
            money,
        ),
        sum(row["num_promoted"] or 0 for row in mine if row["station"] == "deploy"),
        sum(int(row["num_rows_good"] or 0) for row in mine if row["station"] == "score"),
        stations.bottleneck(figures, plan),
    )
