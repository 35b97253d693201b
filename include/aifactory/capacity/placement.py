"""Where and when a job runs: one decision over all sites and all windows before its deadline, with its reasons.

Pure arithmetic on numpy arrays. S sites, H clock hours from the stock's origin; moments are hours after it, and may lie
within an hour. A *site* is one offer of one cluster.

The expected money of a job that begins at t at a site:

    E     = hours ÷ speed · (1 + r · (c / 2 + s))     hours of machine time
    money = units · (unit_hour · E + kW · ∫ₜᵗ⁺ᴱ price dt + w · kW · ∫ₜᵗ⁺ᴱ carbon dt)

with r interruptions an hour, c hours between checkpoints, s hours to start again (half an interval is lost each time on
average; Daly 2006), kW the power of a unit with the cluster's PUE, and w the weight of carbon. The integrals of hourly
prices are piecewise linear in t, so the cheapest begin is one of: now, an hour's beginning, a begin whose end is an
hour's end, the latest. Those are compared, and no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_EPSILON = 1e-9
"""Hours: rounding of sums of moments."""


class Obstacle(StrEnum):
    """Why a site cannot take a job, in the order in which they are looked at."""

    RESIDENCY = "RESIDENCY"
    NO_SUCH_CLASS = "NO_SUCH_CLASS"
    SPOT_NOT_ALLOWED = "SPOT_NOT_ALLOWED"
    TOO_SMALL = "TOO_SMALL"
    NOT_CONNECTED = "NOT_CONNECTED"
    COOLING_OFF = "COOLING_OFF"
    DEADLINE = "DEADLINE"
    NO_ROOM = "NO_ROOM"


FOR_GOOD = frozenset({Obstacle.RESIDENCY, Obstacle.NO_SUCH_CLASS, Obstacle.SPOT_NOT_ALLOWED, Obstacle.TOO_SMALL})
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
        shut: why nothing goes there at present: NOT_CONNECTED or COOLING_OFF; None: open.
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
        units: GPUs, or 1 without.
        hours: expected duration at speed 1, all of its units together.
        deadline: moment by which it is to be done.
        latest_begin: moment by which it is to have begun.
        gpu_class: class of GPU; None: any where `needs_gpu`, else places without one.
        needs_gpu: whether it needs GPUs.
        spot: whether its machine may be taken away.
        checkpoint_hours: between two checkpoints.
        restart_hours: from an interruption to the next step.
    """

    name: str
    line: str
    regions: tuple[str, ...]
    units: int
    hours: float
    deadline: float
    latest_begin: float = float("inf")
    gpu_class: str | None = None
    needs_gpu: bool = False
    spot: bool = True
    checkpoint_hours: float = 1 / 60
    restart_hours: float = 0.05


@dataclass(frozen=True)
class Alternative:
    """The best that one site offers a job, or why it offers nothing.

    `begin` and `end` are moments; `money` = `use` + `energy`; `interruptions` is the part of both that is expected to
    be lost to them; `grams` of CO2; `score` = money + weighed carbon is what is minimised.
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

    @property
    def money(self) -> float:
        """Expected money."""
        return self.use + self.energy


@dataclass(frozen=True)
class Decision:
    """Where a job runs; None: nowhere, and every alternative says why not."""

    job: str
    chosen: Alternative | None
    alternatives: tuple[Alternative, ...] = ()


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
        """The decision for one job, with every site's best, and its units taken out of the stock."""
        best = self._best(job, now)
        seen = tuple(self._alternative(job, number, best) for number in range(len(self.sites)))
        if not np.isfinite(best.score).any():
            return Decision(job.name, None, seen)
        number = int(np.argmax(best.score <= _about(best.score.min())))
        self.take(job.line, job.units, number, float(best.begin[number]), float(best.end[number]))
        return Decision(job.name, seen[number], seen)

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

    def hours(self, job: Job) -> Floats:
        """Expected hours of machine time of a job, interruptions included, [S]."""
        lost = self._interruptions * (job.checkpoint_hours / 2 + job.restart_hours)
        return job.hours / self._speed * (1 + lost)

    # --- the arithmetic
    def _best(self, job: Job, now: float) -> _Best:
        """The cheapest begin at every site: inf where there is none, with what stands against it."""
        hours = self.hours(job)
        latest = np.minimum(np.minimum(job.deadline, self.num_hours) - hours, job.latest_begin)
        begins = self._candidates(hours, latest, now)
        ends = begins + hours[:, None]
        in_time = (begins >= now - _EPSILON) & (begins <= latest[:, None] + _EPSILON)
        begins, ends = np.clip(begins, 0, self.num_hours), np.clip(ends, 0, self.num_hours)
        lacking = np.zeros((len(self.sites), self.num_hours + 1), dtype=np.int64)
        np.cumsum(self.room(job.line) < job.units, axis=1, out=lacking[:, 1:])
        rows = np.arange(len(self.sites))[:, None]
        last_hour = np.ceil(ends - _EPSILON).astype(np.int64)
        has_room = lacking[rows, last_hour] == lacking[rows, (begins + _EPSILON).astype(np.int64)]
        score = job.units * (_at(self._score, ends) - _at(self._score, begins))
        score[~(in_time & has_room)] = np.inf
        obstacles = [self._obstacle(job, site) for site in self.sites]
        score[[found is not None for found in obstacles]] = np.inf
        row = rows[:, 0]
        chosen = np.where(score <= _about(score.min(axis=1))[:, None], begins, np.inf).argmin(axis=1)
        for number, found in enumerate(obstacles):
            if found is None and not np.isfinite(score[number, chosen[number]]):
                obstacles[number] = Obstacle.NO_ROOM if in_time[number].any() else Obstacle.DEADLINE
        return _Best(score[row, chosen], begins[row, chosen], ends[row, chosen], obstacles)

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

    def _obstacle(self, job: Job, site: Site) -> Obstacle | None:
        """What stands against a site whatever the hour."""
        wants_gpu = job.needs_gpu or job.gpu_class is not None
        wrong_class = (site.gpu_class is not None) != wants_gpu or job.gpu_class not in (None, site.gpu_class)
        most = min(site.units, self.max_units.get(job.line, site.units))
        found = [
            (site.region not in job.regions, Obstacle.RESIDENCY),
            (wrong_class, Obstacle.NO_SUCH_CLASS),
            (site.spot and not job.spot, Obstacle.SPOT_NOT_ALLOWED),
            (job.units > most, Obstacle.TOO_SMALL),
            (site.shut is not None, site.shut),
        ]
        return next((obstacle for stands, obstacle in found if stands), None)

    def _alternative(self, job: Job, number: int, best: _Best) -> Alternative:
        site, obstacle = self.sites[number], best.obstacles[number]
        if obstacle is not None:
            return Alternative(site.name, obstacle)
        begin, end = float(best.begin[number]), float(best.end[number])
        window = np.array([[begin, end]])
        energy, grams = (
            site.kw * job.units * float(np.diff(_at(total[number : number + 1], window))[0, 0])
            for total in (self._money, self._grams)
        )
        use = job.units * site.unit_hour * (end - begin)
        undisturbed = job.hours / site.speed
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
        )


@dataclass(frozen=True)
class _Best:
    """Of every site: score, begin and end of the cheapest window, and what stands against the site."""

    score: Floats
    begin: Floats
    end: Floats
    obstacles: list[Obstacle | None]


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
