"""How an attempt at a phase ended, in S3: the truth for whoever waits, who may lose the program before it has spoken.

    <candidate>.result.json     what was made, see `run.run`, and "attempt"; written when everything else is
    <candidate>.failure.json    {"reason", "message", "kind": "defect" | "fault", "at", "attempt"}

A new attempt removes the failure of the one before. `attempt` is what `AIF_ATTEMPT` says: in a pod, the pod's name.

Reserved exit codes of the programs:

    0     done
    3     a defect: trying again would give the same
    4     an infrastructure fault: try again
    143   asked to stop by SIGTERM, and did: try again, training goes on from its checkpoint
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.factory import Factory
from aifactory.reasons import ReasonCode
from aifactory.settings import load_settings
from aifactory.store import Conflict, Store

log = logging.getLogger(__name__)

DONE, DEFECT, FAULT, STOPPED = 0, 3, 4, 143


def told(work: Callable[[Factory], dict[str, Any]], *, failure: str, one_of_several: bool = False) -> int:
    """Do a program's work and tell how it ended.

    Args:
        work: given the open factory; what it gives is the last line of stdout, as JSON; nothing where that is empty.
        failure: key of what is written where it fails.
        one_of_several: the program shares its work with others. Then what nobody foresaw is told by their launcher
            alone: it may be no more than that another one was lost.

    Returns:
        The program's exit code.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    f = Factory(load_settings())
    try:
        if not one_of_several:
            begin(f.store, failure)
        made = work(f)
    except Exception as error:
        if isinstance(error, FactoryError) or not one_of_several:
            failed(f.store, failure, error)
        if not isinstance(error, FactoryError):
            raise  # nobody foresaw it: the traceback is what there is to tell
        sys.stderr.write(f"{json.dumps({'reason': error.reason.value, 'message': error.message})}\n")
        return DEFECT if isinstance(error, Defect) else FAULT
    if made:
        sys.stdout.write(f"{json.dumps(made)}\n")
    return DONE


def begin(store: Store, failure: str) -> None:
    """Remove what an earlier attempt said of its failure, so that nobody takes it for this one's."""
    store.delete(failure)


def succeeded(store: Store, result: str, made: Mapping[str, Any]) -> None:
    """Say what was made. The first word stands: doing a phase again finds it done and changes nothing."""
    if store.head(result) is None:
        store.put_json(result, dict(made) | {"attempt": os.environ.get("AIF_ATTEMPT", "")})


def failed(store: Store, failure: str, error: Exception) -> None:
    """Say why nothing was made; of several processes the first word stands.

    Best effort: where the store is what failed, the exit code has to do.
    """
    said = describe(error) | {"at": datetime.now(UTC).isoformat(), "attempt": os.environ.get("AIF_ATTEMPT", "")}
    try:
        store.put_json(failure, said, if_absent=True)
    except Conflict:
        log.info("why it failed is said already, in %s", store.uri(failure))
    except InfrastructureFault as second:
        log.warning("the failure could not be written to %s: %s", store.uri(failure), second)


def describe(error: Exception) -> dict[str, str]:
    """Reason, message and kind of an error: a defect, or a fault that another try may not meet."""
    if isinstance(error, FactoryError):
        kind = "defect" if isinstance(error, Defect) else "fault"
        return {"reason": error.reason.value, "message": error.message, "kind": kind}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":  # DuckDB's is its own
        message = f"there was not enough memory; raise compute.memory_gb ({error})"
        return {"reason": ReasonCode.OUT_OF_MEMORY.value, "message": message, "kind": "fault"}
    message = f"the code failed in a way that nobody foresaw: {type(error).__name__}: {error}"
    return {"reason": ReasonCode.TRAINING_FAILED.value, "message": message, "kind": "defect"}
