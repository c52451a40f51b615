"""The table of latents against torch.distributions, numpy's moments, and mutual information that is known."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import (
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from vaentropy.diagnosis.latents import Latents, check_collapse, latents_of
from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.families import vae1, vae2
from vaentropy.linear import LinearVAE
from vaentropy.model import from_functions

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def table(model, x: torch.Tensor, **options) -> Latents:
    found = latents_of(model, evaluate(model, x), **options)
    assert found is not None
    return found


def fixed(mean: torch.Tensor, log_variance: torch.Tensor, prior=None):
    """A model whose posteriors are those given, (N, H) each; its data are their row numbers."""

    def encode(x):
        rows = x[:, 0].long()
        return mean[rows], log_variance[rows]

    model = from_functions(encode, lambda z: z.flatten(1)[:, :1], prior=prior, variance=1.0)
    return model, torch.arange(len(mean), dtype=F64).unsqueeze(1)


def as_normals(mean: torch.Tensor, log_variance: torch.Tensor) -> Normal:
    return Normal(mean, torch.exp(0.5 * log_variance))


MEAN, LOG_VARIANCE = draw(40, 3) * torch.tensor([1.5, 0.2, 0.7]).double() + 0.3, 0.5 * draw(40, 3, seed=1) - 1
PRIORS = {
    "standard": (None, Normal(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64))),
    "with a mean": (Normal(torch.tensor([1.0, -0.5, 0.0]).double(), torch.tensor([0.7, 2.0, 1.0]).double()),) * 2,
}


# --- Entropies, KL and moments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_entropies_and_divergences(name):
    prior, reference = PRIORS[name]
    found = table(*fixed(MEAN, LOG_VARIANCE, prior))
    q = as_normals(MEAN, LOG_VARIANCE)
    assert torch.allclose(found.kl, kl_divergence(q, reference).mean(0), rtol=1e-12)
    assert torch.allclose(found.encoder_entropy, q.entropy().mean(0), rtol=1e-12)
    assert torch.allclose(found.prior_entropy, reference.entropy(), rtol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_moments_of_the_aggregate_posterior(name):
    prior, reference = PRIORS[name]
    found = table(*fixed(MEAN, LOG_VARIANCE, prior))
    mean, variance = MEAN.numpy(), np.exp(LOG_VARIANCE.numpy())
    assert np.allclose(found.mean, mean.mean(0), rtol=1e-12)
    assert np.allclose(found.mean_variance, mean.var(0), rtol=1e-12)
    assert np.allclose(found.posterior_variance, variance.mean(0), rtol=1e-12)
    m0, a2 = reference.mean.numpy(), reference.variance.numpy()
    assert np.allclose(found.prior_ratio, ((mean - m0) ** 2 + variance).mean(0) / a2, rtol=1e-12)
    total = mean.var(0) + variance.mean(0)
    assert np.allclose(found.spread_ratio, total / a2, rtol=1e-12)
    aggregate = Normal(torch.from_numpy(mean.mean(0)), torch.from_numpy(total**0.5))
    assert torch.allclose(found.mismatch, kl_divergence(aggregate, reference), rtol=1e-11)
    centred = Normal(reference.mean, aggregate.scale)
    assert torch.allclose(found.shift, found.mismatch - kl_divergence(centred, reference), rtol=1e-10, atol=1e-14)
    # The same by draws.
    z = as_normals(MEAN, LOG_VARIANCE).sample(torch.Size([20_000])).reshape(-1, 3)
    assert torch.allclose(found.mismatch, kl_divergence(Normal(z.mean(0), z.std(0)), reference), rtol=0.05, atol=2e-3)


def test_correlations_against_numpy():
    mean = draw(200, 3) @ torch.tensor([[1, 0.8, 0], [0, 0.5, 0.3], [0, 0, 1]]).double()
    found = table(*fixed(mean, LOG_VARIANCE[0].expand(200, 3)))
    assert found.mean_correlation is not None and found.correlation is not None
    assert np.allclose(found.mean_correlation, np.corrcoef(mean.T), rtol=1e-10)
    # z = ν + τ ε with independent ε: τ² on the diagonal.
    covariance = np.cov(mean.T, bias=True) + np.diag(np.exp(LOG_VARIANCE[0].numpy()))
    scale = np.sqrt(np.diag(covariance))
    assert np.allclose(found.correlation, covariance / np.outer(scale, scale), rtol=1e-10)
    # -½ log det of the correlations: KL between the normal with the covariance and the one without its correlations.
    full = MultivariateNormal(torch.zeros(3, dtype=F64), torch.from_numpy(covariance))
    alone = MultivariateNormal(torch.zeros(3, dtype=F64), torch.from_numpy(np.diag(np.diag(covariance))))
    assert found.correlation_cost == pytest.approx(float(kl_divergence(full, alone)), rel=1e-10)
    assert found.correlation_cost == pytest.approx(
        -0.5 * np.linalg.slogdet(covariance / np.outer(scale, scale))[1], rel=1e-10
    )


def test_a_latent_whose_mean_does_not_vary_has_no_correlation():
    mean = torch.cat([draw(30, 1), torch.full((30, 1), 2.0, dtype=F64)], 1)
    found = table(*fixed(mean, torch.zeros(30, 2, dtype=F64)))
    assert found.mean_correlation is not None and found.correlation is not None
    assert torch.equal(found.mean_correlation, torch.eye(2, dtype=F64))
    assert torch.allclose(found.correlation, torch.eye(2, dtype=F64), atol=1e-12)
    assert found.correlation_cost == 0


def test_too_many_latents_for_correlations():
    found = table(*fixed(draw(3, 257), draw(3, 257, seed=1)))
    assert found.correlation is None and found.mean_correlation is None and found.correlation_cost == 0
    assert len(found) == 257 and "and 237 more" in repr(found)


# --- Information ------------------------------------------------------------------------------------------------------


def mutual_information(model: LinearVAE, covariance: torch.Tensor, latent: int) -> float:
    """I(z_h; x) for x ~ N(·, covariance), z = V x + c + τ ε, from entropies of the joint normal."""
    row = model.encoder_weight[latent].detach()
    cross = covariance @ row
    own = (row @ cross + model.latent_log_variance[latent].detach().exp()).reshape(1, 1)
    joint = torch.cat([torch.cat([covariance, cross[:, None]], 1), torch.cat([cross[None], own], 1)])

    def entropy(matrix: torch.Tensor) -> torch.Tensor:
        return MultivariateNormal(torch.zeros(len(matrix), dtype=F64), matrix).entropy()

    return float(entropy(own) + entropy(covariance) - entropy(joint))


def test_the_bound_is_the_mutual_information_of_a_normal_aggregate_posterior():
    x = draw(500, 4) @ draw(4, 4, seed=1)
    covariance = torch.from_numpy(np.cov(x.numpy().T, bias=True))
    optimum, other = LinearVAE.optimum(x, 2), LinearVAE.optimum(x, 2)
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p.add_(0.2 * draw(*p.shape, seed=i))
    for model in (optimum, other):
        found = table(model, x)
        for latent in range(2):
            expected = mutual_information(model, covariance, latent)
            assert float(found.information_bound[latent]) == pytest.approx(expected, rel=1e-9)
    # At the optimum the aggregate posterior is the prior: all of the KL is information.
    found = table(optimum, x)
    assert torch.allclose(found.information_bound, found.kl, rtol=1e-10)


def test_the_bound_lies_between_mutual_information_and_divergence():
    mean, log_variance = torch.tensor([[-2.0], [-1.9], [0.3], [3.0]]).double(), torch.tensor([-2.0, 0, -3, -1]).double()
    log_variance = log_variance.unsqueeze(1)
    found = table(*fixed(mean, log_variance))
    parts = [stats.norm(float(m), math.exp(float(v) / 2)) for m, v in zip(mean, log_variance, strict=True)]

    def integrand(z: float) -> float:
        density = sum(part.pdf(z) for part in parts) / len(parts)
        return -density * math.log(density) if density > 0 else 0.0

    entropy, _ = integrate.quad(integrand, -12, 12, points=[-2, -1.9, 0.3, 3], limit=200)
    information = entropy - sum(float(part.entropy()) for part in parts) / len(parts)
    assert 0 < information < float(found.information_bound) < float(found.kl)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", [vae1, vae2])
def test_the_bound_is_never_negative_and_never_above_the_divergence(seed, family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family(3, 4, (6,)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.5 * draw(*p.shape, seed=i))
    found = table(model, draw(50, 3, seed=seed))
    assert bool((found.information_bound <= found.kl + 1e-12).all())
    # What is not above the KL is so by the mismatch with the prior.
    assert torch.allclose(found.kl - found.information_bound, found.mismatch, rtol=1e-9, atol=1e-12)
    assert bool((found.information_bound >= -1e-12).all())


# --- Forms of latents -------------------------------------------------------------------------------------------------


def test_a_learned_prior():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vae2(3, 2, (6,)).double()
    with torch.no_grad():
        model.prior_log_variance.copy_(torch.tensor([1.0, -2.0]))
    x = draw(60, 3)
    found = table(model, x)
    reference, q = (
        Normal(torch.zeros(2, dtype=F64), model.prior_log_variance.detach().mul(0.5).exp()),
        model.posterior(x),
    )
    assert torch.allclose(found.kl, kl_divergence(Normal(q.mean, q.stddev), reference).mean(0).detach(), rtol=1e-12)
    assert torch.allclose(found.prior_entropy, reference.entropy(), rtol=1e-12)
    assert torch.allclose(found.prior_ratio, (q.mean**2 + q.variance).mean(0).detach() / reference.variance, rtol=1e-12)
    assert not found.kl.requires_grad and not found.prior_ratio.requires_grad


def test_latents_with_the_shape_of_images_are_flattened():
    mean, log_variance = draw(20, 2, 3, 2), draw(20, 2, 3, 2, seed=1)
    found = table(*fixed(mean, log_variance))
    flat = table(*fixed(mean.flatten(1), log_variance.flatten(1)))
    assert len(found) == 12
    for name in ("kl", "encoder_entropy", "mean", "mean_variance", "mismatch", "information_bound", "correlation"):
        assert torch.allclose(getattr(found, name), getattr(flat, name), rtol=1e-12, atol=1e-14), name


def test_one_latent():
    found = table(*fixed(MEAN[:, :1], LOG_VARIANCE[:, :1]))
    assert len(found) == 1 and found.correlation_cost == 0
    assert found.mean_correlation is not None and found.mean_correlation.tolist() == [[1]]


def test_columns_and_the_order_of_the_table():
    found = table(*fixed(MEAN, LOG_VARIANCE))
    columns = found.columns()
    assert columns["latent"] == [0, 1, 2] and columns["kl"] == found.kl.tolist()
    assert columns["status"] == list(found.status) and {len(column) for column in columns.values()} == {3}
    order = [int(line.split()[0]) for line in repr(found).splitlines()[1:]]
    assert order == found.kl.argsort(descending=True).tolist()


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (lambda x: MultivariateNormal(x, torch.eye(2, dtype=F64)), None),
        (lambda x: Laplace(x, torch.ones_like(x)), None),
        (lambda x: Normal(x, torch.ones_like(x)), Laplace(torch.zeros(2), torch.ones(2))),
        (lambda x: Normal(x, torch.ones_like(x)), Independent(Normal(torch.zeros(6, 2), torch.ones(6, 2)), 1)),
    ],
)
def test_no_table_of_latents_that_are_not_normal_with_independent_elements(posterior, prior):
    model = from_functions(posterior, lambda z: z, prior=prior, variance=1.0)
    assert latents_of(model, evaluate(model, draw(6, 2))) is None


# --- Statuses ---------------------------------------------------------------------------------------------------------


def with_divergences(*kl: float):
    """τ = 1 and ν = ±a: KL = ½ a²."""
    a = torch.tensor(kl, dtype=F64).mul(2).sqrt()
    signs = torch.tensor([1.0, -1.0], dtype=F64).unsqueeze(1)
    return fixed(signs * a, torch.zeros(2, len(kl), dtype=F64))


@pytest.mark.parametrize(
    ("kl", "collapse", "expected"),
    [
        ((2.0, 0.21, 0.19, 0.021, 0.019), "relative", "active active partly partly collapsed"),
        ((0.5, 0.011, 0.009), "relative", "active partly collapsed"),
        # Nothing says anything.
        ((0.009, 0.001), "relative", "collapsed collapsed"),
        ((0.05, 0.011, 0.009), "relative", "active active collapsed"),
        ((2.0, 0.31, 0.29), 0.3, "active active collapsed"),
        ((2.0, 0.31, 0.29), 3.0, "collapsed collapsed collapsed"),
    ],
)
def test_statuses_by_divergence(kl, collapse, expected):
    found = table(*with_divergences(*kl), collapse=collapse)
    assert found.kl.tolist() == pytest.approx(list(kl))
    assert " ".join(status.split()[0] for status in found.status) == expected
    assert found.which("collapsed") == [h for h, word in enumerate(expected.split()) if word == "collapsed"]


def test_statuses_of_the_paper_go_by_the_entropies():
    # log τ² = -2 d takes the encoder's entropy d below the prior's; means do not count.
    # Its line is at 1 nat of encoder entropy; N(0, 1) has 1.4189.
    drops = torch.tensor([0.41, 0.42, 0.0, 3.0], dtype=F64)
    mean = torch.tensor([[1.0], [-1.0]], dtype=F64) * torch.tensor([5.0, 0.0, 5.0, 0.0])
    found = table(*fixed(mean, (-2 * drops).expand(2, 4)), collapse="paper")
    assert (found.prior_entropy - found.encoder_entropy).tolist() == pytest.approx(drops.tolist())
    assert found.status == ("collapsed", "active", "collapsed", "active")


@pytest.mark.parametrize("collapse", ["none", 0.0, -1.0, math.nan, True, None])
def test_rules_of_collapse_that_are_none(collapse):
    with pytest.raises(UsageError, match="collapse="):
        check_collapse(collapse)
