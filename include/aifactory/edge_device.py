"""A signed edge package where it is used. On a device this one file is enough, with numpy, onnxruntime, model-signing.

    python edge_device.py FOLDER --key plant.pem --package LINE/VERSION < rows.json > scores.json

`FOLDER` holds the files of `edge/<line>/<version>/`, `plant.pem` the plant's public key, `rows.json` an object with a
list of values for each feature column, null for what is missing. Nothing of a package is parsed before its signature
is verified, and only the bytes that were verified are used.

A row is always scored alone: an int8 graph takes the scale of its activations from the whole batch, so that in a batch
the score of a row would change with the rows beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnxruntime as ort

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "model.sig"
OUTPUT = "probability"

Value = str | float | None


class Refused(Exception):
    """The package is not what the plant released, or does not compute here what it must; do not use it."""


@dataclass(frozen=True)
class EdgeModel:
    """A graph with its manifest; see `open_edge`."""

    manifest: Mapping[str, Any]
    session: ort.InferenceSession

    def predict(self, columns: Mapping[str, Sequence[Value]]) -> npt.NDArray[np.float32]:
        """Probability of the target for every row, float32 [n].

        Args:
            columns: a list of n values for each feature, None for what is missing; other columns are ignored.

        Raises:
            ValueError: a feature is missing or has another number of values than the others, or a number is none.
        """
        import numpy as np

        categorical, numeric = (self.manifest["features"][kind] for kind in ("categorical", "numeric"))
        if missing := [name for name in [*categorical, *numeric] if name not in columns]:
            raise ValueError(f"columns lack {missing}, which the model needs")
        lengths = {name: len(columns[name]) for name in [*categorical, *numeric]}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in their number of values: {lengths}")
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name in categorical:
            inputs[name] = np.array(["" if v is None else v for v in columns[name]], dtype=object).reshape(-1, 1)
        for name in numeric:
            values = [float("nan") if v is None else float(v) for v in columns[name]]
            inputs[name] = np.array(values, dtype=np.float32).reshape(-1, 1)
        return self.score(inputs)

    def score(self, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """The same of the graph's own inputs, each [n, 1]."""
        import numpy as np

        num_rows = len(next(iter(inputs.values())))
        rows = ({name: values[i : i + 1] for name, values in inputs.items()} for i in range(num_rows))
        return np.array([self.session.run([OUTPUT], row)[0][0] for row in rows], dtype=np.float32)

    def check(self) -> None:
        """Score the golden rows: processors differ in how they compute with 8 bits.

        Raises:
            Refused: a score is further from the full model's than the line tolerates.
        """
        import numpy as np

        golden, limit = self.manifest["golden"], self.manifest["edge"]["limits"]["max_score_difference"]
        distance = np.max(np.abs(self.predict(golden["inputs"]) - np.asarray(golden["full_outputs"])))
        if not float(distance) <= limit:
            raise Refused(
                f"{self.manifest['edge']['model']} is {distance:.4f} off the full model on its golden rows on this "
                f"machine, more than edge.max_score_difference {limit}"
            )


def open_edge(folder: Path, public_key: bytes, package: str, threads: int = 1) -> EdgeModel:
    """Verify a package and open it.

    Args:
        folder: its files, the signature among them, and nothing else.
        public_key: of the plant that released it, PEM.
        package: "<line>/<version>" that is wanted: a good signature does not say that it is this one.
        threads: that the graph may use.

    Raises:
        Refused: a file is missing, added, altered or not signed by this key, it is another package, or it does not
            compute here what it must.
    """
    bodies = _verified(folder, public_key)
    manifest = json.loads(bodies[MANIFEST_FILE])
    found = manifest.get("edge", {}).get("model")
    if found != package:
        raise Refused(f"{folder} holds the edge package {found!r}, and {package!r} is wanted")
    if hashlib.sha256(bodies[MODEL_FILE]).hexdigest() != manifest["files"][MODEL_FILE]["sha256"]:
        raise Refused(f"{folder / MODEL_FILE} does not match the hash in the manifest")
    model = EdgeModel(manifest, _session(bodies[MODEL_FILE], threads))
    model.check()
    return model


def _verified(folder: Path, public_key: bytes) -> dict[str, bytes]:
    """Content of every file but the signature, as it was signed."""
    from model_signing import verifying

    try:
        bodies = {path.name: path.read_bytes() for path in folder.iterdir()}
        signature = bodies.pop(SIGNATURE_FILE)
    except (OSError, KeyError) as error:
        raise Refused(f"{folder} is no package: {error!r}") from error
    with tempfile.TemporaryDirectory() as copies:  # the library takes paths, and files may change under way
        model, key, bundle = (Path(copies, name) for name in ("model", "key.pem", SIGNATURE_FILE))
        model.mkdir()
        for name, body in bodies.items():
            (model / name).write_bytes(body)
        key.write_bytes(public_key)
        bundle.write_bytes(signature)
        try:
            config = verifying.Config()  # type: ignore[no-untyped-call]
            config.use_elliptic_key_verifier(public_key=key).verify(model, bundle)
        except Exception as error:  # whatever a forged bundle makes its parser raise, it is no signature of the plant
            raise Refused(f"{folder} is not what the plant signed: {error}") from error
    return bodies


def _session(onnx: bytes, threads: int) -> ort.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def main(argv: list[str]) -> int:
    """Rows on standard input, scores on standard output; 1 and the reason where it is refused."""
    parser = argparse.ArgumentParser(prog="edge_device", description="Score rows with a signed edge package.")
    parser.add_argument("folder", type=Path, help="files of the package")
    parser.add_argument("--key", type=Path, required=True, help="public key of the plant, PEM")
    parser.add_argument("--package", required=True, help="<line>/<version> that is wanted")
    given = parser.parse_args(argv)
    try:
        model = open_edge(given.folder, given.key.read_bytes(), given.package)
        scores = model.predict(json.load(sys.stdin))
    except (Refused, OSError, ValueError, TypeError) as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    json.dump({"package": given.package, OUTPUT: [float(score) for score in scores]}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
