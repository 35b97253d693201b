"""A decoder-only transformer of GPT-2's shape (Radford et al. 2019), trained by the factory's loop.

No line's recipe: it learns from a stream of tokens, and what it gives is weights. It shows what the loop makes of a
GPU. Blocks are pre-norm, the output layer is the token embeddings, attention is fused. As the defaults stand it is
GPT-2 small: 124M weights.

B sequences of a batch, T tokens of a sequence, V token numbers, W width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from aifactory.recipes.base import Checkpoints, Progress
from aifactory.recipes.batches import Batch, Gathered, batches_of_all
from aifactory.recipes.clock import StepClock
from aifactory.recipes.loop import LoopParameters, trained

FORMAT = "decoder/1"


class DecoderParameters(LoopParameters):
    """What can be turned. A row of a batch is a sequence."""

    layers: int = Field(12, ge=1, description="Blocks.")
    heads: int = Field(12, ge=1, description="Attention heads of a block; they divide the width.")
    width: int = Field(768, ge=1, description="Width of the residual stream.")
    context: int = Field(1024, ge=1, description="Tokens of a sequence.")
    vocabulary: int = Field(50304, ge=2, description="Token numbers; GPT-2's 50257, padded to a multiple of 64.")
    compiled: bool = Field(False, description="Compile forward and backward pass: for GPUs; takes a minute at first.")
    epochs: int = Field(1, ge=1, description="Passes over the data.")
    batch_rows: int = Field(512, ge=1, description="Sequences of a batch, those of all processes together.")
    learning_rate: float = Field(6e-4, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay of AdamW.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DecoderParameters:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}; take a width that they divide")
        return self


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a layer of four times the width, each added to what came in."""

    def __init__(self, params: DecoderParameters) -> None:
        super().__init__()
        self.heads = params.heads
        self.norm_attention = nn.LayerNorm(params.width)
        self.attention_in = nn.Linear(params.width, 3 * params.width)
        self.attention_out = nn.Linear(params.width, params.width)
        self.norm_mlp = nn.LayerNorm(params.width)
        self.mlp_in = nn.Linear(params.width, 4 * params.width)
        self.mlp_out = nn.Linear(4 * params.width, params.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream [B, T, W], a block further."""
        x = x + self._attention(self.norm_attention(x))
        return x + self.mlp_out(nn.functional.gelu(self.mlp_in(self.norm_mlp(x)), approximate="tanh"))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attention_in(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, Q] each
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attention_out(seen.transpose(1, 2).flatten(2))


class Decoder(nn.Module):  # type: ignore[misc]
    """See the module. Its blocks are called `hidden`, as `parallel` looks for layers to share out."""

    def __init__(self, params: DecoderParameters) -> None:
        super().__init__()
        self.tokens = nn.Embedding(params.vocabulary, params.width)
        self.positions = nn.Embedding(params.context, params.width)
        self.hidden = nn.ModuleList([Block(params) for _ in range(params.layers)])
        self.norm = nn.LayerNorm(params.width)
        self._initialise(params.layers)

    @property
    def num_weights(self) -> int:
        """All weights."""
        return sum(p.numel() for p in self.parameters())

    @property
    def num_multiplied(self) -> int:
        """Weights but for the position embeddings: the N of `mfu`."""
        return self.num_weights - int(self.positions.weight.numel())

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of every next token [B, T, V], of tokens int64 [B, T]."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.hidden:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.tokens.weight)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the next tokens, nats; in one with the logits, so that a compiler fuses the two."""
        return nn.functional.cross_entropy(self.logits(tokens).flatten(0, 1).float(), targets.flatten())

    def _initialise(self, layers: int) -> None:
        """As GPT-2: what adds to the residual stream starts the smaller, the more of it there is."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                adds = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)


@dataclass(frozen=True)
class Sequences:
    """A stream of tokens, int64 [n] on the device, cut into sequences of `context` tokens: each is a row."""

    stream: torch.Tensor
    context: int

    @property
    def device(self) -> torch.device:
        """Where the stream is."""
        return self.stream.device

    @property
    def num_rows(self) -> int:
        """Sequences; a token after the last of them is left for its target."""
        return (len(self.stream) - 1) // self.context

    def batches(self, start: int, num_steps: int, batch_rows: int, seed: int) -> Generator[Batch, None, None]:
        """See `BatchSource`."""
        for rows in batches_of_all(self.num_rows, self.device, start, num_steps, batch_rows, seed):
            yield Gathered(self, rows)

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `Held`: tokens of the sequences, and the token after each, int64 [B, T], twice."""
        first = (rows * self.context).unsqueeze(1)
        found = self.stream[first + torch.arange(self.context + 1, device=self.device)]
        return found[:, :-1], found[:, 1:]


def next_token_loss(network: Any, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The loss of a batch of `Sequences`."""
    tokens, targets = batch
    return network(tokens, targets)


def new_decoder(params: DecoderParameters, seed: int, device: torch.device) -> Decoder:
    """An untrained decoder; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Decoder(params)
    network.to(device)
    if params.compiled:
        network.compile()
    return network


def fit(
    stream: torch.Tensor,
    params: DecoderParameters,
    *,
    seed: int,
    progress: Progress = lambda step, steps, metrics: None,
    checkpoints: Checkpoints | None = None,
    clock: StepClock | None = None,
) -> Decoder:
    """Train on a stream of tokens, int64 [n], on the device where it is; the decoder on the CPU.

    Kernels are not made to repeat to the bit, which would cost a fused attention on a GPU its speed.

    Raises:
        TrainingDefect: the loss is not finite.
        Stopped: it was asked to stop, and its checkpoint is kept.
    """
    told = json.dumps([FORMAT, params.model_dump(), seed], sort_keys=True).encode()
    training = hashlib.sha256(told + stream.cpu().numpy().tobytes()).hexdigest()
    network = new_decoder(params, seed, stream.device)
    data = Sequences(stream, params.context)
    weights = trained(network, next_token_loss, data, params, training, seed, progress, checkpoints, clock)
    fitted = new_decoder(params.model_copy(update={"compiled": False}), seed, torch.device("cpu"))
    fitted.load_state_dict(weights)
    return fitted
