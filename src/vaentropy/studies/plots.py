"""Figures that several studies draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vaentropy.figures.style import COLOURS, LINE_STYLES, SMALL, Figure, new_figure, styled
from vaentropy.studies.trials import Trials

__all__ = ["draw_band", "plot_arms"]

# In one row as many pairs of axes fit.
WIDTH, HEIGHT = 8.0, 4.6
# Parts of the range of the final values that are shown below the lowest of them.
ROOM = 1.0


def plot_arms(every: Sequence[Trials]) -> Figure:
    """ELBO and relative gap of each arm over the steps of training: median and band between quartiles of replicates."""
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        left, right = figure.subplots(1, 2)
        for number, trials in enumerate(every):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINE_STYLES[number % len(LINE_STYLES)]}
            _band(left, trials, "running_elbo", look, trials.arm.name)
            _band(right, trials, "relative gap", look, trials.arm.name)
        _cut_below(left)
        left.set(xlabel="steps", ylabel="ELBO, nats per data point")
        right.set(xlabel="steps", ylabel="|ELBO - entropy sum| / |ELBO|", yscale="log")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(every)), fontsize=SMALL
        )
    return figure


def _band(axes: Axes, trials: Trials, column: str, look: dict, label: str) -> None:
    rows = min(len(history) for history in trials.histories)
    steps = np.array(trials.histories[0]["step"][:rows])
    values = np.array([_curve(history.rows[:rows], column) for history in trials.histories])
    draw_band(axes, steps, values, look, label)


def draw_band(axes: Axes, steps: np.ndarray, values: np.ndarray, look: Mapping[str, Any], label: str) -> None:
    """The median of curves and the band between their quartiles.

    Args:
        axes: to draw on.
        steps: (T,).
        values: (replicates, T).
        look: colour and style of the line.
        label: in the legend.
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    axes.plot(steps, middle, label=label, **look)
    if len(values) > 1:
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _curve(rows: Sequence, column: str) -> list[float]:
    if column != "relative gap":
        return [row[column] for row in rows]
    return [abs(row["running_gap"] / row["running_elbo"]) for row in rows]


def _cut_below(axes: Axes) -> None:
    """Show where trainings end, not where they begin."""
    ends = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    last = np.array([values[-1] for values in ends])
    early = np.array([values[len(values) // 4] for values in ends])
    lowest, highest = min(early.min(), last.min()), max(values.max() for values in ends)
    axes.set_ylim(lowest - 0.1 * ROOM * (highest - lowest), highest + 0.05 * (highest - lowest))
