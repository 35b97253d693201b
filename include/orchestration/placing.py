"""Which cluster a piece of work goes to, and when: inventory, prices and promises made one decision, on the record.

Used where `AIF_CAPACITY_FILE` names an inventory; without one, work goes to the cluster of `AIF_KUBERNETES_CONN_ID`.
What is promised to whom lies in S3, so that every line sees it, and a task that is tried again finds its own:

    capacity/promises/<work>.json     {"line", "cluster", "offer", "units", "begin", "end"}
    capacity/cooling/<cluster>.json   {"until", "reason", "message"}
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from aifactory.errors import Defect, FactoryError, InfrastructureFault, NotFound
from aifactory.ledger import EventKind, ProductionEvent, event_key
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from aifactory.capacity.inventory import Inventory
    from aifactory.capacity.placement import Alternative, Decision, Job, Site, Stock
    from orchestration.clusterwork import Cluster
    from orchestration.station import Station

log = logging.getLogger(__name__)

Made = TypeVar("Made")

UNIT_KINDS = {"train": "model", "ingest": "batch", "score": "predictions"}
"""What the ledger calls the units of the stages whose work may run in pods."""
SOON = timedelta(minutes=1)
"""A window that begins within this has begun."""
LOOK_AGAIN = timedelta(hours=1)
"""Work that waits is placed anew so often: prices are told, machines come and go."""
_HOUR = timedelta(hours=1)
_LATE = timedelta(hours=1)
"""A promise counts so long after its end: work may take longer than was expected."""
COOLS_OFF = frozenset(
    {
        ReasonCode.CLUSTER_UNREACHABLE,
        ReasonCode.CLUSTER_DENIED,
        ReasonCode.START_TIMEOUT,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.REQUEST_TOO_LARGE,
        ReasonCode.NO_SUCH_NODE,
        ReasonCode.IMAGE_PULL,
    }
)
"""Failures that are the cluster's, not the work's: another may do better."""


@dataclass(frozen=True)
class Place:
    """Where work goes: a cluster, under its name in the inventory, and the class of its GPUs."""

    cluster: Cluster
    name: str = ""
    gpu_class: str | None = None


def connections(here: Station) -> list[str]:
    """Ids of the Airflow connections of every cluster that work may be on."""
    inventory = _inventory(here)
    if inventory is None:
        return [_only_connection(here)]
    return sorted({cluster.connection for cluster in inventory.clusters.values()})


def goes_to_pods(here: Station, work: str) -> bool:
    """Whether this work runs in pods: the line wants it, and there is a cluster to place it on."""
    from orchestration.clusterwork import connected_cluster

    wanted = work in here.spec.compute.in_pods
    return wanted and (_inventory(here) is not None or connected_cluster(_only_connection(here)) is not None)


def carried_out(here: Station, work: str, unit: str, run: Callable[[Place], Made], *, waits: bool = False) -> Made:
    """Run a piece of work where it is placed; a cluster that fails it cools off, and it is placed again elsewhere.

    Args:
        here: the task.
        work: of `compute.in_pods`.
        unit: what is worked on; names the work's promise.
        run: does it in a place.
        waits: whether it may wait, as `compute.flexible_hours` says, for a window or for a cluster to cool off.

    Raises:
        AirflowRescheduleException: its window has not come, or every cluster cools off: the task is woken then.
        Defect: NO_PLACE: no cluster may or can ever take it.
        InfrastructureFault: NO_PLACE: there is no room before its deadline.
    """
    from orchestration.clusterwork import Cluster

    inventory = _inventory(here)
    if inventory is None:
        return run(Place(Cluster(_only_connection(here))))
    placer = _Placer(here, inventory, work, unit, waits=waits)
    failed: FactoryError | None = None
    while True:
        place = placer.place(failed)
        try:
            made = run(place)
        except FactoryError as error:
            placer.give_back()
            if error.reason not in COOLS_OFF:
                raise
            placer.cool_off(place.name, error)
            failed = error
        else:
            placer.give_back()
            return made


def _now() -> datetime:
    return datetime.now(UTC)


def _only_connection(here: Station) -> str:
    return str(here.factory.settings.kubernetes_conn_id)


def _inventory(here: Station) -> Inventory | None:
    from aifactory.capacity.inventory import load_inventory

    path = here.factory.settings.capacity_file
    return load_inventory(path) if path else None


class _Placer:
    """Places one piece of work."""

    def __init__(self, here: Station, inventory: Inventory, work: str, unit: str, *, waits: bool) -> None:
        self._here = here
        self._inventory = inventory
        self._unit = unit
        self._station = here.context["ti"].dag_id.rpartition(".")[2]
        self._own = hashlib.sha256(f"{here.spec.line}/{work}/{unit}".encode()).hexdigest()[:16]
        self._may_wait = waits
        self._waits = timedelta(hours=here.spec.compute.flexible_hours if waits else 0)
        self._trains = work == "train"
        self._needs_gpu = self._trains and here.spec.compute.gpus > 0
        self._key = f"capacity/promises/{self._own}.json"

    def place(self, failed: FactoryError | None) -> Place:
        """Where the work goes now; `failed` is why the place before was none. Raises as `carried_out` does."""
        now = _now()
        kept = self._kept(now)
        if kept is not None:
            return kept
        origin = now.replace(minute=0, second=0, microsecond=0)
        stock, cooled_until = self._stock(origin, now)
        queue = timedelta(minutes=self._here.spec.compute.queue_minutes)
        for waits_for_room in (timedelta(0), queue) if self._may_wait else (timedelta(0),):
            job = self._job(origin, now, waits_for_room)
            decision = stock.place(job, (now - origin) / _HOUR)
            if decision.chosen:
                break
        log.info("placement of %s:\n%s", self._unit, _table(decision, origin))
        if decision.chosen is None:
            raise self._nowhere(decision, failed) or _woken_at(cooled_until)
        chosen = decision.chosen
        begin = origin + timedelta(hours=chosen.begin)
        self._record(decision, chosen, begin, origin + timedelta(hours=chosen.end), job)
        if begin - now > SOON:
            log.info("its window at %s begins at %s; until then no worker is held", chosen.site, begin)
            raise _woken_at(min(begin, now + LOOK_AGAIN))
        name, _, offer = chosen.site.partition(".")
        return self._at(name, offer)

    def give_back(self) -> None:
        """The work has ended, whichever way: its promise is free."""
        try:
            self._here.factory.store.delete(self._key)
        except InfrastructureFault as error:
            log.warning("its promise could not be removed, it counts until an hour after its end: %s", error)

    def cool_off(self, name: str, error: FactoryError) -> None:
        """Pass a cluster over for a while."""
        until = _now() + timedelta(minutes=self._inventory.cool_off_minutes)
        log.warning("cluster %s cools off until %s: %s", name, until, error)
        self._here.factory.store.put_json(
            f"capacity/cooling/{name}.json",
            {"until": until.isoformat(), "reason": error.reason.value, "message": error.message[:2000]},
        )

    # --- what is known
    def _kept(self, now: datetime) -> Place | None:
        """The place of an earlier try of this very work that had begun: its pod may be there still."""
        mine = _json(self._here, self._key)
        if mine is None or datetime.fromisoformat(mine["begin"]) - now > SOON:
            return None
        cluster = self._inventory.clusters.get(mine["cluster"])
        if cluster is None or mine["offer"] not in cluster.offers or cluster.region not in self._regions:
            return None
        if self._cooling.get(mine["cluster"]):
            return None
        log.info("an earlier try of %s was placed at %s.%s: it stays there", self._unit, mine["cluster"], mine["offer"])
        return self._at(mine["cluster"], mine["offer"])

    def _at(self, name: str, offer: str) -> Place:
        from orchestration.clusterwork import Cluster

        cluster = self._inventory.clusters[name]
        return Place(Cluster(cluster.connection), name, cluster.offers[offer].gpu_class)

    @property
    def _regions(self) -> tuple[str, ...]:
        return tuple(self._here.spec.residency.regions)

    @property
    def _cooling(self) -> dict[str, datetime]:
        """Clusters that are passed over, and until when."""
        now = _now()
        notes = {name: _json(self._here, f"capacity/cooling/{name}.json") for name in self._inventory.clusters}
        found = {name: datetime.fromisoformat(note["until"]) for name, note in notes.items() if note}
        return {name: until for name, until in found.items() if until > now}

    def _job(self, origin: datetime, now: datetime, waits_for_room: timedelta) -> Job:
        from aifactory.capacity.placement import Job

        compute = self._here.spec.compute
        begun = self._here.context["dag_run"].start_date or now
        latest_begin = (max(begun + self._waits, now) + waits_for_room - origin) / _HOUR
        return Job(
            name=self._unit,
            line=self._here.spec.line,
            regions=self._regions,
            units=compute.gpus * compute.nodes if self._needs_gpu else 1,
            hours=((self._trains and compute.expected_minutes) or compute.timeout_minutes) / 60,
            deadline=latest_begin + 2 * compute.timeout_minutes / 60,  # slower machines, and interruptions
            latest_begin=latest_begin,
            gpu_class=compute.gpu_class if self._needs_gpu else None,
            needs_gpu=self._needs_gpu,
            spot=compute.spot,
        )

    def _stock(self, origin: datetime, now: datetime) -> tuple[Stock, datetime | None]:
        """What there is from an hour on, less what is promised; and when the first cluster has cooled off."""
        import numpy as np

        from aifactory.capacity.placement import Stock

        cooling = self._cooling
        sites = self._sites(cooling)
        compute = self._here.spec.compute
        hours = math.ceil(self._waits / _HOUR + (2 * compute.timeout_minutes + compute.queue_minutes) / 60) + 2
        ahead = {name: self._ahead(name, origin, now, hours) for name in self._inventory.feeds}
        nothing = np.zeros(hours)
        rows = []
        for site in sites:
            cluster = self._inventory.clusters[site.cluster]
            free = cluster.energy is None or cluster.offers[site.offer].energy_included
            price = nothing if free else ahead[str(cluster.energy)]
            rows.append((price, ahead[cluster.carbon] if cluster.carbon else nothing))
        place_of = {(site.cluster, site.offer): number for number, site in enumerate(sites)}
        reserved: dict[str, Any] = {}
        for each in self._inventory.reservations:
            kept = reserved.setdefault(each.line, np.zeros(len(sites), dtype=np.int64))
            kept[place_of[each.cluster, each.offer]] += each.units
        stock = Stock(
            sites,
            np.vstack([price for price, _ in rows]),
            np.vstack([carbon for _, carbon in rows]),
            self._inventory.carbon_price_per_t / 1e6,
            reserved,
            self._inventory.max_units_of_line,
        )
        for promise in self._promises(now):
            number = place_of.get((promise["cluster"], promise["offer"]))
            begin, end = ((datetime.fromisoformat(promise[name]) - origin) / _HOUR for name in ("begin", "end"))
            if number is not None and begin < hours:
                stock.take(promise["line"], promise["units"], number, max(begin, 0.0), max(end, 1.0))
        return stock, min(cooling.values(), default=None)

    def _sites(self, cooling: dict[str, datetime]) -> list[Site]:
        from aifactory.capacity.placement import Obstacle, Site
        from orchestration.clusterwork import connected_cluster

        sites = []
        for name, cluster in self._inventory.clusters.items():
            there = connected_cluster(cluster.connection) is not None
            shut = Obstacle.COOLING_OFF if name in cooling else None if there else Obstacle.NOT_CONNECTED
            sites += [
                Site(
                    name, key, cluster.region, offer.gpu_class, offer.units, offer.unit_hour,
                    cluster.pue * offer.unit_power_w / 1000, offer.speed, offer.tariff == "spot",
                    offer.interruptions_per_hour, shut,
                )
                for key, offer in cluster.offers.items()
            ]  # fmt: skip
        return sites

    def _ahead(self, name: str, origin: datetime, now: datetime, hours: int) -> Any:
        from aifactory.capacity import feeds

        feed = self._inventory.feeds[name]
        series = feeds.current(self._here.factory, name, feed, self._folder, now)
        return feeds.ahead(series, feed, origin, hours).values

    @cached_property
    def _folder(self) -> Any:
        path = self._here.factory.settings.capacity_file
        return path.parent if path else None

    def _promises(self, now: datetime) -> list[dict[str, Any]]:
        """What others were promised; what is long over is removed."""
        store, found = self._here.factory.store, []
        for each in store.list("capacity/promises/"):
            promise = _json(self._here, each.key) if each.key != self._key else None
            if promise is None:
                continue
            if now - datetime.fromisoformat(promise["end"]) > _LATE:
                store.delete(each.key)
            else:
                found.append(promise)
        return found

    # --- what comes of it
    def _nowhere(self, decision: Decision, failed: FactoryError | None) -> FactoryError | None:
        """Why there is no place; None where waiting for a cluster to cool off may help."""
        from aifactory.capacity.placement import FOR_GOOD, Obstacle

        told = ", ".join(f"{each.site} {each.obstacle}" for each in decision.alternatives)
        message = f"{self._unit} finds no place in {self._here.factory.settings.capacity_file}: {told}"
        obstacles = {each.obstacle for each in decision.alternatives}
        if obstacles <= FOR_GOOD:
            asked = f"residency.regions {list(self._regions)}, compute.gpus and compute.gpu_class"
            return Defect(ReasonCode.NO_PLACE, f"{message}; no waiting changes that: look at {asked}")
        if isinstance(failed, Defect):
            return failed
        if Obstacle.COOLING_OFF in obstacles and self._may_wait:
            return None
        return InfrastructureFault(ReasonCode.NO_PLACE, message)

    def _record(self, decision: Decision, chosen: Alternative, begin: datetime, end: datetime, job: Job) -> None:
        name, _, offer = chosen.site.partition(".")
        promise = {
            "line": job.line, "work": self._unit, "cluster": name, "offer": offer, "units": job.units,
            "begin": begin.isoformat(), "end": end.isoformat(),
        }  # fmt: skip
        self._here.factory.store.put_json(self._key, promise)
        alternatives = [_row(each, begin - timedelta(hours=chosen.begin)) for each in decision.alternatives]
        revision = f"{self._here.run}:{chosen.site}:{begin:%Y-%m-%dT%H:%M}"
        self._here.factory.ledger.record(
            ProductionEvent(
                line=job.line,
                station=self._station,
                unit_kind=UNIT_KINDS[self._station],
                unit=self._unit,
                event=EventKind.DECIDED,
                key=event_key(job.line, self._station, self._unit, EventKind.DECIDED, revision),
                run_id=self._here.run,
                detail={"placed": chosen.site, "expected_money": round(chosen.money, 4), "alternatives": alternatives},
            )
        )


def _json(here: Station, key: str) -> dict[str, Any] | None:
    try:
        return here.factory.store.get_json(key)
    except NotFound:
        return None


def _woken_at(moment: datetime | None) -> Exception:
    from airflow.sdk.exceptions import AirflowRescheduleException

    return AirflowRescheduleException(moment or _now() + LOOK_AGAIN)  # type: ignore[no-untyped-call]


def _row(each: Alternative, origin: datetime) -> dict[str, Any]:
    """One alternative, for people and for the ledger."""
    if each.obstacle is not None:
        return {"site": each.site, "obstacle": each.obstacle.value}
    moments = {name: origin + timedelta(hours=getattr(each, name)) for name in ("begin", "end")}
    return {
        "site": each.site,
        **{name: moment.isoformat(timespec="minutes") for name, moment in moments.items()},
        **{
            name: round(getattr(each, name), 4)
            for name in ("money", "use", "energy", "interruptions", "grams", "score")
        },
    }


def _table(decision: Decision, origin: datetime) -> str:
    """The alternatives, a line each, the chosen one marked."""
    lines = []
    for each in decision.alternatives:
        row = _row(each, origin)
        told = row.get("obstacle") or "{begin} to {end}, money {money} (use {use}, energy {energy}), {grams} g".format(
            **row
        )
        lines.append(f"{'→' if each is decision.chosen else ' '} {each.site}: {told}")
    return "\n".join(lines)
