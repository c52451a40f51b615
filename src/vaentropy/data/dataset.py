"""What training and evaluation receive: two disjoint sets of points and the words that say in which space they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaentropy.errors import DataError, UsageError
from vaentropy.rows import require_finite

__all__ = ["Dataset", "split"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Points to train on and points held out.

    Args:
        name: how results call it.
        train: (N, *data_shape), floating, finite, N >= 1.
        held_out: (M, *data_shape), same dtype; M may be 0.
        description: one line, what it is and how it is scaled, e.g. "pixel values divided by 16, in [0, 1]".
        train_labels, held_out_labels: one label per row, if known.
        truth: known values of the distribution the points came from, e.g. log-likelihoods in nats per data point.

    Raises:
        DataError: a part has a wrong shape or dtype, or a value that is not finite (row and column are named).
    """

    name: str
    train: Tensor
    held_out: Tensor
    description: str
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    truth: Mapping[str, float] | None = None

    def __post_init__(self):
        for part, x, labels in (
            ("train", self.train, self.train_labels),
            ("held_out", self.held_out, self.held_out_labels),
        ):
            where = f"data set {self.name!r}, {part}"
            if not isinstance(x, Tensor) or not x.is_floating_point():
                given = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise DataError(f"{where}: got {given}, expected a floating tensor; use torch.as_tensor(x).float()")
            if x.ndim < 2 or 0 in x.shape[1:]:
                raise DataError(f"{where}: got shape {tuple(x.shape)}, expected (rows, features, ...); reshape it")
            if labels is not None and labels.shape[:1] != x.shape[:1]:
                given = f"labels of shape {tuple(labels.shape)} for {len(x)} rows"
                raise DataError(f"{where}: got {given}, expected one label per row; split both with the same arguments")
            require_finite(x, where)
        if len(self.train) == 0:
            raise DataError(f"data set {self.name!r}, train: got no rows, expected at least one; hold out fewer points")
        if self.train.shape[1:] != self.held_out.shape[1:] or self.train.dtype != self.held_out.dtype:
            train, held_out = (f"{tuple(x.shape[1:])} of {x.dtype}" for x in (self.train, self.held_out))
            raise DataError(f"data set {self.name!r}: train rows are {train}, held-out rows {held_out}; convert one")

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return tuple(self.train.shape[1:])

    def __repr__(self) -> str:
        dtype = str(self.train.dtype).removeprefix("torch.")
        sizes = f"train={len(self.train)}, held_out={len(self.held_out)}, data_shape={self.data_shape}, dtype={dtype}"
        return f"Dataset({self.name!r}, {sizes}, {self.description!r})"


def split(x: Tensor, held_out: float = 0.1, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split rows at random into (train, held-out), two disjoint copies in which rows keep their order.

    Which rows are held out depends on len(x), held_out and seed only: labels, split with the same ones, stay aligned.

    Args:
        x: (N, ...).
        held_out: fraction in [0, 1), rounded to whole rows and to at least one; 0 gives an empty held-out part.
        seed: of a generator of its own; the global one is neither read nor moved.

    Raises:
        UsageError: the fraction is outside [0, 1) or leaves nothing to train on.
    """
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is {held_out!r}, expected a fraction in [0, 1); pass e.g. 0.1, or 0 for none")
    count = max(1, round(held_out * len(x))) if held_out > 0 else 0
    if count >= len(x):
        raise UsageError(f"held_out={held_out!r} of {len(x)} rows leaves none to train on; pass more rows, or 0")
    # The device is named because a default device set by the user does not fit a generator of the CPU.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed), device="cpu")
    train, chosen = order[count:].sort().values.to(x.device), order[:count].sort().values.to(x.device)
    return x[train], x[chosen]
