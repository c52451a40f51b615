"""What the gap identity needs of a distribution: log-probability, entropy or pseudo entropy, and residual.

All formulas are in nats; equation numbers are those of docs/mathematics.md.
"""

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Size
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    Normal,
    OneHotCategorical,
    Poisson,
)

from vaentropy._typing import Tensor
from vaentropy.distributions import (
    LOG_2PI,
    DiagonalNormal,
    LogRatePoisson,
    diagonal_parameters,
    normal_entropy,
    to_float64,
)
from vaentropy.errors import DataError

__all__ = ["FactorTerms", "factor_log_prob", "factor_terms"]

# Draws per distribution when an entropy has no closed form. Few are enough: the estimate is unbiased and is averaged
# over data points and over draws of z as well.
ENTROPY_SAMPLES = 8


@dataclass(frozen=True)
class FactorTerms:
    """What the gap identity needs of a distribution at a value: one entry per independent factor, float64, nats.

    Every field has the shape (B, *factors) or broadcasts to it; `factors` is empty when the distribution does not
    factorise. Always `log_prob = residual - entropy + log_base` (`log_base` None is 0).

    Attributes:
        log_prob: log-density or log-probability of the value.
        entropy: entropy, or pseudo entropy A(η) - η·E[T] where the base measure is not constant.
        residual: log_prob + entropy - log_base, from its own formula; zero on average where the model is right.
        log_base: log of the base measure at the value (Poisson: -log x!), None where it is constant.
        squared_error: (x - mean)², for a normal.
        log_variance: of a normal.
        ratio: (x - mean)²/σ², for a normal.
        sampled: the entropy is a Monte Carlo estimate.
    """

    log_prob: Tensor
    entropy: Tensor
    residual: Tensor
    log_base: Tensor | None = None
    squared_error: Tensor | None = None
    log_variance: Tensor | None = None
    ratio: Tensor | None = None
    sampled: bool = False


@singledispatch
def factor_terms(distribution: Distribution, value: Tensor) -> FactorTerms:
    """Terms of `distribution` at `value`; for your own distribution, `@factor_terms.register` a function.

    The fallback takes `log_prob` and `entropy` of the distribution, and a Monte Carlo entropy (flagged `sampled`)
    where it has none.

    Args:
        distribution: batch_shape (B, *factors).
        value: (B, *factors, *event).
    """
    log_prob = to_float64(distribution.log_prob(value))
    try:
        entropy, sampled = to_float64(distribution.entropy()), False
    except NotImplementedError:
        draws = distribution.sample(Size([ENTROPY_SAMPLES]))
        entropy, sampled = -to_float64(distribution.log_prob(draws)).mean(0), True
    return FactorTerms(log_prob, entropy, log_prob + entropy, sampled=sampled)


def factor_log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    """`factor_terms(distribution, value).log_prob` alone: no entropy is sampled for it."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if factor_terms.dispatch(type(distribution)) is factor_terms.dispatch(Distribution):
        return to_float64(distribution.log_prob(value))
    return factor_terms(distribution, value).log_prob


@factor_terms.register
def _(distribution: Independent, value: Tensor) -> FactorTerms:
    return factor_terms(distribution.base_dist, value)


@factor_terms.register(DiagonalNormal)
@factor_terms.register(Normal)
def _normal(distribution: DiagonalNormal | Normal, value: Tensor) -> FactorTerms:
    parameters = diagonal_parameters(distribution)
    assert parameters is not None
    mean, log_variance = parameters
    # In place and by scalars where that is possible: this is most of the time that an evaluation takes.
    squared_error = (to_float64(value) - mean).square_()
    standardised = squared_error * torch.exp(-log_variance)
    return FactorTerms(
        log_prob=torch.sub(-0.5 * (LOG_2PI + log_variance), standardised, alpha=0.5),
        entropy=normal_entropy(log_variance),
        residual=torch.rsub(standardised, 1).mul_(0.5),
        squared_error=squared_error,
        log_variance=log_variance,
        ratio=standardised,
    )


def _require_between(x: Tensor, least: float, most: float, what: str) -> None:
    if bool(((x < least) | (x > most)).any()):
        raise DataError(f"data from {float(x.min()):g} to {float(x.max()):g} given for a {what} likelihood")


@factor_terms.register
def _(distribution: Bernoulli, value: Tensor) -> FactorTerms:
    x = to_float64(value)
    # Values between 0 and 1 are common in practice (gray pixels), and the identity holds for them as well.
    _require_between(x, 0.0, 1.0, "Bernoulli")
    # torch keeps logits that it has once computed from probabilities, so only the absence of these tells.
    if "probs" not in distribution.__dict__:
        logits = to_float64(distribution.logits)
        p = logits.sigmoid()
        # Not softplus, which becomes linear above 20.
        log_normaliser = torch.logaddexp(logits, torch.zeros_like(logits))
        return FactorTerms(x * logits - log_normaliser, log_normaliser - p * logits, (x - p) * logits)
    # Given by probabilities: torch clamps them away from 0 and 1 before it takes logs; xlogy needs no clamp.
    p = to_float64(distribution.probs)
    return FactorTerms(
        log_prob=torch.xlogy(x, p) + torch.xlogy(1 - x, 1 - p),
        entropy=-torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p),
        residual=torch.xlogy(x - p, p) - torch.xlogy(x - p, 1 - p),
    )


def _categorical(one_hot: Tensor, logits: Tensor) -> FactorTerms:
    log_p = torch.log_softmax(to_float64(logits), -1)
    p = log_p.exp()
    # 0 · log 0 = 0, as xlogy has it, for classes that are excluded (log p = -inf).
    finite = torch.where(torch.isinf(log_p), 0.0, log_p)
    excluded = (torch.isinf(log_p) & (one_hot > 0)).any(-1)
    log_prob = torch.where(excluded, -math.inf, (one_hot * finite).sum(-1))
    residual = torch.where(excluded, -math.inf, ((one_hot - p) * finite).sum(-1))
    return FactorTerms(log_prob, -(p * finite).sum(-1), residual)


@factor_terms.register
def _(distribution: Categorical, value: Tensor) -> FactorTerms:
    one_hot = torch.nn.functional.one_hot(value.long(), distribution.logits.shape[-1])
    return _categorical(to_float64(one_hot), distribution.logits)


@factor_terms.register
def _(distribution: OneHotCategorical, value: Tensor) -> FactorTerms:
    return _categorical(to_float64(value), distribution.logits)


@factor_terms.register
def _(distribution: Laplace, value: Tensor) -> FactorTerms:
    scale = to_float64(distribution.scale)
    standardised = (to_float64(value) - to_float64(distribution.loc)).abs() / scale
    log_2_scale = torch.log(2 * scale)
    return FactorTerms(-log_2_scale - standardised, 1 + log_2_scale, 1 - standardised)


@factor_terms.register
def _(distribution: Poisson, value: Tensor) -> FactorTerms:
    # The entropy has no closed form; the theorem asks for the pseudo entropy and the base measure 1/x!.
    x, rate = to_float64(value), to_float64(distribution.rate)
    _require_between(x, 0.0, math.inf, "Poisson")
    log_base = -torch.lgamma(x + 1)
    return FactorTerms(
        log_prob=torch.xlogy(x, rate) - rate + log_base,
        entropy=rate - torch.xlogy(rate, rate),
        residual=torch.xlogy(x - rate, rate),
        log_base=log_base,
    )


@factor_terms.register
def _(distribution: LogRatePoisson, value: Tensor) -> FactorTerms:
    x, log_rate = to_float64(value), to_float64(distribution.log_rate)
    _require_between(x, 0.0, math.inf, "Poisson")
    rate, log_base = log_rate.exp(), -torch.lgamma(x + 1)
    return FactorTerms(
        log_prob=x * log_rate - rate + log_base,
        entropy=rate - rate * log_rate,
        residual=(x - rate) * log_rate,
        log_base=log_base,
    )
