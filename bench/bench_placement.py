"""Placement on real prices: what choosing the window and the place saves, and how long a decision takes.

Four months of jobs, drawn with a seed, each with a day's flexibility, on machines that are paid for anyway, so that
energy is what they cost. What a policy knows at an hour is what the market has told by then: day-ahead prices until the
end of the day, from 12:00 UTC on until the end of the next; the rest it forecasts, from that market's own past alone. A
job that waits is placed again at every hour until its window has come.

    at once       where its line is at home, as soon as there is room
    window        there, in the cheapest window
    place         anywhere, in the cheapest window
    foresight     as `place`, with the prices of all hours known and room for all: nothing can cost less; it is compared
                  with what `window` and `place` cost with room for all

There is one real market; the second region has the prices of the same months a year earlier, eight hours later.

The forecast and its constants were chosen with other jobs on 2022, 2023 and 2024 without these four months; so the
second region's prices were among them, the home's were not.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from aifactory import gates
from aifactory.capacity.feeds import Series, accept, ahead, fetch
from aifactory.capacity.inventory import Feed
from aifactory.capacity.placement import Floats, Job, Site, Stock, counts_between
from aifactory.settings import Settings
from bench.ratio import Ratio
from outside import energy

YEAR, MONTHS = 2024, (1, 4, 7, 10)
NUM_DAYS = 30
FLEXIBLE_H = 24
JOBS_A_DAY = 8
UNITS = 32
SEED = 1
LOOK_AHEAD_H = 48
TOLD_EVERY_H = 12
NUM_CLUSTERS, NUM_WAITING, NUM_NODES = 50, 1000, 64
HOME = Site("home", "own", "home", "H200", UNITS, unit_hour=0, kw=0.84)
AWAY = replace(HOME, cluster="away", region="away")


@dataclass(frozen=True)
class Task:
    """A job of the replay: when it comes, hours after the month's first; its hours of work; its GPUs."""

    name: str
    released: float
    hours: float
    units: int

    @property
    def deadline(self) -> float:
        return self.released + self.hours + FLEXIBLE_H


@dataclass(frozen=True)
class Result:
    """What a policy made of a month: the bill, and how many jobs ended too late or in no place."""

    money: float
    num_late: int


def run() -> list[Ratio]:
    """At most 0.7 of the cost of starting at once, at most 1.1 of that with foresight; a decision in 50 ms."""
    series, feed = _history()
    totals: dict[str, float] = defaultdict(float)
    num_late, months = 0, []
    for month in MONTHS:
        first = datetime(YEAR, month, 1, tzinfo=UTC)
        markets = [series, _shifted(series, years=1, hours=8)]
        seen = [_seen(market, feed, first) for market in markets]
        tasks = draw(SEED + month)
        results = {
            "at once": replay(tasks, markets[:1], None, [HOME], first),
            "window": replay(tasks, markets[:1], seen[:1], [HOME], first),
            "place": replay(tasks, markets, seen, [HOME, AWAY], first),
            "window, with room for all": replay(tasks, markets[:1], seen[:1], [_roomy(HOME)], first),
            "place, with room for all": replay(tasks, markets, seen, [_roomy(HOME), _roomy(AWAY)], first),
        }
        bills = {name: each.money for name, each in results.items()}
        bills["foresight of windows"] = foresight(tasks, markets[:1], first)
        bills["foresight"] = foresight(tasks, markets, first)
        for name, money in bills.items():
            totals[name] += money
        num_late += sum(each.num_late for each in results.values())
        months.append(round(bills["place"] / bills["at once"], 3))
    if num_late:
        raise RuntimeError(f"{num_late} jobs missed their deadline")
    detail = {"money": {name: round(money) for name, money in totals.items()}, "months": months, "num_late": num_late}
    windows, places = (totals[f"{name}, with room for all"] for name in ("window", "place"))
    decision_s = statistics.median(_decision_s() for _ in range(5))
    return [
        Ratio("cheapest place and window ÷ at once, cost", totals["place"] / totals["at once"], 0.7, detail=detail),
        Ratio("cheapest window alone ÷ at once, cost", totals["window"] / totals["at once"], 0.7),
        Ratio("cheapest window ÷ perfect foresight, cost", windows / totals["foresight of windows"], 1.1),
        Ratio("cheapest place and window ÷ perfect foresight, cost", places / totals["foresight"], 1.1),
        Ratio(
            f"ms of processor time to place 1 job of 1 to {NUM_NODES} machines beside {NUM_WAITING} waiting ones "
            f"on {NUM_CLUSTERS} clusters",
            1000 * decision_s,
            50.0,
            detail={"ms_of_one_size": round(1000 * _decision_s(1), 1)},
        ),
    ]


def draw(seed: int) -> list[Task]:
    """A month of jobs in the order of their coming: at any hour, of one to eight hours, of 1, 2, 4 or 8 GPUs."""
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0, 24 * (NUM_DAYS - 3)) for _ in range(JOBS_A_DAY * NUM_DAYS))
    return [
        Task(f"job {number}", moment, math.exp(chance.uniform(0, math.log(8))), chance.choice((1, 2, 4, 8)))
        for number, moment in enumerate(moments)
    ]


def replay(
    tasks: list[Task], markets: list[Series], seen: list[Floats] | None, sites: list[Site], first: datetime
) -> Result:
    """Let a month pass hour by hour; the bill is by the prices that came true.

    Args:
        tasks: in the order of their coming.
        markets: of the sites.
        seen: of each market what is seen of it, see `_seen`; None: nobody waits.
        sites: where the jobs may run.
        first: the month's first moment.
    """
    true = [_values(market, first, 24 * (NUM_DAYS + 4)) for market in markets]
    running: list[tuple[Task, int, float]] = []
    waiting: list[Task] = []
    coming = list(tasks)
    for hour in range(24 * (NUM_DAYS + 2)):
        waiting += [task for task in coming if task.released < hour + 1]
        coming = [task for task in coming if task.released >= hour + 1]
        if not waiting:
            continue
        stock = _stock_at(hour, seen, sites)
        for task, site, begin in running:
            if begin + task.hours > hour:
                stock.take("bench", task.units, site, max(begin - hour, 0.0), begin + task.hours - hour)
        still = []
        for task in sorted(waiting, key=lambda each: each.deadline - each.hours):
            now = max(task.released - hour, 0.0)
            decision = stock.place(_job(task, hour), now)
            if decision.chosen is None:
                raise RuntimeError(f"{task.name} finds no place: {decision.alternatives}")
            begin = decision.chosen.begin
            if begin < 1:
                site = next(n for n, each in enumerate(sites) if each.name == decision.chosen.site)
                running.append((task, site, hour + begin))
            else:
                still.append(task)
        waiting = still
    money = sum(
        sites[site].kw * task.units * _integral(true[site], begin, begin + task.hours) for task, site, begin in running
    )
    late = sum(begin + task.hours > task.deadline + 1e-6 for task, _, begin in running)
    return Result(money, late + len(tasks) - len(running))


def foresight(tasks: list[Task], markets: list[Series], first: datetime) -> float:
    """The least that the month's jobs can cost: each in its own cheapest window and place, nobody in its way."""
    true = [_values(market, first, 24 * (NUM_DAYS + 4)) for market in markets]
    total = 0.0
    for task in tasks:
        begins = [task.released, task.deadline - task.hours]
        clock = range(math.ceil(task.released), math.floor(task.deadline) + 1)
        begins += [float(h) for h in clock if h <= task.deadline - task.hours]
        begins += [h - task.hours for h in clock if h - task.hours >= task.released]
        total += task.units * HOME.kw * min(_integral(each, b, b + task.hours) for each in true for b in begins)
    return total


def _seen(market: Series, feed: Feed, first: datetime) -> Floats:
    """Prices from every hour of the month on as they are known or forecast in it, [24 (NUM_DAYS + 2), LOOK_AHEAD_H]."""
    seen = []
    for hour in range(0, 24 * (NUM_DAYS + 2), TOLD_EVERY_H):
        now = first + timedelta(hours=hour)
        values = ahead(_told_by(market, now), feed, now, TOLD_EVERY_H + LOOK_AHEAD_H).values
        seen += [values[later : later + LOOK_AHEAD_H] for later in range(TOLD_EVERY_H)]
    return np.vstack(seen)


def _stock_at(hour: int, seen: list[Floats] | None, sites: list[Site]) -> Stock:
    """What is known at an hour; who does not wait sees prices that rise, so that the first room is the best."""
    if seen is None:
        price = np.tile(np.arange(1.0, LOOK_AHEAD_H + 1), (len(sites), 1))
    else:
        price = np.vstack([each[hour] for each in seen])
    return Stock(sites, price, np.zeros_like(price))


def _told_by(market: Series, now: datetime) -> Series:
    """What a day-ahead market has told: from 12:00 UTC on the whole next day."""
    end = now.replace(hour=0) + timedelta(days=2 if now.hour >= TOLD_EVERY_H else 1)
    return replace(market, values=market.values[: (end - market.first) // timedelta(hours=1)])


def _job(task: Task, hour: int) -> Job:
    return Job(task.name, "bench", ("home", "away"), task.units, task.hours, task.deadline - hour, needs_gpu=True)


def _values(market: Series, first: datetime, num: int) -> Floats:
    begin = (first - market.first) // timedelta(hours=1)
    values = market.values[begin : begin + num]
    return np.where(np.isfinite(values), values, np.nanmean(values))


def _integral(per_hour: Floats, begin: float, end: float) -> float:
    total = np.concatenate([[0.0], np.cumsum(per_hour)])
    clock = np.arange(len(total))
    return float(np.interp(end, clock, total) - np.interp(begin, clock, total))


def _roomy(site: Site) -> Site:
    return replace(site, units=1_000_000)


def _shifted(series: Series, years: int, hours: int) -> Series:
    return replace(series, first=series.first + timedelta(days=364 * years, hours=hours))


def _history() -> tuple[Series, Feed]:
    feed = Feed(
        source=str(energy.day_ahead_prices(Path("var/cache/energy").resolve())),
        quantity="price_per_mwh",
        time_column=energy.TIME_COLUMN,
        value_column=energy.VALUE_COLUMN,
        time_formats=energy.TIME_FORMATS,
        low=-600,
        high=5000,
        default=80,
    )
    with gates.connect(Settings(_env_file=None)) as con:
        return accept("day_ahead", feed, fetch(feed, Path()), con, datetime(YEAR + 1, 1, 8, tzinfo=UTC)).series, feed


def _decision_s(num_nodes: int = NUM_NODES) -> float:
    """Processor seconds of one decision beside many that are promised already."""
    chance = np.random.default_rng(SEED)
    hours = 24 * 7
    sites = [
        replace(HOME, cluster=f"cluster{n}", region="home", units=4 * NUM_WAITING, speed=float(chance.uniform(0.5, 2)))
        for n in range(NUM_CLUSTERS)
    ]
    price = chance.normal(0.08, 0.05, (NUM_CLUSTERS, hours))
    promised = [
        (f"line{n % 40}", int(chance.integers(NUM_CLUSTERS)), float(chance.uniform(0, 90))) for n in range(NUM_WAITING)
    ]
    counts = counts_between(1, num_nodes)
    job = Job("new", "line0", ("home",), 8 * num_nodes, 5.3, 150.0, needs_gpu=True, nodes=num_nodes, counts=counts)
    began = time.thread_time()
    stock = Stock(sites, price, np.zeros_like(price))
    for line, site, begin in promised:
        stock.take(line, 8, site, begin, begin + 2.0)
    decision = stock.place(job)
    seconds = time.thread_time() - began
    if decision.chosen is None:
        raise RuntimeError(f"no place: {decision.alternatives}")
    return seconds
