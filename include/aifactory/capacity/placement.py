"""Where, when and on how many machines a job runs: one decision over all of it, with its reasons.

Pure arithmetic on numpy arrays. S sites, H clock hours from the stock's origin; moments are hours after it, and may lie
within an hour. A *site* is one offer of one cluster.

The expected money of a job that begins at t at a site, on n machines with so many units in all:

    hours = hours of m machines · (m / n)ᵃ, a = 1 + log₂ e
    E     = hours ÷ speed · (1 + n · r · (c / 2 + s))     hours of each machine
    money = units · (unit_hour · E + kW · ∫ₜᵗ⁺ᴱ price dt + w · kW · ∫ₜᵗ⁺ᴱ carbon dt)

with e the scaling efficiency, m the machines of which the job's hours are told, r interruptions of a machine an hour, c
hours between checkpoints, s hours to start again (half an interval is lost each time on
average; Daly 2006), kW the power of a unit with the cluster's PUE, and w the weight of carbon. By the power law each
doubling of the machines multiplies the speed by 2e. One doubling can be measured (`bench_scaling`: 0.85 for two
processes against one); that the next has the same e is assumed. Amdahl's law through the same doubling has 4 machines
2.6 times as fast as one and not 2.9, so what fewer machines than m take is rather said too long than too short.
With e < 1 fewer machines take fewer machine hours: more are taken for the deadline, or for a short cheap window, and
fewer for want of room.

The integrals of hourly
prices are piecewise linear in t, so the cheapest begin is one of: now, an hour's beginning, a begin whose end is an
hour's end, the latest. Those are compared, and no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_EPSILON = 1e-9
"""Hours: rounding of sums of moments."""
_MAX_COUNTS = 8
"""Numbers of machines that one decision compares: it stays quick."""


class Obstacle(StrEnum):
    """Why a site cannot take a job, in the order in which they are looked at."""

    RESIDENCY = "RESIDENCY"
    NO_SUCH_CLASS = "NO_SUCH_CLASS"
    SPOT_NOT_ALLOWED = "SPOT_NOT_ALLOWED"
    DRAINED = "DRAINED"
    TOO_SMALL = "TOO_SMALL"
    TOO_SLOW = "TOO_SLOW"
    OTHER_NODES = "OTHER_NODES"
    REFUSED = "REFUSED"
    NOT_CONNECTED = "NOT_CONNECTED"
    COOLING_OFF = "COOLING_OFF"
    DEADLINE = "DEADLINE"
    NO_ROOM = "NO_ROOM"


FOR_GOOD = frozenset(
    {
        Obstacle.RESIDENCY,
        Obstacle.NO_SUCH_CLASS,
        Obstacle.SPOT_NOT_ALLOWED,
        Obstacle.TOO_SMALL,
        Obstacle.TOO_SLOW,
        Obstacle.OTHER_NODES,
    }
)
"""Obstacles that no waiting removes."""


@dataclass(frozen=True)
class Site:
    """One offer of one cluster.

    Args:
        cluster, offer: names in the inventory.
        region: where it is.
        gpu_class: class of GPU; None: none.
        units: GPUs, or pods at a time.
        unit_hour: money for a unit and hour of use, energy not included.
        kw: power of a unit, PUE included, kW.
        speed: against the reference class.
        spot: whether it may be taken away.
        interruptions_per_hour: how often.
        shut: why this work cannot go there: OTHER_NODES, REFUSED, NOT_CONNECTED or COOLING_OFF; None: open.
    """

    cluster: str
    offer: str
    region: str
    gpu_class: str | None
    units: int
    unit_hour: float
    kw: float
    speed: float = 1.0
    spot: bool = False
    interruptions_per_hour: float = 0.0
    shut: Obstacle | None = None

    @property
    def name(self) -> str:
        """`cluster.offer`."""
        return f"{self.cluster}.{self.offer}"


@dataclass(frozen=True)
class Job:
    """Work that waits for a place.

    Args:
        name: of the job.
        line: whose it is.
        regions: where it may be; nowhere else, whatever happens.
        units: GPUs, or pods without, of all `nodes` machines.
        hours: expected duration at speed 1, all of its units together.
        deadline: moment by which it is to be done.
        latest_begin: moment by which it is to have begun.
        longest: hours after which it is stopped, interruptions not counted.
        gpu_class: class of GPU; None: any where `needs_gpu`, else places without one.
        needs_gpu: whether it needs GPUs.
        spot: whether its machine may be taken away.
        checkpoint_hours: between two checkpoints.
        restart_hours: from an interruption to the next step.
        nodes: machines that `units` and `hours` are of.
        counts: how many machines it may have; empty: `nodes`.
        scaling_efficiency: speed of twice the machines ÷ twice the speed, 0.5 to 1.
        hurries: takes the most machines that it finds, whatever they cost.
    """

    name: str
    line: str
    regions: tuple[str, ...]
    units: int
    hours: float
    deadline: float
    latest_begin: float = float("inf")
    longest: float = float("inf")
    gpu_class: str | None = None
    needs_gpu: bool = False
    spot: bool = True
    checkpoint_hours: float = 1 / 60
    restart_hours: float = 0.05
    nodes: int = 1
    counts: tuple[int, ...] = ()
    scaling_efficiency: float = 0.85
    hurries: bool = False

    def units_of(self, nodes: int) -> int:
        """Units of so many machines."""
        return self.units * nodes // self.nodes

    def hours_of(self, nodes: int) -> float:
        """Expected duration at speed 1 on so many machines, h."""
        return float(self.hours * (self.nodes / nodes) ** (1 + math.log2(self.scaling_efficiency)))


@dataclass(frozen=True)
class Alternative:
    """The best that one site offers a job, or why it offers nothing.

    `begin` and `end` are moments; `money` = `use` + `energy`; `interruptions` is the part of both that is expected to
    be lost to them; `grams` of CO2; `score` = money + weighed carbon is what is minimised. All are of `nodes` machines;
    `others` has what stands against other numbers of them, or their score.
    """

    site: str
    obstacle: Obstacle | None
    begin: float = 0.0
    end: float = 0.0
    use: float = 0.0
    energy: float = 0.0
    interruptions: float = 0.0
    grams: float = 0.0
    score: float = 0.0
    nodes: int = 1
    others: tuple[tuple[int, Obstacle | float], ...] = ()

    @property
    def money(self) -> float:
        """Expected money."""
        return self.use + self.energy


@dataclass(frozen=True)
class Decision:
    """Where a job runs; None: nowhere, and every alternative says why not. `hurries` as its job."""

    job: str
    chosen: Alternative | None
    alternatives: tuple[Alternative, ...] = ()
    hurries: bool = False


@dataclass
class Stock:
    """What there is, hour by hour, and what is promised already. Placing a job takes its units out of it.

    Args:
        sites: S of them.
        price: money per kWh, [S, H]; 0 where energy is not paid for.
        carbon: grams of CO2 per kWh, [S, H].
        carbon_price: money per gram.
        reserved: line -> units kept free for it, [S].
        max_units: line -> units at work at a time over all sites.
    """

    sites: Sequence[Site]
    price: Floats
    carbon: Floats
    carbon_price: float = 0.0
    reserved: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    max_units: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = len(self.sites), self.price.shape[1]
        if self.price.shape != shape or self.carbon.shape != shape:
            raise ValueError(f"price {self.price.shape} and carbon {self.carbon.shape} must be [sites, hours] {shape}")
        if not (np.isfinite(self.price).all() and np.isfinite(self.carbon).all()):
            raise ValueError("price and carbon must be finite: fill what is not known with the feed's default")
        self.num_hours = shape[1]
        self._speed = np.array([s.speed for s in self.sites])
        self._interruptions = np.array([s.interruptions_per_hour for s in self.sites])
        self._units = np.array([s.units for s in self.sites], dtype=np.int64)
        kw, unit_hour = (np.array([getattr(s, name) for s in self.sites])[:, None] for name in ("kw", "unit_hour"))
        self._money, self._grams = _integral(self.price), _integral(self.carbon)
        self._score = _integral(kw * (self.price + self.carbon_price * self.carbon) + unit_hour)
        self._taken = np.zeros((shape[0], shape[1]), dtype=np.int64)
        self._taken_of: dict[str, npt.NDArray[np.int64]] = {}

    # --- deciding
    def place(self, job: Job, now: float = 0.0) -> Decision:
        """The decision for one job, with every site's best, and its units taken out of the stock.

        Of what costs the same, most machines are taken, and of these the first site.
        """
        room = self.room(job.line)
        counts = sorted(job.counts or (job.nodes,), reverse=True)
        found = [self._best(job, nodes, room, now) for nodes in counts]
        seen = tuple(self._alternative(job, number, found) for number in range(len(self.sites)))
        fit = [number for number, each in enumerate(seen) if each.obstacle is None]
        if not fit:
            return Decision(job.name, None, seen, job.hurries)
        if job.hurries:
            most = max(seen[number].nodes for number in fit)
            fit = [number for number in fit if seen[number].nodes == most]
        least = _about(min(seen[number].score for number in fit))
        best = max((n for n in fit if seen[n].score <= least), key=lambda number: seen[number].nodes)
        chosen = seen[best]
        self.take(job.line, job.units_of(chosen.nodes), best, chosen.begin, chosen.end)
        return Decision(job.name, chosen, seen, job.hurries)

    def take(self, line: str, units: int, site: int, begin: float, end: float) -> None:
        """Promise units of a site to a line from one moment to another."""
        hours = slice(int(begin + _EPSILON), _ceil(end))
        own = self._taken_of.get(line)
        if own is None:
            own = self._taken_of[line] = np.zeros_like(self._taken)
        self._taken[site, hours] += units
        own[site, hours] += units

    def room(self, line: str) -> npt.NDArray[np.int64]:
        """Units that a line may still take, [S, H]: what is free and not kept for others."""
        room = self._units[:, None] - self._taken
        for other, kept in self.reserved.items():
            if other != line:
                used = self._taken_of.get(other)
                room = room - np.maximum(kept[:, None] - (0 if used is None else used), 0)
        cap = self.max_units.get(line)
        if cap is not None:
            used = self._taken_of.get(line)
            room = np.minimum(room, cap - (0 if used is None else used.sum(axis=0)))
        return room

    def hours(self, job: Job, nodes: int) -> Floats:
        """Expected hours that each of a job's machines is taken for, interruptions of any included, [S]."""
        lost = nodes * self._interruptions * (job.checkpoint_hours / 2 + job.restart_hours)
        return job.hours_of(nodes) / self._speed * (1 + lost)

    # --- the arithmetic
    def _best(self, job: Job, nodes: int, room: npt.NDArray[np.int64], now: float) -> _Best:
        """The cheapest begin at every site on so many machines: inf where there is none, with what stands against."""
        hours, units = self.hours(job, nodes), job.units_of(nodes)
        latest = np.minimum(np.minimum(job.deadline, self.num_hours) - hours, job.latest_begin)
        begins = self._candidates(hours, latest, now)
        ends = begins + hours[:, None]
        in_time = (begins >= now - _EPSILON) & (begins <= latest[:, None] + _EPSILON)
        begins, ends = np.clip(begins, 0, self.num_hours), np.clip(ends, 0, self.num_hours)
        lacking = np.zeros((len(self.sites), self.num_hours + 1), dtype=np.int64)
        np.cumsum(room < units, axis=1, out=lacking[:, 1:])
        rows = np.arange(len(self.sites))[:, None]
        last_hour = np.ceil(ends - _EPSILON).astype(np.int64)
        has_room = lacking[rows, last_hour] == lacking[rows, (begins + _EPSILON).astype(np.int64)]
        score = units * (_at(self._score, ends) - _at(self._score, begins))
        score[~(in_time & has_room)] = np.inf
        obstacles = [self._obstacle(job, nodes, number) for number in range(len(self.sites))]
        score[[found is not None for found in obstacles]] = np.inf
        row = rows[:, 0]
        chosen = np.where(score <= _about(score.min(axis=1))[:, None], begins, np.inf).argmin(axis=1)
        for number, found in enumerate(obstacles):
            if found is None and not np.isfinite(score[number, chosen[number]]):
                obstacles[number] = Obstacle.NO_ROOM if in_time[number].any() else Obstacle.DEADLINE
        return _Best(nodes, score[row, chosen], begins[row, chosen], ends[row, chosen], obstacles)

    def _candidates(self, hours: Floats, latest: Floats, now: float) -> Floats:
        """Begins among which the cheapest of each site is, [S, K]; some of them too early or too late."""
        num = len(self.sites)
        clock = np.arange(np.floor(now) + 1, np.floor(max(float(latest.max()), now)) + 1)
        ends = np.arange(np.ceil(now + float(hours.min())), np.floor(max(float((latest + hours).max()), now)) + 1)
        return np.concatenate(
            [
                np.full((num, 1), now),
                np.broadcast_to(clock, (num, len(clock))),
                ends[None, :] - hours[:, None],
                latest[:, None],
            ],
            axis=1,
        )

    def _obstacle(self, job: Job, nodes: int, number: int) -> Obstacle | None:
        """What stands against a site and a number of machines whatever the hour."""
        site = self.sites[number]
        wants_gpu = job.needs_gpu or job.gpu_class is not None
        wrong_class = (site.gpu_class is not None) != wants_gpu or job.gpu_class not in (None, site.gpu_class)
        kept = sum(int(units[number]) for line, units in self.reserved.items() if line != job.line)
        most = min(site.units - kept, self.max_units.get(job.line, site.units))
        found = [
            (site.region not in job.regions, Obstacle.RESIDENCY),
            (wrong_class, Obstacle.NO_SUCH_CLASS),
            (site.spot and not job.spot, Obstacle.SPOT_NOT_ALLOWED),
            (site.units == 0, Obstacle.DRAINED),
            (job.units_of(nodes) > most, Obstacle.TOO_SMALL),
            (job.hours_of(nodes) / site.speed > job.longest + _EPSILON, Obstacle.TOO_SLOW),
            (site.shut is not None, site.shut),
        ]
        return next((obstacle for stands, obstacle in found if stands), None)

    def _alternative(self, job: Job, number: int, found: Sequence[_Best]) -> Alternative:
        """The best of one site; `found` has the most machines first."""
        site = self.sites[number]
        told = [(each.nodes, each.obstacles[number] or float(each.score[number])) for each in found]
        obstacles = [what for _, what in told if isinstance(what, Obstacle)]
        if len(obstacles) == len(told):
            obstacle = next((each for each in obstacles if each not in FOR_GOOD), obstacles[0])
            return Alternative(site.name, obstacle, others=tuple(each for each in told if each[1] is not obstacle))
        scores = [each.score[number] for each in found]
        least = np.inf if job.hurries else _about(min(scores))
        best = next(each for each, score in zip(found, scores, strict=True) if np.isfinite(score) and score <= least)
        units = job.units_of(best.nodes)
        begin, end = float(best.begin[number]), float(best.end[number])
        window = np.array([[begin, end]])
        energy, grams = (
            site.kw * units * float(np.diff(_at(total[number : number + 1], window))[0, 0])
            for total in (self._money, self._grams)
        )
        use = units * site.unit_hour * (end - begin)
        undisturbed = job.hours_of(best.nodes) / site.speed
        return Alternative(
            site.name,
            None,
            begin,
            end,
            use,
            energy,
            (use + energy) * (1 - undisturbed / (end - begin)),
            grams,
            float(best.score[number]),
            best.nodes,
            tuple(each for each in told if each[0] != best.nodes),
        )


@dataclass(frozen=True)
class _Best:
    """Of every site: score, begin and end of the cheapest window on so many machines, and what stands against it."""

    nodes: int
    score: Floats
    begin: Floats
    end: Floats
    obstacles: list[Obstacle | None]


def counts_between(fewest: int, most: int) -> tuple[int, ...]:
    """Numbers of machines to compare: all, or of many some, at even ratios, with both ends."""
    if most - fewest < _MAX_COUNTS:
        return tuple(range(fewest, most + 1))
    return tuple(int(each) for each in np.unique(np.geomspace(fewest, most, _MAX_COUNTS).round().astype(np.int64)))


def _integral(per_hour: Floats) -> Floats:
    """Sum of each row until every hour, [S, H + 1]."""
    total = np.zeros((per_hour.shape[0], per_hour.shape[1] + 1))
    np.cumsum(per_hour, axis=1, out=total[:, 1:])
    return total


def _at(total: Floats, moments: Floats) -> Floats:
    """The integral at moments, [S, K], linear within an hour."""
    hour = np.minimum(moments.astype(np.int64), total.shape[1] - 2)
    rows = np.arange(total.shape[0])[:, None]
    below = total[rows, hour]
    found: Floats = below + (moments - hour) * (total[rows, hour + 1] - below)
    return found


def _about(least: Any) -> Any:
    """What counts as equal to the least: prices are summed, and waiting for a rounding error costs lead time."""
    return least + _EPSILON * np.maximum(1.0, np.abs(least))


def _ceil(moment: float) -> int:
    return int(np.ceil(moment - _EPSILON))
