"""Pods that no task waits for any more: found by label, held against Airflow's own record, removed, reported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aifactory import jobs
from aifactory.errors import FactoryError
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.reasons import ReasonCode
from orchestration import placing, podgroup
from orchestration.clusterwork import api_errors, connected_cluster
from orchestration.pods import LINE_LABEL, PLANT_LABEL, TASK_ANNOTATIONS

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

    from orchestration.clusterwork import Cluster
    from orchestration.station import Station

log = logging.getLogger(__name__)

MIN_AGE = timedelta(minutes=1)
"""Younger pods are left alone: the task that made one may not be on record yet."""
_JOB_AGE = timedelta(days=1)
"""What a job left in S3 is kept so long: the next try of its task may take it."""
_OVER = frozenset({"success", "failed", "skipped", "removed", "upstream_failed"})


def sweep(here: Station) -> dict[str, Any]:
    """Remove the line's orphans.

    Returns:
        {"num_pods": pods of the line, "num_removed", "removed": their names, "jobs": names of removed jobs}

    Raises:
        InfrastructureFault: the cluster does not answer.
        Defect: the cluster does not let the plant look, or remove.
    """
    settings, line = here.factory.settings, here.spec.line
    left = jobs.prune(here.factory, line, _JOB_AGE)
    clusters = [cluster for name in placing.connections(here) if (cluster := connected_cluster(name))]
    if not clusters:
        log.info("no cluster is connected: work runs on this machine")
    num_pods, removed = 0, []
    faults: dict[str, FactoryError] = {}
    selector = f"{PLANT_LABEL}={settings.plant_id},{LINE_LABEL}={line}"
    for cluster in clusters:
        try:
            with api_errors(f"sweeping {cluster.conn_id}"):
                pods = cluster.pods(selector)
                num_pods += len(pods)
                things = podgroup.once_each([*podgroup.jobs(cluster, selector), *pods])
                removed += [each.metadata.name for each in things if _removed(here, cluster, each)]
        except FactoryError as error:
            log.warning("%s", error)
            faults[cluster.conn_id] = error  # the other clusters are swept all the same
    placing.prune(here, lambda task: bool(_over(here.context["ti"], task)), faults.keys())
    if faults:
        raise next(iter(faults.values()))
    return {"num_pods": num_pods, "num_removed": len(removed), "removed": removed, "jobs": left}


def _removed(here: Station, cluster: Cluster, pod: V1Pod) -> bool:
    """Whether a pod was an orphan, and is removed."""
    why = _orphaned(here.context["ti"], pod)
    if why:
        log.warning("pod %s is removed: %s", pod.metadata.name, why)
        cluster.remove_with_group(pod)
        _record(here, pod, why)
    return bool(why)


def _orphaned(ti: Any, pod: V1Pod) -> str:
    """Why nobody waits for a pod any more; empty where somebody does, or may."""
    if datetime.now(UTC) - pod.metadata.creation_timestamp < MIN_AGE:
        return ""
    task = task_of(pod)
    return _over(ti, task) if task else "it does not say which task it belongs to"


def _over(ti: Any, task: Mapping[str, str]) -> str:
    """Why a task does not wait for anything any more; empty where it may."""
    states = ti.get_task_states(dag_id=task["dag_id"], run_ids=[task["run_id"]], task_ids=[task["task_id"]])
    of_run = states.get(task["run_id"])
    name = f"{task['dag_id']} {task['run_id']} {task['task_id']}"
    if not of_run or task["task_id"] not in of_run:
        return f"there is no task {name}"
    state = of_run[task["task_id"]]
    return f"task {name} is over ({state})" if state in _OVER else ""


def task_of(pod: V1Pod) -> Mapping[str, str] | None:
    """dag_id, run_id and task_id of the task that a pod was made for."""
    said = pod.metadata.annotations or {}
    if not all(key in said for key in TASK_ANNOTATIONS.values()):
        return None
    return {name: said[key] for name, key in TASK_ANNOTATIONS.items()}


def _record(here: Station, pod: V1Pod, why: str) -> None:
    name, task = pod.metadata.name, task_of(pod)
    stage = task["dag_id"].rpartition(".")[2] if task else ""
    stage = stage if stage in placing.UNIT_KINDS else "train"
    here.factory.ledger.record(
        ProductionEvent(
            line=here.spec.line,
            station=stage,
            unit_kind=placing.UNIT_KINDS[stage],
            unit=name,
            event=EventKind.FAILED,
            key=f"orphan/{here.spec.line}/{pod.metadata.uid}",
            reason=ReasonCode.ORPHAN_REMOVED,
            run_id=here.run,
            detail={"why": why, "pod": name},
        )
    )
