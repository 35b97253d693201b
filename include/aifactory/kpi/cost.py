"""What work took: GPU-seconds, energy and money, measured where a meter stood, else estimated from its seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aifactory.kpi.record import works
from aifactory.ledger import ProductionEvent
from aifactory.settings import Settings


@dataclass(frozen=True)
class Prices:
    """The plant's price settings.

    Args:
        currency: ISO 4217 code.
        unit_hour: price of an hour of use of a program, in money.
        kwh: price of energy, in money per kWh.
        power_w: what a program at work draws from the grid, W; stands in where nothing measured it.
    """

    currency: str = "EUR"
    unit_hour: float = 0.0
    kwh: float = 0.0
    power_w: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Sums of work; `estimated_money` is the part of `money` that no meter stood behind."""

    work_s: float = 0.0
    gpu_s: float = 0.0
    energy_kwh: float = 0.0
    money: float = 0.0
    estimated_money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Costs add up."""
        return Cost(
            self.work_s + other.work_s,
            self.gpu_s + other.gpu_s,
            self.energy_kwh + other.energy_kwh,
            self.money + other.money,
            self.estimated_money + other.estimated_money,
        )


def prices_of(settings: Settings) -> Prices:
    """The plant's prices as the settings have them; the power is that of its declared model, all threads busy."""
    watts = settings.threads * (settings.core_idle_w + settings.core_busy_w) * settings.pue
    return Prices(settings.currency, settings.unit_hour, settings.energy_price_kwh, watts)


def cost(events: Iterable[ProductionEvent], prices: Prices) -> Cost:
    """Sum over the events of any lines and stations; an event with figures of its own is measured."""
    done = works(events)
    measured: list[ProductionEvent] = []
    others: list[ProductionEvent] = []
    for e in done:
        (measured if is_measured(e) else others).append(e)
    seconds = sum(e.duration_s for e in others)
    energy = seconds / 3600 * prices.power_w / 1000
    money = seconds / 3600 * prices.unit_hour + energy * prices.kwh
    return Cost(
        sum(e.duration_s for e in done),
        sum(e.gpu_s for e in measured),
        sum(e.energy_kwh for e in measured) + energy,
        sum(e.money for e in measured) + money,
        money,
    )


def is_measured(event: ProductionEvent) -> bool:
    """Whether an event tells of what it took itself."""
    return event.gpu_s > 0 or event.energy_kwh > 0 or event.money != 0
