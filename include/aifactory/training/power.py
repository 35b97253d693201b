"""Energy of this program's processor: measured by RAPL where it may be read, else by a declared model.

RAPL is the processor's own meter, in Linux under /sys/class/powercap, one folder a domain:

    intel-rapl:0/{name, energy_uj, max_energy_range_uj}      name: package-0, package-1, ..., psys
    intel-rapl:0:0/...                                       name: core, uncore, dram; a part of its package but dram

It counts what the whole machine draws. What is this program's is its share of the machine's busy processor time, as
Kepler and Scaphandre have it: the shares of all programs sum up to what was drawn. Since 2020 (CVE-2020-8694) the files
are root's alone, and clouds hide them: then the model is what there is, and says that it is an estimate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Unreadable(Exception):
    """A source of figures does not answer; the message says which and why."""


class PowerSource(Protocol):
    """What says how much energy was drawn."""

    name: str
    estimated: bool

    def joules(self) -> float:
        """Energy since the source was opened, J: never less than before.

        Raises:
            Unreadable: it does not answer.
        """
        ...


def own_cpu_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine_busy_s(stat: Path = Path("/proc/stat")) -> float:
    """Processor seconds that all of the machine was busy since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_age_s() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Rapl:
    """This program's share of what the processors and their memory drew.

    Args:
        folder: of the powercap framework.
        own_s: processor seconds of this program.
        busy_s: processor seconds of the whole machine.

    Raises:
        Unreadable: no domain can be read.
    """

    name = "rapl"
    estimated = False

    def __init__(
        self, folder: Path, own_s: Callable[[], float] = own_cpu_s, busy_s: Callable[[], float] = machine_busy_s
    ) -> None:
        self._own_s, self._busy_s = own_s, busy_s
        try:
            self._domains = [_Domain(each) for each in sorted(folder.glob("intel-rapl:*")) if _counts(each)]
            self._seen = own_s(), busy_s()
        except (OSError, ValueError) as error:
            raise Unreadable(f"RAPL in {folder} cannot be read ({error})") from error
        if not self._domains:
            raise Unreadable(f"there is no RAPL domain in {folder}")
        self._joules = 0.0

    def joules(self) -> float:
        """See `PowerSource`."""
        try:
            drawn = sum(domain.drawn_uj() for domain in self._domains) / 1e6
            seen = self._own_s(), self._busy_s()
        except (OSError, ValueError) as error:
            raise Unreadable(f"RAPL cannot be read any more ({error})") from error
        own, busy = (now - before for now, before in zip(seen, self._seen, strict=True))
        self._seen = seen
        self._joules += drawn * min(1.0, own / busy if busy > 0 else 0.0)
        return self._joules


def _counts(folder: Path) -> bool:
    """Whether a domain is part of the sum: psys holds the packages once more, core and uncore are within theirs."""
    name = (folder / "name").read_text().strip()
    return name.startswith("package") or name == "dram"


class _Domain:
    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())

    def drawn_uj(self) -> int:
        """Microjoules since the last look; the counter starts anew at its range, after minutes at the least."""
        now = int(self._file.read_text())
        drawn, self._last = now - self._last, now
        return drawn if drawn >= 0 else drawn + self._range


class DeclaredPower:
    """An estimate: watts of idle cores, and more for busy ones. It knows of the time before it was opened, too.

    Args:
        cores: that the program may use.
        idle_w: of a core that does nothing, with its share of the machine, W.
        busy_w: more of a busy one, W.
        age_s: seconds that the program has run.
        own_s: processor seconds of this program.
    """

    name = "model"
    estimated = True

    def __init__(
        self,
        cores: float,
        idle_w: float,
        busy_w: float,
        age_s: Callable[[], float] = process_age_s,
        own_s: Callable[[], float] = own_cpu_s,
    ) -> None:
        self._cores, self._idle_w, self._busy_w = cores, idle_w, busy_w
        self._age_s, self._own_s = age_s, own_s

    def joules(self) -> float:
        """See `PowerSource`; here since the program was started."""
        return self._cores * self._idle_w * self._age_s() + self._busy_w * self._own_s()


class Integral:
    """Energy from looks at a power, by the trapezoidal rule."""

    def __init__(self) -> None:
        self.joules = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, at_s: float, watts: float) -> float:
        """Take a look into account; the energy since the first, J."""
        if self._last is not None:
            before_s, before_w = self._last
            self.joules += (at_s - before_s) * (watts + before_w) / 2
        self._last = at_s, watts
        return self.joules
