import math

import numpy as np
import pytest
import scipy.stats
import torch

from vaentropy.data import LinearGaussian, pca, pca_log_likelihood, pca_ring
from vaentropy.errors import UsageError

DRAWS = pytest.mark.parametrize("draw", [pca, pca_ring])


def latents(x, parameters):
    """Exact latents of noiseless points."""
    return torch.linalg.lstsq(parameters.weight, (x - parameters.mean).T).solution.T


def test_moments_of_pca():
    num_points = 200_000
    x, (weight, mean, noise_std) = pca(num_points, 6, 2, noise=0.3, seed=5)
    assert x.dtype == torch.float64 and x.shape == (num_points, 6) and noise_std == 0.3
    assert weight.shape == (6, 2) and weight.min() >= 0 and weight.max() <= 1 and mean.min() >= 0 and mean.max() <= 1
    covariance = weight @ weight.T + 0.09 * torch.eye(6, dtype=torch.float64)
    variance = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (variance / num_points).sqrt()).all()
    stderr = ((variance[:, None] * variance + covariance**2) / num_points).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * stderr).all()


def test_weight_and_mean_are_uniform():
    _, parameters = pca(1, 2000, 10)
    for values in (parameters.weight.flatten(), parameters.mean):
        assert scipy.stats.kstest(values.numpy(), "uniform").pvalue > 1e-4


def test_noise_is_a_standard_deviation():
    x, (weight, mean, _) = pca(20_000, 10, 2, noise=0.25)
    plane = weight @ torch.linalg.pinv(weight)
    off_plane = (x - mean) @ (torch.eye(10, dtype=torch.float64) - plane)
    assert (off_plane.square().sum() / (20_000 * 8)).sqrt().item() == pytest.approx(0.25, rel=0.01)


def test_the_ring_moves_the_latents_of_pca():
    z = latents(*pca(500, 8, 3, noise=0.0, seed=4))
    ring = latents(*pca_ring(500, 8, 3, noise=0.0, seed=4))
    radius = z.square().sum(dim=1).sqrt()[:, None]
    torch.testing.assert_close(ring, z * (0.1 + 1 / radius), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ring.norm(dim=1), 1 + radius[:, 0] / 10, rtol=1e-9, atol=1e-9)


@DRAWS
def test_same_seed_same_points_and_no_global_generator(draw):
    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())
    x, parameters = draw(50, 4, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), before) and str(np.random.get_state()) == numpy_before
    torch.manual_seed(2)
    again, same = draw(50, 4, 2, seed=3)
    assert torch.equal(x, again) and torch.equal(parameters.weight, same.weight)
    assert not torch.equal(x, draw(50, 4, 2, seed=4)[0])


@DRAWS
def test_noise_changes_only_the_noise(draw):
    clean, loud = (draw(50, 4, 2, noise=noise, seed=3) for noise in (0.0, 0.2))
    louder = draw(50, 4, 2, noise=0.4, seed=3)
    assert torch.equal(clean[1].weight, loud[1].weight)
    torch.testing.assert_close(2 * (loud[0] - clean[0]), louder[0] - clean[0])


@DRAWS
def test_a_default_device_does_not_matter(draw):
    with torch.device("meta"):
        x, _ = draw(5)
    assert torch.equal(x, draw(5)[0])


@pytest.mark.parametrize(("data_dim", "latent_dim", "noise"), [(10, 2, 0.1), (3, 5, 0.5), (1, 1, 2.0)])
def test_log_likelihood_against_scipy(data_dim, latent_dim, noise):
    x, parameters = pca(200, data_dim, latent_dim, noise=noise, seed=1)
    weight, mean = parameters.weight.numpy(), parameters.mean.numpy()
    density = scipy.stats.multivariate_normal(mean, weight @ weight.T + noise**2 * np.eye(data_dim))
    assert pca_log_likelihood(x, *parameters) == pytest.approx(density.logpdf(x.numpy()).mean(), rel=1e-10)


def test_log_likelihood_approaches_minus_the_entropy():
    x, parameters = pca(100_000)
    covariance = parameters.weight @ parameters.weight.T + 0.01 * torch.eye(10, dtype=torch.float64)
    entropy = 5 * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(covariance).logabsdet.item() / 2
    # The variance of log N(x) under N is D/2.
    assert abs(pca_log_likelihood(x, *parameters) + entropy) < 5 * math.sqrt(5 / 100_000)


def test_log_likelihood_is_computed_in_float64():
    x, parameters = pca(100)
    single = LinearGaussian(parameters.weight.float(), parameters.mean.float(), parameters.noise_std)
    double = LinearGaussian(single.weight.double(), single.mean.double(), parameters.noise_std)
    assert pca_log_likelihood(x.float(), *single) == pca_log_likelihood(x.float().double(), *double)


@DRAWS
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_points": 0}, "num_points=0"),
        ({"data_dim": 0}, "data_dim=0"),
        ({"latent_dim": -1}, "latent_dim=-1"),
        ({"noise": -0.1}, "noise is -0.1, expected a finite standard deviation"),
        ({"noise": math.nan}, "noise is nan"),
        ({"noise": math.inf}, "noise is inf"),
    ],
)
def test_arguments_that_make_no_sense(draw, arguments, words):
    with pytest.raises(UsageError, match=words):
        draw(**arguments)


@pytest.mark.parametrize(("noise", "num_points"), [(0.0, 5), (-0.1, 5), (math.nan, 5), (0.1, 0)])
def test_there_is_no_likelihood_without_noise_or_points(noise, num_points):
    x, parameters = pca(5)
    with pytest.raises(UsageError, match=f"noise_std={noise} and {num_points} points"):
        pca_log_likelihood(x[:num_points], parameters.weight, parameters.mean, noise)
