"""The model repository: what is written, that it is written whole, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from aifactory.errors import PackageDefect
from aifactory.serving.repository import ModelRepository

GRAPH = b"a graph"


def manifest(graph: bytes = GRAPH, categorical: tuple[str, ...] = ("carrier",), **more: Any) -> dict[str, Any]:
    return {
        "dataset_revision": "abc",
        "features": {"categorical": list(categorical), "numeric": ["hour"]},
        "files": {"model.onnx": {"sha256": hashlib.sha256(graph).hexdigest(), "size": len(graph)}},
        **more,
    }


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models", threads=3)


def config(repository: ModelRepository) -> str:
    return (repository.folder / "line_a" / "config.pbtxt").read_text()


def tree(repository: ModelRepository) -> dict[str, bytes]:
    return {str(p.relative_to(repository.folder)): p.read_bytes() for p in repository.folder.rglob("*") if p.is_file()}


def test_a_version_is_written_in_the_standard_layout(repository: ModelRepository) -> None:
    repository.write("line_a", "12", manifest(), GRAPH)
    assert sorted(tree(repository)) == ["line_a/12/identity.json", "line_a/12/model.onnx", "line_a/config.pbtxt"]
    assert tree(repository)["line_a/12/model.onnx"] == GRAPH
    text = config(repository)
    assert 'backend: "onnxruntime"' in text
    assert 'input { name: "carrier" data_type: TYPE_STRING dims: [-1, 1] }' in text
    assert 'input { name: "hour" data_type: TYPE_FP32 dims: [-1, 1] }' in text
    assert 'output { name: "probability" data_type: TYPE_FP32 dims: [-1] }' in text
    assert "versions: [12]" in text
    assert '"intra_op_thread_count" value { string_value: "3" }' in text


def test_writing_again_changes_nothing(repository: ModelRepository) -> None:
    repository.write("line_a", "1", manifest(), GRAPH)
    before, written = tree(repository), (repository.folder / "line_a" / "1").stat().st_ino
    repository.write("line_a", "1", manifest(), GRAPH)
    assert tree(repository) == before
    assert (repository.folder / "line_a" / "1").stat().st_ino == written


@pytest.mark.parametrize("damage", ["graph cut short", "graph gone", "identity cut short", "identity gone"])
def test_a_damaged_version_is_written_anew(repository: ModelRepository, damage: str) -> None:
    repository.write("line_a", "1", manifest(), GRAPH)
    whole = tree(repository)
    what, how = damage.split(" ", 1)
    path = repository.folder / "line_a" / "1" / {"graph": "model.onnx", "identity": "identity.json"}[what]
    path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:5])
    repository.write("line_a", "1", manifest(), GRAPH)
    assert tree(repository) == whole


def test_what_a_crash_left_aside_is_no_hindrance(repository: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            repository.write("line_a", "1", manifest(), GRAPH)
    assert tree(repository) == {}
    repository.write("line_a", "1", manifest(), GRAPH)
    assert repository.versions("line_a") == ["1"]
    assert [p.name for p in repository.folder.iterdir()] == ["line_a"]


def test_versions_with_the_same_inputs_are_served_side_by_side(repository: ModelRepository) -> None:
    for version in ("2", "10", "1"):
        repository.write("line_a", version, manifest(), GRAPH)
    assert repository.versions("line_a") == ["1", "2", "10"]
    assert "versions: [1, 2, 10]" in config(repository)
    repository.remove("line_a", "2")
    assert repository.versions("line_a") == ["1", "10"]
    assert "versions: [1, 10]" in config(repository)


def test_a_version_with_other_inputs_is_served_alone(repository: ModelRepository) -> None:
    repository.write("line_a", "1", manifest(), GRAPH)
    repository.write("line_a", "2", manifest(categorical=("carrier", "dest")), GRAPH)
    assert "versions: [2]" in config(repository)
    repository.remove("line_a", "2")
    assert "versions: [1]" in config(repository)
    assert '"dest"' not in config(repository)


def test_the_last_version_takes_the_line_with_it(repository: ModelRepository) -> None:
    repository.write("line_a", "1", manifest(), GRAPH)
    repository.write("line_b", "1", manifest(), GRAPH)
    repository.remove("line_a", "1")
    repository.remove("line_a", "1")
    assert repository.versions("line_a") == []
    assert [p.name for p in repository.folder.iterdir()] == ["line_b"]


def test_a_graph_of_another_hash_is_refused(repository: ModelRepository) -> None:
    with pytest.raises(PackageDefect, match="does not match the hash in its manifest"):
        repository.write("line_a", "1", manifest(), GRAPH + b".")
    assert tree(repository) == {}


def test_a_feature_that_the_configuration_cannot_name_is_refused(repository: ModelRepository) -> None:
    with pytest.raises(PackageDefect, match="not plain identifiers"):
        repository.write("line_a", "1", manifest(categorical=('x" } input { name: "y',)), GRAPH)
    assert tree(repository) == {}


@pytest.mark.parametrize("line", ["", ".", "..", "../x", "a/b", "/etc", "Line", "a" * 42, "line\n", "line\0"])
def test_a_line_that_is_no_name_is_refused(repository: ModelRepository, line: str) -> None:
    for call in (lambda: repository.write(line, "1", manifest(), GRAPH), lambda: repository.remove(line, "1")):
        with pytest.raises(ValueError, match="no name of a line"):
            call()


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "v1", "1/..", "..", "1\n", "٣", "9" * 10])
def test_a_version_that_is_no_number_is_refused(repository: ModelRepository, version: str) -> None:
    for call in (
        lambda: repository.write("line_a", version, manifest(), GRAPH),
        lambda: repository.remove("line_a", version),
    ):
        with pytest.raises(ValueError, match="no version"):
            call()


def test_the_identity_says_which_model_it_is(repository: ModelRepository) -> None:
    repository.write("line_a", "7", manifest(), GRAPH)
    identity = json.loads(tree(repository)["line_a/7/identity.json"])
    assert identity == {
        "line": "line_a",
        "version": "7",
        "dataset_revision": "abc",
        "features": {"categorical": ["carrier"], "numeric": ["hour"]},
        "sha256": hashlib.sha256(GRAPH).hexdigest(),
    }
