"""What training and evaluation receive: two disjoint sets of points and the words that say in which space they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaentropy.checks import require_instance, require_seed
from vaentropy.data.coding import Coding
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Part, Rows, Source, pieces
from vaentropy.data.stored import Missing
from vaentropy.errors import DataError
from vaentropy.rows import require_finite

__all__ = ["Dataset", "split"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Points to train on and points held out.

    A part is a tensor, or a source that is read in pieces where the data are too large for memory. The values of a
    tensor are checked here, those of a source by whoever makes it.

    Args:
        name: how results call it.
        train: (N, *data_shape), floating, finite, N >= 1.
        held_out: (M, *data_shape), same dtype; M may be 0.
        description: one line, what it is and how it is scaled, e.g. "pixel values divided by 16, in [0, 1]".
        train_labels, held_out_labels: one label per row, if known.
        truth: known values of the distribution the points came from, e.g. log-likelihoods in nats per data point.
        scaling: from the rows as stored to `train` and `held_out`.
        missing: "ignore" if NaN marks missing values, "error" if there are none.
        columns: names of the features of a table, () where they have none.
        coding: of the condition that the parts carry; None without one.

    Raises:
        DataError: a part has a wrong shape or dtype, or a value that is not finite (row and column are named).
    """

    name: str
    train: Tensor | Source
    held_out: Tensor | Source
    description: str
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    truth: Mapping[str, float] | None = None
    scaling: Scaling = field(default_factory=lambda: Scaling.by(1.0))
    missing: Missing = "error"
    columns: tuple[str, ...] = ()
    coding: Coding | None = None

    def __post_init__(self):
        for part, x, labels in (
            ("train", self.train, self.train_labels),
            ("held_out", self.held_out, self.held_out_labels),
        ):
            where = f"data set {self.name!r}, {part}"
            if not isinstance(x, Tensor | Source) or not x.dtype.is_floating_point:
                given = x.dtype if isinstance(x, Tensor | Source) else type(x).__name__
                raise DataError(f"{where}: got {given}, expected a floating tensor; use torch.as_tensor(x).float()")
            shape = tuple(x.shape) if isinstance(x, Tensor) else (len(x), *x.data_shape)
            if len(shape) < 2 or 0 in shape[1:]:
                raise DataError(f"{where}: got shape {shape}, expected (rows, features, ...); reshape it")
            if labels is not None and labels.shape[:1] != shape[:1]:
                given = f"labels of shape {tuple(labels.shape)} for {len(x)} rows"
                raise DataError(f"{where}: got {given}, expected one label per row; split both with the same arguments")
            for first, rows in pieces(x) if isinstance(x, Tensor) else ():
                if self.missing == "ignore":
                    rows = rows.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
                require_finite(rows, where, first_row=first)
        if len(self.train) == 0:
            raise DataError(f"data set {self.name!r}, train: got no rows, expected at least one; hold out fewer points")
        if self.data_shape != _data_shape(self.held_out) or self.train.dtype != self.held_out.dtype:
            train, held_out = (f"{_data_shape(x)} of {x.dtype}" for x in (self.train, self.held_out))
            raise DataError(f"data set {self.name!r}: train rows are {train}, held-out rows {held_out}; convert one")

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return _data_shape(self.train)

    def __repr__(self) -> str:
        dtype = str(self.train.dtype).removeprefix("torch.")
        sizes = f"train={len(self.train)}, held_out={len(self.held_out)}, data_shape={self.data_shape}, dtype={dtype}"
        return f"Dataset({self.name!r}, {sizes}, {self.description!r})"


def _data_shape(x: Tensor | Source) -> tuple[int, ...]:
    return tuple(x.shape[1:]) if isinstance(x, Tensor) else x.features_shape


def split(x: Tensor, held_out: float = 0.1, *, seed: int = 0, shard_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Split rows at random into (train, held-out), two disjoint copies in which rows keep their order.

    Which rows are held out depends on len(x), held_out, seed and shard_size only: labels, split with the same ones,
    stay aligned.

    Args:
        x: (N, ...).
        held_out: fraction in [0, 1), rounded to whole rows and to at least one; 0 gives an empty held-out part.
        seed: of a generator of its own; the global one is neither read nor moved.
        shard_size: rows that are split together, as those of a source's shards are; None splits all together.

    Raises:
        UsageError: the fraction is outside [0, 1) or leaves nothing to train on.
    """
    require_instance("x", x, Tensor, "a tensor (N, ...)")
    require_seed(seed)
    rows = Rows(x, shard_size=shard_size)
    train, chosen = (Part(rows, held_out, seed=seed, held_out=part) for part in (False, True))
    return _whole(train, x), _whole(chosen, x)


def _whole(part: Part, like: Tensor) -> Tensor:
    return torch.cat([like[:0], *part])
