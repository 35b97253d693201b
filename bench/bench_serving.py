"""Serving: the gateway and a server that logs every prediction, against a bare Triton.

Both are the same Triton with the same package (gradient boosting, the inputs of the flight line) on this machine. The
bare one is asked directly and logs nothing; ours is asked through Envoy, and the log of what it answered is counted
afterwards. One row a request, with the units that the log keeps, half by REST and half by gRPC, as the traffic player
asks. The wheel has no backend for ONNX: the one in Python is in both. The gateway's limit of requests a second is off.
CPU a request tells how much more work ours is, whatever else the machine is doing.

Loads are asked for by gRPC, in the very server that is answering, which is harder than what a rollout does (it loads
into the other slot).
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plant
from aifactory.line import find_line
from aifactory.packaging import MODEL_FILE, feeds, open_session, sealed_files
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
from aifactory.serving import predictionlog
from aifactory.serving.backend import LOG_FOLDER_VARIABLE
from aifactory.serving.gateway import Limits, LineRoute
from aifactory.serving.repository import ModelRepository
from aifactory.serving.routing import Routing
from aifactory.serving.slot import Slot
from aifactory.settings import REPOSITORY, Settings
from bench.asking import Connection, Row, Told, connected, pace, saturate
from bench.bench_scoring import LINE, flights
from bench.ratio import Ratio, Skipped
from plant import gateway, processes, serving, slots, triton
from plant.errors import PlantError
from plant.ports import internal
from plant.supervision import Supervisor

OURS, BARE = slots.SLOTS
NUM_TRAIN = 20_000
NUM_ROUNDS = 12  # short and many: a shared machine changes its speed from second to second
SATURATE_S, PACE_S = 1.25, 2.5
CONNECTIONS_EACH = 4
PACED_EACH = 16
NUM_LOADS = 4
QUIET_S = 4.0
BETWEEN_LOADS_S = 0.5
LOAD_SHARE = 0.25
"""Of bare's rate, while versions are loaded."""
_UNLIMITED = Limits(requests_per_s=1_000_000, burst=1_000_000)


def run() -> list[Ratio]:
    """Rate and p99 at half load, ours against bare; the worst request while versions are loaded, s."""
    packages, row = _packages()
    os.environ.setdefault("AIF_TRITON_ENV", str(REPOSITORY / "var" / "triton-env"))
    with tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True) as folder:
        settings = plant.temporary_settings(Path(folder) / "home")
        with _lab(settings, packages[0]) as lab:
            return _measure(lab, packages, row)


def _measure(lab: _Lab, packages: list[_Package], row: Row) -> list[Ratio]:
    gc.collect()
    gc.freeze()
    full: dict[str, list[Told]] = {OURS: [], BARE: []}
    half: dict[str, list[Told]] = {OURS: [], BARE: []}
    cpu_s: dict[str, list[float]] = {OURS: [], BARE: []}
    loads = [os.getloadavg()[0]]
    with lab.connected(OURS, row, PACED_EACH) as ours, lab.connected(BARE, row, PACED_EACH) as bare:
        contenders = {OURS: ours, BARE: bare}
        few = {slot: _of_each(found, CONNECTIONS_EACH) for slot, found in contenders.items()}
        warm = [saturate(found, 1.0) for found in few.values()]
        for number in range(NUM_ROUNDS):
            turns = slots.SLOTS if number % 2 else slots.SLOTS[::-1]
            for slot in turns:
                before = lab.cpu_s(slot)
                full[slot].append(saturate(few[slot], SATURATE_S))
                cpu_s[slot].append(lab.cpu_s(slot) - before)
            for slot in turns:  # at half of what the machine gives now, not of what it gave a minute ago
                half[slot].append(pace(contenders[slot], full[BARE][-1].rate / 2, PACE_S, number))
        bare_rate = statistics.median(told.rate for told in full[BARE])
        quiet, loud, load_s = _loads(lab, ours, bare_rate * LOAD_SHARE, packages)
    loads.append(os.getloadavg()[0])
    asked = [warm[0], *full[OURS], *half[OURS], quiet, loud]
    logged = lab.logged()
    sent = sum(len(told.all) for told in asked)
    common = {"load": [round(n, 1) for n in loads]}
    rates = [a.rate / b.rate for a, b in zip(full[OURS], full[BARE], strict=True)]
    cost_us = {slot: round(sum(cpu_s[slot]) / sum(len(told.all) for told in full[slot]) * 1e6) for slot in slots.SLOTS}
    p99 = {slot: [told.quantile_ms(0.99) for told in found] for slot, found in half.items()}
    p99s = [a / b for a, b in zip(p99[OURS], p99[BARE], strict=True)]
    return [
        Ratio(
            "gateway and prediction log ÷ bare Triton, requests/s",
            statistics.median(rates),
            0.7,
            at_most=False,
            detail={
                "requests_per_s": round(_median_rate(full[OURS])),
                "bare_requests_per_s": round(bare_rate),
                "rounds": [round(r, 3) for r in rates],
                "cpu_us_a_request": cost_us[OURS],
                "bare_cpu_us_a_request": cost_us[BARE],
                "logged": f"{logged.spooled} of {sent} rows, {sum(logged.dropped.values())} dropped",
                "generator_us_a_request": round(statistics.median(told.cost_us for told in full[OURS] + full[BARE])),
                "model_kb": len(packages[0].onnx) // 1024,
            }
            | common,
        ),
        Ratio(
            "gateway and prediction log ÷ bare Triton, p99 at half of bare's rate",
            statistics.median(p99s),
            1.5,
            detail={
                "p99_ms": round(statistics.median(p99[OURS]), 2),
                "bare_p99_ms": round(statistics.median(p99[BARE]), 2),
                "p50_ms": round(statistics.median(told.quantile_ms(0.5) for told in half[OURS]), 2),
                "bare_p50_ms": round(statistics.median(told.quantile_ms(0.5) for told in half[BARE]), 2),
                "rounds": [round(r, 2) for r in p99s],
                "requests_per_s": round(_median_rate(half[BARE])),
            }
            | common,
        ),
        Ratio(
            "load of a version under traffic: worst request, s",
            float(loud.all.max()),
            0.3,
            detail={
                "worst_without_loads_s": round(float(quiet.all.max()), 4),
                "p99_ms": round(loud.quantile_ms(0.99), 2),
                "requests": len(loud.all),
                "requests_per_s": round(loud.rate),
                "loads_s": [round(s, 2) for s in load_s],
            }
            | common,
        ),
    ]


def _loads(
    lab: _Lab, connections: list[Connection], rate: float, packages: list[_Package]
) -> tuple[Told, Told, list[float]]:
    """The same traffic without loads, then while versions are put beside the one that serves; seconds of each load."""

    def load() -> list[float]:
        took = []
        for version in range(2, 2 + NUM_LOADS):
            time.sleep(BETWEEN_LOADS_S)
            lab.write(OURS, version, packages[(version - 1) % len(packages)])
            began = time.perf_counter()
            lab.load(OURS)
            took.append(time.perf_counter() - began)
            time.sleep(BETWEEN_LOADS_S)
            lab.remove(OURS, version - 1)
            lab.load(OURS)
        return took

    quiet = pace(connections, rate, QUIET_S, NUM_ROUNDS)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(load)
        loud = pace(connections, rate, 60, NUM_ROUNDS + 1, loading.done)
        return quiet, loud, loading.result()


@dataclass(frozen=True)
class _Package:
    manifest: dict[str, Any]
    onnx: bytes


def _packages() -> tuple[list[_Package], Row]:
    """Two models of the flight line that score differently, and a row for which it is known what they say."""
    settings = Settings(_env_file=None)
    spec = find_line(settings.lines_dir, LINE)
    rows = flights(spec).slice(0, 2 * NUM_TRAIN)
    names, numbers = spec.model.categorical, spec.model.numeric
    params = check_parameters("gradient_boosting", spec.model.recipes["gradient_boosting"].parameters)
    asked = feeds(rows.slice(0, 1), names, numbers)
    packages, scores = [], []
    for first in (0, NUM_TRAIN):
        frame = TrainingFrame.of(rows.slice(first, NUM_TRAIN), names, numbers, spec.model.target)
        onnx = load_recipe("gradient_boosting").fit(frame, params, seed=1, threads=settings.threads).to_onnx()
        manifest = {
            "features": {"categorical": names, "numeric": numbers},
            "dataset_revision": "bench",
            "files": sealed_files({MODEL_FILE: onnx}),
        }
        packages.append(_Package(manifest, onnx))
        scores.append(float(open_session(onnx, 1).run(None, asked)[0][0]))
    values = {name: v[0, 0].encode() if v.dtype == object else float(v[0, 0]) for name, v in asked.items()}
    return packages, Row(LINE, values, tuple(scores))


class _Lab:
    """Both servers and the gateway; slot a logs and is behind the gateway, slot b is bare."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._repositories = {slot: ModelRepository(slots.repository_folder(settings, slot)) for slot in slots.SLOTS}

    def write(self, slot: str, version: int, package: _Package) -> None:
        self._repositories[slot].write(LINE, str(version), package.manifest, package.onnx)

    def remove(self, slot: str, version: int) -> None:
        self._repositories[slot].remove(LINE, str(version))

    def load(self, slot: str) -> None:
        with Slot(slot, slots.grpc_address(self._settings, slot)) as server:
            server.load(LINE)

    @contextmanager
    def connected(self, slot: str, row: Row, each: int) -> Iterator[list[Connection]]:
        """To the gateway, or directly to the bare server."""
        public = self._settings.serving_address
        rest = f"{slots.LOOPBACK}:{internal(self._settings, f'serving_{slot}_http')}"
        addresses = (public, public) if slot == OURS else (rest, slots.grpc_address(self._settings, slot))
        with connected(*addresses, row, each) as found:
            yield found

    def cpu_s(self, slot: str) -> float:
        """CPU seconds that the processes that serve a slot's requests have used until now."""
        programs = [slots.name(slot), *([gateway.NAME] if slot == OURS else [])]
        times = [
            process.cpu_times()
            for program in programs
            for process in processes.family(int(self._supervisor.state(program)["pid"]))
        ]
        return sum(each.user + each.system for each in times)

    def logged(self) -> predictionlog.Counts:
        """What all versions of our server have logged; ends it."""
        self._supervisor.stop_programs([slots.name(OURS)])
        folder = slots.spool_folder(self._settings, OURS)
        counts = [predictionlog.read_counts(path) for path in folder.glob(f"*{predictionlog.COUNTS}")]
        dropped = {reason: sum(c.dropped[reason] for c in counts) for reason in counts[0].dropped}
        recorded, spooled, lost, cut = (
            sum(getattr(c, name) for c in counts) for name in ("recorded", "spooled", "lost", "cut")
        )
        return predictionlog.Counts(recorded, spooled, dropped, lost, cut, all(c.ended for c in counts))


@contextmanager
def _lab(settings: Settings, package: _Package) -> Iterator[_Lab]:
    try:
        triton.install(settings)
        gateway.program()
    except PlantError as error:
        raise Skipped(str(error)) from error
    ours, bare = triton.prepare(settings)
    bare = replace(bare, environment={k: v for k, v in bare.environment.items() if k != LOG_FOLDER_VARIABLE})
    supervisor = Supervisor(settings.home)
    try:
        supervisor.start([ours, bare, gateway.prepare(settings, serving.gateway_of(settings))], {}, bound=True)
        for name in (ours.name, bare.name, gateway.NAME):
            supervisor.start_program(name)
            supervisor.wait_healthy(name, lambda name=name: serving.answers(settings, name), 60)
        lab = _Lab(settings, supervisor)
        for slot in slots.SLOTS:
            lab.write(slot, 1, package)
            lab.load(slot)
        routing = Routing(
            replace(serving.gateway_of(settings), limits=_UNLIMITED), gateway.folder(settings), gateway.admin(settings)
        )
        assert routing.ensure((LineRoute(LINE, OURS),))
        yield lab
    finally:
        if supervisor.running():
            supervisor.shutdown()
        processes.end_all(settings.home)


def _of_each(connections: list[Connection], count: int) -> list[Connection]:
    """As many connections of each protocol."""
    half = len(connections) // 2
    return connections[:count] + connections[half : half + count]


def _median_rate(told: list[Told]) -> float:
    return statistics.median(each.rate for each in told)
