"""What the floor's API answers: one model for each thing on the page, and the list of its routes.

Everything is under `/floor/api/v1`, JSON, behind Airflow's login (401 without); OpenAPI at `/floor/api/openapi.json`.
A line is seen by those who may read all of its stage DAGs; for everybody else it is not there (404). What changes
something needs the right to edit the line's ingest DAG (403), and a reason in words; it is written to the ledger.

| route | answers |
|---|---|
| GET `/overview?days=7&state=&q=&limit=50&cursor=` | `Overview`: a card a line, most urgent first |
| GET `/attention?limit=50&cursor=` | `Page[Attention]`: what waits for a person, of every line, newest first |
| GET `/lines/{line}?days=30` | `LinePage`: card, stations of the loop, all KPIs |
| GET `/lines/{line}/trends?days=90&bucket=week` | `Trends`: KPIs a day or week, for charts |
| GET `/lines/{line}/gates?station=&passed=&limit=50&cursor=` | `Page[GateResult]`, newest first |
| GET `/lines/{line}/windows?limit=90&cursor=` | `Windows`: live metrics and drift, newest first, with the limits |
| GET `/lines/{line}/windows/{day}` | `WindowFeatures`: drift of every feature in one window |
| GET `/lines/{line}/rollouts?limit=20&cursor=` | `Page[Rollout]`, newest first, each with its steps |
| GET `/lines/{line}/pareto?days=90` | `Pareto`: reasons of scrap, holds and faults |
| GET `/lines/{line}/lead-times?days=365` | `LeadTimes`: of every release, landed data to all traffic, in parts |
| GET `/lines/{line}/units?kind=&q=&limit=50&cursor=` | `Page[UnitSummary]`, newest first |
| GET `/lines/{line}/units/{kind}/{unit}` | `Genealogy`: where it came from, what it touched, what happened to it |
| GET `/lines/{line}/runs?dag_id=&run_id=` | `Page[UnitSummary]`: units that an Airflow run worked on (its tab) |
| GET `/lines/{line}/attention?limit=50&cursor=` | `Page[Attention]` |
| GET `/lines/{line}/quarantine?limit=50&cursor=` | `Page[QuarantinedBatch]`, newest day first |
| GET `/lines/{line}/quarantine/{table}/{day}?reason=&decision=&limit=50&cursor=` | `Page[QuarantinedRow]` |
| POST `/lines/{line}/quarantine/{table}/{day}/decisions` with `Decide` | `Decided` |
| POST `/lines/{line}/acknowledgements` with `Acknowledge` | `Acknowledged` |

Pages: `limit` is 1 to 200; `next_cursor` is opaque, and null on the last page. `days` counts back from now, 1 to 1100.
Times are ISO 8601 in UTC. Durations end in `_s` and are seconds. Shares are 0..1. A figure is null where nothing is
known. A `href` is a path on this host: of a report, a page of Airflow, or of this API; null where there is none.
Errors are `{"detail": "..."}`: 401, 403, 404, 409 (somebody was faster: read again), 422, 500 (of a line whose
`line.yaml` is not valid: what is wrong), 503 (a store is away).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Station = Literal["ingest", "train", "deploy", "score", "feedback"]
UnitKind = Literal["landing", "batch", "dataset", "order", "model", "predictions", "window"]
LineState = Literal["running", "attention", "idle", "paused", "never_run"]
"""attention: something waits for a person; running: a stage runs now; idle: neither; paused: its ingest DAG is."""
Share = Annotated[float, Field(ge=0, le=1)]
Item = TypeVar("Item")


class FloorModel(BaseModel):
    """Base of every answer: frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(FloorModel, Generic[Item]):
    """Some of many."""

    items: list[Item]
    next_cursor: str | None = Field(None, description="Ask again with it for what follows; null: there is no more.")


# --- the overview
class Money(FloorModel):
    """What work cost. Seconds are measured; money and energy are measured where a meter stood, else estimated."""

    currency: str = Field(description="ISO 4217 code of all money.")
    money: float
    gpu_s: float = Field(ge=0, description="GPU-seconds.")
    work_s: float = Field(ge=0, description="Wall seconds of work.")
    energy_kwh: float = Field(ge=0)
    estimated_share: Share | None = Field(
        description="Share of the money that was estimated from seconds and the plant's prices; null: no money."
    )


class Champion(FloorModel):
    """The version in service."""

    version: str
    since: datetime = Field(description="When it took all traffic, or was put back.")
    age_s: float = Field(ge=0, description="Seconds since then.")
    trained_until: str | None = Field(description="Last day that it learned, YYYY-MM-DD.")
    order_id: str | None
    dataset_revision: str | None
    put_back: bool = Field(description="Whether an operator's rollback put it back.")


class MetricPoint(FloorModel):
    """The live metric of one window: a point of the sparkline."""

    day: str = Field(description="Last day of the window, YYYY-MM-DD.")
    value: float | None = Field(description="The line's primary metric; null where a window has one class alone.")
    model_version: str | None
    broken: bool = Field(description="Whether the window broke a limit.")


class GateLight(FloorModel):
    """The newest word of the gate of one station: raw rows, evaluation, rollout, predictions, live window."""

    station: Station
    light: Literal["green", "amber", "red", "off"] = Field(
        description="green: the newest unit passed; amber: passed with rows in quarantine, a refused challenger or a "
        "window over a limit; red: held, failed by a defect or rolled back; off: no unit yet."
    )
    unit: str | None
    at: datetime | None
    reason: str | None = Field(description="Reason code.")
    sentence: str | None = Field(description="The reason in words.")
    href: str | None = Field(description="The gate's report.")


class Attention(FloorModel):
    """Something that waits for a person. It goes when it is resolved, or acknowledged."""

    id: str = Field(description="What an acknowledgement names.")
    line: str
    kind: Literal["approval", "held", "failed", "rolled_back", "late"] = Field(
        description="approval: a release waits for a word; held: a gate holds a unit; failed: a unit failed and was "
        "not made since; rolled_back: a release was taken back; late: a stage missed its deadline."
    )
    station: Station
    unit_kind: str
    unit: str
    at: datetime
    reason: str | None
    sentence: str = Field(description="What is the matter, in words.")
    message: str = Field(description="The details, with numbers; may be empty.")
    href: str | None = Field(description="Where a person can do something about it.")
    may_acknowledge: bool = Field(description="Whether you may; an approval is given in Airflow, never acknowledged.")


class Bottleneck(FloorModel):
    """The station with the highest load."""

    station: Station
    load: float = Field(ge=0, description="Its effective cycle ÷ its takt: above 1 it cannot keep up.")


class LineCard(FloorModel):
    """One line at a glance."""

    line: str
    title: str
    team: str = Field(description="The owner.")
    email: str
    tier: Literal["low", "medium", "high"]
    state: LineState
    running: list[Station] = Field(description="Stations with a running DAG run.")
    champion: Champion | None = Field(description="null: no model is in service yet.")
    metric: str = Field(description="Name of the live metric, e.g. roc_auc.")
    sparkline: list[MetricPoint] = Field(description="The newest windows (30 at most), oldest first.")
    gates: list[GateLight] = Field(description="Of every station, in the order of the loop.")
    wip: int = Field(ge=0, description="Work in progress: units that were started at a station and did not end there.")
    num_waiting: int = Field(ge=0, description="How much waits for a person.")
    waiting: list[Attention] = Field(description="The newest of it, 3 at most.")
    last_at: datetime | None = Field(description="When anything happened last.")
    num_good_models: int = Field(ge=0, description="Models that took all traffic in the days asked for.")
    num_predictions: int = Field(ge=0, description="Good predictions of batches in the days asked for.")
    bottleneck: Bottleneck | None
    cost: Money
    may_edit: bool = Field(description="Whether you may release, drop and acknowledge.")
    href: str = Field(description="Of its `LinePage` in this API.")


class PlantTotals(FloorModel):
    """All lines that you see, whatever page and filter."""

    num_lines: int
    num_by_state: dict[LineState, int]
    num_waiting: int
    wip: int
    num_good_models: int
    num_predictions: int
    cost: Money


class InvalidLine(FloorModel):
    """A line whose `line.yaml` is not valid: it has no DAGs and no card until that is mended."""

    folder: str = Field(description="Name of its folder among the lines.")
    message: str = Field(description="Each wrong field of its line.yaml, with its value.")


class Overview(FloorModel):
    """The floor."""

    at: datetime = Field(description="When this was read.")
    days: int = Field(description="Days that counts and cost span.")
    totals: PlantTotals
    invalid: list[InvalidLine] = Field(description="Lines without a valid spec, whatever page and filter.")
    lines: list[LineCard] = Field(description="attention first, then running, idle, never_run, paused; then by name.")
    next_cursor: str | None


# --- KPIs
class Span(FloorModel):
    """A duration that may be known only from below."""

    value_s: float | None = Field(description="Seconds; null: not known.")
    more_than: bool = Field(description="Whether it is more than the value: the time watched ended first.")
    num: int = Field(ge=0, description="Failures, or repairs, that it rests on.")


class Oee(FloorModel):
    """Overall equipment effectiveness of one station (ISO 22400-2); never averaged over stations."""

    availability: Share | None = Field(description="Work time ÷ (work time + downtime by infrastructure).")
    performance: float | None = Field(
        ge=0, description="Ideal cycle times units ÷ work time. Above 1 the ideal is wrong; it is shown, not clipped."
    )
    quality: Share | None = Field(description="Good units ÷ units.")
    oee: float | None = Field(description="Product of the three.")
    ideal_is_wrong: bool = Field(description="Whether performance is above 1: correct the declared ideal cycle.")
    ideal_cycle_s: float | None
    ideal_source: Literal["declared", "demonstrated"] | None = Field(
        description="declared in line.yaml (schedule.ideal_cycle_s), or demonstrated: the shortest good cycle seen."
    )


class StationKpis(FloorModel):
    """One station of the loop: its live state, its counts, and its OEE."""

    station: Station
    dag_id: str
    state: Literal["running", "queued", "down", "idle", "paused"] = Field(
        description="running, queued, paused: as Airflow says of its DAG; down: its last unit failed by infrastructure."
    )
    href: str = Field(description="Its DAG in Airflow.")
    last_run_href: str | None
    last_at: datetime | None
    unit_kind: UnitKind = Field(description="What it makes; units are counted by it.")
    num_units: int = Field(ge=0, description="Units that ended here, each once.")
    num_good: int = Field(ge=0)
    num_first_pass: int = Field(ge=0, description="Units that were good at once: never refused, failed or reworked.")
    num_rework: int = Field(ge=0)
    num_scrap: int = Field(ge=0, description="Units whose last word is bad.")
    num_rows_in: int = Field(ge=0)
    num_rows_good: int = Field(ge=0)
    num_rows_bad: int = Field(ge=0)
    wip: int = Field(ge=0)
    first_pass_yield: Share | None
    row_yield: Share | None = Field(description="Good rows ÷ rows in, of each unit's last end.")
    work_s: float = Field(ge=0, description="Seconds of work that were not lost to infrastructure.")
    down_s: float = Field(ge=0, description="Seconds lost to infrastructure: failed tries, and until work went on.")
    cycle_s: float | None = Field(description="Effective cycle: (work + down) ÷ good units.")
    takt_s: float | None = Field(description="Seconds in which the plan asks for one good unit.")
    load: float | None = Field(description="cycle ÷ takt.")
    oee: Oee


class Quantiles(FloorModel):
    """Of several durations; null where there is none."""

    num: int = Field(ge=0)
    p50_s: float | None
    p95_s: float | None


class LeadTimeSummary(FloorModel):
    """Lead time of releases, from landed data to 100 % of traffic, and its four parts."""

    total: Quantiles
    queue: Quantiles
    touch: Quantiles
    approval: Quantiles
    bake: Quantiles


class Dora(FloorModel):
    """The four DORA measures, for models."""

    releases_per_week: float = Field(ge=0, description="Deployment frequency: releases to all traffic a week.")
    lead_time: Quantiles = Field(description="Lead time for changes: landed data to all traffic.")
    change_failure_rate: Share | None = Field(description="Releases that were rolled back later ÷ releases.")
    time_to_restore: Span = Field(description="From a breach of a live limit to healthy traffic, mean.")


class Throughput(FloorModel):
    """What the line made."""

    num_good_models: int = Field(ge=0, description="Models that took all traffic.")
    num_datasets: int = Field(ge=0, description="Dataset versions.")
    num_predictions: int = Field(ge=0, description="Good predictions of batches.")
    num_tokens: int | None = Field(description="Tokens, where the line makes them.")


class Kpis(FloorModel):
    """All KPIs of a line over the days asked for."""

    begin: datetime
    end: datetime
    stations: list[StationKpis] = Field(description="In the order of the loop.")
    bottleneck: Bottleneck | None
    throughput: Throughput
    wip: int = Field(ge=0)
    rolled_yield: Share | None = Field(description="Product of the first-pass yields of the stations that made units.")
    lead_time: LeadTimeSummary
    dora: Dora
    line_mtbf: Span = Field(description="Mean time between infrastructure failures of the line.")
    line_mttr: Span = Field(description="Mean time to repair them.")
    model_mtbf: Span = Field(description="Mean time between breaches of the live limits.")
    model_mttr: Span = Field(description="Mean time from a breach to healthy traffic.")
    cost: Money
    money_per_good_model: float | None
    gpu_s_per_good_model: float | None
    energy_kwh_per_good_model: float | None
    money_per_thousand_predictions: float | None


class LinePage(FloorModel):
    """One line."""

    at: datetime
    description: str
    schedule: str = Field(description="Cron expression and time zone of the nightly ingest.")
    card: LineCard
    kpis: Kpis


class TrendPoint(FloorModel):
    """KPIs of one day or week; see `Kpis` and `StationKpis` for what each is."""

    begin: datetime
    num_good_models: int
    num_predictions: int
    rolled_yield: Share | None
    work_s: dict[Station, float]
    first_pass_yield: dict[Station, float | None]
    oee: dict[Station, float | None]
    down_s: float
    money: float
    energy_kwh: float
    num_scrap: int
    num_rework: int


class Trends(FloorModel):
    """KPIs over time, oldest first; buckets in which nothing happened are there too."""

    bucket: Literal["day", "week"]
    currency: str
    points: list[TrendPoint]


# --- panels of the line page
class GateResult(FloorModel):
    """What a gate said of one unit."""

    station: Station
    unit_kind: str
    unit: str
    partition: str | None
    at: datetime
    event: str = Field(description="passed, reworked, held, failed, scrapped, promoted or rolled_back.")
    passed: bool
    reasons: list[str] = Field(description="Reason codes, the first first; empty where it passed.")
    message: str
    num_in: int
    num_good: int
    num_bad: int
    duration_s: float
    href: str | None = Field(description="Data Docs or the evaluation report.")
    unit_href: str = Field(description="Its genealogy in this API.")


class Window(FloorModel):
    """Live judgement of one window."""

    day: str
    at: datetime
    model_version: str | None
    metrics: dict[str, float | None] = Field(description="As at evaluation: roc_auc, calibration_error, ...")
    violations: list[str] = Field(description="Limits that it broke, in words with numbers.")
    num_scored: int
    num_outcomes: int
    served: list[dict[str, Any]] = Field(
        description="What was served live, by version and slot: model_version, slot, shadow, num_scored, num_outcomes, "
        "metrics."
    )
    href: str | None = Field(description="Its report, with drift plots.")


class Windows(Page[Window]):
    """Windows, newest first, and the limits to draw beside them."""

    metric: str = Field(description="The primary metric.")
    limits: dict[str, float] = Field(
        description="max_metric_drop, max_calibration_error, max_feature_psi, max_score_psi, max_drifted_share."
    )


class FeatureDrift(FloorModel):
    """Drift of one feature from what the model learned."""

    feature: str
    psi: float | None = Field(description="Population stability index.")
    p_value: float | None = Field(description="Of a Kolmogorov-Smirnov or chi-square test.")
    drifted: bool = Field(description="Whether psi is over max_feature_psi.")


class WindowFeatures(FloorModel):
    """Drift within one window, the features that moved most first."""

    day: str
    model_version: str
    score_psi: float | None
    drifted_share: Share
    limits: dict[str, float]
    features: list[FeatureDrift]


class RolloutStep(FloorModel):
    """One decision of a rollout."""

    at: datetime
    stage: str = Field(description="loading, self_tested, shadow, canary, promoted, rolled_back; approval; rollback.")
    percent: int | None = Field(description="The challenger's share of traffic from now on.")
    action: str
    reason: str | None
    explanation: str


class Rollout(FloorModel):
    """How one version went into service, or did not."""

    version: str
    order_id: str | None
    began: datetime
    ended: datetime | None = Field(description="null: it is under way.")
    outcome: Literal["promoted", "rolled_back", "refused", "failed", "under_way"] = Field(
        description="rolled_back: taken back in its canary, or by an operator; refused: not approved."
    )
    reason: str | None
    sentence: str | None
    by: str = Field(description="The person, where one decided; else empty.")
    steps: list[RolloutStep] = Field(description="Oldest first.")
    run_href: str | None = Field(description="The run in Airflow.")
    unit_href: str


class ParetoItem(FloorModel):
    """One reason, and how much it cost."""

    reason: str
    sentence: str
    kind: Literal["defect", "infrastructure"] = Field(
        description="A defect counts against yield, infrastructure against availability."
    )
    num_events: int
    num_units: int = Field(description="Units that it stopped, each once.")
    num_scrap: int = Field(description="Of these: good never after.")
    num_rework: int = Field(description="Of these: good later.")
    num_rows: int = Field(description="Rows that were bad for it, in units whose last end it is.")
    lost_s: float = Field(description="Seconds of work that ended in it.")
    stations: dict[Station, int] = Field(description="Events by station.")
    cumulative_share: Share = Field(description="Of events, from the top down to this one.")


class Pareto(FloorModel):
    """Scrap and rework by reason, most frequent first; and rows in quarantine by reason."""

    num_events: int
    items: list[ParetoItem]
    quarantined: dict[str, int] = Field(description="Reason code -> rows that gates put in quarantine, most first.")


class LeadTime(FloorModel):
    """One release; queue + touch + approval + bake = total."""

    version: str
    order_id: str | None
    landed: datetime = Field(
        description="When all files of the newest day that the model learned first lay there, by the store's clock; "
        "where that is not on the record, when ingest first began on them."
    )
    released: datetime = Field(description="When it had all traffic.")
    total_s: float
    queue_s: float = Field(description="Nobody worked on it; also while it lay in the landing zone.")
    touch_s: float = Field(description="A stage worked on it.")
    approval_s: float = Field(description="It waited for a person.")
    bake_s: float = Field(description="It was tried in shadow and canary.")
    unit_href: str


class LeadTimes(FloorModel):
    """Lead times of releases, oldest first."""

    summary: LeadTimeSummary
    items: list[LeadTime]


# --- units
class UnitSummary(FloorModel):
    """One production unit."""

    kind: UnitKind
    unit: str
    label: str = Field(description="For people, e.g. `version 7`.")
    partition: str | None
    state: str = Field(description="Its last event: started, passed, held, scrapped, promoted, ...")
    good: bool | None = Field(description="null: not decided.")
    at: datetime = Field(description="When that was.")
    href: str = Field(description="Its genealogy in this API.")


class UnitNode(FloorModel):
    """One unit in a genealogy."""

    id: str = Field(description="`kind:unit`; what links name.")
    kind: UnitKind
    unit: str
    label: str
    at: datetime | None = Field(description="When it was made; null: not on the record.")
    good: bool | None
    facts: dict[str, str | int | float | None] = Field(
        description="What is known: num_in, num_good, revision, etag, reason, ..."
    )
    href: str | None = Field(description="Its genealogy in this API; null for a landing file.")
    report_href: str | None
    external_href: str | None = Field(description="In MLflow, for a model: a link for people, maybe to another port.")


class UnitLink(FloorModel):
    """One unit went into another."""

    source: str = Field(description="Node id.")
    target: str = Field(description="Node id.")


class UnitEvent(FloorModel):
    """Something that happened to a unit, as the ledger has it."""

    id: str
    at: datetime
    station: str
    event: str
    reason: str | None
    sentence: str | None
    duration_s: float
    gpu_s: float
    energy_kwh: float
    money: float
    num_in: int
    num_good: int
    num_bad: int
    run_href: str | None
    message: str


class Genealogy(FloorModel):
    """Where a unit came from and what it touched: landing → batch → dataset → order → model → predictions → window.

    `nodes` has the unit, all that went into it and all that it went into. Where a kind has more than `max_nodes` on one
    side, the newest are there and `left_out` says how many are not.
    """

    unit: UnitNode
    nodes: list[UnitNode] = Field(description="In the order of the loop, then by unit; the unit itself too.")
    links: list[UnitLink]
    max_nodes: int
    left_out: dict[UnitKind, int]
    events: list[UnitEvent] = Field(description="What happened to the unit, oldest first.")


# --- quarantine
class QuarantinedBatch(FloorModel):
    """Rows of one day that a gate did not let through, of one table."""

    day: str
    table: str
    num_rows: int = Field(description="Rows in quarantine, whatever was decided on them.")
    reasons: dict[str, int] = Field(description="`CODE (expectation)` -> rows; empty where the day is held whole.")
    held: bool = Field(description="Whether the whole day is held, and not these rows alone.")
    at: datetime
    href: str = Field(description="Of its rows in this API.")
    docs_href: str | None = Field(description="Data Docs.")


class QuarantinedRow(FloorModel):
    """One row in quarantine."""

    row_number: int = Field(ge=0, description="Its position in the landed file.")
    row: dict[str, Any] = Field(description="The row as it landed.")
    reason: str
    sentence: str
    expectation: str = Field(description="What it does not meet.")
    decision: Literal["pending", "released", "dropped"]
    by: str | None = Field(description="Who decided.")
    decided_at: datetime | None
    source_uri: str
    source_etag: str


class Decide(FloorModel):
    """An operator's word on rows in quarantine."""

    decision: Literal["released", "dropped"] = Field(
        description="released: the day's next ingest accepts them; dropped: they stay out for good."
    )
    row_numbers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=10_000)
    source_etag: str = Field(description="Of the rows that you saw; 409 where another file has landed since.")
    why: str = Field(min_length=3, max_length=1000, description="In words; it goes on the record with your name.")


class Decided(FloorModel):
    """What became of it."""

    num_rows: int
    decision: Literal["released", "dropped"]
    by: str
    next_step: str = Field(description="What makes it effective, in words.")
    ingest_href: str = Field(description="Where to run the day again in Airflow.")


class Acknowledge(FloorModel):
    """A person has seen something that waited."""

    id: str = Field(description="Of an `Attention`.")
    why: str = Field(min_length=3, max_length=1000, description="What was found or done, in words.")


class Acknowledged(FloorModel):
    """It is on the record."""

    id: str
    by: str
    at: datetime
