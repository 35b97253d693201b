"""One version of the model repository as an ONNX runtime session, and the checks of what it is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MODEL_FILE = "model.onnx"
IDENTITY_FILE = "identity.json"
OUTPUT = "probability"


class InputError(ValueError):
    """A request that the graph cannot be asked; the message names the input."""


class Scorer:
    """A verified model, ready to score.

    Args:
        folder: `<repository>/<line>/<version>`.
        threads: threads of one request.

    Raises:
        ValueError: the graph does not match the hash in its identity.
        Exception: onnxruntime's own, where the graph is not usable.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime as ort

        onnx = (folder / MODEL_FILE).read_bytes()
        self.identity: dict[str, Any] = json.loads((folder / IDENTITY_FILE).read_text())
        if hashlib.sha256(onnx).hexdigest() != self.identity["sha256"]:
            raise ValueError(f"{MODEL_FILE} ({len(onnx)} bytes) does not match the hash in {IDENTITY_FILE}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def inputs(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs from a request's tensors.

        Args:
            tensors: by name, UTF-8 bytes [n, 1] or float32 [n, 1], n ≥ 0.

        Returns:
            The same with `str` in place of bytes, and none of the request's own memory.

        Raises:
            InputError: a column has another shape than the others, or bytes that are no UTF-8.
        """
        found: dict[str, npt.NDArray[Any]] = {}
        rows: int | None = None
        for name, tensor in tensors.items():
            rows = tensor.shape[0] if rows is None else rows
            if rows == 0:
                raise InputError(f"input {name!r} has no rows: its shape is {list(tensor.shape)}")
            if tensor.shape != (rows, 1):
                raise InputError(f"input {name!r} has shape {list(tensor.shape)}, the inputs before it [{rows}, 1]")
            found[name] = _text(name, tensor) if tensor.dtype == object else tensor.copy()
        return found

    def score(self, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Probabilities of the rows, float32 [n].

        Unknown and missing categories ("") and NaN are the graph's business.
        """
        outputs = self._session.run([OUTPUT], dict(inputs))
        scores: npt.NDArray[np.float32] = outputs[0]
        return scores


def _text(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    values = np.empty(tensor.shape, dtype=object)
    for row, value in enumerate(tensor[:, 0]):
        try:
            values[row, 0] = value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"input {name!r}, row {row}: {error.object[:40]!r} is no UTF-8 text") from error
    return values
