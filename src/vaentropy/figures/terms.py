"""Figures of an evaluation: its terms, and the errors of its estimates."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from vaentropy import ledger
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.style import COLOURS, INK, LINE_STYLES, MARKERS, PALE, Figure, new_figure, styled
from vaentropy.ledger import Line
from vaentropy.results import Evaluation, Terms

__all__ = ["plot_estimates", "plot_terms"]

# Latents whose residuals are shown one by one.
ONE_BY_ONE = 6
# Sample sizes, from so few points to all, and drawings of points at each for the markers.
FEWEST, NUM_SIZES, NUM_DRAWINGS, RESAMPLING_SEED = 10, 7, 400, 0
WANTED = "an Evaluation, as evaluate returns it"


def plot_terms(evaluation: Evaluation) -> Figure:
    """How the entropies make up the entropy sum, and the residuals lead from there to the ELBO: the ledger as a figure.

    The residuals are usually much smaller than the entropies, so each step has an axis of its own. Error bars: the
    wide one is that of the population (`stderr`), the narrow dark one that of Monte Carlo noise alone (`mc_stderr`).

    Args:
        evaluation: whose terms are shown.

    Raises:
        UsageError: a term is not finite.
    """
    require_instance("evaluation", evaluation, Evaluation, WANTED)
    lines = ledger.lines(evaluation)
    for name, value, _, _ in lines:
        if not np.isfinite(value):
            raise UsageError(f"an evaluation whose {name[2:]} is {value} given, expected finite terms to draw")
    middle = next(i for i, line in enumerate(lines) if line[0] == "= entropy sum")
    with styled():
        figure = new_figure(8.4, 3.4)
        left, right = figure.subplots(1, 2)
        _waterfall(left, 0.0, _flagged(lines[: middle + 1], evaluation))
        _waterfall(right, lines[middle][1], [lines[middle], *_each_latent(lines[middle + 1 :], evaluation)])
        left.set_title("entropies")
        right.set_title("residuals")
    return figure


def _flagged(lines: list[Line], e: Evaluation) -> list[Line]:
    """With a star where an entropy is itself a Monte Carlo estimate."""

    def name(text: str) -> str:
        return f"{text}*" if any(text[2:].startswith(sampled) for sampled in e.sampled) else text

    return [(name(line[0]), *line[1:]) for line in lines]


def _each_latent(lines: list[Line], e: Evaluation) -> list[Line]:
    """The prior's residuals latent by latent, where these are few; rounded so that they add up to their sum."""
    if e.prior_residuals is None or not 1 < e.prior_residuals.numel() <= ONE_BY_ONE:
        return lines

    def residuals(terms: Terms | None) -> list[Any]:
        each = None if terms is None else terms.prior_residuals
        assert e.prior_residuals is not None
        return [None] * e.prior_residuals.numel() if each is None else each.flatten().tolist()

    prior, *rest = lines
    values = ledger.add_up(prior[1], residuals(e))
    errors = zip(residuals(e.mc_stderr), residuals(e.stderr), strict=True)
    each = [
        (f"+ prior residual {h}", value, mc, error)
        for h, (value, (mc, error)) in enumerate(zip(values, errors, strict=True))
    ]
    return [*each, *rest]


def _waterfall(axes: Axes, start: float, lines: list[Line]) -> None:
    """Bars from sum to sum, top down. A name that begins with "=" is that of a sum, with "-" of what is taken away."""
    at, edges = start, [start]
    sums = []
    for place, (name, value, mc, error) in enumerate(lines):
        if name.startswith("="):
            axes.axvline(value, color=PALE, linewidth=0.8, linestyle=LINE_STYLES[2])
            axes.plot([value], [place], marker=MARKERS[3], color=INK, markersize=6)
            sums.append(place)
            end = value
        else:
            step = -value if name.startswith("-") else value
            colour = COLOURS[0] if step >= 0 else COLOURS[1]
            axes.barh(place, step, left=at, height=0.6, color=colour, edgecolor=INK, linewidth=0.5)
            end = at + step
        _errors(axes, end, place, mc, error)
        edges += [end - (error or 0), end + (error or 0), at]
        at = end
    known = np.array([edge for edge in edges if np.isfinite(edge)])
    room = 0.06 * (np.ptp(known) or 1.0)
    axes.set_xlim(known.min() - room, known.max() + room)
    axes.set_yticks(range(len(lines)), [f"{name}  {ledger.number(value)}" for name, value, _, _ in lines])
    for place in sums:
        axes.get_yticklabels()[place].set_fontweight("bold")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("nats per data point")


def _errors(axes: Axes, value: float, place: int, mc: float | None, error: float | None) -> None:
    for size, width, colour in ((error, 5.0, PALE), (mc, 2.0, INK)):
        if size is not None and np.isfinite(size) and size > 0:
            axes.errorbar(
                value, place, xerr=size, color=colour, linewidth=width, alpha=0.8, capsize=0, zorder=3 + (width < 3)
            )


def plot_estimates(evaluation: Evaluation) -> Figure:
    """Standard deviation of the estimated ELBO and of the entropy sum against the number of data points.

    Split into what another sample of data points and what other draws of z would change: √(stderr² - mc_stderr²) and
    mc_stderr, both of which fall with the square root of the number of points. With `pointwise` values, markers show
    the standard deviation over random drawings of so many of them, which knows nothing of that.

    Args:
        evaluation: of at least two points.

    Raises:
        UsageError: the errors of the evaluation are unknown, or 0.
    """
    require_instance("evaluation", evaluation, Evaluation, WANTED)
    e = evaluation
    if e.num_points < 2 or not np.isfinite(e.stderr.elbo) or e.stderr.elbo <= 0:
        given = f"an evaluation of {e.num_points:,} data points with standard error {e.stderr.elbo:g} given"
        raise UsageError(f"{given}, expected a positive one; evaluate more points")
    sizes = np.geomspace(min(FEWEST, e.num_points), e.num_points, NUM_SIZES).round().astype(int)
    with styled():
        figure = new_figure(7.2, 3.4)
        both = zip(figure.subplots(1, 2, sharey=True), ("elbo", "entropy_sum"), ("ELBO", "entropy sum"), strict=True)
        for axes, name, title in both:
            mc = None if e.mc_stderr is None else getattr(e.mc_stderr, name)
            _draw_deviations(axes, sizes, e.num_points, getattr(e.stderr, name), mc)
            if e.pointwise is not None and name in e.pointwise:
                deviations = _resampled(e.pointwise[name], sizes)
                axes.plot(sizes, deviations, MARKERS[0], color=INK, markersize=4, label="of drawings of these points")
            axes.set(xscale="log", yscale="log", xlabel="data points", title=title)
        figure.axes[0].set_ylabel("standard deviation, nats")
        figure.axes[0].legend(loc="lower left", fontsize=8)
    return figure


def _draw_deviations(axes: Axes, sizes: np.ndarray, num_points: int, error: float, mc: float | None) -> None:
    scale = np.sqrt(num_points / sizes)
    axes.plot(sizes, error * scale, color=COLOURS[0], label="of the estimate")
    if mc is None or not np.isfinite(mc) or mc <= 0:
        return
    data = np.sqrt(max(error**2 - mc**2, 0.0))
    if data > 0:
        look: dict[str, Any] = {"color": COLOURS[2], "linestyle": LINE_STYLES[1]}
        axes.plot(sizes, data * scale, label="from the choice of points", **look)
    axes.plot(sizes, mc * scale, color=COLOURS[1], linestyle=LINE_STYLES[2], label="from draws of z")


def _resampled(values: torch.Tensor, sizes: np.ndarray) -> list[float]:
    """Standard deviation of the mean of so many values, drawn with replacement."""
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    deviations = []
    for size in sizes.tolist():
        means = [
            float(values[torch.randint(len(values), (size,), generator=generator)].double().mean())
            for _ in range(NUM_DRAWINGS)
        ]
        deviations.append(float(np.std(means, ddof=1)))
    return deviations
