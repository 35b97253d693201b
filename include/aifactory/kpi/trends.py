"""KPIs over time: the events of one line cut into days or weeks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from aifactory.kpi.record import distinct
from aifactory.ledger import ProductionEvent


def buckets(
    events: Iterable[ProductionEvent], begin: datetime, end: datetime, width: timedelta
) -> list[tuple[datetime, datetime, list[ProductionEvent]]]:
    """Begin, end and events of each bucket from `begin` until `end`, oldest first; empty ones too.

    An event belongs to the bucket that it happened in, and to that one alone, so counts of buckets add up.
    """
    num = max(0, -((begin - end) // width))
    cut: list[list[ProductionEvent]] = [[] for _ in range(num)]
    for e in distinct(events):
        if begin <= e.at < end:
            cut[(e.at - begin) // width].append(e)
    return [(begin + n * width, min(begin + (n + 1) * width, end), mine) for n, mine in enumerate(cut)]
