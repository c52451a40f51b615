"""Data sets by name. Nothing is downloaded and nothing is unpickled."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaentropy.data import synthetic
from vaentropy.data.formats.csv_file import CsvFile, csv_columns
from vaentropy.data.formats.idx import read_idx
from vaentropy.data.formats.reading import reading
from vaentropy.data.source import Rows, Source, rows_per_shard
from vaentropy.errors import DataError, MissingExtraError, UsageError

__all__ = ["SUSY_FEATURES", "Found", "find", "names", "susy_label"]

FOLDER_VARIABLE = "VAENTROPY_DATA"
IDX_FILES = "{train,t10k}-images-idx3-ubyte and, if wanted, {train,t10k}-labels-idx1-ubyte, each as it is or as .gz"
WITH_HELD_OUT = ("mnist", "fashion-mnist")
SUSY_FILES = ("SUSY.csv", "SUSY.csv.gz")
SUSY_FEATURES = 18
DEFAULT_HELD_OUT = 0.1


class OfficialSplit(NamedTuple):
    """A held-out set that comes with the data."""

    source: Source
    labels: Tensor | None


@dataclass(frozen=True)
class Found:
    """A data set as it is stored, not yet split.

    Attributes:
        name: how results call it.
        description: what it is, without its scaling.
        source: all rows, or the training rows where the held-out ones are a set of their own.
        held_out: fraction held out unless the user says otherwise, or the official held-out set.
        highest: largest value of pixels, which count from 0: unless the user says otherwise, data are divided by it.
        labels: one per row of `source`.
        split: what is held out, if that is not a matter of course.
        log_density: (N,), of each row under the distribution that it comes from, in nats, if that is known.
    """

    name: str
    description: str
    source: Source
    held_out: float | OfficialSplit = DEFAULT_HELD_OUT
    highest: int | None = None
    labels: Tensor | None = None
    split: str = ""
    log_density: Tensor | None = None


class _Request(NamedTuple):
    name: str
    folder: str | os.PathLike[str] | None
    seed: int
    official: bool  # the official held-out set is wanted, where there is one


def names() -> tuple[str, ...]:
    """Names that `load` knows, besides paths and data in memory."""
    return tuple(_FINDERS)


def find(name: str, folder: str | os.PathLike[str] | None, *, seed: int, official: bool) -> Found:
    """The data set of a name.

    Args:
        name: one of `names()`.
        folder: where its files are, if it has any; None takes the environment variable VAENTROPY_DATA.
        seed: of the points of a synthetic set.
        official: the official held-out set is wanted, where there is one.

    Raises:
        UsageError: no folder.
        DataError: a file is missing or cannot be used.
        MissingExtraError: a library is missing.
    """
    return _FINDERS[name](_Request(name, folder, seed, official))


def _rows(x: Tensor, name: str) -> Rows:
    return Rows(x, name, rows_per_shard(x.shape[1:]))


def _digits(request: _Request) -> Found:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    pixels, labels = load_digits(return_X_y=True)
    source = _rows(torch.from_numpy(pixels), request.name)
    return Found(request.name, "8 x 8 handwritten digits", source, 0.2, 16, torch.from_numpy(labels))


def _synthetic(request: _Request) -> Found:
    chosen = synthetic.SETS[request.name]
    x, labels, log_density = chosen.build(chosen.num_points, request.seed)
    source = _rows(x, request.name)
    return Found(request.name, chosen.description, source, chosen.held_out, labels=labels, log_density=log_density)


def _idx_images(description: str) -> Callable[[_Request], Found]:
    def find(request: _Request) -> Found:
        folder = _find_folder(request, _idx_names("train-images-idx3-ubyte"), IDX_FILES)
        source, labels = _read_pixels(folder, "train"), _read_labels(folder, "train")
        if not request.official:
            split = "a random part of the train file"
            return Found(request.name, description, source, highest=255, labels=labels, split=split)
        held_out = OfficialSplit(_read_pixels(folder, "t10k"), _read_labels(folder, "t10k"))
        return Found(request.name, description, source, held_out, 255, labels, "the t10k set")

    return find


def _susy(request: _Request) -> Found:
    folder = _find_folder(request, SUSY_FILES, " or ".join(SUSY_FILES))
    path = next(path for path in (folder / name for name in SUSY_FILES) if path.is_file())
    features = CsvFile(path, exclude=susy_label(path))
    return Found(request.name, f"{SUSY_FEATURES} features of simulated collisions, without the class label", features)


def susy_label(path: Path) -> str:
    """Name of the column of a file of SUSY's format that holds the class label, the first.

    Raises:
        DataError: it cannot be read, or has another number of columns.
    """
    columns = csv_columns(path)
    if len(columns) != SUSY_FEATURES + 1:
        expected = f"a class label and {SUSY_FEATURES} features"
        raise DataError(f"{path}: has {len(columns)} columns, expected {expected}; get the file of UCI")
    return columns[0]


def _find_folder(request: _Request, files: tuple[str, ...], expected: str) -> Path:
    given = request.folder or os.environ.get(FOLDER_VARIABLE)
    if not given:
        how = f"pass folder= or set {FOLDER_VARIABLE} to the folder that holds {expected}"
        raise UsageError(f"{request.name} is read from files and no folder was given; {how}")
    given = Path(os.path.expanduser(given))
    candidates = [given / request.name]
    # These sets have the same file names: a folder that bears the name of the other holds that other set.
    if given.name == request.name or given.name not in WITH_HELD_OUT:
        candidates.append(given)
    with reading(given, f"a folder that holds {expected}"):
        for folder in candidates:
            if any((folder / name).is_file() for name in files):
                return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise DataError(f"{request.name}: no {files[-1]} in {looked}; pass the folder that holds {expected}")


def _idx_names(stem: str) -> tuple[str, str]:
    return f"{stem}.gz", stem


def _read_pixels(folder: Path, part: str) -> Rows:
    stem = f"{part}-images-idx3-ubyte"
    path = next((folder / name for name in _idx_names(stem) if (folder / name).is_file()), None)
    if path is None:
        how = f"add it, or pass held_out= to hold out a part of the train file; expected {IDX_FILES}"
        raise DataError(f"{folder}: no {stem}; {how}")
    images = read_idx(path)
    if images.ndim != 3 or images.dtype != torch.uint8:
        given = f"shape {tuple(images.shape)} of {images.dtype}"
        raise DataError(f"{path}: got {given}, expected (images, height, width) of torch.uint8; pass an image file")
    return _rows(images.flatten(1), str(path))


def _read_labels(folder: Path, part: str) -> Tensor | None:
    candidates = (folder / name for name in _idx_names(f"{part}-labels-idx1-ubyte"))
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return None
    labels = read_idx(path)
    if labels.ndim != 1:
        raise DataError(f"{path}: got shape {tuple(labels.shape)}, expected one label per image; pass a label file")
    return labels.long()


_FINDERS: dict[str, Callable[[_Request], Found]] = {
    "digits": _digits,
    **dict.fromkeys(synthetic.SETS, _synthetic),
    "mnist": _idx_images("28 x 28 handwritten digits"),
    "fashion-mnist": _idx_images("28 x 28 pictures of clothes"),
    "susy": _susy,
}
