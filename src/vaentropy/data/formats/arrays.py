"""Arrays: .npy files, read in shards through a memory map, and .npz files, read into memory."""

import io
import math
import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaentropy.data.formats.reading import MAX_EXPANSION, MAX_IN_MEMORY, reading, size_of
from vaentropy.data.formats.tables import listed
from vaentropy.data.source import Rows, Source, rows_per_shard
from vaentropy.errors import DataError, UsageError, shown

__all__ = ["NpyFile", "npz_source"]

NPY, NPZ = "a .npy file, as numpy.save writes it", "a .npz file, as numpy.savez writes it"
MAX_HEADER = 2**16  # bytes; numpy itself refuses headers that are not short
MAX_AXES = 32
KEPT = {np.dtype(kind) for kind in ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")}  # all else becomes float64


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    offset: int  # of the elements, in bytes

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpyFile(Source):
    """A .npy file of shape (N, *data_shape), or (N,) read as (N, 1); one shard of it is in memory at a time.

    Args:
        path: the file.

    Raises:
        DataError: no such file, not a .npy file, or an array that is no data.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        size = size_of(path, NPY)
        with reading(path, NPY), path.open("rb") as file:
            self._header = _read_header(file)
        _check(self._header, size - self._header.offset, self.name)
        shape = self._header.shape
        self.data_shape = shape[1:] or (1,)
        self.dtype = _as_tensor(np.empty((0, *shape[1:]), self._header.dtype)).dtype
        step = rows_per_shard(self.data_shape)
        self._starts = range(0, shape[0], step)
        self.shard_sizes = [min(step, shape[0] - start) for start in self._starts]

    def read(self, shard: int) -> Tensor:
        """A copy of one shard."""
        shape, fortran_order, dtype, offset = self._header
        start = self._starts[shard]
        # Reading a map of a file that has become shorter would end the process.
        _check(self._header, size_of(self.path, NPY) - offset, self.name)
        with reading(self.path, NPY):
            order = "F" if fortran_order else "C"
            # Opened anew for each shard, so that pages read before do not count as memory in use.
            mapped = np.memmap(self.path, dtype, "r", offset, shape, order)
            return _as_tensor(mapped[start : start + self.shard_sizes[shard]])

    def only(self, shards: range) -> Source:
        """The same file."""
        return self._narrowed(shards)


def npz_source(path: Path, key: str | None = None) -> Source:
    """The array of a .npz file.

    Args:
        path: the file.
        key: name of the array, needed where there are several.

    Raises:
        DataError: no such file, not a .npz file, or an array that is no data.
        UsageError: there is no such array, or there are several and none is named.
    """
    size = size_of(path, NPZ)
    with reading(path, NPZ), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not members:
            raise DataError(f"{path}: holds no array; write it with numpy.savez")
        if key is None and len(members) > 1:
            raise UsageError(f"{path}: holds {listed([*members])}; name one with key")
        name = next(iter(members)) if key is None else key
        if name not in members:
            raise UsageError(f"{path}: key={shown(name)} given, expected one of {listed([*members])}")
        info, what = members[name], f"{path}, array {name!r}"
        packed = min(info.compress_size, size)
        with archive.open(info) as file:
            header = _read_header(file)
        _check(header, info.file_size - header.offset, what)
        if info.file_size > packed * MAX_EXPANSION:
            raise DataError(f"{what}: {packed} bytes cannot hold {info.file_size}; get a whole copy")
        if header.num_bytes > MAX_IN_MEMORY:
            given = f"{header.shape} of {header.dtype}, {header.num_bytes} bytes"
            how = "save it as .npy, which is read in pieces"
            raise DataError(f"{what}: {given}, expected at most {MAX_IN_MEMORY}; {how}")
        with archive.open(info) as file:  # to its end, so that its checksum is verified
            x = _as_tensor(np.lib.format.read_array(file, allow_pickle=False))
    return Rows(x, what, rows_per_shard(x.shape[1:]))


def _read_header(file: BufferedIOBase | IO[bytes]) -> _Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    # Its beginning alone: a header may claim any length.
    file = io.BytesIO(file.read(MAX_HEADER))
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version}")
    return _Header(*readers[version](file), offset=file.tell())


def _check(header: _Header, found: int, what: str) -> None:
    """Compare a header with the bytes that follow it, so that a lying one allocates nothing."""
    shape, _, dtype, _ = header
    if dtype.kind not in "biuf":
        raise DataError(f"{what}: elements are {dtype}, expected integers or floats; convert and save it again")
    if not shape or min(shape) < 1:
        raise DataError(f"{what}: shape is {shape}, expected (rows, features, ...), none of them 0; save it so")
    if len(shape) > MAX_AXES:
        raise DataError(f"{what}: has {len(shape)} axes, expected at most {MAX_AXES}; reshape it and save it again")
    if found != header.num_bytes:
        declared = f"declares {shape} of {dtype}, {header.num_bytes} bytes"
        raise DataError(f"{what}: {declared}, found {found}; get a whole copy")


def _as_tensor(array: np.ndarray) -> Tensor:
    """A copy in native byte order, of a type that torch computes with."""
    native = array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # what overflows is reported as not finite, with its row and column
        x = torch.from_numpy(np.array(array, dtype=native if native in KEPT else np.float64, order="C"))
    return x.unsqueeze(1) if x.ndim == 1 else x
