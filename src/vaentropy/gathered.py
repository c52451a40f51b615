"""Evaluations of the parts of the data that several processes hold, as that of all: exactly, and without pickle."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.expectation import Expectation
from vaentropy.moments import DataMoments, Moment
from vaentropy.results import Evaluation, read_out
from vaentropy.seeding import generator_of
from vaentropy.world import Packet, from_bytes, to_bytes

__all__ = ["gathered", "merged", "of_rank", "packed", "unpacked"]

FIELDS = ("weight", "weight_squared", "mean", "spread", "lean", "spread_squared", "noise")
MOMENT, LATENTS = "moment.", "latents."


def of_rank(expectation: Expectation, rank: int) -> Expectation:
    """The expectation with draws of its own for one process; that of process 0 is as it was given."""
    if not rank or not expectation.independent:
        return expectation
    return expectation.with_seed(generator_of(expectation.seed, "rank", rank).initial_seed())


def packed(evaluation: Evaluation | None) -> Tensor:
    """Sums of an evaluation as bytes, uint8 (L,); none at all for None."""
    if evaluation is None:
        return torch.empty(0, dtype=torch.uint8)
    tensors = {
        # Moments share tensors among each other, which the format does not take.
        MOMENT + name: torch.stack([x for x in (getattr(moment, field) for field in FIELDS) if x is not None])
        for name, moment in evaluation.moments.items()
    }
    about: dict[str, Any] = {
        name: getattr(evaluation, name) for name in ("num_points", "data_shape", "latent_shape", "sampled", "mode")
    }
    about["seed"] = evaluation.expectation.seed
    if (latents := evaluation.latent_moments) is not None:
        tensors |= {f"{LATENTS}{name}": getattr(latents, name).contiguous() for name in ("mean", "covariance")}
        about["latent_points"] = latents.num_points
    return to_bytes(Packet(tensors, about))


def unpacked(content: Tensor, expectation: Expectation) -> Evaluation | None:
    """The evaluation of which these bytes, uint8 (L,), are the sums.

    Args:
        content: as `packed` made it.
        expectation: of the evaluation, whatever its seed.
    """
    if not len(content):
        return None
    tensors, about = from_bytes(content)
    latent_points = about.pop("latent_points", None)
    latents = {name.removeprefix(LATENTS): x for name, x in tensors.items() if name.startswith(LATENTS)}
    seed = about.pop("seed")
    return read_out(
        _moments(tensors),
        expectation=expectation.with_seed(seed) if expectation.independent else expectation,
        latent_moments=DataMoments(**latents, num_points=latent_points) if latents else None,
        pointwise=None,
        **{name: tuple(value) if isinstance(value, list) else value for name, value in about.items()},
    )


def _moments(tensors: Mapping[str, Tensor]) -> dict[str, Moment]:
    moments = {}
    for name, stacked in tensors.items():
        if name.startswith(MOMENT):
            given = dict(zip(FIELDS, stacked, strict=False))
            moments[name.removeprefix(MOMENT)] = Moment(**{"noise": None, **given})
    return moments


def gathered(
    evaluation: Evaluation | None,
    expectation: Expectation,
    gather: Callable[[Tensor], Tensor],
    device: torch.device,
) -> list[Evaluation]:
    """The evaluations of the parts of all processes that have any data, the same list on each.

    Args:
        evaluation: of this process's part; None where it has none.
        expectation: that all were asked for.
        gather: from a tensor of this process, of one shape on all, to those of all processes, stacked in their order.
        device: on which tensors can be gathered.
    """
    own = packed(evaluation)
    lengths = [int(n) for n in gather(torch.tensor([len(own)], device=device))]
    filled = torch.zeros(max(lengths), dtype=torch.uint8)
    filled[: len(own)] = own
    contents = gather(filled.to(device)) if len(filled) else []
    parts = [unpacked(each[:length], expectation) for each, length in zip(contents, lengths, strict=False)]
    return [part for part in parts if part is not None]


def merged(
    evaluation: Evaluation | None,
    expectation: Expectation,
    gather: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Evaluation | None:
    """The evaluation of the data of all processes, the same on each; None where none has any. See `gathered`."""
    there = gathered(evaluation, expectation, gather, device)
    return Evaluation.merge(there) if there else None
