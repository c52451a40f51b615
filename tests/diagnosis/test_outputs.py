"""Parameters of distributions, and roots of their Fisher information against torch's Kullback-Leibler divergences."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
    kl_divergence,
)

from vaentropy.diagnosis.outputs import natural_parameters, outputs_of, roots_of_fisher
from vaentropy.distributions import DiagonalNormal, LogRatePoisson
from vaentropy.errors import ModelError, UnsupportedError
from vaentropy.families import vae1, vae2, vae3
from vaentropy.model import from_functions

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- Fisher information -----------------------------------------------------------------------------------------------

FAMILIES = {
    "normal": (lambda p: Normal(p["mean"], torch.exp(0.5 * p["log_variance"])), ("mean", "log_variance")),
    "bernoulli": (lambda p: Bernoulli(logits=p["logits"]), ("logits",)),
    "poisson": (lambda p: Poisson(p["log_rate"].exp()), ("log_rate",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_squared_length_of_a_small_change_is_the_divergence(family):
    make, names = FAMILIES[family]
    at = {name: draw(6, 4, seed=i) for i, name in enumerate(names)}
    change = {name: draw(6, 4, seed=10 + i) for i, name in enumerate(names)}
    roots = roots_of_fisher(natural_parameters(make(at)) or {})
    assert set(roots) == set(names)
    quadratic = sum(0.5 * (roots[name] * change[name]).square() for name in names)
    step = 1e-4
    # Of both signs, so that the third order is gone.
    both = [
        kl_divergence(make(at), make({name: at[name] + sign * step * change[name] for name in names}))
        for sign in (1, -1)
    ]
    assert torch.allclose((both[0] + both[1]) / (2 * step**2), quadratic, rtol=1e-5, atol=1e-7)


def test_roots_have_no_gradients_and_the_parameters_do():
    mean, log_variance = draw(3, 2).requires_grad_(), draw(seed=1).requires_grad_()
    parameters = natural_parameters(DiagonalNormal(mean, log_variance))
    assert parameters is not None
    assert all(p.requires_grad and p.shape == (3, 2) for p in parameters.values())
    assert not any(root.requires_grad for root in roots_of_fisher(parameters).values())


# --- Natural parameters -----------------------------------------------------------------------------------------------

A, B = draw(5, 3), draw(5, 3, seed=1)
NORMAL = {"mean": A, "log_variance": B}
FORMS = {
    "Normal": (Normal(A, torch.exp(0.5 * B)), NORMAL),
    "Independent": (Independent(Independent(Normal(A, torch.exp(0.5 * B)), 0), 1), NORMAL),
    "DiagonalNormal": (DiagonalNormal(A, B), NORMAL),
    "shared σ²": (
        DiagonalNormal(A, torch.tensor(-0.7, dtype=F64)),
        {**NORMAL, "log_variance": torch.full_like(A, -0.7)},
    ),
    "σ² per feature": (DiagonalNormal(A, B[0]), {**NORMAL, "log_variance": B[:1].expand(5, 3)}),
    "Bernoulli by logits": (Bernoulli(logits=A), {"logits": A}),
    "Bernoulli by probabilities": (Independent(Bernoulli(probs=A.sigmoid()), 1), {"logits": A}),
    "Poisson by rate": (Independent(Poisson(A.exp()), 1), {"log_rate": A}),
    "Poisson by log-rate": (LogRatePoisson(A), {"log_rate": A}),
    "float32": (DiagonalNormal(A.float(), B.float()), {"mean": A.float().double(), "log_variance": B.float().double()}),
}
OTHERS = {
    "full covariance": MultivariateNormal(A, torch.eye(3, dtype=F64)),
    "Laplace": Independent(Laplace(A, B.exp()), 1),
    "categorical": Categorical(logits=A),
}


@pytest.mark.parametrize("form", FORMS)
def test_natural_parameters_of(form):
    distribution, expected = FORMS[form]
    found = natural_parameters(distribution)
    assert found is not None and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == F64 and found[name].shape == value.shape
        assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("form", OTHERS)
def test_no_natural_parameters_of(form):
    assert natural_parameters(OTHERS[form]) is None


# --- Outputs of models ------------------------------------------------------------------------------------------------


def seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_outputs_are_those_of_the_distributions(dtype):
    model = seeded(lambda: vae3(4, 2, (5,))).to(dtype)
    x = draw(50, 4).to(dtype)
    outputs = outputs_of(model, x, seed=3)
    q = model.posterior(x)
    assert torch.equal(outputs.mean, q.mean.double())
    assert torch.allclose(outputs.log_variance.exp(), q.variance.double(), rtol=1e-6)
    assert outputs.prior_mean.tolist() == outputs.prior_log_variance.tolist() == [0, 0]
    assert not outputs.prior_log_variance.requires_grad
    z = draw(50, 2, seed=5)
    decoder, p = outputs.likelihood_at(z), model.likelihood(z.to(dtype))
    assert torch.equal(decoder["mean"], p.mean.double()) and decoder["mean"].dtype == F64
    assert torch.allclose(decoder["log_variance"].exp(), p.variance.double(), rtol=1e-6)


def test_draws_are_of_the_posterior_with_gradients_and_reproducible():
    model = seeded(lambda: vae1(4, 2, (5,))).double()
    x = draw(4000, 4)
    outputs = outputs_of(model, x, seed=3)
    noise = ((outputs.z - outputs.mean) / torch.exp(0.5 * outputs.log_variance)).detach()
    assert float(noise.mean()) == pytest.approx(0, abs=4 / 8000**0.5)
    assert float(noise.std()) == pytest.approx(1, abs=4 / 16000**0.5)
    assert torch.equal(outputs_of(model, x, seed=3).z, outputs.z)
    assert not torch.equal(outputs_of(model, x, seed=4).z, outputs.z)
    # z = ν + τ ε: along b of ν it moves by 1, along b of log τ² by ½ τ ε.
    by_mean, by_variance = torch.autograd.grad(
        outputs.z.sum(), [model.latent_mean.bias, model.latent_log_variance.bias]
    )
    assert by_mean.tolist() == pytest.approx([4000, 4000])
    expected = 0.5 * (outputs.z - outputs.mean).sum(0)
    assert by_variance.tolist() == pytest.approx(expected.tolist())


def test_a_learned_prior_has_gradients_and_one_that_is_a_number_is_expanded():
    learned = outputs_of(seeded(lambda: vae2(4, 2, (5,))), draw(6, 4).float(), seed=0)
    assert learned.prior_log_variance.requires_grad
    model = from_functions(lambda x: (x[:, :2], -x[:, 2:]), lambda z: z, variance=1.0)
    assert outputs_of(model, draw(6, 4), seed=0).prior_log_variance.tolist() == [0, 0]
    prior = Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    other = outputs_of(from_functions(lambda x: (x[:, :2], -x[:, 2:]), lambda z: z, prior=prior), draw(6, 4), seed=0)
    assert other.prior_mean.tolist() == [1, -2]
    assert other.prior_log_variance.exp().tolist() == pytest.approx([0.25, 9])


def test_latents_of_several_axes():
    model = from_functions(lambda x: (x, torch.zeros_like(x)), lambda z: z, variance=2.0)
    outputs = outputs_of(model, draw(5, 2, 3, 4), seed=0)
    assert outputs.z.shape == (5, 2, 3, 4) and outputs.prior_mean.shape == (2, 3, 4)
    assert outputs.likelihood_at(outputs.z)["log_variance"].unique().tolist() == pytest.approx([math.log(2)])


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (lambda x: MultivariateNormal(x, torch.eye(3, dtype=F64)), None),
        (lambda x: Laplace(x, torch.ones_like(x)), None),
        (lambda x: Normal(x, torch.ones_like(x)), Laplace(torch.zeros(3), torch.ones(3))),
        # A prior of its own for each point.
        (lambda x: Normal(x, torch.ones_like(x)), Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)),
    ],
)
def test_latents_that_are_not_normal_with_independent_elements(posterior, prior):
    model = from_functions(posterior, lambda z: z, prior=prior, variance=1.0)
    with pytest.raises(UnsupportedError, match="not normal with independent elements"):
        outputs_of(model, draw(5, 3), seed=0)


def test_likelihoods_of_other_kinds_and_shapes():
    encode = lambda x: (x, torch.zeros_like(x))  # noqa: E731
    laplace = outputs_of(from_functions(encode, lambda z: Laplace(z, torch.ones_like(z))), draw(5, 3), seed=0)
    with pytest.raises(UnsupportedError, match="expected a normal, Bernoulli or Poisson one"):
        laplace.likelihood_at(laplace.z)
    shared = outputs_of(from_functions(encode, lambda z: Normal(z[0], torch.ones(3))), draw(5, 3), seed=0)
    with pytest.raises(ModelError, match="one distribution per row"):
        shared.likelihood_at(shared.z)
