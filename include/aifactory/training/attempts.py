"""What every attempt at a phase took, in S3: the record that outlives a killed program.

    <candidate>.attempts/<attempt>.json    an `Attempt`; written at once, every ten seconds, and at the end

The sums are over all attempts of the phase, with the waits between them. Of a killed attempt what it did after its last
word is not known: it counts as wait. Seconds, energy and money of an attempt that ended are whole.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from aifactory.errors import NotFound
from aifactory.settings import Settings
from aifactory.store import Store
from aifactory.training.losses import LossCode

log = logging.getLogger(__name__)

J_PER_KWH = 3.6e6
_SUMS = ("productive_s", "gpu_s", "cpu_s", "energy_kwh", "grams_co2", "money")


class Tariff(BaseModel):
    """What energy and the place cost where the attempt runs. See `Settings` for the fields."""

    model_config = ConfigDict(frozen=True)

    currency: str
    unit_hour: float
    energy_price_kwh: float
    carbon_g_kwh: float
    pue: float

    @classmethod
    def of(cls, settings: Settings) -> Tariff:
        """As the program is told."""
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    def money(self, hours: float, units: int, energy_kwh: float) -> float:
        """Cost of units for so long, and of the energy that their machines used, in the currency."""
        return self.unit_hour * units * hours + self.energy_price_kwh * self.pue * energy_kwh

    def grams_co2(self, energy_kwh: float) -> float:
        """Carbon of the energy that the machines used, g."""
        return self.carbon_g_kwh * self.pue * energy_kwh


class Attempt(BaseModel):
    """One run of the training program.

    Attributes:
        attempt: in a pod the pod's name.
        began: when the program was started.
        told: when this was written.
        end: "running" stays where the program was killed.
        wall_s: seconds from `began` to `told`.
        parts_s: all of them, by `recipes.clock.Part`.
        productive_s: those of steps done for the first time; see `losses`.
        losses_s: the others, by `LossCode`.
        first_step: steps that were done when it began.
        step: steps that were done when it told.
        num_gpus: GPUs that it held.
        gpu_s: GPU-seconds: held, not used.
        cpu_s: processor seconds.
        peak_memory_mb: most memory that the process had, MB.
        energy_kwh: energy of the machine, without the data centre's own (PUE), kWh.
        energy_kwh_by_source: the same, by "nvml", "rapl" or "model".
        estimated: whether a part of the energy is by a model, or one process was seen for all of several.
        grams_co2: carbon of the energy, with the data centre's own, g.
        money: cost of place and energy, in `tariff.currency`.
        tariff: what both were reckoned with.
    """

    model_config = ConfigDict(frozen=True)

    attempt: str
    began: datetime
    told: datetime
    end: Literal["running", "done", "stopped", "failed"]
    wall_s: float
    parts_s: dict[str, float]
    productive_s: float
    losses_s: dict[str, float]
    first_step: int
    step: int
    num_gpus: int
    gpu_s: float
    cpu_s: float
    peak_memory_mb: float
    energy_kwh: float
    energy_kwh_by_source: dict[str, float]
    estimated: bool
    grams_co2: float
    money: float
    tariff: Tariff


def write(store: Store, prefix: str, attempt: Attempt) -> None:
    """Keep what an attempt has taken so far."""
    store.put_json(f"{prefix}.attempts/{attempt.attempt}.json", attempt.model_dump(mode="json"))


def read(store: Store, prefix: str) -> list[Attempt]:
    """The attempts under a candidate's prefix, oldest first; what is no record is passed over."""
    found = []
    for each in store.list(f"{prefix}.attempts/"):
        try:
            found.append(Attempt.model_validate_json(store.get(each.key)))
        except (ValidationError, NotFound) as error:
            log.warning("%s is no record of an attempt, it is passed over: %s", store.uri(each.key), error)
    return sorted(found, key=lambda attempt: attempt.began)


def clear(store: Store, prefix: str) -> None:
    """Forget the attempts under a candidate's prefix: another training begins there."""
    for each in store.list(f"{prefix}.attempts/"):
        store.delete(each.key)


def total(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The sums over the attempts of a phase, oldest first; {} where there is none.

    Returns:
        {"num_attempts", "wall_s", "productive_s", "goodput", "losses_s": {code: s}, "parts_s": {part: s}, "gpu_s",
        "cpu_s", "peak_memory_mb", "energy_kwh", "energy_kwh_by_source": {source: kWh}, "energy_source", "estimated",
        "grams_co2", "money", "currency"}; productive and lost seconds together are `wall_s`
    """
    if not attempts:
        return {}
    waited_s = sum(max(0.0, (after.began - before.told).total_seconds()) for before, after in pairwise(attempts))
    wall_s = waited_s + sum(attempt.wall_s for attempt in attempts)
    sums = {name: sum(getattr(attempt, name) for attempt in attempts) for name in _SUMS}
    losses_s = _added(attempt.losses_s for attempt in attempts)
    losses_s[LossCode.WAIT_FOR_PLACE.value] += waited_s
    energy = _added(attempt.energy_kwh_by_source for attempt in attempts)
    return sums | {
        "num_attempts": len(attempts),
        "wall_s": wall_s,
        "goodput": sums["productive_s"] / wall_s if wall_s else 0.0,
        "losses_s": losses_s,
        "parts_s": _added(attempt.parts_s for attempt in attempts),
        "peak_memory_mb": max(attempt.peak_memory_mb for attempt in attempts),
        "energy_kwh_by_source": energy,
        "energy_source": "+".join(sorted(energy)),
        "estimated": any(attempt.estimated for attempt in attempts),
        "currency": attempts[-1].tariff.currency,
    }


def _added(each: Iterable[dict[str, float]]) -> dict[str, float]:
    added: defaultdict[str, float] = defaultdict(float)
    for figures in each:
        for name, value in figures.items():
            added[name] += value
    return dict(added)
