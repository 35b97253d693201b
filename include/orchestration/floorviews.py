"""What the floor found, as what its API answers: facts of `aifactory.floor` and `aifactory.kpi` in `floormodels`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from aifactory.floor.genealogy import Family, Unit
from aifactory.floor.overview import Made
from aifactory.floor.waiting import Waiting
from aifactory.kpi import cost, formulas, leadtime, pareto, reliability, stations, trends
from aifactory.kpi.cost import Cost, Prices
from aifactory.kpi.leadtime import LeadTime
from aifactory.kpi.record import STATIONS, Record, distinct, in_progress
from aifactory.kpi.stations import Plan, StationFigures
from aifactory.ledger import ProductionEvent
from aifactory.line import LineSpec
from aifactory.reasons import Cause, ReasonCode
from orchestration import floormodels as m
from orchestration.floorairflow import Approval, DagNow, approval_href, dag_href, run_href
from orchestration.links import FLOOR_PREFIX, report_url

API = f"{FLOOR_PREFIX}/api/v1"
"""Where the API is mounted."""

UNIT_KIND: dict[str, m.UnitKind] = {
    "ingest": "batch",
    "train": "order",
    "deploy": "model",
    "score": "predictions",
    "feedback": "window",
}
"""Kind of unit that each station makes, as the floor calls it."""

_LINKED_KIND = {"batch": "batch", "dataset": "dataset", "predictions": "predictions", "window": "window"}
_GOOD = {"passed", "reworked", "promoted"}
WEEK_S = 7 * 86400.0


# --- references
def line_href(line: str) -> str:
    """A line in the API."""
    return f"{API}/lines/{quote(line)}"


def unit_href(line: str, kind: str, unit: str) -> str:
    """A unit in the API."""
    return f"{line_href(line)}/units/{kind}/{quote(unit, safe='')}"


def sentence(reason: str | None) -> str | None:
    """A reason in words."""
    return ReasonCode[reason].sentence if reason else None


def floor_unit(station: str, unit_kind: str, unit: str) -> tuple[str, str]:
    """Kind and unit as the floor calls them: of a part of an order the order."""
    if station == "train":
        return "order", unit.partition("/")[0]
    return _LINKED_KIND.get(unit_kind, "model"), unit


def report_href(line: str, row: Mapping[str, Any]) -> str | None:
    """Where the report of an event's gate is; `row` is of the ledger's table."""
    told = row["detail"].get("docs") or row["detail"].get("report")
    if told:
        return report_url(str(told))
    station, unit = row["station"], row["unit"].partition("/")[0]
    if station in ("score", "feedback") and row["unit_kind"] in ("predictions", "window"):
        return report_url(f"reports/{line}/{station}/{unit}/")
    return report_url(f"reports/{line}/train/{unit}/") if station == "train" else None


def ledger_run_href(line: str, station: str, run_id: str) -> str | None:
    """The Airflow run of an event; None where its run id is no run's: a training's signal, an operator's word."""
    if station == "train":
        run_id = run_id.removeprefix("manual/") if run_id.startswith("manual/") else ""
    return None if run_id.startswith("operator:") else run_href(f"{line}.{station}", run_id)


# --- the overview
def money(spent: Cost, currency: str) -> m.Money:
    """Cost as the API has it."""
    share = formulas.ratio(spent.estimated_money, spent.money)
    return m.Money(
        currency=currency,
        money=spent.money,
        gpu_s=spent.gpu_s,
        work_s=spent.work_s,
        energy_kwh=spent.energy_kwh,
        estimated_share=None if share is None else min(1.0, share),
    )


def state_of(dags: Mapping[str, DagNow], line: str, num_waiting: int, *, ever: bool) -> m.LineState:
    """What a line does."""
    if num_waiting:
        return "attention"
    mine = [dags[f"{line}.{s}"] for s in STATIONS if f"{line}.{s}" in dags]
    if any(dag.num_running for dag in mine):
        return "running"
    ingest = dags.get(f"{line}.ingest")
    if ingest is not None and ingest.paused:
        return "paused"
    return "idle" if ever else "never_run"


def waits(found: Waiting, *, may_edit: bool) -> m.Attention:
    """Something of the ledger that waits."""
    e = found.event
    kind, unit = floor_unit(e.station, e.unit_kind, e.unit)
    href: str | None = unit_href(e.line, kind, unit)
    if found.kind == "late":
        kind, unit, href = "run", e.unit, run_href(f"{e.line}.{e.station}", e.run_id)
    elif found.kind == "held" and e.station == "ingest" and "step" not in e.detail:  # by the raw gate
        href = f"{line_href(e.line)}/quarantine"
    text = e.reason.sentence if e.reason else e.event.value
    return m.Attention(
        id=e.key,
        line=e.line,
        kind=found.kind,  # type: ignore[arg-type]
        station=e.station,  # type: ignore[arg-type]
        unit_kind=kind,
        unit=unit,
        at=e.at,
        reason=e.reason.value if e.reason else None,
        sentence=text,
        message=str(e.detail.get("message") or e.detail.get("explanation") or ""),
        href=href,
        may_acknowledge=may_edit,
    )


def waits_for_approval(approval: Approval) -> m.Attention:
    """A release that waits for a word."""
    return m.Attention(
        id=f"approval/{approval.dag_id}/{approval.run_id}",
        line=approval.dag_id.rpartition(".")[0],
        kind="approval",
        station="deploy",
        unit_kind="run",
        unit=approval.run_id,
        at=approval.since,
        reason=None,
        sentence=approval.subject,
        message="",
        href=approval_href(approval),
        may_acknowledge=False,
    )


def champion(found: Mapping[str, Any] | None, now: datetime) -> m.Champion | None:
    """The version in service."""
    if found is None:
        return None
    return m.Champion(**found, age_s=max(0.0, (now - found["since"]).total_seconds()))


def light(spec: LineSpec, station: Any, row: Mapping[str, Any] | None) -> m.GateLight:
    """The light of one gate, from the newest end there."""
    if row is None:
        return m.GateLight(
            station=station,
            light="off",
            unit=None,
            at=None,
            reason=None,
            sentence=None,
            href=None,
        )
    return m.GateLight(
        station=station,
        light=_colour(row),
        unit=floor_unit(station, row["unit_kind"], row["unit"])[1],
        at=row["at"],
        reason=row["reason"],
        sentence=sentence(row["reason"]),
        href=report_href(spec.line, row),
    )


def _colour(row: Mapping[str, Any]) -> Any:
    if row["event"] == "scrapped":
        return "amber"
    if row["event"] not in _GOOD:
        return "red"
    partly = row["num_bad"] > 0 or bool(row["detail"].get("violations"))
    return "amber" if partly else "green"


def bottleneck(found: tuple[str, float] | None) -> m.Bottleneck | None:
    """The station with the highest load."""
    return m.Bottleneck(station=found[0], load=found[1]) if found else None  # type: ignore[arg-type]


# --- KPIs
def kpis(
    spec: LineSpec,
    plan: Plan,
    prices: Prices,
    events: Iterable[ProductionEvent],
    lives: Sequence[LeadTime],
    dags: Mapping[str, DagNow],
    span: tuple[datetime, datetime],
) -> m.Kpis:
    """All KPIs of a line; see `aifactory.kpi` for what each is."""
    begin, end = span
    mine = distinct(events)
    figures = [stations.figures(mine, station, end) for station in STATIONS]
    watched = max(begin, mine[0].at) if mine else end  # a line that is a day old has not run a month without failure
    line, model = reliability.of_line(mine, watched, end), reliability.of_model(mine, watched, end)
    released, failed = reliability.change_failures(mine)
    spent, scored = cost.cost(mine, prices), _at(mine, "score", prices)
    made = next(f for f in figures if f.station == "score").num_rows_good
    good_models = spent if released else Cost()
    return m.Kpis(
        begin=begin,
        end=end,
        stations=[_station(spec, plan, f, dags) for f in figures],
        bottleneck=bottleneck(stations.bottleneck(figures, plan)),
        throughput=m.Throughput(
            num_good_models=released,
            num_datasets=sum(e.unit_kind == "dataset" and e.event.value in _GOOD for e in mine),
            num_predictions=made,
            num_tokens=None,
        ),
        wip=len(in_progress(mine, end)),
        rolled_yield=formulas.rolled_yield(f.first_pass_yield for f in figures),
        lead_time=lead_summary(lives),
        dora=m.Dora(
            releases_per_week=released / ((end - begin).total_seconds() / WEEK_S),
            lead_time=_quantiles(each.total_s for each in lives),
            change_failure_rate=formulas.ratio(failed, released),
            time_to_restore=_span(model.mttr),
        ),
        line_mtbf=_span(line.mtbf),
        line_mttr=_span(line.mttr),
        model_mtbf=_span(model.mtbf),
        model_mttr=_span(model.mttr),
        cost=money(spent, prices.currency),
        money_per_good_model=formulas.ratio(good_models.money, released),
        gpu_s_per_good_model=formulas.ratio(good_models.gpu_s, released),
        energy_kwh_per_good_model=formulas.ratio(good_models.energy_kwh, released),
        money_per_thousand_predictions=formulas.ratio(scored.money * 1000, made),
    )


def trend_points(
    events: Iterable[ProductionEvent], plan: Plan, prices: Prices, span: tuple[datetime, datetime], width: timedelta
) -> list[m.TrendPoint]:
    """KPIs a day or week."""
    return [_trend(begin, end, mine, plan, prices) for begin, end, mine in trends.buckets(events, *span, width)]


def _trend(begin: datetime, end: datetime, events: list[ProductionEvent], plan: Plan, prices: Prices) -> m.TrendPoint:
    mine = distinct(events)
    figures = {station: stations.figures(mine, station, end) for station in STATIONS}
    spent = cost.cost(mine, prices)
    return m.TrendPoint(
        begin=begin,
        num_good_models=reliability.change_failures(mine)[0],
        num_predictions=figures["score"].num_rows_good,
        rolled_yield=formulas.rolled_yield(f.first_pass_yield for f in figures.values()),
        work_s={s: f.work_s for s, f in figures.items()},  # type: ignore[misc]
        first_pass_yield={s: f.first_pass_yield for s, f in figures.items()},  # type: ignore[misc]
        oee={s: f.oee(plan).oee for s, f in figures.items()},  # type: ignore[misc]
        down_s=sum(f.down_s for f in figures.values()),
        money=spent.money,
        energy_kwh=spent.energy_kwh,
        num_scrap=sum(f.num_scrap for f in figures.values()),
        num_rework=sum(f.num_rework for f in figures.values()),
    )


def lead_summary(lives: Sequence[LeadTime]) -> m.LeadTimeSummary:
    """Median and p95 of lead times and of their parts."""
    return m.LeadTimeSummary(
        total=_quantiles(each.total_s for each in lives),
        queue=_quantiles(each.queue_s for each in lives),
        touch=_quantiles(each.touch_s for each in lives),
        approval=_quantiles(each.approval_s for each in lives),
        bake=_quantiles(each.bake_s for each in lives),
    )


def lead_time(line: str, each: LeadTime) -> m.LeadTime:
    """One release."""
    return m.LeadTime(
        **asdict(each), total_s=each.total_s, queue_s=each.queue_s, unit_href=unit_href(line, "model", each.version)
    )


def pareto_of(events: Iterable[ProductionEvent]) -> m.Pareto:
    """Reasons, most frequent first."""
    mine = distinct(events)
    items = [
        m.ParetoItem(
            **asdict(each) | {"reason": each.reason.value},
            sentence=each.reason.sentence,
            kind="infrastructure" if each.reason.cause is Cause.INFRASTRUCTURE else "defect",
        )
        for each in pareto.pareto(mine)
    ]
    return m.Pareto(num_events=sum(i.num_events for i in items), items=items, quarantined=pareto.quarantined(mine))


def _at(events: Record, station: str, prices: Prices) -> Cost:
    return cost.cost((e for e in events if e.station == station), prices)


def _station(spec: LineSpec, plan: Plan, f: StationFigures, dags: Mapping[str, DagNow]) -> m.StationKpis:
    dag_id = f"{spec.line}.{f.station}"
    dag, (ideal, source), oee = dags.get(dag_id), f.ideal_cycle(plan), f.oee(plan)
    return m.StationKpis(
        station=f.station,  # type: ignore[arg-type]
        dag_id=dag_id,
        state=_station_state(f, dag),
        href=dag_href(dag_id),
        last_run_href=run_href(dag_id, dag.last_run_id) if dag else None,
        last_at=f.last_at,
        unit_kind=UNIT_KIND[f.station],
        num_units=f.num_units,
        num_good=f.num_good,
        num_first_pass=f.num_first_pass,
        num_rework=f.num_rework,
        num_scrap=f.num_scrap,
        num_rows_in=f.num_rows_in,
        num_rows_good=f.num_rows_good,
        num_rows_bad=f.num_rows_bad,
        wip=f.wip,
        first_pass_yield=f.first_pass_yield,
        row_yield=f.row_yield,
        work_s=f.work_s,
        down_s=f.down_s,
        cycle_s=f.cycle_s,
        takt_s=plan.takt_s.get(f.station),
        load=f.load(plan),
        oee=m.Oee(
            availability=oee.availability,
            performance=oee.performance,
            quality=oee.quality,
            oee=oee.oee,
            ideal_is_wrong=oee.ideal_is_wrong,
            ideal_cycle_s=ideal,
            ideal_source=source,  # type: ignore[arg-type]
        ),
    )


def _station_state(f: StationFigures, dag: DagNow | None) -> Any:
    if dag is not None and dag.num_running:
        return "running"
    if f.is_down:
        return "down"
    if dag is not None and dag.num_queued:
        return "queued"
    return "paused" if dag is not None and dag.paused else "idle"


def _quantiles(seconds: Iterable[float]) -> m.Quantiles:
    num, p50, p95 = leadtime.quantiles(seconds)
    return m.Quantiles(num=num, p50_s=p50, p95_s=p95)


def _span(found: reliability.Span) -> m.Span:
    return m.Span(**asdict(found))


# --- panels
def gate_result(line: str, row: Mapping[str, Any]) -> m.GateResult:
    """What a gate said of one unit."""
    kind, unit = floor_unit(row["station"], row["unit_kind"], row["unit"])
    passed = row["event"] in _GOOD
    said = row["detail"].get("reasons") or []
    codes = [str(each["code"] if isinstance(each, dict) else each) for each in said]
    told = "; ".join(each["message"] for each in said if isinstance(each, dict))
    return m.GateResult(
        station=row["station"],
        unit_kind=kind,
        unit=unit,
        partition=row["partition"],
        at=row["at"],
        event=row["event"],
        passed=passed,
        reasons=[] if passed else codes or [row["reason"]],
        message=str(row["detail"].get("message") or row["detail"].get("explanation") or told),
        num_in=row["num_in"],
        num_good=row["num_good"],
        num_bad=row["num_bad"],
        duration_s=row["duration_s"],
        href=report_href(line, row),
        unit_href=unit_href(line, kind, unit),
    )


def limits(spec: LineSpec) -> dict[str, float]:
    """Limits of the line's feedback, to draw beside its windows."""
    names = ("max_metric_drop", "max_calibration_error", "max_feature_psi", "max_score_psi", "max_drifted_share")
    return {name: float(getattr(spec.feedback, name)) for name in names}


def window(line: str, row: Mapping[str, Any]) -> m.Window:
    """Live judgement of one window."""
    told = row["detail"]
    return m.Window(
        day=row["unit"],
        at=row["at"],
        model_version=told.get("model_version"),
        metrics=told.get("metrics") or {},
        violations=told.get("violations") or [],
        num_scored=row["num_in"],
        num_outcomes=row["num_good"],
        served=told.get("served") or [],
        href=report_href(line, row),
    )


def window_features(spec: LineSpec, stored: Mapping[str, Any]) -> m.WindowFeatures:
    """Drift of every feature in one window, as `feedback.measure` has it."""
    drift, limit = stored["drift"], spec.feedback.max_feature_psi
    moved = sorted(drift["features"].items(), key=lambda each: (-each[1]["psi"], each[0]))
    return m.WindowFeatures(
        day=stored["day"],
        model_version=str(stored["model_version"]),
        score_psi=drift["score_psi"],
        drifted_share=drift["drifted_share"],
        limits=limits(spec),
        features=[
            m.FeatureDrift(feature=name, psi=d["psi"], p_value=d.get("p_value"), drifted=d["psi"] > limit)
            for name, d in moved
        ],
    )


_OUTCOMES: dict[str, Any] = {
    "promoted": "promoted",
    "rolled_back": "rolled_back",
    "scrapped": "refused",
    "failed": "failed",
    "held": "failed",
}


def rollout(line: str, events: Sequence[Mapping[str, Any]]) -> m.Rollout:
    """How one version went into service, from its events in one run, oldest first."""
    ended = next((e for e in reversed(events) if e["event"] in _OUTCOMES), None)
    told: dict[str, Any] = {}
    for e in events:
        told |= {name: value for name, value in e["detail"].items() if value}
    version = events[0]["unit"]
    by = next((str(e["detail"]["by"]) for e in reversed(events) if e["detail"].get("by")), "")
    back = "to" in told
    return m.Rollout(
        version=version,
        order_id=None if back else told.get("order_id"),
        began=events[0]["at"],
        ended=ended["at"] if ended else None,
        outcome=_OUTCOMES[ended["event"]] if ended else "under_way",
        reason=ended["reason"] if ended else None,
        sentence=sentence(ended["reason"]) if ended else None,
        by=by,
        steps=[_step(e) for e in events if e["event"] != "started"],
        run_href=run_href(f"{line}.{'rollback' if back else 'deploy'}", events[0]["run_id"]),
        unit_href=unit_href(line, "model", version),
    )


def _step(e: Mapping[str, Any]) -> m.RolloutStep:
    told = e["detail"]
    if "stage" in told:
        stage = str(told["stage"])
    elif "to" in told:
        stage = "rollback"
    else:
        stage = "approval" if "by" in told else str(e["event"])
    why = told.get("explanation") or told.get("why") or told.get("message") or sentence(e["reason"]) or ""
    return m.RolloutStep(
        at=e["at"],
        stage=stage,
        percent=told.get("percent"),
        action=str(told.get("action") or e["event"]),
        reason=e["reason"],
        explanation=str(why),
    )


# --- units
def label(kind: str, unit: str) -> str:
    """A unit's name for people."""
    if kind == "model":
        return f"version {unit}"
    return f"{kind} {unit[:10] if kind == 'dataset' else unit}"


def unit_summary(line: str, unit: Unit, now: datetime) -> m.UnitSummary:
    """One unit in a list."""
    return m.UnitSummary(
        kind=unit.kind,  # type: ignore[arg-type]
        unit=unit.unit,
        label=label(unit.kind, unit.unit),
        partition=unit.partition,
        state=unit.state,
        good=unit.good,
        at=unit.at or now,
        href=unit_href(line, unit.kind, unit.unit),
    )


def genealogy(
    spec: LineSpec,
    unit: Unit,
    found: Family,
    events: Sequence[Mapping[str, Any]],
    max_nodes: int,
    mlflow_url: str,
) -> m.Genealogy:
    """Where a unit came from and what it touched."""
    nodes = {each.ref: _node(spec.line, each, mlflow_url) for each in found.units}
    return m.Genealogy(
        unit=nodes[unit.ref],
        nodes=list(nodes.values()),
        links=[m.UnitLink(source=":".join(source), target=":".join(target)) for source, target in found.links],
        max_nodes=max_nodes,
        left_out=found.left_out,  # type: ignore[arg-type]
        events=[_unit_event(spec.line, e) for e in events],
    )


def _node(line: str, unit: Unit, mlflow_url: str) -> m.UnitNode:
    row = {"station": "", "unit": unit.unit, "unit_kind": unit.kind, "detail": unit.facts}
    row["station"] = next((s for s, kind in UNIT_KIND.items() if kind == unit.kind), "")
    facts: dict[str, str | int | float | None]
    facts = {name: value for name, value in unit.facts.items() if isinstance(value, str | int | float)}
    landing = unit.kind == "landing"
    return m.UnitNode(
        id=":".join(unit.ref),
        kind=unit.kind,  # type: ignore[arg-type]
        unit=unit.unit,
        label=label(unit.kind, unit.unit),
        at=unit.made_at,
        good=unit.good,
        facts=facts | ({"reason": unit.reason} if unit.reason else {}),
        href=None if landing else unit_href(line, unit.kind, unit.unit),
        report_href=None if landing else report_href(line, row),
        external_href=f"{mlflow_url}/#/models/{line}/versions/{unit.unit}" if unit.kind == "model" else None,
    )


def _unit_event(line: str, e: Mapping[str, Any]) -> m.UnitEvent:
    told = e["detail"]
    return m.UnitEvent(
        id=e["key"],
        at=e["at"],
        station=e["station"],
        event=e["event"],
        reason=e["reason"],
        sentence=sentence(e["reason"]),
        duration_s=e["duration_s"],
        gpu_s=e["gpu_s"],
        energy_kwh=e["energy_kwh"],
        money=e["money"],
        num_in=e["num_in"],
        num_good=e["num_good"],
        num_bad=e["num_bad"],
        run_href=ledger_run_href(line, e["station"], e["run_id"]),
        message=str(told.get("message") or told.get("explanation") or told.get("why") or ""),
    )


def made_or_nothing(found: Made | None) -> Made:
    """What a line made; nothing where it did nothing."""
    return found or Made(Cost(), 0, 0, None)
