"""Data as a tensor of finite numbers: one row per data point."""

from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.errors import DataError

__all__ = ["as_tensor", "fill_missing", "require_finite"]

REMEDY = "drop or impute it"


def as_tensor(data: Any) -> Tensor:
    """Data as a tensor, detached, of their own dtype; arrays of any memory layout and byte order are taken.

    Raises:
        DataError: not an array of numbers.
    """
    if isinstance(data, Tensor):
        return data.detach()
    try:
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"dtype {array.dtype}")
        # In native byte order and writable, which torch asks for.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True))
    except (TypeError, ValueError) as error:
        raise DataError(f"{type(data).__name__} given as data ({error}), expected an array of numbers") from error


def fill_missing(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`x` with 0 in the place of NaN, and which entries are observed, bool of the shape of `x`; None where all are."""
    missing = x.isnan() if x.is_floating_point() else None
    if missing is None or not bool(missing.any()):
        return x, None
    return x.masked_fill(missing, 0.0), ~missing


def require_finite(x: Tensor, what: str, *, first_row: int = 0, remedy: str = REMEDY) -> None:
    """Refuse NaN and infinite numbers.

    Args:
        x: (N, ...).
        what: names the data in the message.
        first_row: number of the first row of `x` in all of the data.
        remedy: what the message tells to do.

    Raises:
        DataError: naming row and column of the first offender.
    """
    if not x.is_floating_point() or bool(torch.isfinite(x).all()):
        return
    row, *column = (~torch.isfinite(x)).nonzero()[0].tolist()
    value = float(x[(row, *column)])
    place = f"row {first_row + row}, column {column[0] if len(column) == 1 else tuple(column)} (counted from 0)"
    dtype = str(x.dtype).removeprefix("torch.")
    raise DataError(f"{what}: {place} is {value} in {dtype}, expected a finite value; {remedy}")
