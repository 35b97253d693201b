"""What can be seen of the machine from inside the program: the sources that are there, in one place.

A source that does not answer is said once and costs its own figures; it is asked again, for it may come back.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from aifactory.settings import Settings
from aifactory.training import dcgm
from aifactory.training.nvml import Nvml
from aifactory.training.power import DeclaredPower, PowerSource, Rapl, Unreadable

log = logging.getLogger(__name__)

T = TypeVar("T")


class Sources:
    """GPUs by NVML where there are any, the processors by RAPL or by the declared model, DCGM where its exporter is."""

    def __init__(self, settings: Settings) -> None:
        self._dcgm_url = settings.dcgm_url
        self._silent: set[str] = set()
        self._gpus = _gpus()
        self._sources: list[PowerSource] = [self._gpus] if self._gpus else []
        self._sources.append(_processors(settings))
        self._joules = {source.name: 0.0 for source in self._sources}

    @property
    def num_gpus(self) -> int:
        """GPUs that the program holds."""
        return len(self._gpus.uuids) if self._gpus else 0

    @property
    def estimated(self) -> bool:
        """Whether a part of the energy is by a model, or by a source that has failed once."""
        return any(source.estimated or source.name in self._silent for source in self._sources)

    def joules(self) -> dict[str, float]:
        """Energy by source since it was opened, J; of one that does not answer what it said last."""
        for source in self._sources:
            self._joules[source.name] = self._ask(source.name, source.joules, self._joules[source.name])
        return dict(self._joules)

    def figures(self) -> dict[str, float]:
        """Utilisation, memory and power of GPUs."""
        return self._ask(self._gpus.name, self._gpus.figures, {}) if self._gpus else {}

    def node_figures(self) -> dict[str, float]:
        """What DCGM adds; it is asked over the network, so seldom."""
        uuids = self._gpus.uuids if self._gpus else ()
        return self._ask("dcgm", lambda: dcgm.scrape(self._dcgm_url, uuids), {}) if self._dcgm_url else {}

    def _ask(self, name: str, look: Callable[[], T], otherwise: T) -> T:
        try:
            return look()
        except Unreadable as error:
            if name not in self._silent:
                log.warning("the telemetry goes on without %s: %s", name, error)
            self._silent.add(name)
            return otherwise


def memory_mb() -> float:
    """Memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_memory_mb() -> float:
    """Most memory that this process had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _gpus() -> Nvml | None:
    try:
        return Nvml(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except Unreadable as error:
        log.info("no GPU is measured: %s", error)
        return None


def _processors(settings: Settings) -> PowerSource:
    try:
        return Rapl(settings.rapl_dir)
    except Unreadable as error:
        log.info("energy of the processors is estimated: %s", error)
        return DeclaredPower(settings.threads, settings.core_idle_w, settings.core_busy_w)
