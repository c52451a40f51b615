"""What a user may give as data in memory."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vaentropy.data.formats.torch_dataset import TorchItems
from vaentropy.data.source import Source
from vaentropy.rows import as_tensor, frame_columns

__all__ = ["Data", "as_rows"]

Data = Tensor | np.ndarray | Source | Dataset | Iterable[Any]  # data frames and DataLoaders among the last


def as_rows(data: Any) -> Tensor | Source | None:
    """Data as rows: a tensor, array or data frame as a tensor, a map-style torch Dataset as a source.

    Returns:
        (N, *data_shape) of its own dtype, or a source; None for anything else, such as an iterable of batches.

    Raises:
        DataError: what looks like rows holds no numbers.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return TorchItems(data)
    if isinstance(data, Tensor | np.ndarray) or frame_columns(data) is not None:
        return as_tensor(data)
    return None
