"""Figures of this node's GPUs by NVIDIA DCGM, where its exporter runs: how busy the multiprocessors and memory are.

The exporter (a DaemonSet of the GPU operator) answers with Prometheus text, one figure a line:

    DCGM_FI_PROF_SM_ACTIVE{gpu="0",UUID="GPU-...",device="nvidia0",...} 0.81
"""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Collection

from aifactory.training.power import Unreadable

FIELDS = {
    "DCGM_FI_PROF_SM_ACTIVE": ("sm_active_percentage", 100.0),
    "DCGM_FI_PROF_SM_OCCUPANCY": ("sm_occupancy_percentage", 100.0),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("tensor_active_percentage", 100.0),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("dram_active_percentage", 100.0),
    "DCGM_FI_DEV_GPU_UTIL": ("dcgm_utilization_percentage", 1.0),
    "DCGM_FI_DEV_POWER_USAGE": ("dcgm_power_usage_watts", 1.0),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature_celsius", 1.0),
}
"""Field of DCGM -> name here, and factor to its unit: DCGM's activities are shares."""

_TIMEOUT_S = 1.0
_BLANK = 1e15
"""From here on a value is DCGM's way to say that there is none."""
_LINE = re.compile(r"^(\w+)\{(.*)\}\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def scrape(url: str, uuids: Collection[str] = ()) -> dict[str, float]:
    """Ask an exporter.

    Args:
        url: of its figures, such as http://node:9400/metrics.
        uuids: GPUs of interest, in the order of their numbers here; none: all, by the node's numbers.

    Returns:
        {"gpu_0_sm_active_percentage": 81.0, ...}

    Raises:
        Unreadable: it does not answer.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the plant's own setting
            return parse(answer.read().decode(), uuids)
    except (OSError, ValueError) as error:  # URLError, a broken connection; an URL that is none, text that is none
        raise Unreadable(f"DCGM's exporter at {url} does not answer ({error})") from error


def parse(text: str, uuids: Collection[str] = ()) -> dict[str, float]:
    """The figures of an exporter's text; of a GPU that is cut in slices (MIG) the highest of its slices'."""
    numbers = {uuid: str(i) for i, uuid in enumerate(uuids)}
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match[1] not in FIELDS:
            continue
        labels = dict(_LABEL.findall(match[2]))
        number = numbers.get(labels.get("UUID", "")) if uuids else labels.get("gpu")
        value = float(match[3])
        if number is None or not math.isfinite(value) or value >= _BLANK:
            continue
        name, factor = FIELDS[match[1]]
        key = f"gpu_{number}_{name}"
        found[key] = max(found.get(key, 0.0), value * factor)
    return found
