"""The factory floor in Airflow's own UI, on a plant that has really run: for an operator, a viewer and a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect
from tests.browser.conftest import picture
from tests.running_plant import RunningPlant

from aifactory.line import find_line
from plant.operate import login

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


@contextmanager
def window(chromium: Browser, running: RunningPlant, user: str | None) -> Iterator[Page]:
    """A browser window of somebody who is logged in to Airflow, or of a stranger."""
    address = f"http://127.0.0.1:{running.settings.airflow_port}"
    with chromium.new_context(base_url=address, viewport={"width": 1440, "height": 900}) as context:
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
