"""The pod that a piece of work runs in: the template, with what this line, order and plant ask for.

A pod is described whole before it is made, so that it can be checked (`preflight`) and shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import SpecError

if TYPE_CHECKING:
    from aifactory.line import Compute
    from aifactory.settings import Settings

CONTAINER = "base"
PLANT_LABEL = "ai-factory/plant"
LINE_LABEL = "ai-factory/line"
TASK_LABEL = "ai-factory/task"
"""Names the task that waits for the pod, whichever its try: see `task_label`."""
WORK_LABEL = "ai-factory/work"
"""Names what the pod does: program and arguments."""
_MEASURES = (
    "currency", "unit_hour", "energy_price_kwh", "carbon_g_kwh", "pue", "core_idle_w", "core_busy_w", "dcgm_url",
)  # fmt: skip
"""Settings by which the program reckons what it takes."""
GROUP_LABEL = "ai-factory/group"
"""Names the group of a pod that trains together with others; see `podgroup`."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Kueue's label: the LocalQueue that a pod or Job waits in."""
TASK_ANNOTATIONS = {name: f"ai-factory/{name.replace('_', '-')}" for name in ("dag_id", "run_id", "task_id")}
"""Which task waits for the pod, in full: labels are cut to 63 characters."""


@dataclass(frozen=True)
class Shape:
    """What a pod asks for: requests and limits are equal, so that its place is sure.

    Args:
        cpus: cores.
        memory_gb: memory, GB.
        gpus: whole GPUs.
        shared_memory_gb: /dev/shm, GB, part of the memory.
        scratch_gb: ephemeral storage, GB.
    """

    cpus: float
    memory_gb: float
    gpus: int
    shared_memory_gb: float
    scratch_gb: float

    @classmethod
    def of(cls, compute: Compute, *, larger: bool = False) -> Shape:
        """The shape that a line asks for; the larger one after a pod ran out of memory."""
        memory_gb = compute.larger_memory_gb if larger else compute.memory_gb
        return cls(compute.cpus, memory_gb, compute.gpus, compute.shared_memory_gb, compute.scratch_gb)

    def quantities(self) -> dict[str, str]:
        """As Kubernetes writes it."""
        asked = {
            "cpu": f"{round(self.cpus * 1000)}m",
            "memory": _bytes(self.memory_gb),
            "ephemeral-storage": _bytes(self.scratch_gb),
        }
        return asked | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {})


def describe(
    settings: Settings,
    compute: Compute,
    shape: Shape,
    program: str,
    arguments: list[str],
    *,
    line: str,
    task: Mapping[str, str],
) -> dict[str, Any]:
    """The pod, whole, but for its name, which Airflow gives.

    Args:
        settings: image, addresses and names of the plant.
        compute: where the line wants its pods.
        shape: what the pod asks for.
        program: Python module that the image runs.
        arguments: of the program.
        line: name of the line.
        task: dag_id, run_id and task_id of the task that waits for it.

    Raises:
        SpecError: the template is no pod, or lacks the container.
    """
    pod = _template(settings.pod_template)
    pod["metadata"] = {
        "labels": {
            PLANT_LABEL: settings.plant_id or "none",
            LINE_LABEL: line,
            TASK_LABEL: task_label(settings, task),
            WORK_LABEL: _digest([program, *arguments]),
            **({QUEUE_LABEL: settings.pod_queue} if settings.pod_queue else {}),
        },
        "annotations": {TASK_ANNOTATIONS[name]: value for name, value in task.items()},
    }
    spec = pod["spec"]
    container = next(c for c in spec["containers"] if c["name"] == CONTAINER)
    quantities = shape.quantities()
    variables = _environment(settings, shape) | {"AIF_PROCESSES": str(shape.gpus or compute.processes)}
    container |= {
        "image": settings.trainer_image,
        "command": ["python", "-m", program],
        "args": arguments,
        "env": [{"name": name, "value": value} for name, value in variables.items()]
        + [{"name": "AIF_ATTEMPT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "envFrom": [{"secretRef": {"name": settings.pod_secret}}],
        "resources": {"requests": quantities, "limits": dict(quantities)},
    }
    for volume in spec["volumes"]:
        if volume["name"] == "shared-memory":
            volume["emptyDir"]["sizeLimit"] = _bytes(shape.shared_memory_gb)
    wanted = dict(compute.node_labels)
    if compute.gpu_class and shape.gpus:
        wanted[settings.pod_gpu_class_label] = compute.gpu_class
    spec |= {
        "activeDeadlineSeconds": round(60 * (compute.timeout_minutes + compute.start_minutes)),
        **({"nodeSelector": wanted} if wanted else {}),
        **({"imagePullSecrets": [{"name": settings.pod_pull_secret}]} if settings.pod_pull_secret else {}),
        **({"priorityClassName": settings.pod_priority_class} if settings.pod_priority_class else {}),
    }
    return pod


def tolerations(settings: Settings) -> list[dict[str, Any]]:
    """What every pod tolerates, as the template says.

    Raises:
        SpecError: the template is no pod.
    """
    return list(_template(settings.pod_template)["spec"].get("tolerations") or [])


def task_label(settings: Settings, task: Mapping[str, str]) -> str:
    """A label's value for a task of a plant: its ids may be longer than the 63 characters that a label has."""
    return _digest([settings.plant_id, *(task[name] for name in TASK_ANNOTATIONS)])


def _digest(words: list[str]) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def _environment(settings: Settings, shape: Shape) -> dict[str, str]:
    """What the program reads; the S3 key comes from the secret. Nothing of the database, nothing of Airflow."""
    threads = str(max(1, int(shape.cpus)))
    return settings.variables(_MEASURES) | {
        "AIF_S3_ENDPOINT": settings.pod_s3_url,
        "AIF_S3_REGION": settings.s3_region,
        "AIF_FACTORY_BUCKET": settings.factory_bucket,
        "AIF_MLFLOW_URI": settings.pod_mlflow_url,
        "AIF_MLFLOW_PUBLIC_URI": settings.mlflow_ui_url,
        "AIF_MEMORY_LIMIT_GB": f"{shape.memory_gb / 2:g}",
        "AIF_THREADS": threads,
        "AIF_TRIAL": settings.trial,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def _template(path: Path) -> dict[str, Any]:
    import yaml

    try:
        pod = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(f"the pod template {path} cannot be read ({error.strerror}); see AIF_POD_TEMPLATE") from error
    except yaml.YAMLError as error:
        raise SpecError(f"the pod template {path} is not YAML: {' '.join(str(error).split())}") from error
    spec = pod.get("spec") if isinstance(pod, dict) else None
    containers = spec.get("containers") if isinstance(spec, dict) else None
    names = [c.get("name") for c in containers or []]
    if not isinstance(spec, dict) or pod.get("kind") != "Pod" or CONTAINER not in names:
        raise SpecError(f"the pod template {path} must be a Pod with a container named {CONTAINER!r}, it has {names}")
    spec["volumes"] = spec.get("volumes") or []
    return dict(pod)


def _bytes(gigabytes: float) -> str:
    return f"{round(gigabytes * 1000)}M"
