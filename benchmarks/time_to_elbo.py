"""Seconds to a given ELBO: the published algorithm against `fit` and, for the linear VAE, the closed form."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.measure import interleaved, ratio
from benchmarks.published import PublishedVAE, Training
from benchmarks.results import Result
from vaentropy import LinearVAE, MonteCarlo, data, evaluate, fit
from vaentropy.errors import VaentropyError
from vaentropy.expectation import Expectation, GaussHermite
from vaentropy.families import FAMILIES
from vaentropy.model import LatentVariableModel
from vaentropy.seeding import seeded

__all__ = ["PROBLEMS", "Problem", "run"]

# The same for both sides: other draws than those of any training, exact where the decoder is linear.
YARDSTICK_SEED = 10_000
EXACT = GaussHermite(2)
SEEDS = (0, 1, 2)
# Epochs of ours that are tried, each √2 times the one before.
FEWEST_EPOCHS, GRID_STEP, MOST_EPOCHS = 2, 2**0.5, 5_000
# The reference is judged so far apart, as a fraction of the epochs done; after each of the first ones.
CHECK_EVERY = 0.02


@dataclass(frozen=True)
class Problem:
    """What is learned, and how long the reference may take.

    Attributes:
        name: in the table.
        data: name of the data set.
        family: of the models; "linear" for the linear VAE.
        latent_dim: H.
        epochs: of the reference, which stops earlier where it reaches the target.
        timed: epochs of the reference that are timed anew beside each run of ours; below 1, one on that part of the
            points.
        target: ELBO of the training data, nats; None takes the best that the reference reaches.
        below_optimum: target of the linear VAE, nats below the optimum.
        reference_seeds: how many of the seeds the reference is trained with; times of the others are those of the last.
        judged_samples: of the yardstick; many points need fewer.
    """

    name: str
    data: str
    family: str
    latent_dim: int
    epochs: int
    timed: float
    target: float | None = None
    below_optimum: float | None = None
    reference_seeds: int = 1
    judged_samples: int = 64

    @property
    def linear(self) -> bool:
        """Whether ours is a closed form."""
        return self.family == "linear"

    @property
    def yardstick(self) -> Expectation:
        """What both sides are judged with."""
        return EXACT if self.linear else MonteCarlo(self.judged_samples, seed=YARDSTICK_SEED)


PROBLEMS = (
    Problem("VAE-1, digits, 2 latents", "digits", "vae1", 2, epochs=3_000, timed=10, target=22.2),
    Problem("VAE-3, pca-ring, 2 latents", "pca-ring", "vae3", 2, epochs=100, timed=1, target=4.65, reference_seeds=3),
    Problem("VAE-1, MNIST, 10 latents", "mnist", "vae1", 10, epochs=3, timed=0.05, judged_samples=8),
    Problem("linear VAE, digits, 2 latents", "digits", "linear", 2, epochs=3_000, timed=20, below_optimum=0.01),
)
# Of --quick: epochs of the reference, points, and samples of the yardstick.
QUICK_EPOCHS, QUICK_POINTS, QUICK_SAMPLES = 2, 200, 4

NOTES = (
    "Reference: the published algorithm (benchmarks/published.py: 100 samples, softplus scales, Adam 1e-3, items loaded"
    " one by one, a second pass that logs), equal widths. Ours: `fit` with its defaults, or `LinearVAE.optimum`.",
    "ELBO in nats per data point, train / held-out, by `evaluate`, 64 samples (MNIST 8, linear exact), off the clock.",
    "Ours: the shortest of 2, 3, 4, 6, 8, 11, … epochs (times √2) whose result reaches the target with each of the "
    "seeds 0, 1, 2. Its learning rate ends at 0, so the time is that of the whole `fit`. How much of it goes into "
    "evaluations after the last epoch is estimated.",
    "Reference: the first epoch that reaches the target, of those judged (each of the first 50, then 2 % apart), for "
    "one seed or each of three, times seconds per epoch measured anew beside each run of ours. The ratio is of medians "
    "(lowest and highest of the pairs). '>': the reference did not reach the target in its budget.",
    "At equal time, seed 0: a reference stopped after our seconds; `fit` with as many epochs as fill the reference's.",
)


class Judged(NamedTuple):
    """ELBO by the yardstick, nats per data point."""

    train: float
    held_out: float

    def __str__(self) -> str:
        return f"{self.train:.2f} / {self.held_out:.2f}"


class Check(NamedTuple):
    """The reference after some epochs of training; its seconds are those of training and its own evaluations."""

    epoch: int
    seconds: float
    elbo: Judged


class Ours(NamedTuple):
    """A trained model, and about how many of the seconds went into evaluations after the last epoch."""

    model: LatentVariableModel
    evaluations: float


class Times(NamedTuple):
    """Seconds to the target of both sides, one after the other for each seed; ours in evaluations, and its epochs."""

    reference: list[float]
    ours: list[float]
    evaluations: float
    epochs: int


class AtEqualTime(NamedTuple):
    """The reference after the seconds of ours, ours after these, and ours after the seconds of the reference."""

    reference_early: Judged
    ours_early: Judged
    ours_late: Judged


@dataclass(frozen=True)
class Task:
    """A problem with its data and a target."""

    problem: Problem
    train: Tensor
    held_out: Tensor

    def judge(self, model: LatentVariableModel) -> Judged:
        """By the yardstick."""
        parts = (self.train, self.held_out)
        return Judged(*(evaluate(model, x, expectation=self.problem.yardstick).elbo for x in parts))

    def reference(self, seed: int, rows: int | None = None) -> Training:
        """The published algorithm before its first step, on the first rows or on all."""
        x = self.train[:rows]
        hidden = () if self.problem.linear else (50, 50)
        variance = "function" if self.problem.family == "vae3" else "shared"
        with seeded(seed, x.device):
            model = PublishedVAE(x.shape[1], self.problem.latent_dim, hidden, variance=variance)
        return Training(model, x, seed=seed)

    def ours(self, epochs: int, seed: int) -> Ours:
        """As a user would call it."""
        if self.problem.linear:
            return Ours(LinearVAE.optimum(self.train, self.problem.latent_dim), 0.0)
        with seeded(seed, self.train.device):
            model = FAMILIES[self.problem.family](tuple(self.train.shape[1:]), self.problem.latent_dim)
        ends = [0.0, *fit(model, self.train, epochs=epochs, seed=seed, progress=False)["seconds"]]
        *others, last = (end - start for start, end in pairwise(ends))
        return Ours(model, max(0.0, last - statistics.median(others)) if others else 0.0)


def trajectory(task: Task, target: float | None, seed: int) -> list[Check]:
    """The reference's way to the target, or to the end of its budget."""
    training, epochs = task.reference(seed), task.problem.epochs
    checks, due = [Check(0, 0.0, task.judge(training.model))], 1.0
    for number in range(1, epochs + 1):
        logged = training.epoch()
        if number >= due or number == epochs:
            checks.append(Check(number, logged.seconds, task.judge(training.model)))
            due = max(number + 1, number * (1 + CHECK_EVERY))
            if target is not None and checks[-1].elbo.train >= target:
                break
    return checks


def fewest_epochs(task: Task, target: float) -> int | None:
    """Epochs with which ours reaches the target with every seed; None where none of the grid does."""
    for epochs in _grid():
        if all(task.judge(task.ours(epochs, seed).model).train >= target for seed in SEEDS):
            return epochs
    return None


def _grid() -> Iterator[int]:
    for step in count():
        if (epochs := round(FEWEST_EPOCHS * GRID_STEP**step)) > MOST_EPOCHS:
            return
        yield epochs


def side_by_side(task: Task, epochs: int) -> tuple[list[float], list[float], float]:
    """Seconds per epoch of the reference, and of a whole run of ours with each seed, in turn; evaluations of it."""
    timed = task.problem.timed
    repeated, rows = max(1, round(timed)), len(task.train) if timed >= 1 else round(timed * len(task.train))
    reference = task.reference(SEEDS[0], rows)

    def some_epochs() -> None:
        for _ in range(repeated):
            reference.epoch()

    # The first run warms up and does not count.
    seeds, evaluations = iter((SEEDS[0], *SEEDS)), []

    def one_run() -> None:
        evaluations.append(task.ours(epochs, next(seeds)).evaluations)

    candidates: dict[str, Callable[[], object]] = {"reference": some_epochs, "ours": one_run}
    times = interleaved(candidates, len(SEEDS))
    per_epoch = [seconds / repeated * len(task.train) / rows for seconds in times["reference"]]
    return per_epoch, times["ours"], statistics.median(evaluations[1:])


def measure(task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the table, and what is behind it."""
    problem, target = task.problem, task.problem.target
    if problem.below_optimum is not None:
        target = task.judge(task.ours(0, 0).model).train - problem.below_optimum
    ways = [trajectory(task, target, seed) for seed in SEEDS[: problem.reference_seeds]]
    best = [max(way, key=lambda check: check.elbo.train) for way in ways]
    ends = best if target is None else [way[-1] for way in ways]
    target = ends[0].elbo.train if target is None else target
    epochs = 0 if problem.linear else fewest_epochs(task, target)
    found = {"problem": problem, "target": target, "reference": ways, "epochs": epochs}
    if epochs is None:
        return _row(task, target, ends), found
    per_epoch, ours, evaluations = side_by_side(task, epochs)
    # The seed that is missing has the time of the last one there is.
    end_of = [ends[min(number, len(ends) - 1)] for number in range(len(SEEDS))]
    reference = [end.epoch * seconds for end, seconds in zip(end_of, per_epoch, strict=True)]
    times = Times(reference, ours, evaluations, epochs)
    equal = at_equal_time(task, times)
    return _row(task, target, ends, times, equal), found | {"times": times, "at_equal_time": equal}


def at_equal_time(task: Task, times: Times) -> AtEqualTime:
    """Train both anew, with the first seed, for the time of the other."""
    reference, ours = times.reference[0], statistics.median(times.ours)
    early = task.reference(SEEDS[0])
    early.run_for(ours)
    late = max(1, round(times.epochs * reference / ours))
    ours_early, ours_late = (task.judge(task.ours(epochs, SEEDS[0]).model) for epochs in (times.epochs, late))
    return AtEqualTime(task.judge(early.model), ours_early, ours_late)


def _row(
    task: Task, target: float, ends: list[Check], times: Times | None = None, equal: AtEqualTime | None = None
) -> dict[str, Any]:
    missed = ">" if any(end.elbo.train < target for end in ends) else ""
    epochs = ", ".join(str(end.epoch) for end in ends)
    seconds = statistics.median(times.reference if times else [end.seconds for end in ends])
    closed_form = "closed form" if task.problem.linear else times and times.epochs
    return {
        "problem": task.problem.name,
        "target ELBO": f"{target:.2f}",
        "reference s (epochs)": f"{missed}{seconds:.4g} ({epochs})",
        "ours s (epochs)": f"{statistics.median(times.ours):.3g} ({closed_form})" if times else "not reached",
        "of it evaluations": f"{times.evaluations:.2g}" if times and not task.problem.linear else "",
        "reference / ours": f"{missed}{ratio(times.reference, times.ours)}" if times else "",
        "after our time: reference": str(equal.reference_early) if equal else "",
        "ours": str(equal.ours_early) if equal else "",
        "after the reference's time: reference": str(ends[0].elbo),
        "ours then": str(equal.ours_late) if equal else "",
    }


def run(quick: bool) -> Result:
    """Every problem whose data are there."""
    rows, found = [], []
    notes: list[str] = list(NOTES)
    for problem in PROBLEMS:
        try:
            given = data.load(problem.data, stream=False)
        except VaentropyError as error:
            notes.append(f"Skipped: {problem.name}: {error}.")
            continue
        points = QUICK_POINTS if quick else None
        if quick:
            problem = replace(problem, epochs=QUICK_EPOCHS, target=None, timed=1, judged_samples=QUICK_SAMPLES)
        row, behind = measure(Task(problem, given.train[:points], given.held_out[:points]))  # type: ignore[index]
        rows.append(row)
        found.append(behind)
    return Result("Time to a given ELBO", rows, notes, data=found)
