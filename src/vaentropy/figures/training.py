"""Figures of what happened over a training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from vaentropy.checks import require_instance
from vaentropy.diagnosis.latents import statuses
from vaentropy.errors import UsageError, shown
from vaentropy.figures.style import (
    COLOURS,
    INK,
    LINE_STYLES,
    MARKERS,
    PALE,
    SMALL,
    Figure,
    literal,
    new_figure,
    styled,
    whole_numbers,
)
from vaentropy.results import Evaluation
from vaentropy.training import History

__all__ = ["bands_of", "curves_of", "cut_below", "plot_latent_entropies", "plot_training", "quartiles"]

# The first epochs, of a model that knows nothing yet, would make a flat line of all others: the axis shows what is
# reached after this fraction of the training, with so much room below in parts of that range.
FIRST, ROOM = 0.1, 0.3
# Above the highest value, in parts of the range.
MARGIN = 0.05
# Latents that have a colour of their own.
COLOURED = len(COLOURS)
# Names on an axis, beyond which there would be no room for them.
NAMED = 16
# Letters of a run's name, and columns of such names that fit below a figure.
LONGEST_LABEL, COLUMNS = 40, 2
# Inches of a figure of one training, and of each line of names below.
WIDTH, HEIGHT, LINE = 6.4, 4.8, 0.2

# What curves of training data are: an evaluation after the last epoch has other numbers, where weights moved far in it.
RUNNING = "running means of each epoch, while the weights move"

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
# Epochs, and the lowest and highest value drawn at each.
Band = tuple[np.ndarray, np.ndarray, np.ndarray]


def plot_training(histories: History | Sequence[History], *, labels: Sequence[str] | None = None) -> Figure:
    """ELBO and entropy sum over the epochs, and the relative gap |ELBO - entropy sum| / |ELBO| between them below.

    Args:
        histories: of one training; or of several: without labels these are replicates, shown by their median and the
            band between their quartiles, over those that came so far.
        labels: one name for each history, to compare them.

    Raises:
        UsageError: there is nothing to draw, or another number of labels than of histories.
    """
    require_instance("histories", histories, (History, Sequence), "a History, as fit returns it, or a list of them")
    every = [histories] if isinstance(histories, History) else list(histories)
    for number, history in enumerate(every):
        require_instance(f"histories[{number}]", history, History, "a History, as fit returns it")
    if not every or not all(len(history) for history in every):
        raise UsageError("a history without epochs given, expected one of a training; train with fit first")
    if labels is not None:
        _require_labels(labels, len(every))
    with styled():
        figure = new_figure(WIDTH, HEIGHT + (0 if labels is None else LINE * math.ceil(len(labels) / COLUMNS)))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        if labels is not None:
            _draw_compared(top, bottom, every, labels)
            top.set_title(RUNNING)
            figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=COLUMNS, fontsize=SMALL)
        elif len(every) == 1:
            _draw_one(top, bottom, every[0])
            top.set_title(RUNNING)
            top.legend()
        else:
            _draw_replicates(top, bottom, every)
            top.legend()
        _finish(top, bottom)
    return figure


def _require_labels(labels: Any, count: int) -> None:
    named = isinstance(labels, Sequence) and not isinstance(labels, str) and all(isinstance(n, str) for n in labels)
    if not named or len(labels) != count:
        raise UsageError(f"labels={shown(labels)} given for {count} histories, expected a list of {count} names")


def curves_of(history: History) -> Curves:
    """Epochs and values of what is drawn."""
    names = {"ELBO": "running_elbo", "entropy sum": "running_entropy_sum", "held-out ELBO": "held_out_elbo"}
    found = {name: _curve(history.rows, column) for name, column in names.items() if column in history.columns}
    for name, part in (("relative gap", "running"), ("held-out relative gap", "held_out")):
        if f"{part}_gap" in history.columns:
            epochs, gap = _curve(history.rows, f"{part}_gap")
            elbo = _curve(history.rows, f"{part}_elbo")[1]
            # A gap of 0 has no place on a logarithmic axis.
            size = np.divide(np.abs(gap), np.abs(elbo), out=np.full_like(gap, np.nan), where=elbo != 0)
            found[name] = epochs, np.where(size > 0, size, np.nan)
    return found


def _curve(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[np.ndarray, np.ndarray]:
    having = [row for row in rows if column in row]
    values = np.array([row[column] for row in having], dtype=float)
    return np.array([row["epoch"] for row in having]), np.where(np.isfinite(values), values, np.nan)


def _draw_one(top: Axes, bottom: Axes, history: History) -> None:
    curves = curves_of(history)
    looks: dict[str, tuple[Axes, dict[str, Any]]] = {
        "ELBO": (top, {"color": COLOURS[0]}),
        "entropy sum": (top, {"color": COLOURS[1], "linestyle": LINE_STYLES[1]}),
        "held-out ELBO": (top, _held_out(COLOURS[2])),
        "relative gap": (bottom, {"color": COLOURS[0]}),
        "held-out relative gap": (bottom, _held_out(COLOURS[2])),
    }
    for name, (axes, look) in looks.items():
        if name in curves:
            axes.plot(*curves[name], label=name, **look)
    cut_below(top, bands_of(top))
    if "held-out relative gap" in curves:
        # Above the axes, which gaps may fill from one end to the other.
        bottom.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2, fontsize=SMALL)


def _held_out(colour: str, marker: str = MARKERS[0], line: str = "-") -> dict[str, Any]:
    return {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 0.8, "linestyle": line}


def _draw_compared(top: Axes, bottom: Axes, histories: Sequence[History], labels: Sequence[str]) -> None:
    for number, (history, label) in enumerate(zip(histories, labels, strict=True)):
        colour, style = COLOURS[number % len(COLOURS)], LINE_STYLES[number % len(LINE_STYLES)]
        curves = curves_of(history)
        # Names of runs are paths, which differ at their ends.
        name = label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"
        top.plot(*curves["ELBO"], color=colour, linestyle=style, label=literal(name, LONGEST_LABEL))
        if "held-out ELBO" in curves:
            top.plot(*curves["held-out ELBO"], **_held_out(colour, MARKERS[number % len(MARKERS)], "none"))
        if "relative gap" in curves:
            bottom.plot(*curves["relative gap"], color=colour, linestyle=style)
    if any("held_out_elbo" in history.columns for history in histories):
        top.plot([], [], label="held-out ELBO", **_held_out(PALE, line="none"))
    cut_below(top, bands_of(top))


def _draw_replicates(top: Axes, bottom: Axes, histories: Sequence[History]) -> None:
    every = [curves_of(history) for history in histories]
    looks: dict[str, tuple[Axes, str, Any]] = {
        "ELBO": (top, COLOURS[0], "-"),
        "entropy sum": (top, COLOURS[1], LINE_STYLES[1]),
        "held-out ELBO": (top, COLOURS[2], LINE_STYLES[2]),
        "relative gap": (bottom, COLOURS[0], "-"),
    }
    bands = []
    for name, (axes, colour, style) in looks.items():
        curves = [curves[name] for curves in every if name in curves]
        if not any(np.isfinite(values).any() for _, values in curves):
            continue
        epochs, (low, middle, high) = quartiles(curves)
        axes.plot(epochs, middle, color=colour, linestyle=style, label=name)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
        if axes is top:
            bands.append((epochs, low, high))
    top.set_title(f"median of {len(histories)} trainings, band from first to third quartile")
    cut_below(top, bands)


def quartiles(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (or whatever else the curves are over), and the quartiles at each of the curves that have it, (3, T)."""
    epochs = np.unique(np.concatenate([at for at, _ in curves]))
    table = np.full((len(curves), len(epochs)), np.nan)
    for row, (at, values) in zip(table, curves, strict=True):
        row[np.searchsorted(epochs, at)] = values
    having = ~np.isnan(table).all(0)
    return epochs[having], np.nanquantile(table[:, having], (0.25, 0.5, 0.75), axis=0)


def bands_of(axes: Axes) -> list[Band]:
    """Of lines, which have no width."""
    xy = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata(), dtype=float)) for line in axes.lines]
    return [(x, y, y) for x, y in xy]


def cut_below(axes: Axes, bands: Sequence[Band]) -> None:
    """Begin the axis where training is after its first epochs, and say so."""
    epochs, low, high = (np.concatenate(parts) for parts in zip(*bands, strict=True)) if bands else np.empty((3, 0))
    known = np.isfinite(low)
    late = low[known & (epochs >= FIRST * epochs.max(initial=0))]
    if not late.size:
        return
    highest = np.nanmax(high)
    lowest = late.min() - ROOM * (highest - late.min())
    if low[known].min() < lowest:
        axes.set_ylim(lowest, highest + MARGIN * (highest - lowest))
        # Right of the first epochs and below the lowest of the others there is room.
        text = f"begins at {low[known][np.argmin(epochs[known])]:,.1f}, below the axis"
        axes.annotate(text, (0.15, 0.03), xycoords="axes fraction", color=INK, fontsize=SMALL)


def _finish(top: Axes, bottom: Axes) -> None:
    top.set_ylabel("nats per data point")
    bottom.set_ylabel("relative gap")
    bottom.set_xlabel("epoch")
    whole_numbers(bottom.xaxis)
    for axes in (top, bottom):
        _mark_single_points(axes)
    if any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in bottom.lines):
        bottom.set_yscale("log")
    else:
        bottom.set_yticks([])
        bottom.annotate("0, or unknown, throughout", (0.5, 0.5), xycoords="axes fraction", ha="center", color=INK)


def _mark_single_points(axes: Axes) -> None:
    """A line of one point would not be seen."""
    for line in axes.lines:
        if np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() == 1:
            line.set_marker(MARKERS[0])


def plot_latent_entropies(history: History) -> Figure:
    """Encoder entropy of each latent over the epochs, how many latents are active, and where they stand in the end.

    A latent is active unless it has collapsed: by the rule "relative" of `vaentropy.diagnosis.latents_of`, with a KL
    of at least 0.01 nats and 1 % of the largest.

    Args:
        history: of a training; its per-latent columns are there up to 256 latents. The bars show the evaluation of the
            training data after it, or the last epoch where there is none.

    Raises:
        UsageError: the history has no per-latent columns, or rows with several numbers of latents.
    """
    require_instance("history", history, History, "a History, as fit returns it")
    names = ("running_encoder_entropy_per_latent", "running_kl_per_latent")
    if not set(names) <= set(history.columns):
        raise UsageError(f"a history without {names[0]} given, expected one of a training with at most 256 latents")
    if len({len(numbers) for name in names for numbers in history[name]}) > 1 or history.at(names[0]) != history.at(
        names[1]
    ):
        raise UsageError("a history with lists of several lengths given, expected a number for each latent in each row")
    entropies, kl = (np.array(history[name], dtype=float) for name in names)
    entropies[~np.isfinite(entropies)] = np.nan
    last, prior = _last_entropies(history, entropies)
    with styled():
        figure = new_figure(8.0, 4.2)
        grid = figure.add_gridspec(2, 2, height_ratios=(2, 1), width_ratios=(3, 2))
        top = figure.add_subplot(grid[0, 0])
        bottom, bars = figure.add_subplot(grid[1, 0], sharex=top), figure.add_subplot(grid[:, 1])
        _draw_entropies(top, history.at(names[0]), entropies)
        _draw_active(bottom, history.at(names[0]), torch.tensor(kl), torch.tensor(prior - entropies))
        for axes in (top, bottom):
            _mark_single_points(axes)
        _draw_bars(bars, last, prior)
    return figure


def _draw_entropies(axes: Axes, epochs: list[int], entropies: np.ndarray) -> None:
    named = entropies.shape[1] <= COLOURED
    for h, column in enumerate(entropies.T):
        look: dict[str, Any] = {"alpha": 0.5}
        if named:
            look = {"linestyle": LINE_STYLES[h % len(LINE_STYLES)], "label": f"latent {h}"}
        axes.plot(epochs, column, color=COLOURS[h % len(COLOURS)], **look)
    if named:
        axes.legend(fontsize=SMALL)
    axes.set_ylabel("encoder entropy, nats")
    axes.tick_params(labelbottom=False)


def _draw_active(axes: Axes, epochs: list[int], kl: torch.Tensor, drop: torch.Tensor) -> None:
    """How many latents are active after each epoch; `kl` and `drop` are (epochs, H)."""
    axes.step(epochs, [_num_active(*pair) for pair in zip(kl, drop, strict=True)], where="mid", color=COLOURS[0])
    axes.set(ylim=(0, 1.1 * kl.shape[1]), ylabel="active latents", xlabel="epoch")
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)


def _num_active(kl: torch.Tensor, drop: torch.Tensor) -> float:
    if not bool(torch.isfinite(kl).all()):
        return float("nan")
    return float(sum(status != "collapsed" for status in statuses(kl, drop, "relative")))


def _last_entropies(history: History, entropies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoder and prior entropy of each latent in the end, (H,)."""
    e: Evaluation | None = history.train
    if e is None or e.kl_per_latent is None or e.encoder_entropy_per_latent is None or e.prior_residuals is None:
        # The history has the prior's entropy as a whole only, of which each latent has its share.
        prior = history["running_prior_entropy"][-1] / entropies.shape[1]
        return entropies[-1], np.full(entropies.shape[1], prior)
    encoder = e.encoder_entropy_per_latent.flatten()
    prior = e.kl_per_latent.flatten() + encoder + e.prior_residuals.flatten()
    return encoder.numpy(), prior.numpy()


def _draw_bars(axes: Axes, encoder: np.ndarray, prior: np.ndarray) -> None:
    numbers = np.arange(len(encoder))
    colours = [COLOURS[h % len(COLOURS)] for h in numbers] if len(encoder) <= COLOURED else COLOURS[0]
    axes.bar(numbers, encoder, width=0.7, color=colours, label="encoder entropy")
    axes.hlines(
        prior, numbers - 0.45, numbers + 0.45, color=INK, linestyle=LINE_STYLES[1], linewidth=1.2, label="prior entropy"
    )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="latent", ylabel="entropy in the end, nats")
    axes.grid(axis="x", visible=False)
    if len(encoder) <= NAMED:
        axes.set_xticks(numbers)
    else:
        whole_numbers(axes.xaxis)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=SMALL)
