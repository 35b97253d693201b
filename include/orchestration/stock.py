"""A cluster is looked at, and what it has is held against the inventory: nodes lost or added show up as stock.

What it cannot or may not be asked for does not count against it: a cluster that is away keeps what it was last seen to
have, one that does not let the plant list its nodes has what is declared, less what the namespace's quota forbids.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aifactory.capacity import stock
from aifactory.capacity.stock import ClusterSeen, Node, OfferSeen
from aifactory.errors import Defect, FactoryError
from aifactory.ledger import EventKind, ProductionEvent, event_key
from aifactory.line import PLANT
from aifactory.reasons import ReasonCode
from orchestration import podfaults
from orchestration.clusterwork import connected_cluster
from orchestration.pods import tolerations

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, V1Node, V1Taint

    from aifactory.capacity.inventory import Cluster, Inventory
    from aifactory.factory import Factory
    from aifactory.settings import Settings

log = logging.getLogger(__name__)

_GPU = "nvidia.com/gpu"
_GPU_QUOTAS = (f"requests.{_GPU}", f"limits.{_GPU}")
_POD_QUOTAS = ("pods", "count/pods")
_DENIED = 403
_TIMEOUT_S = 15
_PAGE = 500
_MOST_NODES = 20_000
_NO_ANSWER = {ReasonCode.CLUSTER_UNREACHABLE, ReasonCode.CLUSTER_DENIED, ReasonCode.POD_INVALID}
_KEEPS_OUT = ("NoSchedule", "NoExecute")


def look(f: Factory, inventory: Inventory, name: str, run_id: str) -> dict[str, Any]:
    """Look at a cluster and keep what it has; a change of its stock goes to the ledger.

    Args:
        f: the open factory.
        inventory: what is declared.
        name: of the cluster.
        run_id: of the DAG run.

    Returns:
        {"cluster", "problem": why it was not looked at, or what was found wrong, "units": offer -> what counts,
        "changed": offers whose units changed}

    Raises:
        Defect: STOCK_ABSURD: its answer cannot be true; what was kept stays.
        InfrastructureFault: the store or the ledger does not answer.
    """
    declared = inventory.clusters.get(name)
    if declared is None:
        return _not_seen(name, {}, "the inventory has been changed, and names it no more")
    last = stock.kept(f.store, name)
    last = last if stock.fresh(last, inventory, datetime.now(UTC)) else None
    before = {offer: stock.units_of(last, offer, each.units).units for offer, each in declared.offers.items()}
    cluster = connected_cluster(declared.connection)
    if cluster is None:
        return _not_seen(name, before, f"there is no Airflow connection {declared.connection!r}: not connected")
    try:
        found = _judged(declared, ask(cluster.api, cluster.namespace, declared, f.settings))
    except FactoryError as error:
        if error.reason is ReasonCode.STOCK_ABSURD:
            raise Defect(
                error.reason, f"cluster {name}: {error.message}; what it was last seen to have stays"
            ) from error
        if error.reason not in _NO_ANSWER:
            raise
        return _not_seen(name, before, str(error))
    changed = [offer for offer, each in found.offers.items() if each.units != before[offer]]
    f.ledger.record_many([_event(name, offer, before[offer], found, last, run_id) for offer in changed])
    stock.keep(f.store, name, found)
    for offer in changed:
        log.warning("%s.%s: %d units, before %d", name, offer, found.offers[offer].units, before[offer])
    if found.problem:
        log.warning("%s: %s", name, found.problem)
    units = {offer: each.units for offer, each in found.offers.items()}
    return {"cluster": name, "problem": found.problem, "units": units, "changed": changed}


def _not_seen(name: str, units: Mapping[str, int], problem: str) -> dict[str, Any]:
    log.warning("%s was not looked at, what it was last seen to have stays: %s", name, problem)
    return {"cluster": name, "problem": problem, "units": dict(units), "changed": []}


@dataclass(frozen=True)
class Seen:
    """What a cluster answered: offer -> units, None where it does not let the plant look; and what it refused."""

    units: Mapping[str, int | None]
    refused: str = ""


def ask(api: CoreV1Api, namespace: str, cluster: Cluster, settings: Settings) -> Seen:
    """Units that a cluster has of each of its offers, by its nodes and the namespace's quota.

    Raises:
        Defect: STOCK_ABSURD: its answer cannot be true; CLUSTER_DENIED: it refuses the plant's credentials.
        InfrastructureFault: CLUSTER_UNREACHABLE.
    """
    units: dict[str, int | None] = dict.fromkeys(cluster.offers)
    refused = ""
    if settings.cluster_grows:
        log.info("nodes come on demand (AIF_CLUSTER_GROWS): those that are there say nothing")
    else:
        nodes = _answer(lambda: list(_nodes(api)))
        if nodes is None:
            refused = "the plant's account may not list nodes (docs/kubernetes.md): what is declared stands"
        else:
            ours = tolerations(settings)
            usable = [_node(node) for node in nodes if _takes_pods(node, ours)]
            units |= stock.count(cluster, usable, settings.pod_gpu_class_label)
    quota = _quota(api, namespace)
    return Seen(stock.capped(cluster, units, quota[_GPU], quota["pods"]), refused)


def _judged(declared: Cluster, seen: Seen) -> ClusterSeen:
    """What was seen against what is declared."""
    offers, told = {}, [seen.refused] if seen.refused else []
    for name, offer in declared.offers.items():
        number = seen.units[name]
        counts = stock.usable(offer.units, number)
        offers[name] = OfferSeen(declared=offer.units, seen=number, units=counts.units)
        if counts.told is not None:
            which = "fewer: that counts" if counts.units < offer.units else "more: what is declared counts"
            told.append(f"{counts.told.value}: {name} has {number} units, {offer.units} are declared; {which}")
    return ClusterSeen(seen_at=datetime.now(UTC), offers=offers, problem="; ".join(told))


def _event(
    name: str, offer: str, before: int, found: ClusterSeen, last: ClusterSeen | None, run_id: str
) -> ProductionEvent:
    """Nodes lost or added. A task that is tried again after it has told this tells it under the same key."""
    now, unit = found.offers[offer], f"{name}.{offer}"
    since = last.seen_at.isoformat() if last is not None else run_id
    return ProductionEvent(
        line=PLANT,
        station="capacity",
        unit_kind="stock",
        unit=unit,
        event=EventKind.DECIDED,
        key=event_key(PLANT, "capacity", unit, EventKind.DECIDED, f"{since}:{before}:{now.units}"),
        reason=ReasonCode.STOCK_DIFFERS,
        run_id=run_id,
        detail={"before": before, "after": now.units, "declared": now.declared, "seen": now.seen},
    )


# --- what the cluster says
def _nodes(api: CoreV1Api) -> Iterator[V1Node]:
    """Every node, page by page."""
    num_nodes, more = 0, ""
    while True:
        page = api.list_node(limit=_PAGE, _continue=more, _request_timeout=_TIMEOUT_S)
        num_nodes += len(page.items)
        if num_nodes > _MOST_NODES:
            raise Defect(ReasonCode.STOCK_ABSURD, f"it lists more than {_MOST_NODES} nodes")
        yield from page.items
        more = page.metadata._continue or ""
        if not more:
            return


def _takes_pods(node: V1Node, ours: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a node is ready and lets the plant's pods in."""
    ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
    shut = [t for t in node.spec.taints or [] if t.effect in _KEEPS_OUT and not _tolerated(t, ours)]
    return ready and not node.spec.unschedulable and not shut


def _tolerated(taint: V1Taint, ours: Sequence[Mapping[str, Any]]) -> bool:
    """As Kubernetes matches them: no key is every key, no effect every effect."""
    for each in ours:
        exists = each.get("operator", "Equal") == "Exists"
        key_fits = each.get("key", "") == taint.key or (not each.get("key") and exists)
        value_fits = exists or each.get("value", "") == (taint.value or "")
        if key_fits and value_fits and each.get("effect", "") in ("", taint.effect):
            return True
    return False


def _node(node: V1Node) -> Node:
    name = node.metadata.name
    gpus = _whole((node.status.allocatable or {}).get(_GPU, "0"), f"node {name} has {_GPU}")
    return Node(node.metadata.labels or {}, gpus)


def _quota(api: CoreV1Api, namespace: str) -> dict[str, int | None]:
    """The most GPUs and pods that the namespace may have; None: as many as there are, or it may not be asked."""
    quotas = _answer(lambda: api.list_namespaced_resource_quota(namespace, _request_timeout=_TIMEOUT_S).items)
    most: dict[str, int | None] = {}
    for what, entries in ((_GPU, _GPU_QUOTAS), ("pods", _POD_QUOTAS)):
        hard = [
            _whole(quota.spec.hard[entry], f"quota {quota.metadata.name} has {entry}")
            for quota in quotas or []
            for entry in entries
            if not (quota.spec.scopes or quota.spec.scope_selector) and entry in (quota.spec.hard or {})
        ]
        most[what] = min(hard, default=None)
    return most


def _whole(text: str, what: str) -> int:
    """A number of GPUs or pods.

    Raises:
        Defect: STOCK_ABSURD: it is none.
    """
    from kubernetes.utils.quantity import parse_quantity

    try:
        number = parse_quantity(text)
        possible = 0 <= number <= stock.MOST and number == int(number)
    except (ValueError, ArithmeticError) as error:
        raise Defect(ReasonCode.STOCK_ABSURD, f"{what} {text!r}, which is no number") from error
    if not possible:
        raise Defect(ReasonCode.STOCK_ABSURD, f"{what} {text!r}, which no cluster has")
    return int(number)


def _answer(question: Callable[[], Any]) -> Any:
    """What the API answers; None where the plant's account may not ask.

    Raises:
        Defect: STOCK_ABSURD: the answer is none that the client can read; CLUSTER_DENIED: it refuses the credentials.
        InfrastructureFault: CLUSTER_UNREACHABLE.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return question()
    except ApiException as error:
        if error.status == _DENIED:
            return None
        raise podfaults.api_fault("looking at its stock", error) from error
    except HTTPError as error:
        raise podfaults.unreachable("looking at its stock", error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Defect(ReasonCode.STOCK_ABSURD, f"its answer cannot be read: {type(error).__name__}: {error}") from error
