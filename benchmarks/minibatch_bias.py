"""How far analytic variances of a mini-batch are off, against batch size, and what that does to what is trained.

σ²* is a mean over the batch, its logarithm is not: with s_n what one draw of point n contributes to it, and
c² = var(s)/E[s]²,

    E[log σ²*_batch] − log σ²*_all ≈ −c²/(2B),    c² = 2/D for normal errors and a shared σ², 2 for one per feature,

so that the objective is read too high by c²/(4B) nats for every feature: 1/(2B) nats for every variance parameter where
errors are normal. A running mean with momentum m over independent batches is one over B (1 + m)/(1 − m) points.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from benchmarks.results import Result
from vaentropy.calibration import optimal_factors
from vaentropy.data import load
from vaentropy.evaluation import evaluate
from vaentropy.expectation import MonteCarlo
from vaentropy.likelihoods import Gaussian
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.seeding import seeded
from vaentropy.training import fit
from vaentropy.vae import VAE

__all__ = ["contributions", "measured_bias", "predicted_bias", "run", "trained"]

Kind = Literal["shared", "per_feature", "function"]
KINDS: tuple[Kind, ...] = ("shared", "per_feature", "function")
# Data and number of latents; of each so many points at most to read from, and 1,000 to train on, which the batch sizes
# of the trainings divide.
DATA = {"digits": 5, "pca-ring": 2}
MAX_READ, NUM_POINTS = 5000, 1000
READ_SIZES = (10, 50, 200, 1000, 2000)
TRAIN_SIZES = (10, 50, 200)
MOMENTA = (0.0, 0.9, 0.99)
STEPS = 400
SEEDS = (0, 1, 2)
DRAWS = 16
BATCHES = 4000
EVALUATION = MonteCarlo(16)
# A running mean varies as it does for ever, to e⁻⁶, after so many of its time constants.
BURN_IN = 3
# Values that are held at once, while batches are drawn.
CHUNK = 20_000_000


@torch.no_grad()
def contributions(model: VAE, x: torch.Tensor, num_draws: int, seed: int = 0) -> torch.Tensor:
    """What each draw of each point adds to the optima of the variances, (num_draws, N, P) for P variance parameters.

    Squared errors, averaged over features where σ² is shared, and divided by σ_d²(z) where it is a function.

    Args:
        model: a VAE with a `Gaussian` likelihood.
        x: (N, D).
        num_draws: of z for each point.
        seed: of these.
    """
    noise = torch.randn(num_draws, len(x), *model.latent_shape, generator=torch.Generator().manual_seed(seed))
    posterior = model.posterior(x)
    z = posterior.mean + posterior.stddev * noise.to(x)
    likelihood = model.likelihood(z.flatten(0, 1))
    squared = (x.repeat(num_draws, 1) - likelihood.mean).square().double()
    (parameter,) = model.variance_parameters()
    if isinstance(model.head.log_variance, torch.nn.Module):
        squared = squared / likelihood.variance
    per_parameter = squared if parameter.ndim else squared.mean(1, keepdim=True)
    return per_parameter.unflatten(0, noise.shape[:2])


def predicted_bias(pool: torch.Tensor, batch_size: int, momentum: float = 0.0) -> torch.Tensor:
    """−c²/(2B) for each variance parameter, (P,).

    Points of a batch are drawn without replacement, so their share of the variance falls to 0 as the batch becomes the
    data, and that of the draws of z does not.

    Args:
        pool: see `contributions`.
        batch_size: B.
        momentum: of the running mean over batches.
    """
    num_points, mean = pool.shape[1], pool.mean((0, 1))
    of_points = pool.mean(0).var(0, correction=0) * (num_points - batch_size) / max(1, num_points - 1)
    of_draws = pool.var(0, correction=0).mean(0)
    return -(of_points + of_draws) / mean.square() / (2 * batch_size) * (1 - momentum) / (1 + momentum)


def measured_bias(
    pool: torch.Tensor, batch_size: int, momenta: Sequence[float], num_batches: int, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean of log σ²*_batch − log σ²*_all for each variance parameter and momentum, (P,), with standard errors (P,).

    The mean of σ²*_batch/σ²*_all is 1: subtracting it leaves the expectation and most of the noise goes.

    Args:
        pool: see `contributions`.
        batch_size: of points without replacement, each with one of its draws.
        momenta: of the running mean.
        num_batches: that are read.
        seed: of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    relative = _batch_means(pool / pool.mean((0, 1)), batch_size, num_batches, generator)
    found = []
    for momentum in momenta:
        running = _running_means(relative, momentum)[math.ceil(BURN_IN / (1 - momentum)) if momentum else 0 :]
        values = running.log() - (running - 1)
        # What is left is correlated over the memory of the running mean.
        memory = (1 + momentum) / (1 - momentum)
        found.append((values.mean(0), values.std(0) * math.sqrt(memory / len(values))))
    return found


def _running_means(values: torch.Tensor, momentum: float) -> torch.Tensor:
    """After each of the values (T, P), beginning at 1."""
    running, means = torch.ones_like(values[0]), torch.empty_like(values)
    for value, mean in zip(values, means, strict=True):
        running = value.lerp(running, momentum)
        mean.copy_(running)
    return means


def _batch_means(pool: torch.Tensor, batch_size: int, num_batches: int, generator: torch.Generator) -> torch.Tensor:
    """(num_batches, P)."""
    num_draws, num_points, num_parameters = pool.shape
    means = []
    while num_batches > 0:
        size = min(num_batches, max(1, CHUNK // (num_points + batch_size * num_parameters)))
        points = torch.rand(size, num_points, generator=generator).topk(batch_size).indices
        draws = torch.randint(num_draws, points.shape, generator=generator)
        means.append(pool[draws, points].mean(1))
        num_batches -= size
    return torch.cat(means)


def _model(x: torch.Tensor, latent_dim: int, kind: Kind, seed: int) -> VAE:
    with seeded(seed, x.device):
        networks = MLPEncoder(x.shape[1], (50, 50)), MLPDecoder((50, 50))
        return VAE(*networks, data_shape=x.shape[1], latent_dim=latent_dim, likelihood=Gaussian(variance=kind))


def trained(
    x: torch.Tensor, latent_dim: int, kind: Kind, batch_size: int, momentum: float | None, seed: int, steps: int
) -> tuple[VAE, float]:
    """A model trained for so many steps, and its ELBO on x with the variances at their optima, nats per data point.

    Args:
        x: (N, D); the batch size divides N.
        latent_dim: H.
        kind: of variance.
        batch_size: of training.
        momentum: of analytic variances; None learns them by gradient.
        seed: of weights, batches and noise.
        steps: of Adam.
    """
    model = _model(x, latent_dim, kind, seed)
    epochs = max(1, round(steps * batch_size / len(x)))
    how = {"variances": "learned"} if momentum is None else {"variance_momentum": momentum}
    history = fit(
        model, x, epochs=epochs, batch_size=batch_size, seed=seed, compile=False, progress=False,
        evaluation_expectation=EVALUATION, **how,  # type: ignore[arg-type]
    )  # fmt: skip
    assert history.train is not None
    if momentum is not None:
        return model, history.train.elbo
    # As `fit` does it for analytic ones: from other draws than those that are reported.
    variance, _ = optimal_factors(evaluate(model, x, expectation=EVALUATION.with_seed(1)), prior=False)
    model.rescale(variance_factor=variance)
    return model, evaluate(model, x, expectation=EVALUATION).elbo


def _data(name: str, num_points: int) -> torch.Tensor:
    # Dequantised, else constant pixels have σ_d² at the floor.
    data = load(name, dequantise=name == "digits", stream=False)
    assert isinstance(data.train, torch.Tensor)
    return data.train[:num_points].float().flatten(1)


Row = dict[str, Any]


def _read(
    x: torch.Tensor, latent_dim: int, kind: Kind, sizes: Iterable[int], num_batches: int, steps: int
) -> list[Row]:
    """What batches of a trained network's data say of its σ²."""
    model, _ = trained(x, latent_dim, kind, min(200, len(x)), 0.9, 0, steps)
    pool = contributions(model, x, DRAWS)
    num_parameters, rows = pool.shape[2], []
    for batch_size in (size for size in sizes if size <= len(x)):
        for momentum, (bias, error) in zip(MOMENTA, measured_bias(pool, batch_size, MOMENTA, num_batches), strict=True):
            predicted = predicted_bias(pool, batch_size, momentum)
            nats = x.shape[1] / num_parameters / 2
            rows.append(
                {
                    "σ²": kind,
                    "batch": batch_size,
                    "momentum": momentum,
                    "bias of log σ²": float(bias.mean()),
                    # Parameters share their batches: the error of their mean is not that of independent ones.
                    "error": float(error.square().mean().sqrt()),
                    "−c²/2B": float(predicted.mean()),
                    "L read too high, nats": float(-bias.sum()) * nats,
                    "normal errors": num_parameters / (2 * batch_size) * (1 - momentum) / (1 + momentum),
                }
            )
    return rows


def _train(
    x: torch.Tensor, latent_dim: int, kind: Kind, batch_size: int, seeds: Sequence[int], steps: int
) -> dict[float, str]:
    """By momentum: final ELBO less that of learned variances, with its standard error over seeds."""

    def elbos(momentum: float | None) -> list[float]:
        return [trained(x, latent_dim, kind, batch_size, momentum, seed, steps)[1] for seed in seeds]

    learned, found = elbos(None), {}
    for momentum in MOMENTA:
        differences = [a - b for a, b in zip(elbos(momentum), learned, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(seeds))
        found[momentum] = f"{statistics.fmean(differences):+.3f} ± {error:.3f}"
    return found


def run(quick: bool) -> Result:
    """The bias that batches read at fixed networks beside its prediction, and final ELBOs relative to learned σ²."""
    sizes, train_sizes = ((10, 50), (50,)) if quick else (READ_SIZES, TRAIN_SIZES)
    batches, steps, seeds = (600, 20, SEEDS[:2]) if quick else (BATCHES, STEPS, SEEDS)
    rows: list[Row] = []
    for name, latent_dim in list(DATA.items())[: 1 if quick else None]:
        x = _data(name, 300 if quick else MAX_READ)
        to_train = x[: 200 if quick else NUM_POINTS]
        for kind in KINDS:
            final = {size: _train(to_train, latent_dim, kind, size, seeds, steps) for size in train_sizes}
            for row in _read(x, latent_dim, kind, sizes, batches, steps):
                effect = final.get(row["batch"], {}).get(row["momentum"], "")
                rows.append({"data": name, **row, "trained, less learned": effect})
    notes = [
        f"Read at fixed networks, {batches:,} batches. L read too high: what the batch's σ² makes of the objective, "
        "nats per data point; normal errors: the same if x − μ(z) were normal with variance σ², 1/(2B) for every "
        "variance parameter times (1 − m)/(1 + m).",
        f"Trained: ELBO of the {len(to_train):,} training points after {steps} steps, with variances at their optima, "
        "less that of variances learned by gradient, nats; "
        f"mean of {len(seeds)} seeds ± standard error of paired differences.",
    ]
    return Result("Analytic variances and the size of batches", rows, notes)
