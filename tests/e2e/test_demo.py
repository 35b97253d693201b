"""The whole plant: `make demo`'s own program on a real scheduler, then an operator's day on the plant that it leaves.

The tests of this folder share one plant and run in the order of the file: each leaves the plant as it found it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.running_plant import RunningPlant

import plant
from aifactory.ledger import EventKind
from aifactory.line import find_line
from aifactory.notices import Outbox
from aifactory.reasons import ReasonCode
from aifactory.store import Store
from plant.processes import plant_processes

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(2000)]

LINE = "flight_delay"


def test_the_demo_shows_what_it_promises(running: RunningPlant):
    report = running.report
    assert len(report["nights"]) >= 7
    for night in report["nights"]:
        assert night["rows_in"] == night["accepted"] + night["quarantined"] > 0
        assert 0.5 < night["live_roc_auc"] < 1
        assert night["dataset_revision"]
        assert night["model_version"]
    assert any(r["reason"] in {"DRIFT", "CADENCE_DUE"} for r in report["retrains"])
    assert any(r["deliberate"] for r in report["refused"])
    assert report["peak_memory_gb"] <= 4.0
    assert set(report["phases_s"]) >= {"install", "start", "data", "training", "release"}


def test_no_caller_notices_a_release(running: RunningPlant):
    """Promotion and rollback under live traffic: every request is answered, a bad model by somebody else."""
    traffic = running.report["traffic"]
    assert traffic["sent"] == traffic["answered"] > 1000
    assert traffic["failed"] == 0
    [back] = running.report["rolled_back"]
    assert back["reason"] in {"SHADOW_MISMATCH", "CANARY_SCORES_SHIFTED"}
    assert traffic["by_version"].keys() >= {n["model_version"] for n in running.report["nights"]}


def test_the_plant_in_containers_tells_the_same(running: RunningPlant, demo_reports: dict[str, Any]):
    """The same nights and numbers, as far as both played, but for seconds and for commits, which name their time."""
    other = demo_reports.get("containers")
    if other is None or other["history"]["last_day"] != running.report["history"]["last_day"]:
        pytest.skip("the tests of the containers have not shown the demo of this day before")
    apart = {"dataset_revision", "seconds"}
    ours, theirs = (
        [{k: v for k, v in night.items() if k not in apart} for night in report["nights"]]
        for report in (running.report, other)
    )
    assert ours[: len(theirs)] == theirs != []


def test_revisions_move_on_night_by_night(running: RunningPlant):
    revisions = [n["dataset_revision"] for n in running.report["nights"]]
    assert len(set(revisions)) == len(revisions)


def test_what_a_person_must_know_of_the_demo_was_told(running: RunningPlant):
    assert running.api.wait_run("plant.notices", running.api.trigger_dag("plant.notices")) == "success"
    told = Outbox(running.settings.ledger_dsn.get_secret_value()).notice_counts()
    assert told[LINE, "rollback"] == len(running.report["rolled_back"])
    assert told[LINE, "gate_failure"] >= len(running.report["refused"]) > 0


def test_every_station_is_in_the_ledger(running: RunningPlant):
    events = running.factory.ledger.events(line=LINE, limit=10_000)
    assert {e.station for e in events} >= {"ingest", "train", "deploy", "score", "feedback"}
    assert {e.event for e in events} >= {EventKind.PASSED, EventKind.SCRAPPED, EventKind.PROMOTED, EventKind.DECIDED}


def test_a_rerun_night_leaves_what_was_there(running: RunningPlant):
    day = running.report["nights"][-1]["day"]
    spec = find_line(running.settings.lines_dir, LINE)
    before = running.factory.datasets(spec).latest()
    predictions = running.factory.store.head(f"predictions/{LINE}/date={day}.parquet")
    run = running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": day})
    assert running.api.wait_run(f"{LINE}.ingest", run, timeout_s=300) == "success"
    after = running.factory.datasets(spec).latest()
    assert before is not None
    assert after is not None
    assert after.revision == before.revision
    assert running.factory.store.head(f"predictions/{LINE}/date={day}.parquet") == predictions


def test_a_truncated_day_is_refused_with_its_reason_and_then_taken(running: RunningPlant):
    settings = running.settings
    day = running.report["nights"][-1]["day"]
    spec = find_line(running.settings.lines_dir, LINE)
    key = spec.source.key("flights", day)
    landing = Store(
        settings,
        settings.landing_bucket,
        access_key=settings.world_access_key,
        secret_key=settings.world_secret_key.get_secret_value(),
    )
    good = landing.get(key)
    before = running.factory.datasets(spec).latest()
    landing.put(key, good[: len(good) // 2])
    try:
        run = running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": day})
        assert running.api.wait_run(f"{LINE}.ingest", run, timeout_s=300) == "failed"
        log = running.api.logs(f"{LINE}.ingest", run, "gate_raw")
        assert ReasonCode.LANDING_UNREADABLE.value in log
        tasks = {t["task_id"]: t for t in running.api.task_instances(f"{LINE}.ingest", run)}
        assert tasks["gate_raw"]["try_number"] == 1, "a defect is not retried"
        assert running.factory.datasets(spec).latest() == before
    finally:
        landing.put(key, good)
    run = running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": day})
    assert running.api.wait_run(f"{LINE}.ingest", run, timeout_s=300) == "success"


def test_a_backfill_takes_every_day_of_its_range_and_changes_nothing(running: RunningPlant):
    days = [night["day"] for night in running.report["nights"][-2:]]
    before = running.factory.datasets(find_line(running.settings.lines_dir, LINE)).latest()
    body = {
        "dag_id": f"{LINE}.ingest",
        "from_date": f"{days[0]}T00:00:00Z",
        "to_date": f"{days[1]}T00:00:00Z",
        "max_active_runs": 1,
        "reprocess_behavior": "completed",
    }
    running.api.request("POST", "/backfills", json=body)
    deadline = time.monotonic() + 300
    while True:
        made = [r for r in running.api.runs(f"{LINE}.ingest") if r.run_id.startswith("backfill")]
        if len(made) == 2 and all(r.state in {"success", "failed"} for r in made):
            break
        assert time.monotonic() < deadline, made
        time.sleep(1)
    assert sorted((r.partition_key, r.state) for r in made) == [(day, "success") for day in days]
    assert running.factory.datasets(find_line(running.settings.lines_dir, LINE)).latest() == before


def test_a_wrong_form_is_refused_at_once(running: RunningPlant):
    with pytest.raises(plant.PlantError, match=r"400.*partition"):
        running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": "yesterday"})


def test_rollback_by_form_and_back(running: RunningPlant):
    spec = find_line(running.settings.lines_dir, LINE)
    before = running.factory.registry(spec).champion()
    assert before is not None
    run = running.api.trigger_dag(f"{LINE}.rollback", conf={"why": "end-to-end test"})
    assert running.api.wait_run(f"{LINE}.rollback", run, timeout_s=300) == "success"
    after = running.factory.registry(spec).champion()
    assert after is not None
    assert after.version != before.version
    run = running.api.trigger_dag(f"{LINE}.rollback", conf={"version": before.version, "why": "and back"})
    assert running.api.wait_run(f"{LINE}.rollback", run, timeout_s=300) == "success"
    again = running.factory.registry(spec).champion()
    assert again is not None
    assert again.version == before.version


def test_reports_need_a_login(running: RunningPlant):
    keys = [o.key for o in running.factory.store.list(f"reports/{LINE}/") if o.key.endswith(".html")]
    assert keys
    url = f"{running.settings.airflow_url}/{keys[0]}"
    assert httpx.get(url).status_code in {401, 403}
    api = running.api
    assert api.import_errors() == {}
    answer = api.client.get(url)
    assert answer.status_code == 200
    assert "html" in answer.headers["content-type"]


def test_metrics_are_of_the_ledger_and_need_a_login(running: RunningPlant):
    url = f"{running.settings.airflow_url}/floor/metrics"
    assert httpx.get(url).status_code in {401, 403}
    api = running.api
    assert api.import_errors() == {}
    answer = api.client.get(url)
    assert answer.status_code == 200
    promoted = {e.unit for e in running.factory.ledger.events(line=LINE, kind=EventKind.PROMOTED)}
    assert f'aifactory_good_models{{line="{LINE}"}} {len(promoted)}.0' in answer.text


def test_power_cut(running: RunningPlant):
    before = running.factory.store.get_json(f"serving/{LINE}/champion.json")
    runs = {r.run_id for r in running.api.runs(f"{LINE}.ingest")}
    victims = plant_processes(running.settings.home)
    assert len(victims) > 5
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=20)
    done = running.command("up", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert running.factory.store.get_json(f"serving/{LINE}/champion.json") == before
    assert {r.run_id for r in running.api.runs(f"{LINE}.ingest")} >= runs
    day = running.report["nights"][-1]["day"]
    run = running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": day})
    assert running.api.wait_run(f"{LINE}.ingest", run, timeout_s=300) == "success"


def test_no_secret_in_any_log(running: RunningPlant):
    secrets = [
        line.split("=", 1)[1].strip()
        for line in (running.settings.home / "secrets" / "plant.env").read_text().splitlines()
        if any(word in line for word in ("PASSWORD", "SECRET", "DSN", "KEY"))
    ]
    assert secrets
    logs = [p for p in Path(running.settings.home).rglob("*.log") if p.stat().st_size < 50_000_000]
    for path in logs:
        text = path.read_text(errors="replace")
        for secret in secrets:
            assert len(secret) < 12 or secret not in text, f"a secret stands in {path}"
