"""The one loop that trains networks: batches of rows, a loss, AdamW, in as many processes as there are.

What a row is and what a batch costs is the recipe's: the loop takes rows by their numbers, and a loss of a batch.
Several processes share a training as `parallel` says.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Literal

import torch
from pydantic import Field

from aifactory.errors import TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.recipes.base import Checkpoints, Parameters, Progress
from aifactory.recipes.batches import BatchSource
from aifactory.recipes.clock import Part, StepClock
from aifactory.recipes.keeper import Keeper, ShardKeeper, own_seed
from aifactory.recipes.parallel import ALONE, Sharding, Team, Wish, team

LossOf = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]
"""The mean loss over the rows of a batch, of a network and what `Batch.take` gave."""


class LoopParameters(Parameters):
    """What can be turned about any training by this loop."""

    epochs: int = Field(8, ge=1, description="Passes over the data of a training from nothing.")
    batch_rows: int = Field(1024, ge=1, description="Rows of a batch, those of all processes together.")
    accumulate: int = Field(1, ge=1, description="Parts of a batch whose gradients are added up, to save memory.")
    sharding: Sharding = Field("none", description="Of several processes each has a copy (none) or a part (full).")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="Of the forward pass; auto: bf16 on GPUs.")
    learning_rate: float = Field(3e-3, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    warmup_share: float = Field(0.1, ge=0, le=1, description="Share of the steps over which the rate rises.")
    report_every: int = Field(20, ge=1, description="Steps between two reports of progress.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between two checkpoints.")


def trained(
    network: Any,
    loss_of: LossOf,
    data: BatchSource,
    params: LoopParameters,
    training: str,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
    clock: StepClock | None = None,
) -> dict[str, torch.Tensor]:
    """The weights after the training, on the CPU; where there is a checkpoint of it, it goes on from there.

    Args:
        network: as it is at the start, on the device of the data; spent afterwards.
        training: names this very training; a checkpoint of another one is passed over.
    """
    here = team()
    wrapped = here.wrapped(network, params.sharding)
    if here.size > 1:
        torch.manual_seed(own_seed(seed, 0, here.rank))
    if checkpoints is None:
        train_loop(wrapped, loss_of, data, params, seed, progress, team=here, clock=clock)
    else:
        kind = Keeper if here.size == 1 else ShardKeeper
        with checkpoints.attended():
            keeper = kind(checkpoints, training, params.checkpoint_every, seed, here.rank)
            train_loop(wrapped, loss_of, data, params, seed, progress, keeper, here, clock)
    return here.weights(wrapped)


def train_loop(
    network: Any,
    loss_of: LossOf,
    data: BatchSource,
    params: LoopParameters,
    seed: int,
    progress: Progress,
    keeper: Keeper | None = None,
    team: Team = ALONE,
    clock: StepClock | None = None,
) -> None:
    """The training, top to bottom. Its cost is the forward and backward pass; the rest is kept out of its way."""
    device = data.device
    clock = clock or StepClock()
    data_wait, host, compute, checkpoint = Part.DATA_WAIT, Part.HOST, Part.COMPUTE, Part.CHECKPOINT
    passes = host if device.type == "cuda" else compute  # a GPU computes while the host launches
    waiting = compute if team.size == 1 else Part.COMMUNICATION  # what the passes themselves send is in them
    num_steps = params.epochs * math.ceil(data.num_rows / params.batch_rows)
    optimizer = EagerAdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    start = keeper.resume(network, optimizer, num_steps) if keeper else 0
    # bf16 on a GPU keeps the range of fp32, so no loss scaling; the weights and AdamW stay in fp32
    bf16 = params.precision == "bf16" or (params.precision == "auto" and device.type == "cuda")
    network.train()
    told_at, told_step = time.perf_counter(), start
    clock.step(start)
    with closing(data.batches(start, num_steps, params.batch_rows, seed)) as batches:
        for step in range(start, num_steps):
            clock.enter(data_wait)
            batch = next(batches)
            clock.enter(host)
            rate = learning_rate(step, num_steps, params)
            for group in optimizer.param_groups:
                group["lr"] = rate

            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=device)
            for number, (part, share) in enumerate(team.micro_batches(batch.num_rows, params.accumulate), start=1):
                clock.enter(data_wait)
                taken = batch.take(part)
                clock.enter(passes)
                with nullcontext() if number == params.accumulate else team.collecting(network):
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                        mean = loss_of(network, taken)
                    _times(mean, share * team.size).backward()  # the processes' gradients are averaged
                    loss += _times(mean.detach(), share)

            # waits for the forward and backward pass: the price of never stepping on a broken loss
            clock.enter(waiting)
            value, wish = team.agree(loss, keeper.wish(step + 1) if keeper else Wish())
            clock.enter(passes)
            if not math.isfinite(value):
                raise TrainingDefect(
                    ReasonCode.LOSS_NOT_FINITE,
                    f"the loss is {value} at step {step} of {num_steps} (learning rate {rate:.2e}), so no step was "
                    f"taken; lower learning_rate, or look for infinite values in the data",
                )
            optimizer.step()

            done = step + 1
            clock.step(done)
            if done % params.report_every == 0 or done == num_steps:
                now = time.perf_counter()
                speed = (done - told_step) * params.batch_rows / max(now - told_at, 1e-9)
                progress(done, num_steps, {"train_loss": value, "learning_rate": rate, "rows_per_s": speed})
                told_at, told_step = now, done
            if keeper and done < num_steps:
                clock.enter(checkpoint)
                keeper.after_step(done, network, optimizer, wish)  # seldom a copy of tensors
                clock.enter(host)


def _times(loss: torch.Tensor, weight: float) -> torch.Tensor:
    """The loss by its weight, which is 1 where a process has the whole batch: then it is left as it is, to the bit."""
    return loss if weight == 1 else loss * weight


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


def learning_rate(step: int, num_steps: int, params: LoopParameters) -> float:
    """Linear warm-up, then half a cosine down to nothing (Loshchilov & Hutter 2017); a function of the step alone."""
    warmup = max(1, round(num_steps * params.warmup_share))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    return params.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup))) / 2


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
