"""The versions of models that the fallback server has in memory, from a model repository in Triton's layout.

    <repository>/<line>/config.pbtxt              name, version policy, tensors (checked against the graph)
    <repository>/<line>/<version>/model.onnx      version is a number from 1 on
    <repository>/<line>/<version>/identity.json   `sha256` of the graph, and whose answers are logged; may be absent

A load opens every version that the policy names, runs each once, and only then puts them in the place of those that
served: it takes all or none, and requests never wait for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from aifactory.errors import PackageDefect
from aifactory.packaging import MODEL_FILE, open_session
from aifactory.reasons import ReasonCode
from aifactory.serving.server.oip import BYTES, DATATYPES, Array, Refusal, Signature, TensorSpec

if TYPE_CHECKING:
    import onnxruntime as ort

CONFIG_FILE = "config.pbtxt"
IDENTITY_FILE = "identity.json"
_RETIRE_S = 30.0  # how long a version that was replaced may take to answer what it has begun
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}


class PredictionLog(Protocol):
    """What a version's answers are written to."""

    def record(
        self, request_id: str, units_json: str | None, inputs: Mapping[str, Array], scores: Array, shadow: bool
    ) -> None:
        """Take one answer; never waits, never raises."""

    def close(self) -> None:
        """Write out what was taken."""


OpenLog = Callable[[Mapping[str, Any]], PredictionLog | None]
"""Opens the log of a version, from what its `identity.json` says; None where none is kept."""


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """One version in memory.

    Args:
        line: name of the model.
        version: its number, as text.
        signature: inputs and outputs of its graph.
        session: the ONNX runtime's session, safe to be run by several threads.
        stamp: what tells that its file has not changed since.
        log: where its answers are written, if anywhere.
    """

    line: str
    version: str
    signature: Signature
    session: ort.InferenceSession
    stamp: tuple[int, ...]
    log: PredictionLog | None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for some inputs, by name."""
        return dict(zip(self.signature.outputs, self.session.run(None, dict(inputs)), strict=True))


class LoadedModels:
    """What is loaded, by line and version. Requests never wait for a load; loads and unloads take turns.

    Args:
        repository: the folder of models.
        max_rows: most rows of a request.
        threads: of one run of a session.
        open_log: opens the prediction log of a version that has an identity.
    """

    def __init__(self, repository: Path, max_rows: int, threads: int, open_log: OpenLog | None = None) -> None:
        self.repository = repository
        self._max_rows = max_rows
        self._threads = threads
        self._open_log = open_log
        self._loaded: dict[str, dict[str, LoadedVersion]] = {}
        self._turn = threading.Lock()
        self._borrowed: Counter[LoadedVersion] = Counter()
        self._changed = threading.Condition()

    def find(self, line: str, version: str = "") -> LoadedVersion:
        """A loaded version; the newest where none is named.

        Raises:
            Refusal: 404, it is not loaded.
        """
        versions = self._loaded.get(line)
        if not versions:
            raise Refusal(404, f"model {line[:80]!r} is not found: it is unknown or not loaded")
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise Refusal(404, f"version {version[:80]!r} of model '{line}' is not found; loaded are {list(versions)}")
        return versions[version]

    @contextmanager
    def borrow(self, line: str, version: str = "") -> Iterator[LoadedVersion]:
        """A loaded version, as `find` gives it, whose log stays open until it is given back."""
        with self._changed:
            found = self.find(line, version)
            self._borrowed[found] += 1
        try:
            yield found
        finally:
            with self._changed:
                self._borrowed[found] -= 1
                if not self._borrowed[found]:
                    del self._borrowed[found]
                    self._changed.notify_all()

    def versions(self, line: str) -> list[str]:
        """Loaded versions of a line, oldest first."""
        return list(self._loaded.get(line, {}))

    def index(self) -> list[tuple[str, str, bool]]:
        """(line, version, whether it is loaded) of the repository and of the memory together."""
        loaded = {(line, version) for line, versions in self._loaded.items() for version in versions}
        stored = {
            (folder.name, version)
            for folder in self.repository.iterdir()
            if folder.is_dir() and _NAME.fullmatch(folder.name)
            for version in _stored_versions(folder)
        }
        return [(line, version, (line, version) in loaded) for line, version in sorted(loaded | stored, key=_by_number)]

    def load(self, line: str) -> list[str]:
        """Load what the repository holds of a line now; a version whose file is unchanged stays as it is.

        Returns:
            The loaded versions, oldest first.

        Raises:
            PackageDefect: a configuration or a graph cannot be used. What served before still does.
        """
        with self._turn:
            folder = self._folder(line)
            config = _read_config(folder)
            chosen = _chosen(_stored_versions(folder), config, folder)
            known = self._loaded.get(line, {})
            fresh: dict[str, LoadedVersion] = {}
            try:
                for version in chosen:
                    fresh[version] = self._open(folder, version, config, known.get(version))
            except PackageDefect:
                _close(v for v in fresh.values() if v not in known.values())
                raise
            self._replace(line, fresh)
            return chosen

    def unload(self, line: str) -> None:
        """Let go of a line, once the requests that run are answered."""
        with self._turn:
            self._replace(line, {})

    def close(self) -> None:
        """Let go of everything."""
        for line in list(self._loaded):
            self.unload(line)

    def _replace(self, line: str, fresh: dict[str, LoadedVersion]) -> None:
        with self._changed:
            old = self._loaded.get(line, {}).values()
            self._loaded = {**self._loaded, line: fresh}
            retired = [version for version in old if version not in fresh.values()]
            self._changed.wait_for(lambda: not any(v in self._borrowed for v in retired), _RETIRE_S)
        _close(retired)

    def _folder(self, line: str) -> Path:
        folder = self.repository / line
        if not _NAME.fullmatch(line) or not folder.is_dir():
            raise _unusable(f"model '{line[:80]}' is not in the repository; put its files there first")
        return folder

    def _open(self, folder: Path, version: str, config: Any, known: LoadedVersion | None) -> LoadedVersion:
        file = folder / version / MODEL_FILE
        try:
            status = file.stat()
            body = file.read_bytes()
        except OSError as error:
            raise _unusable(f"{file} cannot be read: {error}; put the package's file there again") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        max_rows = min(self._max_rows, config.max_batch_size or self._max_rows)
        if known is not None and known.stamp == stamp and known.signature.max_rows == max_rows:
            _check_config(config, known.signature, file)
            return known
        identity = _read_identity(file.parent, body)
        session = open_session(body, self._threads, str(file.parent))
        signature = Signature(_tensors(session.get_inputs(), file), _tensors(session.get_outputs(), file), max_rows)
        _check_config(config, signature, file)
        log = self._open_log(identity) if self._open_log and identity is not None else None
        loaded = LoadedVersion(folder.name, version, signature, session, stamp, log)
        try:
            _warm_up(loaded, file)
        except PackageDefect:
            _close([loaded])
            raise
        return loaded


def _close(versions: Iterable[LoadedVersion]) -> None:
    for version in versions:
        if version.log is not None:
            version.log.close()


def _read_identity(folder: Path, graph: bytes) -> dict[str, Any] | None:
    file = folder / IDENTITY_FILE
    if not file.exists():
        return None
    try:
        identity: dict[str, Any] = json.loads(file.read_text())
        sha256 = identity["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(f"{file} cannot be read: {error!r}") from error
    if hashlib.sha256(graph).hexdigest() != sha256:
        raise _unusable(f"{folder / MODEL_FILE} ({len(graph)} bytes) does not match the hash in {IDENTITY_FILE}")
    return identity


def _stored_versions(folder: Path) -> list[str]:
    return sorted((f.name for f in folder.iterdir() if f.is_dir() and _VERSION.fullmatch(f.name)), key=int)


def _by_number(entry: tuple[str, str]) -> tuple[str, int]:
    return entry[0], int(entry[1])


def _read_config(folder: Path) -> Any:
    file = folder / CONFIG_FILE
    try:
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise _unusable(f"{file} cannot be read: {error}") from error
    if config.name not in {"", folder.name}:
        raise _unusable(f"{file}: name is '{config.name}', but the folder is '{folder.name}'; they must be the same")
    return config


def _chosen(stored: Sequence[str], config: Any, folder: Path) -> list[str]:
    """The versions that the policy of a configuration names; the newest alone where it says nothing."""
    policy = config.version_policy
    if policy.HasField("all"):
        chosen = list(stored)
    elif policy.HasField("specific"):
        chosen = sorted({str(version) for version in policy.specific.versions}, key=int)
    else:
        chosen = list(stored[-(policy.latest.num_versions or 1) :])
    lost = [version for version in chosen if version not in stored]
    if lost or not chosen:
        raise _unusable(
            f"{folder}: the version policy names {lost or 'none'}, but the versions there are {list(stored)}"
        )
    return chosen


def _tensors(nodes: Sequence[Any], file: Path) -> dict[str, TensorSpec]:
    for node in nodes:
        if node.type not in _ONNX_TYPES:
            raise _unusable(f"{file}: '{node.name}' is {node.type}, which the inference protocol has no datatype for")
    return {
        node.name: TensorSpec(
            node.name, _ONNX_TYPES[node.type], tuple(size if isinstance(size, int) else -1 for size in node.shape)
        )
        for node in nodes
    }


def _check_config(config: Any, signature: Signature, file: Path) -> None:
    """Refuse a graph that is another than its configuration says; a configuration may say nothing."""
    for what, said, specs in (("input", config.input, signature.inputs), ("output", config.output, signature.outputs)):
        batch = [-1] if config.max_batch_size else []
        configured = {t.name: TensorSpec(t.name, _datatype(t.data_type), (*batch, *t.dims)) for t in said}
        if said and configured != dict(specs):
            differ = sorted({*configured, *specs} - {n for n in specs if configured.get(n) == specs[n]})
            raise _unusable(f"{file}: {what}s {differ} of the graph are not those of {CONFIG_FILE}")


def _datatype(number: int) -> str:
    name: str = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return BYTES if name == "STRING" else name


def _warm_up(loaded: LoadedVersion, file: Path) -> None:
    """Run a graph once on a row of zeros, so that the first caller waits no longer than the others."""
    zeros = {
        spec.name: np.full(
            [1 if size < 0 else size for size in spec.shape], "" if spec.datatype == BYTES else 0
        ).astype(DATATYPES[spec.datatype])
        for spec in loaded.signature.inputs.values()
    }
    try:
        loaded.run(zeros)
    except Exception as error:  # onnxruntime raises its own classes straight from C++
        raise _unusable(f"{file} cannot score a row: {error}") from error


def _unusable(message: str) -> PackageDefect:
    return PackageDefect(ReasonCode.PACKAGE_INVALID, message)
