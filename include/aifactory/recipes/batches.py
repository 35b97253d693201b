"""Where the batches of a training come from: rows that lie in memory, or windows of rows that are read meanwhile.

Streamed, an epoch goes through the days in an order drawn from seed and epoch, and through their rows a window at a
time; within a window the rows are shuffled, by seed, epoch and window. A window is a whole number of batches. So which
rows a batch has is a function of seed and step alone, which is all that is needed to go on at any step, and every row
comes once an epoch. Rows of days that are in no common window never meet in a batch of that epoch: the larger the
window, the more even the batches.

A window is made in another thread while the one before it is learned, and no sooner: at most two are held. Every row
is written where it stays, in the order in which it is learned, so that a batch is a slice: nothing is gathered while
the loop waits. To go on in the middle of an epoch costs the reading of one day that is passed over in part.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aifactory.recipes.base import TrainingFrame
from aifactory.recipes.stream import TrainingStream

T = TypeVar("T")


@dataclass(frozen=True)
class Batches:
    """Rows as tensors on the device: categories int64 [n, c], numbers float32 [n, k], labels [n]."""

    categories: torch.Tensor
    numbers: torch.Tensor
    labels: torch.Tensor

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.labels.device

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Categories, numbers, labels."""
        return self.categories, self.numbers, self.labels

    def batches(self, start: int, num_steps: int, batch_rows: int, seed: int) -> Generator[Batch, None, None]:
        """See `BatchSource`."""
        for rows in batches_of_all(self.num_rows, self.device, start, num_steps, batch_rows, seed):
            yield Gathered(self, rows)

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `Held`: categories, numbers, labels."""
        return tuple(t.index_select(0, rows) for t in self.tensors)


class Batch(Protocol):
    """The rows of a step."""

    @property
    def num_rows(self) -> int:
        """How many they are."""
        ...

    def take(self, part: slice) -> tuple[torch.Tensor, ...]:
        """What the loss needs of some of them."""
        ...


class Held(Protocol):
    """Rows that are there."""

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the loss needs of the rows with these numbers, int64 [n] on the device."""
        ...


@dataclass(frozen=True)
class Gathered:
    """A batch whose rows lie anywhere, given by their numbers."""

    held: Held
    rows: torch.Tensor

    @property
    def num_rows(self) -> int:
        """See `Batch`."""
        return len(self.rows)

    def take(self, part: slice) -> tuple[torch.Tensor, ...]:
        """See `Batch`: a copy."""
        return self.held.take(self.rows[part])


@dataclass(frozen=True)
class Sliced:
    """A batch whose rows lie one after another."""

    window: Batches
    rows: range

    @property
    def num_rows(self) -> int:
        """See `Batch`."""
        return len(self.rows)

    def take(self, part: slice) -> tuple[torch.Tensor, ...]:
        """See `Batch`: no copy."""
        rows = self.rows[part]
        return tuple(t[rows.start : rows.stop] for t in self.window.tensors)


def batches_of_all(
    num_rows: int, device: torch.device, start: int, num_steps: int, batch_rows: int, seed: int
) -> Iterator[torch.Tensor]:
    """The rows' numbers in the batch of every step, int64, where all rows are there; see `BatchSource.batches`.

    The order is a function of seed and epoch: the position is all to resume.
    """
    steps_per_epoch = math.ceil(num_rows / batch_rows)
    order = torch.empty(0)
    for step in range(start, num_steps):
        epoch, batch = divmod(step, steps_per_epoch)
        if batch == 0 or step == start:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(num_rows, generator=generator).to(device)
        yield order[batch * batch_rows : (batch + 1) * batch_rows]


class BatchSource(Protocol):
    """What the training loop learns from."""

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        ...

    def batches(self, start: int, num_steps: int, batch_rows: int, seed: int) -> Generator[Batch, None, None]:
        """The batch of every step from `start` until `num_steps`, to be closed by who does not take them all."""
        ...


@dataclass(frozen=True)
class StreamedBatches:
    """Rows that are read while others are learned.

    Each of several processes reads all rows, so that their batches are those of one: as many times as there are
    processes everything is read, decoded and encoded, though each learns only its slice.

    Attributes:
        stream: the rows.
        encode: makes tensors of some of them, on the CPU.
        window_rows: rows that are shuffled together; rounded down to whole batches, at least one.
        device: where the batches are to be.
    """

    stream: TrainingStream
    encode: Callable[[TrainingFrame], Batches]
    window_rows: int
    device: torch.device

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self.stream.num_rows

    def batches(self, start: int, num_steps: int, batch_rows: int, seed: int) -> Generator[Batch, None, None]:
        """See `BatchSource`.

        Raises:
            FactoryError: what the thread that reads has met, where its rows are due.
        """
        per_window = max(1, self.window_rows // batch_rows)
        steps_per_epoch = math.ceil(self.num_rows / batch_rows)
        first = start // steps_per_epoch, start % steps_per_epoch // per_window

        def windows(stopped: threading.Event) -> Generator[Batches, None, None]:
            for epoch in range(first[0], math.ceil(num_steps / steps_per_epoch)):
                since = first[1] if epoch == first[0] else 0
                yield from self._windows(seed, epoch, since, per_window * batch_rows, stopped)

        with ahead(windows) as coming:
            for step in range(start, num_steps):
                batch = step % steps_per_epoch % per_window
                if batch == 0 or step == start:
                    window = next(coming)
                yield Sliced(window, range(window.num_rows)[batch * batch_rows : (batch + 1) * batch_rows])

    def _windows(
        self, seed: int, epoch: int, first: int, size: int, stopped: threading.Event
    ) -> Generator[Batches, None, None]:
        """The windows of an epoch from one on, their rows as they are learned."""
        days = order_of_days(list(self.stream.rows_by_day), seed, epoch)
        ends = list(accumulate(self.stream.rows_by_day[day] for day in days))
        num_passed = sum(end <= first * size for end in ends)  # days whose rows are all in earlier windows
        skip = first * size - (ends[num_passed - 1] if num_passed else 0)
        sizes = [min(size, self.num_rows - begin) for begin in range(first * size, self.num_rows, size)]
        places = (places_of_rows(rows, seed, epoch, number) for number, rows in enumerate(sizes, start=first))
        with closing(self.stream.pieces(days[num_passed:])) as pieces:
            encoded = (self.encode(piece) for piece in _from_row(pieces, skip, stopped))
            for window in _filled(encoded, places):
                yield Batches(*(t.to(self.device) for t in window.tensors))


def order_of_days(days: Sequence[str], seed: int, epoch: int) -> list[str]:
    """The days as an epoch goes through them."""
    return [days[i] for i in np.random.default_rng((seed, epoch)).permutation(len(days))]


def order_of_rows(num_rows: int, seed: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """The rows of a window as an epoch goes through them."""
    return np.random.default_rng((seed, epoch, window + 1)).permutation(num_rows)


def places_of_rows(num_rows: int, seed: int, epoch: int, window: int) -> torch.Tensor:
    """Where each row of a window comes in `order_of_rows`, int64 [n]."""
    places = torch.empty(num_rows, dtype=torch.int64)
    places[torch.from_numpy(order_of_rows(num_rows, seed, epoch, window))] = torch.arange(num_rows)
    return places


def _from_row(
    pieces: Iterator[TrainingFrame], skip: int, stopped: threading.Event
) -> Generator[TrainingFrame, None, None]:
    """The pieces without their first rows, until nobody wants them."""
    for piece in pieces:
        if stopped.is_set():
            raise CancelledError
        yield replace(piece, table=piece.table.slice(skip))
        skip = max(0, skip - piece.num_rows)


def _filled(pieces: Iterator[Batches], windows: Iterator[torch.Tensor]) -> Generator[Batches, None, None]:
    """The rows of the pieces in windows, each given by the places of its rows; every row is written where it stays."""
    piece, used = next(pieces), 0
    for places in windows:
        window = Batches(*(t.new_empty((len(places), *t.shape[1:])) for t in piece.tensors))
        filled = 0
        while filled < len(places):
            if used == piece.num_rows:
                piece, used = next(pieces), 0
            number = min(len(places) - filled, piece.num_rows - used)
            for into, tensor in zip(window.tensors, piece.tensors, strict=True):
                into.index_copy_(0, places[filled : filled + number], tensor[used : used + number])
            filled, used = filled + number, used + number
        yield window


@contextmanager
def ahead(make: Callable[[threading.Event], Generator[T, None, None]]) -> Iterator[Iterator[T]]:
    """The items of a generator, each made in another thread while the one before it is used, and no sooner.

    What the generator raises is raised where its item is due. At the end it is told to stop by the event that it was
    made with, and waited for: no thread is left behind. That takes as long as one reading from the store.
    """
    stopped = threading.Event()
    items = make(stopped)

    def taken(pool: ThreadPoolExecutor) -> Iterator[T]:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item

    with closing(items), ThreadPoolExecutor(1, "read ahead") as pool:
        try:
            yield taken(pool)
        finally:
            stopped.set()
