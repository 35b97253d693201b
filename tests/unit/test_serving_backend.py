"""The scorer that Triton's stub and its like run, the client of a slot without a server, and where Triton can run."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.served import trained
from tests.unit.test_model_repository import manifest as small_manifest

import plant
from aifactory.errors import InfrastructureFault
from aifactory.packaging import MODEL_FILE, TOLERANCE, check_golden, feeds
from aifactory.serving.backend.scorer import InputError, Scorer
from aifactory.serving.repository import ModelRepository
from aifactory.serving.slot import Slot
from plant import triton


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = ModelRepository(tmp_path_factory.mktemp("serving") / "models")
    onnx, manifest = trained("2013-01-01", "2013-01-10")
    repository.write("small_line", "1", manifest | {"files": small_manifest(onnx)["files"]}, onnx)
    return repository.folder / "small_line" / "1"


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer(folder, threads=1)


def tensors(rows: int = 3) -> dict[str, Any]:
    """A request as Triton hands it over."""
    texts = {name: np.full((rows, 1), b"AA", dtype=object) for name in ("carrier", "origin", "dest")}
    names = ("hour", "day_of_week", "distance", "block_minutes", "late_before")
    return texts | {name: np.ones((rows, 1), dtype=np.float32) for name in names}


def test_golden_rows(scorer: Scorer) -> None:
    _, manifest = trained("2013-01-01", "2013-01-10")
    features = manifest["features"]

    def predict(table: Any) -> Any:
        asked = feeds(table, features["categorical"], features["numeric"])
        encoded = {
            n: np.array([[v.encode()] for v in a[:, 0]], dtype=object) if a.dtype == object else a
            for n, a in asked.items()
        }
        return scorer.score(scorer.inputs(encoded))

    check_golden(manifest, predict, "the scorer")


@pytest.mark.parametrize("rows", [1, 1000])
def test_any_number_of_rows(scorer: Scorer, rows: int) -> None:
    scores = scorer.score(scorer.inputs(tensors(rows)))
    assert scores.shape == (rows,)
    assert scores.dtype == np.float32


def test_a_batch_without_rows_is_refused(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="has no rows"):
        scorer.inputs(tensors(0))


def test_what_is_missing_is_scored_as_the_graph_does(scorer: Scorer) -> None:
    empty = {n: np.full_like(a, b"" if a.dtype == object else np.nan) for n, a in tensors(1).items()}
    unknown = {n: np.full_like(a, "für".encode() if a.dtype == object else np.nan) for n, a in tensors(1).items()}
    a, b = (float(scorer.score(scorer.inputs(t))[0]) for t in (empty, unknown))
    assert 0 < a < 1
    assert abs(a - b) <= TOLERANCE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hour": np.ones((2, 1), dtype=np.float32)}, r"'hour' has shape \[2, 1\].*\[3, 1\]"),
        ({"hour": np.ones((3, 2), dtype=np.float32)}, r"'hour' has shape \[3, 2\]"),
        ({"carrier": np.array([[b"AA"], [b"\xff"], [b"AA"]], dtype=object)}, r"'carrier', row 1: b'\\xff' is no UTF-8"),
    ],
)
def test_a_wrong_input_is_named(scorer: Scorer, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer.inputs(tensors() | wrong)


def test_inputs_do_not_hold_the_memory_of_the_request(scorer: Scorer) -> None:
    asked = tensors()
    inputs = scorer.inputs(asked)
    asked["hour"][:] = 99
    assert inputs["hour"].tolist() == [[1.0], [1.0], [1.0]]


def test_an_altered_graph_is_not_opened(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = tmp_path / MODEL_FILE
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="does not match the hash"):
        Scorer(tmp_path, threads=1)


def test_a_server_that_is_away_is_a_fault_of_the_infrastructure() -> None:
    [port] = plant.free_ports()
    with Slot("a", f"127.0.0.1:{port}", timeout_s=1, load_timeout_s=1) as slot:
        assert not slot.ready()
        for call in (slot.loaded, lambda: slot.load("small_line"), lambda: slot.unload("small_line")):
            with pytest.raises(InfrastructureFault, match=rf"slot a \(127.0.0.1:{port}\) was asked .* cannot now"):
                call()


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("darwin", "arm64", ("", "")),
        ("linux", "riscv64", ("glibc", "2.39")),
        ("linux", "x86_64", ("glibc", "2.31")),
        ("linux", "x86_64", ("", "")),
    ],
)
def test_where_triton_cannot_run_the_other_server_is_named(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: tuple[str, str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(plant.PlantError, match="AIF_SERVING_RUNTIME=own"):
        triton.check_machine()


def test_debian_12_can_run_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    triton.check_machine()
