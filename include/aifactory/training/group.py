"""Which of the processes that share a training this one is. Light: torch loads where there is more than one.

torch's elastic launcher (see `elastic`) starts the processes and says in the environment who each one is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

LAUNCHED_AT = "AIF_LAUNCHED_AT"
"""Variable by which a launcher tells its processes when it was started, s since the epoch."""
TIMEOUT_S = 600.0
"""A process waits so long for the others, seconds; the first of them also talks to MLflow before it joins."""


def started_by_launcher() -> bool:
    """Whether this is one of the processes that a launcher has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Number of this process, from 0; the one of number 0 speaks for all."""
    return int(os.environ["RANK"]) if started_by_launcher() else 0


def size() -> int:
    """Processes that share the training, those of other machines too."""
    return int(os.environ["WORLD_SIZE"]) if started_by_launcher() else 1


def machines() -> int:
    """Machines that share the training."""
    return size() // int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_launcher() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes can talk to each other: by NCCL about tensors on GPUs, by gloo about others."""
    if size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    yield  # after an error the process ends, and takes its connections with it: nobody waits for the others here
    dist.destroy_process_group()
