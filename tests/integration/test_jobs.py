"""Jobs: what a program with a pod's rights makes, through S3 alone, is what the task itself makes."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.model_rows import small_line
from tests.served import commit_days, contents, serve
from tests.training_lines import REQUEST, shipped

from aifactory import scoring
from aifactory.errors import InfrastructureFault, TrainingDefect
from aifactory.factory import Factory
from aifactory.jobs import key
from aifactory.line import LineSpec, find_line
from aifactory.reasons import ReasonCode
from aifactory.stages import ingest, train
from aifactory.stages.score import score
from aifactory.training.launch import environment
from outside.flights import World
from plant.secrets import read_secrets

pytestmark = pytest.mark.integration

CarryOut = Callable[[str], dict[str, Any]]


def as_a_pod(f: Factory, line: LineSpec) -> CarryOut:
    """Runs the program as a pod does: with the trainer's key, without ledger and without the line's files."""
    secrets = read_secrets(f.settings.secrets_file)
    own = {
        "AIF_S3_ACCESS_KEY": secrets["PLANT_TRAINER_ACCESS_KEY"],
        "AIF_S3_SECRET_KEY": secrets["PLANT_TRAINER_SECRET_KEY"],
        "AIF_LINES_DIR": "/nowhere",
        "AIF_DATASET_GIT_ROOT": "/nowhere",
    }

    def run(job: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "aifactory.jobs", "--line", line.line, "--job", job]
        done = subprocess.run(
            command, env=environment(f.settings) | own, check=False, capture_output=True, text=True, timeout=120
        )
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
