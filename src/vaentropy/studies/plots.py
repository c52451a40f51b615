"""Figures that several studies draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vaentropy.figures.style import COLOURS, LINE_STYLES, SMALL, Figure, new_figure, styled
from vaentropy.figures.training import bands_of, curves_of, cut_below, quartiles
from vaentropy.studies.trials import Trials
from vaentropy.training import History

__all__ = ["draw_band", "plot_arms"]

WIDTH, HEIGHT = 8.0, 4.6
# Of names below a figure.
COLUMNS = 3
# Steps and values of a training.
Curve = tuple[np.ndarray, np.ndarray]


def plot_arms(every: Sequence[Trials]) -> Figure:
    """ELBO and relative gap of each arm over the steps of training: median and band between quartiles of replicates.

    Replicates that diverged count as far as they came.
    """
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        left, right = figure.subplots(1, 2)
        for number, trials in enumerate(every):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINE_STYLES[number % len(LINE_STYLES)]}
            for axes, name in ((left, "ELBO"), (right, "relative gap")):
                curves = [_over_steps(history, name) for history in trials.histories if len(history)]
                draw_band(axes, curves, look, trials.arm.name)
        cut_below(left, bands_of(left))
        left.set(xlabel="steps", ylabel="ELBO, nats per data point")
        right.set(xlabel="steps", ylabel="|ELBO - entropy sum| / |ELBO|", yscale="log")
        handles = left.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(COLUMNS, len(every)), fontsize=SMALL)
    return figure


def _over_steps(history: History, name: str) -> Curve:
    # Batches differ between arms, so that epochs do not compare.
    return np.array(history["step"]), curves_of(history)[name][1]


def draw_band(axes: Axes, curves: Sequence[Curve], look: Mapping[str, Any], label: str) -> None:
    """The median of curves and the band between their quartiles; nothing where there is no curve.

    Args:
        axes: to draw on.
        curves: of each replicate, steps (T,) and values (T,); some may end before others.
        look: colour and style of the line.
        label: in the legend.
    """
    if not curves:
        return
    steps, (low, middle, high) = quartiles(curves)
    axes.plot(steps, middle, label=label, **look)
    if len(curves) > 1:
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
