"""The normal distribution by its log-variance, and what a model's distributions are made of.

All formulas are in nats.
"""

import math
from collections.abc import Sequence

import torch
from torch import Size
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    constraints,
    register_kl,
)

from vaentropy._typing import Tensor
from vaentropy.errors import ModelError

__all__ = [
    "DiagonalNormal",
    "LogRatePoisson",
    "as_batch",
    "as_prior",
    "diagonal_parameters",
    "full_parameters",
    "normal_cross_log_prob",
    "normal_entropy",
    "normal_kl",
    "normal_log_prob",
    "to_float64",
]

LOG_2PI = math.log(2 * math.pi)


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64; on the CPU where its own device has no float64 (Apple's mps)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def normal_log_prob(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, exp(log_variance)), element by element, nats; the arguments broadcast."""
    return -0.5 * (LOG_2PI + log_variance + (x - mean).square() * torch.exp(-log_variance))


def normal_entropy(log_variance: Tensor) -> Tensor:
    """½ log(2πe σ²), element by element, nats."""
    return 0.5 * (LOG_2PI + 1 + log_variance)


def normal_cross_log_prob(mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor) -> Tensor:
    """E[log N(z; m0, α²)] for z ~ N(mean, τ²), element by element, nats; the arguments broadcast."""
    second_moment = (mean - prior_mean).square() + log_variance.exp()
    return -0.5 * (LOG_2PI + prior_log_variance + second_moment * torch.exp(-prior_log_variance))


def normal_kl(mean: Tensor, log_variance: Tensor, prior_mean: Tensor | None, prior_log_variance: Tensor) -> Tensor:
    """KL(N(mean, τ²) ‖ N(m0, α²)), element by element, nats; the arguments broadcast, and m0 = 0 where it is None."""
    distance = mean if prior_mean is None else mean - prior_mean
    second_moment = distance.square() + log_variance.exp()
    return 0.5 * (second_moment * torch.exp(-prior_log_variance) + (prior_log_variance - log_variance - 1))


class DiagonalNormal(Distribution):
    """N(mean, diag(exp(log_variance))) that carries its log-variance, so that nothing goes through exp and log.

    Args:
        mean: (*batch, *event).
        log_variance: log of the variance (not of the standard deviation); broadcasts to `mean`; may have a wider dtype.
        event_dim: how many of the last axes are the event; by default all but the first.

    Raises:
        ModelError: a log-variance that does not broadcast to the mean.
    """

    has_rsample = True

    def __init__(
        self, mean: Tensor, log_variance: Tensor, *, event_dim: int | None = None, validate_args: bool | None = None
    ):
        event_dim = mean.ndim - 1 if event_dim is None else event_dim
        split = mean.ndim - event_dim
        # From the last axis on: each is that of the mean, or 1.
        axes = zip(reversed(log_variance.shape), reversed(mean.shape), strict=False)
        if log_variance.ndim > mean.ndim or any(own not in (1, of_mean) for own, of_mean in axes):
            given = f"log-variance of shape {tuple(log_variance.shape)} for a mean of shape {tuple(mean.shape)}"
            raise ModelError(f"{given}, expected one that broadcasts to the mean's")
        self.loc = mean
        # Not expanded: a σ² that all elements share stays one number in what is computed from it.
        self.log_variance = log_variance
        super().__init__(mean.shape[:split], mean.shape[split:], validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Mean and log-variance are any real numbers."""
        return {"loc": constraints.real, "log_variance": constraints.real}

    @property
    def support(self) -> constraints.Constraint:
        """All real arrays of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """(*batch, *event)."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """exp(log_variance), shape of `mean`."""
        return self.log_variance.exp().expand(self.loc.shape)

    @property
    def stddev(self) -> Tensor:
        """exp(½ log_variance), shape of `mean`."""
        return torch.exp(0.5 * self.log_variance).expand(self.loc.shape)

    def transform(self, noise: Tensor) -> Tensor:
        """mean + stddev · noise: standard normal noise becomes a draw; `noise` broadcasts to `mean`."""
        return self.loc + self.stddev.to(self.loc.dtype) * noise

    def rsample(self, sample_shape: Size | Sequence[int] = ()) -> Tensor:
        """Reparametrised draws (*sample_shape, *batch, *event) from the global generator."""
        shape = self._extended_shape(Size(sample_shape))
        return self.transform(torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device))

    def _sum_event(self, x: Tensor) -> Tensor:
        return x.flatten(x.ndim - len(self.event_shape)).sum(-1) if self.event_shape else x

    def log_prob(self, value: Tensor) -> Tensor:
        """log-density of `value` (..., *event), summed over the event, nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._sum_event(normal_log_prob(value, self.mean, self.log_variance))

    def entropy(self) -> Tensor:
        """½ Σ log(2πe σ²), shape (*batch), nats."""
        return self._sum_event(normal_entropy(self.log_variance).expand(self.loc.shape))

    def expand(self, batch_shape: Size | Sequence[int], _instance: Distribution | None = None) -> "DiagonalNormal":
        """The same distribution with its batch axes expanded to `batch_shape`."""
        shape = Size(batch_shape) + self.event_shape
        return DiagonalNormal(
            self.loc.expand(shape),
            self.log_variance.expand(self.loc.shape).expand(shape),
            event_dim=len(self.event_shape),
            validate_args=False,
        )


class LogRatePoisson(Poisson):
    """Poisson(exp(log_rate)) that carries its log-rate, so that a rate too small for its dtype keeps its logarithm.

    Args:
        log_rate: (*batch).
    """

    def __init__(self, log_rate: Tensor):
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=False)


@register_kl(DiagonalNormal, DiagonalNormal)
def _kl_diagonal_normal(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    if q.event_shape != p.event_shape:
        raise ValueError(f"event shapes {tuple(q.event_shape)} and {tuple(p.event_shape)} given, expected the same")
    kl = normal_kl(q.mean, q.log_variance, p.mean, p.log_variance)
    return q._sum_event(kl.expand(torch.broadcast_shapes(q.mean.shape, p.mean.shape)))


# --- What a distribution is made of ---------------------------------------------------------------------------------


def diagonal_parameters(distribution: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean (*batch, *event) and log-variance, which broadcasts to it, of a normal with independent elements; else None.

    Both in float64.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, DiagonalNormal):
        return to_float64(distribution.mean), to_float64(distribution.log_variance)
    if isinstance(distribution, Normal):
        return to_float64(distribution.loc), 2 * to_float64(distribution.scale).log()
    return None


def full_parameters(distribution: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean (*batch, H) and Cholesky factor (*batch, H, H) in float64 of a normal with full covariance; else None."""
    if isinstance(distribution, MultivariateNormal | LowRankMultivariateNormal):
        return to_float64(distribution.loc), to_float64(distribution.scale_tril)
    return None


def as_batch(distribution: Distribution, batch_size: int, role: str) -> Distribution:
    """`distribution` with batch_shape (batch_size,): trailing batch axes are read as part of the event.

    Args:
        distribution: what a model's method returned for `batch_size` inputs.
        batch_size: number of rows given to the method.
        role: name of the method, for the message.

    Raises:
        ModelError: not a distribution, or its first axis is not the batch.
    """
    if not isinstance(distribution, Distribution):
        raise ModelError(
            f"{role} returned {type(distribution).__name__}, expected a torch.distributions.Distribution; "
            "wrap encoder and decoder with vaentropy.from_functions"
        )
    shape = distribution.batch_shape
    if not shape or shape[0] != batch_size:
        raise ModelError(
            f"{role} returned batch_shape {tuple(shape)} and event_shape {tuple(distribution.event_shape)} for "
            f"{batch_size} rows, expected batch_shape ({batch_size},): one distribution per row, no sample axis"
        )
    return Independent(distribution, len(shape) - 1, validate_args=False) if len(shape) > 1 else distribution


def as_prior(distribution: Distribution, batch_size: int, latent_shape: Size) -> Distribution:
    """The prior with event_shape `latent_shape` and batch_shape (), or (batch_size,) where it depends on the row.

    Raises:
        ModelError: its shapes fit neither.
    """
    if not isinstance(distribution, Distribution):
        raise ModelError(f"prior() returned {type(distribution).__name__}, expected a torch.distributions.Distribution")
    whole = distribution.batch_shape + distribution.event_shape
    if whole == () and latent_shape:
        distribution, whole = distribution.expand(latent_shape), latent_shape
    if whole == latent_shape:
        batch_axes = 0
    elif whole == (batch_size, *latent_shape):
        batch_axes = 1
    else:
        raise ModelError(
            f"prior() has batch_shape {tuple(distribution.batch_shape)} and event_shape "
            f"{tuple(distribution.event_shape)}, expected event_shape {tuple(latent_shape)} as the posterior has"
        )
    surplus = len(distribution.batch_shape) - batch_axes
    return Independent(distribution, surplus, validate_args=False) if surplus > 0 else distribution
