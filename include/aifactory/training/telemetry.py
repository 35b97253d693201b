"""What a training takes, seen from inside its program: time, memory, energy, carbon and money.

A thread looks once a second, tells MLflow every few seconds, and keeps the attempt's record in S3 (`attempts`). It may
miss what does not answer; it never breaks the training.

In MLflow, `system/...` by MLflow's own names where it has them:

    system/gpu_<i>_...                  see `nvml` and `dcgm`
    system/process_cpu_cores            processor seconds a second, of this program
    system/process_memory_megabytes     its memory
    system/power_usage_watts            of all sources of energy together
    step_time/<part>_percentage         where the loop's time went; see `recipes.clock`
    telemetry/...                       what the result has too, so far; see `attempts.total`
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from statistics import fmean
from types import TracebackType
from typing import Any, Literal, Self

from aifactory.errors import InfrastructureFault
from aifactory.recipes.clock import STEP_PARTS, StepClock
from aifactory.settings import Settings
from aifactory.store import Store
from aifactory.training import attempts, group
from aifactory.training.attempts import J_PER_KWH, Attempt, Tariff
from aifactory.training.losses import account
from aifactory.training.power import own_cpu_s, process_age_s
from aifactory.training.sources import Sources, memory_mb, peak_memory_mb

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the sources."""
TELL_S = 5.0
"""Seconds between two words to MLflow."""
RECORD_S = 10.0
"""Seconds between two writings of the record: at most so much of a killed attempt is unknown."""

_JOIN_S = 30.0
_TOLD = ("wall_s", "goodput", "gpu_s", "cpu_s", "energy_kwh", "grams_co2", "money", "peak_memory_mb", "num_attempts")


class Telemetry:
    """Watches one attempt while it is open.

    Args:
        settings: where sources are, and what energy and the place cost.
        store: the factory's bucket.
        prefix: of the order and phase, without a slash at its end.
        note: told (step, metrics) now and then, from another thread; must not raise.
        age_s: for how long the program has run already, s; default since its process was started.

    Raises:
        InfrastructureFault: the records of earlier attempts cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        prefix: str,
        note: Callable[[int, Mapping[str, float]], None],
        age_s: float | None = None,
    ) -> None:
        self._store, self._prefix, self._note = store, prefix, note
        self._tariff = Tariff.of(settings)
        self._earlier = attempts.read(store, prefix)
        self._name = _name({attempt.attempt for attempt in self._earlier})
        rework_until = max((attempt.step for attempt in self._earlier), default=0)
        self.clock = StepClock(self._age_s() if age_s is None else age_s, rework_until)
        self._sources = Sources(settings)
        self._seen: defaultdict[str, list[float]] = defaultdict(list)
        self._looked = self._now()
        self._told = self.clock.read()
        self._attempt = self._take("running")
        self._failed = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)
        self._safely(self._look)
        self._safely(self._tell)
        self._keep("done" if error is None else "failed" if isinstance(error, Exception) else "stopped")

    def totals(self) -> dict[str, Any]:
        """What all attempts of the phase took, this one as it was last recorded; see `attempts.total`."""
        return attempts.total([*self._earlier, self._attempt])

    def _watch(self) -> None:
        self._safely(lambda: self._keep("running"))
        told = recorded = time.monotonic()
        while not self._over.wait(LOOK_S):
            self._safely(self._look)
            now = time.monotonic()
            if now - told >= TELL_S:
                told = now
                self._safely(self._tell)
            if now - recorded >= RECORD_S:
                recorded = now
                self._safely(lambda: self._keep("running"))

    def _safely(self, act: Callable[[], None]) -> None:
        """Whatever goes wrong here is no reason to lose a training; it is said once."""
        try:
            act()
        except Exception as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            log.log(level, "the telemetry failed, the training goes on: %s", error, exc_info=True)
            self._failed = True

    def _age_s(self) -> float:
        """For how long this attempt has held its place: the first of a launcher since that was started."""
        launched, age_s = float(os.environ.get(group.LAUNCHED_AT, "inf")), process_age_s()
        if any(attempt.told.timestamp() > launched for attempt in self._earlier):
            return age_s  # it started its processes again
        return max(age_s, time.time() - launched)

    def _now(self) -> tuple[float, float, float]:
        """When, joules and processor seconds so far."""
        return time.monotonic(), sum(self._sources.joules().values()), own_cpu_s()

    def _look(self) -> None:
        before, self._looked = self._looked, self._now()
        elapsed_s, joules, cpu_s = (now - then for now, then in zip(self._looked, before, strict=True))
        if elapsed_s > 0:
            self._seen["power_usage_watts"].append(joules / elapsed_s)
            self._seen["process_cpu_cores"].append(cpu_s / elapsed_s)
        self._seen["process_memory_megabytes"].append(memory_mb())
        for name, value in self._sources.figures().items():
            self._seen[name].append(value)

    def _tell(self) -> None:
        """Say the means since the last word, and the sums so far."""
        seen, self._seen = self._seen, defaultdict(list)
        figures = {name: fmean(values) for name, values in seen.items()} | self._sources.node_figures()
        before, self._told = self._told, self.clock.read()
        spent = {part: self._told.ns[part] - before.ns[part] for part in STEP_PARTS}
        wall_ns = max(1, self._told.wall_ns - before.wall_ns)
        shares = {f"step_time/{part.name.lower()}_percentage": 100 * ns / wall_ns for part, ns in spent.items()}
        self._attempt = self._take("running")
        self._note(
            self._told.step,
            {f"system/{name}": value for name, value in figures.items()}
            | (shares if any(spent.values()) else {})
            | as_metrics(self.totals()),
        )

    def _keep(self, end: Literal["running", "done", "stopped", "failed"]) -> None:
        """Write the record; a store that is away costs the record and not the training."""
        self._attempt = self._take(end)
        try:
            attempts.write(self._store, self._prefix, self._attempt)
        except InfrastructureFault as error:
            log.warning("the record of this attempt could not be written: %s", error)

    def _take(self, end: Literal["running", "done", "stopped", "failed"]) -> Attempt:
        """All that the attempt has taken until now."""
        spent, told = self.clock.read(), datetime.now(UTC)
        productive_ns, lost_ns = account(spent)
        wall_s = spent.wall_ns / 1e9
        # The processes of a training do alike: what this one sees stands for all. NVML sees its whole machine.
        processes, machines = group.size(), group.machines()
        times = {"nvml": machines}
        joules = self._sources.joules()
        energy = {name: each * times.get(name, processes) / J_PER_KWH for name, each in joules.items()}
        energy_kwh, num_gpus = sum(energy.values()), self._sources.num_gpus * machines
        return Attempt(
            attempt=self._name,
            began=told - timedelta(seconds=wall_s),
            told=told,
            end=end,
            wall_s=wall_s,
            parts_s=spent.seconds(),
            productive_s=productive_ns / 1e9,
            losses_s={code.value: ns / 1e9 for code, ns in lost_ns.items()},
            first_step=spent.first_step or 0,
            step=spent.step,
            num_gpus=num_gpus,
            gpu_s=num_gpus * wall_s,
            cpu_s=own_cpu_s() * processes,
            peak_memory_mb=peak_memory_mb(),
            energy_kwh=energy_kwh,
            energy_kwh_by_source=energy,
            estimated=self._sources.estimated or processes > 1,
            grams_co2=self._tariff.grams_co2(energy_kwh),
            money=self._tariff.money(wall_s / 3600, max(machines, num_gpus), energy_kwh),
            tariff=self._tariff,
        )


def as_metrics(totals: Mapping[str, Any]) -> dict[str, float]:
    """The sums of `attempts.total` as MLflow shows them."""
    lost = {f"telemetry/lost_s/{code}": seconds for code, seconds in totals["losses_s"].items()}
    return {f"telemetry/{name}": float(totals[name]) for name in _TOLD} | lost


def _name(taken: set[str]) -> str:
    """In a pod the pod's name, which nobody else has but a container that is started again in it."""
    given = os.environ.get("AIF_ATTEMPT", "")
    if given and given not in taken:
        return given
    return f"{given or datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{uuid.uuid4().hex[:8]}"
