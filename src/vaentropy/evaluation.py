"""`evaluate`: one pass over data, one set of mergeable sums, every read-out from them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_function, require_instance
from vaentropy.data.given import Data, as_rows
from vaentropy.decomposition import FEATURE_TERMS, Decomposition, PointTerm, decompose
from vaentropy.errors import DataError, UsageError, shown
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.model import LatentVariableModel, placement
from vaentropy.modes import Mode, in_mode
from vaentropy.moments import DataMoments, Moment, merge
from vaentropy.results import Evaluation, concatenate, read_out
from vaentropy.rows import REMEDY, fill_missing, require_finite, rows_of
from vaentropy.seeding import seeded
from vaentropy.variances import observed_fraction

__all__ = ["check_log_jacobian", "evaluate"]

Missing = Literal["error", "ignore"]

VALUES_PER_BATCH = 2**18
FEWEST_ROWS, MOST_ROWS = 64, 16_384
LATENTS_WITH_COVARIANCE = 256


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


def _require_model(model: object, bind: object) -> None:
    if not all(callable(getattr(model, name, None)) for name in ("posterior", "prior", "likelihood")) and not bind:
        expected = "one with posterior, prior and likelihood; make it by from_functions"
        raise UsageError(f"a model of type {type(model).__name__} given, expected {expected}")


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


def _moments(terms: Mapping[str, PointTerm], weights: Tensor | None) -> dict[str, Moment]:
    """Sums of one batch; `weights` (B,) of its data points."""

    def of_entries(weight: Tensor | None) -> Tensor | None:
        if weight is None or weights is None:
            return weights if weight is None else weight
        return weights.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1)) * weight

    return {name: Moment.of(term.value, of_entries(term.weight), term.noise) for name, term in terms.items()}


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


def evaluate(
    model: LatentVariableModel,
    data: Data,
    *,
    expectation: Expectation = MonteCarlo(16),
    batch_size: int | None = None,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
    missing: Missing = "error",
    log_jacobian: Tensor | np.ndarray | float = 0.0,
    pointwise: bool = False,
    mode: Mode = "eval",
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """ELBO, the three entropies, the gap between them term by term, and what optimal variances would bring.

    One pass without gradients. The model is left as it was: mode, BatchNorm statistics and the global random number
    generators are restored. Data go to the device and floating dtype of the model's parameters.

    Args:
        model: anything with `posterior(x)`, `prior()` and `likelihood(z)`.
        data: (N, *data_shape), a tensor, array or data frame; a `Source` or map-style torch Dataset, read shard by
            shard; or an iterable of batches (a DataLoader), each the data or [data, labels].
        expectation: how to average over the posterior.
        batch_size: rows per forward pass; None takes more of small ones. An iterable brings its own.
        sample_weight: (N,), at least 0, in the order of the data; None means 1.
        bind: turns a batch into (model for this batch, x), where the model needs more than x (labels, batch effects).
        missing: "error" refuses NaN; "ignore" takes NaN for a missing value, whose terms count for nothing: the ELBO is
            that of log p(x_observed). Encoder and likelihood see 0 in its place, so standardise the data; the
            likelihood has to factorise over the features. Infinite values are errors in any case.
        log_jacobian: log |dy/dx| per feature, (), once for each feature, or data_shape, of the map from data x as
            stored to data y as the model sees them (`Scaling.log_jacobian`). The ELBO stays that of y; `data_elbo` and
            `bits_per_dim` of the result are those of x.
        pointwise: also keep the values per data point.
        mode: run the networks in "eval" or "train" mode. With BatchNorm or dropout these are two objectives, and the
            theorem holds in the one that was trained.
        on_batch: called with the number of rows after each batch.

    Returns:
        Evaluation, nats per data point.

    Raises:
        DataError: no data, or data that are not finite numbers, or none of whose values is observed.
        ModelError: the model returned something else than the interface asks for.
        UnsupportedError: values are missing and the likelihood does not factorise over the features.
        UsageError: an argument has a wrong value, or the expectation does not fit the posterior.
    """
    _check_options(batch_size, mode, missing)
    _require_model(model, bind)
    require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    require_function("bind", bind)
    require_function("on_batch", on_batch)
    log_jacobian = check_log_jacobian(log_jacobian)
    weights = _check_weights(sample_weight)
    device, dtype = placement(model)
    parts: list[dict[str, Moment]] = []
    kept: list[dict[str, Tensor]] = []
    seen, data_shape, generators = 0, (), {}
    decomposition: Decomposition | None = None
    latent_moments: DataMoments | None = None
    sampled: set[str] = set()
    with torch.no_grad(), in_mode(model, mode), seeded(expectation.seed, device or torch.device("cpu")):
        for batch in _batches(data, batch_size):
            bound, x = bind(batch) if bind else (model, rows_of(batch))
            if x.ndim == 0:
                raise DataError("a single number given as data, expected an array (N, *data_shape)")
            if len(x) == 0:
                continue
            _require_shape(bound, x)
            x = x.detach().to(device=device, dtype=dtype if x.is_floating_point() else None)
            x, observed = _without_missing(x, missing, seen)
            jacobian = _log_jacobian_term(log_jacobian, x.shape, observed)
            if weights is not None and len(weights) < seen + len(x):
                raise UsageError(f"sample_weight holds {len(weights)} numbers for more data points; give one for each")
            batch_weights = None if weights is None else weights[seen : seen + len(x)]
            if x.device not in generators:
                # One stream of noise, so that a batch continues where the one before ended.
                generators[x.device] = expectation.generator(x.device)
            with in_mode(bound, mode) if bind else nullcontext():
                decomposition = decompose(bound, x, expectation, generators[x.device], observed)
            exact = None if decomposition.terms["elbo"].noise is None else torch.zeros_like(jacobian)
            named = {**decomposition.terms, "log_jacobian": PointTerm(jacobian, exact)}
            parts = [merge([*parts, _moments(named, batch_weights)])]
            latent_moments = _with_latents(latent_moments, named, batch_weights)
            if pointwise:
                kept.append({name: t.value.cpu() for name, t in named.items() if name not in FEATURE_TERMS})
            sampled |= decomposition.sampled
            data_shape, seen = tuple(x.shape[1:]), seen + len(x)
            if on_batch:
                on_batch(len(x))
    if decomposition is None:
        raise DataError("no data points given, expected at least one")
    if weights is not None and len(weights) != seen:
        raise UsageError(f"sample_weight holds {len(weights)} numbers for {seen} data points; give one for each")
    fraction = observed_fraction(parts[0])
    if fraction is not None and not bool(fraction.any()):
        raise DataError("every value is missing (NaN), expected at least one that is observed")
    return read_out(
        parts[0],
        num_points=seen,
        data_shape=data_shape,
        latent_shape=decomposition.latent_shape,
        latent_moments=latent_moments,
        expectation=expectation,
        mode=mode,
        sampled=tuple(sorted(sampled)),
        pointwise=concatenate(kept) if pointwise else None,
    )
