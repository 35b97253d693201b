"""What clusters really have of what the inventory declares: less counts at once, more does not until the file says so.

What was seen of a cluster is kept in S3 under `capacity/stock/<cluster>.json`:

    {"seen_at": "2026-11-21T19:20:00+00:00", "offers": {"own": {"declared": 8, "seen": 6, "units": 6}}, "problem": ""}

`seen` is null where the cluster was asked and does not let the plant look; `units` is what counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field, ValidationError

from aifactory.errors import Defect, NotFound
from aifactory.reasons import ReasonCode
from aifactory.specfile import Name, Spec

if TYPE_CHECKING:
    from aifactory.capacity.inventory import Cluster, Inventory
    from aifactory.store import Store

log = logging.getLogger(__name__)

POOL_KEEPER = "capacity"
"""Airflow's user that keeps the pools."""
MOST = 100_000
"""No offer has more units: whoever says so is not believed."""


@dataclass(frozen=True)
class Usable:
    """Units of an offer that count, and what is to be told about them: STOCK_DIFFERS, or nothing."""

    units: int
    told: ReasonCode | None = None


def usable(declared: int, seen: int | None) -> Usable:
    """What counts of an offer: never more than is declared, never more than was seen.

    Args:
        declared: units in the inventory.
        seen: units of the cluster; None: nobody could look, and what is declared stands.

    Raises:
        Defect: STOCK_ABSURD.
    """
    if seen is None or seen == declared:
        return Usable(declared)
    if not 0 <= seen <= MOST:
        raise Defect(ReasonCode.STOCK_ABSURD, f"{seen} units are none that a cluster can have (0 to {MOST})")
    return Usable(min(declared, seen), ReasonCode.STOCK_DIFFERS)


@dataclass(frozen=True)
class Node:
    """A node that takes the plant's pods, with its labels and the GPUs that it gives to pods."""

    labels: Mapping[str, str]
    gpus: int


def count(cluster: Cluster, nodes: Iterable[Node], class_label: str) -> dict[str, int]:
    """Units of each offer that nodes make up.

    No node has the labels of two offers of one class: the inventory sees to that. An offer without a class stands as
    declared where any node has its labels: how many pods fit is for the cluster to say.

    Args:
        cluster: its offers.
        nodes: that are ready and let the plant's pods in.
        class_label: label that holds the class of GPU.
    """
    seen = dict.fromkeys(cluster.offers, 0)
    for node in nodes:
        for name, offer in cluster.offers.items():
            wanted = dict(offer.node_labels) | ({class_label: offer.gpu_class} if offer.gpu_class else {})
            if wanted.items() <= node.labels.items():
                seen[name] = seen[name] + node.gpus if offer.gpu_class else offer.units
    return seen


def capped(
    cluster: Cluster, seen: Mapping[str, int | None], most_gpus: int | None, most_pods: int | None
) -> dict[str, int | None]:
    """What was seen, within the namespace's quota; None: it has none.

    The quota is held against each offer by itself: it does not say which of them it is for.
    """
    found: dict[str, int | None] = {}
    for name, offer in cluster.offers.items():
        most = most_pods if offer.gpu_class is None else most_gpus
        number = seen[name]
        if most is not None and most < (offer.units if number is None else number):
            number = most
        found[name] = number
    return found


class OfferSeen(Spec):
    """An offer as it was when a cluster was last looked at."""

    declared: int = Field(ge=0, le=MOST)
    seen: int | None = Field(ge=0, le=MOST)
    units: int = Field(ge=0, le=MOST)


class ClusterSeen(Spec):
    """A cluster as it was when it was last looked at."""

    seen_at: AwareDatetime
    offers: dict[Name, OfferSeen]
    problem: str = ""


def key(cluster: str) -> str:
    """Where it is kept what a cluster was seen to have."""
    return f"capacity/stock/{cluster}.json"


def kept(store: Store, cluster: str) -> ClusterSeen | None:
    """What a cluster was last seen to have; None where it never was, or what is kept is of no use.

    Raises:
        InfrastructureFault: the store does not answer.
    """
    try:
        return ClusterSeen.model_validate(store.get_json(key(cluster)))
    except NotFound:
        return None
    except (ValidationError, ValueError) as error:
        log.warning("%s is not taken, what is declared counts: %s", store.uri(key(cluster)), error)
        return None


def keep(store: Store, cluster: str, found: ClusterSeen) -> None:
    """Keep what a cluster was seen to have."""
    store.put_json(key(cluster), found.model_dump(mode="json"))


def fresh(found: ClusterSeen | None, inventory: Inventory, now: datetime) -> bool:
    """Whether what was seen still counts."""
    return found is not None and now - found.seen_at <= timedelta(hours=inventory.stock_stale_hours)


def units_of(found: ClusterSeen | None, offer: str, declared: int) -> Usable:
    """Units of an offer that count, by what its cluster was seen to have and what is declared now."""
    last = found.offers.get(offer) if found is not None else None
    return usable(declared, last.seen if last is not None else None)


def seen_units(store: Store, inventory: Inventory, now: datetime | None = None) -> dict[tuple[str, str], int]:
    """Units of every (cluster, offer) that count: as seen, or as declared where nobody looked, or long ago.

    Args:
        store: the factory's bucket.
        inventory: what is declared.
        now: the moment, UTC; default the present one.

    Raises:
        InfrastructureFault: the store does not answer.
    """
    moment = now or datetime.now(UTC)
    units = {}
    for name, cluster in inventory.clusters.items():
        last = kept(store, name)
        found = last if fresh(last, inventory, moment) else None
        for offer, each in cluster.offers.items():
            units[name, offer] = units_of(found, offer, each.units).units
    return units
