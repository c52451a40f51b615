"""Figures of an evaluation: its terms, and the errors of its estimates."""

from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vaentropy import ledger
from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.figures.style import COLOURS, INK, LINE_STYLES, MARKERS, PALE, SMALL, Figure, new_figure, styled
from vaentropy.ledger import NEGLIGIBLE, Line
from vaentropy.results import Evaluation, Terms

__all__ = ["plot_estimates", "plot_terms"]

# Latents whose residuals are shown one by one.
ONE_BY_ONE = 6
# Points, of the lines that show errors: of the population, and of Monte Carlo noise alone.
WIDE, NARROW = 5.0, 2.0
# Sample sizes, from so few points to all, and drawings of points at each for the markers.
FEWEST, NUM_SIZES, NUM_DRAWINGS, RESAMPLING_SEED = 10, 7, 400, 0
WANTED = "an Evaluation, as evaluate returns it"


def plot_terms(evaluation: Evaluation) -> Figure:
    """How the entropies make up the entropy sum, and the residuals lead from there to the ELBO: the ledger as a figure.

    The residuals are usually much smaller than the entropies, so each step has an axis of its own. Error bars at the
    end of each bar are those of its term: the wide one that of the population (`stderr`), the narrow dark one that of
    Monte Carlo noise alone (`mc_stderr`). Entropies that are themselves Monte Carlo estimates have a star.

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
        figure = new_figure(8.4, 3.6)
        left, right = figure.subplots(1, 2)
        _waterfall(left, 0.0, _flagged(lines[: middle + 1], evaluation))
        _waterfall(right, lines[middle][1], [lines[middle], *_each_latent(lines[middle + 1 :], evaluation)])
        left.set_title("entropies")
        right.set_title("residuals")
        figure.legend(handles=_explained(evaluation), loc="outside lower center", ncols=5, fontsize=SMALL)
    return figure


def _explained(e: Evaluation) -> list[Artist]:
    """What stands in the legend: how each thing that is drawn looks, under its name."""
    bars = [Patch(color=colour, label=name) for colour, name in ((COLOURS[0], "adds"), (COLOURS[1], "takes away"))]
    errors = [Line2D([], [], color=PALE, linewidth=WIDE, label="standard error")]
    if e.mc_stderr is not None:
        errors.append(Line2D([], [], color=INK, linewidth=NARROW, label="Monte Carlo error"))
    stars = [Line2D([], [], color=INK, linestyle="", marker="$*$", label="is an estimate itself")] if e.sampled else []
    return [*bars, *errors, *stars]


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
            axes.plot([value], [place], marker=MARKERS[3], color=INK, markersize=6, zorder=5)
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
    for zorder, (size, width, colour) in enumerate(((error, WIDE, PALE), (mc, NARROW, INK)), start=3):
        if size is not None and np.isfinite(size) and size > NEGLIGIBLE:
            axes.errorbar(value, place, xerr=size, color=colour, linewidth=width, alpha=0.8, capsize=0, zorder=zorder)


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
    if e.num_points < 2 or not np.isfinite(e.stderr.elbo) or e.stderr.elbo <= NEGLIGIBLE:
        given = f"an evaluation of {e.num_points:,} data points with standard error {e.stderr.elbo:g} given"
        raise UsageError(f"{given}, expected a positive one; evaluate more points")
    sizes = np.geomspace(min(FEWEST, e.num_points), e.num_points, NUM_SIZES).round().astype(int)
    with styled():
        figure = new_figure(7.2, 3.6)
        both = zip(
            figure.subplots(1, 2, sharex=True, sharey=True),
            ("elbo", "entropy_sum"),
            ("ELBO", "entropy sum"),
            strict=True,
        )
        for axes, name, title in both:
            error = getattr(e.stderr, name)
            if error > NEGLIGIBLE:
                _draw_deviations(axes, sizes, e.num_points, error, getattr(e.mc_stderr, name, None))
            else:  # as for posteriors of one variance; there is no place for it on a logarithmic axis
                axes.annotate("0: all points have the same", (0.5, 0.5), xycoords="axes fraction", ha="center")
            if error > NEGLIGIBLE and e.pointwise is not None and name in e.pointwise:
                deviations = _resampled(e.pointwise[name], sizes)
                axes.plot(sizes, deviations, MARKERS[0], color=INK, markersize=4, label="of drawings of these points")
            axes.set(xscale="log", yscale="log", xlabel="data points", title=title)
        figure.axes[0].set_ylabel("standard deviation,\nnats per data point")
        named = figure.axes[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=4, fontsize=SMALL)
    return figure


def _draw_deviations(axes: Axes, sizes: np.ndarray, num_points: int, error: float, mc: float | None) -> None:
    scale = np.sqrt(num_points / sizes)
    axes.plot(sizes, error * scale, color=COLOURS[0], label="of the estimate")
    if mc is None or not np.isfinite(mc) or mc <= NEGLIGIBLE:
        return
    data = np.sqrt(max(error**2 - mc**2, 0.0))
    if data > NEGLIGIBLE:
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
