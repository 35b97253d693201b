"""The deployable model: an ONNX graph over the line's raw feature columns, weights to go on from, a manifest.

    <prefix>/model.onnx            takes every feature column by name: strings [n, 1], 32-bit floats [n, 1];
                                   gives `probability`, float32 [n]
    <prefix>/weights.safetensors   only where the recipe can go on from them
    <prefix>/manifest.json         written last: a prefix without it is no package

No pickle anywhere: a package may come from another machine. Whatever loads a package checks every byte against
the manifest, the manifest against its own digest, and the graph against golden rows scored by the trained model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aifactory.errors import NotFound, PackageDefect
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnxruntime as ort
    import pyarrow as pa

    from aifactory.factory import Factory
    from aifactory.store import Store

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
OUTPUT = "probability"
TOLERANCE = 1e-5
"""Largest difference between a probability of the graph and one of the trained model."""

_CHUNK_ROWS = 131_072  # bounds the memory of the string tensors


@dataclass(frozen=True)
class Package:
    """A verified model package, ready to score.

    Attributes:
        manifest: what the model is and where it comes from; see `training.run.build_manifest`.
        weights: the safetensors to go on from, where there are any.
        session: the ONNX runtime's session over the graph.
        prefix: where it was read from.
    """

    manifest: dict[str, Any]
    weights: bytes | None
    session: ort.InferenceSession
    prefix: str

    @property
    def categorical(self) -> list[str]:
        """Feature columns that are strings."""
        return list(self.manifest["features"]["categorical"])

    @property
    def numeric(self) -> list[str]:
        """Feature columns that are 32-bit floats."""
        return list(self.manifest["features"]["numeric"])

    @property
    def profile(self) -> dict[str, Any]:
        """What the training window and the scores looked like; see `training.profile`."""
        profile: dict[str, Any] = self.manifest["training_profile"]
        return profile

    @property
    def trained_until(self) -> str:
        """Last day that the model has learned from."""
        return str(self.manifest["trained_until"])

    @property
    def size_bytes(self) -> int:
        """Size of the files, bytes."""
        return sum(int(entry["size"]) for entry in self.manifest["files"].values())

    def predict(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """Probability of the target for every row, in the order of the table, float32 [n].

        Unknown and missing categories, NaN and null numerics are the graph's business. Columns that are not
        features are ignored.

        Raises:
            PackageDefect: the table lacks a feature, or the graph cannot run on it.
        """
        import numpy as np

        missing = [c for c in [*self.categorical, *self.numeric] if c not in table.column_names]
        if missing:
            raise PackageDefect(
                ReasonCode.PACKAGE_INVALID,
                f"the table lacks {missing}, which the model in {self.prefix} was trained on; rebuild the features",
            )
        parts = [self._run(table.slice(start, _CHUNK_ROWS)) for start in range(0, max(table.num_rows, 1), _CHUNK_ROWS)]
        return np.concatenate(parts)

    def _run(self, table: pa.Table) -> npt.NDArray[np.float32]:
        try:
            outputs = self.session.run([OUTPUT], feeds(table, self.categorical, self.numeric))
        except Exception as error:  # onnxruntime raises its own classes straight from C++
            raise PackageDefect(
                ReasonCode.PACKAGE_INVALID, f"the graph in {self.prefix} cannot score {table.num_rows} rows: {error}"
            ) from error
        scores: npt.NDArray[np.float32] = outputs[0]
        return scores


def feeds(table: pa.Table, categorical: Sequence[str], numeric: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The graph's inputs from a table: strings [n, 1] with "" for null, float32 [n, 1] with NaN for null."""
    import numpy as np
    import pyarrow as pa

    inputs: dict[str, npt.NDArray[Any]] = {}
    for name in categorical:
        encoded = table[name].cast(pa.string()).combine_chunks().dictionary_encode()  # few distinct values: strings
        values = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)  # are made once, then only pointed to
        codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        inputs[name] = values[codes].reshape(-1, 1)
    for name in numeric:
        inputs[name] = numeric_column(table, name).reshape(-1, 1)
    return inputs


def numeric_column(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """One numeric column as float32 [n], NaN for null."""
    import numpy as np
    import pyarrow as pa

    column = table[name]
    if column.type != pa.float32():
        column = column.cast(pa.float32(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float32)


def write_package(
    store: Store, prefix: str, manifest: Mapping[str, Any], onnx: bytes, weights: bytes | None
) -> dict[str, Any]:
    """Write a package: files first, the manifest last, so that a crash leaves no half package.

    A whole one that is there stands: another pod of the same work, cut off and replaced, may have been first.

    Returns:
        The manifest as it stands, with `files` and `digest`.
    """
    if package_exists(store, prefix):
        return read_manifest(store, prefix)
    bodies = {MODEL_FILE: onnx} | ({WEIGHTS_FILE: weights} if weights is not None else {})
    whole = _sealed({**manifest, "files": sealed_files(bodies)})
    for name, body in bodies.items():
        store.put(f"{prefix}/{name}", body)
    store.put(f"{prefix}/{MANIFEST_FILE}", _canonical(whole), content_type="application/json")
    return whole


def sealed_files(bodies: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What a manifest says of files: SHA-256 and size, bytes, by name."""
    return {name: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)} for name, body in bodies.items()}


def copy_package(store: Store, source: str, target: str) -> None:
    """Copy a package to its final place, verified on the way, manifest last; the same bytes again are no change."""
    _, bodies = read_package(store, source)
    manifest = bodies.pop(MANIFEST_FILE)
    for name, body in bodies.items():
        store.put(f"{target}/{name}", body)
    store.put(f"{target}/{MANIFEST_FILE}", manifest, content_type="application/json")


def read_manifest(store: Store, prefix: str) -> dict[str, Any]:
    """The manifest of a package, checked against its own digest.

    Raises:
        NotFound: there is no package.
        PackageDefect: the manifest was altered.
    """
    raw = store.get(f"{prefix}/{MANIFEST_FILE}")
    try:
        manifest: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise _altered(f"{prefix}/{MANIFEST_FILE}", f"is not JSON ({error})") from error
    if raw != _canonical(manifest) or manifest != _sealed(manifest):
        raise _altered(f"{prefix}/{MANIFEST_FILE}", "does not match its own digest")
    return manifest


def read_package(store: Store, prefix: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a package and the bytes of all its files, the manifest among them, each held against its hash.

    Raises:
        PackageDefect: a file is missing or altered.
        InfrastructureFault: the store did not answer.
    """
    try:
        manifest = read_manifest(store, prefix)
        bodies = {name: store.get(f"{prefix}/{name}") for name in manifest["files"]}
    except NotFound as error:
        raise PackageDefect(
            ReasonCode.PACKAGE_INVALID, f"{store.uri(prefix)} is no whole package: {error}; train the order again"
        ) from error
    for name, body in bodies.items():
        if hashlib.sha256(body).hexdigest() != manifest["files"][name]["sha256"]:
            raise _altered(f"{prefix}/{name}", f"({len(body)} bytes) does not match the hash in the manifest")
    return manifest, bodies | {MANIFEST_FILE: _canonical(manifest)}


def package_exists(store: Store, prefix: str) -> bool:
    """Whether a whole package is under a prefix: its manifest, which is written last, is there."""
    return store.head(f"{prefix}/{MANIFEST_FILE}") is not None


def load_package(f: Factory, prefix: str) -> Package:
    """Read, verify and open a package.

    Raises:
        PackageDefect: a file is missing or altered, or the graph does not give the trained model's outputs.
        InfrastructureFault: the store did not answer.
    """
    return open_package(*read_package(f.store, prefix), f.settings.threads, prefix)


def open_package(manifest: dict[str, Any], bodies: Mapping[str, bytes], threads: int, prefix: str) -> Package:
    """Open what `read_package` read, and hold its graph against its golden rows.

    Raises:
        PackageDefect: the graph does not give the trained model's outputs.
    """
    package = Package(manifest, bodies.get(WEIGHTS_FILE), open_session(bodies[MODEL_FILE], threads, prefix), prefix)
    check_golden(manifest, package.predict, prefix)
    return package


def open_session(onnx: bytes, threads: int, prefix: str = "") -> ort.InferenceSession:
    """An ONNX runtime session that uses `threads` threads and does not spin while it waits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes straight from C++
        raise PackageDefect(
            ReasonCode.PACKAGE_INVALID, f"{prefix}/{MODEL_FILE} is not a usable graph: {error}"
        ) from error


def golden(table: pa.Table, categorical: Sequence[str], numeric: Sequence[str]) -> dict[str, list[Any]]:
    """Golden rows as JSON: null stands for NaN and for a missing category."""
    rows: dict[str, list[Any]] = {name: table[name].to_pylist() for name in categorical}
    for name in numeric:
        rows[name] = [None if math.isnan(v) else v for v in numeric_column(table, name).astype(float).tolist()]
    return rows


def golden_table(rows: Mapping[str, Sequence[Any]], categorical: Sequence[str], numeric: Sequence[str]) -> pa.Table:
    """The table of golden rows, as `golden` wrote them."""
    import pyarrow as pa

    columns = {name: pa.array(rows[name], pa.string()) for name in categorical}
    return pa.table(columns | {name: pa.array(rows[name], pa.float32()) for name in numeric})


def check_golden(
    manifest: Mapping[str, Any], predict: Callable[[pa.Table], npt.NDArray[np.float32]], where: str
) -> None:
    """Compare what a model gives on the golden rows of its manifest with what the trained one gave.

    Args:
        manifest: of the package.
        predict: the model: a table with every feature to probabilities, float32 [n].
        where: what the model is, for the message.

    Raises:
        PackageDefect: a probability is off by more than `TOLERANCE`, or is not finite.
    """
    import numpy as np

    features, rows = manifest["features"], manifest["golden"]
    expected = np.asarray(rows["outputs"], dtype=np.float64)
    scores = predict(golden_table(rows["inputs"], features["categorical"], features["numeric"]))
    if scores.shape != expected.shape:
        raise PackageDefect(
            ReasonCode.PACKAGE_MISMATCH,
            f"{where}: {len(expected)} golden rows give scores of shape {list(scores.shape)}; train the order again",
        )
    distance = float(np.max(np.abs(scores - expected), initial=0.0))
    if not distance <= TOLERANCE:
        raise PackageDefect(
            ReasonCode.PACKAGE_MISMATCH,
            f"{where}: the graph is {distance:.2e} off the trained model on the golden rows, "
            f"more than {TOLERANCE:.0e}; train the order again",
        )


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    content = {k: v for k, v in manifest.items() if k != "digest"}
    return {**content, "digest": hashlib.sha256(_canonical(content)).hexdigest()}


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def _altered(what: str, how: str) -> PackageDefect:
    return PackageDefect(
        ReasonCode.PACKAGE_INVALID, f"{what} {how}: it was altered or cut short; do not use it, train the order again"
    )
