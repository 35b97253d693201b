"""The production record in a real Postgres: append-only, idempotent, safe under several processes."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from aifactory.errors import Defect, GateRefused, InfrastructureFault
from aifactory.ledger import EventKind, Ledger, ProductionEvent, Sums, event_key, migrate, station
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings

pytestmark = pytest.mark.integration

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def dsn(plant_settings: Settings) -> str:
    address = plant_settings.ledger_dsn.get_secret_value()
    migrate(address)
    return address


@pytest.fixture
def ledger(dsn: str) -> Ledger:
    return Ledger(dsn)


@pytest.fixture
def line() -> str:
    """A line of the test's own, because nothing can be removed from the record."""
    return f"line_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def empty_dsn(dsn: str) -> Iterator[str]:
    """A schema without the ledger's table, on the search path of its address."""
    schema = f"s_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(dsn, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    url = sa.make_url(dsn).update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))


def event(line: str, **changes: Any) -> ProductionEvent:
    values: dict[str, Any] = {
        "line": line,
        "station": "ingest",
        "unit_kind": "batch",
        "unit": "2026-03-01",
        "event": EventKind.PASSED,
        "at": START,
    }
    values |= changes
    values.setdefault("key", uuid.uuid4().hex)
    return ProductionEvent(**values)


# --- the table
def test_what_was_recorded_comes_back_whole(ledger: Ledger, line: str) -> None:
    told = event(
        line,
        event=EventKind.HELD,
        reason=ReasonCode.VOLUME_ABNORMAL,
        duration_s=1.5,
        gpu_s=2.0,
        energy_kwh=0.25,
        money=0.5,
        num_in=10,
        num_good=7,
        num_bad=3,
        partition="2026-03-01",
        run_id="r1",
        detail={"nested": {"n": [1, 2.5, None]}, "text": "50 % of :it"},
    )
    assert ledger.record(told) is True
    assert ledger.events(line=line) == [told]


def test_a_key_is_recorded_once(ledger: Ledger, line: str) -> None:
    first = event(line, key=f"{line}-k", num_in=1)
    assert ledger.record(first) is True
    assert ledger.record(event(line, key=f"{line}-k", num_in=2)) is False
    assert ledger.record_many([event(line, key=f"{line}-k"), event(line, key=f"{line}-n"), first]) == 1
    assert [e.num_in for e in ledger.events(line=line)] == [1, 0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE production_event SET num_in = 99",
        "UPDATE production_event SET num_in = 99 WHERE false",
        "DELETE FROM production_event",
        "TRUNCATE production_event",
    ],
)
def test_the_database_refuses_every_change(ledger: Ledger, dsn: str, line: str, statement: str) -> None:
    ledger.record(event(line))
    before = ledger.events(line=line)
    with (
        pytest.raises(sa.exc.DBAPIError, match="append-only"),
        sa.create_engine(dsn, poolclass=sa.pool.NullPool).begin() as connection,
    ):
        connection.execute(sa.text(statement))
    assert ledger.events(line=line) == before


def test_a_count_below_zero_is_a_defect_not_a_fault(ledger: Ledger, line: str) -> None:
    with pytest.raises(Defect, match="num_in"):
        ledger.record(event(line, num_in=-1))


def test_a_store_that_does_not_answer_is_a_fault(dsn: str, line: str) -> None:
    nobody = sa.make_url(dsn).set(port=9).render_as_string(hide_password=False)
    with pytest.raises(InfrastructureFault) as failed:
        Ledger(nobody).record(event(line))
    assert failed.value.reason is ReasonCode.STORE_UNREACHABLE
    with pytest.raises(InfrastructureFault):
        migrate(nobody)


def test_the_address_is_not_shown_in_messages(dsn: str, line: str) -> None:
    password = sa.make_url(dsn).password
    nobody = sa.make_url(dsn).set(port=9).render_as_string(hide_password=False)
    with pytest.raises(InfrastructureFault) as failed:
        Ledger(nobody).record(event(line))
    assert str(password) not in str(failed.value)


def test_no_connection_is_kept(ledger: Ledger, dsn: str, line: str) -> None:
    """Forked tasks must not share one, and Postgres has few: after a statement nobody of ours is connected."""
    marked = sa.make_url(dsn).update_query_dict({"application_name": line}).render_as_string(hide_password=False)
    held = Ledger(marked)
    held.record(event(line))
    with sa.create_engine(dsn, poolclass=sa.pool.NullPool).connect() as connection:
        query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
        assert connection.execute(query, {"name": line}).scalar() == 0


def test_a_servers_ledger_keeps_its_connection_and_outlives_its_loss(dsn: str, line: str) -> None:
    marked = sa.make_url(dsn).update_query_dict({"application_name": line}).render_as_string(hide_password=False)
    pooled = Ledger(marked, pooled=True)
    assert pooled.record(event(line))

    def backend() -> int:
        with pooled.reading() as connection:
            return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())

    first = backend()
    assert backend() == first
    with sa.create_engine(dsn, poolclass=sa.pool.NullPool).begin() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": first})
    assert pooled.record(event(line, unit="later")), "it connects anew, and what was read from may be written to"
    assert backend() != first


def test_a_servers_ledger_that_is_too_busy_says_so(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = Ledger(dsn, pooled=True)
    with ExitStack() as busy:
        busy.enter_context(pooled.reading())
        pool: Any = pooled._engine.pool
        monkeypatch.setattr(pool, "_timeout", 0.1)
        for _ in range(pool.size() + pool._max_overflow - 1):
            busy.enter_context(pooled.reading())
        with pytest.raises(InfrastructureFault, match="all connections to the ledger's Postgres are busy"):
            busy.enter_context(pooled.reading())
    assert pooled.events(line="nobody") == []


def test_a_forked_process_records_with_its_parents_ledger(ledger: Ledger, line: str) -> None:
    ledger.record(event(line, unit="parent"))
    child = os.fork()
    if child == 0:
        ok = ledger.record(event(line, unit="child"))
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ledger.record(event(line, unit="parent again"))
    assert [e.unit for e in ledger.events(line=line)] == ["parent", "child", "parent again"]


# --- migrations
def test_processes_that_migrate_at_once_do_not_disturb_each_other(empty_dsn: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=migrate, args=(empty_dsn,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with sa.create_engine(empty_dsn, poolclass=sa.pool.NullPool).connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM ledger_version")).scalar() == 1
    assert Ledger(empty_dsn).record(event("any")) is True


def test_migrating_again_keeps_what_is_there(empty_dsn: str) -> None:
    migrate(empty_dsn)
    Ledger(empty_dsn).record(event("any"))
    migrate(empty_dsn)
    assert len(Ledger(empty_dsn).events()) == 1


def test_a_ledger_that_was_not_migrated_is_a_fault_that_says_so(empty_dsn: str) -> None:
    with pytest.raises(InfrastructureFault, match="production_event"):
        Ledger(empty_dsn).events()


# --- a station
def test_a_station_records_start_and_pass(ledger: Ledger, line: str) -> None:
    with station(ledger, line, "ingest", "batch", "d", partition="2026-03-01", run_id="r", revision="1") as work:
        work.num_in, work.num_good, work.num_bad = 5, 4, 1
        work.detail["docs"] = "key"
    started, passed = ledger.unit_history(line, "d")
    assert (started.event, started.num_in, started.duration_s) == (EventKind.STARTED, 0, 0.0)
    assert (passed.event, passed.num_in, passed.num_good, passed.num_bad) == (EventKind.PASSED, 5, 4, 1)
    assert (passed.partition, passed.run_id, passed.detail) == ("2026-03-01", "r", {"docs": "key"})
    assert passed.key == event_key(line, "ingest", "d", EventKind.PASSED, "1")


def test_the_same_content_again_adds_nothing_and_other_content_is_rework(ledger: Ledger, line: str) -> None:
    def run(revision: str) -> list[EventKind]:
        with station(ledger, line, "ingest", "batch", "d", revision=revision):
            pass
        return [e.event for e in ledger.unit_history(line, "d")]

    first = [EventKind.STARTED, EventKind.PASSED]
    assert run("1") == first
    assert run("1") == first
    reworked = [*first, EventKind.STARTED, EventKind.REWORKED]
    assert run("2") == reworked
    assert run("2") == reworked
    assert run("1") == reworked


def test_a_gate_that_refuses_holds_the_unit_with_its_reason(ledger: Ledger, line: str) -> None:
    def refused() -> None:
        with station(ledger, line, "ingest", "batch", "d", revision="1") as work:
            work.num_in = 8
            raise GateRefused(ReasonCode.QUARANTINE_SHARE, "7 of 8 rows failed")

    with pytest.raises(GateRefused):
        refused()
    held = ledger.unit_history(line, "d")[-1]
    assert (held.event, held.reason, held.num_in) == (EventKind.HELD, ReasonCode.QUARANTINE_SHARE, 8)
    assert held.detail == {"message": "7 of 8 rows failed"}


def test_an_error_that_nobody_foresaw_fails_the_unit_as_internal(ledger: Ledger, line: str) -> None:
    def broken() -> None:
        with station(ledger, line, "train", "model", "m") as work:
            work.event = EventKind.PROMOTED
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        broken()
    failed = ledger.unit_history(line, "m")[-1]
    assert (failed.event, failed.reason) == (EventKind.FAILED, ReasonCode.INTERNAL)
    assert failed.detail["message"].startswith("ZeroDivisionError")
    assert failed.duration_s >= 0


def test_every_reason_of_a_failure_is_on_record_once(ledger: Ledger, line: str) -> None:
    for reason in (ReasonCode.NODE_LOST, ReasonCode.OUT_OF_MEMORY, ReasonCode.NODE_LOST):
        with pytest.raises(InfrastructureFault), station(ledger, line, "train", "model", "m", revision="same"):
            raise InfrastructureFault(reason, "why")
    failed = [e.reason for e in ledger.unit_history(line, "m") if e.event is EventKind.FAILED]
    assert failed == [ReasonCode.NODE_LOST, ReasonCode.OUT_OF_MEMORY]


def test_the_body_may_choose_the_event(ledger: Ledger, line: str) -> None:
    with station(ledger, line, "train", "model", "m") as work:
        work.event, work.reason, work.revision = EventKind.SCRAPPED, ReasonCode.GAIN_NOT_PROVEN, "late"
    scrapped = ledger.unit_history(line, "m")[-1]
    assert (scrapped.event, scrapped.reason) == (EventKind.SCRAPPED, ReasonCode.GAIN_NOT_PROVEN)
    assert scrapped.key == event_key(line, "train", "m", EventKind.SCRAPPED, "late")


# --- queries
def test_events_are_found_by_every_part(ledger: Ledger, line: str) -> None:
    ledger.record_many(
        [
            event(line, unit="a", at=START, partition="2026-03-01"),
            event(line, unit="b", at=START + timedelta(days=1), station="train", partition="2026-03-02"),
            event(line, unit="b", at=START + timedelta(days=2), event=EventKind.PROMOTED, station="deploy"),
        ]
    )

    def found(**wanted: Any) -> list[tuple[str, str]]:
        return [(e.unit, e.station) for e in ledger.events(line=line, **wanted)]

    everything = [("a", "ingest"), ("b", "train"), ("b", "deploy")]
    assert found() == everything
    assert found(station="train") == everything[1:2]
    assert found(unit="b") == everything[1:]
    assert found(kind=EventKind.PROMOTED) == everything[2:]
    assert found(partition="2026-03-01") == everything[:1]
    assert found(since=START + timedelta(days=1)) == everything[1:]
    assert found(limit=2) == everything[1:]
    assert ledger.events(line=f"not {line}") == []


def test_counts_and_scrap_pareto(ledger: Ledger, line: str) -> None:
    def held(reason: ReasonCode, **changes: Any) -> ProductionEvent:
        return event(line, event=EventKind.HELD, reason=reason, **changes)

    ledger.record_many(
        [
            held(ReasonCode.COLUMN_TYPE),
            held(ReasonCode.VALUE_NULL),
            held(ReasonCode.VALUE_NULL, at=START - timedelta(days=9)),
            event(line, event=EventKind.SCRAPPED, station="train", reason=ReasonCode.CALIBRATION),
            event(line, event=EventKind.OVERRIDDEN, reason=ReasonCode.OPERATOR),
            event(line),
        ]
    )
    assert ledger.counts(line) == {
        ("ingest", EventKind.HELD): 3,
        ("ingest", EventKind.OVERRIDDEN): 1,
        ("ingest", EventKind.PASSED): 1,
        ("train", EventKind.SCRAPPED): 1,
    }
    assert ledger.counts(line, since=START)["ingest", EventKind.HELD] == 2
    assert list(ledger.reasons(line).items()) == [
        (ReasonCode.VALUE_NULL, 2),
        (ReasonCode.CALIBRATION, 1),
        (ReasonCode.COLUMN_TYPE, 1),
    ]
    assert ledger.reasons(line, station="train") == {ReasonCode.CALIBRATION: 1}


def test_sums_count_the_last_end_of_a_unit_alone(ledger: Ledger, line: str) -> None:
    day = {"unit": "2026-03-01", "partition": "2026-03-01"}
    ledger.record_many(
        [
            event(line, **day, event=EventKind.STARTED, num_in=100),
            event(line, **day, event=EventKind.HELD, reason=ReasonCode.VALUE_NULL, num_in=100, num_bad=60),
            event(line, **day, num_in=100, num_good=90, num_bad=10),
            event(line, **day, event=EventKind.REWORKED, num_in=110, num_good=105, num_bad=5),
            event(line, **day, event=EventKind.OVERRIDDEN, num_in=5, num_good=5),
            event(line, unit="2026-03-02", partition="2026-03-02", num_in=7, num_good=7),
            event(line, unit="c0ffee", unit_kind="dataset", partition="2026-03-02", num_in=1, num_good=1),
        ]
    )
    assert ledger.sums(line, "ingest", "batch") == {
        "2026-03-01": Sums(1, 110, 105, 5),
        "2026-03-02": Sums(1, 7, 7, 0),
    }


def test_the_newest_event_of_some_kinds_of_each_unit(ledger: Ledger, line: str) -> None:
    good, held = EventKind.PASSED, EventKind.HELD
    why = {"event": held, "reason": ReasonCode.FEATURE_GATE}
    ledger.record_many([event(line, unit="a"), event(line, unit="b"), event(line, unit="a", **why)])
    ledger.record(event(line, unit="a", unit_kind="dataset"))
    ledger.record(event(line, unit="c", **why))

    def newest(*kinds: EventKind) -> dict[str, EventKind]:
        return {u: e.event for u, e in ledger.newest(line, "ingest", "batch", ["a", "b", "x"], kinds).items()}

    assert newest(good, held) == {"a": held, "b": good}
    assert newest(good) == {"a": good, "b": good}
    assert ledger.newest(line, "ingest", "batch", [], [good]) == {}


def test_passages_are_the_basis_of_lead_times(ledger: Ledger, line: str) -> None:
    def at(minutes: int, kind: EventKind, unit: str, **changes: Any) -> ProductionEvent:
        return event(line, unit=unit, event=kind, at=START + timedelta(minutes=minutes), **changes)

    ledger.record_many(
        [
            at(0, EventKind.STARTED, "a"),
            at(1, EventKind.HELD, "a", reason=ReasonCode.VALUE_NULL, duration_s=60.0),
            at(30, EventKind.STARTED, "a"),
            at(32, EventKind.PASSED, "a", duration_s=120.0),
            at(5, EventKind.STARTED, "b"),
        ]
    )
    a, b = ledger.passages(line, "ingest", "batch")
    assert (a.unit, a.started, a.worked_s, a.lead_time_s) == ("a", START, 180.0, 32 * 60.0)
    assert (b.unit, b.good, b.lead_time_s) == ("b", None, None)
