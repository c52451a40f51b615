"""Wrong data files, each given to `vaentropy train`."""

import gzip
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np

from .case import (
    Malicious,
    array,
    calling,
    csv_text,
    cut,
    gz_repeated,
    idx_bytes,
    mnist,
    npy_bytes,
    npy_header,
    numbers,
    parquet,
    png_bytes,
    several,
    text,
    training,
    with_value,
    zip_bomb,
    zipped,
)

__all__ = ["DATA"]

CSV = csv_text()
LINES = CSV.splitlines()
ESCAPES = "a\x1b[31mred\x07\r\nb"


def changed(line: int, content: str) -> str:
    return "\n".join([*LINES[:line], content, *LINES[line + 1 :]]) + "\n"


def malicious_pickle() -> bytes:
    return pickle.dumps(Malicious())


def object_array() -> np.ndarray:
    x = np.empty(2, dtype=object)
    x[:] = [Malicious(), Malicious()]
    return x


def lowered(limit: int, path: str):
    """Load with a lower limit of memory, so that the test need not fill gigabytes."""

    def call():
        from unittest.mock import patch

        from vaentropy import data
        from vaentropy.data.formats import csv_file

        with patch.object(csv_file, "MAX_IN_MEMORY", limit):
            return data.load(path)

    return call


def images(**content: bytes):
    return several(*(text(raw, f"images/{name}.png") for name, raw in content.items()))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header declares a size that its few bytes do not have."""
    raw = png_bytes()
    head = raw[12:16] + struct.pack(">II", width, height) + raw[24:29]
    return raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:]


NPY = [
    training("npy-cut", "x.npy", several(array(numbers()), cut("x.npy")), "x.npy", "480", "460", "whole copy"),
    training("npy-longer", "x.npy", text(npy_bytes(numbers()) + b"more", "x.npy"), "x.npy", "484", "whole copy"),
    training("npy-magic", "x.npy", text("these are no numbers\n" * 9, "x.npy"), "x.npy", "a .npy file"),
    training("npy-empty-file", "x.npy", text("", "x.npy"), "x.npy", "a .npy file"),
    training("npy-pickle", "x.npy", array(object_array()), "x.npy", "object", "convert"),
    training("npy-is-a-pickle", "x.npy", text(malicious_pickle(), "x.npy"), "x.npy", "a .npy file"),
    training("npy-text", "x.npy", array(np.array([["a", "b"]])), "x.npy", "<U1", "convert"),
    training("npy-mixed", "x.npy", array(np.zeros(5, dtype=[("a", "f4"), ("b", "i4")])), "x.npy", "convert"),
    training("npy-complex", "x.npy", array(np.zeros((5, 2), complex)), "x.npy", "complex128", "convert"),
    training("npy-dates", "x.npy", array(np.zeros((5, 2), "M8[s]")), "x.npy", "datetime64", "convert"),
    training("npy-nan", "x.npy", array(with_value(np.nan)), "x.npy", "row 7", "column 1", "nan", "missing='ignore'"),
    training("npy-inf", "x.npy", array(with_value(np.inf)), "x.npy", "row 7", "column 1", "inf", "impute it"),
    training("npy-1e308", "x.npy", array(with_value(1e308)), "x.npy", "row 7", "column 1", "1e+308", "float64"),
    training("npy-no-rows", "x.npy", array(np.zeros((0, 3))), "x.npy", "(0, 3)", "none of them 0"),
    training("npy-no-columns", "x.npy", array(np.zeros((3, 0))), "x.npy", "(3, 0)", "none of them 0"),
    training("npy-one-number", "x.npy", array(np.float64(3)), "x.npy", "()", "(rows, features, ...)"),
    training("npy-one-row", "x.npy", array(numbers(1)), "x.npy", "1 rows", "pass more rows, or 0"),
    training("npy-one-row-works", "x.npy", array(numbers(1)), options="--held-out 0", works=True),
    training("npy-one-column-works", "x.npy", array(numbers(20, 1)), works=True),
    training("npy-no-axis-works", "x.npy", array(numbers(20, 1)[:, 0]), options="--no-report", works=True),
    training("npy-constant-works", "x.npy", array(np.ones((20, 3))), options="--scale standard", works=True),
    training("batch-above-rows-works", "x.npy", array(numbers()), options="--batch-size 1000 --no-report", works=True),
    training("latents-above-columns-works", "x.npy", array(numbers()), options="--latent-dim 7", works=True),
    training(
        "npy-lying-header",
        "x.npy",
        text(npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 1000)}", bytes(64)), "x.npy"),
        "x.npy",
        "10000000000",
        "whole copy",
    ),
    training(
        "npy-negative-shape",
        "x.npy",
        text(npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, -2)}", bytes(64)), "x.npy"),
        "x.npy",
        "(-4, -2)",
    ),
    training(
        "npy-many-axes",
        "x.npy",
        text(npy_header(f"{{'descr':'|u1','fortran_order':False,'shape':({'1,' * 40})}}", bytes(1)), "x.npy"),
        "x.npy",
        "axes",
    ),
    training(
        "npy-many-more-axes",
        "x.npy",
        text(
            npy_header(f"{{'descr':'|u1','fortran_order':False,'shape':({'1,' * 70})}}".ljust(300), bytes(1)), "x.npy"
        ),
        "x.npy",
        "axes",
    ),
    training("npy-folder", "x.npy", lambda: Path("x.npy").mkdir(), "x.npy", "is a directory"),
    training("npy-missing", "x.npy", None, "x.npy", "no such file"),
    training("npy-fifo", "x.npy", lambda: os.mkfifo("x.npy"), "x.npy", "no regular file"),
    training("npy-below-a-file", "x.npy/y.npy", array(numbers()), "x.npy/y.npy"),
    training("name-too-long", "a" * 300 + ".npy", None, "aaa.npy", "too long"),
    training("control-characters-in-a-path", ESCAPES + ".npy", None, "\\x1b[31m", "no such file"),
]

NPZ = [
    training("npz-cut", "x.npz", several(lambda: np.savez("x.npz", x=numbers()), cut("x.npz")), "x.npz", ".npz file"),
    training("npz-magic", "x.npz", text("no zip", "x.npz"), "x.npz", ".npz file"),
    training("npz-no-array", "x.npz", zipped("x.npz"), "x.npz", "holds no array"),
    training("npz-several", "x.npz", lambda: np.savez("x.npz", a=numbers(), b=numbers()), "'a', 'b'", "key"),
    training("npz-unknown-key", "x.npz", lambda: np.savez("x.npz", a=numbers()), "'q'", "a", options="--key q"),
    training("npz-pickle", "x.npz", lambda: np.savez("x.npz", x=object_array()), "x.npz", "'x'", "object"),
    training(
        "npz-is-a-pickle", "x.npz", zipped("x.npz", x=malicious_pickle()), "x.npz", "numpy.savez", "get a whole copy"
    ),
    training(
        "npz-escapes-in-a-name", "x.npz", zipped("x.npz", **{ESCAPES: npy_bytes(object_array())}), "\\x1b", "object"
    ),
    training(
        "npz-bomb",
        "x.npz",
        lambda: zip_bomb(
            "x.npz",
            npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({3 * 2**30},)}}"),
            3 * 2**30,
        ),
        "x.npz",
        "2147483648",
        "save it as .npy",
    ),
    training(
        "npz-header-bomb",
        "x.npz",
        lambda: zip_bomb("x.npz", b"\x93NUMPY\x02\x00" + struct.pack("<I", 3 * 2**30), 3 * 2**30),
        "x.npz",
        ".npz file",
    ),
]

TABLES = [
    training("csv-ragged", "x.csv", text(changed(5, "1,2"), "x.csv"), "x.csv", "row 4", "2 fields", "expected 3"),
    training("csv-text", "x.csv", text(changed(5, "1,two,3"), "x.csv"), "x.csv", "row 4", "'b'", "'two'", "exclude"),
    training("csv-empty-field", "x.csv", text(changed(5, "1,,3"), "x.csv"), "x.csv", "row 4", "'b'", "nan", "missing"),
    training("csv-inf", "x.csv", text(changed(5, "1,inf,3"), "x.csv"), "x.csv", "row 4", "'b'", "inf"),
    training("csv-1e308", "x.csv", text(changed(5, "1,1e308,3"), "x.csv"), "x.csv", "row 4", "'b'", "1e+308"),
    training("csv-header-not-utf8", "x.csv", text(b"a,\xff,c\n1,2,3\n", "x.csv"), "x.csv", "UTF-8"),
    training("csv-not-utf8", "x.csv", text(b"a,b,c\n1,2,3\n1,\xff,3\n", "x.csv"), "x.csv", "row 1", "'b'"),
    training("csv-utf16", "x.csv", text(CSV.encode("utf-16"), "x.csv"), "x.csv", "UTF-8"),
    training("csv-nul", "x.csv", text("a,b\n1,2\n1,\0\n", "x.csv"), "x.csv", "row 1", "'b'"),
    training("csv-semicolons", "x.csv", text("a;b\n1;2\n", "x.csv"), "x.csv", "'a;b'", "commas"),
    training("csv-empty", "x.csv", text("", "x.csv"), "x.csv", "is empty"),
    training("csv-header-alone", "x.csv", text("a,b\n", "x.csv"), "x.csv", "no rows"),
    training("csv-one-row", "x.csv", text("a,b\n1,2\n", "x.csv"), "x.csv", "1 rows", "pass more rows"),
    training("csv-one-column-works", "x.csv", text(csv_text(["a"]), "x.csv"), options="--no-report", works=True),
    training("csv-twice", "x.csv", text("a,b,a\n1,2,3\n", "x.csv"), "x.csv", "'a'", "rename"),
    training("csv-quoted-line-end", "x.csv", text('a,b\n1,"2\n3"\n', "x.csv"), "x.csv", "row 1", "1 fields"),
    training("csv-unknown-column", "x.csv", text(CSV, "x.csv"), "'bb'", "did you mean 'b'", options="--columns a,bb"),
    training("csv-unknown-exclude", "x.csv", text(CSV, "x.csv"), "'d'", "there are 'a'", options="--exclude d"),
    training("csv-all-excluded", "x.csv", text(CSV, "x.csv"), "x.csv", "none is left", options="--exclude a,b,c"),
    training("csv-column-twice", "x.csv", text(CSV, "x.csv"), "'a', 'a'", "each once", options="--columns a,a"),
    training(
        "csv-escapes-in-a-column", "x.csv", text("a\x1b[31m\x07,b\nx,2\n1,2\n", "x.csv"), "x.csv", "\\x1b[31m", "row 0"
    ),
    training(
        "csv-bidi-in-a-column", "x.csv", text("a\u202e\u2028c,b\nx,2\n1,2\n", "x.csv"), "\\u202e", "\\u2028", "row 0"
    ),
    training("csv-escapes-in-a-field", "x.csv", text("a,b\n1,\x1b[2J\x9b\n1,2\n", "x.csv"), "\\x1b[2J", "row 0"),
    training("csv-many-columns", "x.csv", text("," * 2**22 + "\n1\n", "x.csv"), "x.csv", "4194305 columns", ".npy"),
    training("csv-long-line", "x.csv", text("1" * (2**24 + 1), "x.csv"), "x.csv", "longer than"),
    training("csv-line-ends", "x.csv", text("a\n" + "\n" * 2**24, "x.csv"), "x.csv", "no rows"),
    training("csv-folder", "x.csv", lambda: Path("x.csv").mkdir(), "x.csv", "is a directory"),
    training("gz-cut", "x.csv.gz", several(text(gzip.compress(CSV.encode()), "x.csv.gz"), cut("x.csv.gz")), "x.csv.gz"),
    training("gz-magic", "x.csv.gz", text(CSV, "x.csv.gz"), "x.csv.gz", "gzipped", "get a whole copy"),
    training("gz-longer", "x.csv.gz", text(gzip.compress(CSV.encode()) + b"more", "x.csv.gz"), "x.csv.gz"),
    training("gz-bomb-of-line-ends", "x.csv.gz", gz_repeated(b"\n" * 2**24, 64, "x.csv.gz"), "x.csv.gz", "longer than"),
    training(
        "gz-bomb-of-empty-lines",
        "x.csv.gz",
        lambda: Path("x.csv.gz").write_bytes(gzip.compress(b"a,b\n") + gzip.compress(b"\n" * 2**24) * 16),
        "x.csv.gz",
        "no rows",
    ),
    training("gz-bomb-of-one-line", "x.csv.gz", gz_repeated(b"1" * 2**24, 200, "x.csv.gz"), "x.csv.gz", "longer than"),
    calling(
        "gz-bomb-of-rows",
        lowered(2**22, "x.csv.gz"),
        "x.csv.gz",
        "unpack it",
        make=gz_repeated(b"0\n" * 2**23, 64, "x.csv.gz"),
    ),
    training("parquet-cut", "x.parquet", several(parquet({"a": [1.0, 2.0]}), cut("x.parquet")), "x.parquet"),
    training("parquet-magic", "x.parquet", text("PAR1 but no more", "x.parquet"), "x.parquet", "a Parquet file"),
    training("parquet-text", "x.parquet", parquet({"a": [1.0], "b": ["t"]}), "x.parquet", "'b'", "string", "exclude"),
    training("parquet-nested", "x.parquet", parquet({"a": [[1.0], [2.0]]}), "x.parquet", "'a'", "list", "exclude"),
    training("parquet-null", "x.parquet", parquet({"a": [1.0, None, 2.0]}), "x.parquet", "row 1", "'a'", "nan"),
    training("parquet-inf", "x.parquet", parquet({"a": [1.0, np.inf]}), "x.parquet", "row 1", "'a'", "inf"),
    training("parquet-no-rows", "x.parquet", parquet({"a": np.zeros(0)}), "x.parquet", "no rows"),
    training("parquet-no-columns", "x.parquet", parquet({}), "x.parquet"),
    training("parquet-twice", "x.parquet", parquet([[1.0], [2.0]], names=["a", "a"]), "x.parquet", "'a'", "rename"),
    training("parquet-unknown-column", "x.parquet", parquet({"a": [1.0]}), "x.parquet", "'z'", options="--columns z"),
    training("parquet-all-excluded", "x.parquet", parquet({"a": [1.0]}), "none is left", options="--exclude a"),
    training("parquet-escapes", "x.parquet", parquet({ESCAPES: ["t"]}), "x.parquet", "\\x1b[31m", "string"),
    training(
        "parquet-folder-differs",
        "tables",
        several(parquet({"a": [1.0]}, "tables/1.parquet"), parquet({"b": [1.0]}, "tables/2.parquet")),
        "2.parquet",
        "'a' is missing",
    ),
    training(
        "parquet-folder-types-differ",
        "tables",
        several(parquet({"a": [1.0]}, "tables/1.parquet"), parquet({"a": ["t"]}, "tables/2.parquet")),
        "2.parquet",
        "'a'",
        "string",
    ),
    training(
        "parquet-folder-one-damaged",
        "tables",
        several(parquet({"a": [1.0]}, "tables/1.parquet"), text("nonsense", "tables/2.parquet")),
        "2.parquet",
        "a Parquet file",
    ),
]

IMAGES = [
    training("images-sizes-differ", "images", images(a=png_bytes(), b=png_bytes(9, 8)), "b.png", "8 x 9", "image_size"),
    training("images-cut", "images", images(a=png_bytes(), b=png_bytes()[:45]), "b.png", "replace or remove it"),
    training("images-no-image", "images", images(a=b"GIF, so to speak"), "a.png", "replace or remove it"),
    training("images-pickle", "images", images(a=malicious_pickle()), "a.png", "replace or remove it"),
    training("images-bomb", "images", images(a=png_of_size(60_000, 60_000)), "a.png", "replace or remove it"),
    training("images-16-bit", "images", images(a=png_bytes(mode="I;16")), "a.png", "I;16", "convert"),
    training("images-small-size", "images", images(a=png_bytes()), "image_size=0", options="--image-size 0"),
    training("images-huge-size", "images", images(a=png_bytes()), "image_size=", options="--image-size 1000000000"),
    training("images-large-crop", "images", images(a=png_bytes()), "crop=9", "crop less", options="--crop 9"),
    training(
        "images-and-tables", "images", several(images(a=png_bytes()), parquet({"a": [1.0]}, "images/x.parquet")), "kind"
    ),
    training("folder-without-data", "images", text("hello", "images/read me.txt"), "images", "no images"),
    training("folder-empty", "images", lambda: Path("images").mkdir(), "images", "no images"),
    training(
        "images-fifo",
        "images",
        lambda: (Path("images").mkdir(), os.mkfifo("images/a.png")),
        "a.png",
        "no regular file",
    ),
]

NAMED = [
    training("idx-magic", "mnist", mnist(train_images=b"nonsense"), "train-images", "magic", options="--data-folder ."),
    training("idx-cut", "mnist", mnist(train_images=idx_bytes((20, 4, 4))[:-9]), "311", options="--data-folder ."),
    training(
        "idx-longer", "mnist", mnist(train_images=idx_bytes((20, 4, 4)) + b"!"), "more", options="--data-folder ."
    ),
    training(
        "idx-lying", "mnist", mnist(t10k_images=idx_bytes((2**31, 2**31, 9), data=b"")), options="--data-folder ."
    ),
    training(
        "idx-gz-cut",
        "mnist",
        mnist(train_images=gzip.compress(idx_bytes((20, 4, 4)))[:-12]),
        "train-images",
        "get a whole copy",
        options="--data-folder .",
    ),
    training(
        "idx-labels", "mnist", mnist(train_labels=idx_bytes((19,))), "(19,)", "20 rows", options="--data-folder ."
    ),
    training(
        "idx-labels-of-two-axes",
        "mnist",
        mnist(train_labels=idx_bytes((20, 2))),
        "labels",
        "(20, 2)",
        options="--data-folder .",
    ),
    training("idx-floats", "mnist", mnist(train_images=idx_bytes((20, 4, 4), 13)), "uint8", options="--data-folder ."),
    training(
        "idx-sizes-differ", "mnist", mnist(t10k_images=idx_bytes((10, 5, 4))), "convert one", options="--data-folder ."
    ),
    training("idx-no-folder", "mnist", None, "nowhere", "train-images", options="--data-folder nowhere"),
    training("idx-folder-is-a-file", "mnist", text("", "file"), "file", options="--data-folder file"),
    training("susy-other-columns", "susy", text(CSV, "SUSY.csv"), "3 columns", "18", options="--data-folder ."),
    training("unknown-name", "minst", None, "did you mean 'mnist'"),
    training("unknown-ending", "x.xlsx", text("", "x.xlsx"), "x.xlsx", ".parquet"),
    training("pt-pickle", "x.pt", text(malicious_pickle(), "x.pt"), "x.pt", ".npy"),
    training("pkl-pickle", "x.pkl", text(malicious_pickle(), "x.pkl"), "x.pkl", ".npy"),
    training("unknown-home", "~nobody-is-called-so/x.npy", None, "~nobody-is-called-so/x.npy", "no such file"),
    training(
        "unknown-home-of-a-folder", "mnist", None, "~nobody-is-called-so", options="--data-folder ~nobody-is-called-so"
    ),
    training("empty-name", "", None, "''"),
]

DATA = [*NPY, *NPZ, *TABLES, *IMAGES, *NAMED]
