"""Data points as pictures: mosaics of images, and features in units of their own spread."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from vaentropy._typing import Tensor
from vaentropy.data.scaling import Scaling, Statistics
from vaentropy.data.source import Rows
from vaentropy.errors import UsageError, shown
from vaentropy.figures.style import literal

__all__ = [
    "MANY",
    "MOST_NAMED",
    "SIGNED",
    "as_pixels",
    "feature_names",
    "figure_height",
    "gap_of",
    "image_shape",
    "mosaic",
    "picture",
    "reduced",
    "require_names",
    "standardisation",
    "value_range",
]

CHANNELS = (1, 3)
# What is wider or higher than this many times the other is no image by itself, but more likely a few sequences.
LONGEST_SIDE = 8
# Features whose names fit beside a picture.
MOST_NAMED = 40
# Inches of a figure.
LOWEST, HIGHEST = 1.6, 9.0
# Colours of what has a sign: orange over white to violet.
SIGNED = "PuOr"
# zorder of what `as_pixels` speaks of: above grids, below all else.
MANY = 0.6
# Between the images of a mosaic, in parts of an image's width.
GAP = 1 / 12
# Pixels of a mosaic to each side: a page shows no more, and photographs would take megabytes.
MOST_PIXELS = 1000


def require_names(columns: Any, data_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of features, one for each of them or none at all.

    Raises:
        UsageError: they are something else.
    """
    names: tuple[Any, ...] = (None,) if isinstance(columns, str) or not isinstance(columns, Iterable) else (*columns,)
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"columns={shown(columns)} given, expected the names of the features")
    num_features = math.prod(data_shape)
    if len(names) not in (0, num_features):
        raise UsageError(f"{len(names)} names given as columns, expected one for each of the {num_features} features")
    return (*names,)


def feature_names(columns: Sequence[str], data_shape: tuple[int, ...]) -> list[str]:
    """One text for each feature, to be drawn: its name, or its number counted from 0.

    Raises:
        UsageError: there are names, but not one for each feature.
    """
    names = require_names(columns, data_shape)
    return [literal(name) for name in names] or [str(d) for d in range(math.prod(data_shape))]


def image_shape(data_shape: tuple[int, ...], shape: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of data that are images; None for others.

    Args:
        data_shape: (height, width), or (channels, height, width) with 1 or 3 channels, is an image, but if it is more
            than 8 times as long in one direction as in the other.
        shape: makes images of any data of as many values: (height, width) or (channels, height, width).

    Raises:
        UsageError: `shape` is something else.
    """
    given = data_shape if shape is None else shape
    sizes = (*given,) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes)
    if whole and len(sizes) in (2, 3) and math.prod(sizes) == math.prod(data_shape):
        channels, height, width = (1, *sizes)[-3:]
        if channels in CHANNELS and (shape is not None or max(height, width) <= LONGEST_SIDE * min(height, width)):
            return channels, height, width
    if shape is not None:
        expected = f"expected (height, width), or (channels, height, width) with 1 or 3 channels, of data {data_shape}"
        raise UsageError(f"shape={shown(shape)} given, {expected}")
    return None


def as_pixels(axes: Axes) -> None:
    """Make one picture of pixels of all that is drawn at the zorder MANY: an SVG does not grow with what is in it.

    Of these alone: a grid or an axis in it would keep its colour on a dark page.
    """
    for artist in (*axes.collections, *axes.lines):
        artist.set_rasterized(artist.get_zorder() == MANY)


def value_range(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value, missing ones left out; an interval even where all are equal."""
    values = x[~x.isnan()]
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def mosaic(images: Tensor, limits: tuple[float, float]) -> np.ndarray:
    """Images side by side, NaN or transparent between them and where a value is missing.

    Args:
        images: (rows, columns, channels, height, width).
        limits: values that are darkest and brightest, in colour images; of those with one channel imshow has them.

    Returns:
        (y, x) of one channel, or (y, x, 4): red, green, blue and opacity.
    """
    rows, columns, channels, height, width = images.shape
    gap = gap_of(width)
    canvas = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = images[i, j].double().numpy()
    if channels == 1:
        return canvas[0]
    low, high = limits
    there = np.isfinite(canvas).all(0)
    colours = np.where(there, (canvas - low) / (high - low), 0).clip(0, 1)
    return np.concatenate([colours, np.expand_dims(there, 0)]).transpose(1, 2, 0)


def reduced(images: Tensor) -> Tensor:
    """Images of a mosaic (rows, columns, channels, height, width), large ones as means over squares of their pixels."""
    rows, columns, _, height, width = images.shape
    factor = math.ceil(max(rows * height, columns * width) / MOST_PIXELS)
    if factor == 1:
        return images
    beyond = torch.nn.functional.pad(images, (0, -width % factor, 0, -height % factor), value=math.nan)
    return beyond.unfold(-2, factor, factor).unfold(-2, factor, factor).nanmean((-2, -1))


def gap_of(width: int) -> int:
    """Pixels between the images of a mosaic."""
    return max(1, round(GAP * width))


def standardisation(x: Tensor) -> Scaling:
    """Each feature in standard deviations from its mean over the points x (P, D); NaN is left out.

    Features of a table have units of their own: this is how they fit into one picture.
    """
    return Scaling.fit("standard", Statistics.of(Rows(torch.where(x.isnan().all(0), 0.0, x))))


def picture(axes: Axes, values: np.ndarray, limits: tuple[float, float], colours: str) -> AxesImage:
    """Values (y, x) as pixels; blank where they are not finite."""
    axes.grid(visible=False)
    return axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")


def figure_height(inches: float, height: int, width: int) -> float:
    """Inches that a figure is high, for a picture of so many pixels that has `inches` in width; as a page takes it."""
    return min(HIGHEST, max(LOWEST, inches * height / width + 0.5))
