"""Rows written piece by piece: to a .npy, .csv or .parquet file, to a folder of Parquet files, or as CSV to stdout."""

import csv
import errno
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_path
from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.files import ASIDE, flush_to_disk, named, require_file_or_nothing

__all__ = ["Output", "Parts", "is_folder"]

ENDINGS = (".npy", ".csv", ".parquet")
Write = Callable[[Tensor], None]
# Of a row group: long enough for fast reading, little beside what else is in memory.
GROUP_VALUES = 2**20
PART = "part-{:05d}.parquet"
# And not those that others call so, such as part-00000-….snappy.parquet.
PART_NAME = re.compile(r"part-\d{5,}\.parquet")
# Of a folder that another one takes the place of, until it is deleted.
REPLACED = ".replaced"


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
        self.columns = _columns(shape, columns)
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
            if sys.stdout is None:  # closed
                raise UsageError("no file given to write to, and stdout is closed; name a file with --out")
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
        with parquet_file(path, self.columns) as write:
            yield write


def _columns(shape: tuple[int, ...], columns: Sequence[str] | None) -> list[str]:
    return list(columns or (f"x_{number}" for number in range(math.prod(shape))))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    return pyarrow, parquet


@contextmanager
def parquet_file(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """A function that takes rows (n, *shape), which become row groups of some length."""
    pa, parquet = _pyarrow()
    writers: list[Any] = []
    kept: list[Tensor] = []

    def flush() -> None:
        if not kept:
            return
        array = torch.cat(kept).numpy().T
        kept.clear()
        table = pa.table([pa.array(np.ascontiguousarray(column)) for column in array], names=list(columns))
        if not writers:
            writers.append(parquet.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    def write(rows: Tensor) -> None:
        kept.append(rows.detach().flatten(1).cpu())
        if sum(each.numel() for each in kept) >= GROUP_VALUES:
            flush()

    try:
        yield write
        flush()
    except BaseException:
        for writer in writers:
            with suppress(OSError):  # of a disk that is full; the first error says so
                writer.close()
        raise
    for writer in writers:
        writer.close()


def is_folder(out: Any) -> bool:
    """Whether what is given to write to means a folder: it ends with "/", or is one."""
    return isinstance(out, str | os.PathLike) and (str(out).endswith(("/", os.sep)) or os.path.isdir(out))


class Parts:
    """A folder of Parquet files, in order by their names; it appears under its name when the last one is written.

    Args:
        out: path.
        shape: of one row, flattened in tables.
        columns: their names; None makes x_0, x_1, …
        overwrite: replace a folder of such files.

    Raises:
        UsageError: a file or folder that exists, or a folder to put it in that does not.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(
        self, out: str | Path, shape: tuple[int, ...], columns: Sequence[str] | None, *, overwrite: bool = False
    ):
        _pyarrow()
        self.path, self.columns = require_path("out", out), _columns(shape, columns)
        if self.path.is_symlink():  # the folder is replaced, not the link
            self.path = self.path.resolve()
        self._overwrite = overwrite
        self.aside, self._old = (self.path.with_name(self.path.name + ending) for ending in (ASIDE, REPLACED))
        if not self.path.name:
            raise UsageError(f"{out} given to write to, expected a folder that can be made; name another one")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{out} given to write a folder to, but there is a file of that name; name another one")
        there = sorted(each.name for each in self.path.iterdir()) if self.path.exists() else []
        if there and not overwrite:
            raise UsageError(f"{out} holds {there[0]}; name another folder with --out, or replace it with --overwrite")
        if other := self._no_part():
            raise UsageError(f"{out} holds {other}, expected {PART.format(0)} and its like alone to overwrite")
        if self._old.is_symlink() or self._old.exists():
            left = f"{self._old} exists, which an interrupted command may have left"
            if self.path.exists():
                raise UsageError(f"{left}; remove it")
            new = f", or {self.aside}, which is whole," if self.aside.exists() else ""
            raise UsageError(f"{left} in place of {self.path}; rename it{new} to that")
        if self.aside.is_symlink() or self.aside.exists():
            raise UsageError(f"{self.aside} exists, which an interrupted command may have left; remove it")
        if not self.path.parent.is_dir():
            raise UsageError(f"{out} given to write to, but there is no folder {self.path.parent}; make it first")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, parts are written, by whichever process."""
        try:
            self.aside.mkdir()
        except OSError as error:
            raise named(error, self.path) from error
        try:
            yield
        except BaseException as error:
            shutil.rmtree(self.aside, ignore_errors=True)
            if isinstance(error, OSError):
                raise named(error, self.path) from error
            raise
        self._put_in_place()

    def _no_part(self) -> str | None:
        """What the folder holds that is none of its parts."""
        there = sorted(each.name for each in self.path.iterdir()) if self.path.exists() else []
        return next((name for name in there if not PART_NAME.fullmatch(name)), None)

    def _put_in_place(self) -> None:
        # All parts are there: whatever fails from here on, they stay.
        for left in self.aside.glob(".*"):  # by workers that were lost
            with suppress(OSError):
                left.unlink()
        replaced = False
        try:
            if other := self._no_part():
                raise FileExistsError(errno.EEXIST, f"holds {other} meanwhile")
            if self._overwrite and self.path.exists():
                self.path.replace(self._old)
                replaced = True
            self.aside.replace(self.path)
        except OSError as error:
            if replaced:
                with suppress(OSError):
                    self._old.replace(self.path)
            reason = f"{error.strerror or error}; all rows are in {self.aside}, rename it"
            raise type(error)(error.errno, reason, str(self.path)) from error
        flush_to_disk(self.path.parent)
        if replaced:
            self._delete_old()

    def _delete_old(self) -> None:
        # Of its parts alone: what else has come there stays.
        for part in self._old.iterdir():
            if PART_NAME.fullmatch(part.name):
                with suppress(OSError):
                    part.unlink()
        with suppress(OSError):
            self._old.rmdir()

    @contextmanager
    def part(self, number: int) -> Iterator[Write]:
        """A function that takes the rows of one part, which appears whole or not at all, however often it is tried."""
        path = self.aside / PART.format(number)
        attempt = self.aside / f".{path.name}.{uuid.uuid4().hex}"
        try:
            with parquet_file(attempt, self.columns) as write:
                yield write
            flush_to_disk(attempt)
            attempt.replace(path)
        except BaseException as error:
            with suppress(OSError):
                attempt.unlink()
            if isinstance(error, OSError):
                raise named(error, path) from error
            raise
