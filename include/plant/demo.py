"""`make demo`: watch the flight delay line turn on real data, by the real scheduler, and write down what it did.

The demo is an operator with a fast clock: it lets the outside world land a day, triggers that day's ingest, and
waits until the loop has come to rest. Everything in between is the line's own doing.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

import plant
from aifactory.errors import NotFound
from aifactory.factory import Factory
from aifactory.feedback import days_apart
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.line import LineSpec, find_line
from aifactory.packaging import read_manifest
from aifactory.serving.requestfile import write_requests
from aifactory.settings import REPOSITORY, Settings
from outside.flights import World
from plant.alarmist import alarmist
from plant.clients import read_keys

if TYPE_CHECKING:
    from plant.api import AirflowApi

log = logging.getLogger(__name__)

LINE = "flight_delay"
NUM_NIGHTS = 8
CALLERS_ROUND_S = 20
"""In so many seconds the callers ask for a day's flights: about 50 requests a second."""
REST_S = 3.0
"""The loop is at rest when no run was active for this long, s."""
RUN_TIMEOUT_S = 900.0
WIDTH = 120
"""Of the table where the output is no terminal, characters."""


class DemoFailed(Exception):
    """The loop did not do what the demo waits for; the message says which run to look at."""


@dataclass
class Night:
    """One row of the demo's table."""

    night: int
    day: str
    rows_in: int
    accepted: int
    quarantined: int
    dataset_revision: str
    model_version: str | None
    live_roc_auc: float | None
    score_psi: float | None
    drifted_features: int | None
    decision: str
    seconds: float


@dataclass
class Report:
    """What `var/demo/report.json` holds. Times in seconds, memory in GB (sum of PSS over all processes)."""

    line: str = LINE
    first_champion_s: float = 0.0
    peak_memory_gb: float = 0.0
    phases_s: dict[str, float] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    nights: list[Night] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    rolled_back: list[dict[str, Any]] = field(default_factory=list)
    traffic: dict[str, Any] = field(default_factory=dict)
    retrains: list[dict[str, Any]] = field(default_factory=list)


class MemoryWatch(Protocol):
    """Keeps the peak of the plant's memory while the demo runs."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> float:
        """End; the peak, GB."""


class _ReportedMemory(threading.Thread):
    """Keeps the peak of what stdin says, bytes a line: only the host can see the containers' memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="memory-watch")
        self.peak_bytes = 0.0

    def run(self) -> None:
        """Read to the end."""
        for line in sys.stdin:
            self.peak_bytes = max(self.peak_bytes, float(line or 0))

    def stop(self) -> float:
        """The peak so far, GB."""
        return self.peak_bytes / 1e9


class _MemoryWatch(threading.Thread):
    """Samples the plant's memory every few seconds and keeps the peak."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True, name="memory-watch")
        self._settings = settings
        self._ended = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._ended.wait(2.0):
            self.peak_bytes = max(self.peak_bytes, plant.memory(self._settings))

    def stop(self) -> float:
        """End the sampling; the peak, GB."""
        self._ended.set()
        self.join(timeout=10)
        return self.peak_bytes / 1e9


class Demo:
    """One demonstration: an initial history, the first champion, then the nights."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.spec: LineSpec = find_line(settings.lines_dir, LINE)
        self.factory = Factory(settings)
        self.world = World(settings)
        self.api: AirflowApi = plant.airflow_api(settings)
        self.report = Report()
        self.began_at = time.time()

    @classmethod
    def quiet(cls, settings: Settings) -> Demo:
        """A demo that says nothing, for benches."""
        return cls(settings, Console(quiet=True))

    def say(self, text: str) -> None:
        """One line of progress."""
        self.console.print(f"[bold cyan]»[/] {text}")

    # --- the two acts
    def make_first_champion(self, started_at: float) -> None:
        """Land the initial history, ingest it in one run, and wait for the loop to release its first model."""
        history = self.world.history(NUM_NIGHTS)
        begun = time.time()
        self.say(f"the outside world lands {len(history)} days, {history[0]} to {history[-1]}")
        self.world.land(history)
        run = self._ingest(history[0], history[-1])
        landed = time.time()
        self.say(f"history is in ({landed - begun:.0f} s, run {run}); the loop makes its first model")
        self._come_to_rest()
        champion = self._champion()
        if champion is None:
            raise DemoFailed(
                f"no champion after the history; look at the runs of {LINE}.* at {self.settings.airflow_url}"
            )
        train_s, deploy_s = self._seconds_of(f"{LINE}.train"), self._seconds_of(f"{LINE}.deploy")
        self.report.phases_s |= {"data": round(landed - begun, 1), "training": train_s, "release": deploy_s}
        live_at = self._ended_at(f"{LINE}.deploy")
        self.report.first_champion_s = round(live_at - started_at, 1)
        self.report.history = {
            "first_day": history[0],
            "last_day": history[-1],
            **self._counts(history),
            "dataset_revision": champion["dataset_revision"],
            "model_version": champion["version"],
        }
        self.say(
            f"champion v{champion['version']} is in service {self.report.first_champion_s:.0f} s after the command"
        )

    def play_nights(self) -> None:
        """Play the nights up to yesterday, one at a time, while callers ask the model that is in service."""
        with self._callers():
            self._play_nights()
            self._bad_candidate()

    def _play_nights(self) -> None:
        for number, day in enumerate(self.world.nights(NUM_NIGHTS)[: self.settings.demo_nights], start=1):
            begun = time.time()
            before = self._champion()
            self.play(day)
            night = self._night(number, day, before, time.time() - begun)
            self.report.nights.append(night)
            self.say(f"night {number}, {day}: {night.accepted} rows, {night.decision} ({night.seconds:.0f} s)")
            if not self.report.refused and self._can_be_judged(day):
                self._handicapped_challenger(day)

    def play(self, day: str) -> None:
        """One night: the day lands, is ingested, and the loop comes to rest."""
        self.world.land([day])
        self._ingest(day, None)
        self._come_to_rest(day)

    # --- steps
    def _ingest(self, first: str, last: str | None) -> str:
        conf = {"partition": first} | ({"partition_to": last} if last else {})
        run = self.api.trigger_dag(f"{LINE}.ingest", conf=conf)
        self._wait(f"{LINE}.ingest", run)
        return run

    def _wait(self, dag_id: str, run: str) -> None:
        state = self.api.wait_run(dag_id, run, timeout_s=RUN_TIMEOUT_S)
        if state != "success":
            raise DemoFailed(f"{dag_id} run {run} ended as {state}: see {self.api.run_url(dag_id, run)}")

    def _can_be_judged(self, day: str) -> bool:
        """Whether there are days enough that the champion has not learned, to judge a challenger on."""
        champion = self._champion()
        return champion is not None and days_apart(champion["trained_until"], day) >= self.spec.dataset.min_holdout_days

    def _handicapped_challenger(self, day: str) -> None:
        """Train a challenger on the schedule alone. It is worse on purpose: the gate must refuse it."""
        keep = {"carrier", "origin", "dest", "scheduled_hour", "distance"}
        drop = [f for f in self.spec.model.features if f not in keep]
        self.say(f"a challenger is deliberately handicapped: trained without {len(drop)} of its features")
        run = self.api.trigger_dag(
            f"{LINE}.train", conf={"drop_features": drop, "why": "demo: deliberately handicapped challenger"}
        )
        self._wait(f"{LINE}.train", run)
        self._come_to_rest()
        scrapped = self._events(EventKind.SCRAPPED)
        if not scrapped:
            raise DemoFailed(
                f"the gate released a handicapped challenger: see {self.api.run_url(f'{LINE}.train', run)}"
            )
        last = scrapped[-1]
        self.report.refused.append(
            {"after_day": day, "unit": last.unit, "deliberate": True, "reason": last.reason, "detail": last.detail}
        )
        self.say(f"refused: {last.reason} - {last.reason.sentence if last.reason else ''}")

    @contextmanager
    def _callers(self) -> Iterator[None]:
        """An outside client asks for the flights of the newest day again and again; what became of it is reported."""
        folder = self.settings.home / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        asked, told = folder / "requests.parquet", folder / "traffic.json"
        day = self.world.history(NUM_NIGHTS)[-1]
        champion = self._champion()
        if champion is None:
            raise DemoFailed(f"{LINE} has no champion that could be asked")
        content = read_manifest(self.factory.store, champion["package"])["dir_md5"]
        number = write_requests(self.factory, self.spec, [day], asked, content)
        self.say(f"callers ask {self.settings.serving_url} about {number} flights every {CALLERS_ROUND_S} s")
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "include")}
        if self.settings.serving_keys_file:
            from outside.traffic import KEY_VARIABLE

            environment[KEY_VARIABLE] = next(iter(read_keys(self.settings.serving_keys_file).values()))
        player = subprocess.Popen(
            [sys.executable, "-m", "outside.traffic", "play", "--file", asked, "--url", self.settings.serving_address,
             "--line", LINE, "--lasts", str(CALLERS_ROUND_S), "--loop", "--report", told],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            player.terminate()
            player.wait(timeout=60)
        self.report.traffic = json.loads(told.read_text())
        counts = ", ".join(f"{self.report.traffic[name]} {name}" for name in ("sent", "answered", "failed"))
        self.say(f"the callers' requests: {counts}")

    def _bad_candidate(self) -> None:
        """Release a model that calls every flight late, past the gate: live traffic must find out."""
        champion = self._champion()
        if champion is None:
            raise DemoFailed(f"{LINE} has lost its champion")
        registry = self.factory.registry(self.spec)
        bad = alarmist(self.factory, self.spec, registry.version(champion["version"]))
        self.say(f"version {bad} calls every flight late; it is released past the gate, on purpose")
        run = self.api.trigger_dag(f"{LINE}.deploy", conf={"version": bad})
        self._wait(f"{LINE}.deploy", run)
        back = [e for e in self._events(EventKind.ROLLED_BACK) if e.unit == bad]
        if not back or self._champion() != champion:
            raise DemoFailed(f"the alarmist model was not taken back: see {self.api.run_url(f'{LINE}.deploy', run)}")
        explanation = str(back[-1].detail.get("explanation"))
        self.report.rolled_back.append({"version": bad, "reason": back[-1].reason, "explanation": explanation})
        self.say(f"taken back by itself: {back[-1].reason} - {explanation}")

    def _come_to_rest(self, day: str | None = None) -> None:
        """Wait until no run of the line is active and, for a night, its window has been judged."""
        quiet_since: float | None = None
        deadline = time.time() + RUN_TIMEOUT_S
        while time.time() < deadline:
            active = self.api.active_runs(prefix=f"{LINE}.")
            judged = day is None or self._window(day) is not None
            if active or not judged:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.time()
            elif time.time() - quiet_since >= REST_S:
                return
            failed = [r for r in self.api.failed_runs(prefix=f"{LINE}.") if r.queued_at >= self.began_at]
            if failed:
                raise DemoFailed(
                    f"{failed[0].dag_id} failed: see {self.api.run_url(failed[0].dag_id, failed[0].run_id)}"
                )
            time.sleep(0.5)
        raise DemoFailed(f"the loop did not come to rest within {RUN_TIMEOUT_S:.0f} s; active: {active}")

    # --- reading what happened
    def _night(self, number: int, day: str, before: dict[str, Any] | None, seconds: float) -> Night:
        window = self._window(day) or {}
        counts = self._counts([day])
        after = self._champion()
        drift = window.get("drift", {})
        return Night(
            night=number,
            day=day,
            rows_in=counts["rows_in"],
            accepted=counts["accepted"],
            quarantined=counts["quarantined"],
            dataset_revision=str(window.get("dataset_revision", ""))[:10],
            model_version=window.get("model_version"),
            live_roc_auc=window.get("metrics", {}).get("roc_auc"),
            score_psi=drift.get("score_psi"),
            drifted_features=drift.get("num_drifted"),
            decision=self._decision(day, before, after),
            seconds=round(seconds, 1),
        )

    def _decision(self, day: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
        decided = [e for e in self._events(EventKind.DECIDED, partition=day) if e.detail.get("retrain")]
        if not decided:
            return "keep"
        reason = decided[-1].reason
        released = after is not None and (before is None or after["version"] != before["version"])
        outcome = f"v{after['version']} released" if released and after else "challenger refused"
        self.report.retrains.append(
            {"day": day, "reason": reason, "released": released, "explanation": decided[-1].detail.get("explanation")}
        )
        return f"retrain ({reason}): {outcome}"

    def _events(self, kind: EventKind, partition: str | None = None) -> list[ProductionEvent]:
        events = self.factory.ledger.events(line=LINE, kind=kind)
        return [e for e in events if partition is None or e.partition == partition]

    def _counts(self, days: list[str]) -> dict[str, int]:
        totals = {"rows_in": 0, "accepted": 0, "quarantined": 0}
        for day in days:
            said = self.factory.store.get_json(f"accepted/{LINE}/{day}.json")
            totals["rows_in"] += said["num_in"]
            totals["accepted"] += said["num_accepted"]
            totals["quarantined"] += said["num_quarantined"]
        return totals

    def _champion(self) -> dict[str, Any] | None:
        try:
            return self.factory.store.get_json(f"serving/{LINE}/champion.json")
        except NotFound:
            return None

    def _window(self, day: str) -> dict[str, Any] | None:
        try:
            return self.factory.store.get_json(f"feedback/{LINE}/windows/{day}.json")
        except NotFound:
            return None

    def _seconds_of(self, dag_id: str) -> float:
        return round(sum(run.seconds for run in self.api.runs(dag_id)), 1)

    def _ended_at(self, dag_id: str) -> float:
        return max(run.ended_at for run in self.api.runs(dag_id))


def show(report: Report, console: Console) -> None:
    """Print the table of nights and the summary."""
    table = Table(title=f"{report.line}: {len(report.nights)} nights")
    for name in ("night", "rows in", "accepted", "quarantined", "dataset", "model", "live AUC", "PSI", "decision"):
        left = name in {"night", "dataset", "decision"}
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "decision")
    for n in report.nights:
        table.add_row(
            n.day,
            str(n.rows_in),
            str(n.accepted),
            str(n.quarantined),
            n.dataset_revision,
            f"v{n.model_version}" if n.model_version else "-",
            "-" if n.live_roc_auc is None else f"{n.live_roc_auc:.3f}",
            "-" if n.score_psi is None else f"{n.score_psi:.2f}",
            n.decision,
        )
    console.print(table)
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.phases_s.items())
    console.print(f"First champion live {report.first_champion_s:.0f} s after the command ({phases}).")
    console.print(f"Peak memory of everything together: {report.peak_memory_gb:.2f} GB.")
    if report.traffic:
        counts = ", ".join(f"{name} {report.traffic[name]}" for name in ("sent", "answered", "failed"))
        console.print(f"Requests of callers during the nights: {counts}.")
    for back in report.rolled_back:
        console.print(f"Taken back on live traffic, deliberately bad: v{back['version']} ({back['reason']}).")
    for refused in report.refused:
        console.print(f"Refused by the gate, deliberately handicapped: {refused['unit']} ({refused['reason']}).")


def run(settings: Settings) -> int:
    """Start the embedded plant and run the demonstration; returns the exit status. The plant stays up."""
    started_at = _started_at()
    console = _console()
    install_s = time.time() - started_at
    watch = _MemoryWatch(settings)
    watch.start()
    with plant.progress(console) as report:
        phases = plant.up(settings, report)
    running = plant.load(settings.home)
    phases_s = {"install": round(install_s + phases.get("install", 0.0), 1), "start": round(phases["start"], 1)}
    status = _play(running, console, watch, started_at, phases_s)
    if status == 0:
        plant.announce(running, console)
    return status


def run_on(settings: Settings, install_s: float, start_s: float) -> int:
    """Run the demonstration on a plant that runs already, in containers; returns the exit status.

    Args:
        settings: where its parts are.
        install_s: how long the images took, s.
        start_s: how long the start took, s.
    """
    watch = _ReportedMemory()
    watch.start()
    return _play(settings, _console(), watch, _started_at(), {"install": install_s, "start": start_s})


def _play(
    settings: Settings, console: Console, watch: MemoryWatch, started_at: float, phases_s: dict[str, float]
) -> int:
    demo = Demo(settings, console)
    demo.report.phases_s = phases_s
    try:
        if demo._champion() is None:
            demo.make_first_champion(started_at)
        demo.play_nights()
    except DemoFailed as failure:
        console.print(f"[bold red]The demo stopped:[/] {failure}")
        return 1
    finally:
        demo.report.peak_memory_gb = round(watch.stop(), 2)
    write(settings, demo.report)
    show(demo.report, console)
    return 0


def _started_at() -> float:
    """When the operator's command began, epoch seconds."""
    return float(os.environ.get("AIF_DEMO_STARTED") or time.time())


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def write(settings: Settings, report: Report) -> None:
    """Write `<home>/demo/report.json`."""
    path = settings.home / "demo" / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=1, default=str))
    log.info("report written to %s", path)
