"""The model repository of one server, in Triton's standard layout.

    <folder>/<line>/config.pbtxt              what the server checks requests against; names the versions to serve
    <folder>/<line>/<version>/model.onnx      the package's graph
    <folder>/<line>/<version>/identity.json   which model it is, and the graph's SHA-256; Triton does not look at it

The full Triton image loads it unchanged with its own `onnxruntime` backend. Nothing is served, or ceases to be, by
what is written here: the server looks when it is told to load the line, or starts.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aifactory.errors import PackageDefect
from aifactory.packaging import MODEL_FILE
from aifactory.reasons import ReasonCode
from aifactory.serving.backend.scorer import IDENTITY_FILE, OUTPUT

CONFIG_FILE = "config.pbtxt"

_LINE = re.compile(r"[a-z][a-z0-9_]{1,40}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class ModelRepository:
    """One server's repository; it has one writer.

    Args:
        folder: the server's `--model-repository`.
        threads: threads that one request may use.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder = folder
        self._threads = threads
        self._aside = folder.with_name(f"{folder.name}.aside")  # Triton takes every folder in its own for a model
        folder.mkdir(parents=True, exist_ok=True)

    def versions(self, line: str) -> list[str]:
        """Versions of a line that are here, oldest first."""
        folder = self._line(line)
        found = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)] if folder.exists() else []
        return sorted(found, key=int)

    def write(self, line: str, version: str, manifest: Mapping[str, Any], onnx: bytes) -> None:
        """Put a version in, whole or not at all; the same one again is no change.

        Other versions of the line are served beside it as long as they take the same inputs, for a line has one
        configuration; those that do not are left out of it.

        Args:
            line: name of the line, and of the model that the server offers.
            version: of the registry: digits.
            manifest: of the package, verified.
            onnx: the package's graph.

        Raises:
            ValueError: line or version is no such name.
            PackageDefect: the graph does not match the manifest, or a feature's name cannot be served.
        """
        identity = _identity(line, version, manifest, onnx)
        folder = self._version(line, version)
        if not _holds(folder, identity):
            partial = self._emptied(f"{line}-{version}-new")
            partial.mkdir(parents=True)
            (partial / MODEL_FILE).write_bytes(onnx)
            (partial / IDENTITY_FILE).write_text(json.dumps(identity, indent=1))
            folder.parent.mkdir(exist_ok=True)
            self._take_out(folder)
            partial.rename(folder)
        self._configure(line, identity["features"])

    def remove(self, line: str, version: str) -> None:
        """Take a version out, and the line with its last one; one that is not here is no error.

        Raises:
            ValueError: line or version is no such name.
        """
        folder = self._version(line, version)
        left = [i for v in self.versions(line) if v != version and (i := _read_identity(folder.parent / v))]
        if not left:
            self._take_out(folder.parent)
            return
        self._configure(line, left[-1]["features"], without=version)
        self._take_out(folder)

    def renew(self, line: str) -> None:
        """Make the next load start every version of a line anew, though nothing has changed.

        Triton does not replace a model whose process died, and to unload such a one may take for ever.

        Raises:
            ValueError: it is no such name.
        """
        for version in self.versions(line):
            (self._version(line, version) / MODEL_FILE).touch()

    def _configure(self, line: str, features: Mapping[str, Sequence[str]], without: str = "") -> None:
        identities = {v: _read_identity(self._line(line) / v) for v in self.versions(line) if v != without}
        served = [v for v, identity in identities.items() if identity.get("features") == features]
        partial = self._emptied(f"{line}-{CONFIG_FILE}")
        partial.parent.mkdir(exist_ok=True)
        partial.write_text(_config(line, served, features, self._threads))
        partial.rename(self._line(line) / CONFIG_FILE)

    def _take_out(self, folder: Path) -> None:
        if folder.exists():
            old = self._emptied(f"{folder.parent.name}-{folder.name}-old")
            self._aside.mkdir(exist_ok=True)
            folder.rename(old)
            shutil.rmtree(old)

    def _emptied(self, name: str) -> Path:
        """A path aside that nothing of an earlier, cut off attempt is at."""
        path = self._aside / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _line(self, line: str) -> Path:
        if not _LINE.fullmatch(line):
            raise ValueError(f"{line!r} is no name of a line: {_LINE.pattern}")
        return self.folder / line

    def _version(self, line: str, version: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise ValueError(f"{version!r} is no version that a server can offer: {_VERSION.pattern}")
        return self._line(line) / version


def _identity(line: str, version: str, manifest: Mapping[str, Any], onnx: bytes) -> dict[str, Any]:
    sha256, features = hashlib.sha256(onnx).hexdigest(), manifest["features"]
    if sha256 != manifest["files"][MODEL_FILE]["sha256"]:
        raise PackageDefect(
            ReasonCode.PACKAGE_INVALID,
            f"{line} {version}: the graph ({len(onnx)} bytes) does not match the hash in its manifest; fetch it again",
        )
    named = {kind: list(features[kind]) for kind in ("categorical", "numeric")}
    bad = [name for names in named.values() for name in names if not _FEATURE.fullmatch(name)]
    if bad:
        raise PackageDefect(
            ReasonCode.PACKAGE_INVALID, f"{line} {version}: features {bad} are not plain identifiers; rename them"
        )
    return {
        "line": line,
        "version": version,
        "dataset_revision": manifest["dataset_revision"],
        "features": named,
        "sha256": sha256,
    }


def _holds(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a version is here already, with every byte of its graph."""
    if _read_identity(folder) != identity:
        return False
    model = folder / MODEL_FILE
    return model.exists() and hashlib.sha256(model.read_bytes()).hexdigest() == identity["sha256"]


def _read_identity(folder: Path) -> dict[str, Any]:
    """What a version is; empty where a power cut left no more than its name."""
    try:
        identity: dict[str, Any] = json.loads((folder / IDENTITY_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return identity


def _config(line: str, versions: Sequence[str], features: Mapping[str, Sequence[str]], threads: int) -> str:
    """The line's configuration.

    `max_batch_size` is 0 because the graph's output is [n], and Triton's batching would need [n, 1]: the batch is
    a dimension of the tensors like any other, and clients see the shapes of the graph.
    """
    inputs = [_tensor(name, "TYPE_STRING", "-1, 1") for name in features["categorical"]]
    inputs += [_tensor(name, "TYPE_FP32", "-1, 1") for name in features["numeric"]]
    return "\n".join(
        [
            f'name: "{line}"',
            'backend: "onnxruntime"',
            "max_batch_size: 0",
            f"version_policy {{ specific {{ versions: [{', '.join(versions)}] }} }}",
            *(f"input {tensor}" for tensor in inputs),
            f"output {_tensor(OUTPUT, 'TYPE_FP32', '-1')}",
            "instance_group { kind: KIND_CPU count: 1 }",
            _parameter("intra_op_thread_count", threads),
            _parameter("inter_op_thread_count", 1),
            "",
        ]
    )


def _tensor(name: str, kind: str, dimensions: str) -> str:
    return f'{{ name: "{name}" data_type: {kind} dims: [{dimensions}] }}'


def _parameter(name: str, value: int) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
