"""Rollouts whole: real stores, servers, gateway, controller, shipper; a deploy task at work; a client that counts."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.served import commit
from tests.serving.playing import Playing, wait
from tests.serving.rig import GOLDEN, Line, Rig, Task, graph
from tests.serving.small_model import expected

from aifactory.errors import InfrastructureFault, ReleaseDefect, Waiting
from aifactory.ledger import EventKind
from aifactory.reasons import ReasonCode
from aifactory.rollout import PointerTarget
from aifactory.serving.traffic import Stage, Traffic
from aifactory.settings import REPOSITORY, Settings
from aifactory.signing import SIGNATURE_FILE
from aifactory.stages.deploy import promote, rollback
from aifactory.stages.probation import take_back, watch
from aifactory.stages.rollout import STEPS, advance
from plant import gateway, processes, serving, slots, triton
from plant.errors import PlantError

pytestmark = pytest.mark.integration

SHADOWED, TRIED = ["loading", "self_tested", "shadow"], ["loading", "self_tested", "shadow", "canary"]
AT_ONCE = {"shadow_minutes": 0}
"""No shadow: what is wrong is met by live requests."""

GONE = (ReasonCode.CHALLENGER_LOST, ReasonCode.CANARY_ERRORS)
"""The controller sees that it is gone, or the task that it answers nothing, whoever looks first."""

Rigs = Callable[[Literal["own", "triton"]], Rig]


@pytest.fixture(scope="module")
def rigs(mlflow_settings: Settings) -> Iterator[Rigs]:
    """Serving by either kind of servers, started when it is first asked for."""
    started: dict[str, Rig] = {}
    with ExitStack() as stack:

        def rig(runtime: Literal["own", "triton"]) -> Rig:
            if runtime not in started:
                if runtime == "triton":
                    os.environ.setdefault("AIF_TRITON_ENV", str(REPOSITORY / "var" / "triton-env"))
                    try:
                        triton.check_machine()
                    except PlantError as error:
                        pytest.skip(str(error))
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True))
                made = Rig(mlflow_settings, Path(folder) / "home", runtime)
                stack.callback(made.stop)
                made.start()
                started[runtime] = made
            return started[runtime]

        yield rig


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    """The factory's own servers."""
    return rigs("own")


@pytest.fixture
def lines() -> Iterator[ExitStack]:
    """Ends the lines of a test."""
    with ExitStack() as stack:
        yield stack


def none_failed(playing: Playing) -> dict[str, Any]:
    """Its report, after it was stopped: all that was sent is answered."""
    found = playing.stop()
    assert found["failed"] == 0, found["failures"]
    assert found["sent"] == found["answered"] > 0
    return found


def taken_back(line: Line, champion: str, candidate: str, *reasons: ReasonCode) -> Traffic:
    """The document of a candidate that was taken back: the champion has everything, and everybody knows why."""
    document = line.wanted
    assert document.reason in reasons, document.explanation
    assert (document.stage, document.percent) == (Stage.ROLLED_BACK, 0)
    assert (document.champion, document.challenger) == (champion, None)
    line.settle()
    assert {slot.version for slot in line.seen.slots.values()} == {champion, None}
    [event] = line.happened(EventKind.ROLLED_BACK)
    assert (event.unit, event.reason) == (candidate, document.reason)
    assert event.detail["explanation"] == document.explanation
    pointer = line.f.registry(line.spec).champion()
    assert pointer is not None
    assert pointer.version == champion
    return document


def promoted(line: Line, before: str, candidate: str) -> Traffic:
    """The document of a candidate that was promoted: live and for batches, the one before kept loaded."""
    document, registry = line.wanted, line.f.registry(line.spec)
    assert (document.stage, document.percent, document.reason) == (Stage.PROMOTED, 0, None), document.explanation
    assert (document.champion, document.challenger, document.previous) == (candidate, before, before)
    line.settle()
    seen = line.seen.slots
    assert (seen[document.champion_slot].version, seen[document.challenger_slot].version) == (candidate, before)
    pointer = registry.champion()
    assert pointer is not None
    assert (pointer.version, pointer.previous) == (candidate, before)
    aliases = [
        str(registry.client.get_model_version_by_alias(line.name, name).version) for name in ("champion", "previous")
    ]
    assert aliases == [candidate, before]
    return document


# --- good and bad candidates
@pytest.mark.parametrize("runtime", [pytest.param("own", marks=pytest.mark.thorough), "triton"])
def test_a_good_candidate_takes_over_and_an_operator_takes_it_back(
    rigs: Rigs, lines: ExitStack, runtime: Literal["own", "triton"]
) -> None:
    steps = [{"percent": percent, "bake_minutes": 0.03} for percent in (40, 70)]
    line = lines.enter_context(rigs(runtime).line(canary=steps))
    first = line.serve()
    before = line.wanted
    assert line.seen.generation == before.generation, "a version in service answers at once"
    playing = line.play()
    second = line.candidate(bias=0.35)
    made = line.deploy(second, "run-2")
    assert (made["version"], made["previous"]) == (second, first)
    document = promoted(line, first, second)
    assert document.champion_slot == before.challenger_slot, "roles are swapped, not models"
    decided = [
        (e.detail["stage"], e.detail["percent"]) for e in line.happened(EventKind.DECIDED) if e.run_id == "run-2"
    ]
    assert decided == [
        ("loading", 0), ("self_tested", 0), ("shadow", 0), ("canary", 40), ("canary", 70), ("promoted", 0)
    ]  # fmt: skip
    assert line.deploy(second, "run-2") == made, "a retry changes nothing"
    assert line.wanted == document

    back = rollback(line.f, line.spec, None, "back", by="anna", why="too many false alarms")
    assert back["version"] == first
    restored = line.wanted
    assert (restored.champion, restored.challenger, restored.champion_slot) == (first, second, before.champion_slot)
    line.settle()
    assert rollback(line.f, line.spec, None, "back", by="anna", why="too many false alarms") == back
    assert line.wanted == restored, "a retry goes back once"
    assert line.stages("back") == ["loading", "self_tested", "promoted"], "seconds, without shadow and canary"
    with pytest.raises(ReleaseDefect) as caught:
        promote(line.f, line.spec, second, "run-2")
    assert caught.value.reason is ReasonCode.ROLLOUT_SUPERSEDED, "a late task brings nothing back that was taken back"

    advance(
        line.f, line.spec, second, "half", STEPS["canary"], direct=True
    )  # as a task that dies before batches follow
    assert line.wanted.champion == second
    assert rollback(line.f, line.spec, None, "rest", by="anna", why="it was the data")["version"] == second

    answered = playing.reach("answered", playing.reach("answered", 1) + 50)
    found = none_failed(playing)
    assert found["answered"] >= answered
    of_versions = {version: counts["answered"] for version, counts in found["by_version"].items()}
    assert set(of_versions) == {first, second}
    wait(lambda: sum(line.logged().get((v, False), 0) for v in (first, second)) == found["rows"])
    logged = line.logged()
    assert min(logged[first, False], logged[second, False], logged[second, True]) > 0, "of both, and the copies"


@pytest.fixture(scope="module")
def outcomes(rigs: Rigs) -> Iterator[dict[str, tuple[Line, str, str, dict[str, Any], dict[str, Any]]]]:
    """What became of candidates that are tried side by side: line, champion, candidate, made, the client's report."""
    rig = rigs("own")
    slow = {"max_latency_ratio": 2, "latency_floor_ms": 60, "canary": [{"percent": 10, "bake_minutes": 0.03}]}
    asked: dict[str, dict[str, Any]] = {
        "other scores, copied": {"max_score_shift": 0.3},
        "other scores": AT_ONCE | {"max_score_shift": 0.3},
        "slow": AT_ONCE | slow,
        "failing": AT_ONCE,
        "corrupt": {},
        "unsigned": {},
        "no traffic, roll_back": {"no_traffic": "roll_back", "patience_minutes": 0.05},
        "no traffic, promote_after_offline_checks": {
            "no_traffic": "promote_after_offline_checks", "patience_minutes": 0.05
        },
    }  # fmt: skip
    graphs = {"slow": graph(0.3, "slow"), "failing": graph(0.3, "failing")}
    turns = threading.Semaphore(3)  # with more at once a small machine would measure itself

    def tried(name: str, line: Line) -> tuple[Line, str, str, dict[str, Any], dict[str, Any]]:
        champion = line.serve()
        candidate = line.candidate(graphs.get(name), bias=-4.0 if "scores" in name else 0.3)
        package = f"models/{line.name}/{candidate}"
        if name == "corrupt":
            line.f.store.put(f"{package}/model.onnx", line.f.store.get(f"{package}/model.onnx")[:-10])
        if name == "unsigned":
            line.f.store.delete(f"{package}/{SIGNATURE_FILE}")
        if "no traffic" in name:
            return line, champion, candidate, line.deploy(candidate), {}
        playing = line.play()
        made = line.deploy(candidate)
        playing.reach("answered", playing.reach("answered", 1) + 20)
        return line, champion, candidate, made, none_failed(playing)

    def in_turn(name: str, line: Line) -> tuple[Line, str, str, dict[str, Any], dict[str, Any]]:
        with turns:
            return tried(name, line)

    with ExitStack() as stack:
        lines = {name: stack.enter_context(rig.line(**limits)) for name, limits in asked.items()}
        tasks = {name: Task(in_turn, name, line) for name, line in lines.items()}
        for task in tasks.values():  # where one fails, none of the others may begin to play after the lines' end
            stack.callback(task.join)
        yield {name: task.result(200) for name, task in tasks.items()}


@pytest.mark.parametrize(
    ("name", "reason", "passed"),
    [
        ("other scores, copied", ReasonCode.SHADOW_MISMATCH, SHADOWED),
        ("other scores", ReasonCode.CANARY_SCORES_SHIFTED, ["loading", "self_tested", "canary"]),
        ("slow", ReasonCode.CANARY_SLOW, ["loading", "self_tested", "canary"]),
        ("failing", ReasonCode.CANARY_ERRORS, ["loading", "self_tested", "canary"]),
        ("corrupt", ReasonCode.PACKAGE_INVALID, ["loading"]),
        ("unsigned", ReasonCode.PACKAGE_UNSIGNED, ["loading"]),
    ],
)
def test_a_bad_candidate_is_taken_back_and_no_caller_notices(
    outcomes: dict[str, tuple[Line, str, str, dict[str, Any], dict[str, Any]]],
    name: str,
    reason: ReasonCode,
    passed: list[str],
) -> None:
    line, champion, candidate, made, found = outcomes[name]
    document = taken_back(line, champion, candidate, reason)
    assert (made["reason"], made["champion"]) == (reason.value, champion)
    assert line.stages(f"deploy-{candidate}") == [*passed, "rolled_back"]
    assert document.explanation.startswith(f"version {candidate} is taken back at {passed[-1]}")
    answered = {version: counts["answered"] for version, counts in found["by_version"].items()}
    assert answered[champion] > 0
    if passed[-1] != "canary":
        assert set(answered) == {champion}, "nobody got an answer of the candidate"


def test_no_traffic_does_what_the_line_says(
    rig: Rig, lines: ExitStack, outcomes: dict[str, tuple[Line, str, str, dict[str, Any], dict[str, Any]]]
) -> None:
    line, champion, candidate, _, _ = outcomes["no traffic, roll_back"]
    taken_back(line, champion, candidate, ReasonCode.NO_TRAFFIC)
    line, champion, candidate, _, _ = outcomes["no traffic, promote_after_offline_checks"]
    promoted(line, champion, candidate)
    last = line.happened(EventKind.DECIDED)[-1]
    assert (last.reason, last.detail["stage"]) == (ReasonCode.NO_TRAFFIC, "promoted")

    line = lines.enter_context(rig.line(patience_minutes=0.05))
    champion = line.serve()
    candidate = line.candidate()
    with pytest.raises(Waiting, match="shadow holds without traffic: 0 requests, 40 are needed"):
        advance(line.f, line.spec, candidate, "run", STEPS["canary"], hold_s=12)
    assert (line.wanted.stage, line.wanted.champion) == (Stage.SHADOW, champion)


# --- kills
class Crossing:
    """Three lines with traffic, their candidates loading, in shadow and in canary at the same moment."""

    def __init__(self, rig: Rig, lines: ExitStack) -> None:
        hold: dict[Stage, dict[str, Any]] = {
            Stage.LOADING: {},
            Stage.SHADOW: {"shadow_minutes": 0.12},
            Stage.CANARY: AT_ONCE | {"canary": [{"percent": 50, "bake_minutes": 0.12}]},
        }
        self.rig = rig
        self.lines = {stage: lines.enter_context(rig.line(**limits)) for stage, limits in hold.items()}
        champions = {stage: Task(line.serve) for stage, line in self.lines.items()}
        self.champion = {stage: task.result() for stage, task in champions.items()}
        self.candidate = {stage: line.candidate(bias=0.35) for stage, line in self.lines.items()}
        self.slots = {line.wanted.champion_slot for line in self.lines.values()}
        self.playing = {stage: line.play() for stage, line in self.lines.items()}

    def reach(self, start: Callable[[Line, str], Any]) -> dict[Stage, Any]:
        """Begin the rollouts so that each is where it should be; what `start` gave for each."""
        begun = {stage: start(self.lines[stage], self.candidate[stage]) for stage in (Stage.SHADOW, Stage.CANARY)}
        for stage in begun:
            self.lines[stage].reach(stage)
            self.lines[stage].settle()
        line = self.lines[Stage.LOADING]
        begun[Stage.LOADING] = start(line, self.candidate[Stage.LOADING])
        line.reach(Stage.LOADING)
        assert [line.wanted.stage for line in self.lines.values()] == list(self.lines), "too late for a crossing"
        return begun

    def champions_serve(self) -> None:
        """Each champion answers, and nobody else does: asked of the documents, the controller, and the client."""
        for stage, line in self.lines.items():
            assert line.wanted.champion == self.champion[stage]
            wait(lambda line=line: line.seen.percent == 0, 20)  # type: ignore[misc]

    def ends(self, stage: Stage, run: str) -> None:
        """The run, tried again with the same id, ends well; where its candidate was taken back, a new run does."""
        line, champion, candidate = self.lines[stage], self.champion[stage], self.candidate[stage]
        if line.wanted.stage is Stage.ROLLED_BACK:
            before = line.wanted
            assert line.deploy(candidate, run)["reason"] == before.reason
            assert line.wanted == before, "what was taken back stays so, whoever tries again"
            run = f"{run}-anew"
        assert line.deploy(candidate, run)["version"] == candidate
        promoted(line, champion, candidate)


@pytest.mark.parametrize(
    "victim", ["challenger", pytest.param("controller", marks=pytest.mark.thorough), "champion", "gateway"]
)
def test_a_kill_at_every_stage_harms_no_champion(
    rig: Rig, lines: ExitStack, victim: str, record_property: Callable[[str, object], None]
) -> None:
    crossing = Crossing(rig, lines)
    [champions] = crossing.slots
    parts = {
        "challenger": slots.name("b" if champions == "a" else "a"),
        "champion": slots.name(champions),
        "gateway": gateway.NAME,
        "controller": serving.CONTROL,
    }
    tasks = crossing.reach(lambda line, candidate: Task(line.deploy, candidate, "run"))
    rig.kill(parts[victim])
    made = {stage: task.result() for stage, task in tasks.items()}
    for stage, line in crossing.lines.items():
        if victim == "challenger" and "reason" in made[stage]:
            taken_back(line, crossing.champion[stage], crossing.candidate[stage], *GONE)
        else:
            assert made[stage].get("version") == crossing.candidate[stage], f"{stage}: {made[stage]}"
    if victim == "challenger":
        assert [stage for stage in made if "reason" in made[stage]] == [Stage.SHADOW, Stage.CANARY]
    ends = {stage: Task(crossing.ends, stage, "run") for stage in made}
    for task in ends.values():
        task.result()
    for stage, playing in crossing.playing.items():
        playing.reach("answered", playing.reach("answered", 1) + 20)
        if victim in ("challenger", "controller"):
            none_failed(playing)
            continue
        found = playing.stop()  # who kills what alone can answer loses requests; how many is told
        record_property(f"failed at {stage} after the {victim} was killed", found["failed"])
        seconds = [counts["second"] for counts in found["seconds"] if counts["failed"]]
        assert max(seconds, default=0) - min(seconds, default=0) <= 15, found["failures"]
        assert sum(counts["failed"] for counts in found["seconds"]) == found["failed"]


def test_a_killed_deploy_task_leaves_the_champion_everything_and_its_rerun_ends_well(
    rig: Rig, lines: ExitStack
) -> None:
    crossing = Crossing(rig, lines)
    children = {
        line.name: line.deploying(crossing.candidate[stage], "run", 10) for stage, line in crossing.lines.items()
    }
    for child in children.values():
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"

    def begin(line: Line, _: str) -> None:
        stdin = children[line.name].stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()

    crossing.reach(begin)
    for child in children.values():
        child.kill()
        child.communicate()
    killed = {stage: line.wanted for stage, line in crossing.lines.items()}
    crossing.champions_serve()
    silent = crossing.lines[Stage.CANARY]
    candidate, playing = crossing.candidate[Stage.CANARY], crossing.playing[Stage.CANARY]
    playing.reach("answered", playing.reach("answered", 1) + 20)  # what was on its way
    before = playing.counted()["by_version"][candidate]["answered"]
    playing.reach("answered", playing.reach("answered", 1) + 100)
    assert playing.counted()["by_version"][candidate]["answered"] == before
    assert silent.wanted == killed[Stage.CANARY], "the document says how far it was"
    ends = {stage: Task(crossing.ends, stage, "run") for stage in crossing.lines}
    for task in ends.values():
        task.result()
    for stage, line in crossing.lines.items():
        assert line.stages("run-anew") == []
        decided = [str(stage)] * 2 if stage is not Stage.LOADING else []
        assert [s for s in line.stages("run") if s == stage][: len(decided)] == decided, "its stage began anew"
    for playing in crossing.playing.values():
        none_failed(playing)


def test_a_model_process_that_dies_is_taken_back(rigs: Rigs, lines: ExitStack) -> None:
    """Triton goes on calling such a model ready."""
    rig = rigs("triton")
    line = lines.enter_context(rig.line(**AT_ONCE, canary=[{"percent": 50, "bake_minutes": 0.15}]))
    first = line.serve()
    playing = line.play()
    server = int(rig.supervisor.state(slots.name(line.wanted.challenger_slot))["pid"])
    before = processes.family(server)
    second = line.candidate()
    task = Task(line.deploy, second, "run")
    line.reach(Stage.CANARY)
    line.settle()
    [stub] = [process for process in processes.family(server) if process not in before]
    stub.kill()
    assert task.result()["champion"] == first
    taken_back(line, first, second, *GONE, ReasonCode.CANARY_SLOW)  # its requests wait until another try is made
    assert processes.family(server)[0] in before, "the server itself lives"
    assert line.deploy(second, "another run")["version"] == second
    promoted(line, first, second)
    none_failed(playing)


# --- probation
def happens(line: Line, *, as_scored: bool) -> None:
    """Outcomes of the days that the player asks about: as the model said, or just the other way round."""
    rows = pq.read_table(line.rig.requests)
    scores = np.array(expected(0.3, {name: rows[name].to_pylist() for name in GOLDEN}))
    late = (scores > np.median(scores)) == as_scored
    units = rows.select(["carrier", "origin", "flight", "prediction_time"])
    table = units.append_column(line.spec.model.target, pa.array(late, pa.int8()))
    days = pc.strftime(table["prediction_time"], "%Y-%m-%d")
    commit(line.f, line.spec, {day: table.filter(pc.equal(days, day)) for day in pc.unique(days).to_pylist()})


def test_a_new_champion_that_breaks_a_limit_on_live_answers_is_taken_back(rig: Rig, lines: ExitStack) -> None:
    limits = {"window_days": 2, "label_delay_hours": 0, "min_live_outcomes": 200, "max_calibration_error": 1}
    line = lines.enter_context(rig.line(limits, shadow_minutes=0, canary=[]))
    first = line.serve()
    assert not watch(line.f, line.spec)["breach"], "there is none before it"
    second = line.candidate(bias=0.35)
    line.deploy(second)
    happens(line, as_scored=True)
    assert "0 live answers with an outcome, on 0 days" in watch(line.f, line.spec)["explanation"]
    playing = line.play(lasts_s=8)
    playing.reach("rows", 2 * 576)
    wait(lambda: line.logged().get((second, False), 0) >= 2 * 576)
    kept = watch(line.f, line.spec)
    assert (kept["breach"], "keeps its limits" in kept["explanation"]) == (False, True), kept
    happens(line, as_scored=False)
    half_released = line.f.store.get_json(line.f.registry(line.spec).champion_key)
    line.f.store.put_json(line.f.registry(line.spec).champion_key, half_released | {"version": first})
    assert not watch(line.f, line.spec)["breach"], "batches are to follow first"
    line.f.store.put_json(line.f.registry(line.spec).champion_key, half_released)
    before, breach = line.wanted, watch(line.f, line.spec)
    assert (breach["breach"], breach["version"], breach["to"]) == (True, second, first)
    assert breach["explanation"].startswith("live roc_auc 0.")
    assert line.wanted == before, "to look changes nothing"

    def away(*_: object, **__: object) -> None:
        raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "it is away")

    with pytest.MonkeyPatch.context() as between:
        between.setattr(PointerTarget, "switch", away)
        with pytest.raises(InfrastructureFault):
            take_back(line.f, line.spec, breach, "night")
    assert line.wanted.champion == first, "live requests go first"
    assert not watch(line.f, line.spec)["breach"]
    made = take_back(line.f, line.spec, breach, "night")
    assert made["version"] == first
    line.settle()
    document = line.wanted
    assert (document.champion, document.challenger, document.percent) == (first, second, 0)
    assert line.seen.slots[document.champion_slot].version == first
    registry = line.f.registry(line.spec)
    assert str(registry.client.get_model_version_by_alias(line.name, "champion").version) == first
    assert [registry.champions()[-1][name] for name in ("version", "how", "by")] == [first, "rolled_back", "line"]
    [event] = line.happened(EventKind.ROLLED_BACK)
    assert (event.unit, event.reason, event.detail["why"]) == (second, ReasonCode.LIVE_BREACH, breach["explanation"])
    none_failed(playing)

    assert take_back(line.f, line.spec, breach, "night") == made, "a retry goes back once"
    assert not watch(line.f, line.spec)["breach"], "who was put back is on no probation: the two would take turns"
    line.deploy(second, "again", backwards=True)
    assert not watch(line.f, line.spec)["breach"], "what it answered in its first reign counts for nothing"
    take_back(line.f, line.spec, breach | {"version": first, "to": second}, "late")
    assert line.wanted.champion == second, "what was found of another champion is not done to this one"
    assert len(line.happened(EventKind.ROLLED_BACK)) == 1
