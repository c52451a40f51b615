"""What several benchmarks are run on."""

import torch

__all__ = ["images"]


def images(num_points: int, data_dim: int) -> torch.Tensor:
    """Stand-ins for images, (N, D) in [0, 1]: a step takes as long on any numbers."""
    return torch.rand(num_points, data_dim, generator=torch.Generator().manual_seed(0))
