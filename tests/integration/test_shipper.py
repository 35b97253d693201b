"""The prediction log on its way to the real S3: nothing that was spooled is missing, whatever dies or is away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from tests.logged import IDENTITY, QUICK, record
from tests.model_rows import small_line
from tests.served import commit_days, contents, rows_of, serve

from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.ledger import EventKind
from aifactory.line import LineSpec
from aifactory.serving import live
from aifactory.serving import shipper as program
from aifactory.serving.predictionlog import Limits, PredictionLog, read_segment
from aifactory.serving.shipper import Shipper, read_status
from aifactory.serving.traffic import Traffic, write
from aifactory.settings import REPOSITORY
from aifactory.stages.feedback import decide, judge, window_key
from aifactory.stages.score import score

pytestmark = pytest.mark.integration

LINE = small_line()
MB = 1 << 20


@pytest.fixture(autouse=True)
def lines(factory: Factory, tmp_path: Path) -> Path:
    """The shipped line, with the columns of the test's rows, where shippers and gates look for it."""
    folder = tmp_path / "lines"
    shutil.copytree(factory.settings.lines_dir / LINE.line, folder / LINE.line)
    write_line(folder, LINE)
    object.__setattr__(factory, "settings", factory.settings.model_copy(update={"lines_dir": folder}))
    return folder


def write_line(folder: Path, spec: LineSpec) -> None:
    (folder / spec.line / "line.yaml").write_text(spec.model_dump_json())  # JSON is YAML


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def shipped(f: Factory) -> list[dict[str, Any]]:
    """Every row in S3, each once."""
    found = [f.store.get_table(o.key) for o in f.store.list("live/flight_delay/") if o.key.endswith(".parquet")]
    return pa.concat_tables(found).to_pylist() if found else []


def log_of(spool: Path, *numbers: int, slot: str = "a", **other: Any) -> PredictionLog:
    log = PredictionLog.open(spool / slot, IDENTITY, QUICK)
    for n in numbers:
        record(log, n, **other)
    return log


def log_and_close(spool: Path, *numbers: int, slot: str = "a", **other: Any) -> None:
    log_of(spool, *numbers, slot=slot, **other).close()


def test_every_recorded_row_is_accounted_for_after_a_kill_in_the_middle_of_traffic(
    factory: Factory, spool: Path
) -> None:
    f, shipper = factory, Shipper(factory, spool, 100 * MB)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.logged", str(spool / "a")],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": "include:."},
    )  # fmt: skip
    assert process.stdout is not None
    told, deadline = 0, time.monotonic() + 1
    while time.monotonic() < deadline:
        told = int(process.stdout.readline())
        shipper.turn()  # beside the traffic
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    on_disk = [read_segment(p).rows for p in (spool / "a").glob("*.open")]
    assert len(on_disk) <= 1

    shipper.turn()
    shipper.tell()
    counts = read_status(f, LINE.line).slots["a"]
    assert counts.recorded == counts.spooled + counts.lost
    assert (counts.queued, counts.waiting, sum(counts.dropped.values())) == (0, 0, 0)
    assert counts.shipped == counts.spooled >= told > 0
    rows = shipped(f)
    assert len(rows) == counts.spooled
    assert sorted(row["flight"] for row in rows) == list(range(counts.spooled)), "the first rows, whole"
    assert not list((spool / "a").iterdir()), "nothing is left behind"

    log_and_close(spool, 10**6)  # the server is back
    shipper.turn()
    after = shipper.counts()[LINE.line]["a"]
    assert (after.recorded, after.lost, after.shipped) == (counts.recorded + 1, counts.lost, counts.shipped + 1)


def test_shipping_again_gives_the_same_objects_with_the_same_bytes(
    factory: Factory, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, shipper = factory, Shipper(factory, spool, 100 * MB)
    log_and_close(spool, *range(5))
    log_and_close(spool, 9, slot="b", units_json="{}", shadow=True)

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # put, told, and dead before the segment is removed
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            shipper.turn()
    before = contents(f, "live/flight_delay/date")
    shipper.close()
    shipper = Shipper(f, spool, 100 * MB)
    shipper.turn()
    a, b = (shipper.counts()[LINE.line][slot] for slot in "ab")
    assert (a.recorded, a.shipped, a.waiting, a.units_unknown) == (5, 5, 0, 0), "counted once"
    assert (b.recorded, b.shipped, b.waiting, b.units_unknown) == (1, 1, 0, 1)
    after = contents(f, "live/flight_delay/date")
    assert {key: after[key] for key in before} == before
    assert len(shipped(f)) == 6
    shipper.close()

    with monkeypatch.context() as patch:  # put, and dead before that was told
        log_and_close(spool, 20)
        shipper = Shipper(f, spool, 100 * MB)
        patch.setattr(shipper, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            shipper.turn()
        shipper.close()
    put = contents(f, "live/flight_delay/date")
    shipper = Shipper(f, spool, 100 * MB)
    shipper.turn()
    assert contents(f, "live/flight_delay/date") == put
    assert shipper.counts()[LINE.line]["a"].shipped == 6


def test_a_full_disk_counts_nothing_twice(factory: Factory, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_and_close(spool, 1)
    shipper = Shipper(factory, spool, 100 * MB)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(program.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            shipper.turn()
    shipper.turn()
    shipper.tell()
    assert shipper.counts()[LINE.line]["a"].shipped == 1
    first = read_status(factory, LINE.line).at
    shipper.tell()
    assert read_status(factory, LINE.line).at == first
    monkeypatch.setattr(program, "ALIVE_S", 0.0)
    shipper.tell()
    assert read_status(factory, LINE.line).at > first, "a sign of life"


def test_one_shipper_at_a_time(factory: Factory, spool: Path) -> None:
    first = Shipper(factory, spool, MB)
    with pytest.raises(BlockingIOError):
        Shipper(factory, spool, MB)
    first.close()
    Shipper(factory, spool, MB).close()


def test_while_s3_is_away_the_spool_is_kept_up_to_its_bound(factory: Factory, spool: Path) -> None:
    away = Factory(factory.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}))
    shipper = Shipper(away, spool, 100 * MB)
    for n in range(4):
        log_and_close(spool, *range(10 * n, 10 * n + 10))
    assert shipper.turn() == 0
    counts = shipper.counts()[LINE.line]["a"]
    assert (counts.spooled, counts.waiting, counts.shipped) == (40, 40, 0)
    with pytest.raises(InfrastructureFault):
        shipper.tell()
    shipper.max_bytes = sum(p.stat().st_size for p in sorted(spool.glob("a/*.segment"))[2:])
    shipper.turn()
    shipper.close()

    back = Shipper(factory, spool, 100 * MB)
    back.turn()
    back.tell()
    counts = read_status(factory, LINE.line).slots["a"]
    assert (counts.recorded, counts.shipped, counts.dropped["spool_bound"], counts.waiting) == (40, 20, 20, 0)
    assert sorted(row["flight"] for row in shipped(factory)) == list(range(20, 40)), "the oldest were dropped"


def test_a_damaged_segment_holds_nobody_up(factory: Factory, spool: Path) -> None:
    log_and_close(spool, *range(10))
    [path] = spool.glob("a/*.segment")
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    log_and_close(spool, 99)
    [other] = set(spool.glob("a/*.segment")) - {path}
    other.write_bytes(b"nothing of ours")
    log_and_close(spool, 100)
    shipper = Shipper(factory, spool, 100 * MB)
    shipper.turn()
    counts = shipper.counts()[LINE.line]["a"]
    assert (counts.recorded, counts.shipped, counts.dropped["damaged"], counts.waiting) == (12, 10, 2, 0)
    assert sorted(row["flight"] for row in shipped(factory)) == [*range(9), 100]


def test_a_line_that_nobody_knows_yet_waits_for_its_spec(factory: Factory, spool: Path, lines: Path) -> None:
    (lines / LINE.line / "line.yaml").rename(lines / "aside")
    log_and_close(spool, 1)
    shipper = Shipper(factory, spool, 100 * MB)
    shipper.turn()
    assert shipper.counts()[LINE.line]["a"].waiting == 1
    (lines / "aside").rename(lines / LINE.line / "line.yaml")
    shipper.turn()
    assert shipper.counts()[LINE.line]["a"].shipped == 1


def test_days_become_one_file_each(factory: Factory, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f, shipper = factory, Shipper(factory, spool, 100 * MB)
    for n in range(4):
        log_and_close(spool, 2 * n, 2 * n + 1, slot="ab"[n % 2])
    shipper.turn()
    prefix = live.day_prefix(LINE.line, "2013-02-01")
    assert len(f.store.list(prefix)) == 4
    rows = sorted(shipped(f), key=str)
    shipper.compact()
    assert len(f.store.list(prefix)) == 4, "the day is young, and has few files"
    monkeypatch.setattr(program, "BUSY_FILES", 4)
    shipper.compact()
    [busy] = f.store.list(prefix)
    log_and_close(spool, 8)
    shipper.turn()
    shipper.compact()
    assert len(f.store.list(prefix)) == 2
    shipper.compact(quiet_s=0)
    [last] = f.store.list(prefix)
    assert last.key != busy.key
    assert [r for r in sorted(shipped(f), key=str) if r["flight"] != 8] == rows
    assert live.live_days(f.store, LINE.line).read()["2013-02-01"]["num_rows"] == 9
    shipper.compact(quiet_s=0)
    assert [o.key for o in f.store.list(prefix)] == [last.key]


def test_the_program_ships_what_is_closed_and_ends_when_it_is_asked_to(factory: Factory, tmp_path: Path) -> None:
    names = ["lines_dir", "s3_endpoint", "s3_access_key", "s3_secret_key", "landing_bucket", "factory_bucket"]
    settings = factory.settings.model_copy(update={"s3_endpoint": factory.settings.s3_url})
    variables = settings.variables(names) | {"AIF_HOME": str(tmp_path), "PYTHONPATH": "include"}
    spool = program.spool_folder(settings.model_copy(update={"home": tmp_path}))
    log = log_of(spool, *range(3))
    process = subprocess.Popen(
        [sys.executable, "-m", "aifactory.serving.shipper"], cwd=REPOSITORY, env=os.environ | variables,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(shipped(factory)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        record(log, 3)
        log.close()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    counts = read_status(factory, "flight_delay").slots["a"]
    assert (counts.recorded, counts.shipped, counts.waiting, counts.queued) == (4, 4, 0, 0)
    assert len(shipped(factory)) == 4


def test_a_loop_that_fails_goes_on(factory: Factory, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Factory(factory.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}))
    log_and_close(spool, 1)
    shipper, stop = Shipper(away, spool, 100 * MB), threading.Event()
    monkeypatch.setattr(program, "TURN_S", 0.01)
    thread = threading.Thread(target=program.run, args=(shipper, stop))
    thread.start()
    time.sleep(0.5)
    shipper.f = factory
    deadline = time.monotonic() + 60
    while not shipped(factory):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert read_status(factory, LINE.line).slots["a"].shipped == 1


# --- feedback
FEEDBACK = {"window_days": 2, "cadence_days": 30, "cooldown_days": 2, "label_delay_hours": 0}


def served_day(log: PredictionLog, day: str, how_many: int, *, shadow: bool = False) -> None:
    rows = rows_of(day).slice(0, how_many)
    texts = {
        name: np.array([[v.encode()] for v in rows[name].to_pylist()], dtype=object) for name in IDENTITY.categorical
    }
    numbers = {name: np.zeros((how_many, 1), np.float32) for name in IDENTITY.numeric}
    units = rows.select(["carrier", "flight", "origin", "prediction_time"]).to_pydict()
    units["prediction_time"] = [at.isoformat() for at in units["prediction_time"]]
    scores = np.linspace(0, 1, how_many, dtype=np.float32)
    log.record(f"all of {day}", json.dumps(units), texts | numbers, scores, shadow)


def test_served_answers_are_judged_by_version_and_slot_and_batch_stays_as_it_was(factory: Factory, spool: Path) -> None:
    f, line = factory, small_line(feedback=FEEDBACK)
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "run")
    judge(f, line, None, "run")
    before = {day: f.store.get_json(window_key(line.line, day)) for day in ("2013-02-01", "2013-02-03")}
    assert before["2013-02-03"]["served"] == []

    log = PredictionLog.open(spool / "a", IDENTITY, Limits())
    served_day(log, "2013-02-02", 200)
    served_day(log, "2013-02-02", 200)  # a client's retry
    served_day(log, "2013-02-02", 150, shadow=True)
    served_day(log, "2013-02-03", 100)
    log.close()
    shipper = Shipper(f, spool, 100 * MB)
    shipper.turn()
    assert judge(f, line, None, "again")["days"] == ["2013-02-02", "2013-02-03"], "windows that hold a served day"

    window = f.store.get_json(window_key(line.line, "2013-02-03"))
    answered, shadow = window["served"]
    assert (answered["model_version"], answered["slot"], answered["shadow"]) == ("7", "a", False)
    assert answered["num_scored"] == 300, "each unit once"
    assert (shadow["shadow"], shadow["num_scored"]) == (True, 150)
    assert 0 < answered["num_outcomes"] <= 300
    target = pa.concat_tables([rows_of("2013-02-02").slice(0, 200), rows_of("2013-02-03").slice(0, 100)])["delayed"]
    assert answered["num_outcomes"] == 300 - target.null_count
    assert 0 <= answered["metrics"]["roc_auc"] <= 1
    own = {k: v for k, v in window.items() if k not in {"served", "content", "report"}}
    assert own == {k: v for k, v in before["2013-02-03"].items() if k not in {"served", "content", "report"}}
    assert f.store.get_json(window_key(line.line, "2013-02-01")) == before["2013-02-01"]
    assert "nobody (shadow)" in f.store.get(window["report"]).decode()
    events = f.ledger.events(line=line.line, station="feedback", unit="2013-02-03", kind=EventKind.REWORKED)
    event = next(e for e in events if e.run_id == "again")
    assert event.detail["served"] == window["served"]

    shipper.compact(quiet_s=0)
    assert judge(f, line, None, "compacted")["days"] == [], "other files, the same rows"


DECAY = FEEDBACK | {
    "rule_violations": 2,
    "rule_windows": 3,
    "max_metric_drop": 1.0,
    "max_calibration_error": 0.2,
    "max_score_psi": 1000.0,
    "max_drifted_share": 1.0,
    "min_live_outcomes": 250,
}
"""Scores that rise from 0 to 1 whatever happens break the calibration's limit; a model's own keep it."""


def live_champion(f: Factory, line: LineSpec, slot: Literal["a", "b"]) -> None:
    """Version 7 serves from a slot."""
    slots: dict[Literal["a", "b"], str | None] = {"a": None, "b": None, slot: "7"}
    now = datetime.now(UTC)
    write(f.store, Traffic(line=line.line, generation=1, slots=slots, champion_slot=slot, since=now))


def test_a_live_champion_that_decays_calls_for_a_retrain_once(factory: Factory, spool: Path) -> None:
    f, line = factory, small_line(feedback=DECAY)
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("7", "2013-01-31"))
    live_champion(f, line, "a")
    score(f, line, None, "run")
    judge(f, line, None, "run")
    assert not decide(f, line, None, "calm")["retrain"]

    log = PredictionLog.open(spool / "a", IDENTITY, Limits())
    for day in ("2013-02-01", "2013-02-02", "2013-02-03"):
        served_day(log, day, 200)
    log.close()
    Shipper(f, spool, 100 * MB).turn()
    judge(f, line, None, "again")
    window = f.store.get_json(window_key(line.line, "2013-02-03"))
    [answered] = window["served"]
    assert (window["violations"], answered["num_days"]) == ([], 2)
    assert answered["violations"][0].startswith("calibration error 0.")
    assert f.store.get_json(window_key(line.line, "2013-02-01"))["served"][0]["violations"] is None, "still forming"
    assert "not enough to judge" in f.store.get("reports/flight_delay/feedback/2013-02-01/index.html").decode()

    too_many = line.feedback.model_copy(update={"rule_violations": 3})
    assert not decide(f, line.model_copy(update={"feedback": too_many}), None, "lenient")["retrain"], "two windows"
    said = decide(f, line, None, "called")
    assert (said["retrain"], said["reason"], said["emit"], said["signal"]) == (True, "LIVE_DECAY", True, "7-001")
    assert "2 of the 2 newest windows broke a limit, 2 by live answers alone" in said["explanation"]
    assert "on 2013-02-03: live calibration error 0." in said["explanation"]
    assert not decide(f, line, None, "later")["emit"]


@pytest.mark.parametrize(("slot", "shadow"), [("b", False), ("a", True)], ids=["another slot", "shadow"])
def test_answers_that_are_not_the_live_champions_call_for_nothing(
    factory: Factory, spool: Path, slot: Literal["a", "b"], shadow: bool
) -> None:
    f, line = factory, small_line(feedback=DECAY)
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("7", "2013-01-31"))
    live_champion(f, line, slot)
    score(f, line, None, "run")
    log = PredictionLog.open(spool / "a", IDENTITY, Limits())
    for day in ("2013-02-01", "2013-02-02", "2013-02-03"):
        served_day(log, day, 200, shadow=shadow)
    log.close()
    Shipper(f, spool, 100 * MB).turn()
    judge(f, line, None, "run")
    assert len(f.store.get_json(window_key(line.line, "2013-02-03"))["served"]) == 1
    assert not decide(f, line, None, "run")["retrain"]
