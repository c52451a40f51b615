"""Sets on curves and surfaces, with Gaussian noise around them."""

import math
from collections.abc import Callable

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.data.synthetic.randomness import Randomness
from vaentropy.errors import UsageError

__all__ = ["circle", "cosine", "eight", "line", "manifold", "spiral_3d", "swiss_roll"]

NOISE = 0.05


def line(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 2"]:
    """Draw from a segment: (t, 1.5 t + 2) + noise eps, t uniform in [0, 3]."""
    return _curve(num_points, noise, seed, 3.0, lambda t: (t, 1.5 * t + 2))


def cosine(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 2"]:
    """Draw from one and a half periods of a cosine: (t, cos t + 1) + noise eps, t uniform in [0, 3π]."""
    return _curve(num_points, noise, seed, 3 * math.pi, lambda t: (t, t.cos() + 1))


def circle(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 2"]:
    """Draw from a circle whose radius is noisy: (1 + noise eps) (cos t, sin t), one eps per point, t uniform."""
    random = Randomness(seed, noise, num_points=num_points)
    t = 2 * math.pi * random.uniform(num_points, 1)
    return random.noisy(torch.ones_like(t)) * torch.cat((t.cos(), t.sin()), dim=1)


def eight(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 2"]:
    """Draw from a lying eight, the lemniscate of Gerono: (cos t, sin t cos t)/2 + noise eps, t uniform in [0, 2π].

    One round is our choice; the authors' five quarters of a round cover one quarter twice.
    """
    return _curve(num_points, noise, seed, 2 * math.pi, lambda t: (t.cos() / 2, t.sin() * t.cos() / 2))


def spiral_3d(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 3"]:
    """Draw from one turn of a slanted helix: (a - c, b, a + c) + 1.5 + noise eps, of which the helix is (a, b, c).

    (a, b, c) = (2.5 sin 2πt, 2.5 cos 2πt, 3t), t uniform in [0, 1].
    """
    radius, rise, shift = 2.5, 3, 1.5

    def slanted_helix(t: Tensor) -> tuple[Tensor, ...]:
        a, b, c = radius * (2 * math.pi * t).sin(), radius * (2 * math.pi * t).cos(), rise * t
        return a - c + shift, b + shift, a + c + shift

    return _curve(num_points, noise, seed, 1.0, slanted_helix)


def swiss_roll(num_points: int, *, noise: float = NOISE, seed: int = 0) -> Float[Tensor, "N 3"]:
    """Draw from the Swiss roll of scikit-learn: (t cos t, h, t sin t) + noise eps.

    t is uniform in [1.5π, 4.5π], h in [0, 21]. Source: `sklearn.datasets.make_swiss_roll`.
    """
    random = Randomness(seed, noise, num_points=num_points)
    t = 1.5 * math.pi * (1 + 2 * random.uniform(num_points))
    height = 21 * random.uniform(num_points)
    return random.noisy(torch.stack((t * t.cos(), height, t * t.sin()), dim=1))


def manifold(
    num_points: int, data_dim: int = 100, manifold_dim: int = 10, *, noise: float = 0.01, seed: int = 0
) -> Float[Tensor, "N D"]:
    """Draw from a curved manifold: the graph of a function of the first manifold_dim features.

    Those are Gaussian, z_i ~ N(-0.175, 0.35^2). Each further feature is 0.35 cos(z_i^2 + z_j^2), where i and j are
    drawn once per feature, uniformly, and may be equal. Noise eps is added to all features, our choice: the authors'
    code adds none, but then the σ² of a VAE has no lower bound. The further features have standard
    deviations of 0.05 to 0.1.

    Raises:
        UsageError: besides bad sizes or noise, a manifold_dim above data_dim.
    """
    random = Randomness(seed, noise, num_points=num_points, data_dim=data_dim, manifold_dim=manifold_dim)
    if manifold_dim > data_dim:
        given = f"manifold_dim={manifold_dim} with data_dim={data_dim}"
        raise UsageError(f"got {given}, expected manifold_dim <= data_dim; pass a smaller manifold_dim")
    scale = 0.35
    i, j = random.integers(manifold_dim, 2, data_dim - manifold_dim)
    z = scale * random.normal(num_points, manifold_dim) - scale / 2
    further = scale * (z[:, i].square() + z[:, j].square()).cos()
    return random.noisy(torch.cat((z, further), dim=1))


def _curve(num_points: int, noise: float, seed: int, end: float, columns: Callable[[Tensor], tuple[Tensor, ...]]):
    """Draw t uniformly in [0, end], and noise around the point of the curve at t."""
    random = Randomness(seed, noise, num_points=num_points)
    return random.noisy(torch.stack(columns(end * random.uniform(num_points)), dim=1))
