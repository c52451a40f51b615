"""Beyond the paper: a KL term of another weight, binary data and counts, each with the entropy sum that belongs to it.

With a constant β the same residuals vanish as with β = 1, so that the ELBO without weight still equals the sum of
entropies, and the weighted one β (H_enc - H_prior) - H_dec. Exponential families with natural parameters affine in the
last layer have sums of their own (Lücke & Warnken, arXiv:2209.03077): that of a Bernoulli VAE has the mean entropy of
its Bernoulli variables, that of a Poisson VAE a pseudo entropy λ - λ log λ, less log x! for the base measure.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Distribution

from vaentropy._typing import Float, Tensor
from vaentropy.families import vae1
from vaentropy.figures.style import COLOURS, MARKERS, PALE, SMALL, Figure, new_figure, styled
from vaentropy.likelihoods import Bernoulli, Likelihood, Poisson
from vaentropy.model import placement
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.results import Evaluation
from vaentropy.seeding import generator_of
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import (
    Arm,
    Trials,
    gain_of_twice_the_epochs,
    load_for,
    load_rescaled,
    num_diverged,
    points,
    train,
)
from vaentropy.vae import VAE

BETAS = (0.5, 2.0, 4.0)
LATENT_DIM, HIDDEN = 2, (50, 50)
# Of each feature of PCA-ring: no bound is near 0, where a relative gap says nothing.
DEVIATION = 2.0
RING_QUICK, MNIST_QUICK = 5_000, 5_000
# Draws of z per point, and points at a time, for the sums that do not belong to the model.
NUM_DRAWS, BATCH_SIZE = 4, 1_000
# Above this rate four terms of the asymptotic series give the entropy of a Poisson variable to 1e-8 nats.
LARGE_RATE = 50.0
# Counts up to here have all but 1e-15 of the probability at rates below that.
MOST_COUNTS = 140


@dataclass(frozen=True)
class Sum:
    """A bound, the sum that it has to equal, and one that it does not.

    Attributes:
        bound: its name.
        other: what the wrong sum is.
        values: bound, right and wrong sum of a model on its training data, nats per data point; the last argument
            seeds the draws that the wrong one needs.
    """

    bound: str
    other: str
    values: Callable[[VAE, Evaluation, Tensor, int], tuple[float, float, float]]


@dataclass(frozen=True)
class Case:
    """A model of some data.

    Attributes:
        arm: how it is trained.
        data: their name.
        points: they themselves.
        sums: what is compared.
    """

    arm: Arm
    data: str
    points: Callable[[Plan], Tensor]
    sums: Sequence[Sum]


def run(plan: Plan) -> Outcome:
    """Train each model; its bounds beside the right and the wrong sum of entropies."""
    rows, gains, replicates = [], {}, plan.num_replicates(quick=2, paper=3)
    # Of all cases first: files that are missing are not to be found missing after an hour.
    data = [case.points(plan) for case in CASES]
    for case, x in zip(CASES, data, strict=True):
        trials = train(case.arm, x, None, plan, replicates)
        rows += [_row(case, each, trials, x, plan) for each in case.sums]
        if plan.scale == "paper":
            gains[case.arm.name] = gain_of_twice_the_epochs(trials, x, plan)
    notes = [
        f"PCA-ring with features scaled to mean 0 and standard deviation {DEVIATION:g}; MNIST with each pixel drawn "
        "once from a Bernoulli variable of its grey value; digits with their pixels of 0 to 16 as counts.",
        "H_dec of a Bernoulli model is the mean over z of the entropies of its pixels, not the entropy of its mean "
        "pixels; of a Poisson model the mean pseudo entropy λ - λ log λ and the mean of log x!.",
        "The ordinary entropies of a Poisson model miss the bound by how much the mean of log x! of its own counts "
        "differs from that of the data: by little, should the data be Poisson given z.",
    ]
    if gains:
        changes = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
        notes.append(f"Twice the epochs change the ELBO of the first replicate, in nats: {changes}.")
    return Outcome(rows, plot_sums(rows), _finding(rows), notes)


# Sums.


def _elbo(beta: float) -> Sum:
    def values(model: VAE, e: Evaluation, x: Tensor, seed: int) -> tuple[float, float, float]:
        return e.elbo, e.entropy_sum, weighted_sum(e, beta)

    return Sum("ELBO", "β (H_enc - H_prior) - H_dec", values)


def _weighted_elbo(beta: float) -> Sum:
    def values(model: VAE, e: Evaluation, x: Tensor, seed: int) -> tuple[float, float, float]:
        return e.reconstruction - beta * e.kl, weighted_sum(e, beta), e.entropy_sum

    return Sum("weighted ELBO", "H_enc - H_prior - H_dec", values)


def weighted_sum(e: Evaluation, beta: float) -> float:
    """β (H_enc - H_prior) - H_dec, nats per data point."""
    return beta * (e.entropies.encoder - e.entropies.prior) - e.entropies.decoder


def _of_mean_pixels(model: VAE, e: Evaluation, x: Tensor, seed: int) -> tuple[float, float, float]:
    total = sum(each.mean.double().sum(0) for each in decoded(model, x, seed))
    entropy = float(bernoulli_entropy(torch.as_tensor(total) / (NUM_DRAWS * len(x))).sum())
    return e.elbo, e.entropy_sum, e.entropies.encoder - e.entropies.prior - entropy


def _of_counts(model: VAE, e: Evaluation, x: Tensor, seed: int) -> tuple[float, float, float]:
    total = sum(float(poisson_entropy(each.mean).sum()) for each in decoded(model, x, seed))
    return e.elbo, e.entropy_sum, e.entropies.encoder - e.entropies.prior - total / (NUM_DRAWS * len(x))


@torch.no_grad()
def decoded(model: VAE, x: Tensor, seed: int) -> Iterator[Distribution]:
    """p(x|z) of some points at a time, of each `NUM_DRAWS` times, z drawn from the posterior."""
    device, _ = placement(model)
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    for rows in x.split(BATCH_SIZE):
        posterior = model.posterior(rows.to(device))
        for _ in range(NUM_DRAWS):
            noise = torch.randn(posterior.mean.shape, generator=generator, device=device, dtype=posterior.mean.dtype)
            yield model.likelihood(posterior.mean + posterior.stddev * noise)


def bernoulli_entropy(p: Tensor) -> Tensor:
    """-p log p - (1 - p) log(1 - p), nats, element by element."""
    return -torch.xlogy(p, p) - torch.special.xlog1py(1 - p, -p)


def poisson_entropy(rate: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy of a Poisson variable, λ - λ log λ + E log x!, nats, element by element, in float64."""
    rate = rate.double()
    small, large = rate.clamp(max=LARGE_RATE), rate.clamp(min=LARGE_RATE)
    log_factorial = torch.zeros_like(small)
    for count in range(2, MOST_COUNTS):
        log_of_it = torch.lgamma(small.new_tensor(count + 1.0))
        log_factorial += log_of_it * torch.exp(torch.xlogy(small.new_tensor(float(count)), small) - small - log_of_it)
    exact = small - torch.xlogy(small, small) + log_factorial
    series = 0.5 * torch.log(2 * torch.pi * torch.e * large)
    series = series - 1 / (12 * large) - 1 / (24 * large**2) - 19 / (360 * large**3)
    return torch.where(rate > LARGE_RATE, series, exact)


# Models and data.


def _ring(plan: Plan) -> Tensor:
    return points(load_rescaled(plan, "pca-ring", DEVIATION).train, plan.pick(quick=RING_QUICK, paper=None))


def _binary(plan: Plan) -> Tensor:
    grey = points(load_for(plan, "mnist").train, plan.pick(quick=MNIST_QUICK, paper=None))
    return torch.bernoulli(grey, generator=generator_of(plan.seed, "binary"))


def _counts(plan: Plan) -> Tensor:
    return points(load_for(plan, "digits", scale="none").train)


def _beta_vae(beta: float) -> Case:
    arm = Arm(
        name=f"VAE-1, β = {beta:g}",
        model=lambda shape: vae1(shape, LATENT_DIM, HIDDEN),
        epochs=(15, 60),
        options={"learning_rate": 1e-2, "beta": beta},
    )
    return Case(arm, "pca-ring", _ring, [_elbo(beta), _weighted_elbo(beta)])


def _vae(likelihood: Likelihood) -> Callable[[tuple[int, ...]], VAE]:
    def model(shape: tuple[int, ...]) -> VAE:
        networks = MLPEncoder(shape, HIDDEN), MLPDecoder(HIDDEN[::-1])
        return VAE(*networks, data_shape=shape, latent_dim=LATENT_DIM, likelihood=likelihood)

    return model


CASES = (
    *(_beta_vae(beta) for beta in BETAS),
    Case(
        Arm(name="Bernoulli", model=_vae(Bernoulli()), epochs=(20, 40), options={"learning_rate": 1e-2}),
        "binary mnist",
        _binary,
        [Sum("ELBO", "entropy of the mean pixels", _of_mean_pixels)],
    ),
    Case(
        Arm(name="Poisson", model=_vae(Poisson()), epochs=(100, 800), options={"learning_rate": 1e-2}),
        "digits as counts",
        _counts,
        [Sum("ELBO", "ordinary entropies, no base measure", _of_counts)],
    ),
)


# What is shown.


def _row(case: Case, each: Sum, trials: Trials, x: Tensor, plan: Plan) -> dict[str, Any]:
    pairs = zip(trials.models, trials.histories, strict=True)
    values = [each.values(model, h.train, x, plan.seed) for model, h in pairs if h.train is not None]
    bound, right, wrong = (statistics.median(column) for column in zip(*values, strict=True))
    return {
        "model": case.arm.name,
        "data": case.data,
        "replicates": len(values),
        "epochs": trials.epochs,
        "bound": each.bound,
        "value": bound,
        "entropy_sum": right,
        "relative_gap": statistics.median(abs((a - b) / a) for a, b, _ in values),
        "wrong_sum": wrong,
        "wrong_relative_gap": statistics.median(abs((a - c) / a) for a, _, c in values),
        "wrong_sum_is": each.other,
        "diverged": num_diverged(trials),
        "seconds": trials.seconds,
    }


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    right, wrong = [row["relative_gap"] for row in rows], [row["wrong_relative_gap"] for row in rows]
    worse = sum(b > a for a, b in zip(right, wrong, strict=True))
    ratio = statistics.median(b / a for a, b in zip(right, wrong, strict=True))
    return (
        f"With the entropies that belong to it, the sum differs from each of {len(rows)} bounds by at most "
        f"{max(right):.1e} of it; with others by {min(wrong):.1e} to {max(wrong):.1e}, more on {worse} of them, in the "
        f"median by a factor of {ratio:.0f}."
    )


def plot_sums(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Relative gap of each bound to the right and to the wrong sum."""
    places = range(len(rows))
    right, wrong = [row["relative_gap"] for row in rows], [row["wrong_relative_gap"] for row in rows]
    with styled():
        figure = new_figure(7.2, 3.6)
        axes = figure.subplots()
        axes.hlines(places, right, wrong, color=PALE, linewidth=1)
        for number, (gaps, label) in enumerate(((right, "its own entropies"), (wrong, "other entropies"))):
            look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": ""}
            axes.plot(gaps, places, label=label, **look)
        axes.set(xscale="log", xlabel="|bound - sum| / |bound|", yticks=places)
        axes.set_yticklabels([f"{row['model']}: {row['bound']}" for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL)
    return figure


STUDY = Study(
    "beyond",
    "β, Bernoulli and Poisson VAEs",
    "Not in the paper: VAE-1 with β of 0.5, 2 and 4 on PCA-ring, a Bernoulli VAE on binary MNIST, a Poisson VAE on "
    "digits as counts; 2 latents, networks of 50 and 50 units (ReLU), the right sum of entropies beside a wrong one.",
    run,
    cost=7.0,
)
