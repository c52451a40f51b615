"""Which rows of a batch a process has, and how it comes by them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vaentropy._typing import Tensor
from vaentropy.data.batches import Batches, Window
from vaentropy.data.source import Source
from vaentropy.errors import VaentropyError
from vaentropy.world import FailedElsewhere, World

__all__ = ["OwnRows", "Share", "own_rows", "share_of"]


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a process has.

    Attributes:
        rows: these.
        fraction: of the batch that they are; 0 where a process has none. It then goes along with the first row, which
            counts for nothing.
    """

    rows: slice
    fraction: float


def share_of(world: World, num_rows: int) -> Share:
    """The rows of a batch of so many that are this process's."""
    rows = world.part(num_rows)
    return Share(rows, (rows.stop - rows.start) / num_rows) if rows.stop > rows.start else Share(slice(0, 1), 0.0)


class OwnRows(NamedTuple):
    """A batch, as far as it is this process's.

    Attributes:
        rows: (b, *data_shape).
        share: which of the batch's they are.
        num_rows: B, of the whole batch.
    """

    rows: Tensor
    share: Share
    num_rows: int


def own_rows(
    batches: Batches, world: World, number: int, start: int, check: Callable[[Tensor], None]
) -> Iterator[OwnRows]:
    """This process's rows of the batches of an epoch, from batch `start` on.

    A tensor is in all processes. Of a source each process reads every size-th window only, at the same time as the
    others read theirs, and sends them the rows that are theirs: the files are read once in an epoch, and the batches
    are those of one process.

    Args:
        batches: the same in all processes.
        world: of which each process takes batch after batch.
        number: of the epoch.
        start: number of the first batch.
        check: called with the rows of a window that was read; raises where they cannot be used.

    Raises:
        VaentropyError: rows cannot be read; in each process, where it comes up in one.
    """
    if isinstance(batches.data, Tensor):
        return _of_tensor(batches, batches.data, world, number, start)
    return _Exchange(batches, batches.data, world, number, check).epoch(start)


def _of_tensor(batches: Batches, x: Tensor, world: World, number: int, start: int) -> Iterator[OwnRows]:
    order = batches.order(number).to(x.device)
    for batch in range(start, len(batches)):
        first, end = batches.bound(batch), batches.bound(batch + 1)
        share = share_of(world, end - first)
        yield OwnRows(x.index_select(0, order[first:end][share.rows]), share, end - first)


class _Exchange:
    """Windows that each process reads some of, and rows that go from whoever has read them to whoever takes them."""

    def __init__(
        self, batches: Batches, source: Source, world: World, number: int, check: Callable[[Tensor], None]
    ) -> None:
        self._batches, self._source, self._world, self._number = batches, source, world, number
        self._check = check
        self._windows = batches.windows(number)
        self._begun = 0  # windows before this one are over
        # Those of this process that a batch may still take rows of.
        self._read: dict[int, Tensor] = {}
        self._rounds = -1

    def epoch(self, start: int) -> Iterator[OwnRows]:
        for batch in range(start, len(self._batches)):
            first, end = self._batches.bound(batch), self._batches.bound(batch + 1)
            there = self._between(first, end)
            for window in there:
                self._enter(window.number // self._world.size)
            yield self._rows(first, end, there)
            self._read = {n: rows for n, rows in self._read.items() if self._windows[n].end > end}

    def _between(self, first: int, end: int) -> list[Window]:
        """The windows that have any of these rows; rows only go up."""
        windows = self._windows
        while windows[self._begun].end <= first:
            self._begun += 1
        last = self._begun
        while last < len(windows) and windows[last].first < end:
            last += 1
        return [window for window in windows[self._begun : last] if window.end > window.first]

    def _enter(self, turn: int) -> None:
        """Read this process's window of a round of them, once; in all processes at the same time."""
        if turn <= self._rounds:
            return
        self._rounds, failure = turn, None
        own = turn * self._world.size + self._world.rank
        try:
            if own < len(self._windows):
                rows = self._batches.read(self._number, self._windows[own])
                self._check(rows)
                self._read[own] = rows
        except VaentropyError as error:
            failure = error
        if self._world.any(failure is not None):
            raise failure or FailedElsewhere("reading", self._world.size)

    def _rows(self, first: int, end: int, there: list[Window]) -> OwnRows:
        world, num_rows = self._world, end - first
        shares = [share_of(World(rank, world.size), num_rows) for rank in range(world.size)]
        own = shares[world.rank]
        shape = (own.rows.stop - own.rows.start, *self._source.data_shape)
        taken = torch.empty(shape, dtype=self._source.dtype, device="cpu")
        sent, received = [], []
        for window in there:
            owner = window.number % world.size
            for rank, share in enumerate(shares):
                low, high = max(window.first, first + share.rows.start), min(window.end, first + share.rows.stop)
                if low >= high or world.rank not in (owner, rank):
                    continue
                into = taken[low - first - own.rows.start : high - first - own.rows.start]
                if owner != world.rank:
                    received.append((into, owner))
                    continue
                piece = self._read[window.number][low - window.first : high - window.first]
                if rank == world.rank:
                    into.copy_(piece)
                else:
                    sent.append((piece, rank))
        world.exchange(sent, received)
        return OwnRows(taken, own, num_rows)
