"""Data points for a look at a model: all of them in batches, or a few hundred spread evenly over the data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.data.given import Data
from vaentropy.errors import DataError
from vaentropy.evaluation import Missing, _batches, _require_shape, _without_missing
from vaentropy.model import LatentVariableModel, placement
from vaentropy.rows import rows_of
from vaentropy.seeding import seeded

__all__ = ["Reading", "batches", "spread"]


@dataclass(frozen=True)
class Reading:
    """How data are read: the arguments of `evaluate` of these names."""

    batch_size: int | None = None
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None
    missing: Missing = "error"


Batch = tuple[LatentVariableModel, Tensor, Tensor | None]


def batches(model: LatentVariableModel, data: Data, reading: Reading) -> Iterator[Batch]:
    """Model, x (B, *data_shape) on its device, and which entries are observed (None: all), batch by batch."""
    device, dtype = placement(model)
    seen = 0
    for batch in _batches(data, reading.batch_size):
        bound, x = reading.bind(batch) if reading.bind else (model, rows_of(batch))
        if len(x) == 0:
            continue
        _require_shape(bound, x)
        x = x.detach().to(device=device, dtype=dtype if x.is_floating_point() else None)
        x, observed = _without_missing(x, reading.missing, seen)
        seen += len(x)
        yield bound, x, observed


def spread(model: LatentVariableModel, data: Data, reading: Reading, num_points: int) -> tuple[Tensor, Tensor | None]:
    """Points spread evenly over the data, which are read once, and which entries of them are observed.

    Returns:
        x, at least `num_points` of them where there are as many, and fewer than twice that; observed or None.

    Raises:
        DataError: there are none, or as for `evaluate`.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    step, seen, any_missing = 1, 0, False
    # A DataLoader draws from the global generator, shuffled or not.
    with seeded(0, torch.device("cpu")):
        for _, x, observed in batches(model, data, reading):
            # Row numbers that are multiples of the step, whatever the batches.
            first = -seen % step
            any_missing |= observed is not None
            there = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
            kept.append((x[first::step], there[first::step]))
            seen += len(x)
            while sum(len(rows) for rows, _ in kept) >= 2 * num_points:
                step *= 2
                rows, there = (torch.cat(parts)[::2] for parts in zip(*kept, strict=True))
                kept = [(rows, there)]
    if not kept:
        raise DataError("no data points given, expected at least one")
    rows, there = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return rows, there if any_missing else None
