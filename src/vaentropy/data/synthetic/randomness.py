"""What every synthetic set begins with: checked sizes and noise, and random numbers from a generator of its own."""

import torch

from vaentropy._typing import Tensor
from vaentropy.errors import UsageError

__all__ = ["Randomness"]


class Randomness:
    """Random numbers of one set, in float64.

    Args:
        seed: of the generator; the global one is neither read nor moved.
        noise: standard deviation of what `noisy` adds, >= 0.
        sizes: by the names of the arguments that gave them.

    Raises:
        UsageError: a size below 1, or a noise that is negative or not finite.
    """

    # The device is named because a default device set by the user does not fit a generator of the CPU.

    def __init__(self, seed: int, noise: float, **sizes: int):
        if min(sizes.values()) < 1:
            given = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise UsageError(f"sizes are {given}, expected each to be at least 1; pass larger ones")
        if not 0 <= noise < float("inf"):
            raise UsageError(f"noise is {noise!r}, expected a finite standard deviation >= 0; pass e.g. 0.1")
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1]."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def integers(self, end: int, *shape: int) -> Tensor:
        """Uniform over 0 to end - 1, in int64."""
        return torch.randint(end, shape, generator=self.generator, device="cpu")

    def noisy(self, points: Tensor) -> Tensor:
        """The points plus independent Gaussian noise in each element."""
        return points + self.noise * self.normal(*points.shape)
