"""What an evaluation says: read-outs of the mergeable sums, in nats per data point."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from typing import Any, Literal

import torch

from vaentropy import ledger
from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.expectation import Expectation
from vaentropy.modes import Mode
from vaentropy.moments import DataMoments, Moment, merge
from vaentropy.variances import (
    decoder_residuals,
    decoder_variance_errors,
    decoder_variances,
    observed_fraction,
    scale_gain,
    scale_gain_error,
)

__all__ = ["Entropies", "Evaluation", "Gains", "Terms", "concatenate", "plain", "read_out"]

# log σ² that varies less than this over data and draws of z counts as one constant.
CONSTANT_LOG_VARIANCE = 1e-9
# Entries per feature beyond which `to_dict` leaves them out.
MOST_LISTED = 2**14


@dataclass(frozen=True)
class Entropies:
    """The three entropies, nats per data point. The decoder's is a pseudo entropy for Poisson."""

    encoder: float
    prior: float
    decoder: float


@dataclass(frozen=True)
class Gains:
    """Nats per data point that setting a variance to its optimum would bring, everything else held fixed.

    They hold for the data evaluated, and are biased upward where these are few. A feature that is never observed has
    nothing to gain.

    Attributes:
        variance: σ² (whatever its form) times one factor for all features; None without a normal likelihood.
        feature_variance: σ² times a factor of its own for each feature, data_shape; these add up.
        prior_variance: α² times a factor of its own for each latent, latent_shape; these add up. None without a
            normal prior.
    """

    variance: float | None
    feature_variance: Tensor | None
    prior_variance: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """The ELBO and its parts, nats per data point. Vectors are float64 on the CPU.

    `entropy_sum = entropies.encoder - entropies.prior - entropies.decoder + log_base`,
    `gap = elbo - entropy_sum = prior_gap + decoder_gap`.

    Attributes:
        elbo: evidence lower bound.
        reconstruction: E_q log p(x|z).
        kl: KL(q(z|x) ‖ p(z)).
        entropies: encoder, prior, decoder.
        log_base: mean log base measure; 0 but for Poisson, where it is -log x!.
        log_jacobian: mean of log |dy/dx| from data x as stored to data y as the model sees them, summed over the
            (observed) features; 0 if not given. No part of `elbo`.
        entropy_sum: what the ELBO equals at a stationary point.
        gap: elbo - entropy_sum.
        prior_gap: part of the gap from the prior; the sum of `prior_residuals`.
        decoder_gap: part of the gap from the decoder; the sum of `decoder_residuals`.
        prior_residuals: per latent, latent_shape; None where prior or posterior does not factorise.
        decoder_residuals: per feature, data_shape (without a one-hot axis); None where the likelihood does not
            factorise. Missing values count as 0.
        kl_per_latent: latent_shape; None for a posterior with full covariance.
        encoder_entropy_per_latent: latent_shape; None for a posterior with full covariance.
        optimal_variance: σ²*, mean squared error over points, draws and (observed) features; None without a normal
            likelihood.
        optimal_feature_variance: σ_d²*, data_shape; of a feature that is never observed, the geometric mean of its σ²
            as it is. None likewise.
        variance_ratio: optimal factor on σ², over all features; above 1 the decoder is over-confident.
        optimal_prior_variance: α_h²*, latent_shape; None without a normal prior.
        gains: nats that these would bring.
    """

    elbo: float
    reconstruction: float
    kl: float
    entropies: Entropies
    log_base: float
    log_jacobian: float
    entropy_sum: float
    gap: float
    prior_gap: float
    decoder_gap: float
    prior_residuals: Tensor | None
    decoder_residuals: Tensor | None
    kl_per_latent: Tensor | None
    encoder_entropy_per_latent: Tensor | None
    optimal_variance: float | None
    optimal_feature_variance: Tensor | None
    variance_ratio: float | None
    optimal_prior_variance: Tensor | None
    gains: Gains

    def to_dict(self, *, vectors: bool = True) -> dict[str, Any]:
        """Plain numbers, lists and dicts, for JSON; without `vectors`, only what is one number.

        What has an entry for each of more than 16,384 features is left out: of large images there would be hardly
        anything else, and a hundred MB of it.
        """
        return plain(self, vectors)


def plain(value: Any, vectors: bool = True) -> Any:
    """A result as plain numbers, lists and dicts: fields that its repr leaves out are left out; so are vectors, unless
    they are wanted, and very long ones.
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Expectation):
        return repr(value)
    if is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
        most = MOST_LISTED if vectors else -1
        return {name: plain(v, vectors) for name, v in named.items() if not isinstance(v, Tensor) or v.numel() <= most}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(Terms):
    """What `evaluate` returns: the terms, their two errors, and the sums they came from. Printing it gives a ledger.

    Attributes:
        mc_stderr: error of each term from Monte Carlo noise alone, these data held fixed: judge with it whether
            training has reached a stationary point. None where the noise is shared between points or has one sample.
        stderr: error of each term for the population that the data came from: judge with it held-out statements.
        num_points: data points.
        data_shape: shape of one.
        latent_shape: shape of one latent.
        expectation: how the posterior was averaged over.
        mode: "eval" or "train", the mode in which the networks ran.
        variance_kind: how σ² was seen to vary: "shared" by all features, "per_feature", "function" of z; None without
            a normal likelihood.
        observed_fraction: fraction of the data points, by weight, that have a value of each feature, data_shape; None
            where nothing is missing.
        latent_mean_variance: variance over the data of the posterior mean, per latent; None without normal latents.
        latent_moments: mean and covariance over the data of the posterior means, latents flattened; None without normal
            latents, or with more of them than `LATENTS_WITH_COVARIANCE`.
        sampled: which entropies are Monte Carlo estimates ("encoder", "prior", "decoder"): for these the identity
            holds, and the theorem where the family has it.
        moments: the sums; those of parts of the data merge into those of the whole.
        pointwise: values per data point of every term that is one number or one per latent, (N, *shape) each, if asked.
    """

    mc_stderr: Terms | None
    stderr: Terms
    num_points: int
    data_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    expectation: Expectation
    mode: Mode
    variance_kind: Literal["shared", "per_feature", "function"] | None
    observed_fraction: Tensor | None
    latent_mean_variance: Tensor | None
    latent_moments: DataMoments | None = field(repr=False)
    sampled: tuple[str, ...]
    moments: Mapping[str, Moment] = field(repr=False)
    pointwise: Mapping[str, Tensor] | None = field(repr=False)

    @property
    def relative_gap(self) -> float:
        """|gap| / |elbo|, as the paper measures it."""
        return abs(self.gap) / abs(self.elbo) if self.elbo else math.inf

    @property
    def data_elbo(self) -> float:
        """elbo + log_jacobian: the ELBO in the units of the data as stored, nats per data point."""
        return self.elbo + self.log_jacobian

    @property
    def bits_per_dim(self) -> float:
        """-data_elbo/(D log 2), D the number of features, or their mean number per data point where values are missing.

        Compare it with what others report only for whole numbers that were dequantised (uniform noise of [0, 1) added)
        and with the log-Jacobian of all that was done to them since.
        """
        num_features = math.prod(self.data_shape) if self.decoder_residuals is None else self.decoder_residuals.numel()
        if self.observed_fraction is not None:
            num_features = float(self.observed_fraction.sum())
        return -self.data_elbo / (num_features * math.log(2))

    def to_dict(self, *, vectors: bool = True) -> dict[str, Any]:
        """Plain numbers, lists and dicts; without `moments` and `pointwise`. Unknown errors (of one point) stay NaN."""
        derived = {name: getattr(self, name) for name in ("relative_gap", "data_elbo", "bits_per_dim")}
        return {**super().to_dict(vectors=vectors), **derived}

    def __repr__(self) -> str:
        """The ledger."""
        return ledger.render(self)

    def _repr_html_(self) -> str:
        return ledger.render_html(self)

    @staticmethod
    def merge(parts: Sequence["Evaluation"]) -> "Evaluation":
        """The evaluation of several parts of the data as one; `pointwise` values are concatenated.

        Values and `stderr` are exactly those of one evaluation of all the data with the same noise. Give each part's
        expectation a seed of its own: parts with equal seeds have equal noise, and then there is no `mc_stderr`.

        Raises:
            UsageError: no parts, or parts of different shapes, expectations (but for the seed) or modes.
        """
        if not parts:
            raise UsageError("no evaluations given, expected at least one to merge")
        for part in parts:
            require_instance("part", part, Evaluation, "an Evaluation")
        first = parts[0]
        for part in parts:
            for name, theirs, ours in (
                ("data_shape", part.data_shape, first.data_shape),
                ("latent_shape", part.latent_shape, first.latent_shape),
                ("mode", part.mode, first.mode),
                ("expectation", _without_seed(part.expectation), _without_seed(first.expectation)),
            ):
                if theirs != ours:
                    raise UsageError(
                        f"evaluations with {name} {ours} and {theirs} given, expected the same: merge only evaluations "
                        "of one model under one setting"
                    )
        moments = merge(part.moments for part in parts)
        if first.expectation.independent and len({part.expectation.seed for part in parts}) < len(parts):
            moments = {name: replace(moment, noise=None) for name, moment in moments.items()}
        covariances = [part.latent_moments for part in parts if part.latent_moments is not None]
        pointwise = [part.pointwise for part in parts if part.pointwise is not None]
        return read_out(
            moments,
            num_points=sum(part.num_points for part in parts),
            data_shape=first.data_shape,
            latent_shape=first.latent_shape,
            latent_moments=reduce(DataMoments.merge, covariances) if len(covariances) == len(parts) else None,
            expectation=first.expectation,
            mode=first.mode,
            sampled=tuple(sorted({name for part in parts for name in part.sampled})),
            pointwise=concatenate(pointwise) if len(pointwise) == len(parts) else None,
        )


def _without_seed(expectation: Expectation) -> Expectation:
    return expectation.with_seed(0) if expectation.independent else expectation


# --- From sums to read-outs -----------------------------------------------------------------------------------------


def _terms(moments: Mapping[str, Moment], pick: Callable[[Moment], Tensor], *, value: bool) -> Terms:
    """Terms with `pick` of every moment: the means (`value`), or an error (delta method for what is not linear)."""

    def vector(name: str) -> Tensor | None:
        return pick(moments[name]) if name in moments else None

    def number(name: str) -> float:
        return float(pick(moments[name])) if name in moments else 0.0

    def prior_gain() -> Tensor | None:
        if "prior_ratios" not in moments:
            return None
        ratios = moments["prior_ratios"]
        return scale_gain(ratios.mean) if value else scale_gain_error(ratios.mean, pick(ratios))

    normal = decoder_variances(moments) if value else decoder_variance_errors(moments, pick)
    residuals = decoder_residuals(moments, pick)
    return Terms(
        elbo=number("elbo"),
        reconstruction=number("reconstruction"),
        kl=number("kl"),
        entropies=Entropies(number("encoder_entropy"), number("prior_entropy"), number("decoder_entropy")),
        log_base=number("log_base"),
        log_jacobian=number("log_jacobian"),
        entropy_sum=number("entropy_sum"),
        gap=number("gap"),
        prior_gap=number("prior_gap"),
        decoder_gap=number("decoder_gap"),
        prior_residuals=vector("prior_residuals"),
        # Of data without axes the one residual is the gap.
        decoder_residuals=residuals if residuals is not None and residuals.ndim else None,
        kl_per_latent=vector("kl_per_latent"),
        encoder_entropy_per_latent=vector("encoder_entropy_per_latent"),
        optimal_variance=number("mean_squared_error") if normal else None,
        optimal_feature_variance=normal.feature_variance if normal else None,
        variance_ratio=float(normal.ratio) if normal else None,
        optimal_prior_variance=vector("prior_second_moment"),
        gains=Gains(
            variance=float(normal.gain) if normal else None,
            feature_variance=normal.feature_gains if normal else None,
            prior_variance=prior_gain(),
        ),
    )


def _variance_kind(log_variance: Moment | None) -> Literal["shared", "per_feature", "function"] | None:
    if log_variance is None:
        return None
    if float(log_variance.variance.max()) > CONSTANT_LOG_VARIANCE**2:
        return "function"
    span = float(log_variance.mean.max() - log_variance.mean.min())
    return "per_feature" if span > CONSTANT_LOG_VARIANCE else "shared"


def read_out(moments: Mapping[str, Moment], **about: Any) -> Evaluation:
    """The evaluation of which `moments` are the sums; `about` are its fields that the sums do not know."""
    value = _terms(moments, lambda m: m.mean, value=True)
    known = moments["elbo"].noise is not None
    latent_mean = moments.get("latent_mean")
    return Evaluation(
        **{f.name: getattr(value, f.name) for f in fields(Terms)},
        mc_stderr=_terms(moments, lambda m: _known(m.mc_stderr), value=False) if known else None,
        stderr=_terms(moments, lambda m: m.stderr, value=False),
        variance_kind=_variance_kind(moments.get("log_variance")),
        observed_fraction=observed_fraction(moments),
        latent_mean_variance=latent_mean.variance if latent_mean is not None else None,
        moments=moments,
        **about,
    )


def _known(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values per data point of several parts of the data, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
