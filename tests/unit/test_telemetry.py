"""What a training takes: where its time went, its energy by meters and by the model, and the sums over attempts."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.memory_store import MemoryStore

from aifactory.recipes.clock import STEP_PARTS, Part, Spent, StepClock
from aifactory.settings import Settings
from aifactory.training import attempts, dcgm, telemetry
from aifactory.training.attempts import Attempt, Tariff
from aifactory.training.losses import LossCode, account
from aifactory.training.nvml import Nvml
from aifactory.training.power import (
    DeclaredPower,
    Integral,
    PowerSource,
    Rapl,
    Unreadable,
    machine_busy_s,
    own_cpu_s,
    process_age_s,
)
from aifactory.training.sources import Sources
from aifactory.training.telemetry import Telemetry, as_metrics

_NS = st.integers(0, 10**15)
_TARIFF = Tariff(currency="EUR", unit_hour=2.0, energy_price_kwh=0.25, carbon_g_kwh=400.0, pue=1.5)


def burn(seconds: float) -> None:
    until = own_cpu_s() + seconds
    while own_cpu_s() < until:
        sum(range(10_000))


class Time:
    """Nanoseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.ns = 1_000

    def __call__(self) -> int:
        return self.ns


# --- the clock
def a_step(clock: StepClock, now: Time, done: int) -> None:
    for part in STEP_PARTS:
        clock.enter(part)
        now.ns += 10 + part
    clock.step(done)


def test_every_part_gets_its_time() -> None:
    now = Time()
    clock = StepClock(age_s=3.0, now_ns=now)
    now.ns += 5
    clock.enter(Part.READ)
    now.ns += 7
    clock.enter(Part.PREPARE)
    now.ns += 11
    clock.step(40)
    for done in (41, 42):
        a_step(clock, now, done)
    clock.enter(Part.EXPORT)
    now.ns += 13
    spent = clock.read()
    assert spent.ns == (3_000_000_005, 7, 11, 26, 28, 30, 32, 34, 13)
    assert spent.again_ns == (0,) * len(Part)
    assert (spent.first_step, spent.step) == (40, 42)
    assert spent.seconds()["start"] == pytest.approx(3.000000005)


def test_steps_that_were_done_before_are_rework() -> None:
    now = Time()
    clock = StepClock(rework_until=3, now_ns=now)
    now.ns += 100
    clock.step(1)
    for done in range(2, 6):
        a_step(clock, now, done)
    clock.enter(Part.EXPORT)
    now.ns += 9
    a_step_ns = sum(10 + part for part in STEP_PARTS)
    productive, lost = account(clock.read())
    assert lost[LossCode.REWORK] == 2 * a_step_ns, "steps 2 and 3 of 5"
    assert lost[LossCode.START] == 100
    assert lost[LossCode.EXPORT] == 9
    assert lost[LossCode.DATA_WAIT] == 2 * (10 + Part.DATA_WAIT)
    assert lost[LossCode.CHECKPOINT] == 2 * (10 + Part.CHECKPOINT)
    assert productive == 2 * (20 + Part.HOST + Part.COMPUTE)


def test_a_stop_amid_rework_ends_as_an_end() -> None:
    now = Time()
    clock = StepClock(rework_until=10, now_ns=now)
    clock.step(0)
    a_step(clock, now, 1)
    clock.enter(Part.EXPORT)
    now.ns += 21
    _, lost = account(clock.read())
    assert lost[LossCode.EXPORT] == 21


def test_it_may_be_read_while_the_loop_goes_on() -> None:
    before = time.perf_counter_ns()
    clock = StepClock()
    over = threading.Event()

    def loop() -> None:
        done = 0
        while not over.is_set():
            clock.enter(Part.COMPUTE)
            clock.step(done := done + 1)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        last = 0
        for _ in range(300):
            earliest = time.perf_counter_ns() - before
            wall = clock.read().wall_ns
            assert last <= wall <= time.perf_counter_ns() - before
            assert earliest - wall < 10**9, "what the loop was in the middle of is counted"
            last = wall
    finally:
        over.set()
        thread.join()


@given(st.lists(st.tuples(_NS, _NS), min_size=len(Part), max_size=len(Part)))
def test_every_nanosecond_is_productive_or_has_a_code(pairs: list[tuple[int, int]]) -> None:
    spent = Spent(tuple(first + again for first, again in pairs), tuple(again for _, again in pairs))
    productive, lost = account(spent)
    assert productive + sum(lost.values()) == spent.wall_ns
    assert productive == pairs[Part.HOST][0] + pairs[Part.COMPUTE][0]
    assert set(lost) == set(LossCode)
    assert min(lost.values()) >= 0


def test_every_code_has_a_sentence() -> None:
    assert all(code.sentence.endswith(".") and code.value == code.name for code in LossCode)


# --- energy
def domain(folder: Path, number: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    """A folder as Linux has it."""
    made = folder / f"intel-rapl:{number}"
    made.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (made / file).write_text(f"{value}\n")
    return made / "energy_uj"


class Shares:
    """Processor seconds of this program and of the machine."""

    def __init__(self) -> None:
        self.own, self.busy = 50.0, 1000.0

    def rapl(self, folder: Path) -> Rapl:
        return Rapl(folder, lambda: self.own, lambda: self.busy)

    def use(self, own: float, others: float) -> None:
        self.own += own
        self.busy += own + others


def test_rapl_adds_packages_and_memory_alone(tmp_path: Path) -> None:
    files = {
        name: domain(tmp_path, number, name, 1_000_000)
        for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys"))
    }
    shares = Shares()
    rapl = shares.rapl(tmp_path)
    for file, joules in zip(files.values(), (20, 10, 3, 30, 70), strict=True):
        file.write_text(str(1_000_000 + joules * 1_000_000))
    shares.use(own=2.0, others=0.0)
    assert rapl.joules() == pytest.approx(20 + 3 + 30)
    assert not rapl.estimated


def test_rapl_gives_a_program_its_share(tmp_path: Path) -> None:
    file = domain(tmp_path, "0", "package-0", 0)
    shares = Shares()
    rapl = shares.rapl(tmp_path)
    file.write_text("8000000")
    shares.use(own=1.0, others=3.0)
    assert rapl.joules() == pytest.approx(2.0)
    file.write_text("9000000")
    assert rapl.joules() == pytest.approx(2.0), "nobody was busy: nobody's"


@given(st.integers(0, 999), st.lists(st.integers(0, 900), max_size=20))
def test_rapl_goes_round(tmp_path_factory: pytest.TempPathFactory, start: int, drawn: list[int]) -> None:
    file = domain(tmp_path_factory.mktemp("rapl"), "0", "package-0", start, range_uj=1000)
    shares = Shares()
    rapl = shares.rapl(file.parent.parent)
    counter = start
    for uj in drawn:
        counter = (counter + uj) % 1000
        file.write_text(str(counter))
        shares.use(own=1.0, others=0.0)
        rapl.joules()
    assert rapl.joules() == pytest.approx(sum(drawn) / 1e6)


def test_rapl_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no RAPL domain"):
        Rapl(tmp_path)
    domain(tmp_path, "0", "package-0", 1).unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        Rapl(tmp_path)


def test_the_model_is_watts_times_seconds() -> None:
    model = DeclaredPower(4, idle_w=0.5, busy_w=3.0, age_s=lambda: 100.0, own_s=lambda: 150.0)
    assert model.joules() == pytest.approx(4 * 0.5 * 100 + 3.0 * 150)
    assert model.estimated


def test_the_machine_is_busier_than_this_program() -> None:
    own, busy, age = own_cpu_s(), machine_busy_s(), process_age_s()
    burn(0.1)
    assert own_cpu_s() - own >= 0.09
    assert machine_busy_s() - busy >= 0.05, "counted in hundredths"
    assert process_age_s() - age >= 0.05
    assert process_age_s() < 24 * 3600


def test_the_integral_of_a_power() -> None:
    integral = Integral()
    assert [integral.add(at, watts) for at, watts in ((10.0, 100.0), (11.0, 200.0), (13.0, 200.0))] == [0, 150, 550]


@pytest.fixture(params=["rapl", "model", pytest.param("nvml", marks=pytest.mark.gpu)])
def metered(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PowerSource, Callable[[], None]]:
    """A source, and what makes it see energy drawn."""
    if request.param == "nvml":
        try:
            return Nvml(), lambda: time.sleep(0.5)
        except Unreadable as error:
            pytest.skip(f"needs an NVIDIA GPU: {error}")
    if request.param == "model":
        return DeclaredPower(2, 0.74, 2.76), lambda: burn(0.05)
    file = domain(tmp_path, "0", "package-0", 500_000)

    def draw() -> None:
        burn(0.05)
        file.write_text(str(int(file.read_text()) + 1_000_000))

    return Rapl(tmp_path), draw


def test_a_source_of_energy_keeps_its_promises(metered: tuple[PowerSource, Callable[[], None]]) -> None:
    source, draw = metered
    assert source.name in {"nvml", "rapl", "model"}
    assert source.estimated == (source.name == "model")
    seen = [source.joules()]
    for _ in range(3):
        draw()
        seen.append(source.joules())
        seen.append(source.joules())
    assert all(isinstance(joules, float) and joules >= 0 for joules in seen)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    if isinstance(source, Nvml):
        figures = source.figures()
        assert 0 <= figures["gpu_0_memory_usage_percentage"] <= 100
        assert len(source.uuids) == len(set(source.uuids)) >= 1


def test_without_a_gpu_nvml_says_so() -> None:
    with pytest.raises(Unreadable, match="NVML"):
        Nvml(visible="")  # as CUDA_VISIBLE_DEVICES="" hides all that there are


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, rapl_dir=tmp_path, **changes)


def test_a_meter_that_is_lost_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = domain(tmp_path, "0", "package-0", 0)
    sources = Sources(settings(tmp_path))
    assert not sources.estimated
    burn(0.05)
    file.write_text("5000000")
    measured = sources.joules()
    assert measured["rapl"] > 0
    file.unlink()
    with caplog.at_level(logging.WARNING):
        assert sources.joules() == sources.joules() == measured
    assert [r.message for r in caplog.records if "goes on without rapl" in r.message][1:] == []
    assert sources.estimated, "a part is missing"


def test_where_rapl_is_not_the_model_is(tmp_path: Path) -> None:
    sources = Sources(settings(tmp_path, threads=3))
    assert set(sources.joules()) >= {"model"}
    assert sources.estimated


# --- DCGM
EXPORTED = """\
# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-74f7fe3b",pci_bus_id="00000000:07:00.0",device="nvidia0",modelName="NVIDIA A100-SXM4-80GB",Hostname="node-1",container="",namespace="",pod=""} 41
DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="GPU-f3a2185e",pci_bus_id="00000000:0B:00.0",device="nvidia1",modelName="NVIDIA A100-SXM4-80GB",Hostname="node-1",container="base",namespace="ai",pod="train-1"} 63
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-74f7fe3b",device="nvidia0",Hostname="node-1"} 66.513000
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-f3a2185e",device="nvidia1",Hostname="node-1"} 301.250000
# HELP DCGM_FI_DEV_XID_ERRORS Value of the last XID error encountered.
# TYPE DCGM_FI_DEV_XID_ERRORS gauge
DCGM_FI_DEV_XID_ERRORS{gpu="1",UUID="GPU-f3a2185e",err_msg="a \\"quoted\\" one, with {braces}"} 0
# HELP DCGM_FI_PROF_SM_ACTIVE The ratio of cycles an SM has at least 1 warp assigned.
# TYPE DCGM_FI_PROF_SM_ACTIVE gauge
DCGM_FI_PROF_SM_ACTIVE{gpu="0",UUID="GPU-74f7fe3b",device="nvidia0",Hostname="node-1"} 0.000000
DCGM_FI_PROF_SM_ACTIVE{gpu="1",UUID="GPU-f3a2185e",device="nvidia1",GPU_I_PROFILE="3g.40gb",GPU_I_ID="1"} 0.25
DCGM_FI_PROF_SM_ACTIVE{gpu="1",UUID="GPU-f3a2185e",device="nvidia1",GPU_I_PROFILE="3g.40gb",GPU_I_ID="2"} 0.8125 1700000000000
DCGM_FI_PROF_DRAM_ACTIVE{gpu="1",UUID="GPU-f3a2185e",device="nvidia1",Hostname="node-1"} NaN
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="1",UUID="GPU-f3a2185e",device="nvidia1",Hostname="node-1"} 9223372036854775794
"""  # noqa: E501 - as it is


class Exporter(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        there = self.path == "/metrics"
        self.send_response(200 if there else 404)
        self.end_headers()
        self.wfile.write(EXPORTED.encode() if there else b"not here")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def exporter() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_dcgm_tells_of_this_node(exporter: str) -> None:
    assert dcgm.scrape(f"{exporter}/metrics") == {
        "gpu_0_temperature_celsius": 41,
        "gpu_1_temperature_celsius": 63,
        "gpu_0_dcgm_power_usage_watts": 66.513,
        "gpu_1_dcgm_power_usage_watts": 301.25,
        "gpu_0_sm_active_percentage": 0.0,
        "gpu_1_sm_active_percentage": 81.25,
    }


def test_dcgm_tells_of_the_gpus_that_are_asked_for(exporter: str) -> None:
    told = dcgm.scrape(f"{exporter}/metrics", ("GPU-f3a2185e",))
    assert told == {
        "gpu_0_temperature_celsius": 63,
        "gpu_0_dcgm_power_usage_watts": 301.25,
        "gpu_0_sm_active_percentage": 81.25,
    }


@pytest.mark.parametrize("url", ["{}/elsewhere", "http://127.0.0.1:9/metrics", "no url at all"])
def test_dcgm_that_does_not_answer(exporter: str, tmp_path: Path, url: str) -> None:
    with pytest.raises(Unreadable, match="DCGM"):
        dcgm.scrape(url.format(exporter))
    assert Sources(settings(tmp_path, dcgm_url=url.format(exporter))).node_figures() == {}


# --- attempts
def test_money_and_grams() -> None:
    assert _TARIFF.money(hours=0.5, units=4, energy_kwh=2.0) == pytest.approx(2.0 * 4 * 0.5 + 0.25 * 1.5 * 2.0)
    assert _TARIFF.grams_co2(2.0) == pytest.approx(400 * 1.5 * 2.0)


def attempt(name: str, began: datetime, spent: Spent, **changes: Any) -> Attempt:
    productive_ns, lost = account(spent)
    wall_s = spent.wall_ns / 1e9
    given = {
        "attempt": name, "began": began, "told": began + timedelta(seconds=wall_s), "end": "running", "wall_s": wall_s,
        "parts_s": spent.seconds(), "productive_s": productive_ns / 1e9,
        "losses_s": {code.value: ns / 1e9 for code, ns in lost.items()}, "first_step": 0, "step": 10, "num_gpus": 2,
        "gpu_s": 2 * wall_s, "cpu_s": 1.0, "peak_memory_mb": 100.0, "energy_kwh": 0.5,
        "energy_kwh_by_source": {"nvml": 0.4, "rapl": 0.1}, "estimated": False, "grams_co2": 3.0, "money": 0.25,
        "tariff": _TARIFF,
    }  # fmt: skip
    return Attempt.model_validate(given | changes)


_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_SPENTS = st.lists(st.tuples(_NS, _NS), min_size=len(Part), max_size=len(Part)).map(
    lambda pairs: Spent(tuple(a + b for a, b in pairs), tuple(b for _, b in pairs))
)


@given(st.lists(st.tuples(_SPENTS, st.floats(-100, 1e6)), min_size=1, max_size=4))
def test_the_sums_of_all_attempts_leave_no_second_out(each: list[tuple[Spent, float]]) -> None:
    made, began = [], _MOMENT
    for number, (spent, wait_s) in enumerate(each):
        made.append(attempt(str(number), began, spent))
        began = made[-1].told + timedelta(seconds=wait_s)
    told = attempts.total(made)
    assert told["productive_s"] + sum(told["losses_s"].values()) == pytest.approx(told["wall_s"])
    assert told["goodput"] * told["wall_s"] == pytest.approx(told["productive_s"])
    assert told["gpu_s"] == pytest.approx(2 * sum(a.wall_s for a in made))
    waits_s = sum(max(0.0, wait_s) for _, wait_s in each[:-1])
    assert told["losses_s"]["WAIT_FOR_PLACE"] == pytest.approx(waits_s, abs=1e-4)
    assert set(told["losses_s"]) == {code.value for code in LossCode}


def test_sums_name_their_sources() -> None:
    spent = Spent((10**9,) * len(Part), (0,) * len(Part))
    first = attempt("a", _MOMENT, spent, peak_memory_mb=300.0)
    second = attempt("b", _MOMENT, spent, energy_kwh_by_source={"model": 0.5}, estimated=True)
    told = attempts.total([first, second])
    assert told["energy_kwh"] == pytest.approx(sum(told["energy_kwh_by_source"].values()))
    assert (told["energy_source"], told["estimated"], told["peak_memory_mb"]) == ("model+nvml+rapl", True, 300.0)
    assert (told["money"], told["currency"], told["grams_co2"], told["num_attempts"]) == (0.5, "EUR", 6.0, 2)
    assert attempts.total([]) == {}
    assert all(isinstance(value, float) for value in as_metrics(told).values())


def test_records_are_read_oldest_first_and_what_is_none_is_passed_over() -> None:
    store: Any = MemoryStore()
    spent = Spent((10**9,) * len(Part), (0,) * len(Part))
    for name, minutes in (("b", 0), ("a", 5)):
        attempts.write(store, "c/x", attempt(name, _MOMENT + timedelta(minutes=minutes), spent))
    store.put("c/x.attempts/c.json", b"{ torn")
    store.put("c/x.attempts/d.json", b"{}")
    assert [a.attempt for a in attempts.read(store, "c/x")] == ["b", "a"]


# --- all of it
def train(store: Any, tmp_path: Path, steps: range, note: Any = None, **changes: Any) -> Telemetry:
    with Telemetry(settings(tmp_path, **changes), store, "c/x", note or (lambda step, told: None), age_s=2.0) as told:
        told.clock.step(steps.start)
        for done in steps:
            told.clock.enter(Part.COMPUTE)
            told.clock.step(done + 1)
    return told


def test_a_second_attempt_has_the_first_in_its_sums(tmp_path: Path) -> None:
    store: Any = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, Interrupted(0, 7))
    [first] = attempts.read(store, "c/x")
    assert (first.end, first.first_step, first.step) == ("stopped", 0, 7)
    told = train(store, tmp_path, range(4, 20), unit_hour=3600.0, energy_price_kwh=0.0).totals()
    first, second = attempts.read(store, "c/x")
    assert (second.end, second.first_step, second.step) == ("done", 4, 20)
    assert told == attempts.total([first, second])
    assert told["num_attempts"] == 2
    assert second.losses_s["REWORK"] > 0, "steps 5, 6 and 7"
    assert second.losses_s["START"] >= 2.0
    assert second.money == pytest.approx(second.wall_s), "the price of a second is 1"


class Interrupted:
    """Steps, and then SIGINT."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self._stop = start, stop

    def __iter__(self) -> Iterator[int]:
        yield from range(self.start, self._stop)
        raise KeyboardInterrupt


def test_a_killed_attempt_has_left_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_S", "TELL_S", "RECORD_S"):
        monkeypatch.setattr(telemetry, name, 0.01)
    store: Any = MemoryStore()
    heard = threading.Event()
    words: list[tuple[int, Mapping[str, float]]] = []

    def note(step: int, told: Mapping[str, float]) -> None:
        words.append((step, told))
        if step == 5 and store.list("c/x.attempts/"):
            heard.set()

    with Telemetry(settings(tmp_path), store, "c/x", note) as watching:
        watching.clock.step(5)
        watching.clock.enter(Part.DATA_WAIT)
        assert heard.wait(30)
        [record] = store.list("c/x.attempts/")
        left = json.loads(store.get(record.key))
        assert left["end"] == "running"
        assert left["energy_kwh"] > 0
    step, told = words[-1]
    assert step == 5
    assert told["step_time/data_wait_percentage"] > 0
    assert told["system/process_memory_megabytes"] > 10
    assert told["telemetry/energy_kwh"] > 0
    assert "telemetry/lost_s/DATA_WAIT" in told


def test_nothing_that_it_asks_can_break_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOOK_S", "TELL_S", "RECORD_S"):
        monkeypatch.setattr(telemetry, name, 0.01)
    store: Any = MemoryStore()
    asked = threading.Event()

    def refuse(step: int, told: Mapping[str, float]) -> None:
        asked.set()
        raise RuntimeError("not today")

    watching = Telemetry(settings(tmp_path, dcgm_url="http://127.0.0.1:9"), store, "c/x", refuse)
    store.away = True
    with watching:
        assert asked.wait(30)
    assert watching.totals()["num_attempts"] == 1
    assert store.objects == {}
    assert sum("not today" in (r.exc_text or "") for r in caplog.records) == 1, "said once"


def test_a_pod_names_its_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIF_ATTEMPT", "train-abc")
    store: Any = MemoryStore()
    train(store, tmp_path, range(3))
    train(store, tmp_path, range(3))
    restarted, first = sorted(store.objects)
    assert first == "c/x.attempts/train-abc.json"
    assert restarted.startswith("c/x.attempts/train-abc-"), "a container that was started again in its pod"
