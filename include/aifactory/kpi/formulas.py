"""The ratios, each with its standard name, formula and source. None stands for "not known": nothing to divide by.

Sources: ISO 22400-2:2014, *Key performance indicators for manufacturing operations management, part 2*; Hopp and
Spearman, *Factory Physics*; Ohno, *Toyota Production System*; Forsgren, Humble and Kim, *Accelerate* (DORA).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Oee:
    """OEE index of one station with its three factors; each may be unknown."""

    availability: float | None
    performance: float | None
    quality: float | None

    @property
    def oee(self) -> float | None:
        """OEE index = availability x effectiveness x quality ratio (ISO 22400-2)."""
        factors = (self.availability, self.performance, self.quality)
        return None if None in factors else math.prod(f for f in factors if f is not None)

    @property
    def ideal_is_wrong(self) -> bool:
        """Whether it ran faster than its ideal: then the ideal is wrong, and so is the index."""
        return self.performance is not None and self.performance > 1


def ratio(part: float, whole: float) -> float | None:
    """part ÷ whole; None where there is no whole."""
    return part / whole if whole > 0 else None


def availability(actual_production_s: float, planned_busy_s: float) -> float | None:
    """Availability = APT ÷ PBT, actual production time by planned busy time (ISO 22400-2)."""
    return ratio(actual_production_s, planned_busy_s)


def effectiveness(ideal_cycle_s: float, num_units: float, actual_production_s: float) -> float | None:
    """Effectiveness, the P of OEE = PRI x PQ ÷ APT: ideal cycle, units, actual production time (ISO 22400-2).

    Above 1 where the ideal is wrong; it is not clipped, so that somebody sees it.
    """
    return ratio(ideal_cycle_s * num_units, actual_production_s)


def quality_ratio(num_good: float, num_units: float) -> float | None:
    """Quality ratio = GQ ÷ PQ, good units by units (ISO 22400-2)."""
    return ratio(num_good, num_units)


def oee_index(planned_s: float, run_s: float, ideal_cycle_s: float, num_units: float, num_good: float) -> Oee:
    """OEE of one station from its five numbers (ISO 22400-2; Nakajima, *Introduction to TPM*)."""
    return Oee(
        availability(run_s, planned_s),
        effectiveness(ideal_cycle_s, num_units, run_s),
        quality_ratio(num_good, num_units),
    )


def first_pass_yield(num_first_pass: float, num_inspected: float) -> float | None:
    """First pass yield FPY = GP ÷ IP: good at the first inspection, without rework, by inspected (ISO 22400-2)."""
    return ratio(num_first_pass, num_inspected)


def rolled_yield(yields: Iterable[float | None]) -> float | None:
    """Rolled throughput yield: product of the first-pass yields of a chain of gates (Six Sigma).

    A gate that inspected nothing is left out; None where none did.
    """
    known = [y for y in yields if y is not None]
    return math.prod(known) if known else None


def takt(available: float, demand: float) -> float | None:
    """Takt time = available time ÷ units wanted in it, in the unit of the time (Ohno)."""
    return ratio(available, demand)


def effective_cycle(busy_s: float, num_good: float) -> float | None:
    """Effective process time of a good unit: work and downtime ÷ good units (Factory Physics, ch. 8)."""
    return ratio(busy_s, num_good)


def percentile(values: Iterable[float], q: float) -> float | None:
    """The q-quantile with linear interpolation, as `numpy.quantile`; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def cumulative_shares(counts: Sequence[int]) -> list[float]:
    """Share of the total that is reached with each count (Pareto); the last is 1."""
    total, reached, shares = sum(counts), 0, []
    for count in counts:
        reached += count
        shares.append(reached / total)
    return shares
