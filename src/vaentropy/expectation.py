"""Where ε comes from: the nodes and weights that stand for an expectation under the posterior.

A normal posterior maps standard normal nodes to latents, z = ν + τ ε; averages over nodes are expectations over q(z|x).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from vaentropy._typing import Float, Tensor
from vaentropy.checks import require_count, require_seed
from vaentropy.errors import UsageError

__all__ = ["Antithetic", "Expectation", "Frozen", "GaussHermite", "MonteCarlo", "Nodes", "Sobol"]

MAX_NODES = 1_000_000
# Sets of nodes that are kept where they were used last, of all settings, devices and dtypes.
KEPT = 8
# Sobol points are multiples of 2^-30 in [0, 1); half a cell more keeps them off 0, where the normal quantile is -inf.
SOBOL_CELL = 2.0**-30


@dataclass(frozen=True)
class Nodes:
    """Standard normal noise and its weights.

    Attributes:
        noise: (K, B, *latent), or (K, 1, *latent) where all data points share it.
        weights: (K,), sum 1; float64 on the CPU.
        group: how many consecutive nodes form one independent draw (2 for antithetic pairs); None where the draws are
            not independent between data points, so that no Monte Carlo error can be had from them.
        step_weights: (K,), the weights once more, in the dtype and on the device of the noise, so that a step of
            training copies nothing to it; None where all are equal.
    """

    noise: Float[Tensor, "K B *latent"]
    weights: Float[Tensor, "K"]
    group: int | None
    step_weights: Float[Tensor, "K"] | None = None


@lru_cache(maxsize=16)
def _uniform(num_samples: int) -> Tensor:
    return torch.full((num_samples,), 1 / num_samples, dtype=torch.float64, device="cpu")


class Expectation(ABC):
    """Base of the ways to average over the posterior; immutable, and equal settings give equal nodes."""

    seed: int = 0
    # Whether each data point has draws of its own.
    independent: ClassVar[bool] = False
    gaussian_only: ClassVar[bool] = True

    def with_seed(self, seed: int) -> "Expectation":
        """The same expectation with other draws; itself where there is nothing random."""
        return replace(self, seed=seed) if "seed" in (f.name for f in fields(self)) else self  # type: ignore[type-var]

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh generator on `device`, seeded with `seed`."""
        return torch.Generator(device).manual_seed(self.seed)

    @abstractmethod
    def nodes(
        self, batch_size: int, latent_shape: tuple[int, ...], *, generator: torch.Generator, dtype: torch.dtype
    ) -> Nodes:
        """Nodes for `batch_size` data points on the device of `generator`."""

    def several(
        self,
        batch_size: int,
        latent_shape: tuple[int, ...],
        *,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "R K #B *latent"], Float[Tensor, "K"] | None]:
        """Noise and step weights of `nodes` for R generators on one device; each draws what it would draw alone."""
        nodes = [self.nodes(batch_size, latent_shape, generator=each, dtype=dtype) for each in generators]
        return torch.stack([each.noise for each in nodes]), nodes[0].step_weights


@dataclass(frozen=True)
class MonteCarlo(Expectation):
    """Independent draws for every data point; the only one that also serves posteriors that are not normal.

    Args:
        num_samples: draws per data point; 2 or more give a Monte Carlo error.
        seed: of the generator that `evaluate` makes.
    """

    num_samples: int = 16
    seed: int = 0
    independent = True
    gaussian_only = False

    def __post_init__(self) -> None:
        require_count("num_samples", self.num_samples)
        require_seed(self.seed)

    def nodes(self, batch_size, latent_shape, *, generator, dtype) -> Nodes:
        """Noise (K, B, *latent)."""
        shape = (self.num_samples, batch_size, *latent_shape)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return Nodes(noise, _uniform(self.num_samples), group=1)

    def several(self, batch_size, latent_shape, *, generators, dtype) -> tuple[Tensor, Tensor | None]:
        """Noise (R, K, B, *latent), written to where it belongs; no weights."""
        shape = (len(generators), self.num_samples, batch_size, *latent_shape)
        noise = torch.empty(shape, dtype=dtype, device=generators[0].device)
        for row, generator in zip(noise.unbind(), generators, strict=True):
            row.normal_(generator=generator)
        return noise, None


@dataclass(frozen=True)
class Antithetic(Expectation):
    """Independent pairs (ε, -ε) for every data point: odd functions of ε average out exactly.

    Args:
        num_samples: draws per data point, even; 4 or more give a Monte Carlo error.
        seed: of the generator that `evaluate` makes.
    """

    num_samples: int = 8
    seed: int = 0
    independent = True

    def __post_init__(self) -> None:
        require_count("num_samples", self.num_samples)
        require_seed(self.seed)
        if self.num_samples % 2:
            raise UsageError(
                f"num_samples={self.num_samples} given, expected an even number: antithetic draws are pairs"
            )

    def nodes(self, batch_size, latent_shape, *, generator, dtype) -> Nodes:
        """Noise (K, B, *latent); nodes 2k and 2k + 1 are a pair."""
        shape = (self.num_samples // 2, batch_size, *latent_shape)
        half = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return Nodes(torch.stack([half, -half], 1).flatten(0, 1), _uniform(self.num_samples), group=2)


class _Shared(Expectation):
    """Base of those whose nodes all data points share: they are made once, and kept where they are used."""

    @abstractmethod
    def _made(self, latent_shape: tuple[int, ...]) -> tuple[Float[Tensor, "K 1 *latent"], Float[Tensor, "K"] | None]:
        """Noise and weights, float64 on the CPU; no weights where all are equal."""

    def nodes(self, batch_size, latent_shape, *, generator, dtype) -> Nodes:
        """Noise (K, 1, *latent)."""
        kept = _kept(self, tuple(latent_shape), generator.device, dtype)
        # Copies, on the device: what a caller changes in place is not what the next one gets.
        step_weights = None if kept.step_weights is None else kept.step_weights.clone()
        return replace(kept, noise=kept.noise.clone(), weights=kept.weights.clone(), step_weights=step_weights)


@lru_cache(maxsize=KEPT)
def _kept(expectation: _Shared, latent_shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Nodes:
    noise, weights = expectation._made(latent_shape)
    placed = noise.to(device, dtype)
    if weights is None:
        return Nodes(placed, _uniform(len(noise)), group=None)
    return Nodes(placed, weights, group=None, step_weights=weights.to(device, dtype))


def _sobol_noise(num_samples: int, latent_shape: tuple[int, ...], seed: int) -> Tensor:
    size = int(np.prod(latent_shape, dtype=int))
    limit = torch.quasirandom.SobolEngine.MAXDIM
    if size > limit:
        raise UsageError(
            f"{size} latents given, expected at most {limit} for Sobol points; use MonteCarlo or Antithetic"
        )
    engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed)
    uniform = engine.draw(num_samples, dtype=torch.float64) + SOBOL_CELL / 2
    return torch.special.ndtri(uniform).reshape(num_samples, 1, *latent_shape)


def _hermite(nodes_per_axis: int, latent_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    size = int(np.prod(latent_shape, dtype=int))
    if nodes_per_axis == 1:
        # numpy's grids end at 64 axes; this one is a single point.
        noise = torch.zeros(1, 1, *latent_shape, dtype=torch.float64, device="cpu")
        return noise, torch.ones(1, dtype=torch.float64, device="cpu")
    if nodes_per_axis**size > MAX_NODES:
        raise UsageError(
            f"GaussHermite({nodes_per_axis}) for {size} latents has {nodes_per_axis}^{size} nodes, expected at most "
            f"{MAX_NODES:,}; use fewer nodes per axis, Sobol or MonteCarlo"
        )
    points, weights = np.polynomial.hermite_e.hermegauss(nodes_per_axis)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[points] * size, indexing="ij"), -1).reshape(-1, size)
    product = np.prod(np.stack(np.meshgrid(*[weights] * size, indexing="ij"), -1).reshape(-1, size), axis=1)
    return torch.from_numpy(grid).reshape(-1, 1, *latent_shape), torch.from_numpy(product)


@dataclass(frozen=True)
class Sobol(_Shared):
    """One scrambled Sobol net, shared by all data points; no Monte Carlo error, since its points are not independent.

    Args:
        num_samples: points; a power of 2 balances the net.
        seed: of the scrambling.
    """

    num_samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("num_samples", self.num_samples)
        require_seed(self.seed)

    def _made(self, latent_shape: tuple[int, ...]) -> tuple[Tensor, None]:
        """Noise (K, 1, *latent)."""
        return _sobol_noise(self.num_samples, latent_shape, self.seed), None


@dataclass(frozen=True)
class Frozen(_Shared):
    """The same normal draws for all data points, batches and calls: the ELBO becomes a deterministic function.

    Networks trained on them fit the noise: evaluate with fresh noise afterwards.

    Args:
        seed: of the draws.
        num_samples: draws.
    """

    seed: int = 0
    num_samples: int = 16

    def __post_init__(self) -> None:
        require_count("num_samples", self.num_samples)
        require_seed(self.seed)

    def _made(self, latent_shape: tuple[int, ...]) -> tuple[Tensor, None]:
        """Noise (K, 1, *latent)."""
        shape = (self.num_samples, 1, *latent_shape)
        return torch.randn(shape, generator=self.generator(), dtype=torch.float64, device="cpu"), None


@dataclass(frozen=True)
class GaussHermite(_Shared):
    """Tensor-product Gauss-Hermite quadrature: exact for polynomials of degree up to 2k - 1 in each latent.

    Args:
        nodes_per_axis: k; all nodes together are k to the number of latents.
    """

    nodes_per_axis: int = 8

    def __post_init__(self) -> None:
        require_count("nodes_per_axis", self.nodes_per_axis)

    def _made(self, latent_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Noise (K, 1, *latent), and weights."""
        return _hermite(self.nodes_per_axis, latent_shape)
