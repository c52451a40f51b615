"""Figures of the data, beside what a model makes of them."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.pictures import (
    MANY,
    MOST_NAMED,
    SIGNED,
    as_pixels,
    feature_names,
    figure_height,
    gap_of,
    image_shape,
    mosaic,
    picture,
    reduced,
    standardisation,
    value_range,
)
from vaentropy.figures.style import COLOURS, INK, MARKERS, Figure, literal, new_figure, styled
from vaentropy.figures.view import View

__all__ = ["plot_points", "plot_reconstructions", "plot_samples", "plot_traversals"]

# Colours of grey images, and of what has an order.
GREY, ORDERED = "gray", "viridis"
# Standard deviations of a feature at which the colours of a heat map end.
MOST_DEVIATIONS = 3.0
# Points whose way to their reconstruction is drawn.
WAYS = 100
POINT = 6.0


def plot_reconstructions(view: View, *, shape: Sequence[int] | None = None, num_pictures: int = 10) -> Figure:
    """Data points above their reconstructions, the means of p(x|z) at the posterior means.

    What is no image is drawn as columns of features: the data, the reconstructions, and their difference, each feature
    in its standard deviations over the points of the view.

    Args:
        view: of a model, see `look`.
        shape: (height, width) or (channels, height, width) of data that are images, where their own shape does not
            say so.
        num_pictures: data points, spread evenly over those of the view.

    Raises:
        UsageError: not a view, or a shape that does not fit.
    """
    pictures, image = _chosen(view, shape, num_pictures)
    x, reconstruction = view.x[pictures], view.reconstruction[pictures]
    with styled():
        if image is None:
            panels = {"data": x, "reconstruction": reconstruction, "difference": reconstruction - x}
            return _heat_maps(view, panels, differences=("difference",))
        figure = new_figure(7.0, figure_height(5.8, 2 * image[1], len(pictures) * image[2]))
        images = reduced(torch.stack([x, reconstruction]).reshape(2, len(pictures), *image))
        _images(figure, figure.add_subplot(), images, value_range(view.x), rows=("data", "recon-\nstruction"))
        return figure


def plot_samples(view: View, *, shape: Sequence[int] | None = None, num_pictures: int = 16) -> Figure:
    """Samples of the model, the means of p(x|z) at draws z from the prior, beside data.

    Data of two or three features are drawn as points; others as in `plot_reconstructions`.

    Args:
        view: of a model, see `look`.
        shape: of images, as for `plot_reconstructions`.
        num_pictures: data points and samples; of points in two or three dimensions all are drawn.

    Raises:
        UsageError: not a view, or a shape that does not fit.
    """
    pictures, image = _chosen(view, shape, num_pictures)
    with styled():
        if image is None and view.data_shape in ((2,), (3,)):
            return _clouds(view, view.samples, "sample of the model, without its noise", ways=False)
        panels = {"data": view.x[pictures], "samples of the model": view.samples[pictures]}
        if image is None:
            return _heat_maps(view, panels, differences=())
        columns = max(1, round(len(pictures) ** 0.5))
        rows = -(-len(pictures) // columns)
        figure = new_figure(7.0, figure_height(3.1, rows * image[1], columns * image[2]))
        grid = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
        for axes, (title, x) in zip(grid, panels.items(), strict=True):
            blank = torch.full((rows * columns - len(x), *view.data_shape), torch.nan, dtype=x.dtype, device="cpu")
            images = reduced(torch.cat([x, blank]).reshape(rows, columns, *image))
            _images(figure, axes, images, value_range(view.x), scale=title != "data")
            axes.set_title(title)
        return figure


def plot_points(view: View) -> Figure:
    """Data points and their reconstructions, in two or three dimensions; lines join some of the pairs.

    Args:
        view: of data with two or three features.

    Raises:
        UsageError: not a view, or one of other data.
    """
    require_instance("view", view, View, "a View, as look(model, x) returns it")
    if view.data_shape not in ((2,), (3,)):
        given = f"a view of data of shape {view.data_shape} given, expected two or three features"
        raise UsageError(f"{given}; use plot_reconstructions")
    with styled():
        return _clouds(view, view.reconstruction, "reconstruction", ways=True)


def plot_traversals(view: View, *, shape: Sequence[int] | None = None) -> Figure:
    """What the decoder makes of each latent alone, from low to high values; all others stay at their mean.

    Of images there is a row for each latent. Of other data there is a panel, with a line for each value: each feature
    in its standard deviations from its mean over the points of the view.

    Args:
        view: of a model, see `look`, which chooses latents and values.
        shape: of images, as for `plot_reconstructions`.

    Raises:
        UsageError: not a view, or a shape that does not fit.
    """
    _, image = _chosen(view, shape, 1)
    num_latents, num_steps = view.traversed.shape
    with styled():
        if image is None:
            return _traversal_lines(view)
        figure = new_figure(7.0, figure_height(5.6, num_latents * image[1], num_steps * image[2]))
        axes = figure.add_subplot()
        images = reduced(view.traversals.reshape(num_latents, num_steps, *image))
        width = images.shape[-1]
        _images(figure, axes, images, value_range(view.x), rows=[f"latent {latent}" for latent in view.shown])
        places = np.arange(num_steps) * (width + gap_of(width)) + width / 2 - 0.5
        axes.set_xticks(places, [f"{100 * level:.0f} %" for level in view.levels.tolist()])
        axes.set_xlabel("quantile of the latent over the data")
        return figure


# --- Images ----------------------------------------------------------------------------------------------------------


def _chosen(view: View, shape: Sequence[int] | None, number: int) -> tuple[Tensor, tuple[int, int, int] | None]:
    """Numbers of the points to draw, and the shape of images; None of what is none."""
    require_instance("view", view, View, "a View, as look(model, x) returns it")
    require_count("num_pictures", number)
    if not view.data_shape:
        raise UsageError("a view of data without features given, expected (N, features, ...); reshape them")
    number = min(number, len(view))
    return torch.arange(number, device="cpu") * len(view) // number, image_shape(view.data_shape, shape)


def _images(
    figure: Figure,
    axes: Axes,
    images: Tensor,
    limits: tuple[float, float],
    *,
    rows: Sequence[str] = (),
    scale: bool = True,
) -> None:
    """A mosaic of images (rows, columns, channels, height, width), with names of its rows and a scale of its greys."""
    _, _, channels, height, width = images.shape
    # The constrained layout would cut off what pixels that are squares leave no room for.
    figure.set_layout_engine("compressed")
    drawn = picture(axes, mosaic(images, limits), limits, GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks(np.arange(len(rows)) * (height + gap_of(width)) + height / 2 - 0.5, rows)
    if scale and channels == 1:
        figure.colorbar(drawn, ax=figure.axes, label="value", fraction=0.025, pad=0.01)


# --- Features --------------------------------------------------------------------------------------------------------


def _heat_maps(view: View, panels: dict[str, Tensor], *, differences: Sequence[str]) -> Figure:
    """Panels (n, *data_shape) beside each other, a column for each point, a row for each feature.

    Args:
        view: whose points say mean and standard deviation of each feature.
        panels: by title.
        differences: titles of those whose values are divided by the standard deviation only.
    """
    names, scaling = feature_names(view.columns, view.data_shape), standardisation(view.x.flatten(1))
    named = len(names) <= MOST_NAMED
    figure = new_figure(7.0, min(8.0, 1.4 + 0.17 * (len(names) if named else MOST_NAMED)))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    drawn = None
    for axes, (title, x) in zip(grid, panels.items(), strict=True):
        x = x.flatten(1)
        values = x.double() / scaling.scale if title in differences else scaling.apply(x)
        drawn = picture(axes, values.T.numpy(), (-MOST_DEVIATIONS, MOST_DEVIATIONS), SIGNED)
        axes.set_aspect("auto")
        axes.set_title(title)
        axes.set_xlabel("point")
        axes.set_xticks([])
    if named:
        grid[0].set_yticks(np.arange(len(names)), names)
    grid[0].set_ylabel("feature")
    assert drawn is not None
    figure.colorbar(
        drawn, ax=list(grid), label="standard deviations of the feature", extend="both", fraction=0.03, pad=0.02
    )
    return figure


def _traversal_lines(view: View) -> Figure:
    names, scaling = feature_names(view.columns, view.data_shape), standardisation(view.x.flatten(1))
    num_latents, num_steps = view.traversed.shape
    columns = 1 if num_latents == 1 else 2
    rows = -(-num_latents // columns)
    longest = max(map(len, names)) if view.columns and len(names) <= MOST_NAMED else 0
    figure = new_figure(7.0, min(9.0, 1.2 + 1.7 * rows + 0.075 * longest))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    # From dark to light, none of them too light for white paper.
    colours = colormaps[ORDERED](np.linspace(0.0, 0.85, num_steps))
    places, named = np.arange(len(names)), len(names) <= MOST_NAMED
    look = {
        "linewidth": 1.0,
        "marker": MARKERS[0] if named else None,
        "markersize": 2.5,
        "zorder": 2 if named else MANY,
    }
    for axes, latent, lines in zip(grid, view.shown, view.traversals.flatten(2), strict=False):
        for colour, line, level in zip(colours, scaling.apply(lines).numpy(), view.levels.tolist(), strict=True):
            axes.plot(places, line, color=colour, label=f"{100 * level:.0f} %", **look)
        if not named:
            as_pixels(axes)
        axes.axhline(0.0, color=INK, linewidth=0.5)
        axes.set_title(f"latent {latent}")
    for axes in grid[num_latents:]:
        axes.set_axis_off()
    if named:
        for axes in grid[:num_latents][-columns:]:
            axes.set_xticks(places, names, rotation=90 if view.columns else 0)
            axes.tick_params(labelbottom=True)
    figure.supxlabel("feature", fontsize="medium")
    figure.supylabel("standard deviations of the feature", fontsize="medium")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="quantile of the latent over the data",
        loc="outside upper center",
        ncols=num_steps,
    )
    return figure


# --- Points ----------------------------------------------------------------------------------------------------------


def _clouds(view: View, others: Tensor, name: str, *, ways: bool) -> Figure:
    """Data and other points (P, 2 or 3) in one space."""
    dimensions = len(view.x[0])
    figure = new_figure(6.0, 5.0)
    axes = figure.add_subplot(projection="3d" if dimensions == 3 else None)
    x, others = view.x.double(), others.double()
    there = ~x.isnan().any(1)
    for points, colour, marker, label in (
        (x[there], COLOURS[0], MARKERS[0], "data"),
        (others, COLOURS[1], MARKERS[2], name),
    ):
        axes.scatter(
            *points.T.numpy(),
            s=POINT,
            color=colour,
            marker=marker,
            linewidths=0,
            alpha=0.7,
            rasterized=True,
            label=label,
        )
    if ways:
        number = min(WAYS, len(x))
        chosen = torch.arange(number, device="cpu") * len(x) // number
        # One line with breaks.
        pairs = torch.stack([x[chosen], others[chosen], torch.full_like(x[chosen], torch.nan)], 1).flatten(0, 1)
        axes.plot(*pairs.T.numpy(), color=INK, linewidth=0.4, alpha=0.6)
    names = [literal(each) for each in view.columns] or [f"feature {d}" for d in range(dimensions)]
    for label, set_label in zip(
        names, (axes.set_xlabel, axes.set_ylabel, getattr(axes, "set_zlabel", None)), strict=False
    ):
        assert set_label is not None
        set_label(label)
    if dimensions == 2:
        axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside upper center", ncols=2, markerscale=1.5)
    return figure
