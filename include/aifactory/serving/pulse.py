"""The pulse of a rollout: somebody looks after it. Without one the controller gives all traffic to the champion.

It is an object of its own, because the document changes only when something is decided.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field, ValidationError

from aifactory.errors import NotFound
from aifactory.specfile import Spec

if TYPE_CHECKING:
    from aifactory.serving.traffic import Traffic
    from aifactory.store import Store

LASTS_S = 60.0
"""A rollout nobody looked after for so long stands still, its challenger without traffic."""


class Pulse(Spec):
    """`serving/<line>/pulse.json`."""

    generation: int = Field(ge=0, description="Of the document that is looked after.")
    until: AwareDatetime


def pulse_key(line: str) -> str:
    """Key of the pulse."""
    return f"serving/{line}/pulse.json"


def beat(store: Store, document: Traffic, at: datetime, lasts_s: float = LASTS_S) -> None:
    """Somebody looks after this document, and will have looked again soon after a moment."""
    if not document.at_rest:
        pulse = Pulse(generation=document.generation, until=at + timedelta(seconds=lasts_s))
        store.put_json(pulse_key(document.line), pulse.model_dump(mode="json"))


def alive(store: Store, document: Traffic, now: datetime) -> bool:
    """Whether somebody looks after a rollout; a pulse that cannot be read is none."""
    try:
        pulse = Pulse.model_validate_json(store.get(pulse_key(document.line)))
    except (NotFound, ValidationError):
        return False
    return now <= pulse.until
