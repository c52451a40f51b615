"""One pass over data: what `evaluate` and `log_likelihood` do alike, from checks to sums."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_function
from vaentropy.conditions import bound_to, packed, require_conditions, side_by_side
from vaentropy.data.given import Data, as_rows
from vaentropy.decomposition import FEATURE_TERMS, PointTerm, ScaledTerm
from vaentropy.errors import DataError, UsageError, shown
from vaentropy.model import LatentVariableModel, placement
from vaentropy.modes import Mode, in_mode
from vaentropy.moments import DataMoments, Moment, merge
from vaentropy.results import concatenate
from vaentropy.rows import REMEDY, fill_missing, require_finite
from vaentropy.seeding import seeded

__all__ = ["Batch", "Missing", "Sums", "check_log_jacobian", "each_batch"]

Missing = Literal["error", "ignore"]

VALUES_PER_BATCH = 2**18
FEWEST_ROWS, MOST_ROWS = 64, 16_384
LATENTS_WITH_COVARIANCE = 256
# Batches whose sums are merged in one go: most terms are one number, and to merge them takes as long as of many parts.
MERGED_AT_ONCE = 8
# glibc returns freed memory to the system, and to have its pages mapped anew for each batch takes up to a third of an
# evaluation. Once a block of this size was freed, it keeps twice as much; elsewhere this changes nothing.
KEPT_BYTES = 31 * 2**20


def _rows_per_batch(data_shape: Sequence[int]) -> int:
    """As many rows as are worth a forward pass: data of few features would spend their time between the passes."""
    return min(MOST_ROWS, max(FEWEST_ROWS, VALUES_PER_BATCH // max(1, math.prod(data_shape))))


def _batches(data: Any, batch_size: int | None) -> Iterator[Any]:
    rows = as_rows(data)
    if rows is None:
        if not isinstance(data, Iterable) or isinstance(data, str | bytes):
            given = type(data).__name__
            raise DataError(f"{given} given as data, expected an array (N, *data_shape) or batches of them")
        yield from data
        return
    for shard in [rows] if isinstance(rows, Tensor) else rows:
        # A single number cannot be split; its own check says so.
        yield from shard.split(batch_size or _rows_per_batch(shard.shape[1:])) if shard.ndim else [shard]


def _check_options(batch_size: int | None, mode: str, missing: str) -> None:
    if batch_size is not None:
        require_count("batch_size", batch_size)
    if mode not in ("eval", "train"):
        raise UsageError(f"mode={shown(mode)} given, expected 'eval' or 'train'")
    if missing not in get_args(Missing):
        raise UsageError(f"missing={shown(missing)} given, expected 'error' or 'ignore'")


def _check_weights(sample_weight: Tensor | np.ndarray | Sequence[float] | None) -> Tensor | None:
    if sample_weight is None:
        return None
    try:
        weights = torch.as_tensor(sample_weight, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        given = type(sample_weight).__name__
        raise UsageError(f"sample_weight of type {given} given, expected one number per data point (N,)") from None
    if weights.ndim != 1:
        raise UsageError(
            f"sample_weight of shape {tuple(weights.shape)} given, expected one number per data point (N,)"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise UsageError(
            "sample_weight holds a negative or non-finite number, or only zeros; expected weights of at least 0"
        )
    return weights


def check_log_jacobian(log_jacobian: Tensor | np.ndarray | float, data_shape: tuple[int, ...] | None = None) -> Tensor:
    """log |dy/dx| as a finite tensor; of a shape that fits, where `data_shape` is known.

    Raises:
        UsageError: it is something else.
    """
    try:
        checked = torch.as_tensor(log_jacobian, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        given = type(log_jacobian).__name__
        raise UsageError(f"log_jacobian of type {given} given, expected a number, or a Tensor of data_shape") from None
    if not bool(torch.isfinite(checked).all()):
        raise UsageError("log_jacobian holds a non-finite number, expected log |dy/dx|, finite; was a scale 0?")
    if data_shape is not None and checked.ndim and tuple(checked.shape) != data_shape:
        given = f"log_jacobian of shape {tuple(checked.shape)} given"
        raise UsageError(f"{given}, expected one number, or one per feature {data_shape}")
    return checked


def _log_jacobian_term(log_jacobian: Tensor, shape: torch.Size, observed: Tensor | None) -> Tensor:
    """Σ over the (observed) features of log |dy/dx|, (B,)."""
    check_log_jacobian(log_jacobian, tuple(shape[1:]))
    per_feature = log_jacobian.expand(shape[1:])
    if observed is None or not bool(per_feature.any()):
        return per_feature.sum().expand(shape[0])
    return torch.where(observed.cpu(), per_feature, 0.0).reshape(shape[0], -1).sum(1)


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


def _moments(
    terms: Mapping[str, PointTerm], scaled: Mapping[str, ScaledTerm], weights: Tensor | None
) -> dict[str, Moment]:
    """Sums of one batch; `weights` (B,) of its data points."""

    def of_entries(weight: Tensor | None) -> Tensor | None:
        if weight is None or weights is None:
            return weights if weight is None else weight
        return weights.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1)) * weight

    moments = {name: Moment.of(term.value, of_entries(term.weight), term.noise) for name, term in terms.items()}
    return moments | {name: moments[term.of].affine(term.factor.cpu(), 0.0) for name, term in scaled.items()}


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
        condition: (B, k) that the model is given; None without one.
    """

    model: LatentVariableModel
    x: Tensor
    observed: Tensor | None
    log_jacobian: Tensor
    weights: Tensor | None
    generator: torch.Generator
    condition: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """x, NaN where a value is missing, with its condition if there is one: what the batch was made of."""
        x = self.x if self.observed is None else self.x.masked_fill(~self.observed, math.nan)
        return x if self.condition is None else side_by_side(x, self.condition)


def _with_latents(
    before: DataMoments | None, terms: Mapping[str, PointTerm], weights: Tensor | None
) -> DataMoments | None:
    """Mean and covariance of the posterior means so far, with those of a further batch."""
    if "latent_mean" not in terms or (weights is not None and not bool(weights.any())):
        return before
    mean = terms["latent_mean"].value
    mean = mean.reshape(len(mean), -1)
    if not 0 < mean.shape[1] <= LATENTS_WITH_COVARIANCE:
        return None
    of_batch = DataMoments.of(mean.cpu(), weights)
    return of_batch if before is None else before.merge(of_batch)


class Sums:
    """Moments of named terms over the batches so far, and the covariance of the latents.

    Args:
        pointwise: also keep the values per data point, but for terms with one entry per feature.
    """

    def __init__(self, *, pointwise: bool = False):
        self._parts: list[dict[str, Moment]] = []
        self.latent_moments: DataMoments | None = None
        self._kept: list[dict[str, Tensor]] | None = [] if pointwise else None

    def add(
        self, terms: Mapping[str, PointTerm], batch: Batch, scaled: Mapping[str, ScaledTerm] = MappingProxyType({})
    ) -> None:
        """Count the terms of a batch, its log-Jacobian among them, and those that are another times a number."""
        exact = None if terms["elbo"].noise is None else torch.zeros_like(batch.log_jacobian)
        named = {**terms, "log_jacobian": PointTerm(batch.log_jacobian, exact)}
        self._parts.append(_moments(named, scaled, batch.weights))
        if len(self._parts) == MERGED_AT_ONCE:
            self._parts = [merge(self._parts)]
        self.latent_moments = _with_latents(self.latent_moments, terms, batch.weights)
        if self._kept is not None:
            self._kept.append({name: t.value.cpu() for name, t in named.items() if name not in FEATURE_TERMS})

    @property
    def moments(self) -> dict[str, Moment]:
        """The sums over all batches so far; there has to be one."""
        return merge(self._parts)

    @property
    def pointwise(self) -> dict[str, Tensor] | None:
        """Values per data point, (N, *shape) each; None if they were not asked for."""
        return None if self._kept is None else concatenate(self._kept)


def each_batch(
    model: LatentVariableModel,
    data: Data,
    measure: Callable[[Batch], None],
    *,
    seed: int,
    batch_size: int | None,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None,
    missing: Missing,
    log_jacobian: Tensor | np.ndarray | float,
    mode: Mode,
    on_batch: Callable[[int], None] | None,
) -> tuple[int, tuple[int, ...]]:
    """Call `measure` for one batch of the data after the other, without gradients, in `mode`, generators seeded.

    Afterwards the model's mode, BatchNorm statistics and the global generators are as before. Arguments are those of
    `evaluate`.

    Args:
        seed: of `Batch.generator` and of the global generators.

    Returns:
        Number of data points, and data_shape.

    Raises:
        DataError: no data, or data that are not finite numbers, or none of whose values is observed.
        UsageError: an argument has a wrong value.
    """
    _check_options(batch_size, mode, missing)
    if not all(callable(getattr(model, name, None)) for name in ("posterior", "prior", "likelihood")) and not bind:
        expected = "one with posterior, prior and likelihood; make it by from_functions"
        raise UsageError(f"a model of type {type(model).__name__} given, expected {expected}")
    require_function("bind", bind)
    if not bind:
        require_conditions(model, data, "data")
    require_function("on_batch", on_batch)
    log_jacobian = check_log_jacobian(log_jacobian)
    weights = _check_weights(sample_weight)
    device, dtype = placement(model)
    torch.empty(KEPT_BYTES, dtype=torch.uint8, device="cpu")
    seen, data_shape, any_observed, generators = 0, (), False, {}
    with torch.no_grad(), in_mode(model, mode), seeded(seed, device or torch.device("cpu")):
        for given in _batches(data, batch_size):
            bound, x = bind(given) if bind else (model, packed(model, given))
            if x.ndim == 0:
                raise DataError("a single number given as data, expected an array (N, *data_shape)")
            if len(x) == 0:
                continue
            bound, x, condition = (bound, x, None) if bind else bound_to(bound, x)
            _require_shape(bound, x)
            x = x.detach().to(device=device, dtype=dtype if x.is_floating_point() else None)
            x, observed = _without_missing(x, missing, seen)
            jacobian = _log_jacobian_term(log_jacobian, x.shape, observed)
            if weights is not None and len(weights) < seen + len(x):
                raise UsageError(f"sample_weight holds {len(weights)} numbers for more data points; give one for each")
            batch_weights = None if weights is None else weights[seen : seen + len(x)]
            any_observed = any_observed or _any_observed(observed, batch_weights)
            if x.device not in generators:
                generators[x.device] = torch.Generator(x.device).manual_seed(seed)
            with in_mode(bound, mode) if bind else nullcontext():
                measure(Batch(bound, x, observed, jacobian, batch_weights, generators[x.device], condition))
            data_shape, seen = tuple(x.shape[1:]), seen + len(x)
            if on_batch:
                on_batch(len(x))
    if not seen:
        raise DataError("no data points given, expected at least one")
    if weights is not None and len(weights) != seen:
        raise UsageError(f"sample_weight holds {len(weights)} numbers for {seen} data points; give one for each")
    if not any_observed:
        raise DataError("every value is missing (NaN), expected at least one that is observed")
    return seen, data_shape


def _any_observed(observed: Tensor | None, weights: Tensor | None) -> bool:
    """Whether a point that counts has a value."""
    if observed is None:
        return weights is None or bool((weights > 0).any())
    return bool((observed if weights is None else observed[weights.to(observed.device) > 0]).any())
