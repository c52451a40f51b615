"""Evaluations of which each process does a part."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from vaentropy._typing import Tensor
from vaentropy.data.source import Source
from vaentropy.errors import DataError, VaentropyError
from vaentropy.evaluation import Accumulator
from vaentropy.expectation import Expectation
from vaentropy.gathered import gathered
from vaentropy.model import placement
from vaentropy.passes import keep_freed_memory, rows_per_batch
from vaentropy.results import Evaluation
from vaentropy.training.interruption import Interruption
from vaentropy.vae import VAE
from vaentropy.world import FailedElsewhere, World

__all__ = ["evaluate_together"]


def evaluate_together(
    world: World,
    model: VAE,
    data: Tensor | Source,
    *,
    expectation: Expectation,
    missing: str,
    log_jacobian: Tensor | float,
    interruption: Interruption,
) -> Evaluation:
    """`evaluate` by several processes: the same batches with the same noise, each in one of them; sums are merged.

    Args:
        world: of which each process calls this with the same arguments.
        model, data, expectation, missing, log_jacobian: as for `evaluate`.
        interruption: signals, taken in all processes where one has got any.

    Returns:
        Evaluation, the same in all processes.

    Raises:
        Interrupted: by a signal.
        VaentropyError: as `evaluate`; in each process, where it comes up in one.
    """
    accumulator = Accumulator(model, expectation=expectation, missing=missing, log_jacobian=log_jacobian)
    pieces = _pieces(data, placement(model)[0])
    own = world.part(len(pieces))
    most = math.ceil(len(pieces) / world.size)
    keep_freed_memory()
    shard = pieces[own][0].shard if pieces[own] else 0
    accumulator.begin(shard)
    before = pieces[: own.start]
    accumulator.begin_at(sum(piece.end - piece.start for piece in before if piece.shard != shard), None)
    for piece in before:
        if piece.shard == shard:
            accumulator.skip(piece.end - piece.start, model.latent_shape)
    batches = _read(data, pieces[own])
    # As often in each process: in each round they tell each other how it goes.
    for _ in range(most):
        failure = None
        try:
            if (read := next(batches, None)) is not None:
                if read[0] != shard:
                    accumulator.begin(shard := read[0])
                with accumulator.running():
                    accumulator.take(read[1])
        except VaentropyError as error:
            failure = error
        _agree(world, failure, interruption)
    if not world.any(accumulator.any_observed):
        raise DataError("every value is missing (NaN), expected at least one that is observed")
    return _merged(world, accumulator.part() if accumulator.num_points else None, expectation)


class _Piece(NamedTuple):
    """Rows of a batch."""

    shard: int
    start: int
    end: int


def _pieces(data: Tensor | Source, device: torch.device | None) -> list[_Piece]:
    """The batches of `evaluate`."""
    shape, sizes = (data.shape[1:], [len(data)]) if isinstance(data, Tensor) else (data.data_shape, data.shard_sizes)
    step = rows_per_batch(shape, device)
    starts = [(shard, start, size) for shard, size in enumerate(sizes) for start in range(0, size, step)]
    return [_Piece(shard, start, min(start + step, size)) for shard, start, size in starts]


def _read(data: Tensor | Source, pieces: list[_Piece]) -> Iterator[tuple[int, Tensor]]:
    read, rows = -1, torch.empty(0)
    for shard, start, end in pieces:
        if isinstance(data, Tensor):
            rows = data
        elif shard != read:
            read, rows = shard, data.read(shard)
        yield shard, rows[start:end]


def _agree(world: World, failure: VaentropyError | None, interruption: Interruption) -> None:
    """Go on in all processes or in none."""
    signal, failed = world.largest(
        torch.tensor([interruption.signal or 0, int(failure is not None)], device=world.device)
    ).tolist()
    if failure is not None:
        raise failure
    if failed:
        raise FailedElsewhere("an evaluation", world.size)
    if signal:
        # Not what has come here since: the others do not know of it yet.
        interruption.check(signal)


def _merged(world: World, evaluation: Evaluation | None, expectation: Expectation) -> Evaluation:
    parts = gathered(evaluation, expectation, world.gather, world.device)
    if expectation.independent:
        # The draws are one stream, cut in parts: each is another one, as if by a seed of its own.
        parts = [replace(part, expectation=expectation.with_seed(number)) for number, part in enumerate(parts)]
    return replace(Evaluation.merge(parts), expectation=expectation)
