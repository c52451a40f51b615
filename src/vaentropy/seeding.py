"""Seeds: global generators seeded for a while and then put back, and generators of one's own for numbered pieces."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SEED_RANGE", "GlobalDraws", "generator_of", "seeded"]

SEED_RANGE = 2**63


def generator_of(seed: int, *piece: int | str) -> torch.Generator:
    """A generator of the CPU for one piece of work: equal arguments give equal draws, others unrelated ones.

    Args:
        seed: of all pieces.
        piece: what tells this one from the others, such as ("order", epoch).
    """
    digest = hashlib.blake2b(repr((seed, *piece)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % SEED_RANGE)


class GlobalDraws:
    """torch's global generators of one piece of work: seeded when it begins, after a pause as it left them.

    Args:
        seed: of the generators of the CPU and of `device`.
        device: where the work is done.
    """

    def __init__(self, seed: int, device: torch.device):
        self._seed, self._device = seed, device
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the global generators are those of the work; afterwards they are as before."""
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if self._states is None:
                # Not torch.manual_seed: it would also seed devices that are not restored here.
                torch.default_generator.manual_seed(self._seed)
                if cuda:
                    with torch.cuda.device(self._device):
                        torch.cuda.manual_seed(self._seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(cuda, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`; afterwards they are as before."""
    with GlobalDraws(seed, device).in_use():
        yield
