"""The production ledger: an append-only record in Postgres of what happened to every production unit.

Airflow is the record of work, git and DVC of data, MLflow of models; this is the record of production, and every KPI is
computed from it alone. An event is idempotent on its key: a stage that runs twice on the same content leaves what one
run leaves. A database trigger refuses every update and delete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect, FactoryError, GateRefused, InfrastructureFault, LandingDefect, Waiting
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine, Table

log = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x41494C44  # any number that is nobody else's in this database
_KEPT_S = 600  # how long a pooled connection serves: then another one is made
_STATIONS = frozenset({"ingest", "train", "deploy", "score", "feedback", "capacity"})


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
    ACKNOWLEDGED = "acknowledged"


_KINDS = {kind.value: kind for kind in EventKind}

GOOD = (EventKind.PASSED, EventKind.REWORKED, EventKind.PROMOTED)
"""Events after which a unit is good."""

BAD = (EventKind.FAILED, EventKind.HELD, EventKind.SCRAPPED, EventKind.ROLLED_BACK)
"""Events that stop a unit, each with its reason."""

ENDS = frozenset((*GOOD, *BAD))
"""Events that end a unit's pass through a station."""


@dataclass(frozen=True)
class ProductionEvent:
    """One thing that happened to one production unit.

    Args:
        line: the line; `plant` for what concerns all of them.
        station: ingest, train, deploy, score, feedback, or the plant's capacity.
        unit_kind: batch, dataset, model, edge (package), predictions, window or stock.
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
        if self.event in BAD and self.reason is None:
            raise ValueError(f"{self.event.value} of {self.unit} has no reason; give a ReasonCode")


@dataclass(frozen=True)
class Sums:
    """What went through a station: units, and their rows in, good and bad."""

    num_units: int
    num_in: int
    num_good: int
    num_bad: int


@dataclass(frozen=True)
class Passage:
    """One unit's way through a station: first started, last found good (None where it never was), seconds of work."""

    unit: str
    started: datetime
    good: datetime | None
    worked_s: float

    @property
    def lead_time_s(self) -> float | None:
        """Wall seconds from the first start to the last good end, waiting and rework included."""
        return (self.good - self.started).total_seconds() if self.good else None


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
        pooled: whether connections are kept for the next statements, as a server of many requests wants. A task makes
            a handful of them, and forked tasks must not share connections.

    Raises (every method):
        InfrastructureFault: Postgres does not answer, or refuses.
    """

    def __init__(self, dsn: str, *, pooled: bool = False) -> None:
        self._dsn = dsn
        self._pooled = pooled

    @cached_property
    def _engine(self) -> Engine:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        if not self._dsn:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE, "the ledger's address is not set; start the plant or set AIF_LEDGER_DSN"
            )
        kept: dict[str, Any] = {"pool_pre_ping": True, "pool_recycle": _KEPT_S} if self._pooled else {}
        return create_engine(
            self._dsn,
            **(kept or {"poolclass": NullPool}),
            connect_args={"connect_timeout": 10, "tcp_user_timeout": 30_000},
            json_serializer=_to_json,
        )

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
        *,
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
        return [event_of(row) for row in reversed(rows)]

    def newest(
        self, line: str, station: str, unit_kind: str, units: Iterable[str], kinds: Iterable[EventKind]
    ) -> dict[str, ProductionEvent]:
        """The newest event of some kinds of each of these units that has one."""
        from sqlalchemy import select

        if not (wanted := list(units)):
            return {}
        table = _table()
        statement = (
            select(table)
            .distinct(table.c.unit)
            .where(*_of(table, line, None, station))
            .where(table.c.unit_kind == unit_kind, table.c.unit.in_(wanted))
            .where(table.c.event.in_([kind.value for kind in kinds]))
            .order_by(table.c.unit, table.c.id.desc())
        )
        with self._connection() as connection:
            return {row["unit"]: event_of(dict(row)) for row in connection.execute(statement).mappings()}

    def unit_history(self, line: str, unit: str) -> list[ProductionEvent]:
        """Everything that happened to one unit, oldest first."""
        return self.events(line=line, unit=unit)

    def counts(self, line: str, since: datetime | None = None) -> dict[tuple[str, EventKind], int]:
        """How often each event happened at each station of a line."""
        from sqlalchemy import func, select

        table = _table()
        statement = (
            select(table.c.station, table.c.event, func.count())
            .where(*_of(table, line, since))
            .group_by(table.c.station, table.c.event)
        )
        with self._connection() as connection:
            return {(str(s), EventKind(e)): int(n) for s, e, n in connection.execute(statement)}

    def reasons(self, line: str, since: datetime | None = None, station: str | None = None) -> dict[ReasonCode, int]:
        """How often each reason stopped a unit of a line, most frequent first (the scrap Pareto)."""
        from sqlalchemy import func, select

        table = _table()
        statement = (
            select(table.c.reason, func.count())
            .where(*_of(table, line, since, station))
            .where(table.c.reason.is_not(None), table.c.event.in_([kind.value for kind in BAD]))
            .group_by(table.c.reason)
            .order_by(func.count().desc(), table.c.reason)
        )
        with self._connection() as connection:
            return {ReasonCode[reason]: int(n) for reason, n in connection.execute(statement)}

    def sums(self, line: str, station: str, unit_kind: str, since: datetime | None = None) -> dict[str, Sums]:
        """Units and rows in, good and bad, by partition; of each unit its last end alone, so rework counts once."""
        from sqlalchemy import func, select

        table = _table()
        ends = [kind.value for kind in (*GOOD, *BAD)]
        last = (
            select(table)
            .distinct(table.c.unit)
            .where(*_of(table, line, since, station))
            .where(table.c.unit_kind == unit_kind, table.c.event.in_(ends), table.c.partition.is_not(None))
            .order_by(table.c.unit, table.c.id.desc())
            .subquery()
        )
        added = [func.sum(last.c[name]) for name in ("num_in", "num_good", "num_bad")]
        statement = select(last.c.partition, func.count(), *added).group_by(last.c.partition)
        with self._connection() as connection:
            rows = connection.execute(statement.order_by(last.c.partition))
            return {str(day): Sums(*(int(n) for n in numbers)) for day, *numbers in rows}

    def passages(self, line: str, station: str, unit_kind: str, since: datetime | None = None) -> list[Passage]:
        """When each unit started and was good at a station, in order of starting: the basis of lead times."""
        from sqlalchemy import func, select

        table = _table()
        started = func.min(table.c.at).filter(table.c.event == EventKind.STARTED.value)
        good = func.max(table.c.at).filter(table.c.event.in_([kind.value for kind in GOOD]))
        statement = (
            select(table.c.unit, started, good, func.sum(table.c.duration_s))
            .where(*_of(table, line, since, station))
            .where(table.c.unit_kind == unit_kind)
            .group_by(table.c.unit)
            .having(started.is_not(None))
            .order_by(started, table.c.unit)
        )
        with self._connection() as connection:
            return [Passage(str(unit), s, g, float(worked)) for unit, s, g, worked in connection.execute(statement)]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for several statements that see one state of the record, and can change nothing."""
        from sqlalchemy import text

        with self._connection() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            yield connection

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
        from sqlalchemy.exc import TimeoutError as NoneFree

        try:
            with self._engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError) as error:
            raise Defect(ReasonCode.INTERNAL, f"the ledger does not take this event: {error.orig}") from error
        except DBAPIError as error:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE, f"the ledger's Postgres refused or did not answer: {error.orig}"
            ) from error
        except NoneFree as error:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE, f"all connections to the ledger's Postgres are busy: {error}"
            ) from error


class Work:
    """What a stage tells the ledger about the unit that it works on; see `station`."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.num_in = 0
        self.num_good = 0
        self.num_bad = 0
        self.gpu_s = 0.0
        self.energy_kwh = 0.0
        self.money = 0.0
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
    or, with the reason of the error that ended it, `held` (a gate or the landed material) or `failed`. The body may set
    counts, detail, the event and the revision (the content may be known only once it has been read).
    """
    work, began = Work(revision), time.monotonic()

    def write(event: EventKind, reason: ReasonCode | None, detail: dict[str, Any]) -> None:
        done = event is not EventKind.STARTED
        # The same content may fail for one reason today and for another tomorrow: both are on the record
        revision = f"{work.revision}:{reason}" if event is EventKind.FAILED else work.revision
        ledger.record(
            ProductionEvent(
                line=line,
                station=station,
                unit_kind=unit_kind,
                unit=unit,
                event=event,
                key=event_key(line, station, unit, event, revision),
                reason=reason,
                duration_s=round(time.monotonic() - began, 3) if done else 0.0,
                gpu_s=work.gpu_s,
                energy_kwh=work.energy_kwh,
                money=work.money,
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
    except Waiting:
        raise  # nothing was begun
    except BaseException as error:
        reason, message = _why(error)
        write(_ended_by(error, work.event), reason, {**work.detail, "message": message[:2000]})
        raise
    event = work.event or (
        EventKind.REWORKED if _passed_before(ledger, line, station, unit, work.revision) else EventKind.PASSED
    )
    write(event, work.reason, work.detail)


def _why(error: BaseException) -> tuple[ReasonCode, str]:
    if isinstance(error, FactoryError):
        return error.reason, error.message
    return ReasonCode.INTERNAL, f"{type(error).__name__}: {error}"


def _ended_by(error: BaseException, chosen: EventKind | None) -> EventKind:
    """An error never leaves a unit good, whatever the body had set before."""
    if chosen in BAD:
        return chosen
    return EventKind.HELD if isinstance(error, GateRefused | LandingDefect) else EventKind.FAILED


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


def _of(table: Table, line: str, since: datetime | None, station: str | None = None) -> list[ColumnElement[bool]]:
    """Conditions: of a line, and where given of a station and not before a time."""
    wanted = [table.c.line == line]
    if since is not None:
        wanted.append(table.c.at >= since)
    if station is not None:
        wanted.append(table.c.station == station)
    return wanted


def _to_json(value: Any) -> str:
    """JSON as Postgres takes it: a number that is not finite becomes null, a NumPy scalar the number that it is."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return str(value).replace("\x00", "")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def event_of(row: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> ProductionEvent:
    """The event of a row of the table, which was checked when it was written; what the row leaves out is not set."""
    event = object.__new__(ProductionEvent)
    values = event.__dict__  # filled at once: the constructor of a frozen class sets each field by a call
    values.update(row)
    values.pop("id", None)
    values["event"] = _KINDS[values["event"]]
    values["reason"] = ReasonCode[values["reason"]] if values["reason"] else None
    values["detail"] = values.get("detail") or {}
    return event
