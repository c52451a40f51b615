"""Data as a tensor of finite numbers: one row per data point."""

import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.errors import DataError

__all__ = ["affordable", "as_tensor", "fill_missing", "frame_columns", "require_finite", "rows_of", "stack_columns"]

REMEDY = "drop or impute it"
# Numbers in a batch of large data points: a network holds some ten times as many of them at a time.
BATCH_VALUES = 2**21


def affordable(num_rows: int, data_shape: Sequence[int], num_values: int = BATCH_VALUES, *, fewest: int = 1) -> int:
    """So many rows, or of large data points as many as hold so many numbers, but no fewer than the fewest."""
    return min(num_rows, max(fewest, num_values // max(1, math.prod(data_shape))))


def as_tensor(data: Any) -> Tensor:
    """Data as a tensor, detached, of their own dtype; arrays of any memory layout and byte order are taken.

    Of a data frame of pandas or polars each column is a feature; missing values are NaN.

    Raises:
        DataError: not an array of numbers; the first column of a data frame that holds none is named.
    """
    if isinstance(data, Tensor):
        if data.is_complex() or data.layout != torch.strided or data.is_meta:
            kind = "meta tensor" if data.is_meta else f"tensor of {data.dtype}, {data.layout}"
            raise DataError(f"{kind} given as data, expected a dense tensor of real numbers")
        return data.detach()
    if (columns := frame_columns(data)) is not None:
        return stack_columns(columns, type(data).__name__)
    try:
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"dtype {array.dtype}")
        # In native byte order and writable, which torch asks for.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{type(data).__name__} given as data ({reason}), expected an array of numbers") from error


def rows_of(batch: Any) -> Tensor:
    """The data of a batch: itself, or the first entry of a list whose others are labels, one number per row.

    Raises:
        DataError: which entry is the data cannot be told.
    """
    if isinstance(batch, list | tuple) and batch:
        first, *others = batch
        if all(isinstance(other, Tensor) and other.ndim <= 1 for other in others):
            batch = first
    if not isinstance(batch, Tensor):
        raise DataError(
            f"a batch of type {type(batch).__name__} given, expected a Tensor (B, *data_shape), alone or with labels; "
            "to evaluate, pass bind=lambda batch: (model, x) to say which part of it is the data"
        )
    return batch


def frame_columns(data: Any) -> list[tuple[str, Any]] | None:
    """Names and columns of a data frame of pandas or polars, neither of which is imported; None for anything else."""
    if hasattr(data, "iter_columns"):  # polars
        return [(column.name, column) for column in data.iter_columns()]
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas
        return [(str(name), column) for name, column in data.items()]
    return None


def stack_columns(columns: Sequence[tuple[str, Any]], what: str) -> Tensor:
    """Columns of a data frame as a tensor (N, columns) of their common dtype; missing values are NaN.

    Args:
        columns: names and columns.
        what: names the data in errors.

    Raises:
        DataError: there are no columns, or one holds no numbers.
    """
    if not columns:
        raise DataError(f"{what} without columns given as data, expected at least one")
    return torch.from_numpy(np.stack([_numbers(column, name, what) for name, column in columns], axis=1))


def _numbers(column: Any, name: str, what: str) -> np.ndarray:
    array = column.to_numpy()
    if array.dtype.kind == "O":  # as None among numbers makes it
        missing = column.isna() if hasattr(column, "isna") else column.is_null()
        values = [np.nan if gone else value for value, gone in zip(array, missing, strict=True)]
        if all(isinstance(value, Real | Decimal) for value in values):
            array = np.array(values, dtype=np.float64)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} given as data: column {name!r} is {column.dtype}, expected numbers; leave it out")
    return array


def fill_missing(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`x` with 0 in the place of NaN, and which entries are observed, bool of the shape of `x`; None where all are."""
    missing = x.isnan() if x.is_floating_point() else None
    if missing is None or not bool(missing.any()):
        return x, None
    return x.masked_fill(missing, 0.0), ~missing


def require_finite(x: Tensor, what: str, *, first_row: int = 0, missing: bool = False, remedy: str = REMEDY) -> None:
    """Refuse NaN and infinite numbers.

    Args:
        x: (N, ...).
        what: names the data in the message.
        first_row: number of the first row of `x` in all of the data.
        missing: allow NaN, as the mark of a missing value.
        remedy: what the message tells to do.

    Raises:
        DataError: naming row and column of the first offender.
    """
    # A sum with NaN or infinity in it is not finite: one number tells of all, without a copy of large data. The sum of
    # large numbers may overflow; they are looked at one by one.
    if not x.is_floating_point() or bool((x.nansum() if missing else x.sum()).isfinite()):
        return
    wrong = x.isinf() if missing else ~x.isfinite()
    if not bool(wrong.any()):
        return
    row, *column = wrong.nonzero()[0].tolist()
    value = float(x[(row, *column)])
    place = f"row {first_row + row}, column {column[0] if len(column) == 1 else tuple(column)} (counted from 0)"
    dtype = str(x.dtype).removeprefix("torch.")
    raise DataError(f"{what}: {place} is {value} in {dtype}, expected a finite value; {remedy}")
