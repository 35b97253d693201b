"""GPUs by NVML, NVIDIA's management library: utilisation, memory, power and energy of those that the program has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from aifactory.training.power import Integral, Unreadable


class Nvml:
    """The GPUs that CUDA shows to this program; in a pod those that it was given.

    Energy is what the GPU itself counts (from Volta on), else the integral of its power over the looks at it.

    Args:
        visible: CUDA_VISIBLE_DEVICES: indices or UUIDs with commas; None for all.

    Raises:
        Unreadable: there is no NVML, no driver or no GPU.
    """

    name = "nvml"
    estimated = False

    def __init__(self, visible: str | None = None) -> None:
        with _errors():
            pynvml.nvmlInit()
            self._gpus = [_Gpu(handle) for handle in _handles(visible)]
        if not self._gpus:
            raise Unreadable("NVML finds no GPU")

    @property
    def uuids(self) -> tuple[str, ...]:
        """Of the GPUs, in the order of their numbers here."""
        return tuple(gpu.uuid for gpu in self._gpus)

    def joules(self) -> float:
        """See `power.PowerSource`."""
        with _errors():
            return sum(gpu.joules() for gpu in self._gpus)

    def figures(self) -> dict[str, float]:
        """What MLflow's own system metrics say of GPUs, by their names there; what a GPU cannot tell is left out."""
        with _errors():
            return {f"gpu_{i}_{name}": value for i, gpu in enumerate(self._gpus) for name, value in gpu.figures()}


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise Unreadable(f"NVML does not answer ({error})") from error


def _handles(visible: str | None) -> list[Any]:
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in (each.strip() for each in visible.split(","))
        if name and name != "-1"
    ]


class _Gpu:
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self._integral = Integral()
        try:
            self._counted_mj: int | None = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError_NotSupported:
            self._counted_mj = None

    def joules(self) -> float:
        if self._counted_mj is None:
            watts = pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
            return self._integral.add(time.monotonic(), watts)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._counted_mj) / 1000

    def figures(self) -> Iterator[tuple[str, float]]:
        for ask in (self._utilization, self._memory, self._power):
            try:
                yield from ask()
            except pynvml.NVMLError_NotSupported:  # a slice of a GPU (MIG) has no utilisation and no power of its own
                continue

    def _utilization(self) -> list[tuple[str, float]]:
        return [("utilization_percentage", float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu))]

    def _memory(self) -> list[tuple[str, float]]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return [
            ("memory_usage_megabytes", memory.used / 1e6),
            ("memory_usage_percentage", 100 * memory.used / memory.total),
        ]

    def _power(self) -> list[tuple[str, float]]:
        return [("power_usage_watts", pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000)]
