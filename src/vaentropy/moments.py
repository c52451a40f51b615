"""Sums that merge exactly: of batches, of processes, of machines.

A `Moment` holds the weighted mean of one quantity over data points and what its errors need, in float64 on the CPU.
Parts merge by Chan's formula, which does not lose digits as a difference of raw sums of squares would.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch

from vaentropy._typing import Float, Tensor
from vaentropy.distributions import to_float64
from vaentropy.errors import DataError
from vaentropy.rows import as_tensor, require_finite

__all__ = ["DataMoments", "Moment", "merge"]

# A combination of standardised features whose variance is below this, relative to the largest, is constant.
SAME = 1e-10


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0 (an element that has no data yet)."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


@dataclass(frozen=True)
class Moment:
    """Weighted mean over data points of one quantity of shape `shape`, with what its variance and errors need.

    All fields have the quantity's shape, float64, CPU. w is the weight of a data point (of an element, where values are
    missing), x its value, v the variance of its Monte Carlo noise.

    Attributes:
        weight: Σ w.
        weight_squared: Σ w².
        mean: Σ w x / Σ w.
        spread: Σ w (x - mean)².
        lean: Σ w² (x - mean); 0 for equal weights.
        spread_squared: Σ w² (x - mean)².
        noise: Σ w² v, or None where the noise is shared between points, so that it is unknown.
    """

    weight: Tensor
    weight_squared: Tensor
    mean: Tensor
    spread: Tensor
    lean: Tensor
    spread_squared: Tensor
    noise: Tensor | None

    @classmethod
    def of(cls, values: Tensor, weights: Tensor | None = None, noise: Tensor | None = None) -> "Moment":
        """The moment of one batch.

        Args:
            values: (B, *shape).
            weights: (B,) per data point, or (B, *shape) per element (0 marks a missing value); None means 1.
            noise: (B, *shape), variance of the Monte Carlo noise of each value; None where it is unknown.
        """
        values = to_float64(values)
        if weights is None:
            return cls._of_equal_weights(values, noise)
        w = to_float64(weights).to(values.device)
        w = w.reshape(*w.shape, *[1] * (values.ndim - w.ndim)).expand(values.shape)
        # A missing value may be NaN; 0 · NaN would spread it.
        values = torch.where(w == 0, 0.0, values)
        weight = w.sum(0)
        mean = _ratio((w * values).sum(0), weight)
        deviation = torch.where(w == 0, 0.0, values - mean)
        weighted = w * deviation
        fields = [weight, w.square().sum(0), mean, (weighted * deviation).sum(0)]
        fields += [(w * weighted).sum(0), weighted.square().sum(0)]
        if noise is not None:
            fields.append((w.square() * torch.where(w == 0, 0.0, to_float64(noise))).sum(0))
        on_cpu = [field.cpu() for field in fields]
        return cls(*on_cpu[:6], noise=on_cpu[6] if noise is not None else None)

    @classmethod
    def _of_equal_weights(cls, values: Tensor, noise: Tensor | None) -> "Moment":
        count = torch.full(values.shape[1:], float(len(values)), dtype=torch.float64)
        total_noise = None if noise is None else to_float64(noise).sum(0).cpu()
        if len(values) > 1 and values.stride(0) == 0:
            # One row that was expanded, such as a variance of the model: its copies need not be gone through.
            zeros = torch.zeros_like(count)
            return cls(count, count, values[0].cpu(), zeros, zeros, zeros, total_noise)
        mean = values.mean(0)
        spread = (values - mean).square_().sum(0).cpu()
        return cls(count, count, mean.cpu(), spread, torch.zeros_like(spread), spread, total_noise)

    def merge(self, *others: "Moment") -> "Moment":
        """The moment of all parts together."""
        if not others:
            return self
        parts = (self, *others)
        weight, weight_squared, mean, spread, lean, spread_squared = (
            torch.stack([getattr(part, field.name) for part in parts]) for field in fields(self)[:6]
        )
        total = weight.sum(0)
        # Where all are -inf (data of probability 0), so is the mean of all.
        delta = torch.where(mean == self.mean, 0.0, mean - self.mean)
        shift = (delta * _ratio(weight, total)).sum(0)
        middle = torch.where(torch.isinf(delta).any(0), mean.sum(0), self.mean + shift)
        # x - middle is x - mean + apart.
        apart = delta - shift
        noises = [part.noise for part in parts if part.noise is not None]
        return Moment(
            total,
            weight_squared.sum(0),
            middle,
            (spread + weight * apart.square()).sum(0),
            (lean + weight_squared * apart).sum(0),
            (spread_squared + 2 * apart * lean + weight_squared * apart.square()).sum(0),
            torch.stack(noises).sum(0) if len(noises) == len(parts) else None,
        )

    def affine(self, slope: Tensor | float, shift: Tensor | float) -> "Moment":
        """The moment of slope · x + shift; both numbers, or of the quantity's shape."""
        square = slope * slope
        return Moment(
            self.weight,
            self.weight_squared,
            self.mean * slope + shift,
            self.spread * square,
            self.lean * slope,
            self.spread_squared * square,
            None if self.noise is None else self.noise * square,
        )

    def with_zeros(self, points: "Moment") -> "Moment":
        """The moment over all data points, to which each missing value contributes 0.

        Args:
            points: the moment of any one number that every data point has.
        """
        zeros = torch.zeros_like(self.mean)
        # Sums of the same weights in another order differ by rounding.
        weight, weight_squared = (
            (of_all - of_some).clamp(min=0)
            for of_all, of_some in ((points.weight, self.weight), (points.weight_squared, self.weight_squared))
        )
        noise = None if self.noise is None else zeros
        return self.merge(Moment(weight, weight_squared, zeros, zeros, zeros, zeros, noise))

    @property
    def variance(self) -> Tensor:
        """Weighted variance of the values around their mean."""
        return _ratio(self.spread, self.weight)

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean for the population that the points came from; NaN for fewer than two points.

        √(Σ w² (x - mean)²) / Σ w, times √(n / (n - 1)) with n = (Σ w)² / Σ w²: sd / √N for equal weights.
        """
        effective = _ratio(self.weight.square(), self.weight_squared)
        # Rounding can leave n a hair above 1 for a single weighted point.
        several = effective > 1 + 1e-9
        correction = torch.where(several, effective / torch.where(several, effective - 1, 1.0), math.nan)
        return (correction * self.spread_squared.clamp(min=0)).sqrt() / self.weight

    @property
    def mc_stderr(self) -> Tensor | None:
        """Standard error of the mean from Monte Carlo noise alone, these data held fixed; None where it is unknown."""
        return None if self.noise is None else self.noise.sqrt() / self.weight


def merge(parts: Iterable[Mapping[str, Moment]]) -> dict[str, Moment]:
    """Named moments of several parts of the data as those of the whole; every part must have the same names."""
    first, *others = parts
    for other in others:
        if other.keys() != first.keys():
            raise ValueError(f"parts with different terms cannot be merged: {sorted(first.keys() ^ other.keys())}")
    return {name: moment.merge(*(other[name] for other in others)) for name, moment in first.items()}


@dataclass(frozen=True)
class DataMoments:
    """Mean and covariance of vectors, which merge exactly; all that the linear VAE needs to know of the data.

    Attributes:
        mean: (D,).
        covariance: (D, D), with 1/N.
        num_points: N, or the sum of the weights.
    """

    mean: Float[Tensor, "D"]
    covariance: Float[Tensor, "D D"]
    num_points: int | float

    @classmethod
    def of(cls, x: Tensor | np.ndarray, weights: Tensor | None = None) -> "DataMoments":
        """The moments, in float64 on the device of x, of data x (N, D) of any real dtype; of large data, `merge` parts.

        Args:
            x: (N, D).
            weights: (N,), at least 0 and not all 0; None means 1.

        Raises:
            DataError: x is not a matrix with at least one row and column, or holds a number that is not finite.
        """
        x = as_tensor(x)
        if x.ndim != 2 or x.numel() == 0:
            raise DataError(f"data of shape {tuple(x.shape)} given, expected (N, D), neither 0; flatten images first")
        require_finite(x, "the data")
        x = to_float64(x)
        if weights is None:
            mean = x.mean(0)
            centred = x - mean
            return cls(mean, centred.T @ centred / len(x), len(x))
        total = float(weights.sum())
        share = weights.to(x) / total
        mean = share @ x
        centred = x - mean
        return cls(mean, centred.T @ (centred * share.unsqueeze(-1)), total)

    def given_last(self, width: int) -> tuple["DataMoments", int]:
        """The moments of what a linear regression on the last features leaves of the others, and its rank.

        Args:
            width: how many features to regress on; without any the moments are returned as they are.
        """
        if not width:
            return self, 0
        scale = self.covariance.diagonal()[-width:].clamp(min=0).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        of_x, between = self.covariance[:-width, :-width], self.covariance[:-width, -width:] / scale
        predictors = self.covariance[-width:, -width:] / torch.outer(scale, scale)
        # One-hot labels sum to 1: one direction of them does not vary, but for rounding.
        explained = between @ torch.linalg.pinv(predictors, rtol=SAME, hermitian=True) @ between.T
        rank = int(torch.linalg.matrix_rank(predictors, rtol=SAME, hermitian=True))
        return DataMoments(torch.zeros_like(self.mean[:-width]), of_x - explained, self.num_points), rank

    def merge(self, other: "DataMoments") -> "DataMoments":
        """The moments of both parts of the data together (Chan's formula)."""
        total = self.num_points + other.num_points
        a, b = self.num_points / total, other.num_points / total
        delta = other.mean - self.mean
        covariance = a * self.covariance + b * other.covariance + a * b * torch.outer(delta, delta)
        return DataMoments(self.mean + b * delta, covariance, total)

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"]]:
        """Eigenvalues (D,) of the covariance, the largest first, and its eigenvectors in columns (D, D), float64."""
        values, vectors = torch.linalg.eigh(to_float64(self.covariance))
        # Rounding leaves eigenvalues that are 0 on either side of it.
        return values.flip(0).clamp(min=0), vectors.flip(1)

    @cached_property
    def factor(self) -> Float[Tensor, "D D"]:
        """A with A Aᵀ = covariance, (D, D), float64."""
        values, vectors = self.eigen
        return vectors * values.sqrt()
