"""Figures of where the points lie in the space of the latents."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.figures.pictures import MANY, as_pixels
from vaentropy.figures.style import COLOURS, INK, MARKERS, Figure, literal, new_figure, styled
from vaentropy.figures.view import View

__all__ = ["plot_latents"]

# What fits into one picture.
MOST_LABELS = 10
LATENTS_IN_PAIRS = 5
ELLIPSES, ELLIPSES_IN_PAIRS = 60, 20
# Labels that run out of colours begin again with the other marker, which is told apart from it when it is small.
LABEL_MARKERS = MARKERS[0], MARKERS[2]
# Points², as scatter takes it.
POINT, SMALL_POINT = 9.0, 4.0
# Two latents that differ by more than this factor in how far they reach have scales of their own.
WIDE_SPAN = 10.0
# Prior's circles, in standard deviations.
CIRCLES = (1, 2)


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


def _groups(view: View) -> list[tuple[np.ndarray, str, str, str | None]]:
    """Points of each label (P,), their colour and marker, and the label as text; None where none are told apart."""
    names = [] if view.labels is None else np.unique(view.labels).tolist()
    if view.labels is None or not 1 < len(names) <= MOST_LABELS:
        return [(np.ones(len(view), dtype=bool), COLOURS[0], LABEL_MARKERS[0], None)]
    return [
        (view.labels == name, COLOURS[i % len(COLOURS)], LABEL_MARKERS[i // len(COLOURS)], literal(str(name)))
        for i, name in enumerate(names)
    ]


def _legend(owner: Figure | Axes, view: View, *, ellipses: bool = True, **place: Any) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=name)
        for _, colour, marker, name in _groups(view)
        if name is not None
    ]
    if ellipses and view.latent_variance is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.6, label="τ, one standard\ndeviation of q(z|x)"))
    if view.prior_variance is not None:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="prior"))
    if handles:
        owner.legend(handles=handles, **place)


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
            zorder=MANY,
        )
    as_pixels(axes)
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
            below.scatter(mean, scale, s=POINT, color=colour, marker=marker, linewidths=0, alpha=0.6, zorder=MANY)
        if view.prior_variance is not None:
            below.axhline(float(view.prior_variance[latent].sqrt()), color=INK, linestyle="--", linewidth=0.9)
        as_pixels(below)
        below.set_ylabel("posterior scale τ")
        below.set_ylim(bottom=0)
    axes.set_ylabel("density of ν")
    figure.axes[-1].set_xlabel(f"posterior mean ν, {_latent_name(view, latent)}")
    _legend(figure, view, ellipses=False, loc="outside upper center", ncols=6)
    return figure
