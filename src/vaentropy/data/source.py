"""`Source`: rows that are read piece by piece, from memory, files or a torch Dataset."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vaentropy.errors import UsageError

__all__ = ["Mapped", "Part", "Rows", "Source", "resident"]

SEED_STEP = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: neighbouring pieces get unrelated seeds
SEED_RANGE = 2**63


class Source(ABC):
    """Rows in pieces, the shards: each can be read on its own, again and again, and is small enough for memory.

    Iteration gives the shards in order; a data point has one number, its row counted over all shards.

    Attributes:
        name: how errors call it, such as the path of a file.
        data_shape: shape of one data point.
        shard_sizes: rows of each shard; some may be 0.
    """

    name: str
    data_shape: tuple[int, ...]
    shard_sizes: Sequence[int]

    @abstractmethod
    def read(self, shard: int) -> Tensor:
        """Rows of one shard, (shard_sizes[shard], *data_shape), of any numeric dtype; the same at each call.

        Raises:
            DataError: the shard cannot be read; file, row and column are named.
        """

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.read(shard) for shard, size in enumerate(self.shard_sizes) if size)

    @property
    def first_rows(self) -> list[int]:
        """Number of the first row of each shard."""
        return [0, *accumulate(self.shard_sizes)][:-1]


class Rows(Source):
    """A tensor as a source.

    Args:
        x: (N, *data_shape).
        name: how errors call it.
        shard_size: rows per shard; None makes one shard of all.
    """

    def __init__(self, x: Tensor, name: str = "the data", shard_size: int | None = None):
        self.x, self.name, self.data_shape = x, name, tuple(x.shape[1:])
        self._shards = x.split(shard_size or max(1, len(x)))
        self.shard_sizes = [len(shard) for shard in self._shards]

    def read(self, shard: int) -> Tensor:
        """A view."""
        return self._shards[shard]


class Mapped(Source):
    """A source with a function applied to its shards.

    Args:
        source: where the rows come from.
        function: (rows, number of the shard) to as many rows of the same shape; equal arguments give equal results.
    """

    def __init__(self, source: Source, function: Callable[[Tensor, int], Tensor]):
        self.source, self.function = source, function
        self.name, self.data_shape, self.shard_sizes = source.name, source.data_shape, source.shard_sizes

    def read(self, shard: int) -> Tensor:
        """The function of the source's rows."""
        return self.function(self.source.read(shard), shard)


class Part(Source):
    """The rows of a source to train on, or those held out: two disjoint parts, rows in their order.

    Which rows are held out depends on the sizes of the shards, the fraction and the seed only.

    Args:
        source: where the rows come from.
        fraction: held out, in [0, 1), rounded to whole rows and to at least one; 0 holds nothing out.
        seed: of the choice.
        held_out: this part is the one held out.

    Raises:
        UsageError: the fraction is outside [0, 1) or leaves nothing to train on.
    """

    def __init__(self, source: Source, fraction: float, *, seed: int, held_out: bool):
        if not 0 <= fraction < 1:
            raise UsageError(f"held_out is {fraction!r}, expected a fraction in [0, 1); pass e.g. 0.1, or 0 for none")
        total = len(source)
        count = max(1, round(fraction * total)) if fraction > 0 else 0
        if count >= total:
            raise UsageError(f"held_out={fraction!r} of {total} rows leaves none to train on; pass more rows, or 0")
        self.source, self.seed, self.held_out = source, seed, held_out
        self.name, self.data_shape = source.name, source.data_shape
        # Rounded over all shards together: each on its own would hold out too many of short ones.
        ends = [round(count * end / total) for end in accumulate(source.shard_sizes)]
        self._counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        both = zip(source.shard_sizes, self._counts, strict=True)
        self.shard_sizes = [chosen if held_out else size - chosen for size, chosen in both]

    def rows(self, shard: int) -> Tensor:
        """Numbers, within the source's shard, of the rows that belong to this part."""
        size, count = self.source.shard_sizes[shard], self._counts[shard]
        # The device is named because a default device set by the user does not fit a generator of the CPU.
        generator = torch.Generator().manual_seed((self.seed + shard * SEED_STEP) % SEED_RANGE)
        order = torch.randperm(size, generator=generator, device="cpu")
        return (order[:count] if self.held_out else order[count:]).sort().values

    def read(self, shard: int) -> Tensor:
        """A copy of this part's rows."""
        x = self.source.read(shard)
        return x[self.rows(shard).to(x.device)]


def resident(source: Source, dtype: torch.dtype) -> Tensor:
    """All rows in memory, (N, *data_shape), without a second copy of them on the way."""
    x = torch.empty(len(source), *source.data_shape, dtype=dtype)
    row = 0
    for shard in source:
        x[row : row + len(shard)] = shard
        row += len(shard)
    return x
