"""Where, when and on how many machines work runs: inventory, prices and promises made one decision, on the record.

Used where `AIF_CAPACITY_FILE` names an inventory; without one, work goes to the cluster of `AIF_KUBERNETES_CONN_ID`.
What is promised to whom lies in S3, so that every line sees it, and a task that is tried again finds its own:

    capacity/promises/<work>.json     what is promised to it, see `_Placer._record`
    capacity/cooling/<cluster>.json   {"until", "reason", "message"}
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aifactory.errors import Defect, FactoryError, InfrastructureFault, NotFound, SpecError, Waiting
from aifactory.ledger import EventKind, ProductionEvent, event_key
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from aifactory.capacity import inventory as capacity
    from aifactory.capacity.inventory import Inventory
    from aifactory.capacity.placement import Alternative, Decision, Job, Obstacle, Site, Stock
    from orchestration.clusterwork import Cluster, PodLife
    from orchestration.station import Station

log = logging.getLogger(__name__)

Made = TypeVar("Made")

UNIT_KINDS = {"train": "model", "ingest": "batch", "score": "predictions"}
"""What the ledger calls the units of the stages whose work may run in pods."""
_PROMISES = "capacity/promises/"
_COOLING = "capacity/cooling/"
_ASKED_AT = "asked_for_a_place_at"
"""Key of the task's state: when its run asked for a place first."""
SOON = timedelta(minutes=1)
"""A window that begins within this has begun."""
LOOK_AGAIN = timedelta(hours=1)
"""Work that waits for its window is placed anew so often: prices are told, machines come and go."""
LOOK_FOR_ROOM = timedelta(minutes=2)
"""Work that finds no room looks again so soon: others may end before they were expected to."""
_OLD = timedelta(days=1)
"""A promise of another line that ended so long ago is removed too: that line may be gone."""
_HOUR = timedelta(hours=1)
COOLS_OFF = frozenset(
    {
        ReasonCode.CLUSTER_UNREACHABLE,
        ReasonCode.CLUSTER_DENIED,
        ReasonCode.START_TIMEOUT,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.IMAGE_PULL,
    }
)
"""The cluster's own failures: any work would meet them."""
_REFUSED = frozenset(
    {
        ReasonCode.NO_SUCH_NODE,
        ReasonCode.REQUEST_TOO_LARGE,
        ReasonCode.POD_INVALID,
        ReasonCode.SECRET_MISSING,
        ReasonCode.IMAGE_UNKNOWN,
    }
)
"""What a cluster has against this work alone."""
ELSEWHERE = COOLS_OFF | _REFUSED
"""Failures that another cluster may not have."""


@dataclass(frozen=True)
class Place:
    """Where work goes.

    Args:
        cluster: the cluster.
        name: in the inventory; empty without one.
        gpu_class: of its GPUs; None: as the line says.
        node_labels: that its nodes have, beside those that the line wants.
        tariff: settings of what a unit and energy cost there, for the program.
        nodes: how many machines; None: as the line says.
        no_more_at: until when another pod may be made in this try, of `time.monotonic()`, s.
        life: is to be told whether there may be a pod.
    """

    cluster: Cluster
    name: str = ""
    gpu_class: str | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict)
    tariff: Mapping[str, Any] = field(default_factory=dict)
    nodes: int | None = None
    no_more_at: float = math.inf
    life: PodLife | None = None


def connections(here: Station) -> list[str]:
    """Ids of the Airflow connections of every cluster that work may be on: those of an earlier inventory too."""
    found = {_only_connection(here)}
    with suppress(SpecError):  # who places work says so
        inventory = _inventory(here)
        found |= {cluster.connection for cluster in inventory.clusters.values()} if inventory else set()
    for _, promise in _promises(here):
        found |= {promise["connection"], *promise["left"]}
    return sorted(found)


def prune(here: Station, is_over: Callable[[Mapping[str, str]], bool], not_swept: Set[str] = frozenset()) -> None:
    """Remove the line's promises to tasks that are over: a cancelled one could not give its own back.

    Args:
        here: the task that sweeps.
        is_over: whether a task waits for nothing any more.
        not_swept: connections behind which its pods may be still: only the promise may say that they are there.
    """
    for key, promise in _promises(here):
        if not_swept & {promise["connection"], *promise["left"]}:
            continue
        old = _now() - datetime.fromisoformat(promise["end"]) > _OLD
        if (promise["line"] == here.spec.line or old) and is_over(promise["task"]):
            log.info("the promise of %s to %s is taken back: its task is over", promise["cluster"], promise["work"])
            here.factory.store.delete(key)


def goes_to_pods(here: Station, work: str) -> bool:
    """Whether this work runs in pods: the line wants it, and there is a cluster to place it on."""
    from orchestration.clusterwork import connected_cluster

    wanted = work in here.spec.compute.in_pods
    return wanted and (_inventory(here) is not None or connected_cluster(_only_connection(here)) is not None)


def carried_out(
    here: Station,
    work: str,
    unit: str,
    run: Callable[[Place], Made],
    more_for: timedelta,
    follows: timedelta = timedelta(0),
) -> Made:
    """Run a piece of work where it is placed; where a cluster fails it, it is placed again elsewhere.

    Args:
        here: the task.
        work: of `compute.in_pods`.
        unit: what is worked on; names the work's promise.
        run: does it in a place.
        more_for: how long after the beginning of this try another pod may still be made.
        follows: what is expected to take so long in the same run once this is done.

    Raises:
        Waiting: the window of a training has not come, or it finds no room yet: its task is to be woken then.
        Defect: NO_PLACE: no cluster may or can ever take it; or what each of them has against it.
        InfrastructureFault: NO_PLACE: there was no room before its time was over; or the last cluster's failure.
    """
    from orchestration.clusterwork import Cluster

    no_more_at = time.monotonic() + more_for.total_seconds()
    try:
        inventory = _inventory(here)
    except SpecError as error:  # its pod may be at work, and somebody is about to mend the file
        raise InfrastructureFault(error.reason, str(error)) from error
    if inventory is None:
        return run(Place(Cluster(_only_connection(here)), no_more_at=no_more_at))
    placer = _Placer(here, inventory, work, unit, no_more_at, follows)
    while True:
        place = placer.place()
        try:
            made = run(place)
        except FactoryError as error:
            placer.failed(place, error)
        else:
            placer.done(followed=True)
            return made


def done(here: Station, work: str, unit: str) -> None:
    """Tidy up after work that is found done: its pod may be there, and its promise."""
    from orchestration.clusterwork import Cluster, tidy
    from orchestration.pods import task_label

    inventory = _inventory(here)
    if inventory is not None:
        _Placer(here, inventory, work, unit, math.inf).done()
    else:
        tidy(Cluster(_only_connection(here)), task_label(here.factory.settings, task_ids(here)), unit)


def task_ids(here: Station) -> dict[str, str]:
    """Which task works here."""
    return {name: str(getattr(here.context["ti"], name)) for name in ("dag_id", "run_id", "task_id")}


def _now() -> datetime:
    return datetime.now(UTC)


def _only_connection(here: Station) -> str:
    return str(here.factory.settings.kubernetes_conn_id)


def _inventory(here: Station) -> Inventory | None:
    from aifactory.capacity.inventory import load_inventory

    path = here.factory.settings.capacity_file
    return load_inventory(path) if path else None


def _promises(here: Station) -> list[tuple[str, dict[str, Any]]]:
    """Every promise, with its key."""
    keys = [each.key for each in here.factory.store.list(_PROMISES)]
    return [(key, promise) for key in keys if (promise := _json(here, key)) is not None]


@dataclass(frozen=True)
class _Patience:
    """Until when work may wait: for a cheaper window, and for room."""

    window: datetime
    room: datetime


class _Placer:
    """Places one piece of work, as often as one try of its task has to."""

    def __init__(
        self, here: Station, inventory: Inventory, work: str, unit: str, no_more_at: float,
        follows: timedelta = timedelta(0),
    ) -> None:  # fmt: skip
        self._here = here
        self._inventory = inventory
        self._unit = unit
        self._station = here.context["ti"].dag_id.rpartition(".")[2]
        own = hashlib.sha256(f"{here.spec.line}/{work}/{unit}".encode()).hexdigest()[:16]
        self._trains = work == "train"  # what a task does in between cannot be put off
        self._needs_gpu = self._trains and here.spec.compute.gpus > 0
        self._key = f"{_PROMISES}{own}.json"
        self._no_more_at = no_more_at
        self._follows = follows
        self._failed: dict[str, FactoryError] = {}
        self._left: set[str] = set()
        self._may_live = False
        self._feeds: dict[tuple[str, datetime], Any] = {}

    def place(self) -> Place:
        """Where the work goes now. Raises as `carried_out` does."""
        now = _now()
        promise = self._own()
        if promise["begun"] and promise["cluster"] not in self._failed:
            kept = self._kept(promise)
            if kept is not None:
                return kept
            self._leave(promise)
        origin = now.replace(minute=0, second=0, microsecond=0)
        cooling = self._cooling()
        patience = self._patience(now)
        decision = self._decide(origin, now, cooling, (patience.window, patience.room))
        if decision.chosen is None:
            self.give_back()
            self._nowhere(decision)
            if now < patience.room:
                until = min([now + LOOK_FOR_ROOM, patience.room, *cooling.values()])
                raise Waiting(until, f"{self._unit} finds no place yet: {_obstacles(decision)}")
            decision = self._decide(origin, now, cooling, (now,), promised=False)
        log.info("placement of %s:\n%s", self._unit, _table(decision, origin))
        if decision.chosen is None:
            raise self._last_failure() or InfrastructureFault(
                ReasonCode.NO_PLACE, f"{self._unit} finds no place: {_obstacles(decision)}"
            )
        chosen = decision.chosen
        begin = origin + timedelta(hours=chosen.begin)
        promise = self._record(decision, chosen, begin, origin + timedelta(hours=chosen.end))
        if begin - now > SOON:
            until = min(begin, now + LOOK_AGAIN)
            raise Waiting(until, f"the window of {self._unit} at {chosen.site} begins at {begin:%Y-%m-%d %H:%M} UTC")
        return self._at(promise)

    def failed(self, place: Place, error: FactoryError) -> None:
        """Say what becomes of work that failed in a place: it goes elsewhere when this comes back.

        Raises:
            FactoryError: the error: it is the work's own, or the work stays there, or this try has no time left.
        """
        if self._here.cancelled.is_set():
            self.give_back()
            raise error
        if error.reason not in ELSEWHERE:
            if not self._may_live:
                self.give_back()
            raise error
        if error.reason in COOLS_OFF:
            self._cool_off(place.name, error)
        if self._may_live:
            promise = self._own()
            since = promise.get("lost_since") or _now().isoformat()
            if _now() - datetime.fromisoformat(since) < timedelta(minutes=self._inventory.follow_minutes):
                self._here.factory.store.put_json(self._key, promise | {"lost_since": since})
                raise InfrastructureFault(
                    error.reason, f"{error.message}; its pod may work on: the next try looks for it"
                ) from error
            self._leave(promise)
        self.give_back()
        self._failed[place.name] = error
        if time.monotonic() > self._no_more_at:
            raise self._last_failure() or error

    def give_back(self) -> None:
        """The work has ended here, whichever way: its promise is free. Clusters that were left stay on record."""
        store, promise = self._here.factory.store, self._own()
        try:
            if self._left and "task" in promise:
                over = {"units": 0, "begun": False, "end": _now().isoformat(), "left": sorted(self._left)}
                store.put_json(self._key, promise | over)
            else:
                store.delete(self._key)
        except InfrastructureFault as error:
            log.warning("its promise could not be taken back, the sweep will: %s", error)

    def done(self, *, followed: bool = False) -> None:
        """The work is done: remove the pods that it may still have, but for the one that was followed to its end."""
        from orchestration.clusterwork import Cluster, tidy
        from orchestration.pods import task_label

        promise = self._own()
        label = task_label(self._here.factory.settings, task_ids(self._here))
        last = [promise["connection"]] if promise["begun"] and not followed else []
        for connection in [*sorted(self._left), *last]:
            tidy(Cluster(connection), label, self._unit)
        with suppress(InfrastructureFault):  # then the sweep takes it back
            self._here.factory.store.delete(self._key)

    def _own(self) -> dict[str, Any]:
        """The promise to this very task; that of another, which had the same work, is the sweep's."""
        promise = _json(self._here, self._key)
        if promise is None or promise["task"] != task_ids(self._here):
            return {"begun": False}
        self._left |= set(promise["left"])
        return promise

    def _leave(self, promise: Mapping[str, Any]) -> None:
        """Its pod is not followed any more; it is removed when the work is done, or by the sweep."""
        log.warning("%s is not followed in cluster %s any more", self._unit, promise["cluster"])
        self._left.add(promise["connection"])
        self._may_live = False

    def _cool_off(self, name: str, error: FactoryError) -> None:
        """Pass a cluster over for a while, for every line."""
        until = _now() + timedelta(minutes=self._inventory.cool_off_minutes)
        log.warning("cluster %s cools off until %s: %s", name, until, error)
        self._here.factory.store.put_json(
            f"{_COOLING}{name}.json",
            {"until": until.isoformat(), "reason": error.reason.value, "message": error.message[:2000]},
        )

    # --- what is known
    def _kept(self, promise: Mapping[str, Any]) -> Place | None:
        """The place of an earlier try, whose pod may be there still; None where the inventory has it no more."""
        from orchestration.clusterwork import connected_cluster

        cluster = self._inventory.clusters.get(promise["cluster"])
        if cluster is None or promise["offer"] not in cluster.offers or cluster.connection != promise["connection"]:
            return None
        if cluster.region not in self._regions or connected_cluster(cluster.connection) is None:
            return None
        log.info("%s was begun at %s.%s: it stays there", self._unit, promise["cluster"], promise["offer"])
        self._may_live = True
        return self._at(promise)

    def _at(self, promise: Mapping[str, Any]) -> Place:
        from orchestration.clusterwork import Cluster, PodLife

        cluster = self._inventory.clusters[promise["cluster"]]
        offer = cluster.offers[promise["offer"]]

        def begins() -> None:
            self._may_live = True
            found = {name: value for name, value in promise.items() if name != "lost_since"}
            self._here.factory.store.put_json(self._key, found | {"begun": True})

        def ended() -> None:
            self._may_live = False

        return Place(
            Cluster(cluster.connection),
            promise["cluster"],
            offer.gpu_class if self._needs_gpu else None,
            offer.node_labels,
            self._tariff(cluster, offer),
            promise["nodes"],
            self._no_more_at,
            PodLife(begins, ended),
        )

    def _tariff(self, cluster: capacity.Cluster, offer: capacity.Offer) -> dict[str, Any]:
        """What a unit and its energy cost at this hour."""
        now = _now()
        origin = now.replace(minute=0, second=0, microsecond=0)
        paid = cluster.energy is not None and not offer.energy_included
        carbon = (
            {"carbon_g_kwh": max(0.0, float(self._ahead(cluster.carbon, origin, now)[0]))} if cluster.carbon else {}
        )
        return carbon | {
            "currency": self._inventory.currency,
            "unit_hour": offer.unit_hour,
            "pue": cluster.pue,
            "energy_price_kwh": float(self._ahead(str(cluster.energy), origin, now)[0]) if paid else 0.0,
        }

    @property
    def _regions(self) -> tuple[str, ...]:
        return tuple(self._here.spec.residency.regions)

    def _cooling(self) -> dict[str, datetime]:
        """Clusters that are passed over, and until when."""
        now = _now()
        notes = {name: _json(self._here, f"{_COOLING}{name}.json") for name in self._inventory.clusters}
        found = {name: datetime.fromisoformat(note["until"]) for name, note in notes.items() if note}
        return {name: until for name, until in found.items() if until > now}

    def _patience(self, now: datetime) -> _Patience:
        """Counted from the run's begin for a window, and from the first asking in this run for room."""
        if not self._trains:
            return _Patience(now, now)
        compute, state = self._here.spec.compute, self._here.context["task_state_store"]
        begun = self._run_began(now)
        told = state.get(_ASKED_AT)
        asked = datetime.fromisoformat(told) if told else None
        if asked is None or asked < begun:  # the run was cleared since
            asked = now
            state.set(_ASKED_AT, now.isoformat())
        window = begun + timedelta(hours=compute.flexible_hours)
        return _Patience(max(window, now), max(window, asked + timedelta(minutes=compute.queue_minutes)))

    def _run_began(self, now: datetime) -> datetime:
        return self._here.context["dag_run"].start_date or now

    def _jobs(self, origin: datetime, now: datetime, latest: Sequence[datetime]) -> list[Job]:
        """The job with each latest begin, and where the number of its machines is open, first with the run's deadline.

        Without `expected_minutes` nothing says that fewer machines are done before the pod's own limit.
        """
        from aifactory.capacity.placement import counts_between

        jobs, compute = [self._job(origin, max(each, now)) for each in latest], self._here.spec.compute
        if not (self._trains and compute.expected_minutes) or compute.fewest_nodes == compute.nodes:
            return jobs
        done_at = self._run_began(now) + timedelta(minutes=self._here.spec.schedule.deadline_minutes) - self._follows
        jobs = [replace(job, counts=counts_between(compute.fewest_nodes, compute.nodes)) for job in jobs]
        in_time = [replace(job, deadline=min(job.deadline, (done_at - origin) / _HOUR)) for job in jobs]
        return in_time + [replace(job, hurries=True) for job in jobs]

    def _job(self, origin: datetime, latest: datetime) -> Job:
        from aifactory.capacity.placement import Job

        compute = self._here.spec.compute
        latest_begin = (latest - origin) / _HOUR
        return Job(
            name=self._unit,
            line=self._here.spec.line,
            regions=self._regions,
            units=compute.nodes * compute.gpus if self._needs_gpu else compute.nodes if self._trains else 1,
            hours=((self._trains and compute.expected_minutes) or compute.timeout_minutes) / 60,
            deadline=latest_begin + 2 * compute.timeout_minutes / 60,  # with interruptions
            latest_begin=latest_begin,
            longest=compute.timeout_minutes / 60 if self._trains and compute.expected_minutes else math.inf,
            gpu_class=compute.gpu_class if self._needs_gpu else None,
            needs_gpu=self._needs_gpu,
            spot=compute.spot,
            nodes=compute.nodes if self._trains else 1,
            scaling_efficiency=compute.scaling_efficiency,
        )

    def _decide(
        self, origin: datetime, now: datetime, cooling: Mapping[str, datetime], latest: Sequence[datetime],
        *, promised: bool = True,
    ) -> Decision:  # fmt: skip
        """The decision for the first of the jobs that finds a place.

        Where promises to others do not count, the cluster's own queue decides who goes first.
        """
        stock = self._stock(origin, now, cooling, promised=promised)
        for job in self._jobs(origin, now, latest):
            decision = stock.place(job, (now - origin) / _HOUR)
            if decision.chosen:
                break
        return decision

    def _stock(self, origin: datetime, now: datetime, cooling: Mapping[str, datetime], *, promised: bool) -> Stock:
        """What there is from an hour on, less what is promised to others."""
        import numpy as np

        from aifactory.capacity.placement import Stock
        from aifactory.capacity.stock import seen_units

        sites = self._sites(cooling)
        promises = [promise for key, promise in _promises(self._here) if key != self._key]
        hours = self._num_hours
        nothing = np.zeros(hours)
        rows = []
        for site in sites:
            cluster = self._inventory.clusters[site.cluster]
            free = cluster.energy is None or cluster.offers[site.offer].energy_included
            price = nothing if free else self._ahead(str(cluster.energy), origin, now)
            rows.append((price, self._ahead(cluster.carbon, origin, now) if cluster.carbon else nothing))
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
            self._caps(promises, promised=promised),
        )
        for place, units in seen_units(self._here.factory.store, self._inventory, now).items():
            gone = self._inventory.clusters[place[0]].offers[place[1]].units - units
            stock.take("", gone, place_of[place], 0.0, hours)  # nobody's: they are not there at present
        soonest_end = (now - origin) / _HOUR + 0.25  # what takes longer than was expected is there still
        for promise in promises if promised else []:
            number = place_of.get((promise["cluster"], promise["offer"]))
            begin, end = ((datetime.fromisoformat(promise[name]) - origin) / _HOUR for name in ("begin", "end"))
            if number is not None and begin < hours:
                stock.take(promise["line"], promise["units"], number, max(begin, 0.0), max(end, soonest_end))
        return stock

    def _caps(self, promises: Sequence[Mapping[str, Any]], *, promised: bool) -> dict[str, int]:
        """Units that lines may have at work; where promises do not count otherwise, less what the line has."""
        caps, line = dict(self._inventory.max_units_of_line), self._here.spec.line
        if line in caps and not promised:
            caps[line] = max(0, caps[line] - sum(each["units"] for each in promises if each["line"] == line))
        return caps

    def _sites(self, cooling: Mapping[str, datetime]) -> list[Site]:
        from aifactory.capacity.placement import Site
        from orchestration.clusterwork import connected_cluster

        sites = []
        for name, cluster in self._inventory.clusters.items():
            away = self._away(name, cooling, connected=connected_cluster(cluster.connection) is not None)
            sites += [
                Site(
                    name, key, cluster.region, offer.gpu_class, offer.units, offer.unit_hour,
                    cluster.pue * offer.unit_power_w / 1000, offer.speed, offer.tariff == "spot",
                    offer.interruptions_per_hour, self._other_nodes(offer) or away,
                )
                for key, offer in cluster.offers.items()
            ]  # fmt: skip
        return sites

    def _other_nodes(self, offer: capacity.Offer) -> Obstacle | None:
        """Whether the line wants other nodes than those of an offer."""
        from aifactory.capacity.placement import Obstacle

        wanted = self._here.spec.compute.node_labels
        others = any(wanted.get(label, value) != value for label, value in offer.node_labels.items())
        return Obstacle.OTHER_NODES if others else None

    def _away(self, name: str, cooling: Mapping[str, datetime], *, connected: bool) -> Obstacle | None:
        """Why nothing of this work goes to a cluster at present."""
        from aifactory.capacity.placement import Obstacle

        if name in self._failed and self._failed[name].reason in _REFUSED:
            return Obstacle.REFUSED
        if name in self._failed or name in cooling:
            return Obstacle.COOLING_OFF
        return None if connected else Obstacle.NOT_CONNECTED

    @property
    def _num_hours(self) -> int:
        compute = self._here.spec.compute
        waits = compute.flexible_hours if self._trains else 0
        return math.ceil(waits + (2 * compute.timeout_minutes + compute.queue_minutes) / 60) + 2

    def _ahead(self, name: str, origin: datetime, now: datetime) -> Any:
        from aifactory.capacity import feeds

        if (name, origin) not in self._feeds:
            feed = self._inventory.feeds[name]
            series = feeds.current(self._here.factory, name, feed, self._folder, now)
            self._feeds[name, origin] = feeds.ahead(series, feed, origin, self._num_hours).values
        return self._feeds[name, origin]

    @cached_property
    def _folder(self) -> Path:
        return Path(self._here.factory.settings.capacity_file or "").parent

    # --- what comes of it
    def _nowhere(self, decision: Decision) -> None:
        """Nothing more to do where no waiting helps.

        Raises:
            Defect: NO_PLACE, or what a cluster has against the work.
        """
        from aifactory.capacity.placement import FOR_GOOD, Obstacle

        obstacles = {each.obstacle for each in decision.alternatives}
        if not obstacles <= {*FOR_GOOD, Obstacle.REFUSED}:
            return
        told = f"{self._unit} finds no place in {self._here.factory.settings.capacity_file}: {_obstacles(decision)}"
        for name, refusal in self._failed.items():
            if refusal.reason in _REFUSED:
                raise Defect(refusal.reason, f"{told}; cluster {name} says: {refusal.message}")
        asked = f"residency.regions {list(self._regions)}, compute.gpus, nodes, min_nodes, gpu_class, node_labels "
        asked += "and expected_minutes"
        raise Defect(ReasonCode.NO_PLACE, f"{told}; no waiting changes that: look at {asked}")

    def _last_failure(self) -> FactoryError | None:
        """Why the last cluster failed in this try, where that may pass."""
        faults = [error for error in self._failed.values() if isinstance(error, InfrastructureFault)]
        return faults[-1] if faults else None

    def _record(self, decision: Decision, chosen: Alternative, begin: datetime, end: datetime) -> dict[str, Any]:
        """Promise the place, and say so in the ledger."""
        name, _, offer = chosen.site.partition(".")
        job = self._job(begin, begin)
        promise = {
            "line": job.line, "work": self._unit, "task": task_ids(self._here), "cluster": name, "offer": offer,
            "connection": self._inventory.clusters[name].connection, "nodes": chosen.nodes,
            "units": job.units_of(chosen.nodes), "begin": begin.isoformat(), "end": end.isoformat(), "begun": False,
            "left": sorted(self._left),
        }  # fmt: skip
        self._here.factory.store.put_json(self._key, promise)
        alternatives = [_row(each, begin - timedelta(hours=chosen.begin)) for each in decision.alternatives]
        failed = {each: f"{error.reason.value}: {error.message[:500]}" for each, error in self._failed.items()}
        revision = f"{self._here.run}:{chosen.site}:{chosen.nodes}:{begin:%Y-%m-%dT%H:%M}"
        self._here.factory.ledger.record(
            ProductionEvent(
                line=job.line,
                station=self._station,
                unit_kind=UNIT_KINDS[self._station],
                unit=self._unit,
                event=EventKind.DECIDED,
                key=event_key(job.line, self._station, self._unit, EventKind.DECIDED, revision),
                run_id=self._here.run,
                detail={
                    "placed": chosen.site,
                    "nodes": chosen.nodes,
                    "hurries": decision.hurries,
                    "expected_money": round(chosen.money, 4),
                    "failed_before": failed,
                    "alternatives": alternatives,
                },
            )
        )
        return promise


def _json(here: Station, key: str) -> dict[str, Any] | None:
    try:
        return here.factory.store.get_json(key)
    except NotFound:
        return None


def _obstacles(decision: Decision) -> str:
    return ", ".join(f"{each.site} {each.obstacle}" for each in decision.alternatives)


def _row(each: Alternative, origin: datetime) -> dict[str, Any]:
    """One alternative, for people and for the ledger; `other_nodes` has why not so many, or with which score."""
    told = {str(nodes): str(what) if isinstance(what, str) else round(what, 4) for nodes, what in each.others}
    others = {"other_nodes": told} if told else {}
    if each.obstacle is not None:
        return {"site": each.site, "obstacle": each.obstacle.value, **others}
    moments = {name: origin + timedelta(hours=getattr(each, name)) for name in ("begin", "end")}
    return {
        "site": each.site,
        "nodes": each.nodes,
        **{name: moment.isoformat(timespec="minutes") for name, moment in moments.items()},
        **{
            name: round(getattr(each, name), 4)
            for name in ("money", "use", "energy", "interruptions", "grams", "score")
        },
        **others,
    }


def _table(decision: Decision, origin: datetime) -> str:
    """The alternatives, a line each, the chosen one marked."""
    lines = (
        ["no number of machines is expected to be done in time: the most that there are"] if decision.hurries else []
    )
    for each in decision.alternatives:
        row = _row(each, origin)
        told = row.get("obstacle") or (
            "machines {nodes}, {begin} to {end}, money {money} (use {use}, energy {energy}), {grams} g, score {score}"
        ).format(**row)
        told += "".join(f"; {nodes}: {what}" for nodes, what in row.get("other_nodes", {}).items())
        lines.append(f"{'→' if each is decision.chosen else ' '} {each.site}: {told}")
    return "\n".join(lines)
