"""How far a training step is from the floor: the same networks' forward, backward and Adam alone."""

import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.measure import timed, ratio
from benchmarks.results import Result
from vaentropy import vae1
from vaentropy.training import fit
from vaentropy.training.history import Row
from vaentropy.vae import VAE

NUM_POINTS, DATA_DIM, HIDDEN, LATENT_DIM = 19_200, 784, (512,), 10


def images(num_points: int, data_dim: int) -> torch.Tensor:
    """Stand-ins for images, (N, D) in [0, 1]: a step takes as long on any numbers."""
    return torch.rand(num_points, data_dim, generator=torch.Generator().manual_seed(0))


def bare_epoch(model: VAE, x: torch.Tensor, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
    """Steps on one slice of a resident tensor after the other, as if written for this one model by hand: no shuffling,
    no sums, σ² = 1.
    """
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        features = model.encoder(batch)
        mean, log_variance = model.latent_mean(features), model.latent_log_variance(features)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = model.head.mean(model.decoder(model.latent_layer(z)))
        squared_error = (batch - reconstruction).square().sum()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        optimizer.zero_grad(set_to_none=True)
        (0.5 * (squared_error + kl) / len(batch)).backward()
        optimizer.step()


def beside_fit(
    model: VAE,
    x: torch.Tensor,
    batch_size: int,
    others: Mapping[str, Callable[[], object]],
    repetitions: int,
    **options,
) -> dict[str, list[float]]:
    """Seconds of each epoch of `fit` ("ours") and of each other candidate, which run between two epochs.

    The first epoch warms up, and the last one, which ends in an evaluation, is left out.
    """
    times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
    begun = time.perf_counter()

    def end_epoch(row: Row) -> None:
        nonlocal begun
        seconds = {"ours": time.perf_counter() - begun, **{name: timed(call) for name, call in others.items()}}
        if 1 < row["epoch"] <= repetitions + 1:
            for name, each in seconds.items():
                times[name].append(each)
        begun = time.perf_counter()

    fit(model, x, epochs=repetitions + 2, batch_size=batch_size, on_epoch=end_epoch, **options)
    return times
