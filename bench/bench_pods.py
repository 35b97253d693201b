"""Training in pods of a real cluster: its rate, what a pod costs, and what is left under faults.

    rate       samples a second of the training program's step loop, as the factory runs it, against a bare torch loop
               in a pod of the same image and shape: beside each other, in the time in which both step (a shared machine
               has another speed from minute to minute), and one after the other
    overhead   from the making of an undisturbed pod to its first step
    goodput    one long training whose pods are killed, stopped and evicted at random moments (seeded): steps that
               were kept, at the undisturbed seconds a step, ÷ wall, from the task's beginning to the last step

Everything that was seen is kept in `var/bench_pods.json`.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from aifactory.recipes.tabular_mlp import TabularMlpParameters
from bench import bare_loop
from bench.podlab import FAULTS, Watcher, check_needs, connected_plant
from bench.podlab import PodLab as Lab
from bench.podtime import REASONS, Track, account, overhead, rate_beside, samples_per_s, stalls
from bench.ratio import Ratio

NUM_ALONE, NUM_BESIDE = 3, 7
RATE_EPOCHS = 50
SEED = 1
MEAN_TIME_BETWEEN_FAULTS_S = 150.0
MIN_FAULTS = 3
STEPPING_S = 660.0
"""How long the disturbed training would step undisturbed."""
_PARAMETERS = TabularMlpParameters.model_validate({})
_SEEN = Path("var/bench_pods.json")


@dataclass(frozen=True)
class Bare:
    """What a bare loop said."""

    program_s: float
    recipe_s: float
    marks: list[tuple[float, int]]

    @property
    def rate(self) -> float:
        """Samples a second."""
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - began)


@dataclass(frozen=True)
class Round:
    """A training, and the bare loop beside it or after it."""

    track: Track
    made: dict[str, Any]
    before_s: float
    after_s: float
    bare: Bare


@dataclass(frozen=True)
class Disturbed:
    """A training under faults."""

    began: float
    tracks: list[Track]
    faults: list[tuple[float, str, str]]
    num_tries: int


def run() -> list[Ratio]:
    """Rate at least 0.97 of the bare loop's; overhead at most 20 s; goodput at least 0.9."""
    check_needs()
    with connected_plant() as lab, Watcher(lab.core) as watcher:
        _say("the history is taken in")
        lab.take_in_the_history()
        alone, beside = _rounds(lab, watcher)
        _keep("alone", [asdict(each) for each in alone])
        _keep("beside", [asdict(each) for each in beside])
        speed = median(samples_per_s(each.track, _PARAMETERS.batch_rows) for each in alone)
        disturbed = _disturb(lab, watcher, round(STEPPING_S * speed / alone[0].track.num_rows))
        _keep("disturbed", asdict(disturbed))
    return [rate(alone, beside), overheads(alone), goodput(disturbed)]


# --- rate and overhead
def _rounds(lab: Lab, watcher: Watcher) -> tuple[list[Round], list[Round]]:
    """Trainings with the node to themselves, a bare loop after each; and trainings beside one."""
    lab.set_parameters(f"{{epochs: {RATE_EPOCHS}}}")
    shape = _shape(lab, watcher)
    program = Path(bare_loop.__file__).read_text()
    alone, beside = [], []
    for number in range(NUM_ALONE):
        trained = _train(lab, watcher, f"bench: alone {number}")
        lab.come_to_rest()
        with lab.bare(f"bare-{number}", program, json.dumps(shape | {"seconds": 40})):
            time.sleep(40)
            bare = _said(lab, f"bare-{number}", 40)
        lab.come_to_rest()
        alone.append(Round(*trained, bare))
        _say(f"alone: {samples_per_s(trained[0], _PARAMETERS.batch_rows):.0f} samples/s, bare {bare.rate:.0f}")
    for number in range(NUM_BESIDE):
        name = f"bare-beside-{number}"
        with lab.bare(name, program, json.dumps(shape | {"seconds": 1000})):
            _said(lab, name, 1)
            trained = _train(lab, watcher, f"bench: beside {number}")
            bare = _said(lab, name, 1)
        lab.come_to_rest()
        beside.append(Round(*trained, bare))
        ours, base = rate_beside(trained[0], _PARAMETERS.batch_rows, bare.marks)
        _say(f"beside: {ours:.0f} samples/s, bare {base:.0f}")
    return alone, beside


def _said(lab: Lab, name: str, num_marks: int) -> Bare:
    """What a bare loop has said so far, as soon as there are so many marks."""
    deadline = time.monotonic() + 180
    while len(told := [json.loads(line) for line in lab.log_of(name)]) < num_marks + 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"pod {name} does not step")
        time.sleep(1)
    return Bare(told[0]["program_s"], told[0]["recipe_s"], [(each["at"], each["rows"]) for each in told[1:]])


def _shape(lab: Lab, watcher: Watcher) -> dict[str, Any]:
    """What the bare loop has to know of the network and the data, from a training that also warms everything up."""
    run_id = lab.train("bench: warm-up")
    track = _seen_to_its_end(watcher, run_id)
    lab.wait_trained(run_id)
    lab.come_to_rest()
    return {
        "sizes": lab.vocabulary_sizes(run_id),
        "num_numbers": 2 * len(lab.spec.model.numeric),
        "num_rows": track.num_rows,
        "batch_rows": _PARAMETERS.batch_rows,
        "threads": max(1, int(lab.spec.compute.cpus)),
        "mark_every": 50,
        "learning_rate": _PARAMETERS.learning_rate,
        "weight_decay": _PARAMETERS.weight_decay,
    }


def _train(lab: Lab, watcher: Watcher, why: str) -> tuple[Track, dict[str, Any], float, float]:
    """An undisturbed training: its pod, what it made, seconds before the pod and after its last step."""
    run_id = lab.train(why)
    track = _seen_to_its_end(watcher, run_id)
    lab.wait_trained(run_id)
    task = lab.tries(run_id)[-1]
    began, ended = (datetime.fromisoformat(task[name]).timestamp() for name in ("start_date", "end_date"))
    return track, lab.made(run_id), track.made_at - began, ended - track.steps[-1][0]


def _seen_to_its_end(watcher: Watcher, run_id: str) -> Track:
    watcher.wait("a pod that succeeds", lambda: any(t.succeeded for t in watcher.of(run_id)), 600)
    [track] = watcher.of(run_id)
    watcher.wait("its last step", lambda: _is_whole(track), 30)
    return track


def _is_whole(track: Track) -> bool:
    """Whether its log was read up to the last step."""
    return bool(track.steps) and track.steps[-1][1] == track.num_steps


def rate(alone: list[Round], beside: list[Round]) -> Ratio:
    """Rate of the training program ÷ rate of the bare loop."""
    rates = [rate_beside(each.track, _PARAMETERS.batch_rows, each.bare.marks) for each in beside]
    ratios = [ours / base for ours, base in rates]
    after = [(samples_per_s(each.track, _PARAMETERS.batch_rows), each.bare.rate) for each in alone]
    detail = {
        "samples_per_s": round(median(ours for ours, _ in rates)),
        "bare_samples_per_s": round(median(base for _, base in rates)),
        "rounds": [round(ratio, 3) for ratio in ratios],
        "alone": {
            "samples_per_s": [round(ours) for ours, _ in after],
            "bare_samples_per_s": [round(base) for _, base in after],
        },
        **{name: round(value, 3) for name, value in stalls([each.track for each in alone]).items()},
    }
    return Ratio(
        "samples/s in a pod ÷ bare torch loop in the same image", median(ratios), 0.97, at_most=False, detail=detail
    )


def overheads(alone: list[Round]) -> Ratio:
    """What a pod costs until its first step."""
    program_s, recipe_s = (median(getattr(each.bare, name) for each in alone) for name in ("program_s", "recipe_s"))
    split = [overhead(each.track, program_s, recipe_s) for each in alone]
    detail = {name: round(median(each[name] for each in split), 2) for name in split[0]}
    detail |= {
        "task before the pod": round(median(each.before_s for each in alone), 2),
        "from the last step to the task's end": round(median(each.after_s for each in alone), 2),
    }
    detail |= {name: round(fmean(each.made[name] for each in alone), 2) for name in ("schedule_s", "start_s")}
    return Ratio(
        "seconds from the making of a pod to its first step", median(e["total"] for e in split), 20.0, detail=detail
    )


# --- goodput
def plan(seed: int) -> Iterator[tuple[float, str]]:
    """Moments of faults, s after the first pod was made, and their kinds: every kind in every three."""
    chance = random.Random(seed)
    moment = 0.0
    while True:
        for kind in chance.sample(FAULTS, len(FAULTS)):
            moment += chance.expovariate(1 / MEAN_TIME_BETWEEN_FAULTS_S)
            yield moment, kind


def _disturb(lab: Lab, watcher: Watcher, epochs: int) -> Disturbed:
    """A long training, its pods struck as planned; whatever pod there is at the moment, or the next one."""
    lab.set_parameters(f"{{epochs: {epochs}}}")
    run_id = lab.train("bench: goodput")
    watcher.wait("the first pod", lambda: bool(watcher.of(run_id)), 120)
    first = watcher.of(run_id)[0]
    planned = [f"{at:.0f} s {kind}" for at, kind in itertools.takewhile(lambda each: each[0] < STEPPING_S, plan(SEED))]
    _say(f"{epochs} epochs; faults planned: {', '.join(planned)}")
    faults: list[tuple[float, str, str]] = []
    for after_s, kind in plan(SEED):
        name = _strike_at(lab, watcher, run_id, first.made_at + after_s, kind, {name for _, name, _ in faults})
        if name is None:
            break
        faults.append((time.time(), name, kind))
        _say(f"{time.time() - first.made_at:.0f} s: {name} {kind}")
    if len(faults) < MIN_FAULTS:
        raise RuntimeError(f"only {len(faults)} faults struck: the training is too short for the plan")
    last = next(track for track in watcher.of(run_id) if track.succeeded)
    watcher.wait("the last step", lambda: _is_whole(last), 30)
    lab.wait_trained(run_id)
    tries = lab.tries(run_id)
    lab.come_to_rest()
    began = min(datetime.fromisoformat(each["start_date"]).timestamp() for each in tries)
    return Disturbed(began, watcher.of(run_id), faults, len(tries))


def _strike_at(lab: Lab, watcher: Watcher, run_id: str, moment: float, kind: str, struck: set[str]) -> str | None:
    """Wait for the moment and for a pod that was not struck yet; its name, or None where the training ended first."""
    deadline = moment + 600
    look_at = 0.0
    while time.time() < deadline:
        tracks = watcher.of(run_id)
        if any(track.succeeded for track in tracks):
            return None
        alive = [t.name for t in tracks if t.gone_at is None and t.ended_at is None and t.name not in struck]
        if time.time() >= moment and alive and lab.strike(alive[-1], kind):
            return alive[-1]
        if not alive and time.time() >= look_at:
            look_at = time.time() + 5
            if lab.task(run_id)["state"] == "failed":
                raise RuntimeError("the task failed: a fault was taken for a defect, or there were too many")
        time.sleep(0.1)
    raise RuntimeError("the training has neither a pod nor an end")


def goodput(seen: Disturbed) -> Ratio:
    """What is left of a training's time under faults."""
    found = account(seen.began, seen.tracks, {name: at for at, name, _ in seen.faults})
    of_longest = found["of_longest"]
    detail = {
        "faults": [f"{at - seen.began:.0f} s {kind}" for at, _, kind in seen.faults],
        "num_pods": len(seen.tracks),
        "num_tries": seen.num_tries,
        "wall_s": round(found["wall_s"], 1),
        "effective_s": round(found["effective_s"], 1),
        "lost_s": {name: round(found["lost_s"][name], 1) for name in (*REASONS, "other")},
        "ms_a_step": [round(1000 * track.step_s()[0], 2) for track in seen.tracks],
        "by_the_speed_of_the_longest_stretch": {
            "goodput": round(of_longest["goodput"], 3),
            "ms_a_step": round(1000 * of_longest["step_s"], 2),
            "over_s": round(of_longest["over_s"]),
        },
        "checkpoint_stalls_s": round(stalls(seen.tracks).get("checkpoints_s", 0.0), 1),  # within the effective time
    }
    return Ratio("goodput of a training under faults", found["goodput"], 0.9, at_most=False, detail=detail)


def _keep(name: str, seen: Any) -> None:
    known = json.loads(_SEEN.read_text()) if _SEEN.exists() else {}
    _SEEN.parent.mkdir(exist_ok=True)
    _SEEN.write_text(json.dumps(known | {name: seen}, default=str))


def _say(text: str) -> None:
    sys.stdout.write(f"   {text}\n")
    sys.stdout.flush()
