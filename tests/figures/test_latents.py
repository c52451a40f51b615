"""Points and ellipses of latents: what is drawn are the model's own numbers."""

import io
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from vaentropy.figures.latents import plot_latents
from vaentropy.figures.view import View, look
from vaentropy.linear import LinearVAE

from ..models import F64, Toy, close


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def svg(figure: Figure) -> str:
    """The figure as a report has it."""
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue().decode()


@pytest.fixture(scope="module")
def linear():
    """The optimum of a linear VAE with two latents, and its data."""
    x = draw(300, 4) * torch.tensor([3.0, 1.0, 0.5, 0.5], dtype=F64)
    return LinearVAE.optimum(x, 2), x


@pytest.fixture(scope="module")
def labelled(linear) -> View:
    model, x = linear
    return look(model, x, labels=[("$x_1^" if row % 3 else "<script>") for row in range(300)])


def clouds(axes) -> list[PathCollection]:
    return [c for c in axes.collections if isinstance(c, PathCollection)]


def covariances(ellipses: EllipseCollection) -> torch.Tensor:
    """What ellipses of one standard deviation say: R diag(width², height²)/4 Rᵀ."""
    angles = torch.as_tensor(ellipses.get_angles(), dtype=F64).deg2rad()
    rotation = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).reshape(-1, 2, 2)
    widths, heights = (torch.as_tensor(sizes, dtype=F64) for sizes in (ellipses.get_widths(), ellipses.get_heights()))
    return rotation @ torch.diag_embed(torch.stack([widths, heights], 1) ** 2 / 4) @ rotation.mT


def test_points_are_posterior_means_by_label(labelled):
    figure = plot_latents(labelled)
    (axes,) = figure.axes
    drawn = clouds(axes)
    assert len(drawn) == 2
    for cloud, name in zip(drawn, ("$x_1^", "<script>"), strict=True):
        assert np.array_equal(cloud.get_offsets(), labelled.latent_mean[labelled.labels == name].numpy())
    assert not np.array_equal(drawn[0].get_facecolor(), drawn[1].get_facecolor())
    text = svg(figure)
    assert "&lt;script&gt;" in text and "<script>" not in text and "$x_1^" in text
    assert axes.get_xlabel() == f"latent 0 (KL {float(labelled.kl_per_latent[0]):.2f} nats)"


def test_every_label_is_in_the_legend(linear):
    # Also one that is empty, or begins with an underscore.
    model, x = linear
    (axes,) = plot_latents(look(model, x[:3], labels=["_a", "", "$b"])).axes
    names = [text.get_text().strip("\u200b") for text in axes.get_legend().texts]
    assert names == ["", r"\$b", "_a", "τ, one standard\ndeviation of q(z|x)", "prior"]


@pytest.mark.parametrize("posterior", ["diagonal", "full", "low rank"])
def test_ellipses_are_one_posterior_standard_deviation(posterior):
    toy = Toy(4, posterior=posterior)
    view = look(toy, toy.data(40))
    (axes,) = plot_latents(view).axes
    (ellipses,) = (c for c in axes.collections if isinstance(c, EllipseCollection))
    q = toy.posterior(view.x)
    covariance = torch.diag_embed(q.variance) if posterior == "diagonal" else q.covariance_matrix
    assert close(covariances(ellipses), covariance, scale=covariance.abs().max())
    assert np.array_equal(ellipses.get_offsets(), view.latent_mean.numpy())
    if posterior == "diagonal":
        # Along the axes, 2τ wide and high.
        sizes = np.sort([ellipses.get_widths(), ellipses.get_heights()], 0)
        assert close(sizes, np.sort(2 * q.variance.sqrt().numpy().T, 0))


def test_circles_are_the_prior():
    toy = Toy(4, prior="with mean")
    (axes,) = plot_latents(look(toy, toy.data(40))).axes
    circles = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
    prior = toy.prior()
    for circle, times in zip(circles, (1, 2), strict=True):
        assert close(circle.get_center(), prior.mean)
        assert close([circle.width, circle.height], 2 * times * prior.stddev)


def test_both_axes_have_one_scale_and_hold_everything(labelled):
    (axes,) = plot_latents(labelled).axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert math.isclose(right - left, high - low)
    for mean, (least, most) in zip(labelled.latent_mean.T, ((left, right), (low, high)), strict=True):
        assert least < min(float(mean.min()), -2) and most > max(float(mean.max()), 2)


def test_pairs_of_the_most_used_latents():
    toy = Toy(5, latent_shape=(7,))
    view = look(toy, toy.data(50), labels=range(50))
    figure = plot_latents(view)
    grid = np.array(figure.axes).reshape(5, 5)
    for i, second in enumerate(view.order[:5]):
        for j, first in enumerate(view.order[:5]):
            if j < i:
                (cloud,) = clouds(grid[i, j])  # fifty labels are not told apart
                assert np.array_equal(cloud.get_offsets(), view.latent_mean[:, [first, second]].numpy())
                assert len(grid[i, j].collections) == 2
    # A histogram has area 1, and so has the prior's density where it is drawn.
    bars = [bar for bar in grid[2, 2].patches if isinstance(bar, Rectangle)]
    assert math.isclose(sum(bar.get_width() * bar.get_height() for bar in bars), 1.0)
    at, density = grid[2, 2].lines[0].get_data()
    assert close(density, torch.distributions.Normal(0.0, 1.0).log_prob(torch.as_tensor(at)).exp(), tolerance=1e-9)
    # One picture of pixels each, of the points alone: what is ink stays what a page can give its own colour.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = svg(figure)
    assert drawn.count("<image") == 10
    assert all(f">latent {latent}" in drawn for latent in view.order[:5])


def test_one_latent():
    x = draw(100, 3)
    view = look(LinearVAE.optimum(x, 1), x)
    above, below = plot_latents(view).axes
    (cloud,) = clouds(below)
    assert np.array_equal(cloud.get_offsets()[:, 0], view.latent_mean[:, 0].numpy())
    assert close(cloud.get_offsets()[:, 1], view.latent_variance[:, 0].sqrt())
    assert sum(bar.get_width() * bar.get_height() for bar in above.patches) == pytest.approx(1.0)


@pytest.mark.parametrize("model", [Toy(7, posterior="laplace"), Toy(7, prior="mixture"), Toy(7, latent_shape=(1,))])
@pytest.mark.parametrize("num_points", [1, 9])
def test_whatever_the_model(model, num_points):
    view = look(model, model.data(num_points), labels=[float("nan"), *range(8)][:num_points])
    plot_latents(view).draw_without_rendering()
    assert sum(len(c.get_offsets()) for c in clouds(plot_latents(view).axes[-1])) == num_points
