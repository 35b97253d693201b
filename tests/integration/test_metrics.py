"""Who may read the figures, and that they follow the ledger."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from aifactory.factory import Factory
from aifactory.ledger import EventKind, Ledger, ProductionEvent, migrate
from aifactory.line import LineSpec, find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY, Settings
from orchestration.floorapi import create_app
from orchestration.links import FLOOR_PREFIX
from orchestration.metrics import MAX_AGE, MOST_OLD, KeptKpis

pytestmark = pytest.mark.integration

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")
NOW = datetime(2026, 3, 1, 6, tzinfo=UTC)
TOKEN = "a-token-of-the-settings"


@pytest.fixture(scope="module")
def f(plant_settings: Settings) -> Factory:
    migrate(plant_settings.ledger_dsn.get_secret_value())
    return Factory(plant_settings)


def lines(number: int = 1) -> dict[str, LineSpec]:
    """Lines of the test's own, because nothing can be removed from the record."""
    names = [f"line_{uuid.uuid4().hex[:8]}" for _ in range(number)]
    return {name: SPEC.model_copy(update={"line": name}) for name in names}


def batch(ledger: Ledger, line: str, event: EventKind, at: datetime) -> None:
    unit, bad = at.date().isoformat(), event is EventKind.HELD
    ledger.record(
        ProductionEvent(
            line, "ingest", "batch", unit, event, uuid.uuid4().hex, ReasonCode.FRESHNESS if bad else None, at,
            duration_s=60.0, num_in=10, num_good=0 if bad else 10, num_bad=10 if bad else 0, partition=unit,
        )
    )  # fmt: skip


# --- the figures
def test_figures_follow_the_ledger_and_are_kept_while_nothing_happens(f: Factory) -> None:
    [(line, spec)] = lines().items()
    kept, day = KeptKpis(), timedelta(days=1)
    batch(f.ledger, line, EventKind.PASSED, NOW - 3 * day)
    first = kept.read(f, {line: spec}, NOW)[line]
    assert (first.stations[0].num_units, first.stations[0].first_pass_yield) == (1, 1.0)
    assert kept.read(f, {line: spec}, NOW + MAX_AGE)[line] is first
    batch(f.ledger, line, EventKind.HELD, NOW - 2 * day)
    second = kept.read(f, {line: spec}, NOW + MAX_AGE)[line]
    assert (second.stations[0].num_units, second.stations[0].first_pass_yield) == (2, 0.5)
    assert second.cost.work_s == 120
    later = kept.read(f, {line: spec}, NOW + 28 * day)[line]
    assert later.stations[0].num_units == 1, "the first is older than thirty days"


def test_lines_on_which_nothing_happened_are_reckoned_anew_some_at_a_time(f: Factory) -> None:
    mine, kept = lines(MOST_OLD + 2), KeptKpis()
    later = NOW + 2 * MAX_AGE
    assert {each.end for each in kept.read(f, mine, NOW).values()} == {NOW}
    assert sum(each.end == later for each in kept.read(f, mine, later).values()) == MOST_OLD
    assert {each.end for each in kept.read(f, mine, later).values()} == {later}


# --- who may
@pytest.fixture
def client(f: Factory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TestClient:
    """The route as the plant serves it, with Airflow's own authentication, on a plant without lines."""
    from airflow.api_fastapi.app import create_auth_manager

    monkeypatch.setenv("AIF_LEDGER_DSN", f.settings.ledger_dsn.get_secret_value())
    monkeypatch.setenv("AIF_METRICS_TOKEN", TOKEN)
    monkeypatch.setenv("AIF_LINES_DIR", str(tmp_path))
    create_auth_manager()
    app = FastAPI()
    app.mount(FLOOR_PREFIX, create_app())
    return TestClient(app)


def test_who_has_the_token_reads_in_the_format_of_openmetrics(client: TestClient) -> None:
    asked = {"authorization": f"Bearer {TOKEN}", "accept": "application/openmetrics-text; version=1.0.0"}
    answer = client.get("/floor/metrics", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"aifactory_station_oee_ratio", "aifactory_lead_time_p95_seconds", "aifactory_notices"} <= found


def test_a_line_that_is_not_valid_keeps_no_other_from_its_figures(client: TestClient, tmp_path: Path) -> None:
    text = (REPOSITORY / "include" / "lines" / "flight_delay" / "line.yaml").read_text()
    for name, more in (("good_line", ""), ("bad_line", "nonsense: 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "line.yaml").write_text(text.replace("line: flight_delay", f"line: {name}") + more)

    def told() -> set[str]:
        answer = client.get("/floor/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        return set(re.findall(r'aifactory_line_info\{line="(\w+)"', answer.text))

    assert told() == {"good_line"}
    mended = tmp_path / "bad_line" / "line.yaml"
    mended.write_text(mended.read_text().replace("nonsense: 1\n", ""))
    assert told() == {"good_line", "bad_line"}


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer é"],
)
def test_who_has_another_or_none_does_not(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode()}
    assert client.get("/floor/metrics", headers=headers).status_code in {401, 403}


@pytest.mark.parametrize("given", ["Bearer ", "Bearer", None])
def test_without_a_token_in_the_settings_an_empty_one_opens_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv("AIF_METRICS_TOKEN", "")
    headers = {} if given is None else {"authorization": given}
    assert client.get("/floor/metrics", headers=headers).status_code in {401, 403}


@pytest.mark.parametrize("given", [None, f"Bearer {TOKEN}"])
def test_the_token_opens_the_metrics_alone(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    routes = [(method, path) for path, methods in create_app().openapi()["paths"].items() for method in methods]
    assert len(routes) > 15
    for method, path in [*routes, ("get", "/api/openapi.json"), ("get", "/"), ("get", "/lines/x")]:
        answer = client.request(method, FLOOR_PREFIX + re.sub(r"\{\w+\}", "x", path), headers=headers)
        assert answer.status_code in {401, 403}, path
