"""Where ε comes from: its moments, its exactness, its reproducibility."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from vaentropy.errors import UsageError
from vaentropy.expectation import Antithetic, Expectation, Frozen, GaussHermite, MonteCarlo, Sobol, _kept

from .models import F64, TIGHT, close

ALL = [MonteCarlo(6), Antithetic(6), Sobol(6), Frozen(0, 6), GaussHermite(3)]
SHARED = [Sobol(6), Frozen(0, 6), GaussHermite(3)]


def draw(expectation, batch_size=3, latent_shape=(2,), generator=None, dtype=F64):
    return expectation.nodes(batch_size, latent_shape, generator=generator or expectation.generator(), dtype=dtype)


def average(nodes, function):
    """Per column of the batch."""
    return torch.einsum("k,kb->b", nodes.weights, function(nodes.noise))


@pytest.mark.parametrize("expectation", ALL, ids=repr)
@pytest.mark.parametrize("latent_shape", [(1,), (3,), (1, 2, 2), ()])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shapes_weights_and_types(expectation, latent_shape, dtype):
    nodes = draw(expectation, 5, latent_shape, dtype=dtype)
    count = 3 ** math.prod(latent_shape) if isinstance(expectation, GaussHermite) else 6
    assert nodes.noise.shape == (count, 1 if expectation in SHARED else 5, *latent_shape)
    assert nodes.noise.dtype == dtype and nodes.noise.device.type == "cpu"
    assert bool(torch.isfinite(nodes.noise).all())
    assert nodes.weights.shape == (count,) and nodes.weights.dtype == F64
    assert bool((nodes.weights > 0).all()) and close(nodes.weights.sum(), 1.0)
    assert nodes.group == {MonteCarlo: 1, Antithetic: 2}.get(type(expectation))
    if isinstance(expectation, GaussHermite):
        assert nodes.step_weights.dtype == dtype and close(nodes.step_weights, nodes.weights, tolerance=1e-7)
    else:
        assert nodes.step_weights is None and len(nodes.weights.unique()) == 1


@pytest.mark.parametrize("expectation", [MonteCarlo(50), Antithetic(50), Frozen(0, 20_000), Sobol(20_000)], ids=repr)
def test_nodes_are_standard_normal(expectation):
    noise = draw(expectation, 400, (2,)).noise
    # Antithetic nodes are no independent sample, but one of each pair is.
    noise = (noise[::2] if isinstance(expectation, Antithetic) else noise).flatten(0, 1)
    num = len(noise)
    assert (noise.mean(0).abs() < 5 / num**0.5).all()
    assert ((noise.square().mean(0) - 1).abs() < 5 * (2 / num) ** 0.5).all()
    assert (noise**4).mean(0).sub(3).abs().max() < 5 * (96 / num) ** 0.5
    assert float(noise.prod(1).mean().abs()) < 5 / num**0.5
    for h in range(2):
        assert stats.kstest(noise[:, h].numpy(), "norm").pvalue > 1e-3


def test_monte_carlo_noise_is_independent_between_points_and_nodes():
    noise = draw(MonteCarlo(40), 50, (2,)).noise.reshape(40, -1)
    correlation = np.corrcoef(noise.numpy())
    off_diagonal = correlation[~np.eye(40, dtype=bool)]
    assert abs(off_diagonal).max() < 6 / 10 and len(np.unique(noise.numpy())) == noise.numel()


# --- Gauss-Hermite ----------------------------------------------------------------------------------------------------


def normal_moment(degree):
    """E[ε^degree] = (degree - 1)!!"""
    return 0.0 if degree % 2 else float(math.prod(range(degree - 1, 0, -2)))


@pytest.mark.parametrize("k", range(1, 8))
def test_gauss_hermite_is_exact_up_to_its_degree(k):
    nodes = draw(GaussHermite(k), 1, (2,))
    for powers in itertools.product(range(2 * k), repeat=2):

        def monomial(noise, powers=powers):
            return noise[..., 0] ** powers[0] * noise[..., 1] ** powers[1]

        exact = normal_moment(powers[0]) * normal_moment(powers[1])
        scale = average(nodes, lambda noise, f=monomial: f(noise).abs()) + exact
        assert close(average(nodes, monomial), [exact], scale), powers
    # One degree more is too much.
    missed = average(nodes, lambda noise: noise[..., 0] ** (2 * k)) - normal_moment(2 * k)
    assert abs(float(missed) + math.factorial(k)) < 1e-9 * math.factorial(2 * k)


def test_gauss_hermite_on_images_of_latents():
    nodes = draw(GaussHermite(2), 4, (2, 1, 2))
    assert nodes.noise.shape == (16, 1, 2, 1, 2)
    assert sorted(map(tuple, nodes.noise.flatten(1).tolist())) == sorted(itertools.product((-1.0, 1.0), repeat=4))


@pytest.mark.parametrize(
    ("expectation", "latent_shape", "words"),
    [
        (GaussHermite(8), (7,), r"GaussHermite\(8\) for 7 latents has 8\^7 nodes, expected at most 1,000,000"),
        (GaussHermite(2), (5, 2, 2), r"2\^20 nodes"),
        (Sobol(4), (30_000,), r"30000 latents given, expected at most 21201"),
    ],
)
def test_too_many_latents_are_refused(expectation, latent_shape, words):
    with pytest.raises(UsageError, match=words) as caught:
        draw(expectation, 1, latent_shape)
    assert "\n" not in str(caught.value)


def test_as_many_nodes_as_allowed():
    assert len(draw(GaussHermite(10), 1, (5,)).weights) == 100_000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MonteCarlo(0), "num_samples=0 given, expected a whole number of at least 1"),
        (lambda: MonteCarlo(True), "num_samples=True"),
        (lambda: Antithetic(-2), "num_samples=-2"),
        (lambda: Antithetic(7), "num_samples=7 given, expected an even number"),
        (lambda: Sobol(0), "num_samples=0"),
        (lambda: Frozen(0, 0), "num_samples=0"),
        (lambda: GaussHermite(0), "nodes_per_axis=0"),
    ],
)
def test_wrong_numbers_of_nodes_are_refused(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- Better than independent draws ------------------------------------------------------------------------------------


def root_mean_square_error(make):
    """Of E[exp(a·ε)] = exp(|a|²/2), over 40 seeds."""
    a = torch.tensor([0.5, -0.3, 0.2], dtype=F64)
    exact = math.exp(0.5 * float(a @ a))
    errors = [float(average(draw(make(seed), 1, (3,)), lambda noise: (noise @ a).exp())) - exact for seed in range(40)]
    return (sum(e**2 for e in errors) / len(errors)) ** 0.5


def test_sobol_and_antithetic_beat_monte_carlo():
    plain = root_mean_square_error(lambda seed: MonteCarlo(256, seed))
    assert 0.6 < plain / (0.7176 / 16) < 1.6  # the standard deviation of exp(a·ε) over √256
    assert root_mean_square_error(lambda seed: Antithetic(256, seed)) < plain / 1.5
    assert root_mean_square_error(lambda seed: Sobol(256, seed)) < plain / 6
    assert root_mean_square_error(lambda seed: GaussHermite(8)) < 1e-6


def test_many_sobol_points_are_finite():
    noise = draw(Sobol(2**14, seed=3), 1, (20,)).noise
    assert bool(torch.isfinite(noise).all()) and float(noise.abs().max()) < 7


def test_a_sobol_point_at_0_is_finite(monkeypatch):
    # Scrambling puts one in 2^30 there, where the normal quantile is -inf.
    def zeros(engine, count, dtype):
        return torch.zeros(count, engine.dimension, dtype=dtype)

    monkeypatch.setattr(torch.quasirandom.SobolEngine, "draw", zeros)
    noise = draw(Sobol(2, seed=987_654_321)).noise
    assert close(noise, torch.full((2, 1, 2), stats.norm.ppf(2.0**-31), dtype=F64))


def test_antithetic_pairs():
    nodes = draw(Antithetic(8), 5, (2, 3))
    assert torch.equal(nodes.noise[::2], -nodes.noise[1::2])
    assert torch.equal(nodes.noise.unflatten(0, (4, 2)).sum(1), torch.zeros(4, 5, 2, 3, dtype=F64))
    assert len(nodes.noise[::2].unique()) == 4 * 5 * 6


# --- Reproducible, and without side effects ---------------------------------------------------------------------------


@pytest.mark.parametrize("expectation", ALL, ids=repr)
def test_equal_settings_give_equal_nodes(expectation):
    again = type(expectation)(**vars(expectation))
    assert again == expectation and hash(again) == hash(expectation)
    assert torch.equal(draw(again).noise, draw(expectation).noise)
    assert torch.equal(draw(again).weights, draw(expectation).weights)


@pytest.mark.parametrize("make", [MonteCarlo, Antithetic, Sobol, lambda n, s: Frozen(s, n)])
def test_other_seeds_give_other_nodes(make):
    first, second = draw(make(8, 0)).noise, draw(make(8, 1)).noise
    assert make(8, 0) != make(8, 1) and not torch.isclose(first, second).any()


@pytest.mark.parametrize("expectation", ALL, ids=repr)
def test_only_noise_that_is_not_shared_continues_from_batch_to_batch(expectation):
    generator = expectation.generator()
    first, second = draw(expectation, generator=generator), draw(expectation, 7, generator=generator)
    if expectation in SHARED:
        assert torch.equal(first.noise, second.noise)
        other = torch.Generator().manual_seed(99)
        assert torch.equal(draw(expectation, generator=other).noise, first.noise)
    else:
        assert not torch.isclose(first.noise, second.noise[:, :3]).any()


@pytest.mark.parametrize("expectation", ALL, ids=repr)
def test_both_precisions_draw_the_same_where_the_noise_is_shared(expectation):
    if expectation in SHARED:
        single, double = draw(expectation, dtype=torch.float32), draw(expectation)
        assert close(single.noise, double.noise, 1 + double.noise.abs(), tolerance=1e-7)
        assert close(single.weights, double.weights)


@pytest.mark.parametrize("expectation", SHARED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nodes_that_a_caller_changes_are_his_own(expectation, dtype):
    with torch.inference_mode():
        first = draw(expectation, dtype=dtype)
        before = first.noise.clone(), first.weights.clone()
        first.noise.zero_(), first.weights.zero_()
    again = draw(expectation, dtype=dtype)
    assert torch.equal(again.noise, before[0]) and torch.equal(again.weights, before[1])
    assert not again.noise.is_inference()


@pytest.mark.parametrize("expectation", ALL, ids=repr)
def test_nodes_are_where_their_generator_is_whatever_the_default_device(expectation):
    _kept.cache_clear()
    with torch.device("meta"):
        assert draw(expectation).noise.device.type == draw(expectation).weights.device.type == "cpu"


@pytest.mark.parametrize("expectation", ALL, ids=repr)
def test_global_generators_are_left_alone(expectation):
    torch_before, (_, numpy_before, *_) = torch.get_rng_state(), np.random.get_state()
    draw(type(expectation)(**{**vars(expectation)}), 9, (3, 1))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_settings_are_immutable_and_print_as_they_are_written():
    for expectation in ALL:
        assert isinstance(expectation, Expectation)
        assert eval(repr(expectation)) == expectation
        with pytest.raises(AttributeError):
            expectation.num_samples = 3


def test_quadrature_and_draws_agree_on_an_expectation():
    def function(noise):
        return torch.cos(noise[..., 0]) * (1 + noise[..., 1]) ** 2

    exact = 2 * math.exp(-0.5)
    assert abs(float(average(draw(GaussHermite(16), 1), function)) - exact) < TIGHT
    assert float((average(draw(MonteCarlo(4000), 8), function) - exact).abs().max()) < 0.25


@pytest.mark.parametrize("expectation", ALL, ids=repr)
@pytest.mark.parametrize("size", [3, 17])
def test_several_generators_draw_what_each_would_draw_alone(expectation, size):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (0, 5, 2)]

    together, alone = generators(), generators()
    for _ in range(2):  # and go on from where they were
        noise, weights = expectation.several(size, (2,), generators=together, dtype=torch.float32)
        for row, generator in zip(noise, alone, strict=True):
            nodes = draw(expectation, size, generator=generator, dtype=torch.float32)
            assert torch.equal(row, nodes.noise)
        assert weights is None or torch.equal(weights, nodes.step_weights)
