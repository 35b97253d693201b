"""Rows that a gate did not let through: kept whole, with why, from where, and what an operator decided.

`quarantine/<line>/<table>/date=<day>.parquet` holds every row of the day that is not among the accepted ones, so that
in = accepted + quarantined always. An operator's decision is bound to the content of the landed file (its ETag): a row
that is released is accepted by the day's next ingest, a row that is dropped stays out and counts as settled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.landing import LandedTable
from aifactory.line import LineSpec

if TYPE_CHECKING:
    import pyarrow as pa

Decision = Literal["released", "dropped"]


def key(spec: LineSpec, table: str, day: str) -> str:
    """Key of one day's quarantine."""
    return f"quarantine/{spec.line}/{table}/date={day}.parquet"


def write(f: Factory, spec: LineSpec, day: str, landed: LandedTable, failed: Mapping[int, tuple[str, str]]) -> int:
    """Put these rows of a landed table into quarantine, replacing what the day had there.

    Args:
        f: the open factory.
        spec: the line.
        day: partition key.
        landed: the table that the rows are from.
        failed: row number -> (reason code, expectation).

    Returns:
        number of rows in quarantine.
    """
    where = key(spec, landed.name, day)
    if not failed:
        f.store.delete(where)
        return 0
    f.store.put_table(where, _table(landed, failed, decisions(f, spec, landed.name, day, landed.etag)))
    return len(failed)


def _table(landed: LandedTable, failed: Mapping[int, tuple[str, str]], decided: Mapping[int, Decision]) -> pa.Table:
    import pyarrow as pa

    numbers = sorted(failed)
    rows = landed.table.take(pa.array(numbers, pa.int64())).to_pylist()
    return pa.table(
        {
            "row": pa.array([json.dumps(r, default=str, sort_keys=True) for r in rows], pa.string()),
            "reason": pa.array([failed[n][0] for n in numbers], pa.string()),
            "expectation": pa.array([failed[n][1] for n in numbers], pa.string()),
            "source_uri": pa.array([landed.uri] * len(numbers), pa.string()),
            "source_etag": pa.array([landed.etag] * len(numbers), pa.string()),
            "row_number": pa.array(numbers, pa.int64()),
            "decision": pa.array([decided.get(n, "pending") for n in numbers], pa.string()),
        }
    )


def read(f: Factory, spec: LineSpec, table: str, day: str) -> pa.Table | None:
    """One day's quarantine of one table; None where nothing is in it."""
    try:
        return f.store.get_table(key(spec, table, day))
    except NotFound:
        return None


def release(
    f: Factory, spec: LineSpec, table: str, day: str, row_numbers: Iterable[int], *, by: str, why: str = ""
) -> int:
    """Let these quarantined rows in with the day's next ingest; returns how many."""
    return _decide(f, spec, (table, day), row_numbers, by=by, why=why, decision="released")


def drop(
    f: Factory, spec: LineSpec, table: str, day: str, row_numbers: Iterable[int], *, by: str, why: str = ""
) -> int:
    """Settle that these quarantined rows stay out; returns how many. They are kept, marked as dropped."""
    return _decide(f, spec, (table, day), row_numbers, by=by, why=why, decision="dropped")


def decisions(f: Factory, spec: LineSpec, table: str, day: str, etag: str) -> dict[int, Decision]:
    """What operators decided on the rows of this content of a landed file: row number -> decision."""
    return {n: said["decision"] for n, said in decided(f, spec, table, day, etag).items()}


def decided(f: Factory, spec: LineSpec, table: str, day: str, etag: str) -> dict[int, dict[str, Any]]:
    """The same with who and when: row number -> {decision, by, at}."""
    try:
        stored = f.store.get_json(_decisions_key(spec, table, day))
    except NotFound:
        return {}
    return {int(n): said for n, said in stored.get(etag, {}).items()}


def _decide(
    f: Factory,
    spec: LineSpec,
    where: tuple[str, str],
    row_numbers: Iterable[int],
    *,
    by: str,
    why: str,
    decision: Decision,
) -> int:
    table, day = where
    wanted = sorted(set(row_numbers))
    held = read(f, spec, table, day)
    there = set(held.column("row_number").to_pylist()) if held is not None else set()
    unknown = [n for n in wanted if n not in there]
    if held is None or unknown:
        raise ValueError(
            f"rows {unknown or wanted} of {table} {day} are not in quarantine, which holds {sorted(there)[:20]}"
        )
    etag = held.column("source_etag")[0].as_py()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    decisions_key = _decisions_key(spec, table, day)
    seen: str | None
    try:
        body, seen = f.store.get_with_etag(decisions_key)
        stored: dict[str, Any] = json.loads(body)
    except NotFound:
        stored, seen = {}, None
    stored.setdefault(etag, {}).update({str(n): {"decision": decision, "by": by, "at": at} for n in wanted})
    f.store.put_json(decisions_key, stored, if_match=seen, if_absent=seen is None)
    said = {"table": table, "source_etag": etag, "decision": decision, "row_numbers": wanted, "by": by, "why": why}
    _record(f, spec, day, said)
    return len(wanted)


def _record(f: Factory, spec: LineSpec, day: str, detail: dict[str, Any]) -> None:
    """An operator's decision is an override, and goes on the production record."""
    from aifactory.ledger import EventKind, ProductionEvent
    from aifactory.reasons import ReasonCode

    num_rows = len(detail["row_numbers"])
    identity = json.dumps(detail, sort_keys=True)
    f.ledger.record(
        ProductionEvent(
            line=spec.line,
            station="ingest",
            unit_kind="batch",
            unit=day,
            event=EventKind.OVERRIDDEN,
            key=hashlib.sha256(f"{spec.line} {day} {identity}".encode()).hexdigest(),
            reason=ReasonCode.OPERATOR,
            at=datetime.now(UTC),
            duration_s=0.0,
            num_in=num_rows,
            num_good=num_rows if detail["decision"] == "released" else 0,
            num_bad=num_rows if detail["decision"] == "dropped" else 0,
            partition=day,
            run_id=f"operator:{detail['by']}",
            detail=detail,
        )
    )


def _decisions_key(spec: LineSpec, table: str, day: str) -> str:
    return f"quarantine/{spec.line}/decisions/{table}/{day}.json"
