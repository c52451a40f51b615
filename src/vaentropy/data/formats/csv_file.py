"""CSV files: plain ones are streamed by an index of byte offsets, compressed ones are read into memory."""

import csv
import gzip
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaentropy.data.formats.reading import MAX_IN_MEMORY, one_line, reading, size_of
from vaentropy.data.formats.tables import Names, choose
from vaentropy.data.source import Source, copies, rows_per_shard
from vaentropy.errors import DataError, MissingExtraError

__all__ = ["MISSING", "CsvFile", "csv_columns", "csv_texts"]

CSV = "a CSV file in UTF-8, its fields divided by commas"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLOCK = 2**20  # bytes read at a time in search of line ends
MAX_LINE = 2**24  # bytes; a file without line ends must not fill memory
MAX_COLUMNS = 2**17
MAX_SLICE = 2**25  # bytes of text parsed at a time, where lines are so long that a shard would take more
LINE_ENDS = (ord("\n"), ord("\r"))  # so "\r\n" ends a line and then an empty one, and empty lines do not count
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None")


class _Slice(NamedTuple):
    """Whole lines of a file."""

    offset: int
    length: int
    rows: int
    first_row: int = 0  # of the file


class CsvFile(Source):
    """Columns of a .csv or .csv.gz file, (N, columns) in float64; empty fields, NA and nan are missing values (NaN).

    The first line is a header unless all of its fields are numbers; columns are then called by it, else "0", "1", …
    Lines end with \\n, \\r\\n or \\r, empty ones do not count. Values may be quoted, but hold no line ends.

    Args:
        path: the file.
        columns: to keep, in this order; None keeps all.
        exclude: columns to leave out.

    Raises:
        DataError: no such file, or no CSV file with rows; a compressed one is parsed at once.
        UsageError: there is no such column.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: Path, columns: Names | None = None, exclude: Names = ()):
        _pyarrow_csv()
        self.path, self.name, self.dtype = path, str(path), torch.float64
        self._compressed = _is_compressed(path)
        size_of(path, CSV)
        with reading(path, CSV), _open(path) as file:
            names, self._has_header, start = _first_line(file, path)
            self._kept, self._width = choose(names, columns, exclude, self.name), len(names)
            self.columns = [names[position] for position in self._kept]
            self.data_shape = (len(self._kept),)
            file.seek(start)
            self._slices: dict[int, _Slice] = {}
            self._parsed: dict[int, Tensor] = {}  # of a compressed file
            self._index(file, start)
        if not self._slices:
            raise DataError(f"{path}: got no rows of data, expected at least one; get a whole copy")
        self.shard_sizes = [piece.rows for piece in self._slices.values()]

    def read(self, shard: int) -> Tensor:
        """One shard, parsed."""
        if self._compressed:
            return self._parsed[shard]
        piece = self._slices[shard]
        with reading(self.path, CSV), self.path.open("rb") as file:
            file.seek(piece.offset)
            text = file.read(piece.length)
        return self._parse(text, piece)

    def only(self, shards: range) -> Source:
        """Of all places in the file, those of these shards; of a compressed one, these shards, parsed."""
        part = self._narrowed(shards)
        part._slices = {shard: self._slices[shard] for shard in shards}
        part._parsed = copies(self._parsed, shards) if self._compressed else {}
        return part

    def _index(self, file: BufferedIOBase, start: int) -> None:
        first_row, rows, row_bytes = 0, rows_per_shard((self._width,)), 8 * len(self._kept)
        room = MAX_IN_MEMORY // row_bytes
        for shard, (found, text) in enumerate(_slices(file, start, rows, self.path)):
            self._slices[shard] = piece = found._replace(first_row=first_row)
            first_row += piece.rows
            if self._compressed:
                room -= piece.rows
                if room < 0:
                    how = "unpack it: a plain .csv file is read in pieces"
                    raise DataError(f"{self.path}: holds more than {MAX_IN_MEMORY} bytes of values; {how}")
                self._parsed[shard] = self._parse(text, piece)

    def _parse(self, text: bytes, piece: _Slice) -> Tensor:
        pyarrow, pyarrow_csv = _pyarrow_csv()
        numbers = [str(position) for position in range(self._width)]
        kept = [numbers[position] for position in self._kept]
        try:
            table = pyarrow_csv.read_csv(
                pyarrow.BufferReader(text),
                # In one block, so that all fields of the slice meet in one array per column.
                pyarrow_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=numbers),
                None,
                pyarrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(kept, pyarrow.float64()), include_columns=kept, null_values=MISSING
                ),
            )
            if table.num_rows != piece.rows:
                raise ValueError(f"{table.num_rows} rows in {piece.rows} lines; no value may hold a line end")
        except Exception as error:
            raise self._diagnose(text, piece.first_row, error) from error
        x = np.empty((piece.rows, len(kept)))
        for position, column in enumerate(table.itercolumns()):
            x[:, position] = column.to_numpy(zero_copy_only=False)
        return torch.from_numpy(x)

    def _diagnose(self, text: bytes, first_row: int, error: Exception) -> DataError:
        """Find the first line that is wrong: slow, and only for the message."""
        lines = text.decode("utf-8", errors="replace").replace("\r", "\n").split("\n")
        counted = "data rows are counted from 0" + (", after the header" if self._has_header else "")
        for row, line in enumerate((line for line in lines if line), first_row):
            try:
                fields = next(csv.reader([line]))
            except csv.Error as problem:
                return DataError(f"{self.path}: row {row} is not readable ({one_line(problem)}); correct it; {counted}")
            if len(fields) != self._width:
                given = f"{len(fields)} fields, expected {self._width} as in the first line"
                return DataError(f"{self.path}: row {row} has {given}; correct it; {counted}")
            for position, name in zip(self._kept, self.columns, strict=True):
                if not _is_number(fields[position]):
                    given = f"row {row}, column {name!r} is {fields[position][:40]!r}"
                    how = "correct it, or leave the column out with exclude"
                    return DataError(f"{self.path}: {given}, expected a number or nothing; {how}; {counted}")
        return DataError(f"{self.path}: from row {first_row} on: {one_line(error)}; correct it; {counted}")


def csv_columns(path: Path) -> list[str]:
    """Names of the columns of a .csv or .csv.gz file, from its first line alone.

    Raises:
        DataError: no such file, or no CSV file.
    """
    size_of(path, CSV)
    with reading(path, CSV), _open(path) as file:
        return _first_line(file, path)[0]


def csv_texts(path: Path, columns: Names) -> Any:
    """Some columns of a .csv or .csv.gz file as texts, a table of pyarrow, in memory.

    Raises:
        DataError: no such file, or no CSV file.
        UsageError: there is no such column.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, pyarrow_csv = _pyarrow_csv()
    size_of(path, CSV)
    with reading(path, CSV), _open(path) as file:
        names, _, start = _first_line(file, path)
        kept = [names[position] for position in choose(names, columns, (), str(path))]
        file.seek(start)
        return pyarrow_csv.read_csv(
            file,
            pyarrow_csv.ReadOptions(use_threads=False, column_names=names),
            None,
            pyarrow_csv.ConvertOptions(column_types=dict.fromkeys(kept, pyarrow.string()), include_columns=kept),
        )


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _is_compressed(path) else path.open("rb")  # type: ignore[return-value]


def _pyarrow_csv():
    try:
        import pyarrow
        import pyarrow.csv
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return pyarrow, pyarrow.csv


def _first_line(file: BufferedIOBase, path: Path) -> tuple[list[str], bool, int]:
    """Names of the columns by the first line that is not empty, whether that is a header, and where the data begin."""
    head = file.read(MAX_LINE)
    start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    while head[start : start + 1] in (b"\n", b"\r"):
        start += 1
    ends = [end for end in (head.find(bytes([byte]), start) for byte in LINE_ENDS) if end >= 0]
    if not ends and len(head) == MAX_LINE:
        raise _too_long(path, start)
    end = min(ends, default=len(head))
    if start == end:
        raise DataError(f"{path}: is empty, expected rows of numbers; get a whole copy")
    if (columns := head.count(b",", start, end) + 1) > MAX_COLUMNS:
        raise DataError(f"{path}: has {columns} columns, expected at most {MAX_COLUMNS}; save it as .npy")
    fields = [field.strip() for field in next(csv.reader([head[start:end].decode("utf-8")]))]
    if len(fields) == 1 and any(mark in fields[0] for mark in ";\t"):
        raise DataError(f"{path}: first line is {fields[0][:40]!r}, expected fields divided by commas; convert it")
    if all(map(_is_number, fields)):
        return [str(number) for number in range(len(fields))], False, start
    return [name or str(number) for number, name in enumerate(fields)], True, end


def _slices(file: BufferedIOBase, offset: int, rows: int, path: Path) -> Iterator[tuple[_Slice, bytes]]:
    """Cut what follows into slices of `rows` lines, the last one shorter; empty lines do not count."""
    text, counted, last_end = bytearray(), 0, -1  # of the slice so far; where its last line ended, relative to `offset`
    while block := file.read(BLOCK):
        array = np.frombuffer(block, np.uint8)
        ends = len(text) + np.flatnonzero((array == LINE_ENDS[0]) | (array == LINE_ENDS[1]))
        text += block
        full = np.diff(ends, prepend=last_end) > 1
        numbers = counted + np.cumsum(full)
        cut = 0
        while len(ends) and (found := np.searchsorted(numbers, rows)) < len(ends):
            end = int(ends[found]) + 1
            yield _Slice(offset + cut, end - cut, rows), bytes(text[cut:end])
            numbers -= rows
            cut = end
        if len(ends):
            counted, last_end = int(numbers[-1]), int(ends[-1])
            # Without rows so far, empty lines alone: they must not fill memory either.
            if cut == 0 and (not counted or len(text) > MAX_SLICE):
                cut = last_end + 1
                if counted:
                    yield _Slice(offset, cut, counted), bytes(text[:cut])
                counted = 0
        if cut:
            del text[:cut]
            offset, last_end = offset + cut, last_end - cut
        if len(text) - last_end > MAX_LINE:
            raise _too_long(path, offset + last_end + 1)
    counted += last_end + 1 < len(text)  # the last line may have no end
    if counted:
        yield _Slice(offset, len(text), counted), bytes(text)


def _too_long(path: Path, offset: int) -> DataError:
    return DataError(f"{path}: the line at byte {offset} is longer than {MAX_LINE} bytes, expected {CSV}; convert it")


def _is_number(field: str) -> bool:
    field = field.strip()
    if field in MISSING:
        return True
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
