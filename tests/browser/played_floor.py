"""A plant that answers as the floor's API does, with made-up lines, for tests of the page alone.

Every answer is one of the API's own models, so what it says is what the API can say. One line has everything, one has
never run, and there are as many others as asked for. It also plays Airflow's frame around the page, with the rights
that Airflow 3.3 gives it.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from aifactory.reasons import ReasonCode
from orchestration import floormodels as m
from orchestration.floorapi import HEADERS

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
STATIONS: tuple[m.Station, ...] = ("ingest", "train", "deploy", "score", "feedback")
MAKES: dict[str, m.UnitKind] = {
    "ingest": "batch", "train": "order", "deploy": "model", "score": "predictions", "feedback": "window",
}  # fmt: skip
API = "/floor/api/v1"
# As Airflow 3.3 writes it, sandbox and all
FRAME = """<!doctype html><html lang="en"><title>Airflow</title><link rel="icon" href="data:,">
<body style="margin:0"><iframe id="floor" title="Factory floor" style="border:0;width:100%;height:100vh"
 sandbox="allow-scripts allow-same-origin allow-forms allow-downloads"></iframe>
<script>const path = location.pathname.replace("/plugin/floor", "") || "/floor/";
document.getElementById("floor").src = path + location.hash;</script></body></html>"""


def day(back: int) -> str:
    return (NOW - timedelta(days=back)).date().isoformat()


def at(back: float) -> datetime:
    return NOW - timedelta(days=back)


def money(scale: float) -> m.Money:
    return m.Money(
        currency="USD", money=4.18 * scale, gpu_s=0.0 if scale < 1 else 5400.0, work_s=9120.0 * scale,
        energy_kwh=1.93 * scale, estimated_share=1.0,
    )  # fmt: skip


def reason(code: ReasonCode) -> tuple[str, str]:
    return code.value, code.sentence


class PlayedFloor:
    """The answers, and what was decided in them.

    Args:
        num_lines: how many lines there are.
        may_edit: whether who asks may release, drop and acknowledge.
    """

    def __init__(self, num_lines: int = 9, may_edit: bool = True) -> None:
        self.may_edit = may_edit
        self.names = ["flight_delay", "new_line", "payment_fraud", "parcel_eta", "support_answers", "churn_weekly",
                      "shelf_demand", "turbine_faults", "ad_ranking",
                      *(f"line_{n:03}" for n in range(200))]  # fmt: skip
        self.names = self.names[:num_lines]
        self.decided: dict[int, tuple[str, str]] = {}
        self.acknowledged: set[str] = set()
        self.invalid: list[m.InvalidLine] = []

    # --- overview
    def card(self, line: str) -> m.LineCard:
        if line not in self.names:
            raise HTTPException(404, f"there is no line {line}")
        chance = random.Random(line)
        new, first = line == "new_line", line == "flight_delay"
        state: m.LineState = "never_run" if new else "attention" if first else chance.choice(
            ["running", "idle", "idle", "paused"]
        )  # fmt: skip
        sparkline = [] if new else [self.point(back, chance) for back in range(29, -1, -1)]
        waiting = self.attention(line)
        return m.LineCard(
            line=line,
            title=line.replace("_", " ").capitalize(),
            team="flight_operations" if first else chance.choice(["payments", "logistics", "care", "energy"]),
            email="owner@example.com",
            tier=chance.choice(["low", "medium", "high"]),
            state=state,
            running=["train"] if state in {"running", "attention"} else [],
            champion=None if new else m.Champion(
                version=str(chance.randint(3, 40)), since=at(3.2), age_s=3.2 * 86400, trained_until=day(4),
                order_id="20261117T060512-cadence", dataset_revision="9f3c1b7aa0e2d4c5", put_back=False,
            ),
            metric="roc_auc",
            sparkline=sparkline,
            gates=[self.gate(station, new, first) for station in STATIONS],
            wip=0 if new else 2,
            num_waiting=len(waiting),
            waiting=waiting[:3],
            last_at=None if new else at(0.02),
            num_good_models=0 if new else chance.randint(2, 9),
            num_predictions=0 if new else chance.randint(9_000, 3_000_000),
            bottleneck=None if new else m.Bottleneck(station="train", load=0.62),
            cost=money(0.0 if new else chance.uniform(0.4, 30)),
            may_edit=self.may_edit,
            href=f"{API}/lines/{line}",
        )  # fmt: skip

    @staticmethod
    def point(back: int, chance: random.Random) -> m.MetricPoint:
        value = 0.72 + 0.03 * math.sin(back / 4) + chance.uniform(-0.015, 0.015)
        return m.MetricPoint(
            day=day(back), value=value if back != 11 else None, model_version="7", broken=back in {6, 7}
        )

    @staticmethod
    def gate(station: m.Station, new: bool, first: bool) -> m.GateLight:
        if new:
            return m.GateLight(station=station, light="off", unit=None, at=None, reason=None, sentence=None, href=None)
        code = {"ingest": ReasonCode.VALUE_OUT_OF_RANGE, "train": ReasonCode.GAIN_NOT_PROVEN}.get(
            station if first else ""
        )
        bad = first and station == "deploy"
        why = reason(ReasonCode.APPROVAL_REJECTED if bad else code) if bad or code else (None, None)
        return m.GateLight(
            station=station, light="red" if bad else "amber" if code else "green", unit=day(1), at=at(0.08),
            reason=why[0], sentence=why[1], href=f"/reports/flight_delay/{station}/",
        )  # fmt: skip

    def attention(self, line: str) -> list[m.Attention]:
        if line != "flight_delay":
            return []
        rows: list[tuple[Any, m.Station, str, str, float, ReasonCode, str, str]] = [
            ("approval", "deploy", "model", "12", 0.02, ReasonCode.OPERATOR, "",
             "/dags/flight_delay.deploy/runs/manual__1/tasks/approve"),
            ("held", "ingest", "batch", day(1), 0.08, ReasonCode.QUARANTINE_SHARE,
             "61 of 842 rows of flights failed (7.2 %), the line tolerates 5.0 %",
             f"{API}/lines/flight_delay/quarantine/flights/{day(1)}"),
            ("rolled_back", "deploy", "model", "11", 2.1, ReasonCode.CANARY_SLOW,
             "p95 of the challenger 1.9 s, of the champion 0.6 s: ratio 3.2, allowed 2.0", "/dags/flight_delay.deploy"),
        ]  # fmt: skip
        items = [
            m.Attention(
                id=f"{line}/{kind}/{unit}", line=line, kind=kind, station=station, unit_kind=unit_kind, unit=unit,
                at=at(back), reason=code.value, message=message, href=href,
                sentence="Version 12 waits for your approval." if kind == "approval" else code.sentence,
                may_acknowledge=self.may_edit and kind != "approval",
            )
            for kind, station, unit_kind, unit, back, code, message, href in rows
        ]  # fmt: skip
        return [item for item in items if item.id not in self.acknowledged]

    def overview(self, days: int, state: str, q: str, limit: int, cursor: str) -> m.Overview:
        cards = [self.card(line) for line in self.names]
        order = ["attention", "running", "idle", "never_run", "paused"]
        cards.sort(key=lambda card: (order.index(card.state), card.line))
        totals = m.PlantTotals(
            num_lines=len(cards),
            num_by_state={s: sum(c.state == s for c in cards) for s in cast("list[m.LineState]", order)},
            num_waiting=sum(c.num_waiting for c in cards),
            wip=sum(c.wip for c in cards),
            num_good_models=sum(c.num_good_models for c in cards),
            num_predictions=sum(c.num_predictions for c in cards),
            cost=money(60),
        )
        found = [c for c in cards if state in {"", c.state} and q.lower() in f"{c.line} {c.title} {c.team}".lower()]
        begin = int(cursor or 0)
        end = begin + limit
        return m.Overview(
            at=NOW,
            days=days,
            totals=totals,
            invalid=self.invalid,
            lines=found[begin:end],
            next_cursor=str(end) if end < len(found) else None,
        )

    # --- a line
    def line(self, line: str, days: int) -> m.LinePage:
        card = self.card(line)
        new = card.champion is None
        stations = [self.station(line, name, days, new, index) for index, name in enumerate(STATIONS)]
        lead = self.lead_times().summary if not new else empty_summary()
        unknown = m.Span(value_s=None, more_than=False, num=0)
        return m.LinePage(
            at=NOW,
            description="Two hours before its scheduled departure, how likely is a flight from New York to arrive more "
            "than 15 minutes late? For the operations desk, which rebooks connections and crews.",
            schedule="0 6 * * * UTC",
            card=card,
            kpis=m.Kpis(
                begin=at(days), end=NOW, stations=stations, bottleneck=card.bottleneck,
                throughput=m.Throughput(
                    num_good_models=card.num_good_models, num_datasets=0 if new else 29,
                    num_predictions=card.num_predictions, num_tokens=None,
                ),
                wip=card.wip, rolled_yield=None if new else 0.7022, lead_time=lead,
                dora=m.Dora(
                    releases_per_week=0 if new else 1.2, lead_time=lead.total,
                    change_failure_rate=None if new else 0.125,
                    time_to_restore=unknown if new else m.Span(value_s=5 * 3600, more_than=False, num=2),
                ),
                line_mtbf=unknown if new else m.Span(value_s=days * 86400.0, more_than=True, num=0),
                line_mttr=unknown,
                model_mtbf=unknown if new else m.Span(value_s=9.5 * 86400, more_than=False, num=2),
                model_mttr=unknown if new else m.Span(value_s=5 * 3600, more_than=False, num=2),
                cost=card.cost, money_per_good_model=None if new else 0.71, gpu_s_per_good_model=None if new else 0.0,
                energy_kwh_per_good_model=None if new else 0.33, money_per_thousand_predictions=None if new else 0.0021,
            ),
        )  # fmt: skip

    @staticmethod
    def station(line: str, name: m.Station, days: int, new: bool, index: int) -> m.StationKpis:
        good, units = (
            (0, 0) if new else ((days - 1, days) if name in {"ingest", "score", "feedback"} else (5, 7 - index // 2))
        )
        share = None if not units else good / units
        fast = name == "score"
        oee = m.Oee(
            availability=None if new else 0.998 - index / 100, performance=None if new else 1.12 if fast else 0.91,
            quality=share, oee=None if share is None else 0.9 * share, ideal_is_wrong=fast and not new,
            ideal_cycle_s=None if new else 30, ideal_source=None if new else "declared" if fast else "demonstrated",
        )  # fmt: skip
        return m.StationKpis(
            station=name, dag_id=f"{line}.{name}",
            state="running" if name == "train" and not new else "queued" if name == "deploy" and not new else "idle",
            href=f"/dags/{line}.{name}", last_run_href=None if new else f"/dags/{line}.{name}/runs/scheduled__1",
            last_at=None if new else at(0.03 * (index + 1)), unit_kind=MAKES[name], num_units=units, num_good=good,
            num_first_pass=max(0, good - 1), num_rework=int(not new and name == "ingest"), num_scrap=units - good,
            num_rows_in=units * 842, num_rows_good=units * 836, num_rows_bad=units * 6,
            wip=int(name == "train" and not new),
            first_pass_yield=None if not units else max(0, good - 1) / units, row_yield=None if new else 0.9929,
            work_s=0 if new else 840.0 * (index + 1), down_s=0 if new else 42.0 * index,
            cycle_s=None if new else 31.4 * (index + 1), takt_s=None if new else 86400.0,
            load=None if new else 0.62 if name == "train" else 0.08 * (index + 1), oee=oee,
        )  # fmt: skip

    @staticmethod
    def trends(days: int, bucket: str) -> m.Trends:
        chance = random.Random(days)
        step = 7 if bucket == "week" else 1
        num = max(1, days // step)

        def each(low: float, high: float) -> dict[m.Station, float]:
            return {station: chance.uniform(low, high) for station in STATIONS}

        return m.Trends(
            bucket=cast("Any", bucket),
            currency="USD",
            points=[
                m.TrendPoint(
                    begin=at((num - n) * step), num_good_models=chance.randint(0, 2), num_predictions=842 * step,
                    rolled_yield=chance.uniform(0.6, 0.8), work_s=each(20, 400),
                    first_pass_yield=cast("Any", each(0.82, 1)), oee=cast("Any", each(0.7, 0.95)),
                    down_s=chance.choice([0, 0, 90, 600]), money=chance.uniform(0.4, 1.1),
                    energy_kwh=chance.uniform(0.2, 0.5),
                    num_scrap=chance.randint(0, 2), num_rework=chance.randint(0, 1),
                )
                for n in range(num)
            ],
        )  # fmt: skip

    @staticmethod
    def gates(line: str, station: str, passed: str, limit: int, cursor: str) -> m.Page[m.GateResult]:
        results = []
        for n in range(60):
            name = STATIONS[n % 5]
            code = ReasonCode.GAIN_NOT_PROVEN if n % 7 == 1 else None
            results.append(
                m.GateResult(
                    station=name, unit_kind=MAKES[name], unit=day(n // 5) if name != "deploy" else str(12 - n // 5),
                    partition=day(n // 5), at=at(n / 5), event="scrapped" if code else "passed", passed=code is None,
                    reasons=[code.value] if code else [],
                    message="roc_auc .7141 against .7203 of the champion; gain -.006 (-.013 to .001)" if code else "",
                    num_in=842, num_good=836, num_bad=6, duration_s=12.4 + n,
                    href=f"/reports/{line}/{name}/{day(n // 5)}/",
                    unit_href=f"{API}/lines/{line}/units/{MAKES[name]}/{day(n // 5)}",
                )
            )  # fmt: skip
        wanted = [r for r in results if station in {"", r.station} and passed in {"", str(r.passed).lower()}]
        return cut(wanted, limit, cursor)

    @staticmethod
    def windows(line: str) -> m.Windows:
        chance = random.Random(3)
        items = [
            m.Window(
                day=day(back), at=at(back - 0.2), model_version="7" if back > 4 else "8",
                metrics={"roc_auc": 0.72 + 0.03 * math.sin(back / 4), "calibration_error": chance.uniform(0.03, 0.11)},
                violations=["calibration_error 0.108 > 0.100", "drifted_share 0.56 > 0.50"] if back in {6, 7} else [],
                num_scored=2510, num_outcomes=2488, served=[], href=f"/reports/{line}/feedback/{day(back)}/",
            )
            for back in range(1, 61, 1)
        ]  # fmt: skip
        return m.Windows(items=items, next_cursor=None, metric="roc_auc", limits=LIMITS)

    @staticmethod
    def features(which: str) -> m.WindowFeatures:
        names = ["network_late_3h", "origin_backlog_3h", "temp", "dewp", "humid", "wind_gust", "visib", "precip",
                 "carrier",
                 "dest_late_8h", "distance", "scheduled_hour", "origin", "dest"]  # fmt: skip
        psi = [1.21 * 0.72**n for n in range(len(names))]
        return m.WindowFeatures(
            day=which, model_version="8", score_psi=0.41, drifted_share=3 / len(names), limits=LIMITS,
            features=[m.FeatureDrift(feature=f, psi=p, p_value=0.01, drifted=p > 0.5)
                      for f, p in zip(names, psi, strict=True)],
        )  # fmt: skip

    @staticmethod
    def rollouts(line: str) -> m.Page[m.Rollout]:
        def one(version: int, outcome: Any, code: ReasonCode | None, back: float) -> m.Rollout:
            stages = [("shadow", None, "start"), ("canary", 30, "advance"), ("canary", 60, "advance")]
            ends = {"promoted": ("promoted", 100, "promote"), "rolled_back": ("rolled_back", 0, "roll back")}
            steps = [
                m.RolloutStep(
                    at=at(back - n / 1000), stage=stage, percent=percent, action=action, reason=None,
                    explanation="312 requests: errors 0.0 % against 0.0 %, p95 41 ms against 39 ms, score shift .08",
                )
                for n, (stage, percent, action) in enumerate([*stages, *([ends[outcome]] if outcome in ends else [])])
            ]  # fmt: skip
            said = reason(code) if code else (None, None)
            return m.Rollout(
                version=str(version), order_id="o", began=at(back),
                ended=None if outcome == "under_way" else at(back - 0.01),
                outcome=outcome, reason=said[0], sentence=said[1], by="anna" if outcome == "refused" else "",
                steps=steps, run_href=f"/dags/{line}.deploy/runs/r{version}",
                unit_href=f"{API}/lines/{line}/units/model/{version}",
            )  # fmt: skip

        return m.Page[m.Rollout](
            items=[
                one(12, "under_way", None, 0.02),
                one(11, "rolled_back", ReasonCode.CANARY_SLOW, 2.1),
                one(10, "promoted", None, 3.2),
                one(9, "refused", ReasonCode.APPROVAL_REJECTED, 9),
                one(8, "promoted", None, 11),
            ],
            next_cursor=None,
        )

    @staticmethod
    def pareto() -> m.Pareto:
        counts = [
            (ReasonCode.GAIN_NOT_PROVEN, 14), (ReasonCode.VALUE_OUT_OF_RANGE, 9), (ReasonCode.QUARANTINE_SHARE, 4),
            (ReasonCode.STORE_UNREACHABLE, 3), (ReasonCode.CANARY_SLOW, 2), (ReasonCode.POD_PREEMPTED, 1),
        ]  # fmt: skip
        total, so_far, items = sum(n for _, n in counts), 0, []
        for code, count in counts:
            so_far += count
            infrastructure = code in {ReasonCode.STORE_UNREACHABLE, ReasonCode.POD_PREEMPTED}
            items.append(
                m.ParetoItem(
                    reason=code.value, sentence=code.sentence, kind="infrastructure" if infrastructure else "defect",
                    num_events=count, num_units=count, num_scrap=count // 2, num_rework=count - count // 2,
                    num_rows=61 if code is ReasonCode.VALUE_OUT_OF_RANGE else 0, lost_s=count * 31.0,
                    stations={"train": count}, cumulative_share=so_far / total,
                )
            )  # fmt: skip
        return m.Pareto(
            num_events=total, items=items, quarantined={"VALUE_OUT_OF_RANGE": 212, "KEY_DUPLICATE": 31, "VALUE_NULL": 4}
        )

    @staticmethod
    def lead_times() -> m.LeadTimes:
        items = [
            m.LeadTime(
                version=str(n), order_id=None, landed=at(60 - 4 * n), released=at(60 - 4 * n - 0.4),
                total_s=q + t + a + b,
                queue_s=q, touch_s=t, approval_s=a, bake_s=b, unit_href=f"{API}/lines/flight_delay/units/model/{n}",
            )
            for n, (q, t, a, b) in enumerate(
                [(3000.0, 900.0, 0.0, 1800.0), (2500.0, 1100.0, 9000.0, 1900.0), (8000.0, 950.0, 0.0, 1700.0),
                 (3100.0, 870.0, 14000.0, 2000.0), (2900.0, 910.0, 0.0, 1810.0), (3500.0, 990.0, 0.0, 2400.0)], 3)
        ]  # fmt: skip

        def two(p50: float, p95: float) -> m.Quantiles:
            return m.Quantiles(num=len(items), p50_s=p50, p95_s=p95)

        summary = m.LeadTimeSummary(
            total=two(9100, 19_200),
            queue=two(3050, 7100),
            touch=two(930, 1080),
            approval=two(0, 13_000),
            bake=two(1850, 2350),
        )
        return m.LeadTimes(summary=summary, items=items)

    # --- units
    @staticmethod
    def units(line: str, kind: str, q: str, limit: int, cursor: str) -> m.Page[m.UnitSummary]:
        all_units = [
            m.UnitSummary(
                kind=k, unit=u, label=f"version {u}" if k == "model" else f"{k} {u}", partition=day(n), state=s, good=g,
                at=at(n), href=f"{API}/lines/{line}/units/{k}/{u}",
            )
            for n in range(20)
            for k, u, s, g in cast(
                "list[tuple[m.UnitKind, str, str, bool | None]]",
                [("batch", day(n), "passed", True),
                ("model", str(30 - n), "promoted" if n % 3 else "scrapped", bool(n % 3)),
                 ("predictions", day(n), "started" if n == 0 else "passed", None if n == 0 else True)])
        ]  # fmt: skip
        return cut([u for u in all_units if kind in {"", u.kind} and q in f"{u.unit} {u.label}"], limit, cursor)

    @staticmethod
    def genealogy(line: str, kind: str, unit: str) -> m.Genealogy:
        def node(k: m.UnitKind, u: str, label: str, good: bool | None = True, **facts: Any) -> m.UnitNode:
            return m.UnitNode(
                id=f"{k}:{u}", kind=k, unit=u, label=label, at=at(4), good=good, facts=facts,
                href=None if k == "landing" else f"{API}/lines/{line}/units/{k}/{u}",
                report_href=None if k == "landing" else f"/reports/{line}/{k}/",
                external_href="http://127.0.0.1:5500/#/models/flight_delay/versions/10" if k == "model" else None,
            )  # fmt: skip

        days = [day(n) for n in range(12, 3, -1)]
        later = [day(n) for n in range(3, -1, -1)]
        nodes = [
            *(node("landing", f"{table}/{d}", f"{table} {d}") for d in days for table in ("flights", "weather")),
            *(node("batch", d, d, num_in=842, num_good=836) for d in days),
            node("dataset", "9f3c1b7aa0e2", "9f3c1b7aa0", num_rows=28_412, revision="9f3c1b7aa0e2d4c5"),
            node("order", "20261117T060512-cadence", "order of 17 Nov", reason="CADENCE_DUE"),
            node("model", "10", "version 10", roc_auc=0.7203, trained_until=day(4), recipe="gradient_boosting",
                 order_id="20261117T060512-cadence", mlflow_run="5e0d6f3b"),
            *(node("predictions", d, d, None if d == later[-1] else True, num_good=842) for d in later),
            *(node("window", d, d, d != later[0]) for d in later[:2]),
        ]  # fmt: skip
        links = [
            *((f"landing:{table}/{d}", f"batch:{d}") for d in days for table in ("flights", "weather")),
            *((f"batch:{d}", "dataset:9f3c1b7aa0e2") for d in days),
            ("dataset:9f3c1b7aa0e2", "order:20261117T060512-cadence"),
            ("order:20261117T060512-cadence", "model:10"),
            *(("model:10", f"predictions:{d}") for d in later),
            *((f"predictions:{d}", f"window:{d}") for d in later[:2]),
        ]
        wanted = next((n for n in nodes if n.kind == kind and n.unit == unit), nodes[-7])
        return m.Genealogy(
            unit=wanted, nodes=nodes, links=[m.UnitLink(source=s, target=t) for s, t in links], max_nodes=50,
            left_out={"batch": 19, "landing": 38},
            events=[
                m.UnitEvent(
                    id=f"e{n}", at=at(4 - n / 50), station=station, event=event, reason=None, sentence=None,
                    duration_s=n * 31.0, gpu_s=0, energy_kwh=0.01 * n, money=0.02 * n, num_in=28_412 if n else 0,
                    num_good=28_412 if n else 0, num_bad=0, run_href=f"/dags/{line}.{station}/runs/r{n}", message="",
                )
                for n, (station, event) in enumerate(
                    zip(["train", "train", "deploy", "deploy"], ["started", "passed"] * 2, strict=True))
            ],
        )  # fmt: skip

    # --- quarantine
    @staticmethod
    def batches(line: str) -> m.Page[m.QuarantinedBatch]:
        return m.Page[m.QuarantinedBatch](
            items=[
                m.QuarantinedBatch(
                    day=day(n), table="flights" if n % 2 else "weather", num_rows=61 if n == 1 else n,
                    reasons={} if n == 1 else {"VALUE_OUT_OF_RANGE (expect_column_values_to_be_between air_time)": n},
                    held=n == 1, at=at(n - 0.5), href=f"{API}/lines/{line}/quarantine/flights/{day(n)}",
                    docs_href=f"/reports/{line}/ingest/{day(n)}/raw/",
                )
                for n in range(1, 9)
            ],
            next_cursor=None,
        )  # fmt: skip

    def rows(self, wanted: str, limit: int, cursor: str) -> m.Page[m.QuarantinedRow]:
        items = []
        for number in range(4, 610, 10):
            code = ReasonCode.VALUE_OUT_OF_RANGE if number % 3 else ReasonCode.KEY_DUPLICATE
            decision, by = self.decided.get(number, ("pending", None))
            items.append(
                m.QuarantinedRow(
                    row_number=number,
                    row={"flight_date": day(1), "carrier": "UA", "flight": 1000 + number, "tailnum": None,
                    "origin": "EWR",
                         "dest": "ORD", "air_time": -41.0, "distance": 719.0, "cancelled": False},
                    reason=code.value, sentence=code.sentence, decision=cast("Any", decision), by=by,
                    expectation="expect_column_values_to_be_between air_time (min_value=10, max_value=720)",
                    decided_at=NOW if by else None, source_uri=f"s3://landing/flight_delay/flights/{day(1)}.parquet",
                    source_etag="etag-1",
                )
            )  # fmt: skip
        return cut([row for row in items if wanted in {"", row.decision}], limit, cursor)

    def decide(self, body: m.Decide) -> m.Decided:
        if not self.may_edit:
            raise HTTPException(403, "you may not edit flight_delay.ingest")
        if body.source_etag != "etag-1":
            raise HTTPException(409, "another file has landed since; read the rows again")
        self.decided |= dict.fromkeys(body.row_numbers, (body.decision, "anna"))
        return m.Decided(
            num_rows=len(body.row_numbers), decision=body.decision, by="anna",
            next_step=f"Run {day(1)} of flight_delay.ingest again.", ingest_href="/dags/flight_delay.ingest",
        )  # fmt: skip

    def acknowledge(self, body: m.Acknowledge) -> m.Acknowledged:
        self.acknowledged.add(body.id)
        return m.Acknowledged(id=body.id, by="anna", at=NOW)


LIMITS = {
    "max_metric_drop": 0.12, "max_calibration_error": 0.1, "max_feature_psi": 0.5,
    "max_score_psi": 1.0, "max_drifted_share": 0.5,
}  # fmt: skip


def empty_summary() -> m.LeadTimeSummary:
    none = m.Quantiles(num=0, p50_s=None, p95_s=None)
    return m.LeadTimeSummary(total=none, queue=none, touch=none, approval=none, bake=none)


def cut(items: list[Any], limit: int, cursor: str) -> m.Page[Any]:
    begin = int(cursor or 0)
    end = begin + limit
    return m.Page[Any](items=items[begin:end], next_cursor=str(end) if end < len(items) else None)


class _Bundle(StaticFiles):
    """The page's files under the policy that they are shipped with."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def create_app(floor: PlayedFloor, dist: Path) -> FastAPI:
    """The API, the page, and stand-ins for the pages of Airflow that it links to."""
    app = FastAPI()
    api = f"{API}/lines/{{line}}"

    def get(path: str, answer: Any) -> None:
        app.add_api_route(path, answer, methods=["GET"], response_model=None)

    get(f"{API}/overview", lambda days=30, state="", q="", limit=50, cursor="": floor.overview(
        int(days), state, q, int(limit), cursor))  # fmt: skip
    get(f"{API}/attention", lambda limit=50: m.Page[m.Attention](
        items=[a for line in floor.names for a in floor.attention(line)][: int(limit)], next_cursor=None))  # fmt: skip
    get(api, lambda line, days=30: floor.line(line, int(days)))
    get(f"{api}/attention", lambda line: m.Page[m.Attention](items=floor.attention(line), next_cursor=None))
    get(f"{api}/trends", lambda line, days=90, bucket="week": floor.trends(int(days), bucket))
    get(f"{api}/gates", lambda line, station="", passed="", limit=50, cursor="": floor.gates(
        line, station, passed, int(limit), cursor))  # fmt: skip
    get(f"{api}/windows", lambda line: floor.windows(line) if line != "new_line" else m.Windows(
        items=[], next_cursor=None, metric="roc_auc", limits=LIMITS))  # fmt: skip
    get(f"{api}/windows/{{which}}", lambda line, which: floor.features(which))
    get(f"{api}/rollouts", floor.rollouts)
    get(f"{api}/pareto", lambda line: floor.pareto())
    get(f"{api}/lead-times", lambda line: floor.lead_times())
    get(f"{api}/units", lambda line, kind="", q="", limit=50, cursor="": floor.units(line, kind, q, int(limit), cursor))
    get(f"{api}/units/{{kind}}/{{unit:path}}", floor.genealogy)
    get(
        f"{api}/runs",
        lambda line, dag_id, run_id: floor.units(line, "batch", "", 3, "") if "2" in run_id else cut([], 1, ""),
    )
    get(f"{api}/quarantine", floor.batches)
    get(f"{api}/quarantine/{{table}}/{{day}}", lambda line, decision="", limit=50, cursor="": floor.rows(
        decision, int(limit), cursor))  # fmt: skip

    @app.post(f"{api}/quarantine/{{table}}/{{day}}/decisions")
    def decide(body: m.Decide) -> m.Decided:
        return floor.decide(body)

    @app.post(f"{api}/acknowledgements")
    def acknowledge(body: m.Acknowledge) -> m.Acknowledged:
        return floor.acknowledge(body)

    @app.get("/plugin/floor")
    @app.get("/plugin/floor/{rest:path}")
    def frame(rest: str = "") -> HTMLResponse:
        return HTMLResponse(FRAME)

    @app.get("/dags/{dag:path}")
    def dag(dag: str) -> HTMLResponse:
        return HTMLResponse(f"<!doctype html><title>Airflow</title><link rel='icon' href='data:,'><h1>{dag}</h1>")

    app.mount("/floor", _Bundle(directory=dist, html=True))
    return app
