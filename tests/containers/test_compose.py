"""The plant in containers: the demo, what is open and to whom, and nights during which every part is killed in turn.

The tests share one plant and run in the order of the file.
"""

from __future__ import annotations

import re
import socket
import stat
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.containers.engine import NUM_NIGHTS, PARTS, ContainerPlant, build_environment, docker, run

import plant
from aifactory.errors import FactoryError
from aifactory.serving.slot import Slot
from plant.demo import Night, Report
from plant.secrets import read_secrets

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2700)]

LINE = "flight_delay"
REST_S = 5.0


# --- before anything runs
def test_compose_says_what_to_do_where_there_are_no_secrets():
    environment = build_environment() | {"COMPOSE_PROJECT_NAME": "aif-never-made"}
    done = run("scripts/compose.sh", "config", environment=environment)
    assert done.returncode != 0
    assert "make compose-up" in done.stderr


def test_a_taken_port_is_named_with_its_setting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = build_environment() | {"COMPOSE_PROJECT_NAME": "aif-never-made", "AIF_MLFLOW_PORT": str(port)}
        environment["AIF_AIRFLOW_PORT"] = str(plant.free_ports()[0])
        done = run("scripts/compose.sh", "up", environment=environment)
    assert done.returncode == 1
    assert re.search(rf"port {port} is taken.*AIF_MLFLOW_PORT", done.stderr)


def test_no_engine_is_said_in_a_sentence():
    done = run("scripts/compose.sh", "up", environment=build_environment() | {"DOCKER_HOST": "unix:///nowhere.sock"})
    assert done.returncode == 1
    assert "engine does not answer" in done.stderr


# --- the demo
def test_the_report_is_the_one_of_the_embedded_plant(running: ContainerPlant):
    report = running.report
    assert set(report) == {f.name for f in fields(Report)}
    assert all(set(night) == {f.name for f in fields(Night)} for night in report["nights"])
    assert set(report["phases_s"]) >= {"install", "start", "data", "training", "release"}
    assert 0 < report["peak_memory_gb"] <= 4.0
    assert report["first_champion_s"] > 0


def test_the_nights_are_decided_as_in_the_embedded_plant(running: ContainerPlant):
    report = running.report
    assert len(report["nights"]) == NUM_NIGHTS
    for night in report["nights"]:
        assert night["rows_in"] == night["accepted"] + night["quarantined"] > 0
        assert 0.5 < night["live_roc_auc"] < 1
    assert len({night["dataset_revision"] for night in report["nights"]}) == NUM_NIGHTS
    assert [r["reason"] for r in report["refused"] if r["deliberate"]]
    versions, version = [], "1"
    for night in report["nights"]:  # a released model is in service from the night after its decision
        versions.append(version)
        released = re.search(r"v(\d+) released", night["decision"])
        version = released[1] if released else version
    assert [night["model_version"] for night in report["nights"]] == versions
    assert report["traffic"]["sent"] == report["traffic"]["answered"] > 1000
    assert [back["reason"] for back in report["rolled_back"]] != []


# --- what is open, and to whom
def test_only_the_uis_and_the_gateway_are_published_and_on_loopback(running: ContainerPlant):
    published: dict[str, list[tuple[str, int]]] = {}
    for part in PARTS:
        for bound in (running.inspect(part)["NetworkSettings"]["Ports"] or {}).values():
            for each in bound or ():
                published.setdefault(part, []).append((each["HostIp"], int(each["HostPort"])))
    assert published == {
        "airflow-api": [("127.0.0.1", running.settings.airflow_port)],
        "mlflow": [("127.0.0.1", running.settings.mlflow_port)],
        "serving": [("127.0.0.1", running.settings.serving_port)],
    }


def test_no_part_has_more_rights_than_it_needs(running: ContainerPlant):
    for part in PARTS:
        described = running.inspect(part)
        host = described["HostConfig"]
        assert described["Config"]["User"] in {"10001:10001", "70:70"}, part
        assert host["CapDrop"] == ["ALL"], part
        assert not host["CapAdd"], part
        assert host["SecurityOpt"] == ["no-new-privileges:true"], part
        assert host["RestartPolicy"]["Name"] == "unless-stopped", part
        assert host["Memory"] > 0, part
        assert host["ReadonlyRootfs"] or part == "airflow-scheduler", part


@pytest.mark.parametrize("part", ["outside-world", "serving"])
def test_who_needs_s3_alone_reaches_nothing_else(running: ContainerPlant, part: str):
    code = (
        "import socket\n"
        "def open_(host, port):\n"
        "    try: socket.create_connection((host, port), 2).close(); return True\n"
        "    except OSError: return False\n"
        "print([open_(h, p) for h, p in (('s3', 8333), ('s3', 8888), ('s3', 9333), ('postgres', 5432), "
        "('airflow-api', 8080), ('mlflow', 5500))])\n"
    )
    said = running.compose("exec", "-T", part, "python", "-c", code).stdout.strip()
    assert said == "[True, False, False, False, False, False]"


def test_a_part_sees_its_own_secrets_alone(running: ContainerPlant):
    secrets = read_secrets(running.folder / "secrets" / "plant.env")
    file = running.folder / "secrets" / "plant.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    scheduler = running.compose("exec", "-T", "airflow-scheduler", "cat", "/factory/var/secrets/plant.env").stdout
    world = running.compose("exec", "-T", "outside-world", "cat", "/factory/world/secrets/plant.env").stdout
    serving = running.compose("exec", "-T", "serving", "cat", "/factory/serving/secrets/plant.env").stdout
    assert secrets["AIF_S3_SECRET_KEY"] in scheduler
    for name in ("PLANT_POSTGRES_PASSWORD", "PLANT_S3_SECRET_KEY", "PLANT_SERVING_SECRET_KEY", "AIF_WORLD_SECRET_KEY"):
        assert secrets[name] not in scheduler
    assert dict(line.split("=", 1) for line in serving.split()) == {
        "AIF_S3_ACCESS_KEY": secrets["PLANT_SERVING_ACCESS_KEY"],
        "AIF_S3_SECRET_KEY": secrets["PLANT_SERVING_SECRET_KEY"],
        "AIF_VERIFYING_KEY": secrets["AIF_VERIFYING_KEY"],
    }
    assert {line.partition("=")[0] for line in world.split()} == {"AIF_WORLD_ACCESS_KEY", "AIF_WORLD_SECRET_KEY"}


def test_the_routes_of_notices_and_the_token_of_the_metrics_come_by_files_of_the_host(running: ContainerPlant):
    routes, token = (Path(running.environment[f"AIF_{n}_FILE"]).read_text() for n in ("NOTICES", "METRICS_TOKEN"))
    for part in ("airflow-dags", "airflow-scheduler"):
        told = running.compose("exec", "-T", part, "sh", "-c", 'cat "$AIF_NOTICES_FILE"')
        assert told.stdout == routes, told.stderr
    url = f"{running.settings.airflow_url}/floor/metrics"
    assert httpx.get(url, timeout=60).status_code in {401, 403}
    answer = httpx.get(url, headers={"authorization": f"Bearer {token.strip()}"}, timeout=60)
    assert answer.status_code == httpx.codes.OK
    assert f'aifactory_line_info{{line="{LINE}"' in answer.text


def test_no_secret_in_logs_descriptions_or_command_lines(running: ContainerPlant):
    secrets = read_secrets(running.folder / "secrets" / "plant.env")
    hidden = [v for k, v in secrets.items() if any(w in k for w in ("PASSWORD", "SECRET", "DSN")) and len(v) >= 12]
    assert len(hidden) > 8
    hidden.append(Path(running.environment["AIF_METRICS_TOKEN_FILE"]).read_text().strip())
    told = {"up.log": (running.folder / "up.log").read_text(), "logs": running.compose("logs", "--no-color").stdout}
    for part in PARTS:
        told[f"inspect {part}"] = docker("inspect", running.container(part))
        told[f"top {part}"] = docker("top", running.container(part), "-eo", "pid,args")
    for where, text in told.items():
        for secret in hidden:
            assert secret not in text, f"a secret stands in {where}"


def test_links_lead_where_a_browser_can_go(running: ContainerPlant):
    first = running.api.runs(f"{LINE}.train")[0]
    task = running.api.xcom(f"{LINE}.train", first.run_id, "train_challenger")
    assert task["mlflow_url"].startswith(f"http://127.0.0.1:{running.settings.mlflow_port}/")


def test_compose_up_again_changes_nothing(running: ContainerPlant):
    ids = {part: running.container(part) for part in PARTS}
    done = running.compose("up", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {part: running.container(part) for part in PARTS} == ids


# --- what is served
def _answers_golden_rows(running: ContainerPlant, served: dict[str, Any]) -> None:
    """Until the published port gives the golden scores for the golden rows."""
    deadline = time.monotonic() + 120
    with Slot("published by the gateway", f"127.0.0.1:{running.settings.serving_port}") as gateway:
        while True:
            try:
                return gateway.check_golden(LINE, served["version"], served)
            except FactoryError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _serve_the_champion(running: ContainerPlant) -> dict[str, Any]:
    """The champion, which a document now names."""
    champion = running.inside("night", running.report["nights"][-1]["day"])["champion"]
    found: dict[str, Any] = running.inside("serve", champion)
    return found


@pytest.fixture(scope="module")
def served(running: ContainerPlant) -> dict[str, Any]:
    """What serves before anything is killed; a night may release another."""
    return _serve_the_champion(running)


def test_what_a_document_names_is_served_on_the_published_port(running: ContainerPlant, served: dict[str, Any]):
    _answers_golden_rows(running, served)
    refused = httpx.post(f"http://127.0.0.1:{running.settings.serving_port}/v2/repository/index", timeout=10)
    assert refused.status_code == httpx.codes.NOT_FOUND


def _processes(running: ContainerPlant, name: str, *, kill: bool = False) -> set[int]:
    """Processes of the serving container whose command line has a word; on request killed."""
    code = (
        "import os, pathlib\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    try: words = (p / 'cmdline').read_text()\n"
        "    except OSError: continue\n"
        f"    if {name!r} in words and int(p.name) != os.getpid():\n"
        f"        {kill} and os.kill(int(p.name), 9)\n"
        "        print(p.name)\n"
    )
    done = running.compose("exec", "-T", "serving", "python", "-c", code)
    assert done.returncode == 0, done.stderr
    return {int(word) for word in done.stdout.split()}


@pytest.mark.parametrize("name", ["/envoy", "/tritonserver", "plant.control", "aifactory.serving.shipper"])
def test_a_program_of_serving_dies_and_is_started_without_the_others(
    running: ContainerPlant, served: dict[str, Any], name: str
):
    before = running.inspect("serving")["State"]["StartedAt"]
    killed = _processes(running, name, kill=True)
    assert killed
    deadline = time.monotonic() + 60
    while len(_processes(running, name) - killed) < len(killed):
        assert time.monotonic() < deadline, name
        time.sleep(0.5)
    _answers_golden_rows(running, served)
    assert running.inspect("serving")["State"]["StartedAt"] == before


# --- every part killed in turn, during a night
def _until(running: ContainerPlant, day: str, timeout_s: float) -> dict[str, Any]:
    """Wait until a night has come to rest, over errors of parts that are away; what the stores hold then."""
    deadline, quiet_since = time.monotonic() + timeout_s, 0.0
    active: Any = None
    while time.monotonic() < deadline:
        try:
            active = running.api.active_runs(prefix=f"{LINE}.")
        except plant.PlantError as error:
            active = error
        if active:
            quiet_since = 0.0
        elif not quiet_since:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > REST_S:
            seen: dict[str, Any] = running.inside("night", day)
            if seen["window"]:
                return seen
            quiet_since = 0.0
        time.sleep(1)
    raise AssertionError(f"night {day} has not come to rest within {timeout_s:.0f} s: {active}")


def _trigger(running: ContainerPlant, day: str) -> str:
    return running.api.trigger_dag(f"{LINE}.ingest", conf={"partition": day})


def _wait_for_work(running: ContainerPlant, run_id: str) -> None:
    """Until the first task of the run is at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(t["state"] in {"running", "success"} for t in running.api.task_instances(f"{LINE}.ingest", run_id)):
            return
        time.sleep(0.2)
    raise AssertionError(f"run {run_id} did not begin")


def _nothing_twice_nothing_lost(before: dict[str, Any], after: dict[str, Any], day: str) -> None:
    assert after["last_day"] == day
    assert after["days"] == before["days"] + 1
    assert after["version"] == before["version"] + 1, "one night is one dataset version"
    assert after["commits"] == before["commits"] + 1
    accepted = after["accepted"]
    assert accepted["num_in"] == accepted["num_accepted"] + accepted["num_quarantined"] > 0
    assert after["predictions"] == after["distinct_predictions"] == after["dataset_rows"] > 0
    assert after["doubled_keys"] == 0
    for unit in ("ingest batch", "ingest dataset", "score predictions", "feedback window"):
        assert after["events"].get(f"{unit} passed") == 1, after["events"]


@pytest.fixture(scope="module")
def nights(running: ContainerPlant) -> list[str]:
    days: list[str] = running.inside("days", running.report["nights"][-1]["day"], service="demo")
    assert len(days) > len(PARTS) + 2
    return days


@pytest.mark.parametrize(
    "part",
    [
        part if part in {"postgres", "airflow-scheduler"} else pytest.param(part, marks=pytest.mark.thorough)
        for part in PARTS
    ],
)
def test_a_night_survives_the_kill_of(running: ContainerPlant, nights: list[str], part: str):
    running.wait_healthy()
    before = running.inside("night", running.report["nights"][-1]["day"])
    day = next(d for d in nights if d > before["last_day"])
    running.inside("land", day, service="demo")
    run_id = _trigger(running, day)
    _wait_for_work(running, run_id)
    killed = running.compose("kill", "-s", "KILL", part)
    assert killed.returncode == 0, killed.stderr
    time.sleep(3)
    started = running.compose("start", part)  # what was killed by hand stays down until a hand starts it
    assert started.returncode == 0, started.stderr
    after = _until(running, day, 600)
    _nothing_twice_nothing_lost(before, after, day)
    assert [r for r in running.api.failed_runs(prefix=f"{LINE}.") if day in str(r)] == []


def test_everything_dies_at_once_and_comes_back_by_itself(running: ContainerPlant, nights: list[str]):
    running.wait_healthy()
    before = running.inside("night", running.report["nights"][-1]["day"])
    day = next(d for d in nights if d > before["last_day"])
    running.inside("land", day, service="demo")
    _wait_for_work(running, _trigger(running, day))
    restarts = {part: running.inspect(part)["RestartCount"] for part in PARTS}
    for part in PARTS:  # every process but the first dies, the first then ends: the engine starts the container again
        run(
            "docker", "exec", running.container(part), "sh", "-c", "kill -9 -1"
        )  # may itself die of it: no status to ask
    deadline = time.monotonic() + 60
    while any(running.inspect(part)["RestartCount"] == restarts[part] for part in PARTS):
        assert time.monotonic() < deadline, {part: running.inspect(part)["RestartCount"] for part in PARTS}
        time.sleep(1)
    running.wait_healthy()
    after = _until(running, day, 600)
    _nothing_twice_nothing_lost(before, after, day)


def test_stopped_and_started_it_goes_on_where_it_was(running: ContainerPlant):
    day = running.report["nights"][-1]["day"]
    before = running.inside("night", day)
    assert running.compose("down").returncode == 0
    assert running.compose("up", timeout=900).returncode == 0
    assert running.inside("night", day) == before


def test_after_all_that_a_model_serves_and_its_answers_reach_s3(running: ContainerPlant):
    served = _serve_the_champion(running)
    _answers_golden_rows(running, served)
    deadline = time.monotonic() + 120
    before = running.inside("logged", "a")
    _answers_golden_rows(running, served)
    while running.inside("logged", "a") < before + len(served["golden"]["outputs"]):
        assert time.monotonic() < deadline
