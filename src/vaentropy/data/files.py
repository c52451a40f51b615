"""From what a user has, a path or data in memory, to a source."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset as TorchDataset

from vaentropy.data.formats.arrays import NpyFile, npz_source
from vaentropy.data.formats.csv_file import CsvFile
from vaentropy.data.formats.images import IMAGE_ENDINGS, ImageFolder, image_paths
from vaentropy.data.formats.parquet import ParquetFiles
from vaentropy.data.formats.tables import Names, choose
from vaentropy.data.formats.torch_dataset import TorchItems
from vaentropy.data.source import Rows, Source, rows_per_shard
from vaentropy.errors import DataError, UsageError
from vaentropy.rows import as_tensor, frame_columns, stack_columns

__all__ = ["ACCEPTED", "Options", "source_of_file", "source_of_object"]

ACCEPTED = "a path ending in .npy, .npz, .csv, .csv.gz or .parquet, or a folder of .parquet files or of images"


@dataclass(frozen=True)
class Options:
    """What can be asked of some kinds of data only; the default asks nothing."""

    columns: Names | None = None
    exclude: Names = ()
    image_size: int | None = None
    crop: int | None = None
    key: str | None = None

    def refuse_all_but(self, *allowed: str, what: str) -> None:
        """Refuse options that would have no effect.

        Raises:
            UsageError: naming the first of them.
        """
        homes = {"key": "a .npz file", "image_size": "a folder of images", "crop": "a folder of images"}
        for field in fields(self):
            if getattr(self, field.name) != field.default and field.name not in allowed:
                home = homes.get(field.name, "a table with named columns")
                raise UsageError(f"{what}: {field.name} given, which is for {home}; leave it out")


def source_of_file(path: Path, options: Options) -> Source | None:
    """The source that a path names by its ending, or by what the folder holds; None if nothing is known of it.

    Raises:
        DataError: it cannot be used.
        UsageError: an option that does not fit it.
    """
    for ending, (allowed, make) in _KINDS.items():
        if path.name.lower().endswith(ending) and not (ending == ".parquet" and path.is_dir()):
            options.refuse_all_but(*allowed, what=str(path))
            return make(path, options)
    return _folder(path, options) if path.is_dir() else None


def source_of_object(data: Any, options: Options) -> Source:
    """The source of a tensor, array, data frame or torch Dataset.

    Raises:
        DataError: it cannot be used.
        UsageError: an option that does not fit it.
    """
    if isinstance(data, TorchDataset):
        options.refuse_all_but(what="a torch dataset")
        return TorchItems(data)
    name, columns = type(data).__name__, []
    if (named := frame_columns(data)) is not None:
        options.refuse_all_but("columns", "exclude", what=name)
        kept = choose([column for column, _ in named], options.columns, options.exclude, name)
        columns = [named[position][0] for position in kept]
        x = stack_columns([named[position] for position in kept], name)
    else:
        options.refuse_all_but(what=name)
        x = as_tensor(data).cpu()
    if x.is_complex():
        raise DataError(f"{name} of {x.dtype} given, expected real numbers; convert it")
    if x.ndim == 0 or 0 in x.shape:
        raise DataError(f"{name} of shape {tuple(x.shape)} given, expected (rows, features, ...), none of them 0")
    x = x.unsqueeze(1) if x.ndim == 1 else x
    return Rows(x, name, rows_per_shard(x.shape[1:]), columns)


def _folder(path: Path, options: Options) -> Source:
    tables = any(file.name[0] not in "._" for file in path.glob("*.parquet"))
    images = image_paths(path)
    if tables and images:
        raise DataError(f"{path}: holds .parquet files and images, expected one kind; move the others out")
    if tables:
        options.refuse_all_but("columns", "exclude", what=str(path))
        return ParquetFiles(path, options.columns, options.exclude)
    if images:
        options.refuse_all_but("image_size", "crop", what=str(path))
        return ImageFolder(path, options.image_size, options.crop)
    raise DataError(f"{path}: no .parquet files and no images ({', '.join(IMAGE_ENDINGS)}) in it; expected {ACCEPTED}")


_TABLE = ("columns", "exclude")
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Path, Options], Source]]] = {
    ".npy": ((), lambda path, options: NpyFile(path)),
    ".npz": (("key",), lambda path, options: npz_source(path, options.key)),
    ".csv": (_TABLE, lambda path, options: CsvFile(path, options.columns, options.exclude)),
    ".csv.gz": (_TABLE, lambda path, options: CsvFile(path, options.columns, options.exclude)),
    ".parquet": (_TABLE, lambda path, options: ParquetFiles(path, options.columns, options.exclude)),
}
