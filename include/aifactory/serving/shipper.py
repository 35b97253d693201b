"""`python -m aifactory.serving.shipper`: brings the prediction log from the spools of all slots to S3.

Takes closed segments (the writers close them by age) under `<home>/spool/<slot>/`, oldest first: put first, then told
to the state, then removed. A segment gives the same objects with the same bytes however often it is shipped, so that
being killed anywhere costs a repeat and no row. Where S3 is away the spool is kept up to `AIF_LIVE_SPOOL_MB`, then its
oldest segments are dropped and counted.

The counts of a line are one typed object, `serving/<line>/log.json`: whoever acts on them (tasks, the controller)
reads documents in S3 anyway, needs no further port, and sees by `at` when the shipper last spoke.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pydantic import Field

from aifactory.errors import Defect, InfrastructureFault
from aifactory.factory import Factory, open_factory
from aifactory.line import LineSpec, load_line
from aifactory.serving import live
from aifactory.serving import predictionlog as spool
from aifactory.settings import Settings
from aifactory.specfile import Spec

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

TURN_S = 1.0
"""Pause between two looks at the spools, s."""
STATUS_S = 5.0
"""The counts are written at most so often, s."""
ALIVE_S = 60.0
"""Counts that have not changed are written so often all the same, s."""
BUSY_FILES = 256
"""A day's new files are put into one when there are so many."""
COMPACT_S = 60.0
"""Pause between two looks for days to compact, s."""
QUIET_S = 3600.0
"""A day that got nothing for so long is put into one file, s."""


class LogCounts(Spec):
    """Rows of one slot; recorded = queued + spooled + lost + what writers dropped.

    `dropped` is by reason: the writers' (see `predictionlog.Counts`), and the shipper's `spool_bound` and `damaged`.
    """

    recorded: int = Field(0, description="Handed to a writer.")
    queued: int = Field(0, description="In a living writer's memory.")
    spooled: int = Field(0, description="Written to the spool.")
    shipped: int = Field(0, description="Put to S3.")
    waiting: int = Field(0, description="In the spool.")
    lost: int = Field(0, description="In the memory of a writer that was killed.")
    cut: int = Field(0, description="Unfinished records that were cut off (number of records).")
    units_unknown: int = Field(0, description="Shipped without a unit: none was said, or wrongly.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Not logged, by reason.")


class LogStatus(Spec):
    """What became of every row of a line that was served, by slot, since the spool began."""

    line: str
    at: datetime = Field(description="When the shipper said so, UTC.")
    slots: dict[str, LogCounts]


class _State(Spec):
    """What a shipper must know of the past.

    Args:
        totals: line -> slot -> name -> rows: what shippers did, and writers that are gone.
        done: the file that the totals hold already, and that is to be removed.
    """

    totals: dict[str, dict[str, dict[str, int]]] = {}
    done: str = ""


def spool_folder(settings: Settings) -> Path:
    """Where the slots' spools are: `<folder>/<slot>/` is what `PredictionLog.open` is given."""
    return settings.home / "spool"


def status_key(line: str) -> str:
    """Key of a line's counts."""
    return f"serving/{line}/log.json"


def read_status(f: Factory, line: str) -> LogStatus:
    """The counts of a line; raises NotFound where nothing was ever logged."""
    return LogStatus.model_validate_json(f.store.get(status_key(line)))


class Shipper:
    """The shipper of one spool; only one can be open at a time.

    Raises:
        BlockingIOError: another one is.
    """

    def __init__(self, f: Factory, folder: Path, max_bytes: int) -> None:
        self.f = f
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "shipper.json"
        self._lock = os.open(folder / "shipper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._state = _State.model_validate_json(self._file.read_bytes()) if self._file.exists() else _State()
        self._told: dict[str, LogStatus] = {}
        if self._state.done:  # killed between telling and removing
            (folder / self._state.done).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another one open."""
        os.close(self._lock)

    def turn(self) -> int:
        """Recover what died, ship what is closed, keep the bound; returns how many segments were shipped."""
        for slot in self._slots():
            spool.recover(slot)
        num_shipped = 0
        try:
            for segment in self._segments():
                num_shipped += self._ship(segment)
        except InfrastructureFault as error:
            log.warning("the spool is kept: %s", error)
        self._keep_bound()
        for slot in self._slots():
            self._fold(slot)
        return num_shipped

    def tell(self) -> None:
        """Write the counts of every line whose counts have changed; unchanged ones now and then, as a sign of life."""
        for line, slots in self.counts().items():
            said, last = LogStatus(line=line, at=datetime.now(UTC), slots=slots), self._told.get(line)
            if last is None or last.slots != slots or (said.at - last.at).total_seconds() >= ALIVE_S:
                self.f.store.put(status_key(line), said.model_dump_json().encode(), content_type="application/json")
                self._told[line] = said

    def counts(self) -> dict[str, dict[str, LogCounts]]:
        """The counts now, by line and slot."""
        sums = {line: {slot: dict(n) for slot, n in slots.items()} for line, slots in self._state.totals.items()}
        for slot in self._slots():
            for path in slot.glob(f"*{spool.COUNTS}"):
                known = sums.setdefault(spool.line_of(path), {}).setdefault(slot.name, {})
                _add(known, _flat(spool.read_counts(path)))
        return {line: {slot: _log_counts(n) for slot, n in sorted(slots.items())} for line, slots in sums.items()}

    def compact(self, quiet_s: float = QUIET_S) -> None:
        """Put the files of days that are quiet, and many files of busy ones, into one each."""
        now = datetime.now(UTC)
        for line in self._state.totals:
            days = live.live_days(self.f.store, line)
            for day, entry in days.read().items():
                quiet = (now - datetime.fromisoformat(entry["shipped_at"])).total_seconds() >= quiet_s
                if entry["num_files"] >= BUSY_FILES or (quiet and entry["num_files"] > 1):
                    left = live.compact(self.f.store, line, day, whole=quiet)
                    # Merged files of a busy day count as none: only new ones make it due again, or its end
                    days.merge({day: {**entry, "num_files": left if quiet else 2}})

    # --- one file
    def _ship(self, segment: Path) -> int:
        found = spool.read_segment(segment)
        slot, rows = segment.parent.name, spool.rows_of(segment)
        spec = self._spec(spool.line_of(segment))
        if spec is None:
            return 0
        num_rows = num_unknown = 0
        table = _table(spec, found.identity, _up_to(found.requests, rows))
        if table is not None:
            num_rows, num_unknown = table[0].num_rows, table[1]
            for day, part in live.days_of(spec, table[0]):
                key = f"{live.day_prefix(spec.line, day)}{slot}-{spool.number_of(segment)}.parquet"
                self.f.store.put_table(key, part)
                self._note_day(spec.line, day, part.num_rows)
        if num_rows < rows:
            log.error("%d of the %d rows of %s cannot be read", rows - num_rows, rows, segment)
        counts = {"shipped": num_rows, "units_unknown": num_unknown, "dropped.damaged": rows - num_rows}
        self._settle(segment, counts)
        return 1

    def _note_day(self, line: str, day: str, num_rows: int) -> None:
        """A repeat after a crash notes a part twice: the day is then looked at once more than needed, nothing else."""
        days = live.live_days(self.f.store, line)
        known = days.read().get(day, {"num_rows": 0, "num_files": 0})
        days.merge(
            {
                day: {
                    "num_rows": known["num_rows"] + num_rows,
                    "num_files": known["num_files"] + 1,
                    "shipped_at": datetime.now(UTC).isoformat(),
                }
            }
        )

    def _spec(self, line: str) -> LineSpec | None:
        folder = self.f.settings.lines_dir / line
        try:
            return _read_spec(folder, (folder / "line.yaml").stat().st_mtime_ns)
        except (Defect, OSError) as error:
            log.warning("segments of %s wait until its spec can be read: %s", line, error)
            return None

    def _keep_bound(self) -> None:
        waiting = self._segments()
        sizes = {path: path.stat().st_size for path in waiting}
        total = sum(sizes.values())
        for path in waiting:
            if total <= self.max_bytes:
                return
            rows = spool.rows_of(path)
            log.error("%d rows of %s are dropped: the spool has more than %d bytes", rows, path.name, self.max_bytes)
            self._settle(path, {"dropped.spool_bound": rows})
            total -= sizes[path]

    def _fold(self, slot: Path) -> None:
        """Take the counts of writers that have ended, and left nothing to ship, into the totals."""
        for path in sorted(slot.glob(f"*{spool.COUNTS}")):
            counts = spool.read_counts(path)
            if counts.ended and not any(slot.glob(f"{path.stem}-*")):
                self._settle(path, _flat(counts))

    def _settle(self, path: Path, counts: Mapping[str, int]) -> None:
        """Add to the totals, once for this file, and remove it."""
        line = spool.line_of(path)
        totals = {known: {slot: dict(n) for slot, n in slots.items()} for known, slots in self._state.totals.items()}
        _add(totals.setdefault(line, {}).setdefault(path.parent.name, {}), counts)
        state = _State(totals=totals, done=str(path.relative_to(self.folder)))
        written = self._file.with_suffix(".new")
        with written.open("w") as file:
            file.write(state.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        written.rename(self._file)
        self._state = state
        path.unlink()

    def _slots(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def _segments(self) -> list[Path]:
        """Closed segments of all slots, oldest first."""
        found = [path for slot in self._slots() for path in slot.glob(f"*{spool.SEGMENT}")]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


@lru_cache(maxsize=64)
def _read_spec(folder: Path, edited: int) -> LineSpec:
    """A line's spec, read again once it was edited: lines come and change while the shipper runs."""
    return load_line(folder)


def _table(
    spec: LineSpec, identity: spool.Identity | None, requests: Sequence[spool.Request]
) -> tuple[pa.Table, int] | None:
    """See `live.table_of`; None where that cannot be made, for one segment must not hold up all others."""
    if identity is None or not requests:
        return None
    try:
        return live.table_of(spec, identity, requests)
    except Exception:
        log.exception("%d requests of %s cannot be made a table", len(requests), spec.line)
        return None


def _up_to(requests: Sequence[spool.Request], rows: int) -> list[spool.Request]:
    """The first requests that have so many rows: what comes after was taken back by the writer."""
    found: list[spool.Request] = []
    for request in requests:
        rows -= request.rows
        if rows < 0:
            break
        found.append(request)
    return found


def _flat(counts: spool.Counts) -> dict[str, int]:
    named = {"recorded": counts.recorded, "spooled": counts.spooled, "lost": counts.lost, "cut": counts.cut}
    return named | {f"dropped.{reason}": rows for reason, rows in counts.dropped.items()}


def _add(known: dict[str, int], more: Mapping[str, int]) -> None:
    for name, rows in more.items():
        known[name] = known.get(name, 0) + rows


def _log_counts(sums: Mapping[str, int]) -> LogCounts:
    named = {name: rows for name, rows in sums.items() if "." not in name}
    dropped = {name.removeprefix("dropped."): rows for name, rows in sums.items() if name.startswith("dropped.")}
    own = {reason: dropped.get(reason, 0) for reason in ("spool_bound", "damaged")}
    counts = LogCounts.model_validate(named | {"dropped": dropped})
    taken = counts.spooled + counts.lost + sum(dropped.values()) - sum(own.values())
    left = counts.spooled - counts.shipped - sum(own.values())
    return counts.model_copy(update={"queued": counts.recorded - taken, "waiting": left})


def run(shipper: Shipper, stop: threading.Event) -> None:
    """Ship until asked to stop; then what was closed by then."""
    told = compacted = -math.inf
    while True:
        ending, now = stop.is_set(), time.monotonic()
        try:
            shipper.turn()
            if ending or now - told >= STATUS_S:
                shipper.tell()
                told = now
            if not ending and now - compacted >= COMPACT_S:
                shipper.compact()
                compacted = now
        except (InfrastructureFault, OSError) as error:
            log.warning("tried again: %s", error)
        if ending:
            return
        stop.wait(TURN_S)


def main() -> int:
    """Ship until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    f = open_factory()
    shipper = Shipper(f, spool_folder(f.settings), f.settings.live_spool_mb << 20)
    run(shipper, stop)
    shipper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
