import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import load, source, split
from vaentropy.data.formats import arrays
from vaentropy.data.formats.arrays import NpyFile, npz_source
from vaentropy.errors import DataError, UsageError


@pytest.fixture
def save(tmp_path):
    def save(array, **more):
        np.save(tmp_path / "x.npy", array, **more)
        return tmp_path / "x.npy"

    return save


def refused(path, words, **more):
    with pytest.raises(DataError, match=words) as caught:
        load(path, **more)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["?", "u1", ">u2", "u8", "i1", "<i4", ">i8", "f2", ">f4", "f8", "longdouble"])
@pytest.mark.parametrize("shape", [(20,), (20, 1), (10, 2), (5, 2, 2)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_kind(save, kind, shape, order):
    array = np.asarray(np.arange(20).reshape(shape) % 2 if kind == "?" else np.arange(20).reshape(shape), order=order)
    data = load(save(array.astype(kind)))
    assert data.train.dtype == torch.float32 and data.data_shape == (shape[1:] or (1,))
    expected = split(torch.tensor(array.tolist()), 0.1)
    assert data.train.flatten(1).tolist() == expected[0].reshape(len(data.train), -1).tolist()
    assert data.held_out.flatten(1).tolist() == expected[1].reshape(len(data.held_out), -1).tolist()


def test_what_a_file_is_called(save):
    data = load(str(save(np.arange(20))), held_out=0.25, dtype=torch.float64)
    assert data.name == "x.npy" and "not rescaled" in data.description
    assert (len(data.train), len(data.held_out), data.train.dtype) == (15, 5, torch.float64)


def test_float64_keeps_every_digit(save):
    x = np.random.default_rng(0).normal(size=(7, 3))
    assert load(save(x), held_out=0.0, dtype=torch.float64).train.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.float64(3.0), r"shape is \(\)"),
        (np.zeros((0, 3)), r"shape is \(0, 3\)"),
        (np.zeros((3, 0)), r"shape is \(3, 0\)"),
        (np.array(["a", "b"]), "elements are <U1"),
        (np.zeros(3, complex), "elements are complex128"),
        (np.zeros(3, "M8[s]"), "elements are datetime64"),
        (np.zeros(3, [("a", "f4")]), r"elements are \[\('a'"),
    ],
)
def test_arrays_that_are_no_data(save, array, words):
    refused(save(array), words)


def test_a_value_that_is_not_finite_is_named_by_its_place_in_the_file(save):
    x = np.zeros((50, 4))
    x[37, 2] = np.nan
    for seed in range(5):  # whichever part the split would put it into
        refused(save(x), r"row 37, column 2 \(counted from 0\) is nan", seed=seed)
    x[37, 2] = -np.inf
    refused(save(x), "row 37, column 2 .* is -inf")
    x[37, 2] = 1e300
    refused(save(x), "row 37, column 2 .* is inf in float32")
    assert load(save(x), dtype=torch.float64).train.shape == (45, 4)
    refused(save(np.array([1.0, 70_000.0])), "row 1, column 0 .* is inf in float16", dtype=torch.float16)


class Exploit:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def test_nothing_is_unpickled(save, tmp_path):
    marker = tmp_path / "marker"
    refused(save(np.array([Exploit(str(marker)), 1], dtype=object), allow_pickle=True), "elements are object")
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Exploit(str(marker))))
    refused(tmp_path / "y.npy", "not readable as a .npy file")
    assert not marker.exists()


def test_damaged_files(save, tmp_path):
    refused(tmp_path / "absent.npy", "no such file")
    path = save(np.zeros((4, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(path, r"declares \(4, 3\) of float64, 96 bytes, found 95")
    path.write_bytes(whole + b"x")
    refused(path, "96 bytes, found 97")
    path.write_bytes(whole.replace(b"(4, 3)", b"(4e9,)"))
    refused(path, "not readable as a .npy file")
    path.write_bytes(whole.replace(b"(4, 3), }      ", b"(4000000000000000000, 3), }")[: len(whole)])
    refused(path, "not readable as a .npy file|found")
    path.write_bytes(whole.replace(b"(4, 3)", b"(-4,3)"))
    refused(path, r"shape is \(-4, 3\)")
    np.savez(tmp_path / "z.npz", x=np.zeros(3))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    refused(tmp_path / "z.npy", "not readable as a .npy file")


def test_a_lying_header_allocates_nothing(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)})
        file.write(bytes(800))
    refused(tmp_path / "x.npy", rf"declares \({2**40}, {2**40}\) of float64, {2**83} bytes, found 800")


@given(place=st.integers(0, 200), value=st.integers(0, 255))
def test_a_changed_byte_gives_data_or_a_data_error(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "changed.npy"
    np.save(path, np.arange(12.0).reshape(4, 3))
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    try:
        assert load(path).train.isfinite().all()
    except DataError as error:
        assert "\n" not in str(error)


def test_a_file_of_one_row_needs_nothing_held_out(save):
    with pytest.raises(UsageError, match="of 1 rows leaves none to train on"):
        load(save(np.zeros((1, 3))))
    assert load(save(np.zeros((1, 3))), held_out=0.0).train.shape == (1, 3)


@pytest.mark.parametrize("order", ["C", "F"])
def test_shards_are_the_rows_in_their_order(save, monkeypatch, order):
    monkeypatch.setattr(source, "SHARD_VALUES", 12)
    x = np.asfortranarray(np.arange(66.0).reshape(11, 3, 2)) if order == "F" else np.arange(66.0).reshape(11, 3, 2)
    file = NpyFile(save(x))
    assert file.shard_sizes == [2, 2, 2, 2, 2, 1] and file.dtype == torch.float64 and len(file) == 11
    assert torch.cat(list(file)).tolist() == x.tolist()
    assert file.read(4).tolist() == x[8:10].tolist() and file.place(4) == (str(file.path), 8)


def test_a_file_that_becomes_shorter_is_refused(save):
    path = save(np.zeros((10, 3)))
    file = NpyFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="240 bytes, found 232"):
        file.read(0)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    x = np.arange(12.0).reshape(4, 3)
    for save in (np.savez, np.savez_compressed):
        save(path, first=x, second=x[:, 0].astype(">i2"), third=np.array([{}]))
        assert torch.cat(list(npz_source(path, "first"))).tolist() == x.tolist()
        assert torch.cat(list(npz_source(path, "second"))).tolist() == x[:, :1].tolist()
        with pytest.raises(UsageError, match=r"x\.npz: holds 'first', 'second', 'third'; name one with key"):
            load(path)
        with pytest.raises(UsageError, match="key='fourth' given, expected one of 'first', 'second', 'third'"):
            load(path, key="fourth")
        with pytest.raises(DataError, match="array 'third': elements are object"):
            load(path, key="third")
    np.savez(path, x)
    assert load(path, held_out=0.0).train.tolist() == x.tolist()
    with pytest.raises(UsageError, match="key given, which is for"):
        load(tmp_path / "x.npy", key="x")


def test_damaged_npz(tmp_path):
    path = tmp_path / "x.npz"
    refused(path, "no such file")
    path.write_bytes(b"PK")
    refused(path, "not readable as a .npz file")
    np.savez(path)
    refused(path, "holds no array")
    np.savez(path, np.arange(100.0))
    content = bytearray(path.read_bytes())
    content[500] ^= 1  # a value: only the checksum shows it
    path.write_bytes(content)
    refused(path, "Bad CRC-32")


def test_what_a_npz_file_expands_to_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, np.zeros(10**5))
    monkeypatch.setattr(arrays, "MAX_IN_MEMORY", 10**5)
    refused(path, r"\(100000,\) of float64, 800000 bytes, expected at most 100000; save it as .npy")
    monkeypatch.setattr(arrays, "MAX_EXPANSION", 2)
    refused(path, "bytes cannot hold 800128")


def test_a_npz_member_with_a_lying_header_allocates_nothing(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(4))
    header = (tmp_path / "x.npy").read_bytes().replace(b"(4,), }         ", b"(4000000000,), }")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header)
    refused(tmp_path / "x.npz", r"declares \(4000000000,\) of float64, 32000000000 bytes, found 32")
