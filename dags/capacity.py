"""# Capacity: what the clusters have is stock, and Airflow's pools show it

Runs every ten minutes, and only where AIF_CAPACITY_FILE names an inventory. Every cluster is asked for the GPUs of
its ready nodes that take the plant's pods, within the quota of the namespace; what it has goes to S3,
`capacity/stock/<cluster>.json`, where placement looks. Then the pools `stock.<cluster>.<offer>` get as many slots as
their offers have units that count: see Admin → Pools. Tasks do not take these pools, work is placed by what is in S3.

**Why**: an inventory is what somebody once wrote down. Work that is placed on machines that are gone waits for nothing.

**Owner**: whoever keeps the inventory.

**What counts**: never more than is declared, never more than was seen. Nodes that are lost or come back change the
stock at once, with a `STOCK_DIFFERS` event in the ledger, before and after. More than declared is told in the log and
not used until the inventory says so. A cluster that is away, not connected or refuses the plant keeps what it was last
seen to have for `stock_stale_hours`; one whose account may not list nodes has what is declared.

**What a failure usually means**

* `STOCK_ABSURD`: a cluster's answer cannot be true or cannot be read. What it was last seen to have stays.
* `POOLS_DENIED`: Airflow's user `capacity` lacks its password or its rights; `make down up` writes both anew.
* `STORE_UNREACHABLE`: S3, the ledger or Airflow's API was away; it was retried.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import CronTriggerTimetable, chain, task

from aifactory.capacity.inventory import Inventory
from orchestration.defaults import plant_dag, with_inventory
from orchestration.station import plant_task


@with_inventory
def capacity(inventory: Inventory) -> None:
    """clusters → stock → pools."""
    often = CronTriggerTimetable("*/10 * * * *", timezone="UTC", run_immediately=True)
    with plant_dag("capacity", __doc__, schedule=often, limit_minutes=5):

        @task(map_index_template="{{ task.op_kwargs['cluster'] }}", doc_md="What one cluster has, into S3.")
        def look(cluster: str) -> dict[str, Any]:
            from orchestration import stock

            with plant_task() as (factory, run_id):
                return stock.look(factory, inventory, cluster, run_id)

        @task(trigger_rule="all_done", doc_md="Makes, changes and removes the pools of the stock, and no others.")
        def reconcile_pools() -> dict[str, Any]:
            from orchestration import pools

            with plant_task() as (factory, _):
                return pools.reconcile(factory, inventory)

        chain(look.expand(cluster=sorted(inventory.clusters)), reconcile_pools())
