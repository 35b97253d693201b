"""The two slots: where a model server listens, what it serves from, and whether it answers; whichever server it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aifactory.settings import Settings
from plant.ports import internal

SLOTS: tuple[Literal["a"], Literal["b"]] = ("a", "b")
LOOPBACK = "127.0.0.1"


def name(slot: str) -> str:
    """Name of a slot's program."""
    return f"serving-{slot}"


def repository_folder(settings: Settings, slot: str) -> Path:
    """Where a slot's model repository is."""
    return settings.home / "serving" / slot


def spool_folder(settings: Settings, slot: str) -> Path:
    """Where a slot's prediction log is spooled."""
    return settings.home / "spool" / slot


def answers(settings: Settings, slot: str) -> bool:
    """Whether a slot's server has loaded what its repository holds, and takes requests."""
    import httpx

    try:
        answer = httpx.get(f"http://{LOOPBACK}:{internal(settings, f'serving_{slot}_http')}/v2/health/ready", timeout=5)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def grpc_address(settings: Settings, slot: str) -> str:
    """host:port of a slot's gRPC."""
    return f"{LOOPBACK}:{internal(settings, f'serving_{slot}_grpc')}"
