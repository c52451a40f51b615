"""What a pass over data is asked for, checked: its modes, weights of the data points, the units of the data."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.errors import DataError, UsageError, shown
from vaentropy.rows import as_tensor

__all__ = ["Missing", "check_log_jacobian", "check_options", "check_weights", "log_jacobian_term"]

Missing = Literal["error", "ignore"]


def check_options(mode: str, missing: str) -> None:
    """Refuse what is no choice.

    Raises:
        UsageError: it is none.
    """
    if mode not in ("eval", "train"):
        raise UsageError(f"mode={shown(mode)} given, expected 'eval' or 'train'")
    if missing not in get_args(Missing):
        raise UsageError(f"missing={shown(missing)} given, expected 'error' or 'ignore'")


def check_weights(sample_weight: Tensor | np.ndarray | Sequence[float] | None) -> Tensor | None:
    """Weights (N,), float64 on the CPU; None where all are 1.

    Raises:
        UsageError: they are no such numbers.
    """
    if sample_weight is None:
        return None
    try:
        weights = as_tensor(sample_weight).to("cpu", torch.float64)
    except (DataError, RuntimeError):
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
        checked = as_tensor(log_jacobian).to("cpu", torch.float64)
    except (DataError, RuntimeError):
        given = type(log_jacobian).__name__
        raise UsageError(f"log_jacobian of type {given} given, expected a number, or a Tensor of data_shape") from None
    if not bool(torch.isfinite(checked).all()):
        raise UsageError("log_jacobian holds a non-finite number, expected log |dy/dx|, finite; was a scale 0?")
    if data_shape is not None and checked.ndim and tuple(checked.shape) != data_shape:
        given = f"log_jacobian of shape {tuple(checked.shape)} given"
        raise UsageError(f"{given}, expected one number, or one per feature {data_shape}")
    return checked


def log_jacobian_term(log_jacobian: Tensor, shape: torch.Size, observed: Tensor | None) -> Tensor:
    """Σ over the (observed) features of log |dy/dx|, (B,)."""
    check_log_jacobian(log_jacobian, tuple(shape[1:]))
    per_feature = log_jacobian.expand(shape[1:])
    if observed is None or not bool(per_feature.any()):
        return per_feature.sum().expand(shape[0])
    return torch.where(observed.cpu(), per_feature, 0.0).reshape(shape[0], -1).sum(1)
