import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vaentropy.data import load
from vaentropy.data.formats import images
from vaentropy.data.formats.images import ImageFolder, image_paths
from vaentropy.errors import DataError, MissingExtraError, UsageError


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(folder, words, **more):
    with pytest.raises(DataError, match=words) as caught:
        torch.cat(list(ImageFolder(folder, **more)))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def colour(tmp_path):
    """Five images of 6 × 4 pixels, some in a subfolder, and other files beside them."""
    array = pixels(5, 6, 4, 3)
    (tmp_path / "b").mkdir()
    for path, image in zip(["a.png", "b/1.PNG", "b/2.bmp", "c.png", "d.webp"], array, strict=True):
        Image.fromarray(image).save(tmp_path / path, **({"lossless": True} if path.endswith("webp") else {}))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails/a.png").write_text("no image")
    return tmp_path, array.transpose(0, 3, 1, 2)


def test_colour(colour, monkeypatch):
    monkeypatch.setattr(images, "SHARD_IMAGES", 2)
    folder, array = colour
    found = ImageFolder(folder)
    assert found.data_shape == (3, 6, 4) and found.shard_sizes == [2, 2, 1] and found.dtype == torch.uint8
    assert torch.cat(list(found)).tolist() == array.tolist() and found.read(1).tolist() == array[2:4].tolist()
    data = load(folder, held_out=0.0)
    assert torch.equal(data.train, torch.from_numpy(array / np.float32(255))) and data.data_shape == (3, 6, 4)
    assert "3 x 6 x 4 images, pixel values divided by 255, in [0, 1]" in data.description


def test_grey_unless_one_is_not(tmp_path):
    array = pixels(3, 5, 7)
    for number, image in enumerate(array):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    Image.fromarray(array[0] > 100).save(tmp_path / "3.png")
    found = ImageFolder(tmp_path)
    assert found.data_shape == (1, 5, 7)
    assert found.read(0).tolist() == [[image.tolist()] for image in (*array, 255 * (array[0] > 100).astype(np.uint8))]
    Image.fromarray(pixels(5, 7, 4)).save(tmp_path / "4.png")  # with transparency
    found = ImageFolder(tmp_path)
    assert found.data_shape == (3, 5, 7) and found.read(0)[0].tolist() == [array[0].tolist()] * 3
    assert found.read(0)[4].tolist() == pixels(5, 7, 4)[:, :, :3].transpose(2, 0, 1).tolist()


def test_crop_and_size(tmp_path):
    """The recipe of CelebA: the middle 148 of 178 × 218 pixels, resized to 64."""
    array = pixels(218, 178, 3)
    Image.fromarray(array).save(tmp_path / "0.png")
    assert ImageFolder(tmp_path, crop=148).read(0)[0].tolist() == array[35:183, 15:163].transpose(2, 0, 1).tolist()
    x = ImageFolder(tmp_path, image_size=64, crop=148).read(0)
    assert x.shape == (1, 3, 64, 64)
    # With antialiasing, an average over about the pixels that become one.
    cropped = torch.from_numpy(array[35:183, 15:163].transpose(2, 0, 1).copy()).double()[None]
    expected = torch.nn.functional.interpolate(cropped, size=64, mode="bilinear", antialias=True)
    assert (x.double() - expected).abs().max() < 1.01
    # Without crop: the largest centred square.
    square = torch.from_numpy(array[20:198].transpose(2, 0, 1).copy()).double()[None]
    expected = torch.nn.functional.interpolate(square, size=64, mode="bilinear", antialias=True)
    assert (ImageFolder(tmp_path, image_size=64).read(0).double() - expected).abs().max() < 1.01
    refused(tmp_path, "is 178 x 218 pixels, expected at least 179 for crop=179", crop=179)


def test_sizes_that_differ(tmp_path):
    for number, size in enumerate([(6, 5, 3), (6, 5, 3), (6, 4, 3)]):
        Image.fromarray(pixels(*size)).save(tmp_path / f"{number}.png")
    refused(tmp_path, r"2\.png: is 4 x 6 pixels, expected 5 x 6 as the first image; pass image_size, or crop")
    assert ImageFolder(tmp_path, image_size=3).data_shape == (3, 3, 3)
    assert ImageFolder(tmp_path, crop=4).data_shape == (3, 4, 4)
    with pytest.raises(UsageError, match="image_size=0 given"):
        ImageFolder(tmp_path, image_size=0)


@pytest.mark.parametrize("ending", ["jpg", "gif"])
def test_lossy_formats(tmp_path, ending):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 4
    Image.fromarray(smooth).convert("RGB").save(tmp_path / f"x.{ending}")
    x = ImageFolder(tmp_path).read(0)
    assert x.shape == (1, 3, 16, 16) and (x[0, 0].double() - torch.from_numpy(smooth).double()).abs().max() < 10


def test_images_that_cannot_be_used(colour):
    folder, _ = colour
    path = folder / "b/1.PNG"
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:60], b"GIF89a", b"II*\0" + bytes(50)):
        path.write_bytes(content)
        refused(folder, r"b/1\.PNG: not readable as an image .*; replace or remove it")
    Image.fromarray(pixels(6, 4).astype(np.uint16) * 200).save(path)
    refused(folder, r"b/1\.PNG: pixels are of Pillow's mode I;16, expected grey or colour")
    Image.fromarray(pixels(6, 4)).save(path, format="TIFF")
    refused(folder, "not readable as an image")


def test_a_folder_without_images(tmp_path):
    refused(tmp_path, "holds no images")
    with pytest.raises(DataError, match="no such file"):
        ImageFolder(tmp_path / "absent")


def test_bombs_are_refused(colour, monkeypatch):
    for limit in (15, 10):  # Pillow warns above its limit and raises above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(colour[0], "DecompressionBomb")


def test_an_image_that_changes(colour):
    folder, _ = colour
    found = ImageFolder(folder)
    Image.fromarray(pixels(7, 4, 3)).save(folder / "c.png")
    with pytest.raises(DataError, match=r"c\.png: is 4 x 7 pixels, expected 4 x 6"):
        found.read(0)


def test_the_order_is_that_of_relative_paths(colour):
    folder, _ = colour
    found = [path.relative_to(folder).as_posix() for path in image_paths(folder)]
    assert found == ["a.png", "b/1.PNG", "b/2.bmp", "c.png", "d.webp"]


def test_without_pillow(colour, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pillow is not installed; run: pip install 'vaentropy\[data\]'"):
        ImageFolder(colour[0])
