"""A small neural network over categories and numbers: what continues from the champion instead of starting anew.

Categories become embeddings (index 0: unknown), numbers are standardised with an indicator for missing ones. The
whole training set lies in memory as tensors, or a window of it where it is streamed (see `batches`), and a batch is a
gather by index: no loader process, no collating. Several processes share a training as `parallel` says.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field
from safetensors.torch import load as load_tensors
from torch import nn

from aifactory.recipes.base import Checkpoints, Progress, TrainingFrame, codes, matrix
from aifactory.recipes.batches import Batches, BatchSource, StreamedBatches
from aifactory.recipes.clock import StepClock
from aifactory.recipes.graph import Graph
from aifactory.recipes.keeper import encode, metadata
from aifactory.recipes.loop import LoopParameters, deterministic, trained
from aifactory.recipes.stream import TrainingRows, TrainingStream

log = logging.getLogger(__name__)

FORMAT = "tabular_mlp/1"


class TabularMlpParameters(LoopParameters):
    """What can be turned."""

    data: Literal["memory", "stream"] = Field("memory", description="Hold all rows, or read them anew every epoch.")
    window_rows: int = Field(131_072, ge=1, description="Streamed rows that are shuffled together; two such are held.")
    hidden: tuple[int, ...] = Field((128, 64), min_length=1, description="Widths of the hidden layers.")
    embedding: int = Field(8, ge=1, le=256, description="Width of every embedding.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of hidden units dropped in training.")
    warm_epochs: int = Field(3, ge=1, description="Passes over the data of a training that goes on from a champion.")
    clip: float = Field(5.0, gt=0, description="Standardised numbers are cut at plus and minus this.")
    min_category_rows: int = Field(30, ge=1, description="A category with fewer rows counts as unknown.")

    @property
    def streams(self) -> bool:
        """Whether `data` is "stream"."""
        return self.data == "stream"


@dataclass(frozen=True)
class Preparation:
    """How raw columns become tensors; goes with the weights."""

    vocabularies: dict[str, list[str]]
    numeric: tuple[str, ...]
    mean: list[float]
    std: list[float]
    clip: float

    def categories(self, table: pa.Table) -> torch.Tensor:
        """Category numbers, int64 [n, categorical]."""
        numbers = [
            codes(table, column, {name: float(i) for i, name in enumerate(names, start=1)}, 0.0)
            for column, names in self.vocabularies.items()
        ]
        empty = np.empty((table.num_rows, 0))
        return torch.from_numpy((np.column_stack(numbers) if numbers else empty).astype(np.int64))

    def numbers(self, table: pa.Table) -> torch.Tensor:
        """Standardised numbers and their missing indicators, float32 [n, 2 · numeric]."""
        raw = torch.from_numpy(matrix(table, self.numeric))
        missing = torch.isnan(raw)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        numbers = raw.new_empty(len(raw), 2 * raw.shape[1])
        scaled, indicators = numbers.tensor_split(2, dim=1)
        torch.where(missing, mean, raw, out=scaled).sub_(mean).div_(std).clamp_(-self.clip, self.clip)
        indicators.copy_(missing)
        return numbers

    def encode(self, rows: TrainingFrame) -> Batches:
        """All of the rows as tensors."""
        return Batches(self.categories(rows.table), self.numbers(rows.table), torch.from_numpy(rows.labels))


class Network(nn.Module):  # type: ignore[misc]
    """Embeddings and numbers side by side, through ReLU layers to one logit."""

    def __init__(self, sizes: list[int], num_numbers: int, params: TabularMlpParameters) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(size, params.embedding) for size in sizes])
        widths = [len(sizes) * params.embedding + num_numbers, *params.hidden]
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.dropout = nn.Dropout(params.dropout)
        self.out = nn.Linear(widths[-1], 1)

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Logits [n] of categories int64 [n, c] and numbers float32 [n, k]."""
        parts = [embed(categories[:, i]) for i, embed in enumerate(self.embeddings)]
        x = torch.cat([*parts, numbers], dim=1)
        for layer in self.hidden:
            x = self.dropout(torch.relu(layer(x)))
        return self.out(x).squeeze(1)


@dataclass(frozen=True)
class FittedMlp:
    """The trained network, on the CPU, in 32 bits."""

    network: Any
    preparation: Preparation
    params: TabularMlpParameters

    def predict(self, table: pa.Table) -> npt.NDArray[np.float64]:
        """Probability by torch itself."""
        self.network.eval()
        with torch.inference_mode():
            logits = self.network(self.preparation.categories(table), self.preparation.numbers(table))
            found: npt.NDArray[np.float64] = torch.sigmoid(logits.double()).numpy()
        return found

    def to_onnx(self) -> bytes:
        """The network operator by operator: it is small, and the strings have to come in anyway."""
        prepared, weights = self.preparation, {k: v.numpy() for k, v in self.network.state_dict().items()}
        graph = Graph(list(prepared.vocabularies), prepared.numeric)
        parts = []
        for i, (column, names) in enumerate(prepared.vocabularies.items()):
            code = graph.lookup(column, {n: float(k) for k, n in enumerate(names, start=1)}, 0.0)
            number = graph.add("Cast", [code], f"{column}_number", to=7)
            table = graph.constant(f"{column}_embedding", weights[f"embeddings.{i}.weight"])
            row = graph.add("Gather", [table, number], f"{column}_row", axis=0)
            parts.append(graph.add("Flatten", [row], f"{column}_embedded", axis=1))
        if prepared.numeric:
            parts += self._numbers(graph)
        x = graph.join(parts, "joined")
        for i in range(len(self.params.hidden)):
            x = graph.add("Relu", [self._linear(graph, weights, f"hidden.{i}", x)], f"relu_{i}")
        return graph.finish(self._linear(graph, weights, "out", x))

    def to_safetensors(self) -> bytes | None:
        """Weights, with the preparation beside them as metadata."""
        return encode(self.network.state_dict(), {"format": FORMAT, "preparation": vars(self.preparation)})

    def _numbers(self, graph: Graph) -> list[str]:
        prepared = self.preparation
        mean = graph.constant("mean", np.array(prepared.mean, dtype=np.float32))
        std = graph.constant("std", np.array(prepared.std, dtype=np.float32))
        limits = [graph.constant(n, np.float32(v)) for n, v in (("low", -prepared.clip), ("high", prepared.clip))]
        raw = graph.join(prepared.numeric, "raw")
        missing = graph.add("IsNaN", [raw], "missing")
        known = graph.add("Where", [missing, mean, raw], "known")
        centred = graph.add("Sub", [known, mean], "centred")
        scaled = graph.add("Clip", [graph.add("Div", [centred, std], "divided"), *limits], "scaled")
        return [scaled, graph.add("Cast", [missing], "indicators", to=1)]

    @staticmethod
    def _linear(graph: Graph, weights: Mapping[str, Any], layer: str, x: str) -> str:
        names = [graph.constant(f"{layer}.{part}", weights[f"{layer}.{part}"]) for part in ("weight", "bias")]
        return graph.add("Gemm", [x, *names], f"{layer}.y", transB=1)


class TabularMlp:
    """See the module."""

    parameters = TabularMlpParameters

    def fit(
        self,
        frame: TrainingRows,
        params: TabularMlpParameters,
        *,
        seed: int,
        threads: int,
        warm_start: bytes | None = None,
        progress: Progress = lambda step, steps, metrics: None,
        checkpoints: Checkpoints | None = None,
        clock: StepClock | None = None,
    ) -> FittedMlp:
        """Train; where there is a checkpoint of this very training, go on from it."""
        device = _device()
        with deterministic(seed, threads):
            champion = _usable(warm_start, frame, params)
            prepared = _prepare(frame, params, champion)
            network = _new_network(prepared, params)
            if champion is not None:
                _warm(network, prepared, champion)
                params = params.model_copy(update={"epochs": params.warm_epochs})
            data = _batches(frame, prepared, params, device)
            training = _fingerprint(frame, prepared, params, seed, warm_start)
            weights = trained(network.to(device), log_loss, data, params, training, seed, progress, checkpoints, clock)
            network = _new_network(prepared, params)
            network.load_state_dict(weights)
        return FittedMlp(network.cpu(), prepared, params)


def _device() -> torch.device:
    """Where to train. A GPU by its number: the current one is each thread's own."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _batches(
    frame: TrainingRows, prepared: Preparation, params: TabularMlpParameters, device: torch.device
) -> BatchSource:
    """All rows on the device, or windows of them."""
    if isinstance(frame, TrainingStream):
        return StreamedBatches(frame, prepared.encode, params.window_rows, device)
    return Batches(*(t.to(device) for t in prepared.encode(frame).tensors))


def log_loss(network: Any, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean cross-entropy of the batch's labels, in 32 bits."""
    categories, numbers, labels = batch
    return nn.functional.binary_cross_entropy_with_logits(network(categories, numbers).float(), labels)


@dataclass(frozen=True)
class _Champion:
    preparation: Preparation
    tensors: dict[str, torch.Tensor]


def _usable(warm_start: bytes | None, frame: TrainingRows, params: TabularMlpParameters) -> _Champion | None:
    """The champion's weights where they fit this training: same columns, same widths."""
    if warm_start is None or metadata(warm_start).get("format") != FORMAT:
        return None
    raw = metadata(warm_start)["preparation"]
    prepared = Preparation(**{**raw, "numeric": tuple(raw["numeric"])})
    tensors = load_tensors(warm_start)
    shapes = [tuple(t.shape) for name, t in sorted(tensors.items()) if name.startswith("hidden") and t.dim() == 2]
    width = len(prepared.vocabularies) * params.embedding + 2 * len(prepared.numeric)
    wanted = [(b, a) for a, b in zip((width, *params.hidden), params.hidden, strict=False)]
    same_columns = tuple(prepared.vocabularies) == frame.categorical and prepared.numeric == frame.numeric
    if not same_columns or shapes != wanted:
        log.info("the champion has other features or widths: training starts from nothing")
        return None
    return _Champion(prepared, tensors)


def _prepare(frame: TrainingRows, params: TabularMlpParameters, champion: _Champion | None) -> Preparation:
    """Vocabulary and scale of the frame; a champion keeps its scale and the numbers of its categories."""
    known = champion.preparation.vocabularies if champion else {}
    vocabularies = {}
    for column in frame.categorical:
        counts = frame.category_counts(column)
        common = {name for name, count in counts.items() if name and count >= params.min_category_rows}
        kept = known.get(column, [])
        vocabularies[column] = [*kept, *sorted(common - set(kept))]
    if champion:
        return replace(champion.preparation, vocabularies=vocabularies)
    moments = frame.moments
    return Preparation(
        vocabularies=vocabularies,
        numeric=frame.numeric,
        mean=moments.mean.astype(np.float32).tolist(),
        std=np.where(moments.std > 1e-6, moments.std, 1.0).astype(np.float32).tolist(),
        clip=params.clip,
    )


def _new_network(prepared: Preparation, params: TabularMlpParameters) -> Network:
    sizes = [len(names) + 1 for names in prepared.vocabularies.values()]
    return Network(sizes, 2 * len(prepared.numeric), params)


def _warm(network: Any, prepared: Preparation, champion: _Champion) -> None:
    """Take the champion's weights; a category that it did not know starts as the unknown one."""
    tensors = dict(champion.tensors)
    for i, names in enumerate(prepared.vocabularies.values()):
        name = f"embeddings.{i}.weight"
        added = len(names) + 1 - len(tensors[name])
        tensors[name] = torch.cat([tensors[name], tensors[name][:1].repeat(added, 1)])
    network.load_state_dict(tensors)


def _fingerprint(
    frame: TrainingRows, prepared: Preparation, params: TabularMlpParameters, seed: int, warm_start: bytes | None
) -> str:
    """Names this very training: a checkpoint of another one is not taken up."""
    digest = hashlib.sha256(frame.labels_sha256.encode())
    digest.update(json.dumps([FORMAT, params.model_dump(), vars(prepared), seed], sort_keys=True).encode())
    digest.update(warm_start or b"")
    return digest.hexdigest()


RECIPE = TabularMlp()
