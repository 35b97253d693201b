"""The factory floor in the Airflow UI: its page, and its API, see `floormodels` for the routes.

Mounted by the plugin under `/floor`. Whoever is logged in to Airflow gets the page; a line is there for those who may
read all of its stage DAGs. Only the word of a person on quarantined rows and on what waits changes anything, needs the
right to edit the line's ingest DAG, and goes on the production record with its author.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from airflow.api_fastapi.core_api.security import GetUserDep, requires_authenticated
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from aifactory import quarantine
from aifactory.errors import FactoryError, InfrastructureFault, NotFound, SpecError
from aifactory.factory import Factory, open_factory
from aifactory.floor import genealogy, history, overview, quarantined, waiting
from aifactory.floor.plan import plan_of
from aifactory.kpi import cost, leadtime
from aifactory.kpi.record import STATIONS
from aifactory.line import LineSpec, lines_under
from aifactory.settings import REPOSITORY
from aifactory.store import Conflict
from orchestration import floormodels as m
from orchestration import floorviews as views
from orchestration import metrics
from orchestration.floorairflow import AirflowSide, dag_href
from orchestration.links import report_url
from orchestration.reports import to_login

DIST = REPOSITORY / "plugins" / "floor" / "dist"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; "
        # The hash of nothing: the page makes empty style elements and fills them by script
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
NUM_WAITING_SHOWN = 3
MAX_NODES = 40

Days = Annotated[int, Query(ge=1, le=1100, description="Days back from now.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
_STATION = {kind: station for station, kind in views.UNIT_KIND.items()} | {"landing": "ingest", "dataset": "ingest"}
_RANK: dict[m.LineState, int] = {"attention": 0, "running": 1, "idle": 2, "never_run": 3, "paused": 4}

router = APIRouter(prefix="/api/v1")


# --- the application
def create_app() -> FastAPI:
    """The application; every route of it asks for Airflow's own login, or, of the metrics, for their token."""
    app = FastAPI(
        title="Factory floor",
        description=m.__doc__ or "",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    login = [Depends(requires_authenticated())]
    app.include_router(router, dependencies=login)
    app.include_router(metrics.router)
    app.add_api_route("/api/openapi.json", app.openapi, dependencies=login, include_in_schema=False)
    app.add_api_route("/{path:path}", page, dependencies=login, response_class=Response, include_in_schema=False)
    app.add_exception_handler(401, to_login)
    app.add_exception_handler(NotFound, _answer(404))
    app.add_exception_handler(SpecError, _answer(500))
    app.add_exception_handler(Conflict, _answer(409, "somebody else changed it meanwhile; read it again"))
    app.add_exception_handler(InfrastructureFault, _answer(503, "a store does not answer; see `make status`"))
    return app


def page(path: str) -> Response:
    """A file of the built page; the page itself where the path names none, for its own routes."""
    if "\x00" in path:
        raise HTTPException(404, "there is no such page")
    wanted = (DIST / path).resolve()
    inside = wanted.is_relative_to(DIST.resolve()) and wanted.is_file()
    if path.startswith("api/") or (not inside and Path(path).suffix):
        raise HTTPException(404, "there is no such page")
    if not (DIST / "index.html").is_file():
        raise HTTPException(404, "the floor's page is not built; run `make floor`")
    forever = "public, max-age=31536000, immutable" if inside and path.startswith("assets/") else "no-cache"
    return FileResponse(wanted if inside else DIST / "index.html", headers=HEADERS | {"Cache-Control": forever})


def _answer(status: int, told: str = "") -> Any:
    """An exception handler; without a text of its own it says what the error says, without its reason code."""

    def answer(request: Request, error: FactoryError) -> Response:
        return JSONResponse({"detail": told or error.message}, status)

    return answer


# --- what every route needs
@lru_cache(maxsize=1)
def _factory() -> Factory:
    return open_factory(pooled=True)


def factory() -> Factory:
    """The stores, opened once."""
    return _factory()


def airflow_side() -> AirflowSide:
    """Airflow, as the floor sees it."""
    return AirflowSide()


FactoryDep = Annotated[Factory, Depends(factory)]
AirflowDep = Annotated[AirflowSide, Depends(airflow_side)]


def visible_line(line: str, user: GetUserDep, f: FactoryDep, airflow: AirflowDep) -> LineSpec:
    """The line of the path.

    Raises:
        SpecError: it is not valid.
        HTTPException: 404: there is none, or the user may not see it, which must look the same.
    """
    good, bad = lines_under(f.settings.lines_dir)
    spec = next((s for s in good if s.line == line), None)
    if line in bad and airflow.may_read_of(user, [line]):
        raise SpecError(f"{line}/line.yaml: {_wrong(f, line, bad[line])}")
    if spec is None or not airflow.may_read(user, [line]):
        raise HTTPException(404, f"there is no line {line!r} that you may see")
    return spec


LineDep = Annotated[LineSpec, Depends(visible_line)]


def editor(spec: LineDep, user: GetUserDep, airflow: AirflowDep) -> str:
    """Name of the user, who may edit the line.

    Raises:
        HTTPException: 403.
    """
    if not airflow.may_edit(user, [spec.line]):
        raise HTTPException(403, f"this needs the right to edit the DAG {spec.line}.ingest")
    return str(user.get_name())


EditorDep = Annotated[str, Depends(editor)]


def _span(days: int) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now - timedelta(days=days), now


def _encoded(place: object) -> str:
    return base64.urlsafe_b64encode(str(place).encode()).decode()


def _decoded(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode()
    except ValueError as error:
        raise HTTPException(422, "cursor is none that this API gave") from error


def _number(cursor: str | None) -> int | None:
    place = _decoded(cursor)
    if place is not None and not place.isdecimal():
        raise HTTPException(422, "cursor is none that this API gave")
    return None if place is None else int(place)


def _cut(found: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """The page of a query that asked for one more, and whether there is more."""
    return found[:limit], len(found) > limit


# --- all lines
@router.get("/overview")
def get_overview(
    user: GetUserDep,
    f: FactoryDep,
    airflow: AirflowDep,
    days: Annotated[int, Query(ge=1, le=92)] = 7,
    state: m.LineState | None = None,
    q: Annotated[str, Query(max_length=100, description="Part of the name, title or team.")] = "",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> m.Overview:
    """The floor: a card a line, most urgent first."""
    specs = _visible(user, f, airflow)
    return _overview(
        specs,
        airflow.may_edit(user, specs),
        f,
        airflow,
        invalid=_invalid(user, f, airflow),
        days=days,
        state=state,
        q=q,
        page=(limit, cursor),
    )


@router.get("/attention")
def get_attention(
    user: GetUserDep, f: FactoryDep, airflow: AirflowDep, limit: Limit = 50, cursor: Cursor = None
) -> m.Page[m.Attention]:
    """What waits for a person, of every line, newest first."""
    return _attention_page(list(_visible(user, f, airflow)), user, f, airflow, limit, cursor)


# --- one line
@router.get("/lines/{line}")
def get_line(spec: LineDep, user: GetUserDep, f: FactoryDep, airflow: AirflowDep, days: Days = 30) -> m.LinePage:
    """One line: its card, the stations of the loop, all KPIs."""
    begin, now = _span(days)
    editable = airflow.may_edit(user, [spec.line])
    [card] = _overview({spec.line: spec}, editable, f, airflow, days=min(days, 92), page=(1, None)).lines
    with f.ledger.reading() as connection:
        events = history.events_between(connection, spec.line, begin, now)
        lives = leadtime.lead_times(history.lives_of_releases(connection, spec.line, begin, now))
    shown = views.kpis(
        spec, plan_of(spec), cost.prices_of(f.settings), events, lives, airflow.dags([spec.line]), (begin, now)
    )
    return m.LinePage(
        at=now,
        description=spec.description,
        schedule=f"{spec.schedule.cron} {spec.schedule.timezone}",
        card=card,
        kpis=shown,
    )


@router.get("/lines/{line}/trends")
def get_trends(spec: LineDep, f: FactoryDep, days: Days = 90, bucket: Literal["day", "week"] = "week") -> m.Trends:
    """KPIs a day or week, oldest first."""
    begin, now = _span(days)
    with f.ledger.reading() as connection:
        events = history.events_between(connection, spec.line, begin, now)
    prices = cost.prices_of(f.settings)
    width = timedelta(days=1 if bucket == "day" else 7)
    points = views.trend_points(events, plan_of(spec), prices, (begin, now), width)
    return m.Trends(bucket=bucket, currency=prices.currency, points=points)


@router.get("/lines/{line}/gates")
def get_gates(
    spec: LineDep,
    f: FactoryDep,
    station: m.Station | None = None,
    passed: bool | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> m.Page[m.GateResult]:
    """What the gates said, newest first."""
    with f.ledger.reading() as connection:
        found = history.gate_results(
            connection, spec.line, station=station, passed=passed, before=_number(cursor), limit=limit + 1
        )
    shown, more = _cut(found, limit)
    items = [views.gate_result(spec.line, row) for row in shown]
    return m.Page(items=items, next_cursor=_encoded(shown[-1]["id"]) if more else None)


@router.get("/lines/{line}/windows")
def get_windows(spec: LineDep, f: FactoryDep, limit: Limit = 90, cursor: Cursor = None) -> m.Windows:
    """Live metrics and drift, newest first."""
    with f.ledger.reading() as connection:
        found = history.windows(connection, spec.line, before=_number(cursor), limit=limit + 1)
    shown, more = _cut(found, limit)
    return m.Windows(
        items=[views.window(spec.line, row) for row in shown],
        next_cursor=_encoded(shown[-1]["id"]) if more else None,
        metric=spec.evaluation.metric,
        limits=views.limits(spec),
    )


@router.get("/lines/{line}/windows/{day}")
def get_window(spec: LineDep, f: FactoryDep, day: str) -> m.WindowFeatures:
    """Drift of every feature in one window."""
    from aifactory.stages.feedback import window_key

    return views.window_features(spec, f.store.get_json(window_key(spec.line, _day(day))))


@router.get("/lines/{line}/rollouts")
def get_rollouts(spec: LineDep, f: FactoryDep, limit: Limit = 20, cursor: Cursor = None) -> m.Page[m.Rollout]:
    """How versions went into service, or did not, newest first."""
    with f.ledger.reading() as connection:
        found = history.rollouts(connection, spec.line, before=_number(cursor), limit=limit + 1)
    shown, more = _cut(found, limit)
    items = [views.rollout(spec.line, events) for events in shown]
    return m.Page(items=items, next_cursor=_encoded(shown[-1][-1]["id"]) if more else None)


@router.get("/lines/{line}/pareto")
def get_pareto(spec: LineDep, f: FactoryDep, days: Days = 90) -> m.Pareto:
    """Reasons of scrap, holds and faults."""
    with f.ledger.reading() as connection:
        return views.pareto_of(history.events_between(connection, spec.line, *_span(days), quarantined=True))


@router.get("/lines/{line}/lead-times")
def get_lead_times(spec: LineDep, f: FactoryDep, days: Days = 365) -> m.LeadTimes:
    """Of every release, from landed data to all traffic, in parts."""
    with f.ledger.reading() as connection:
        lives = leadtime.lead_times(history.lives_of_releases(connection, spec.line, *_span(days)))
    items = [views.lead_time(spec.line, each) for each in lives]
    return m.LeadTimes(summary=views.lead_summary(lives), items=items)


# --- units
@router.get("/lines/{line}/units")
def get_units(
    spec: LineDep,
    f: FactoryDep,
    kind: m.UnitKind | None = None,
    q: Annotated[str, Query(max_length=100, description="Part of the unit's id.")] = "",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> m.Page[m.UnitSummary]:
    """Units of the line, newest first; landing files only where asked for."""
    with f.ledger.reading() as connection:
        units = genealogy.units_of(connection, spec).values()
    before = _number(cursor)
    wanted = [u for u in units if kind == u.kind or (kind is None and u.kind != "landing")]
    found = sorted((u for u in wanted if q in u.unit), key=lambda u: (u.id, u.kind, u.unit), reverse=True)
    start = before or 0
    shown, more = _cut(found[start : start + limit + 1], limit)
    now = datetime.now(UTC)
    items = [views.unit_summary(spec.line, each, now) for each in shown]
    return m.Page(items=items, next_cursor=_encoded(start + limit) if more else None)


@router.get("/lines/{line}/units/{kind}/{unit:path}")
def get_unit(spec: LineDep, f: FactoryDep, kind: m.UnitKind, unit: str) -> m.Genealogy:
    """Where a unit came from, what it touched, what happened to it."""
    with f.ledger.reading() as connection:
        units = genealogy.units_of(connection, spec)
        wanted = units.get((kind, unit))
        if wanted is None:
            raise NotFound(f"{spec.line} has no {kind} {unit!r}")
        events = history.of_unit(connection, spec.line, _STATION[kind], "model" if kind == "order" else kind, unit)
    found = genealogy.family(units, spec, wanted.ref, MAX_NODES)
    return views.genealogy(spec, wanted, found, events, MAX_NODES, f.settings.mlflow_ui_url)


@router.get("/lines/{line}/runs")
def get_run_units(spec: LineDep, f: FactoryDep, airflow: AirflowDep, dag_id: str, run_id: str) -> m.Page[m.UnitSummary]:
    """Units that an Airflow run of the line worked on."""
    station = dag_id.removeprefix(f"{spec.line}.")
    station = "deploy" if station == "rollback" else station
    if station not in STATIONS:
        raise HTTPException(404, f"{dag_id!r} is no stage of {spec.line}")
    runs = airflow.ledger_runs(dag_id, run_id)
    with f.ledger.reading() as connection:
        found = history.of_runs(connection, spec.line, [station], runs)
        units = genealogy.units_of(connection, spec)
    refs = dict.fromkeys(views.floor_unit(row["station"], row["unit_kind"], row["unit"]) for row in found)
    now = datetime.now(UTC)
    items = [views.unit_summary(spec.line, units[ref], now) for ref in refs if ref in units]
    return m.Page(items=items, next_cursor=None)


# --- what waits
@router.get("/lines/{line}/attention")
def get_line_attention(
    spec: LineDep, user: GetUserDep, f: FactoryDep, airflow: AirflowDep, limit: Limit = 50, cursor: Cursor = None
) -> m.Page[m.Attention]:
    """What waits for a person on this line, newest first."""
    return _attention_page([spec.line], user, f, airflow, limit, cursor)


@router.post("/lines/{line}/acknowledgements")
def acknowledge(spec: LineDep, f: FactoryDep, by: EditorDep, said: m.Acknowledge) -> m.Acknowledged:
    """Say that you have seen something that waits; it goes on the record."""
    word = waiting.acknowledge(f.ledger, spec.line, said.id, by=by, why=said.why, at=datetime.now(UTC))
    return m.Acknowledged(id=said.id, by=by, at=word.at)


# --- quarantine
@router.get("/lines/{line}/quarantine")
def get_quarantine(
    spec: LineDep, f: FactoryDep, limit: Limit = 50, cursor: Cursor = None
) -> m.Page[m.QuarantinedBatch]:
    """Days that have rows in quarantine, newest first; a day is on one page with all of its tables."""
    with f.ledger.reading() as connection:
        found = quarantined.days(connection, spec.line, before=_decoded(cursor), limit=limit + 1)
    shown, more = _cut(found, limit)
    items = [batch for row in shown for batch in _batches(f, spec, row)]
    return m.Page(items=items, next_cursor=_encoded(shown[-1]["unit"]) if more else None)


@router.get("/lines/{line}/quarantine/{table}/{day}")
def get_quarantined_rows(
    spec: LineDep,
    f: FactoryDep,
    table: str,
    day: str,
    reason: str | None = None,
    decision: Literal["pending", "released", "dropped"] | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> m.Page[m.QuarantinedRow]:
    """Rows of one day in quarantine, by their position in the landed file."""
    found = quarantined.rows_of(f, spec, _table(spec, table), _day(day), reason=reason, decision=decision)
    after = _number(cursor)
    left = [row for row in found if after is None or row.row_number > after]
    shown, more = _cut(left, limit)
    items = [m.QuarantinedRow(**asdict(row), sentence=views.sentence(row.reason) or "") for row in shown]
    return m.Page(items=items, next_cursor=_encoded(shown[-1].row_number) if more else None)


@router.post("/lines/{line}/quarantine/{table}/{day}/decisions")
def decide(spec: LineDep, f: FactoryDep, by: EditorDep, table: str, day: str, said: m.Decide) -> m.Decided:
    """Release rows, or drop them; it goes on the record."""
    held = quarantine.read(f, spec, _table(spec, table), _day(day))
    if held is None:
        raise NotFound(f"nothing of {table} of {day} is in quarantine (any more)")
    if held.column("source_etag")[0].as_py() != said.source_etag:
        raise HTTPException(409, f"another file of {table} has landed for {day} since; read its rows again")
    act = quarantine.release if said.decision == "released" else quarantine.drop
    try:
        num = act(f, spec, table, day, said.row_numbers, by=by, why=said.why)
    except ValueError as error:
        raise HTTPException(409, str(error)) from error
    released = f"Run {spec.line}.ingest again for {day}: it accepts the rows."
    return m.Decided(
        num_rows=num,
        decision=said.decision,
        by=by,
        next_step=released if said.decision == "released" else "Nothing more: the rows stay out.",
        ingest_href=dag_href(f"{spec.line}.ingest"),
    )


# --- inside
def _visible(user: Any, f: Factory, airflow: AirflowSide) -> dict[str, LineSpec]:
    specs = {spec.line: spec for spec in lines_under(f.settings.lines_dir)[0]}
    seen = airflow.may_read(user, specs)
    return {line: spec for line, spec in specs.items() if line in seen}


def _invalid(user: Any, f: Factory, airflow: AirflowSide) -> list[m.InvalidLine]:
    _, bad = lines_under(f.settings.lines_dir)
    return [
        m.InvalidLine(folder=folder, message=_wrong(f, folder, bad[folder]))
        for folder in sorted(airflow.may_read_of(user, bad))
    ]


def _wrong(f: Factory, folder: str, error: SpecError) -> str:
    """What is wrong with a line, without where the plant keeps its files."""
    return error.message.removeprefix(f"{f.settings.lines_dir / folder / 'line.yaml'}: ")


def _overview(
    specs: dict[str, LineSpec],
    editable: set[str],
    f: Factory,
    airflow: AirflowSide,
    *,
    days: int,
    page: tuple[int, str | None],
    invalid: Sequence[m.InvalidLine] = (),
    state: m.LineState | None = None,
    q: str = "",
) -> m.Overview:
    limit, cursor = page
    begin, now = _span(days)
    prices = cost.prices_of(f.settings)
    dags, approvals = airflow.dags(list(specs)), airflow.approvals(list(specs))
    with f.ledger.reading() as connection:
        made = overview.made(connection, {line: plan_of(spec) for line, spec in specs.items()}, begin, now, prices)
        wip = overview.wip(connection, list(specs), now)
        last = overview.last_events(connection, list(specs))
        waits = _attention(approvals, waiting.waiting(connection, list(specs), now), editable)
        of_line = {line: [w for w in waits if w.line == line] for line in specs}
        states = {line: views.state_of(dags, line, len(of_line[line]), ever=line in last) for line in specs}
        order = sorted(
            (line for line, spec in specs.items() if state in (None, states[line]) and _matches(spec, q)),
            key=lambda line: (_RANK[states[line]], line),
        )
        start = _number(cursor) or 0
        shown, more = _cut(order[start : start + limit + 1], limit)
        champions = overview.champions(connection, shown)
        lights = overview.gate_lights(connection, shown)
        points = overview.sparklines(connection, {line: specs[line].evaluation.metric for line in shown})
    total = sum((each.cost for each in made.values()), cost.Cost())
    num_by_state = Counter(states.values())
    cards = [
        m.LineCard(
            line=line,
            title=specs[line].title,
            team=specs[line].owner.team,
            email=specs[line].owner.email,
            tier=specs[line].deployment.tier,
            state=states[line],
            running=_running(dags, line),
            champion=views.champion(champions.get(line), now),
            metric=specs[line].evaluation.metric,
            sparkline=[m.MetricPoint(**point) for point in points.get(line, [])],
            gates=[views.light(specs[line], station, lights.get((line, station))) for station in STATIONS],
            wip=wip.get(line, 0),
            num_waiting=len(of_line[line]),
            waiting=of_line[line][:NUM_WAITING_SHOWN],
            last_at=last.get(line),
            num_good_models=(did := views.made_or_nothing(made.get(line))).num_good_models,
            num_predictions=did.num_predictions,
            bottleneck=views.bottleneck(did.bottleneck),
            cost=views.money(did.cost, prices.currency),
            may_edit=line in editable,
            href=views.line_href(line),
        )
        for line in shown
    ]
    return m.Overview(
        at=now,
        days=days,
        totals=m.PlantTotals(
            num_lines=len(specs),
            num_by_state={name: num_by_state[name] for name in _RANK},
            num_waiting=len(waits),
            wip=sum(wip.values()),
            num_good_models=sum(each.num_good_models for each in made.values()),
            num_predictions=sum(each.num_predictions for each in made.values()),
            cost=views.money(total, prices.currency),
        ),
        invalid=list(invalid),
        lines=cards,
        next_cursor=_encoded(start + limit) if more else None,
    )


def _matches(spec: LineSpec, q: str) -> bool:
    return q.casefold() in f"{spec.line} {spec.title} {spec.owner.team}".casefold()


def _running(dags: Any, line: str) -> list[Any]:
    return [s for s in STATIONS if f"{line}.{s}" in dags and dags[f"{line}.{s}"].num_running]


def _attention(approvals: Any, found: Sequence[waiting.Waiting], editable: set[str]) -> list[m.Attention]:
    mine = [views.waits_for_approval(each) for each in approvals]
    mine += [views.waits(each, may_edit=each.event.line in editable) for each in found]
    return sorted(mine, key=lambda each: (each.at, each.id), reverse=True)


def _attention_page(
    lines: list[str], user: Any, f: Factory, airflow: AirflowSide, limit: int, cursor: str | None
) -> m.Page[m.Attention]:
    with f.ledger.reading() as connection:
        found = waiting.waiting(connection, lines, datetime.now(UTC))
    everything = _attention(airflow.approvals(lines), found, airflow.may_edit(user, lines))
    start = _number(cursor) or 0
    shown, more = _cut(everything[start : start + limit + 1], limit)
    return m.Page(items=list(shown), next_cursor=_encoded(start + limit) if more else None)


def _batches(f: Factory, spec: LineSpec, row: Any) -> list[m.QuarantinedBatch]:
    """What one day has in quarantine, by table; of a day that is held whole the store knows the tables."""
    told, held = row["detail"], row["event"] == "held"
    if held:
        from aifactory.stages.ingest import verdict_key

        sources = f.store.get_json(verdict_key(spec, row["unit"]))["sources"]
        counts: dict[str, tuple[int, dict[str, int]]]
        counts = {table: (int(source["num_rows"]), {}) for table, source in sources.items()}
    else:
        named = told.get("quarantined") or {}
        counts = {table: (sum(reasons.values()), reasons) for table, reasons in named.items()}
    return [
        m.QuarantinedBatch(
            day=row["unit"],
            table=table,
            num_rows=num,
            reasons=reasons,
            held=held,
            at=row["at"],
            href=f"{views.line_href(spec.line)}/quarantine/{table}/{row['unit']}",
            docs_href=report_url(told["docs"]) if told.get("docs") else None,
        )
        for table, (num, reasons) in sorted(counts.items())
    ]


def _table(spec: LineSpec, table: str) -> str:
    if table not in spec.source.tables:
        raise HTTPException(404, f"{spec.line} has no table {table!r}; there are {sorted(spec.source.tables)}")
    return table


def _day(day: str) -> str:
    try:
        return datetime.strptime(day, "%Y-%m-%d").date().isoformat()  # noqa: DTZ007 - a day has no zone
    except ValueError as error:
        raise HTTPException(422, f"{day!r} is no day; give YYYY-MM-DD") from error
