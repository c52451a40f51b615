"""How cost grows: time and memory of `fit` and `evaluate` against N, D, H, samples and replicates."""

import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process takes a second for it; here once, before the forks

from benchmarks.measure import grown
from benchmarks.results import Result
from vaentropy import MonteCarlo, evaluate, vae1
from vaentropy.training import fit, fit_replicates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AXES", "Axis", "Setting", "cost", "figure", "run", "slope"]

HIDDEN, BATCH_SIZE = (50, 50), 200
MOST_REPETITIONS, NEVER_REACHED = 10, 100_000
SECONDS_ENOUGH, SECONDS_TOO_MANY = 1.0, 4.0  # of three repetitions or more, and of fewer
POINTS_OF_SLOPE = 3
MEGABYTE = 1e6
LEAST_MEMORY = 1.0  # MB; below, the allocator's own habits are seen
LINEAR = 1.1  # slopes above grow faster


@dataclass(frozen=True)
class Setting:
    """Everything that the cost depends on here; one of it is varied at a time."""

    num_points: int = 10_000
    data_dim: int = 64
    latent_dim: int = 2
    num_samples: int = 1
    num_replicates: int = 1


class Axis(NamedTuple):
    """What is varied.

    Attributes:
        field: of the setting.
        values: from small to large.
        quick: the same, in seconds.
        base: the setting otherwise.
        operations: that depend on it.
    """

    field: str
    values: Sequence[int]
    quick: Sequence[int]
    base: Setting = Setting()
    operations: Sequence[str] = ("fit", "evaluate")

    def settings(self, quick: bool) -> Iterator[tuple[int, Setting]]:
        """Each value, with the setting that has it."""
        for value in self.quick if quick else self.values:
            yield value, replace(self.base, **{self.field: value})


QUICK = Setting(num_points=200)
AXES = {
    # Of few features, so that 10⁷ points are 320 MB.
    "N": Axis("num_points", (10**3, 10**4, 10**5, 10**6, 10**7), (100, 1000), Setting(data_dim=8)),
    "D": Axis("data_dim", (4, 16, 64, 256, 1024, 4096, 16_384), (4, 64)),
    "H": Axis("latent_dim", (1, 4, 16, 64, 256, 512), (1, 4)),
    "K": Axis("num_samples", (1, 3, 10, 30, 100, 300, 1000), (1, 4)),
    "R": Axis("num_replicates", (1, 3, 10, 30, 100), (1, 2), operations=("fit",)),
}


# One measurement, in a process of its own.


def cost(operation: str, setting: Setting) -> dict[str, Any]:
    """Seconds of each epoch of `fit`, or of each pass of `evaluate`, and the most memory that they took.

    Returns:
        "seconds": of one; "low" and "high": of the fastest and slowest; "megabytes": beyond the data, the model and
        its optimiser included, None where the system does not tell.
    """
    work = {"fit": _fit, "evaluate": _evaluate}[operation]
    work(Setting(num_points=64, data_dim=4, latent_dim=1), torch.rand(64, 4))  # what is loaded at the first call
    x = torch.rand(setting.num_points, setting.data_dim, generator=torch.Generator().manual_seed(0))
    gc.collect()
    with grown() as memory:
        seconds = work(setting, x)
    # The first one makes room for what the others use again.
    seconds = seconds[1:] or seconds
    of_epoch = {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
    return {**of_epoch, "megabytes": memory[0] / MEGABYTE if memory else None}


def _enough(seconds: Sequence[float]) -> bool:
    total, count = sum(seconds), len(seconds)
    return count >= MOST_REPETITIONS or total > SECONDS_TOO_MANY or (count >= 3 and total > SECONDS_ENOUGH)


class _EnoughError(Exception):
    """Ends a training before its last epoch, after which it would evaluate."""


def _fit(setting: Setting, x: torch.Tensor) -> list[float]:
    """Epochs of `fit`; of several models one of each, by `fit_replicates`."""
    seconds, rows, begun = [], 0, time.perf_counter()

    def end_epoch(*_: object) -> None:
        nonlocal rows, begun
        rows += 1
        if rows % setting.num_replicates:
            return
        seconds.append(time.perf_counter() - begun)
        if _enough(seconds):
            raise _EnoughError
        begun = time.perf_counter()

    options = {"batch_size": BATCH_SIZE, "expectation": MonteCarlo(setting.num_samples)}
    options |= {"epochs": NEVER_REACHED, "progress": False, "on_epoch": end_epoch}
    models = [_model(setting) for _ in range(setting.num_replicates)]
    with suppress(_EnoughError):
        if len(models) > 1:
            fit_replicates(models, x, **options)
        else:
            # Compiling has a benchmark of its own: here it would be most of the time and memory of a short training.
            fit(models[0], x, compile=False, **options)
    return seconds


def _evaluate(setting: Setting, x: torch.Tensor) -> list[float]:
    seconds, model = [], _model(setting)
    while not _enough(seconds):
        start = time.perf_counter()
        evaluate(model, x, expectation=MonteCarlo(setting.num_samples))
        seconds.append(time.perf_counter() - start)
    return seconds


def _model(setting: Setting) -> Any:
    torch.manual_seed(0)
    return vae1(setting.data_dim, setting.latent_dim, HIDDEN)


# All of them.


def run(quick: bool) -> Result:
    """Seconds and memory of one epoch of `fit` and one pass of `evaluate` along each axis, one varied at a time."""
    points = []
    for name, axis in AXES.items():
        axis = axis._replace(base=QUICK) if quick else axis
        for operation in axis.operations:
            for value, setting in axis.settings(quick):
                found = _in_fresh_process(cost, operation, setting)
                points.append({"axis": name, "operation": operation, "value": value, **found})
                print(f"  {operation} at {name} = {value:,}: {_told(found)}", file=sys.stderr)
    data = {"base": asdict(QUICK if quick else Setting()), "points": points}
    return Result("How cost grows", rows=list(table(points)), notes=_notes(points), data=data, figure=figure)


def _told(found: Mapping[str, Any]) -> str:
    memory = "" if found["megabytes"] is None else f", {found['megabytes']:.1f} MB"
    return f"{found['seconds']:.4g} s ({found['low']:.4g} to {found['high']:.4g}){memory}"


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process that has done nothing before, so that its memory is its own."""
    # A fork of a process that has imported all this and done no more: quick, and without threads.
    context = get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """Of log cost against log value, by least squares over the largest three: 1 is linear, 0 constant."""
    x, y = np.log(values[-POINTS_OF_SLOPE:]), np.log(costs[-POINTS_OF_SLOPE:])
    return float(np.polyfit(x, y, 1)[0])


def _curve(points: Sequence[Mapping[str, Any]], axis: str, operation: str) -> list[Mapping[str, Any]]:
    return [point for point in points if (point["axis"], point["operation"]) == (axis, operation)]


def _memory(curve: Sequence[Mapping[str, Any]]) -> list[float]:
    """MB; empty where they are unknown."""
    known = [point["megabytes"] for point in curve if point["megabytes"] is not None]
    return [max(LEAST_MEMORY, megabytes) for megabytes in known]


def table(points: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each curve: cost at its largest value, and the slopes there."""
    for axis in AXES:
        for operation in AXES[axis].operations:
            if not (curve := _curve(points, axis, operation)):
                continue
            values, seconds, memory = [p["value"] for p in curve], [p["seconds"] for p in curve], _memory(curve)
            time_slope = slope(values, seconds)
            yield {
                "axis": axis,
                "of": operation,
                "from … to": f"{values[0]:,} … {values[-1]:,}",
                "s": f"{seconds[0]:.3g} … {seconds[-1]:.3g}",
                "slope of time": f"{time_slope:.2f}" + (" (worse than linear)" if time_slope > LINEAR else ""),
                "MB": f"{memory[0]:.3g} … {memory[-1]:.3g}" if memory else "",
                "slope of memory": f"{slope(values, memory):.2f}" if memory else "",
            }


def _notes(points: Sequence[Mapping[str, Any]]) -> list[str]:
    base, of_n = Setting(), AXES["N"].base
    notes = [
        f"Seconds of one epoch of `fit` (batches of {BATCH_SIZE}, not compiled, without its final evaluations) and of "
        f"one pass of `evaluate`. Base: N = {base.num_points:,}, D = {base.data_dim}, H = {base.latent_dim}, K = 1 "
        f"sample, hidden layers of 50 and 50; one of these varied at a time, N at D = {of_n.data_dim}. R > 1 is "
        "`fit_replicates`: an epoch of every model.",
        "MB at the peak beyond data and libraries, each in a fresh process: model, optimiser and all that is computed. "
        f"Below {LEAST_MEMORY:g} MB counts as that. Slopes: of the logarithms, over the largest {POINTS_OF_SLOPE} "
        "values; 1 is linear, 0 constant.",
    ]
    if any(point["megabytes"] is None for point in points):
        notes.append("Memory skipped: this system does not tell a process its peak (Linux does).")
    return notes


# The figure.

# Okabe and Ito's colours, with a marker and a line style of its own for each operation.
STYLES = {
    "fit": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "evaluate": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
}
LABELS = {
    "N": "data points N",
    "D": "features D",
    "H": "latents H",
    "K": "samples per point K",
    "R": "replicates R",
}


def figure(result: Result) -> "Figure":
    """Time above, memory below, against each axis that was measured; both logarithmic."""
    from matplotlib.figure import Figure

    points = result.data["points"]
    names = [name for name in AXES if any(point["axis"] == name for point in points)]
    drawn = Figure(figsize=(2.4 * len(names), 4.6), layout="constrained")
    axes = drawn.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(names):
        for operation, style in STYLES.items():
            curve = _curve(points, name, operation)
            values, memory = [point["value"] for point in curve], _memory(curve)
            options = {**style, "label": operation, "linewidth": 1.6, "markersize": 4.5}
            if curve:
                axes[0, column].plot(values, [point["seconds"] for point in curve], **options)
            if len(memory) == len(values) > 0:
                axes[1, column].plot(values, memory, **options)
        axes[1, column].set_xlabel(LABELS[name])
    for one in axes.flat:
        one.set(xscale="log", yscale="log")
        one.minorticks_off()
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        _linear(one)
    axes[0, 0].set_ylabel("seconds per epoch or pass")
    axes[1, 0].set_ylabel("MB beyond the data")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return drawn


def _linear(axes: Any) -> None:
    """A dotted line of slope 1 through the largest cost, for the eye."""
    if not axes.lines:
        return
    x, y = max(((line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines), key=lambda end: end[1])
    left = max(min(line.get_xdata()[0] for line in axes.lines), x / 1000)
    label = "linear" if math.isfinite(y) else None
    limits = axes.get_ylim()
    axes.plot([left, x], [y * left / x, y], ":", color="#777777", linewidth=1, label=label, zorder=1)
    axes.set_ylim(limits)
