"""Ingest: raw material through the raw gate, features through the feature gate, then a dataset version.

Three tasks, each idempotent per partition: what is written depends on what has landed alone.

`gate_raw` reads the landed tables of its days, judges all rows by one suite a table, and splits: accepted rows,
quarantined rows, days held whole. `build_features` builds the partitions, and those after them that look back on
them. `commit_dataset` makes the version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aifactory import features, gates, jobs, landing, quarantine
from aifactory.errors import GateRefused, InfrastructureFault, LandingDefect, NotFound
from aifactory.expectations import DAY_COLUMN, ROW_COLUMN
from aifactory.factory import Factory
from aifactory.features import NUM_CONNECTIONS
from aifactory.gates import Verdict
from aifactory.jobs import CarryOut
from aifactory.landing import LandedTable
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from aifactory.ledger import EventKind, ProductionEvent

log = logging.getLogger(__name__)

FEATURE_STEP = "build_features"
"""Tells in the detail of an event of a batch that the feature gate said it, not the raw gate."""


@dataclass(frozen=True)
class _Gate:
    """What judging needs, opened once."""

    f: Factory
    spec: LineSpec
    suites: ModuleType
    con: duckdb.DuckDBPyConnection


@dataclass
class _Batch:
    """One partition on its way through the raw gate."""

    day: str
    landed: dict[str, LandedTable] = field(default_factory=dict)
    failed: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)
    etags: dict[str, str | None] = field(default_factory=dict)
    """Content of each landed file, readable or not."""
    written_at: list[datetime | None] = field(default_factory=list)
    """When each was written; None of one that is not there."""
    reasons: list[tuple[ReasonCode, str]] = field(default_factory=list)
    """Why the partition is held whole, first reason first."""
    was: dict[str, Any] | None = None
    """What the gate said of this partition last."""

    @property
    def held(self) -> bool:
        return bool(self.reasons)

    @property
    def num_in(self) -> int:
        return sum(len(t.table) for t in self.landed.values())

    @property
    def num_quarantined(self) -> int:
        return self.num_in if self.held else sum(map(len, self.failed.values()))

    @property
    def landed_at(self) -> str | None:
        """When the last of its files landed, ISO in UTC; None while one is missing."""
        times = [at.astimezone(UTC) for at in self.written_at if at]
        return max(times).isoformat() if len(times) == len(self.written_at) > 0 else None

    @property
    def revision(self) -> str:
        """Names the landed content, and what became of it."""
        parts = [f"{name}:{etag}" for name, etag in self.etags.items()] + [str(self.num_quarantined)]
        return "|".join(parts + [r.value for r, _ in self.reasons])


def verdict_key(spec: LineSpec, day: str) -> str:
    """Key of what the raw gate said last of one day."""
    return f"accepted/{spec.line}/{day}.json"


@contextmanager
def _faults_recorded(f: Factory, spec: LineSpec, days: Iterable[str], run: str, step: str) -> Iterator[None]:
    """Put on the record that infrastructure stopped a step, on the newest of its days; once for each run and reason."""
    from aifactory.ledger import EventKind, ProductionEvent, event_key

    begun = time.monotonic()
    try:
        yield
    except InfrastructureFault as fault:
        unit, failed = max(days), EventKind.FAILED
        event = ProductionEvent(
            line=spec.line,
            station="ingest",
            unit_kind="batch",
            unit=unit,
            event=failed,
            key=event_key(spec.line, "ingest", unit, failed, f"{step} {run} {fault.reason}"),
            reason=fault.reason,
            duration_s=time.monotonic() - begun,
            partition=unit,
            run_id=run,
            detail={"step": step, "message": fault.message[:2000]},
        )
        try:
            f.ledger.record(event)
        except InfrastructureFault as silent:
            log.warning("that %s failed is not on the record: %s", step, silent)
        raise


# --- the raw gate
def gate_raw(f: Factory, spec: LineSpec, days: Sequence[str], run: str) -> dict[str, Any]:
    """Judge landed partitions; accept, quarantine, or hold them.

    Args:
        f: the open factory.
        spec: the line.
        days: partition keys. One bad day among several is held and the others go on.
        run: names the run in the ledger.

    Returns:
        the accepted days, the held ones with their reasons, counts, and the key of the Data Docs.

    Raises:
        LandingDefect | GateRefused: no day was accepted; carries the first day's reason.
    """
    with _faults_recorded(f, spec, days, run, "gate_raw"):
        return _gate_raw(f, spec, sorted(set(days)), run)


def _gate_raw(f: Factory, spec: LineSpec, days: Sequence[str], run: str) -> dict[str, Any]:
    begun = time.monotonic()
    batches = _read(f, spec, days)
    readable = [b for b in batches if not b.held]
    verdicts = _judge(f, spec, readable) if readable else {}
    _hold_over_share(spec, readable)
    docs = _publish(f, spec, batches, verdicts)
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        list(pool.map(lambda b: _settle(f, spec, b, docs), batches))
    _record_batches(f, spec, batches, run, duration_s=time.monotonic() - begun, docs=docs)
    return _gate_outcome(batches, docs)


def _read(f: Factory, spec: LineSpec, days: Sequence[str]) -> list[_Batch]:
    """The landed tables of each day; a day that cannot be read is held with the reason."""

    def one(day: str) -> _Batch:
        batch = _Batch(day, was=_said(f, spec, day))
        for name in spec.source.tables:
            try:
                found = batch.landed[name] = landing.read_table(f, spec, name, day)
                batch.etags[name] = found.etag
                batch.written_at.append(found.written_at)
            except LandingDefect as defect:
                batch.reasons.append((defect.reason, defect.message))
                head = f.landing.head(spec.source.key(name, day))
                batch.etags[name] = head.etag if head else None
                batch.written_at.append(head.written_at if head else None)
        return batch

    _ = f.landing.client, f.store.client
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        return list(pool.map(one, days))


def _said(f: Factory, spec: LineSpec, day: str) -> dict[str, Any] | None:
    try:
        return f.store.get_json(verdict_key(spec, day))
    except NotFound:
        return None


def _judge(f: Factory, spec: LineSpec, batches: Sequence[_Batch]) -> dict[str, Verdict]:
    """GX on all rows, then on whole partitions; where it cannot run, every partition is held."""
    suites = gates.load_suites(f.settings, spec)
    verdicts: dict[str, Verdict] = {}
    try:
        with gates.connect(f.settings) as con:
            for table in spec.source.tables:
                verdicts |= _judge_rows(_Gate(f, spec, suites, con), table, batches)
            for table in spec.source.tables:
                verdicts |= _judge_batches(_Gate(f, spec, suites, con), table, batches)
    except GateRefused as broken:
        for b in batches:
            b.reasons.append((broken.reason, broken.message))
    return verdicts


def _judge_rows(gate: _Gate, table: str, batches: Sequence[_Batch]) -> dict[str, Verdict]:
    """GX on all rows of one table; failing rows are noted on their batch, but for those an operator released."""
    import pyarrow as pa

    rows = pa.concat_tables(_with_position(b.landed[table].table, b.day) for b in batches)
    verdict = gates.judge(gate.suites.raw(gate.spec, table), rows, gate.con)
    by_day = {b.day: b for b in batches}
    for b in batches:
        b.failed[table] = {}
    if not verdict.passed:
        for r in gates.failing_rows(verdict.at("row"), rows, gate.con).to_pylist():
            by_day[r[DAY_COLUMN]].failed[table][r[ROW_COLUMN]] = (r["reason"], r["expectation"])
    for b in batches:
        if b.failed[table]:
            decided = quarantine.decisions(gate.f, gate.spec, table, b.day, b.landed[table].etag)
            b.failed[table] = {n: why for n, why in b.failed[table].items() if decided.get(n) != "released"}
    return {table: verdict}


def _with_position(table: pa.Table, day: str) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    days = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([day])).cast(pa.string())
    return table.append_column(DAY_COLUMN, days).append_column(ROW_COLUMN, pa.array(np.arange(len(table))))


def _judge_batches(gate: _Gate, table: str, batches: Sequence[_Batch]) -> dict[str, Verdict]:
    """GX on one table's partitions as wholes: one row a day."""
    summary = _summaries(gate.f, gate.spec, table, batches)
    verdict = gates.judge(gate.suites.batches(gate.spec, table), summary, gate.con)
    by_day = {b.day: b for b in batches}
    facts = {r[DAY_COLUMN]: r for r in summary.to_pylist()}
    for failure in verdict.failures:
        for r in gates.failing_rows([failure], summary, gate.con).to_pylist():
            day = r[DAY_COLUMN]
            by_day[day].reasons.append((failure.reason, f"{table}: not {failure.expectation}: {_facts(facts[day])}"))
    return {f"{table}-partitions": verdict}


def _facts(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in row.items() if isinstance(v, int | float) and k != ROW_COLUMN)


def _summaries(f: Factory, spec: LineSpec, table: str, batches: Sequence[_Batch]) -> pa.Table:
    """What the batch suite judges: `num_rows`, `volume_ratio`, `newest_event_age_hours` of each partition."""
    import pyarrow as pa
    import pyarrow.compute as pc

    volumes = _recent_volumes(f, spec, table, batches)
    rows = []
    for n, b in enumerate(batches):
        raw = b.landed[table].table
        window = [volumes[d] for d in _days_before(b.day, spec.quality.volume_window_days) if d in volumes]
        ratio = len(raw) / median(window) if window else None
        if ratio is None or spec.quality.volume_min_ratio <= ratio <= spec.quality.volume_max_ratio:
            volumes[b.day] = len(raw)
        end = datetime.fromisoformat(b.day).replace(tzinfo=UTC) + timedelta(days=1)
        newest = pc.max(raw.column(spec.source.tables[table].event_time)).as_py()
        age = (end - newest).total_seconds() / 3600 if newest else None
        rows.append((b.day, n, len(raw), ratio, age))
    names = [DAY_COLUMN, ROW_COLUMN, "num_rows", "volume_ratio", "newest_event_age_hours"]
    types = [pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64()]
    return pa.table([pa.array(c, t) for c, t in zip(zip(*rows, strict=True), types, strict=True)], names=names)


def _recent_volumes(f: Factory, spec: LineSpec, table: str, batches: Sequence[_Batch]) -> dict[str, int]:
    """Rows of the accepted partitions before these, by day."""
    mine = {b.day for b in batches}
    window = {d for b in batches for d in _days_before(b.day, spec.quality.volume_window_days)} - mine
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        said = list(pool.map(lambda d: _said(f, spec, d), sorted(window)))
    return {s["day"]: s["sources"][table]["num_rows"] for s in said if s and s["verdict"] == "passed"}


def _days_before(day: str, num_days: int) -> list[str]:
    return [(date.fromisoformat(day) - timedelta(days=n)).isoformat() for n in range(1, num_days + 1)]


def _hold_over_share(spec: LineSpec, batches: Iterable[_Batch]) -> None:
    """Hold a partition of which more rows of one table failed than the line tolerates."""
    for b in batches:
        for name, failed in b.failed.items():
            num_rows = len(b.landed[name].table)
            if len(failed) > spec.quality.max_quarantine_share * num_rows:
                counted = _counted(failed)
                message = (
                    f"{name}: {len(failed)} of {num_rows} rows failed, more than the tolerated "
                    f"{spec.quality.max_quarantine_share:.0%}: {'; '.join(f'{n} x {w}' for w, n in counted.items())}"
                )
                causes = dict.fromkeys(ReasonCode[code] for code, _ in failed.values())
                b.reasons[:0] = [(ReasonCode.QUARANTINE_SHARE, message), *((c, c.sentence) for c in causes)]


def _counted(failed: Mapping[int, tuple[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for code, expectation in failed.values():
        counts[f"{code} ({expectation})"] = counts.get(f"{code} ({expectation})", 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _publish(f: Factory, spec: LineSpec, batches: Sequence[_Batch], verdicts: Mapping[str, Verdict]) -> str | None:
    """Data Docs: of its day for a night, of all days together for a history that was judged in one go."""
    if not verdicts:
        return None
    first, last = batches[0].day, batches[-1].day
    span = first if first == last else f"{first}_{last}"
    held = "; ".join(f"{b.day} held: {b.reasons[0][0].value}" for b in batches if b.held)
    accepted = sum(b.num_in - b.num_quarantined for b in batches)
    summary = (
        f"{len(batches)} partition(s), {sum(b.num_in for b in batches)} rows in, {accepted} accepted, "
        f"{sum(b.num_quarantined for b in batches)} quarantined. {held}"
    )
    return gates.publish_docs(f, verdicts, f"reports/{spec.line}/ingest/{span}/raw", summary)


def _settle(f: Factory, spec: LineSpec, b: _Batch, docs: str | None) -> None:
    """Write what became of one partition: quarantine, accepted rows, then the verdict that names them."""
    for name, landed in b.landed.items():
        quarantine.write(f, spec, b.day, landed, _quarantined(b, name))
        if not b.held:
            f.store.put_table(features.accepted_key(spec, name, b.day), _without(landed.table, b.failed[name]))
    f.store.put_json(
        verdict_key(spec, b.day),
        {
            "day": b.day,
            "sources": {t.name: {"etag": t.etag, "uri": t.uri, "num_rows": len(t.table)} for t in b.landed.values()},
            "num_in": b.num_in,
            "num_accepted": b.num_in - b.num_quarantined,
            "num_quarantined": b.num_quarantined,
            "verdict": "refused" if b.held else "passed",
            "reasons": [reason.value for reason, _ in b.reasons],
            "message": "; ".join(message for _, message in b.reasons),
            "docs": docs,
        },
    )


def _quarantined(b: _Batch, table: str) -> dict[int, tuple[str, str]]:
    """The rows of one table that are not accepted: those that failed, or all of a partition that is held."""
    failed = b.failed.get(table, {})
    if not b.held:
        return failed
    reason, message = b.reasons[0]
    return dict.fromkeys(range(len(b.landed[table].table)), (reason.value, message)) | failed


def _without(table: pa.Table, rows: Mapping[int, Any]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    keep = np.ones(len(table), bool)
    keep[list(rows)] = False
    return table.filter(pa.array(keep)) if rows else table


def _gate_outcome(batches: Sequence[_Batch], docs: str | None) -> dict[str, Any]:
    for b in batches:
        for reason, message in b.reasons:
            log.error("%s is held, %s: %s", b.day, reason.value, message)
    accepted = [b for b in batches if not b.held]
    if not accepted:
        reason, message = batches[0].reasons[0]
        unread = reason.name.startswith(("LANDING_", "COLUMN_"))
        others = f" (and {len(batches) - 1} other days are held)" if len(batches) > 1 else ""
        raise (LandingDefect if unread else GateRefused)(reason, f"{batches[0].day} is held: {message}{others}")
    counts = {
        b.day: {
            "num_in": b.num_in,
            "num_accepted": b.num_in - b.num_quarantined,
            "num_quarantined": b.num_quarantined,
            "docs": docs,
        }
        for b in batches
    }
    totals = {
        "num_in": sum(b.num_in for b in batches),
        "num_accepted": sum(b.num_in - b.num_quarantined for b in batches),
        "num_quarantined": sum(b.num_quarantined for b in batches),
    }
    span = f"{batches[0].day}..{batches[-1].day}"
    log.info("%s: %s rows accepted of %s, Data Docs %s", span, totals["num_accepted"], totals["num_in"], docs)
    return {
        "days": [b.day for b in accepted],
        "held": [
            {"day": b.day, "reason": b.reasons[0][0].value, "message": b.reasons[0][1]} for b in batches if b.held
        ],
        **totals,
        "docs": docs,
        "per_day": counts,
    }


def _record_batches(
    f: Factory, spec: LineSpec, batches: Sequence[_Batch], run: str, *, duration_s: float, docs: str | None
) -> None:
    """What happened to each partition, once per landed content: started, then passed or held; reworked if corrected."""
    from aifactory.ledger import EventKind, ProductionEvent, event_key

    events = []
    now = datetime.now(UTC)
    for b in batches:
        kinds = [EventKind.STARTED, EventKind.HELD if b.held else EventKind.PASSED]
        if _corrected(b):
            kinds.append(EventKind.REWORKED)
        for kind in kinds:
            ended = kind is not EventKind.STARTED
            events.append(
                ProductionEvent(
                    line=spec.line,
                    station="ingest",
                    unit_kind="batch",
                    unit=b.day,
                    event=kind,
                    key=event_key(spec.line, "ingest", b.day, kind, b.revision),
                    reason=b.reasons[0][0] if b.held and ended else None,
                    at=now if ended else now - timedelta(seconds=duration_s),
                    duration_s=duration_s / len(batches) if ended else 0.0,
                    num_in=b.num_in,
                    num_good=b.num_in - b.num_quarantined if ended else 0,
                    num_bad=b.num_quarantined if ended else 0,
                    partition=b.day,
                    run_id=run,
                    detail={
                        "docs": docs,
                        "reasons": [r.value for r, _ in b.reasons],
                        "message": b.reasons[0][1] if b.held else "",
                        "quarantined": {n: _counted(rows) for n, rows in b.failed.items() if rows},
                        "etags": b.etags,
                        "landed_at": b.landed_at,
                    },
                )
            )
    f.ledger.record_many(events)


def _corrected(b: _Batch) -> bool:
    """Whether this partition had passed before with other content, or with another split."""
    if b.held or b.was is None or b.was["verdict"] != "passed":
        return False
    before = {name: source["etag"] for name, source in b.was["sources"].items()}
    return before != {n: t.etag for n, t in b.landed.items()} or b.was["num_quarantined"] != b.num_quarantined


# --- features
def build_features(
    f: Factory, spec: LineSpec, days: Sequence[str], run: str, carry_out: CarryOut | None = None
) -> dict[str, Any]:
    """Build feature partitions, and rebuild those already in the dataset that look back on them.

    Args:
        f: the open factory.
        spec: the line.
        days: partition keys.
        run: names the run.
        carry_out: has the SQL run elsewhere; default here. The gate is here always.

    Raises:
        GateRefused: FEATURE_GATE, or GATE_BROKEN; these days are held, on the record.
    """
    with _faults_recorded(f, spec, days, run, "build_features"):
        return _build_features(f, spec, days, run, carry_out)


def _build_features(
    f: Factory, spec: LineSpec, days: Sequence[str], run: str, carry_out: CarryOut | None
) -> dict[str, Any]:
    import pyarrow.compute as pc

    begun = time.monotonic()
    there = _days_in_dataset(f, spec)
    targets = sorted({*days, *(_looking_back(spec, days) & there)})
    built = _built(f, spec, targets, carry_out)
    docs, refusal = _gate_features(f, spec, built, days)
    work: dict[str, Any] = {
        "run_id": run,
        "duration_s": (time.monotonic() - begun) / len(days),
        "detail": {"step": FEATURE_STEP, "docs": docs},
    }
    if refusal:
        _hold(f, spec, {day: day in there for day in days}, refusal, work)
        raise refusal
    _take_holds_back(f, spec, targets, work)
    staged: dict[str, str] = {}
    for day in targets:
        staged[day] = f"staging/{spec.line}/{run}/date={day}.parquet"
    parts = {day: built.filter(pc.equal(built.column("date"), day)) for day in targets}
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        list(pool.map(lambda day: f.store.put_table(staged[day], parts[day]), targets))
    return {"staged": staged, "num_rows": len(built), "docs": docs}


def _built(f: Factory, spec: LineSpec, days: Sequence[str], carry_out: CarryOut | None) -> pa.Table:
    needed = features.needed_days(spec, days)
    if carry_out is None:
        return features.build(f.settings, spec, days, features.accepted(f, spec, needed))
    keys = {features.accepted_key(spec, table, day) for table in spec.source.tables for day in needed}
    content = {o.key: o.etag for o in f.store.list(f"accepted/{spec.line}/") if o.key in keys}
    asked = {"days": days, "sql": features.text(f.settings, spec), "content": content}
    with jobs.asked(f, spec, "build_features", asked, carry_out) as made:
        return f.store.get_table(made["table"])


def _days_in_dataset(f: Factory, spec: LineSpec) -> set[str]:
    """Partitions of the newest dataset version."""
    latest = f.datasets(spec).latest()
    return set(f.datasets(spec).days(latest.revision)) if latest else set()


def _looking_back(spec: LineSpec, days: Sequence[str]) -> set[str]:
    """Partitions whose features look back on these days."""
    reach = range(1, spec.dataset.lookback_days + 1)
    return {(date.fromisoformat(d) + timedelta(days=n)).isoformat() for d in days for n in reach}


def _gate_features(
    f: Factory, spec: LineSpec, built: pa.Table, days: Sequence[str]
) -> tuple[str | None, GateRefused | None]:
    """GX on the built features: all or nothing, because a wrong feature is wrong code, not a wrong row.

    Returns:
        key of the Data Docs (None where the gate could not run), and the refusal.
    """
    suites = gates.load_suites(f.settings, spec)
    try:
        with gates.connect(f.settings) as con:
            verdict = gates.judge(suites.features(spec), built, con)
    except GateRefused as broken:
        return None, broken
    first, last = min(days), max(days)
    span = first if first == last else f"{first}_{last}"
    docs = gates.publish_docs(f, {"features": verdict}, f"reports/{spec.line}/ingest/{span}/features")
    missing = sorted(set(days) - set(built.column("date").unique().to_pylist()))
    if missing:
        return docs, GateRefused(ReasonCode.FEATURE_GATE, f"no features were built for {missing}; see {docs}")
    if not verdict.passed:
        named = "; ".join(f"{x.expectation} ({x.num_failed} rows)" for x in verdict.failures)
        message = f"the features of {span} are refused: not {named}; see {docs}"
        return docs, GateRefused(ReasonCode.FEATURE_GATE, message)
    return docs, None


def _hold(f: Factory, spec: LineSpec, days: Mapping[str, bool], refusal: GateRefused, work: dict[str, Any]) -> None:
    """Put on the record that partitions which the raw gate had passed are held whole; once for each such pass.

    Args:
        f: the open factory.
        spec: the line.
        days: partition key -> whether the dataset holds it, as it was before.
        refusal: why.
        work: run_id, duration_s and detail of each event.
    """
    from aifactory.ledger import GOOD, EventKind

    passed = f.ledger.newest(spec.line, "ingest", "batch", days, GOOD)
    why = {"reasons": [refusal.reason.value], "message": refusal.message[:2000]}
    f.ledger.record_many(
        [
            _said_of(
                e,
                EventKind.HELD,
                f"{e.key} {FEATURE_STEP} {refusal.reason}",
                work | {"detail": {**work["detail"], **why, "in_dataset": days[day]}},
                reason=refusal.reason,
                num_good=0,
                num_bad=e.num_in,
            )
            for day, e in passed.items()
        ]
    )


def _take_holds_back(f: Factory, spec: LineSpec, days: Sequence[str], work: Mapping[str, Any]) -> None:
    """Put on the record that partitions which this gate held have passed after all; once for each hold."""
    from aifactory.ledger import GOOD, EventKind

    ends = f.ledger.newest(spec.line, "ingest", "batch", days, [*GOOD, EventKind.HELD])
    holds = {day: e for day, e in ends.items() if e.event is EventKind.HELD and e.detail.get("step") == FEATURE_STEP}
    passed = f.ledger.newest(spec.line, "ingest", "batch", holds, GOOD)
    f.ledger.record_many([_said_of(e, EventKind.PASSED, holds[day].key, work) for day, e in passed.items()])


def _said_of(
    passed: ProductionEvent, kind: EventKind, after: str, work: Mapping[str, Any], **changes: Any
) -> ProductionEvent:
    """The feature gate's word on a partition: its rows and files are those that the raw gate passed."""
    from aifactory.ledger import event_key

    return replace(
        passed,
        event=kind,
        key=event_key(passed.line, passed.station, passed.unit, kind, after),
        at=datetime.now(UTC),
        **{**work, "detail": passed.detail | work["detail"]},
        **changes,
    )


# --- the dataset
def commit_dataset(f: Factory, spec: LineSpec, staged: Mapping[str, str], run: str) -> dict[str, Any]:
    """Make the dataset version that holds these partitions; the same content makes no new one."""
    with _faults_recorded(f, spec, staged, run, "commit_dataset"):
        return _commit_dataset(f, spec, staged, run)


def _commit_dataset(f: Factory, spec: LineSpec, staged: Mapping[str, str], run: str) -> dict[str, Any]:
    from aifactory.ledger import EventKind, ProductionEvent

    begun = time.monotonic()
    repository = f.datasets(spec)
    days = sorted(staged)
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)} partitions)"
    try:
        version = repository.commit(dict(staged), f"{spec.line}: {span}")
    except NotFound:
        # What was staged is removed once its version is on the record: a task that ended then is tried again
        said = f.ledger.events(line=spec.line, station="ingest", kind=EventKind.PASSED, partition=days[-1])
        made = [e.unit for e in said if e.unit_kind == "dataset" and e.run_id == run]
        if not made:
            raise
        version = repository.version(made[-1])
    all_days = repository.days(version.revision)
    f.ledger.record(
        ProductionEvent(
            line=spec.line,
            station="ingest",
            unit_kind="dataset",
            unit=version.revision,
            event=EventKind.PASSED,
            key=f"{spec.line}:dataset:{version.revision}",
            reason=None,
            at=datetime.now(UTC),
            duration_s=time.monotonic() - begun,
            num_in=len(days),
            num_good=len(days),
            num_bad=0,
            partition=days[-1],
            run_id=run,
            detail={"tag": version.tag, "num_partitions": version.num_partitions, "num_rows": version.num_rows},
        )
    )
    for key in staged.values():
        f.store.delete(key)
    return {
        "revision": version.revision,
        "tag": version.tag,
        "num_partitions": version.num_partitions,
        "num_rows": version.num_rows,
        "first_day": all_days[0],
        "last_day": all_days[-1],
        "days": days,
    }
