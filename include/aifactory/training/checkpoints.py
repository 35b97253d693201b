"""Checkpoints of one training in S3: written beside the step loop, verified when taken up, old ones removed.

    <prefix>.checkpoints/<step>-<hash>.safetensors    the content, named by its SHA-256
    <prefix>.checkpoints/<step>.json                  {"step", "object", "sha256", "size", "at"}, written after it

Those of several processes have several objects, see `shards`; one process can take them up too.

What is torn, altered or not the content that its name says is passed over, and the one before is taken. A store
that is away while the training goes on costs a checkpoint and never the training: the next one is tried. A store that
is away when a training is to be resumed is a fault, not a reason to start anew.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.store import Store
from aifactory.training.stop import StopSignal

log = logging.getLogger(__name__)

KEPT = 2
"""Newest checkpoints that are kept: the newest may be the torn one."""
MAX_INTERVAL_S = 60.0
"""A checkpoint is due after so long, seconds, however few the steps were; but for `COST_SHARE`."""
COST_SHARE = 0.02
"""Share of the time that checkpoints may take: the time that the loop stands still for a copy, and the CPU time of
the writer, which may be missed by the loop; not the time that the writer waits for the store. By Daly (2006), lost work
and checkpoints together cost least at an interval of sqrt(2 · cost · time between failures): at a cost of 10 ms and an
hour between failures that is 8 s, and this share gives 0.5 s, so less is lost to a failure. The share gives the
shorter interval up to a cost of 2.9 s."""


LAST_WRITE_S = 30.0
"""How long the end of a training waits for a checkpoint that is being written, s."""


def newest(store: Store, prefix: str) -> str:
    """Names the newest checkpoint under a prefix, whole or not; empty where there is none."""
    folder = f"{prefix}.checkpoints/"
    return max((o.key.removeprefix(folder) for o in store.list(folder) if o.key.endswith(".json")), default="")


class StoreCheckpoints:
    """The checkpoints under one prefix. See `recipes.base.Checkpoints` for what a recipe does with it.

    Args:
        store: the factory's bucket.
        prefix: of the order and phase, without a slash at its end.
        stop: who says that the training is to stop.
    """

    def __init__(self, store: Store, prefix: str, stop: StopSignal) -> None:
        self._store = store
        self._folder = f"{prefix}.checkpoints/"
        self._stop = stop
        self._changed = threading.Condition()
        self._waiting: Callable[[], None] | None = None
        self._busy = False
        self._thread: threading.Thread | None = None
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._cost_s = 0.0
        self.lost_s = 0.0
        """Seconds that the step loop stood still for checkpoints."""
        self.num_saved = 0
        """Checkpoints that were asked for."""

    @property
    def stopping(self) -> bool:
        """Whether the training is to save and stop."""
        return self._stop.requested

    def attended(self) -> AbstractContextManager[None]:
        """Within, `stopping` is looked at after every step."""
        return self._stop.attended()

    def due(self, step: int, every: int) -> bool:
        """Whether it is time for a checkpoint: so many steps, or a minute, and not more than the share of the time."""
        elapsed_s = time.monotonic() - self._saved_at
        if elapsed_s < self._cost_s / COST_SHARE:
            return False
        return step - self._saved_step >= every or elapsed_s >= MAX_INTERVAL_S

    def save(self, step: int, encode: Callable[[], bytes], snapshot_s: float = 0.0) -> None:
        """Write a checkpoint from another thread; one that still waits is replaced by this newer one.

        Args:
            step: steps that are done.
            encode: gives the content; called in the other thread.
            snapshot_s: seconds that the loop stood still for it.
        """
        self.write_beside(step, lambda: self._write(step, encode()), snapshot_s)

    def write_beside(self, step: int, write: Callable[[], None], snapshot_s: float) -> None:
        """Have a checkpoint written from another thread, in place of one that still waits."""
        self.lost_s += snapshot_s
        self.num_saved += 1
        self._saved_at, self._saved_step = time.monotonic(), step
        with self._changed:
            self._cost_s = max(snapshot_s, self._cost_s if self._busy else 0.0)
            self._waiting = write
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was saved is written; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout_s)

    def candidates(self) -> Iterator[tuple[int, bytes]]:
        """Steps and content of every checkpoint whose content is what was written, newest first.

        Raises:
            InfrastructureFault: the store did not answer, and what could be read was of no use: hours of work may be
                there, so the training is not started anew.
        """
        lost: InfrastructureFault | None = None
        for key in self.note_keys():
            try:
                step, content = self._read(key)
            except (ValueError, KeyError, TypeError, InfrastructureFault) as error:
                log.warning("checkpoint %s is passed over: %s", self._store.uri(key), error)
                if isinstance(error, InfrastructureFault) and not isinstance(error, NotFound):
                    lost = error
                continue
            log.info("found a checkpoint, %.1f MB, written after step %d", len(content) / 1e6, step)
            self._saved_step = step
            yield step, content
        self._saved_step = 0  # none of them was of use
        if lost is not None:
            raise lost

    def note_keys(self) -> list[str]:
        """Keys of the notes, newest first."""
        return sorted((o.key for o in self._store.list(self._folder) if o.key.endswith(".json")), reverse=True)

    def clear(self) -> None:
        """Remove every checkpoint: the training is over. What cannot be removed costs space, not the model."""
        self.flush(LAST_WRITE_S)
        try:
            for found in self._store.list(self._folder):
                self._store.delete(found.key)
        except InfrastructureFault as error:
            log.warning("checkpoints are left under %s: %s", self._store.uri(self._folder), error)

    def _read(self, key: str) -> tuple[int, bytes]:
        """Step and content of one note.

        Raises:
            ValueError, KeyError, TypeError: it is not whole; `checked` says which of the ways.
            InfrastructureFault: the store did not answer; NotFound: content is gone.
        """
        note = self._store.get_json(key)
        if "shards" in note:
            from aifactory.training.shards import Kept

            return int(note["step"]), Kept.of(self._store, self._folder, note).assembled()
        content = self._store.get(f"{self._folder}{note['object']}")
        return int(note["step"]), checked(note, content)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                waiting, self._waiting, self._busy = self._waiting, None, True
            began = time.thread_time()  # of this thread's work alone: waiting for the store costs the loop nothing
            try:
                if waiting is not None:
                    waiting()
            except InfrastructureFault as error:
                log.warning("the checkpoint could not be written, the next one is tried: %s", error)
            except Exception:
                log.exception("the checkpoint could not be written, the next one is tried")
            with self._changed:
                self._busy = False
                self._cost_s = max(self._cost_s, time.thread_time() - began)
                self._changed.notify_all()

    def _write(self, step: int, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        name = f"{step:010d}-{digest[:16]}.safetensors"
        self._store.put(f"{self._folder}{name}", content)
        note: dict[str, Any] = {
            "step": step,
            "object": name,
            "sha256": digest,
            "size": len(content),
            "at": datetime.now(UTC).isoformat(),
        }
        self._store.put_json(f"{self._folder}{step:010d}.json", note)
        log.info("checkpoint after step %d: %.1f MB", step, len(content) / 1e6)
        self.remove_old(step)

    def remove_old(self, step: int) -> None:
        """Remove all but the newest; one of a later step was passed over when this training was resumed."""
        keys = [o.key for o in self._store.list(self._folder)]
        notes = {k.removeprefix(self._folder)[:10] for k in keys if k.endswith(".json")}
        steps = sorted((n for n in notes if n <= f"{step:010d}"), reverse=True)[:KEPT]
        # The note goes first: what has a note has content
        for key in sorted(keys, key=lambda k: not k.endswith(".json")):
            if key.removeprefix(self._folder)[:10] not in steps:
                self._store.delete(key)


def checked(note: Mapping[str, Any], content: bytes) -> bytes:
    """The content, where it is what a note says.

    Raises:
        ValueError: it is not.
    """
    if len(content) != note["size"]:
        raise ValueError(f"it has {len(content)} bytes of {note['size']}")
    if hashlib.sha256(content).hexdigest() != note["sha256"]:
        raise ValueError("it is not the content that was written")
    return content
