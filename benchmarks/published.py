"""The algorithm of the paper (arXiv:2010.14860) written out in plain PyTorch: what training times are compared with.

As published: 100 Monte Carlo samples per point, scales through softplus, KL in closed form, Adam at 1e-3 on batches of
200, a loader that fetches items one by one, and after each epoch a second pass over the training data, with as many
samples, that logs the ELBO and the three entropies. Nothing of the package is used, and nothing is slower than this
needs: log-densities are written out, passes that only log record no gradient.
"""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, Dataset

__all__ = ["BATCH_SIZE", "LEARNING_RATE", "NUM_SAMPLES", "Epoch", "PublishedVAE", "Terms", "Training"]

NUM_SAMPLES = 100
BATCH_SIZE = 200
LEARNING_RATE = 1e-3


class Terms(NamedTuple):
    """Means over a batch, () each, nats per data point."""

    elbo: Tensor
    encoder_entropy: Tensor
    prior_entropy: Tensor
    decoder_entropy: Tensor


class PublishedVAE(nn.Module):
    """p(x|z) = N(μ(z), σ²), q(z|x) = N(ν(x), diag τ²(x)), p(z) = N(0, I), with LeakyReLU networks.

    Args:
        data_dim: D.
        latent_dim: H.
        hidden: widths of the encoder's layers; the decoder's are these in reverse. None at all makes the linear VAE,
            whose τ is shared by all x.
        variance: "shared", one σ (VAE-1), or "function", σ_d(z) (VAE-3).
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] = (50, 50),
        *,
        variance: Literal["shared", "function"] = "shared",
    ):
        super().__init__()
        encoder, decoder = (data_dim, *hidden), (latent_dim, *reversed(hidden))
        self.encoder, self.decoder = _network(encoder), _network(decoder)
        self.latent_mean = nn.Linear(encoder[-1], latent_dim)
        self.latent_scale = nn.Linear(encoder[-1], latent_dim) if hidden else nn.Parameter(torch.zeros(latent_dim))
        self.mean = nn.Linear(decoder[-1], data_dim)
        self.scale = nn.Linear(decoder[-1], data_dim) if variance == "function" else nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ν(x) and τ(x), (B, H)."""
        features = self.encoder(x)
        mean = self.latent_mean(features)
        return mean, _scale(self.latent_scale, features).expand(mean.shape)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """μ(z), (..., D), and σ, () or (..., D), for z (..., H)."""
        features = self.decoder(z)
        return self.mean(features), _scale(self.scale, features)

    def terms(self, x: Tensor, noise: Tensor) -> Terms:
        """ELBO and entropies for x (B, D) and noise (S, B, H)."""
        latent_mean, latent_scale = self.encode(x)
        mean, scale = self.decode(latent_mean + latent_scale * noise)
        data_dim, latent_dim = x.shape[1], noise.shape[2]
        error = (x - mean).square()
        if scale.ndim:
            squares, log_scale = (error / scale.square()).sum(-1), scale.log().sum(-1).mean()
        else:
            squares, log_scale = error.sum(-1) / scale.square(), data_dim * scale.log()
        reconstruction = -0.5 * squares.mean() - log_scale - 0.5 * data_dim * math.log(2 * math.pi)
        latent_log_scale = latent_scale.log().sum(-1).mean()
        kl = 0.5 * (latent_mean.square() + latent_scale.square() - 1).sum(-1).mean() - latent_log_scale
        standard = 0.5 * math.log(2 * math.pi * math.e)  # entropy of N(0, 1)
        return Terms(
            elbo=reconstruction - kl,
            encoder_entropy=latent_dim * standard + latent_log_scale.detach(),
            prior_entropy=x.new_tensor(latent_dim * standard),
            decoder_entropy=data_dim * standard + log_scale.detach(),
        )

    # What `vaentropy.evaluate` asks a model for, so that one yardstick judges both sides.

    def posterior(self, x: Tensor) -> Independent:
        """q(z|x)."""
        return Independent(Normal(*self.encode(x), validate_args=False), 1)

    def prior(self) -> Independent:
        """p(z)."""
        zeros = torch.zeros_like(self.latent_mean.bias)
        return Independent(Normal(zeros, torch.ones_like(zeros)), 1)

    def likelihood(self, z: Tensor) -> Independent:
        """p(x|z)."""
        return Independent(Normal(*self.decode(z), validate_args=False), 1)


def _network(widths: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU())))


def _scale(raw: nn.Module | Tensor, features: Tensor) -> Tensor:
    return softplus(raw(features) if isinstance(raw, nn.Module) else raw)


class _Items(Dataset):
    """Rows one at a time."""

    def __init__(self, x: Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


class Epoch(NamedTuple):
    """What the second pass logs, nats per data point, and the seconds of training and second passes until then."""

    seconds: float
    elbo: float
    encoder_entropy: float
    prior_entropy: float
    decoder_entropy: float


class Training:
    """Training of a model as published, an epoch at a time.

    Args:
        model: changed in place.
        x: (N, D).
        num_samples: S.
        seed: of batches and noise.
    """

    def __init__(self, model: PublishedVAE, x: Tensor, *, num_samples: int = NUM_SAMPLES, seed: int = 0):
        self.model, self.num_samples = model, num_samples
        self.generator = torch.Generator().manual_seed(seed)
        items = _Items(x)
        self.loader = DataLoader(items, BATCH_SIZE, shuffle=True, generator=self.generator)
        # The generator only keeps the loader from drawing on the global one.
        self.in_order = DataLoader(items, BATCH_SIZE, generator=self.generator)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        self.seconds = 0.0

    def epoch(self) -> Epoch:
        """One pass that trains and one that logs."""
        start = time.perf_counter()
        for x in self.loader:
            self.step(x)
        logged = self.evaluate()
        self.seconds += time.perf_counter() - start
        return Epoch(self.seconds, *logged)

    def run_for(self, seconds: float) -> None:
        """Epochs until so many seconds have passed; the last one may be cut short, after a step."""
        start = time.perf_counter()
        while True:
            for x in self.loader:
                if time.perf_counter() - start >= seconds:
                    return
                self.step(x)
            self.evaluate()

    def step(self, x: Tensor) -> Tensor:
        """One step of Adam; the loss before it."""
        self.optimizer.zero_grad()
        loss = -self.model.terms(x, self._noise(x)).elbo
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """ELBO and the three entropies over the training data."""
        total, num_points = torch.zeros(len(Terms._fields), dtype=torch.float64), 0
        for x in self.in_order:
            total += torch.stack(self.model.terms(x, self._noise(x))) * len(x)
            num_points += len(x)
        return (total / num_points).tolist()

    def _noise(self, x: Tensor) -> Tensor:
        shape = self.num_samples, len(x), self.model.latent_mean.out_features
        return torch.randn(shape, generator=self.generator, dtype=x.dtype)
