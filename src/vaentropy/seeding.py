"""Seeds: global generators seeded for a while and then put back, and generators of one's own for numbered pieces."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SEED_RANGE", "generator_of", "seeded"]

SEED_RANGE = 2**63


def generator_of(seed: int, *piece: int | str) -> torch.Generator:
    """A generator of the CPU for one piece of work: equal arguments give equal draws, others unrelated ones.

    Args:
        seed: of all pieces.
        piece: what tells this one from the others, such as ("order", epoch).
    """
    digest = hashlib.blake2b(repr((seed, *piece)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % SEED_RANGE)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`; afterwards they are as before."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: it would also seed devices that are not restored here.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
