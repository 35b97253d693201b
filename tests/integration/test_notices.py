"""Notices in a real Postgres, sent to a real receiver over HTTP by the URL of an Airflow connection."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.log import redact

from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent, migrate
from aifactory.line import find_line
from aifactory.notices import FIRST_PAUSE, LONGEST_PAUSE, MAX_TRIES, NoticeKind, Outbox, Routes
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY, Settings
from aifactory.stages import deploy
from orchestration.notices import tell

pytestmark = pytest.mark.integration

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")
LINES = {SPEC.line: SPEC}
NOW = datetime(2026, 3, 1, 6, tzinfo=UTC)
TO_DESK = Routes.model_validate({"routes": [{"to": ["desk"]}]})


@dataclass
class Receiver:
    """A webhook: what it was sent, and what it answers."""

    url: str = ""
    status: int = 200
    got: list[dict[str, Any]] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        return [each["title"] for each in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if state.status == 200:
                state.got.append(json.loads(body))
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"json://127.0.0.1:{server.server_port}/hook"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an Airflow connection, as the environment has them."""

    def make(name: str, config: Any) -> None:
        value = json.dumps({"conn_type": "apprise", "extra": {"config": config}})
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", value)

    return make


@pytest.fixture
def desk(connect: Any, receiver: Receiver) -> Receiver:
    connect("desk", {"path": receiver.url})
    return receiver


@pytest.fixture
def f(plant_settings: Settings) -> Iterator[Factory]:
    """A factory whose ledger is empty: a schema of its own."""
    address, schema = plant_settings.ledger_dsn.get_secret_value(), f"s_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(address, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    url = sa.make_url(address).update_query_dict({"options": f"-csearch_path={schema}"})
    dsn = url.render_as_string(hide_password=False)
    migrate(dsn)
    yield Factory(plant_settings.model_copy(update={"ledger_dsn": type(plant_settings.ledger_dsn)(dsn)}))
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))


@pytest.fixture
def outbox(f: Factory) -> Outbox:
    return Outbox(f.settings.ledger_dsn.get_secret_value())


def held(unit: str = "2026-02-28", **changes: Any) -> ProductionEvent:
    values: dict[str, Any] = {
        "line": SPEC.line, "station": "ingest", "unit_kind": "batch", "unit": unit, "event": EventKind.HELD,
        "key": uuid.uuid4().hex, "reason": ReasonCode.VOLUME_ABNORMAL, "partition": unit, "at": NOW,
        "detail": {"message": "flights: 12 rows, {{ 7 * 7 }}"},
    }  # fmt: skip
    return ProductionEvent(**values | changes)


def nobody(kind: NoticeKind, line: str) -> list[str]:
    return []


# --- told once
def test_a_held_batch_reaches_the_receiver_once_however_often_it_is_looked_for(f: Factory, desk: Receiver) -> None:
    f.ledger.record(held())
    assert tell(f, TO_DESK, LINES, NOW) == {"made": 1, "sent": 1, "failed": 0, "given_up": 0}
    assert tell(f, TO_DESK, LINES, NOW) == {"made": 0, "sent": 0, "failed": 0, "given_up": 0}
    [got] = desk.got
    assert got["title"] == "flight_delay: batch 2026-02-28 did not pass at ingest (VOLUME_ABNORMAL)"
    assert "flights: 12 rows, {{ 7 * 7 }}\n" in got["message"], "the words of a stage are no template"
    assert f"{f.settings.airflow_url}/dags/flight_delay.ingest" in got["message"]
    assert got["type"] == "failure"


def test_what_need_not_be_told_is_not(f: Factory, desk: Receiver) -> None:
    f.ledger.record_many([
        held(event=EventKind.PASSED, reason=None),
        held(event=EventKind.STARTED, reason=None),
        held(event=EventKind.FAILED, reason=ReasonCode.STORE_UNREACHABLE),
        held(event=EventKind.SCRAPPED, reason=ReasonCode.APPROVAL_REJECTED),
    ])  # fmt: skip
    assert tell(f, TO_DESK, LINES, NOW)["made"] == 0
    assert desk.got == []


def test_a_release_that_waits_is_told_and_its_waiting_is_on_the_record(f: Factory, desk: Receiver) -> None:
    for _ in range(2):  # the task may be tried again
        deploy.approval_asked(f, SPEC.line, "7", "run-1")
    tell(f, TO_DESK, LINES, NOW)
    assert desk.titles == ["flight_delay: the release of model 7 waits for a person (APPROVAL_WAITING)"]
    assert desk.got[0]["type"] == "warning"
    deploy.approval(f, SPEC, "7", "run-1", yes=True, by="ann")
    assert [(e.event, e.reason) for e in f.ledger.unit_history(SPEC.line, "7")] == [
        (EventKind.STARTED, ReasonCode.APPROVAL_WAITING), (EventKind.DECIDED, None),
    ]  # fmt: skip


def test_the_task_that_waits_for_a_person_puts_it_on_the_record(f: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.approval import approval

    monkeypatch.setenv("AIF_LEDGER_DSN", f.settings.ledger_dsn.get_secret_value())
    careful = SPEC.model_copy(update={"deployment": SPEC.deployment.model_copy(update={"tier": "high"})})

    class Pulls:
        def xcom_pull(self, *, task_ids: str) -> dict[str, str]:
            return {"propose": {"version": "7"}}[task_ids]

    with DAG("flight_delay.deploy", schedule=None):
        [notifier] = approval(careful, EmptyOperator(task_id="propose").output)[0].notifiers
    notifier({"ti": Pulls(), "run_id": "run-1"})
    [event] = f.ledger.unit_history(SPEC.line, "7")
    assert (event.station, event.event, event.reason, event.run_id) == (
        "deploy", EventKind.STARTED, ReasonCode.APPROVAL_WAITING, "run-1",
    )  # fmt: skip


def test_a_missed_deadline_is_told_as_the_callback_of_the_deadline_records_it(
    f: Factory, desk: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration import deadlines

    monkeypatch.setenv("AIF_LEDGER_DSN", f.settings.ledger_dsn.get_secret_value())
    for stage in ("train", "rollback", "notices", "capacity"):
        line, run_id = "plant" if stage in ("notices", "capacity") else SPEC.line, f"run-of-{stage}"
        asyncio.run(deadlines.report_late(line, stage, 20, {"dag_run": {"dag_run_id": run_id}}))
    tell(f, TO_DESK, LINES, NOW)
    assert [title.split(",")[0] for title in desk.titles] == [
        "flight_delay: train is late", "flight_delay: rollback is late", "plant: notices is late",
        "plant: capacity is late",
    ]  # fmt: skip


def test_each_channel_gets_what_its_routes_ask_for(f: Factory, connect: Any, receiver: Receiver) -> None:
    for name in ("credit", "gates", "calm"):
        connect(name, {"path": f"{receiver.url}?:channel={name}"})
    f.ledger.record_many([
        held("1"),
        held("2", event=EventKind.ROLLED_BACK, reason=ReasonCode.CANARY_ERRORS),
        held("3", line="loans"),
    ])  # fmt: skip
    credit = SPEC.model_copy(update={"line": "loans", "owner": SPEC.owner.model_copy(update={"team": "credit"})})
    routes = Routes.model_validate({"routes": [
        {"match": {"owners": ["credit"]}, "to": ["credit"]}, {"match": {"kinds": ["gate_failure"]}, "to": ["gates"]},
        {"match": {"tiers": ["high"]}, "to": ["calm"]},
    ]})  # fmt: skip
    tell(f, routes, LINES | {"loans": credit}, NOW)
    got = sorted((each["channel"], each["title"].split(" did")[0]) for each in receiver.got)
    assert got == [("credit", "loans: batch 3"), ("gates", "flight_delay: batch 1"), ("gates", "loans: batch 3")]


def test_without_routes_notices_go_to_the_log_alone(f: Factory, caplog: pytest.LogCaptureFixture) -> None:
    f.ledger.record(held())
    assert tell(f, Routes(), LINES, NOW)["made"] == 1
    assert "batch 2026-02-28 did not pass at ingest (VOLUME_ABNORMAL)" in caplog.text
    outbox = Outbox(f.settings.ledger_dsn.get_secret_value())
    assert outbox.notice_counts() == {("flight_delay", "gate_failure"): 1}
    assert outbox.delivery_counts() == {}


# --- the same again
def test_the_same_within_the_window_is_sent_once_and_counted_in_the_next(f: Factory, desk: Receiver) -> None:
    hour = timedelta(hours=1)
    for age in (0 * hour, 1 * hour, 2 * hour, 23 * hour):
        f.ledger.record(held())
        tell(f, TO_DESK, LINES, NOW + age)
    assert len(desk.got) == 1
    f.ledger.record(held())
    tell(f, TO_DESK, LINES, NOW + 24 * hour)
    assert len(desk.got) == 2
    assert "It has happened 3 more times since the last notice." in desk.got[1]["message"]
    f.ledger.record(held())
    tell(f, TO_DESK, LINES, NOW + 48 * hour)
    assert "more times" not in desk.got[2]["message"]


@pytest.mark.parametrize(
    "other",
    [{"unit": "2026-02-27"}, {"reason": ReasonCode.FRESHNESS}, {"line": "loans"}, {"event": EventKind.ROLLED_BACK}],
    ids=str,
)
def test_what_differs_in_unit_reason_line_or_kind_is_another_notice(
    f: Factory, desk: Receiver, other: dict[str, Any]
) -> None:
    f.ledger.record_many([held(), held(**other), held()])
    tell(f, TO_DESK, LINES, NOW)
    assert len(desk.got) == 2


def test_what_many_units_of_a_run_share_is_told_once_and_each_is_on_the_record(f: Factory, desk: Receiver) -> None:
    days = [f"2026-02-{day:02}" for day in range(1, 15)]
    f.ledger.record_many([held(day, run_id="backfill", reason=ReasonCode.FEATURE_GATE) for day in days])
    f.ledger.record(held(run_id="backfill", reason=ReasonCode.FRESHNESS))
    f.ledger.record(held("2026-03-09", run_id="another", reason=ReasonCode.FEATURE_GATE))
    assert tell(f, TO_DESK, LINES, NOW)["made"] == 16
    assert len(desk.got) == 3
    assert "batch 2026-02-01 did not pass at ingest, and 13 more of its run (FEATURE_GATE)" in desk.titles[0]
    assert not any("more of its run" in title for title in desk.titles[1:])
    f.ledger.record_many([held(day, run_id="again", reason=ReasonCode.FEATURE_GATE) for day in days])
    tell(f, TO_DESK, LINES, NOW + timedelta(hours=1))
    assert len(desk.got) == 3, "each of them was told, though in the name of the first"
    f.ledger.record_many([held(day, run_id="next night", reason=ReasonCode.FEATURE_GATE) for day in days])
    tell(f, TO_DESK, LINES, NOW + timedelta(hours=24))
    assert len(desk.got) == 4
    assert "It has happened 1 more times since the last notice." in desk.got[3]["message"]


# --- a channel that is away
def test_a_receiver_that_is_down_gets_it_when_it_is_back_once(
    f: Factory, desk: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    f.ledger.record_many([held("1"), held("2")])
    desk.status = 503
    assert tell(f, TO_DESK, LINES, NOW) == {"made": 2, "sent": 0, "failed": 1, "given_up": 0}
    assert "503" in caplog.text
    desk.status = 200
    assert tell(f, TO_DESK, LINES, NOW + FIRST_PAUSE / 2)["sent"] == 1, "the second was not tried yet"
    assert tell(f, TO_DESK, LINES, NOW + FIRST_PAUSE)["sent"] == 1
    assert tell(f, TO_DESK, LINES, NOW + timedelta(days=9))["sent"] == 0
    assert sorted(t.split(" did")[0] for t in desk.titles) == ["flight_delay: batch 1", "flight_delay: batch 2"]
    outbox = Outbox(f.settings.ledger_dsn.get_secret_value())
    assert outbox.delivery_counts() == {("desk", "sent"): 2}


def test_a_receiver_that_does_not_listen_holds_up_no_other(f: Factory, desk: Receiver, connect: Any) -> None:
    connect("dead", {"path": "json://127.0.0.1:9/"})
    f.ledger.record_many([held("1"), held("2")])
    routes = Routes.model_validate({"routes": [{"to": ["dead", "desk"]}]})
    assert tell(f, routes, LINES, NOW) == {"made": 2, "sent": 2, "failed": 1, "given_up": 0}
    assert len(desk.got) == 2


def test_what_never_arrives_is_given_up_told_and_counted(
    f: Factory, desk: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    f.ledger.record(held())
    desk.status = 500
    tries = [tell(f, TO_DESK, LINES, NOW + n * LONGEST_PAUSE) for n in range(MAX_TRIES + 2)]
    assert sum(each["failed"] for each in tries) == MAX_TRIES
    assert [each["given_up"] for each in tries] == [0] * (MAX_TRIES - 1) + [1, 0, 0]
    assert f"notice 1, try {MAX_TRIES}, given up: CHANNEL_FAILED" in caplog.text
    assert outbox.delivery_counts() == {("desk", "given_up"): 1}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "there is no such connection"),
        ({"url": "json://x"}, "`config` is not"),
        ([], "0 valid Apprise URLs"),
        ({"path": "no-such-scheme://x"}, "0 valid Apprise URLs"),
        ([{"path": "json://a"}, {"path": "json://b"}], "2 valid Apprise URLs"),
    ],
)
def test_a_connection_that_is_of_no_use_is_told_and_fails_nothing(
    f: Factory, outbox: Outbox, connect: Any, config: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    if config is not None:
        connect("desk", config)
    f.ledger.record(held())
    assert tell(f, TO_DESK, LINES, NOW)["failed"] == 1
    assert said in caplog.text
    assert outbox.delivery_counts() == {("desk", "waiting"): 1}


def test_a_url_that_cannot_be_read_is_masked_in_the_log(f: Factory, connect: Any) -> None:
    connect("desk", {"path": "no-such-scheme://host/T0K3N-of-the-desk"})
    f.ledger.record(held())
    tell(f, TO_DESK, LINES, NOW)
    assert "T0K3N" not in str(redact("Unparseable URL scheme://host/T0K3N-of-the-desk"))


# --- crashes and company
def test_who_dies_while_sending_leaves_it_to_be_sent_again_and_to_nobody_before(
    f: Factory, outbox: Outbox, desk: Receiver
) -> None:
    f.ledger.record(held())
    outbox.collect(lambda *_: ["desk"], timedelta(hours=1), NOW)
    assert outbox.claim(NOW) is not None  # and died
    assert tell(f, TO_DESK, LINES, NOW)["sent"] == 0
    assert tell(f, TO_DESK, LINES, NOW + FIRST_PAUSE)["sent"] == 1
    assert len(desk.got) == 1


def test_who_dies_while_collecting_has_collected_nothing(f: Factory, outbox: Outbox) -> None:
    f.ledger.record_many([held("1"), held("2")])

    def dies_on_the_second(kind: NoticeKind, line: str) -> list[str]:
        seen.append(line)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return []

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        outbox.collect(dies_on_the_second, timedelta(hours=1), NOW)
    assert [n.unit for n in outbox.collect(nobody, timedelta(hours=1), NOW)] == ["1", "2"]


def test_an_event_whose_transaction_ended_late_is_told_too(f: Factory, outbox: Outbox) -> None:
    """Its number is lower than that of one that was told already."""
    slow = sa.create_engine(f.settings.ledger_dsn.get_secret_value(), poolclass=sa.pool.NullPool)
    row = "INSERT INTO production_event (line, station, unit_kind, unit, event, key, reason) VALUES "
    with slow.begin() as connection:
        connection.execute(sa.text(row + "('x', 'ingest', 'batch', 'slow', 'held', 'slow', 'FRESHNESS')"))
        f.ledger.record(held("fast"))
        assert [n.unit for n in outbox.collect(nobody, timedelta(hours=1), NOW)] == ["fast"]
    assert [n.unit for n in outbox.collect(nobody, timedelta(hours=1), NOW)] == ["slow"]


def test_several_at_a_time_make_and_send_each_notice_once(f: Factory, desk: Receiver) -> None:
    f.ledger.record_many([held(str(n)) for n in range(12)])
    done: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: done.append(tell(f, TO_DESK, LINES, NOW))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each["made"] for each in done) == sum(each["sent"] for each in done) == len(set(desk.titles)) == 12
    assert len(desk.got) == 12


def test_what_happened_before_there_were_notices_is_told_to_nobody(plant_settings: Settings) -> None:
    """A plant of some years that is brought up to date."""
    from alembic import command
    from alembic.config import Config

    address, schema = plant_settings.ledger_dsn.get_secret_value(), f"s_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(address, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        connection.execute(sa.text(f"SET LOCAL search_path TO {schema}"))
        config = Config()
        config.set_main_option("script_location", str(REPOSITORY / "include" / "aifactory" / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    url = sa.make_url(address).update_query_dict({"options": f"-csearch_path={schema}"})
    dsn = url.render_as_string(hide_password=False)
    outbox = Outbox(dsn)
    outbox.record(held("old"))
    migrate(dsn)
    outbox.record(held("new"))
    assert [n.unit for n in outbox.collect(nobody, timedelta(hours=1), NOW)] == ["new"]
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))


def test_a_ledger_that_is_away_is_an_infrastructure_fault() -> None:
    with pytest.raises(InfrastructureFault):
        Outbox("postgresql+psycopg2://x:y@127.0.0.1:9/x").collect(nobody, timedelta(hours=1), NOW)
