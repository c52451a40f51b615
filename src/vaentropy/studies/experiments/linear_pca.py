"""The linear VAE on PCA data, where all is known in closed form (figure 3 of the paper), and the same with σ fixed.

The ELBO, the sum of the three entropies, and the log-likelihood of what the model has seen meet; with a σ that is not
learned the sum of entropies stays apart, and only one with the decoder's pseudo entropy meets the ELBO.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch

from vaentropy._typing import Float, Tensor
from vaentropy.distributions import LOG_2PI
from vaentropy.figures.style import COLOURS, INK, LINE_STYLES, SMALL, Figure, new_figure, styled
from vaentropy.linear import DataMoments, LinearVAE, linear_elbo_terms
from vaentropy.progress import progress_bar
from vaentropy.seeding import generator_of, seeded
from vaentropy.studies.linear import sampled_elbo, stacked
from vaentropy.studies.plots import draw_band
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import load_for, points
from vaentropy.training.schedules import one_cycle

LATENT_DIM = 2
FIXED_STD = 0.5
# Ours: all data in a step, which costs no more than a few of them.
EPOCHS, LEARNING_RATE = 4_000, 0.1
# The paper's.
EXACT_EPOCHS, EXACT_LEARNING_RATE, EXACT_BATCH, EXACT_SAMPLES = 1_500, 1e-3, 2_000, 100
# Of a training, evenly spread on the logarithmic axis.
NUM_RECORDS = 80
# Nats below the lowest and above the highest final value that the figure shows.
BELOW, ABOVE = 8.0, 1.0
# Before it little happens: the learning rate is low.
FIRST_EPOCH_SHOWN = 10
WIDTH, HEIGHT = 8.0, 4.4
# Names of what is measured, labels and line widths; the wide one lies below those that meet it.
CURVES = {
    "log_likelihood": ("log-likelihood", 4.5),
    "held_out_log_likelihood": ("held-out log-likelihood", 1.6),
    "elbo": ("ELBO", 1.6),
    "entropy_sum": ("sum of entropies", 1.6),
    "pseudo_entropy_sum": ("sum with the pseudo entropy", 1.6),
}
CURVE_COLOURS = (COLOURS[4], COLOURS[2], COLOURS[0], COLOURS[1], COLOURS[5])
CURVE_STYLES = ("-", LINE_STYLES[2], LINE_STYLES[0], LINE_STYLES[1], LINE_STYLES[3])


class Problem(NamedTuple):
    """Data of a replicate: points to train on (N, D), moments of both parts, and the truth's log-likelihoods."""

    x: Float[Tensor, "N D"]
    train: DataMoments
    held_out: DataMoments
    truth: Mapping[str, float]


class Arm(NamedTuple):
    """A way to train: its name in the table, and σ that stays as it is, None where it is learned."""

    name: str
    std: float | None = None


ARMS = (Arm("σ learned"), Arm(f"σ fixed at {FIXED_STD}", FIXED_STD))


class Settings(NamedTuple):
    """How to train: without samples by the exact ELBO of all data in a step, along a one-cycle learning rate."""

    epochs: int
    learning_rate: float
    batch_size: int | None = None
    num_samples: int | None = None


def settings(plan: Plan) -> Settings:
    """Ours, or the paper's."""
    if plan.exact_settings:
        return Settings(EXACT_EPOCHS, EXACT_LEARNING_RATE, EXACT_BATCH, EXACT_SAMPLES)
    return Settings(EPOCHS, LEARNING_RATE)


def run(plan: Plan) -> Outcome:
    """Train replicates of both arms, each on data of its own, and compare with the closed forms."""
    seeds = range(plan.seed, plan.seed + plan.num_replicates(quick=4, paper=10))
    problems = [_problem(plan, seed) for seed in seeds]
    how, rows, courses = settings(plan), [], []
    recorded = set(np.geomspace(1, how.epochs, NUM_RECORDS).round().astype(int).tolist())
    with progress_bar(len(ARMS) * how.epochs, "linear-pca", show=plan.progress) as report:
        for arm in ARMS:
            start, course = time.perf_counter(), {}
            models = _models(arm, seeds, problems[0].x.shape[1])
            parameters = stacked(models)
            for epoch in _train(parameters, problems, plan.seed, how):
                report(arm.name)
                if epoch in recorded:
                    _unstack(parameters, models)
                    course[epoch] = [measure(*pair) for pair in zip(models, problems, strict=True)]
            courses.append(course)
            rows.append(_row(arm, course[how.epochs], problems, how, time.perf_counter() - start))
    return Outcome(rows, _figure(courses, problems), _finding(*rows), _notes(problems, how))


def _problem(plan: Plan, seed: int) -> Problem:
    data = load_for(plan, "pca", seed=seed, dtype=torch.float64)
    x, held_out, truth = points(data.train), points(data.held_out), data.truth
    assert truth is not None
    return Problem(x, DataMoments.of(x), DataMoments.of(held_out), truth)


def _models(arm: Arm, seeds: Sequence[int], data_dim: int) -> list[LinearVAE]:
    # On the CPU, whatever the plan's device: steps as small as these take longer on a GPU.
    models = []
    for seed in seeds:
        with seeded(seed, torch.device("cpu")):
            models.append(LinearVAE(data_dim, LATENT_DIM).double())
        if arm.std is not None:
            torch.nn.init.constant_(models[-1].log_variance, 2 * math.log(arm.std)).requires_grad_(False)
    return models


def _unstack(parameters: Mapping[str, Tensor], models: Sequence[LinearVAE]) -> None:
    """Give the models the parameters as they are now."""
    for number, model in enumerate(models):
        model.load_state_dict({name: rows[number] for name, rows in parameters.items()})


def _train(parameters: Mapping[str, Tensor], problems: Sequence[Problem], seed: int, how: Settings) -> Iterator[int]:
    """Change the parameters of all models, (R, …) each; yields each epoch, from 1 on, when it is done."""
    learned = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=how.learning_rate, fused=True)
    objectives = _exact(parameters, problems)
    for epoch in range(1, how.epochs + 1):
        if how.num_samples is None:
            optimizer.param_groups[0]["lr"] = how.learning_rate * one_cycle((epoch - 1) / how.epochs)
        else:
            objectives = _sampled(parameters, problems, generator_of(seed, "epoch", epoch), how)
        for objective in objectives:
            optimizer.zero_grad()
            (-objective().sum()).backward()
            optimizer.step()
        yield epoch


Objective = Callable[[], Float[Tensor, "R"]]


def _exact(parameters: Mapping[str, Tensor], problems: Sequence[Problem]) -> list[Objective]:
    """The ELBO of all data, the one step of an epoch."""
    mean = torch.stack([each.train.mean for each in problems])
    factor = torch.stack([each.train.factor for each in problems])
    return [lambda: linear_elbo_terms(parameters, mean, factor).elbo]


def _sampled(
    parameters: Mapping[str, Tensor], problems: Sequence[Problem], generator: torch.Generator, how: Settings
) -> Iterator[Objective]:
    """The ELBO of each batch, from samples."""
    assert how.batch_size is not None and how.num_samples is not None
    x = torch.stack([each.x for each in problems])
    for rows in torch.randperm(x.shape[1], generator=generator).split(how.batch_size):
        shape = (how.num_samples, len(x), len(rows), LATENT_DIM)
        noise = torch.randn(shape, generator=generator, dtype=x.dtype)
        yield partial(sampled_elbo, parameters, x[:, rows], noise)


@torch.no_grad()
def measure(model: LinearVAE, problem: Problem) -> dict[str, float]:
    """What there is to know of a model, exact, nats per data point, by the names of `CURVES`."""
    terms = model.elbo_terms(problem.train)
    values = {
        "elbo": terms.elbo,
        "entropy_sum": terms.entropy_sum,
        "pseudo_entropy_sum": terms.encoder_entropy - terms.prior_entropy - pseudo_entropy(model, problem.train),
        "log_likelihood": model.mean_log_likelihood(problem.train),
        "held_out_log_likelihood": model.mean_log_likelihood(problem.held_out),
    }
    return {name: float(value) for name, value in values.items()}


def pseudo_entropy(model: LinearVAE, moments: DataMoments) -> Float[Tensor, ""]:
    """D/2 log 2πσ² + mean (‖x‖² - E‖Wz + b‖²)/(2σ²), which takes the place of the decoder's entropy where σ is fixed.

    H̃ = A(η) - η·E[T] of a Gaussian of fixed variance, less the mean of log h(x): at stationary points the ELBO is
    encoder entropy - prior entropy - this. A stationary last layer suffices, σ² may be learned or not.
    """
    latent_mean = model.encoder_weight @ moments.mean + model.encoder_bias
    data_square = moments.covariance.trace() + moments.mean.square().sum()
    mean_square = (
        (model.weight @ model.encoder_weight @ moments.factor).square().sum()
        + (model.weight @ latent_mean + model.bias).square().sum()
        + (model.latent_log_variance.exp() * model.weight.square().sum(0)).sum()
    )
    log_normaliser = len(moments.mean) * (LOG_2PI + model.log_variance)
    return 0.5 * (log_normaliser + (data_square - mean_square) * torch.exp(-model.log_variance))


def optimal_elbo(moments: DataMoments, latent_dim: int, std: float | None = None) -> float:
    """The largest ELBO of a linear VAE, with σ learned or given.

    Its latents take the eigenvectors with the largest eigenvalues, those above σ²: for them ‖W_h‖² = λ_h - σ².
    """
    if std is None:
        return float(LinearVAE.optimum(moments, latent_dim).elbo(moments).detach())
    values, variance = moments.eigen[0], std**2
    explained = torch.where(values > variance, values, variance)
    explained[latent_dim:] = variance
    return float(-0.5 * (LOG_2PI + explained.log() + values / explained).sum())


def _row(
    arm: Arm, ends: Sequence[Mapping[str, float]], problems: Sequence[Problem], how: Settings, seconds: float
) -> dict[str, Any]:
    """Means over the replicates, and where it matters the worst of them."""
    optima = [optimal_elbo(each.train, LATENT_DIM, arm.std) for each in problems]
    means = {name: mean(end[name] for end in ends) for name in ends[0]}
    return {
        "training": arm.name,
        "replicates": len(ends),
        "epochs": how.epochs,
        "elbo": means["elbo"],
        "entropy_sum": means["entropy_sum"],
        "gap": means["elbo"] - means["entropy_sum"],
        "mean_absolute_gap": mean(abs(end["elbo"] - end["entropy_sum"]) for end in ends),
        "relative_gap": mean(abs(end["elbo"] - end["entropy_sum"]) / abs(end["elbo"]) for end in ends),
        "pseudo_entropy_sum": means["pseudo_entropy_sum"],
        "largest_pseudo_gap": max(abs(end["elbo"] - end["pseudo_entropy_sum"]) for end in ends),
        "optimum_elbo": mean(optima),
        "furthest_below_optimum": max(best - end["elbo"] for best, end in zip(optima, ends, strict=True)),
        "log_likelihood": means["log_likelihood"],
        "held_out_log_likelihood": means["held_out_log_likelihood"],
        "true_log_likelihood": mean(each.truth["log_likelihood_train"] for each in problems),
        "true_held_out_log_likelihood": mean(each.truth["log_likelihood_held_out"] for each in problems),
        "seconds": seconds,
    }


def _notes(problems: Sequence[Problem], how: Settings) -> list[str]:
    trained = "Adam on the exact ELBO of all data, without samples, along a one-cycle learning rate"
    if how.num_samples is not None:
        samples = f"with {how.num_samples} samples of each, at a constant learning rate"
        trained = f"Adam on the ELBO of {how.batch_size:,} points {samples}; the values shown are exact"
    first = problems[0]
    return [
        f"{len(problems)} replicates, each with data of its own, not rescaled: {first.train.num_points:,} points to "
        f"train on and {first.held_out.num_points:,} held out. Values are means over the replicates.",
        f"{trained}.",
        "optimum_elbo is the largest ELBO that there is, in closed form.",
    ]


def _finding(learned: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    gap, fixed_gap = (row["mean_absolute_gap"] for row in (learned, fixed))
    return (
        f"With σ learned, ELBO ({learned['elbo']:.4f} in the mean) and sum of entropies end {gap:.1e} nats apart in "
        f"the mean over {learned['replicates']} replicates, the ELBO at most {learned['furthest_below_optimum']:.1e} "
        "below its optimum in closed form and the held-out log-likelihood "
        f"{learned['held_out_log_likelihood']:.4f} beside {learned['true_held_out_log_likelihood']:.4f} of the truth; "
        f"with σ fixed at {FIXED_STD} they end {fixed_gap:.2f} nats apart, but ELBO and the sum with the pseudo "
        f"entropy at most {fixed['largest_pseudo_gap']:.1e}."
    )


def _figure(courses: Sequence[Mapping[int, Sequence[Mapping[str, float]]]], problems: Sequence[Problem]) -> Figure:
    """For each arm the curves over the epochs, each less the truth's log-likelihood of the same data."""
    train, held_out = (
        np.array([p.truth[f"log_likelihood_{part}"] for p in problems]) for part in ("train", "held_out")
    )
    with styled():
        figure = new_figure(WIDTH, HEIGHT)
        panels = figure.subplots(1, len(courses))
        for axes, arm, course in zip(panels, ARMS, courses, strict=True):
            epochs = np.array(list(course))
            for (name, (label, width)), colour, line in zip(CURVES.items(), CURVE_COLOURS, CURVE_STYLES, strict=True):
                if name == "pseudo_entropy_sum" and arm.std is None:
                    continue
                truth = held_out if name.startswith("held_out") else train
                values = np.array([[end[name] for end in ends] for ends in course.values()]).T - truth[:, None]
                curves = [(epochs, row) for row in values]
                draw_band(axes, curves, {"color": colour, "linestyle": line, "linewidth": width}, label)
            axes.axhline(0, color=INK, linewidth=0.8, label="the truth's log-likelihood")
            ends = [np.asarray(line.get_ydata(), dtype=float)[-1] for line in axes.lines]
            axes.set_ylim(min(ends) - BELOW, max(ends) + ABOVE)
            axes.set(
                title=arm.name, xlabel="epochs", xscale="log", ylabel="less that of the truth, nats per data point"
            )
            axes.set_xlim(min(FIRST_EPOCH_SHOWN, epochs[-1] - 1), epochs[-1])
        handles = panels[-1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=SMALL)
    return figure


STUDY = Study(
    "linear-pca",
    "Linear VAE on PCA data",
    "x = W z + b + 0.1 eps in 10 dimensions, 2 latents; ELBO, sum of entropies and exact log-likelihoods over the "
    f"epochs, and a control whose σ is fixed at {FIXED_STD}.",
    run,
    cost=0.2,
)
