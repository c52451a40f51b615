"""Map-style datasets of torch as a source."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from vaentropy.data.source import Rows, Source, rows_per_shard
from vaentropy.errors import DataError
from vaentropy.rows import as_tensor

__all__ = ["TorchItems"]


class TorchItems(Source):
    """Items of a map-style torch Dataset: tensors or arrays of one shape, or tuples that begin with one.

    What follows in a tuple, such as a label, is not used. An item must be the same whenever it is read.

    Args:
        dataset: has a length.

    Raises:
        DataError: no length or no items, or an item that is no array of numbers or has another shape than the first.
    """

    def __init__(self, dataset: TorchDataset):
        self.dataset, self.name = dataset, f"torch dataset {type(dataset).__name__}"
        try:
            total = len(dataset)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            raise DataError(f"{self.name}: has no length, expected a map-style dataset; add __len__ to it") from error
        if total == 0:
            raise DataError(f"{self.name}: got no items, expected at least one; pass another")
        first = self._item(0)
        # A number per item is one feature.
        self._shape, self.dtype = first.shape, first.dtype
        self.data_shape = tuple(first.shape) or (1,)
        if 0 in self.data_shape:
            raise DataError(f"{self.name}: item 0 has shape {self.data_shape}, expected none of the sizes to be 0")
        step = rows_per_shard(self.data_shape)
        self._starts = range(0, total, step)
        self.shard_sizes = [min(step, total - start) for start in self._starts]

    def read(self, shard: int) -> Tensor:
        """One shard, item by item."""
        start = self._starts[shard]
        x = torch.empty(self.shard_sizes[shard], *self.data_shape, dtype=self.dtype, device="cpu")
        for row in range(len(x)):
            item = self._item(start + row)
            if item.shape != self._shape or item.dtype != self.dtype:
                given = f"item {start + row} is {tuple(item.shape)} of {item.dtype}"
                how = f"expected {tuple(self._shape)} of {self.dtype} as item 0; convert it"
                raise DataError(f"{self.name}: {given}, {how}")
            x[row] = item.reshape(self.data_shape)
        return x

    def only(self, shards: range) -> Source:
        """These shards, read here: a dataset in memory would be sent as a whole, and others may not be sent at all."""
        part = Rows(torch.empty(0, *self.data_shape, dtype=self.dtype, device="cpu"), self.name)
        part._shards = {shard: self.read(shard) for shard in shards}
        part.shard_sizes = self._narrowed(shards).shard_sizes
        return part

    def _item(self, number: int) -> Tensor:
        item: Any = self.dataset[number]
        try:
            return as_tensor(item[0] if isinstance(item, tuple | list) and len(item) else item)
        except DataError as error:
            raise DataError(f"{self.name}: item {number}: {error}") from error
