"""Figure of where the decoder's part of the gap comes from, feature by feature."""

from collections.abc import Sequence

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.pictures import MOST_NAMED, SIGNED, feature_names, figure_height, image_shape, picture
from vaentropy.figures.style import COLOURS, INK, Figure, new_figure, styled
from vaentropy.results import Evaluation

__all__ = ["plot_residuals"]

# Standard errors that an error bar is long, to each side.
ERRORS = 2.0


def plot_residuals(
    evaluation: Evaluation, columns: Sequence[str] = (), *, shape: Sequence[int] | None = None
) -> Figure:
    """Where the decoder's part of the gap comes from, and what a factor on σ² of its own would bring each feature.

    Maps of images, summed over their channels; bars of other features, those with the largest residuals if they are
    many, with two standard errors: of the Monte Carlo noise where it is known, else of the data points.

    Args:
        evaluation: of a model whose likelihood factorises over the features.
        columns: names of the features.
        shape: of images, as for `plot_reconstructions`.

    Raises:
        UsageError: the likelihood does not factorise, or an argument does not fit.
    """
    require_instance("evaluation", evaluation, Evaluation, "an Evaluation")
    residuals = evaluation.decoder_residuals
    if residuals is None:
        given = "an evaluation without residuals per feature given: its likelihood does not factorise"
        raise UsageError(f"{given}, or its data have no features")
    data_shape = tuple(residuals.shape)
    names, image = feature_names(columns, data_shape), image_shape(data_shape, shape)
    terms = {"residual R_d": residuals.flatten()}
    if evaluation.gains.feature_variance is not None:
        terms["gain of a σ² of its own"] = evaluation.gains.feature_variance.flatten()
    with styled():
        if image is not None:
            return _maps(terms, image)
        return _bars(evaluation, terms, names)


def _maps(terms: dict[str, Tensor], image: tuple[int, int, int]) -> Figure:
    """Maps of terms per feature, summed over the channels, symmetric around 0."""
    _, height, width = image
    figure = new_figure(7.0, figure_height(3.2, height, width) + 0.5)
    for axes, (name, values) in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms.items(), strict=True):
        values = values.reshape(image).sum(0)
        limit = _largest(values)
        drawn = picture(axes, values.numpy(), (-limit, limit), SIGNED)
        axes.set_title(name if bool(values.isfinite().all()) else f"{name} (blank: unbounded)")
        axes.set_xlabel("pixel")
        figure.colorbar(drawn, ax=axes, label="nats per data point", orientation="horizontal", fraction=0.05)
    figure.axes[0].set_ylabel("pixel")
    return figure


def _largest(values: Tensor) -> float:
    """The largest absolute value, finite and above 0: where colours and axes may end."""
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() and float(finite.max()) > 0 else 1.0


def _bars(evaluation: Evaluation, terms: dict[str, Tensor], names: Sequence[str]) -> Figure:
    """Horizontal bars of terms per feature, with errors."""
    errors = evaluation.stderr if evaluation.mc_stderr is None else evaluation.mc_stderr
    residuals = next(iter(terms.values()))
    order = residuals.abs().argsort(descending=True, stable=True)[:MOST_NAMED].sort().values
    figure = new_figure(7.0, 1.2 + 0.17 * len(order))
    grid = figure.subplots(1, len(terms), sharey=True, squeeze=False)[0]
    places = np.arange(len(order))
    known = (errors.decoder_residuals, errors.gains.feature_variance)
    for axes, (name, values), error, colour in zip(grid, terms.items(), known, COLOURS, strict=False):
        heights = values[order]
        finite = heights.isfinite()
        axes.barh(places, torch.where(finite, heights, 0.0).numpy(), 0.7, color=colour)
        if error is not None:
            bars = ERRORS * error.flatten()[order].numpy()
            there = (finite.numpy()) & np.isfinite(bars)
            axes.errorbar(
                heights.numpy()[there], places[there], xerr=bars[there], fmt="none", ecolor=INK, elinewidth=0.8
            )
        for place in places[~finite.numpy()]:
            axes.annotate(" ∞", (0.0, place), va="center")
        axes.axvline(0.0, color=INK, linewidth=0.6)
        axes.set_title(name)
        axes.set_xlabel("nats per data point")
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    grid[0].set_yticks(places, [names[d] for d in order.tolist()])
    grid[0].invert_yaxis()
    shown = (
        "feature"
        if len(order) == len(names)
        else f"feature, the {len(order)} of {len(names)} with the largest residuals"
    )
    grid[0].set_ylabel(shown)
    return figure
