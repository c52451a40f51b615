"""`given`: data that carry the condition that each of their points comes with."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vaentropy.data.given import as_rows
from vaentropy.data.source import Derived, Parts, Rows, Source, copies, rows_per_shard
from vaentropy.errors import DataError, UsageError
from vaentropy.rows import as_tensor, frame_columns, require_finite

__all__ = ["Conditioned", "ConditionedRows", "as_condition", "given", "side_by_side"]


class Conditioned(Derived):
    """Rows (N, D + k): D numbers of each data point, flattened, and behind them the k of its condition.

    Args:
        source: data points.
        condition: c (N, k) of all of them, finite.
    """

    def __init__(self, source: Source, condition: Tensor):
        super().__init__(source)
        self._features_shape, self.condition_width = source.data_shape, condition.shape[1]
        self.data_shape = (math.prod(source.data_shape) + self.condition_width,)
        self.dtype = _dtype(source.dtype)
        self._parts: Parts = condition.split(list(source.shard_sizes))

    def read(self, shard: int) -> Tensor:
        """The source's rows, each with its condition."""
        return side_by_side(self.source.read(shard), self._parts[shard])

    def place(self, shard: int) -> tuple[str, int]:
        """Where the source's shard lies."""
        return self.source.place(shard)

    def only(self, shards: range) -> Source:
        """The same of the source's, and of the conditions."""
        part = cast(Conditioned, super().only(shards))
        part._parts = copies(self._parts, shards)
        return part


class ConditionedRows(Rows):
    """Rows (N, D + k) in memory, as of a `Conditioned`.

    Args:
        rows: (N, D + k).
        features_shape: of one data point, D numbers in all.
        name: how errors call it.
        columns: names of the features.
    """

    def __init__(
        self, rows: Tensor, features_shape: tuple[int, ...], name: str = "the data", columns: Sequence[str] = ()
    ):
        super().__init__(rows, name, columns=columns)
        self._features_shape, self.condition_width = features_shape, rows.shape[1] - math.prod(features_shape)

    @property
    def rows(self) -> Tensor:
        """All of them."""
        return self._shards[0]

    def cut(self) -> Source:
        """The same rows in several shards."""
        cut = Rows(self.rows, self.name, rows_per_shard(self.data_shape), self.columns)
        cut._features_shape, cut.condition_width = self.features_shape, self.condition_width
        return cut

    def like(self, rows: Tensor) -> "ConditionedRows":
        """Others of the same kind."""
        return ConditionedRows(rows, self.features_shape, self.name, self.columns)


def given(x: Any, condition: Any) -> Source:
    """Data x with a condition c for each point, for a conditional model: whatever takes data takes these.

    Args:
        x: (N, *data_shape), a tensor, array or data frame; a `Source` or map-style torch Dataset, whose condition is in
            memory all the same.
        condition: (N, k), finite numbers; (N,) is one column. `vaentropy.data.one_hot` makes it of labels. Covariates
            are taken as they are: scale them to about 1.

    Returns:
        A `Source` of rows with their condition.

    Raises:
        DataError: something else, or not as many conditions as data points.
    """
    rows, c = as_rows(x), as_condition(condition)
    rows = as_tensor(x) if rows is None else rows
    if isinstance(rows, Source) and rows.condition_width:
        raise UsageError("data given that carry a condition already, expected data without; put all of it into one")
    if isinstance(rows, Tensor) and rows.ndim < 2:
        raise DataError(f"data of shape {tuple(rows.shape)} given with a condition, expected (N, *data_shape)")
    if len(rows) != len(c):
        raise DataError(f"{len(c)} conditions given for {len(rows)} data points, expected one for each")
    if isinstance(rows, Source):
        return Conditioned(rows, c)
    columns = [name for name, _ in frame_columns(x) or ()]
    return ConditionedRows(side_by_side(rows, c), tuple(rows.shape[1:]), columns=columns)


def as_condition(condition: Any) -> Tensor:
    """A condition as a tensor of floating numbers (N, k), checked; (N,) is one column.

    Raises:
        DataError: it is something else, or not finite.
    """
    how = "one_hot(labels) makes them of labels"
    try:
        c = as_tensor(condition)
    except DataError as error:
        raise DataError(f"for the condition {error}; {how}") from error
    c = c.unsqueeze(1) if c.ndim == 1 else c
    if c.ndim != 2 or c.shape[1] == 0:
        raise DataError(f"a condition of shape {tuple(c.shape)} given, expected one row of numbers per point; {how}")
    c = c if c.is_floating_point() else c.double()
    require_finite(c, "the condition")
    return c


def side_by_side(x: Tensor, c: Tensor) -> Tensor:
    """Rows (N, D + k) of x (N, *shape) and c (N, k)."""
    dtype = _dtype(x.dtype)
    return torch.cat([x.flatten(1).to(dtype), c.to(device=x.device, dtype=dtype)], 1)


def _dtype(of_features: torch.dtype) -> torch.dtype:
    """Of rows with a condition: that of the features; float64 where these are whole numbers."""
    return torch.promote_types(of_features, torch.float32) if of_features.is_floating_point else torch.float64
