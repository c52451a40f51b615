"""`Source`: rows that are read piece by piece, from memory, files or a torch Dataset."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar, cast, overload

import torch
from torch import Tensor

from vaentropy.errors import UsageError, shown
from vaentropy.seeding import SEED_RANGE

__all__ = [
    "Derived",
    "Mapped",
    "Part",
    "Rows",
    "Source",
    "column_name",
    "copies",
    "first_rows",
    "pieces",
    "resident",
    "rows_per_shard",
    "shards_of_both",
]

SEED_STEP = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: neighbouring pieces get unrelated seeds
SHARD_VALUES = 2**20  # 8 MiB in float64: long enough for fast reading, short beside the buffers that hold several
# Of each shard what belongs to it, or of some of them.
Parts = Sequence[Tensor] | Mapping[int, Tensor]
_Kind = TypeVar("_Kind", bound="Source")


def rows_per_shard(data_shape: Sequence[int]) -> int:
    """Rows of the shards of a source that can be cut anywhere. The split hangs on it: it must not change with a run."""
    return max(1, SHARD_VALUES // max(1, math.prod(data_shape)))


def pieces(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows in pieces, each after the number of its first row: what is computed on the way then takes little memory."""
    step = rows_per_shard(x.shape[1:])
    return ((first, x[first : first + step]) for first in range(0, len(x), step))


def copies(parts: Parts, shards: range) -> dict[int, Tensor]:
    """Copies of what belongs to some shards, by their numbers: a view is sent with all that it is a view of."""
    return {number: parts[number].cpu().clone() for number in shards}


class _SizesOf(Sequence[int]):
    """Rows of some shards by their numbers among all, as many numbers however many others there are.

    Those in front count as rows of the shard before the first, those behind as none: where a shard begins is the same.

    Args:
        sizes: of all shards.
        shards: whose are kept.
    """

    def __init__(self, sizes: Sequence[int], shards: range):
        self._count, self._first, self._own = len(sizes), shards.start, list(sizes[shards.start : shards.stop])
        self._before = sum(sizes[: shards.start])

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[number] for number in range(self._count)[index]]
        place = range(self._count)[index] - self._first
        if place == -1:
            return self._before
        return self._own[place] if 0 <= place < len(self._own) else 0


class Source(ABC):
    """Rows in pieces, the shards: each can be read on its own, again and again, and is small enough for memory.

    Iteration gives the shards in order; a data point has one number, its row counted over all shards.

    Attributes:
        name: how errors call it, such as the path of a file.
        data_shape: shape of one data point.
        shard_sizes: rows of each shard; some may be 0.
        dtype: of what `read` returns.
        columns: names of the features of a table, () where they have none.
        condition_width: how many of the last numbers of each row are its condition, see `Conditioned`.
    """

    name: str
    data_shape: tuple[int, ...]
    shard_sizes: Sequence[int]
    dtype: torch.dtype
    columns: Sequence[str] = ()
    condition_width: int = 0
    _features_shape: tuple[int, ...] | None = None

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Shape of one data point without its condition."""
        return self.data_shape if self._features_shape is None else self._features_shape

    @abstractmethod
    def read(self, shard: int) -> Tensor:
        """Rows of one shard, (shard_sizes[shard], *data_shape), of the source's dtype; the same at each call.

        Raises:
            DataError: the shard cannot be read; file, row and column are named.
        """

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.read(shard) for shard, size in enumerate(self.shard_sizes) if size)

    def place(self, shard: int) -> tuple[str, int]:
        """Where errors say that a shard lies: what it is part of, and the number of its first row there."""
        return self.name, sum(self.shard_sizes[:shard])

    def only(self, shards: range) -> "Source":
        """This source for another process, which reads these shards alone: other rows that are in memory stay here.

        Shards keep their numbers, and say of the same place where they begin. Unless a class overrides this, all that
        the source holds is sent with each task.
        """
        return self

    def _narrowed(self: "_Kind", shards: range) -> "_Kind":
        """A copy that holds the sizes of these shards, and of no others."""
        part = copy.copy(self)
        part.shard_sizes = _SizesOf(self.shard_sizes, shards)
        return part


class Rows(Source):
    """A tensor as a source.

    Args:
        x: (N, *data_shape).
        name: how errors call it.
        shard_size: rows per shard; None makes one shard of all.
        columns: names of the features.
    """

    def __init__(self, x: Tensor, name: str = "the data", shard_size: int | None = None, columns: Sequence[str] = ()):
        self.name, self.data_shape, self.dtype, self.columns = name, tuple(x.shape[1:]), x.dtype, columns
        self._shards: Parts = x.split(shard_size or max(1, len(x)))
        self.shard_sizes = [len(shard) for shard in self._shards]

    def read(self, shard: int) -> Tensor:
        """A view."""
        return self._shards[shard]

    def only(self, shards: range) -> Source:
        """Copies of these shards."""
        part = self._narrowed(shards)
        part._shards = copies(self._shards, shards)
        return part


class Derived(Source):
    """Base of those whose shards are made of another source's.

    Args:
        source: where the rows come from.
    """

    def __init__(self, source: Source):
        self.source = source
        self.name, self.data_shape, self.shard_sizes = source.name, source.data_shape, source.shard_sizes
        self.dtype, self.columns = source.dtype, source.columns
        self.condition_width, self._features_shape = source.condition_width, source.features_shape

    def only(self, shards: range) -> Source:
        """The same of the source's."""
        part = self._narrowed(shards)
        part.source = self.source.only(shards)
        return part


class Mapped(Derived):
    """A source with a function applied to its shards.

    Args:
        source: where the rows come from.
        dtype: of what the function returns; None if it keeps that of the source.
    """

    def __init__(self, source: Source, dtype: torch.dtype | None = None):
        super().__init__(source)
        self.dtype = dtype or source.dtype

    @abstractmethod
    def function(self, x: Tensor, shard: int) -> Tensor:
        """As many rows of the same shape of the rows of a shard; equal arguments give equal results."""

    def read(self, shard: int) -> Tensor:
        """The function of the source's rows."""
        return self.function(self.source.read(shard), shard)

    def place(self, shard: int) -> tuple[str, int]:
        """Where the source's shard lies."""
        return self.source.place(shard)


class Part(Derived):
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
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not number or not 0 <= fraction < 1:
            raise UsageError(
                f"held_out is {shown(fraction)}, expected a fraction in [0, 1); pass e.g. 0.1, or 0 for none"
            )
        total = len(source)
        count = max(1, round(fraction * total)) if fraction > 0 else 0
        if count >= total:
            given = f"{source.name}: held_out={fraction!r} of {total} rows"
            raise UsageError(f"{given} leaves none to train on; pass more rows, or 0")
        super().__init__(source)
        self.seed, self.held_out = seed, held_out
        # Rounded over all shards together: each on its own would hold out too many of short ones.
        ends = [round(count * end / total) for end in accumulate(source.shard_sizes)]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        self._counts: Sequence[int] | Mapping[int, int] = counts
        both = zip(source.shard_sizes, counts, strict=True)
        self.shard_sizes = [chosen if held_out else size - chosen for size, chosen in both]

    def only(self, shards: range) -> Source:
        """The same of the source's."""
        part = cast(Part, super().only(shards))
        part._counts = {shard: self._counts[shard] for shard in shards}
        return part

    def rows(self, shard: int) -> Tensor:
        """Numbers, within the source's shard, of the rows that belong to this part."""
        size, count = self.source.shard_sizes[shard], self._counts[shard]
        # The device is named because a default device set by the user does not fit a generator of the CPU.
        generator = torch.Generator().manual_seed((self.seed + shard * SEED_STEP) % SEED_RANGE)
        order = torch.randperm(size, generator=generator, device="cpu")
        return (order[:count] if self.held_out else order[count:]).sort().values

    def choose(self, x: Tensor, shard: int) -> Tensor:
        """This part's rows of `x`, the source's shard or as many rows that go with it; a copy."""
        return x[self.rows(shard).to(x.device)]

    def read(self, shard: int) -> Tensor:
        """A copy of this part's rows."""
        return self.choose(self.source.read(shard), shard)


def shards_of_both(train: Source, held_out: Source) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The shards of a training and a held-out part; those of two parts of one source are read once for both."""
    if isinstance(train, Part) and isinstance(held_out, Part) and train.source is held_out.source:
        for shard, size in enumerate(train.source.shard_sizes):
            if size:
                yield _chosen(train, held_out, shard)
        return
    for x in train:
        yield x, None
    for x in held_out:
        yield None, x


def _chosen(train: Part, held_out: Part, shard: int) -> tuple[Tensor, Tensor]:
    # In a function of its own, so that the shard is not in memory while the next one is read.
    x = train.source.read(shard)
    return train.choose(x, shard), held_out.choose(x, shard)


def resident(train: Source, held_out: Source) -> tuple[Tensor, Tensor]:
    """All rows of both in memory, each (N, *data_shape) of its dtype, without a second copy of them on the way."""
    parts = tuple(
        torch.empty(len(part), *part.data_shape, dtype=part.dtype, device="cpu") for part in (train, held_out)
    )
    rows = [0, 0]
    for shards in shards_of_both(train, held_out):
        rows = [_put(shard, x, row) for shard, x, row in zip(shards, parts, rows, strict=True)]
        del shards  # before the next ones are read
    return parts[0], parts[1]


def _put(shard: Tensor | None, into: Tensor, row: int) -> int:
    """Copy rows to where they belong; returns the row after them."""
    if shard is None:
        return row
    into[row : row + len(shard)] = shard
    return row + len(shard)


def column_name(source: Source, index: Sequence[int]) -> str:
    """A feature as errors call it: "column 'age'", or "column 3 (counted from 0)" where it has no name."""
    if len(index) == 1 and source.columns:
        return f"column {source.columns[index[0]]!r}"
    return f"column {index[0] if len(index) == 1 else tuple(index)} (counted from 0)"


def first_rows(x: Tensor | Source) -> Tensor:
    """The first rows of (N, *data_shape), or of a source: enough to judge by, few enough to copy.

    Returns:
        (B, *data_shape), as many rows as a shard has at the most; a view of a tensor.
    """
    if isinstance(x, Tensor):
        return x[: rows_per_shard(x.shape[1:])]
    return next(iter(x))
