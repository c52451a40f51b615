"""Data points for a look at a model: all of them in batches, or a few hundred spread evenly over the data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.data.conditioned import side_by_side
from vaentropy.data.given import Data
from vaentropy.errors import UsageError
from vaentropy.model import LatentVariableModel
from vaentropy.modes import Mode
from vaentropy.options import Missing
from vaentropy.passes import Batch, each_batch
from vaentropy.rows import affordable

__all__ = ["Reading", "require_rereadable", "spread"]

# Numbers that are kept of the data at least, so that large images stay small in memory: fewer of them are looked at.
KEPT_VALUES = 2**26
FEWEST_KEPT = 16  # of whatever size


@dataclass(frozen=True)
class Reading:
    """A model and how data for it are read: arguments of `evaluate`."""

    model: LatentVariableModel
    batch_size: int | None = None
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None
    missing: Missing = "error"
    mode: Mode = "eval"

    def each(
        self,
        data: Data,
        measure: Callable[[Batch], None],
        *,
        seed: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> int:
        """Call `measure` for one batch after the other, without gradients; return the number of data points."""
        number, _ = each_batch(
            self.model,
            data,
            measure,
            seed=seed,
            batch_size=self.batch_size,
            sample_weight=None,
            bind=self.bind,
            missing=self.missing,
            log_jacobian=0.0,
            mode=self.mode,
            on_batch=on_batch,
        )
        return number


def require_rereadable(name: str, data: Any) -> None:
    """Refuse data that are used up by one pass.

    Raises:
        UsageError: they are.
    """
    if isinstance(data, Iterator):
        raise UsageError(
            f"{name} of type {type(data).__name__} given, which can be read once, expected data that can be read "
            "again and again, such as a tensor or a DataLoader"
        )


def spread(
    reading: Reading, data: Data, num_points: int, num_values: int = KEPT_VALUES
) -> tuple[Tensor, Tensor | None]:
    """Points spread evenly over the data, which are read once, and which entries of them are observed.

    Returns:
        x, at least `num_points` of them where there are as many, and fewer than twice that, with their condition where
        there is one; observed or None. Of large ones so many as hold `num_values`.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    step, seen, any_missing = 1, 0, False

    def keep(batch: Batch) -> None:
        nonlocal kept, step, seen, any_missing
        any_missing |= batch.observed is not None
        x = batch.x if batch.condition is None else side_by_side(batch.x, batch.condition)
        there = ~batch.rows.isnan()
        # Rows whose numbers are multiples of the step, whatever the batches.
        first = -seen % step
        # Copies: a view would keep its whole batch in memory.
        kept.append((x[first::step].clone(), there[first::step].clone()))
        seen += len(batch.x)
        most = 2 * affordable(num_points, x.shape[1:], num_values, fewest=FEWEST_KEPT)
        while sum(len(rows) for rows, _ in kept) >= most:
            step *= 2
            rows, there = (torch.cat(parts)[::2] for parts in zip(*kept, strict=True))
            kept = [(rows, there)]

    reading.each(data, keep)
    rows, there = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return rows, there if any_missing else None
