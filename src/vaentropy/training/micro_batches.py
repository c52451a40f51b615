"""`gradients_in_parts`: the gradients of a batch that is too large for one forward pass, by parts of it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from vaentropy._typing import Bool, Float, Tensor
from vaentropy.training.division import nearly_equal_parts
from vaentropy.training.step import Objective, objective
from vaentropy.vae import VAE
from vaentropy.world import ALONE, SoFar, World, part_of_batch

__all__ = ["gradients_in_parts"]


class _Rows(NamedTuple):
    """Rows of a batch, and the fraction of the whole batch that they are."""

    x: Tensor
    noise: Tensor
    observed: Tensor | None
    share: float


def gradients_in_parts(
    model: VAE,
    x: Float[Tensor, "B *data"],
    noise: Float[Tensor, "K #B H"],
    weights: Float[Tensor, "K"] | None = None,
    *,
    rows: int | None,
    world: World = ALONE,
    share: float = 1.0,
    of: Objective = objective,
    observed: Bool[Tensor, "B *data"] | None = None,
    adapt: float = 0.0,
    **options: Any,
) -> Float[Tensor, "S"]:
    """`gradients`, a few rows at a time: to rounding those of all in one pass, in the memory of a few.

    Analytic variances depend on the whole batch: a pass without gradients comes before, and moves them. Where they are
    learned there is none.

    Args:
        model, x, noise, weights, observed, adapt, options: as for `objective`.
        rows: of a forward and backward pass at most; None takes all.
        world: processes that share the batch.
        share: fraction of the batch that x is; 0 where x counts for nothing.
        of: the objective, or the same compiled.
    """
    parts = _parts(x, noise, observed, share, rows)
    buffers = list(model.buffers()) if len(parts) > 1 else []
    begun_with = _copies(buffers)
    if adapt and len(parts) > 1:
        _move_variances(model, parts, weights, world, {"adapt": adapt, **options})
        adapt = 0.0
    total = None
    for part in parts:
        # Each part meets the layers as the step found them, as it would in the whole batch.
        _put_back(buffers, begun_with)
        with nullcontext() if world.alone else part_of_batch(world, part.share):
            loss, sums = of(model, part.x, part.noise, weights, observed=part.observed, adapt=adapt, **options)
        (loss if part.share == 1 else loss * part.share).backward()
        total = sums if total is None else total + sums
    assert total is not None
    return total


def _parts(x: Tensor, noise: Tensor, observed: Tensor | None, share: float, rows: int | None) -> list[_Rows]:
    if rows is None or len(x) <= rows:
        return [_Rows(x, noise, observed, share)]
    parts = [slice(part.start, part.stop) for part in nearly_equal_parts(len(x), rows)]
    return [
        _Rows(
            x[part],
            noise if noise.shape[1] == 1 else noise[:, part],
            None if observed is None else observed[part],
            share * (part.stop - part.start) / len(x),
        )
        for part in parts
    ]


def _move_variances(
    model: VAE, parts: Sequence[_Rows], weights: Tensor | None, world: World, options: Mapping[str, Any]
) -> None:
    """Move analytic variances as one pass over all parts would; nothing else is changed."""
    variances, so_far = model.variance_parameters(), SoFar(len(parts))
    if not variances:
        return
    changed = [*model.buffers(), *variances]
    begun_with = _copies(changed)
    device = parts[0].x.device
    # Dropout draws the same again in the pass with gradients.
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for part in parts:
            # What the parts before have moved them to is of no use: only within the last one all is known.
            _put_back(changed, begun_with)
            with part_of_batch(world, part.share, so_far):
                objective(model, part.x, part.noise, weights, observed=part.observed, **options)


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
