"""`log_likelihood`: the importance-weighted bound on log p(x), or log p(x) itself, beside the ELBO.

Source: Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders", arXiv:1509.00519. Equation numbers are those
of docs/mathematics.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vaentropy import ledger
from vaentropy._typing import Tensor
from vaentropy.answers import Latents, latents_of, likelihood_at
from vaentropy.checks import require_count, require_seed
from vaentropy.data.given import Data
from vaentropy.decomposition import PointTerm, per_point, require_factors
from vaentropy.distributions import to_float64
from vaentropy.engines import Engine
from vaentropy.entropy import factor_log_prob
from vaentropy.errors import ModelError, UsageError, shown
from vaentropy.expectation import MonteCarlo
from vaentropy.model import LatentVariableModel
from vaentropy.modes import Mode
from vaentropy.moments import Moment
from vaentropy.options import Missing
from vaentropy.passes import Batch, Counted, Pass
from vaentropy.results import plain
from vaentropy.sharded import Recipe, through
from vaentropy.sums import Sums

__all__ = ["FEWEST_EFFECTIVE", "EffectiveSampleSize", "LogLikelihood", "log_likelihood"]

# Fewer effective draws than these say neither how far log(mean weight) scatters nor how far it is too low.
FEWEST_EFFECTIVE = 10


@dataclass(frozen=True)
class EffectiveSampleSize:
    """How many of a point's draws count, (Σ w)²/Σ w² (21), as a fraction of all; over the points of weight above 0.

    Attributes:
        mean: 1 where q(z|x) is the exact posterior.
        median: over the points.
        minimum: over the points.
        too_small: fraction of the points with fewer than `FEWEST_EFFECTIVE` (10) effective draws. Of these the bound is
            well below log p(x), and its Monte Carlo error too small.
    """

    mean: float
    median: float
    minimum: float
    too_small: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LogLikelihood:
    """What `log_likelihood` returns, nats per data point. Printing it gives a ledger.

    `value = elbo + tightness`; errors of either kind mean what they do in `Evaluation`. An unknown `stderr` (of one
    point) is NaN, an unknown `mc_stderr` (of one draw) None.

    Attributes:
        value: mean log p(x) where it is `exact`, else the importance-weighted bound, which lies below it on average.
        stderr: of `value`, for the population that the data came from.
        mc_stderr: of `value`, from Monte Carlo noise alone: 0 where it is exact. How far the bound lies below log p(x)
            is no part of it, see `value_at_half`.
        elbo: from the same draws, with log q(z|x)/p(z) at each of them in the place of the KL in closed form.
        tightness: KL from q(z|x) to the exact posterior, on average: what the posterior's form and the encoder cost.
            Of a bound, what of it the bound shows.
        tightness_stderr: of `tightness`.
        tightness_mc_stderr: of `tightness`; small, as value and ELBO have their draws in common.
        value_at_half: the bound with half of the draws, mean of both halves. If it is lower than `value` by more than
            is of interest, more draws will raise `value`: by about as much again, if the weights have a variance. None
            where the value is exact, or of one draw.
        effective_sample_size: how good q(z|x) is as a proposal.
        log_jacobian: mean of log |dy/dx| from data x as stored to data y as the model sees them, summed over the
            (observed) features; no part of `value`.
        num_points: data points.
        num_samples: K, draws of z for each of them.
        exact: `value` is what the model's own `log_likelihood` says.
        data_shape: shape of a data point.
        num_features: features of a data point; their mean number where values are missing.
        mode: "eval" or "train", the mode in which the networks ran.
        moments: the sums.
        pointwise: values per data point, (N,) each, if asked: "value", "elbo", "tightness", "value_at_half",
            "effective_sample_size" (draws, not a fraction), "num_features", "log_jacobian".
    """

    value: float
    stderr: float
    mc_stderr: float | None
    elbo: float
    tightness: float
    tightness_stderr: float
    tightness_mc_stderr: float | None
    value_at_half: float | None
    effective_sample_size: EffectiveSampleSize
    log_jacobian: float
    num_points: int
    num_samples: int
    exact: bool
    data_shape: tuple[int, ...]
    num_features: float
    mode: Mode
    moments: Mapping[str, Moment] = field(repr=False)
    pointwise: Mapping[str, Tensor] | None = field(repr=False)

    @property
    def data_value(self) -> float:
        """value + log_jacobian: in the units of the data as stored, nats per data point."""
        return self.value + self.log_jacobian

    @property
    def bits_per_dim(self) -> float:
        """-data_value/(D log 2), D features; see `Evaluation.bits_per_dim` for what it compares with."""
        return -self.data_value / (self.num_features * math.log(2))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts; without `moments` and `pointwise`."""
        return {**plain(self), "data_value": self.data_value, "bits_per_dim": self.bits_per_dim}

    def __repr__(self) -> str:
        """The ledger."""
        return _render(self)


def log_likelihood(
    model: LatentVariableModel,
    data: Data,
    *,
    num_samples: int = 1000,
    exact: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
    missing: Missing = "error",
    log_jacobian: Tensor | np.ndarray | float = 0.0,
    pointwise: bool = False,
    mode: Mode = "eval",
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> LogLikelihood:
    """Mean log p(x), from below by importance sampling, and how much tighter that is than the ELBO.

    log p(x) ≥ E log 1/K Σ_k p(x, z_k)/q(z_k|x) with K draws z_k from q(z|x) (20): the ELBO for K = 1, rising with K
    towards log p(x). Draws are made one after the other, so that memory does not grow with K; time does, K passes
    through the decoder. Whatever `evaluate` takes and restores, this does too.

    Args:
        model: anything with `posterior(x)`, `prior()` and `likelihood(z)`.
        data: as for `evaluate`.
        num_samples: K, draws of z for each data point.
        exact: whether to take `value` from the model's own `log_likelihood(x)`, log p(x) (B,) of x (B, *data_shape), as
            `LinearVAE` has it. None does so where there is such a method, unless missing="ignore".
        batch_size: rows per forward pass; None takes more of small ones. An iterable brings its own.
        seed: of the draws.
        sample_weight: as for `evaluate`.
        bind: as for `evaluate`.
        missing: as for `evaluate`; the bound is then one on log p(x_observed).
        log_jacobian: as for `evaluate`; `data_value` and `bits_per_dim` of the result have it.
        pointwise: also keep the values per data point.
        mode: as for `evaluate`.
        on_batch: as for `evaluate`; a batch is done after K draws for it.
        engine: as for `evaluate`.

    Returns:
        LogLikelihood, nats per data point.

    Raises:
        DataError: no data, or data that are not finite numbers, or none of whose values is observed.
        ModelError: the model returned something else than the interface asks for.
        UnsupportedError: values are missing and the likelihood does not factorise over the features.
        UsageError: an argument has a wrong value.
    """
    require_count("num_samples", num_samples)
    require_seed(seed)
    if exact is not None and not isinstance(exact, bool):
        raise UsageError(f"exact={shown(exact)} given, expected True, False or None")
    if exact and missing == "ignore":
        remedy = "take exact=None, which samples here"
        raise UsageError(f'exact=True given with missing="ignore", expected data without missing values; {remedy}')
    how: dict[str, Any] = {"num_samples": num_samples, "exact": False if missing == "ignore" else exact, "seed": seed}
    how |= {"bind": bind, "missing": missing, "log_jacobian": log_jacobian, "pointwise": pointwise, "mode": mode}
    measure = _Importance(model, sample_weight=sample_weight, **how)
    through(measure, Recipe(_Importance, model, how), data, batch_size, on_batch, engine)
    return measure.read_out()


class _Importance(Pass):
    """What one pass adds up, batch by batch.

    Args:
        num_samples: K.
        exact: None lets the model of the first batch decide.
        pointwise: also keep the values per data point.
        how: further arguments of `Pass`.
    """

    def __init__(self, model: object, *, num_samples: int, exact: bool | None, pointwise: bool, **how: Any):
        super().__init__(model, **how)
        self.num_samples, self.exact = num_samples, exact
        self.sums = Sums(pointwise=pointwise)
        self.effective: list[Tensor] = []

    def counted(self) -> Counted:
        """What was counted so far, for another one to take in."""
        effective = torch.cat(self.effective) if self.effective else None
        return super().counted()._replace(sums=self.sums.packed(), more=(self.exact, effective))

    def take_in(self, counted: Counted) -> None:
        """Count what another one has counted, of data points that come next."""
        super().take_in(counted)
        self.sums.take_in(counted.sums)
        self.exact, effective = counted.more
        self.effective += [] if effective is None else [effective]

    def measure(self, batch: Batch) -> None:
        """Add the terms of a batch."""
        own = getattr(batch.model, "log_likelihood", None)
        if self.exact is None:
            self.exact = callable(own)
        known = _own_values(own, batch) if self.exact else None
        latents, weights = latents_of(batch.model, batch.x), _Weights()
        latent_shape, factors = tuple(latents.posterior.event_shape), batch.x
        for _ in range(self.num_samples):
            nodes = MonteCarlo(1).nodes(len(batch.x), latent_shape, generator=batch.generator, dtype=latents.dtype)
            z = latents.at(nodes.noise[0])
            factors = _data_log_prob(batch, z)
            weights.add(per_point(factors, factors.shape) + _log_ratio(latents, z))
        terms = weights.terms()
        if known is not None:
            terms["value"] = PointTerm(known, torch.zeros_like(known))
            terms["tightness"] = PointTerm(known - terms["elbo"].value, terms["elbo"].noise)
            terms.pop("value_at_half", None)
        terms["num_features"] = PointTerm(_num_features(batch, factors), None)
        self.sums.add(terms, batch)
        effective = terms["effective_sample_size"].value.cpu()
        self.effective.append(effective if batch.weights is None else effective[batch.weights > 0])

    def read_out(self) -> LogLikelihood:
        """The result."""
        moments, effective = self.sums.moments, torch.cat(self.effective).numpy()
        mean = {name: float(moment.mean) for name, moment in moments.items()}
        return LogLikelihood(
            value=mean["value"],
            stderr=float(moments["value"].stderr),
            mc_stderr=_number(moments["value"].mc_stderr),
            elbo=mean["elbo"],
            tightness=mean["tightness"],
            tightness_stderr=float(moments["tightness"].stderr),
            tightness_mc_stderr=_number(moments["tightness"].mc_stderr),
            value_at_half=mean.get("value_at_half"),
            effective_sample_size=EffectiveSampleSize(
                mean=float(effective.mean()) / self.num_samples,
                median=float(np.median(effective)) / self.num_samples,
                minimum=float(effective.min()) / self.num_samples,
                too_small=float((effective < FEWEST_EFFECTIVE).mean()),
            ),
            log_jacobian=mean["log_jacobian"],
            num_samples=self.num_samples,
            exact=bool(self.exact),
            num_features=mean["num_features"],
            moments=moments,
            pointwise=self.sums.pointwise,
            num_points=self.num_points,
            data_shape=self.data_shape,
            mode=self.mode,
        )


def _number(x: Tensor | None) -> float | None:
    return None if x is None else float(x)


def _data_log_prob(batch: Batch, z: Tensor) -> Tensor:
    """log p(x|z), (B, *factors), 0 for features that are not observed; float64."""
    log_prob = factor_log_prob(likelihood_at(batch.model, z, batch.x), batch.x)
    if batch.observed is None:
        return log_prob
    require_factors(log_prob, batch.observed)
    return torch.where(batch.observed.to(log_prob.device), log_prob, 0.0)


def _log_ratio(latents: Latents, z: Tensor) -> Tensor:
    """log p(z)/q(z|x), (B,), float64."""
    # Both at the z that was drawn, rounded as it may be: weights are then exact for it.
    prior, posterior = (factor_log_prob(each, z) for each in (latents.prior, latents.posterior))
    return per_point(prior, prior.shape) - per_point(posterior, posterior.shape)


def _num_features(batch: Batch, factors: Tensor) -> Tensor:
    """(B,): (observed) features of each point, a one-hot axis aside."""
    if batch.observed is not None:
        return to_float64(per_point(batch.observed, batch.observed.shape))
    shape = factors.shape if factors.ndim > 1 else batch.x.shape
    return torch.full(shape[:1], float(shape[1:].numel()), dtype=torch.float64)


def _own_values(log_likelihood: Any, batch: Batch) -> Tensor:
    """log p(x) by the model's own method, (B,), float64."""
    if not callable(log_likelihood):
        given = f"exact=True given for a {type(batch.model).__name__} without a method log_likelihood(x)"
        raise UsageError(f"{given}, expected a model that knows its log p(x); take exact=None")
    values = log_likelihood(batch.x)
    if not isinstance(values, Tensor) or values.shape != batch.x.shape[:1]:
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        expected = f"a Tensor of log p(x) for {len(batch.x)} rows, one each; if it is something else, take exact=False"
        raise ModelError(f"the model's log_likelihood(x) returned {given}, expected {expected}")
    return to_float64(values)


class _Weights:
    """Running sums over draws of the importance weights w of a batch, from their logarithms; (B,) each, float64.

    All logarithms are relative to that of the first draw, so that neither huge nor tiny weights leave the range of
    float64 and few digits are lost.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, log_weight: Tensor) -> None:
        """One draw for each point."""
        if not self.count:
            zeros = torch.zeros_like(log_weight)
            # A weight of 0 is a possible first one.
            self.centre = torch.where(log_weight.isfinite(), log_weight, 0.0)
            # Of even and of odd draws.
            self.log_sums = [zeros - math.inf, zeros - math.inf]
            self.log_squares = zeros - math.inf
            self.sum, self.squares, self.by_weight = zeros, zeros, zeros
        log_w, half = log_weight - self.centre, self.count % 2
        self.log_sums[half] = torch.logaddexp(self.log_sums[half], log_w)
        self.log_squares = torch.logaddexp(self.log_squares, 2 * log_w)
        self.sum = self.sum + log_w
        self.squares = self.squares + log_w.square()
        share = torch.exp(log_w - torch.logaddexp(*self.log_sums))
        # A weight of 0 has the logarithm -inf, and no share in the mean by weight.
        self.by_weight = torch.where(share > 0, self.by_weight + share * (log_w - self.by_weight), self.by_weight)
        self.count += 1

    def terms(self) -> dict[str, PointTerm]:
        """Bound, ELBO and what lies between them (20), (22), with the variances of their noise (21).

        Raises:
            ModelError: a weight is not a number.
        """
        if bool(self.sum.isnan().any()):
            row = int(self.sum.isnan().nonzero()[0])
            what = f"p(x, z)/q(z|x) of row {row} of a batch is not a number"
            raise ModelError(f"{what}; look for NaN in the model's parameters")
        k, log_sum = self.count, torch.logaddexp(*self.log_sums)
        log_mean, mean_log = log_sum - math.log(k), self.sum / k
        effective = torch.exp(2 * log_sum - self.log_squares).nan_to_num(nan=0.0).clamp(max=k)
        # With a = w/(mean w) - 1 and b = log w - (mean log w): means of a², b² and ab over the draws.
        of_weights = (k / effective - 1).clamp(min=0)
        of_logs = (self.squares / k - mean_log.square()).clamp(min=0)
        of_both = self.by_weight - mean_log

        def term(value: Tensor, spread: Tensor) -> PointTerm:
            return PointTerm(value, spread / (k - 1) if k > 1 else None)

        terms = {
            "value": term(self.centre + log_mean, of_weights),
            "elbo": term(self.centre + mean_log, of_logs),
            # Not the difference of both, which are large.
            "tightness": term(log_mean - mean_log, (of_weights - 2 * of_both + of_logs).clamp(min=0)),
            "effective_sample_size": PointTerm(effective, None),
        }
        if k > 1:
            sizes = (k - k // 2, k // 2)
            halves = [part - math.log(size) for part, size in zip(self.log_sums, sizes, strict=True)]
            terms["value_at_half"] = PointTerm(self.centre + (halves[0] + halves[1]) / 2, None)
        return terms


def _render(r: LogLikelihood) -> str:
    """Several lines of text: the ledger, then what it says."""
    sizes = f"{r.num_points:,} data points of {ledger.size(r.data_shape)} features, {r.num_samples:,} draws of z each"
    how = "log p(x) by the model itself" if r.exact else "importance-weighted bound on log p(x)"
    # Rounded so that the lines add up.
    elbo, tightness = ledger.add_up(r.value, [r.elbo, r.tightness])
    of_elbo = r.moments["elbo"]
    lines = [
        ("  ELBO", elbo, _number(of_elbo.mc_stderr), float(of_elbo.stderr)),
        ("+ tightness", tightness, r.tightness_mc_stderr, r.tightness_stderr),
        ("= log-likelihood" if r.exact else "= log-likelihood, at least", r.value, r.mc_stderr, r.stderr),
    ]
    head = [f"{sizes}; nats per data point", f"{how}, networks in {r.mode} mode", ""]
    return "\n".join([*head, *ledger.table(lines), "", *_remarks(r)])


def _remarks(r: LogLikelihood) -> list[str]:
    e, remarks = r.effective_sample_size, []
    if r.value_at_half is not None and math.isfinite(lower := r.value - r.value_at_half):
        remarks.append(f"with half of the draws it is {ledger.number(lower)} lower: about as much may still be missing")
    shares = f"mean {e.mean:.1%}, median {e.median:.1%}, least {e.minimum:.1%}"
    remarks.append(f"effective draws: {shares} of {r.num_samples:,}")
    if e.too_small and not r.exact:
        few = f"{e.too_small:.1%} of the points have fewer than {FEWEST_EFFECTIVE} effective draws"
        remarks.append(f"{few}: for them the bound is too low, and its error too small; take more draws")
    if r.log_jacobian:
        stored = f"{ledger.number(r.data_value)} nats, {r.bits_per_dim:.4f} bits per dimension"
        remarks.append(f"in the units of the data as stored: log-likelihood {stored}")
    if r.value == -math.inf:
        remarks.append("the log-likelihood is -inf: every draw gives some data probability 0")
    return remarks
