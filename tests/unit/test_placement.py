"""Placement: the cheapest of all that is allowed, never anything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aifactory.capacity.placement import Job, Obstacle, Site, Stock, counts_between

SITE = Site("near", "own", "home", "H200", units=8, unit_hour=0.0, kw=1.0)
JOB = Job("job", "line", ("home",), units=4, hours=2.0, deadline=24.0, gpu_class="H200", needs_gpu=True)


def stock(price: Any, *sites: Site, **others: Any) -> Stock:
    sites = sites or (SITE,)
    prices = np.broadcast_to(np.asarray(price, dtype=np.float64), (len(sites), np.shape(price)[-1]))
    return Stock(sites, prices, np.zeros_like(prices), **others)


def obstacle(job: Job, site: Site, **others: Any) -> Obstacle | None:
    decision = stock(np.ones(48), site, **others).place(job)
    assert (decision.chosen is None) == (decision.alternatives[0].obstacle is not None)
    return decision.alternatives[0].obstacle


def test_the_cheapest_window_is_taken():
    price = np.ones(24)
    price[10:12] = 0.1
    chosen = stock(price).place(JOB).chosen
    assert chosen is not None
    assert (chosen.begin, chosen.end) == (10.0, 12.0)
    assert chosen.energy == pytest.approx(4 * 2 * 0.1)


def test_a_begin_may_lie_within_an_hour():
    price = np.array([1.0, 0.5, 0.1, 0.1, 1.0, 1.0])
    chosen = stock(price).place(replace(JOB, hours=2.5)).chosen
    assert chosen is not None
    assert (chosen.begin, chosen.end) == (1.5, 4.0)


def test_equal_prices_are_not_waited_for():
    for price in (0.1, 0.3, 1 / 3):
        twins = (SITE, replace(SITE, cluster="twin"))
        chosen = stock(np.full(48, price), *twins).place(replace(JOB, hours=1.0)).chosen
        assert chosen is not None
        assert (chosen.site, chosen.begin) == ("near.own", 0.0)


def test_negative_prices_are_waited_for():
    price = np.full(24, 0.05)
    price[20] = -0.5
    chosen = stock(price).place(replace(JOB, hours=1.0)).chosen
    assert chosen is not None
    assert chosen.begin == 20.0
    assert chosen.money < 0


@pytest.mark.parametrize(
    ("why", "job", "site"),
    [
        (Obstacle.RESIDENCY, replace(JOB, regions=("elsewhere",)), SITE),
        (Obstacle.NO_SUCH_CLASS, replace(JOB, gpu_class="B200"), SITE),
        (Obstacle.NO_SUCH_CLASS, replace(JOB, gpu_class=None, needs_gpu=False), SITE),
        (Obstacle.NO_SUCH_CLASS, replace(JOB, gpu_class=None), replace(SITE, gpu_class=None)),
        (Obstacle.SPOT_NOT_ALLOWED, replace(JOB, spot=False), replace(SITE, spot=True)),
        (Obstacle.TOO_SLOW, replace(JOB, hours=2, longest=2), replace(SITE, speed=0.9)),
        (None, replace(JOB, hours=2, longest=2), SITE),
        (Obstacle.COOLING_OFF, JOB, replace(SITE, shut=Obstacle.COOLING_OFF)),
        (Obstacle.TOO_SMALL, replace(JOB, units=9), SITE),
        (Obstacle.DRAINED, JOB, replace(SITE, units=0)),
        (Obstacle.DEADLINE, replace(JOB, deadline=1.9), SITE),
        (Obstacle.DEADLINE, replace(JOB, deadline=-5.0), SITE),
        (Obstacle.DEADLINE, replace(JOB, hours=49.0, deadline=1000.0), SITE),
    ],
)
def test_what_cannot_be_says_why(why: Obstacle, job: Job, site: Site):
    assert obstacle(job, site) is why


def test_residency_comes_before_everything():
    far = replace(JOB, regions=("elsewhere",), units=99, deadline=-1.0, gpu_class="B200")
    assert obstacle(far, replace(SITE, shut=Obstacle.COOLING_OFF)) is Obstacle.RESIDENCY


def test_no_room_before_the_deadline():
    full = stock(np.ones(48))
    full.take("line", 5, 0, 0.0, 47.0)
    decision = full.place(JOB)
    assert decision.chosen is None
    assert decision.alternatives[0].obstacle is Obstacle.NO_ROOM


def test_a_job_waits_for_room():
    busy = stock(np.ones(48))
    busy.take("line", 5, 0, 0.0, 3.5)
    chosen = busy.place(JOB).chosen
    assert chosen is not None
    assert chosen.begin == 4.0  # promises are kept by the hour


def test_a_reservation_is_kept_for_its_line_and_for_no_other():
    kept = {"other": np.array([6])}
    assert obstacle(JOB, SITE, reserved=kept) is Obstacle.TOO_SMALL, "it can never have so many"
    assert obstacle(replace(JOB, line="other"), SITE, reserved=kept) is None
    assert obstacle(replace(JOB, units=2), SITE, reserved=kept) is None
    there = stock(np.ones(48), reserved=kept)
    there.take("a third", 1, 0, 0.0, 48.0)
    assert there.place(replace(JOB, units=2)).alternatives[0].obstacle is Obstacle.NO_ROOM


def test_a_line_has_no_more_at_work_than_it_may():
    capped = stock(np.ones(48), max_units={"line": 6})
    first, second = capped.place(JOB).chosen, capped.place(JOB).chosen
    assert first is not None
    assert second is not None
    assert second.begin >= first.end
    assert obstacle(replace(JOB, units=7), SITE, max_units={"line": 6}) is Obstacle.TOO_SMALL


def test_spot_pays_for_what_it_loses():
    spot = replace(SITE, cluster="spot", spot=True, unit_hour=1.0, interruptions_per_hour=1.0)
    owned = replace(SITE, unit_hour=1.2)
    job = replace(JOB, checkpoint_hours=0.2, restart_hours=0.05)  # 15 % lost
    decision = stock(np.zeros(48), spot, owned).place(job)
    assert decision.chosen is not None
    assert decision.chosen.site == "spot.own"
    assert decision.chosen.use == pytest.approx(4 * 2 * 1.15)
    assert decision.chosen.interruptions == pytest.approx(4 * 2 * 0.15)
    dearer = stock(np.zeros(48), spot, replace(owned, unit_hour=1.1)).place(job).chosen
    assert dearer is not None
    assert dearer.site == "near.own"


def test_carbon_decides_as_much_as_it_weighs():
    clean, dirty = replace(SITE, cluster="clean"), replace(SITE, cluster="dirty")
    price = np.array([[0.10] * 24, [0.09] * 24])
    carbon = np.array([[50.0] * 24, [500.0] * 24])
    for weight, wanted in ((0.0, "dirty.own"), (1e-4, "clean.own")):
        chosen = Stock((clean, dirty), price, carbon, carbon_price=weight).place(JOB).chosen
        assert chosen is not None
        assert chosen.site == wanted


def test_unknown_prices_are_refused():
    with pytest.raises(ValueError, match="finite"):
        stock(np.array([1.0, np.nan]))


# --- how many machines
SPREAD = replace(JOB, units=8, hours=2.0, nodes=8, counts=tuple(range(1, 9)))
"""One unit a machine; 9.8 h on one machine."""


def test_twice_the_machines_are_as_much_faster_as_was_declared():
    for efficiency in (0.5, 0.85, 1.0):
        job = replace(SPREAD, scaling_efficiency=efficiency)
        assert [job.hours_of(n) for n in (8, 4, 2)] == pytest.approx([2.0, 4 * efficiency, 8 * efficiency**2])
    assert [replace(SPREAD, units=32).units_of(n) for n in (1, 3, 8)] == [4, 12, 32]


@pytest.mark.parametrize(("deadline", "nodes"), [(24, 1), (9.9, 1), (9.7, 2), (5, 3), (2.0, 8)])
def test_the_deadline_may_force_more_machines(deadline: float, nodes: int):
    chosen = stock(np.ones(48)).place(replace(SPREAD, deadline=deadline)).chosen
    assert chosen is not None
    assert chosen.nodes == nodes
    assert {n for n, why in chosen.others if why is Obstacle.DEADLINE} == set(range(1, nodes))
    dearer = [why for n, why in chosen.others if n > nodes]
    assert all(isinstance(each, float) and each > chosen.score for each in dearer)
    assert chosen.energy == pytest.approx(nodes * 2.0 * (8 / nodes) ** 0.76553, rel=1e-4)


def test_a_short_cheap_window_is_worth_more_machines():
    price = np.ones(24)
    price[10:13] = 0.1
    chosen = stock(price).place(SPREAD).chosen
    assert chosen is not None
    assert (chosen.nodes, chosen.begin >= 10.0, chosen.end <= 13.0) == (5, True, True)


def test_stock_for_fewer_gives_fewer_and_says_why():
    busy = stock(np.ones(48))
    busy.take("another", 5, 0, 0.0, 48.0)
    job = replace(SPREAD, counts=(2, 4, 8), latest_begin=0.0, deadline=5.0)
    decision = busy.place(job)
    assert decision.chosen is None
    assert decision.alternatives[0].obstacle is Obstacle.NO_ROOM, "waiting helps, though 2 machines are never in time"
    assert decision.alternatives[0].others == ((2, Obstacle.DEADLINE),)
    chosen = busy.place(replace(job, deadline=24.0, hurries=True)).chosen
    assert chosen is not None
    assert chosen.nodes == 2
    assert chosen.others == ((8, Obstacle.NO_ROOM), (4, Obstacle.NO_ROOM))


def test_machines_that_one_site_has_not_may_be_at_another():
    small, dear = replace(SITE, units=3), replace(SITE, cluster="dear", unit_hour=9.0)
    for deadline, site, nodes in ((24.0, "near.own", 1), (4.5, "near.own", 3), (3.0, "dear.own", 5)):
        chosen = stock(np.ones(48), small, dear).place(replace(SPREAD, deadline=deadline)).chosen
        assert chosen is not None
        assert (chosen.site, chosen.nodes) == (site, nodes)


def test_one_that_is_late_takes_the_most_machines_where_they_are_cheapest():
    small, dear, fair = replace(SITE, units=3), replace(SITE, cluster="d", unit_hour=9.0), replace(SITE, cluster="f")
    decision = stock(np.ones(48), small, dear, fair).place(replace(SPREAD, hurries=True))
    assert decision.chosen is not None
    assert (decision.chosen.site, decision.chosen.nodes, decision.hurries) == ("f.own", 8, True)
    assert decision.alternatives[0].nodes == 3


def test_of_what_costs_nothing_most_machines_are_taken():
    chosen = stock(np.zeros(48)).place(SPREAD).chosen
    assert chosen is not None
    assert chosen.nodes == 8


def test_what_no_number_of_machines_can_do_is_told_for_good():
    too_slow = replace(SPREAD, longest=2.0)
    assert obstacle(too_slow, replace(SITE, units=7)) is Obstacle.TOO_SMALL
    assert obstacle(replace(too_slow, longest=1.9), SITE) is Obstacle.TOO_SLOW
    assert obstacle(too_slow, SITE) is None


def test_more_machines_are_interrupted_more_often():
    spot = replace(SITE, spot=True, unit_hour=1.0, interruptions_per_hour=1.0)
    job = replace(SPREAD, checkpoint_hours=0.02, restart_hours=0.09, scaling_efficiency=1.0)
    chosen = [stock(np.zeros(48), spot).place(replace(job, counts=(n,))).chosen for n in (1, 8)]
    assert [each.use for each in chosen if each] == pytest.approx([16 * 1.1, 16 * 1.8])


@given(st.integers(1, 500), st.integers(0, 500))
def test_of_many_numbers_some_are_compared(fewest: int, more: int):
    counts = counts_between(fewest, fewest + more)
    assert (counts[0], counts[-1]) == (fewest, fewest + more)
    assert sorted(set(counts)) == list(counts)
    assert len(counts) == more + 1 if more < 8 else 2 < len(counts) <= 8


# --- properties
PRICES = st.lists(st.floats(-0.5, 0.5), min_size=30, max_size=30)
JOBS = st.builds(
    Job,
    name=st.just("job"),
    line=st.sampled_from(["a", "b", "c"]),
    regions=st.sampled_from([("home",), ("away",), ("home", "away"), ("nowhere",)]),
    units=st.integers(1, 8),
    hours=st.floats(0.1, 12),
    deadline=st.floats(0, 40),
    latest_begin=st.sampled_from([0.0, 5.5, float("inf")]),
    needs_gpu=st.just(True),
).flatmap(
    lambda job: st.builds(
        lambda nodes, fewest: replace(job, units=job.units * nodes, nodes=nodes, counts=counts_between(fewest, nodes)),
        nodes=st.just(4),
        fewest=st.integers(1, 4),
    )
)
SITES = st.lists(
    st.builds(
        Site,
        cluster=st.sampled_from(["x", "y", "z"]),
        offer=st.just("own"),
        region=st.sampled_from(["home", "away"]),
        gpu_class=st.sampled_from(["H200", "L4"]),
        units=st.integers(0, 8),
        unit_hour=st.floats(0, 3),
        kw=st.floats(0.1, 2),
        speed=st.sampled_from([0.5, 1.0, 1.7]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(SITES, st.lists(JOBS, min_size=1, max_size=12), st.data())
def test_whatever_is_asked_no_promise_is_broken(sites: list[Site], jobs: list[Job], data: st.DataObject):
    price = np.array([data.draw(PRICES) for _ in sites])
    held = Stock(sites, price, np.zeros_like(price), reserved={"a": np.array([min(2, s.units) for s in sites])})
    taken = np.zeros((len(sites), 30), dtype=int)
    of_others = np.zeros_like(taken)
    for job in jobs:
        decision = held.place(job)
        assert len(decision.alternatives) == len(sites)
        if decision.chosen is None:
            assert all(each.obstacle is not None for each in decision.alternatives)
            continue
        number = decision.alternatives.index(decision.chosen)
        assert sites[number].region in job.regions
        assert 0 <= decision.chosen.begin <= job.latest_begin + 1e-6
        assert decision.chosen.end <= job.deadline + 1e-6
        hours = slice(int(decision.chosen.begin), int(np.ceil(decision.chosen.end - 1e-9)))
        assert decision.chosen.nodes in job.counts
        assert job.hours_of(decision.chosen.nodes) / sites[number].speed <= decision.chosen.end + 1e-6
        units = job.units // job.nodes * decision.chosen.nodes
        taken[number, hours] += units
        if job.line != "a":
            of_others[number, hours] += units
    for number, site in enumerate(sites):
        assert taken[number].max() <= site.units
        assert of_others[number].max() <= site.units - min(2, site.units)


@settings(max_examples=100, deadline=None)
@given(PRICES, st.floats(0.2, 9), st.floats(10, 30), st.floats(0, 0.9))
@example([0.0] * 22 + [1e-9, -0.5] + [0.0] * 6, 1.375, 25.0, 0.0)
def test_no_begin_is_cheaper(prices: list[float], hours: float, deadline: float, now: float):
    chosen = stock(np.array(prices)).place(replace(JOB, hours=hours, deadline=deadline), now).chosen
    assert chosen is not None
    total, clock = np.concatenate([[0], np.cumsum(prices)]), np.arange(31)
    begins = np.linspace(now, deadline - hours, 500)
    costs = 4 * (np.interp(begins + hours, clock, total) - np.interp(begins, clock, total))
    assert chosen.energy <= costs.min() + 2e-9 * max(1.0, abs(costs.min()))  # equal to rounding is equal


COUNTS = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda ends: counts_between(min(ends), max(ends)))


@settings(max_examples=100, deadline=None)
@given(SITES, COUNTS, st.floats(0.2, 9), st.floats(0.5, 1), st.floats(0, 40), st.floats(0, 40), st.data())
def test_the_cheapest_number_is_taken_and_a_tighter_deadline_is_never_cheaper(
    sites: list[Site],
    counts: tuple[int, ...],
    hours: float,
    efficiency: float,
    deadline: float,
    tighter: float,
    data: st.DataObject,
):
    price = np.array([data.draw(PRICES) for _ in sites])
    busy = data.draw(st.integers(0, 8))
    job = replace(SPREAD, regions=("home", "away"), gpu_class=None, hours=hours, counts=counts,
                  scaling_efficiency=efficiency, deadline=deadline)  # fmt: skip

    def score(job: Job) -> float:
        held = Stock(sites, price, np.zeros_like(price))
        held.take("another", busy, 0, 3.0, 9.5)
        chosen = held.place(job).chosen
        assert chosen is None or chosen.nodes in (job.counts or (job.nodes,))
        return chosen.score if chosen else float("inf")

    best = score(job)
    alone = min(score(replace(job, counts=(nodes,))) for nodes in counts)
    assert best == alone or best == pytest.approx(alone, rel=1e-8, abs=1e-8)
    slack = 1e-8 * max(1.0, abs(best)) if np.isfinite(best) else 0.0
    assert score(replace(job, deadline=min(deadline, tighter))) >= best - slack


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.floats(0.2, 5), st.floats(0.5, 0.99), st.floats(0.01, 1), st.floats(0, 40), st.floats(0, 40))
def test_at_one_price_loose_deadlines_take_the_fewest_and_tighter_ones_no_fewer(
    counts: tuple[int, ...], hours: float, efficiency: float, price: float, deadline: float, tighter: float
):
    job = replace(SPREAD, hours=hours, counts=counts, scaling_efficiency=efficiency)

    def nodes(deadline: float) -> float:
        chosen = stock(np.full(60, price)).place(replace(job, deadline=deadline)).chosen
        return chosen.nodes if chosen else float("inf")

    assert nodes(60.0) == min(counts)
    assert nodes(min(deadline, tighter)) >= nodes(deadline)
