"""How often `select` finds three factors in 20 features of 5,000 points, with other data and trainings for each seed.

    python tests/selection/factors.py [--model vae1] [--seeds 20] [--first 0] [--quick]

prints a line for each seed and how many are right. Without the import hook of the tests, which makes training slow.
"""

import argparse
import time
from typing import Any

import torch

from vaentropy.data import pca
from vaentropy.families import vae1
from vaentropy.selection import select

POINTS, FEATURES, FACTORS = 5_000, 20, 3


def quick() -> dict[str, Any]:
    """A small network, few steps, few candidates."""
    return {"latent_dims": (2, 3, 4), "model": lambda h: vae1(FEATURES, h, (16,)), "epochs": 20, "learning_rate": 1e-2}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vae1")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    right, start = 0, time.perf_counter()
    for seed in range(given.first, given.first + given.seeds):
        x, _ = pca(POINTS, FEATURES, FACTORS, noise=given.noise, seed=seed)
        options: dict[str, Any] = quick() if given.quick else {"model": given.model}
        selection = select(x, seed=seed, progress=False, **options)
        right += selection.supported == FACTORS
        print(f"seed {seed}: {selection.verdict}", flush=True)
    print(f"{right} of {given.seeds} right, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
