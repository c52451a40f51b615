"""Figures of the latents: where the points lie, and how much of the prior's variance each latent uses."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import violin_stats
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator, NullFormatter

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.pictures import literal
from vaentropy.figures.style import COLOURS, INK, new_figure, styled
from vaentropy.figures.view import View
from vaentropy.results import Evaluation

__all__ = ["plot_latents", "plot_posteriors", "plot_scales"]

# What fits into one picture.
MOST_LABELS = 10
LATENTS_IN_PAIRS = 5
LATENTS_AS_VIOLINS = 16
LATENTS_AS_BARS = 64
ELLIPSES, ELLIPSES_IN_PAIRS = 60, 20
# Labels that run out of colours begin again with the next marker.
MARKERS = "o^sDv"
# Points², as scatter takes it.
POINT, SMALL_POINT = 9.0, 4.0
# What is drawn below `RASTERISED` becomes one picture of pixels in an SVG.
CLOUD, RASTERISED = 0.5, 1.0
# Scales that span more than this factor are drawn on a logarithmic axis, latents on axes of their own.
WIDE_SPAN = 10.0
# Prior variances within so much of 1 are those of a standard normal prior, and not drawn.
STANDARD = 1e-9
# Parts of a bar differ in more than colour.
HATCHES = ("", "///", "")
# Numbers below an axis.
MOST_NUMBERS = 32
# Prior's circles, in standard deviations.
CIRCLES = (1, 2)


# --- Where the points lie --------------------------------------------------------------------------------------------


def plot_latents(view: View) -> Figure:
    """Posterior means in the plane of two latents, coloured by label, with ellipses of one posterior deviation τ.

    Of one latent there is a histogram, and the scales τ over the means ν; of more than two, the most used ones in pairs
    and each one's histogram. The prior is drawn dashed, at one and two standard deviations, where it is normal with
    independent elements; so is its density.

    Args:
        view: of a model, see `look`; up to ten different labels are told apart.

    Raises:
        UsageError: not a view.
    """
    require_instance("view", view, View, "a View, as look(model, x) returns it")
    with styled():
        drawn = list(view.shown[:LATENTS_IN_PAIRS])
        if len(drawn) == 1:
            return _one_latent(view, drawn[0])
        # Two have their places; of more, the most used one comes first.
        return _two_latents(view, min(drawn), max(drawn)) if len(drawn) == 2 else _pairs(view, drawn)


def _groups(view: View) -> list[tuple[np.ndarray, str, str, str]]:
    """Points of each label (P,), their colour and marker, and the label as text, "" where labels are not told apart."""
    names = [] if view.labels is None else np.unique(view.labels).tolist()
    if view.labels is None or not 1 < len(names) <= MOST_LABELS:
        return [(np.ones(len(view), dtype=bool), COLOURS[0], MARKERS[0], "")]
    return [
        (view.labels == name, COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)], literal(str(name)))
        for i, name in enumerate(names)
    ]


def _legend(owner: Figure | Axes, view: View, *, ellipses: bool = True, **place: Any) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=name)
        for _, colour, marker, name in _groups(view)
        if name
    ]
    if ellipses and view.latent_variance is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.6, label="τ, one standard\ndeviation of q(z|x)"))
    if view.prior_variance is not None:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="prior"))
    if handles:
        owner.legend(handles=handles, frameon=False, **place)


def _latent_name(view: View, latent: int) -> str:
    if view.kl_per_latent is None:
        return f"latent {latent}"
    return f"latent {latent} (KL {float(view.kl_per_latent[latent]):.2f} nats)"


def _limits(view: View, latent: int) -> tuple[float, float]:
    """Where an axis of a latent ends: points, ellipses and circles are within."""
    mean = view.latent_mean[:, latent]
    reach = torch.zeros_like(mean) if view.latent_variance is None else view.latent_variance[:, latent].sqrt()
    low, high = float((mean - reach).min()), float((mean + reach).max())
    if view.prior_mean is not None and view.prior_variance is not None:
        m0, alpha = float(view.prior_mean[latent]), float(view.prior_variance[latent].sqrt())
        low, high = min(low, m0 - max(CIRCLES) * alpha), max(high, m0 + max(CIRCLES) * alpha)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _covariance(view: View, first: int, second: int) -> Tensor | None:
    """Posterior covariances of two of the latents shown, (P, 2, 2); None where the posterior is not normal."""
    if view.shown_covariance is None:
        return None
    pair = [view.shown.index(first), view.shown.index(second)]
    return view.shown_covariance[:, pair][:, :, pair]


def _ellipses(axes: Axes, view: View, first: int, second: int, number: int) -> None:
    """Ellipses of one posterior standard deviation around `number` of the points."""
    covariance = _covariance(view, first, second)
    if covariance is None:
        return
    number = min(number, len(view))
    chosen = np.arange(number) * len(view) // number
    a, b, c = (covariance[chosen, i, j].numpy() for i, j in ((0, 0), (1, 1), (0, 1)))
    # Principal axes of [[a, c], [c, b]]: the larger one at the angle θ with tan 2θ = 2c/(a - b).
    middle, radius = (a + b) / 2, np.hypot((a - b) / 2, c)
    axes.add_collection(
        EllipseCollection(
            2 * np.sqrt(middle + radius),
            2 * np.sqrt(np.clip(middle - radius, 0, None)),
            np.degrees(0.5 * np.arctan2(2 * c, a - b)),
            units="xy",
            offsets=view.latent_mean[chosen][:, [first, second]].numpy(),
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors=INK,
            linewidths=0.6,
        ),
        autolim=False,
    )


def _plane(axes: Axes, view: View, first: int, second: int, *, size: float, ellipses: int) -> None:
    """Means, ellipses and the prior's circles in the plane of two latents."""
    mean = view.latent_mean.numpy()
    for inside, colour, marker, _ in _groups(view):
        axes.scatter(
            mean[inside, first],
            mean[inside, second],
            s=size,
            color=colour,
            marker=marker,
            linewidths=0,
            alpha=0.6,
            zorder=CLOUD,
        )
    # One picture inside the picture: thousands of points would make a large file.
    axes.set_rasterization_zorder(RASTERISED)
    _ellipses(axes, view, first, second, ellipses)
    if view.prior_mean is not None and view.prior_variance is not None:
        m0, alpha = view.prior_mean.tolist(), view.prior_variance.sqrt().tolist()
        for times in CIRCLES:
            sizes = 2 * times * alpha[first], 2 * times * alpha[second]
            axes.add_patch(
                Ellipse((m0[first], m0[second]), *sizes, fill=False, edgecolor=INK, linestyle="--", linewidth=0.9)
            )
    axes.set_xlim(_limits(view, first))
    axes.set_ylim(_limits(view, second))


def _histogram(axes: Axes, view: View, latent: int) -> None:
    """Posterior means as a density, beside the prior's."""
    low, high = _limits(view, latent)
    axes.hist(
        view.latent_mean[:, latent].numpy(), bins=40, range=(low, high), density=True, color=COLOURS[0], alpha=0.6
    )
    if view.prior_mean is not None and view.prior_variance is not None:
        grid = torch.linspace(low, high, 200, dtype=torch.float64, device="cpu")
        m0, variance = view.prior_mean[latent], view.prior_variance[latent]
        density = torch.exp(-0.5 * (grid - m0).square() / variance) / torch.sqrt(2 * math.pi * variance)
        axes.plot(grid.numpy(), density.numpy(), color=INK, linestyle="--", linewidth=0.9)
    axes.set_xlim(low, high)


def _two_latents(view: View, first: int, second: int) -> Figure:
    figure = new_figure(6.5, 5.0)
    axes = figure.add_subplot()
    _plane(axes, view, first, second, size=POINT, ellipses=ELLIPSES)
    # A square, and one scale for both axes unless one latent would become a line in it. With set_aspect matplotlib
    # would widen limits, and again at each step of the layout.
    axes.set_box_aspect(1.0)
    limits = _limits(view, first), _limits(view, second)
    spans = [high - low for low, high in limits]
    if max(spans) < WIDE_SPAN * min(spans):
        for (low, high), set_limits in zip(limits, (axes.set_xlim, axes.set_ylim), strict=True):
            set_limits((low + high - max(spans)) / 2, (low + high + max(spans)) / 2)
    axes.set_xlabel(_latent_name(view, first))
    axes.set_ylabel(_latent_name(view, second))
    # The constrained layout would cut off what a square leaves no room for.
    figure.set_layout_engine("compressed")
    _legend(axes, view, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _pairs(view: View, drawn: list[int]) -> Figure:
    number = len(drawn)
    figure = new_figure(7.0, 7.0)
    grid = figure.subplots(number, number, squeeze=False)
    for i, second in enumerate(drawn):
        for j, first in enumerate(drawn):
            axes = grid[i][j]
            if j > i:
                axes.set_axis_off()
                continue
            if i == j:
                _histogram(axes, view, first)
                axes.set_yticks([])
                axes.spines["left"].set_visible(False)
            else:
                _plane(axes, view, first, second, size=SMALL_POINT, ellipses=ELLIPSES_IN_PAIRS)
            axes.tick_params(labelbottom=i == number - 1, labelleft=j == 0 and i > 0)
            if i == number - 1:
                axes.set_xlabel(_latent_name(view, first).replace(" (", "\n("))
            if j == 0 and i > 0:
                axes.set_ylabel(f"latent {second}")
    _legend(figure, view, loc="upper right")
    return figure


def _one_latent(view: View, latent: int) -> Figure:
    figure = new_figure(6.5, 4.5)
    if view.latent_variance is None:
        axes = figure.add_subplot()
        _histogram(axes, view, latent)
    else:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _histogram(axes, view, latent)
        for inside, colour, marker, _ in _groups(view):
            mean, scale = view.latent_mean[inside, latent].numpy(), view.latent_variance[inside, latent].sqrt().numpy()
            below.scatter(mean, scale, s=POINT, color=colour, marker=marker, linewidths=0, alpha=0.6, zorder=CLOUD)
        if view.prior_variance is not None:
            below.axhline(float(view.prior_variance[latent].sqrt()), color=INK, linestyle="--", linewidth=0.9)
        below.set_rasterization_zorder(RASTERISED)
        below.set_ylabel("posterior scale τ")
        below.set_ylim(bottom=0)
    axes.set_ylabel("density of ν")
    figure.axes[-1].set_xlabel(f"posterior mean ν, {_latent_name(view, latent)}")
    _legend(figure, view, ellipses=False, loc="outside upper center", ncols=6)
    return figure


# --- How much each is used -------------------------------------------------------------------------------------------


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
        grid = figure.subplots(
            1 if standard else 2, 1, sharex=True, squeeze=False, height_ratios=(3, 1)[: 2 - standard]
        )
        axes, last = grid[0][0], grid[-1][0]
        _stack(axes, {name: values[drawn].numpy() for name, values in parts.items()})
        axes.axhline(1.0, color=INK, linestyle="--", linewidth=0.9, label="α², the prior's")
        axes.set_ylabel("part of the prior's variance α²")
        if not standard:
            last.plot(np.arange(len(drawn)), prior_variance[drawn].numpy(), "o", color=INK, markersize=3)
            _logarithmic(last)
            last.set_ylabel("α²")
        _latents_below(last, drawn, len(order), sort=sort)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
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
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
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
    if width <= 1e-12 * np.abs(values).max():
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
