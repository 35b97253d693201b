"""The state machine of a rollout: whatever is seen, lost, repeated or asked for, the champion serves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aifactory.line import CanaryStep, Deployment
from aifactory.reasons import ReasonCode
from aifactory.serving.analysis import LATENCY_EDGES_MS, SCORE_EDGES, Comparison, Counts, Histogram
from aifactory.serving.traffic import (
    Action,
    Decision,
    Evidence,
    Observed,
    ObservedSlot,
    Refusal,
    Rollout,
    Stage,
    Traffic,
    abort,
    begin,
    next_state,
    resume,
    soon_after_promotion,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Deployment(
    load_minutes=5,
    shadow_minutes=1,
    shadow_min_requests=400,
    canary=[CanaryStep(percent=10, bake_minutes=2), CanaryStep(percent=50, bake_minutes=3)],
    min_requests=400,
    max_error_excess=0.05,
    max_latency_ratio=3,
    max_score_shift=0.4,
    patience_minutes=10,
)


def after(minutes: float, since: datetime = START) -> datetime:
    return since + timedelta(minutes=minutes)


def idle(champion: str | None = "1") -> Traffic:
    return Traffic(line="x", slots={"a": champion, "b": None}, since=START)


def role(num: int, errors: int = 0) -> Counts:
    half = len(LATENCY_EDGES_MS) // 2
    scores = [num // 20] * 20
    return Counts(
        requests=num,
        errors=errors,
        latency_ms=Histogram(
            edges=LATENCY_EDGES_MS, counts=tuple(num if i == half else 0 for i in range(len(LATENCY_EDGES_MS) + 1))
        ),
        scores=Histogram(edges=SCORE_EDGES, counts=tuple(scores)),
    )


def compared(traffic: Traffic, num: int = 1000, errors: int = 0) -> Comparison:
    """As many requests of the challenger, and of the champion what its share brings."""
    champion = num if traffic.stage is not Stage.CANARY else num * (100 - traffic.percent) // traffic.percent
    return Comparison(generation=traffic.generation, champion=role(champion), challenger=role(num, errors))


def in_force(traffic: Traffic, **slots: ObservedSlot) -> Observed:
    seen = {name: ObservedSlot(version=version) for name, version in traffic.slots.items()} | slots
    return Observed(
        line=traffic.line,
        generation=traffic.generation,
        since=traffic.since,
        slots=seen,  # type: ignore[arg-type]
        percent=traffic.percent,
    )


def good(traffic: Traffic) -> Evidence:
    return Evidence(observed=in_force(traffic), counts=compared(traffic))


def follow(traffic: Traffic, minutes: float = 5, limits: Deployment = LIMITS) -> Traffic:
    return next_state(traffic, good(traffic), limits, after(minutes, traffic.since))[0]


def at(stage: Stage, percent: int = 0, champion: str | None = "1") -> Traffic:
    traffic = begin(idle(champion), "2", run="r", now=START)[0]
    while (traffic.stage, traffic.percent) != (stage, percent):
        assert not traffic.at_rest
        traffic = follow(traffic)
    return traffic


TRIED = [(Stage.SHADOW, 0), (Stage.CANARY, 10), (Stage.CANARY, 50)]
UNDER_WAY = [(Stage.LOADING, 0), (Stage.SELF_TESTED, 0), *TRIED]


# --- the way through
def test_a_good_candidate_goes_through_every_stage_and_the_roles_change() -> None:
    traffic = begin(idle(), "2", run="r", now=START)[0]
    passed = [(traffic.stage, traffic.percent)]
    while not traffic.at_rest:
        traffic = follow(traffic)
        passed.append((traffic.stage, traffic.percent))
    assert passed == [*UNDER_WAY, (Stage.PROMOTED, 0)]
    assert (traffic.champion, traffic.champion_slot, traffic.challenger, traffic.previous) == ("2", "b", "1", "1")
    assert traffic.generation == len(passed)


def test_the_first_version_of_a_line_has_nothing_to_be_compared_with() -> None:
    traffic = at(Stage.PROMOTED, champion=None)
    assert (traffic.champion, traffic.previous, traffic.generation) == ("2", None, 3)


def test_without_steps_it_goes_from_shadow_to_everything_and_without_shadow_at_once() -> None:
    no_steps = LIMITS.model_copy(update={"canary": []})
    assert follow(at(Stage.SHADOW), limits=no_steps).stage is Stage.PROMOTED
    neither = no_steps.model_copy(update={"shadow_minutes": 0.0})
    assert follow(at(Stage.SELF_TESTED), limits=neither).stage is Stage.PROMOTED


def test_a_step_holds_for_its_minutes_from_when_it_is_in_force() -> None:
    traffic = at(Stage.CANARY, 10)
    late = in_force(traffic).model_copy(update={"since": after(4, traffic.since)})
    evidence = Evidence(observed=late, counts=compared(traffic))
    early, decision = next_state(traffic, evidence, LIMITS, after(5.9, traffic.since))
    assert early is traffic
    assert (decision.action, "1.9 of 2 minutes" in decision.explanation) == (Action.WAIT, True)
    assert next_state(traffic, evidence, LIMITS, after(6, traffic.since))[0].percent == 50


# --- the ways out
def rolled_back(traffic: Traffic, result: tuple[Traffic, Decision], reason: ReasonCode, *words: str) -> None:
    back, decision = result
    assert (decision.action, decision.reason, back.reason) == (Action.ROLL_BACK, reason, reason)
    assert (back.stage, back.percent, back.challenger) == (Stage.ROLLED_BACK, 0, None)
    assert (back.champion, back.champion_slot) == (traffic.champion, traffic.champion_slot)
    for word in words:
        assert word in back.explanation


def test_a_refused_package_never_takes_a_request_and_says_why() -> None:
    traffic = at(Stage.LOADING)
    refused = Refusal(version="2", reason=ReasonCode.PACKAGE_INVALID, message="model.onnx was altered")
    observed = in_force(traffic, b=ObservedSlot(refused=refused))
    result = next_state(traffic, Evidence(observed=observed), LIMITS, after(0.1))
    rolled_back(traffic, result, ReasonCode.PACKAGE_INVALID, "model.onnx was altered")
    other = in_force(traffic, b=ObservedSlot(refused=refused.model_copy(update={"version": "7"})))
    assert next_state(traffic, Evidence(observed=other), LIMITS, after(0.1))[0] is traffic


@pytest.mark.parametrize(("stage", "percent"), TRIED)
def test_harm_is_taken_back_at_once(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    evidence = Evidence(observed=in_force(traffic), counts=compared(traffic, 20, errors=20))
    result = next_state(traffic, evidence, LIMITS, after(0.01, traffic.since))
    rolled_back(traffic, result, ReasonCode.CANARY_ERRORS, "20 requests of the challenger")
    assert result[1].judgement is not None


@pytest.mark.parametrize(("stage", "percent"), TRIED)
def test_a_challenger_that_dies_is_taken_back_and_a_champion_that_dies_is_waited_for(
    stage: Stage, percent: int
) -> None:
    traffic, soon = at(stage, percent), after(0.01, at(stage, percent).since)
    dead = Evidence(observed=in_force(traffic, b=ObservedSlot()), counts=compared(traffic))
    rolled_back(traffic, next_state(traffic, dead, LIMITS, soon), ReasonCode.CHALLENGER_LOST, "slot b")
    alone = Evidence(observed=in_force(traffic, a=ObservedSlot()), counts=compared(traffic))
    same, decision = next_state(traffic, alone, LIMITS, after(5, traffic.since))
    assert (same, decision.action, decision.reason) == (traffic, Action.WAIT, ReasonCode.CHAMPION_LOST)


@pytest.mark.parametrize(("stage", "percent"), [s for s in UNDER_WAY if s[0] is not Stage.SELF_TESTED])
def test_what_never_comes_into_force_is_taken_back_in_the_end(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    before = in_force(traffic).model_copy(update={"generation": traffic.generation - 1})
    for observed in [None, before]:
        evidence = Evidence(observed=observed, counts=compared(traffic))
        assert next_state(traffic, evidence, LIMITS, after(4, traffic.since))[1].action is Action.WAIT
        result = next_state(traffic, evidence, LIMITS, after(11, traffic.since))
        rolled_back(traffic, result, ReasonCode.ROLLOUT_STUCK, "not in force", "controller")


def test_traffic_that_proves_nothing_in_time_is_a_failure() -> None:
    traffic = at(Stage.CANARY, 10)
    evidence = Evidence(observed=in_force(traffic), counts=compared(traffic, 400, errors=20))
    assert next_state(traffic, evidence, LIMITS, after(11, traffic.since))[1].action is Action.WAIT
    rolled_back(traffic, next_state(traffic, evidence, LIMITS, after(12, traffic.since)), ReasonCode.NOT_PROVEN, "0.05")


def test_a_challenger_that_no_request_reaches_is_taken_back_under_every_policy() -> None:
    traffic = at(Stage.CANARY, 10)
    counts = compared(traffic).model_copy(update={"challenger": role(0)})
    evidence = Evidence(observed=in_force(traffic), counts=counts)
    assert next_state(traffic, evidence, LIMITS, after(1, traffic.since))[1].action is Action.WAIT
    for policy in ["promote_after_offline_checks", "hold", "roll_back"]:
        limits = LIMITS.model_copy(update={"no_traffic": policy})
        result = next_state(traffic, evidence, limits, after(2, traffic.since))
        rolled_back(traffic, result, ReasonCode.CHALLENGER_SILENT, "0 requests", "9000")


@pytest.mark.parametrize(("stage", "percent"), TRIED)
def test_no_traffic_is_named_and_does_what_the_line_says(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    evidence = Evidence(observed=in_force(traffic), counts=compared(traffic, 20))
    late = after(14, traffic.since)

    def under(policy: str, evidence: Evidence = evidence) -> tuple[Traffic, Decision]:
        limits = LIMITS.model_copy(update={"no_traffic": policy})
        assert next_state(traffic, evidence, limits, after(4, traffic.since))[1].action is Action.WAIT
        return next_state(traffic, evidence, limits, late)

    rolled_back(traffic, under("roll_back"), ReasonCode.NO_TRAFFIC, "20 requests", "400")
    held, decision = under("hold")
    assert (held, decision.action, decision.reason) == (traffic, Action.WAIT, ReasonCode.NO_TRAFFIC)
    promoted, decision = under("promote_after_offline_checks")
    assert (promoted.champion, decision.action, decision.reason) == ("2", Action.PROMOTE, ReasonCode.NO_TRAFFIC)
    unknown = Evidence(observed=in_force(traffic))  # nobody counted: that is no silence
    assert under("promote_after_offline_checks", unknown)[0] is traffic


def test_a_step_that_the_spec_lost_meanwhile_ends_the_rollout() -> None:
    traffic = at(Stage.CANARY, 10)
    limits = LIMITS.model_copy(update={"canary": [CanaryStep(percent=30, bake_minutes=1)]})
    result = next_state(traffic, good(traffic), limits, after(5, traffic.since))
    rolled_back(traffic, result, ReasonCode.ROLLOUT_ABORTED, "deploy again")


@pytest.mark.parametrize(("stage", "percent"), UNDER_WAY)
def test_an_abort_from_every_stage_gives_the_champion_everything(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    rolled_back(traffic, abort(traffic, ReasonCode.OPERATOR, "no time", START), ReasonCode.OPERATOR, "no time")


def test_an_abort_of_nothing_changes_nothing() -> None:
    for traffic in [idle(), at(Stage.PROMOTED)]:
        assert abort(traffic, ReasonCode.OPERATOR, "", START)[0] is traffic


# --- who asks
@pytest.mark.parametrize(("stage", "percent"), [*UNDER_WAY, (Stage.PROMOTED, 0)])
def test_the_same_candidate_again_resumes(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    for run in ["r", "another"]:
        same, decision = begin(traffic, "2", run=run, now=after(1))
        assert (same, decision.action) == (traffic, Action.NOTHING)


def test_a_retry_never_begins_again_what_was_taken_back_but_a_new_run_may() -> None:
    back = abort(at(Stage.CANARY, 10), ReasonCode.OPERATOR, "", START)[0]
    assert begin(back, "2", run="r", now=START)[0] is back
    again, _ = begin(back, "2", run="another", now=START)
    assert (again.stage, again.challenger, again.reason) == (Stage.LOADING, "2", None)


@pytest.mark.parametrize(("stage", "percent"), UNDER_WAY)
def test_a_newer_candidate_ends_the_older_rollout_first_and_an_older_one_is_refused(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    back, decision = begin(traffic, "3", run="s", now=after(9))
    rolled_back(traffic, (back, decision), ReasonCode.ROLLOUT_SUPERSEDED, "version 3")
    begun, _ = begin(back, "3", run="s", now=after(9))
    assert (begun.stage, begun.champion, begun.challenger) == (Stage.LOADING, "1", "3")
    same, decision = begin(begun, "2", run="r", now=after(9))
    assert (same, decision.action, decision.reason) == (begun, Action.REFUSE, ReasonCode.ROLLOUT_RUNNING)


def test_an_operator_goes_back_to_an_older_version_at_once_whatever_is_under_way() -> None:
    traffic = at(Stage.CANARY, 50)
    back, _ = begin(traffic, "1", run="op", now=START, direct=True)
    assert (back.champion, back.stage) == ("1", Stage.ROLLED_BACK)
    assert begin(back, "1", run="op", now=START, direct=True)[0] is back  # it is the champion already
    promoted = at(Stage.PROMOTED)
    traffic, _ = begin(promoted, "1", run="op", now=START, direct=True)
    assert traffic.slots == promoted.slots  # it is still loaded
    for _ in range(2):
        traffic = follow(traffic)
    assert (traffic.stage, traffic.champion, traffic.previous) == (Stage.PROMOTED, "1", "2")


def test_an_older_version_than_the_champion_comes_back_only_where_somebody_asks_for_just_that() -> None:
    traffic = at(Stage.PROMOTED)
    same, decision = begin(traffic, "1", run="late", now=START)
    assert (same, decision.action, decision.reason) == (traffic, Action.REFUSE, ReasonCode.ROLLOUT_SUPERSEDED)
    for asked in ({"direct": True}, {"backwards": True}):
        assert begin(traffic, "1", run="asked", now=START, **asked)[0].stage is Stage.LOADING


def test_a_late_retry_brings_nothing_back_that_an_operator_took_back() -> None:
    traffic, _ = begin(at(Stage.PROMOTED), "1", run="op", now=START, direct=True)
    newer, decision = begin(traffic, "3", run="s", now=START)
    assert (newer, decision.reason) == (traffic, ReasonCode.ROLLOUT_RUNNING), "what an operator asks for comes first"
    while not traffic.at_rest:
        traffic = follow(traffic)
    same, decision = begin(traffic, "2", run="r", now=START)
    assert (same, decision.action, decision.reason) == (traffic, Action.REFUSE, ReasonCode.ROLLOUT_SUPERSEDED)
    assert begin(traffic, "2", run="a new run", now=START)[0].stage is Stage.LOADING


@pytest.mark.parametrize(("stage", "percent"), UNDER_WAY)
def test_what_nobody_looked_after_begins_its_stage_anew(stage: Stage, percent: int) -> None:
    traffic, late = at(stage, percent), after(600)
    again, _ = resume(traffic, late)
    assert (again.stage, again.percent, again.slots) == (stage, percent, traffic.slots)
    assert (again.generation, again.since) == (traffic.generation + 1, late)
    stale = good(traffic)
    assert next_state(again, stale, LIMITS, late)[1].action is (
        Action.ADVANCE if stage is Stage.SELF_TESTED else Action.WAIT
    ), "what was seen before counts for nothing, nor does the time"
    assert resume(at(Stage.PROMOTED), late)[1].action is Action.NOTHING


def test_a_breach_takes_back_a_new_champion_and_never_one_that_was_put_back() -> None:
    traffic = at(Stage.PROMOTED)
    assert soon_after_promotion(traffic, LIMITS, after(60, traffic.since))
    assert not soon_after_promotion(traffic, LIMITS, after(73 * 60, traffic.since))
    assert not soon_after_promotion(at(Stage.PROMOTED, champion=None), LIMITS, START)
    traffic, _ = begin(traffic, "1", run="op", now=traffic.since, direct=True)
    while not traffic.at_rest:
        traffic = follow(traffic)
    assert not soon_after_promotion(traffic, LIMITS, traffic.since)


# --- documents
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"percent": 5}, "percent must be above 0 in canary"),
        ({"stage": "canary"}, "percent must be above 0 in canary"),
        ({"stage": "loading"}, "candidate in the challenger's slot"),
        ({"stage": "promoted", "slots": {"a": None, "b": None}}, "promoted needs a champion"),
        ({"stage": "rolled_back"}, "reason must be given"),
        ({"slots": {"a": "1"}}, "slots must be a and b"),
        ({"champion_slot": "c"}, "'a' or 'b'"),
        ({"percent": 100}, "less than or equal to 99"),
        ({"shares": 3}, "Extra inputs"),
        ({"since": datetime(2026, 1, 1)}, "timezone"),  # noqa: DTZ001 - it is to be refused
    ],
)
def test_a_document_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Traffic.model_validate({**vars(idle()), **change})


# --- whatever happens
versions = st.sampled_from(["1", "2", "3", "4"])
slots = st.builds(
    ObservedSlot,
    version=st.none() | versions,
    refused=st.none()
    | st.builds(Refusal, version=versions, reason=st.just(ReasonCode.PACKAGE_INVALID), message=st.just("")),
)
minutes = st.floats(-5, 30)


@st.composite
def evidence_of(draw: st.DrawFn, traffic: Traffic) -> Evidence:
    """Mostly good, so that rollouts get far; else anything: stale, lost, refused, harmful, silent, absent."""
    generations = st.integers(max(traffic.generation - 2, 0), traffic.generation)
    observed: Observed | None = in_force(traffic)
    counts: Comparison | None = compared(traffic)
    kind = draw(st.sampled_from(["good", "good", "good", "world", "counts", "nothing"]))
    if kind == "nothing":
        return Evidence()
    if kind == "world" and observed:
        observed = observed.model_copy(
            update={
                "generation": draw(generations),
                "slots": {"a": draw(slots), "b": draw(slots)},
                "percent": draw(st.sampled_from([0, 10, 50])),
            }
        )
    if kind == "counts":
        num = draw(st.sampled_from([0, 1, 20, 400, 1000]))
        seen = compared(traffic, num, errors=draw(st.integers(0, num)))
        counts = draw(st.none() | st.just(seen.model_copy(update={"generation": draw(generations)})))
    return Evidence(observed=observed, counts=counts)


def proved(evidence: Evidence, traffic: Traffic) -> bool:
    """Whether the evidence is of this very document, in force, with enough requests and without many errors."""
    observed, counts = evidence.observed, evidence.counts
    return bool(
        observed
        and counts
        and observed.generation == counts.generation == traffic.generation
        and observed.percent == traffic.percent
        and counts.challenger.requests >= 400
        and counts.challenger.errors <= 0.05 * counts.challenger.requests
    )


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_sequence_of_events_gives_a_challenger_more_than_its_step_has_proved(data: st.DataObject) -> None:
    traffic, now = idle(), START
    steps = [0, *(s.percent for s in LIMITS.canary)]
    for _ in range(data.draw(st.integers(1, 25))):
        now = after(data.draw(minutes), now)
        before = Traffic.model_validate_json(traffic.model_dump_json())  # whoever goes on has only the document
        assert before == traffic
        event = data.draw(st.sampled_from(["look"] * 8 + ["begin", "abort", "direct"]))
        evidence = Evidence()
        if event == "look":
            evidence = data.draw(evidence_of(before))
            traffic, decision = next_state(before, evidence, LIMITS, now)
        elif event == "abort":
            traffic, decision = abort(before, ReasonCode.OPERATOR, "", now)
        else:
            version, run = data.draw(versions), data.draw(st.sampled_from(["r", "s"]))
            traffic, decision = begin(before, version, run=run, now=now, direct=event == "direct")

        assert traffic.champion is not None
        assert decision.explanation
        assert (traffic.generation, traffic is before) in {(before.generation, True), (before.generation + 1, False)}
        assert traffic.since >= before.since
        if traffic.percent > before.percent:
            assert steps.index(traffic.percent) == steps.index(before.percent) + 1
            assert before.stage is Stage.SELF_TESTED or proved(evidence, before)
        if traffic.champion != before.champion:
            assert decision.action is Action.PROMOTE
            assert (traffic.champion, traffic.challenger) == (before.challenger, before.champion)
            assert (traffic.previous, traffic.percent) == (before.champion, 0)
            assert before.rollout is not None
            assert before.rollout.direct or (before.percent == steps[-1] and proved(evidence, before))
        if decision.action is Action.ROLL_BACK:
            assert (traffic.champion, traffic.percent, traffic.challenger) == (before.champion, 0, None)
            assert traffic.reason is not None


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([*UNDER_WAY, (Stage.PROMOTED, 0)]),
    minutes,
    st.builds(
        Deployment,
        shadow_minutes=st.sampled_from([0.0, 1.0]),
        canary=st.sampled_from([[], [CanaryStep(percent=50, bake_minutes=0)], LIMITS.canary]),
        no_traffic=st.sampled_from(["promote_after_offline_checks", "hold", "roll_back"]),
    ),
    st.data(),
)
def test_every_document_has_a_next_one_under_every_spec(
    where: tuple[Stage, int], waited: float, limits: Deployment, data: st.DataObject
) -> None:
    traffic = at(*where)
    evidence = data.draw(evidence_of(traffic))
    first = next_state(traffic, evidence, limits, after(waited, traffic.since))
    assert first == next_state(traffic, evidence, limits, after(waited, traffic.since))
    assert first[0].champion is not None


@pytest.mark.parametrize(("stage", "percent"), TRIED)
def test_evidence_of_another_generation_or_share_proves_nothing(stage: Stage, percent: int) -> None:
    traffic = at(stage, percent)
    observed, counts = in_force(traffic), compared(traffic)
    earlier = {"generation": traffic.generation - 1}
    for evidence in [
        Evidence(observed=observed, counts=counts.model_copy(update=earlier)),
        Evidence(observed=observed.model_copy(update=earlier), counts=counts),
        Evidence(observed=observed.model_copy(update={"percent": 1}), counts=counts),
    ]:
        assert next_state(traffic, evidence, LIMITS, after(5, traffic.since))[1].action is Action.WAIT
    assert next_state(traffic, good(traffic), LIMITS, after(5, traffic.since))[1].action is not Action.WAIT


def test_nothing_seen_is_said_and_stored_as_such() -> None:
    traffic = at(Stage.SHADOW)
    evidence = Evidence(observed=in_force(traffic), counts=compared(traffic, 0))
    _, decision = next_state(traffic, evidence, LIMITS, after(5, traffic.since))
    assert "error rate excess unknown" in decision.explanation
    assert next_state(traffic, evidence, LIMITS, after(5, traffic.since))[1] == decision


def test_a_rollout_names_its_version_as_the_registry_does() -> None:
    with pytest.raises(ValidationError, match="version"):
        Rollout(version="latest", run="r", began=START)
