"""The factory floor in Airflow's own UI, on a plant that has really run: for an operator, a viewer and a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jwt
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, BrowserContext, FrameLocator, Locator, Page, expect
from tests.browser.conftest import picture
from tests.running_plant import RunningPlant

from aifactory.ledger import EventKind
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.store import Store
from plant.operate import login
from plant.secrets import read_secrets

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.browser, pytest.mark.timeout(2000)]

LINE = "flight_delay"
SECTIONS = {
    "trends": "First-pass yield",
    "gates": "Data Docs",
    "windows": "Features over the limit",
    "rollouts": "Promoted",
    "pareto": "Why units were stopped",
    "lead-times": "Median",
    "quarantine": "Rows that a gate did not let through",
    "units": "version 1",
}


def nobody(chromium: Browser, running: RunningPlant) -> BrowserContext:
    """A browser that nobody is logged in with."""
    address = f"http://127.0.0.1:{running.settings.airflow_port}"
    return chromium.new_context(base_url=address, viewport={"width": 1440, "height": 900})


@contextmanager
def window(chromium: Browser, running: RunningPlant, user: str | None) -> Iterator[Page]:
    """A browser window of somebody who is logged in to Airflow, or of a stranger."""
    with nobody(chromium, running) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        if user is not None:
            name, password = login(running.settings, user)
            page.goto("/")
            page.fill("input[name=username]", name)
            page.fill("input[name=password]", password)
            page.click("button[type=submit]")
            page.wait_for_url(lambda url: "login" not in url)
        yield page


def open_floor(page: Page, route: str = "") -> FrameLocator:
    page.goto(f"/plugin/floor/floor/#/{route}")
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", level=1)).to_be_visible(timeout=60_000)
    return frame


def test_a_viewer_sees_every_page_and_nothing_to_change(running: RunningPlant, chromium: Browser) -> None:
    wrong: list[str] = []
    with window(chromium, running, "viewer") as page:
        here = page.url.split("/", 3)[2]
        page.on("request", lambda r: None if r.url.split("/", 3)[2] == here else wrong.append(r.url))
        page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        frame = open_floor(page)
        expect(frame.get_by_role("link", name="Flight delay")).to_be_visible()
        picture(page, "plant-floor")
        for section, words in SECTIONS.items():
            frame = open_floor(page, f"lines/{LINE}/{section}")
            expect(frame.get_by_text(words).first).to_be_visible(timeout=60_000)
            picture(page, f"plant-{section}")
        expect(frame.get_by_role("button", name="Acknowledge")).to_have_count(0)
        assert wrong == []


def test_the_champions_genealogy_is_that_of_the_registry(running: RunningPlant, chromium: Browser) -> None:
    champion = running.factory.registry(find_line(running.settings.lines_dir, LINE)).champion()
    assert champion is not None
    with window(chromium, running, "viewer") as page:
        frame = open_floor(page, f"lines/{LINE}")
        frame.get_by_role("region", name="In service").get_by_role("link", name=f"v{champion.version}").click()
        facts = frame.get_by_role("region", name="Facts")
        expect(facts).to_contain_text(champion.dataset_revision, timeout=60_000)
        expect(facts).to_contain_text(champion.trained_until)
        expect(facts).to_contain_text(champion.order_id)
        nodes = frame.locator("[data-node]")
        expect(nodes.filter(has_text=champion.dataset_revision[:8])).to_have_count(1)
        picture(page, "plant-genealogy")


def test_the_floor_is_a_tab_of_every_stage(running: RunningPlant, chromium: Browser) -> None:
    with window(chromium, running, "viewer") as page:
        page.goto(f"/dags/{LINE}.ingest")
        page.get_by_test_id("main-content").get_by_role("link", name="Factory floor").click()
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("heading", name="Flight delay")).to_be_visible(timeout=60_000)
        picture(page, "plant-dag-tab")


def test_a_stranger_is_asked_to_log_in(running: RunningPlant, chromium: Browser) -> None:
    with window(chromium, running, None) as page:
        page.goto("/floor/")
        expect(page.locator("input[name=password]")).to_be_visible(timeout=60_000)
        assert page.request.get("/floor/api/v1/overview", headers={"accept": "application/json"}).status == 401


def token_without_role(running: RunningPlant) -> str:
    """What Airflow's login gives a user of no role: it has such users, the plant has none."""
    api = running.api
    token = str(api.client.headers["authorization"]).removeprefix("Bearer ")
    claims, header = jwt.decode(token, options={"verify_signature": False}), jwt.get_unverified_header(token)
    key = read_secrets(running.settings.secrets_file)["PLANT_AIRFLOW_JWT_SECRET"]
    return jwt.encode(claims | {"sub": "stranger", "role": ""}, key, algorithm=header["alg"], headers=header)


def test_a_stranger_with_a_login_and_no_rights_sees_no_line(running: RunningPlant, chromium: Browser) -> None:
    with nobody(chromium, running) as context:
        address = f"http://127.0.0.1:{running.settings.airflow_port}"
        context.add_cookies([{"name": "_token", "value": token_without_role(running), "url": address}])
        page = context.new_page()
        page.goto("/floor/")
        expect(page.get_by_text("There is no line that you may see")).to_be_visible(timeout=60_000)
        page.goto(f"/floor/#/lines/{LINE}")
        told = page.get_by_role("alert").first
        expect(told).to_contain_text("There is no such thing, or you may not see it", timeout=60_000)
        picture(page, "plant-stranger")
        api, word = "/floor/api/v1", {"id": "whatever", "why": "because"}
        assert page.request.get(f"{api}/overview").json()["lines"] == []
        assert page.request.get(f"{api}/lines/{LINE}/quarantine").status == 404
        assert page.request.post(f"{api}/lines/{LINE}/acknowledgements", data=word).status == 404


# --- the operator
def answer(dialog: Locator, verb: str, why: str, told: str) -> None:
    """Give the reason that a dialog asks for, do it, see that it is done, and close it."""
    expect(dialog.get_by_role("button", name=verb)).to_be_disabled()
    dialog.get_by_role("textbox").fill(why)
    dialog.get_by_role("button", name=verb).click()
    expect(dialog.get_by_role("status")).to_contain_text(told, timeout=60_000)
    dialog.get_by_role("button", name="Close").first.click()
    expect(dialog).to_have_count(0)


@pytest.fixture
def day_with_a_bad_row(running: RunningPlant) -> Iterator[str]:
    """The newest day, its weather with a wind that cannot be; the good file is put back, and taken in, at the end."""
    settings, spec = running.settings, find_line(running.settings.lines_dir, LINE)
    day = running.report["nights"][-1]["day"]
    world = Store(
        settings,
        settings.landing_bucket,
        access_key=settings.world_access_key,
        secret_key=settings.world_secret_key.get_secret_value(),
    )
    key = spec.source.key("weather", day)
    good = world.get(key)
    table = world.get_table(key)
    wind = [1048.0, *table["wind_speed"].to_pylist()[1:]]
    at = table.schema.get_field_index("wind_speed")
    world.put_table(key, table.set_column(at, table.schema.field(at), pa.array(wind, table.schema.field(at).type)))
    try:
        running.ingest(LINE, day)
        yield day
    finally:
        world.put(key, good)
        running.ingest(LINE, day)


def test_an_operator_releases_a_row_and_the_next_run_accepts_it(
    running: RunningPlant, chromium: Browser, day_with_a_bad_row: str
) -> None:
    day, why, ledger = day_with_a_bad_row, "it was a tornado", running.factory.ledger
    with window(chromium, running, "operator") as page:
        frame = open_floor(page, f"lines/{LINE}/quarantine")
        frame.get_by_role("link", name=f"{day} weather").click()
        rows = frame.get_by_role("region", name="Rows in quarantine")
        expect(rows.get_by_role("row").filter(has_text="Pending")).to_have_count(1, timeout=60_000)
        rows.locator("summary").click()
        expect(rows.get_by_text("1048", exact=True)).to_be_visible()
        rows.get_by_role("checkbox", name="Row 0", exact=True).check()
        frame.get_by_role("button", name="Release").click()
        answer(frame.get_by_role("dialog", name="Release 1 row"), "Release", why, "1 row released by operator.")
        expect(rows.get_by_role("row").filter(has_text="Released")).to_contain_text("operator", timeout=60_000)
        picture(page, "plant-quarantined-row-released")
    [told] = ledger.events(line=LINE, unit=day, kind=EventKind.OVERRIDDEN)
    assert (told.reason, told.run_id) == (ReasonCode.OPERATOR, "operator:operator")
    assert {n: told.detail[n] for n in ("by", "why", "table", "decision", "row_numbers")} == {
        "by": "operator", "why": why, "table": "weather", "decision": "released", "row_numbers": [0],
    }  # fmt: skip

    run = running.ingest(LINE, day, user="operator")
    assert running.api.request("GET", f"/dags/{LINE}.ingest/dagRuns/{run}")["triggering_user_name"] == "operator"
    accepted = running.factory.store.get_table(f"accepted/{LINE}/weather/date={day}.parquet")
    assert 1048.0 in accepted["wind_speed"].to_pylist()
    taken_in = ledger.events(line=LINE, station="ingest", unit=day, kind=EventKind.REWORKED)[-1]
    assert (taken_in.run_id, taken_in.num_bad, taken_in.num_good) == (run, 0, taken_in.num_in)
    with window(chromium, running, "operator") as page:
        frame = open_floor(page, f"lines/{LINE}/quarantine/weather/{day}")
        expect(frame.get_by_role("alert")).to_contain_text("is in quarantine (any more)", timeout=60_000)
        picture(page, "plant-quarantined-row-accepted")


def test_an_operator_acknowledges_what_waits_and_it_waits_no_more(running: RunningPlant, chromium: Browser) -> None:
    """What waits since the demo: the model that was taken back by itself."""
    [back] = running.report["rolled_back"]
    version, why = back["version"], "it was bad on purpose"
    waits = running.api.client.get("/floor/api/v1/attention").json()["items"]
    assert version in [each["unit"] for each in waits if each["kind"] == "rolled_back"], waits
    with window(chromium, running, "operator") as page:
        frame = open_floor(page)
        waiting = frame.get_by_role("region", name="Waiting for a person")
        item = waiting.get_by_role("listitem").filter(has_text=f"deploy · model {version}")
        item.get_by_role("button", name="Acknowledge").click()
        answer(frame.get_by_role("dialog", name="Acknowledge"), "Acknowledge", why, "on the record")
        expect(item).to_have_count(0, timeout=60_000)
    [word] = running.factory.ledger.events(line=LINE, unit=version, kind=EventKind.ACKNOWLEDGED)
    assert (word.run_id, word.detail["by"], word.detail["why"]) == ("operator:operator", "operator", why)
