"""Data sets by name. Nothing is downloaded and nothing is unpickled."""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaentropy.data import synthetic
from vaentropy.data.dataset import Dataset, split
from vaentropy.data.idx import read_idx
from vaentropy.errors import DataError, MissingExtraError, UsageError
from vaentropy.rows import require_finite

__all__ = ["load", "names"]

FOLDER_VARIABLE = "VAENTROPY_DATA"
IDX_FILES = "{train,t10k}-images-idx3-ubyte and, if wanted, {train,t10k}-labels-idx1-ubyte, each as it is or as .gz"


class _Request(NamedTuple):
    name: str
    description: str
    folder: str | os.PathLike[str] | None
    held_out: float | None
    seed: int
    dtype: torch.dtype

    def divide(self, x: Tensor, labels: Tensor | None = None, truth: Mapping[str, float] | None = None) -> Dataset:
        """Split rows (and labels alike) and put them into a Dataset."""
        fraction = self.held_out or 0.0
        train, held_out = split(x, fraction, seed=self.seed)
        y = (None, None) if labels is None else split(labels, fraction, seed=self.seed)
        return Dataset(self.name, train.to(self.dtype), held_out.to(self.dtype), self.description, y[0], y[1], truth)


class _Source(NamedTuple):
    build: Callable[[_Request], Dataset]
    held_out: float | None  # fraction held out unless the user says otherwise; None: the official held-out set
    description: str


def names() -> tuple[str, ...]:
    """Names that `load` knows, besides paths of .npy files."""
    return tuple(_SOURCES)


def load(
    name: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    held_out: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Load a data set by name, or from a .npy file of shape (N, *data_shape), or (N,) read as (N, 1).

    Args:
        name: one of `names()`, or a path that ends in .npy.
        folder: for mnist and fashion-mnist, where their IDX files lie (there or in a folder of that name inside);
            by default the environment variable VAENTROPY_DATA. The others do not use it.
        held_out: fraction to hold out. By default 0.2 of digits, half of a synthetic set (nothing of streaming), 0.1 of
            a .npy file, and the official t10k set of mnist and fashion-mnist, where an explicit fraction splits the
            train file instead.
        seed: fixes the split, and for synthetic sets the points as well.
        dtype: floating dtype of the result.

    Raises:
        UsageError: unknown name, no folder, or a bad fraction or dtype.
        DataError: a file is missing or cannot be used as it is.
        MissingExtraError: digits without scikit-learn.
    """
    if not dtype.is_floating_point:
        raise UsageError(f"dtype is {dtype}, expected a floating dtype; pass e.g. torch.float32")
    name = os.fspath(name)
    source = _NPY if name.endswith(".npy") else _SOURCES.get(name)
    if source is None:
        near = difflib.get_close_matches(name.lower(), _SOURCES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown data set {name!r}; {hint}expected {', '.join(_SOURCES)}, or a path ending in .npy")
    fraction = source.held_out if held_out is None else held_out
    return source.build(_Request(name, source.description, folder, fraction, seed, dtype))


def _digits(request: _Request) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    pixels, labels = load_digits(return_X_y=True)
    return request.divide(torch.from_numpy(pixels) / 16, torch.from_numpy(labels))


def _synthetic(request: _Request) -> Dataset:
    chosen = synthetic.SETS[request.name]
    x, labels, log_density = chosen.build(chosen.num_points, request.seed)
    if log_density is None:
        return request.divide(x, labels)
    parts = zip(("train", "held_out"), split(log_density, request.held_out or 0.0, seed=request.seed), strict=True)
    return request.divide(x, labels, {f"log_likelihood_{part}": of.mean().item() for part, of in parts if len(of)})


def _idx_images(request: _Request) -> Dataset:
    folder = _find_folder(request)
    train, labels = _read_pixels(folder, "train", request.dtype), _read_labels(folder, "train")
    if request.held_out is not None:
        description = f"{request.description}; held out: a random part of the train file"
        return request._replace(description=description).divide(train, labels)
    return Dataset(
        request.name,
        train,
        _read_pixels(folder, "t10k", request.dtype),
        f"{request.description}; held out: the t10k set",
        labels,
        _read_labels(folder, "t10k"),
    )


def _find_folder(request: _Request) -> Path:
    given = request.folder or os.environ.get(FOLDER_VARIABLE)
    if not given:
        how = f"pass folder= or set {FOLDER_VARIABLE} to the folder that holds {IDX_FILES}"
        raise UsageError(f"{request.name} is read from files and no folder was given; {how}")
    given = Path(given).expanduser()
    candidates = [given / request.name]
    # All these sets have the same file names: a folder that bears the name of another set holds that other set.
    if given.name == request.name or given.name not in _SOURCES:
        candidates.append(given)
    for folder in candidates:
        if _idx_file(folder, "train-images-idx3-ubyte"):
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise DataError(f"{request.name}: no train-images-idx3-ubyte in {looked}; pass the folder that holds {IDX_FILES}")


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _read_pixels(folder: Path, part: str, dtype: torch.dtype) -> Tensor:
    path = _idx_file(folder, f"{part}-images-idx3-ubyte")
    if path is None:
        how = f"add it, or pass held_out= to hold out a part of the train file; expected {IDX_FILES}"
        raise DataError(f"{folder}: no {part}-images-idx3-ubyte; {how}")
    images = read_idx(path)
    if images.ndim != 3 or images.dtype != torch.uint8:
        given = f"shape {tuple(images.shape)} of {images.dtype}"
        raise DataError(f"{path}: got {given}, expected (images, height, width) of torch.uint8; pass an image file")
    return images.flatten(1).to(dtype) / 255


def _read_labels(folder: Path, part: str) -> Tensor | None:
    path = _idx_file(folder, f"{part}-labels-idx1-ubyte")
    return None if path is None else read_idx(path).long()


def _npy(request: _Request) -> Dataset:
    path = Path(request.name).expanduser()
    x = _read_npy(path, request.dtype)
    require_finite(x, str(path))  # before the split, so that the row is the row in the file
    return request._replace(name=path.name).divide(x)


def _read_npy(path: Path, dtype: torch.dtype) -> Tensor:
    """Read a .npy file whose header was compared with the file's length, so that a lying one allocates nothing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; pass the path of a .npy file")
    try:
        with path.open("rb") as file:
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, stored = readers[np.lib.format.read_magic(file)](file)
            found = path.stat().st_size - file.tell()
    except Exception as error:  # numpy raises whatever its parsers raise on a damaged header
        why = " ".join(f"{type(error).__name__} {error}".split())
        raise DataError(f"{path}: not a readable .npy file ({why}); write it with numpy.save") from error
    if stored.kind not in "biuf":
        raise DataError(f"{path}: elements are {stored}, expected integers or floats; convert and save it again")
    if not shape or min(shape) < 1:
        raise DataError(f"{path}: shape is {shape}, expected (rows, features, ...), none of them 0; save it so")
    expected = math.prod(shape) * stored.itemsize
    if found != expected:
        raise DataError(f"{path}: declares {shape} of {stored}, {expected} bytes, found {found}; get a whole copy")
    with np.errstate(over="ignore"):  # what overflows is reported as not finite, with its row and column
        array = np.load(path, allow_pickle=False).astype(np.float64 if dtype == torch.float64 else np.float32)
    x = torch.from_numpy(array).to(dtype)
    return x.unsqueeze(1) if x.ndim == 1 else x


_NPY = _Source(_npy, 0.1, "values as stored in the file, not rescaled")
_SOURCES = {
    "digits": _Source(_digits, 0.2, "8 x 8 handwritten digits, pixel values divided by 16, in [0, 1]"),
    **{name: _Source(_synthetic, each.held_out, each.description) for name, each in synthetic.SETS.items()},
    "mnist": _Source(_idx_images, None, "28 x 28 handwritten digits, pixel values divided by 255, in [0, 1]"),
    "fashion-mnist": _Source(_idx_images, None, "28 x 28 pictures of clothes, pixel values divided by 255, in [0, 1]"),
}
