"""IDX, the file format of MNIST and its relatives: a 4-byte magic number, big-endian sizes, the elements."""

import gzip
import math
import os
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaentropy.checks import require_path
from vaentropy.errors import DataError

__all__ = ["read_idx"]

ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 32  # numpy's limit before 2.0; real files have 1 to 4
GZIP_MAGIC = b"\x1f\x8b"
MAX_EXPANSION = 1032  # deflate spends at least 2 bits on a match of at most 258 bytes
CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an IDX file, raw or gzip, told apart by their first bytes.

    Memory never exceeds what the file really holds, whatever its header says.

    Returns:
        Tensor of the shape and element type in the header, native byte order.

    Raises:
        DataError: not an IDX file, damaged, or longer or shorter than its header says.

    Source: http://yann.lecun.com/exdb/mnist (section "the IDX file format").
    """
    path = require_path("path", path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path}: is no regular file; pass the path of an IDX file")
        with path.open("rb") as file:
            compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if not compressed:
                return _parse(file, path, size)
            with gzip.GzipFile(fileobj=file) as stream:
                return _parse(stream, path, size * MAX_EXPANSION)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not readable ({error}), expected an IDX file, raw or gzip; get a whole copy"
        ) from error


def _parse(stream: BufferedIOBase, path: Path, capacity: int) -> Tensor:
    """Parse an IDX stream that cannot yield more than `capacity` bytes."""
    magic = stream.read(4)
    known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in ELEMENT_TYPES
    if not known or not 1 <= magic[3] <= MAX_DIMENSIONS:
        types = ", ".join(f"{code:02x}" for code in ELEMENT_TYPES)
        expected = f"00 00, a type of {types}, and 1 to {MAX_DIMENSIONS} dimensions"
        raise DataError(f"{path}: magic bytes are '{magic.hex(' ')}', expected {expected}; pass an IDX file")
    dtype = np.dtype(ELEMENT_TYPES[magic[2]])
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path}: ends inside its header, expected {magic[3]} sizes of 4 bytes; get a whole copy")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    expected = math.prod(shape) * dtype.itemsize
    declared = f"{path}: the header declares {shape} of {dtype.name}, {expected} bytes"
    if expected == 0:
        raise DataError(f"{declared}, expected at least one element; pass a file with data")
    if expected > capacity:  # before anything is read or allocated
        raise DataError(f"{declared}, more than a file of this length can hold; get a whole copy")
    data = bytearray()
    # One byte more than declared: shows trailing bytes, and makes gzip reach its end and verify its checksum.
    while chunk := stream.read(min(CHUNK, expected + 1 - len(data))):
        data += chunk
    if len(data) != expected:
        found = "more follow" if len(data) > expected else f"{len(data)} follow"
        raise DataError(f"{declared}, but {found}; get a whole copy")
    return torch.from_numpy(np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape))
