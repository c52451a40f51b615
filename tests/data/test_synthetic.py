import math
import re

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import sklearn.datasets
import torch

from vaentropy.data import LinearGaussian, pca, pca_log_likelihood, pca_ring
from vaentropy.data.synthetic import (
    SETS,
    GaussianMixture,
    circle,
    cosine,
    eight,
    eight_gauss,
    gauss_1d,
    line,
    manifold,
    more_of_pca_ring,
    spiral_3d,
    streaming,
    swiss_roll,
)
from vaentropy.errors import UsageError

DRAWS = pytest.mark.parametrize("draw", [pca, pca_ring])
OTHERS = (circle, cosine, eight, eight_gauss, gauss_1d, line, manifold, spiral_3d, streaming, swiss_roll)
LEAST_P = 1e-4  # of Kolmogorov-Smirnov tests: seeds are fixed, so that what passes once passes always


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


def test_more_points_of_a_ring_are_new_and_of_the_same_ring():
    x, parameters = pca_ring(5_000, 6, 2, noise=0.0, seed=4)
    more = more_of_pca_ring(parameters, 5_000, seed=5)
    radius, further = latents(x, parameters).norm(dim=1), latents(more, parameters).norm(dim=1)
    # Noiseless: on the plane of the ring, as far from its centre; and no point twice.
    torch.testing.assert_close(latents(more, parameters) @ parameters.weight.T + parameters.mean, more)
    assert further.min() >= 1 and scipy.stats.ks_2samp(radius.numpy(), further.numpy()).pvalue > LEAST_P
    assert len(torch.cat([x, more]).unique(dim=0)) == 10_000
    noisy = more_of_pca_ring(parameters._replace(noise_std=0.3), 5_000, seed=5)
    assert (noisy - more).std().item() == pytest.approx(0.3, rel=0.02)
    with pytest.raises(UsageError, match="num_points"):
        more_of_pca_ring(parameters, 0, seed=1)


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


@pytest.mark.parametrize("noise", [0.0, -0.1, math.nan, math.inf])
def test_there_is_no_density_without_noise(noise):
    x, parameters = pca(5)
    with pytest.raises(UsageError, match=f"noise_std={noise}, expected a finite noise_std > 0"):
        pca_log_likelihood(x, parameters.weight, parameters.mean, noise)
    with pytest.raises(UsageError, match=f"noise_std={noise}, expected a finite noise_std > 0"):
        GaussianMixture(parameters.weight.T, noise).log_density(x)


def test_there_is_no_likelihood_without_points():
    x, parameters = pca(5)
    with pytest.raises(UsageError, match="log-likelihood of 0 points"):
        pca_log_likelihood(x[:0], *parameters)


# --- all others


def points(drawn):
    return drawn if isinstance(drawn, torch.Tensor) else drawn[0]


def follows(values, distribution, *parameters):
    return scipy.stats.kstest(np.asarray(values), distribution, parameters).pvalue > LEAST_P


@pytest.mark.parametrize("draw", OTHERS)
def test_seeds_reproduce_and_global_generators_are_left_alone(draw):
    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())
    x = points(draw(50, seed=3))
    assert torch.equal(torch.get_rng_state(), before) and str(np.random.get_state()) == numpy_before
    torch.manual_seed(2)
    with torch.device("meta"):  # nor does a default device matter
        again = points(draw(50, seed=3))
    assert x.dtype == torch.float64 and len(x) == 50
    assert torch.equal(x, again) and not torch.equal(x, points(draw(50, seed=4)))


@pytest.mark.parametrize("draw", OTHERS)
@pytest.mark.parametrize(
    ("num_points", "noise", "words"),
    [
        (0, 0.1, "num_points=0.*, expected each to be at least 1; pass"),
        (-3, 0.1, "num_points=-3"),
        (5, -0.1, "noise is -0.1, expected a finite standard deviation >= 0; pass"),
        (5, math.nan, "noise is nan"),
        (5, math.inf, "noise is inf"),
    ],
)
def test_bad_sizes_and_noise(draw, num_points, noise, words):
    with pytest.raises(UsageError, match=words) as caught:
        draw(num_points, noise=noise)
    assert "\n" not in str(caught.value)


# --- curves and surfaces


def lemniscate(t):
    return np.cos(t) / 2, np.sin(2 * t) / 4


def helix_rotated(t):
    """The helix turned by 45 degrees about its second axis, stretched by √2 there, and shifted."""
    turn = np.array([[1, 0, -1], [0, 1, 0], [1, 0, 1]])
    return turn @ [2.5 * np.sin(2 * np.pi * t), 2.5 * np.cos(2 * np.pi * t), 3 * t] + 1.5


CURVES = [
    (line, [0, 1], 1e-3, lambda t: (t, 1.5 * t + 2), (0, 3)),
    (cosine, [0, 1], 1e-3, lambda t: (t, 1 + np.cos(t)), (0, 3 * np.pi)),
    (circle, [0, 1], 1e-3, lambda t: (np.cos(t), np.sin(t)), (0, 2 * np.pi)),
    (eight, [0, 1], 1e-3, lemniscate, (0, 2 * np.pi)),
    (spiral_3d, [0, 1, 2], 1e-3, helix_rotated, (0, 1)),
    # The roll seen along its axis.
    (swiss_roll, [0, 2], 1e-2, lambda t: (t * np.cos(t), t * np.sin(t)), (1.5 * np.pi, 4.5 * np.pi)),
]


@pytest.mark.parametrize(("draw", "columns", "noise", "curve", "ends"), CURVES)
def test_distance_to_the_curve_is_that_of_the_noise(draw, columns, noise, curve, ends):
    # Little noise: then the curve is straight on its scale, and its ends and crossing hold few points.
    x = draw(4_000, noise=noise, seed=1)[:, columns].numpy()
    grid = np.stack(curve(np.linspace(*ends, 200_001)), axis=1)
    distance, _ = scipy.spatial.cKDTree(grid).query(x)
    assert follows(distance / noise, "chi", len(columns) - 1)


@pytest.mark.parametrize("draw", [draw for draw in OTHERS if draw not in (circle, gauss_1d, streaming)])
def test_noise_is_added_to_every_coordinate_alike(draw):
    clean, noisy = (points(draw(5_000, noise=noise, seed=2)) for noise in (0.0, 0.3))
    eps = (noisy - clean) / 0.3
    assert follows(eps.flatten(), "norm")
    covariance, unit = eps.T.cov(), torch.eye(eps.shape[1], dtype=torch.float64)
    assert ((covariance - unit).abs() < 5 * ((1 + unit) / 5_000).sqrt()).all()


def test_noise_of_the_circle_is_radial():
    x = circle(20_000, noise=0.05, seed=1)
    assert follows(x.norm(dim=1), "norm", 1, 0.05)
    assert follows(torch.atan2(x[:, 1], x[:, 0]), "uniform", -math.pi, 2 * math.pi)


def test_parameters_of_the_curves_are_uniform():
    n, pi = 5_000, math.pi
    assert follows(line(n, noise=0.0)[:, 0], "uniform", 0, 3)
    assert follows(cosine(n, noise=0.0)[:, 0], "uniform", 0, 3 * pi)
    x = eight(n, noise=0.0)
    angle = torch.atan2(x[:, 1] / x[:, 0], 2 * x[:, 0])  # y/x is sin t, 2x is cos t
    assert follows(angle, "uniform", -pi, 2 * pi)
    x = spiral_3d(n, noise=0.0)
    assert follows(x[:, 2] - x[:, 0], "uniform", 0, 6)  # 2c = 6t


def test_swiss_roll_is_that_of_scikit_learn():
    n = 5_000
    x = swiss_roll(n, noise=0.0)
    t = x[:, [0, 2]].norm(dim=1)
    assert follows(t, "uniform", 1.5 * math.pi, 3 * math.pi) and follows(x[:, 1], "uniform", 0, 21)
    theirs, their_t = sklearn.datasets.make_swiss_roll(n, noise=0.0, random_state=0)
    assert scipy.stats.ks_2samp(t, their_t).pvalue > LEAST_P
    for column in range(3):
        assert scipy.stats.ks_2samp(x[:, column], theirs[:, column]).pvalue > LEAST_P
    # Their points obey the same equation, which the distances above test on ours.
    np.testing.assert_allclose(theirs[:, [0, 2]], np.stack([their_t * np.cos(their_t), their_t * np.sin(their_t)], 1))
    noisy = sklearn.datasets.make_swiss_roll(n, noise=3.0, random_state=0)[0]
    for column in range(3):
        assert scipy.stats.ks_2samp(swiss_roll(n, noise=3.0)[:, column], noisy[:, column]).pvalue > LEAST_P


def test_manifold_is_a_graph_over_its_first_features():
    x = manifold(2_000, 40, 4, noise=0.0, seed=1).numpy()
    z, pairs = x[:, :4], [(i, j) for i in range(4) for j in range(i, 4)]
    assert follows(z.ravel(), "norm", -0.175, 0.35) and np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 5 / 2_000**0.5
    graphs = np.stack([0.35 * np.cos(z[:, i] ** 2 + z[:, j] ** 2) for i, j in pairs], axis=1)
    difference = np.abs(x[:, 4:, None] - graphs[:, None]).max(axis=0)
    assert (difference.min(axis=1) < 1e-14).all()
    assert len(set(difference.argmin(axis=1))) > 5  # of 10 pairs, in 36 features
    assert manifold(5, 3, 3).shape == (5, 3)


def test_a_manifold_does_not_exceed_its_space():
    with pytest.raises(UsageError, match="manifold_dim=4 with data_dim=3, expected manifold_dim <= data_dim"):
        manifold(5, 3, 4)
    with pytest.raises(UsageError, match="manifold_dim=0"):
        manifold(5, 3, 0)


# --- sets whose density is known


def test_one_dimension_and_its_density():
    for noise in (1.0, 0.05):
        x, truth = gauss_1d(5_000, noise=noise)
        assert x.shape == (5_000, 1) and follows(x[:, 0], "norm", 0, noise)
        expected = scipy.stats.norm(0, noise).logpdf(x[:, 0].numpy())
        np.testing.assert_allclose(truth.log_density(x).numpy(), expected, rtol=1e-10, atol=1e-10)


def test_eight_gaussians():
    n = 40_000
    x, labels, (means, noise_std) = eight_gauss(n, seed=1)
    assert noise_std == 0.05 and scipy.stats.chisquare(labels.bincount(minlength=8).numpy()).pvalue > LEAST_P
    root = math.sqrt(0.5)
    directions = [(1, 0), (root, root), (0, 1), (-root, root), (-1, 0), (-root, -root), (0, -1), (root, -root)]
    torch.testing.assert_close(means, 1 + 0.4 * torch.tensor(directions, dtype=torch.float64))
    for component in range(8):
        own = x[labels == component]
        assert follows((own[:, 0] - 1 - 0.4 * directions[component][0]) / 0.05, "norm")
        assert follows((own[:, 1] - 1 - 0.4 * directions[component][1]) / 0.05, "norm")


@pytest.mark.parametrize("noise", [0.05, 0.6])
def test_density_of_the_mixture(noise):
    x, _, truth = eight_gauss(300, noise=noise)
    assert truth.noise_std == noise
    densities = [scipy.stats.multivariate_normal(mean, noise**2).pdf(x.numpy()) for mean in truth.means.numpy()]
    np.testing.assert_allclose(truth.log_density(x).numpy(), np.log(np.mean(densities, axis=0)), rtol=1e-10, atol=1e-10)
    # In float64 whatever the points are, and integrating to 1.
    single = GaussianMixture(truth.means.float(), noise).log_density(x.float())
    assert single.dtype == torch.float64
    axis = torch.linspace(-5, 7, 601, dtype=torch.float64)
    mass = truth.log_density(torch.cartesian_prod(axis, axis)).exp().sum().item() * (axis[1] - axis[0]).item() ** 2
    assert mass == pytest.approx(1, abs=1e-9)


def test_segments_of_the_stream():
    n = 30_000
    x, labels, segments = streaming(3 * n, seed=2)
    assert x.shape == (3 * n, 10) and torch.equal(labels, torch.arange(3).repeat_interleave(n))
    lengths = torch.linspace(1, 5, 10, dtype=torch.float64)
    for segment, (count, (weight, mean, noise_std)) in enumerate(zip((6, 2, 4), segments, strict=True)):
        assert weight.shape == (10, count) and noise_std == 0.1 and not mean.any()
        torch.testing.assert_close(weight.T @ weight, lengths[:count].square().diag(), rtol=1e-12, atol=1e-12)
        assert torch.equal(weight[:, :2], segments[0].weight[:, :2])
        rows = x[labels == segment]
        covariance = weight @ weight.T + 0.01 * torch.eye(10, dtype=torch.float64)
        variance = covariance.diagonal()
        assert (rows.mean(0).abs() < 5 * (variance / n).sqrt()).all()
        stderr = ((variance[:, None] * variance + covariance**2) / n).sqrt()
        assert ((rows.T.cov() - covariance).abs() < 5 * stderr).all()
        # The spectrum in closed form, hence the entropy that the mean log-density approaches.
        spectrum = torch.cat([lengths[:count].square() + 0.01, torch.full((10 - count,), 0.01, dtype=torch.float64)])
        entropy = 5 * math.log(2 * math.pi * math.e) + spectrum.log().sum().item() / 2
        assert abs(segments[segment].log_density(rows).mean().item() + entropy) < 5 * math.sqrt(5 / n)


def test_density_of_a_segment_against_scipy():
    x, labels, segments = streaming(90, 4, [3, 1], noise=0.2)
    for segment, truth in enumerate(segments):
        covariance = truth.weight.numpy() @ truth.weight.numpy().T + 0.04 * np.eye(4)
        expected = scipy.stats.multivariate_normal(np.zeros(4), covariance).logpdf(x[labels == segment].numpy())
        np.testing.assert_allclose(truth.log_density(x[labels == segment]).numpy(), expected, rtol=1e-10, atol=1e-10)


def test_points_that_segments_do_not_divide():
    assert streaming(8)[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("num_points", "data_dim", "num_factors"),
    [(9, 10, ()), (9, 10, (2, 0)), (9, 3, (2, 4)), (9, 10, (-1,)), (2, 10, (1, 2, 3))],
)
def test_numbers_of_factors_that_make_no_sense(num_points, data_dim, num_factors):
    given = re.escape(f"num_factors={num_factors} with data_dim={data_dim} and num_points={num_points}, expected")
    with pytest.raises(UsageError, match=given):
        streaming(num_points, data_dim, num_factors)


# --- the table


@pytest.mark.parametrize("name", SETS)
def test_the_table_builds_what_it_says(name):
    build, _, held_out, description = SETS[name]
    x, labels, log_density = build(60, 5)
    function = globals()["gauss_1d" if name == "1d-gauss" else name.replace("-", "_")]
    assert torch.equal(x, points(function(60, seed=5)))
    assert 0 <= held_out < 1 and "\n" not in description and "rescaled" not in description
    assert (labels is not None) == (name in ("eight-gauss", "streaming"))
    assert (log_density is not None) == (name in ("pca", "1d-gauss", "eight-gauss", "streaming"))
    if log_density is not None:
        assert log_density.shape == (60,) and log_density.isfinite().all()


def test_sizes_are_those_of_the_paper():
    sizes = {name: (each.num_points, each.held_out) for name, each in SETS.items()}
    assert sizes.pop("pca") == sizes.pop("pca-ring") == (20_000, 0.5)
    assert sizes.pop("streaming") == (300_000, 0.0)
    assert len(sizes) == 9 and set(sizes.values()) == {(50_000, 0.5)}
    shapes = {name: SETS[name].build(3, 0).x.shape[1] for name in SETS}
    planar = {"line", "circle", "eight", "eight-gauss", "cosine"}
    assert {name for name, dim in shapes.items() if dim == 2} == planar
    assert {name for name, dim in shapes.items() if dim == 3} == {"swiss-roll", "spiral-3d"}
    assert shapes["1d-gauss"] == 1 and shapes["manifold"] == 100 and shapes["streaming"] == 10
