"""What made a training step fast, each idea against what stood or could stand in its place."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import interleaved, ratio
from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1
from vaentropy.data.batches import Batches
from vaentropy.likelihoods import GaussianHead, Head
from vaentropy.training.step import RunningSums, gradients, objective, training_step
from vaentropy.vae import VAE

NUM_POINTS, BATCH_SIZE = 3_600, 200


def run(quick: bool) -> Result:
    """Time of an epoch of 64-50-50-2 with each alternative, as a ratio to that of the training loop's own way."""
    x = images(400 if quick else NUM_POINTS, 64)
    ours = _epoch(_Ways(), Batches(x, BATCH_SIZE))
    alternatives: dict[str, tuple[str, Callable[[], None]]] = {
        "data in one tensor on the device, batches by index_select": (
            "a DataLoader that fetches and collates item by item",
            _epoch(_Ways(), None, DataLoader(TensorDataset(x), BATCH_SIZE, shuffle=True)),
        ),
        "one sample per point": ("100 samples", _epoch(_Ways(num_samples=100), Batches(x, BATCH_SIZE))),
        "functions of tensors": ("torch.distributions", _epoch(_Ways(distributions=True), Batches(x, BATCH_SIZE))),
        "sums of the step's own terms, read once an epoch": (
            "a second forward pass over the data each epoch",
            _epoch(_Ways(second_pass=True), Batches(x, BATCH_SIZE)),
        ),
        "sums that stay on the device": (
            "numbers read at each step",
            _epoch(_Ways(read_each_step=True), Batches(x, BATCH_SIZE)),
        ),
        "fused Adam": ("Adam, one parameter after the other", _epoch(_Ways(fused=False), Batches(x, BATCH_SIZE))),
    }
    times = interleaved({"ours": ours, **{idea: call for idea, (_, call) in alternatives.items()}}, 3 if quick else 15)
    steps = len(Batches(x, BATCH_SIZE))
    rows = [
        {
            "idea": idea,
            "instead of": instead,
            "times as long without": str(ratio(times[idea], times["ours"])),
            "ms per step": 1e3 * statistics.median(times[idea]) / steps,
        }
        for idea, (instead, _) in alternatives.items()
    ]
    own = 1e3 * statistics.median(times["ours"]) / steps
    rows.append(_many_draws(quick))
    notes = [f"The loop's own step takes {own:.3f} ms, that of the last row is one of 784-50-50-10 with 100 samples."]
    return Result("What each idea brings", rows=rows, notes=notes)


def _many_draws(quick: bool) -> dict[str, Any]:
    """Row of what `GaussianHead` does where all points share σ² and there are many draws."""
    batches = Batches(images(BATCH_SIZE, 784), BATCH_SIZE)
    epoch = _epoch(_Ways(num_samples=5 if quick else 100, data_dim=784, latent_dim=10), batches)

    def plainly() -> None:
        with patch.object(GaussianHead, "average_log_prob_and_entropy", Head.average_log_prob_and_entropy):
            epoch()

    times = interleaved({"ours": epoch, "plain": plainly}, 3 if quick else 15)
    return {
        "idea": "averages over draws of z before the decoder's last layer: mean and covariance of its features",
        "instead of": "an error for each draw",
        "times as long without": str(ratio(times["plain"], times["ours"])),
        "ms per step": 1e3 * statistics.median(times["plain"]),
    }


class _Ways:
    """One model and how its steps are made; each alternative differs from the loop's way in one thing."""

    def __init__(
        self,
        num_samples: int = 1,
        *,
        data_dim: int = 64,
        latent_dim: int = 2,
        distributions: bool = False,
        second_pass: bool = False,
        read_each_step: bool = False,
        fused: bool = True,
    ):
        torch.manual_seed(0)
        self.model: VAE = vae1(data_dim, latent_dim)
        self.expectation, self.read_each_step = MonteCarlo(num_samples), read_each_step
        self.gradients = partial(gradients, of=_through_distributions if distributions else objective)
        self.second_pass = second_pass
        speed: dict[str, Any] = {"fused": True} if fused else {"foreach": False}
        # Analytic variances, as by default; through distributions σ² would be as it is.
        for parameter in self.model.variance_parameters():
            parameter.requires_grad_(False)
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learned, **speed)
        self.generator, self.sums = torch.Generator().manual_seed(0), RunningSums()

    def step(self, x: torch.Tensor) -> None:
        nodes = self.expectation.nodes(len(x), self.model.latent_shape, generator=self.generator, dtype=x.dtype)
        sums = training_step(self.model, x, nodes, self.optimizer, adapt=0.1, gradients=self.gradients)
        self.sums.add(sums, len(x))
        if self.read_each_step:
            self.sums.read()

    def watch(self, x: torch.Tensor) -> None:
        nodes = self.expectation.nodes(len(x), self.model.latent_shape, generator=self.generator, dtype=x.dtype)
        with torch.no_grad():
            objective(self.model, x, nodes.noise)


def _epoch(ways: _Ways, batches: Batches | None, loader: DataLoader | None = None) -> Callable[[], None]:
    def epoch() -> None:
        for batch in batches.epoch(1) if batches else (rows for (rows,) in loader or ()):
            ways.step(batch)
        if ways.second_pass and batches:
            for batch in batches.epoch(1):
                ways.watch(batch)
        ways.sums.read()

    return epoch


def _through_distributions(
    model: VAE, x: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`objective` as one would write it with the three methods of the model interface."""
    q, p = model.posterior(x), model.prior()
    likelihood = model.likelihood(q.mean + q.stddev * noise[0])
    reconstruction, kl = likelihood.log_prob(x), torch.distributions.kl_divergence(q, p)
    with torch.no_grad():
        # The sums per latent are left out: what torch.distributions returns is summed over them.
        entropies = [p.entropy().expand(kl.shape), likelihood.entropy().expand(kl.shape)]
        sums = torch.stack([reconstruction, *entropies, kl, q.entropy()]).sum(1, dtype=torch.float64)
    return (kl - reconstruction).mean(), sums
