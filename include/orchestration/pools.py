"""Airflow's pools follow the stock: `stock.<cluster>.<offer>` has as many slots as the offer has units that count.

Tasks have no access to Airflow's database, and the API that they run by knows no pools. So this is said by the REST
API, as a user of the least role that may; `make up` generates its password. Pools that do not carry the mark are
somebody else's and are left alone, whatever their name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aifactory.capacity import stock
from aifactory.capacity.stock import POOL_KEEPER
from aifactory.errors import Defect, InfrastructureFault
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import httpx

    from aifactory.capacity.inventory import Inventory
    from aifactory.capacity.stock import ClusterSeen
    from aifactory.factory import Factory
    from aifactory.settings import Settings

log = logging.getLogger(__name__)

PREFIX = "stock."
MARK = "Stock of the AI factory: "
"""How the description of a pool of the plant's own begins."""
_TIMEOUT_S = 30
_PAGE = 100
_USES = ("running_slots", "queued_slots", "scheduled_slots", "deferred_slots")


@dataclass(frozen=True)
class Pool:
    """A pool as it should be."""

    name: str
    slots: int
    description: str


def wanted(f: Factory, inventory: Inventory, now: datetime) -> list[Pool]:
    """The pools that the inventory calls for, with what was last seen.

    Raises:
        InfrastructureFault: the store does not answer.
    """
    pools = []
    for name, cluster in inventory.clusters.items():
        last = stock.kept(f.store, name)
        fresh = stock.fresh(last, inventory, now)
        for offer, each in cluster.offers.items():
            units = stock.units_of(last if fresh else None, offer, each.units).units
            seen = _told(last, offer, now, fresh=fresh)
            pools.append(Pool(f"{PREFIX}{name}.{offer}", units, f"{MARK}{each.units} declared, {seen}"))
    return pools


def _told(last: ClusterSeen | None, offer: str, now: datetime, *, fresh: bool) -> str:
    found = last.offers.get(offer) if last is not None else None
    if last is None or found is None:
        return "not looked at yet"
    number = "not to be seen" if found.seen is None else f"{found.seen} seen"
    age = (now - last.seen_at).total_seconds() / 3600
    old = "" if fresh else f" ({age:.0f} h ago: what is declared counts)"
    return f"{number} at {last.seen_at:%Y-%m-%d %H:%M} UTC{old}"


def reconcile(f: Factory, inventory: Inventory) -> dict[str, Any]:
    """Make the pools what the inventory and the last look call for.

    Returns:
        {"slots": pool -> slots, "made", "changed", "removed": names, "left": names of those in use, or not ours}

    Raises:
        Defect: POOLS_DENIED.
        InfrastructureFault: Airflow or the store does not answer.
    """
    pools = {pool.name: pool for pool in wanted(f, inventory, datetime.now(UTC))}
    with _Airflow(f.settings) as airflow:
        there = {each["name"]: each for each in airflow.pools()}
        ours = {name for name, each in there.items() if (each["description"] or "").startswith(MARK)}
        made = sorted(pools.keys() - there.keys())
        kept = sorted(pools.keys() & ours)
        gone = sorted(name for name in ours - pools.keys() if name.startswith(PREFIX))
        used = {name for name in gone if any(there[name][use] for use in _USES)}
        left = sorted(used | (pools.keys() & (there.keys() - ours)))
        for name in left:
            log.warning(
                "pool %s is left as it is: %s", name, "tasks use it" if name in used else "it is not the plant's"
            )
        for name in made:
            airflow.say("POST", "/pools", {"name": name, **_body(pools[name])})
        for name in kept:
            airflow.say("PATCH", f"/pools/{name}", {"pool": name, **_body(pools[name])})
        removed = [name for name in gone if name not in used]
        for name in removed:
            airflow.say("DELETE", f"/pools/{name}")
    changed = [name for name in kept if there[name]["slots"] != pools[name].slots]
    for name in changed:
        log.info("pool %s: %d slots, before %d", name, pools[name].slots, there[name]["slots"])
    slots = {name: pool.slots for name, pool in pools.items()}
    return {"slots": slots, "made": made, "changed": changed, "removed": removed, "left": left}


def _body(pool: Pool) -> dict[str, Any]:
    return {"slots": pool.slots, "description": pool.description, "include_deferred": False}


class _Airflow:
    """Airflow's REST API as the keeper of the pools."""

    def __init__(self, settings: Settings) -> None:
        import httpx

        self._password = settings.capacity_password.get_secret_value()
        self._client: httpx.Client = httpx.Client(base_url=settings.airflow_api_url, timeout=_TIMEOUT_S)

    def __enter__(self) -> _Airflow:
        if not self._password:
            raise Defect(ReasonCode.POOLS_DENIED, "AIF_CAPACITY_PASSWORD is not set; `make down up` generates it")
        answer = self._send("POST", "/auth/token", {"username": POOL_KEEPER, "password": self._password})
        self._client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def pools(self) -> list[dict[str, Any]]:
        """Every pool."""
        found: list[dict[str, Any]] = []
        while True:
            path = f"/api/v2/pools?limit={_PAGE}&offset={len(found)}&order_by=id"
            page = self._send("GET", path).json()["pools"]
            found += page
            if len(page) < _PAGE:
                return found

    def say(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Change a pool; somebody who made or removed it in between is no error, the next run sees it."""
        self._send(method, f"/api/v2{path}", body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        import httpx

        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE,
                f"Airflow did not answer {method} {path} ({type(error).__name__}: {error})",
            ) from error
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Defect(
                ReasonCode.POOLS_DENIED,
                f"Airflow answered {answer.status_code} to {method} {path} of its user {POOL_KEEPER!r}, which must be "
                f"allowed to change pools; `make down up` writes its users anew",
            )
        raced = answer.status_code in (httpx.codes.CONFLICT, httpx.codes.NOT_FOUND) and method != "GET"
        if answer.is_error and not raced:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE,
                f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}",
            )
        return answer
