"""A new champion that is wrong about what happens, on the running plant: found out by its live answers, taken back.

The bad one is the demo's: it says of every flight that it will be late. This time nobody calls while it is tried, and
what the line wants to follow from silence is its promotion. Then callers ask about three nights whose outcomes are in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pytest
from tests.running_plant import RunningPlant, tasks_of
from tests.serving.playing import Playing

from aifactory.ledger import EventKind
from aifactory.line import LineSpec, find_line
from aifactory.reasons import ReasonCode
from aifactory.serving import traffic
from aifactory.serving.live import live_predictions
from aifactory.serving.requestfile import write_requests
from aifactory.serving.traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.thorough, pytest.mark.timeout(2400)]

LINE = "flight_delay"
ROUND_S = 60
"""In so many seconds the callers ask for the flights of three nights, which is the demo's pace."""


@pytest.fixture
def spec(running: RunningPlant) -> Iterator[LineSpec]:
    """The line; it waits six seconds, not two minutes, for callers that do not come: the next run takes that."""
    path = running.settings.lines_dir / LINE / "line.yaml"
    before = path.read_text()
    path.write_text(re.sub(r"patience_minutes: .*", "patience_minutes: 0.1", before))
    try:
        spec = find_line(running.settings.lines_dir, LINE)
        assert spec.deployment.patience_minutes == 0.1
        yield spec
    finally:
        path.write_text(before)


def until(come_about: Callable[[], bool], timeout_s: float, told: Callable[[], object]) -> None:
    """Wait for something; `told` says what is there instead."""
    deadline = time.monotonic() + timeout_s
    while not come_about():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {told()}"
        time.sleep(1)


def wanted(running: RunningPlant) -> Traffic:
    return traffic.read(running.factory.store, LINE, datetime.now(UTC))


def released_in_silence(running: RunningPlant, spec: LineSpec, version: str) -> None:
    """Release a version while nobody calls."""
    api, dag = running.api, f"{LINE}.deploy"
    run = api.trigger_dag(dag, conf={"version": version})
    assert api.wait_run(dag, run, timeout_s=900) == "success", f"{api.run_url(dag, run)}: {tasks_of(api, dag, run)}"
    document, champion = wanted(running), running.factory.registry(spec).champion()
    assert (document.champion, document.reason) == (version, None), document.explanation
    assert document.promoted_at is not None, "a rollout of all its steps, so it is on probation"
    assert champion is not None
    assert champion.version == version


def num_answers(running: RunningPlant, spec: LineSpec, version: str, days: list[str]) -> dict[str, int]:
    """Day → flights about which a version has answered callers, as feedback will read them."""
    found = {}
    for day in days:
        answers = live_predictions(running.factory, spec, day)
        own = (pc.field("model_version") == version) & ~pc.field("shadow")
        found[day] = answers.filter(own).num_rows if answers is not None else 0
    return found


def test_a_new_champion_that_is_wrong_on_live_answers_is_taken_back(
    running: RunningPlant, spec: LineSpec, tmp_path: Path
) -> None:
    f, api, dag = running.factory, running.api, f"{LINE}.feedback"
    [back] = running.report["rolled_back"]
    bad, days = back["version"], [night["day"] for night in running.report["nights"][-spec.feedback.window_days :]]
    running.come_to_rest(LINE)
    before = f.registry(spec).champion()
    assert before is not None
    assert before.version != bad
    released_in_silence(running, spec, bad)

    requests = tmp_path / "requests.parquet"
    write_requests(f, spec, days, requests)
    playing = Playing(running.settings.serving_address, requests, "--lasts", str(ROUND_S), "--loop", line=LINE)

    def answered(version: str) -> int:
        return int(playing.counted()["by_version"].get(version, {}).get("answered", 0))

    try:
        until(
            lambda: min(num_answers(running, spec, bad, days).values()) >= spec.feedback.min_live_outcomes // 2,
            timeout_s=6 * ROUND_S,
            told=lambda: f"live answers of {bad} in S3: {num_answers(running, spec, bad, days)}; {playing.counted()}",
        )
        run = api.trigger_dag(dag)
        state = api.wait_run(dag, run, timeout_s=900)
        tasks = tasks_of(api, dag, run)
        assert state == "success", f"{api.run_url(dag, run)} is {state}: {tasks}"
        watched = api.xcom(dag, run, "watch")
        assert watched["breach"], f"{watched['explanation']}; live answers: {num_answers(running, spec, bad, days)}"
        assert tasks["take_back"] == "success"

        until(
            lambda: getattr(traffic.read_observed(f.store, LINE), "generation", 0) == wanted(running).generation,
            timeout_s=60,
            told=lambda: f"{traffic.read_observed(f.store, LINE)}, and wanted is {wanted(running)}",
        )
        until(lambda: answered(before.version) > 20, timeout_s=60, told=playing.counted)  # what was on its way is in
        last = answered(bad)
        until(lambda: answered(before.version) > 200, timeout_s=60, told=playing.counted)
        assert answered(bad) == last, "nobody gets an answer of what was taken back"
        found = playing.stop()
        assert found["sent"] == found["answered"] > 0, found["failures"]
    finally:
        playing.process.kill()
        playing.process.wait()

    document, champion = wanted(running), f.registry(spec).champion()
    assert champion is not None
    assert (document.champion, document.promoted_at, champion.version) == (before.version, None, before.version)
    assert (champion.history[-1]["how"], champion.history[-1]["by"]) == ("rolled_back", "line")
    told = f.ledger.events(line=LINE, unit=bad, kind=EventKind.ROLLED_BACK)[-1]
    assert (told.run_id, told.reason) == (f"feedback/{run}", ReasonCode.LIVE_BREACH)
    assert (told.detail["to"], told.detail["why"]) == (before.version, watched["explanation"])
    running.come_to_rest(LINE, timeout_s=900)  # the windows with these answers may call for a retrain
