"""The real program in several processes, with the real stores: the losses of one, killed, stopped, failing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training_lines import REQUEST, children, shipped, small_line

from aifactory.errors import InfrastructureFault, SpecError, TrainingDefect
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.reasons import ReasonCode
from aifactory.stages import train
from aifactory.training.launch import environment, launch
from aifactory.training.run import candidate_prefix, failure_key, result_key

pytestmark = pytest.mark.integration


def order_of(f: Factory, tmp_path: Path, **parameters: Any) -> tuple[LineSpec, str]:
    """An order whose training takes some seconds, without dropout."""
    spec = small_line()
    recipes = {name: recipe.model_dump() for name, recipe in spec.model.recipes.items()}
    recipes["tabular_mlp"]["parameters"] |= {
        "epochs": 10, "batch_rows": 200, "dropout": 0.0, "report_every": 5, "checkpoint_every": 20,
    } | parameters  # fmt: skip
    model = {"recipes": recipes, "recipe": "tabular_mlp"}
    spec = shipped(f, tmp_path, small_line(model=model, compute={"processes": 2}))
    return spec, train.resolve_order(f, spec, REQUEST)["order_id"]


def losses(lines: list[str]) -> dict[int, float]:
    found = re.findall(r"INFO step (\d+)/\d+ train_loss=([\d.]+)", "\n".join(lines))
    return {int(step): float(loss) for step, loss in found}


def resumed(lines: list[str]) -> list[int]:
    return [int(step) for step in re.findall(r"going on after step (\d+)", "\n".join(lines))]


def workers() -> list[int]:
    """The processes that the launcher has started."""
    [launcher] = children()
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def run(f: Factory, spec: LineSpec, order_id: str, processes: int, act: Any = None) -> list[str]:
    """The program's log; `act` is called once, when it has kept a checkpoint."""
    lines: list[str] = []

    def on_line(text: str) -> None:
        lines.append(text)
        if act and "checkpoint after step" in text and sum("checkpoint after step" in line for line in lines) == 1:
            act()

    try:
        launch(f.settings, spec.line, order_id, "challenger", 240, on_line, processes=processes)
    except InfrastructureFault as fault:
        lines.append(str(fault))
    return lines


def removed(f: Factory, spec: LineSpec, order_id: str) -> None:
    for found in f.store.list(candidate_prefix(spec.line, order_id, "challenger")):
        f.store.delete(found.key)


def test_two_processes_of_which_one_is_killed_learn_what_one_learns(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = order_of(f, tmp_path)
    one = losses(run(f, spec, order_id, 1))
    removed(f, spec, order_id)
    lines = run(f, spec, order_id, 2, lambda: os.kill(workers()[-1], signal.SIGKILL))
    two = losses(lines)
    assert len(resumed(lines)) == 1, "\n".join(lines)
    assert set(two) == set(one)
    assert len(one) > 20
    assert two == pytest.approx(one, rel=1e-3)
    prefix = candidate_prefix(spec.line, order_id, "challenger")
    assert load_package(f, prefix).weights is not None
    assert f.store.list(f"{prefix}.checkpoints/") == []
    assert f.store.get_json(result_key(spec.line, order_id, "challenger"))["package"] == prefix
    assert f.store.head(failure_key(spec.line, order_id, "challenger")) is None
    assert children() == []


def test_two_processes_save_and_stop_and_one_goes_on(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = order_of(f, tmp_path, sharding="full", accumulate=2)
    first = run(f, spec, order_id, 2, lambda: os.kill(children()[0], signal.SIGTERM))
    assert "was asked to stop and did" in first[-1]
    second = run(f, spec, order_id, 1)
    assert resumed(second)[0] >= max(losses(first)), "it saved at once"
    assert f.store.head(result_key(spec.line, order_id, "challenger")) is not None


def test_a_defect_is_told_once_and_not_tried_again(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = order_of(f, tmp_path, learning_rate=1e30)
    lines: list[str] = []
    with pytest.raises(TrainingDefect) as caught:
        launch(f.settings, spec.line, order_id, "challenger", 240, lines.append, processes=2)
    assert caught.value.reason is ReasonCode.LOSS_NOT_FINITE
    told = f.store.get_json(failure_key(spec.line, order_id, "challenger"))
    assert told["reason"] == "LOSS_NOT_FINITE"
    assert told["kind"] == "defect"
    assert sum("learns" in line for line in lines) == 1
    assert children() == []


def test_an_order_for_one_process_only_is_refused(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, _ = order_of(f, tmp_path)
    with pytest.raises(SpecError, match=r"'gradient_boosting' trains in one process, and compute asks for 2"):
        train.resolve_order(f, spec, REQUEST | {"recipe": "gradient_boosting"})


def test_two_machines_share_a_training(factory_mlflow: Factory, tmp_path: Path):
    f = factory_mlflow
    spec, order_id = order_of(f, tmp_path, sharding="full")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    asked = f.settings.model_copy(update={"nodes": "2", "rendezvous": meeting})
    command = [sys.executable, "-m", "aifactory.training", "--line", spec.line, "--order", order_id]
    machines = [
        subprocess.Popen([*command, "--phase", "challenger"], env=environment(asked), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    logs = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert sum("learns" in text for text in logs) == 1, "the first process of all speaks for all"
    prefix = candidate_prefix(spec.line, order_id, "challenger")
    assert f.store.get_json(result_key(spec.line, order_id, "challenger"))["package"] == prefix
    assert load_package(f, prefix).weights is not None
