"""What can go wrong with the plant itself, said so that an operator can act on it."""

from __future__ import annotations


class PlantError(Exception):
    """The plant cannot start, stop or be reached as asked; the message says what to do."""


class PortTaken(PlantError):
    """A port that a part needs is in use by somebody else."""


class PartFailed(PlantError):
    """A part of the plant ended or did not become healthy in time."""
