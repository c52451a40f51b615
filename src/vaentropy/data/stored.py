"""From rows as stored to rows as the model sees them: checks, uniform noise, scaling. All of it happens on reading."""

import math
from typing import Literal

import torch
from torch import Tensor

from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Mapped, Source, column_name, pieces
from vaentropy.errors import DataError
from vaentropy.seeding import generator_of

__all__ = ["Missing", "checked", "dequantised", "largest", "scaled"]

Missing = Literal["error", "ignore"]


def largest(dtype: torch.dtype) -> float:
    """The largest value that a dtype can hold."""
    if dtype.is_floating_point:
        return torch.finfo(dtype).max
    return 1.0 if dtype == torch.bool else float(torch.iinfo(dtype).max)


def checked(source: Source, missing: Missing, *, whole: bool = False) -> Source:
    """The same rows, refused where a value cannot be used.

    Args:
        source: rows as stored.
        missing: "ignore" lets NaN pass, which marks a missing value.
        whole: only whole numbers are accepted.

    Reading raises:
        DataError: file, row and column are named.
    """
    return _Checked(source, missing, whole) if source.dtype.is_floating_point else source


class _Checked(Mapped):
    def __init__(self, source: Source, missing: Missing, whole: bool):
        super().__init__(source)
        self._missing, self._whole = missing, whole

    def function(self, x: Tensor, shard: int) -> Tensor:
        for first, rows in pieces(x):
            bad = rows.isinf() if self._missing == "ignore" else ~rows.isfinite()
            if bool(bad.any()):
                raise _not_finite(self.source, shard, rows, bad, first)
            if self._whole and bool((bad := (rows != rows.floor()) & ~rows.isnan()).any()):
                where, value = _first(self.source, shard, rows, bad, first)
                how = "noise is added to counts and pixel values only; do without dequantise"
                raise DataError(f"{where} is {value}, expected whole numbers: {how}")
        return x


def dequantised(source: Source, seed: int, part: int) -> Source:
    """Whole numbers with uniform noise of [0, 1), in float64; the noise is the same whenever a shard is read.

    Args:
        source: whole numbers.
        seed: of the noise.
        part: tells sources apart that have the same seed.

    Source: Theis, van den Oord & Bethge, "A note on the evaluation of generative models", arXiv:1511.01844.
    """

    return _Dequantised(source, seed, part)


class _Dequantised(Mapped):
    def __init__(self, source: Source, seed: int, part: int):
        super().__init__(source, torch.float64)
        self._seed, self._part = seed, part

    def function(self, x: Tensor, shard: int) -> Tensor:
        generator = generator_of(self._seed, "dequantise", self._part, shard)
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64, device="cpu")
        return noise.add_(x)


def scaled(source: Source, scaling: Scaling, dtype: torch.dtype) -> Source:
    """Rows as the model sees them: scaled in float64, then rounded to `dtype`.

    Reading raises:
        DataError: a value is too large for the dtype; file, row and column are named.
    """

    if scaling.trivial and source.dtype == dtype:
        return source
    return _Scaled(source, scaling, dtype)


class _Scaled(Mapped):
    def __init__(self, source: Source, scaling: Scaling, dtype: torch.dtype):
        super().__init__(source, dtype)
        self._scaling = scaling

    def function(self, x: Tensor, shard: int) -> Tensor:
        y = torch.empty(x.shape, dtype=self.dtype, device="cpu")
        for first, rows in pieces(x):
            result = y[first : first + len(rows)]
            result.copy_(rows if self._scaling.trivial else self._scaling.apply(rows))
            if bool((bad := result.isinf()).any()):
                where, value = _first(self.source, shard, rows, bad, first)
                name = str(self.dtype).removeprefix("torch.")
                how = "pass dtype=torch.float64 or another scale, or correct it"
                raise DataError(f"{where} is inf in {name} ({value} as stored), expected a finite value; {how}")
        return y


def _first(source: Source, shard: int, x: Tensor, bad: Tensor, first_row: int) -> tuple[str, float]:
    """Place and value of the first offender in a piece of a shard that begins with its row `first_row`."""
    row, *column = bad.nonzero()[0].tolist()
    name, first = source.place(shard)
    where = column_name(source, column)
    # "counted from 0" once, at the end, where the column is a number too.
    counted = "" if where.endswith("(counted from 0)") else " (counted from 0)"
    return f"{name}: row {first + first_row + row}{counted}, {where}", float(x[(row, *column)])


def _not_finite(source: Source, shard: int, x: Tensor, bad: Tensor, first_row: int) -> DataError:
    where, value = _first(source, shard, x, bad, first_row)
    dtype = str(x.dtype).removeprefix("torch.")
    how = "impute it or drop the row" + (", or pass missing='ignore'" if math.isnan(value) else "")
    return DataError(f"{where} is {value} in {dtype}, expected a finite value; {how}")
