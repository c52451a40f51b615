"""Figures of the data: what is drawn are the values themselves, in their places, under their names."""

import io

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from vaentropy.errors import UsageError
from vaentropy.figures.data import (
    plot_points,
    plot_reconstructions,
    plot_samples,
    plot_traversals,
)
from vaentropy.figures.pictures import reduced
from vaentropy.figures.view import View, look
from vaentropy.likelihoods import Bernoulli
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.vae import VAE

from ..models import F64, Toy, close
from .hostile import HOSTILE, holds_hostile


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def svg(figure: Figure) -> str:
    """The figure as a report has it."""
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue().decode()


def drawn_images(figure: Figure) -> list[np.ndarray]:
    return [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images]


def cells(mosaic: np.ndarray, height: int, width: int, rows: int, columns: int) -> torch.Tensor:
    """The images of a mosaic with gaps of one pixel, (rows, columns, height, width, ...)."""
    step_y, step_x = height + 1, width + 1
    assert mosaic.shape[:2] == (rows * step_y - 1, columns * step_x - 1)
    return torch.stack(
        [
            torch.stack(
                [torch.as_tensor(mosaic[i * step_y :][:height, j * step_x :][:, :width]) for j in range(columns)]
            )
            for i in range(rows)
        ]
    )


@pytest.fixture(scope="module")
def grey() -> View:
    """Flat vectors of 3 x 4 values, one constant and one missing."""
    x = draw(25, 12)
    x[:, 5] = 2.0
    x[0, 3] = torch.nan
    return look(Toy(1, data_shape=(12,)), x, missing="ignore", num_steps=3)


@pytest.fixture(scope="module")
def table() -> View:
    x = draw(40, 6) * torch.tensor([100.0, 1.0, 1e-3, 1.0, 1.0, 1.0], dtype=F64)
    x[:, 4] = 7.0
    return look(Toy(2, data_shape=(6,), latent_shape=(3,)), x, columns=HOSTILE)


@pytest.fixture(scope="module")
def convolutional() -> View:
    torch.manual_seed(0)
    networks = ConvEncoder((3, 8, 8), (4,)), ConvDecoder((3, 8, 8), (4,))
    model = VAE(*networks, data_shape=(3, 8, 8), latent_dim=2, likelihood=Bernoulli())
    return look(model, torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)).round(), num_steps=3)


def test_images_stand_above_their_reconstructions(grey):
    figure = plot_reconstructions(grey, shape=(3, 4), num_pictures=5)
    (mosaic,) = drawn_images(figure)
    found = cells(mosaic, 3, 4, 2, 5)
    chosen = [0, 5, 10, 15, 20]
    for row, values in zip(found, (grey.x, grey.reconstruction), strict=True):
        expected = values[chosen].reshape(5, 3, 4)
        assert torch.equal(row.nan_to_num(99.0), expected.nan_to_num(99.0))
    # Nothing is drawn between them, nor where a value is missing.
    assert np.isnan(mosaic[3]).all() and np.isnan(mosaic[:, 4]).all() and np.isnan(mosaic[0, 3])
    assert figure.axes[0].images[0].get_clim() == (float(grey.x.nan_to_num(0).min()), float(grey.x.nan_to_num(0).max()))
    figure.draw_without_rendering()


def test_colour_images(convolutional):
    figure = plot_reconstructions(convolutional, num_pictures=7)
    (mosaic,) = drawn_images(figure)
    found = cells(mosaic, 8, 8, 2, 7)
    for row, values in zip(found, (convolutional.x, convolutional.reconstruction), strict=True):
        assert close(row[..., :3], values.permute(0, 2, 3, 1), scale=1.0, tolerance=1e-6)
        assert bool((row[..., 3] == 1).all())
    assert not mosaic[8, :, 3].any() and "recon-" in svg(figure)


def test_long_sequences_are_no_images_by_themselves():
    toy = Toy(1, data_shape=(2, 20))
    view = look(toy, toy.data(5))
    assert [values.shape for values in drawn_images(plot_reconstructions(view))] == [(40, 5)] * 3
    for plot, shape in ((plot_reconstructions, (2, 20)), (plot_samples, (20, 2)), (plot_traversals, (40, 1))):
        plot(view, shape=shape).draw_without_rendering()


@pytest.mark.parametrize("number", [1, 7, 16, 100])
def test_samples_beside_data(grey, number):
    figure = plot_samples(grey, shape=(3, 4), num_pictures=number)
    number = min(number, 25)
    columns = round(number**0.5)
    rows = -(-number // columns)
    chosen = [i * 25 // number for i in range(number)]
    for mosaic, values in zip(drawn_images(figure), (grey.x, grey.samples), strict=True):
        found = cells(mosaic, 3, 4, rows, columns).reshape(-1, 12)
        assert torch.equal(found[:number].nan_to_num(99.0), values[chosen].nan_to_num(99.0))
        assert bool(found[number:].isnan().all())


def test_traversals_of_images(grey):
    figure = plot_traversals(grey, shape=(1, 3, 4))
    (mosaic,) = drawn_images(figure)
    assert torch.equal(cells(mosaic, 3, 4, 2, 3).flatten(2), grey.traversals)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"latent {h}" for h in grey.shown]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2 %", "50 %", "98 %"]


def test_features_are_drawn_in_their_standard_deviations(table):
    figure = plot_reconstructions(table, num_pictures=10)
    x, reconstruction = table.x, table.reconstruction
    mean, std = x.mean(0), x.std(0, correction=0)
    std[4] = 1.0  # constant: drawn as it is
    chosen = list(range(0, 40, 4))
    data, again, difference = drawn_images(figure)
    assert close(data.T, ((x - mean) / std)[chosen], scale=1.0, tolerance=1e-9)
    assert close(again.T, ((reconstruction - mean) / std)[chosen], scale=1e3)
    assert close(difference.T, ((reconstruction - x) / std)[chosen], scale=1e3)
    samples = drawn_images(plot_samples(table, num_pictures=10))[1]
    assert close(samples.T, ((table.samples - mean) / std)[chosen], scale=1e3)


def test_traversals_of_features(table):
    figure = plot_traversals(table)
    std = table.x.std(0, correction=0)
    std[4] = 1.0
    expected = (table.traversals - table.x.mean(0)) / std
    for k, latent in enumerate(table.shown):
        lines = figure.axes[k].lines
        assert figure.axes[k].get_title(loc="left") == f"latent {latent}"
        for line, values in zip(lines[:7], expected[k], strict=True):
            assert close(line.get_ydata(), values, scale=1e3)
    assert "98 %" in svg(figure)


def test_hostile_names_are_text(table):
    for figure in (plot_reconstructions(table), plot_traversals(table)):
        assert holds_hostile(svg(figure))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_points_and_their_reconstructions(dimensions):
    x = draw(30, dimensions)
    x[3, 1] = torch.nan
    view = look(Toy(3, data_shape=(dimensions,)), x, missing="ignore", columns=HOSTILE[:dimensions])
    for figure, others in ((plot_points(view), view.reconstruction), (plot_samples(view), view.samples)):
        (axes,) = figure.axes
        data, model = (c for c in axes.collections if isinstance(c, PathCollection))
        there = ~x.isnan().any(1)
        for cloud, values in ((data, x[there]), (model, others)):
            at = cloud.get_offsets() if dimensions == 2 else np.stack(cloud._offsets3d, 1)
            assert np.array_equal(np.asarray(at), values.numpy())
        figure.draw_without_rendering()
    assert plot_points(view).axes[0].get_xlabel() == r"\$x_1^"


def test_pictures_of_one_point_and_of_constants():
    toy = Toy(6, data_shape=(4,), latent_shape=(1,))
    for x, shape in ((toy.data(1), (2, 2)), (torch.zeros(5, 4, dtype=F64), None)):
        view = look(toy, x)
        for plot in (plot_reconstructions, plot_samples, plot_traversals):
            plot(view, shape=shape).draw_without_rendering()
    x = torch.full((5, 4), torch.nan, dtype=F64)
    x[:, :3] = 1.0
    plot_reconstructions(look(toy, x, missing="ignore")).draw_without_rendering()


def test_errors(grey, table):
    for plot in (plot_reconstructions, plot_samples, plot_traversals):
        for shape in ((3, 5), (2, 6, 1), (12,), (3, -4)):
            with pytest.raises(UsageError, match="shape="):
                plot(grey, shape=shape)
    with pytest.raises(UsageError, match="num_pictures=0"):
        plot_samples(grey, num_pictures=0)
    with pytest.raises(UsageError, match="expected two or three features; use plot_reconstructions"):
        plot_points(table)


def test_large_images_are_means_over_squares():
    images = draw(2, 3, 1, 1400, 500)
    images[0, 0, 0, 0, :2] = torch.nan
    images[1, 1] = torch.nan
    small = reduced(images)
    # 2,800 pixels high: three by three make one.
    assert small.shape == (2, 3, 1, 467, 167)
    assert torch.allclose(small[0, 2, 0, 5, 7], images[0, 2, 0, 15:18, 21:24].mean())
    # At an edge, and beside missing values, the mean of what is there.
    assert torch.allclose(small[0, 2, 0, -1, -1], images[0, 2, 0, 1398:, 498:].mean())
    assert torch.allclose(small[0, 0, 0, 0, 0], images[0, 0, 0, :3, :3].nanmean())
    assert bool(small[1, 1].isnan().all())
    assert reduced(images[..., :100, :100]).shape == (2, 3, 1, 100, 100)
