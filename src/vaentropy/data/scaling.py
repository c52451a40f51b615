"""Units of the data: the affine map between data as stored and as the model sees them, fitted on the training part."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.moments import Moment

__all__ = ["Scale", "Scaling", "Statistics"]

Scale = Literal["none", "standard", "min_max"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass over a source tells of each feature, in float64; missing values (NaN) do not count.

    Attributes:
        count: values, data_shape.
        mean, variance: of the values, data_shape; the variance has 1/N.
        minimum, maximum: of the values, data_shape.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor
    minimum: Tensor
    maximum: Tensor

    @classmethod
    def of(cls, source: Source) -> "Statistics":
        """One pass, one shard in memory at a time.

        Raises:
            DataError: a feature has no value at all, or there are no rows.
        """
        total: Moment | None = None
        low = torch.full(source.data_shape, torch.inf, dtype=torch.float64)
        high = -low
        for shard in source:
            x = shard.double()
            seen = ~x.isnan()
            part = Moment.of(x, seen)
            total = part if total is None else total.merge(part)
            low = torch.minimum(low, torch.where(seen, x, torch.inf).amin(0))
            high = torch.maximum(high, torch.where(seen, x, -torch.inf).amax(0))
        if total is None:
            raise DataError(f"{source.name}: got no rows, expected at least one")
        if bool((total.weight == 0).any()):
            column = (total.weight == 0).nonzero()[0].tolist()
            raise DataError(
                f"{source.name}: column {column[0] if len(column) == 1 else tuple(column)} (counted from 0) has no "
                "value in any row to train on; leave it out with exclude"
            )
        return cls(total.weight, total.mean, total.variance, low, high)


@dataclass(frozen=True, eq=False)
class Scaling:
    """x = shift + scale · y: x as stored, y as the model sees it.

    Attributes:
        shift, scale: data_shape or (), float64; scale > 0.
        dequantised: x were whole numbers and got uniform noise of [0, 1), so that bits per dimension can be compared.
    """

    shift: Tensor
    scale: Tensor
    dequantised: bool = False

    @classmethod
    def by(cls, scale: float, *, dequantised: bool = False) -> "Scaling":
        """x = scale · y with one number for all features."""
        one = torch.tensor(scale, dtype=torch.float64)
        return cls(torch.zeros_like(one), one, dequantised)

    @classmethod
    def fit(cls, kind: Scale, statistics: Statistics | None, *, dequantised: bool = False) -> "Scaling":
        """Scaling of each feature by what the training part tells.

        Args:
            kind: "none"; "standard", mean 0 and variance 1; "min_max", from 0 to 1. A constant feature keeps its scale.
            statistics: of the training part; not needed for "none".
            dequantised: see `Scaling`.

        Raises:
            UsageError: an unknown kind.
        """
        if kind not in get_args(Scale):
            raise UsageError(f"scale={kind!r} given, expected one of {', '.join(get_args(Scale))}")
        if kind == "none":
            return cls.by(1.0, dequantised=dequantised)
        assert statistics is not None
        if kind == "standard":
            shift, scale = statistics.mean, statistics.variance.sqrt()
        else:
            shift, scale = statistics.minimum, statistics.maximum - statistics.minimum
        # Rounding leaves a constant feature a standard deviation of about 1e-16 of its values.
        constant = statistics.maximum == statistics.minimum
        return cls(shift, torch.where(constant, 1.0, scale), dequantised)

    def apply(self, x: Tensor) -> Tensor:
        """y = (x - shift)/scale of x (N, *data_shape), in float64."""
        return (x.double() - self.shift) / self.scale

    def undo(self, y: Tensor) -> Tensor:
        """x = shift + scale · y of y (N, *data_shape), in float64."""
        return self.shift + self.scale * y.double()

    @property
    def log_jacobian(self) -> Tensor:
        """log |dy/dx| = -log scale per feature, () or data_shape: log p(x) = log p(y) + its sum over the features."""
        return -self.scale.log()

    @property
    def trivial(self) -> bool:
        """Whether the model sees the data as they are stored."""
        return bool((self.shift == 0).all() and (self.scale == 1).all())
