"""KPIs: the books' worked examples, days made up by hand, and what must hold for any record."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifactory.kpi import cost, formulas, leadtime, pareto, record, reliability, stations, trends
from aifactory.kpi.cost import Prices
from aifactory.kpi.stations import Plan
from aifactory.ledger import BAD, EventKind, ProductionEvent
from aifactory.reasons import Cause, ReasonCode

T0 = datetime(2026, 3, 1, tzinfo=UTC)
END = T0 + timedelta(days=30)


def event(minute: float, kind: EventKind, unit: str = "2026-03-01", **changes: Any) -> ProductionEvent:
    values: dict[str, Any] = {
        "line": "a",
        "station": "ingest",
        "unit_kind": "batch",
        "unit": unit,
        "event": kind,
        "at": T0 + timedelta(minutes=minute),
        "reason": ReasonCode.VALUE_NULL if kind in BAD else None,
    }
    values |= changes
    values.setdefault("key", f"{values['station']} {values['unit_kind']} {unit} {kind} {minute}")
    return ProductionEvent(**values)


# --- the books' examples
def test_oee_of_the_textbook_shift() -> None:
    """Planned 480 min, run 420 min, ideal cycle 1 min, 400 made, 380 of them good."""
    oee = formulas.oee_index(planned_s=480, run_s=420, ideal_cycle_s=1, num_units=400, num_good=380)
    assert oee.availability == pytest.approx(0.875)
    assert oee.performance == pytest.approx(0.952, abs=5e-4)
    assert oee.quality == pytest.approx(0.95)
    assert oee.oee == pytest.approx(0.792, abs=5e-4)
    assert not oee.ideal_is_wrong


def test_rolled_yield_of_the_textbook() -> None:
    assert formulas.rolled_yield([0.95, 0.84, 0.88]) == pytest.approx(0.70, abs=5e-3)
    assert formulas.rolled_yield([0.95, None, 0.88]) == pytest.approx(0.836)
    assert formulas.rolled_yield([None]) is None


def test_takt_of_200_gpu_hours_a_week_for_30_models() -> None:
    assert formulas.takt(200, 30) == pytest.approx(6.67, abs=5e-3)
    assert formulas.takt(200, 0) is None


def test_a_performance_above_one_is_flagged_and_not_clipped() -> None:
    oee = formulas.oee_index(planned_s=100, run_s=100, ideal_cycle_s=2, num_units=60, num_good=60)
    assert oee.performance == pytest.approx(1.2)
    assert oee.oee == pytest.approx(1.2)
    assert oee.ideal_is_wrong


def test_percentiles_interpolate() -> None:
    assert formulas.percentile([10, 20, 30, 40], 0.5) == 25
    assert formulas.percentile([10], 0.95) == 10
    assert formulas.percentile([], 0.5) is None


# --- reasons
@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (ReasonCode.NODE_LOST, Cause.INFRASTRUCTURE),
        (ReasonCode.STORE_UNREACHABLE, Cause.INFRASTRUCTURE),
        (ReasonCode.VALUE_NULL, Cause.DEFECT),
        (ReasonCode.METRIC_BELOW_FLOOR, Cause.DEFECT),
        (ReasonCode.INTERNAL, Cause.DEFECT),
        (ReasonCode.CADENCE_DUE, Cause.DECISION),
    ],
)
def test_what_a_reason_counts_against(reason: ReasonCode, cause: Cause) -> None:
    assert reason.cause is cause


# --- one station
def test_a_defect_counts_against_quality_and_infrastructure_against_availability() -> None:
    days = [
        event(10, EventKind.PASSED, "d1", duration_s=60),
        event(20, EventKind.HELD, "d2", duration_s=60),
        event(31, EventKind.FAILED, "d3", duration_s=60, reason=ReasonCode.STORE_UNREACHABLE),
        event(41, EventKind.PASSED, "d3", duration_s=60),
    ]
    found = stations.figures(days, "ingest", END)
    assert (found.num_units, found.num_good, found.num_scrap, found.num_first_pass) == (3, 2, 1, 2)
    assert (found.work_s, found.down_s, found.num_outages) == (180, 600, 1)  # from minute 30 until 40
    oee = found.oee(Plan(ideal_cycle_s={"ingest": 30}))
    assert oee.availability == pytest.approx(180 / 780)
    assert oee.performance == pytest.approx(30 * 3 / 180)
    assert oee.quality == pytest.approx(2 / 3)


def test_an_outage_lasts_until_work_goes_on_and_swallows_the_failures_within() -> None:
    lost = {"reason": ReasonCode.NODE_LOST, "duration_s": 60.0}
    broken = [event(1, EventKind.FAILED, "d1", **lost), event(5, EventKind.FAILED, "d1", **lost)]
    [lasting] = stations.outages(broken)
    assert (lasting.begin, lasting.end) == (T0, None)
    assert stations.figures(broken, "ingest", T0 + timedelta(minutes=9)).down_s == 540
    [over] = stations.outages([*broken, event(8, EventKind.PASSED, "d2", duration_s=60)])
    assert over.end == T0 + timedelta(minutes=7)


def test_a_corrected_batch_is_rework_and_its_seconds_count_once() -> None:
    """The gate tells of a correction by two events at one instant, see `stages.ingest._record_batches`."""
    day = [
        event(0, EventKind.STARTED),
        event(1, EventKind.PASSED, duration_s=30, num_in=10, num_good=9),
        event(60, EventKind.PASSED, duration_s=30, num_in=12, num_good=12, key="again"),
        event(60, EventKind.REWORKED, duration_s=30, num_in=12, num_good=12),
    ]
    found = stations.figures(day, "ingest", END)
    assert (found.num_units, found.num_rework, found.num_first_pass, found.work_s) == (1, 1, 0, 60)
    assert (found.num_rows_in, found.num_rows_good, found.wip) == (12, 12, 0)


def test_a_refused_order_is_one_unit_whatever_parts_it_had() -> None:
    train = {"station": "train", "unit_kind": "model"}
    orders = [
        event(1, EventKind.PASSED, "o1/challenger", duration_s=100, **train),
        event(2, EventKind.PASSED, "o1/evaluation", duration_s=20, **train),
        event(3, EventKind.SCRAPPED, "o1", reason=ReasonCode.GAIN_NOT_PROVEN, **train),
        event(5, EventKind.FAILED, "o2/challenger", duration_s=10, reason=ReasonCode.LOSS_NOT_FINITE, **train),
        event(6, EventKind.PASSED, "o3/challenger", duration_s=100, **train),
        event(7, EventKind.PASSED, "o3/refit", duration_s=150, **train),
        event(8, EventKind.PASSED, "o3", duration_s=5, **train),
        event(9, EventKind.SCRAPPED, "o3/edge", reason=ReasonCode.EDGE_SIZE, station="train", unit_kind="edge"),
    ]
    found = stations.figures(orders, "train", END)
    assert (found.num_units, found.num_good, found.first_pass_yield) == (3, 1, pytest.approx(1 / 3))
    assert found.best_cycle_s == 255
    assert found.work_s == 385


def test_a_rollout_holds_its_station_while_it_bakes() -> None:
    step = {"station": "deploy", "unit_kind": "model", "run_id": "r"}
    rollout = [
        event(0, EventKind.DECIDED, "7", detail={"stage": "loading"}, **step),
        event(9, EventKind.DECIDED, "7", detail={"stage": "promoted"}, **step),
        event(10, EventKind.PROMOTED, "7", duration_s=2, **step),
    ]
    assert stations.figures(rollout, "deploy", END).work_s == 542


def test_going_back_makes_one_version_bad_and_the_other_good_again() -> None:
    def deploy(minute: float, kind: EventKind, unit: str, **more: Any) -> ProductionEvent:
        return event(minute, kind, unit, station="deploy", unit_kind="model", **more)

    back = {"reason": ReasonCode.ROLLED_BACK, "detail": {"from": "2", "to": "1"}}
    done = [deploy(1, EventKind.PROMOTED, "1"), deploy(2, EventKind.PROMOTED, "2")]
    found = stations.figures([*done, deploy(3, EventKind.ROLLED_BACK, "2", **back)], "deploy", END)
    assert (found.num_units, found.num_good, found.num_scrap) == (2, 1, 1)
    assert reliability.change_failures([*done, deploy(3, EventKind.ROLLED_BACK, "2", **back)]) == (2, 1)
    taken_back = deploy(4, EventKind.ROLLED_BACK, "3", reason=ReasonCode.CANARY_SLOW)
    assert reliability.change_failures([*done, taken_back]) == (2, 0)


def test_a_late_run_is_no_unit_and_no_breakdown() -> None:
    late = event(1, EventKind.HELD, "scheduled__2026", reason=ReasonCode.DEADLINE_MISSED)
    found = stations.figures([late], "ingest", END)
    assert (found.num_units, found.num_outages, found.down_s) == (0, 0, 0)


def test_the_bottleneck_is_where_the_load_is_highest() -> None:
    done = [
        event(1, EventKind.PASSED, "d", duration_s=60),
        event(2, EventKind.PASSED, "o", duration_s=900, station="train", unit_kind="model"),
    ]
    all_ = [stations.figures(done, s, END) for s in record.STATIONS]
    daily = 86400.0
    assert stations.bottleneck(all_, Plan({"ingest": daily, "train": 7 * daily})) == ("train", 900 / (7 * daily))
    assert stations.bottleneck(all_, Plan({"ingest": daily, "train": 70 * daily})) == ("ingest", 60 / daily)
    assert stations.bottleneck(all_, Plan()) is None


# --- reliability
def test_means_between_failures_and_to_repair() -> None:
    found = [
        stations.Outage("ingest", T0 + timedelta(hours=1), T0 + timedelta(hours=2)),
        stations.Outage("train", T0 + timedelta(hours=1, minutes=30), T0 + timedelta(hours=3)),
    ]
    says = reliability.of_outages(found, T0, T0 + timedelta(hours=12))
    assert says.mtbf == reliability.Span(5 * 3600, more_than=False, num=2)  # 12 h less 2 h in which something was down
    assert says.mttr == reliability.Span(4500, more_than=False, num=2)


def test_where_nothing_failed_the_mean_is_more_than_the_time_watched() -> None:
    says = reliability.of_outages([], T0, END)
    assert says.mtbf == reliability.Span(30 * 86400, more_than=True, num=0)
    assert says.mttr == reliability.Span(None, more_than=False, num=0)
    lasting = reliability.of_outages([stations.Outage("train", END - timedelta(hours=1), None)], T0, END)
    assert lasting.mttr == reliability.Span(3600, more_than=True, num=0)


def test_a_breach_lasts_until_a_window_keeps_the_limits_or_another_model_serves() -> None:
    def window(minute: float, day: str, *violations: str) -> ProductionEvent:
        told = {"violations": list(violations)}
        return event(minute, EventKind.PASSED, day, station="feedback", unit_kind="window", detail=told)

    judged = [window(0, "d1"), window(10, "d2", "score PSI"), window(20, "d3", "score PSI"), window(30, "d4")]
    [breach] = reliability.breaches(judged)
    assert (breach.begin, breach.end) == (T0 + timedelta(minutes=10), T0 + timedelta(minutes=30))
    released = event(25, EventKind.PROMOTED, "8", station="deploy", unit_kind="model")
    [breach] = reliability.breaches([*judged, released])
    assert breach.end == T0 + timedelta(minutes=25)


# --- lead time
def ingested(minute: float, landed: float | None) -> list[ProductionEvent]:
    """A batch that passes, its files landed at a minute; held where one is missing."""
    told = {"landed_at": None if landed is None else (T0 + timedelta(minutes=landed)).isoformat()}
    work = {"duration_s": 120.0, "detail": told}
    missing = {"reason": ReasonCode.LANDING_MISSING}
    return [
        event(minute, EventKind.STARTED, detail=told),
        event(minute + 2, EventKind.HELD, **work, **missing)
        if landed is None
        else event(minute + 2, EventKind.PASSED, **work),
    ]


def released(minute: float) -> ProductionEvent:
    told = {"trained_until": "2026-03-01", "order_id": "o", "dataset_revision": "c0ffee"}
    return event(minute, EventKind.PROMOTED, "7", station="deploy", unit_kind="model", duration_s=30, detail=told)


def test_lead_time_begins_when_the_data_landed_and_what_they_waited_for_ingest_is_queue() -> None:
    [found] = leadtime.lead_times([*ingested(30, landed=0), released(60)])
    [late] = leadtime.lead_times([*ingested(30, landed=30), released(60)])
    assert (found.landed, found.total_s) == (T0, 3600)
    assert found.queue_s == late.queue_s + 30 * 60
    assert found.touch_s == late.touch_s == 150


def test_data_do_not_land_after_ingest_has_begun_on_them_whatever_the_clocks_say() -> None:
    [found] = leadtime.lead_times([*ingested(30, landed=31), released(60)])
    assert found.landed == T0 + timedelta(minutes=30)


def test_what_a_correction_takes_is_part_of_the_lead_time_and_the_wait_for_a_missing_file_is_not() -> None:
    corrected = [*ingested(30, landed=5), *ingested(50, landed=45), released(60)]
    assert leadtime.lead_times(corrected)[0].landed == T0 + timedelta(minutes=5)
    seen = event(20, EventKind.ACKNOWLEDGED, detail={"acknowledges": "x"})
    delivered_late = [*ingested(10, landed=None), seen, *ingested(50, landed=45), released(60)]
    assert leadtime.lead_times(delivered_late)[0].landed == T0 + timedelta(minutes=45)
    of_an_earlier_version = event(10, EventKind.STARTED)
    mixed = [of_an_earlier_version, *ingested(50, landed=45), released(60)]
    assert leadtime.lead_times(mixed)[0].landed == T0 + timedelta(minutes=10)
    assert leadtime.lead_times([*ingested(70, landed=65), released(60)]) == []


def test_lead_time_in_its_parts() -> None:
    train = {"station": "train", "unit_kind": "model"}
    deploy = {"station": "deploy", "unit_kind": "model", "run_id": "r"}
    told = {"trained_until": "2026-03-01", "order_id": "o", "dataset_revision": "c0ffee"}
    life = [
        event(0, EventKind.STARTED),
        event(2, EventKind.PASSED, duration_s=120),
        event(3, EventKind.PASSED, "c0ffee", unit_kind="dataset", duration_s=60),
        event(20, EventKind.PASSED, "o/challenger", duration_s=300, **train),
        event(21, EventKind.PASSED, "o", duration_s=60, **train),
        event(51, EventKind.DECIDED, "7", detail={"by": "ann", "explanation": "approved"}, **deploy),
        event(60, EventKind.DECIDED, "7", detail={"stage": "loading"}, **deploy),
        event(90, EventKind.DECIDED, "7", detail={"stage": "promoted"}, **deploy),
        event(91, EventKind.PROMOTED, "7", duration_s=30, detail=told, **deploy),
    ]
    [found] = leadtime.lead_times(life)
    assert (found.version, found.order_id, found.total_s) == ("7", "o", 91 * 60)
    assert found.touch_s == 120 + 60 + 300 + 60 + 30
    assert (found.approval_s, found.bake_s) == (30 * 60, 30 * 60)
    assert found.queue_s == found.total_s - found.touch_s - 60 * 60
    assert leadtime.lead_times(life[5:]) == []


# --- pareto, cost, buckets
def test_the_pareto_names_reasons_most_frequent_first() -> None:
    mine = [
        event(1, EventKind.HELD, "d1", duration_s=5, num_bad=3),
        event(2, EventKind.HELD, "d2", duration_s=5, num_bad=4),
        event(3, EventKind.PASSED, "d2", duration_s=5),
        event(4, EventKind.FAILED, "d3", reason=ReasonCode.NODE_LOST),
        event(5, EventKind.ROLLED_BACK, "9", reason=ReasonCode.ROLLOUT_SUPERSEDED, station="deploy", unit_kind="model"),
    ]
    first, second = pareto.pareto(mine)
    assert (first.reason, first.num_events, first.num_units) == (ReasonCode.VALUE_NULL, 2, 2)
    assert (first.num_scrap, first.num_rework, first.num_rows, first.lost_s) == (1, 1, 3, 10)
    assert (second.reason, second.num_units, second.cumulative_share) == (ReasonCode.NODE_LOST, 1, 1)
    assert first.cumulative_share == pytest.approx(2 / 3)


def test_rows_in_quarantine_by_reason_count_the_last_end_of_a_batch() -> None:
    def passed(minute: float, num: int) -> ProductionEvent:
        told = {"quarantined": {"flights": {"VALUE_NULL (delay is not null)": num, "KEY_DUPLICATE (unique)": 1}}}
        return event(minute, EventKind.PASSED, detail=told)

    assert pareto.quarantined([passed(1, 9), passed(2, 4)]) == {"VALUE_NULL": 4, "KEY_DUPLICATE": 1}


def test_measured_cost_counts_as_it_is_and_the_rest_by_the_plants_prices() -> None:
    prices = Prices("EUR", unit_hour=2.0, kwh=0.5, power_w=1000)
    mine = [
        event(1, EventKind.PASSED, "d1", duration_s=3600),
        event(
            2, EventKind.PASSED, "o", station="train", unit_kind="model", duration_s=10, gpu_s=8, energy_kwh=3, money=7
        ),
    ]
    found = cost.cost(mine, prices)
    assert (found.work_s, found.gpu_s, found.energy_kwh) == (3610, 8, 4)
    assert (found.money, found.estimated_money) == (9.5, 2.5)


def test_buckets_hold_each_event_once_and_are_there_when_empty() -> None:
    mine = [event(0, EventKind.PASSED), event(2 * 24 * 60, EventKind.PASSED, "d3")]
    cut = trends.buckets(mine, T0, T0 + timedelta(days=2.5), timedelta(days=1))
    assert [len(each) for _, _, each in cut] == [1, 0, 1]
    assert cut[-1][1] == T0 + timedelta(days=2.5)


# --- what must hold for any record
KINDS = st.sampled_from(
    [EventKind.STARTED, EventKind.PASSED, EventKind.REWORKED, EventKind.FAILED, EventKind.HELD, EventKind.SCRAPPED]
)
REASONS = st.sampled_from(
    [ReasonCode.VALUE_NULL, ReasonCode.NODE_LOST, ReasonCode.DEADLINE_MISSED, ReasonCode.OPERATOR]
)


@st.composite
def records(draw: st.DrawFn) -> list[ProductionEvent]:
    """Any events of one line within a month, at any station; each has a second of its own."""
    made = []
    for n in range(draw(st.integers(0, 40))):
        station = draw(st.sampled_from(record.STATIONS))
        kind = draw(KINDS)
        if station == "deploy" and kind in (EventKind.PASSED, EventKind.HELD):
            kind = EventKind.PROMOTED if kind is EventKind.PASSED else EventKind.ROLLED_BACK
        good = kind not in BAD
        num_in = draw(st.integers(0, 1000))
        num_good = draw(st.integers(0, num_in))
        ended = kind is not EventKind.STARTED
        made.append(
            ProductionEvent(
                line="a",
                station=station,
                unit_kind=record.PRODUCT[station],
                unit=draw(st.sampled_from(["1", "2", "3", "1/refit"])),
                event=kind,
                key=str(n),
                reason=None if good else draw(REASONS),
                at=T0 + timedelta(seconds=draw(st.integers(0, 29 * 86400)), milliseconds=n),
                duration_s=float(draw(st.integers(0, 7200))) if ended else 0.0,
                gpu_s=float(draw(st.integers(0, 3))),
                money=float(draw(st.integers(0, 3))),
                num_in=num_in if ended else 0,
                num_good=num_good if ended else 0,
                num_bad=num_in - num_good if ended else 0,
                detail={"violations": ["x"] * draw(st.integers(0, 1))} if station == "feedback" else {},
            )
        )
    return made


def told(events: list[ProductionEvent]) -> Any:
    """Every figure that there is of a record."""
    plan = Plan(dict.fromkeys(record.STATIONS, 86400.0), {"score": 60.0})
    each = [stations.figures(events, s, END) for s in record.STATIONS]
    return (
        each,
        [f.oee(plan) for f in each],
        stations.bottleneck(each, plan),
        reliability.of_line(events, T0, END),
        reliability.of_model(events, T0, END),
        reliability.change_failures(events),
        leadtime.lead_times(events),
        pareto.pareto(events),
        cost.cost(events, Prices("EUR", 1.0, 0.2, 10.0)),
    )


@given(records(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_duplicates_change_a_figure(events: list[ProductionEvent], chance: random.Random) -> None:
    twice = [*events, *(replace(e) for e in chance.sample(events, len(events) // 2))]
    chance.shuffle(twice)
    assert told(twice) == told(events)


@given(records())
@settings(max_examples=40, deadline=None)
def test_what_a_record_keeps_changes_no_figure(events: list[ProductionEvent]) -> None:
    crowded = [replace(e, at=T0 + timedelta(days=(e.at - T0).days)) for e in events]
    kept = record.distinct(crowded)
    assert told(kept) == told(kept) == told(crowded)
    for station in record.STATIONS:
        mine = [e for e in crowded if e.station == station]
        assert record.at_station(kept, station) == record.distinct(mine)
        assert record.works(record.at_station(kept, station)) == record.works(mine)
        assert record.at_station(record.works(kept), station) == record.works(mine)
        assert stations.figures(kept, station, END) == stations.figures(mine, station, END)


@given(records())
@settings(max_examples=40, deadline=None)
def test_every_figure_is_within_its_bounds(events: list[ProductionEvent]) -> None:
    plan = Plan(ideal_cycle_s={"score": 60.0})
    for station in record.STATIONS:
        f = stations.figures(events, station, END)
        assert f.num_units == f.num_good + f.num_scrap
        assert f.num_good == f.num_first_pass + f.num_rework
        assert f.num_rows_good + f.num_rows_bad == f.num_rows_in
        oee = f.oee(plan)
        for share in (oee.availability, oee.quality, f.first_pass_yield, f.row_yield):
            assert share is None or 0 <= share <= 1
        assert oee.performance is None or oee.performance >= 0
        assert oee.ideal_is_wrong == (oee.performance is not None and oee.performance > 1)
        assert f.down_s >= 0
        assert f.is_down <= (f.num_outages > 0)
    says = reliability.of_line(events, T0, END)
    assert says.mtbf.value_s is not None
    assert says.mtbf.value_s >= 0
    assert says.mtbf.more_than == (says.mtbf.num == 0)


@given(records())
@settings(max_examples=40, deadline=None)
def test_what_is_counted_adds_up(events: list[ProductionEvent]) -> None:
    prices = Prices("EUR", 1.0, 0.2, 10.0)
    whole = cost.cost(events, prices)
    parts = [cost.cost(record.at_station(events, s), prices) for s in record.STATIONS]
    summed = sum(parts, cost.Cost())
    assert math.isclose(summed.money, whole.money, abs_tol=1e-9)
    assert math.isclose(summed.work_s, whole.work_s, abs_tol=1e-6)
    cut = trends.buckets(events, T0, END, timedelta(days=7))
    assert sum(len(mine) for _, _, mine in cut) == len(events)
    items = pareto.pareto(events)
    assert sum(i.num_events for i in items) == sum(
        record.cause(e) in (Cause.DEFECT, Cause.INFRASTRUCTURE) for e in events
    )
    shares = [i.cumulative_share for i in items]
    assert shares == sorted(shares)
    assert not shares or shares[-1] == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.none() | st.integers(-300, 400)),
        min_size=1,
        max_size=5,
        unique_by=lambda each: each[0],
    ),
    st.integers(1, 500),
    st.randoms(use_true_random=False),
)
def test_a_lead_time_begins_at_the_first_arrival_and_its_parts_sum_up(
    tries: list[tuple[int, int | None]], end: int, chance: random.Random
) -> None:
    made = [e for minute, landed in tries for e in ingested(minute, landed)] + [released(end)]
    chance.shuffle(made)
    arrivals = [min(minute, landed) for minute, landed in tries if landed is not None]
    found = leadtime.lead_times(made)
    if not arrivals or min(arrivals) > end:
        assert found == []
        return
    [one] = found
    assert one.landed == T0 + timedelta(minutes=min(arrivals))
    assert one.queue_s >= 0
    assert one.queue_s + one.touch_s + one.approval_s + one.bake_s == pytest.approx(one.total_s)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 150), st.integers(0, 80))),
    st.integers(0, 100),
)
def test_the_parts_of_a_lead_time_never_exceed_it(intervals: list[tuple[int, int, int]], length: int) -> None:
    kinds: list[list[leadtime.Interval]] = [[], [], []]
    for kind, begin, lasts in intervals:
        kinds[kind].append((T0 + timedelta(seconds=begin), T0 + timedelta(seconds=begin + lasts)))
    seconds = leadtime.split(T0, T0 + timedelta(seconds=length), kinds)
    assert all(s >= 0 for s in seconds)
    covered = sum(any(b <= second and second + 1 <= b + n for _, b, n in intervals) for second in range(length))
    assert sum(seconds) == covered
