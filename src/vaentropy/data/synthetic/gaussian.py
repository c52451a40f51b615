"""Sets drawn from Gaussians, whose log-density is known: PCA, one dimension, eight on a circle, a stream.

The ring has no density in closed form; it stands beside the PCA that it bends.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.distributions import Categorical, Independent, LowRankMultivariateNormal, MixtureSameFamily, Normal

from vaentropy._typing import Float, Num, Tensor
from vaentropy.data.synthetic.randomness import Randomness
from vaentropy.errors import UsageError

__all__ = [
    "GaussianMixture",
    "LinearGaussian",
    "eight_gauss",
    "gauss_1d",
    "more_of_pca_ring",
    "pca",
    "pca_log_likelihood",
    "pca_ring",
    "streaming",
]


class LinearGaussian(NamedTuple):
    """Parameters of x = weight z + mean + noise_std eps, with eps ~ N(0, I)."""

    weight: Float[Tensor, "D H"]
    mean: Float[Tensor, " D"]
    noise_std: float

    def log_density(self, x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """log N(x; mean, weight weight^T + noise_std^2 I) for each point, in nats: that of z ~ N(0, I), in float64.

        Raises:
            UsageError: noise_std is not positive: the density does not exist.
        """
        _require_density(self.noise_std)
        variance = torch.full_like(self.mean, self.noise_std, dtype=torch.float64).square()
        return LowRankMultivariateNormal(self.mean.double(), self.weight.double(), variance).log_prob(x.double())


class GaussianMixture(NamedTuple):
    """Parameters of x = means[c] + noise_std eps, with c uniform over the components and eps ~ N(0, I)."""

    means: Float[Tensor, "C D"]
    noise_std: float

    def log_density(self, x: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """log of the mean over c of N(x; means[c], noise_std^2 I), for each point, in nats, in float64.

        Raises:
            UsageError: noise_std is not positive: the density does not exist.
        """
        _require_density(self.noise_std)
        means = self.means.double()
        components = Independent(Normal(means, self.noise_std), 1)
        return MixtureSameFamily(Categorical(logits=torch.zeros_like(means[:, 0])), components).log_prob(x.double())


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
    return _draw_pca(num_points, data_dim, latent_dim, noise, seed, ring=False)


def pca_ring(
    num_points: int = 10_000, data_dim: int = 10, latent_dim: int = 2, *, noise: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "N D"], LinearGaussian]:
    """Draw as `pca`, with z replaced by z/10 + z/||z||, a ring, before the linear map.

    Arguments, result and errors are those of `pca`; the same seed gives the same W, b, z and eps.
    The points are not Gaussian: neither `LinearGaussian.log_density` nor `pca_log_likelihood` applies to them.
    The ring is from Doersch, "Tutorial on variational autoencoders", arXiv:1606.05908.
    """
    return _draw_pca(num_points, data_dim, latent_dim, noise, seed, ring=True)


def more_of_pca_ring(parameters: LinearGaussian, num_points: int, *, seed: int) -> Float[Tensor, "N D"]:
    """Draw further points from the distribution of a `pca_ring`.

    Args:
        parameters: as `pca_ring` returned them.
        num_points: how many, in float64.
        seed: another one than that of the ring, whose z and eps might come again.
    """
    random = Randomness(seed, parameters.noise_std, num_points=num_points)
    return _of_pca(random, parameters, num_points, ring=True)


def pca_log_likelihood(
    x: Float[Tensor, "N D"], weight: Float[Tensor, "D H"], mean: Float[Tensor, " D"], noise_std: float
):
    """Mean of log N(x; mean, weight weight^T + noise_std^2 I) over the points, in nats per data point, as a float.

    Computed in float64. Call it as `pca_log_likelihood(x, *parameters)` with what `pca` returned.

    Raises:
        UsageError: noise_std is not positive (the density does not exist), or there are no points.
    """
    if len(x) == 0:
        raise UsageError("log-likelihood of 0 points, expected at least 1; pass some")
    return LinearGaussian(weight, mean, noise_std).log_density(x).mean().item()


def gauss_1d(num_points: int, *, noise: float = 1.0, seed: int = 0) -> tuple[Float[Tensor, "N 1"], GaussianMixture]:
    """Draw x = noise eps in one dimension, eps ~ N(0, 1), and return the density, of one component, beside the points.

    A standard normal is our choice; the authors' mean of 3 and standard deviation of 0.05 differ by an affine map.
    """
    random = Randomness(seed, noise, num_points=num_points)
    points = random.normal(num_points, 1)
    return noise * points, GaussianMixture(points.new_zeros(1, 1), noise)


def eight_gauss(
    num_points: int, *, noise: float = 0.05, seed: int = 0
) -> tuple[Float[Tensor, "N 2"], Num[Tensor, " N"], GaussianMixture]:
    """Draw from eight Gaussians, evenly spaced on the circle of radius 0.4 around (1, 1), counted counterclockwise.

    Returns the points, the component of each (int64, 0 to 7) and the mixture. Each point draws its component, our
    choice, so that points are independent; the authors' code gives each component equally many.
    """
    num_components, center, radius = 8, 1.0, 0.4
    random = Randomness(seed, noise, num_points=num_points)
    labels = random.integers(num_components, num_points)
    angle = torch.arange(num_components, dtype=torch.float64, device="cpu") * (2 * math.pi / num_components)
    means = center + radius * torch.stack((angle.cos(), angle.sin()), dim=1)
    return random.noisy(means[labels]), labels, GaussianMixture(means, noise)


def streaming(
    num_points: int, data_dim: int = 10, num_factors: Sequence[int] = (6, 2, 4), *, noise: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "N D"], Num[Tensor, " N"], tuple[LinearGaussian, ...]]:
    """Draw a stream in segments that differ in their number of factors: x = W z + noise eps, z and eps standard normal.

    All W share their columns, which are orthogonal: those of one random orthogonal matrix, scaled to lengths
    linspace(1, 5, data_dim). A segment has as many of them, from the first on, as its number of factors.

    Args:
        num_points: of the whole stream; segments have equally many, the first ones 1 more if that does not divide.
        num_factors: one number per segment, from 1 to data_dim.

    Returns:
        The points in the order of the stream, the segment of each (int64, from 0), and the parameters of each segment.

    Raises:
        UsageError: besides bad sizes or noise, bad numbers of factors or fewer points than segments.
    """
    random = Randomness(seed, noise, num_points=num_points, data_dim=data_dim)
    if not 0 < len(num_factors) <= num_points or min(num_factors) < 1 or max(num_factors) > data_dim:
        given = f"num_factors={tuple(num_factors)} with data_dim={data_dim} and num_points={num_points}"
        raise UsageError(f"got {given}, expected 1 to data_dim factors and a point or more per segment; pass those")
    shortest, longest = 1, 5
    scales = torch.linspace(shortest, longest, data_dim, dtype=torch.float64, device="cpu")
    factors = torch.linalg.qr(random.normal(data_dim, data_dim)).Q * scales
    segments = [LinearGaussian(factors[:, :count], torch.zeros_like(scales), noise) for count in num_factors]
    latents = random.normal(num_points, data_dim).tensor_split(len(segments))
    clean = [z[:, :count] @ factors[:, :count].T for z, count in zip(latents, num_factors, strict=True)]
    labels = [z.new_full((len(z),), segment, dtype=torch.int64) for segment, z in enumerate(latents)]
    return random.noisy(torch.cat(clean)), torch.cat(labels), tuple(segments)


def _draw_pca(num_points: int, data_dim: int, latent_dim: int, noise: float, seed: int, *, ring: bool):
    random = Randomness(seed, noise, num_points=num_points, data_dim=data_dim, latent_dim=latent_dim)
    parameters = LinearGaussian(random.uniform(data_dim, latent_dim), random.uniform(data_dim), noise)
    return _of_pca(random, parameters, num_points, ring=ring), parameters


def _of_pca(random: Randomness, parameters: LinearGaussian, num_points: int, *, ring: bool) -> Tensor:
    z = random.normal(num_points, parameters.weight.shape[1])
    if ring:
        z = z / 10 + z / z.norm(dim=1, keepdim=True)
    return random.noisy(z @ parameters.weight.T + parameters.mean)


def _require_density(noise_std: float):
    if not 0 < noise_std < float("inf"):
        raise UsageError(f"log-density with noise_std={noise_std!r}, expected a finite noise_std > 0; pass one")
