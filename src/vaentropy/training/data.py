"""`TrainingData`: whatever the user has, as batches that a model can take."""

from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import DataLoader

from vaentropy._typing import Tensor
from vaentropy.data.batches import Batches
from vaentropy.data.given import Data, as_rows
from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.model import placement
from vaentropy.rows import as_tensor, require_finite, rows_of
from vaentropy.vae import VAE

__all__ = ["TrainingData"]

SOME = 512


class TrainingData:
    """Data of one part, on the model's device and in its dtype where they fit into memory.

    Args:
        model: that is to take them.
        data: a tensor, array or data frame (N, *data_shape); a `Source` or map-style torch Dataset, which is read shard
            by shard; or a DataLoader.
        name: of the argument, for messages.
        batch_size: rows per batch; a DataLoader has its own.
        seed: of the order of rows; a DataLoader has its own.
        missing: "ignore" allows NaN.

    Raises:
        DataError: data of another shape than the model's, or not finite.
        UsageError: a DataLoader that leaves rows out.
    """

    def __init__(
        self,
        model: VAE,
        data: Data,
        name: str,
        *,
        batch_size: int,
        seed: int,
        missing: str,
    ):
        self.device, self.dtype = placement(model)
        self.rows: Tensor | Source | DataLoader
        if isinstance(data, DataLoader):
            if getattr(data, "drop_last", False):
                raise UsageError(f"{name} is a DataLoader with drop_last=True, expected one that gives every row")
            self.rows = data
            # A look at one batch, so that a wrong shape is an error before any work is done.
            self._require_shape(model, tuple(self.some().shape), name)
            return
        rows = as_rows(data)
        if rows is None:
            # A list of lists, say; what is no array at all is refused here.
            rows = as_tensor(data)
        if isinstance(rows, Tensor):
            self._require_shape(model, tuple(rows.shape), name)
            rows = rows.to(device=self.device, dtype=self.dtype)
            require_finite(rows, name, missing=missing == "ignore")
        else:
            self._require_shape(model, (len(rows), *rows.data_shape), name)
        self.rows = rows
        self._batches = Batches(rows, batch_size, seed)

    @staticmethod
    def _require_shape(model: VAE, shape: tuple[int, ...], name: str) -> None:
        if shape[1:] != model.data_shape or not shape or shape[0] == 0:
            expected = ", ".join(map(str, model.data_shape))
            raise DataError(f"{name} of shape {shape} given, expected (N, {expected})")

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.rows) if isinstance(self.rows, DataLoader) else len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Batches of one epoch, from the one numbered `start` on."""
        if isinstance(self.rows, DataLoader):
            set_epoch = getattr(self.rows.sampler, "set_epoch", None)
            if set_epoch:
                set_epoch(number)
            batches: Iterable[Tensor] = islice(map(rows_of, self.rows), start, None)
        else:
            batches = self._batches.epoch(number, start)
        return (batch.to(device=self.device, dtype=self.dtype) for batch in batches)

    def some(self) -> Tensor:
        """A few rows."""
        if isinstance(self.rows, Tensor):
            return self.rows[:SOME]
        first = next(iter(self.rows), None)
        if first is None:
            raise DataError("no data points given, expected at least one")
        return rows_of(first)[:SOME].to(device=self.device, dtype=self.dtype)
