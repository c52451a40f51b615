"""What `look` finds, against the model's own methods, closed forms and torch.distributions."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import ExpTransform

from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Rows
from vaentropy.errors import DataError, ModelError, UnsupportedError, UsageError
from vaentropy.families import vae1
from vaentropy.figures.view import look
from vaentropy.likelihoods import Bernoulli
from vaentropy.linear import LinearVAE
from vaentropy.model import from_functions
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.vae import VAE

from ..models import F64, Toy, close


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture(scope="module")
def linear():
    """The optimum of a linear VAE, and its data, whose latents are used in the order 0, 1, 2."""
    x = draw(400, 5) * torch.tensor([3.0, 2.0, 1.5, 0.2, 0.2], dtype=F64) + 1.0
    return LinearVAE.optimum(x, 3), x


def as_torch(normal) -> Normal:
    return Normal(normal.mean, normal.stddev)


def test_points_are_those_of_the_data_and_what_the_model_makes_of_them(linear):
    model, x = linear
    view = look(model, x, num_points=len(x))
    q = model.posterior(x)
    assert torch.equal(view.x, x) and view.num_points == len(view) == 400
    assert torch.equal(view.latent_mean, q.mean.detach())
    assert close(view.latent_variance, q.variance.detach())
    assert torch.equal(view.reconstruction, model.likelihood(q.mean).mean.detach())
    assert close(view.kl_per_latent, kl_divergence(as_torch(q), Normal(0.0, 1.0)).mean(0).detach())
    assert view.shown == (0, 1, 2)
    assert repr(view) == "View(400 of 400 points, data_shape=(5,), latent_shape=(3,))"


@pytest.mark.parametrize("num_rows", [1, 7, 50, 51, 999])
def test_points_are_spread_over_the_data(num_rows):
    x = torch.arange(num_rows, dtype=F64).unsqueeze(1).repeat(1, 3)
    view = look(Toy(0), x, num_points=50)
    rows = view.x[:, 0]
    assert len(rows) == min(num_rows, 50) and len(rows.unique()) == len(rows)
    if num_rows > 50:
        # One of each of fifty stretches of equal lengths, to rounding; at random, so that no period hides a part.
        assert bool(((rows - (torch.arange(50) + 0.5) * num_rows / 50).abs() <= num_rows / 100 + 1).all())
        assert not torch.equal(look(Toy(0), x, num_points=50, seed=1).x, view.x)
    assert torch.equal(look(Toy(0), x, num_points=50).x, view.x)


def test_labels_go_with_their_points():
    x = torch.arange(300, dtype=F64).unsqueeze(1).repeat(1, 3)
    for labels in (torch.arange(300), np.arange(300), list(range(300))):
        view = look(Toy(0), x, labels=labels, num_points=40)
        assert view.labels is not None and view.labels.tolist() == view.x[:, 0].tolist()
    names = look(Toy(0), x[:3], labels=["a", None, 3]).labels
    assert names is not None and names.tolist() == ["a", "None", "3"]


def test_large_points_are_fewer():
    def encode(x):
        return x[:, :2], torch.zeros_like(x[:, :2])

    model = from_functions(encode, lambda z: z.repeat(1, 2**16), variance=1.0)
    assert len(look(model, torch.zeros(60, 2**17), num_steps=2, num_latents=1)) == 2**22 // 2**17


def test_a_frame_and_a_source_bring_the_names_of_their_features():
    x = draw(30, 3)
    frame = pd.DataFrame(x.numpy(), columns=["$a_1^", "<script>", "c"])
    assert look(Toy(0), frame).columns == ("$a_1^", "<script>", "c")
    source = Rows(x, shard_size=7, columns=("a", "b", "c"))
    view = look(Toy(0), source, num_points=11)
    assert view.columns == ("a", "b", "c")
    assert torch.equal(view.x, look(Toy(0), x, num_points=11).x)
    assert look(Toy(0), frame, columns=["p", "q", "r"]).columns == ("p", "q", "r")


def test_missing_values_stay_missing():
    x = draw(20, 3)
    x[4, 1] = torch.nan
    model = Toy(0)
    view = look(model, x, missing="ignore")
    assert torch.equal(view.x.isnan(), x.isnan())
    filled = x.nan_to_num(nan=0.0)
    assert torch.equal(view.latent_mean, model.posterior(filled).mean)
    with pytest.raises(DataError, match="row 4, column 1"):
        look(model, x)


def test_units_of_the_data(linear):
    model, x = linear
    scaling = Scaling(torch.arange(5, dtype=F64), torch.full((5,), 2.0, dtype=F64))
    plain, view = look(model, x), look(model, x, scaling=scaling)
    for name in ("x", "reconstruction", "samples", "traversals"):
        assert close(getattr(view, name), torch.arange(5) + 2 * getattr(plain, name)), name
    assert torch.equal(view.latent_mean, plain.latent_mean)


def test_the_model_and_the_generators_are_left_alone():
    torch.manual_seed(3)
    model = vae1((1, 8, 8), 2, networks=(ConvEncoder((1, 8, 8), (4,)), ConvDecoder((1, 8, 8), (4,))))
    model.encoder.append(torch.nn.BatchNorm1d(model.latent_mean.in_features))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    model.train()
    view = look(model, draw(30, 1, 8, 8).float())
    assert model.training and model.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    model.eval()
    with torch.no_grad():
        assert close(view.latent_mean, model.posterior(view.x).mean, tolerance=1e-6)
    assert view.data_shape == (1, 8, 8) and view.traversals.shape == (2, 7, 1, 8, 8)
    assert view.x.dtype == view.reconstruction.dtype == torch.float32 and not view.x.requires_grad


def test_samples_are_draws_of_the_prior(linear):
    model, x = linear
    view = look(model, x, num_points=400)
    # In the space of the latents, W z + b = x: two moments of 400 draws within five standard errors.
    z = torch.linalg.lstsq(model.weight.detach(), (view.samples - model.bias.detach()).T).solution.T
    assert bool((z.mean(0).abs() < 5 / math.sqrt(400)).all())
    assert bool(((z.var(0) - 1).abs() < 5 * math.sqrt(2 / 400)).all())
    assert torch.equal(view.samples, look(model, x, num_points=400).samples)
    assert not torch.equal(view.samples, look(model, x, num_points=400, seed=1).samples)


def test_a_prior_of_each_point_is_drawn_from():
    prior = Normal(torch.arange(6, dtype=F64).unsqueeze(1) * 10, torch.tensor(0.1, dtype=F64))
    model = from_functions(lambda x: (x, torch.zeros_like(x)), lambda z: z, prior=prior, variance=1.0)
    view = look(model, draw(6, 1))
    assert bool(((view.samples - 10 * torch.arange(6).unsqueeze(1)).abs() < 1).all())
    assert view.prior_mean is view.prior_variance is view.kl_per_latent is None


@pytest.mark.parametrize("used", [0, 1])
def test_traversals_go_over_quantiles_of_the_aggregate_posterior(used):
    # Two points far apart: half of the mass lies at each, so that quantiles below ½ are those of the first at 2p.
    mean = torch.tensor([[-50.0, 0.0], [50.0, 4.0]], dtype=F64)
    std = torch.tensor([2.0, 1.0], dtype=F64)
    if used == 1:
        mean, std = mean.flip(1), std.flip(0)

    def encode(x):
        return x, (2 * std.log()).expand(x.shape)

    view = look(from_functions(encode, lambda z: 10 * z, variance=1.0), mean, num_steps=5)
    assert view.shown == (used, 1 - used)
    normal = Normal(0.0, 1.0)
    assert close(view.levels, normal.cdf(torch.linspace(-2, 2, 5, dtype=F64)), tolerance=1e-6)
    expected = -50 + 2 * normal.icdf(2 * view.levels[:2])
    # A hundred nodes stand for each normal.
    assert close(view.traversed[0, :2], expected, scale=2.0, tolerance=0.01)
    assert close(view.traversed[0], -view.traversed[0].flip(0), scale=50.0)
    # The other latent is at its mean over the points.
    first, second = view.traversals
    assert close(first[:, used], 10 * view.traversed[0]) and close(first[:, 1 - used], [20.0] * 5)
    assert close(second[:, 1 - used], 10 * view.traversed[1]) and close(second[:, used], [0.0] * 5, scale=500.0)


def test_quantiles_of_a_normal_aggregate(linear):
    # At the optimum the aggregate posterior of normal data is the prior.
    model, x = linear
    view = look(model, x, num_points=400)
    assert close(view.traversed, torch.linspace(-2, 2, 7, dtype=F64).repeat(3, 1), scale=1.0, tolerance=0.3)


@pytest.mark.parametrize("kind", ["full", "low rank"])
def test_full_covariance(kind):
    toy = Toy(1, posterior=kind, latent_shape=(4,), prior="with mean")
    view = look(toy, toy.data(9), num_latents=3)
    q = toy.posterior(view.x)
    order = list(view.shown)
    assert view.shown_covariance is not None and view.latent_variance is not None
    assert close(view.shown_covariance, q.covariance_matrix[:, order][:, :, order], scale=10.0)
    assert close(view.latent_variance, q.covariance_matrix.diagonal(dim1=1, dim2=2), scale=10.0)
    # Of the posterior's marginals.
    marginals, prior = Normal(q.mean, q.covariance_matrix.diagonal(dim1=1, dim2=2).sqrt()), toy.prior()
    kl = kl_divergence(marginals, prior).mean(0)
    assert close(view.kl_per_latent, kl, scale=10.0)
    assert order == kl.argsort(descending=True).tolist()[:3]


def test_a_diagonal_posterior_has_a_diagonal_covariance():
    toy = Toy(1, latent_shape=(4,), prior="learned")
    view = look(toy, toy.data(9))
    variance = toy.posterior(view.x).variance[:, list(view.shown)]
    assert close(view.shown_covariance, torch.diag_embed(variance), scale=1.0)
    assert close(view.prior_variance, toy.prior().variance)


def test_a_posterior_that_is_not_normal_has_no_variance():
    toy = Toy(1, posterior="laplace")
    view = look(toy, toy.data(9))
    assert view.latent_variance is view.shown_covariance is view.kl_per_latent is None
    assert torch.equal(view.latent_mean, toy.posterior(view.x).mean)
    assert list(view.shown) == view.latent_mean.var(0).argsort(descending=True).tolist()
    assert close(view.traversed[0, 3], view.latent_mean[:, view.shown[0]].median())


@pytest.mark.parametrize("prior", ["laplace", "full", "mixture"])
def test_priors_that_do_not_factorise_into_normals(prior):
    toy = Toy(2, prior=prior)
    view = look(toy, toy.data(12))
    assert view.prior_mean is view.kl_per_latent is None and view.samples.shape == (12, 3)


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "poisson", "one hot", "student t", "full normal", "normal, function"]
)
def test_likelihoods(likelihood):
    toy = Toy(3, likelihood=likelihood)
    view = look(toy, toy.data(8))
    assert close(view.reconstruction, toy.likelihood(view.latent_mean).mean)


def test_bernoulli_vae_and_latents_with_axes():
    torch.manual_seed(0)
    networks = ConvEncoder((1, 8, 8), (4,)), ConvDecoder((1, 8, 8), (4,))
    model = VAE(*networks, data_shape=(1, 8, 8), latent_dim=64, likelihood=Bernoulli())
    view = look(model, torch.randint(2, (5, 1, 8, 8)))
    assert bool(((view.reconstruction > 0) & (view.reconstruction < 1)).all())
    assert len(view.shown) == 8 and view.traversals.shape == (8, 7, 1, 8, 8)
    toy = Toy(0, latent_shape=(2, 3))
    assert look(toy, toy.data(4)).latent_mean.shape == (4, 6)
    assert look(toy, toy.data(4)).latent_shape == (2, 3)


def test_one_point():
    toy = Toy(0)
    view = look(toy, toy.data(1))
    assert len(view) == 1 and view.traversals.shape == (2, 7, 3)


def no_mean(x):
    return TransformedDistribution(Independent(MultivariateNormal(x, torch.eye(3)), 0), [ExpTransform()])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: look(Toy(0), [x, x]), DataError, "list given as data"),
        (lambda x: look(Toy(0), x[:0]), DataError, "no data points"),
        (lambda x: look(Toy(0), x.sum()), DataError, "single number"),
        (lambda x: look(Toy(0), x, labels=[1, 2]), UsageError, r"labels of shape \(2,\) given for 9 data points"),
        (lambda x: look(Toy(0), x, labels=torch.zeros(9, 10)), UsageError, "one label for each"),
        (lambda x: look(Toy(0), x, labels=[[1], [2, 3]]), UsageError, "one label for each"),
        (lambda x: look(Toy(0), x, columns="abc"), UsageError, "columns='abc'"),
        (
            lambda x: look(Toy(0), x, columns=["a"]),
            UsageError,
            "1 names given as columns, expected one for each of .* 3",
        ),
        (lambda x: look(Toy(0), x, scaling=Scaling(torch.ones(4), torch.ones(4))), UsageError, r"shape \(4,\)"),
        (lambda x: look(Toy(0), x, num_points=0), UsageError, "num_points=0"),
        (lambda x: look(Toy(0), x, num_latents=0), UsageError, "num_latents=0"),
        (lambda x: look(Toy(0), x, num_steps=1), UsageError, "num_steps=1"),
        (lambda x: look(Toy(0), x, seed=-1), UsageError, "seed=-1"),
        (lambda x: look(vae1(4, 2), x.float()), DataError, r"shape \(9, 3\)"),
        (
            lambda x: look(from_functions(no_mean, lambda z: z, variance=1.0), x),
            UnsupportedError,
            "the posterior is Tr",
        ),
        (lambda x: look(from_functions(lambda x: (x, x), lambda z: z[:, :2], variance=1.0), x), ModelError, r"\(2,\)"),
        (
            lambda x: look(Toy(0, likelihood="categorical"), x.abs().long()),
            UnsupportedError,
            r"p\(x\|z\) is Categorical that has no mean",
        ),
    ],
)
def test_errors(call, error, says):
    with pytest.raises(error, match=says):
        call(draw(9, 3))
