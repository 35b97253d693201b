"""The document that says what serves a line, and the state machine of a rollout. Pure but for what has a store.

    idle, promoted, rolled_back       at rest: the champion has everything
      └ begin ─▶ loading ─▶ self_tested ─▶ shadow ─▶ canary, its steps rising ─▶ promoted
                    └───────────┴────────────┴──────────┴── harm, loss, impatience, abort ──▶ rolled_back

`begin`, `next_state` and `abort` take a document and give the next one, whose generation is one more, with the decision
and its reasons; a document that does not change is returned as it is. Whoever dies, dies between two documents, and
every document names the champion and a share of the challenger that the step before has proved.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from aifactory.errors import NotFound, ReleaseDefect
from aifactory.line import CanaryStep, Deployment
from aifactory.reasons import ReasonCode
from aifactory.serving.analysis import Comparison, Judgement, Verdict, judge, silent
from aifactory.specfile import Spec
from aifactory.store import Conflict

if TYPE_CHECKING:
    from aifactory.store import Store

SlotName = Literal["a", "b"]

_NUM_ENDED = 50


class Stage(StrEnum):
    """Where a line's rollout is."""

    IDLE = "idle"
    LOADING = "loading"
    SELF_TESTED = "self_tested"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


AT_REST = frozenset({Stage.IDLE, Stage.PROMOTED, Stage.ROLLED_BACK})
"""Stages without a rollout under way."""


class Rollout(Spec):
    """Whose rollout the document is, or was the last of."""

    version: str = Field(pattern=r"^\d+$", description="The candidate, a version of the registry.")
    run: str = Field(description="The run that asked for it: its retries resume it, and never begin it again.")
    direct: bool = Field(
        default=False, description="Without shadow and canary: back to a version that has served before."
    )
    began: AwareDatetime


class Traffic(Spec):
    """`serving/<line>/traffic.json`: what is to serve."""

    line: str
    generation: int = Field(default=0, ge=0, description="One more with every change: what compare-and-swap compares.")
    slots: dict[SlotName, str | None] = Field(
        default={"a": None, "b": None}, description="Slot -> version that is to be in it."
    )
    champion_slot: SlotName = Field(default="a", description="The slot that all traffic goes to but for `percent`.")
    stage: Stage = Stage.IDLE
    percent: int = Field(default=0, ge=0, le=99, description="The challenger's share of the live traffic, percent.")
    since: AwareDatetime = Field(description="When the stage, or its step, began.")
    rollout: Rollout | None = None
    ended: tuple[str, ...] = Field(
        default=(), description="Runs of the rollouts before, newest last: a late retry of theirs begins nothing again."
    )
    previous: str | None = Field(default=None, description="The champion before this one.")
    promoted_at: AwareDatetime | None = Field(
        default=None, description="When a rollout of all its steps made this champion; None for one that was put back."
    )
    reason: ReasonCode | None = Field(default=None, description="Why the last rollout was rolled back.")
    explanation: str = Field(default="", description="How the last change was decided, with the numbers.")

    @property
    def challenger_slot(self) -> SlotName:
        """The slot that the champion is not in."""
        return "b" if self.champion_slot == "a" else "a"

    @property
    def champion(self) -> str | None:
        """The champion's version; None before the first promotion alone."""
        return self.slots[self.champion_slot]

    @property
    def challenger(self) -> str | None:
        """The version in the other slot: on trial, or the champion before, kept loaded."""
        return self.slots[self.challenger_slot]

    @property
    def at_rest(self) -> bool:
        """Whether no rollout is under way."""
        return self.stage in AT_REST

    @model_validator(mode="after")
    def _consistent(self) -> Traffic:
        problems = {
            "slots must be a and b": set(self.slots) != {"a", "b"},
            "percent must be above 0 in canary, and 0 otherwise": (self.percent > 0) != (self.stage is Stage.CANARY),
            "a rollout needs its candidate in the challenger's slot": not self.at_rest
            and (self.rollout is None or self.rollout.version != self.challenger),
            "traffic of a challenger needs a champion": self.stage in {Stage.SHADOW, Stage.CANARY}
            and self.champion is None,
            "reason must be given when rolled back, and only then": (self.reason is not None)
            != (self.stage is Stage.ROLLED_BACK),
            "promoted needs a champion": self.stage is Stage.PROMOTED and self.champion is None,
        }
        if wrong := [what for what, broken in problems.items() if broken]:
            raise ValueError("; ".join(wrong))
        return self


class Refusal(Spec):
    """Why a version was not taken into a slot."""

    version: str
    reason: ReasonCode
    message: str


class ObservedSlot(Spec):
    """What is in a slot."""

    version: str | None = Field(default=None, description="The version that is loaded and has passed its self-test.")
    refused: Refusal | None = Field(
        default=None, description="The version that was refused last, until another is asked for."
    )


class Observed(Spec):
    """`serving/<line>/observed.json`: what serves."""

    line: str
    generation: int = Field(ge=0, description="Generation of the traffic document that is in force, routes and all.")
    since: AwareDatetime = Field(description="Since when that generation is in force.")
    slots: dict[SlotName, ObservedSlot]
    percent: int = Field(ge=0, le=99, description="The challenger's share of the live traffic as routed, percent.")


class Evidence(Spec):
    """What is known when the next state is asked for."""

    observed: Observed | None = None
    counts: Comparison | None = None


class Action(StrEnum):
    """What was decided."""

    NOTHING = "nothing"
    WAIT = "wait"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    REFUSE = "refuse"


class Decision(Spec):
    """What was decided, and why."""

    action: Action
    explanation: str
    reason: ReasonCode | None = None
    judgement: Judgement | None = None


Step = tuple[Traffic, Decision]


# --- the document in the store
def traffic_key(line: str) -> str:
    """Key of the document."""
    return f"serving/{line}/traffic.json"


def read(store: Store, line: str, now: datetime) -> Traffic:
    """The document; an empty one, generation 0, where there is none yet.

    Raises:
        ReleaseDefect: TRAFFIC_INVALID.
    """
    try:
        return _parsed(store, line)[0]
    except NotFound:
        return Traffic(line=line, since=now)


def write(store: Store, traffic: Traffic) -> None:
    """Put the next generation of a document in the place of the one before it; again is allowed.

    Raises:
        Conflict: somebody else changed it meanwhile; read it again.
        ReleaseDefect: TRAFFIC_INVALID.
    """
    key = traffic_key(traffic.line)
    etag: str | None
    try:
        there, etag = _parsed(store, traffic.line)
    except NotFound:
        there, etag = None, None
    if there == traffic:
        return
    generation = there.generation if there else 0
    if traffic.generation != generation + 1:
        raise Conflict(f"{key} is generation {generation}, and {traffic.generation} cannot follow it; read it again")
    store.put_json(key, traffic.model_dump(mode="json"), if_match=etag, if_absent=etag is None)


def observed_key(line: str) -> str:
    """Key of what is observed."""
    return f"serving/{line}/observed.json"


def read_observed(store: Store, line: str) -> Observed | None:
    """What the controller saw last; None before it saw anything.

    Raises:
        ReleaseDefect: TRAFFIC_INVALID.
    """
    key = observed_key(line)
    try:
        return Observed.model_validate_json(store.get(key))
    except NotFound:
        return None
    except ValidationError as error:
        raise ReleaseDefect(
            ReasonCode.TRAFFIC_INVALID,
            f"{store.uri(key)}: {' '.join(str(error).split())}; the controller writes it anew, see that it runs",
        ) from None


def write_observed(store: Store, observed: Observed) -> None:
    """What the controller sees; it alone writes it."""
    store.put_json(observed_key(observed.line), observed.model_dump(mode="json"))


def _parsed(store: Store, line: str) -> tuple[Traffic, str]:
    raw, etag = store.get_with_etag(traffic_key(line))
    try:
        return Traffic.model_validate_json(raw), etag
    except ValidationError as error:
        raise ReleaseDefect(
            ReasonCode.TRAFFIC_INVALID,
            f"{store.uri(traffic_key(line))}: {' '.join(str(error).split())}; what is in force stays in force, "
            f"repair the document or put an older one back",
        ) from None


# --- the state machine
def begin(
    traffic: Traffic, version: str, *, run: str, now: datetime, direct: bool = False, backwards: bool = False
) -> Step:
    """Ask for a rollout of a version.

    A run that asked before resumes what it asked for, whatever became of it, as does any run of the version that is
    under way. A newer version, or an operator's direct one, ends the rollout that is under way: the document that
    comes back is rolled back with ROLLOUT_SUPERSEDED, and is to be written before this is asked again.

    Refused are whatever comes too late: an older version than the one under way, anything but an operator's word while
    that is carried out, a run whose rollout others have followed, and an older version than the champion unless
    somebody asks for just that.

    Args:
        traffic: the document.
        version: the candidate.
        run: id of the run; the same for its retries.
        now: the time.
        direct: promote after the self-test, without shadow and canary: back to a version that served before.
        backwards: whether the version may be older than the champion.
    """
    current = traffic.rollout
    if current and current.version == version and (current.run == run or not traffic.at_rest):
        return _stay(traffic, Action.NOTHING, f"the rollout of version {version} is {traffic.stage}")
    if traffic.at_rest and traffic.champion == version:
        return _stay(traffic, Action.NOTHING, f"version {version} is in service already")
    if late := _too_late(traffic, version, run, direct=direct, backwards=backwards):
        return late
    if current and not traffic.at_rest:
        return abort(traffic, ReasonCode.ROLLOUT_SUPERSEDED, f"version {version} takes its place", now)
    why = f"version {version} is to be loaded into slot {traffic.challenger_slot}"
    return _changed(
        traffic,
        Action.ADVANCE,
        why,
        now,
        stage=Stage.LOADING,
        slots={**traffic.slots, traffic.challenger_slot: version},
        rollout=Rollout(version=version, run=run, direct=direct, began=now),
        ended=(*traffic.ended, *([current.run] if current else []))[-_NUM_ENDED:],
        reason=None,
    )


def _too_late(traffic: Traffic, version: str, run: str, *, direct: bool, backwards: bool) -> Step | None:
    current = traffic.rollout
    if current and not direct and not traffic.at_rest and (current.direct or int(version) < int(current.version)):
        newer = "on an operator's word" if current.direct else f"which is newer than {version}"
        said = f"version {current.version}, {newer}, is being rolled out ({traffic.stage})"
        return _stay(traffic, Action.REFUSE, said, ReasonCode.ROLLOUT_RUNNING)
    if run in traffic.ended:
        said = f"the rollout of version {version} by this run is over, and another has followed; trigger a new run"
        return _stay(traffic, Action.REFUSE, said, ReasonCode.ROLLOUT_SUPERSEDED)
    if traffic.champion and int(version) < int(traffic.champion) and not (direct or backwards):
        said = f"version {traffic.champion}, which is newer than {version}, is in service; to go back, name the version"
        return _stay(traffic, Action.REFUSE, said, ReasonCode.ROLLOUT_SUPERSEDED)
    return None


def resume(traffic: Traffic, now: datetime) -> Step:
    """Go on with a rollout that nobody looked after: its stage begins anew, and so do its clock and its counts.

    Meanwhile the champion had everything, so what was counted and how long it took say nothing of the challenger.
    """
    if traffic.at_rest:
        return _stay(traffic, Action.NOTHING, f"nothing is being rolled out ({traffic.stage})")
    return _changed(traffic, Action.ADVANCE, f"{_where(traffic)} begins anew: nobody had looked after it", now)


def abort(traffic: Traffic, reason: ReasonCode, why: str, now: datetime) -> Step:
    """End the rollout that is under way: the champion has everything, the challenger's slot is emptied."""
    if traffic.rollout is None or traffic.at_rest:
        return _stay(traffic, Action.NOTHING, f"nothing is being rolled out ({traffic.stage})")
    said = f"version {traffic.rollout.version} is taken back at {_where(traffic)}: {why}"
    after, decision = _changed(
        traffic,
        Action.ROLL_BACK,
        said,
        now,
        stage=Stage.ROLLED_BACK,
        percent=0,
        slots={**traffic.slots, traffic.challenger_slot: None},
        reason=reason,
    )
    return after, decision.model_copy(update={"reason": reason})


def next_state(traffic: Traffic, evidence: Evidence, limits: Deployment, now: datetime) -> Step:
    """What follows from a document and what is seen.

    Evidence of another generation of the document counts for nothing, so what was seen in one step proves no other.

    Args:
        traffic: the document.
        evidence: what the adapter observes and what was counted since.
        limits: the line's deployment section, as it is now.
        now: the time.
    """
    if traffic.at_rest:
        return _stay(traffic, Action.NOTHING, f"nothing is being rolled out ({traffic.stage})")
    if traffic.stage is Stage.SELF_TESTED:
        return _advance(traffic, limits, f"version {traffic.challenger} gave its golden outputs", now)
    seen = evidence.observed if evidence.observed and evidence.observed.generation == traffic.generation else None
    if traffic.stage is Stage.LOADING:
        return _loading(traffic, seen, limits, now)
    minutes = _own_minutes(traffic, limits)
    if minutes is None:
        return abort(
            traffic, ReasonCode.ROLLOUT_ABORTED, "the line's spec has no such step any more; deploy again", now
        )
    if seen is None or seen.percent != traffic.percent:
        return _not_in_force(traffic, limits.patience_minutes, now)
    counts = evidence.counts if evidence.counts and evidence.counts.generation == traffic.generation else None
    waited = _minutes(now - max(traffic.since, seen.since))
    return _tried(traffic, seen, counts, limits, (minutes, waited), now)


def soon_after_promotion(traffic: Traffic, limits: Deployment, now: datetime) -> bool:
    """Whether a breach of the live limits takes the champion back by itself: it is new, and there is one before it.

    A champion that was put back is never taken back so: two that both breach would take turns.
    """
    return (
        traffic.at_rest
        and traffic.previous is not None
        and traffic.promoted_at is not None
        and now - traffic.promoted_at <= timedelta(hours=limits.rollback_window_hours)
    )


# --- stages
def _loading(traffic: Traffic, seen: Observed | None, limits: Deployment, now: datetime) -> Step:
    slot = seen.slots.get(traffic.challenger_slot) if seen else None
    if slot and slot.version == traffic.challenger:
        return _changed(
            traffic, Action.ADVANCE, f"version {slot.version} is loaded and tested", now, stage=Stage.SELF_TESTED
        )
    if slot and slot.refused and slot.refused.version == traffic.challenger:
        return abort(traffic, slot.refused.reason, slot.refused.message, now)
    return _not_in_force(traffic, limits.load_minutes, now)


def _not_in_force(traffic: Traffic, limit_minutes: float, now: datetime) -> Step:
    waited = _minutes(now - traffic.since)
    said = f"{_where(traffic)} is not in force after {waited:.1f} of {limit_minutes:g} minutes"
    if waited > limit_minutes:
        return abort(traffic, ReasonCode.ROLLOUT_STUCK, f"{said}; see that the controller runs", now)
    return _stay(traffic, Action.WAIT, said)


def _tried(
    traffic: Traffic,
    seen: Observed,
    counts: Comparison | None,
    limits: Deployment,
    clock: tuple[float, float],
    now: datetime,
) -> Step:
    """A stage with traffic of the challenger, in force: `clock` has its own minutes, and those it is in force."""
    if _version_in(seen, traffic.challenger_slot) != traffic.challenger:
        return abort(traffic, ReasonCode.CHALLENGER_LOST, f"slot {traffic.challenger_slot} no longer has it", now)
    if _version_in(seen, traffic.champion_slot) != traffic.champion:
        said = f"champion {traffic.champion} is not in slot {traffic.champion_slot}"
        return _stay(traffic, Action.WAIT, said, ReasonCode.CHAMPION_LOST)
    judgement = judge(counts, limits, min_requests=_wanted(traffic, limits)) if counts else None
    after, decision = _weighed(traffic, counts, judgement, limits, clock, now)
    return after, decision.model_copy(update={"judgement": judgement})


def _weighed(
    traffic: Traffic,
    counts: Comparison | None,
    judgement: Judgement | None,
    limits: Deployment,
    clock: tuple[float, float],
    now: datetime,
) -> Step:
    minutes, waited = clock
    verdict = judgement.verdict if judgement else None
    said = judgement.explanation if judgement else "nothing was counted yet"
    if judgement and verdict is Verdict.ROLL_BACK:
        return abort(traffic, judgement.harms[0].reason, said, now)
    if waited < minutes:
        return _stay(traffic, Action.WAIT, f"{_where(traffic)} holds for {waited:.1f} of {minutes:g} minutes; {said}")
    if counts and silent(counts, 50 if traffic.stage is Stage.SHADOW else traffic.percent, limits):
        numbers = f"{counts.challenger.requests} requests reached it, {counts.champion.requests} the champion"
        return abort(traffic, ReasonCode.CHALLENGER_SILENT, numbers, now)
    if verdict is Verdict.GO_ON:
        return _advance(traffic, limits, said, now)
    if waited < minutes + limits.patience_minutes:
        return _stay(traffic, Action.WAIT, f"{_where(traffic)} waits for proof: {said}")
    return _impatient(traffic, counts, judgement, limits, waited, now)


def _impatient(
    traffic: Traffic,
    counts: Comparison | None,
    judgement: Judgement | None,
    limits: Deployment,
    waited: float,
    now: datetime,
) -> Step:
    """Patience is over: enough traffic that proves nothing is a failure; too little is what the line's policy is for.

    Without counts nothing is known, which is never taken for silence.
    """
    if judgement and judgement.verdict is Verdict.WAIT:
        return abort(traffic, ReasonCode.NOT_PROVEN, judgement.explanation, now)
    num = str(counts.challenger.requests) if counts else "no count of"
    said = f"{num} requests, {_wanted(traffic, limits)} are needed, after {waited:.1f} minutes"
    if limits.no_traffic == "roll_back":
        return abort(traffic, ReasonCode.NO_TRAFFIC, said, now)
    if limits.no_traffic == "hold" or counts is None:
        return _stay(traffic, Action.WAIT, f"{_where(traffic)} holds without traffic: {said}", ReasonCode.NO_TRAFFIC)
    after, decision = _promoted(traffic, f"promoted after its offline checks alone: {said}", now)
    return after, decision.model_copy(update={"reason": ReasonCode.NO_TRAFFIC})


def _advance(traffic: Traffic, limits: Deployment, why: str, now: datetime) -> Step:
    """The stage, or the step, after one that has proved itself."""
    if traffic.champion is None or (traffic.rollout and traffic.rollout.direct):
        return _promoted(traffic, why, now)
    if traffic.stage is Stage.SELF_TESTED and limits.shadow_minutes:
        return _changed(traffic, Action.ADVANCE, why, now, stage=Stage.SHADOW)
    following = next((s for s in limits.canary if s.percent > traffic.percent), None)
    if following is None:
        return _promoted(traffic, why, now)
    return _changed(traffic, Action.ADVANCE, why, now, stage=Stage.CANARY, percent=following.percent)


def _promoted(traffic: Traffic, why: str, now: datetime) -> Step:
    """Roles change, slots do not: the champion before stays loaded, one document away."""
    return _changed(
        traffic,
        Action.PROMOTE,
        why,
        now,
        stage=Stage.PROMOTED,
        percent=0,
        champion_slot=traffic.challenger_slot,
        previous=traffic.champion,
        promoted_at=None if traffic.rollout and traffic.rollout.direct else now,
    )


# --- small parts
def step_of(traffic: Traffic, limits: Deployment) -> CanaryStep | None:
    """The canary step that a document is in; None where it is in none that the spec has."""
    return next((s for s in limits.canary if s.percent == traffic.percent), None)


def _own_minutes(traffic: Traffic, limits: Deployment) -> float | None:
    if traffic.stage is Stage.SHADOW:
        return limits.shadow_minutes
    step = step_of(traffic, limits)
    return step.bake_minutes if step else None


def _wanted(traffic: Traffic, limits: Deployment) -> int:
    """Fewest requests of the challenger that the stage ends well with."""
    return limits.shadow_min_requests if traffic.stage is Stage.SHADOW else limits.min_requests


def _version_in(seen: Observed, slot: SlotName) -> str | None:
    return seen.slots[slot].version if slot in seen.slots else None


def _where(traffic: Traffic) -> str:
    return f"canary of {traffic.percent} %" if traffic.stage is Stage.CANARY else str(traffic.stage)


def _minutes(elapsed: timedelta) -> float:
    return elapsed.total_seconds() / 60


def _stay(traffic: Traffic, action: Action, why: str, reason: ReasonCode | None = None) -> Step:
    return traffic, Decision(action=action, explanation=why, reason=reason)


def _changed(traffic: Traffic, action: Action, why: str, now: datetime, **changes: object) -> Step:
    """The next generation, validated; `since` never runs backwards."""
    fields = {**vars(traffic), **changes}
    fields.update(generation=traffic.generation + 1, since=max(now, traffic.since), explanation=why)
    return Traffic.model_validate(fields), Decision(action=action, explanation=why)
