"""The decoder of 124M weights on a GPU: tokens a second of the factory's loop against a bare loop, and its MFU.

bf16, compiled, fused attention and optimizer. Both train the same network from the same weights on the same batches at
the same rates, in turns. The bare loop does the steps and nothing else: no check of the loss, no clock, no progress, no
look for a checkpoint, and its batches lie ready. MFU is by `aifactory.training.mfu`, of one GPU.

`python -m bench decoder`; without a GPU it is skipped, and a unit test runs it in small.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.memory_store import MemoryStore

from aifactory.recipes.decoder import Decoder, DecoderParameters, Sequences, new_decoder, next_token_loss
from aifactory.recipes.keeper import Keeper
from aifactory.recipes.loop import learning_rate, train_loop
from aifactory.recipes.parallel import ALONE
from aifactory.training.checkpoints import StoreCheckpoints
from aifactory.training.mfu import flops_per_token, peak_flops, utilisation
from aifactory.training.stop import StopSignal
from bench.ratio import Ratio, Skipped

NUM_ROUNDS = 6
NUM_STEPS = 4  # of half a million tokens each, as GPT-3 Small was trained (Brown et al. 2020, table 2.1)
SEED = 1

Batch = list[tuple[torch.Tensor, ...]]
"""The parts of a batch, whose gradients are added up."""


@dataclass
class Measured:
    """Seconds of every round of as many tokens, and the losses of every step of the first round, which warms up."""

    num_tokens: int
    num_multiplied: int
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    ours_losses: list[float] = field(default_factory=list)
    bare_losses: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Tokens a second of ours ÷ of the bare loop: the median of rounds."""
        return statistics.median(b / o for b, o in zip(self.bare_s, self.ours_s, strict=True))

    @property
    def tokens_per_s(self) -> float:
        """Of ours."""
        return self.num_tokens / statistics.median(self.ours_s)


def run() -> list[Ratio]:
    """Rate of the factory's loop ÷ rate of the bare loop, at least 0.97; MFU, at least 0.5."""
    if not torch.cuda.is_available():
        raise Skipped("needs an NVIDIA GPU: a decoder of 124M weights in bf16 tells nothing on a CPU")
    device = torch.device("cuda")
    gpu = torch.cuda.get_device_properties(device)
    params = DecoderParameters(compiled=True, accumulate=accumulate(gpu.total_memory))
    measured = measure(params, device, NUM_STEPS, NUM_ROUNDS)
    losses = zip(measured.ours_losses, measured.bare_losses, strict=True)
    peak = peak_flops(gpu.name)
    detail: dict[str, Any] = {
        "device": gpu.name,
        "torch": torch.__version__,
        "tokens_per_s": round(measured.tokens_per_s),
        "bare_tokens_per_s": round(measured.num_tokens / statistics.median(measured.bare_s)),
        "tokens_of_a_step": params.batch_rows * params.context,
        "accumulate": params.accumulate,
        "rounds": [round(b / o, 3) for b, o in zip(measured.bare_s, measured.ours_s, strict=True)],
        "largest_difference_of_losses": max(abs(a - b) for a, b in losses),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "peak_flops": peak or f"not known of {gpu.name!r}, so there is no MFU: add it to aifactory.training.mfu",
    }
    ratios = [Ratio("decoder ÷ bare torch loop, tokens/s", measured.ratio, 0.97, at_most=False, detail=detail)]
    if peak is not None:
        flops = flops_per_token(
            measured.num_multiplied, params.layers, params.heads, params.width // params.heads, params.context
        )
        mfu = utilisation(measured.tokens_per_s, flops, peak)
        words = {"flops_per_token": flops, "tflops_per_s": round(measured.tokens_per_s * flops / 1e12, 1)}
        ratios.append(Ratio("decoder, model FLOPs utilisation", mfu, 0.5, at_most=False, detail=words))
    return ratios


def accumulate(memory: int) -> int:
    """Parts of a batch of 512 sequences that should fit into so many bytes of a GPU."""
    return 8 if memory >= 70e9 else 16 if memory >= 38e9 else 64


def measure(params: DecoderParameters, device: torch.device, num_steps: int, num_rounds: int) -> Measured:
    """Ours and bare in turns, `num_rounds` times `num_steps` steps after a round to warm up."""
    num_tokens = num_steps * params.batch_rows * params.context
    generator = torch.Generator().manual_seed(SEED)
    data = Sequences(
        torch.randint(params.vocabulary, (num_tokens + 1,), generator=generator).to(device), params.context
    )
    network = new_decoder(params, SEED, device)
    at_first = {name: t.clone() for name, t in network.state_dict().items()}
    measured = Measured(num_tokens, network.num_multiplied)
    batches = batches_of(data, params, num_steps)
    for number in range(num_rounds + 1):
        first = number == 0
        asked = params.model_copy(update={"report_every": 1}) if first else params
        losses: list[list[float]] = []
        contenders: list[tuple[list[float], Callable[[], list[float]]]] = [
            (measured.ours_s, lambda asked=asked: ours(network, data, asked)),
            (measured.bare_s, lambda: bare(network, batches, params)),
        ]
        for seconds, work in contenders if number % 2 == 0 else reversed(contenders):
            network.load_state_dict(at_first)
            spent, told = timed(work)
            losses.append(told)
            if not first:
                seconds.append(spent)
        if first:
            measured.ours_losses, measured.bare_losses = losses
    return measured


def ours(network: Decoder, data: Sequences, params: DecoderParameters) -> list[float]:
    """The factory's loop, with all that it does in a training; the losses that it told."""
    losses: list[float] = []
    place = StoreCheckpoints(MemoryStore(), "bench", StopSignal())  # type: ignore[arg-type]
    keeper = Keeper(place, "bench", params.checkpoint_every)
    train_loop(
        network, next_token_loss, data, params, SEED, lambda _, __, told: losses.append(told["train_loss"]), keeper
    )
    return losses


def bare(network: Decoder, batches: list[Batch], params: DecoderParameters) -> list[float]:
    """The steps and nothing else; the losses of all, which are looked at when it is over."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    rates = [learning_rate(step, len(batches), params) for step in range(len(batches))]
    device = network.tokens.weight.device
    losses = []
    network.train()
    for parts, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        for tokens, targets in parts:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = network(tokens, targets)
            (loss / len(parts)).backward()
            losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses).view(len(batches), -1).mean(dim=1).tolist()  # type: ignore[no-any-return]


def batches_of(data: Sequences, params: DecoderParameters, num_steps: int) -> list[Batch]:
    """All batches, in the loop's order."""
    batches = data.batches(0, num_steps, params.batch_rows, SEED)
    return [[b.take(part) for part, _ in ALONE.micro_batches(b.num_rows, params.accumulate)] for b in batches]


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds until all of the work is done, and what it gave."""
    settle()
    began = time.perf_counter()
    told = work()
    settle()
    return time.perf_counter() - began, told


def settle() -> None:
    """Wait until the GPU has nothing to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
