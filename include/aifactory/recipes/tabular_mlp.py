"""A small neural network over categories and numbers: what continues from the champion instead of starting anew.

Categories become embeddings (index 0: unknown), numbers are standardised with an indicator for missing ones. The
whole training set lies in memory as tensors, and a batch is a gather by index: no loader process, no collating.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from aifactory.errors import TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.recipes.base import Checkpoints, Parameters, Progress, Stopped, TrainingFrame, codes, matrix
from aifactory.recipes.graph import Graph

log = logging.getLogger(__name__)

FORMAT = "tabular_mlp/1"
_LAST_SAVE_S = 20.0
"""How long a training that is asked to stop waits for its checkpoint, s: less than a pod's grace."""


class TabularMlpParameters(Parameters):
    """What can be turned."""

    hidden: tuple[int, ...] = Field((128, 64), min_length=1, description="Widths of the hidden layers.")
    embedding: int = Field(8, ge=1, le=256, description="Width of every embedding.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of hidden units dropped in training.")
    epochs: int = Field(8, ge=1, description="Passes over the data of a training from nothing.")
    warm_epochs: int = Field(3, ge=1, description="Passes over the data of a training that goes on from a champion.")
    batch_rows: int = Field(1024, ge=1, description="Rows of a batch.")
    learning_rate: float = Field(3e-3, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    warmup_share: float = Field(0.1, ge=0, le=1, description="Share of the steps over which the rate rises.")
    clip: float = Field(5.0, gt=0, description="Standardised numbers are cut at plus and minus this.")
    min_category_rows: int = Field(30, ge=1, description="A category with fewer rows counts as unknown.")
    report_every: int = Field(20, ge=1, description="Steps between two reports of progress.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between two checkpoints.")


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
        scaled = ((torch.where(missing, mean, raw) - mean) / std).clamp(-self.clip, self.clip)
        return torch.cat([scaled, missing.float()], dim=1)


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
        return _save(self.network.state_dict(), {"format": FORMAT, "preparation": vars(self.preparation)})

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
        frame: TrainingFrame,
        params: TabularMlpParameters,
        *,
        seed: int,
        threads: int,
        warm_start: bytes | None = None,
        progress: Progress = lambda step, steps, metrics: None,
        checkpoints: Checkpoints | None = None,
    ) -> FittedMlp:
        """Train; where there is a checkpoint of this very training, go on from it."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with deterministic(seed, threads):
            champion = _usable(warm_start, frame, params)
            prepared = _prepare(frame, params, champion)
            network = _new_network(prepared, params)
            if champion is not None:
                _warm(network, prepared, champion)
                params = params.model_copy(update={"epochs": params.warm_epochs})
            data = Batches(
                prepared.categories(frame.table).to(device),
                prepared.numbers(frame.table).to(device),
                torch.from_numpy(frame.labels).to(device),
            )
            training = _fingerprint(frame, prepared, params, seed, warm_start)
            if checkpoints is None:
                train_loop(network.to(device), data, params, seed, progress)
            else:
                with checkpoints.attended():
                    keeper = Keeper(checkpoints, training, params.checkpoint_every)
                    train_loop(network.to(device), data, params, seed, progress, keeper)
        return FittedMlp(network.cpu(), prepared, params)


@dataclass(frozen=True)
class Batches:
    """The training set as tensors on the device: categories int64 [n, c], numbers float32 [n, k], labels [n]."""

    categories: torch.Tensor
    numbers: torch.Tensor
    labels: torch.Tensor


def train_loop(
    network: Any,
    data: Batches,
    params: TabularMlpParameters,
    seed: int,
    progress: Progress,
    keeper: Keeper | None = None,
) -> None:
    """The training, top to bottom. Its cost is the forward and backward pass; the rest is kept out of its way."""
    device = data.labels.device
    num_rows = len(data.labels)
    steps_per_epoch = math.ceil(num_rows / params.batch_rows)
    num_steps = params.epochs * steps_per_epoch
    optimizer = EagerAdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    start = keeper.resume(network, optimizer, num_steps) if keeper else 0
    network.train()
    order = torch.empty(0)
    told_at, told_step = time.perf_counter(), start
    for step in range(start, num_steps):
        epoch, batch = divmod(step, steps_per_epoch)
        if batch == 0 or step == start:  # the order is a function of seed and epoch: the position is all to resume
            order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).to(
                device
            )
        rows = order[batch * params.batch_rows : (batch + 1) * params.batch_rows]
        rate = learning_rate(step, num_steps, params)
        for group in optimizer.param_groups:
            group["lr"] = rate

        # bf16 on a GPU keeps the range of fp32, so no loss scaling; the weights and AdamW stay in fp32
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(data.categories.index_select(0, rows), data.numbers.index_select(0, rows))
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), data.labels.index_select(0, rows))

        value = loss.item()  # waits for the forward pass: the price of never stepping on a broken loss
        if not math.isfinite(value):
            raise TrainingDefect(
                ReasonCode.LOSS_NOT_FINITE,
                f"the loss is {value} at step {step} of {num_steps} (learning rate {rate:.2e}), so no step was "
                f"taken; lower learning_rate, or look for infinite values in the features",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

        done = step + 1
        if done % params.report_every == 0 or done == num_steps:
            now = time.perf_counter()
            speed = (done - told_step) * params.batch_rows / max(now - told_at, 1e-9)
            progress(done, num_steps, {"train_loss": value, "learning_rate": rate, "rows_per_s": speed})
            told_at, told_step = now, done
        if keeper and done < num_steps:
            keeper.after_step(done, network, optimizer)  # a look at a flag and at the clock, seldom a copy of tensors


class EagerAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW that does not import torch's compiler.

    The stock methods are wrapped so that a compiler would leave them alone, and load it (2 s) to say so. Nothing here
    is compiled: these are the same methods without the wrapping.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def learning_rate(step: int, num_steps: int, params: TabularMlpParameters) -> float:
    """Linear warm-up, then half a cosine down to nothing (Loshchilov & Hutter 2017); a function of the step alone."""
    warmup = max(1, round(num_steps * params.warmup_share))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    return params.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))) / 2


class Keeper:
    """What this network's training needs to go on: weights, optimizer, position and random state.

    The learning rate and the order of the rows follow from the step. Snapshots are copied in the loop, which costs
    milliseconds; the rest is done beside it.
    """

    def __init__(self, checkpoints: Checkpoints, training: str, every: int) -> None:
        self._checkpoints = checkpoints
        self._training = training
        self._every = every

    def after_step(self, step: int, network: Any, optimizer: Any) -> None:
        """Keep a checkpoint where it is time for one; `step` steps are done.

        Raises:
            Stopped: the training was asked to stop, and its checkpoint is kept.
        """
        stopping = self._checkpoints.stopping
        if not stopping and not self._checkpoints.due(step, self._every):
            return
        began = time.perf_counter()
        tensors, about = _snapshot(network, optimizer), {"training": self._training, "step": step}
        self._checkpoints.save(step, lambda: _save(tensors, about), time.perf_counter() - began)
        if stopping:
            written = self._checkpoints.flush(_LAST_SAVE_S)
            log.info("asked to stop after step %d, its checkpoint is %s", step, "kept" if written else "not written")
            raise Stopped

    def resume(self, network: Any, optimizer: Any, num_steps: int) -> int:
        """Take up the newest checkpoint of this very training; the number of steps that are done, 0 without one."""
        for step, kept in self._checkpoints.candidates():
            try:
                about = metadata(kept)
                tensors = load_tensors(kept)
            except (ValueError, SafetensorError) as error:
                log.warning("the checkpoint after step %d is not one of this recipe (%s): passed over", step, error)
                continue
            if (about.get("training"), about.get("step")) != (self._training, step):
                log.warning("the checkpoint after step %d is of another training: passed over", step)
                continue
            _restore(tensors, network, optimizer)
            log.info("going on after step %d of %d, from a checkpoint", step, num_steps)
            return step
        return 0


def _snapshot(network: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """A copy of all that changes, on the CPU."""
    tensors = {f"model.{name}": t for name, t in network.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": t for name, t in state.items()}
    copied = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
    copied["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        copied["rng.cuda"] = torch.cuda.get_rng_state()
    return copied


def _restore(tensors: Mapping[str, torch.Tensor], network: Any, optimizer: Any) -> None:
    """Put a snapshot back."""
    network.load_state_dict({k[6:]: t for k, t in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Make torch's random choices and kernels repeatable, and give back what was set before."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("error")  # what use_deterministic_algorithms does, but for the compiler
        # Every new tensor would be filled, 3 % of the time; no kernel here reads what nobody has written.
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_deterministic_debug_mode(before[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled


def _save(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors and JSON beside them; under one key, for safetensors writes several in any order."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save_tensors(plain, metadata={"about": json.dumps(about)}))


def metadata(safetensors: bytes) -> dict[str, Any]:
    """What `_save` put beside the tensors; the loader for bytes does not give it: 8 bytes length, JSON header."""
    size = int.from_bytes(safetensors[:8], "little")
    header = json.loads(safetensors[8 : 8 + size])
    about: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("about", "{}"))
    return about


@dataclass(frozen=True)
class _Champion:
    preparation: Preparation
    tensors: dict[str, torch.Tensor]


def _usable(warm_start: bytes | None, frame: TrainingFrame, params: TabularMlpParameters) -> _Champion | None:
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


def _prepare(frame: TrainingFrame, params: TabularMlpParameters, champion: _Champion | None) -> Preparation:
    """Vocabulary and scale of the frame; a champion keeps its scale and the numbers of its categories."""
    known = champion.preparation.vocabularies if champion else {}
    vocabularies = {}
    for column in frame.categorical:
        counts = pc.value_counts(frame.table[column].cast(pa.string()).combine_chunks()).to_pylist()
        common = {c["values"] for c in counts if c["values"] and c["counts"] >= params.min_category_rows}
        kept = known.get(column, [])
        vocabularies[column] = [*kept, *sorted(common - set(kept))]
    if champion:
        return replace(champion.preparation, vocabularies=vocabularies)
    raw = matrix(frame.table, frame.numeric).astype(np.float64)
    present = ~np.isnan(raw)
    count = np.maximum(present.sum(axis=0), 1)
    mean = np.where(present, raw, 0).sum(axis=0) / count
    std = np.sqrt((np.where(present, raw - mean, 0) ** 2).sum(axis=0) / count)
    return Preparation(
        vocabularies=vocabularies,
        numeric=frame.numeric,
        mean=mean.astype(np.float32).tolist(),
        std=np.where(std > 1e-6, std, 1.0).astype(np.float32).tolist(),
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
    frame: TrainingFrame, prepared: Preparation, params: TabularMlpParameters, seed: int, warm_start: bytes | None
) -> str:
    """Names this very training: a checkpoint of another one is not taken up."""
    digest = hashlib.sha256(frame.labels.tobytes())
    digest.update(json.dumps([FORMAT, params.model_dump(), vars(prepared), seed], sort_keys=True).encode())
    digest.update(warm_start or b"")
    return digest.hexdigest()


RECIPE = TabularMlp()
