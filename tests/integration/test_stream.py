"""The real program with its rows streamed from the real S3: stopped and resumed, by two processes, and without S3."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.training_lines import REQUEST, children, shipped, small_line

from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.stages import train
from aifactory.training.launch import launch
from aifactory.training.run import candidate_prefix

pytestmark = pytest.mark.integration


def streamed_line(f: Factory, tmp_path: Path, epochs: int = 5) -> tuple[LineSpec, str]:
    """An order whose epochs are several windows, without a local cache of the days; it takes some seconds."""
    recipes = {name: recipe.model_dump() for name, recipe in small_line().model.recipes.items()}
    recipes["tabular_mlp"]["parameters"] |= {
        "data": "stream", "window_rows": 3000, "epochs": epochs, "batch_rows": 200, "dropout": 0.0, "report_every": 4,
        "checkpoint_every": 20,
    }  # fmt: skip
    object.__setattr__(f, "settings", f.settings.model_copy(update={"dataset_cache_mb": 0}))
    model = {"recipes": recipes, "recipe": "tabular_mlp"}
    spec = shipped(f, tmp_path, small_line(model=model, compute={"processes": 2}))
    return spec, train.resolve_order(f, spec, REQUEST)["order_id"]


def trained(f: Factory, spec: LineSpec, order_id: str, processes: int = 1, stop: bool = False) -> dict[int, float]:
    """The losses by step; asked to stop at the first one that is told."""
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        if stop and "INFO step" in text and sum("INFO step" in line for line in lines) == 1:
            os.kill(children()[0], signal.SIGTERM)

    try:
        launch(f.settings, spec.line, order_id, "challenger", 240, on_line, processes=processes)
    except InfrastructureFault:
        assert stop, "\n".join(lines)
    found = re.findall(r"INFO step (\d+)/\d+ train_loss=([\d.]+)", "\n".join(lines))
    return {int(step): float(loss) for step, loss in found}


def package(f: Factory, spec: LineSpec, order_id: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Its files but the manifest, and the manifest; they are removed."""
    prefix = candidate_prefix(spec.line, order_id, "challenger")
    manifest = load_package(f, prefix).manifest
    files = {o.key: f.store.get(o.key) for o in f.store.list(f"{prefix}/") if not o.key.endswith("manifest.json")}
    for found in f.store.list(prefix):
        f.store.delete(found.key)
    return files, manifest


def test_a_streamed_training_resumes_to_the_bit(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = streamed_line(f, tmp_path)
    losses = trained(f, spec, order_id)
    whole, manifest = package(f, spec, order_id)
    told = [losses[step] for step in sorted(losses)]
    assert sum(told[-20:]) < sum(told[:20]), "the last batch alone is a few rows"
    assert manifest["parameters"]["data"] == "stream"
    assert manifest["training_profile"]["num_rows"] == manifest["num_rows"] > 2 * 3000, "more than is held"
    assert manifest["metrics"]["roc_auc"] > 0.5

    first = trained(f, spec, order_id, stop=True)
    second = trained(f, spec, order_id)
    assert 0 < max(first) < min(second)
    assert first | second == losses
    assert package(f, spec, order_id)[0] == whole
    assert children() == []


def test_two_processes_learn_what_one_learns(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = streamed_line(f, tmp_path, epochs=2)
    one = trained(f, spec, order_id)
    package(f, spec, order_id)
    two = trained(f, spec, order_id, processes=2)
    assert len(one) > 20
    assert two == pytest.approx(one, rel=1e-3)
    assert package(f, spec, order_id)[1]["num_rows"] > 2 * 3000
    assert children() == []
