"""What a training needs to go on later: weights, optimizer, position and random state, as safetensors."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from aifactory.recipes.base import Checkpoints, ShardedCheckpoints, Stopped
from aifactory.recipes.parallel import Wish, unwrapped

log = logging.getLogger(__name__)

_LAST_SAVE_S = 20.0
"""How long a training that is asked to stop waits for its checkpoint, s: less than a pod's grace."""


class Keeper:
    """What this network's training needs to go on: weights, optimizer, position and random state.

    The learning rate and the order of the rows follow from the step. Snapshots are copied in the loop, which costs
    milliseconds; the rest is done beside it.
    """

    def __init__(self, checkpoints: Any, training: str, every: int, seed: int = 0, rank: int = 0) -> None:
        self._checkpoints: Checkpoints = checkpoints
        self._training = training
        self._every = every
        self._seed = seed
        self._rank = rank

    def wish(self, step: int) -> Wish:
        """What processes must agree on before `step` steps are done; one alone looks when they are."""
        return Wish()

    def after_step(self, step: int, network: Any, optimizer: Any, agreed: Wish) -> None:
        """Keep a checkpoint where it is time for one: a look at a flag and at the clock; `step` steps are done.

        Raises:
            Stopped: the training was asked to stop, and its checkpoint is kept.
        """
        stopping = self._checkpoints.stopping
        if stopping or self._checkpoints.due(step, self._every):
            self._keep_and_stop(step, network, optimizer, stopping)

    def _keep_and_stop(self, step: int, network: Any, optimizer: Any, stopping: bool) -> None:
        self._keep(step, network, optimizer)
        if stopping:
            written = self._checkpoints.flush(_LAST_SAVE_S)
            log.info("asked to stop after step %d, its checkpoint is %s", step, "kept" if written else "not written")
            raise Stopped

    def _keep(self, step: int, network: Any, optimizer: Any) -> None:
        began = time.perf_counter()
        tensors, about = _snapshot(network, optimizer), {"training": self._training, "step": step}
        self._checkpoints.save(step, lambda: encode(tensors, about), time.perf_counter() - began)

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


class ShardKeeper(Keeper):
    """The same of one of several processes: each keeps and takes up its part, whatever their number was.

    A process goes on with its own random numbers where as many processes as before go on, else with new ones.
    """

    _checkpoints: ShardedCheckpoints

    def wish(self, step: int) -> Wish:
        """Whether this process would stop after the step, or save."""
        stopping = self._checkpoints.stopping
        return Wish(stopping, stopping or self._checkpoints.due(step, self._every))

    def after_step(self, step: int, network: Any, optimizer: Any, agreed: Wish) -> None:
        """Keep a checkpoint where all agreed to.

        Raises:
            Stopped: one was asked to stop, and the checkpoint is kept.
        """
        if agreed.stop or agreed.save:
            self._keep_and_stop(step, network, optimizer, agreed.stop)

    def _keep(self, step: int, network: Any, optimizer: Any) -> None:
        began = time.perf_counter()
        tensors = {name: t.detach().clone() for name, t in _state(network, optimizer).items()}
        tensors |= {self._own(name): state for name, state in _random_state().items()}
        about = {"about": json.dumps({"training": self._training, "step": step})}
        self._checkpoints.save_shards(step, tensors, about, time.perf_counter() - began)

    def resume(self, network: Any, optimizer: Any, num_steps: int) -> int:
        """Take up the newest checkpoint of this very training; the number of steps that are done, 0 without one."""
        for kept in self._checkpoints.sharded():
            about = json.loads(kept.metadata.get("about", "{}"))
            if (about.get("training"), about.get("step")) != (self._training, kept.step):
                log.warning("the checkpoint after step %d is of another training: passed over", kept.step)
                continue
            _begin_state(optimizer)
            tensors = _state(network, optimizer)
            random = {name: state for name, state in _random_state().items() if self._own(name) in kept.tensors}
            self._checkpoints.load(kept, tensors | {self._own(name): state for name, state in random.items()})
            torch.manual_seed(own_seed(self._seed, kept.step, self._rank))
            _set_random_state(random)
            log.info("going on after step %d of %d, from a checkpoint", kept.step, num_steps)
            return int(kept.step)
        return 0

    def _own(self, name: str) -> str:
        """Name of this process's random state; the first one's is that of a process alone."""
        return f"{name}.{self._rank}" if self._rank else name


def own_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a process's dropout, which must differ between processes."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _state(network: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Weights and optimizer state themselves, by name."""
    tensors = {f"model.{name}": t for name, t in unwrapped(network).state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": t for name, t in state.items()}
    return tensors


def _begin_state(optimizer: Any) -> None:
    """AdamW's state before the first step, as it would make it then."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        moments = {name: torch.zeros_like(p, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)} | moments


def _random_state() -> dict[str, torch.Tensor]:
    cuda = {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"rng.cpu": torch.get_rng_state()} | cuda


def _set_random_state(tensors: Mapping[str, torch.Tensor]) -> None:
    if "rng.cpu" in tensors:
        torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def _snapshot(network: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """A copy of all that changes, on the CPU."""
    tensors = _state(network, optimizer)
    copied = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
    return copied | _random_state()


def _restore(tensors: Mapping[str, torch.Tensor], network: Any, optimizer: Any) -> None:
    """Put a snapshot back."""
    network.load_state_dict({k[6:]: t for k, t in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    _set_random_state(tensors)


def encode(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors and JSON beside them; under one key, for safetensors writes several in any order."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save_tensors(plain, metadata={"about": json.dumps(about)}))


def metadata(safetensors: bytes) -> dict[str, Any]:
    """What `encode` put beside the tensors; the loader for bytes does not give it: 8 bytes length, JSON header."""
    size = int.from_bytes(safetensors[:8], "little")
    header = json.loads(safetensors[8 : 8 + size])
    about: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("about", "{}"))
    return about
