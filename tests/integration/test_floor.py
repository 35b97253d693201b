"""The floor's queries and API on a real ledger and store; Airflow's side is played, the real one is in `tests/e2e`."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from bench.floorhistory import LineOfHistory, night
from fastapi import FastAPI
from fastapi.testclient import TestClient

from aifactory import quarantine
from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.floor import genealogy, history, overview, waiting
from aifactory.floor.plan import plan_of, tick_s
from aifactory.kpi import cost, leadtime, record, reliability, stations
from aifactory.landing import LandedTable
from aifactory.ledger import BAD, EventKind, ProductionEvent
from aifactory.line import LineSpec, load_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY
from aifactory.stages import ingest
from orchestration import floorapi
from orchestration.floorairflow import AirflowSide, Approval, DagNow

pytestmark = pytest.mark.integration

NUM_NIGHTS = 40
PRICES = cost.Prices("EUR", unit_hour=1.5, kwh=0.3, power_w=40)


class User:
    """Who asks."""

    def get_name(self) -> str:
        return "ann"


@dataclass
class PlayedAirflow(AirflowSide):
    """Airflow's answers as a test wants them."""

    readable: set[str] = field(default_factory=set)
    editable: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    waiting: list[Approval] = field(default_factory=list)

    def may_read(self, user: Any, lines: Iterable[str]) -> set[str]:
        return self.readable & set(lines)

    def may_read_of(self, user: Any, folders: Iterable[str]) -> set[str]:
        return self.readable & set(folders)

    def may_edit(self, user: Any, lines: Iterable[str]) -> set[str]:
        return self.editable & set(lines)

    def dags(self, lines: Any) -> dict[str, DagNow]:
        ids = [f"{line}.{station}" for line in lines for station in record.STATIONS]
        return {dag_id: DagNow(False, int(dag_id in self.running), 0, "run 1") for dag_id in ids}

    def approvals(self, lines: Any) -> list[Approval]:
        return [each for each in self.waiting if each.dag_id.rpartition(".")[0] in lines]

    def ledger_runs(self, dag_id: str, run_id: str) -> list[str]:
        return [run_id]


@dataclass
class Floor:
    """Two lines with history, a third without, and a client."""

    f: Factory
    specs: list[LineSpec]
    events: dict[str, list[ProductionEvent]]
    airflow: PlayedAirflow
    client: TestClient
    now: datetime

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        answer = self.client.get(f"/api/v1{path}", params={k: v for k, v in query.items() if v is not None})
        assert answer.status_code == status, answer.text
        return answer.json()

    def pages(self, path: str, limit: int, **query: Any) -> list[Any]:
        """The items of all pages."""
        items: list[Any] = []
        cursor = None
        while True:
            page = self.get(path, limit=limit, cursor=cursor, **query)
            assert len(page["items"]) <= limit
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items


@pytest.fixture
def floor(factory: Factory, tmp_path: Path) -> Floor:
    mark = uuid.uuid4().hex[:6]
    text = yaml.safe_load((REPOSITORY / "include" / "lines" / "flight_delay" / "line.yaml").read_text())
    specs = []
    for name in (f"a_{mark}", f"b_{mark}", f"c_{mark}"):
        folder = tmp_path / "lines" / name
        folder.mkdir(parents=True)
        (folder / "line.yaml").write_text(yaml.safe_dump(text | {"line": name, "title": f"Line {name}"}))
        specs.append(load_line(folder))
    now = datetime.now(UTC)
    events = {spec.line: _history(spec.line, now) for spec in specs[:2]} | {specs[2].line: []}
    for each in events.values():
        factory.ledger.record_many(each)
    own = Factory(factory.settings.model_copy(update={"lines_dir": tmp_path / "lines"}))
    names = {spec.line for spec in specs}
    airflow = PlayedAirflow(set(names), {specs[0].line})
    app = floorapi.create_app()
    _let_in(app, own, airflow)
    return Floor(own, specs, events, airflow, TestClient(app, raise_server_exceptions=False), now)


def _let_in(app: FastAPI, f: Factory, airflow: PlayedAirflow) -> None:
    from airflow.api_fastapi.core_api.security import get_user

    app.dependency_overrides |= {
        get_user: User,
        floorapi.factory: lambda: f,
        floorapi.airflow_side: lambda: airflow,
    }


def _history(name: str, now: datetime) -> list[ProductionEvent]:
    line = LineOfHistory(name, random.Random(name[0]))
    last = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    made = [e for n in range(NUM_NIGHTS) for e in night(line, last - timedelta(days=NUM_NIGHTS - 1 - n))]
    line.made = []
    day = (last - timedelta(days=3)).date().isoformat()
    at = now - timedelta(hours=3)
    for kind in (EventKind.PASSED, EventKind.REWORKED):  # as ingest tells of a corrected day
        line.tell(
            "ingest", "batch", day, kind, at, duration_s=12.0, num_in=9, num_good=9, partition=day, run_id="again"
        )
    line.tell("train", "model", "o9/challenger", EventKind.STARTED, now - timedelta(hours=1))
    back = {"version": "1", "from": str(line.version), "to": "1", "by": "ann", "why": "slow"}
    line.tell(
        "deploy", "model", str(line.version), EventKind.ROLLED_BACK, at, reason=ReasonCode.ROLLED_BACK, detail=back
    )
    lost = {"reason": ReasonCode.NODE_LOST, "duration_s": 50.0}
    line.tell("score", "predictions", "2020-01-01", EventKind.FAILED, now - timedelta(hours=2), **lost)
    line.tell("ingest", "batch", "late run", EventKind.HELD, at, reason=ReasonCode.DEADLINE_MISSED, run_id="late run")
    return made + line.made


# --- SQL and the pure functions say the same
def test_the_overview_sums_up_what_the_kpis_give(floor: Floor) -> None:
    begin, end = floor.now - timedelta(days=30), floor.now + timedelta(seconds=1)
    lines = [spec.line for spec in floor.specs]
    plans = {spec.line: plan_of(spec) for spec in floor.specs}
    with floor.f.ledger.reading() as connection:
        made = overview.made(connection, plans, begin, end, PRICES)
        wip = overview.wip(connection, lines, end)
        read = {line: history.events_between(connection, line, begin, end) for line in lines}
    for line in lines[:2]:
        mine = [e for e in floor.events[line] if begin <= e.at < end]
        figures = [stations.figures(mine, s, end) for s in record.STATIONS]
        spent = cost.cost(mine, PRICES)
        assert made[line].cost.work_s == pytest.approx(spent.work_s)
        assert made[line].cost.gpu_s == spent.gpu_s > 0
        assert made[line].cost.money == pytest.approx(spent.money)
        assert made[line].cost.estimated_money == pytest.approx(spent.estimated_money)
        assert made[line].num_predictions == figures[3].num_rows_good > 0
        named = stations.bottleneck(figures, plans[line])
        assert named is not None
        assert made[line].bottleneck == (named[0], pytest.approx(named[1]))
        assert wip[line] == len(record.in_progress(mine, end)) == 1
        assert [stations.figures(read[line], s, end) for s in record.STATIONS] == figures
        assert figures[3].is_down
        assert figures[0].num_rework >= 1
    assert lines[2] not in made


def _any_history(line: str, chance: random.Random, begin: datetime) -> list[ProductionEvent]:
    """Anything that can happen to a line in three days, much of it at one instant, though not to one product."""
    made: list[ProductionEvent] = []
    taken = set()
    for n in range(chance.randrange(120)):
        station, at = chance.choice(record.STATIONS), begin + timedelta(hours=chance.randrange(72))
        unit = chance.choice(["1", "2", "3", "1/refit"] if station == "train" else ["1", "2", "3", "4"])
        place = station, unit.partition("/")[0], at
        if place in taken:
            continue
        taken.add(place)
        good, bad = EventKind.PASSED, [EventKind.FAILED, EventKind.HELD, EventKind.SCRAPPED]
        if station == "deploy":
            good, bad = EventKind.PROMOTED, [EventKind.FAILED, EventKind.ROLLED_BACK, EventKind.DECIDED]
        kind = chance.choice([EventKind.STARTED, good, good, *bad])
        worked = kind not in (EventKind.STARTED, EventKind.DECIDED)
        reasons = [ReasonCode.VALUE_NULL, ReasonCode.NODE_LOST, ReasonCode.NODE_LOST, ReasonCode.DEADLINE_MISSED]
        detail = {EventKind.ROLLED_BACK: {"to": "9"}, EventKind.DECIDED: {"stage": "canary"}}.get(kind, {})
        one = ProductionEvent(
            line=line,
            station=station,
            unit_kind=record.PRODUCT[station],
            unit=unit,
            event=kind,
            key=f"{line} {n:03d}",
            reason=chance.choice(reasons) if kind in BAD else None,
            at=at,
            duration_s=chance.choice([0.0, 60.0, 5000.0]) if worked else 0.0,
            money=chance.choice([0.0, 0.0, 2.0]) if worked else 0.0,
            num_good=chance.randrange(100) if worked else 0,
            run_id=chance.choice("ab"),
            detail=dict(detail),
        )
        made.append(one)
        if station == "ingest" and kind is EventKind.PASSED and chance.random() < 0.3:
            made.append(replace(one, event=EventKind.REWORKED, key=f"{one.key} again"))
    return made


def test_the_overview_sums_up_what_the_kpis_give_of_any_history(factory: Factory) -> None:
    mark, begin = uuid.uuid4().hex[:6], datetime(2026, 3, 1, tzinfo=UTC)
    end = begin + timedelta(days=2)
    events = {f"{mark}_{n}": _any_history(f"{mark}_{n}", random.Random(n), begin) for n in range(60)}
    factory.ledger.record_many([e for mine in events.values() for e in mine])
    told = {line: [e for e in mine if begin <= e.at < end] for line, mine in events.items()}
    figures = {(line, s): stations.figures(mine, s, end) for line, mine in told.items() for s in record.STATIONS}
    assert sum(f.num_outages > 1 for f in figures.values()) > 20
    for station in record.STATIONS:
        plan = stations.Plan({station: 3600.0})  # so that this station's load is what the overview tells
        with factory.ledger.reading() as connection:
            made = overview.made(connection, dict.fromkeys(events, plan), begin, end, PRICES)
        assert set(made) == {line for line, mine in told.items() if record.works(mine)}
        for line, found in made.items():
            load = figures[line, station].load(plan)
            assert found.bottleneck == (None if load is None else (station, pytest.approx(load)))
            assert found.num_predictions == figures[line, "score"].num_rows_good
            assert found.num_good_models == reliability.change_failures(told[line])[0]
            spent = cost.cost(told[line], PRICES)
            assert (found.cost.work_s, found.cost.money) == (pytest.approx(spent.work_s), pytest.approx(spent.money))


def test_a_version_that_was_gone_back_to_is_promoted(floor: Floor) -> None:
    line = f"back_{uuid.uuid4().hex[:6]}"
    steps = [(EventKind.PROMOTED, {}), (EventKind.DECIDED, {"stage": "loading"})]
    steps += [(EventKind.DECIDED, {"stage": "promoted"})]
    states = []
    for n, (kind, detail) in enumerate(steps):
        at = floor.now + timedelta(minutes=n)
        floor.f.ledger.record(
            ProductionEvent(line, "deploy", "model", "3", kind, f"{line} {n}", at=at, detail=detail, run_id="back")
        )
        with floor.f.ledger.reading() as connection:
            unit = genealogy.units_of(connection, floor.specs[0].model_copy(update={"line": line}))["model", "3"]
        states.append((unit.state, unit.good))
    assert states == [("promoted", True), ("decided", None), ("promoted", True)]


def test_the_lives_of_releases_hold_all_that_lead_times_need(floor: Floor) -> None:
    line = floor.specs[0].line
    begin, end = floor.now - timedelta(days=14), floor.now
    with floor.f.ledger.reading() as connection:
        found = leadtime.lead_times(history.lives_of_releases(connection, line, begin, end))
    everything = leadtime.lead_times(floor.events[line])
    assert found == [each for each in everything if begin <= each.released < end]
    assert found
    assert all(each.bake_s > 0 and each.touch_s > 0 for each in found)


def test_ticks_of_a_cron() -> None:
    assert tick_s("0 6 * * *") == 86400
    assert tick_s("*/30 * * * *") == 1800


# --- who sees what
def test_a_line_that_one_may_not_read_is_not_there(floor: Floor) -> None:
    hidden, seen = floor.specs[0].line, floor.specs[1].line
    floor.airflow.readable = {seen}
    overview_ = floor.get("/overview")
    assert [card["line"] for card in overview_["lines"]] == [seen]
    assert overview_["totals"]["num_lines"] == 1
    assert hidden not in str(overview_)
    assert {item["line"] for item in floor.get("/attention")["items"]} == {seen}
    for path in ("", "/trends", "/gates", "/windows", "/rollouts", "/pareto", "/lead-times", "/units", "/attention"):
        floor.get(f"/lines/{hidden}{path}", status=404)
    for path in ("/quarantine", "/units/model/1", "/runs?dag_id=x&run_id=y", "/quarantine/flights/2026-01-01"):
        floor.get(f"/lines/{hidden}{path}", status=404)
    assert floor.client.post(f"/api/v1/lines/{hidden}/acknowledgements", json={}).status_code in {404, 422}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text | {"nonsense": 1}, "nonsense: Extra inputs are not permitted (got 1)"),
        (lambda text: text | {"schedule": {"cron": "61 6 * * *"}}, "schedule.cron: cron never ticks by '61 6 * * *'"),
        (lambda text: "[", "is not YAML: "),
    ],
)
def test_a_line_that_is_not_valid_is_told_to_who_may_read_it_and_the_others_go_on(
    floor: Floor, edit: Any, words: str
) -> None:
    bad, seen, _ = (spec.line for spec in floor.specs)
    file = floor.f.settings.lines_dir / bad / "line.yaml"
    was = file.read_text()
    new = edit(yaml.safe_load(was))
    file.write_text(new if isinstance(new, str) else yaml.safe_dump(new))
    os.utime(file, ns=(1, 1))

    found = floor.get("/overview")
    assert sorted(card["line"] for card in found["lines"]) == sorted(spec.line for spec in floor.specs[1:])
    assert found["totals"]["num_lines"] == 2
    [told] = found["invalid"]
    assert told["folder"] == bad
    assert told["message"].startswith(words)
    assert str(floor.f.settings.lines_dir) not in told["message"], (
        "where the plant keeps its files is nobody's business"
    )
    assert floor.get("/overview", q="no such", limit=1)["invalid"] == [told]
    floor.get("/attention")
    for path in ("", "/trends", "/gates", "/units", "/attention", "/quarantine"):
        floor.get(f"/lines/{seen}{path}")
        assert floor.get(f"/lines/{bad}{path}", status=500)["detail"].startswith(f"{bad}/line.yaml: {words}")
    floor.airflow.readable = {seen}
    assert floor.get("/overview")["invalid"] == []
    assert bad not in floor.client.get(f"/api/v1/lines/{bad}").json()["detail"].replace(repr(bad), "")
    floor.get(f"/lines/{bad}", status=404)

    floor.airflow.readable = {spec.line for spec in floor.specs}
    file.write_text(was)
    assert floor.get("/overview")["invalid"] == []
    floor.get(f"/lines/{bad}")


@pytest.fixture
def airflow_tables() -> Iterator[None]:
    """The tables of Airflow, empty, as long as a test runs."""
    from airflow import settings
    from airflow.models import import_all_models
    from airflow.models.base import Base

    import_all_models()
    Base.metadata.create_all(settings.get_engine())
    yield
    Base.metadata.drop_all(settings.get_engine())


def test_airflow_says_who_may_read_of_a_line_of_which_it_has_no_dag(airflow_tables: None) -> None:
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    create_auth_manager()
    may = AirflowSide().may_read_of
    assert may(SimpleAuthManagerUser(username="ann", role="viewer"), ["bad_line"]) == {"bad_line"}
    assert may(SimpleAuthManagerUser(username="bob", role=None), ["bad_line"]) == set()
    assert may(SimpleAuthManagerUser(username="ann", role="viewer"), []) == set()


def test_without_a_login_nothing_is_told(floor: Floor) -> None:
    from airflow.api_fastapi.core_api.security import get_user

    del floor.client.app.dependency_overrides[get_user]  # type: ignore[attr-defined]
    for path in ("/api/v1/overview", "/api/openapi.json", "/", "/assets/x.js"):
        assert floor.client.get(path).status_code == 401, path


# --- every route
def test_the_overview_puts_first_what_waits(floor: Floor) -> None:
    found = floor.get("/overview", days=30)
    assert [card["state"] for card in found["lines"]] == ["attention", "attention", "never_run"]
    card = found["lines"][0]
    assert card["champion"]["version"] == "1"
    assert card["champion"]["put_back"] is True
    assert [g["station"] for g in card["gates"]] == list(record.STATIONS)
    assert [g["light"] for g in card["gates"]][2:4] == ["red", "green"], "a lost node is no gate's word"
    assert card["sparkline"] == sorted(card["sparkline"], key=lambda point: point["day"])
    assert len(card["sparkline"]) == 30
    assert {w["kind"] for w in card["waiting"]} == {"failed", "late"}
    assert found["totals"]["num_waiting"] == 4
    assert found["totals"]["cost"]["money"] == pytest.approx(sum(c["cost"]["money"] for c in found["lines"]))
    first = floor.get("/overview", limit=2)
    second = floor.get("/overview", limit=2, cursor=first["next_cursor"])
    assert [c["line"] for c in [*first["lines"], *second["lines"]]] == [c["line"] for c in found["lines"]]
    assert second["next_cursor"] is None
    assert [c["line"] for c in floor.get("/overview", q="LINE C_")["lines"]] == [floor.specs[2].line]
    floor.airflow.running = {f"{floor.specs[2].line}.train"}
    assert floor.get("/overview", state="running")["lines"][0]["running"] == ["train"]


def test_the_line_page_tells_the_kpis(floor: Floor) -> None:
    line = floor.specs[0].line
    found = floor.get(f"/lines/{line}", days=30)
    mine = [e for e in floor.events[line] if e.at >= floor.now - timedelta(days=30)]
    train = stations.figures(mine, "train", floor.now)
    [told] = [s for s in found["kpis"]["stations"] if s["station"] == "train"]
    assert (told["num_units"], told["num_good"]) == (train.num_units, train.num_good)
    assert told["oee"]["ideal_source"] == "demonstrated"
    assert told["takt_s"] == 7 * 86400
    assert [s["state"] for s in found["kpis"]["stations"]] == ["idle", "idle", "idle", "down", "idle"]
    assert found["kpis"]["bottleneck"] == found["card"]["bottleneck"] | {
        "load": pytest.approx(found["card"]["bottleneck"]["load"], rel=1e-3)
    }
    assert found["kpis"]["dora"]["change_failure_rate"] > 0
    assert found["kpis"]["lead_time"]["total"]["num"] == found["kpis"]["throughput"]["num_good_models"]
    empty = floor.get(f"/lines/{floor.specs[2].line}")
    assert empty["kpis"]["line_mtbf"] == {"value_s": 0, "more_than": True, "num": 0}, "nobody has watched it yet"
    long = floor.get(f"/lines/{floor.specs[1].line}", days=1000)["kpis"]["model_mtbf"]
    assert 0 < long["value_s"] < (NUM_NIGHTS + 2) * 86400
    assert empty["kpis"]["rolled_yield"] is None
    assert empty["card"]["champion"] is None


def test_trends_add_up(floor: Floor) -> None:
    line = floor.specs[0].line
    points = floor.get(f"/lines/{line}/trends", days=28, bucket="day")["points"]
    whole = floor.get(f"/lines/{line}", days=28)["kpis"]
    assert len(points) == 28
    assert sum(p["money"] for p in points) == pytest.approx(whole["cost"]["money"])
    assert sum(p["num_good_models"] for p in points) == whole["throughput"]["num_good_models"]


def test_panels_are_paged_without_loss(floor: Floor) -> None:
    line = floor.specs[0].line
    gates = floor.pages(f"/lines/{line}/gates", limit=37)
    assert gates == floor.pages(f"/lines/{line}/gates", limit=200)
    assert len({(g["station"], g["unit"], g["event"], g["at"]) for g in gates}) == len(gates) > 120
    assert all(g["passed"] for g in floor.pages(f"/lines/{line}/gates", limit=50, passed="true"))
    assert {g["station"] for g in floor.pages(f"/lines/{line}/gates", limit=50, station="score")} == {"score"}
    windows = floor.pages(f"/lines/{line}/windows", limit=11)
    assert [w["day"] for w in windows] == sorted((w["day"] for w in windows), reverse=True)
    assert len(windows) == NUM_NIGHTS
    rollouts = floor.pages(f"/lines/{line}/rollouts", limit=2)
    assert rollouts == floor.pages(f"/lines/{line}/rollouts", limit=200)
    assert rollouts[0]["outcome"] == "rolled_back"
    assert rollouts[0]["by"] == "ann"
    assert rollouts[1]["outcome"] == "promoted"
    assert [s["stage"] for s in rollouts[1]["steps"]][:3] == ["loading", "self_tested", "shadow"]
    units = floor.pages(f"/lines/{line}/units", limit=60)
    assert len({(u["kind"], u["unit"]) for u in units}) == len(units) > 160
    floor.get(f"/lines/{line}/gates", status=422, cursor="?")
    floor.get(f"/lines/{line}/gates", status=422, limit=0)


def test_pareto_and_lead_times(floor: Floor) -> None:
    line = floor.specs[0].line
    found = floor.get(f"/lines/{line}/pareto")
    assert {item["reason"]: item["kind"] for item in found["items"]}["NODE_LOST"] == "infrastructure"
    assert found["items"][-1]["cumulative_share"] == 1
    assert found["quarantined"]["VALUE_NULL"] > 0
    times = floor.get(f"/lines/{line}/lead-times")
    for each in times["items"]:
        parts = each["queue_s"] + each["touch_s"] + each["approval_s"] + each["bake_s"]
        assert parts == pytest.approx(each["total_s"])
    assert times["summary"]["total"]["p50_s"] > 0


def test_the_genealogy_goes_both_ways(floor: Floor) -> None:
    spec = floor.specs[0]
    with floor.f.ledger.reading() as connection:
        units = genealogy.units_of(connection, spec)
    models = sorted((u for u in units.values() if u.kind == "model"), key=lambda u: int(u.unit))
    version = models[-2]  # the last was taken back
    found = floor.get(f"/lines/{spec.line}/units/model/{version.unit}")
    assert found["unit"]["external_href"].endswith(f"/models/{spec.line}/versions/{version.unit}")
    by_kind: dict[str, list[str]] = {}
    for node in found["nodes"]:
        by_kind.setdefault(node["kind"], []).append(node["unit"])
    assert by_kind["order"] == [version.facts["order_id"]]
    assert by_kind["dataset"] == [version.facts["dataset_revision"]]
    learned = [d for d in by_kind["batch"] if d <= version.facts["trained_until"]]
    assert learned == by_kind["batch"]
    assert version.facts["trained_until"] in learned
    scored = {
        u.unit for u in units.values() if u.kind == "predictions" and u.facts.get("model_version") == version.unit
    }
    assert set(by_kind["predictions"]) == scored
    assert scored
    ids = {node["id"] for node in found["nodes"]}
    assert all(link["source"] in ids and link["target"] in ids for link in found["links"])
    assert [e["event"] for e in found["events"]][-1] == "promoted"

    touched = floor.get(f"/lines/{spec.line}/units/batch/{learned[-1]}")
    kinds = {node["kind"] for node in touched["nodes"]}
    assert kinds == {"landing", "batch", "dataset", "order", "model", "predictions", "window"}
    assert f"model:{version.unit}" in {node["id"] for node in touched["nodes"]}
    assert floor.get(f"/lines/{spec.line}/units/model/999", status=404)["detail"] == f"{spec.line} has no model '999'"
    floor.get(f"/lines/{spec.line}/units/engine/1", status=422)
    run = floor.get(f"/lines/{spec.line}/runs", dag_id=f"{spec.line}.ingest", run_id=f"scheduled__{learned[-1]}")
    assert {u["kind"] for u in run["items"]} == {"batch", "dataset"}


# --- what waits
def test_what_is_seen_to_waits_no_more(floor: Floor) -> None:
    mine, other = floor.specs[0].line, floor.specs[1].line
    [failed] = [w for w in floor.get(f"/lines/{mine}/attention")["items"] if w["kind"] == "failed"]
    assert failed["may_acknowledge"] is True
    word = {"id": failed["id"], "why": "the node was replaced"}
    assert floor.client.post(f"/api/v1/lines/{other}/acknowledgements", json=word).status_code == 403
    missing = {"id": "no such", "why": "whatever"}
    assert floor.client.post(f"/api/v1/lines/{mine}/acknowledgements", json=missing).status_code == 404
    assert floor.client.post(f"/api/v1/lines/{mine}/acknowledgements", json={"id": failed["id"]}).status_code == 422
    answer = floor.client.post(f"/api/v1/lines/{mine}/acknowledgements", json=word)
    assert answer.json()["by"] == "ann"
    assert [w["kind"] for w in floor.get(f"/lines/{mine}/attention")["items"]] == ["late"]
    [recorded] = floor.f.ledger.events(line=mine, kind=EventKind.ACKNOWLEDGED)
    assert recorded.detail == {"acknowledges": failed["id"], "by": "ann", "why": "the node was replaced"}


def test_a_hold_waits_until_its_unit_is_good(floor: Floor) -> None:
    line = floor.specs[2].line

    def tell(kind: EventKind, minutes: float, **rest: Any) -> None:
        at = datetime.now(UTC) - timedelta(minutes=minutes)
        event = ProductionEvent(line, "ingest", "batch", "2026-01-02", kind, uuid.uuid4().hex, at=at, **rest)
        floor.f.ledger.record(event)

    def waits() -> list[str]:
        with floor.f.ledger.reading() as connection:
            return [w.kind for w in waiting.waiting(connection, [line], datetime.now(UTC))]

    tell(EventKind.HELD, 9, reason=ReasonCode.VOLUME_ABNORMAL)
    assert waits() == ["held"]
    tell(EventKind.HELD, 8, reason=ReasonCode.VOLUME_ABNORMAL)
    assert waits() == ["held"], "one unit waits once"
    tell(EventKind.PASSED, 7)
    assert waits() == []


def test_what_the_raw_gate_holds_leads_to_the_quarantine_and_refused_features_to_the_batch(floor: Floor) -> None:
    line = floor.specs[2].line
    hold = ProductionEvent(
        line, "ingest", "batch", "2026-01-02", EventKind.HELD, uuid.uuid4().hex, ReasonCode.VOLUME_ABNORMAL
    )
    refused = {"reason": ReasonCode.FEATURE_GATE, "detail": {"step": ingest.FEATURE_STEP}}
    floor.f.ledger.record_many([hold, replace(hold, unit="2026-01-03", key=uuid.uuid4().hex, **refused)])
    hrefs = {w["unit"]: w["href"] for w in floor.get(f"/lines/{line}/attention")["items"]}
    assert hrefs["2026-01-02"].endswith("/quarantine")
    assert hrefs["2026-01-03"].endswith("/units/batch/2026-01-03")


def test_a_store_that_is_away_at_ingest_is_on_the_record_and_waits_until_the_run_goes_on(floor: Floor) -> None:
    spec = floor.specs[2]
    away = Factory(floor.f.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(InfrastructureFault):
        ingest.gate_raw(away, spec, ["2026-01-01", "2026-01-02"], "r1")
    [fault] = floor.f.ledger.events(line=spec.line)
    assert (fault.event, fault.unit, fault.reason) == (EventKind.FAILED, "2026-01-02", ReasonCode.STORE_UNREACHABLE)
    figures = stations.figures([fault], "ingest", datetime.now(UTC))
    assert (figures.num_units, figures.is_down) == (0, True)
    assert [w["kind"] for w in floor.get(f"/lines/{spec.line}/attention")["items"]] == ["failed"]
    version = ProductionEvent(
        spec.line, "ingest", "dataset", "c0ffee", EventKind.PASSED, uuid.uuid4().hex, run_id="r1", duration_s=1.0
    )
    floor.f.ledger.record(version)
    assert floor.get(f"/lines/{spec.line}/attention")["items"] == []
    assert not stations.figures([fault, version], "ingest", datetime.now(UTC)).is_down


def test_an_approval_waits_in_airflow(floor: Floor) -> None:
    line = floor.specs[0].line
    floor.airflow.waiting = [Approval(f"{line}.deploy", "r/1", "approve", "Release version 7?", floor.now)]
    approval = floor.get(f"/lines/{line}/attention")["items"][0]
    assert (approval["kind"], approval["may_acknowledge"]) == ("approval", False)
    assert approval["href"] == f"/dags/{line}.deploy/runs/r%2F1/tasks/approve/required_actions"


# --- quarantine
@pytest.fixture
def held_rows(floor: Floor) -> str:
    """A day with four rows in quarantine; gives the ETag of its file."""
    spec, day = floor.specs[0], "2026-02-03"
    table = pa.table({"carrier": ["AA", "UA", None, "B6"], "flight": [1, 2, 3, 4]})
    landed = LandedTable("flights", table, f"s3://landing/flights/{day}.parquet", "etag1")
    null = (ReasonCode.VALUE_NULL.value, "carrier is not null")
    double = (ReasonCode.KEY_DUPLICATE.value, "the key is unique")
    quarantine.write(floor.f, spec, day, landed, {0: double, 1: double, 2: null, 3: double})
    told = {"quarantined": {"flights": {"KEY_DUPLICATE (the key is unique)": 3, "VALUE_NULL (carrier is not null)": 1}}}
    floor.f.ledger.record(
        ProductionEvent(
            spec.line, "ingest", "batch", day, EventKind.PASSED, uuid.uuid4().hex, num_in=9, num_good=5, num_bad=4,
            detail=told | {"docs": "reports/x/index.html"},
        )
    )  # fmt: skip
    return landed.etag


def test_quarantined_rows_are_released_and_dropped(floor: Floor, held_rows: str) -> None:
    spec, day = floor.specs[0], "2026-02-03"
    [batch] = [b for b in floor.pages(f"/lines/{spec.line}/quarantine", limit=20) if b["day"] == day]
    assert (batch["table"], batch["num_rows"], batch["held"]) == ("flights", 4, False)
    assert batch["docs_href"] == "/reports/x/index.html"
    path = f"/lines/{spec.line}/quarantine/flights/{day}"
    rows = floor.pages(path, limit=3)
    assert [r["row_number"] for r in rows] == [0, 1, 2, 3]
    assert rows[2]["row"] == {"carrier": None, "flight": 3}
    assert rows[2]["sentence"] == ReasonCode.VALUE_NULL.sentence
    assert [r["row_number"] for r in floor.pages(path, limit=9, reason="VALUE_NULL")] == [2]

    def decide(status: int = 200, **changes: Any) -> Any:
        word = {"decision": "released", "row_numbers": [2], "source_etag": held_rows, "why": "carrier was told by mail"}
        answer = floor.client.post(f"/api/v1{path}/decisions", json=word | changes)
        assert answer.status_code == status, answer.text
        return answer.json()

    decide(409, source_etag="another")
    decide(409, row_numbers=[77])
    decide(422, row_numbers=[])
    decide(422, why="")
    assert decide()["num_rows"] == 1
    assert decide(decision="dropped", row_numbers=[0, 1])["decision"] == "dropped"
    assert quarantine.decisions(floor.f, spec, "flights", day, held_rows) == {2: "released", 0: "dropped", 1: "dropped"}
    decided = floor.pages(path, limit=9)
    assert [r["decision"] for r in decided] == ["dropped", "dropped", "released", "pending"]
    assert decided[2]["by"] == "ann"
    assert [r["row_number"] for r in floor.pages(path, limit=9, decision="pending")] == [3]
    released, _ = floor.f.ledger.events(line=spec.line, kind=EventKind.OVERRIDDEN)
    assert (released.detail["by"], released.detail["why"]) == ("ann", "carrier was told by mail")
    floor.airflow.editable = set()
    decide(403)
    floor.get(f"/lines/{spec.line}/quarantine/nothing/{day}", status=404)
    floor.get(f"/lines/{spec.line}/quarantine/flights/yesterday", status=422)


# --- the page
def test_what_leaves_is_declared_and_the_page_asks_nobody_else(floor: Floor) -> None:
    schema = floor.client.get("/api/openapi.json").json()
    assert "/api/v1/overview" in schema["paths"]
    assert schema["components"]["schemas"]["LineCard"]["additionalProperties"] is False
    assert floor.client.get("/api/v1/nothing").status_code == 404
    assert floor.client.get("/../floorapi.py").status_code == 404
    assert floor.client.get("/assets/missing.js").status_code == 404
    assert floor.client.get("/%00").status_code == 404
    policy = floorapi.HEADERS["Content-Security-Policy"]
    assert "http" not in policy
    assert "default-src 'none'" in policy


def test_a_ledger_that_does_not_answer_is_a_503_without_its_address(floor: Floor) -> None:
    from pydantic import SecretStr

    dsn = "postgresql+psycopg2://ledger:secret@127.0.0.1:9/ledger"
    away = Factory(floor.f.settings.model_copy(update={"ledger_dsn": SecretStr(dsn)}))
    _let_in(floor.client.app, away, floor.airflow)  # type: ignore[arg-type]
    answer = floor.client.get("/api/v1/overview")
    assert answer.status_code == 503
    assert "127.0.0.1" not in answer.text
