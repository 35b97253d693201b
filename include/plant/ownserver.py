"""The model servers where Triton's wheel cannot run: the factory's own, one process a slot, of the same contract."""

from __future__ import annotations

import sys

from aifactory.serving.backend import LOG_FOLDER_VARIABLE, SLOT_VARIABLE
from aifactory.settings import REPOSITORY, Settings
from plant.ports import internal
from plant.slots import LOOPBACK, SLOTS, name, repository_folder, spool_folder
from plant.supervision import Program


def prepare(settings: Settings) -> list[Program]:
    """How to run the servers of both slots."""
    return [_program(settings, slot) for slot in SLOTS]


def _program(settings: Settings, slot: str) -> Program:
    repository = repository_folder(settings, slot)
    repository.mkdir(parents=True, exist_ok=True)
    ports = [f"--{kind}-port={internal(settings, f'serving_{slot}_{kind}')}" for kind in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "aifactory.serving.server", f"--repository={repository}", f"--host={LOOPBACK}"]
    variables = {
        "PYTHONPATH": str(REPOSITORY / "include"),
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",
        LOG_FOLDER_VARIABLE: str(spool_folder(settings, slot)),
        SLOT_VARIABLE: slot,
    }
    return Program(name(slot), [*command, *ports, f"--threads={settings.threads}"], variables, order=300)
