import gzip
import pickle
import struct
import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import load, names, pca, pca_log_likelihood, pca_ring, read_idx, split
from vaentropy.data.source import rows_per_shard
from vaentropy.data.synthetic import SETS, streaming
from vaentropy.errors import DataError, MissingExtraError, UsageError


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch, request):
    if "data_folder" not in request.fixturenames:
        monkeypatch.delenv("VAENTROPY_DATA", raising=False)


def idx(array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def images(tmp_path):
    """A folder with ten and four images of 2 x 3 pixels, half of the files compressed."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    arrays = {}
    for part, count, suffix in (("train", 10, ".gz"), ("t10k", 4, "")):
        arrays[part] = np.random.default_rng(count).integers(0, 256, (count, 2, 3), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", arrays[part]), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    return folder, arrays


def rows(x):
    return sorted(map(tuple, x.tolist()))


# --- any name


def test_names():
    assert names() == ("digits", *SETS, "mnist", "fashion-mnist", "susy")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("MNIST", "did you mean 'mnist'"), ("pca_ring", "did you mean 'pca-ring'"), ("iris.dat", "; expected digits")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, hint):
    with pytest.raises(UsageError, match=f"unknown data set '{name}'.*{hint}") as caught:
        load(name)
    assert f"digits, {', '.join(SETS)}, mnist, fashion-mnist, susy, or a path ending in .npy" in str(caught.value)


def test_an_integer_dtype_is_refused():
    with pytest.raises(UsageError, match=r"dtype is torch\.int64, expected a floating dtype"):
        load("digits", dtype=torch.int64)


def test_loading_leaves_global_generators_alone(images, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20.0))
    torch.manual_seed(0)
    states = torch.get_rng_state(), str(np.random.get_state())
    elsewhere = ("mnist", "fashion-mnist", "susy")
    for name in ({*names(), str(tmp_path / "x.npy")} - {*elsewhere}) | {images[0].name} & {*elsewhere}:
        load(name, folder=images[0], held_out=0.5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]


@pytest.mark.parametrize("name", ["digits", "pca", "pca-ring"])
def test_the_seed_decides(name):
    first, again, other = (load(name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train) and torch.equal(first.held_out, again.held_out)
    assert not torch.equal(first.held_out, other.held_out)


# --- digits


def test_digits_are_those_of_scikit_learn():
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    data = load("digits")
    assert data.train.dtype == torch.float32 and data.data_shape == (64,)
    assert (len(data.train), len(data.held_out)) == (1438, 359)  # 0.2 of 1,797 is 359.4
    assert data.train_labels is not None and data.held_out_labels is not None
    both = torch.cat([data.train, data.held_out]).numpy() * 16
    both_labels = torch.cat([data.train_labels, data.held_out_labels])
    assert rows(np.column_stack([both, both_labels])) == rows(np.column_stack([pixels, labels]))
    assert both.max() == 16 and "divided by 16, in [0, 1]" in data.description


def test_held_out_and_dtype_are_heeded():
    data = load("digits", held_out=0.0, dtype=torch.float64)
    assert data.train.dtype == data.held_out.dtype == torch.float64
    assert data.train.shape == (1797, 64) and data.held_out.shape == (0, 64)
    with pytest.raises(UsageError, match=r"held_out is 1\.0"):
        load("digits", held_out=1.0)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed; run: pip install 'vaentropy\[data\]'"):
        load("digits")


# --- synthetic


def test_pca_brings_its_true_log_likelihood():
    data = load("pca", seed=3, dtype=torch.float64)
    assert data.train.shape == data.held_out.shape == (10_000, 10)
    x, (weight, mean, noise_std) = pca(20_000, seed=3)
    assert rows(torch.cat([data.train, data.held_out])) == rows(x)
    covariance = weight @ weight.T + noise_std**2 * torch.eye(10, dtype=torch.float64)
    density = scipy.stats.multivariate_normal(mean.numpy(), covariance.numpy())
    assert data.truth is not None and set(data.truth) == {"log_likelihood_train", "log_likelihood_held_out"}
    for part in ("train", "held_out"):
        expected = density.logpdf(getattr(data, part).numpy()).mean()
        assert data.truth[f"log_likelihood_{part}"] == pytest.approx(expected, rel=1e-10)


def test_pca_without_held_out_points():
    data = load("pca", held_out=0.0)
    assert len(data.train) == 20_000 and data.truth is not None and set(data.truth) == {"log_likelihood_train"}


def test_pca_ring():
    data = load("pca-ring", seed=3, dtype=torch.float64)
    assert data.train.shape == data.held_out.shape == (10_000, 10) and data.truth is None
    assert rows(torch.cat([data.train, data.held_out])) == rows(pca_ring(20_000, seed=3)[0])


@pytest.mark.parametrize("name", SETS)
def test_synthetic_sets_by_name(name):
    data = load(name, seed=3, dtype=torch.float64)
    drawn = SETS[name].build(SETS[name].num_points, 3)
    assert len(data.train) + len(data.held_out) == SETS[name].num_points
    assert len(data.held_out) == SETS[name].held_out * SETS[name].num_points
    assert data.description == SETS[name].description + ", not rescaled"
    parts = split(drawn.x, SETS[name].held_out, seed=3, shard_size=rows_per_shard(drawn.x.shape[1:]))
    assert torch.equal(data.train, parts[0]) and torch.equal(data.held_out, parts[1])
    assert (data.truth is None) == (drawn.log_density is None) and (data.train_labels is None) == (drawn.labels is None)


def test_labels_and_density_are_those_of_the_rows():
    data = load("streaming", held_out=0.1, seed=3, dtype=torch.float64)
    segments = streaming(300_000, seed=3)[2]
    assert data.truth is not None and data.train_labels is not None and data.held_out_labels is not None
    for part, of in (("train", data.train_labels), ("held_out", data.held_out_labels)):
        rows = getattr(data, part)
        assert of.tolist() == sorted(of.tolist()) and set(of.tolist()) == {0, 1, 2}
        total = sum(pca_log_likelihood(rows[of == s], *segments[s]) * (of == s).sum().item() for s in range(3))
        assert data.truth[f"log_likelihood_{part}"] == pytest.approx(total / len(rows), rel=1e-10)


# --- images


def test_images_and_labels(images):
    folder, arrays = images
    data = load("mnist", folder=folder)
    assert torch.equal(data.train, torch.from_numpy(arrays["train"].reshape(10, 6) / np.float32(255)))
    assert torch.equal(data.held_out, torch.from_numpy(arrays["t10k"].reshape(4, 6) / np.float32(255)))
    assert data.train_labels is not None and data.train_labels.tolist() == list(range(10))
    assert data.held_out_labels is not None and data.held_out_labels.tolist() == list(range(4))
    assert "divided by 255, in [0, 1]" in data.description and "t10k" in data.description


def test_the_folder_around_and_the_environment_will_do(images, monkeypatch):
    expected = load("mnist", folder=images[0]).train
    assert torch.equal(load("mnist", folder=str(images[0].parent)).train, expected)
    monkeypatch.setenv("VAENTROPY_DATA", str(images[0].parent))
    assert torch.equal(load("mnist").train, expected)


def test_an_explicit_fraction_splits_the_train_file(images):
    folder, arrays = images
    for path in folder.glob("t10k-*"):
        path.unlink()
    data = load("mnist", folder=folder, held_out=0.3, seed=5, dtype=torch.float64)
    train, held_out = split(torch.from_numpy(arrays["train"].reshape(10, 6) / 255.0), 0.3, seed=5)
    assert torch.equal(data.train, train) and torch.equal(data.held_out, held_out) and len(held_out) == 3
    assert data.train_labels is not None and data.held_out_labels is not None
    for part, labels in ((data.train, data.train_labels), (data.held_out, data.held_out_labels)):
        assert torch.equal(part, torch.from_numpy(arrays["train"].reshape(10, 6)[labels.numpy()] / 255.0))
    assert "t10k" not in data.description and "train file" in data.description


def test_labels_are_optional_but_must_fit(images):
    folder, _ = images
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert load("mnist", folder=folder).held_out_labels is None
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(DataError, match=r"'mnist', train: got labels of shape \(9,\) for 10 rows"):
        load("mnist", folder=folder)


def test_missing_files_are_named(images, tmp_path):
    folder, _ = images
    with pytest.raises(UsageError, match=r"no folder was given; pass folder= or set VAENTROPY_DATA.*images-idx3-ubyte"):
        load("mnist")
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte in .*absent.*; pass the folder that holds"):
        load("mnist", folder=tmp_path / "absent")
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte; add it, or pass held_out="):
        load("mnist", folder=folder)


def test_the_folder_of_one_set_is_not_taken_for_another(images):
    with pytest.raises(DataError, match="fashion-mnist: no train-images-idx3-ubyte in"):
        load("fashion-mnist", folder=images[0])


def test_files_that_are_not_images(images):
    folder, _ = images
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(idx(np.zeros(10, np.uint8)))
    with pytest.raises(DataError, match=r"train-images.*got shape \(10,\) of torch\.uint8, expected \(images, height"):
        load("mnist", folder=folder)
    path.write_bytes(bytes.fromhex("00000903 00000001 00000001 00000001 ff"))  # signed bytes
    with pytest.raises(DataError, match=r"got shape \(1, 1, 1\) of torch\.int8"):
        load("mnist", folder=folder)


# Means and standard deviations that are common knowledge (torchvision's normalisation constants), first labels as seen.
@pytest.mark.parametrize(
    ("name", "mean", "std", "first"),
    [("mnist", 0.1307, 0.3081, [5, 0, 4, 1, 9]), ("fashion-mnist", 0.2860, 0.3530, [9, 0, 0, 3, 0])],
)
def test_real_images(data_folder, name, mean, std, first):
    data = load(name)
    assert data.train.shape == (60_000, 784) and data.held_out.shape == (10_000, 784)
    assert data.train.min() == 0 and data.train.max() == 1
    assert data.train.mean().item() == pytest.approx(mean, abs=6e-5)
    assert data.train.std().item() == pytest.approx(std, abs=6e-5)
    assert data.train_labels is not None and data.held_out_labels is not None
    assert data.train_labels[:5].tolist() == first
    assert (
        data.held_out_labels.bincount().tolist()
        == read_idx(data_folder / name / "t10k-labels-idx1-ubyte.gz").bincount(minlength=10).tolist()
    )
    assert len(data.held_out_labels) == 10_000 and data.held_out_labels.max() == 9
    assert torch.equal(load(name, folder=data_folder / name).held_out[:10], data.held_out[:10])


# --- .npy files


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
