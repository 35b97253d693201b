"""Pages in a browser that tell of every request to another host and of every error, and a played plant to look at.

With `AIF_SCREENSHOTS` set to a folder, tests leave pictures of the pages there.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from tests.browser.played_floor import NOW, PlayedFloor, create_app

from aifactory.settings import REPOSITORY

DIST = REPOSITORY / "plugins" / "floor" / "dist"
PHONE = (375, 812)
DESKTOP = (1440, 900)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on a free port; gives its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@dataclass
class Plant:
    """A plant that a browser looks at."""

    url: str
    floor: PlayedFloor


@pytest.fixture
def plant() -> Iterator[Plant]:
    floor = PlayedFloor()
    with served(create_app(floor, DIST)) as url:
        yield Plant(url, floor)


@dataclass
class Looker:
    """One person's browser window, and what went wrong in it."""

    page: Page
    url: str
    strangers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, route: str, prefix: str = "/floor/#") -> Page:
        """Go to a route of the floor, and wait until it has what it asked for."""
        self.page.goto(f"{self.url}{prefix}{route}")
        self.page.wait_for_load_state("networkidle")
        return self.page

    def saw_nothing_wrong(self) -> None:
        assert self.strangers == []
        assert self.errors == []


@pytest.fixture
def looker(chromium: Browser, plant: Plant) -> Iterator[Callable[..., Looker]]:
    """Opens browser windows: size, light or dark, time zone."""
    contexts = []

    def one(size: tuple[int, int] = DESKTOP, scheme: Any = "light", timezone: str = "Europe/Berlin") -> Looker:
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, timezone_id=timezone
        )
        contexts.append(context)
        page = context.new_page()
        page.clock.set_fixed_time(NOW)
        found = Looker(page, plant.url)
        page.on("request", lambda r: None if r.url.startswith(plant.url) else found.strangers.append(r.url))
        page.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        return found

    yield one
    for context in contexts:
        context.close()


def picture(page: Page, name: str) -> None:
    """Leave a picture of the whole page, where pictures are asked for."""
    folder = os.environ.get("AIF_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
