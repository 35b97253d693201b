"""How an attempt at a phase ended, in S3: the truth for whoever waits, who may lose the program before it has spoken.

    <candidate>.result.json     what was made, see `run.run`; written when everything else is
    <candidate>.failure.json    {"reason", "message", "kind": "defect" | "fault", "at", "attempt"}

A new attempt removes the failure of the one before. `attempt` is what `AIF_ATTEMPT` says: in a pod, the pod's name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.reasons import ReasonCode
from aifactory.store import Store

log = logging.getLogger(__name__)


def begin(store: Store, failure: str) -> None:
    """Remove what an earlier attempt said of its failure, so that nobody takes it for this one's."""
    store.delete(failure)


def succeeded(store: Store, result: str, made: Mapping[str, Any]) -> None:
    """Say what was made. The first word stands: doing a phase again finds it done and changes nothing."""
    if store.head(result) is None:
        store.put_json(result, made)


def failed(store: Store, failure: str, error: Exception) -> None:
    """Say why nothing was made. Best effort: where the store is what failed, the exit code has to do."""
    told = describe(error) | {"at": datetime.now(UTC).isoformat(), "attempt": os.environ.get("AIF_ATTEMPT", "")}
    try:
        store.put_json(failure, told)
    except InfrastructureFault as second:
        log.warning("the failure could not be written to %s: %s", store.uri(failure), second)


def describe(error: Exception) -> dict[str, str]:
    """Reason, message and kind of an error: a defect, or a fault that another try may not meet."""
    if isinstance(error, FactoryError):
        kind = "defect" if isinstance(error, Defect) else "fault"
        return {"reason": error.reason.value, "message": error.message, "kind": kind}
    if isinstance(error, MemoryError):
        message = "training ran out of memory; raise compute.memory_gb"
        return {"reason": ReasonCode.OUT_OF_MEMORY.value, "message": message, "kind": "fault"}
    message = f"the code failed in a way that nobody foresaw: {type(error).__name__}: {error}"
    return {"reason": ReasonCode.TRAINING_FAILED.value, "message": message, "kind": "defect"}
