"""Small random models, and the ELBO by other routes than the package's, for the tests of the core."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    kl_divergence,
)

from vaentropy.distributions import DiagonalNormal
from vaentropy.expectation import Expectation

F64 = torch.float64
CLASSES = 4
# The identities hold up to rounding; sums of a few hundred terms lose about 1e-14 of their absolute values.
TIGHT = 1e-12


def close(actual, expected, scale=None, tolerance=TIGHT) -> bool:
    """Equal up to `tolerance` of `scale`, the sum of the absolute terms (by default of the expected value)."""
    actual, expected = torch.as_tensor(actual, dtype=F64), torch.as_tensor(expected, dtype=F64)
    scale = expected.abs() if scale is None else torch.as_tensor(scale, dtype=F64)
    return actual.shape == expected.shape and bool(((actual - expected).abs() <= tolerance * scale).all())


def random_network(generator: torch.Generator, shape_in: tuple[int, ...], shape_out: tuple[int, ...], width: int = 5):
    """A fixed function (B, *shape_in) -> (B, *shape_out) with one hidden layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64)

    first, bias, last = normal(math.prod(shape_in), width), normal(width), 0.5 * normal(width, math.prod(shape_out))
    return lambda x: (torch.tanh(x.to(F64).flatten(1) @ first / 2 + bias) @ last).unflatten(1, shape_out)


def _cholesky(flat: Tensor) -> Tensor:
    lower = torch.tril(flat, -1)
    return lower + torch.diag_embed(torch.exp(0.3 * flat.diagonal(dim1=-2, dim2=-1)))


# --- What a toy model can be made of: each entry turns networks' outputs into a distribution --------------------------

POSTERIORS: dict[str, Callable[[Tensor, Tensor, Tensor], Distribution]] = {
    "normal": lambda a, b, c: Normal(a, torch.exp(b / 2)),
    "diagonal": lambda a, b, c: DiagonalNormal(a, b),
    "full": lambda a, b, c: MultivariateNormal(a, scale_tril=_cholesky(c)),
    "low rank": lambda a, b, c: LowRankMultivariateNormal(a, c[..., :1], torch.exp(b)),
    "laplace": lambda a, b, c: Laplace(a, torch.exp(b)),
}
NORMAL_POSTERIORS = ("normal", "diagonal", "full", "low rank")

# Of the mean or logits a (B, *data), a second output b (B, *data), class logits c (B, *data, classes), one random
# constant k per feature.
LIKELIHOODS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Distribution]] = {
    "normal, shared": lambda a, b, c, k: DiagonalNormal(a, torch.tensor(-0.7, dtype=F64)),
    "normal, per feature": lambda a, b, c, k: Normal(a, torch.exp(k / 2).expand(a.shape)),
    "normal, function": lambda a, b, c, k: Independent(Normal(a, torch.exp(b)), 1),
    "bernoulli": lambda a, b, c, k: Bernoulli(logits=3 * a),
    "bernoulli by probabilities": lambda a, b, c, k: Independent(Bernoulli(probs=torch.sigmoid(a)), 1),
    "categorical": lambda a, b, c, k: Categorical(logits=c),
    "one hot": lambda a, b, c, k: OneHotCategorical(logits=c),
    "laplace": lambda a, b, c, k: Laplace(a, torch.exp(b)),
    "poisson": lambda a, b, c, k: Poisson(torch.exp(a + b)),
    "student t": lambda a, b, c, k: StudentT(3.5, a, torch.exp(b)),
    "exponential": lambda a, b, c, k: Exponential(torch.exp(b)),
    "full normal": lambda a, b, c, k: MultivariateNormal(a, scale_tril=_cholesky(torch.diag_embed(b) + 0.3)),
}
NORMAL_LIKELIHOODS = ("normal, shared", "normal, per feature", "normal, function")

# Of two random constants (*latent,) each.
PRIORS: dict[str, Callable[[Tensor, Tensor], Distribution]] = {
    "standard": lambda a, b: Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64)),
    "learned": lambda a, b: DiagonalNormal(torch.zeros_like(a), b, event_dim=a.ndim),
    "with mean": lambda a, b: Normal(a, torch.exp(b / 2)),
    "laplace": lambda a, b: Laplace(a, torch.exp(b)),
    "full": lambda a, b: MultivariateNormal(a, scale_tril=_cholesky(torch.diag_embed(b) + 0.4)),
    "mixture": lambda a, b: MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], dtype=F64)),
        Independent(Normal(torch.stack([a - 1, a + 1]), torch.exp(torch.stack([b, -b]) / 2)), a.ndim),
    ),
}
NORMAL_PRIORS = ("standard", "learned", "with mean")


class Toy:
    """A three-method model of random networks, and data for it; nothing of it is a torch Module."""

    def __init__(
        self,
        seed: int,
        posterior: str = "diagonal",
        likelihood: str = "normal, shared",
        prior: str = "standard",
        data_shape: tuple[int, ...] = (3,),
        latent_shape: tuple[int, ...] = (2,),
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = posterior, likelihood, prior
        self.features = data_shape
        self.data_shape = (*data_shape, CLASSES) if likelihood == "one hot" else data_shape
        self.latent_shape = latent_shape

        def network(shape_in: tuple[int, ...], shape_out: tuple[int, ...]):
            return random_network(self.generator, shape_in, shape_out)

        self.encoders = [network(self.data_shape, s) for s in (latent_shape, latent_shape, latent_shape * 2)]
        self.decoders = [network(latent_shape, s) for s in (data_shape, data_shape, (*data_shape, CLASSES))]
        self.feature_constant = torch.randn(data_shape, generator=self.generator, dtype=F64)
        self.prior_constants = torch.randn((2, *latent_shape), generator=self.generator, dtype=F64)

    def data(self, num_points: int) -> Tensor:
        """Rows in the support of the likelihood, not drawn from the model."""
        shape = (num_points, *self.features)
        likelihood = self.kinds[1]
        if likelihood.startswith("bernoulli"):
            return torch.randint(2, shape, generator=self.generator).to(F64)
        if likelihood == "categorical":
            return torch.randint(CLASSES, shape, generator=self.generator)
        if likelihood == "one hot":
            labels = torch.randint(CLASSES, shape, generator=self.generator)
            return torch.nn.functional.one_hot(labels, CLASSES).to(F64)
        if likelihood == "poisson":
            return torch.randint(6, shape, generator=self.generator).to(F64)
        x = 1.5 * torch.randn(shape, generator=self.generator, dtype=F64)
        return x.abs() if likelihood == "exponential" else x

    def posterior(self, x: Tensor) -> Distribution:
        return POSTERIORS[self.kinds[0]](*[network(x) for network in self.encoders])

    def prior(self) -> Distribution:
        return PRIORS[self.kinds[2]](*self.prior_constants)

    def likelihood(self, z: Tensor) -> Distribution:
        return LIKELIHOODS[self.kinds[1]](*[network(z) for network in self.decoders], self.feature_constant)


class Recording:
    """A model that remembers the z it is asked about."""

    def __init__(self, model):
        self.model, self.z = model, []
        self.posterior, self.prior = model.posterior, model.prior

    def likelihood(self, z: Tensor) -> Distribution:
        self.z.append(z)
        return self.model.likelihood(z)


# --- The ELBO and its parts from torch.distributions and equations (1) to (8) of docs/mathematics.md ----------


def as_torch(distribution: Distribution) -> Distribution:
    """Our normal as torch's, through the standard deviation; every other distribution as it is."""
    if isinstance(distribution, DiagonalNormal):
        normal = Normal(distribution.mean, distribution.log_variance.mul(0.5).exp())
        return Independent(normal, len(distribution.event_shape))
    return distribution


def _rows(x: Tensor) -> Tensor:
    """(B,): summed over everything but the row."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def base_of(distribution: Distribution) -> Distribution:
    """What torch's Independent wraps."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def draws(q: Distribution, noise: Tensor) -> Tensor:
    """z of a normal posterior for noise (K, B or 1, *latent)."""
    if isinstance(q, MultivariateNormal | LowRankMultivariateNormal):
        return q.loc + torch.einsum(
            "bij,kbj->kbi", torch.linalg.cholesky(q.covariance_matrix), noise.expand(-1, len(q.loc), -1)
        )
    return q.mean + q.variance.sqrt() * noise


def nodes_of(expectation: Expectation, batch_size: int, latent_shape: tuple[int, ...]):
    """The nodes that one evaluation of a single batch uses."""
    return expectation.nodes(batch_size, latent_shape, generator=expectation.generator(), dtype=F64)


def reference(model, x: Tensor, z: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Terms per data point (B,), from draws z (K, B, *latent) and their weights (K,).

    `prior_entropy` and what follows from it are absent where the prior's entropy has no closed form.
    """
    size = len(x)
    q, p = as_torch(model.posterior(x)), as_torch(model.prior())
    latent_shape = z.shape[2:]
    p = p.expand(latent_shape) if not (p.batch_shape + p.event_shape) else p

    def over_nodes(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([w * _rows(of(z_k)) for w, z_k in zip(weights, z, strict=True)]).sum(0)

    def decoder(z_k: Tensor) -> Distribution:
        return as_torch(model.likelihood(z_k))

    def pseudo_entropy(z_k: Tensor) -> Tensor:
        d = base_of(decoder(z_k))
        return d.rate - torch.special.xlogy(d.rate, d.rate) if isinstance(d, Poisson) else d.entropy()

    out = {
        "encoder_entropy": _rows(q.entropy()),
        "reconstruction": over_nodes(lambda z_k: decoder(z_k).log_prob(x)),
        "decoder_entropy": over_nodes(pseudo_entropy),
        "log_base": -_rows(torch.lgamma(x + 1.0))
        if isinstance(base_of(decoder(z[0])), Poisson)
        else torch.zeros(size, dtype=F64),
    }
    normal = isinstance(q, Normal | Independent | MultivariateNormal | LowRankMultivariateNormal)
    if normal and isinstance(base_of(p), Normal):
        mean, variance, m0, a2 = q.mean, q.variance, p.mean, p.variance
        full = isinstance(q, MultivariateNormal | LowRankMultivariateNormal)
        qm = MultivariateNormal(q.mean, q.covariance_matrix) if full else Normal(mean, variance.sqrt())
        pm = (
            MultivariateNormal(m0.expand(latent_shape), torch.diag(a2.expand(latent_shape)))
            if full
            else Normal(m0, a2.sqrt())
        )
        out["kl"] = _rows(kl_divergence(qm, pm))
        out["prior_second_moment"] = (mean - m0) ** 2 + variance
        out["prior_residuals"] = -0.5 * (out["prior_second_moment"] / a2 - 1)
        out["prior_gap"] = _rows(out["prior_residuals"])
        out["prior_entropy"] = p.entropy().sum().expand(size)
    else:
        cross = over_nodes(lambda z_k: p.log_prob(z_k))
        out["kl"] = -out["encoder_entropy"] - cross
        if not isinstance(p, MixtureSameFamily):
            out["prior_entropy"] = p.entropy().sum().expand(size)
            out["prior_gap"] = cross + out["prior_entropy"]
    if isinstance(base_of(decoder(z[0])), Normal):
        errors = [(x - decoder(z_k).mean) ** 2 for z_k in z]
        scaled = [e / decoder(z_k).variance for e, z_k in zip(errors, z, strict=True)]
        out["squared_error"] = torch.einsum("k,k...->...", weights, torch.stack(errors))
        out["decoder_residuals"] = -0.5 * torch.einsum("k,k...->...", weights, torch.stack(scaled) - 1)
        out["decoder_gap"] = _rows(out["decoder_residuals"])
    else:
        out["decoder_gap"] = out["reconstruction"] + out["decoder_entropy"] - out["log_base"]
    out["elbo"] = out["reconstruction"] - out["kl"]
    if "prior_entropy" in out:
        out["entropy_sum"] = out["encoder_entropy"] - out["prior_entropy"] - out["decoder_entropy"] + out["log_base"]
        out["gap"] = out["prior_gap"] + out["decoder_gap"]
    return out


def magnitude(terms: dict[str, Tensor]) -> float:
    """The sum of the absolute terms per data point: what rounding errors are relative to."""
    names = ("reconstruction", "kl", "encoder_entropy", "prior_entropy", "decoder_entropy", "log_base")
    gaps = ("prior_gap", "decoder_gap")
    return float(sum(terms[name].detach().abs().mean() for name in names + gaps if name in terms)) + 1.0
