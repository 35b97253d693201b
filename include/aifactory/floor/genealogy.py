"""Units of a line, and what went into what, from the ledger.

    landing ─▶ batch ─▶ dataset ─▶ order ─▶ model ─▶ predictions ─▶ window
                 └──────────────────────────────────────▲

A dataset version holds every batch that was accepted before it; an order learns from one version; the predictions of a
day are of that day's batch. So a model comes from many batches, and a batch touches all models made since.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aifactory.floor.history import BREAKDOWNS, rows
from aifactory.ledger import BAD, GOOD
from aifactory.line import LineSpec

if TYPE_CHECKING:
    from sqlalchemy import Connection

KINDS = ("landing", "batch", "dataset", "order", "model", "predictions", "window")
"""In the order of the loop."""

Ref = tuple[str, str]
"""(kind, unit)."""

_TOLD = (
    ("order", "dataset", "dataset_revision"),
    ("model", "order", "order_id"),
    ("predictions", "model", "model_version"),
    ("window", "model", "model_version"),
)
"""What a unit's own events tell of what it came from: its kind, the other's kind, name of the fact."""

_ENDS = frozenset(kind.value for kind in (*GOOD, *BAD))
_GOOD = frozenset(kind.value for kind in GOOD)


@dataclass
class Unit:
    """One unit: its last event, and what its events tell of it."""

    kind: str
    unit: str
    id: int = 0
    at: datetime | None = None
    made_at: datetime | None = None
    first_good: int | None = None
    state: str = ""
    good: bool | None = None
    partition: str | None = None
    reason: str | None = None
    run_id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> Ref:
        """(kind, unit)."""
        return self.kind, self.unit


@dataclass(frozen=True)
class Family:
    """Units around one: all that went into it and all that it went into."""

    units: list[Unit]
    links: list[tuple[Ref, Ref]]
    left_out: dict[str, int]


def units_of(connection: Connection, spec: LineSpec) -> dict[Ref, Unit]:
    """Every unit of a line, from one statement: the last event of each, and what was told of it."""
    found = rows(
        connection,
        """
        WITH refused AS (
            -- passed by the raw gate, and its features refused before any dataset version held it
            SELECT unit AS refused_unit, max(id) AS refused_id FROM production_event
            WHERE line = :line AND station = 'ingest' AND unit_kind = 'batch' AND event = 'held'
              AND detail @> '{"in_dataset": false}'
            GROUP BY unit
        ), last AS (
            SELECT max(id) AS id, min(at) AS made_at,
                   min(id) FILTER (WHERE event IN ('passed', 'reworked') AND id > coalesce(refused_id, 0)) AS first_good
            FROM production_event LEFT JOIN refused ON unit_kind = 'batch' AND unit = refused_unit
            WHERE line = :line AND unit_kind IN ('batch', 'dataset', 'model', 'predictions', 'window')
              AND station IN ('ingest', 'train', 'deploy', 'score', 'feedback')
              AND event NOT IN ('overridden', 'acknowledged')
              AND NOT (station = 'feedback' AND unit_kind = 'model')
              AND (reason IS NULL OR reason <> ALL(:breakdowns))
            GROUP BY station, unit_kind, unit
        )
        SELECT id, station, unit_kind, unit, event, reason, at, "partition", run_id, num_in, num_good, num_bad, made_at,
               first_good, CASE
                   WHEN unit_kind = 'batch'
                       THEN jsonb_build_object('etags', detail -> 'etags', 'docs', detail -> 'docs')
                   WHEN station IN ('train', 'deploy') OR unit_kind = 'dataset' THEN detail - 'metrics' - 'telemetry'
                   ELSE jsonb_build_object('model_version', detail -> 'model_version')
               END AS detail
        FROM last JOIN production_event USING (id) WHERE line = :line ORDER BY id
        """,
        line=spec.line,
        breakdowns=BREAKDOWNS,
    )
    units: dict[Ref, Unit] = {}
    for row in found:
        _take(units, row)
    for unit in [u for u in units.values() if u.kind == "batch"]:
        for table, etag in (unit.facts.get("etags") or {}).items():
            landed = Unit("landing", spec.source.key(table, unit.unit), state="landed", partition=unit.unit)
            landed.facts = {"table": table, "etag": etag}
            units[landed.ref] = landed
    return units


def family(units: Mapping[Ref, Unit], spec: LineSpec, ref: Ref, max_nodes: int) -> Family:
    """The genealogy of one unit, both ways; of each kind on each side the newest `max_nodes`."""
    links = _Links(units, spec)
    kept: set[Ref] = {ref}
    left_out: defaultdict[str, int] = defaultdict(int)
    for side in (_reached(ref, links.into), _reached(ref, links.out)):
        of_kind: defaultdict[str, list[Ref]] = defaultdict(list)
        for each in side - {ref}:
            of_kind[each[0]].append(each)
        for kind, refs in of_kind.items():
            newest = sorted(refs, key=lambda r: (units[r].partition or "", units[r].id), reverse=True)
            kept |= set(newest[:max_nodes])
            left_out[kind] += max(0, len(newest) - max_nodes)
    shown = sorted((units[r] for r in kept), key=lambda u: (KINDS.index(u.kind), u.partition or "", u.id, u.unit))
    between = [(source.ref, target) for source in shown for target in links.out(source.ref) if target in kept]
    return Family(shown, between, {kind: num for kind, num in left_out.items() if num})


def _take(units: dict[Ref, Unit], row: Mapping[str, Any]) -> None:
    """Add what one row tells of its unit; a part of an order tells of the order."""
    kind, name, part = row["unit_kind"], row["unit"], ""
    if row["station"] == "train":
        name, _, part = name.partition("/")
        kind = "order"
    unit, event = units.setdefault((kind, name), Unit(kind, name)), row["event"]
    if event == "decided" and row["detail"].get("stage") == "promoted":
        event = "promoted"  # a way back to a version says no more of it than that
    if not part or event in _ENDS - _GOOD or unit.good is None:
        unit.state = event if not part or event not in _GOOD else "started"
        unit.good = None if event not in _ENDS or (part and event in _GOOD) else event in _GOOD
        unit.reason = row["reason"]
    unit.id, unit.at, unit.run_id = row["id"], row["at"], row["run_id"] or unit.run_id
    unit.made_at, unit.first_good = unit.made_at or row["made_at"], row["first_good"]
    unit.partition = row["partition"] or unit.partition
    unit.facts |= {name: row[name] for name in ("num_in", "num_good", "num_bad") if row[name]}
    unit.facts |= {name: value for name, value in row["detail"].items() if value is not None}
    if kind == "order" and not part and row["detail"].get("version"):
        version = str(row["detail"]["version"])
        first = Unit("model", version, id=row["id"], at=row["at"], made_at=row["at"], state="registered")
        made = units.setdefault(first.ref, first)
        made.partition = row["partition"]
        told = {fact: row["detail"].get(fact) for fact in ("trained_until", "dataset_revision")}
        made.facts |= {"order_id": name, **{fact: value for fact, value in told.items() if value is not None}}
    if kind == "model" and row["detail"].get("trained_until"):
        unit.partition = row["detail"]["trained_until"]


class _Links:
    """What went into what. That of the batches of a long history is worked out where it is asked for, and not kept."""

    def __init__(self, units: Mapping[Ref, Unit], spec: LineSpec) -> None:
        self._history_days = spec.dataset.history_days
        self._units = units
        of_kind: defaultdict[str, list[Unit]] = defaultdict(list)
        for unit in units.values():
            of_kind[unit.kind].append(unit)
        self._batches = sorted((b for b in of_kind["batch"] if b.first_good), key=lambda b: b.unit)
        self._days = [b.unit for b in self._batches]
        learned = {order.facts.get("dataset_revision") for order in of_kind["order"]}
        self._learned = {d.ref: d for d in of_kind["dataset"] if d.unit in learned}
        self._into: defaultdict[Ref, list[Ref]] = defaultdict(list)
        self._out: defaultdict[Ref, list[Ref]] = defaultdict(list)
        for source, target in _told(of_kind, spec):
            if source in units and target in units:
                self._into[target].append(source)
                self._out[source].append(target)

    def into(self, ref: Ref) -> list[Ref]:
        """What went into a unit."""
        version = self._learned.get(ref)
        held = [b.ref for b in self._batches if self._holds(version, b)] if version else []
        return list(dict.fromkeys([*self._into[ref], *held]))

    def out(self, ref: Ref) -> list[Ref]:
        """What a unit went into."""
        batch = self._units[ref] if ref[0] == "batch" else None
        held = [r for r, version in self._learned.items() if batch and self._holds(version, batch)]
        return list(dict.fromkeys([*self._out[ref], *held]))

    def _holds(self, version: Unit, batch: Unit) -> bool:
        """Whether a version that was learned from holds a batch: accepted before it, and of its newest days."""
        upper = bisect_right(self._days, str(version.partition))
        oldest = self._days[max(0, upper - self._history_days)] if self._days else ""
        if batch.first_good is None or batch.first_good >= version.id:
            return False
        return oldest <= batch.unit <= str(version.partition)


def _told(of_kind: Mapping[str, Sequence[Unit]], spec: LineSpec) -> Iterator[tuple[Ref, Ref]]:
    """The links that units themselves tell of; either end may not be on the record."""
    for kind, parent, told in _TOLD:
        yield from (((parent, str(unit.facts.get(told))), unit.ref) for unit in of_kind[kind])
    for landed in of_kind["landing"]:
        yield landed.ref, ("batch", str(landed.partition))
    of_run: defaultdict[str, list[Ref]] = defaultdict(list)
    for batch in of_kind["batch"]:
        of_run[batch.run_id].append(batch.ref)
    for version in of_kind["dataset"]:
        yield from ((batch, version.ref) for batch in of_run[version.run_id])
    for scored in of_kind["predictions"]:
        yield ("batch", scored.unit), scored.ref
    for window in of_kind["window"]:
        last = date.fromisoformat(window.unit)
        for n in range(spec.feedback.window_days):
            yield ("predictions", (last - timedelta(days=n)).isoformat()), window.ref


def _reached(ref: Ref, links: Callable[[Ref], list[Ref]]) -> set[Ref]:
    """Everything that can be reached from a unit by links of one direction."""
    seen, todo = {ref}, deque([ref])
    while todo:
        for each in links(todo.popleft()):
            if each not in seen:
                seen.add(each)
                todo.append(each)
    return seen
