"""`TrainingData`: whatever the user has, as batches that a model can take."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from vaentropy._typing import Tensor
from vaentropy.conditions import condition_width, packed, require_conditions, require_rows, row_shape
from vaentropy.data.batches import Batches
from vaentropy.data.conditioned import ConditionedRows
from vaentropy.data.given import Data, as_rows
from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.model import placement
from vaentropy.rows import as_tensor, require_finite
from vaentropy.training.distributed.batches import OwnRows, own_rows, share_of
from vaentropy.vae import VAE
from vaentropy.world import ALONE, World

__all__ = ["TrainingData", "none_if_empty"]

SOME = 512  # rows that a look at the data takes


def none_if_empty(data: Data | None) -> Data | None:
    """Held-out data; None where there are no rows, as where there are no data."""
    return None if data is None or (hasattr(data, "__len__") and len(data) == 0) else data  # type: ignore[arg-type]


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
        self._model, self._condition_width = model, condition_width(model)
        self.rows: Tensor | Source | DataLoader
        self._name, self._missing = name, missing == "ignore"
        # Whether values may be missing in a batch: seen once, where the data are in memory, and not at each step, which
        # would wait for the device.
        self.may_be_missing = self._missing
        if isinstance(data, DataLoader):
            self.rows = data
            self._check_loader(model, data)
            return
        require_conditions(model, data, name)
        rows = data.rows if isinstance(data, ConditionedRows) else as_rows(data)
        if rows is None:
            # A list of lists, say; what is no array at all is refused here.
            rows = as_tensor(data)
        if isinstance(rows, Tensor):
            self._require_shape(model, tuple(rows.shape), name)
            rows = rows.to(device=self.device, dtype=self.dtype)
            self._require_finite(rows)
            missing_values = rows.isnan() if self._missing else None
            self.may_be_missing = missing_values is not None and bool(missing_values.any())
            # A condition is never missing.
            features = slice(-self._condition_width if self._condition_width else None)
            if missing_values is not None and bool(missing_values[:, features].all()):
                raise DataError(f"{name} given of which every value is missing (NaN), expected some that are observed")
        else:
            self._require_shape(model, (len(rows), *rows.data_shape), name)
        self.rows = rows
        self._batches = Batches(rows, batch_size, seed)

    def _check_loader(self, model: VAE, loader: DataLoader) -> None:
        if getattr(loader, "drop_last", False):
            raise UsageError(f"{self._name} is a DataLoader with drop_last=True, expected one that gives every row")
        try:
            len(loader)
        except TypeError as error:
            raise UsageError(
                f"{self._name} is a DataLoader of unknown length, expected one that can be counted; load the data by "
                "vaentropy.data.load, which streams what is large"
            ) from error
        # A look at one batch, so that a wrong shape is an error before any work is done; one only, since it moves the
        # generators that the order depends on.
        first = next(iter(loader), None)
        if first is None:
            raise DataError(f"{self._name} is a DataLoader without batches, expected at least one")
        self._first = packed(model, first, self._name)
        self._require_shape(model, tuple(self._first.shape), self._name)

    def _require_finite(self, rows: Tensor, what: str | None = None) -> None:
        require_finite(rows, what or self._name, missing=self._missing)
        if self._condition_width and self._missing:
            require_finite(rows[:, -self._condition_width :], f"the condition of {self._name}")

    def _require_shuffled_finite(self, rows: Tensor) -> None:
        # Their numbers are not those that rows have in the data.
        self._require_finite(rows, f"shuffled rows of {self._name}")

    @staticmethod
    def _require_shape(model: VAE, shape: tuple[int, ...], name: str) -> None:
        require_rows(model, shape, name)
        if shape[1:] != row_shape(model) or not shape or shape[0] == 0:
            expected = ", ".join(map(str, model.data_shape))
            raise DataError(f"{name} of shape {shape} given, expected (N, {expected})")

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.rows) if isinstance(self.rows, DataLoader) else len(self._batches)

    @property
    def num_points(self) -> int:
        """Rows; of a DataLoader about so many."""
        return len(self) * len(self._first) if isinstance(self.rows, DataLoader) else len(self.rows)

    @property
    def from_any_batch(self) -> bool:
        """Whether an epoch can be entered at any batch; that of a DataLoader only at its beginning."""
        return not isinstance(self.rows, DataLoader)

    @property
    def generator(self) -> torch.Generator | None:
        """The generator of a DataLoader's own, on which its order depends."""
        return self.rows.generator if isinstance(self.rows, DataLoader) else None

    def describe(self) -> dict[str, str]:
        """What resuming, and each of several processes, has to find: sizes, dtype, kind of device, the first rows."""
        first = "" if isinstance(self.rows, DataLoader) else f", sha256 {_digest(self.some())}"
        device = "cpu" if self.device is None else self.device.type
        shape = tuple(self.some().shape[1:])
        about = {"data": f"{len(self)} batches, shape {shape}, {self.dtype}, on {device}{first}"}
        if isinstance(self.rows, Source):
            # The order of rows hangs on them.
            about["shards"] = f"{len(self.rows.shard_sizes)}, sha256 {_digest(torch.tensor(self.rows.shard_sizes))}"
        return about

    def epoch(self, number: int, start: int = 0, world: World = ALONE) -> Iterator[OwnRows]:
        """Batches of one epoch, from the one numbered `start` on; of a DataLoader only from the first.

        Args:
            number: of the epoch.
            start: number of a batch.
            world: processes that share each batch, of which this one is.

        Raises:
            VaentropyError: rows cannot be read, or are not finite; in all processes.
        """
        if world.alone:
            for rows in self._whole(number, start):
                yield OwnRows(rows, share_of(world, len(rows)), len(rows))
            return
        for own in own_rows(self._batches, world, number, start, self._require_shuffled_finite):
            yield own._replace(rows=own.rows.to(device=self.device, dtype=self.dtype))

    def _whole(self, number: int, start: int) -> Iterator[Tensor]:
        if isinstance(self.rows, Tensor):
            yield from self._batches.epoch(number, start)
            return
        if isinstance(self.rows, DataLoader):
            assert start == 0
            set_epoch = getattr(self.rows.sampler, "set_epoch", None)
            if set_epoch:
                set_epoch(number)
            batches: Iterable[Tensor] = (packed(self._model, batch, self._name) for batch in self.rows)
        else:
            batches = self._batches.epoch(number, start)
        for batch in batches:
            self._require_shuffled_finite(batch)
            yield batch.to(device=self.device, dtype=self.dtype)

    def some(self) -> Tensor:
        """A few rows."""
        if isinstance(self.rows, Tensor):
            return self.rows[:SOME]
        first = self._first if isinstance(self.rows, DataLoader) else next(iter(self.rows))
        return first[:SOME].to(device=self.device, dtype=self.dtype)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()[:16]
