import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaentropy.data import load
from vaentropy.data.files import Options, source_of_file, source_of_object
from vaentropy.errors import DataError, UsageError, VaentropyError


def make(kind, folder):
    """A small file of a kind, and what to load."""
    frame = pd.DataFrame(np.arange(60.0).reshape(20, 3), columns=list("abc"))
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, frame.to_numpy())
    elif kind == "npz":
        np.savez_compressed(path, x=frame.to_numpy())
    elif kind in ("csv", "csv.gz"):
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        Image.fromarray(pixels).save(path)
        return path, folder
    return path, path


KINDS = ["npy", "npz", "csv", "csv.gz", "parquet", "png", "jpg", "bmp", "gif", "webp"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_gives_data_or_an_error_of_one_line(kind, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path, given = make(kind, folder)
    content = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["cut", "flip", "zeros", "insert"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if how == "cut":
        del content[place:]
    elif how == "flip":
        content[place] = data.draw(st.integers(0, 255))
    elif how == "zeros":
        content[place : place + 20] = bytes(len(content[place : place + 20]))
    else:
        content[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    path.write_bytes(content)
    for stream in (False, True):
        try:
            loaded = load(given, held_out=0.0, missing="ignore", stream=stream)
            x = loaded.train if isinstance(loaded.train, torch.Tensor) else torch.cat(list(loaded.train))
            assert not x.isinf().any()
        except VaentropyError as error:
            assert str(folder) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("kind", KINDS[:5])
def test_no_file_and_a_folder_in_its_place(kind, tmp_path):
    with pytest.raises(DataError, match=rf"x\.{kind}: no such file; pass the path of"):
        load(tmp_path / f"x.{kind}")
    (tmp_path / f"x.{kind}").mkdir()
    with pytest.raises(DataError, match=r"is a directory; pass|no \.parquet files and no images"):
        load(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_may_not_be_read(kind, tmp_path, monkeypatch):
    path, given = make(kind, tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for place in ("pathlib.Path.open", "gzip.open", "builtins.open", "pyarrow.parquet.ParquetFile", "zipfile.ZipFile"):
        monkeypatch.setattr(place, refuse)
    with pytest.raises(DataError, match="PermissionError"):
        load(given)


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="PermissionError"):
        load(tmp_path)


def test_folders(tmp_path):
    with pytest.raises(DataError, match=r"no \.parquet files and no images \(\.png, .*\) in it; expected a path"):
        load(tmp_path)
    make("png", tmp_path)
    assert load(tmp_path, held_out=0.0).data_shape == (3, 8, 8)
    make("parquet", tmp_path)
    with pytest.raises(DataError, match=r"holds \.parquet files and images, expected one kind"):
        load(tmp_path)
    (tmp_path / "x.png").unlink()
    assert load(tmp_path).data_shape == (3,)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("npy", "columns"), ("npz", "exclude"), ("csv", "key"), ("parquet", "crop"), ("png", "columns"), ("png", "key")],
)
def test_options_that_would_have_no_effect_are_refused(tmp_path, kind, option):
    _, given = make(kind, tmp_path)
    value = {"columns": "a", "exclude": "a", "key": "x", "crop": 3}[option]
    with pytest.raises(UsageError, match=f"{option} given, which is for a"):
        load(given, **{option: value})
    with pytest.raises(UsageError, match=f"digits: {option} given"):
        load("digits", **{option: value})


def test_endings_in_capitals(tmp_path):
    path, _ = make("csv.gz", tmp_path)
    path.rename(tmp_path / "X.CSV.GZ")
    assert len(source_of_file(tmp_path / "X.CSV.GZ", Options())) == 20
    assert source_of_file(tmp_path / "x.txt", Options()) is None


def test_frames_by_column():
    frame = pd.DataFrame({"a": [1, 2], "label": ["x", "y"], 3: [5, 6]})
    source = source_of_object(frame, Options(columns=["3", "a"]))
    assert source.read(0).tolist() == [[5, 1], [6, 2]] and source.columns == ["3", "a"]
    assert source_of_object(frame, Options(exclude="label")).columns == ["a", "3"]
    with pytest.raises(UsageError, match=r"DataFrame: no column 'lable'; did you mean 'label'\?"):
        source_of_object(frame, Options(exclude="lable"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.float64(3.0), r"float64 of shape \(\) given"),
        (np.zeros((3, 0)), r"ndarray of shape \(3, 0\) given"),
        (torch.zeros(0, 3), r"Tensor of shape \(0, 3\) given"),
        (torch.zeros(3, 3, dtype=torch.complex64), "tensor of torch.complex64"),
        (np.array(["x"]), "ndarray given as data"),
        ({"a": 1}, "dict given as data"),
        (None, "NoneType given as data"),
    ],
)
def test_what_is_no_data(given, words):
    with pytest.raises(DataError, match=words):
        load(given)


def test_a_vector_is_one_feature():
    assert load(np.arange(10), held_out=0.0).train.tolist() == [[number] for number in range(10)]
    assert load([[1, 2], [3, 4]], held_out=0.0).train.tolist() == [[1, 2], [3, 4]]
