"""The factory floor's page in a browser: every page of it, for the eye, the keyboard and the screen reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.browser.conftest import PHONE, Looker, Plant, picture
from tests.browser.played_floor import day

from orchestration import floormodels as m

pytestmark = pytest.mark.browser

AXE = (Path(__file__).parent / "axe.min.js").read_text()
LINE = "/lines/flight_delay"
PAGES = {
    "overview": ("/", "Factory floor"),
    "status": (LINE, "Flight delay"),
    "first-night": ("/lines/new_line", "No model is in service yet"),
    "trends": (f"{LINE}/trends", "First-pass yield"),
    "gates": (f"{LINE}/gates", "Gate results"),
    "drift": (f"{LINE}/windows", "Calibration error"),
    "no-drift": ("/lines/new_line/windows", "No window has been judged yet"),
    "rollouts": (f"{LINE}/rollouts", "Under way"),
    "losses": (f"{LINE}/pareto", "Why units were stopped"),
    "lead-time": (f"{LINE}/lead-times", "Median"),
    "quarantine": (f"{LINE}/quarantine", "the whole day"),
    "quarantined-rows": (f"{LINE}/quarantine/flights/{day(1)}", "Choose rows to release"),
    "units": (f"{LINE}/units", "Everything that the line has worked on"),
    "unit": (f"{LINE}/units/model/10", "Genealogy"),
    "dag-tab": ("/dags/flight_delay.train", "Flight delay"),
    "plant-dag-tab": ("/dags/capacity", "is no station of a line"),
    "run-tab": ("/dags/flight_delay.ingest/runs/scheduled__2", "What this run worked on"),
}
Open = Callable[..., Looker]
SETTLED = """() => Promise.allSettled(document.getAnimations()
    .filter((each) => each.effect.getComputedTiming().iterations !== Infinity).map((each) => each.finished))"""


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical, once colours have come to rest."""
    page.evaluate(SETTLED)
    page.evaluate(AXE)
    found: list[dict[str, Any]] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)"
    )
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {json.dumps(one['nodes'][0]['any'][:1])[:300]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_accessible_light_and_dark_and_fits_a_phone(looker: Open, name: str) -> None:
    route, words = PAGES[name]
    someone = looker()
    page = someone.open(route)
    expect(page.get_by_text(words).first).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("html")).to_have_class(scheme)
        assert violations(page) == []
        picture(page, f"{name}-desktop-{scheme}")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert violations(page) == []
    picture(page, f"{name}-phone-dark")
    someone.saw_nothing_wrong()


def test_an_operator_releases_rows_with_a_reason_by_keyboard_alone(looker: Open, plant: Plant) -> None:
    page = looker().open(f"{LINE}/quarantine/flights/{day(1)}")
    page.get_by_role("checkbox", name="Row 14", exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Release").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Release 1 row")
    expect(dialog.get_by_role("textbox")).to_be_focused()
    assert violations(page) == []
    expect(dialog.get_by_role("button", name="Release")).to_be_disabled()
    page.keyboard.type("the sensor was read backwards; checked with the airport")
    dialog.get_by_role("button", name="Release").focus()
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("status")).to_contain_text("1 row released by anna.")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    assert plant.floor.decided == {14: ("released", "anna")}
    expect(page.get_by_role("row").filter(has_text="Released")).to_have_count(1)
    expect(page.get_by_text("Choose rows to release")).to_be_visible()


def test_what_the_plant_refuses_is_said_and_nothing_is_lost(looker: Open, plant: Plant) -> None:
    page = looker().open(f"{LINE}/quarantine/flights/{day(1)}")
    page.get_by_role("checkbox", name="Row 4", exact=True).check()
    page.get_by_role("button", name="Drop").click()
    plant.floor.may_edit = False
    dialog = page.get_by_role("dialog", name="Drop 1 row")
    dialog.get_by_role("textbox").fill("twice the same")
    dialog.get_by_role("button", name="Drop").click()
    expect(dialog.get_by_role("alert")).to_contain_text("you may not edit flight_delay.ingest")
    expect(dialog.get_by_role("textbox")).to_have_value("twice the same")
    assert plant.floor.decided == {}


def test_who_may_only_read_is_offered_nothing_to_change(looker: Open, plant: Plant) -> None:
    plant.floor.may_edit = False
    page = looker().open(f"{LINE}/quarantine/flights/{day(1)}")
    expect(page.get_by_text("A value lies outside its possible range.").first).to_be_visible()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_role("button", name="Release")).to_have_count(0)
    page = looker().open(LINE)
    expect(page.get_by_text("Version 12 waits for your approval.")).to_be_visible()
    expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)


def test_what_is_acknowledged_waits_no_more(looker: Open, plant: Plant) -> None:
    page = looker().open("/")
    waiting = page.get_by_role("region", name="Waiting for a person")
    expect(waiting.get_by_role("listitem")).to_have_count(3)
    waiting.get_by_role("button", name="Acknowledge").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("the airport delivers again tonight")
    dialog.get_by_role("button", name="Acknowledge").click()
    expect(dialog.get_by_role("status")).to_contain_text("on the record")
    page.keyboard.press("Escape")
    expect(waiting.get_by_role("listitem")).to_have_count(2)
    assert plant.floor.acknowledged == {f"flight_delay/held/{day(1)}"}


def test_the_page_updates_by_itself_and_says_when_it_cannot(looker: Open, plant: Plant) -> None:
    someone = looker()
    page = someone.open("/")
    expect(page.get_by_role("list", name="Lines").get_by_role("heading")).to_have_count(9)
    plant.floor.names.append("tenth_line")
    expect(page.get_by_role("list", name="Lines").get_by_role("heading")).to_have_count(10, timeout=15_000)
    page.route("**/api/v1/**", lambda route: route.fulfill(status=503, json={"detail": "the ledger does not answer"}))
    expect(page.get_by_text("A store of the plant is away")).to_be_visible(timeout=25_000)
    expect(page.get_by_role("list", name="Lines").get_by_role("heading")).to_have_count(10)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "You are not logged in any more"), (404, "There is no such thing"), (503, "A store of the plant is away")],
)
def test_errors_are_told_in_words(looker: Open, status: int, words: str) -> None:
    someone = looker()
    page = someone.page
    page.route("**/api/v1/**", lambda route: route.fulfill(status=status, json={"detail": "because of this"}))
    someone.open(LINE)
    expect(page.get_by_role("alert")).to_contain_text(words, timeout=15_000)
    expect(page.get_by_role("alert")).to_contain_text("because of this")
    assert violations(page) == []
    picture(page, f"error-{status}-desktop-light")


def test_a_line_that_is_not_valid_is_told_above_the_others(looker: Open, plant: Plant) -> None:
    message = "schedule.cron: cron never ticks by '61 6 * * *'; " + "quality.max_quarantine_share: " * 9
    plant.floor.invalid = [m.InvalidLine(folder="loan_default", message=message)]
    someone = looker()
    page = someone.open("/")
    told = page.get_by_role("alert")
    expect(told).to_contain_text("1 line is not valid")
    expect(told.get_by_role("listitem")).to_contain_text("loan_default/line.yaml schedule.cron: cron never ticks by")
    expect(page.get_by_role("list", name="Lines").get_by_role("heading")).to_have_count(9)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("html")).to_have_class(scheme)
        assert violations(page) == []
        picture(page, f"invalid-line-desktop-{scheme}")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    plant.floor.invalid = []
    expect(told).to_have_count(0, timeout=15_000)
    someone.saw_nothing_wrong()


def test_a_line_is_found_by_its_name_and_state(looker: Open) -> None:
    page = looker().open("/")
    lines = page.get_by_role("list", name="Lines").get_by_role("heading")
    page.get_by_role("textbox", name="Find a line").fill("fraud")
    expect(lines).to_have_text(["Payment fraud"])
    page.reload()
    expect(lines).to_have_text(["Payment fraud"])
    page.get_by_role("textbox", name="Find a line").fill("")
    page.get_by_role("button", name="Needs a person 1").click()
    expect(lines).to_have_text(["Flight delay"])


def test_genealogy_leads_both_ways(looker: Open) -> None:
    page = looker().open(f"{LINE}/units/model/10")
    expect(page.get_by_text("It came from 86 units and went into 6 units")).to_be_visible()
    page.get_by_role("region", name="Genealogy").last.get_by_role("link", name=day(4)).click()
    expect(page).to_have_url(re.compile(rf"units/batch/{day(4)}$"))
    expect(page.get_by_text("It came from 40 units and went into 9 units")).to_be_visible()


def test_times_are_in_the_zone_that_was_chosen_in_airflow(looker: Open) -> None:
    someone = looker(timezone="America/New_York")
    page = someone.open(f"{LINE}/units/batch/{day(4)}")
    made = page.get_by_role("region", name="Facts").locator("time")
    expect(made).to_have_text("2026-11-17 03:00")
    expect(made).to_have_attribute("title", "2026-11-17 08:00:00 UTC")
    page.evaluate("localStorage.setItem('timezone', JSON.stringify('Asia/Tokyo'))")
    page.reload()
    expect(made).to_have_text("2026-11-17 17:00")


def test_in_airflows_frame_it_follows_the_theme_and_leads_out(looker: Open) -> None:
    someone = looker()
    page = someone.open("", prefix="/plugin/floor")
    frame = page.frame_locator("#floor")
    expect(frame.get_by_role("heading", name="Factory floor")).to_be_visible()
    expect(frame.locator("html")).to_have_class("light")
    page.evaluate("localStorage.setItem('theme', 'dark')")
    expect(frame.locator("html")).to_have_class("dark")
    frame.get_by_role("link", name="Flight delay").first.click()
    expect(frame.get_by_role("heading", name="Flight delay")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/plugin/floor/floor/#/lines/flight_delay$"))
    page.reload()
    expect(frame.get_by_role("heading", name="Flight delay")).to_be_visible()
    frame.get_by_role("link", name="Decide in Airflow").click()
    expect(page).to_have_url(re.compile(r"/dags/flight_delay\.deploy/runs/manual__1/tasks/approve$"))
    someone.saw_nothing_wrong()


def test_a_new_tab_opens_out_of_airflows_frame(looker: Open) -> None:
    page = looker().open("", prefix="/plugin/floor/floor/#/lines/flight_delay")
    with page.context.expect_page() as opened:
        page.frame_locator("#floor").get_by_role("link", name="ingest", exact=True).click(modifiers=["Control"])
    expect(opened.value).to_have_url(re.compile(r"/dags/flight_delay\.ingest$"))


def test_a_long_floor_is_shown_page_by_page(looker: Open, plant: Plant) -> None:
    plant.floor.names += [f"line_{n:03}" for n in range(91)]
    page = looker().open("/")
    lines = page.get_by_role("list", name="Lines").get_by_role("heading")
    expect(lines).to_have_count(48)
    page.get_by_role("button", name="Show more").click()
    expect(lines).to_have_count(96)
