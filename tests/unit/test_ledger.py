"""The production record without its database: events, keys, what an error leaves, JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from aifactory.errors import Defect, GateRefused, InfrastructureFault, LandingDefect
from aifactory.ledger import EventKind, Ledger, Passage, ProductionEvent, _ended_by, _to_json, event_key
from aifactory.reasons import ReasonCode


def event(**changes: Any) -> ProductionEvent:
    values = {
        "line": "a",
        "station": "ingest",
        "unit_kind": "batch",
        "unit": "2026-01-01",
        "event": EventKind.PASSED,
        "key": "k",
    }
    return ProductionEvent(**{**values, **changes})


@pytest.mark.parametrize("changed", ["line", "station", "unit", "event", "revision"])
def test_every_part_of_the_work_makes_the_key(changed: str) -> None:
    base: dict[str, Any] = {
        "line": "a",
        "station": "ingest",
        "unit": "u",
        "event": EventKind.PASSED,
        "revision": "r",
    }
    other = {**base, changed: EventKind.HELD if changed == "event" else base[changed] + "x"}
    assert event_key(**base) == event_key(**base)
    assert event_key(**base) != event_key(**other)


def test_parts_of_the_key_do_not_run_into_each_other() -> None:
    assert event_key("ab", "c", "u", EventKind.PASSED, "") != event_key("a", "bc", "u", EventKind.PASSED, "")


def test_an_unknown_station_is_refused() -> None:
    with pytest.raises(ValueError, match="paint"):
        event(station="paint")


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        event(at=datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("kind", [EventKind.FAILED, EventKind.HELD, EventKind.SCRAPPED, EventKind.ROLLED_BACK])
def test_what_stops_a_unit_needs_a_reason(kind: EventKind) -> None:
    with pytest.raises(ValueError, match="reason"):
        event(event=kind)
    assert event(event=kind, reason=ReasonCode.DRIFT).reason is ReasonCode.DRIFT


@pytest.mark.parametrize(
    ("error", "chosen", "ends"),
    [
        (GateRefused(ReasonCode.VOLUME_ABNORMAL, "m"), None, EventKind.HELD),
        (LandingDefect(ReasonCode.LANDING_MISSING, "m"), None, EventKind.HELD),
        (Defect(ReasonCode.INTERNAL, "m"), None, EventKind.FAILED),
        (KeyError("k"), None, EventKind.FAILED),
        (KeyError("k"), EventKind.PROMOTED, EventKind.FAILED),
        (Defect(ReasonCode.INTERNAL, "m"), EventKind.SCRAPPED, EventKind.SCRAPPED),
    ],
)
def test_an_error_never_leaves_a_unit_good(error: Exception, chosen: EventKind | None, ends: EventKind) -> None:
    assert _ended_by(error, chosen) is ends


def test_detail_becomes_json_that_postgres_takes() -> None:
    detail = {
        "auc": float("nan"),
        "gain": np.float32(0.5),
        "rows": np.int64(3),
        "worst": np.float64("inf"),
        "why": ReasonCode.DRIFT,
        "text": "a\x00b",
        "days": ("x", None, True),
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    assert json.loads(_to_json(detail)) == {
        "auc": None,
        "gain": 0.5,
        "rows": 3,
        "worst": None,
        "why": "DRIFT",
        "text": "ab",
        "days": ["x", None, True],
        "at": "2026-01-01 00:00:00+00:00",
    }


def test_lead_time_is_from_first_start_to_last_good_end() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    assert Passage("u", began, began + timedelta(minutes=3), 10.0).lead_time_s == 180.0
    assert Passage("u", began, None, 10.0).lead_time_s is None


def test_a_ledger_without_address_says_so() -> None:
    with pytest.raises(InfrastructureFault, match="AIF_LEDGER_DSN"):
        Ledger("").record(event())
