"""train with the real stores and the real program: from a request to a registered version, every step twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from pydantic import SecretStr
from tests.model_rows import NUMERIC, days_of, flights, small_line
from tests.training_lines import REQUEST, children, command_line, commit, shipped

from aifactory.errors import DatasetDefect, InfrastructureFault, PackageDefect, SpecError, TrainingDefect
from aifactory.evaluation import roc_auc
from aifactory.factory import Factory
from aifactory.judgement import is_refresh
from aifactory.ledger import EventKind
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.reasons import ReasonCode
from aifactory.stages import train
from aifactory.training.launch import environment, launch
from aifactory.training.run import candidate_prefix
from aifactory.training.tracking import Tracker

pytestmark = pytest.mark.integration


@pytest.fixture
def line(factory_mlflow: Factory, tmp_path: Path) -> LineSpec:
    """The small line, with 45 days in its dataset, as the training process finds it too."""
    return shipped(factory_mlflow, tmp_path, small_line())


def whole(f: Factory, spec: LineSpec, **request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """From request to version."""
    order = train.resolve_order(f, spec, REQUEST | request)
    train.train(f, spec, order["order_id"], "challenger")
    assert train.evaluate(f, spec, order["order_id"])["passed"]
    train.train(f, spec, order["order_id"], "refit")
    return order, train.register(f, spec, order["order_id"])


def test_the_whole_way_twice(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    order, made = whole(f, line)
    first = {o.key: o.etag for o in f.store.list("") if not o.key.startswith("mlflow/")}
    events = f.ledger.events(line=line.line, station="train")
    registry = f.registry(line)
    versions = registry.versions()

    again, made_again = whole(f, line)

    assert (again, made_again) == (order, made)
    assert {o.key: o.etag for o in f.store.list("") if not o.key.startswith("mlflow/")} == first
    assert len(registry.versions()) == len(versions) == 1
    mine = [e for e in f.ledger.events(line=line.line, station="train") if e.unit.startswith(order["order_id"])]
    assert [e.key for e in mine] == [e.key for e in events if e.unit.startswith(order["order_id"])]
    assert [e.event for e in mine if e.unit == order["order_id"]] == [EventKind.STARTED, EventKind.PASSED]

    package = load_package(f, made["package"])
    manifest = package.manifest
    assert manifest["dataset_revision"] == order["revision"]
    assert manifest["trained_until"] == "2013-02-14", "the refit has learned the newest day"
    assert manifest["holdout_days"] == order["days"]["holdout"]
    assert {"code_revision", "spec_digest", "signature", "seed", "metrics", "parameters"} <= set(manifest)
    challenger = load_package(f, candidate_prefix(line.line, order["order_id"], "challenger"))
    assert challenger.trained_until == "2013-02-07"
    assert challenger.profile["baseline"] == package.profile["baseline"]
    assert package.profile["num_rows"] > challenger.profile["num_rows"]
    assert set(package.profile["numeric"]) == set(NUMERIC)
    later = days_of("2013-02-15", "2013-02-28")
    later = later.filter(pc.is_valid(later["delayed"]))
    assert roc_auc(later["delayed"].to_numpy(), package.predict(later)) > 0.55
    assert versions[0].tags["dataset_revision"] == order["revision"]
    assert versions[0].tags["dir_md5"] == order["dir_md5"]
    assert "metric.roc_auc" in versions[0].tags


def test_mlflow_shows_the_training(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    order = train.resolve_order(f, line, REQUEST | {"recipe": "tabular_mlp"})
    made = train.train(f, line, order["order_id"], "challenger")
    client = Tracker(f.settings, line.line, order["order_id"], "challenger")._client
    run = client.get_run(made["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["order_id"] == order["order_id"]
    assert run.data.tags["dataset_revision"] == order["revision"]
    assert run.data.tags["dir_md5"] == order["dir_md5"]
    assert run.data.params["recipe"] == "tabular_mlp"
    curve = client.get_metric_history(made["run_id"], "train_loss")
    assert len({m.step for m in curve}) >= 2
    assert [a.path for a in client.list_artifacts(made["run_id"])] == ["manifest.json"]
    assert load_package(f, made["package"]).weights is not None


def test_a_handicapped_challenger_is_scrapped(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    _, made = whole(f, line)
    f.registry(line).switch(made["version"], expected_etag=None)
    commit(f, line, "2013-02-15", "2013-02-24")
    keep = {"carrier", "origin", "dest", "distance"}
    request = {
        "reason": "OPERATOR",
        "signal": "manual/1",
        "drop_features": [x for x in line.model.features if x not in keep],
    }
    order = train.resolve_order(f, line, request)
    assert min(order["days"]["holdout"]) > "2013-02-14"
    train.train(f, line, order["order_id"], "challenger")
    for _ in range(2):
        verdict = train.evaluate(f, line, order["order_id"])
        assert not verdict["passed"]
        assert verdict["kind"] == "another make"
    assert "GAIN_NOT_PROVEN" in {r["code"] for r in verdict["reasons"]}
    scrapped = [e for e in f.ledger.events(line=line.line, kind=EventKind.SCRAPPED) if e.unit == order["order_id"]]
    assert len(scrapped) == 1
    assert scrapped[0].reason is not None
    assert scrapped[0].detail["reasons"] == verdict["reasons"]
    assert b"Refused" in f.store.get(verdict["report"])
    tracker = Tracker(f.settings, line.line, order["order_id"], "challenger")
    tags = tracker._client.get_run(tracker.run_id).data.tags
    assert tags["verdict"] == "refused"
    assert "GAIN_NOT_PROVEN" in tags["refused_codes"]
    with pytest.raises(TrainingDefect, match="has not passed its evaluation"):
        train.register(f, line, order["order_id"])


def test_a_refresh_passes_and_the_mlp_goes_on_from_its_champion(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    base = small_line()
    spec = shipped(f, tmp_path, small_line(model={"recipe": "tabular_mlp"}))
    assert base.model.recipe == "gradient_boosting"
    _, made = whole(f, spec)
    f.registry(spec).switch(made["version"], expected_etag=None)
    commit(f, spec, "2013-02-15", "2013-02-24")
    order = train.resolve_order(f, spec, {"reason": "CADENCE_DUE", "signal": "cadence/1"})
    assert is_refresh(order)
    assert order["champion"]["version"] == made["version"]
    lines: list[str] = []
    launch(f.settings, spec.line, order["order_id"], "challenger", 300, lines.append)
    verdict = train.evaluate(f, spec, order["order_id"])
    assert verdict["kind"] == "refresh"
    assert verdict["gain"]["required"] == -spec.evaluation.refresh_margin
    assert any("step" in text and "train_loss" in text for text in lines)


def test_requests_that_cannot_be(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    with pytest.raises(SpecError, match="declares no recipe 'forest'"):
        train.resolve_order(f, line, REQUEST | {"recipe": "forest"})
    with pytest.raises(SpecError, match="no features"):
        train.resolve_order(f, line, REQUEST | {"drop_features": ["colour"]})
    with pytest.raises(DatasetDefect):
        train.resolve_order(f, line, REQUEST | {"revision": "0" * 40})
    with pytest.raises(TrainingDefect, match="no training order 'x'"):
        train.train(f, line, "x", "challenger")
    forced = train.resolve_order(f, line, REQUEST | {"force": True, "signal": "manual/2"})
    assert forced["order_id"] != train.resolve_order(f, line, REQUEST)["order_id"]


def test_a_package_that_was_tampered_with_is_refused(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    order = train.resolve_order(f, line, REQUEST)
    prefix = train.train(f, line, order["order_id"], "challenger")["package"]
    table = flights().slice(0, 50)
    expected = load_package(f, prefix).predict(table)
    for name in ("model.onnx", "manifest.json"):
        body = f.store.get(f"{prefix}/{name}")
        for place in (len(body) // 2, len(body) - 2):
            f.store.put(f"{prefix}/{name}", body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
            with pytest.raises(PackageDefect):
                load_package(f, prefix)
        f.store.put(f"{prefix}/{name}", body)
    assert np.array_equal(load_package(f, prefix).predict(table), expected)
    f.store.delete(f"{prefix}/model.onnx")
    with pytest.raises(PackageDefect, match="no whole package"):
        load_package(f, prefix)


def test_a_diverging_loss_fails_with_its_reason(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec = small_line()
    recipes = {name: recipe.model_dump() for name, recipe in spec.model.recipes.items()}
    recipes["tabular_mlp"]["parameters"] |= {"learning_rate": 1e30, "epochs": 4}
    spec = shipped(f, tmp_path, small_line(model={"recipes": recipes, "recipe": "tabular_mlp"}))
    order = train.resolve_order(f, spec, REQUEST)
    with pytest.raises(TrainingDefect) as caught:
        train.train(f, spec, order["order_id"], "challenger")
    assert caught.value.reason is ReasonCode.LOSS_NOT_FINITE
    failed = [e for e in f.ledger.events(line=spec.line, kind=EventKind.FAILED) if e.unit.startswith(order["order_id"])]
    assert [e.reason for e in failed] == [ReasonCode.LOSS_NOT_FINITE]
    assert failed[0].detail["telemetry"]["num_attempts"] == 1
    tracker = Tracker(f.settings, spec.line, order["order_id"], "challenger")
    assert tracker._client.get_run(tracker.run_id).info.status == "FAILED"
    assert f.store.list(candidate_prefix(spec.line, order["order_id"], "challenger") + "/") == []


def slow_line(f: Factory, tmp_path: Path) -> tuple[LineSpec, str]:
    """An order whose training takes minutes."""
    spec = small_line()
    recipes = {name: recipe.model_dump() for name, recipe in spec.model.recipes.items()}
    recipes["tabular_mlp"]["parameters"] |= {"epochs": 5000, "report_every": 1}
    spec = shipped(f, tmp_path, small_line(model={"recipes": recipes, "recipe": "tabular_mlp"}))
    return spec, train.resolve_order(f, spec, REQUEST)["order_id"]


def when_training(act: Callable[[], None]) -> Callable[[str], None]:
    """Act once, as soon as the process says that it trains."""
    done = threading.Event()

    def on_line(text: str) -> None:
        if " step " in f" {text} " and not done.is_set():
            done.set()
            act()

    return on_line


def test_a_stopped_training_ends_cleanly(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec, order_id = slow_line(f, tmp_path)
    on_line = when_training(lambda: [os.kill(pid, signal.SIGTERM) for pid in children()] and None)
    with pytest.raises(InfrastructureFault) as caught:
        launch(f.settings, spec.line, order_id, "challenger", 120, on_line)
    assert caught.value.reason is ReasonCode.PROCESS_KILLED
    tracker = Tracker(f.settings, spec.line, order_id, "challenger")
    assert tracker._client.get_run(tracker.run_id).info.status == "KILLED"
    assert children() == []


def test_a_killed_training_is_an_infrastructure_fault(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec, order_id = slow_line(f, tmp_path)
    on_line = when_training(lambda: [os.kill(pid, signal.SIGKILL) for pid in children()] and None)
    with pytest.raises(InfrastructureFault) as caught:
        launch(f.settings, spec.line, order_id, "challenger", 120, on_line)
    assert caught.value.reason is ReasonCode.OUT_OF_MEMORY


def test_a_training_that_takes_too_long_is_stopped(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec, order_id = slow_line(f, tmp_path)
    began = time.monotonic()
    with pytest.raises(InfrastructureFault, match=r"compute\.timeout_minutes") as caught:
        launch(f.settings, spec.line, order_id, "challenger", 15)
    assert caught.value.reason is ReasonCode.DEADLINE_MISSED
    assert time.monotonic() - began < 60
    assert children() == []


def test_without_mlflow_training_is_an_infrastructure_fault(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    order = train.resolve_order(f, line, REQUEST)
    lost = f.settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"})
    with pytest.raises(InfrastructureFault, match=r"MLflow at http://127\.0\.0\.1:9"):
        launch(lost, line.line, order["order_id"], "challenger", 120)


def test_no_secret_is_on_the_command_line(factory_mlflow: Factory, line: LineSpec) -> None:
    f = factory_mlflow
    order = train.resolve_order(f, line, REQUEST)
    seen: list[str] = []

    def look(_: str) -> None:
        seen.extend(command_line(pid) for pid in children())

    launch(f.settings, line.line, order["order_id"], "challenger", 120, look)
    secret = f.settings.s3_secret_key.get_secret_value()
    assert secret
    assert seen
    assert not any(secret in text for text in seen)
    assert environment(f.settings)["AIF_S3_SECRET_KEY"] == secret
    assert "AIF_LEDGER_DSN" not in environment(f.settings.model_copy(update={"ledger_dsn": SecretStr("x")}))


def test_the_program_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aifactory.training", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": "include"},
    )  # fmt: skip
    assert "--phase {challenger,refit}" in done.stdout
