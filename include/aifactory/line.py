"""The typed spec of a line: what it makes, from what, how well, and how it is run.

One loader reads `lines/<name>/line.yaml` into frozen pydantic models (`extra="forbid"`), so a typing error in
the file is found by `make check` and shows as an import error that names the file and the field. Every field
says its unit. A new field needs a default, or every line must be changed with it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from aifactory.errors import SpecError
from aifactory.specfile import Name, Share, Spec, read_spec

DAY = "%Y-%m-%d"
"""Format of the partition key."""

_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")

ONE_PROCESS_RECIPES = frozenset({"gradient_boosting"})
"""Recipes that cannot share one training between processes; here, for a recipe's module is heavy to load."""

LONGEST_TASK = timedelta(hours=6)
"""No try of a task may take longer: what holds a worker for longer than that is to go on in another try."""
_POD_MARGIN = timedelta(minutes=5)

Station = Literal["ingest", "train", "deploy", "score", "feedback"]
"""A station of the loop."""

PLANT = "plant"
"""Stands for a line where something concerns the whole plant; no line has this name."""


def _at_most(section: Spec, low: str, high: str) -> None:
    """One field of a section may not exceed another."""
    if getattr(section, low) > getattr(section, high):
        raise ValueError(f"{low} {getattr(section, low)} exceeds {high} {getattr(section, high)}")


class Owner(Spec):
    """Who answers for the line."""

    team: Name = Field(description="Owner that the Airflow UI shows.")
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Where notifications go.")


class Schedule(Spec):
    """When the line runs."""

    cron: str = Field(description="Cron expression of the nightly ingest.")
    timezone: str = Field("UTC", description="IANA time zone of the cron expression.")
    deadline_minutes: int = Field(120, gt=0, description="A stage that runs longer than this is reported, minutes.")
    stage_timeout_minutes: int = Field(
        60, gt=0, le=LONGEST_TASK // timedelta(minutes=1), description="A task that runs longer is stopped, minutes."
    )
    ideal_cycle_s: dict[Station, float] = Field(
        default_factory=dict,
        description="Work of a unit at a station at its best, seconds, which OEE's performance is measured against. "
        "Default: the shortest that was seen in the time looked at.",
    )

    @field_validator("ideal_cycle_s")
    @classmethod
    def _above_zero(cls, value: dict[Station, float]) -> dict[Station, float]:
        if wrong := {station: ideal for station, ideal in value.items() if ideal <= 0}:
            raise ValueError(f"ideal_cycle_s must be above 0, got {wrong}")
        return value

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f"cron needs five fields, got {value!r}")
        if not _ticks(value):
            raise ValueError(f"cron never ticks by {value!r}: a field is out of its range, or no cron")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if not _has_zone(value) and _has_zone("UTC"):
            raise ValueError(f"timezone must be an IANA name such as America/New_York, got {value!r}")
        return value


def _ticks(cron: str) -> bool:
    try:
        from croniter import croniter  # type: ignore[import-untyped]
    except ImportError:  # in the trainer: the specs of its orders were checked where they were made
        return True
    return bool(croniter.is_valid(cron))


def _has_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


class SourceTable(Spec):
    """One table that the outside world lands, one parquet file a partition."""

    key: list[str] = Field(min_length=1, description="Columns that identify a row within the partition.")
    event_time: str = Field(description="Column of the event's instant, UTC.")
    columns: dict[str, Literal["string", "int", "float", "timestamp", "date", "bool"]] = Field(
        min_length=1, description="Every column that the line needs, with its type."
    )
    nullable: list[str] = Field(default_factory=list, description="Columns whose values may be null on a row.")

    @model_validator(mode="after")
    def _columns_exist(self) -> SourceTable:
        for field, names in (("key", self.key), ("event_time", [self.event_time]), ("nullable", self.nullable)):
            unknown = [n for n in names if n not in self.columns]
            if unknown:
                raise ValueError(f"{field} names {unknown}, which `columns` does not declare")
        bad = [n for n in self.columns if not _IDENTIFIER.match(n)]
        if bad:
            raise ValueError(f"columns: {bad} are not plain identifiers")
        return self


class Source(Spec):
    """Where raw material comes from."""

    pattern: str = Field(
        description="Key pattern in the landing bucket, with {table} and {day}, e.g. flights/{table}/{day}.parquet."
    )
    units: Name = Field(description="The table whose rows are the units to be scored; the others only inform it.")
    tables: dict[Name, SourceTable] = Field(min_length=1, description="The landed tables by name.")
    event_time_slack_hours: float = Field(
        30,
        ge=0,
        description="Hours beyond the partition's UTC day that an event time may lie.",
    )
    freshness_hours: float = Field(
        8,
        gt=0,
        description="Hours before the partition's UTC end that the newest event may be.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        missing = [p for p in ("{table}", "{day}") if p not in self.pattern]
        if missing:
            raise ValueError(f"pattern {self.pattern!r} lacks {' and '.join(missing)}")
        if self.units not in self.tables:
            raise ValueError(f"units names {self.units!r}, which `tables` does not declare")
        return self

    def key(self, table: str, day: str) -> str:
        """Key of one landed file."""
        return self.pattern.format(table=table, day=day)


class Quality(Spec):
    """What the gates tolerate."""

    max_quarantine_share: Share = Field(description="Share of rows that may fail; beyond it the batch is held whole.")
    volume_window_days: int = Field(14, ge=1, description="Accepted partitions that volume is compared with, days.")
    volume_min_ratio: float = Field(0.5, gt=0, lt=1, description="Rows ÷ median of the window may not be below this.")
    volume_max_ratio: float = Field(2.0, gt=1, description="Rows ÷ median of the window may not be above this.")


class Dataset(Spec):
    """How dataset versions are made and cut."""

    history_days: int = Field(400, gt=0, description="Newest partitions that training may use, days.")
    min_train_days: int = Field(28, gt=0, description="Fewest partitions that a model is trained on, days.")
    holdout_days: int = Field(7, gt=0, description="Newest partitions held out to judge a challenger, days.")
    min_holdout_days: int = Field(2, gt=0, description="Fewest held-out partitions that a judgement may rest on, days.")
    lookback_days: int = Field(
        1,
        ge=0,
        description="Days that features reach back; a corrected partition rebuilds as many after it.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Dataset:
        _at_most(self, "min_holdout_days", "holdout_days")
        if self.min_train_days + self.holdout_days > self.history_days:
            raise ValueError(
                f"history_days {self.history_days} is less than min_train_days {self.min_train_days} "
                f"plus holdout_days {self.holdout_days}"
            )
        return self


class Recipe(Spec):
    """One recipe of the library with its parameters."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="Checked by the recipe itself.")


class Model(Spec):
    """What is learned from what."""

    recipe: Name = Field(description="The recipe that nightly training uses.")
    recipes: dict[Name, Recipe] = Field(min_length=1, description="Recipes that this line may be trained with.")
    target: str = Field(description="Column of the label, 0 or 1; null where the outcome never came.")
    target_rule: str = Field(description="What the label means, in words, with its unit.")
    entity_key: list[str] = Field(min_length=1, description="Columns that identify a unit within its partition.")
    prediction_time: str = Field(description="Column of the instant at which the unit is scored, UTC.")
    categorical: list[str] = Field(description="Feature columns that are strings.")
    numeric: list[str] = Field(description="Feature columns that are 32-bit floats, missing as NaN.")
    seed: int = Field(2013, ge=0, description="Seed of every random choice in training.")

    @property
    def features(self) -> list[str]:
        """All feature columns, in the order of the model's inputs."""
        return [*self.categorical, *self.numeric]

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe names {self.recipe!r}, which `recipes` does not declare ({sorted(self.recipes)})")
        doubled = sorted({f for f in self.features if self.features.count(f) > 1})
        if doubled:
            raise ValueError(f"categorical and numeric name {doubled} twice")
        if not self.features:
            raise ValueError("categorical and numeric name no feature at all")
        if self.target in self.features:
            raise ValueError(f"target {self.target!r} is also a feature")
        bad = [n for n in [*self.features, self.target, *self.entity_key] if not _IDENTIFIER.match(n)]
        if bad:
            raise ValueError(f"{bad} are not plain identifiers")
        return self


class Compute(Spec):
    """The shape of a training process, and of pods where a cluster is connected."""

    in_pods: list[Literal["build_features", "train", "evaluate", "score"]] = Field(
        default=["train"],
        description="What runs in pods of this shape where a cluster is connected; only training gets the GPUs.",
    )
    cpus: float = Field(2, gt=0, description="CPU cores.")
    memory_gb: float = Field(4, gt=0, description="Memory, GB (10^9 bytes).")
    retry_memory_gb: float | None = Field(
        None, gt=0, description="Memory of the one retry after a pod ran out of it, GB; default twice memory_gb."
    )
    shared_memory_gb: float = Field(
        1, gt=0, description="Shared memory of a pod, for data loaders, GB; part of memory_gb."
    )
    scratch_gb: float = Field(4, gt=0, description="Ephemeral storage of a pod, GB.")
    gpus: int = Field(0, ge=0, description="GPUs.")
    nodes: int = Field(1, ge=1, description="Machines.")
    min_nodes: int | None = Field(
        None,
        ge=1,
        description="Fewest machines that a training goes on with when others are lost, and, where expected_minutes is "
        "told, that it is placed on, being cheaper or all that there is; default nodes.",
    )
    processes: int = Field(
        1, ge=1, description="Training processes of a machine where it has no GPUs; with GPUs it is one per GPU."
    )
    gpu_class: str | None = Field(None, description="Class of GPU, where it matters: a node label's value.")
    node_labels: dict[str, str] = Field(default_factory=dict, description="Labels that a pod's node must have.")
    queue_minutes: float = Field(30, gt=0, description="A pod that finds no place for so long is tried anew, minutes.")
    start_minutes: float = Field(10, gt=0, description="A pod that has a place and does not start for so long, too.")
    timeout_minutes: int = Field(60, gt=0, description="A training process that runs longer is stopped, minutes.")
    expected_minutes: float | None = Field(
        None,
        gt=0,
        description="What a training takes on `nodes` machines of speed 1, minutes; default timeout_minutes.",
    )
    scaling_efficiency: float = Field(
        0.85,
        ge=0.5,
        le=1,
        description="Speed of twice the machines ÷ twice the speed: what fewer are expected to take.",
    )
    flexible_hours: float = Field(
        0, ge=0, le=24 * 7, description="A training may wait so long for cheaper energy or a free machine, hours."
    )
    spot: bool = Field(True, description="Whether its machines may be taken away: it goes on from its checkpoint.")

    @property
    def larger_memory_gb(self) -> float:
        """Memory of the retry after a pod ran out of it, GB."""
        return self.retry_memory_gb or 2 * self.memory_gb

    @property
    def fewest_nodes(self) -> int:
        """Fewest machines that a training goes on with."""
        return self.min_nodes or self.nodes

    @property
    def node_processes(self) -> int:
        """Training processes of one machine."""
        return self.gpus or self.processes

    @property
    def num_processes(self) -> int:
        """Training processes of all machines."""
        return self.nodes * self.node_processes

    @property
    def pod_time(self) -> timedelta:
        """The longest from a pod's making to its end; the first of several, once it has a place, waits for the last."""
        queue_minutes = self.queue_minutes * min(self.nodes, 2)
        return timedelta(minutes=self.timeout_minutes + queue_minutes + self.start_minutes) + _POD_MARGIN

    def one_process_only(self, recipe: str) -> str:
        """Why a recipe cannot be trained by as many processes as this asks for; empty where it can."""
        if self.num_processes == 1 or recipe not in ONE_PROCESS_RECIPES:
            return ""
        return (
            f"recipe {recipe!r} trains in one process, and compute asks for {self.num_processes} "
            f"(nodes {self.nodes}, gpus {self.gpus}, processes {self.processes}); ask for one, or use another recipe"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Compute:
        if self.larger_memory_gb < self.memory_gb:
            raise ValueError(f"retry_memory_gb {self.retry_memory_gb} is less than memory_gb {self.memory_gb}")
        _at_most(self, "shared_memory_gb", "memory_gb")
        if self.expected_minutes and self.expected_minutes > self.timeout_minutes:
            raise ValueError(
                f"expected_minutes {self.expected_minutes:g} exceeds timeout_minutes {self.timeout_minutes}"
            )
        if self.gpu_class and not self.gpus:
            raise ValueError(f"gpu_class is {self.gpu_class!r} but gpus is 0")
        if self.fewest_nodes > self.nodes:
            raise ValueError(f"min_nodes {self.min_nodes} exceeds nodes {self.nodes}")
        minutes = (self.timeout_minutes, self.queue_minutes, self.start_minutes)
        if max(minutes) > LONGEST_TASK / timedelta(minutes=1) or self.pod_time > LONGEST_TASK:
            twice = f", twice as nodes is {self.nodes}," if self.nodes > 1 else ""
            raise ValueError(
                f"timeout_minutes {self.timeout_minutes}, queue_minutes {self.queue_minutes:g}{twice} and "
                f"start_minutes {self.start_minutes:g} are more than the {LONGEST_TASK / timedelta(hours=1):g} h of a "
                f"try; lower timeout_minutes: a training that is stopped goes on from its checkpoint in the next try"
            )
        return self


class Evaluation(Spec):
    """What a challenger must show."""

    metric: Literal["roc_auc", "average_precision"] = Field("roc_auc", description="Primary metric, higher is better.")
    floor: Share = Field(description="Lowest value of the primary metric that is released.")
    required_gain: float = Field(0.0, ge=-0.05, le=0.5, description="Gain over the champion that must be proved.")
    refresh_margin: float = Field(
        0.01, ge=0, le=0.1, description="Loss that a challenger of the champion's own make must prove not to exceed."
    )
    confidence: float = Field(0.9, gt=0.5, lt=1, description="Bootstrap confidence with which the gain must be proved.")
    bootstrap_rounds: int = Field(300, ge=100, description="Resamples of the paired bootstrap.")
    max_calibration_error: Share = Field(0.1, description="Highest expected calibration error.")
    slices: dict[str, Share] = Field(
        default_factory=dict, description="Column -> allowed drop of the metric in a slice."
    )
    min_slice_rows: int = Field(300, gt=0, description="Slices with fewer held-out rows are not judged.")
    max_latency_ms: float = Field(20, gt=0, description="p95 of scoring one row, ms.")
    max_size_mb: float = Field(50, gt=0, description="Size of the package, MB.")


class CanaryStep(Spec):
    """One step of a rollout; the step to 100 % is the promotion."""

    percent: int = Field(
        ge=1, le=99, description="Share of traffic, percent; the champion keeps some, to be compared with."
    )
    bake_minutes: float = Field(ge=0, description="How long the step must hold, minutes.")


class ServingPods(Spec):
    """The pods that serve a line where a cluster does; see docs/serving-on-kubernetes.md."""

    min_replicas: int = Field(2, ge=1, description="Fewest pods of the champion, and of a challenger on trial.")
    max_replicas: int = Field(4, ge=1, description="Most pods of the champion.")
    cpus: float = Field(1, gt=0, description="CPU cores of a pod.")
    memory_gb: float = Field(2, gt=0, description="Memory of a pod, GB (10^9 bytes).")

    @model_validator(mode="after")
    def _ordered(self) -> ServingPods:
        _at_most(self, "min_replicas", "max_replicas")
        return self


class Deployment(Spec):
    """How a candidate goes into service, and what it must show there; see `aifactory.serving.analysis`."""

    online: bool = Field(
        True, description="Whether live requests are served too; otherwise what scores batches switches at once."
    )
    tier: Literal["low", "medium", "high"] = Field("low", description="Risk tier; high asks a person for approval.")
    approval_hours: float = Field(24, gt=0, description="How long an approval may wait, hours.")
    approval_default: Literal["approve", "reject"] = Field(
        "reject", description="What an approval that nobody gave in time counts as."
    )
    load_minutes: float = Field(10, gt=0, description="Loading, warming up and self-test may take so long, minutes.")
    shadow_minutes: float = Field(
        10, ge=0, description="How long a copy of the traffic goes to the challenger first, minutes; 0 for no shadow."
    )
    shadow_min_requests: int = Field(500, ge=1, description="Fewest copied requests that shadow ends well with.")
    canary: list[CanaryStep] = Field(
        default_factory=list, description="Steps of the rollout, rising; none goes from shadow to 100 %."
    )
    min_requests: int = Field(500, ge=1, description="Fewest requests of the challenger that a step ends well with.")
    max_error_excess: Share = Field(
        0.01, description="The challenger's share of failed requests may exceed the champion's by this much, absolute."
    )
    latency_quantile: float = Field(0.95, ge=0.5, lt=1, description="Quantile of the latency that is compared.")
    max_latency_ratio: float = Field(
        1.5, gt=1, description="That quantile of the challenger over the champion's, at most."
    )
    latency_floor_ms: float = Field(5, ge=0, description="A challenger is never too slow below this quantile, ms.")
    max_score_shift: Share = Field(
        0.2,
        description="Largest distance of the two score distributions (Kolmogorov's), or mean difference of the scores "
        "of the same requests in shadow; absolute.",
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="Confidence that a whole rollout neither stops nor goes on by chance."
    )
    patience_minutes: float = Field(
        30, gt=0, description="How long a stage may wait, beyond its own minutes, for traffic or for proof, minutes."
    )
    no_traffic: Literal["promote_after_offline_checks", "hold", "roll_back"] = Field(
        "hold", description="What follows where patience ends with fewer requests than the stage needs."
    )
    rollback_window_hours: float = Field(
        72,
        ge=0,
        description="A breach of feedback's limits on live answers that is known so soon after promotion rolls back by "
        "itself, hours; 0 for never.",
    )
    pods: ServingPods = Field(
        default_factory=lambda: ServingPods.model_validate({}), description="The pods that serve, where a cluster does."
    )

    @property
    def num_stages(self) -> int:
        """Stages in which the challenger is compared with the champion."""
        return (self.shadow_minutes > 0) + len(self.canary)

    @model_validator(mode="after")
    def _consistent(self) -> Deployment:
        steps = [s.percent for s in self.canary]
        if steps != sorted(set(steps)):
            raise ValueError(f"canary steps must rise, got {steps}")
        if self.tier != "low" and not self.num_stages:
            raise ValueError(
                f"tier is {self.tier!r} but shadow_minutes is 0 and canary has no steps: nothing is compared"
            )
        if self.tier == "high" and self.no_traffic == "promote_after_offline_checks":
            raise ValueError("tier is 'high' but no_traffic is 'promote_after_offline_checks': silence proves nothing")
        return self


class Scoring(Spec):
    """What the gate over a partition of predictions demands."""

    min_coverage: Share = Field(0.99, description="Share of the partition's units that must have a prediction.")
    recent_days: int = Field(14, ge=1, description="Recent partitions that scores are compared with, days.")
    max_mean_shift: Share = Field(
        0.35, description="The mean score may differ from the recent partitions' mean by this much, absolute."
    )


class Feedback(Spec):
    """How the model in service is judged, and when it is remade."""

    label_delay_hours: float = Field(
        24, ge=0, description="Outcomes are complete so long after the partition ends, hours."
    )
    window_days: int = Field(1, ge=1, description="Partitions that one window of live judgement spans, days.")
    rule_violations: int = Field(2, ge=1, description="Violated windows ...")
    rule_windows: int = Field(5, ge=1, description="... of this many newest ones call for a retrain.")
    max_feature_psi: float = Field(0.25, gt=0, description="PSI from which a feature counts as drifted.")
    max_score_psi: float = Field(0.25, gt=0, description="PSI of the score that violates a window.")
    max_drifted_share: Share = Field(0.3, description="Share of features over max_feature_psi that violates a window.")
    max_metric_drop: Share = Field(0.05, description="Drop of the live metric that violates a window.")
    max_calibration_error: Share = Field(0.1, description="Live expected calibration error that violates a window.")
    min_live_outcomes: int = Field(
        500, ge=1, description="Fewest answers to callers with an outcome that a window of live answers is judged by."
    )
    cadence_days: int = Field(7, ge=1, description="A champion whose training data ends longer ago is remade, days.")
    cooldown_days: int = Field(2, ge=0, description="Days without a drift-called retrain after the last one.")

    @property
    def verdict_hours(self) -> float:
        """Hours, at least, until the first full window of a new champion can be judged, hours."""
        return 24 * (self.window_days - 1) + self.label_delay_hours

    @model_validator(mode="after")
    def _rule(self) -> Feedback:
        _at_most(self, "rule_violations", "rule_windows")
        return self


class Edge(Spec):
    """What the int8 package for devices may lose against the model that it is made from; see `aifactory.edge`."""

    max_metric_drop: float = Field(
        0.005, ge=0, le=0.1, description="Drop of evaluation.metric on the held-out days, absolute."
    )
    max_calibration_rise: Share = Field(0.01, description="Rise of the expected calibration error there, absolute.")
    max_score_difference: float = Field(
        0.05, gt=0, le=0.5, description="Largest difference of a score there, and of the golden rows on a device."
    )
    max_size_ratio: float = Field(0.7, gt=0, le=1, description="Size of the int8 graph ÷ size of the full graph.")
    max_latency_ms: float = Field(
        5, gt=0, allow_inf_nan=False, description="p95 of scoring one row where it is made, ms."
    )


class Residency(Spec):
    """Where data and training may be."""

    regions: list[str] = Field(default_factory=lambda: ["local"], min_length=1, description="Allowed regions.")


class LineSpec(Spec):
    """A production line, whole."""

    line: Name = Field(description="Name of the line and of its folder.")
    title: str = Field(description="Name for people.")
    description: str = Field(description="What the line makes, for whom.")
    owner: Owner
    tags: list[str] = Field(default_factory=list, description="Tags in the Airflow UI.")
    schedule: Schedule
    source: Source
    quality: Quality
    dataset: Dataset
    model: Model
    compute: Compute
    evaluation: Evaluation
    deployment: Deployment
    scoring: Scoring
    feedback: Feedback
    residency: Residency
    edge: Edge | None = Field(None, description="Limits of an int8 package for devices; none makes no such package.")

    @model_validator(mode="after")
    def _across_sections(self) -> LineSpec:
        if self.line == PLANT:
            raise ValueError(f"line is {PLANT!r}, the name of what concerns every line; choose another")
        unknown = [c for c in self.evaluation.slices if c not in self.model.categorical]
        if unknown:
            raise ValueError(f"evaluation.slices names {unknown}, which model.categorical does not declare")
        waits = 60 * self.compute.flexible_hours
        if waits and waits + self.compute.timeout_minutes > self.schedule.deadline_minutes:
            raise ValueError(
                f"compute.flexible_hours {self.compute.flexible_hours:g} and compute.timeout_minutes "
                f"{self.compute.timeout_minutes} do not fit into schedule.deadline_minutes "
                f"{self.schedule.deadline_minutes}: every wait would be reported as late"
            )
        if self.feedback.cadence_days > self.dataset.history_days:
            raise ValueError(
                f"feedback.cadence_days {self.feedback.cadence_days} exceeds "
                f"dataset.history_days {self.dataset.history_days}"
            )
        soon, first = self.deployment.rollback_window_hours, self.feedback.verdict_hours
        if self.deployment.online and 0 < soon <= first:
            raise ValueError(
                f"deployment.rollback_window_hours {soon:g} ends before feedback can judge a window of live answers "
                f"(window_days {self.feedback.window_days}, label_delay_hours {self.feedback.label_delay_hours:g}: "
                f"{first:g} hours): make it longer, or 0 for no rollback by itself"
            )
        if refused := self.compute.one_process_only(self.model.recipe):
            raise ValueError(refused)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the spec's content, first 16 hex digits: names the recipe that a model was made by."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def load_line(folder: Path) -> LineSpec:
    """Read and validate `<folder>/line.yaml`.

    Raises:
        SpecError: names the file, and each wrong field with its value.
    """
    path = folder / "line.yaml"
    spec = read_spec(path, LineSpec, "every line folder needs a line.yaml")
    if spec.line != folder.name:
        raise SpecError(f"{path}: line is {spec.line!r} but the folder is {folder.name!r}; they must agree")
    return spec


@lru_cache(maxsize=1024)
def _read_once(folder: Path, _written_ns: int) -> LineSpec:
    return load_line(folder)


def lines_under(lines_dir: Path) -> tuple[tuple[LineSpec, ...], dict[str, SpecError]]:
    """Every valid line under a folder, sorted by name, and by name of its folder what is wrong with each other.

    Each is read once a process, and again when it was written.
    """
    good, bad = [], {}
    for path in sorted(lines_dir.glob("*/line.yaml")):
        try:
            good.append(_read_once(path.parent, path.stat().st_mtime_ns if path.exists() else 0))
        except SpecError as error:
            bad[path.parent.name] = error
    return tuple(good), bad


def find_line(lines_dir: Path, name: str) -> LineSpec:
    """One line by name.

    Raises:
        SpecError: there is no such line.
    """
    if not (lines_dir / name / "line.yaml").exists():
        known = sorted(p.parent.name for p in lines_dir.glob("*/line.yaml"))
        raise SpecError(f"no line {name!r} under {lines_dir}; there are {known}")
    return load_line(lines_dir / name)


def main() -> int:
    """Validate every line, the inventory and the routes of notices; the exit status is the number of bad ones."""
    from aifactory.capacity.inventory import load_inventory
    from aifactory.notices import load_routes
    from aifactory.settings import load_settings

    good: list[LineSpec] = []
    bad = 0

    def told(check: Callable[[], str]) -> None:
        nonlocal bad
        try:
            sys.stdout.write(f"{check()}\n")
        except SpecError as error:
            bad += 1
            sys.stderr.write(f"{error}\n")

    def line(folder: Path) -> str:
        good.append(spec := load_line(folder))
        return f"{spec.line}: valid, digest {spec.digest}"

    settings = load_settings()
    if inventory := settings.capacity_file:
        told(lambda: f"{inventory}: valid, {len(load_inventory(inventory).clusters)} clusters")
    for path in sorted(settings.lines_dir.glob("*/line.yaml")):
        told(partial(line, path.parent))
    if routes := settings.notices_file:
        told(lambda: f"{routes}: valid, {len(load_routes(routes, good).routes)} routes")
    return bad


if __name__ == "__main__":
    sys.exit(main())
