"""Training by several processes: the losses of one, checkpoints for any number, and what ends all of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from tests.folder_store import FolderStore
from tests.model_rows import small_line
from tests.parallel_program import DECODERS, NUM_STEPS, STOP_AT, train

from aifactory.errors import SpecError
from aifactory.line import ONE_PROCESS_RECIPES, Compute
from aifactory.recipes import RECIPES, load_recipe
from aifactory.recipes.keeper import own_seed
from aifactory.recipes.parallel import Team
from aifactory.settings import REPOSITORY, Settings
from aifactory.training.checkpoints import StoreCheckpoints, newest
from aifactory.training.elastic import cause, nodes
from aifactory.training.stop import StopSignal


def started(number: int, folder: Path, *jobs: str) -> None:
    """Run the program in so many processes."""
    path = os.pathsep.join([str(REPOSITORY / "include"), str(REPOSITORY)])
    program = REPOSITORY / "tests" / "parallel_program.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    done = subprocess.run(
        [*launcher, program, folder, *jobs],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def told(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    found["losses"] = {int(step): loss for step, loss in found["losses"].items()}
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes did."""
    folder = tmp_path_factory.mktemp("two")
    jobs = ["copies", "parts", "copies_added_up", "parts_added_up", "tiny_batches", "streamed"]
    jobs += DECODERS
    stopped = ["copies:stop", "parts:stop", "streamed:stop", "dropout", "dropout:stop", "dropout:resume"]
    started(2, folder, *jobs, *stopped)
    return folder


def same(found: dict[int, float], expected: dict[int, float]) -> bool:
    return all(found[step] == pytest.approx(expected[step], abs=2e-6) for step in found)


@pytest.mark.parametrize(
    "name", ["copies", "parts", "copies_added_up", "parts_added_up", "tiny_batches", "streamed", *DECODERS]
)
def test_two_processes_train_as_one_does(two: Path, name: str) -> None:
    one, both = train(name, None), told(two, f"{name}-whole-2")
    assert set(both["losses"]) == set(one["losses"])
    assert same(both["losses"], one["losses"])
    assert both["scores"] == pytest.approx(one["scores"], abs=1e-5)


def test_all_stop_after_the_same_step_when_one_is_asked(two: Path) -> None:
    for name in ("copies", "parts"):
        stopped = told(two, f"{name}-stop-2")
        assert stopped["stopped"]
        assert max(stopped["losses"]) == STOP_AT
        folder = FolderStore(two)
        assert newest(folder, name) == f"{STOP_AT:010d}.json"  # type: ignore[arg-type]
        note = folder.get_json(f"{name}.checkpoints/{STOP_AT:010d}.json")
        assert len(note["shards"]) == 2, "each wrote its own part"
        sizes = [shard["size"] for shard in note["shards"].values()]
        assert max(sizes) < 0.75 * sum(sizes)


def test_as_many_processes_go_on_to_the_bit_with_their_own_random_numbers(two: Path) -> None:
    whole, resumed = told(two, "dropout-whole-2"), told(two, "dropout-resume-2")
    assert min(resumed["losses"]) == STOP_AT + 1
    assert resumed["losses"] == {step: loss for step, loss in whole["losses"].items() if step > STOP_AT}
    assert resumed["scores"] == whole["scores"]


@pytest.mark.parametrize("name", ["copies", "parts", "streamed"])
def test_one_process_goes_on_where_two_stopped(two: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(two / f"{name}.checkpoints", tmp_path / f"{name}.checkpoints")
    one, resumed = train(name, None), train(name, FolderStore(tmp_path))
    assert set(resumed["losses"]) == set(range(STOP_AT + 1, NUM_STEPS + 1))
    assert same(resumed["losses"], one["losses"])


def test_three_processes_go_on_where_two_and_where_one_stopped(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "parts.checkpoints", tmp_path / "parts.checkpoints")
    assert train("parts_added_up", FolderStore(tmp_path), STOP_AT)["stopped"]
    started(3, tmp_path, "parts:resume", "parts_added_up:resume")
    one = train("parts", None)
    for name in ("parts", "parts_added_up"):
        resumed = told(tmp_path, f"{name}-resume-3")
        assert set(resumed["losses"]) == set(range(STOP_AT + 1, NUM_STEPS + 1))
        assert same(resumed["losses"], one["losses"])
        assert resumed["scores"] == pytest.approx(one["scores"], abs=1e-5)


def kept(two: Path, tmp_path: Path) -> tuple[FolderStore, str, list[str]]:
    """A copy of a checkpoint of two: its store, the note's key and the objects' keys."""
    shutil.copytree(two / "parts.checkpoints", tmp_path / "parts.checkpoints")
    store = FolderStore(tmp_path)
    keys = [o.key for o in store.list("parts.checkpoints/")]
    return store, keys[-1], keys[:-1]


def candidates(store: FolderStore) -> list[tuple[int, bytes]]:
    return list(StoreCheckpoints(store, "parts", StopSignal()).candidates())  # type: ignore[arg-type]


def test_a_part_that_is_torn_altered_or_gone_passes_the_checkpoint_over(two: Path, tmp_path: Path) -> None:
    store, _, [first, second] = kept(two, tmp_path)
    [(step, content)] = candidates(store)
    assert step == STOP_AT
    assert tuple(load_tensors(content)["model.hidden.0.weight"].shape) == (16, 14)
    whole = store.get(first)
    for broken in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1])):
        store.put(first, broken)
        assert candidates(store) == []
    store.put(first, whole)
    assert len(candidates(store)) == 1
    store.delete(second)
    assert candidates(store) == []


def test_a_note_that_is_not_whole_passes_the_checkpoint_over(two: Path, tmp_path: Path) -> None:
    store, key, _ = kept(two, tmp_path)
    note = store.get_json(key)
    chunks, dtype = json.loads(json.dumps(note)), json.loads(json.dumps(note))
    chunks["tensors"]["model.hidden.0.weight"]["chunks"].pop()
    dtype["tensors"]["model.hidden.0.weight"]["dtype"] = "object"
    for broken in (chunks, dtype, {name: note[name] for name in ("step", "shards")}):
        store.put_json(key, broken)
        assert candidates(store) == []


class Foreign:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "it was run")


def test_nothing_in_a_checkpoint_is_a_pickle_and_none_is_loaded(two: Path, tmp_path: Path) -> None:
    store, key, objects = kept(two, tmp_path)
    store.get_json(key)
    for each in objects:
        load_tensors(store.get(each))
    mark = tmp_path / "mark"
    pickled = pickle.dumps(Foreign(mark))
    for each in (key, *objects):
        whole = store.get(each)
        store.put(each, pickled)
        assert candidates(store) == []
        store.put(each, whole)
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists(), "it would have been run"


@given(
    num_rows=st.integers(1, 40), size=st.integers(1, 5), number=st.integers(1, 4), values=st.integers(0, 2**31)
)  # fmt: skip
def test_the_parts_of_all_processes_weigh_as_the_batch(num_rows: int, size: int, number: int, values: int) -> None:
    losses = np.random.default_rng(values).random(num_rows)
    taken: list[int] = []
    total = 0.0
    for rank in range(size):
        parts = Team(rank, size).micro_batches(num_rows, number)
        assert len(parts) == number, "all take part equally often"
        total += sum(share * losses[part].mean() for part, share in parts)
        taken += [row for part, share in parts if share for row in range(num_rows)[part]]
    assert taken == list(range(num_rows))
    assert total == pytest.approx(losses.mean())


def test_dropout_differs_between_processes_and_after_every_resume() -> None:
    seeds = {own_seed(seed, step, rank) for seed in (1, 2) for step in range(10) for rank in range(10)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_shape_of_a_training() -> None:
    assert Compute().num_processes == 1
    assert Compute(nodes=3, processes=2).num_processes == 6
    assert Compute(nodes=3, gpus=8, processes=2).num_processes == 24
    assert Compute(nodes=3).fewest_nodes == 3
    assert Compute(nodes=3, min_nodes=1).fewest_nodes == 1
    with pytest.raises(ValidationError, match="min_nodes 3 exceeds nodes 2"):
        Compute(nodes=2, min_nodes=3)
    with pytest.raises(ValidationError, match="processes"):
        Compute(processes=0)


def test_a_recipe_of_one_process_is_refused_where_the_line_is_read() -> None:
    with pytest.raises(ValidationError, match=r"'gradient_boosting' trains in one process, and compute asks for 4"):
        small_line(compute={"nodes": 2, "processes": 2})
    assert small_line(compute={"nodes": 2}, model={"recipe": "tabular_mlp"}).compute.num_processes == 2


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_line_says_of_recipes_is_so(name: str) -> None:
    assert (name in ONE_PROCESS_RECIPES) == ("sharding" not in load_recipe(name).parameters.model_fields)


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_machines_fewest_and_most() -> None:
    assert nodes(settings()) == (1, 1)
    assert nodes(settings(nodes="2", rendezvous="a:1")) == (2, 2)
    assert nodes(settings(nodes="1:3", rendezvous="a:1")) == (1, 3)
    with pytest.raises(SpecError, match="AIF_RENDEZVOUS is empty"):
        nodes(settings(nodes="2"))
    with pytest.raises(SpecError, match="more than the most"):
        nodes(settings(nodes="3:2", rendezvous="a:1"))
    with pytest.raises(ValidationError):
        settings(nodes="two")


@pytest.mark.parametrize(
    ("codes", "first"), [([1, 3], 3), ([-9, 4], 4), ([-9, 1], -9), ([143, 1], 1), ([143, -9], -9), ([143, -15], 143)]
)
def test_what_was_told_explains_the_rest(codes: list[int], first: int) -> None:
    assert cause([SimpleNamespace(exitcode=code) for code in codes]).exitcode == first
