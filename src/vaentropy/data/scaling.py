"""Units of the data: the affine map between data as stored and as the model sees them, fitted on the training part."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vaentropy.data.source import Source, column_name, pieces
from vaentropy.errors import DataError, UsageError
from vaentropy.moments import Moment

__all__ = ["Scale", "Scaling", "Statistics", "Totals"]

Scale = Literal["none", "standard", "min_max"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass over rows tells of each feature, in float64; missing values (NaN) do not count.

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
        total = Totals(source.data_shape)
        for shard in source:
            total.add(shard)
        return total.read(source)


class Totals:
    """Statistics in the making.

    Args:
        data_shape: shape of one data point.
    """

    def __init__(self, data_shape: tuple[int, ...]):
        self._moment: Moment | None = None
        self.minimum = torch.full(data_shape, torch.inf, dtype=torch.float64, device="cpu")
        self.maximum = -self.minimum

    def add(self, shard: Tensor) -> None:
        """Take in rows (N, *data_shape)."""
        for _, rows in pieces(shard):
            self._add(rows.double())

    def _add(self, x: Tensor) -> None:
        missing = x.isnan()
        if bool(missing.any()):
            part = Moment.of(x, ~missing)
            low, high = torch.where(missing, torch.inf, x).amin(0), torch.where(missing, -torch.inf, x).amax(0)
        else:
            part, low, high = Moment.of(x), x.amin(0), x.amax(0)
        self._moment = part if self._moment is None else self._moment.merge(part)
        self.minimum = torch.minimum(self.minimum, low.cpu())
        self.maximum = torch.maximum(self.maximum, high.cpu())

    def read(self, source: Source) -> Statistics:
        """The statistics of all rows so far.

        Raises:
            DataError: naming the source: a feature has no value at all, or there are no rows.
        """
        moment = self._moment
        if moment is None:
            raise DataError(f"{source.name}: got no rows, expected at least one")
        if bool((moment.weight == 0).any()):
            column = column_name(source, (moment.weight == 0).nonzero()[0].tolist())
            raise DataError(f"{source.name}: {column} has no value in any row to train on; leave it out with exclude")
        return Statistics(moment.weight, moment.mean, moment.variance, self.minimum, self.maximum)


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
        one = torch.tensor(scale, dtype=torch.float64, device="cpu")
        return cls(torch.zeros_like(one), one, dequantised)

    @classmethod
    def fit(cls, kind: Scale, statistics: Statistics | None, *, dequantised: bool = False) -> "Scaling":
        """Scaling of each feature by what the training part tells.

        Args:
            kind: "none"; "standard", mean 0 and variance 1; "min_max", from 0 to 1. A constant feature is only
                shifted to 0.
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
        # Rounding leaves a constant feature a standard deviation of about 1e-16 of its values; that of values below
        # 1e-154 is too small for float64.
        constant = (statistics.maximum == statistics.minimum) | (scale == 0)
        return cls(shift, torch.where(constant, 1.0, scale), dequantised)

    def apply(self, x: Tensor) -> Tensor:
        """y = (x - shift)/scale of x (N, *data_shape), in float64."""
        return (x.double() - self.shift.to(x.device)).div_(self.scale.to(x.device))

    def undo(self, y: Tensor) -> Tensor:
        """x = shift + scale · y of y (N, *data_shape), in float64."""
        return self.shift.to(y.device) + self.scale.to(y.device) * y.double()

    @property
    def log_jacobian(self) -> Tensor:
        """log |dy/dx| = -log scale per feature, () or data_shape: log p(x) = log p(y) + its sum over the features."""
        return -self.scale.log()

    @property
    def trivial(self) -> bool:
        """Whether the model sees the data as they are stored."""
        return bool((self.shift == 0).all() and (self.scale == 1).all())
