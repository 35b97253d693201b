"""The prediction log's writer, inside a model server: what was asked and answered, beside the answer, never in its way.

    record() ── bounded queue ── thread ── <writer>-<n>.open ── fsync, rename ── <writer>-<n>-<rows>.segment ── shipper
        └────────────────────────┴──────── <writer>.counts (mapped memory, outlives kill -9)

A writer is named `<line>.<when it began, ns>-<process id>`.

One file of the standard library alone, so that it can be copied beside a backend of Triton. Every process that serves
has a writer of its own; all writers of a slot share its folder.

What is lost when. Spooled rows survive the end of the process, however it ends. Rows still queued (at most `flush_s` of
traffic, and `max_queued_bytes`) die with it, and are counted as lost. A segment is on the disk for good (fsync) when it
is closed: a loss of power takes at most the last `rotate_s`, and the counts may then be older than the truth.

A segment is a sequence of frames: length and CRC-32 (32 bits each, little-endian) of a body. The first body is JSON,
the identity and how many rows the writer had spooled before; every other one is a request.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OPEN, SEGMENT, COUNTS = ".open", ".segment", ".counts"

_FRAME = struct.Struct("<II")
# Served at (microseconds), rows, bytes of the id, shadow, bytes of the units (-1: none)
_HEAD = struct.Struct("<qIHBi")
_MAX_ID_BYTES = 1024
_COUNTS_BYTES = 4096
_QUEUED_BYTES = 200  # what Python adds to a queued frame

# Slots of the counts file: 64 bits each. Recorded comes last, for a reader goes upwards and must not see less recorded
# than spooled. Every slot has one thread that writes it; the fifth is not used any more: older files stay true.
_STATE, _SPOOLED, _DISK, _SPOOL_FULL, _, _LOST, _CUT, _QUEUE_FULL, _MALFORMED, _CLOSED, _RECORDED = range(11)
_REASONS = {
    "queue_full": (_QUEUE_FULL,),
    "spool_full": (_SPOOL_FULL,),
    "disk": (_DISK,),
    "malformed": (_MALFORMED,),
    "closed": (_CLOSED,),
}
_ENDED = 1


@dataclass(frozen=True)
class Identity:
    """Whose answers these are: line, version, the dataset revision that it learned from, slot, inputs by kind."""

    line: str
    version: str
    dataset_revision: str
    slot: str
    categorical: tuple[str, ...]
    numeric: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """Bounds of a writer.

    Args:
        max_queued_bytes: memory of requests that wait for the thread; what comes on top is dropped.
        max_spool_bytes: size of the folder, above which nothing is written (the shipper is away).
        flush_s: pause between two looks at the queue, s.
        rotate_s: age at which a segment is closed, s.
        rotate_bytes: size at which it is closed.
    """

    max_queued_bytes: int = 16 << 20
    max_spool_bytes: int = 2 << 30
    flush_s: float = 0.05
    rotate_s: float = 2.0
    rotate_bytes: int = 16 << 20


@dataclass(frozen=True)
class Counts:
    """Rows of one writer; recorded = spooled + dropped + lost + queued.

    Args:
        recorded: handed in.
        spooled: written to a segment.
        dropped: not taken, by reason: queue_full, spool_full, disk, malformed, closed.
        lost: queued when the process was killed; known once it has been recovered.
        cut: unfinished records that were cut off a segment's end.
        ended: whether the writer has ended, and what it left behind is in order.
    """

    recorded: int
    spooled: int
    dropped: dict[str, int]
    lost: int
    cut: int
    ended: bool

    @property
    def queued(self) -> int:
        """Rows on their way to the spool."""
        return self.recorded - self.spooled - sum(self.dropped.values()) - self.lost


class Request(NamedTuple):
    """One logged request. `scores` and `numbers` are float32 bytes, the latter column by column; `texts` row by row."""

    served_at: int
    request_id: str
    units: str | None
    shadow: bool
    rows: int
    scores: bytes
    numbers: bytes
    texts: list[list[bytes]]


class Segment(NamedTuple):
    """What could be read of a segment: `size` bytes are whole, the rest of the file is not."""

    identity: Identity | None
    before: int
    requests: list[Request]
    size: int

    @property
    def rows(self) -> int:
        """Rows of all its requests."""
        return sum(request.rows for request in self.requests)


@dataclass
class _Open:
    """The segment that is being written."""

    descriptor: int
    path: Path
    opened: float
    size: int
    rows: int = 0


class PredictionLog:
    """The writer of one process. Its methods are safe in any thread."""

    @classmethod
    def open(cls, folder: Path, identity: Identity, limits: Limits | None = None) -> PredictionLog:
        """Begin a log, and put in order what dead writers left in the folder.

        Args:
            folder: the slot's; made where it is missing.
            identity: of the model.
            limits: other than the usual ones.
        """
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        return cls(folder, identity, limits or Limits())

    def __init__(self, folder: Path, identity: Identity, limits: Limits) -> None:
        self.folder = folder
        self.identity = identity
        self.limits = limits
        self.writer = f"{identity.line}.{time.time_ns()}-{os.getpid()}"
        self._file = os.open(folder / f"{self.writer}{COUNTS}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held for life: who can take it knows that the writer is dead
        os.write(self._file, bytes(_COUNTS_BYTES))  # written, not only sized: a full disk shows here, not as SIGBUS
        os.fsync(self._file)
        self._counts = memoryview(mmap.mmap(self._file, _COUNTS_BYTES)).cast("Q")
        self._queue: deque[tuple[bytes, int]] = deque()  # frame, rows
        self._put_bytes = self._taken_bytes = 0
        self._number = 0
        self._segment: _Open | None = None
        self._closed = False
        self._lock = threading.Lock()  # among callers; the thread never takes it
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """The counts now."""
        return _counts(self._counts)

    def record(
        self,
        request_id: str,
        units_json: str | None,
        inputs: Mapping[str, npt.NDArray[Any]],
        scores: npt.NDArray[np.float32],
        shadow: bool,
    ) -> None:
        """Log one answered request. Never waits, never raises: what cannot be taken is dropped and counted.

        Args:
            request_id: of the request; "" where it has none.
            units_json: who was scored, JSON text as the client sent it; looked at when it is shipped. Anything else is
                as good as none.
            inputs: every feature by name: objects (bytes or str) [n, 1], float32 [n, 1].
            scores: float32 [n].
            shadow: whether the answer went to nobody.
        """
        rows, frame = 1, None
        with suppress(Exception):
            rows = len(scores)
            units = units_json if isinstance(units_json, str) else None  # a client may send a number
            frame = self._encoded(request_id, units, inputs, scores, shadow)
        if not rows:
            return
        with self._lock:
            counts = self._counts
            counts[_RECORDED] += rows
            if frame is None:
                counts[_MALFORMED] += rows
            elif self._closed:
                counts[_CLOSED] += rows
            elif self._put_bytes - self._taken_bytes + len(frame) + _QUEUED_BYTES > self.limits.max_queued_bytes:
                counts[_QUEUE_FULL] += rows
            else:
                self._put_bytes += len(frame) + _QUEUED_BYTES
                self._queue.append((frame, rows))

    def close(self, timeout_s: float = 10) -> None:
        """Take no more, spool what is queued, close the segment; what is not done in time counts as lost later."""
        with self._lock:
            self._closed = True
        self._stopping.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive() and not any(self.folder.glob(f"{self.writer}-*{OPEN}")):
            self._counts[_STATE] = _ENDED

    def _encoded(
        self,
        request_id: str,
        units: str | None,
        inputs: Mapping[str, npt.NDArray[Any]],
        scores: npt.NDArray[np.float32],
        shadow: bool,
    ) -> bytes:
        """A request as a frame: made here, for a thread that did it would keep the next request from the interpreter.

        Raises:
            ValueError: its arrays do not have `rows` rows of the right kind.
        """
        rows = len(scores)
        said = None if units is None else units.encode(errors="replace")
        named = request_id.encode(errors="replace")[:_MAX_ID_BYTES]
        numbers = b"".join([inputs[name].tobytes() for name in self.identity.numeric])
        columns = [inputs[name].ravel().tolist() for name in self.identity.categorical]
        if scores.nbytes != 4 * rows or len(numbers) != 4 * rows * len(self.identity.numeric):
            raise ValueError("scores or numeric features are not float32 of one length")
        if any(len(each) != rows for each in columns):
            raise ValueError("categorical features are not of one length")
        texts = [t if isinstance(t, bytes) else t.encode(errors="replace") for each in columns for t in each]
        now = time.time_ns() // 1000
        head = _HEAD.pack(now, rows, len(named), bool(shadow), -1 if said is None else len(said))
        lengths = struct.pack(f"<{len(texts)}I", *map(len, texts))
        return _frame(b"".join([head, named, said or b"", scores.tobytes(), numbers, lengths, *texts]))

    # --- the thread
    def _run(self) -> None:
        while not self._stopping.wait(self.limits.flush_s):
            self._drain()
        self._drain()
        self._rotate()

    def _drain(self) -> None:
        while True:
            queued = [self._queue.popleft() for _ in range(len(self._queue))]
            if queued:
                frames = b"".join([frame for frame, _ in queued])
                self._taken_bytes += len(frames) + _QUEUED_BYTES * len(queued)
                self._write(frames, sum(rows for _, rows in queued))
            segment = self._segment
            if segment and (
                segment.size >= self.limits.rotate_bytes or time.monotonic() - segment.opened >= self.limits.rotate_s
            ):
                self._rotate()
            if not self._queue:
                return

    def _write(self, frames: bytes, rows: int) -> None:
        counts = self._counts
        try:
            segment = self._segment
            if segment is None:
                if _folder_bytes(self.folder) > self.limits.max_spool_bytes:
                    counts[_SPOOL_FULL] += rows
                    return
                segment = self._segment = self._begin()
                header = {"identity": asdict(self.identity), "before": counts[_SPOOLED]}
                frames = _frame(json.dumps(header).encode()) + frames
            _write_all(segment.descriptor, frames)
        except OSError:
            counts[_DISK] += rows
            self._take_back()
            return
        segment.size += len(frames)
        segment.rows += rows
        counts[_SPOOLED] += rows

    def _begin(self) -> _Open:
        self._number += 1
        path = self.folder / f"{self.writer}-{self._number:06d}{OPEN}"
        return _Open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), path, time.monotonic(), 0
        )

    def _take_back(self) -> None:
        """Cut off what a failed write left, so that nothing is shipped that counts as dropped; then a new segment."""
        if self._segment is not None:
            with suppress(OSError):
                os.ftruncate(self._segment.descriptor, self._segment.size)
            self._rotate()

    def _rotate(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        with suppress(OSError):
            os.fsync(segment.descriptor)
        with suppress(OSError):
            os.close(segment.descriptor)
        with suppress(OSError):
            _finish(segment.path, segment.rows)


# --- what a reader needs
def read_segment(path: Path) -> Segment:
    """Read a segment up to its end, or up to the first frame that is cut or altered."""
    data = path.read_bytes()
    identity: Identity | None = None
    before, size, requests = 0, 0, []
    for body, end in _frames(data):
        try:
            if identity is None:
                header = json.loads(body)
                before, identity = int(header["before"]), _identity(header["identity"])
            else:
                requests.append(_decode(body, len(identity.categorical), len(identity.numeric)))
        except (KeyError, TypeError, ValueError, struct.error):
            break
        size = end
    return Segment(identity, before, requests, size)


def rows_of(segment: Path) -> int:
    """Rows of a closed segment, by its name."""
    return int(segment.stem.rsplit("-", 1)[1])


def number_of(segment: Path) -> str:
    """What names a closed segment among all of its slot."""
    return segment.stem.split(".", 1)[1].rsplit("-", 1)[0]


def line_of(path: Path) -> str:
    """The line that a writer's file is about."""
    return path.name.split(".", 1)[0]


def read_counts(path: Path) -> Counts:
    """The counts of any writer, alive or not."""
    return _counts(memoryview(path.read_bytes().ljust(_COUNTS_BYTES, b"\0")).cast("Q"))


def recover(folder: Path) -> int:
    """Put in order what dead writers left: cut the unfinished record, close the segment, count what was lost.

    Returns:
        how many writers were found dead.
    """
    found = 0
    for path in sorted(folder.glob(f"*{COUNTS}")):
        with _if_dead(path) as counts:
            if counts is not None and counts[_STATE] != _ENDED:
                _recover(folder, path.stem, counts)
                found += 1
    return found


@contextmanager
def _if_dead(path: Path) -> Iterator[memoryview | None]:
    """The counts of a writer that is dead; None where it lives, or has only begun."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        whole = os.fstat(file).st_size == _COUNTS_BYTES
        yield memoryview(mmap.mmap(file, _COUNTS_BYTES)).cast("Q") if whole else None
    except BlockingIOError:
        yield None
    finally:
        os.close(file)


def _recover(folder: Path, writer: str, counts: memoryview) -> None:
    for path in sorted(folder.glob(f"{writer}-*{OPEN}")):
        found = read_segment(path)
        with path.open("r+b") as file:
            if path.stat().st_size > found.size:
                counts[_CUT] += 1
                file.truncate(found.size)
            os.fsync(file.fileno())
        # The thread counts after it has written: what is in the file is the truth
        counts[_SPOOLED] = max(counts[_SPOOLED], found.before + found.rows)
        _finish(path, found.rows)
    known = counts[_SPOOLED] + sum(counts[slot] for slots in _REASONS.values() for slot in slots)
    counts[_RECORDED] = max(counts[_RECORDED], known)
    counts[_LOST] = counts[_RECORDED] - known
    counts[_STATE] = _ENDED


def _finish(path: Path, rows: int) -> None:
    """Close a segment for readers; one without rows is removed."""
    if rows:
        path.rename(path.with_name(f"{path.stem}-{rows}{SEGMENT}"))
    else:
        path.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _folder_bytes(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # shipped meanwhile
                total += entry.stat().st_size
    return total


def _counts(slots: memoryview) -> Counts:
    dropped = {reason: sum(slots[n] for n in of) for reason, of in _REASONS.items()}
    ended, spooled, lost, cut = slots[_STATE] == _ENDED, slots[_SPOOLED], slots[_LOST], slots[_CUT]
    return Counts(slots[_RECORDED], spooled, dropped, lost, cut, ended)


# --- frames
def _decode(body: bytes, num_categorical: int, num_numeric: int) -> Request:
    """The request of a body; raises ValueError or struct.error where it is none."""
    served_at, rows, id_bytes, shadow, units_bytes = _HEAD.unpack_from(body)
    num_texts = rows * num_categorical
    sizes = [id_bytes, max(units_bytes, 0), 4 * rows, 4 * rows * num_numeric]
    request_id, units, scores, numbers = _pieces(body, _HEAD.size, sizes)
    at = _HEAD.size + sum(sizes)
    lengths = struct.unpack_from(f"<{num_texts}I", body, at)
    at += 4 * num_texts
    if at + sum(lengths) != len(body):
        raise ValueError("the body has another length than its parts")
    texts = _pieces(body, at, lengths)
    columns = [texts[n * rows : (n + 1) * rows] for n in range(num_categorical)]
    said = None if units_bytes < 0 else units.decode()
    return Request(served_at, request_id.decode(errors="replace"), said, bool(shadow), rows, scores, numbers, columns)


def _pieces(body: bytes, at: int, sizes: Sequence[int]) -> list[bytes]:
    found = []
    for size in sizes:
        found.append(body[at : at + size])
        at += size
    return found


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Whole frames, each with the place where it ends."""
    at = 0
    while at + _FRAME.size <= len(data):
        size, crc = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        body = data[at : at + size]
        if len(body) != size or zlib.crc32(body) != crc:
            return
        at += size
        yield body, at


def _identity(said: Mapping[str, Any]) -> Identity:
    lists = {name: tuple(said[name]) for name in ("categorical", "numeric")}
    return Identity(**{**said, **lists})


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
