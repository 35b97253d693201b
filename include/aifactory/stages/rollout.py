"""Roll out: a candidate takes over live traffic step by step, or is taken back, as `serving.traffic` decides.

The truth is the line's document. Each call reads it, decides on what is seen, writes the next one, and goes on, so that
whoever calls again after a crash goes on where the document is. While somebody calls, a pulse says so; without it the
controller gives all traffic back to the champion.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from aifactory.errors import ReleaseDefect, Waiting
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent, event_key, station
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode
from aifactory.rollout import RolloutAdapter, open_adapter
from aifactory.serving import pulse
from aifactory.serving.evidence import evidence
from aifactory.serving.traffic import Action, Decision, Stage, Traffic, begin, next_state, resume
from aifactory.store import Conflict

log = logging.getLogger(__name__)

LOOK_S = 1.0
AGAIN_S = 20.0
"""A task that has waited in vain frees its worker for so long."""

_LOAD = frozenset({Stage.LOADING, Stage.SELF_TESTED})
STEPS = {"load": _LOAD, "shadow": _LOAD | {Stage.SHADOW}, "canary": _LOAD | {Stage.SHADOW, Stage.CANARY}}
"""Tasks of the DAG, and the stages that each leaves behind it."""


def advance(
    f: Factory,
    spec: LineSpec,
    version: str,
    run: str,
    leave: frozenset[Stage],
    *,
    direct: bool = False,
    backwards: bool = False,
    hold_s: float = 60.0,
    pulse_s: float = pulse.LASTS_S,
) -> dict[str, Any]:
    """Take a rollout on until it has left these stages.

    Args:
        f: the open factory.
        spec: the line.
        version: the candidate.
        run: id of the run; the same for its retries.
        leave: the stages that are the caller's; it returns in the first other one; in the last one once it is in force.
        direct: without shadow and canary.
        backwards: whether the version may be older than the champion.
        hold_s: how long it waits itself before it says `Waiting`, or that the end is not in force yet, s.
        pulse_s: how long the challenger keeps its traffic when this process has died, s.

    Returns:
        stage, version, champion, percent, generation, explanation; `reason` where it was taken back.

    Raises:
        Waiting: to be asked again; the rollout goes on being what it is.
        ReleaseDefect: ROLLOUT_RUNNING or ROLLOUT_SUPERSEDED, or the document is not valid.
    """
    adapter, deadline, said = open_adapter(f, spec), time.monotonic() + hold_s, ""
    while True:
        now = datetime.now(UTC)
        document = adapter.wanted()
        following, decision = begin(document, version, run=run, now=now, direct=direct, backwards=backwards)
        if decision.action is Action.REFUSE:
            raise ReleaseDefect(decision.reason or ReasonCode.ROLLOUT_RUNNING, decision.explanation)
        if following == document and not pulse.alive(f.store, document, now):
            following, decision = resume(document, now)
        pulse.beat(f.store, following, now, pulse_s)
        if following == document and document.stage not in leave:
            if document.at_rest:
                _settle(adapter, document, hold_s)
            return _told(document)
        if following == document:
            seen = evidence(f, spec, document, adapter.observe())
            following, decision = next_state(document, seen, spec.deployment, now)
        if following != document:
            _apply(f, spec, adapter, following, decision, run)
            continue
        if decision.explanation != said:
            log.info("%s: %s", document.stage, decision.explanation)
            said = decision.explanation
        if time.monotonic() > deadline:
            until = now + timedelta(seconds=AGAIN_S)
            pulse.beat(f.store, document, until, pulse_s)
            raise Waiting(until, f"{document.stage} of version {version}: {decision.explanation}")
        time.sleep(LOOK_S)


def _settle(adapter: RolloutAdapter, document: Traffic, hold_s: float) -> None:
    """Wait until a decided document is in force; what is decided stays decided where nobody carries it out."""
    while (seen := adapter.observe()) is None or seen.generation < document.generation:
        if datetime.now(UTC) - document.since > timedelta(seconds=hold_s):
            log.warning(
                "generation %d of what serves %s is decided, and not in force after %g s: does the controller run?",
                document.generation, document.line, hold_s,
            )  # fmt: skip
            return
        time.sleep(LOOK_S)


def _apply(
    f: Factory, spec: LineSpec, adapter: RolloutAdapter, following: Traffic, decision: Decision, run: str
) -> None:
    """Write the next document, and the decision to the ledger; where somebody was faster, theirs is read again."""
    try:
        adapter.apply(following)
    except Conflict:
        log.info("somebody else changed the rollout of %s meanwhile; it is read again", spec.line)
        return
    where = f"{following.stage} {following.percent} %" if following.percent else str(following.stage)
    log.info("%s → %s: %s", decision.action, where, decision.explanation)
    version = following.rollout.version if following.rollout else ""
    revision = f"generation {following.generation}"
    f.ledger.record(
        ProductionEvent(
            spec.line, "deploy", "model", version, EventKind.DECIDED,
            event_key(spec.line, "deploy", version, EventKind.DECIDED, revision),
            reason=decision.reason, run_id=run,
            detail={"stage": following.stage, "percent": following.percent, **decision.model_dump(mode="json")},
        )
    )  # fmt: skip


def taken_back(f: Factory, spec: LineSpec, made: dict[str, Any], run: str) -> None:
    """Tell the ledger that a candidate was taken back; its champion went on serving."""
    with station(
        f.ledger, spec.line, "deploy", "model", made["version"], run_id=run, revision=f"generation {made['generation']}"
    ) as work:
        work.event, work.reason = EventKind.ROLLED_BACK, ReasonCode[made["reason"]]
        work.num_in, work.num_bad, work.detail = 1, 1, made


def _told(document: Traffic) -> dict[str, Any]:
    rollout = document.rollout
    return {
        "stage": str(document.stage),
        "version": rollout.version if rollout else document.champion,
        "champion": document.champion,
        "percent": document.percent,
        "generation": document.generation,
        "explanation": document.explanation,
    } | ({"reason": document.reason.value} if document.reason else {})
