"""Recipes: what is exported equals what was trained, training repeats, resumes and stops as it should."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.checkpoint_rules import PREFIX, checkpoints
from tests.memory_store import MemoryStore
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of

from aifactory.errors import SpecError, TrainingDefect
from aifactory.evaluation import roc_auc
from aifactory.packaging import OUTPUT, TOLERANCE, feeds, open_session
from aifactory.reasons import ReasonCode
from aifactory.recipes import RECIPES, check_parameters, load_recipe
from aifactory.recipes.base import Stopped, TrainingFrame
from aifactory.settings import REPOSITORY
from aifactory.training.checkpoints import StoreCheckpoints
from aifactory.training.run import worn
from aifactory.training.stop import StopSignal

QUICK: dict[str, dict[str, Any]] = {
    "gradient_boosting": {"num_trees": 25},
    "tabular_mlp": {"epochs": 2, "hidden": [32], "batch_rows": 256, "report_every": 1, "checkpoint_every": 10},
}


def frame(
    last: str = "2013-02-10", categorical: list[str] = CATEGORICAL, numeric: list[str] = NUMERIC
) -> TrainingFrame:
    return TrainingFrame.of(days_of("2013-01-01", last), categorical, numeric, TARGET)


def fit(name: str, rows: TrainingFrame | None = None, **given: Any) -> Any:
    change = given.pop("change", {})
    params = check_parameters(name, QUICK[name] | change)
    return load_recipe(name).fit(rows or frame(), params, seed=given.pop("seed", 7), threads=2, **given)


@pytest.fixture(scope="module", params=RECIPES)
def fitted(request: pytest.FixtureRequest) -> Any:
    return fit(request.param)


@pytest.mark.parametrize("wear", [False, True], ids=["real", "worn"])
def test_the_graph_gives_what_the_trained_model_gives(fitted: Any, wear: bool) -> None:
    table = days_of("2013-02-11", "2013-03-31")
    if wear:  # unseen categories, null strings and NaN, besides the gaps that the real rows have
        table = worn(table, CATEGORICAL, NUMERIC)
    outputs = open_session(fitted.to_onnx(), 2).run([OUTPUT], feeds(table, CATEGORICAL, NUMERIC))[0]
    assert outputs.shape == (table.num_rows,)
    assert outputs.dtype == np.float32
    assert np.max(np.abs(outputs - fitted.predict(table))) <= TOLERANCE
    assert np.std(outputs) > 0.02


def test_values_on_a_threshold_go_the_same_way() -> None:
    """Trees part 32-bit values by 64-bit thresholds: neighbours of every threshold must fall on the same side."""
    values = np.nextafter(np.float32(1), np.float32(2)) + np.arange(400, dtype=np.float32) * np.float32(2**-23)
    target = (np.arange(400) // 7) % 2
    table = pa.table({"x": pa.array(values, pa.float32()), TARGET: pa.array(target, pa.int8())})
    rows = TrainingFrame.of(table, [], ["x"], TARGET)
    trees = fit("gradient_boosting", rows, change={"min_leaf_rows": 1, "feature_share": 1.0, "max_leaves": 64})
    outputs = open_session(trees.to_onnx(), 1).run([OUTPUT], feeds(table, [], ["x"]))[0]
    assert len(np.unique(outputs)) > 20
    assert np.max(np.abs(outputs - trees.predict(table))) <= TOLERANCE


def test_one_row_and_no_row(fitted: Any) -> None:
    session = open_session(fitted.to_onnx(), 1)
    for num_rows in (1, 0):
        table = days_of("2013-03-01", "2013-03-01").slice(0, num_rows)
        assert session.run([OUTPUT], feeds(table, CATEGORICAL, NUMERIC))[0].shape == (num_rows,)


def test_it_learns(fitted: Any) -> None:
    seen = TrainingFrame.of(days_of("2013-01-01", "2013-02-10"), CATEGORICAL, NUMERIC, TARGET)
    assert roc_auc(seen.labels, fitted.predict(seen.table)) > 0.6


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_model(name: str) -> None:
    rows = frame("2013-01-20")
    first, second, other = fit(name, rows), fit(name, rows), fit(name, rows, seed=8)
    assert first.to_onnx() == second.to_onnx()
    assert first.to_safetensors() == second.to_safetensors()
    assert first.to_onnx() != other.to_onnx()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_without_categories_or_with_one_number(name: str) -> None:
    rows = TrainingFrame.of(days_of("2013-01-01", "2013-01-20"), [], ["hour"], TARGET)
    model = fit(name, rows)
    outputs = open_session(model.to_onnx(), 1).run([OUTPUT], feeds(rows.table, [], ["hour"]))[0]
    assert np.max(np.abs(outputs - model.predict(rows.table))) <= TOLERANCE


@pytest.mark.parametrize("name", RECIPES)
def test_progress_is_told(name: str) -> None:
    told: list[tuple[int, int, Any]] = []
    fit(name, frame("2013-01-20"), progress=lambda step, steps, values: told.append((step, steps, dict(values))))
    assert [step for step, _, _ in told] == sorted({step for step, _, _ in told})
    assert told[-1][0] == told[-1][1]
    assert told[-1][2]["train_loss"] < told[0][2]["train_loss"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("broken_at", [1, 9, 10, 13, 29])
def test_a_resumed_training_gives_the_same_loss_curve(broken_at: int) -> None:
    rows, store = frame("2013-01-25"), MemoryStore()
    whole, pieces, steps = {}, {}, []  # type: ignore[var-annotated]

    def note_until_it_breaks(step: int, _: int, values: Any) -> None:
        if step == broken_at:
            raise Interrupted
        pieces[step] = values["train_loss"]

    uninterrupted = fit("tabular_mlp", rows, progress=lambda s, _, v: whole.setdefault(s, v["train_loss"]))
    first = checkpoints(store)
    with pytest.raises(Interrupted):
        fit("tabular_mlp", rows, progress=note_until_it_breaks, checkpoints=eager(first))
    first.flush(10)

    def note(step: int, _: int, values: Any) -> None:
        steps.append(step)
        pieces[step] = values["train_loss"]

    model = fit("tabular_mlp", rows, progress=note, checkpoints=checkpoints(store))
    assert steps[0] == (broken_at - 1) // 10 * 10 + 1, "it went on from the newest checkpoint, not from the start"
    assert pieces == whole
    assert model.to_safetensors() == uninterrupted.to_safetensors()


@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_is_killed_again_and_again_gives_the_same_model(seed: int) -> None:
    rows, store, rng = frame("2013-01-25"), MemoryStore(), random.Random(seed)
    whole: dict[int, float] = {}
    pieces: dict[int, set[float]] = {}
    uninterrupted = fit("tabular_mlp", rows, progress=lambda s, _, v: whole.setdefault(s, v["train_loss"]))
    kills, model = 0, None

    while model is None:
        lives = rng.randint(11, 16)  # an interval is 10 steps: shorter lives would never get on
        begun: list[int] = []

        def note(step: int, _: int, values: Any, begun: list[int] = begun, lives: int = lives) -> None:
            begun.append(step)
            pieces.setdefault(step, set()).add(values["train_loss"])
            if len(begun) == lives:
                raise Interrupted

        place = checkpoints(store)
        try:
            model = fit("tabular_mlp", rows, progress=note, checkpoints=eager(place))
        except Interrupted:
            kills += 1
            assert place.flush(10)
    assert kills >= 2
    assert pieces == {step: {loss} for step, loss in whole.items()}, "steps that are told again are told alike"
    assert model.to_safetensors() == uninterrupted.to_safetensors()


def test_content_that_is_no_checkpoint_of_the_recipe_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    rows, store = frame("2013-01-20"), MemoryStore()
    place = checkpoints(store)
    for step, content in ((10, b"\x02\0\0\0\0\0\0\0{}"), (20, b"not safetensors")):
        place.save(step, lambda content=content: content)  # type: ignore[misc]
        assert place.flush(10)
    model = fit("tabular_mlp", rows, checkpoints=checkpoints(store))
    assert model.to_safetensors() == fit("tabular_mlp", rows).to_safetensors()
    assert "not one of this recipe" in caplog.text
    assert "of another training" in caplog.text


def test_a_training_that_is_asked_to_stop_saves_at_once_and_loses_no_step() -> None:
    rows, store, stop = frame("2013-01-25"), MemoryStore(), StopSignal()
    told: list[int] = []

    def ask(step: int, _: int, __: Any) -> None:
        told.append(step)
        stop.requested = step == 13

    with pytest.raises(Stopped):
        fit("tabular_mlp", rows, progress=ask, checkpoints=StoreCheckpoints(store, PREFIX, stop))  # type: ignore[arg-type]
    assert told[-1] == 13
    fit("tabular_mlp", rows, progress=ask, checkpoints=checkpoints(store))
    assert told[13] == 14


def test_a_checkpoint_of_another_training_is_not_taken_up() -> None:
    store = MemoryStore()
    place = eager(checkpoints(store))
    fit("tabular_mlp", frame("2013-01-25"), checkpoints=place)
    place.flush(10)
    assert store.objects
    other = frame("2013-01-24")
    resumed = fit("tabular_mlp", other, checkpoints=checkpoints(store))
    assert resumed.to_onnx() == fit("tabular_mlp", other).to_onnx()


def eager(place: StoreCheckpoints) -> StoreCheckpoints:
    """Writes every checkpoint that is due by steps, whatever it costs, before the training goes on."""
    save = place.save

    def save_and_wait(step: int, encode: Any, snapshot_s: float = 0.0) -> None:
        save(step, encode, snapshot_s)
        place.flush(10)
        place._cost_s = 0.0

    place.save = save_and_wait  # type: ignore[method-assign]
    return place


def test_a_warm_start_goes_on_from_the_champion() -> None:
    champion = fit("tabular_mlp", frame("2013-02-10"), change={"epochs": 4})
    first: dict[str, float] = {}

    def note(kind: str) -> Any:
        return lambda step, _, values: first.setdefault(kind, values["train_loss"])

    rows = frame("2013-02-12")
    fit("tabular_mlp", rows, progress=note("cold"))
    fit("tabular_mlp", rows, progress=note("warm"), warm_start=champion.to_safetensors())
    assert first["warm"] < first["cold"] - 0.05


def test_a_warm_start_knows_new_categories_and_ignores_what_does_not_fit() -> None:
    all_rows = days_of("2013-01-01", "2013-01-20")
    without = all_rows.filter(pc.not_equal(all_rows["carrier"], "UA"))
    few = TrainingFrame.of(without, CATEGORICAL, NUMERIC, TARGET)
    champion = fit("tabular_mlp", few)
    grown = fit("tabular_mlp", frame("2013-01-20"), warm_start=champion.to_safetensors())
    assert "UA" not in champion.preparation.vocabularies["carrier"]
    assert grown.preparation.vocabularies["carrier"][-1] == "UA"
    other = frame("2013-01-20", numeric=["hour"])
    cold = fit("tabular_mlp", other)
    assert fit("tabular_mlp", other, warm_start=champion.to_safetensors()).to_onnx() == cold.to_onnx()


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    import torch

    from aifactory.recipes.batches import Batches
    from aifactory.recipes.loop import train_loop
    from aifactory.recipes.tabular_mlp import Network, TabularMlpParameters, log_loss

    params = TabularMlpParameters(epochs=1, batch_rows=4, hidden=(4,))
    network = Network([], 2, params)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    data = Batches(torch.zeros(8, 0, dtype=torch.int64), torch.full((8, 2), float("inf")), torch.ones(8))
    with pytest.raises(TrainingDefect) as caught:
        train_loop(network, log_loss, data, params, 1, lambda *_: None)
    assert caught.value.reason is ReasonCode.LOSS_NOT_FINITE
    assert "step 0" in caught.value.message
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_one_class_only_is_a_defect() -> None:
    table = pa.table({"hour": pa.array([1.0, 2.0], pa.float32()), TARGET: pa.array([0, 0], pa.int8())})
    with pytest.raises(TrainingDefect, match="same delayed"):
        fit("gradient_boosting", TrainingFrame.of(table, [], ["hour"], TARGET))


def test_parameters_are_checked_by_the_recipe() -> None:
    with pytest.raises(SpecError, match=r"tabular_mlp.parameters: epochs: .*\(got 0\)"):
        check_parameters("tabular_mlp", {"epochs": 0})
    with pytest.raises(SpecError, match="depth"):
        check_parameters("gradient_boosting", {"depth": 3})
    with pytest.raises(SpecError, match="no recipe 'forest'"):
        load_recipe("forest")


def test_gradient_boosting_does_not_load_torch() -> None:
    code = "from aifactory.recipes import load_recipe; load_recipe('gradient_boosting')"
    code += "; import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "include")},
    )
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = fit("tabular_mlp")
    table = days_of("2013-02-11", "2013-02-20")
    outputs = open_session(model.to_onnx(), 1).run([OUTPUT], feeds(table, CATEGORICAL, NUMERIC))[0]
    assert np.max(np.abs(outputs - model.predict(table))) <= TOLERANCE


def test_the_optimizer_is_torchs_own() -> None:
    import torch

    from aifactory.recipes.loop import EagerAdamW

    def trained(kind: type[torch.optim.AdamW]) -> tuple[torch.Tensor, dict[str, Any]]:
        torch.manual_seed(1)
        layer = torch.nn.Linear(5, 3)
        optimizer = kind(layer.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        for number in range(6):
            if number == 3:
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad(set_to_none=True)
            layer(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
        return layer.weight.detach(), optimizer.state_dict()

    (ours, state), (theirs, stock) = trained(EagerAdamW), trained(torch.optim.AdamW)
    assert torch.equal(ours, theirs)
    assert not ours.requires_grad
    assert all(
        torch.equal(state["state"][i][name], kept) for i, of in stock["state"].items() for name, kept in of.items()
    )


def test_a_training_does_not_load_torchs_compiler() -> None:
    program = """
import sys
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
frame = TrainingFrame.of(days_of("2013-02-01", "2013-02-03"), CATEGORICAL, NUMERIC, TARGET)
load_recipe("tabular_mlp").fit(frame, check_parameters("tabular_mlp", {"epochs": 1}), seed=1, threads=1)
assert "torch" in sys.modules
assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
"""
    env = {"PYTHONPATH": f"{REPOSITORY / 'include'}:{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
