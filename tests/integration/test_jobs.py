"""Jobs: what a program with a pod's rights makes, through S3 alone, is what the task itself makes."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.model_rows import small_line
from tests.served import commit_days, contents, serve
from tests.training_lines import REQUEST, shipped

from aifactory import jobs, scoring
from aifactory.errors import Defect, InfrastructureFault, TrainingDefect
from aifactory.factory import Factory
from aifactory.jobs import key
from aifactory.ledger import EventKind
from aifactory.line import LineSpec, find_line
from aifactory.reasons import ReasonCode
from aifactory.stages import ingest, train
from aifactory.stages.score import score
from aifactory.store import Store
from aifactory.training.launch import environment
from aifactory.training.outcome import FAULT
from outside.flights import World
from plant.secrets import read_secrets

pytestmark = pytest.mark.integration

CarryOut = Callable[[str], dict[str, Any]]


def program(f: Factory, line: LineSpec, job: str) -> subprocess.CompletedProcess[str]:
    """The program as a pod runs it: with the trainer's key, without ledger and without the line's files."""
    secrets = read_secrets(f.settings.secrets_file)
    own = {
        "AIF_S3_ACCESS_KEY": secrets["PLANT_TRAINER_ACCESS_KEY"],
        "AIF_S3_SECRET_KEY": secrets["PLANT_TRAINER_SECRET_KEY"],
        "AIF_LINES_DIR": "/nowhere",
        "AIF_DATASET_GIT_ROOT": "/nowhere",
    }

    command = [sys.executable, "-m", "aifactory.jobs", "--line", line.line, "--job", job]
    return subprocess.run(
        command, env=environment(f.settings) | own, check=False, capture_output=True, text=True, timeout=120
    )


def as_a_pod(f: Factory, line: LineSpec) -> CarryOut:
    def run(job: str) -> dict[str, Any]:
        done = program(f, line, job)
        assert done.returncode == 0, done.stderr
        return f.store.get_json(key(line.line, job, ".result.json"))

    return run


def test_predictions_made_elsewhere_are_those_made_here(factory: Factory) -> None:
    f, line = factory, small_line()
    commit_days(f, line, "2013-01-30", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    scored = score(f, line, "2013-02-03", "run", as_a_pod(f, line))
    assert scored["days"] == ["2013-02-01", "2013-02-02", "2013-02-03"]
    elsewhere = contents(f, scoring.predictions_key(line.line, "")[:-8])
    assert len(elsewhere) == 3
    assert contents(f, "jobs/") == {}, "what was taken is removed"

    f.store.delete(f"predictions/{line.line}/index.json")
    assert score(f, line, "2013-02-03", "run")["num_rows"] == scored["num_rows"]
    assert contents(f, scoring.predictions_key(line.line, "")[:-8]) == elsewhere


def test_a_defect_leaves_no_job_and_a_fault_leaves_it_to_the_next_try(factory: Factory) -> None:
    f = factory
    line = small_line()
    commit_days(f, line, "2013-02-01", "2013-02-01")
    serve(f, line, ("1", "2013-01-31"))
    carry_out = as_a_pod(f, line)

    def lost(job: str) -> dict[str, Any]:
        carry_out(job)
        raise InfrastructureFault(ReasonCode.CLUSTER_UNREACHABLE, "away")

    with pytest.raises(InfrastructureFault):
        score(f, line, None, "run", lost)
    left = contents(f, "jobs/")
    assert len(left) == 3
    [result] = [name for name in left if name.endswith(".result.json")]

    def fails(job: str) -> dict[str, Any]:
        raise TrainingDefect(ReasonCode.TRAINING_FAILED, "a bug")

    other = line.model_copy(update={"scoring": line.scoring.model_copy(update={"min_coverage": 0.5})})
    with pytest.raises(TrainingDefect):
        score(f, other, None, "run", fails)
    assert contents(f, "jobs/") == left, "another spec is another job, and it is removed"

    def found(job: str) -> dict[str, Any]:
        assert key(line.line, job, ".result.json") == result
        return f.store.get_json(result)

    assert score(f, line, "2013-02-01", "run", found)["days"] == ["2013-02-01"]
    assert contents(f, "jobs/") == {}


def test_a_day_whose_model_is_bad_does_not_hold_up_the_days_before(factory: Factory) -> None:
    f, line = factory, small_line()
    commit_days(f, line, "2013-01-30", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"), ("2", "2013-02-01"))
    f.store.put("models/flight_delay/2/model.onnx", b"altered")
    with pytest.raises(Defect) as caught:
        score(f, line, None, "bad model", as_a_pod(f, line))
    assert caught.value.reason is ReasonCode.PACKAGE_INVALID
    assert [*scoring.scored_days(f, line).read()] == ["2013-02-01"]
    events = f.ledger.events(line=line.line, station="score", kind=EventKind.FAILED)
    [failed] = [e for e in events if e.run_id == "bad model"]
    assert (failed.reason, failed.partition) == (ReasonCode.PACKAGE_INVALID, "2013-02-02")


def test_a_job_that_fails_says_why_in_the_store_and_by_its_exit_code(factory: Factory) -> None:
    f, line = factory, small_line()
    asked = {"kind": "build_features", "spec": line.model_dump(mode="json")}
    f.store.put_json(
        key(line.line, "job", ".json"), asked | {"asked": {"days": ["2013-02-01"], "sql": "SELECT 1 FROM x"}}
    )
    done = program(f, line, "job")
    told = f.store.get_json(key(line.line, "job", ".failure.json"))
    assert done.returncode == 1, "a traceback: nobody foresaw it"
    assert (told["kind"], told["reason"]) == ("defect", "TRAINING_FAILED")
    assert "x" in told["message"]
    assert program(f, line, "absent").returncode == FAULT


def test_a_lost_job_is_removed_after_a_while(factory: Factory) -> None:
    f, line = factory, "flight_delay"
    now = datetime.now(UTC)
    for job, age_h in (("new", 1), ("old", 30)):
        f.store.put_json(key(line, job, ".json"), {"at": (now - timedelta(hours=age_h)).isoformat()})
        f.store.put(key(line, job, "/table.parquet"), b"")
    f.store.put(key(line, "late", ".result.json"), b"")
    assert jobs.prune(f, line, timedelta(days=1)) == ["late", "old"]
    assert sorted(contents(f, "jobs/")) == [key(line, "new", ".json"), key(line, "new", "/table.parquet")]


def test_the_key_of_pods_writes_candidates_and_jobs_alone(factory: Factory) -> None:
    f, secrets = factory, read_secrets(factory.settings.secrets_file)
    pod = Store(
        f.settings, f.settings.factory_bucket,
        access_key=secrets["PLANT_TRAINER_ACCESS_KEY"], secret_key=secrets["PLANT_TRAINER_SECRET_KEY"],
    )  # fmt: skip
    f.store.put("models/m", b"1")
    assert pod.get("models/m") == b"1"
    for allowed in ("candidates/x", "jobs/x"):
        pod.put(allowed, b"1")
        pod.delete(allowed)
    for forbidden in ("models/m", "predictions/x", "accepted/x", "dvc/x", "orders/x", "reports/x"):
        with pytest.raises(InfrastructureFault, match="AccessDenied"):
            pod.put(forbidden, b"1")
    with pytest.raises(InfrastructureFault, match="AccessDenied"):
        pod.delete("models/m")


def test_features_built_elsewhere_are_those_built_here(factory: Factory) -> None:
    f = factory
    line = find_line(f.settings.lines_dir, "flight_delay")
    world = World(f.settings, "2013-06-10", today=dt.date(2026, 9, 1))
    days = world.days("2013-01-02")[:2]
    world.land(days)
    gated = ingest.gate_raw(f, line, days, "run")
    ingest.build_features(f, line, gated["days"], "run")
    here = contents(f, "staging/")
    built = ingest.build_features(f, line, gated["days"], "run", as_a_pod(f, line))
    assert sorted(built["staged"]) == days
    assert contents(f, "staging/") == here
    assert contents(f, "jobs/") == {}


def test_a_challenger_judged_elsewhere_is_judged_alike(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    line = shipped(f, tmp_path, small_line())
    order = train.resolve_order(f, line, REQUEST)
    train.train(f, line, order["order_id"], "challenger")
    verdict = train.evaluate(f, line, order["order_id"], as_a_pod(f, line))
    report = f"reports/{line.line}/train/{order['order_id']}/evaluation.json"
    f.store.delete(report)
    again = train.evaluate(f, line, order["order_id"])
    assert verdict["passed"]
    for each in (verdict, again):
        each["metrics"].pop("latency_ms", None)
    assert verdict == again
    assert contents(f, "jobs/") == {}
