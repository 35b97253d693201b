from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.timetables.base import DagRunInfo, TimeRestriction
from fastapi import HTTPException

from aifactory.errors import GateRefused, InfrastructureFault, NotFound, ReleaseDefect, TrainingDefect
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY
from orchestration import links, reports
from orchestration.assets import assets_of
from orchestration.retries import FIRST_DELAY, MAX_DELAY, NUM_RETRIES, TwoBudgets, delay_of
from orchestration.schedule import NightlyPartitions, yesterday
from orchestration.station import Station, days_between, refusals

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")


# --- retries
@pytest.mark.parametrize(
    "error",
    [
        GateRefused(ReasonCode.VOLUME_ABNORMAL, "2026-01-13: 12 rows, the median is 800"),
        TrainingDefect(ReasonCode.LOSS_NOT_FINITE, "step 7"),
        ZeroDivisionError("division by zero"),
        KeyError("days"),
    ],
)
def test_a_defect_and_the_unforeseen_fail_at_once(error: Exception) -> None:
    decision = TwoBudgets().evaluate(error, 1, NUM_RETRIES)
    assert decision.action is RetryAction.FAIL
    assert decision.retry_delay is None
    assert decision.reason is not None
    assert decision.reason.startswith("defect: ")


def test_the_decision_names_the_reason_code() -> None:
    decision = TwoBudgets().evaluate(GateRefused(ReasonCode.VOLUME_ABNORMAL, "12 rows"), 1, NUM_RETRIES)
    assert decision.reason == "defect: VOLUME_ABNORMAL: 12 rows"


@pytest.mark.parametrize(
    ("detail", "action"),
    [
        ({"status_code": None, "exception_type": "ConnectError"}, RetryAction.RETRY),
        ({"status_code": None, "exception_type": "ReadTimeout"}, RetryAction.RETRY),
        ({"status_code": 503}, RetryAction.RETRY),
        ({"status_code": 404}, RetryAction.FAIL),
        ({"status_code": None, "exception_type": "TypeError"}, RetryAction.FAIL),
    ],
)
def test_an_api_server_that_is_away_is_no_defect_of_the_task(detail: dict[str, Any], action: RetryAction):
    error = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
    assert TwoBudgets().evaluate(error, 1, NUM_RETRIES).action is action


@pytest.mark.parametrize(
    "error",
    [
        InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "S3 did not answer"),
        NotFound("s3://factory/x does not exist"),
        ConnectionResetError("peer"),
        TimeoutError("slow"),
    ],
)
def test_an_infrastructure_fault_is_retried_with_growing_delay(error: Exception) -> None:
    delays = []
    for number in range(1, NUM_RETRIES + 1):
        decision = TwoBudgets().evaluate(error, number, NUM_RETRIES)
        assert decision.action is RetryAction.RETRY
        assert decision.retry_delay is not None
        delays.append(decision.retry_delay)
    assert delays[0] == FIRST_DELAY
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY
    assert sum(delays, timedelta()) >= timedelta(minutes=10)


def test_the_delay_doubles() -> None:
    assert [delay_of(n).total_seconds() for n in (1, 2, 3)] == [10, 20, 40]


# --- the nightly timetable
def info(run_after: str) -> DagRunInfo:
    return DagRunInfo(run_after=pendulum.parse(run_after), data_interval=None, partition_date=None, partition_key=None)  # type: ignore[arg-type]


def coming(timetable: NightlyPartitions, last: DagRunInfo | None) -> DagRunInfo:
    found = timetable.next_dagrun_info_v2(
        last_dagrun_info=last, restriction=TimeRestriction(earliest=None, latest=None, catchup=False)
    )
    assert found is not None
    return found


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def freeze(moment: str) -> None:
        monkeypatch.setattr(pendulum, "now", lambda zone="UTC": pendulum.parse(moment).in_timezone(zone))

    return freeze


def test_a_night_is_keyed_by_the_day_before(at: Any) -> None:
    at("2026-11-21T05:00:00Z")
    night = coming(NightlyPartitions("0 6 * * *", "UTC"), None)
    assert (str(night.run_after)[:16], night.partition_key) == ("2026-11-21 06:00", "2026-11-20")


def test_the_day_before_is_the_local_one(at: Any) -> None:
    at("2026-11-21T05:00:00Z")
    night = coming(NightlyPartitions("0 22 * * *", "America/New_York"), None)
    assert (str(night.run_after)[:16], night.partition_key) == ("2026-11-22 03:00", "2026-11-20")
    assert night.partition_date == pendulum.datetime(2026, 11, 20, tz="America/New_York")


def test_a_key_given_by_hand_is_the_same_partition_as_the_scheduled_one(at: Any) -> None:
    at("2026-11-20T20:00:00Z")
    timetable = NightlyPartitions("0 6 * * *", "Asia/Tokyo")
    night = coming(timetable, None)
    assert timetable.resolve_partition_date(night.partition_key) == night.partition_date
    days = timetable.iter_partition_dagrun_infos(
        earliest=datetime(2026, 11, 19, tzinfo=UTC), latest=datetime(2026, 11, 20, tzinfo=UTC)
    )
    assert night.partition_date in [day.partition_date for day in days]


def test_a_backfill_takes_both_ends_and_no_day_that_is_not_over(at: Any) -> None:
    at("2026-11-21T05:00:00Z")
    timetable = NightlyPartitions("0 6 * * *", "UTC")
    days = timetable.iter_partition_dagrun_infos(
        earliest=datetime(2026, 11, 18, tzinfo=UTC), latest=datetime(2026, 11, 20, tzinfo=UTC)
    )
    assert [day.partition_key for day in days] == ["2026-11-18", "2026-11-19", "2026-11-20"]
    too_far = timetable.iter_partition_dagrun_infos(
        earliest=datetime(2026, 11, 20, tzinfo=UTC), latest=datetime(2026, 11, 25, tzinfo=UTC)
    )
    assert [day.partition_key for day in too_far] == ["2026-11-20"]


def test_missed_nights_are_made_up_for_but_not_for_ever(at: Any) -> None:
    at("2026-11-21T10:00:00Z")
    timetable = NightlyPartitions("0 6 * * *", "UTC")
    assert coming(timetable, info("2026-11-17T06:00:00Z")).partition_key == "2026-11-17"
    assert coming(timetable, info("2026-03-01T06:00:00Z")).partition_key == "2026-11-07"
    assert coming(timetable, info("2026-11-21T06:00:00Z")).partition_key == "2026-11-21"


def test_a_backfill_of_old_days_does_not_call_for_all_days_since(at: Any) -> None:
    at("2026-11-21T10:00:00Z")
    timetable = NightlyPartitions("0 0 * * *", "UTC")
    [day] = timetable.iter_partition_dagrun_infos(
        earliest=datetime(2026, 11, 10, tzinfo=UTC), latest=datetime(2026, 11, 10, tzinfo=UTC)
    )
    assert coming(timetable, day).partition_key == "2026-11-21"


def test_a_new_line_waits_for_its_first_night(at: Any) -> None:
    timetable = NightlyPartitions("0 6 * * *", "UTC")
    at("2026-11-21T08:00:00Z")
    assert coming(timetable, None).partition_key == "2026-11-21"
    at("2026-11-21T06:00:20Z")
    assert coming(timetable, None).partition_key == "2026-11-20"


def test_the_timetable_survives_serialization() -> None:
    before = NightlyPartitions("30 4 * * *", "Europe/Berlin")
    after = NightlyPartitions.deserialize(before.serialize())
    assert (after.summary, after.serialize()) == (before.summary, before.serialize())


def test_yesterday_is_local(at: Any) -> None:
    at("2026-11-21T02:00:00Z")
    assert yesterday("UTC") == "2026-11-20"
    assert yesterday("America/New_York") == "2026-11-19"


# --- the station
class Accessor:
    def __init__(self) -> None:
        self.extra: dict[str, Any] = {}
        self.keys: list[str] = []

    def add_partitions(self, key: str) -> None:
        self.keys.append(key)


def work(params: dict[str, Any] | None = None, key: str | None = None, events: dict[Any, Any] | None = None) -> Station:
    run = SimpleNamespace(partition_key=key, triggering_user_name=None)
    accessors: dict[Any, Accessor] = {asset: Accessor() for asset in vars(assets_of("flight_delay")).values()}
    context = {
        "run_id": "manual__1",
        "params": params or {},
        "dag_run": run,
        "triggering_asset_events": events or {},
        "outlet_events": accessors,
    }
    return Station(SPEC, context)


def test_days_come_from_the_form_then_the_key_then_the_clock() -> None:
    assert work({"partition": "2026-01-02"}, "2026-01-09").days == ["2026-01-02"]
    assert work({"partition": None}, "2026-01-09").days == ["2026-01-09"]
    assert work().days == [yesterday("UTC")]
    assert len(work({"partition": "2026-01-02", "partition_to": "2026-06-20"}).days) == 170


def test_a_range_turned_round_is_refused() -> None:
    with pytest.raises(ValueError, match="2026-01-01 is before partition 2026-01-05"):
        days_between("2026-01-05", "2026-01-01")


def test_a_history_is_one_event_for_its_last_day() -> None:
    here, dataset = work({"partition": "2026-01-02", "partition_to": "2026-06-20"}), assets_of("flight_delay").dataset
    here.emit(dataset, {"revision": "abc", "days": ["x"] * 170, "num_days": 170}, partition="2026-06-20")
    accessor = here.context["outlet_events"][dataset]
    assert accessor.keys == ["2026-06-20"]
    assert accessor.extra == {"revision": "abc", "num_days": 170}


def test_training_is_asked_for_by_signal_or_by_form() -> None:
    retrain = assets_of("flight_delay").retrain
    form = {"recipe": "gradient_boosting", "drop_features": ["carrier"], "force": False, "why": "to see"}
    by_hand = work(form).request(retrain)
    assert (by_hand["reason"], by_hand["signal"]) == ("OPERATOR", "manual/manual__1")
    assert by_hand["drop_features"] == ["carrier"]
    event = SimpleNamespace(extra={"reason": "DRIFT", "signal": "feedback/flight_delay/signals/a.json"})
    called = work(form | {"drop_features": []}, events={retrain: [event]}).request(retrain)
    assert (called["reason"], called["signal"]) == ("DRIFT", "feedback/flight_delay/signals/a.json")


def test_a_release_needs_a_version() -> None:
    candidate = assets_of("flight_delay").candidate
    event = SimpleNamespace(extra={"version": "4"})
    assert work({"version": None}, events={candidate: [event]}).version(candidate) == "4"
    assert work({"version": "2"}, events={candidate: [event]}).version(candidate) == "2"
    with pytest.raises(ReleaseDefect, match="names no version"):
        work({"version": None}).version(candidate)


def test_what_was_made_points_the_buttons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_urls", {})
    work().made(
        {"num_rows": 3, "docs": "reports/flight_delay/ingest/2026-01-02/index.html", "mlflow_url": "http://m/#1"}
    )
    assert links.ReportLink().get_link(None, ti_key=None) == "/reports/flight_delay/ingest/2026-01-02/index.html"
    assert links.MlflowLink().get_link(None, ti_key=None) == "http://m/#1"


def test_a_refusal_reads_well() -> None:
    said = refusals({"reasons": [{"code": "GAIN_NOT_PROVEN", "message": "0.701 against 0.744"}]})
    assert said == "refused: GAIN_NOT_PROVEN: 0.701 against 0.744"


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(GateRefused(ReasonCode.CROSS_COLUMN, "x")))
    assert (error.reason, error.message) == (ReasonCode.CROSS_COLUMN, "x")


# --- the reports pages
@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("", ""),
        ("flight_delay/", "flight_delay/"),
        ("flight_delay/ingest/2026-01-02/index.html", "flight_delay/ingest/2026-01-02/index.html"),
        ("a b/c,d.png", "a b/c,d.png"),
    ],
)
def test_plain_paths_pass(path: str, key: str) -> None:
    assert reports.checked(path) == key


@pytest.mark.parametrize(
    "path",
    [
        "../serving/x",
        "a/../../b",
        "a/..",
        "./a",
        "a//b",
        "/etc/passwd",
        "a\\..\\b",
        "a/.hidden",
        "a\x00b",
        "a\nb",
        "x" * 900,
    ],
)
def test_paths_that_climb_are_not_there(path: str) -> None:
    with pytest.raises(HTTPException) as refused:
        reports.checked(path)
    assert refused.value.status_code == 404


def test_names_are_escaped_on_the_page() -> None:
    shown = reports.page("reports/x/", ["<b>&"], [])
    assert "<b>&" not in shown
    assert "&lt;b&gt;&amp;" in shown
