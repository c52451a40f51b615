"""One pass over data: what `evaluate` and `log_likelihood` do alike, from checks to batches."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_function
from vaentropy.conditions import bound_to, packed, require_conditions
from vaentropy.data.conditioned import side_by_side
from vaentropy.data.given import Data, as_rows
from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.model import LatentVariableModel, placement
from vaentropy.modes import in_mode
from vaentropy.options import Missing, check_log_jacobian, check_options, check_weights, log_jacobian_term
from vaentropy.rows import REMEDY, affordable, fill_missing, require_finite
from vaentropy.seeding import GlobalDraws, generator_of

__all__ = [
    "Batch",
    "Counted",
    "Pass",
    "bound_pair",
    "each_batch",
    "keep_freed_memory",
    "rows_per_batch",
    "shard_seed",
]

# What stays in a core's cache; and what keeps a GPU busy: an H200 then takes 1/30 of the time (docs/performance.md).
VALUES_PER_BATCH, VALUES_ON_GPU = 2**18, 2**24
FEWEST_ROWS, MOST_ROWS = 64, 16_384
# glibc returns freed memory to the system, and to have its pages mapped anew for each batch takes up to a third of an
# evaluation. Once a block of this size was freed, it keeps twice as much; elsewhere this changes nothing.
KEPT_BYTES = 31 * 2**20


def rows_per_batch(data_shape: Sequence[int], device: torch.device | None) -> int:
    """As many rows as are worth a forward pass: data of few features would spend their time between the passes."""
    values = VALUES_ON_GPU if device is not None and device.type == "cuda" else VALUES_PER_BATCH
    return affordable(MOST_ROWS, data_shape, values, fewest=affordable(FEWEST_ROWS, data_shape))


def keep_freed_memory() -> None:
    """Let the memory of one batch be used again for the next one."""
    torch.empty(KEPT_BYTES, dtype=torch.uint8, device="cpu")


def _batches(data: Any, batch_size: int | None, device: torch.device | None) -> Iterator[Any]:
    """Of a tensor, or of an iterable of batches."""
    if isinstance(data, Tensor):
        num_rows = batch_size or rows_per_batch(data.shape[1:], device)
        # A single number cannot be split; its own check says so.
        yield from data.split(num_rows) if data.ndim else [data]
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        given = type(data).__name__
        raise DataError(f"{given} given as data, expected an array (N, *data_shape) or batches of them")
    yield from data


def _require_shape(model: object, x: Tensor) -> None:
    """Refuse data of another shape than the model says to take, if it says anything."""
    expected = getattr(model, "data_shape", None)
    if isinstance(expected, tuple) and tuple(x.shape[1:]) != expected:
        expected = ", ".join(map(str, expected))
        raise DataError(f"data of shape {tuple(x.shape)} given, expected (N, {expected}) as the model takes")


def _without_missing(x: Tensor, missing: Missing, first_row: int) -> tuple[Tensor, Tensor | None]:
    """Finite x, and which of its entries are observed."""
    if missing == "error":
        require_finite(x, "the data", first_row=first_row, remedy=f'{REMEDY}, or leave NaN out by missing="ignore"')
        return x, None
    x, observed = fill_missing(x)
    require_finite(x, "the data", first_row=first_row)
    return x, observed


@dataclass(frozen=True)
class Batch:
    """Some of the data, as the model takes them.

    Attributes:
        model: the one of this batch, where it needs context.
        x: (B, *data_shape), finite, on the model's device; 0 where a value is missing.
        observed: bool (B, *data_shape), False where a value is missing; None where none is.
        log_jacobian: (B,), Σ over the (observed) features of log |dy/dx|.
        weights: (B,) of the data points; None means 1.
        generator: of all noise of the pass, on the device of `x`: a batch continues where the one before ended.
        padding: how many of the last rows only fill the batch up, with weight 0.
        condition: (B, k) that the model is given; None without one.
    """

    model: LatentVariableModel
    x: Tensor
    observed: Tensor | None
    log_jacobian: Tensor
    weights: Tensor | None
    generator: torch.Generator
    padding: int = 0
    condition: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """x, NaN where a value is missing, with its condition if there is one: what the batch was made of."""
        x = self.x if self.observed is None else self.x.masked_fill(~self.observed, math.nan)
        return x if self.condition is None else side_by_side(x, self.condition)


def _require_model(model: object) -> None:
    """Refuse what has not the three methods of a model.

    Raises:
        UsageError: it has not.
    """
    if not all(callable(getattr(model, name, None)) for name in ("posterior", "prior", "likelihood")):
        expected = "one with posterior, prior and likelihood; make it by from_functions"
        raise UsageError(f"a model of type {type(model).__name__} given, expected {expected}")


def bound_pair(answer: Any) -> tuple[LatentVariableModel, Tensor]:
    """What `bind` returned, the model of a batch and its data.

    Raises:
        UsageError: it is something else.
    """
    if not (isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[1], Tensor)):
        kinds = ", ".join(type(each).__name__ for each in answer) if isinstance(answer, tuple | list) else ""
        given = f"({kinds})" if kinds else type(answer).__name__
        raise UsageError(f"bind returned {given}, expected the pair (model, x) with a Tensor x (B, *data_shape)")
    model, x = answer
    _require_model(model)
    return model, x


def shard_seed(seed: int, shard: int) -> int:
    """Of what is drawn for one shard; the first one's is that of data without shards."""
    return generator_of(seed, "shard", shard).initial_seed() if shard else seed


class Counted(NamedTuple):
    """What a pass has counted: sums, and nothing of the model or the data.

    Attributes:
        num_rows: that went by.
        num_points: data points.
        any_observed: whether any of them has a value.
        data_shape: shape of one.
        sums: of their terms.
        more: what else the kind of pass counts.
    """

    num_rows: int
    num_points: int
    any_observed: bool
    data_shape: tuple[int, ...]
    sums: Any = None
    more: tuple[Any, ...] = ()


class Pass(ABC):
    """One pass over data whose batches need not come at once: without gradients, in `mode`, generators seeded.

    While it is not `running`, the model's mode, BatchNorm statistics and the global generators are as before. Arguments
    are those of `evaluate`.

    Args:
        seed: of `Batch.generator` and of the global generators; each shard of a source has a seed of its own.

    Attributes:
        num_points: data points so far.
        data_shape: shape of one; () before the first.
        any_observed: whether any of them has a value.
        mode: in which the networks run.

    Raises:
        UsageError: an argument has a wrong value.
    """

    def __init__(
        self,
        model: object,
        *,
        seed: int,
        sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
        bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
        missing: str = "error",
        log_jacobian: Tensor | np.ndarray | float = 0.0,
        mode: str = "eval",
    ):
        check_options(mode, missing)
        require_function("bind", bind)
        if not bind:
            _require_model(model)
        self._model: Any = model
        self._seed, self._bind = seed, bind
        self._missing: Any = missing
        self._log_jacobian = check_log_jacobian(log_jacobian)
        self._weights = check_weights(sample_weight)
        self._device, self._dtype = placement(model)
        self.begin(0)
        self._is_running = False
        self._first, self._seen, self.num_points = 0, 0, 0
        self.any_observed = False
        self.mode: Any = mode
        self.data_shape: tuple[int, ...] = ()

    def begin(self, shard: int) -> None:
        """Draw from now on what belongs to one shard of a source, whoever has counted those before; not while running.

        Draws of shard 0 are those of data without shards.
        """
        seed = shard_seed(self._seed, shard)
        self._draws = GlobalDraws(seed, self._device or torch.device("cpu"))
        self._draws_of_data = GlobalDraws(generator_of(seed, "data").initial_seed(), torch.device("cpu"))
        self._shard_seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @abstractmethod
    def measure(self, batch: Batch) -> None:
        """Do with a batch what the pass is for."""

    def begin_at(self, row: int, weights: Tensor | None) -> None:
        """Count data points from this row on, which have these weights (n,); None means 1."""
        self._first = self._seen = row
        self._weights = weights

    def counted(self) -> Counted:
        """What was counted so far, for another pass to take in."""
        return Counted(self._seen - self._first, self.num_points, self.any_observed, self.data_shape)

    def take_in(self, counted: Counted) -> None:
        """Count what another pass has counted, of data points that come next."""
        self._seen += counted.num_rows
        self.num_points += counted.num_points
        self.any_observed = self.any_observed or counted.any_observed
        self.data_shape = counted.data_shape

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, batches are taken; several times one after the other are the same as once."""
        # Outside of inference mode, if the caller is in it: what is kept for later, such as nodes, is used in training.
        with torch.inference_mode(False), torch.no_grad(), in_mode(self._model, self.mode), self._draws.in_use():
            self._is_running = True
            try:
                yield
            finally:
                self._is_running = False

    def take(self, given: Any) -> int:
        """Count a batch, as the data hold it; return its number of rows.

        Raises:
            DataError: it cannot be told which part of it is the data, or these are not finite numbers.
            UsageError: the pass is not `running`, or there are fewer weights than data points.
        """
        if self._bind is None:
            bound, x, condition = bound_to(self._model, packed(self._model, given))
            return self.count(bound, x, condition=condition)
        return self.count(*bound_pair(self._bind(given)))

    def count(self, bound: LatentVariableModel, x: Tensor, *, padding: int = 0, condition: Tensor | None = None) -> int:
        """Count a batch, of which the model and the data are known; return its number of rows.

        Args:
            bound: the model of this batch.
            x: (B, *data_shape).
            padding: how many of its last rows are copies that only fill it up, and count for nothing.
            condition: (B, k) that the pass's own model is given in `bound`; None without one.

        Raises:
            DataError: the data are not finite numbers.
            UsageError: the pass is not `running`, or there are fewer weights than data points.
        """
        if not self._is_running:
            # Dropout, gradients and the caller's generators would go into the numbers, unnoticed.
            given = f"a batch given to {type(self).__name__}, which is not running"
            raise UsageError(f"{given}; take batches inside `with accumulator.running():`")
        if x.ndim == 0:
            raise DataError("a single number given as data, expected an array (N, *data_shape)")
        if len(x) <= padding:
            return 0
        _require_shape(bound, x)
        x = x.detach().to(device=self._device, dtype=self._dtype if x.is_floating_point() else None)
        x, observed = _without_missing(x, self._missing, self._seen)
        jacobian = log_jacobian_term(self._log_jacobian, x.shape, observed)
        weights = self._weights_of(len(x), padding)
        self.any_observed = self.any_observed or _any_observed(observed, weights)
        own = bound is self._model or condition is not None
        with nullcontext() if own else in_mode(bound, self.mode):
            self.measure(Batch(bound, x, observed, jacobian, weights, self._generator(x.device), padding, condition))
        self.data_shape, self._seen = tuple(x.shape[1:]), self._seen + len(x)
        self.num_points += len(x) - padding
        return len(x)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._shard_seed)
        return self._generators[device]

    def _weights_of(self, num_rows: int, padding: int) -> Tensor | None:
        """Weights of the next rows; None where all are 1."""
        if self._weights is None and not padding:
            return None
        weights = torch.ones(num_rows, dtype=torch.float64, device="cpu")
        if self._weights is not None:
            first = self._seen - self._first
            if len(self._weights) < first + num_rows:
                given = f"sample_weight holds {len(self._weights)} numbers"
                raise UsageError(f"{given} for more data points; give one for each")
            weights = self._weights[first : first + num_rows].clone()
        weights[num_rows - padding :] = 0.0
        return weights

    def weights_for(self, num_points: int) -> Tensor | None:
        """Weights of all data points, (N,); None where all are 1.

        Raises:
            UsageError: there are more or fewer of them.
        """
        if self._weights is not None and len(self._weights) != num_points:
            given = f"sample_weight holds {len(self._weights)} numbers"
            raise UsageError(f"{given} for {num_points} data points; give one for each")
        return self._weights

    def end(self) -> None:
        """Refuse a pass over nothing.

        Raises:
            DataError: no data, or none of whose values is observed.
            UsageError: there are more weights than data points.
        """
        if not self.num_points:
            raise DataError("no data points given, expected at least one")
        self.weights_for(self._seen)
        if not self.any_observed:
            raise DataError("every value is missing (NaN), expected at least one that is observed")

    def through(self, data: Data, *, batch_size: int | None, on_batch: Callable[[int], None] | None) -> None:
        """All of the data, from beginning to end.

        Raises:
            DataError: no data, or data that are not finite numbers, or none of whose values is observed.
            UsageError: an argument has a wrong value.
        """
        self.check(data, batch_size, on_batch)
        keep_freed_memory()
        rows = as_rows(data)
        if isinstance(rows, Source):
            self.shards(rows, range(len(rows.shard_sizes)), batch_size=batch_size, on_batch=on_batch)
        else:
            self._each(_batches(data if rows is None else rows, batch_size, self._device), on_batch)
        self.end()

    def check(self, data: Data, batch_size: int | None, on_batch: Callable[[int], None] | None) -> None:
        """Refuse arguments of `through` before anything is read.

        Raises:
            DataError: a condition of another width than the model's.
            UsageError: an argument has a wrong value.
        """
        if batch_size is not None:
            require_count("batch_size", batch_size)
        require_function("on_batch", on_batch)
        if self._bind is None:
            require_conditions(self._model, data, "data")

    def shards(
        self, source: Source, numbers: range, *, batch_size: int | None, on_batch: Callable[[int], None] | None
    ) -> None:
        """Some shards of a source; in another pass over the others the draws are the same as in one over all."""
        for number in numbers:
            if source.shard_sizes[number]:
                self.begin(number)
                self._each(self._read(source, number, batch_size), on_batch)

    def _read(self, source: Source, shard: int, batch_size: int | None) -> Iterator[Tensor]:
        yield from _batches(source.read(shard), batch_size, self._device)

    def _each(self, batches: Iterator[Any], on_batch: Callable[[int], None] | None) -> None:
        with self.running():
            for given in self._drawn_apart(batches):
                num_rows = self.take(given)
                if on_batch and num_rows:
                    on_batch(num_rows)

    def _drawn_apart(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, whose own draws, such as a DataLoader's order, take none of the model's, such as dropout."""
        end = object()
        while True:
            with self._draws_of_data.in_use():
                given = next(batches, end)
            if given is end:
                return
            yield given


class _Calling(Pass):
    def __init__(self, model: object, call: Callable[[Batch], None], **how: Any):
        super().__init__(model, **how)
        self._call = call

    def measure(self, batch: Batch) -> None:
        self._call(batch)


def each_batch(
    model: LatentVariableModel,
    data: Data,
    measure: Callable[[Batch], None],
    *,
    batch_size: int | None,
    on_batch: Callable[[int], None] | None,
    **how: Any,
) -> tuple[int, tuple[int, ...]]:
    """Call `measure` for one batch of the data after the other, in a `Pass`.

    Args:
        model, data, batch_size, on_batch: as for `evaluate`.
        measure: called with each batch.
        how: further arguments of `Pass`.

    Returns:
        Number of data points, and data_shape.

    Raises:
        DataError: no data, or data that are not finite numbers, or none of whose values is observed.
        UsageError: an argument has a wrong value.
    """
    one = _Calling(model, measure, **how)
    one.through(data, batch_size=batch_size, on_batch=on_batch)
    return one.num_points, one.data_shape


def _any_observed(observed: Tensor | None, weights: Tensor | None) -> bool:
    """Whether a point that counts has a value."""
    if observed is None:
        return weights is None or bool((weights > 0).any())
    return bool((observed if weights is None else observed[weights.to(observed.device) > 0]).any())
