"""Likelihoods of a VAE: what they are (`Gaussian`, `Bernoulli`, `Poisson`) and the heads that compute them.

A likelihood is a description; `head(...)` builds the layers from the decoder's features to its parameters. Means,
logits, log-rates and log-variances are affine in the features, as the theorem asks for.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent

from vaentropy._typing import Tensor
from vaentropy.checks import require_number
from vaentropy.distributions import LOG_2PI, DiagonalNormal, LogRatePoisson
from vaentropy.errors import UsageError, shown
from vaentropy.world import whole_largest, whole_mean

__all__ = ["Bernoulli", "Gaussian", "Head", "Likelihood", "Poisson"]

Variance = Literal["shared", "per_feature", "function"]
VARIANCES = ("shared", "per_feature", "function")


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient passes where x is above the bound, or where it would raise x again.

    A plain clamp has no gradient below the bound, so a variance that once fell there could never recover.
    """

    @staticmethod
    def vmap(info, in_dims, x: Tensor, bound: float):  # type: ignore[override]
        return _LowerBound.apply(x, bound), in_dims[0]

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(min=bound)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, bound = inputs
        ctx.save_for_backward(x)
        ctx.bound = bound

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (grad < 0), grad, 0), None


def affine(features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> nn.Module:
    """An affine layer from decoder features to `data_shape`.

    A vector of features goes through a linear layer; feature maps of the data's height and width through a 1×1
    convolution, so that its biases are one per channel.

    Raises:
        UsageError: the features are neither.
    """
    if len(features_shape) == 1:
        return nn.Sequential(nn.Linear(features_shape[0], math.prod(data_shape)), nn.Unflatten(1, data_shape))
    if len(features_shape) == len(data_shape) == 3 and features_shape[1:] == data_shape[1:]:
        return nn.Conv2d(features_shape[0], data_shape[0], kernel_size=1)
    raise UsageError(
        f"the decoder returns features of shape {features_shape} for data of shape {data_shape}, expected a vector, or "
        "(channels, height, width) with the data's height and width; end the decoder accordingly"
    )


def bias_of(layer: nn.Module) -> nn.Parameter:
    """The bias of a layer made by `affine`."""
    inner = layer[0] if isinstance(layer, nn.Sequential) else layer
    assert isinstance(inner, nn.Linear | nn.Conv2d) and isinstance(inner.bias, nn.Parameter)
    return inner.bias


def outputs(layer: nn.Module, features: Tensor) -> Tensor:
    """What a layer made by `affine` returns, in the dtype of its weights: autocast would leave a narrower one."""
    return layer(features).to(bias_of(layer).dtype)


def _sum(x: Tensor, observed: Tensor | None) -> Tensor:
    """Sum over the (observed) features, (B,)."""
    return (x if observed is None else torch.where(observed, x, 0)).flatten(1).sum(1)


class Head(nn.Module, ABC):
    """Layers from decoder features to p(x|z), with a fast path on tensors for training beside the distribution."""

    def variance_parameters(self) -> list[nn.Parameter]:
        """Parameters that scale σ² and nothing else; empty where there are none."""
        return []

    def rescale(self, factor: Tensor) -> None:
        """Multiply σ² by `factor`, () or data_shape, in place; UsageError where σ² cannot take it."""
        raise UsageError(f"{type(self).__name__} has no variance to rescale")

    @abstractmethod
    def distribution(self, features: Tensor) -> Distribution:
        """p(x|z): batch_shape (B,), event_shape data_shape."""

    @abstractmethod
    def log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """log p(x|z) and the entropy of p(x|z) (Poisson: pseudo entropy less log base measure), each (B,), nats.

        Args:
            x: (B, *data_shape), finite, whatever stands where a value is missing.
            features: (B, *features_shape), the decoder's output.
            observed: bool (B, *data_shape): both sums are over these entries; None means all.
            weights: (B,), sum 1, of the points in the optimum that `adapt` speaks of; None means 1/B.
            adapt: first move σ² by this fraction towards its optimum for these points, in place and without gradient:
                0 leaves it, 1 sets it, less makes a running mean over batches. Nothing where σ² is not learned, nor
                for a feature without an observed value.
        """

    def average_log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Averages over K nodes of what `log_prob_and_entropy` returns, each (B,), nats.

        Args:
            x, observed: (B, *data_shape).
            features: (K·B, *features_shape), those of the first node first.
            weights: (K,), sum 1, of the nodes; None means 1/K.
            adapt: as there, of all nodes and points.
        """
        batch_size = len(x)
        num_nodes = len(features) // batch_size

        def repeated(rows: Tensor) -> Tensor:
            return rows if num_nodes == 1 else rows.expand(num_nodes, *rows.shape).flatten(0, 1)

        counted = None if observed is None else repeated(observed)
        per_row = None if weights is None or not adapt else weights.to(x).repeat_interleave(batch_size) / batch_size
        values = self.log_prob_and_entropy(repeated(x), features, observed=counted, weights=per_row, adapt=adapt)
        log_prob, entropy = (average(value.unflatten(0, (num_nodes, batch_size)), weights) for value in values)
        return log_prob, entropy


def average(values: Tensor, weights: Tensor | None) -> Tensor:
    """Average of values (K, ...) over K nodes; weights (K,), sum 1, or None for 1/K each."""
    if len(values) == 1:
        return values[0]
    return values.mean(0) if weights is None else torch.tensordot(weights.to(values), values, 1)


class Likelihood(ABC):
    """What p(x|z) is; immutable, so that one description serves several models."""

    @abstractmethod
    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> Head:
        """Layers from features (B, *features_shape) to p(x|z) over data_shape."""


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """p(x|z) = N(μ(z), σ²).

    Args:
        variance: "shared", one learned σ² (VAE-1, VAE-2); "per_feature", a learned σ_d² each; "function", σ_d²(z) with
            an affine log-variance head (VAE-3); or a positive number that stays fixed (VAE-0), to which the theorem
            does not apply.
        floor: σ² is never below it; `GaussianHead.at_floor` says where it is active, and there the theorem does not
            apply.
    """

    variance: Variance | float = "shared"
    floor: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.variance, str) or self.variance not in VARIANCES:
            try:
                require_number("variance", self.variance)
            except UsageError:
                expected = f"expected one of {', '.join(VARIANCES)} or a positive number"
                raise UsageError(f"variance={shown(self.variance)} given, {expected}") from None
        require_number("floor", self.floor)

    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> "GaussianHead":
        """Affine mean head, and the variance's parameters."""
        return GaussianHead(self, features_shape, data_shape)


class GaussianHead(Head):
    """Layers of a `Gaussian` likelihood."""

    log_variance: nn.Parameter | nn.Module | None  # () or data_shape; or a layer; None where σ² is fixed
    # Set where it runs under torch.vmap, in which a tensor does not tell that it has a gradient.
    gradient_unseen = False

    def __init__(self, likelihood: Gaussian, features_shape: tuple[int, ...], data_shape: tuple[int, ...]):
        super().__init__()
        self.likelihood = likelihood
        self.mean = affine(features_shape, data_shape)
        if likelihood.variance == "shared":
            self.log_variance = nn.Parameter(torch.zeros(()))
        elif likelihood.variance == "per_feature":
            self.log_variance = nn.Parameter(torch.zeros(data_shape))
        elif likelihood.variance == "function":
            self.log_variance = affine(features_shape, data_shape)
        else:
            self.log_variance = None

    def variance_parameters(self) -> list[nn.Parameter]:
        """log σ², or the bias of its layer; empty where σ² is fixed."""
        if isinstance(self.log_variance, nn.Module):
            return [bias_of(self.log_variance)]
        return [self.log_variance] if isinstance(self.log_variance, nn.Parameter) else []

    def log_variance_at(self, features: Tensor) -> Tensor:
        """log σ², not below the floor; broadcasts to (B, *data_shape)."""
        if self.log_variance is None:
            assert not isinstance(self.likelihood.variance, str)
            bias = bias_of(self.mean)
            return torch.full((), math.log(self.likelihood.variance), dtype=bias.dtype, device=bias.device)
        raw = outputs(self.log_variance, features) if isinstance(self.log_variance, nn.Module) else self.log_variance
        return self._bounded(raw)

    def _bounded(self, raw: Tensor) -> Tensor:
        if not (raw.requires_grad or self.gradient_unseen):
            return raw.clamp(min=math.log(self.likelihood.floor))
        return _LowerBound.apply(raw, math.log(self.likelihood.floor))  # type: ignore[return-value]

    def at_floor(self, features: Tensor) -> float:
        """Fraction of the variances that are held at the floor."""
        at_floor = self.log_variance_at(features) <= math.log(self.likelihood.floor)
        return float(at_floor.double().mean()) if self.variance_parameters() else 0.0

    def distribution(self, features: Tensor) -> DiagonalNormal:
        """N(μ(z), σ²)."""
        return DiagonalNormal(self.mean(features), self.log_variance_at(features), validate_args=False)

    def log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `Head.log_prob_and_entropy`."""
        squared_error = (x - outputs(self.mean, features)).square().flatten(1)
        counted = None if observed is None else observed.flatten(1)
        if counted is not None:
            squared_error = torch.where(counted, squared_error, 0)
        num_values = squared_error.shape[1] if counted is None else counted.sum(1).to(squared_error)
        if isinstance(self.log_variance, nn.Module):
            if adapt:
                self._adapt_function(squared_error.detach(), features, counted, weights, adapt)
            log_variances = self.log_variance_at(features).flatten(1)
            squares = (squared_error * torch.exp(-log_variances)).sum(1)
            if counted is not None:
                log_variances = torch.where(counted, log_variances, 0)
            log_normaliser = num_values * LOG_2PI + log_variances.sum(1)
        elif self.log_variance is None or self.log_variance.ndim == 0:
            errors = squared_error.sum(1)
            if adapt:
                self._adapt_constant(errors.detach(), num_values, weights, adapt)
            log_variance = self.log_variance_at(features)
            squares, log_normaliser = errors * torch.exp(-log_variance), num_values * (LOG_2PI + log_variance)
        else:
            counts = 1 if counted is None else counted.to(squared_error)
            if adapt:
                self._adapt_constant(squared_error.detach(), counts, weights, adapt)
            log_variance = self.log_variance_at(features).flatten()
            squares = (squared_error * torch.exp(-log_variance)).sum(1)
            log_normaliser = (counts * (LOG_2PI + log_variance)).sum(-1)
        return -0.5 * (log_normaliser + squares), (0.5 * (log_normaliser + num_values)).expand(squares.shape)

    def average_log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `Head.average_log_prob_and_entropy`.

        Where all points share σ², an average over nodes needs mean and covariance of the features, but no μ(z) of each
        node: E‖x - μ‖² = ‖x - E μ‖² + tr Cov(μ), two sums without negative terms (docs/mathematics.md, (36)).
        """
        layer = self.mean[0] if isinstance(self.mean, nn.Sequential) else None
        shared = observed is None and not isinstance(self.log_variance, nn.Module)
        if not (shared and isinstance(layer, nn.Linear) and _is_shorter(layer, len(x), len(features))):
            return super().average_log_prob_and_entropy(x, features, observed=observed, weights=weights, adapt=adapt)
        with torch.autocast(x.device.type, enabled=False):
            nodes = features.to(layer.weight.dtype).unflatten(0, (-1, len(x)))
            mean = average(nodes, weights)
            residual = (x.flatten(1) - layer(mean.to(layer.weight.dtype))).square()
            return self._from_moments(residual, nodes - mean, layer.weight, weights, adapt)

    def _from_moments(
        self, residual: Tensor, deviations: Tensor, weight: Tensor, weights: Tensor | None, adapt: float
    ) -> tuple[Tensor, Tensor]:
        """Of (x - E μ)² (B, D), the features less their means (K, B, F), and the layer's matrix (D, F)."""

        def spread(scaled: Tensor) -> Tensor:
            """Σ_d of the variances of μ_d, scaled, (B,)."""
            return average(((deviations @ (weight.T @ scaled)) * deviations).sum(-1), weights)

        num_values = residual.shape[1]
        if self.log_variance is None or self.log_variance.ndim == 0:
            errors = residual.sum(1) + spread(weight)
            if adapt:
                self._adapt_constant(errors.detach(), num_values, None, adapt)
            log_variance = self.log_variance_at(residual)
            squares, log_normaliser = errors * torch.exp(-log_variance), num_values * (LOG_2PI + log_variance)
        else:
            if adapt:
                with torch.no_grad():
                    rows = deviations if weights is None else deviations * weights.sqrt().to(weight)[:, None, None]
                    rows = rows.flatten(0, 1) / math.sqrt(len(residual) * (len(deviations) if weights is None else 1))
                    variances = ((weight @ (rows.T @ rows)) * weight).sum(1)
                    self._adapt_constant((residual.mean(0) + variances).unsqueeze(0), 1, None, adapt)
            log_variance = self.log_variance_at(residual).flatten()
            precision = torch.exp(-log_variance)
            squares = residual @ precision + spread(weight * precision.unsqueeze(1))
            log_normaliser = (LOG_2PI + log_variance).sum()
        return -0.5 * (log_normaliser + squares), (0.5 * (log_normaliser + num_values)).expand(squares.shape)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """Multiply σ² by `factor`, () or data_shape, in place, but not below the floor."""
        parameters = self.variance_parameters()
        if not parameters:
            raise UsageError(f"σ² is fixed at {self.likelihood.variance}; use Rescaled to change it from outside")
        (log_variance,) = parameters
        log_floor = math.log(self.likelihood.floor)
        if isinstance(self.log_variance, nn.Module):
            log_factor = self._per_bias(factor.to(log_variance)).log()
            # What is reproduced exactly has factor 0; how far its σ²(z) is above the floor, only the networks know.
            log_variance.add_(torch.where(torch.isfinite(log_factor), log_factor, 0))
        elif factor.ndim and factor.shape != log_variance.shape:
            raise UsageError(
                f"a factor of shape {tuple(factor.shape)} given for σ² with {log_variance.numel()} parameters; "
                'use per_feature=False, or Gaussian(variance="per_feature")'
            )
        else:
            log_variance.clamp_(min=log_floor).add_(factor.to(log_variance).log()).clamp_(min=log_floor)

    def _per_bias(self, ratio: Tensor) -> Tensor:
        """A factor per feature as one per bias of the log-variance layer: a convolution has one bias per channel."""
        assert isinstance(self.log_variance, nn.Module)
        bias = bias_of(self.log_variance)
        if not ratio.ndim:
            return ratio.expand(bias.shape)
        return ratio.flatten() if ratio.numel() == bias.numel() else ratio.flatten(1).mean(1)

    @torch.no_grad()
    def _adapt_constant(self, errors: Tensor, num_values: Tensor | int, weights: Tensor | None, step: float) -> None:
        """Move a σ² that all points share: squared errors and numbers of values (B,), or (B, D) per feature."""
        if not self.variance_parameters():
            return
        (log_variance,) = self.variance_parameters()
        variance, mean_error = log_variance.exp(), _mean(errors, weights).reshape(log_variance.shape)
        if isinstance(num_values, int):
            optimum = mean_error / num_values
        else:
            count = _mean(num_values, weights).reshape(log_variance.shape)
            optimum = torch.where(count > 0, mean_error / count, variance)
        moved = torch.lerp(variance, optimum, step).clamp(min=self.likelihood.floor).log()
        # Through exp and log, σ² of a feature without observed values would drift by rounding errors.
        log_variance.copy_(
            moved if isinstance(num_values, int) else torch.where(optimum == variance, log_variance, moved)
        )

    @torch.no_grad()
    def _adapt_function(
        self, squared_error: Tensor, features: Tensor, counted: Tensor | None, weights: Tensor | None, step: float
    ) -> None:
        """Move the bias of log σ²(z), by one factor per bias; `squared_error` and `counted` are (B, D)."""
        assert isinstance(self.log_variance, nn.Module)
        log_floor, raw = math.log(self.likelihood.floor), outputs(self.log_variance, features)
        ratios = squared_error * torch.exp(-raw.flatten(1).clamp(min=log_floor))
        total = self._per_bias(_mean(ratios, weights).reshape(raw.shape[1:]))
        if counted is None:
            ratio = total
        else:
            count = self._per_bias(_mean(counted.to(ratios), weights).reshape(raw.shape[1:]))
            ratio = torch.where(count > 0, total / count, 1)
        # Not further down than to where all of a feature's variances are at the floor: it has to find back.
        per_channel = raw[0].numel() != ratio.numel()
        highest = whole_largest(raw.flatten(2).amax((0, 2)) if per_channel else raw.flatten(1).amax(0))
        bias_of(self.log_variance).add_(
            torch.maximum(torch.log1p(step * (ratio - 1)), (log_floor - highest).clamp(max=0))
        )


def _is_shorter(layer: nn.Linear, num_points: int, num_features: int) -> bool:
    """Whether products with VᵀV, V of this layer, and one μ for each point take less than a μ for each node."""
    data_dim, width = layer.weight.shape
    return width * (data_dim + num_features) + num_points * data_dim <= num_features * data_dim


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the points (B, D), weighted by (B,), of the whole batch."""
    # Not weights @ rows, which autocast would round.
    return whole_mean(rows.mean(0) if weights is None else (weights.reshape(-1, *[1] * (rows.ndim - 1)) * rows).sum(0))


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """p(x_d|z) = Bernoulli(sigmoid(logit_d(z))), for x in {0, 1}."""

    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> "BernoulliHead":
        """An affine head of logits."""
        return BernoulliHead(features_shape, data_shape)


class BernoulliHead(Head):
    """Layer of a `Bernoulli` likelihood."""

    def __init__(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]):
        super().__init__()
        self.logits = affine(features_shape, data_shape)

    def distribution(self, features: Tensor) -> Distribution:
        """Independent Bernoulli variables."""
        logits = self.logits(features)
        return Independent(TorchBernoulli(logits=logits, validate_args=False), logits.ndim - 1, validate_args=False)

    def log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `Head.log_prob_and_entropy`."""
        logits = outputs(self.logits, features)
        # Not softplus, which becomes linear above 20.
        log_normaliser = torch.logaddexp(logits, torch.zeros_like(logits))
        entropy = log_normaliser - logits.sigmoid() * logits
        return _sum(x * logits - log_normaliser, observed), _sum(entropy, observed)


@dataclass(frozen=True)
class Poisson(Likelihood):
    """p(x_d|z) = Poisson(exp(log_rate_d(z))), for counts."""

    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> "PoissonHead":
        """An affine head of log-rates."""
        return PoissonHead(features_shape, data_shape)


class PoissonHead(Head):
    """Layer of a `Poisson` likelihood."""

    def __init__(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]):
        super().__init__()
        self.log_rate = affine(features_shape, data_shape)

    def distribution(self, features: Tensor) -> Distribution:
        """Independent Poisson variables."""
        log_rate = self.log_rate(features)
        return Independent(LogRatePoisson(log_rate), log_rate.ndim - 1, validate_args=False)

    def log_prob_and_entropy(
        self,
        x: Tensor,
        features: Tensor,
        *,
        observed: Tensor | None = None,
        weights: Tensor | None = None,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `Head.log_prob_and_entropy`."""
        log_rate = outputs(self.log_rate, features)
        rate = log_rate.exp()
        log_base = -torch.lgamma(x + 1)
        entropy = rate - rate * log_rate - log_base
        return _sum(x * log_rate - rate + log_base, observed), _sum(entropy, observed)
