"""The floor's figures of the demo's nights against a second reckoning: from the raw ledger and Airflow's own records.

The reckoning here shares no code with `aifactory.kpi`: it reads the ledger's table and Airflow's REST API.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from functools import cached_property
from statistics import median
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from tests.running_plant import RunningPlant

from aifactory.line import find_line
from plant.api import AirflowApi
from plant.secrets import ensure_secrets

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(2400)]

LINE = "flight_delay"
DAYS = 400
GOOD = {"passed", "reworked", "promoted"}
INFRASTRUCTURE = {
    "STORE_UNREACHABLE", "SERVER_UNREACHABLE", "GATEWAY_UNREACHABLE", "PROCESS_KILLED", "OUT_OF_MEMORY", "NODE_LOST",
    "DATASET_CONFLICT", "CHALLENGER_LOST", "CHALLENGER_SILENT", "CHAMPION_LOST", "ROLLOUT_STUCK", "DEADLINE_MISSED",
}  # fmt: skip
WORDS = {"NO_TRAFFIC", "ROLLOUT_SUPERSEDED", "ROLLOUT_ABORTED", "ROLLOUT_RUNNING", "OPERATOR", "ORPHAN_REMOVED"}


class Reckoning:
    """The second reckoning, from rows as they stand in the ledger between two instants."""

    def __init__(self, running: RunningPlant, begin: datetime, end: datetime) -> None:
        engine = sa.create_engine(running.settings.ledger_dsn.get_secret_value(), poolclass=sa.pool.NullPool)
        statement = sa.text(
            "SELECT * FROM production_event WHERE line = :line AND at >= :begin AND at < :end ORDER BY id"
        )
        with engine.connect() as connection:
            found = connection.execute(statement, {"line": LINE, "begin": begin, "end": end}).mappings()
            self.rows = [dict(row) for row in found]
        reworked = {(r["station"], r["unit"], r["at"]) for r in self.rows if r["event"] == "reworked"}
        self.done = [
            r
            for r in self.rows
            if (r["event"] in GOOD or r["reason"] or r["duration_s"] > 0)
            and r["event"] not in {"overridden", "acknowledged"}
            and not (r["event"] == "decided" and not r["duration_s"])
            and not (r["event"] == "passed" and (r["station"], r["unit"], r["at"]) in reworked)
        ]
        self.begin, self.end = begin, end

    def of(self, station: str, kind: str) -> list[dict[str, Any]]:
        return [r for r in self.done if r["station"] == station and r["unit_kind"] == kind]

    def ends(self, station: str, kind: str) -> dict[str, list[tuple[bool, dict[str, Any]]]]:
        """Good and bad ends of each product, oldest first."""
        found: defaultdict[str, list[tuple[bool, dict[str, Any]]]] = defaultdict(list)
        for r in self.of(station, kind):
            order, _, part = r["unit"].partition("/")
            unit = order if station == "train" else r["unit"]
            if r["event"] in GOOD and not (station == "train" and part):
                found[unit].append((True, r))
            elif (
                r["event"] in {"failed", "held", "scrapped", "rolled_back"}
                and r["reason"] not in INFRASTRUCTURE | WORDS
            ):
                found[unit].append((False, r))
                if r["event"] == "rolled_back" and r["detail"].get("to"):
                    found[r["detail"]["to"]].append((True, r))
        return dict(found)

    @cached_property
    def released(self) -> list[dict[str, Any]]:
        """The first promotion of each version."""
        first: dict[str, dict[str, Any]] = {}
        for r in self.of("deploy", "model"):
            if r["event"] == "promoted":
                first.setdefault(r["unit"], r)
        return list(first.values())


@pytest.fixture(scope="module")
def told(running: RunningPlant) -> dict[str, Any]:
    """What the API says of the line."""
    running.api.wait_dag(f"{LINE}.ingest")
    answer = running.api.client.get(f"/floor/api/v1/lines/{LINE}", params={"days": DAYS})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
def reckoned(running: RunningPlant, told: dict[str, Any]) -> Reckoning:
    begin, end = (datetime.fromisoformat(told["kpis"][name]) for name in ("begin", "end"))
    return Reckoning(running, begin, end)


@pytest.fixture(scope="module")
def stations(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {s["station"]: s for s in told["kpis"]["stations"]}


KINDS = {"ingest": "batch", "train": "model", "deploy": "model", "score": "predictions", "feedback": "window"}


@pytest.mark.parametrize("station", KINDS)
def test_units_and_yield_of_a_station(stations: Any, reckoned: Reckoning, station: str) -> None:
    ends = reckoned.ends(station, KINDS[station])
    good = {unit for unit, found in ends.items() if found[-1][0]}
    again = {unit for unit in good if any(not ok or r["event"] == "reworked" for ok, r in ends[unit])}
    said = stations[station]
    assert (said["num_units"], said["num_good"]) == (len(ends), len(good))
    assert (said["num_rework"], said["num_scrap"]) == (len(again), len(ends) - len(good))
    assert said["first_pass_yield"] == (len(good - again) / len(ends) if ends else None)
    lasts = [found[-1][1] for found in ends.values()]
    rows = (said["num_rows_in"], said["num_rows_good"], said["num_rows_bad"])
    assert rows == tuple(sum(r[name] for r in lasts) for name in ("num_in", "num_good", "num_bad"))


def test_rolled_yield_is_the_product(told: Any, stations: Any) -> None:
    product = 1.0
    for said in stations.values():
        product *= said["num_first_pass"] / said["num_units"]
    assert told["kpis"]["rolled_yield"] == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("station", KINDS)
def test_oee_of_a_station(stations: Any, reckoned: Reckoning, station: str) -> None:
    mine = sorted((r for r in reckoned.done if r["station"] == station), key=lambda r: (r["at"], r["id"]))
    broke = [r for r in mine if r["reason"] in INFRASTRUCTURE and r["reason"] != "DEADLINE_MISSED"]
    work = sum(r["duration_s"] for r in mine if r not in broke)
    steps: defaultdict[Any, list[datetime]] = defaultdict(list)
    for r in reckoned.rows:
        if r["station"] == station == "deploy" and r["event"] == "decided" and "stage" in r["detail"]:
            steps[r["unit"], r["run_id"]].append(r["at"])
    work += sum((max(at) - min(at)).total_seconds() for at in steps.values())
    down, since, last = 0.0, None, None
    for r in mine:
        start = r["at"] - timedelta(seconds=r["duration_s"])
        if r in broke:
            since, last = since or start, r["at"]
        elif since and last and r["duration_s"] > 0:
            down += (max(start, last) - since).total_seconds()
            since = None
    down += (reckoned.end - since).total_seconds() if since else 0.0
    said = stations[station]
    assert said["work_s"] == pytest.approx(work, rel=1e-9)
    assert said["down_s"] == pytest.approx(down, abs=1e-3)
    oee = said["oee"]
    assert oee["availability"] == pytest.approx(work / (work + down), rel=1e-6)
    assert oee["performance"] == pytest.approx(oee["ideal_cycle_s"] * said["num_units"] / work, rel=1e-9)
    assert oee["oee"] == pytest.approx(oee["availability"] * oee["performance"] * oee["quality"], rel=1e-9)


def test_cost_is_what_was_measured_and_the_rest_by_its_seconds(
    told: Any, reckoned: Reckoning, running: RunningPlant
) -> None:
    settings = running.settings
    measured = [r for r in reckoned.done if r["money"] or r["energy_kwh"] or r["gpu_s"]]
    hours = sum(r["duration_s"] for r in reckoned.done if r not in measured) / 3600
    kwh = hours * settings.threads * (settings.core_idle_w + settings.core_busy_w) * settings.pue / 1000
    money = sum(r["money"] for r in measured) + hours * settings.unit_hour + kwh * settings.energy_price_kwh
    cost = told["kpis"]["cost"]
    assert measured
    assert cost["energy_kwh"] == pytest.approx(sum(r["energy_kwh"] for r in measured) + kwh, rel=1e-9)
    assert cost["money"] == pytest.approx(money, rel=1e-9)
    assert told["kpis"]["money_per_good_model"] == pytest.approx(money / len(reckoned.released), rel=1e-9)


# --- against Airflow's own records
def _succeeded(api: AirflowApi, stage: str, task: str) -> dict[str, dict[str, Any]]:
    """Runs of a stage in which a task succeeded, with that task's instance."""
    found = {}
    for run in api.runs(f"{LINE}.{stage}"):
        for ti in api.task_instances(f"{LINE}.{stage}", run.run_id):
            if ti["task_id"] == task and ti["state"] == "success":
                found[run.run_id] = ti
    return found


def _seconds(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_releases_are_the_runs_that_promoted(running: RunningPlant, told: Any, reckoned: Reckoning) -> None:
    promoted = _succeeded(running.api, "deploy", "promote")
    assert {r["run_id"] for r in reckoned.released} == set(promoted)
    for r in reckoned.released:
        ti = promoted[r["run_id"]]
        assert _seconds(ti["start_date"]) <= r["at"] <= _seconds(ti["end_date"])
    dora, weeks = told["kpis"]["dora"], DAYS / 7
    assert told["kpis"]["throughput"]["num_good_models"] == len(promoted)
    assert dora["releases_per_week"] == pytest.approx(len(promoted) / weeks, rel=1e-9)
    back = {r["unit"] for r in reckoned.rows if r["event"] == "rolled_back" and r["detail"].get("to")}
    went_back = {r["run_id"] for r in reckoned.rows if r["event"] == "rolled_back" and r["detail"].get("to")}
    assert went_back <= {run.run_id for run in running.api.runs(f"{LINE}.rollback") if run.state == "success"}
    assert dora["change_failure_rate"] == len(back & {r["unit"] for r in reckoned.released}) / len(promoted)


def test_orders_are_the_training_runs(running: RunningPlant, stations: Any) -> None:
    registered, judged = (_succeeded(running.api, "train", task) for task in ("register", "evaluate"))
    assert stations["train"]["num_good"] == len(registered)
    assert stations["train"]["num_units"] == len(judged)


def test_nights_are_the_ingest_runs(running: RunningPlant, stations: Any, told: Any, reckoned: Reckoning) -> None:
    gated = _succeeded(running.api, "ingest", "gate_raw")
    batches = [r for r in reckoned.of("ingest", "batch") if r["event"] in GOOD]
    assert {r["run_id"] for r in batches} <= set(gated)
    for night in running.report["nights"]:
        last = [r for r in batches if r["unit"] == night["day"]][-1]
        assert (last["num_in"], last["num_good"]) == (night["rows_in"], night["accepted"])
    versions = [r for r in reckoned.of("ingest", "dataset") if r["event"] in GOOD]
    assert told["kpis"]["throughput"]["num_datasets"] == len({r["unit"] for r in versions})
    told_short = {n["dataset_revision"] for n in running.report["nights"]}
    assert told_short <= {r["unit"][:10] for r in versions}


def test_lead_times_run_from_the_landing_to_the_promotion(
    running: RunningPlant, told: Any, reckoned: Reckoning
) -> None:
    answer = running.api.client.get(f"/floor/api/v1/lines/{LINE}/lead-times", params={"days": DAYS}).json()
    gates = _succeeded(running.api, "ingest", "gate_raw")
    first: dict[str, dict[str, Any]] = {}
    for r in reckoned.rows:
        if r["station"] == "ingest" and r["unit_kind"] == "batch" and r["event"] == "started":
            assert "landed_at" in r["detail"]
            if r["detail"]["landed_at"]:
                first.setdefault(r["unit"], r)
    totals = []
    for r in reckoned.released:
        began = first[r["detail"]["trained_until"]]
        ti = gates[began["run_id"]]
        assert _seconds(ti["start_date"]) <= began["at"] <= _seconds(ti["end_date"])
        landed = datetime.fromisoformat(began["detail"]["landed_at"])
        assert landed <= began["at"], "store and worker are on one machine"
        totals.append((r["at"] - landed).total_seconds())
    assert sorted(each["total_s"] for each in answer["items"]) == pytest.approx(sorted(totals), abs=0.01)
    assert told["kpis"]["lead_time"]["total"]["p50_s"] == pytest.approx(median(totals), abs=0.01)
    for each in answer["items"]:
        assert each["queue_s"] + each["touch_s"] + each["approval_s"] + each["bake_s"] == pytest.approx(each["total_s"])
        assert each["touch_s"] > 0
        assert each["bake_s"] > 0 or each is answer["items"][0]


# --- the other pages
def test_the_genealogy_of_the_champion_matches_git_dvc_and_mlflow(running: RunningPlant) -> None:
    spec = find_line(running.settings.lines_dir, LINE)
    champion = running.factory.registry(spec).champion()
    assert champion is not None
    version = running.factory.registry(spec).version(champion.version)
    data = running.factory.datasets(spec).version(version.tags["dataset_revision"])
    answer = running.api.client.get(f"/floor/api/v1/lines/{LINE}/units/model/{champion.version}")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    of_kind: defaultdict[str, list[str]] = defaultdict(list)
    for node in found["nodes"]:
        of_kind[node["kind"]].append(node["unit"])
    assert of_kind["order"] == [version.order_id] == [version.tags["order_id"]]
    assert of_kind["dataset"] == [data.revision] == [champion.dataset_revision]
    learned = len(of_kind["batch"]) + found["left_out"].get("batch", 0)
    assert learned == data.num_partitions
    assert set(of_kind["batch"]) <= set(data.days)
    overview = running.api.client.get("/floor/api/v1/overview").json()
    [card] = overview["lines"]
    assert card["champion"]["version"] == champion.version
    assert card["champion"]["trained_until"] == champion.trained_until


def test_every_route_answers_on_a_plant_that_has_run(running: RunningPlant) -> None:
    get = running.api.client.get
    newest = get(f"/floor/api/v1/lines/{LINE}/windows").json()["items"][0]
    for path in ("/attention", f"/lines/{LINE}/trends", f"/lines/{LINE}/gates", f"/lines/{LINE}/rollouts",
                 f"/lines/{LINE}/pareto", f"/lines/{LINE}/units", f"/lines/{LINE}/attention",
                 f"/lines/{LINE}/quarantine", f"/lines/{LINE}/windows/{newest['day']}"):  # fmt: skip
        answer = get(f"/floor/api/v1{path}")
        assert answer.status_code == 200, f"{path}: {answer.text}"
    for gate in get(f"/floor/api/v1/lines/{LINE}/gates", params={"limit": 20}).json()["items"]:
        if gate["href"]:
            assert get(gate["href"]).status_code == 200, gate
    outcomes = Counter(r["outcome"] for r in get(f"/floor/api/v1/lines/{LINE}/rollouts").json()["items"])
    assert outcomes["promoted"] >= 2
    assert outcomes["rolled_back"] >= 1
    train = next(iter(_succeeded(running.api, "train", "register")))
    units = get(f"/floor/api/v1/lines/{LINE}/runs", params={"dag_id": f"{LINE}.train", "run_id": train}).json()["items"]
    assert {u["kind"] for u in units} == {"order"}


def test_a_viewer_reads_and_may_not_decide_and_a_stranger_gets_nothing(running: RunningPlant) -> None:
    url = f"{running.settings.airflow_url}/floor/api/v1"
    assert httpx.get(f"{url}/overview").status_code == 401
    assert httpx.get(f"{running.settings.airflow_url}/floor/api/openapi.json").status_code == 401
    secrets = ensure_secrets(running.settings)
    viewer = AirflowApi(running.settings, "viewer", secrets["PLANT_AIRFLOW_VIEWER_PASSWORD"])
    viewer.runs(f"{LINE}.ingest")
    [card] = viewer.client.get("/floor/api/v1/overview").json()["lines"]
    assert card["may_edit"] is False
    word = {"id": "whatever", "why": "because"}
    assert viewer.client.post(f"/floor/api/v1/lines/{LINE}/acknowledgements", json=word).status_code == 403
    assert running.api.client.post(f"/floor/api/v1/lines/{LINE}/acknowledgements", json=word).status_code == 404
