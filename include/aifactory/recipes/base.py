"""What a recipe is: it learns from a frame of raw feature columns and gives something that can be packaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from aifactory.packaging import numeric_column

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (step, number of steps, metrics of this step) while training goes on."""


class Parameters(BaseModel):
    """Base of every recipe's parameters: frozen, and an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class TrainingFrame:
    """The rows to learn from, every one with an outcome.

    Attributes:
        table: raw feature columns and the target.
        categorical: feature columns that are strings.
        numeric: feature columns that are 32-bit floats.
        target: column of the label, 0 or 1.
    """

    table: pa.Table
    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    target: str

    @classmethod
    def of(cls, table: pa.Table, categorical: list[str], numeric: list[str], target: str) -> TrainingFrame:
        """A frame of the rows whose outcome is known."""
        columns = [*categorical, *numeric, target]
        known = table.select(columns).filter(pc.is_valid(table[target]))
        return cls(known, tuple(categorical), tuple(numeric), target)

    @property
    def num_rows(self) -> int:
        """Rows to learn from."""
        return int(self.table.num_rows)

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """Outcomes, float32 [n]."""
        return np.asarray(self.table[self.target].to_numpy(), dtype=np.float32)


def matrix(table: pa.Table, numeric: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Numeric features, float32 [n, numeric], NaN where missing."""
    if not numeric:
        return np.empty((table.num_rows, 0), dtype=np.float32)
    return np.column_stack([numeric_column(table, name) for name in numeric])


def codes(table: pa.Table, name: str, vocabulary: Mapping[str, float], otherwise: float) -> npt.NDArray[np.float32]:
    """One categorical column as numbers, float32 [n]; unknown and missing values become `otherwise`."""
    encoded = table[name].cast(pa.string()).combine_chunks().dictionary_encode()
    values = [vocabulary.get(v, otherwise) for v in encoded.dictionary.to_pylist()] + [otherwise]
    indices = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    numbers = np.asarray(values, dtype=np.float32)
    return np.asarray(numbers[indices])


class Fitted(Protocol):
    """A trained model."""

    def predict(self, table: pa.Table) -> npt.NDArray[np.float64]:
        """Probability of the target by the trained model itself, [n]: what the graph is held against."""
        ...

    def to_onnx(self) -> bytes:
        """The graph over the raw feature columns; see `packaging`."""
        ...

    def to_safetensors(self) -> bytes | None:
        """Weights that a later training can go on from, or None."""
        ...


class CheckpointPlace(Protocol):
    """Where a recipe keeps the one newest checkpoint of a training."""

    def read(self) -> bytes | None:
        """The checkpoint, or None where there is none."""
        ...

    def write(self, checkpoint: bytes) -> None:
        """Replace the checkpoint atomically."""
        ...


@dataclass(frozen=True)
class FolderPlace:
    """A checkpoint in a folder of this machine."""

    folder: Path

    def read(self) -> bytes | None:
        """The checkpoint, or None where there is none."""
        path = self.folder / "checkpoint.safetensors"
        return path.read_bytes() if path.exists() else None

    def write(self, checkpoint: bytes) -> None:
        """Replace the checkpoint by a rename, which is atomic."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "checkpoint.partial"
        partial.write_bytes(checkpoint)
        partial.replace(self.folder / "checkpoint.safetensors")


class Recipe(Protocol):
    """A way to make models. Modules of this package that offer `RECIPE` are found by name."""

    parameters: type[Parameters]

    def fit(
        self,
        frame: TrainingFrame,
        params: Any,
        *,
        seed: int,
        threads: int,
        warm_start: bytes | None = None,
        progress: Progress = lambda step, steps, metrics: None,
        checkpoints: CheckpointPlace | None = None,
    ) -> Fitted:
        """Learn from the frame.

        Args:
            frame: rows with outcomes.
            params: an instance of `parameters`.
            seed: of every random choice; the same frame, parameters and seed give the same model.
            threads: CPU threads that may be used.
            warm_start: safetensors of an earlier model to go on from, where the recipe can.
            progress: told while training goes on.
            checkpoints: where to keep what resuming needs, where the recipe can resume.

        Raises:
            TrainingDefect: the training cannot give a usable model.
        """
        ...
