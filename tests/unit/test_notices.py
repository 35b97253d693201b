"""Who is told of what, and when again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifactory.errors import SpecError
from aifactory.ledger import BAD, EventKind
from aifactory.line import find_line
from aifactory.notices import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MAX_TRIES,
    Notice,
    NoticeKind,
    Routes,
    kind_of,
    load_routes,
    pause_after,
)
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY

LOW = find_line(REPOSITORY / "include" / "lines", "flight_delay")
HIGH = LOW.model_copy(
    update={"line": "loans", "owner": LOW.owner.model_copy(update={"team": "credit"}),
            "deployment": LOW.deployment.model_copy(update={"tier": "high"})}
)  # fmt: skip


def routes(*each: dict[str, Any]) -> Routes:
    return Routes.model_validate({"routes": list(each)})


# --- what is told
@pytest.mark.parametrize(
    ("event", "reason", "kind"),
    [
        (EventKind.HELD, ReasonCode.VOLUME_ABNORMAL, NoticeKind.GATE_FAILURE),
        (EventKind.HELD, ReasonCode.PREDICTIONS_GATE, NoticeKind.GATE_FAILURE),
        (EventKind.SCRAPPED, ReasonCode.GAIN_NOT_PROVEN, NoticeKind.GATE_FAILURE),
        (EventKind.HELD, ReasonCode.QUARANTINE_SHARE, NoticeKind.QUARANTINE_ABOVE_LIMIT),
        (EventKind.HELD, ReasonCode.DEADLINE_MISSED, NoticeKind.DEADLINE_MISSED),
        (EventKind.ROLLED_BACK, ReasonCode.CANARY_ERRORS, NoticeKind.ROLLBACK),
        (EventKind.ROLLED_BACK, ReasonCode.ROLLED_BACK, NoticeKind.ROLLBACK),
        (EventKind.STARTED, ReasonCode.APPROVAL_WAITING, NoticeKind.APPROVAL_WAITING),
        (EventKind.SCRAPPED, ReasonCode.APPROVAL_REJECTED, None),
        (EventKind.FAILED, ReasonCode.STORE_UNREACHABLE, None),
        (EventKind.DECIDED, ReasonCode.STOCK_DIFFERS, None),
    ],
)
def test_what_an_event_is_told_as(event: EventKind, reason: ReasonCode, kind: NoticeKind | None) -> None:
    assert kind_of(event, reason) is kind


@given(st.sampled_from(BAD), st.sampled_from(ReasonCode))
def test_whatever_is_held_or_taken_back_is_told(event: EventKind, reason: ReasonCode) -> None:
    if event in (EventKind.HELD, EventKind.ROLLED_BACK) and reason is not ReasonCode.APPROVAL_REJECTED:
        assert kind_of(event, reason) is not None


def notice(**changes: Any) -> Notice:
    values: dict[str, Any] = {
        "id": 7, "kind": NoticeKind.GATE_FAILURE, "line": "flight_delay", "station": "ingest", "unit_kind": "batch",
        "unit": "2026-03-01", "reason": ReasonCode.VOLUME_ABNORMAL, "at": datetime(2026, 3, 2, 6, 1, tzinfo=UTC),
        "partition": "2026-03-01", "detail": {"message": "flights: 12 rows", "docs": "reports/x/raw"}, "num_untold": 0,
        "num_others": 0,
    }  # fmt: skip
    return Notice(**values | changes)


def test_a_notice_says_what_why_when_and_where_to_look() -> None:
    told = notice(num_untold=3)
    assert told.title == "flight_delay: batch 2026-03-01 did not pass at ingest (VOLUME_ABNORMAL)"
    assert told.body("https://factory") == (
        "The number of rows is far from that of recent partitions.\nflights: 12 rows\n"
        "It has happened 3 more times since the last notice.\n2026-03-02 06:01 UTC, partition 2026-03-01\n"
        "https://factory/dags/flight_delay.ingest\nhttps://factory/reports/x/raw\nNotice 7"
    )


def test_a_notice_of_several_units_names_the_first_and_how_many_more_there_are() -> None:
    told = notice(num_others=11).title
    assert told == "flight_delay: batch 2026-03-01 did not pass at ingest, and 11 more of its run (VOLUME_ABNORMAL)"


def test_a_stage_that_said_much_is_told_in_short() -> None:
    assert len(notice(detail={"message": "x" * 100_000}).body("https://factory")) < 1500


@pytest.mark.parametrize("kind", NoticeKind)
def test_every_kind_has_its_title(kind: NoticeKind) -> None:
    assert notice(kind=kind, unit="unit-9").title.count("unit-9") == 1


# --- to whom
@pytest.mark.parametrize(
    ("match", "low", "high", "plant"),
    [
        ({}, True, True, True),
        ({"lines": ["loans"]}, False, True, False),
        ({"lines": ["loans", "plant"]}, False, True, True),
        ({"owners": ["flight_operations"]}, True, False, False),
        ({"owners": ["plant"]}, False, False, True),
        ({"tiers": ["high", "medium"]}, False, True, False),
        ({"kinds": ["rollback"]}, True, True, True),
        ({"kinds": ["deadline_missed", "gate_failure"]}, False, False, False),
        ({"tiers": ["high"], "owners": ["flight_operations"]}, False, False, False),
        ({"tiers": ["low"], "owners": ["flight_operations"], "kinds": ["rollback"]}, True, False, False),
    ],
)
def test_a_route_takes_what_all_its_lists_have(match: dict[str, list[str]], low: bool, high: bool, plant: bool) -> None:
    found = routes({"match": match, "to": ["desk"]})
    takes = [
        found.channels(NoticeKind.ROLLBACK, name, spec) == ["desk"]
        for name, spec in (("flight_delay", LOW), ("loans", HIGH), ("plant", None))
    ]
    assert takes == [low, high, plant]


def test_a_line_that_is_gone_is_told_where_nobody_asked_whose_it_is() -> None:
    found = routes(
        {"match": {"owners": ["credit"]}, "to": ["credit"]}, {"match": {"tiers": ["low"]}, "to": ["low"]},
        {"match": {"lines": ["gone"]}, "to": ["by_name"]}, {"to": ["all"]},
    )  # fmt: skip
    assert found.channels(NoticeKind.GATE_FAILURE, "gone", None) == ["by_name", "all"]


def test_a_channel_of_several_routes_is_taken_once() -> None:
    found = routes({"to": ["desk", "mail"]}, {"match": {"tiers": ["high"]}, "to": ["mail", "pager"]})
    assert found.channels(NoticeKind.ROLLBACK, "loans", HIGH) == ["desk", "mail", "pager"]


# --- the file
def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "notices.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "repeat_hours: 6\nroutes:\n"
        "- {match: {lines: [flight_delay], owners: [flight_operations], tiers: [low], kinds: [rollback]}, to: [desk]}\n"
        "- {to: [everything]}",
    )
    found = load_routes(path, [LOW])
    assert found.repeat_hours == 6
    assert found.channels(NoticeKind.ROLLBACK, "flight_delay", LOW) == ["desk", "everything"]


def test_the_example_of_the_docs_is_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "notices.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert load_routes(write(tmp_path, text), [LOW]).routes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("routes: [{match: {kinds: [rollbacks]}, to: [desk]}]", "routes.0.match.kinds.0: .*'rollbacks'"),
        ("routes: [{match: {tiers: [hihg]}, to: [desk]}]", "routes.0.match.tiers.0: .*'hihg'"),
        ("routes: [{match: {line: flight_delay}, to: [desk]}]", "routes.0.match.line: "),
        ("routes: [{to: [desk]}, {to: []}]", "routes.1.to: "),
        ("routes: [{match: {}}]", "routes.0.to: Field required"),
        ("repeat_hours: 0", r"repeat_hours: .*\(got 0\)"),
        ("routes: [{match: {lines: [flight_delays]}, to: [desk]}]", r"routes.0.match.lines: \['flight_delays'\]"),
        ("routes: [{match: {owners: [nobody, plant]}, to: [desk]}]", r"routes.0.match.owners: \['nobody'\]"),
        ("- a list", "must be a mapping"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SpecError, match=f"notices.yaml: {named}"):
        load_routes(write(tmp_path, text), [LOW])


def test_a_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "routes: [{to: ['slack://T0K3N/B/C']}]")
    with pytest.raises(SpecError, match=r"routes.0.to.0: .* names of Airflow connections") as refused:
        load_routes(path, [LOW])
    assert "T0K3N" not in str(refused.value)


def test_a_file_that_is_not_there_says_which_setting_names_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.yaml: cannot be read .*AIF_NOTICES_FILE"):
        load_routes(tmp_path / "nothing.yaml", [LOW])


# --- when again
@given(st.integers(1, 10**6))
def test_pauses_grow_up_to_a_limit(num_tries: int) -> None:
    assert FIRST_PAUSE <= pause_after(num_tries) <= pause_after(num_tries + 1) <= LONGEST_PAUSE


def test_a_channel_may_be_away_for_half_a_day() -> None:
    assert pause_after(1) == FIRST_PAUSE
    assert pause_after(3) == 4 * FIRST_PAUSE
    assert sum((pause_after(n) for n in range(1, MAX_TRIES)), timedelta()) > timedelta(hours=12)
