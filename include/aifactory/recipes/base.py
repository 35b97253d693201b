"""What a recipe is: it learns from a frame of raw feature columns and gives something that can be packaged."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from aifactory.packaging import numeric_column
from aifactory.recipes.clock import StepClock

if TYPE_CHECKING:
    from aifactory.recipes.stream import TrainingRows

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (step, number of steps, metrics of this step) while training goes on."""


class Parameters(BaseModel):
    """Base of every recipe's parameters: frozen, and an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def streams(self) -> bool:
        """Whether the recipe reads its rows while it learns, instead of all of them before."""
        return False


@dataclass(frozen=True)
class Moments:
    """Of each column of numbers, missing ones left out.

    Attributes:
        count: numbers that are there, [k].
        mean: their mean, float64 [k]; 0 where there is none.
        squares: sum of their squared distances from the mean, float64 [k].
    """

    count: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> Moments:
        """Those of float32 [n, k], NaN where missing."""
        raw = values.astype(np.float64)
        present = ~np.isnan(raw)
        count = present.sum(axis=0)
        mean = np.where(present, raw, 0).sum(axis=0) / np.maximum(count, 1)
        return cls(count, mean, (np.where(present, raw - mean, 0) ** 2).sum(axis=0))

    def joined(self, other: Moments) -> Moments:
        """Those of the rows of both (Chan, Golub & LeVeque, 1983)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Moments(count, self.mean + apart * share, squares)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviations of the numbers as they are, [k]."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.count, 1)))


@dataclass(frozen=True)
class TrainingFrame:
    """The rows to learn from, every one with an outcome, in memory.

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

    @property
    def base_rate(self) -> float:
        """Share of positives."""
        return float(self.labels.mean())

    @property
    def labels_sha256(self) -> str:
        """Names the outcomes and their order."""
        return hashlib.sha256(self.labels.tobytes()).hexdigest()

    @property
    def moments(self) -> Moments:
        """Of the numeric features, in their order."""
        return Moments.of(matrix(self.table, self.numeric))

    def category_counts(self, name: str) -> Mapping[str, int]:
        """How often each value of a categorical feature is there, null as ""."""
        return category_counts(self.table[name])

    def values(self, name: str) -> npt.NDArray[np.float32]:
        """A numeric feature, [n], NaN where missing: what its quantiles are taken of."""
        return numeric_column(self.table, name)


def category_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value is there, null as ""."""
    counted = pc.value_counts(pc.fill_null(column.cast(pa.string()), "")).to_pylist()
    return {str(each["values"]): int(each["counts"]) for each in counted}


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


class Stopped(SystemExit):
    """The program was asked to stop, and does: exit code 143, as if SIGTERM had ended it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Checkpoints(Protocol):
    """Where a recipe keeps what resuming needs, and how it hears that it is to stop."""

    @property
    def stopping(self) -> bool:
        """Whether to save and stop, now."""
        ...

    def attended(self) -> AbstractContextManager[None]:
        """Within, the recipe looks at `stopping` after every step; outside, SIGTERM ends the program at once."""
        ...

    def due(self, step: int, every: int) -> bool:
        """Whether it is time for a checkpoint, `step` steps being done and `every` the wanted number between two."""
        ...

    def save(self, step: int, encode: Callable[[], bytes], snapshot_s: float = 0.0) -> None:
        """Write a checkpoint while the training goes on; `encode` is called in another thread."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was saved is written; whether it is."""
        ...

    def candidates(self) -> Iterator[tuple[int, bytes]]:
        """Steps and content of every checkpoint that is whole, newest first."""
        ...


class Kept(Protocol):
    """A checkpoint of several processes that all of them find whole."""

    step: int
    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]


class ShardedCheckpoints(Checkpoints, Protocol):
    """The same where several processes share a training: each keeps its own part, and all call this at equal steps."""

    def save_shards(
        self, step: int, tensors: Mapping[str, Any], metadata: Mapping[str, str], snapshot_s: float = 0.0
    ) -> None:
        """Write copies of tensors while the training goes on; one that is shared out is written in parts."""
        ...

    def sharded(self) -> Iterator[Any]:
        """Every checkpoint that is whole, newest first, each a `Kept`; of however many processes."""
        ...

    def load(self, kept: Any, tensors: dict[str, Any]) -> None:
        """Read a checkpoint into tensors that are there."""
        ...


class Recipe(Protocol):
    """A way to make models. Modules of this package that offer `RECIPE` are found by name."""

    parameters: type[Parameters]

    def fit(
        self,
        frame: TrainingRows,
        params: Any,
        *,
        seed: int,
        threads: int,
        warm_start: bytes | None = None,
        progress: Progress = lambda step, steps, metrics: None,
        checkpoints: Checkpoints | None = None,
        clock: StepClock | None = None,
    ) -> Fitted:
        """Learn from the frame.

        Args:
            frame: rows with outcomes; a stream where `params.streams`.
            params: an instance of `parameters`.
            seed: of every random choice; the same frame, parameters and seed give the same model.
            threads: CPU threads that may be used.
            warm_start: safetensors of an earlier model to go on from, where the recipe can.
            progress: told while training goes on.
            checkpoints: where to keep what resuming needs, where the recipe can resume.
            clock: told from the first step on where the time goes.

        Raises:
            TrainingDefect: the training cannot give a usable model.
        """
        ...
