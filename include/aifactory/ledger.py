"""The production ledger: an append-only record in Postgres of what happened to every production unit.

Airflow is the record of work, git and DVC of data, MLflow of models; this is the record of production, and every KPI is
computed from it alone. An event is idempotent on its key: a stage that runs twice on the same content leaves what one
run leaves. A database trigger refuses every update and delete.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import FactoryError, InfrastructureFault
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

log = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x41494C44  # any number that is nobody else's in this database
_STATIONS = frozenset({"ingest", "train", "deploy", "score", "feedback"})


class EventKind(StrEnum):
    """What can happen to a production unit."""

    STARTED = "started"
    PASSED = "passed"
    FAILED = "failed"
    HELD = "held"
    REWORKED = "reworked"
    SCRAPPED = "scrapped"
    OVERRIDDEN = "overridden"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    DECIDED = "decided"


GOOD = (EventKind.PASSED, EventKind.REWORKED, EventKind.PROMOTED)
"""Events after which a unit is good."""


@dataclass(frozen=True)
class ProductionEvent:
    """One thing that happened to one production unit.

    Args:
        line: the line.
        station: ingest, train, deploy, score or feedback.
        unit_kind: batch, dataset, model, predictions or window.
        unit: id of the unit within its kind.
        event: what happened.
        key: unique; the same key is recorded once (see `event_key`).
        reason: why, where the unit did not simply pass.
        at: when, UTC.
        duration_s: wall seconds at the station.
        gpu_s: GPU-seconds.
        energy_kwh: energy, kWh.
        money: cost in the plant's currency.
        num_in: rows that came in.
        num_good: rows that came out good.
        num_bad: rows that did not.
        partition: the day it belongs to, YYYY-MM-DD.
        run_id: id of the run that did the work.
        detail: anything else, JSON.
    """

    line: str
    station: str
    unit_kind: str
    unit: str
    event: EventKind
    key: str
    reason: ReasonCode | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_s: float = 0.0
    gpu_s: float = 0.0
    energy_kwh: float = 0.0
    money: float = 0.0
    num_in: int = 0
    num_good: int = 0
    num_bad: int = 0
    partition: str | None = None
    run_id: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.station not in _STATIONS:
            raise ValueError(f"station {self.station!r} is none of {sorted(_STATIONS)}")
        if self.at.tzinfo is None:
            raise ValueError(f"at {self.at} has no time zone; the ledger keeps UTC")


def event_key(line: str, station: str, unit: str, event: EventKind, revision: str) -> str:
    """Key of an event: equal for equal work on equal content, so that a rerun adds nothing.

    Args:
        line: the line.
        station: where it happened.
        unit: the unit.
        event: what happened.
        revision: names the content that was worked on, e.g. the ETags of its sources.
    """
    return hashlib.sha256("\x1f".join((line, station, unit, event.value, revision)).encode()).hexdigest()


class Ledger:
    """The production record of all lines.

    Args:
        dsn: SQLAlchemy URL of the ledger's database.

    Raises (every method):
        InfrastructureFault: Postgres does not answer, or refuses.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @cached_property
    def _engine(self) -> Engine:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        # No pool: a task makes a handful of statements, and forked tasks must not share connections.
        return create_engine(self._dsn, poolclass=NullPool, connect_args={"connect_timeout": 10})

    def record(self, event: ProductionEvent) -> bool:
        """Write one event; False where its key stands already."""
        return self.record_many([event]) == 1

    def record_many(self, events: Sequence[ProductionEvent]) -> int:
        """Write events in one transaction; returns how many were new."""
        from sqlalchemy.dialects.postgresql import insert

        if not events:
            return 0
        rows = [{**asdict(e), "event": e.event.value, "reason": e.reason and e.reason.value} for e in events]
        statement = insert(_table()).values(rows).on_conflict_do_nothing(index_elements=["key"])
        with self._connection() as connection:
            return int(connection.execute(statement).rowcount)

    def events(
        self,
        line: str | None = None,
        station: str | None = None,
        unit: str | None = None,
        kind: EventKind | None = None,
        partition: str | None = None,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> list[ProductionEvent]:
        """The newest events that match, oldest first."""
        from sqlalchemy import select

        table = _table()
        wanted = {"line": line, "station": station, "unit": unit, "event": kind, "partition": partition}
        statement = select(table).order_by(table.c.id.desc()).limit(limit)
        for name, value in wanted.items():
            if value is not None:
                statement = statement.where(table.c[name] == str(value))
        if since is not None:
            statement = statement.where(table.c.at >= since)
        with self._connection() as connection:
            rows = [dict(row) for row in connection.execute(statement).mappings()]
        return [_event(row) for row in reversed(rows)]

    def counts(self, line: str, since: datetime | None = None) -> dict[tuple[str, EventKind], int]:
        """How often each event happened at each station of a line."""
        from sqlalchemy import func, select

        table = _table()
        statement = (
            select(table.c.station, table.c.event, func.count())
            .where(table.c.line == line)
            .group_by(table.c.station, table.c.event)
        )
        if since is not None:
            statement = statement.where(table.c.at >= since)
        with self._connection() as connection:
            return {(str(s), EventKind(e)): int(n) for s, e, n in connection.execute(statement)}

    def reasons(self, line: str, since: datetime | None = None) -> dict[ReasonCode, int]:
        """How often each reason stopped a unit of a line, most frequent first (the scrap Pareto)."""
        from sqlalchemy import func, select

        table = _table()
        stopped = [EventKind.FAILED, EventKind.HELD, EventKind.SCRAPPED, EventKind.ROLLED_BACK]
        statement = (
            select(table.c.reason, func.count())
            .where(table.c.line == line, table.c.reason.is_not(None), table.c.event.in_([k.value for k in stopped]))
            .group_by(table.c.reason)
            .order_by(func.count().desc(), table.c.reason)
        )
        if since is not None:
            statement = statement.where(table.c.at >= since)
        with self._connection() as connection:
            return {ReasonCode[reason]: int(n) for reason, n in connection.execute(statement)}

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        from sqlalchemy.exc import DBAPIError

        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE, f"the ledger's Postgres refused or did not answer: {error.orig}"
            ) from error


class Work:
    """What a stage tells the ledger about the unit that it works on; see `station`."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.num_in = 0
        self.num_good = 0
        self.num_bad = 0
        self.gpu_s = 0.0
        self.event: EventKind | None = None
        self.reason: ReasonCode | None = None
        self.detail: dict[str, Any] = {}


@contextmanager
def station(
    ledger: Ledger,
    line: str,
    station: str,
    unit_kind: str,
    unit: str,
    *,
    partition: str | None = None,
    run_id: str = "",
    revision: str = "",
) -> Iterator[Work]:
    """Work on one unit at one station, on the record.

    Records `started` when entered; when left `passed` (`reworked` where the unit had passed before with other content),
    or `failed` with the reason of the error that ended it. The body may set counts, detail, the event and the revision
    (the content may be known only once it has been read).
    """
    work, began = Work(revision), time.monotonic()

    def write(event: EventKind, reason: ReasonCode | None, detail: dict[str, Any]) -> None:
        done = event is not EventKind.STARTED
        ledger.record(
            ProductionEvent(
                line=line,
                station=station,
                unit_kind=unit_kind,
                unit=unit,
                event=event,
                key=event_key(line, station, unit, event, work.revision),
                reason=reason,
                duration_s=round(time.monotonic() - began, 3) if done else 0.0,
                gpu_s=work.gpu_s,
                num_in=work.num_in,
                num_good=work.num_good,
                num_bad=work.num_bad,
                partition=partition,
                run_id=run_id,
                detail=detail,
            )
        )

    write(EventKind.STARTED, None, {})
    try:
        yield work
    except BaseException as error:
        reason = error.reason if isinstance(error, FactoryError) else ReasonCode.INTERNAL
        message = error.message if isinstance(error, FactoryError) else f"{type(error).__name__}: {error}"
        write(work.event or EventKind.FAILED, reason, {**work.detail, "message": message[:2000]})
        raise
    event = work.event or (
        EventKind.REWORKED if _passed_before(ledger, line, station, unit, work.revision) else EventKind.PASSED
    )
    write(event, work.reason, work.detail)


def _passed_before(ledger: Ledger, line: str, station: str, unit: str, revision: str) -> bool:
    """Whether the unit passed with other content than this."""
    passed = ledger.events(line=line, station=station, unit=unit, kind=EventKind.PASSED)
    return bool(passed) and event_key(line, station, unit, EventKind.PASSED, revision) not in {e.key for e in passed}


def migrate(dsn: str) -> None:
    """Bring the ledger's tables up to date; safe when several processes do it at once.

    Raises:
        InfrastructureFault: Postgres does not answer, or refuses.
    """
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with create_engine(dsn, poolclass=NullPool).begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise InfrastructureFault(
            ReasonCode.STORE_UNREACHABLE, f"the ledger cannot be migrated: {error.orig}"
        ) from error


def _table() -> Table:
    """The table as the newest migration leaves it."""
    from sqlalchemy import BigInteger, Column, DateTime, Float, MetaData, Table, Text
    from sqlalchemy.dialects.postgresql import JSONB

    text_columns = ("line", "station", "unit_kind", "unit", "event", "key", "reason", "partition", "run_id")
    return Table(
        "production_event",
        MetaData(),
        Column("id", BigInteger, primary_key=True),
        *(Column(name, Text) for name in text_columns),
        Column("at", DateTime(timezone=True)),
        *(Column(name, Float) for name in ("duration_s", "gpu_s", "energy_kwh", "money")),
        *(Column(name, BigInteger) for name in ("num_in", "num_good", "num_bad")),
        Column("detail", JSONB),
    )


def _event(row: dict[str, Any]) -> ProductionEvent:
    row.pop("id")
    row["event"] = EventKind(row["event"])
    row["reason"] = ReasonCode[row["reason"]] if row["reason"] else None
    return ProductionEvent(**row)
