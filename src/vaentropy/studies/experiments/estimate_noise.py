"""How noisy estimates of ELBO and entropy sum from few held-out points are, and where their noise comes from.

An estimate is a mean over n points of averages over draws of z. By the law of total variance its variance is (S + M)/n:
S is the variance over points of their exact values (data sampling), M the mean variance of a point's average over draws
(Monte Carlo). Both are measured on all points together, and checked against estimates that are made anew many times.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vaentropy._typing import Float, Tensor
from vaentropy.data.synthetic import LinearGaussian, more_of_pca_ring, pca_ring
from vaentropy.evaluation import evaluate
from vaentropy.expectation import MonteCarlo
from vaentropy.families import vae3
from vaentropy.figures.style import COLOURS, INK, LINE_STYLES, SMALL, Figure, new_figure, styled
from vaentropy.model import LatentVariableModel
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import Arm, Trials, plateau_note, train

LATENT_DIM = 2
NUM_POINTS = 10_000
ARM = Arm(
    name="VAE-3",
    model=lambda shape: vae3(shape, LATENT_DIM, (50, 50)),
    epochs=(15, 40),
    options={"learning_rate": 1e-2},
    # As many as the published figures are of.
    exact={"batch_size": 2_000, "epochs": 550, "expectation": MonteCarlo(1)},
)
# Held-out points of an estimate; the most of them are one pass, and the smaller estimates are made of parts of it.
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
DRAWS = 10
# Added to the seeds of points, so that noise does not come from the same random numbers.
NOISE_SEEDS = 1_000_000
REPETITIONS = {"quick": 200, "paper": 1_000}
# From the published code after 550 one-sample epochs; the ratio is given as one of standard deviations.
PUBLISHED = {"elbo": 4.65, "entropy_sum": 4.72, "ratio": 18}
ESTIMATES = {"elbo": "ELBO", "entropy_sum": "entropy sum"}


class Noise(NamedTuple):
    """What an estimate consists of, nats: `values` (N,) of the points, each averaged over draws; and the variances of
    one of them, from data sampling and from Monte Carlo."""

    values: Float[Tensor, " N"]
    sampling: float
    monte_carlo: float

    def expected_std(self, size: int) -> float:
        """Of an estimate from so many points, nats."""
        return math.sqrt((self.sampling + self.monte_carlo) / size)

    def measured_std(self, size: int, repetitions: int) -> float:
        """The same from estimates that share no point, nats."""
        return float(self.values[: size * repetitions].reshape(repetitions, size).mean(1).std())


def run(plan: Plan) -> Outcome:
    """Train, make estimates of every size, compare their spread with its parts."""
    x, ring = pca_ring(NUM_POINTS, seed=plan.seed)
    x = x.float()
    trials = train(ARM, x, None, plan, plan.num_replicates(quick=2, paper=10))
    repetitions = REPETITIONS[plan.scale]
    noises = measure(trials.models[0], ring, repetitions, seed=plan.seed + 1)
    rows = [_row(noises, size, repetitions) for size in SIZES]
    ratios = [_ratio(measure(model, ring, 1, seed=plan.seed + 1)) for model in trials.models]
    notes = [
        f"PCA-ring, {len(x):,} points to train on; held-out points are drawn anew from its distribution, "
        f"{repetitions:,} times each number of them; estimates of different sizes share points, those of one do not.",
        *_beside_published(trials, ratios[0]),
    ]
    notes += plateau_note(trials, x, plan)
    details = {"ratios": ratios, "published": PUBLISHED}
    return Outcome(rows, _plot(rows, noises), _finding(rows, noises, ratios), notes, details)


def _beside_published(trials: Trials, ratio: float) -> list[str]:
    first = trials.histories[0].train
    assert first is not None
    root = math.sqrt(first.num_points)
    encoder, decoder = first.stderr.entropies.encoder * root, first.stderr.entropies.decoder * root
    return [
        f"After {trials.epochs} epochs the ELBO of the training data is {first.elbo:.2f}, the entropy sum "
        f"{first.entropy_sum:.2f} nats, the ratio of standard deviations {ratio:.1f} (of variances {ratio**2:.0f}); "
        f"published: {PUBLISHED['elbo']}, {PUBLISHED['entropy_sum']} and about {PUBLISHED['ratio']}.",
        f"From point to point the ELBO has a standard deviation of {first.stderr.elbo * root:.2f} nats, the encoder "
        f"entropy one of {encoder:.2f}, the decoder entropy one of {decoder:.2f}: the larger these, the smaller the "
        "ratio.",
    ]


def measure(model: LatentVariableModel, ring: LinearGaussian, passes: int, *, seed: int) -> dict[str, Noise]:
    """The noise of each estimate, from `passes` times as many fresh points as the largest size has."""
    values: dict[str, list[Tensor]] = {name: [] for name in ESTIMATES}
    monte_carlo: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    for number in range(seed, seed + passes):
        x = more_of_pca_ring(ring, max(SIZES), seed=number)
        evaluation = evaluate(model, x, expectation=MonteCarlo(DRAWS, seed=NOISE_SEEDS + number), pointwise=True)
        assert evaluation.pointwise is not None
        for name in ESTIMATES:
            values[name].append(evaluation.pointwise[name])
            monte_carlo[name].append(getattr(evaluation.mc_stderr, name) ** 2 * len(x))
    return {name: _noise(torch.cat(values[name]), statistics.fmean(monte_carlo[name])) for name in ESTIMATES}


def _noise(values: Tensor, monte_carlo: float) -> Noise:
    # Of a variance near 0 the estimate may be below.
    return Noise(values, max(0.0, float(values.var()) - monte_carlo), monte_carlo)


def _row(noises: Mapping[str, Noise], size: int, repetitions: int) -> dict[str, Any]:
    row: dict[str, Any] = {"points": size}
    for name, noise in noises.items():
        row[f"{name}_std"] = noise.measured_std(size, repetitions)
        row[f"{name}_std_expected"] = noise.expected_std(size)
        row[f"{name}_std_sampling"] = math.sqrt(noise.sampling / size)
        row[f"{name}_std_monte_carlo"] = math.sqrt(noise.monte_carlo / size)
    row["ratio"] = row["elbo_std"] / row["entropy_sum_std"]
    return row


def _ratio(noises: Mapping[str, Noise]) -> float:
    return noises["elbo"].expected_std(1) / noises["entropy_sum"].expected_std(1)


def _slope(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of log std over log n, by least squares."""
    n, std = (np.log([row[column] for row in rows]) for column in ("points", f"{name}_std"))
    return float(np.polyfit(n, std, 1)[0])


def _finding(rows: Sequence[Mapping[str, Any]], noises: Mapping[str, Noise], ratios: Sequence[float]) -> str:
    slopes = [_slope(rows, name) for name in ESTIMATES]
    shares = [noise.monte_carlo / (noise.sampling + noise.monte_carlo) for noise in noises.values()]
    several = f" ({min(ratios):.1f} to {max(ratios):.1f} over {len(ratios)} trainings)" if len(ratios) > 1 else ""
    return (
        f"An estimate of the ELBO is {ratios[0]:.1f} times as noisy as one of the entropy sum{several}; the noise goes "
        f"with the number of points to the power of {slopes[0]:.2f} and {slopes[1]:.2f}, and Monte Carlo with {DRAWS} "
        f"draws makes {shares[0]:.0%} of the variance of the one and {shares[1]:.0%} of the other."
    )


def _plot(rows: Sequence[Mapping[str, Any]], noises: Mapping[str, Noise]) -> Figure:
    sizes = [row["points"] for row in rows]
    parts = {"both parts": "expected", "data sampling": "sampling", "Monte Carlo": "monte_carlo"}
    with styled():
        figure = new_figure(8.0, 4.2)
        for axes, name in zip(figure.subplots(1, 2, sharex=True, sharey=True), noises, strict=True):
            for number, (label, part) in enumerate(parts.items()):
                values = [row[f"{name}_std_{part}"] for row in rows]
                axes.plot(sizes, values, color=COLOURS[number], linestyle=LINE_STYLES[number], label=label)
            measured = [row[f"{name}_std"] for row in rows]
            axes.plot(sizes, measured, "o", color=INK, markersize=5, markerfacecolor="none", label="repeated estimates")
            axes.set(title=ESTIMATES[name], xscale="log", yscale="log", xlabel="held-out points (lines: slope -1/2)")
        left = figure.axes[0]
        left.set_ylabel("standard deviation, nats per data point")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=SMALL)
    return figure


STUDY = Study(
    "estimate-noise",
    "Noise of estimates of ELBO and entropy sum",
    f"VAE-3 on PCA-ring; estimates from 10 to 10,000 held-out points, drawn anew each time, {DRAWS} draws of z each.",
    run,
    cost=4.0,
)
