"""Synthetic sets whose distribution is known.

Source: Damm et al., "The ELBO of variational autoencoders converges to a sum of three entropies", AISTATS 2023,
arXiv:2010.14860 (PCA and PCA-ring); the ring is from Doersch, "Tutorial on variational autoencoders", arXiv:1606.05908.
"""

from typing import NamedTuple

import torch
from torch.distributions import LowRankMultivariateNormal

from vaentropy._typing import Float, Tensor
from vaentropy.errors import UsageError

__all__ = ["LinearGaussian", "pca", "pca_log_likelihood", "pca_ring"]


class LinearGaussian(NamedTuple):
    """Parameters of x = weight z + mean + noise_std eps, with eps ~ N(0, I)."""

    weight: Float[Tensor, "D H"]
    mean: Float[Tensor, " D"]
    noise_std: float


def pca(
    num_points: int = 10_000, data_dim: int = 10, latent_dim: int = 2, *, noise: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "N D"], LinearGaussian]:
    """Draw from probabilistic PCA: x = W z + b + noise eps, z and eps standard normal, W and b uniform in [0, 1].

    Args:
        noise: standard deviation (not variance) of the noise per feature, >= 0.
        seed: fixes W, b and all draws; the global generator is neither read nor moved.

    Returns:
        The points, (num_points, data_dim) in float64, and the parameters they were drawn with.

    Raises:
        UsageError: a size below 1, or a noise that is negative or not finite.
    """
    return _draw(num_points, data_dim, latent_dim, noise, seed, ring=False)


def pca_ring(
    num_points: int = 10_000, data_dim: int = 10, latent_dim: int = 2, *, noise: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "N D"], LinearGaussian]:
    """Draw as `pca`, with z replaced by z/10 + z/||z||, a ring, before the linear map.

    Arguments, result and errors are those of `pca`; the same seed gives the same W, b, z and eps.
    The points are not Gaussian: `pca_log_likelihood` does not apply to them.
    """
    return _draw(num_points, data_dim, latent_dim, noise, seed, ring=True)


def pca_log_likelihood(
    x: Float[Tensor, "N D"], weight: Float[Tensor, "D H"], mean: Float[Tensor, " D"], noise_std: float
):
    """Mean of log N(x; mean, weight weight^T + noise_std^2 I) over the points, in nats per data point, as a float.

    Computed in float64. Call it as `pca_log_likelihood(x, *parameters)` with what `pca` returned.

    Raises:
        UsageError: noise_std is not positive (the density does not exist), or there are no points.
    """
    if not 0 < noise_std < float("inf") or len(x) == 0:
        given = f"noise_std={noise_std!r} and {len(x)} points"
        raise UsageError(f"log-likelihood with {given}, expected a finite noise_std > 0 and at least 1; pass those")
    variance = torch.full_like(mean, noise_std, dtype=torch.float64).square()
    density = LowRankMultivariateNormal(mean.double(), weight.double(), variance)
    return density.log_prob(x.double()).mean().item()


def _draw(num_points: int, data_dim: int, latent_dim: int, noise: float, seed: int, *, ring: bool):
    if min(num_points, data_dim, latent_dim) < 1:
        given = f"num_points={num_points}, data_dim={data_dim}, latent_dim={latent_dim}"
        raise UsageError(f"sizes are {given}, expected each to be at least 1; pass larger ones")
    if not 0 <= noise < float("inf"):
        raise UsageError(f"noise is {noise!r}, expected a finite standard deviation >= 0; pass e.g. 0.1")
    # The device is named because a default device set by the user does not fit a generator of the CPU.
    how = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64, "device": "cpu"}
    weight = torch.rand(data_dim, latent_dim, **how)
    mean = torch.rand(data_dim, **how)
    z = torch.randn(num_points, latent_dim, **how)
    eps = torch.randn(num_points, data_dim, **how)
    if ring:
        z = z / 10 + z / z.norm(dim=1, keepdim=True)
    return z @ weight.T + mean + noise * eps, LinearGaussian(weight, mean, noise)
