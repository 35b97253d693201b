"""One training by several processes: who takes which rows, and what all must agree on.

Every process holds all rows and takes its slice of every batch. A slice counts by its share of the batch's rows, so
gradient and loss are those of one process, batches that do not divide included.

    none    DDP (Li et al. 2020): every process has a copy of the model, gradients are averaged
    full    FSDP2 (Zhao et al. 2023): every process has a part of weights, gradients and optimizer state
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch

Sharding = Literal["none", "full"]


@dataclass(frozen=True)
class Wish:
    """What a process would do after a step: save and stop, or save."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Team:
    """The processes of a training, seen by one of them. This one is alone; see `Ranks`."""

    rank: int = 0
    size: int = 1

    def micro_batches(self, num_rows: int, number: int) -> list[tuple[slice, float]]:
        """This process's rows of a batch in equally many parts everywhere, and each part's share of the batch.

        A part that would be empty is one row that counts nothing: the others wait for this process to take part.
        """
        if self.size == number == 1:
            return [(slice(num_rows), 1.0)]
        parts = _split(*_split(0, num_rows, self.size)[self.rank], number)
        return [(slice(a, b), (b - a) / num_rows) if b > a else (slice(1), 0.0) for a, b in parts]

    def wrapped(self, network: Any, sharding: Sharding) -> Any:
        """The network as it is trained; its gradients are means over the processes."""
        return network

    @contextmanager
    def collecting(self, network: Any) -> Iterator[None]:
        """Within, gradients are added up here and not sent: another part of the batch is to come."""
        yield

    def agree(self, loss: torch.Tensor, wish: Wish) -> tuple[float, Wish]:
        """The loss of the whole batch, and what all do: stop if one is asked to, save if the first says so.

        Waits for the forward and backward pass.
        """
        return loss.item(), wish

    def weights(self, network: Any) -> dict[str, torch.Tensor]:
        """The trained weights, whole, on the CPU, by their names in the network that was wrapped."""
        return {name: t.detach().cpu() for name, t in network.state_dict().items()}


ALONE = Team()


class Ranks(Team):
    """One of several processes, joined by `torch.distributed`."""

    def wrapped(self, network: Any, sharding: Sharding) -> Any:
        """A copy of the network in each process, or a part of it."""
        device = next(network.parameters()).device
        if sharding == "none":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        for layer in network.hidden:
            fully_shard(layer, mesh=mesh)  # a layer's weights are gathered while the one before computes
        return fully_shard(network, mesh=mesh)

    @contextmanager
    def collecting(self, network: Any) -> Iterator[None]:
        """DDP's `no_sync`, or the same of FSDP."""
        if hasattr(network, "no_sync"):
            with network.no_sync():
                yield
            return
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)

    def agree(self, loss: torch.Tensor, wish: Wish) -> tuple[float, Wish]:
        """One sum over three numbers a step."""
        wishes = torch.tensor([wish.stop, wish.save and self.rank == 0], dtype=torch.float32, device=loss.device)
        told = torch.cat([loss.detach().float().view(1), wishes])
        torch.distributed.all_reduce(told)
        value, stop, save = told.tolist()
        return value, Wish(stop > 0, save > 0)

    def weights(self, network: Any) -> dict[str, torch.Tensor]:
        """Gathered tensor by tensor, in every process."""
        from torch.distributed.tensor import DTensor

        tensors = unwrapped(network).state_dict()
        return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu() for name, t in tensors.items()}


def _split(begin: int, end: int, number: int) -> list[tuple[int, int]]:
    """Begin and end of so many parts that follow one another, the first of them longer by one where need be."""
    each, more = divmod(end - begin, number)
    return list(pairwise(begin + each * i + min(i, more) for i in range(number + 1)))


def team() -> Team:
    """The processes that have joined, or this one alone."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def unwrapped(network: Any) -> Any:
    """The network itself, without what DDP puts around it."""
    return getattr(network, "module", network)
