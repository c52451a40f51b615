"""`load`: a data set by name, from files or from memory; split, scaled, and kept in memory or read in pieces."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vaentropy.checks import require_count, require_path, require_seed
from vaentropy.data.catalogue import Found, OfficialSplit, find, names
from vaentropy.data.coding import Coding
from vaentropy.data.conditioned import Conditioned, ConditionedRows
from vaentropy.data.dataset import Dataset, split
from vaentropy.data.files import ACCEPTED, Options, source_of_file, source_of_object
from vaentropy.data.formats.images import ImageFolder
from vaentropy.data.formats.plain_columns import plain_columns
from vaentropy.data.scaling import Scale, Scaling, Totals
from vaentropy.data.source import Part, Source, column_name, resident, shards_of_both
from vaentropy.data.stored import Missing, checked, dequantised, largest, scaled
from vaentropy.errors import DataError, UsageError, nearest, shown

__all__ = ["load"]

RESIDENT_BYTES = 512 * 2**20  # both parts together; data above it are read in pieces
FITTED = ("standard", "min_max")


def load(
    name: Any,
    *,
    folder: str | os.PathLike[str] | None = None,
    held_out: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    columns: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str = (),
    scale: str | Scaling | None = None,
    dequantise: bool = False,
    missing: str = "error",
    stream: bool | None = None,
    image_size: int | None = None,
    crop: int | None = None,
    key: str | None = None,
    condition: Sequence[str] | str | Coding | None = None,
    check: bool = True,
) -> Dataset:
    """Load a data set: by name, from files, or from memory.

    Files:
        .npy, .npz: shape (N, *data_shape), or (N,) read as (N, 1).
        .csv, .csv.gz: fields divided by commas; a first line that is not all numbers names the columns, else they are
            called "0", "1", …; empty fields, NA and nan are missing values.
        .parquet, or a folder of such files with the same columns; nulls are missing values.
        A folder of png, jpg, bmp, webp or gif images, subfolders too: (channels, height, width). The usual CelebA of
            64 × 64 pixels is crop=148, image_size=64.

    Args:
        name: one of `names()`, a path ("./mnist" for a folder that is called like a data set), or the data themselves:
            a tensor, an array, a pandas or polars data frame, or a map-style torch Dataset whose items are arrays or
            tuples that begin with one.
        folder: for mnist, fashion-mnist and susy, where their files lie (there or in a folder of that name inside); by
            default the environment variable VAENTROPY_DATA. The others do not use it.
        held_out: fraction to hold out. By default 0.2 of digits, half of the synthetic sets, the official t10k set of
            mnist and fashion-mnist (an explicit fraction splits the train file instead), and 0.1 of all else.
        seed: fixes the split, the noise of `dequantise`, and the points of synthetic sets.
        dtype: floating dtype of the result.
        columns: of a table, to keep, in this order.
        exclude: columns of a table to leave out, such as labels.
        scale: None takes the data set's own: images divided by 255, digits by 16, the rest as stored. "none" as stored,
            "standard" to mean 0 and variance 1, "min_max" to [0, 1], per feature, by the training part; or a `Scaling`
            to use as it is, such as that of other data a model was trained on.
        dequantise: add uniform noise of [0, 1) to whole numbers before scaling, the same noise in every load with this
            seed; images are then divided by 256 and digits by 17.
        missing: "error", or "ignore" to let NaN stand for missing values.
        stream: True reads the parts in pieces, as `Source`s; False takes them into memory, as tensors; None decides by
            their size.
        image_size: for a folder of images, pixels per side of what comes out, the largest centred square resized.
        crop: for a folder of images, pixels per side of a centred square to cut out first.
        key: for a .npz file, name of the array, needed where there are several.
        condition: columns of a table that the model is given, and that are then no features; "labels" of a named set
            that has labels. Texts, and up to 20 different whole numbers, become one-hot vectors; other columns are
            standardised by the training part. Both parts then carry their condition, as from `given`. A `Coding`
            codes as for other data (`Dataset.coding`).
        check: False leaves out the pass over data that are read in pieces which finds at once what cannot be used;
            whoever reads a piece finds it then.

    Raises:
        UsageError: an unknown name, no folder, or an argument with a wrong value.
        DataError: a file is missing or cannot be used as it is; file, row and column are named.
        MissingExtraError: a library is missing.
    """
    _check_choices(dtype, scale, missing)
    require_seed(seed)
    for option, size in (("image_size", image_size), ("crop", crop)):
        if size is not None:
            require_count(option, size)
    if folder is not None:
        folder = require_path("folder", folder)
    raw, excluded = _raw_condition(name, condition, exclude)
    found = _find(name, Options(columns, excluded, image_size, crop, key), folder, seed=seed, official=held_out is None)
    official = found.held_out if isinstance(found.held_out, OfficialSplit) else None
    fraction = held_out if held_out is not None else 0.0 if official else found.held_out

    def divide(sources: Sequence[Source]) -> tuple[Source, Source]:
        if official is not None:
            return sources[0], sources[1]
        train, chosen = (Part(sources[0], fraction, seed=seed, held_out=part) for part in (False, True))  # type: ignore[arg-type]
        return train, chosen

    sources = [found.source] if official is None else [found.source, official.source]
    stored = [checked(source, missing, whole=dequantise) for source in sources]  # type: ignore[arg-type]
    if dequantise:
        stored = [dequantised(source, seed, number) for number, source in enumerate(stored)]
    scaling, seen = _fit(*divide(stored), found, scale, dequantise, dtype)
    ready = [scaled(source, scaling, dtype) for source in stored]
    coding = None
    if condition is not None:
        coding, conditions = _coded(found, raw, condition, fraction, seed)  # type: ignore[arg-type]
        ready = [Conditioned(source, c) for source, c in zip(ready, conditions, strict=True)]
    train, chosen = divide(ready)
    values = (len(train) + len(chosen)) * math.prod(train.data_shape)
    if stream or (stream is None and values * dtype.itemsize > RESIDENT_BYTES):
        for source in ready if check and not seen else []:
            for _ in source:  # reading checks
                pass
        parts = train, chosen
    else:
        parts = resident(train, chosen)
        if coding is not None:
            shape, named = found.source.data_shape, {"name": found.name, "columns": tuple(found.source.columns)}
            parts = tuple(ConditionedRows(part, shape, **named) for part in parts)
    labels = (found.labels, official.labels) if official else _split_labels(found, fraction, seed)  # type: ignore[arg-type]
    description = _describe(found, scale, dequantise) + (f"; given {coding}" if coding else "")
    columns = tuple(found.source.columns)
    # What is known is log p(x), not log p(x|c).
    truth = None if coding else _truth(found, fraction, seed, scaling)  # type: ignore[arg-type]
    return Dataset(found.name, *parts, description, *labels, truth, scaling, missing, columns, coding)  # type: ignore[arg-type]


LABELS = "labels"


def _raw_condition(
    given: Any, condition: Sequence[str] | str | Coding | None, exclude: Sequence[str] | str
) -> tuple[dict[str, np.ndarray] | None, Sequence[str] | str]:
    """Columns of a table that make a condition, and what is to be left out of its features with them.

    None where there is no condition, or where it is made of labels.
    """
    if condition is None:
        return None, exclude
    wanted = condition.names if isinstance(condition, Coding) else condition
    wanted = (wanted,) if isinstance(wanted, str) or not isinstance(wanted, Sequence) else tuple(wanted)
    if not wanted or not all(isinstance(each, str) for each in wanted):
        raise UsageError(f"condition={shown(condition)} given, expected names of columns, or 'labels'")
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if path in names():
        if wanted != (LABELS,):
            raise UsageError(f"condition={shown(condition)} given for {path}, expected 'labels', its only one")
        return None, exclude
    table = given if path is None else Path(os.path.expanduser(path))
    if isinstance(table, Path) and not table.exists():
        return None, exclude  # `_find` says so
    texts = condition.texts if isinstance(condition, Coding) else ()
    raw = plain_columns(table, wanted, texts=texts)
    return raw, (*((exclude,) if isinstance(exclude, str) else exclude), *wanted)


def _coded(
    found: Found,
    raw: dict[str, np.ndarray] | None,
    condition: Sequence[str] | str | Coding,
    fraction: float,
    seed: int,
) -> tuple[Coding, list[Tensor]]:
    """How the condition is coded, and that of each source."""
    each = [raw] if raw is not None else [{LABELS: labels} for labels in _all_labels(found)]
    sizes = [len(found.source)]
    if isinstance(found.held_out, OfficialSplit):
        sizes.append(len(found.held_out.source))
    for columns, size in zip(each, sizes, strict=True):
        for name, column in columns.items():
            if len(column) != size:
                how = "no value may hold a line end"
                raise DataError(
                    f"{found.name}: {len(column)} values of {name!r} for {size} rows, expected one each; {how}"
                )
    if isinstance(condition, Coding):
        coding = condition
    else:
        places, _ = _split_like_rows(torch.arange(sizes[0]), found, fraction, seed)
        assert places is not None
        train = {name: column[places.numpy()] for name, column in each[0].items()}
        coding = Coding.fit({name: np.concatenate([columns[name] for columns in each]) for name in each[0]}, train)
    return coding, [coding.encode(columns) for columns in each]


def _all_labels(found: Found) -> list[np.ndarray]:
    """Labels of each source."""
    official = [found.held_out.labels] if isinstance(found.held_out, OfficialSplit) else []
    labels = [None if each is None else each.numpy() for each in (found.labels, *official)]
    if any(each is None for each in labels):
        raise DataError(f"{found.name}: there are no labels for a condition; leave it out, or add the file of labels")
    return labels  # type: ignore[return-value]


def _check_choices(dtype: torch.dtype, scale: str | Scaling | None, missing: str) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(f"dtype is {shown(dtype)}, expected a floating dtype; pass e.g. torch.float32")
    choices = (
        ("scale", None if isinstance(scale, Scaling) else scale, (None, *get_args(Scale))),
        ("missing", missing, get_args(Missing)),
    )
    for option, value, accepted in choices:
        if value not in accepted:
            raise UsageError(f"{option}={shown(value)} given, expected {' or '.join(map(repr, accepted))}")


def _find(given: Any, options: Options, folder: str | os.PathLike[str] | None, *, seed: int, official: bool) -> Found:
    """The data set that is meant, not yet split."""
    if not isinstance(given, str | os.PathLike):
        source = source_of_object(given, options)
        return Found(source.name, f"values of the {source.name} given", source)
    name = os.fspath(require_path("data", given))
    if name in names():
        options.refuse_all_but(what=name)
        return find(name, folder, seed=seed, official=official)
    path = Path(os.path.expanduser(name))  # leaves "~name" as it is where there is no such user
    source = source_of_file(path, options)
    if source is None:
        hint = nearest(name.lower(), names())
        raise UsageError(f"unknown data set {name!r}; {hint}expected {', '.join(names())}, or {ACCEPTED}")
    if isinstance(source, ImageFolder):
        return Found(path.name, f"{' x '.join(map(str, source.data_shape))} images", source, highest=255)
    return Found(path.name, "values of the file" if path.is_file() else "values of the files", source)


def _fit(
    train: Source, held_out: Source, found: Found, scale: str | Scaling | None, dequantise: bool, dtype: torch.dtype
) -> tuple[Scaling, bool]:
    """The scaling, and whether it is known already that no value is too large for the dtype."""
    if isinstance(scale, Scaling):
        if scale.scale.ndim and scale.scale.shape != train.data_shape:
            given = f"{train.name}: data points of shape {train.data_shape}"
            raise DataError(f"{given} given, expected {tuple(scale.scale.shape)} as the scaling has; name other data")
        return scale, False
    if scale not in FITTED:
        divisor = 1.0
        if scale is None and found.highest is not None:
            divisor = float(found.highest + dequantise)  # so that noise leaves pixels in [0, 1)
        read = found.source.dtype
        seen = not read.is_floating_point and largest(read) < largest(dtype)
        return Scaling.by(divisor, dequantised=dequantise), seen
    totals = Totals(train.data_shape), Totals(train.data_shape)
    for shard, held_out_shard in shards_of_both(train, held_out):
        if shard is not None:
            totals[0].add(shard)
        if held_out_shard is not None:
            totals[1].add(held_out_shard)
        del shard, held_out_shard  # before the next ones are read
    scaling = Scaling.fit(scale, totals[0].read(train), dequantised=dequantise)  # type: ignore[arg-type]
    bad = ~(scaling.shift.isfinite() & scaling.scale.isfinite())
    if bool(bad.any()):
        column = column_name(train, bad.nonzero()[0].tolist())
        raise DataError(f"{train.name}: {column} has values too large to scale in float64; correct them")
    extremes = torch.stack([extreme for total in totals for extreme in (total.minimum, total.maximum)])
    return scaling, bool(scaling.apply(extremes).to(dtype).isfinite().all())


def _split_labels(found: Found, fraction: float, seed: int) -> tuple[Tensor | None, Tensor | None]:
    if found.labels is not None and len(found.labels) != len(found.source):
        given = f"{len(found.labels)} labels for {len(found.source)} rows"
        raise DataError(f"{found.source.name}: got {given}, expected one label per row; get whole copies")
    return _split_like_rows(found.labels, found, fraction, seed)


def _split_like_rows(x: Tensor | None, found: Found, fraction: float, seed: int) -> tuple[Tensor | None, Tensor | None]:
    if x is None:
        return None, None
    return split(x, fraction, seed=seed, shard_size=max(found.source.shard_sizes))


def _truth(found: Found, fraction: float, seed: int, scaling: Scaling) -> dict[str, float] | None:
    """Log-likelihoods of the parts under the distribution that they come from, in the model's units."""
    if found.log_density is None:
        return None
    # log p(y) = log p(x) - log |dy/dx|
    units = scaling.log_jacobian.expand(found.source.data_shape).sum().item()
    parts = zip(("train", "held_out"), _split_like_rows(found.log_density, found, fraction, seed), strict=True)
    return {f"log_likelihood_{name}": of.mean().item() - units for name, of in parts if of is not None and len(of)}


def _describe(found: Found, scale: str | Scaling | None, dequantise: bool) -> str:
    words = [found.description]
    if dequantise:
        words.append("uniform noise of [0, 1) added")
    if isinstance(scale, Scaling):
        words.append("not rescaled" if scale.trivial else "scaled as other data were")
    elif scale == "standard":
        words.append("scaled to mean 0 and variance 1 per feature")
    elif scale == "min_max":
        words.append("scaled to [0, 1] per feature")
    elif scale is None and found.highest is not None:
        words.append(f"pixel values divided by {found.highest + dequantise}, in [0, 1{')' if dequantise else ']'}")
    else:
        words.append("not rescaled")
    return ", ".join(words) + (f"; held out: {found.split}" if found.split else "")
