"""Shards of a source shared out among the workers of an engine, and what came of them in their order."""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.data.conditioned import ConditionedRows
from vaentropy.data.given import Data, as_rows
from vaentropy.data.source import Rows, Source, rows_per_shard
from vaentropy.engines import Call, Engine, require_engine
from vaentropy.errors import UsageError
from vaentropy.model import placement
from vaentropy.passes import Counted, Pass, keep_freed_memory
from vaentropy.progress import Report, reporting

__all__ = ["MOST_STRETCHES", "Recipe", "Stretch", "WithModel", "as_source", "in_order", "stretches", "through"]

# A lost worker loses one of so many parts of the data; messages of them take no time. The same for every number of
# workers, so that sums are added in one order.
MOST_STRETCHES = 1024


@dataclass
class Stretch:
    """Consecutive shards of a source: a task, which is sent with no other rows than its own.

    Attributes:
        source: of the shards.
        shards: their numbers.
        first_row: of all of the source's.
        num_rows: in the shards.
    """

    source: Source
    shards: range
    first_row: int
    num_rows: int

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": self.source.only(self.shards)}


def stretches(source: Source, least: int = 1, *, most: int | None = MOST_STRETCHES) -> list[Stretch]:
    """All of a source.

    Args:
        source: whose shards are kept whole.
        least: rows of each but the last.
        most: parts, which have more rows where there would be more of them; None for any number.
    """
    least = max(1, least, -(-len(source) // (most or len(source) or 1)))
    parts, begun, first_row, rows = [], 0, 0, 0
    for shard, size in enumerate(source.shard_sizes):
        rows += size
        if rows >= least or (rows and shard == len(source.shard_sizes) - 1):
            parts.append(Stretch(source, range(begun, shard + 1), first_row, rows))
            begun, first_row, rows = shard + 1, first_row + rows, 0
    return parts


def in_order(
    engine: Engine, call: Call, tasks: Sequence[Any], report: Report, *, ahead: int | None = None
) -> Generator[Any, None, None]:
    """Results of tasks in the order of these.

    Args:
        engine, call, tasks, report, ahead: see `Engine.run`.

    Raises:
        Exception: that of a task; the others are stopped.
    """
    waiting: dict[int, Any] = {}
    expected = 0
    with closing(engine.run(call, tasks, report=report, ahead=ahead)) as answers:
        for done in answers:
            if done.failure is not None:
                raise done.failure
            waiting[done.number] = done.result
            while expected in waiting:
                yield waiting.pop(expected)
                expected += 1


class WithModel:
    """Base of what workers do with a model: it is sent on the CPU, and put on a device of the same kind.

    Args:
        model: of any kind.
    """

    def __init__(self, model: Any):
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        device, model = placement(self.model)[0], self.model
        if device is None or device.type == "cpu":
            return {**self.__dict__, "kind": "cpu"}
        return {**self.__dict__, "model": copy.deepcopy(model).cpu(), "kind": device.type}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind = state.pop("kind")
        self.__dict__.update(state)
        # Which device of several is the engine's choice.
        self.model = self.model if kind == "cpu" else self.model.to(kind)


class _Share(NamedTuple):
    """A task: shards, weights (n,) of their rows, and rows of a batch."""

    part: Stretch
    weights: np.ndarray | None
    batch_size: int | None


class Recipe(WithModel):
    """How workers count their shards.

    Args:
        make: a pass, of a model and further arguments.
        model: its first argument.
        how: its other ones, but for weights.
    """

    def __init__(self, make: Callable[..., Pass], model: Any, how: Mapping[str, Any]):
        super().__init__(model)
        self._make, self._how = make, how

    def __call__(self, task: _Share, report: Report) -> Counted:
        """What a pass over the shards of a task counts."""
        part, weights, batch_size = task
        one = self._make(self.model, **self._how)
        one.begin_at(part.first_row, None if weights is None else torch.from_numpy(weights))
        keep_freed_memory()
        for shard in part.shards:
            one.shards(part.source, range(shard, shard + 1), batch_size=batch_size, on_batch=None)
            report("", part.source.shard_sizes[shard])
        one.weights_for(one.num_points)
        return one.counted()


def through(
    whole: Pass,
    recipe: Recipe,
    data: Data,
    batch_size: int | None,
    on_batch: Callable[[int], None] | None,
    engine: Engine | None,
) -> None:
    """`Pass.through`, here or by the workers of an engine.

    Args:
        whole: pass over all of the data.
        recipe: of passes over parts, whose results `whole` takes in.
        data, batch_size, on_batch, engine: as for `evaluate`.

    Raises:
        DataError: as `Pass.through`.
        UsageError: as `Pass.through`; or what workers need cannot be sent.
        Lost: workers were lost too often.
    """
    require_engine(engine)
    if engine is None:
        whole.through(data, batch_size=batch_size, on_batch=on_batch)
        return
    whole.check(data, batch_size, on_batch)
    source = as_source(data)
    weights = whole.weights_for(len(source))
    parts = stretches(source)
    tasks = [_Share(part, _of(weights, part), batch_size) for part in parts]

    with closing(in_order(engine, recipe, tasks, reporting(on_batch))) as results:
        for counted in results:
            whole.take_in(counted)
    whole.end()


def _of(weights: Tensor | None, part: Stretch) -> np.ndarray | None:
    # Of an array, a view is sent without the rest.
    return None if weights is None else weights.numpy()[part.first_row : part.first_row + part.num_rows]


def as_source(data: Data) -> Source:
    """Data as shards that can be shared out.

    Raises:
        UsageError: they are batches, which come one after the other.
    """
    rows = as_rows(data)
    if isinstance(rows, ConditionedRows):
        return rows.cut()
    if isinstance(rows, Source):
        return rows
    if isinstance(rows, Tensor) and rows.ndim:
        return Rows(rows, shard_size=rows_per_shard(rows.shape[1:]))
    raise UsageError(
        f"{type(data).__name__} given as data with an engine, expected rows that can be shared out, such as an array "
        "(N, *data_shape) or a Source; leave the engine out"
    )
