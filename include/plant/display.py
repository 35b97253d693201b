"""What the operator sees: progress, status and where to log in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from aifactory.settings import Settings
from plant.operate import PartStatus, Report, login

_GOOD = {"healthy", "running", "stopped"}


@contextmanager
def progress(console: Console | None = None) -> Iterator[Report]:
    """Something to hand to `up` and `down`: a live view on a terminal, else one plain line a change."""
    console = console or Console(stderr=True)
    began = time.monotonic()
    if not console.is_terminal:
        yield lambda part, doing: console.print(f"{time.monotonic() - began:6.1f} s  {part}: {doing}", highlight=False)
        return
    view = _View()
    with Live(get_renderable=view, console=console, refresh_per_second=8):
        yield view.tell


def announce(settings: Settings, console: Console) -> None:
    """Where everything is, and the login: the password on a terminal alone, for what is no terminal may be a log."""
    name, password = login(settings)
    shown = password if console.is_terminal else "is PLANT_AIRFLOW_ADMIN_PASSWORD in the secrets"
    for what, where in (
        ("Airflow", f"[cyan]{settings.airflow_url}[/]   user [bold]{name}[/]   password [bold]{shown}[/]"),
        ("MLflow", f"[cyan]{settings.mlflow_url}[/]"),
        ("Models", f"{settings.serving_url}/v2   (REST and gRPC, Open Inference Protocol)"),
        ("S3", settings.s3_url),
        ("Postgres", f"{settings.host}:{settings.postgres_port}"),
        ("Secrets", str(settings.secrets_file)),
    ):
        console.print(f"{what:<10}{where}", soft_wrap=True, highlight=False)


def show_status(settings: Settings, parts: list[PartStatus], total_bytes: int, console: Console) -> None:
    """The table of `status`."""
    table = Table("part", "state", "pid", "up", "memory", "where", box=None, pad_edge=False)
    for part in parts:
        colour = "green" if part.running else "red"
        memory = f"{part.memory_bytes / 1e6:.0f} MB" if part.pid else ""
        table.add_row(
            part.name, f"[{colour}]{part.state}[/]", str(part.pid or ""), _duration(part.up_s), memory, part.url
        )
    console.print(table)
    console.print(f"Memory of everything together: {total_bytes / 1e9:.2f} GB")
    console.print(
        f"The login is in {settings.secrets_file} (PLANT_AIRFLOW_ADMIN_PASSWORD)", soft_wrap=True, highlight=False
    )


class _View:
    """The live view of a start: one line a part, in the order in which they first appear."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lines: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def tell(self, part: str, doing: str) -> None:
        """Note what a part is doing."""
        with self._lock:
            self._lines[part] = (doing, time.monotonic() - self._began)

    def __call__(self) -> Group:
        """What to draw now."""
        with self._lock:
            lines = dict(self._lines)
        return Group(*(self._line(part, *line) for part, line in lines.items()))

    def _line(self, part: str, doing: str, at: float) -> Spinner | Text:
        if doing in _GOOD:
            return Text(f"✓ {part:<18} {doing} ({at:.1f} s)", style="green")
        return Spinner("dots", f"{part:<18} {doing}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds else ""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
