"""Figures of how much of the prior's variance each latent uses."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import violin_stats
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.style import COLOURS, INK, Figure, new_figure, styled
from vaentropy.figures.view import View
from vaentropy.results import Evaluation

__all__ = ["plot_posteriors", "plot_scales"]

# Latents that fit into one picture.
LATENTS_AS_VIOLINS = 16
LATENTS_AS_BARS = 64
# Numbers below an axis.
MOST_NUMBERS = 32
# Parts of a bar differ in more than colour.
HATCHES = ("", "///", "")
# Prior variances within so much of 1 are those of a standard normal prior, and not drawn.
STANDARD = 1e-9
# Posterior scales that span more than this factor are drawn on a logarithmic axis.
WIDE_SPAN = 10.0
# A spread of less than this fraction of the values is rounding.
ROUNDING = 1e-12


def plot_scales(scales: Evaluation | View, *, sort: bool = True) -> Figure:
    """Of each latent, the variance of the posterior means and the mean posterior variance τ², as parts of α².

    The bars, with the squared distance of the mean ν from the prior's mean, add up to E(z_h - m0_h)²/α_h², which is 1
    at a stationary point (arXiv:2010.14860). A collapsed latent is all τ². α² is drawn below where it is not 1.

    Args:
        scales: an evaluation, of all its data; or a view, of its points. An evaluation does not know the distance of
            the means from the prior's apart from τ².
        sort: the most used latents first; False has them in order. The 64 most used are drawn.

    Raises:
        UsageError: neither, or without normal latents.
    """
    require_instance("scales", scales, (Evaluation, View), "an Evaluation, or a View")
    parts, prior_variance, order = _parts_of_view(scales) if isinstance(scales, View) else _parts(scales)
    drawn = order[:LATENTS_AS_BARS] if sort else sorted(order[:LATENTS_AS_BARS])
    standard = bool((prior_variance - 1).abs().max() < STANDARD)
    with styled():
        figure = new_figure(7.0, 3.2 if standard else 4.4)
        ratios = (1,) if standard else (3, 1)
        grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        axes, last = grid[0][0], grid[-1][0]
        _stack(axes, {name: values[drawn].numpy() for name, values in parts.items()})
        axes.axhline(1.0, color=INK, linestyle="--", linewidth=0.9, label="α², the prior's")
        axes.set_ylabel("part of the prior's variance α²")
        if not standard:
            last.plot(np.arange(len(drawn)), prior_variance[drawn].numpy(), "o", color=INK, markersize=3)
            _logarithmic(last)
            last.set_ylabel("α²")
        _latents_below(last, drawn, len(order), sort=sort)
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _stack(axes: Axes, parts: dict[str, np.ndarray]) -> None:
    """Bars (H,) of named parts, one on top of the other."""
    bottom = np.zeros(1)
    for (name, heights), colour, hatch in zip(parts.items(), COLOURS, HATCHES, strict=False):
        places = np.arange(len(heights))
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        axes.bar(places, heights, 0.8, bottom=bottom, label=name, **style)
        bottom = bottom + heights
    axes.set_ylim(0, 1.08 * max(1.0, float(bottom.max())))


def _latents_below(axes: Axes, drawn: list[int], total: int, *, sort: bool) -> None:
    """The numbers of the latents drawn at 0, 1, … below an axis; not of all where they are many."""
    step = math.ceil(len(drawn) / MOST_NUMBERS)
    axes.set_xticks(np.arange(len(drawn))[::step], [str(latent) for latent in drawn[::step]])
    axes.set_xlim(-0.6, len(drawn) - 0.4)
    axes.grid(axis="x", visible=False)
    which = "latent" if total == len(drawn) else f"latent, the {len(drawn)} most used of {total}"
    axes.set_xlabel(f"{which}, most used first" if sort and total > 1 else which)


Parts = tuple[dict[str, Tensor], Tensor, list[int]]


def _parts(evaluation: Evaluation) -> Parts:
    """Parts of α² (H,) by name, α² itself, and the latents by use."""
    moments = evaluation.moments
    if evaluation.latent_mean_variance is None or evaluation.optimal_prior_variance is None:
        raise UsageError("an evaluation without normal latents given: there are no scales to draw")
    ratio = moments["prior_ratios"].mean.flatten()
    prior_variance = evaluation.optimal_prior_variance.flatten() / ratio
    of_means = evaluation.latent_mean_variance.flatten() / prior_variance
    use = of_means if evaluation.kl_per_latent is None else evaluation.kl_per_latent.flatten()
    parts = {"variance of ν": of_means, "τ² and squared shift of ν": ratio - of_means}
    return parts, prior_variance, use.argsort(descending=True, stable=True).tolist()


def _parts_of_view(view: View) -> Parts:
    if view.latent_variance is None or view.prior_mean is None or view.prior_variance is None:
        raise UsageError("a view without normal latents given: there are no scales to draw")
    mean = view.latent_mean
    parts = {
        "variance of ν": mean.var(0, correction=0),
        "mean of τ²": view.latent_variance.mean(0),
        "squared shift of ν": (mean.mean(0) - view.prior_mean).square(),
    }
    return {n: part / view.prior_variance for n, part in parts.items()}, view.prior_variance, list(view.order)


def plot_posteriors(view: View) -> Figure:
    """Of each latent, how its posterior means ν and its posterior scales τ are distributed over the points.

    Violins with their medians; the prior's ±α is drawn dashed. A collapsed latent has ν at the prior's mean and τ = α.

    Args:
        view: of a model, see `look`; the 16 most used latents are drawn.

    Raises:
        UsageError: not a view.
    """
    require_instance("view", view, View, "a View, as look(model, x) returns it")
    drawn = list(view.order[:LATENTS_AS_VIOLINS])
    with styled():
        figure = new_figure(7.0, 5.0 if view.latent_variance is not None else 3.0)
        number = 1 if view.latent_variance is None else 2
        rows = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
        _violins(rows[0], view.latent_mean[:, drawn].numpy(), COLOURS[0])
        rows[0].set_ylabel("posterior mean ν")
        alpha = None if view.prior_variance is None else view.prior_variance[drawn].sqrt().numpy()
        if view.prior_mean is not None and alpha is not None:
            for sign in (-1, 1):
                _dashes(rows[0], view.prior_mean[drawn].numpy() + sign * alpha)
        if view.latent_variance is not None:
            scale = view.latent_variance[:, drawn].sqrt().numpy()
            wide = bool(scale.min() > 0 and scale.max() > WIDE_SPAN * scale.min())
            _violins(rows[1], scale, COLOURS[1], logarithmic=wide)
            rows[1].set_ylabel("posterior scale τ")
            if alpha is not None:
                _dashes(rows[1], alpha)
            if not wide:
                rows[1].set_ylim(bottom=0)
        _latents_below(rows[-1], drawn, len(view.order), sort=True)
        handles = [Line2D([], [], color=INK, linewidth=1.5, label="median")]
        if alpha is not None:
            handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="prior, ±α"))
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _violins(axes: Axes, values: np.ndarray, colour: str, *, logarithmic: bool = False) -> None:
    """Violins of the columns of (P, K) side by side."""
    columns = [np.log10(column) if logarithmic else column for column in values.T]
    stats = violin_stats(columns, method=lambda x, coords: _density(x, coords))
    if logarithmic:
        for each in stats:
            for name in ("coords", "mean", "median", "min", "max"):
                each[name] = 10.0 ** np.asarray(each[name])
        _logarithmic(axes)
    drawn = axes.violin(stats, positions=np.arange(len(columns)), widths=0.8, showextrema=False, showmedians=True)
    bodies: Any = drawn["bodies"]
    for body in bodies:
        body.set(facecolor=colour, edgecolor=colour, alpha=0.6)
    drawn["cmedians"].set(color=INK, linewidth=1.5)


def _density(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Kernel density of the values, bandwidth by Scott's rule; a line where all are equal."""
    width = values.std() * len(values) ** -0.2
    if width <= ROUNDING * np.abs(values).max():
        return np.ones_like(at)
    return np.exp(-0.5 * ((at[:, None] - values) / width) ** 2).mean(1)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain numbers beside it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _dashes(axes: Axes, heights: np.ndarray) -> None:
    """A dashed line across the place of each latent."""
    places = np.arange(len(heights))
    axes.hlines(heights, places - 0.45, places + 0.45, color=INK, linestyles="--", linewidth=0.9)
