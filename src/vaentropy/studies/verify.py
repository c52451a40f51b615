"""`verify`: the theorem, checked to the last digits on models small enough to be driven to a stationary point.

Each nonlinear case minimises -ELBO plus a ridge that keeps the optimum at finite weights. The ridge does not change
along the moves that the theorem needs (scaling σ²; scaling a latent, or α²), so a stationary point of the sum is one of
the ELBO along these moves, and the theorem holds there. `gradient_norm` and `hessian_min` are those of the sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vaentropy._typing import Tensor
from vaentropy.data import pca
from vaentropy.distributions import LOG_2PI, DiagonalNormal, normal_log_prob, to_float64
from vaentropy.entropy import FactorTerms, factor_terms
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation, Frozen, GaussHermite
from vaentropy.likelihoods import Gaussian, GaussianHead
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.networks import MLPDecoder
from vaentropy.results import Evaluation
from vaentropy.studies.stationary import curvature, descend
from vaentropy.vae import VAE, LearnedNormal

__all__ = ["Case", "verify"]

NUM_POINTS, DATA_DIM, LATENT_DIM = 100, 5, 2
RIDGE = 1e-2
# A latent counts as active when its KL is above this, in nats.
ACTIVE_KL = 0.05
LINEAR_GAP, LINEAR_GRADIENT = 1e-12, 1e-10
NONLINEAR_GAP, NONLINEAR_GRADIENT = 1e-8, 1e-6
# A gap counts as one that does not vanish when it is this many times larger than what passes for zero.
CLEARLY = 1e3


@dataclass(frozen=True)
class Case:
    """One model at a stationary point; ELBO and entropy sum in nats per data point.

    Attributes:
        model: what it is.
        elbo: evidence lower bound.
        entropy_sum: encoder - prior - decoder entropy.
        relative_gap: |elbo - entropy_sum| / |elbo|.
        gradient_norm: of the objective, as evidence that the point is stationary.
        hessian_min: smallest eigenvalue of the objective's Hessian: positive at a minimum, negative at a saddle.
        active_latents: how many have a KL above 0.05 nats.
        theorem: whether the theorem covers the model, so that the gap has to vanish.
        holds: the gradient is small enough, and the gap vanishes where it has to and does not where it must not.
        note: how the case is made.
        own_entropy_sum: for VAE-0, the entropy sum with the pseudo entropy of a fixed σ², which its ELBO has to equal.
        own_relative_gap: |elbo - own_entropy_sum| / |elbo|.
    """

    model: str
    elbo: float
    entropy_sum: float
    relative_gap: float
    gradient_norm: float
    hessian_min: float
    active_latents: int
    theorem: bool
    holds: bool
    note: str
    own_entropy_sum: float | None = None
    own_relative_gap: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)


# --- Linear VAE: stationary points in closed form -------------------------------------------------------------------


def _linear(name: str, latent_dim: int, eigenvectors: Sequence[int] | None, note: str) -> Case:
    x, _ = pca(500, DATA_DIM, 3, noise=0.5)
    statistics = DataMoments.of(x)
    model = LinearVAE.optimum(statistics, latent_dim, eigenvectors=eigenvectors)
    point = curvature(lambda: -model.elbo(statistics), list(model.parameters()))
    terms = model.elbo_terms(statistics)
    elbo, entropy_sum = float(terms.elbo.detach()), float(terms.entropy_sum.detach())
    relative_gap = abs(elbo - entropy_sum) / abs(elbo)
    return Case(
        model=name,
        elbo=elbo,
        entropy_sum=entropy_sum,
        relative_gap=relative_gap,
        gradient_norm=point.gradient_norm,
        hessian_min=point.hessian_min,
        active_latents=int((terms.kl > ACTIVE_KL).sum()),
        theorem=True,
        holds=relative_gap <= LINEAR_GAP and point.gradient_norm <= LINEAR_GRADIENT,
        note=note,
    )


# --- Nonlinear VAEs: driven to a stationary point -------------------------------------------------------------------


class _SoftplusHead(GaussianHead):
    """σ²(z) = softplus(affine): a constant cannot be added to log σ²(z), so the theorem's move (i) is impossible."""

    def log_variance_at(self, features: Tensor) -> Tensor:
        return nn.functional.softplus(super().log_variance_at(features)).log()


class _SoftplusGaussian(Gaussian):
    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> GaussianHead:
        return _SoftplusHead(self, features_shape, data_shape)


class _FixedVarianceNormal(DiagonalNormal):
    """A normal whose σ² is a constant: its base measure contains x², so it has a pseudo entropy of its own."""


@factor_terms.register
def _(distribution: _FixedVarianceNormal, value: Tensor) -> FactorTerms:
    # Exponential family with natural parameter η = μ/σ² and statistic x: A(η) = σ²η²/2 = μ²/(2σ²).
    x, mean, log_variance = to_float64(value), to_float64(distribution.mean), to_float64(distribution.log_variance)
    variance = log_variance.exp()
    return FactorTerms(
        log_prob=normal_log_prob(x, mean, log_variance),
        entropy=-mean.square() / (2 * variance),
        residual=mean * (x - mean) / variance,
        log_base=-x.square() / (2 * variance) - 0.5 * (LOG_2PI + log_variance),
    )


class _WithFixedVariance(nn.Module):
    """VAE-0, its likelihood marked as one of fixed variance."""

    def __init__(self, model: VAE):
        super().__init__()
        self.model, self.posterior, self.prior = model, model.posterior, model.prior

    def likelihood(self, z: Tensor) -> DiagonalNormal:
        distribution = self.model.likelihood(z)
        assert isinstance(distribution, DiagonalNormal)
        return _FixedVarianceNormal(distribution.mean, distribution.log_variance)


def _data() -> Tensor:
    """Points around a curved surface of two dimensions, so that two latents are worth having."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z, linear, bent = normal(NUM_POINTS, 2), normal(2, DATA_DIM), normal(2, DATA_DIM)
    return z @ linear + 0.5 * torch.tanh(z @ bent) + 0.3 * normal(NUM_POINTS, DATA_DIM)


def _moved(model: VAE) -> list[nn.Parameter]:
    """Parameters that the theorem's moves change: a plain ridge on one of them would shift the stationary point."""
    moved = model.variance_parameters()
    if not isinstance(model.prior_log_variance, nn.Parameter):
        moved += [*model.latent_mean.parameters(), model.latent_log_variance.bias, model.latent_layer.weight]
    return moved + _output_layer(model)


def _output_layer(model: VAE) -> list[nn.Parameter]:
    """For fixed σ², the layer of the mean: scaling it is the move behind the formula that holds then; else nothing."""
    assert isinstance(model.head, GaussianHead)
    return [] if model.variance_parameters() else list(model.head.mean.parameters())


def _direction(parameters: Sequence[Tensor]) -> Tensor:
    flat = torch.cat([p.flatten() for p in parameters])
    return flat / flat.norm()


def _ridge(model: VAE) -> Callable[[], Tensor]:
    """A penalty that keeps weights near their start and does not change along the theorem's moves."""
    moved = {id(parameter) for parameter in _moved(model)}
    held = [(p, p.detach().clone()) for p in model.parameters() if id(p) not in moved]
    learned_prior = isinstance(model.prior_log_variance, nn.Parameter)
    output = _output_layer(model)
    output_start = _direction(output).detach() if output else None

    def penalty() -> Tensor:
        total = torch.stack([(p - start).square().sum() for p, start in held]).sum()
        if not learned_prior:
            # Scaling a latent multiplies one factor and divides the other.
            columns, rows = model.latent_layer.weight.square().sum(0), model.latent_mean.weight.square().sum(1)
            total = total + torch.dot(columns, rows)
        if output_start is not None:
            total = total + (_direction(output) - output_start).square().sum()
        return RIDGE * total

    return penalty


def _nonlinear(
    name: str, note: str, *, theorem: bool, expectation: Expectation, **options: Any
) -> tuple[Case, VAE, Tensor]:
    x = _data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = MLPDecoder((4, 4), nn.Softplus)
        model = VAE(nn.Flatten(), decoder, data_shape=DATA_DIM, latent_dim=LATENT_DIM, **options).double()
    nodes = expectation.nodes(len(x), model.latent_shape, generator=torch.Generator(), dtype=x.dtype)
    ridge = _ridge(model)

    def objective() -> Tensor:
        return ridge() - model.elbo_terms(x, nodes.noise, nodes.weights).elbo.mean()

    point = descend(objective, list(model.parameters()))
    evaluation = evaluate(model, x, expectation=expectation)
    vanishes = evaluation.relative_gap <= NONLINEAR_GAP
    as_expected = vanishes if theorem else evaluation.relative_gap > CLEARLY * NONLINEAR_GAP
    case = Case(
        model=name,
        elbo=evaluation.elbo,
        entropy_sum=evaluation.entropy_sum,
        relative_gap=evaluation.relative_gap,
        gradient_norm=point.gradient_norm,
        hessian_min=point.hessian_min,
        active_latents=_active(evaluation),
        theorem=theorem,
        holds=as_expected and point.gradient_norm <= NONLINEAR_GRADIENT,
        note=note,
    )
    return case, model, x


def _active(evaluation: Evaluation) -> int:
    assert evaluation.kl_per_latent is not None
    return int((evaluation.kl_per_latent > ACTIVE_KL).sum())


QUADRATURE = GaussHermite(3)


def _vae1() -> Case:
    note = "decoder 2-4-4-5 softplus, affine encoder, quadrature"
    return _nonlinear("VAE-1", note, theorem=True, expectation=QUADRATURE)[0]


def _vae2() -> Case:
    note = "as VAE-1, unit columns, learned prior variances, frozen noise"
    options = {"prior": LearnedNormal(), "columns": "unit"}
    return _nonlinear("VAE-2", note, theorem=True, expectation=Frozen(0, 16), **options)[0]


def _vae3() -> Case:
    note = "as VAE-1, affine log-variance head"
    return _nonlinear("VAE-3", note, theorem=True, expectation=QUADRATURE, likelihood=Gaussian("function"))[0]


def _vae3_softplus() -> Case:
    note = "softplus on σ²(z): move (i) is impossible, so the gap must not vanish"
    options = {"likelihood": _SoftplusGaussian("function")}
    return _nonlinear("VAE-3, softplus head", note, theorem=False, expectation=QUADRATURE, **options)[0]


def _vae0() -> Case:
    note = "σ² = 1 fixed: the gap must not vanish, that to its own formula must"
    options = {"likelihood": Gaussian(1.0)}
    case, model, x = _nonlinear("VAE-0", note, theorem=False, expectation=QUADRATURE, **options)
    own = evaluate(_WithFixedVariance(model), x, expectation=QUADRATURE)
    holds = case.holds and own.relative_gap <= NONLINEAR_GAP
    return replace(case, own_entropy_sum=own.entropy_sum, own_relative_gap=own.relative_gap, holds=holds)


CASES: dict[str, Callable[[], Case]] = {
    "linear-optimum": lambda: _linear("linear VAE, optimum", 2, None, "two leading eigenvectors"),
    "linear-saddle": lambda: _linear("linear VAE, saddle", 2, (0, 2), "first and third eigenvector"),
    "linear-collapsed": lambda: _linear("linear VAE, collapsed latent", 3, (0, 1), "third latent without use"),
    "vae1": _vae1,
    "vae2": _vae2,
    "vae3": _vae3,
    "vae3-softplus": _vae3_softplus,
    "vae0": _vae0,
}


def verify(*, on_case: Callable[[Case], None] | None = None) -> list[Case]:
    """Check the theorem on every case; a minute or less on one core.

    Args:
        on_case: called with each case as it ends.

    Returns:
        The cases; the theorem stands where all of them hold.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    cases = []
    for make in CASES.values():
        cases.append(make())
        if on_case:
            on_case(cases[-1])
    return cases
