"""The same promises against the real S3, and the real program stopped, killed and started again."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint_rules import CheckpointRules
from tests.training_lines import REQUEST, children, shipped, small_line

from aifactory.errors import FactoryError, InfrastructureFault
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.stages import train
from aifactory.training.launch import launch
from aifactory.training.run import candidate_prefix, failure_key, order_key, result_key

pytestmark = pytest.mark.integration


@pytest.fixture
def store(factory: Factory) -> Any:
    return factory.store


class TestInS3(CheckpointRules):
    pass


def medium_line(f: Factory, tmp_path: Path) -> tuple[LineSpec, str]:
    """An order whose training takes some seconds, and is the same every time."""
    spec = small_line()
    recipes = {name: recipe.model_dump() for name, recipe in spec.model.recipes.items()}
    recipes["tabular_mlp"]["parameters"] |= {"epochs": 60, "batch_rows": 64, "report_every": 5, "checkpoint_every": 20}
    spec = shipped(f, tmp_path, small_line(model={"recipes": recipes, "recipe": "tabular_mlp"}))
    return spec, train.resolve_order(f, spec, REQUEST)["order_id"]


def packaged(f: Factory, spec: LineSpec, order_id: str) -> dict[str, bytes]:
    """The package's bytes, but for what tells when and by which run it was made."""
    prefix = candidate_prefix(spec.line, order_id, "challenger") + "/"
    return {o.key: f.store.get(o.key) for o in f.store.list(prefix) if not o.key.endswith("manifest.json")}


def interrupt(f: Factory, spec: LineSpec, order_id: str, number: int) -> list[str]:
    """Start the real program, send it a signal once it has kept a checkpoint; its log."""
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        if "checkpoint after step" in text and sum("checkpoint after step" in line for line in lines) == 2:
            for pid in children():
                os.kill(pid, number)

    with pytest.raises(InfrastructureFault):
        launch(f.settings, spec.line, order_id, "challenger", 120, on_line)
    return lines


def steps_of(lines: list[str], words: str) -> list[int]:
    return [int(n) for n in re.findall(rf"{words} (\d+)", "\n".join(lines))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_training_gives_the_very_package(factory_mlflow: Factory, tmp_path: Path, number: int):
    f = factory_mlflow
    spec, order_id = medium_line(f, tmp_path)
    first = interrupt(f, spec, order_id, number)
    kept, reached = steps_of(first, "checkpoint after step")[-1], steps_of(first, "INFO step")[-1]
    again: list[str] = []
    launch(f.settings, spec.line, order_id, "challenger", 120, again.append)
    [resumed] = steps_of(again, "going on after step")
    assert resumed >= kept
    if number == signal.SIGTERM:
        assert resumed >= reached, "it saved at once"
    disturbed = packaged(f, spec, order_id)
    prefix = candidate_prefix(spec.line, order_id, "challenger")
    assert f.store.list(f"{prefix}.checkpoints/") == []
    for found in f.store.list(prefix):
        f.store.delete(found.key)
    launch(f.settings, spec.line, order_id, "challenger", 120)
    assert packaged(f, spec, order_id) == disturbed
    assert len(disturbed) >= 2


def test_a_tampered_checkpoint_costs_one_interval(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = medium_line(f, tmp_path)
    interrupt(f, spec, order_id, signal.SIGKILL)
    folder = f"{candidate_prefix(spec.line, order_id, 'challenger')}.checkpoints/"
    before, newest = [o.key for o in f.store.list(folder) if o.key.endswith(".safetensors")]
    content = bytearray(f.store.get(newest))
    content[len(content) // 2] ^= 1
    f.store.put(newest, bytes(content))
    again: list[str] = []
    launch(f.settings, spec.line, order_id, "challenger", 120, again.append)
    assert any("is passed over: it is not the content that was written" in line for line in again)
    assert steps_of(again, "going on after step") == [int(before.removeprefix(folder)[:10])]


def test_how_it_ended_is_in_the_store(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = medium_line(f, tmp_path)
    key = order_key(spec.line, order_id)
    order = f.store.get_json(key)
    f.store.put_json(key, order | {"dir_md5": "0" * 32})
    with pytest.raises(FactoryError) as caught:
        launch(f.settings, spec.line, order_id, "challenger", 120)
    told = f.store.get_json(failure_key(spec.line, order_id, "challenger"))
    assert told["reason"] == caught.value.reason.value
    f.store.put_json(key, order)
    made = launch(f.settings, spec.line, order_id, "challenger", 120)
    assert f.store.get_json(result_key(spec.line, order_id, "challenger")) == made | {"attempt": ""}
    assert f.store.head(failure_key(spec.line, order_id, "challenger")) is None
