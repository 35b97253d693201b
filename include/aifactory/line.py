"""The typed spec of a line: what it makes, from what, how well, and how it is run.

One loader reads `lines/<name>/line.yaml` into frozen pydantic models (`extra="forbid"`), so a typing error in
the file is found by `make check` and shows as an import error that names the file and the field. Every field
says its unit. A new field needs a default, or every line must be changed with it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aifactory.errors import SpecError
from aifactory.specfile import Name, Share, Spec, read_spec

DAY = "%Y-%m-%d"
"""Format of the partition key."""

_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")


class Owner(Spec):
    """Who answers for the line."""

    team: Name = Field(description="Owner that the Airflow UI shows.")
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Where notifications go.")


class Schedule(Spec):
    """When the line runs."""

    cron: str = Field(description="Cron expression of the nightly ingest.")
    timezone: str = Field("UTC", description="IANA time zone of the cron expression.")
    deadline_minutes: int = Field(120, gt=0, description="A stage that runs longer than this is reported, minutes.")
    stage_timeout_minutes: int = Field(60, gt=0, description="A task that runs longer than this is stopped, minutes.")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f"cron needs five fields, got {value!r}")
        return value


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
        if self.min_holdout_days > self.holdout_days:
            raise ValueError(f"min_holdout_days {self.min_holdout_days} exceeds holdout_days {self.holdout_days}")
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
    gpu_class: str | None = Field(None, description="Class of GPU, where it matters: a node label's value.")
    node_labels: dict[str, str] = Field(default_factory=dict, description="Labels that a pod's node must have.")
    queue_minutes: float = Field(30, gt=0, description="A pod that finds no place for so long is tried anew, minutes.")
    start_minutes: float = Field(10, gt=0, description="A pod that has a place and does not start for so long, too.")
    timeout_minutes: int = Field(60, gt=0, description="A training process that runs longer is stopped, minutes.")

    @property
    def larger_memory_gb(self) -> float:
        """Memory of the retry after a pod ran out of it, GB."""
        return self.retry_memory_gb or 2 * self.memory_gb

    @model_validator(mode="after")
    def _consistent(self) -> Compute:
        if self.larger_memory_gb < self.memory_gb:
            raise ValueError(f"retry_memory_gb {self.retry_memory_gb} is less than memory_gb {self.memory_gb}")
        if self.shared_memory_gb > self.memory_gb:
            raise ValueError(f"shared_memory_gb {self.shared_memory_gb} exceeds memory_gb {self.memory_gb}")
        if self.gpu_class and not self.gpus:
            raise ValueError(f"gpu_class is {self.gpu_class!r} but gpus is 0")
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
    """One step of a rollout."""

    percent: int = Field(ge=1, le=100, description="Share of traffic, percent.")
    bake_minutes: float = Field(ge=0, description="How long the step must hold, minutes.")


class Deployment(Spec):
    """How a candidate goes into service."""

    tier: Literal["low", "medium", "high"] = Field("low", description="Risk tier; high asks a person for approval.")
    approval_hours: float = Field(24, gt=0, description="How long an approval may wait, hours.")
    canary: list[CanaryStep] = Field(default_factory=list, description="Steps of the rollout, rising.")

    @model_validator(mode="after")
    def _rising(self) -> Deployment:
        steps = [s.percent for s in self.canary]
        if steps != sorted(set(steps)):
            raise ValueError(f"canary steps must rise, got {steps}")
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
    cadence_days: int = Field(7, ge=1, description="A champion whose training data ends longer ago is remade, days.")
    cooldown_days: int = Field(2, ge=0, description="Days without a drift-called retrain after the last one.")

    @model_validator(mode="after")
    def _rule(self) -> Feedback:
        if self.rule_violations > self.rule_windows:
            raise ValueError(f"rule_violations {self.rule_violations} exceeds rule_windows {self.rule_windows}")
        return self


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

    @model_validator(mode="after")
    def _across_sections(self) -> LineSpec:
        unknown = [c for c in self.evaluation.slices if c not in self.model.categorical]
        if unknown:
            raise ValueError(f"evaluation.slices names {unknown}, which model.categorical does not declare")
        if self.feedback.cadence_days > self.dataset.history_days:
            raise ValueError(
                f"feedback.cadence_days {self.feedback.cadence_days} exceeds "
                f"dataset.history_days {self.dataset.history_days}"
            )
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


@lru_cache(maxsize=64)
def _load_all(lines_dir: Path) -> tuple[LineSpec, ...]:
    folders = sorted(p for p in lines_dir.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    return tuple(load_line(folder) for folder in folders)


def load_lines(lines_dir: Path) -> tuple[LineSpec, ...]:
    """Every line under a folder, sorted by name; each is read once a process."""
    return _load_all(lines_dir)


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
    """Validate every line and say so; the exit status is the number of bad ones. What `make check` calls."""
    from aifactory.settings import load_settings

    bad = 0
    for folder in sorted(p.parent for p in load_settings().lines_dir.glob("*/line.yaml")):
        try:
            spec = load_line(folder)
        except SpecError as error:
            bad += 1
            sys.stderr.write(f"{error}\n")
        else:
            sys.stdout.write(f"{spec.line}: valid, digest {spec.digest}\n")
    return bad


if __name__ == "__main__":
    sys.exit(main())
