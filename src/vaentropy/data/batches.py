"""`Batches`: rows in an order that depends on a seed and the number of the epoch alone."""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from vaentropy.checks import require_count
from vaentropy.data.source import Source
from vaentropy.errors import UsageError
from vaentropy.seeding import generator_of

__all__ = ["Batches", "Window"]

BUFFER_BYTES = 64 * 2**20  # rows of a source that are shuffled together; a shard above that is taken whole


class Window(NamedTuple):
    """Shards of a source that are shuffled together.

    Attributes:
        number: in the epoch.
        shards: which ones.
        first: number of its first row in the epoch.
        end: number of the row after its last.
    """

    number: int
    shards: tuple[int, ...]
    first: int
    end: int


class Batches:
    """Shuffled batches of nearly equal size; every row is in one batch of each epoch.

    The order is a function of the seed and the epoch: an interrupted epoch is taken up at any of its batches.

    Rows of a tensor are shuffled as a whole. Those of a source are read shard by shard in a shuffled order; as many
    shards as fill a buffer are shuffled together. So one buffer, and one shard more, are in memory at a time, beside
    the batches that are held by who asked for them.

    Args:
        data: (N, *data_shape), or a source of such rows.
        batch_size: rows per batch at most.
        seed: of the order.

    Raises:
        UsageError: a batch size below 1, or no rows.
    """

    def __init__(self, data: Source | Tensor, batch_size: int, seed: int = 0):
        require_count("batch_size", batch_size)
        if len(data) == 0:
            raise UsageError("no rows given to make batches of, expected at least one")
        self.data, self.seed = data, seed
        self._num_batches = math.ceil(len(data) / batch_size)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._num_batches

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """The batches of an epoch, (B, *data_shape) each, from batch `start` on.

        Raises:
            UsageError: `start` is not between 0 and the number of batches.
        """
        if not 0 <= start <= len(self):
            raise UsageError(f"start={start} given, expected a batch from 0 to {len(self)}")
        if isinstance(self.data, Tensor):
            return self._of_tensor(self.data, number, start)
        return self._of_source(self.data, number, start)

    def order(self, number: int) -> Tensor:
        """Numbers of the rows of a tensor, (N,) on the CPU, in the order in which an epoch takes them."""
        return torch.randperm(len(self.data), generator=generator_of(self.seed, "order", number), device="cpu")

    def bound(self, batch: int) -> int:
        """Number of rows in the batches before this one; without remainders in a last, small batch."""
        return batch * len(self.data) // len(self)

    def _of_tensor(self, x: Tensor, number: int, start: int) -> Iterator[Tensor]:
        order = self.order(number).to(x.device)
        for batch in range(start, len(self)):
            # Not x[...], which takes twice as long.
            yield x.index_select(0, order[self.bound(batch) : self.bound(batch + 1)])

    def _of_source(self, source: Source, number: int, start: int) -> Iterator[Tensor]:
        batch, rest = start, None  # rows that the next batch begins with, from windows before
        for window in self.windows(number):
            begun = self.bound(batch) if rest is None else window.first
            if begun >= window.end or batch == len(self):
                continue
            rows = self.read(number, window)
            while batch < len(self) and (bound := self.bound(batch + 1)) <= window.end:
                piece = rows[begun - window.first : bound - window.first]
                yield piece if rest is None else torch.cat([rest, piece])
                batch, begun, rest = batch + 1, bound, None
            if begun < window.end:
                # A copy, so that this window can go before the next one comes.
                piece = rows[begun - window.first :].clone()
                rest = piece if rest is None else torch.cat([rest, piece])
            del rows

    # Windows, of a source alone.

    def windows(self, number: int) -> list[Window]:
        """The windows of an epoch, in their order."""
        source = self.data
        assert isinstance(source, Source)
        row_bytes = math.prod(source.data_shape) * source.dtype.itemsize
        generator = generator_of(self.seed, "shards", number)
        windows, room = [], 0
        for shard in torch.randperm(len(source.shard_sizes), generator=generator, device="cpu").tolist():
            size = source.shard_sizes[shard] * row_bytes
            if size > room or not windows:
                windows.append([])
                room = BUFFER_BYTES
            windows[-1].append(shard)
            room -= size
        ends = list(accumulate(sum(source.shard_sizes[shard] for shard in window) for window in windows))
        return list(map(Window, range(len(windows)), map(tuple, windows), [0, *ends], ends))

    def read(self, number: int, window: Window) -> Tensor:
        """The rows of a window of an epoch in their order, (end - first, *data_shape)."""
        source = self.data
        assert isinstance(source, Source)
        total = window.end - window.first
        order = torch.randperm(total, generator=generator_of(self.seed, "window", number, window.number), device="cpu")
        rows = torch.empty(total, *source.data_shape, dtype=source.dtype, device="cpu")
        row = 0
        for shard in window.shards:
            size = source.shard_sizes[shard]
            if size:
                rows[order[row : row + size]] = source.read(shard)
            row += size
        return rows
