"""Some columns of a table, numbers or texts, in memory: what a condition is made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaentropy.data.formats.csv_file import MISSING, csv_texts
from vaentropy.data.formats.parquet import parquet_table
from vaentropy.data.formats.tables import choose
from vaentropy.errors import DataError, MissingExtraError, UsageError
from vaentropy.rows import frame_columns

__all__ = ["plain_columns"]


def plain_columns(table: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns (N,) of a .csv, .csv.gz or .parquet file, a folder of Parquet files or a data frame.

    Args:
        table: a path, or the frame.
        names: of the columns.

    Returns:
        By name, float64, or texts where a value is no number.

    Raises:
        DataError: a value is missing.
        UsageError: there is no such column, or the data are no table.
    """
    if (framed := frame_columns(table)) is not None:
        kept = choose([name for name, _ in framed], names, (), type(table).__name__)
        columns = {framed[position][0]: _array(framed[position][1].to_numpy()) for position in kept}
        return {name: _checked(column, name, type(table).__name__) for name, column in columns.items()}
    if not isinstance(table, Path) or not (
        table.is_dir() or table.name.lower().endswith((".csv", ".csv.gz", ".parquet"))
    ):
        what = table if isinstance(table, Path) else type(table).__name__
        raise UsageError(f"{what}: a condition by names of columns given, which is for a table; pass ve.given(x, c)")
    parquet = table.is_dir() or table.name.lower().endswith(".parquet")
    read = parquet_table(table, names) if parquet else csv_texts(table, names)
    return {name: _checked(_of_arrow(read[name]), name, str(table)) for name in names}


def _of_arrow(column: Any) -> np.ndarray:
    try:
        import pyarrow
        from pyarrow import compute
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        trimmed = compute.utf8_trim_whitespace(column)  # type: ignore[attr-defined]
        try:
            return trimmed.cast(pyarrow.float64()).to_numpy()
        except pyarrow.ArrowInvalid:
            return _array(trimmed.to_numpy())
    try:
        return column.cast(pyarrow.float64(), safe=False).to_numpy()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        return np.empty(0, dtype=object)


def _array(values: np.ndarray) -> np.ndarray:
    """float64, or texts, whose missing values are ""."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    each = ["" if value is None or value != value else value for value in values.tolist()]
    if all(isinstance(value, str) for value in each):
        return np.array(each, dtype=str)
    return np.empty(0, dtype=object)


def _checked(column: np.ndarray, name: str, what: str) -> np.ndarray:
    if column.dtype.kind == "O":
        raise DataError(f"{what}: column {name!r} holds neither numbers nor texts, expected these for a condition")
    missing = np.isin(column, MISSING) if column.dtype.kind == "U" else ~np.isfinite(column)
    if missing.any():
        row = int(missing.argmax())
        how = "drop the row, or leave the column out of the condition"
        given = f"row {row} (counted from 0), column {name!r} is missing or not finite"
        raise DataError(f"{what}: {given}, expected a value for a condition; {how}")
    return column
