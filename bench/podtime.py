"""Where the time of a training in pods went: arithmetic on what was seen of its pods. Needs no cluster."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

_STEP = re.compile(r"\bstep (\d+)/(\d+) ")
_LEARNS = re.compile(r"\blearns (\d+) rows")
_RESUMED = re.compile(r"\bgoing on after step (\d+) of")
_KEPT = re.compile(r"\bcheckpoint after step (\d+):")

REASONS = (
    "before the first pod",
    "from the fault to the pod's end",
    "wait for the next pod",
    "schedule",
    "start",
    "import and data",
    "steps done twice",
)
"""What can cost a disturbed training time, but for `other`."""
_FEW_STEPS = 200
"""Told steps over fewer than these give no speed of their own."""


@dataclass
class Track:
    """What was seen of one pod. Moments are epoch seconds, those of the log by the node's clock, others by ours."""

    name: str
    made_at: float
    owner: dict[str, str] = field(default_factory=dict)
    placed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    gone_at: float | None = None
    succeeded: bool = False
    log: list[tuple[float, str]] = field(default_factory=list)

    @property
    def steps(self) -> list[tuple[float, int]]:
        """When which step was told."""
        return [(at, int(found[1])) for at, found in self._found(_STEP)]

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return next((int(found[2]) for _, found in self._found(_STEP)), 0)

    @property
    def num_rows(self) -> int:
        """Rows that it learns from; of one pass."""
        return next((int(found[1]) for _, found in self._found(_LEARNS)), 0)

    @property
    def learns_at(self) -> float | None:
        """When its rows were read."""
        return next((at for at, _ in self._found(_LEARNS)), None)

    @property
    def resumed_from(self) -> int:
        """Steps that were done before it, 0 without a checkpoint."""
        return next((int(found[1]) for _, found in self._found(_RESUMED)), 0)

    @property
    def kept(self) -> list[tuple[float, int]]:
        """When the checkpoint of which step was written."""
        return [(at, int(found[1])) for at, found in self._found(_KEPT)]

    def step_s(self, until: float = math.inf) -> tuple[float, float]:
        """Seconds a step between its first and last told step, and how long that was; (nan, 0) without two."""
        told = [each for each in self.steps if each[0] <= until]
        if len(told) < 2:
            return math.nan, 0.0
        (began, first), (ended, last) = told[0], told[-1]
        return (ended - began) / (last - first), ended - began

    def reached(self, moment: float, step_s: float) -> float:
        """Steps done by a moment; between the told ones by the speed."""
        told = [each for each in self.steps if each[0] <= moment]
        if not told:
            return float(self.resumed_from)
        at, step = told[-1]
        return min(step + (moment - at) / step_s, float(self.num_steps))

    def moving_at(self, step_s: float) -> float | None:
        """When its step loop began: the first told step, less what the steps until then took."""
        if not self.steps:
            return None
        at, step = self.steps[0]
        return at - (step - self.resumed_from) * step_s

    def _found(self, pattern: re.Pattern[str]) -> Iterable[tuple[float, re.Match[str]]]:
        for at, line in self.log:
            if found := pattern.search(line):
                yield at, found


def rows_done(step: int, num_rows: int, batch_rows: int) -> int:
    """Rows in the first so many steps: the last batch of a pass over the data is a short one."""
    passes, batches = divmod(step, math.ceil(num_rows / batch_rows))
    return passes * num_rows + min(batches * batch_rows, num_rows)


def rate_beside(track: Track, batch_rows: int, marks: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Rows a second of a pod's step loop, and of another loop in the time in which both stepped.

    Args:
        track: the pod.
        batch_rows: rows of its batches.
        marks: when the other loop had done how many rows.
    """
    (began, _), (ended, _) = marks[0], marks[-1]
    told = [each for each in track.steps if began <= each[0] <= ended]
    (began, first), (ended, last) = told[0], told[-1]
    rows = rows_done(last, track.num_rows, batch_rows) - rows_done(first, track.num_rows, batch_rows)
    other = _rows_at(marks, ended) - _rows_at(marks, began)
    return rows / (ended - began), other / (ended - began)


def _rows_at(marks: Sequence[tuple[float, int]], moment: float) -> float:
    for (a, before), (b, after) in pairwise(marks):
        if a <= moment <= b:
            return before + (after - before) * (moment - a) / (b - a)
    raise ValueError("the moment lies outside of the marks")


def samples_per_s(track: Track, batch_rows: int) -> float:
    """Rate of a pod's step loop, from the first told step to the last."""
    (began, first), (ended, last) = track.steps[0], track.steps[-1]
    rows = rows_done(last, track.num_rows, batch_rows) - rows_done(first, track.num_rows, batch_rows)
    return rows / (ended - began)


def overhead(track: Track, program_s: float, recipe_s: float) -> dict[str, float]:
    """Seconds from the making of a pod to its first told step, by what they went to.

    Args:
        track: a pod that was not disturbed.
        program_s: what importing takes in such a pod before the data is read, measured apart: the program does not say.
        recipe_s: what importing the recipe takes, after the data is read.
    """
    placed, started, learns = track.placed_at, track.started_at, track.learns_at
    if placed is None or started is None or learns is None:
        raise ValueError(f"pod {track.name} was not seen from its making to its first step")
    first, num_first = track.steps[0]
    stepping = num_first * track.step_s()[0]
    return {
        "schedule": placed - track.made_at,
        "start": started - placed,
        "import": program_s + recipe_s,
        "data": first - stepping - started - program_s - recipe_s,
        "first steps": stepping,
        "total": first - track.made_at,
    }


def account(began: float, tracks: Sequence[Track], struck: Mapping[str, float]) -> dict[str, Any]:
    """What became of the wall time of a training, from a moment to the last step of its last pod.

    A step that was kept counts as much as a step of the same pod takes undisturbed: a shared machine has another speed
    from minute to minute, and one speed for all would make good or bad of that.

    Args:
        began: when the task began.
        tracks: its pods, one after the other; the last one ended well.
        struck: when the fault struck which pod.

    Returns:
        {"goodput", "wall_s", "effective_s", "lost_s": {reason: seconds}, "of_longest": {...}}, the last by the speed
        of the longest undisturbed stretch alone: {"goodput", "step_s", "over_s"}
    """
    stretches = {t.name: t.step_s(struck.get(t.name, math.inf)) for t in tracks}
    longest_step_s, over_s = max(stretches.values(), key=lambda found: found[1])
    lost = dict.fromkeys(REASONS, 0.0)
    lost["before the first pod"] = tracks[0].made_at - began
    effective_s = 0.0
    for number, track in enumerate(tracks):
        later = tracks[number + 1] if number + 1 < len(tracks) else None
        long_enough = len(track.steps) > 1 and track.steps[-1][1] - track.steps[0][1] >= _FEW_STEPS
        step_s = stretches[track.name][0] if long_enough else longest_step_s
        end = _end_of_steps(track, struck, later)
        moving = track.moving_at(step_s)
        marks = [track.made_at]
        for mark in (track.placed_at, track.started_at, moving):
            marks.append(end if mark is None else min(max(mark, marks[-1]), end))  # in order, none after the end
        for reason, (a, b) in zip(("schedule", "start", "import and data"), pairwise(marks), strict=True):
            lost[reason] += b - a
        if moving is not None:
            kept_until = next((t.resumed_from for t in tracks[number + 1 :] if t.steps), track.num_steps)
            effective_s += (kept_until - track.resumed_from) * step_s
            lost["steps done twice"] += max(0.0, track.reached(end, step_s) - kept_until) * step_s
        if later is not None:
            over = max(min(track.ended_at or later.made_at, track.gone_at or later.made_at, later.made_at), end)
            lost["from the fault to the pod's end"] += over - end
            lost["wait for the next pod"] += later.made_at - over
    wall_s = tracks[-1].steps[-1][0] - began
    lost["other"] = wall_s - effective_s - sum(lost.values())
    of_longest = {"goodput": tracks[-1].num_steps * longest_step_s / wall_s, "step_s": longest_step_s, "over_s": over_s}
    return {
        "goodput": effective_s / wall_s,
        "wall_s": wall_s,
        "effective_s": effective_s,
        "lost_s": lost,
        "of_longest": of_longest,
    }


def stalls(tracks: Sequence[Track]) -> dict[str, float]:
    """What slows the step loop down within undisturbed stretches, estimated from the distances of told steps.

    Returns:
        `checkpoints_s`: what stretches in which a checkpoint was made took longer than the others, together.
        `mean_to_median`: mean ÷ median seconds a step; what stalls seldom raises the mean alone.
    """
    with_one: list[float] = []
    without: list[float] = []
    for track in tracks:
        for (a, first), (b, last) in pairwise(track.steps):
            touched = any(first <= step < last or (step < first and at > a) for at, step in track.kept)
            (with_one if touched else without).append((b - a) / (last - first))
    if not with_one or not without:
        return {}
    every = median([last - first for t in tracks for (_, first), (_, last) in pairwise(t.steps)])
    return {
        "checkpoints_s": len(with_one) * every * (fmean(with_one) - fmean(without)),
        "mean_to_median": fmean(with_one + without) / median(with_one + without),
    }


def _end_of_steps(track: Track, struck: Mapping[str, float], later: Track | None) -> float:
    """When a pod stopped stepping: its last told step or, where that is later, the fault; while it was there."""
    told = track.steps[-1][0] if track.steps else track.made_at
    if later is None:
        return told
    end = max(told, struck.get(track.name, told))
    return min(end, track.gone_at or end, later.made_at)
