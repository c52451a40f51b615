"""Folders of images."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaentropy.checks import require_count
from vaentropy.data.formats.reading import reading, size_of
from vaentropy.data.source import Source
from vaentropy.errors import DataError, MissingExtraError, UsageError

__all__ = ["IMAGE_ENDINGS", "ImageFolder", "image_paths"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")  # no file is given to any other decoder, whatever its name
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
IMAGE = "an image (png, jpg, bmp, webp or gif)"
SHARD_IMAGES = 256
MAX_SHARD_BYTES = 2**28  # of large images there are fewer in a shard
MAX_SIDE = 2**14  # pixels


class ImageFolder(Source):
    """Images in the order of their paths, subfolders too, (N, channels, height, width) in uint8.

    There is one channel if all are grey, else three; transparency is dropped, and of an animation the first picture is
    taken. The usual CelebA of 64 × 64 pixels is crop=148, image_size=64.

    Args:
        folder: where they are.
        image_size: pixels per side of the square that comes out: the largest centred square, resized (bilinear, with
            antialiasing).
        crop: pixels per side of a centred square that is cut out first.

    Raises:
        DataError: no such folder, no images in it, one that cannot be read, or sizes that differ without these options.
        UsageError: a size below 1.
        MissingExtraError: Pillow is not installed.
    """

    def __init__(self, folder: Path, image_size: int | None = None, crop: int | None = None):
        for option, value in (("image_size", image_size), ("crop", crop)):
            if value is not None and require_count(option, value) > MAX_SIDE:
                raise UsageError(f"{option}={value} given, expected at most {MAX_SIDE} pixels")
        self._paths = image_paths(folder)
        if not self._paths:
            raise DataError(f"{folder}: holds no images, expected {', '.join(IMAGE_ENDINGS)}; pass another folder")
        self.name, self.dtype = str(folder), torch.uint8
        self._size, self._crop = image_size, crop
        channels, shape = 1, None
        for path in self._paths:  # the headers alone
            with _opened(path) as image:
                channels = channels if image.mode in GREY_MODES else 3
                shape = self._check_size(image, path, shape)
        assert shape is not None
        self.data_shape = (channels, *shape)
        step = min(SHARD_IMAGES, max(1, MAX_SHARD_BYTES // math.prod(self.data_shape)))
        self._starts = range(0, len(self._paths), step)
        self.shard_sizes = [min(step, len(self._paths) - start) for start in self._starts]

    def read(self, shard: int) -> Tensor:
        """One shard, decoded."""
        start = self._starts[shard]
        x = np.empty((self.shard_sizes[shard], *self.data_shape), dtype=np.uint8)
        for row, path in enumerate(self._paths[start : start + len(x)]):
            with _opened(path) as image:
                self._check_size(image, path, self.data_shape[1:])
                pixels = np.asarray(self._cut(image.convert("L" if len(x[row]) == 1 else "RGB")))
            x[row] = pixels.reshape(*self.data_shape[1:], -1).transpose(2, 0, 1)
        return torch.from_numpy(x)

    def place(self, shard: int) -> tuple[str, int]:
        """The first file of the shard."""
        return str(self._paths[self._starts[shard]]), 0

    def only(self, shards: range) -> Source:
        """Of all paths, those of these shards."""
        part, first, last = self._narrowed(shards), self._starts[shards.start], self._starts.step * shards.stop
        part._paths = self._paths[first:last]
        part._starts = range(-first, len(self._paths) - first, self._starts.step)
        return part

    def _check_size(self, image: Any, path: Path, expected: tuple[int, ...] | None) -> tuple[int, ...]:
        """Height and width of what becomes of an image."""
        if self._crop is not None and min(image.size) < self._crop:
            given = f"is {image.width} x {image.height} pixels"
            raise DataError(f"{path}: {given}, expected at least {self._crop} for crop={self._crop}; crop less")
        side = self._size or self._crop
        shape = (side, side) if side else (image.height, image.width)
        if expected is not None and shape != expected:
            given = (
                f"is {image.width} x {image.height} pixels, expected {expected[1]} x {expected[0]} as the first image"
            )
            raise DataError(f"{path}: {given}; pass image_size, or crop")
        return shape

    def _cut(self, image: Any) -> Any:
        if self._crop is not None:
            image = image.crop(_centred(image, self._crop, self._crop))
        if self._size is not None:
            from PIL import Image

            side = min(image.size)
            image = image.crop(_centred(image, side, side))
            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return image


def image_paths(folder: Path) -> list[Path]:
    """All images under a folder, sorted by their paths relative to it; hidden ones do not count.

    Raises:
        DataError: there is no such folder, or part of it cannot be listed.
    """
    found = []

    def refuse(error: OSError) -> None:
        raise error

    with reading(folder, "a folder of images"):
        for parent, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = (name for name in files if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."))
            found.extend(Path(parent, name) for name in images)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _centred(image: Any, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return left, top, left + width, top + height


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image, decoded when needed; whatever is wrong with it is a DataError, Pillow's limit of pixels included."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data") from error
    size_of(path, IMAGE)
    with reading(path, IMAGE, "replace or remove it"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in GREY_MODES + COLOUR_MODES:
                how = "convert it to 8 bits per channel"
                raise DataError(f"{path}: pixels are of Pillow's mode {image.mode}, expected grey or colour; {how}")
            yield image
