"""Parquet files and folders of them, read by row groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaentropy.data.formats.reading import reading, size_of
from vaentropy.data.formats.tables import Names, choose
from vaentropy.data.source import Source
from vaentropy.errors import DataError, MissingExtraError

__all__ = ["ParquetFiles", "parquet_table"]

PARQUET = "a Parquet file"
# Of a shard, in float64; longer row groups are cut. That which Arrow and pandas write unless told otherwise, 2^20 rows,
# is left whole up to 24 columns: to read a slice, all that is in front of it has to be read.
MAX_SHARD_BYTES = 192 * 2**20
BATCH_VALUES = 2**20  # decoded at a time, so that little is in memory beside the rows that are asked for
BUFFER_BYTES = 2**18  # of each column, in front of decoding; else whole row groups would be in memory
MAX_SHARDS = 10**6  # a damaged file may declare any number of rows


class _Piece(NamedTuple):
    """Rows of a row group."""

    path: Path
    group: int
    start: int
    rows: int
    first_row: int  # of the file


class ParquetFiles(Source):
    """Columns of a .parquet file, or of a folder's .parquet files in the order of their names, (N, columns).

    Nulls are missing values (NaN). Shards are row groups; very long ones are cut, at the price that reading a slice out
    of turn reads what is in front of it in its row group.

    Args:
        path: the file or folder; what begins with "." or "_" does not count.
        columns: to keep, in this order; None keeps all.
        exclude: columns to leave out.

    Raises:
        DataError: no such file, not a Parquet file, a column that holds no numbers, files with different columns.
        UsageError: there is no such column.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path, columns: Names | None = None, exclude: Names = ()):
        self.name = str(path)
        paths = _paths(path)
        self._pieces: dict[int, _Piece] = {}
        self._reader: _Reader | None = None
        kinds = [self._add(file, paths[0], columns, exclude) for file in paths]
        if not any(piece.rows for piece in self._pieces.values()):
            raise DataError(f"{path}: got no rows, expected at least one; get a whole copy")
        self.dtype = torch.float32 if all(kinds) else torch.float64
        self.data_shape = (len(self.columns),)
        self.shard_sizes = [piece.rows for piece in self._pieces.values()]

    def read(self, shard: int) -> Tensor:
        """One shard."""
        piece = self._pieces[shard]
        with reading(piece.path, PARQUET):
            reader, self._reader = self._reader, None  # not kept if it fails
            if reader is None or not reader.is_before(piece):
                reader = _Reader(piece, self.columns)
            x = torch.empty(piece.rows, *self.data_shape, dtype=self.dtype, device="cpu")
            reader.read(piece.rows, x.numpy())
            self._reader = reader if reader.rows_left else None
        return x

    def only(self, shards: range) -> Source:
        """Of all places in the files, those of these shards."""
        part = self._narrowed(shards)
        part._pieces = {shard: self._pieces[shard] for shard in shards}
        return part

    def __getstate__(self) -> dict[str, Any]:
        # An open file stays in its process.
        return {**self.__dict__, "_reader": None}

    def place(self, shard: int) -> tuple[str, int]:
        """The file and the number of the shard's first row there."""
        piece = self._pieces[shard]
        return str(piece.path), piece.first_row

    def _add(self, path: Path, first: Path, columns: Names | None, exclude: Names) -> bool:
        """Take in the row groups of a file; tells whether float32 holds its values."""
        pyarrow = _pyarrow()
        size_of(path, PARQUET)
        with reading(path, PARQUET), pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        if path == first:
            self._names = sorted(schema.names)
            self.columns = [schema.names[position] for position in choose(schema.names, columns, exclude, str(path))]
        elif differing := set(self._names) ^ set(schema.names):
            name = min(differing)
            where = "missing" if name in self._names else f"not in {first.name}"
            raise DataError(f"{path}: column {name!r} is {where}, expected the same columns in all files; mend it")
        types = [schema.field(name).type for name in self.columns]
        for name, kind in zip(self.columns, types, strict=True):
            if not _is_number(kind):
                raise DataError(f"{path}: column {name!r} holds {kind}, expected numbers; leave it out with exclude")
        first_row = 0
        for group, rows in enumerate(groups):
            self._cut(path, group, rows, first_row)
            first_row += rows
        return all(pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind) for kind in types)

    def _cut(self, path: Path, group: int, rows: int, first_row: int) -> None:
        step = max(1, MAX_SHARD_BYTES // (8 * len(self.columns)))
        if rows < 0 or len(self._pieces) + rows // step > MAX_SHARDS:
            raise DataError(f"{path}: declares {rows} rows in row group {group}, which cannot be; get a whole copy")
        num = max(1, -(-rows // step))
        ends = [rows * (number + 1) // num for number in range(num)]
        for start, end in zip([0, *ends], ends, strict=False):
            self._pieces[len(self._pieces)] = _Piece(path, group, start, end - start, first_row + start)


def _paths(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.glob("*.parquet") if file.name[0] not in "._")


def parquet_table(path: Path, columns: Names) -> Any:
    """Some columns of a .parquet file, or of a folder's, a table of pyarrow, in memory.

    Raises:
        DataError: no such file, or no Parquet file.
        UsageError: there is no such column.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, tables = _pyarrow(), []
    for each in _paths(path):
        size_of(each, PARQUET)
        with reading(each, PARQUET), pyarrow.parquet.ParquetFile(each) as file:
            names = file.schema_arrow.names
            kept = [names[position] for position in choose(names, columns, (), str(each))]
            tables.append(file.read(columns=kept, use_threads=False).select(kept))
    with reading(path, PARQUET):
        return pyarrow.concat_tables(tables, promote_options="permissive")


class _Reader:
    """Reads a row group forwards; slices in their order cost one pass."""

    def __init__(self, piece: _Piece, columns: Any):
        self._file = _pyarrow().parquet.ParquetFile(piece.path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        self._group = (piece.path, piece.group)
        self.rows_left = self._file.metadata.row_group(piece.group).num_rows
        self._position, self._rest = 0, None
        self._columns = list(columns)
        size = max(1, BATCH_VALUES // len(self._columns))
        self._batches: Iterator[Any] = self._file.iter_batches(
            size, row_groups=[piece.group], columns=self._columns, use_threads=False
        )
        self.read(piece.start, None)

    def is_before(self, piece: _Piece) -> bool:
        """Whether the next row is the first one of the piece."""
        return (piece.path, piece.group, piece.start) == (*self._group, self._position)

    def read(self, rows: int, into: np.ndarray | None) -> None:
        """Copy the next rows, or skip them."""
        done = 0
        while done < rows:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                raise ValueError(f"row group {self._group[1]} ends after {self._position + done} rows")
            taken = min(rows - done, batch.num_rows)
            if into is not None:
                self._copy(batch.slice(0, taken), into[done : done + taken])
            self._rest = batch.slice(taken) if taken < batch.num_rows else None
            done += taken
        self._position += rows
        self.rows_left -= rows

    def _copy(self, batch: Any, into: np.ndarray) -> None:
        arrow = _pyarrow()
        with np.errstate(over="ignore"):
            for position, name in enumerate(self._columns):
                column = batch.column(name)
                if not arrow.types.is_floating(column.type):
                    # Unsafe: integers beyond 2^53 are rounded. Of hundreds of columns a cast takes most of the time.
                    column = column.cast(arrow.float64(), safe=False)
                into[:, position] = column.to_numpy(zero_copy_only=False)


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return pyarrow


def _is_number(kind: Any) -> bool:
    types = _pyarrow().types
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in tests)
