"""One wrong input: what is there, what the user does with it, and what the one line that comes of it has to say."""

import csv
import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

MARKER = "marker"  # would be made by code in a malicious file


@dataclass(frozen=True)
class Case:
    """One wrong input, in a folder of its own that is the working directory.

    Attributes:
        name: of the test.
        do: arguments of the command, or a call from Python.
        says: what the message names; each of these.
        make: puts files there.
        works: it is no mistake: the command must end with 0, the call must return.
        confined: "nobody" runs it as a user who may not write; "tiny files" and "small files" let no file grow
            beyond 400 or 2,500 bytes, as on a full disk; "full stdout" connects stdout to a full disk.
        changes: folders in which files may change.
    """

    name: str
    do: Sequence[str] | Callable[[], Any]
    says: Sequence[str] = ()
    make: Callable[[], Any] | None = None
    works: bool = False
    confined: Literal["nobody", "tiny files", "small files", "full stdout"] | None = None
    changes: Sequence[str] = ()


QUICK = ["--epochs", "1", "--hidden", "4", "--out", "new"]


def training(name: str, data: str, make: Callable[[], Any] | None, *says: str, options: str = "", **more: Any) -> Case:
    """`vaentropy train` on some data; the message has to name them unless told otherwise."""
    return Case(name, ["train", data, *QUICK, *options.split()], says, make, **more)


def calling(name: str, call: Callable[[], Any], *says: str, **more: Any) -> Case:
    """A call from Python."""
    return Case(name, call, says, **more)


def command(name: str, arguments: str, make: Callable[[], Any] | None, *says: str, **more: Any) -> Case:
    """Any verb of the command."""
    return Case(name, arguments.split(), says, make, **more)


# Files.


def array(x: Any, path: str = "x.npy") -> Callable[[], None]:
    return lambda: np.save(path, x, allow_pickle=True)


def text(content: str | bytes, path: str) -> Callable[[], None]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda: (Path(path).parent.mkdir(parents=True, exist_ok=True), Path(path).write_bytes(raw))[0]


def several(*makers: Callable[[], Any]) -> Callable[[], None]:
    def make() -> None:
        for each in makers:
            each()

    return make


def numbers(rows: int = 20, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns))


def with_value(value: float, row: int = 7, column: int = 1) -> np.ndarray:
    x = numbers()
    x[row, column] = value
    return x


def csv_text(header: Sequence[str] = ("a", "b", "c"), rows: int = 20) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([header, *numbers(rows, len(header)).tolist()])
    return out.getvalue()


def npy_bytes(x: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    return out.getvalue()


def npy_header(header: str, data: bytes = b"") -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


def png_bytes(height: int = 8, width: int = 8, mode: str = "L") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new(mode, (width, height), 7).save(out, "PNG")
    return out.getvalue()


def parquet(columns: Any, path: str = "x.parquet", names: Sequence[str] | None = None) -> Callable[[], None]:
    def make() -> None:
        import pyarrow as pa
        from pyarrow import parquet as pq

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns) if names is None else pa.Table.from_arrays([pa.array(c) for c in columns], names)
        pq.write_table(table, path)

    return make


def cut(path: str, by: int | float = 20) -> Callable[[], None]:
    """Cut bytes off the end of a file: so many, or a fraction."""

    def make() -> None:
        content = Path(path).read_bytes()
        kept = len(content) - by if isinstance(by, int) else int(len(content) * (1 - by))
        Path(path).write_bytes(content[:kept])

    return make


def idx_bytes(shape: Sequence[int], kind: int = 8, data: bytes | None = None) -> bytes:
    size = int(np.prod(shape)) * {8: 1, 13: 4}[kind]
    body = bytes(i % 200 for i in range(size)) if data is None else data
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def mnist(**files: bytes) -> Callable[[], None]:
    """A small mnist folder, some of its files replaced."""
    whole = {
        "train_images": idx_bytes((20, 4, 4)),
        "train_labels": idx_bytes((20,)),
        "t10k_images": idx_bytes((10, 4, 4)),
        "t10k_labels": idx_bytes((10,)),
    }

    def make() -> None:
        Path("mnist").mkdir()
        for name, content in (whole | files).items():
            part, kind = name.split("_")
            ending = "-images-idx3-ubyte" if kind == "images" else "-labels-idx1-ubyte"
            Path("mnist", part + ending).write_bytes(content)

    return make


def gz_repeated(chunk: bytes, times: int, path: str) -> Callable[[], None]:
    """A small .gz file that holds a chunk very often, as many members one after the other."""
    return lambda: Path(path).write_bytes(gzip.compress(chunk) * times)


def zip_bomb(path: str, header: bytes, zeros: int) -> None:
    """A .npz of kilobytes whose array of zeros has gigabytes: one compressed piece, repeated."""
    import zlib

    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = first + piece * (zeros // 2**24) + packer.flush()
    name, size = b"x.npy", len(header) + zeros
    fields = (20, 0, 8, 0, 33, 0, len(data), size, len(name), 0)
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, *fields)
    central = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, *fields, 0, 0, 0, 0, 0)
    body = local + name + data
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central) + len(name), len(body), 0)
    Path(path).write_bytes(body + central + name + end)


def zipped(path: str, **members: bytes) -> Callable[[], None]:
    def make() -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name + ".npy", content)

    return make


class Malicious:
    """Unpickling this makes the marker."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)
