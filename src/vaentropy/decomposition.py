"""The ELBO of each data point of a batch, taken apart into the terms of the gap identity.

    ELBO = encoder entropy - prior entropy - decoder entropy + log base measure + prior gap + decoder gap

Where values are missing, the decoder's terms are sums over the observed features.

Every term is named once, here; sums, errors and read-outs further up go by these names.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch.distributions import Distribution, Independent

from vaentropy._typing import Tensor
from vaentropy.answers import latents_of, likelihood_at
from vaentropy.distributions import (
    LOG_2PI,
    DiagonalNormal,
    diagonal_parameters,
    full_parameters,
    normal_cross_log_prob,
    normal_entropy,
    to_float64,
)
from vaentropy.entropy import FactorTerms, factor_terms
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.expectation import Expectation, Nodes
from vaentropy.model import LatentVariableModel

__all__ = ["FEATURE_TERMS", "Decomposition", "PointTerm", "ScaledTerm", "decompose", "per_point", "require_factors"]

# Terms with one entry per feature; all others are one number or one per latent.
FEATURE_TERMS = ("decoder_residuals", "decoder_ratios", "squared_error", "log_variance")
# Those of them that a missing value does not have.
OBSERVED_TERMS = FEATURE_TERMS[:3]


@dataclass(frozen=True)
class PointTerm:
    """One term per data point.

    Attributes:
        value: (B, *shape), averaged over nodes, float64, nats where the term is one of the ELBO's.
        noise: (B, *shape), variance of its Monte Carlo noise; None where the nodes give no error.
        weight: (B, *shape), of the entry beside that of its data point: 0 where it is missing; None is 1.
    """

    value: Tensor
    noise: Tensor | None
    weight: Tensor | None = None


@dataclass(frozen=True)
class ScaledTerm:
    """A term that is another one, `of`, times one number, `factor` (): nothing of it has to be kept per data point."""

    of: str
    factor: Tensor


@dataclass(frozen=True)
class Decomposition:
    """Named terms of one batch, and which entropies were estimated by Monte Carlo."""

    terms: Mapping[str, PointTerm]
    scaled: Mapping[str, ScaledTerm]
    sampled: frozenset[str]
    latent_shape: tuple[int, ...]


class _NodeAverage:
    """Average over nodes of one term, and the variance of that average from independent groups of nodes (Welford).

    Works in place on buffers of its own: features times nodes is where an evaluation spends its time.
    """

    def __init__(self, group: int | None, *, finite: bool):
        self.group = group
        self.finite = finite
        self.mean: Tensor | None = None
        self.spread: Tensor | None = None
        self.pending: Tensor | None = None
        self.seen = 0

    def add(self, value: Tensor, weight: float) -> None:
        if self.group is None:
            self.mean = value * weight if self.mean is None else self.mean.add_(value, alpha=weight)
            return
        # Nodes that come in independent groups have equal weights.
        self.pending = value if self.pending is None else self.pending + value
        self.seen += 1
        if self.seen % self.group:
            return
        value = self.pending / self.group if self.group > 1 else self.pending
        self.pending = None
        if self.mean is None:
            # Not a buffer of its own yet: where there is one group only, none is needed.
            self.mean = value
            return
        step = deviation = value - self.mean
        if not self.finite:
            # Probability 0 stays -inf: -inf - (-inf) would make it NaN. Its noise is not known.
            step = torch.where(value == self.mean, 0.0, deviation)
            deviation = deviation.masked_fill(deviation.isinf(), torch.nan)
        share = self.group / self.seen
        if self.spread is None:
            self.mean = torch.add(self.mean, step, alpha=share)
            self.spread = deviation.square_().mul_(1 - share)
        else:
            self.mean.add_(step, alpha=share)
            # Times the deviation from the mean that includes the value, which is so much smaller.
            self.spread.addcmul_(deviation, deviation, value=1 - share)

    def scaled(self, factor: Tensor) -> "_NodeAverage":
        """The average of the term times a number, as far as it is."""
        other = _NodeAverage(self.group, finite=self.finite)
        other.seen = self.seen
        other.mean = None if self.mean is None else self.mean * factor
        other.spread = None if self.spread is None else self.spread * factor.square()
        other.pending = None if self.pending is None else self.pending * factor
        return other

    def result(self) -> PointTerm:
        assert self.mean is not None
        groups = self.seen // self.group if self.group else 0
        return PointTerm(self.mean, None if self.spread is None else self.spread.div_(groups * (groups - 1)))


def _without_noise(terms: Mapping[str, Tensor], nodes: Nodes) -> dict[str, PointTerm]:
    """Terms that do not depend on the nodes, with the noise that their average over these would have: 0, if known."""
    known = nodes.group is not None and len(nodes.weights) > nodes.group
    return {name: PointTerm(value, torch.zeros_like(value) if known else None) for name, value in terms.items()}


def per_point(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum over everything but the data point, after broadcasting to `shape`."""
    return x.expand(shape).flatten(1).sum(1) if len(shape) > 1 else x.expand(shape)


def _latents_in_closed_form(q: Distribution, p: Distribution) -> dict[str, Tensor] | None:
    """Latent terms of a normal posterior under a prior with independent normal elements; else None."""
    prior = diagonal_parameters(p)
    diagonal, full = diagonal_parameters(q), full_parameters(q)
    if prior is None or (diagonal is None and full is None):
        return None
    if diagonal is not None:
        mean, log_variance = diagonal
        entropies = normal_entropy(log_variance).expand(mean.shape)
        encoder_entropy = per_point(entropies, entropies.shape)
    else:
        assert full is not None
        mean, cholesky = full
        log_variance = cholesky.square().sum(-1).log()
        entropies = None
        # ½ log det(2πe Σ): the Cholesky factor's diagonal holds √ of the conditional variances.
        encoder_entropy = normal_entropy(2 * cholesky.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    prior_mean, prior_log_variance = prior
    second_moment = (mean - prior_mean).square() + log_variance.exp()
    ratios = second_moment * torch.exp(-prior_log_variance)
    residuals = 0.5 * (1 - ratios)
    cross = normal_cross_log_prob(mean, log_variance, prior_mean, prior_log_variance)
    terms = {
        "encoder_entropy": encoder_entropy,
        "prior_entropy": per_point(normal_entropy(prior_log_variance), mean.shape),
        "kl": -encoder_entropy - per_point(cross, mean.shape),
        "prior_gap": per_point(residuals, mean.shape),
        "prior_residuals": residuals,
        "prior_ratios": ratios,
        "prior_second_moment": second_moment,
        "latent_mean": mean,
    }
    if entropies is not None:
        terms["encoder_entropy_per_latent"] = entropies
        terms["kl_per_latent"] = -entropies - cross
    return terms


def _latents_at(q: Distribution, p: Distribution, z: Tensor, sampled: set[str]) -> dict[str, Tensor]:
    """Latent terms at one draw z, for distributions without closed forms."""
    posterior = factor_terms(q, z)
    try:
        prior = factor_terms(p, z)
    except ValueError as error:
        if "within the support" not in str(error):
            raise
        # torch's own message goes on with all of z.
        kind = "prior() has no density at a draw of the posterior, expected one wherever the posterior has"
        raise ModelError(f"{kind}; give both the same support") from error
    if posterior.sampled:
        sampled.add("encoder")
    if prior.sampled:
        sampled.add("prior")
    entropies = posterior.entropy
    if posterior.log_base is not None:
        # A pseudo entropy; with the base measure at z it has the entropy's expectation.
        entropies = entropies - posterior.log_base
    encoder_entropy = per_point(entropies, posterior.log_prob.shape)
    log_prob = per_point(prior.log_prob, prior.log_prob.shape)
    terms = {
        "encoder_entropy": encoder_entropy,
        "prior_entropy": per_point(prior.entropy, prior.log_prob.shape),
        "kl": -encoder_entropy - log_prob,
        "prior_gap": per_point(prior.residual, prior.log_prob.shape),
    }
    if prior.log_base is not None:
        terms["log_base"] = per_point(prior.log_base, prior.log_prob.shape)
    if prior.log_prob.shape == z.shape:
        terms["prior_residuals"] = prior.residual
        if posterior.log_prob.shape == z.shape:
            terms["encoder_entropy_per_latent"] = entropies.expand(z.shape)
            terms["kl_per_latent"] = -terms["encoder_entropy_per_latent"] - prior.log_prob
    return terms


def require_factors(log_prob: Tensor, observed: Tensor) -> None:
    """Refuse a likelihood that has no term of its own for each feature of which values are missing.

    Raises:
        UnsupportedError: log p(x|z) is not of the shape of `observed`, (B, *data_shape).
    """
    if log_prob.shape != observed.shape:
        raise UnsupportedError(
            "data with missing values given for a likelihood that does not factorise over the features, expected one "
            "term for each feature; impute the values, or use a likelihood with independent features"
        )


def _observed_only(terms: FactorTerms, observed: Tensor) -> FactorTerms:
    """The terms with 0 at all features that are not observed (B, *factors)."""
    require_factors(terms.log_prob, observed)
    observed = observed.to(terms.log_prob.device)

    def counted(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.where(observed, x, 0.0)

    # log σ² is the model's own, whether or not the feature is observed.
    names = ("log_prob", "entropy", "residual", "log_base", "squared_error", "ratio")
    return replace(terms, **{name: counted(getattr(terms, name)) for name in names})


def _likelihood_at(terms: FactorTerms, shape: torch.Size, num_observed: Tensor | None) -> dict[str, Tensor]:
    """Decoder terms at one draw z, for x of `shape`; `num_observed` (B,) features of it, None is all."""
    factorises = len(terms.log_prob.shape) > 1 or terms.log_prob.shape == shape
    shape = terms.log_prob.shape
    named = {
        "reconstruction": per_point(terms.log_prob, shape),
        "decoder_entropy": per_point(terms.entropy, shape),
        "decoder_gap": per_point(terms.residual, shape),
    }
    if terms.log_base is not None:
        named["log_base"] = per_point(terms.log_base, shape)
    if terms.ratio is None:
        if factorises:
            named["decoder_residuals"] = terms.residual
    elif terms.squared_error is not None and terms.log_variance is not None:
        # Residuals are read off the ratios: as ½ (1 - ρ) they would have lost the digits of a small ρ.
        named["decoder_ratios"] = terms.ratio
        num_features = shape[1:].numel() if num_observed is None else num_observed.clamp(min=1)
        named["mean_squared_error"] = per_point(terms.squared_error, shape) / num_features
        named["squared_error"] = terms.squared_error
        named["log_variance"] = terms.log_variance
    return named


def _shared_log_variance(likelihood: Distribution) -> Tensor | None:
    """log σ² (), float64, of a normal that has one for all points and features; else None."""
    while isinstance(likelihood, Independent):
        likelihood = likelihood.base_dist
    # Not of a class of its own that is made of it, which may have other terms.
    if type(likelihood) is not DiagonalNormal or likelihood.log_variance.ndim:
        return None
    return to_float64(likelihood.log_variance)


def _shared_normal_at(
    mean: Tensor, log_variance: Tensor, x: Tensor, observed: Tensor | None, num_observed: Tensor | None
) -> dict[str, Tensor]:
    """`_likelihood_at` for N(mean, σ²) with one σ²: all but the squared error is a function of its sum over features.

    Args:
        mean: (B, *data_shape).
        log_variance: ().
        x: (B, *data_shape), float64.
        observed, num_observed: which entries count, and how many of each point; None is all.
    """
    # In place where the mean is a copy: this is most of the time that an evaluation takes.
    wide = to_float64(mean)
    squared_error = (wide - x if wide is mean else wide.sub_(x)).square_()
    if observed is not None:
        squared_error.masked_fill_(~observed.to(squared_error.device), 0.0)
    total = per_point(squared_error, squared_error.shape)
    count = torch.full_like(total, x[0].numel()) if num_observed is None else num_observed
    standardised = total * torch.exp(-log_variance)
    return {
        "reconstruction": -0.5 * (count * (LOG_2PI + log_variance) + standardised),
        "decoder_entropy": count * normal_entropy(log_variance),
        "decoder_gap": 0.5 * (count - standardised),
        "mean_squared_error": total / count.clamp(min=1),
        "squared_error": squared_error,
        "log_variance": log_variance,
    }


def _totals(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ELBO from log-probabilities, the entropy sum from entropies, the gap from residuals: separate routes."""
    log_base = terms.get("log_base", torch.zeros((), dtype=torch.float64, device=terms["kl"].device))
    return {
        "elbo": terms["reconstruction"] - terms["kl"],
        "entropy_sum": terms["encoder_entropy"] - terms["prior_entropy"] - terms["decoder_entropy"] + log_base,
        "gap": terms["prior_gap"] + terms["decoder_gap"],
    }


def _with_weights(
    terms: dict[str, PointTerm], observed: Tensor | None, num_observed: Tensor | None
) -> dict[str, PointTerm]:
    """The terms with the weights of their entries, and the mean ratio (x - μ)²/σ² of each point's features."""
    weighted = dict(terms)
    if observed is not None:
        weighted |= {name: replace(terms[name], weight=observed) for name in OBSERVED_TERMS if name in terms}
    if "log_variance" not in terms:
        return weighted
    shape = terms["squared_error"].value.shape
    # One number where all share it, until here.
    weighted["log_variance"] = PointTerm(terms["log_variance"].value.expand(shape), None)
    count, fraction = shape[1:].numel(), None
    if num_observed is not None:
        # Means over features weigh by how many these are, so that the mean over points is one over observed values.
        count, fraction = num_observed.clamp(min=1), num_observed / count
        weighted["mean_squared_error"] = replace(terms["mean_squared_error"], weight=fraction)
    gap = terms["decoder_gap"]
    noise = None if gap.noise is None else gap.noise * (2 / count) ** 2
    weighted["mean_ratio"] = PointTerm(1 - 2 * gap.value / count, noise, fraction)
    return weighted


def decompose(
    model: LatentVariableModel,
    x: Tensor,
    expectation: Expectation,
    generator: torch.Generator,
    observed: Tensor | None = None,
) -> Decomposition:
    """Every term of the ELBO for a batch.

    Args:
        model: any three-method model.
        x: (B, *data_shape), finite; where values are missing, what encoder and likelihood see in their place.
        expectation: how to average over the posterior.
        generator: of the noise, on the device of `x`.
        observed: bool (B, *data_shape), False where a value is missing; None where none is.

    Raises:
        ModelError: a method returned something of another shape, or not a number.
        DataError: the model takes no integers, or the likelihood cannot have made these data.
        UnsupportedError: values are missing and the likelihood does not factorise over the features.
        UsageError: the expectation needs a normal posterior and this one is not.
    """
    batch_size, latents = len(x), latents_of(model, x)
    q, p, latent_shape = latents.posterior, latents.prior, latents.posterior.event_shape
    if latents.draw is None and expectation.gaussian_only:
        raise UsageError(f"{type(expectation).__name__} needs a normal posterior, got {q}; use MonteCarlo")
    nodes = expectation.nodes(batch_size, tuple(latent_shape), generator=generator, dtype=latents.dtype)
    closed = _latents_in_closed_form(q, p)
    if closed is None and not p.batch_shape:
        # Draws for an entropy without a closed form are then each row's own, as the errors take them to be.
        with suppress(NotImplementedError):
            p = p.expand(torch.Size([batch_size]))
    num_observed = None if observed is None else to_float64(per_point(observed, observed.shape))
    sampled: set[str] = set()
    # The same at every node; with many latents, to average them would take most of the time and memory.
    exact = {} if closed is None else _without_noise(closed, nodes)
    averages: dict[str, _NodeAverage] = {}
    precision, x64 = None, x  # of a normal with one σ²
    for noise, weight in zip(nodes.noise, nodes.weights.tolist(), strict=True):
        z = latents.at(noise)
        of_x, of_latents = likelihood_at(model, z, x), _latents_at(q, p, z, sampled) if closed is None else closed
        normal, log_base = True, None
        shared = _shared_log_variance(of_x)
        if shared is not None:
            if precision is None:
                precision, x64 = torch.exp(-shared), to_float64(x)
            at_node = _shared_normal_at(of_x.mean, shared, x64, observed, num_observed)
            if "decoder_ratios" in averages or (averages and not torch.equal(precision, torch.exp(-shared))):
                # Of a σ² that is another one at each node.
                at_node["decoder_ratios"] = at_node["squared_error"] * torch.exp(-shared)
        else:
            likelihood = factor_terms(of_x, x)
            if observed is not None:
                likelihood = _observed_only(likelihood, observed)
            if likelihood.sampled:
                sampled.add("decoder")
            at_node, normal = _likelihood_at(likelihood, x.shape, num_observed), likelihood.ratio is not None
            log_base = likelihood.log_base
        at_node = {**of_latents, **at_node}
        if "log_base" in of_latents and log_base is not None:
            at_node["log_base"] = of_latents["log_base"] + at_node["log_base"]
        at_node |= _totals(at_node)
        if precision is not None and "decoder_ratios" in at_node and "decoder_ratios" not in averages:
            averages["decoder_ratios"] = averages["squared_error"].scaled(precision)
        for name, value in at_node.items():
            if name in exact:
                continue
            if name not in averages:
                # Of log σ² only the average is of interest.
                group = None if name == "log_variance" else nodes.group
                averages[name] = _NodeAverage(group, finite=closed is not None and normal)
            averages[name].add(value, weight)
    scaled = {}
    if precision is not None and "decoder_ratios" not in averages:
        scaled["decoder_ratios"] = ScaledTerm("squared_error", precision)
    terms = exact | {name: average.result() for name, average in averages.items()}
    terms = _with_weights(terms, observed, num_observed)
    if bool(terms["elbo"].value.isnan().any()):
        row = int(terms["elbo"].value.isnan().nonzero()[0])
        raise ModelError(f"the ELBO of row {row} of a batch is not a number; look for NaN in the model's parameters")
    return Decomposition(terms, scaled, frozenset(sampled), tuple(latent_shape))
