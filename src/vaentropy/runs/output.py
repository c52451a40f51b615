"""Rows written to a .npy, .csv or .parquet file, or as CSV to stdout, piece by piece."""

import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from vaentropy._typing import Tensor
from vaentropy.checks import require_path
from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.files import ASIDE, named, require_file_or_nothing

__all__ = ["Output"]

ENDINGS = (".npy", ".csv", ".parquet")
Write = Callable[[Tensor], None]


class Output:
    """A file for rows; it appears under its name when the last row is written, whole or not at all.

    Args:
        out: path; its ending says the format. None writes CSV to stdout.
        shape: of one row; tables hold it flattened.
        columns: names for tables; None makes x_0, x_1, …
        overwrite: replace a file that exists.

    Raises:
        UsageError: another ending, a file that exists, or a folder that does not.
    """

    def __init__(
        self, out: str | Path | None, shape: tuple[int, ...], columns: Sequence[str] | None, *, overwrite: bool = False
    ):
        self.path, self.shape = None if out is None else require_path("out", out), shape
        self.columns = list(columns or (f"x_{number}" for number in range(math.prod(shape))))
        if self.path is None:
            return
        if self.path.suffix not in ENDINGS:
            raise UsageError(f"{out} given to write to, expected a path ending in {', '.join(ENDINGS)}")
        require_file_or_nothing(self.path)
        if self.path.exists() and not overwrite:
            raise UsageError(f"{out} exists; name another file with --out, or replace it with --overwrite")
        if self._aside.is_symlink() or self._aside.exists():
            raise UsageError(f"{self._aside} exists, which an interrupted command may have left; remove it")
        if not self.path.parent.is_dir():
            raise UsageError(f"{out} given to write to, but there is no folder {self.path.parent}; make it first")

    @property
    def _aside(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ASIDE)

    @contextmanager
    def opened(self, num_rows: int) -> Iterator[Write]:
        """A function that takes rows (n, *shape), `num_rows` of them in all."""
        if self.path is None:
            yield self._to_csv(sys.stdout)
            return
        kind = {".npy": self._npy, ".csv": self._csv, ".parquet": self._parquet}[self.path.suffix]
        try:
            # Made here: where another file has come to lie since, this fails.
            self._aside.open("xb").close()
        except OSError as error:
            raise named(error, self.path) from error
        try:
            with kind(self._aside, num_rows) as write:
                yield write
            self._aside.replace(self.path)
        except BaseException as error:
            with suppress(OSError):
                self._aside.unlink()
            if isinstance(error, OSError):
                raise named(error, self.path) from error
            raise

    @contextmanager
    def _npy(self, path: Path, num_rows: int) -> Iterator[Write]:
        def write(rows: Tensor) -> None:
            array = rows.detach().cpu().numpy()
            if not written:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (num_rows, *self.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            written.append(len(array))
            file.write(np.ascontiguousarray(array).data)

        written: list[int] = []
        with path.open("wb") as file:
            yield write

    @contextmanager
    def _csv(self, path: Path, num_rows: int) -> Iterator[Write]:
        with path.open("w", newline="", encoding="utf-8") as file:
            yield self._to_csv(file)

    def _to_csv(self, file: IO[str]) -> Write:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        return lambda rows: writer.writerows(rows.detach().flatten(1).cpu().tolist())

    @contextmanager
    def _parquet(self, path: Path, num_rows: int) -> Iterator[Write]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise MissingExtraError("pyarrow", "data") from None
        writers: list[Any] = []

        def write(rows: Tensor) -> None:
            columns = rows.detach().flatten(1).cpu().numpy().T
            table = pa.table([pa.array(np.ascontiguousarray(column)) for column in columns], names=self.columns)
            if not writers:
                writers.append(parquet.ParquetWriter(path, table.schema))
            writers[0].write_table(table)

        try:
            yield write
        except BaseException:
            for writer in writers:
                with suppress(OSError):  # of a disk that is full; the first error says so
                    writer.close()
            raise
        for writer in writers:
            writer.close()
