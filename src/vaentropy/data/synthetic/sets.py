"""`SETS`: the synthetic sets by name, as the paper has them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vaentropy._typing import Float, Num, Tensor
from vaentropy.data.synthetic.gaussian import (
    GaussianMixture,
    LinearGaussian,
    eight_gauss,
    gauss_1d,
    pca,
    pca_ring,
    streaming,
)
from vaentropy.data.synthetic.manifolds import circle, cosine, eight, line, manifold, spiral_3d, swiss_roll

__all__ = ["SETS", "Drawn", "SyntheticSet"]


class Drawn(NamedTuple):
    """Points of a set and what is known of each: a label, and the true log p(x) in nats (streaming: in its segment)."""

    x: Float[Tensor, "N D"]
    labels: Num[Tensor, " N"] | None = None
    log_density: Float[Tensor, " N"] | None = None


class SyntheticSet(NamedTuple):
    """A set by default: how many points, the fraction of them held out, and one line on the space and its scale.

    `build(num_points, seed)` draws it, all other arguments of its function at their defaults.
    """

    build: Callable[[int, int], Drawn]
    num_points: int
    held_out: float
    description: str


def _plain(draw: Callable[..., Tensor]) -> Callable[[int, int], Drawn]:
    return lambda num_points, seed: Drawn(draw(num_points, seed=seed))


def _with_truth(draw: Callable[..., tuple[Tensor, LinearGaussian | GaussianMixture]]) -> Callable[[int, int], Drawn]:
    def build(num_points: int, seed: int) -> Drawn:
        x, truth = draw(num_points, seed=seed)
        return Drawn(x, None, truth.log_density(x))

    return build


def _pca_ring(num_points: int, seed: int) -> Drawn:
    return Drawn(pca_ring(num_points, seed=seed)[0])


def _eight_gauss(num_points: int, seed: int) -> Drawn:
    x, labels, truth = eight_gauss(num_points, seed=seed)
    return Drawn(x, labels, truth.log_density(x))


def _streaming(num_points: int, seed: int) -> Drawn:
    x, labels, segments = streaming(num_points, seed=seed)
    parts = [truth.log_density(x[labels == segment]) for segment, truth in enumerate(segments)]
    return Drawn(x, labels, torch.cat(parts))


PCA = 20_000, 0.5  # points, and the fraction held out
TOY = 50_000, 0.5
STREAM = 300_000, 0.0  # 100,000 per segment; a stream is there to be learned as it comes

SETS: dict[str, SyntheticSet] = {
    "pca": SyntheticSet(_with_truth(pca), *PCA, "x = W z + b + 0.1 eps in 10 dimensions, 2 latent"),
    "pca-ring": SyntheticSet(_pca_ring, *PCA, "as pca with z/10 + z/||z|| in place of z"),
    "1d-gauss": SyntheticSet(_with_truth(gauss_1d), *TOY, "standard normal in 1 dimension"),
    "line": SyntheticSet(_plain(line), *TOY, "segment from (0, 2) to (3, 6.5), noise 0.05"),
    "circle": SyntheticSet(_plain(circle), *TOY, "unit circle in 2 dimensions, noise 0.05"),
    "eight": SyntheticSet(_plain(eight), *TOY, "lying eight in 2 dimensions, 1 wide, noise 0.05"),
    "eight-gauss": SyntheticSet(_eight_gauss, *TOY, "8 Gaussians with deviation 0.05 on a circle of radius 0.4"),
    "cosine": SyntheticSet(_plain(cosine), *TOY, "(t, 1 + cos t) for t in [0, 3π], noise 0.05"),
    "swiss-roll": SyntheticSet(_plain(swiss_roll), *TOY, "Swiss roll in 3 dimensions, 25 wide, noise 0.05"),
    "spiral-3d": SyntheticSet(_plain(spiral_3d), *TOY, "a turn of a slanted helix in 3 dimensions, noise 0.05"),
    "manifold": SyntheticSet(_plain(manifold), *TOY, "curved 10-dimensional manifold in 100, noise 0.01"),
    "streaming": SyntheticSet(_streaming, *STREAM, "6, then 2, then 4 factors in 10 dimensions, noise 0.1"),
}
