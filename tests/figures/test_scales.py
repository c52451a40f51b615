"""Scales of latents: what is drawn are the model's own numbers, and what the mathematics says of them."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.families import vae2
from vaentropy.figures.scales import plot_posteriors, plot_scales
from vaentropy.figures.view import look
from vaentropy.linear import LinearVAE

from ..models import F64, Toy, close


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture(scope="module")
def linear():
    """The optimum of a linear VAE with two latents, and its data."""
    x = draw(300, 4) * torch.tensor([3.0, 1.0, 0.5, 0.5], dtype=F64)
    return LinearVAE.optimum(x, 2), x


def stacked(figure: Figure) -> np.ndarray:
    """Heights of the bars (parts, latents), each of which begins where the one below ends."""
    bars = [list(container) for container in figure.axes[0].containers]
    heights = np.array([[bar.get_height() for bar in part] for part in bars])
    ends = np.array([[bar.get_y() + bar.get_height() for bar in part] for part in bars])
    assert np.allclose(ends, heights.cumsum(0))
    return heights


def test_scales_add_up_to_the_prior_at_the_optimum(linear):
    # In closed form τ² = σ²/λ and Var ν = 1 - σ²/λ.
    model, x = linear
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    posterior_variance = eigenvalues[2:].mean() / eigenvalues[:2]
    evaluation = evaluate(model, x, expectation=GaussHermite(1))
    for scales in (look(model, x), evaluation):
        parts = stacked(plot_scales(scales))
        assert close(parts[0], 1 - posterior_variance, tolerance=1e-9)
        assert close(parts[1], posterior_variance, scale=1.0, tolerance=1e-9)
        assert close(parts.sum(0), [1.0, 1.0], tolerance=1e-9)
    figure = plot_scales(evaluation)
    figure.draw_without_rendering()
    names = [text.get_text() for text in figure.legends[0].texts]
    assert len(figure.axes) == 1 and names == ["α², the prior's", "variance of ν", "τ² and squared shift of ν"]


@pytest.mark.parametrize("posterior", ["full", "diagonal"])
def test_scales_of_any_model_add_up_to_its_ratios(posterior):
    toy = Toy(6, posterior=posterior, prior="with mean", latent_shape=(3,))
    x = toy.data(30)
    evaluation, view = evaluate(toy, x), look(toy, x)
    prior, q = toy.prior(), toy.posterior(x)
    expected = ((q.mean - prior.mean) ** 2 + q.variance).mean(0) / prior.variance
    for scales in (evaluation, view):
        figure = plot_scales(scales, sort=False)
        assert close(stacked(figure).sum(0), expected)
        # α² itself is not 1, and drawn below.
        assert close(figure.axes[1].lines[0].get_ydata(), prior.variance)
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["0", "1", "2"]
    order = [int(tick.get_text()) for tick in plot_scales(view).axes[1].get_xticklabels()]
    assert order == view.kl_per_latent.argsort(descending=True).tolist()


def test_many_latents():
    torch.manual_seed(0)
    model = vae2(3, 70, (4,))
    x = draw(20, 3).float()
    view = look(model, x)
    assert stacked(plot_scales(view)).shape == (3, 64)
    assert "the 64 most used of 70" in plot_scales(evaluate(model, x)).axes[-1].get_xlabel()
    figure = plot_posteriors(view)
    assert len(figure.axes[0].get_xticks()) == 16


def test_violins_have_the_medians_of_means_and_scales():
    toy = Toy(6, prior="with mean", latent_shape=(3,))
    view = look(toy, toy.data(31))
    figure = plot_posteriors(view)
    order, q = list(view.order), toy.posterior(view.x)
    for axes, values in zip(figure.axes, (q.mean, q.variance.sqrt()), strict=True):
        medians = [segment[0][1] for segment in axes.collections[3].get_segments()]
        assert close(medians, values.median(0).values[order], tolerance=1e-9)
    heights = [path[0][1] for path in figure.axes[0].collections[4].get_segments()]
    assert close(heights, (toy.prior().mean - toy.prior().stddev)[order])
    assert [axes.get_ylabel() for axes in figure.axes] == ["posterior mean ν", "posterior scale τ"]


@pytest.mark.parametrize("toy", [Toy(7, posterior="laplace"), Toy(7, prior="mixture"), Toy(7, latent_shape=(1,))])
def test_posteriors_of_whatever_model(toy):
    for num_points in (1, 9):
        plot_posteriors(look(toy, toy.data(num_points))).draw_without_rendering()


def test_a_constant_scale_is_a_line(linear):
    # The τ of a linear VAE is the same for all points.
    view = look(*linear)
    (body, *_) = plot_posteriors(view).axes[1].collections
    assert close(np.ptp(body.get_paths()[0].vertices[:, 1]), 0.0, scale=1.0)


def test_errors():
    toy = Toy(8, posterior="laplace")
    data = toy.data(5)
    for scales in (look(toy, data), evaluate(toy, data)):
        with pytest.raises(UsageError, match="without normal latents given"):
            plot_scales(scales)
