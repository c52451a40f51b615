import gzip
import struct
import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
import torch

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


def test_names():
    assert names() == ("digits", *SETS, "mnist", "fashion-mnist", "susy")


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


# --- SUSY


@pytest.fixture
def susy(tmp_path):
    """A table of the format of SUSY: a class label, then 18 features, no header."""
    x = np.random.default_rng(0).normal(size=(50, 18))
    label = np.arange(50)[:, None] % 2
    return tmp_path, x, "".join(",".join(f"{value:.18e}" for value in row) + "\n" for row in np.hstack([label, x]))


@pytest.mark.parametrize("where", ["SUSY.csv", "SUSY.csv.gz", "susy/SUSY.csv"])
def test_susy(susy, where):
    folder, x, text = susy
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).write_bytes(gzip.compress(text.encode()) if where.endswith("gz") else text.encode())
    data = load("susy", folder=folder, dtype=torch.float64)
    assert data.data_shape == (18,) and (len(data.train), len(data.held_out)) == (45, 5)
    assert rows(torch.cat([data.train, data.held_out])) == rows(torch.from_numpy(x))
    assert "without the class label, not rescaled" in data.description and data.train_labels is None
    scaled = load("susy", folder=folder, scale="standard", stream=True)
    assert "mean 0" in scaled.description and len(scaled.train) == 45


def test_susy_needs_its_file(susy):
    folder, _, text = susy
    with pytest.raises(
        UsageError, match=r"susy is read from files .* the folder that holds SUSY\.csv or SUSY\.csv\.gz"
    ):
        load("susy")
    with pytest.raises(DataError, match=r"susy: no SUSY\.csv\.gz in .*; pass the folder that holds SUSY\.csv or"):
        load("susy", folder=folder)
    (folder / "SUSY.csv").write_text(text.replace("\n", ",1\n"))
    with pytest.raises(DataError, match=r"SUSY\.csv: has 20 columns, expected a class label and 18 features"):
        load("susy", folder=folder)
    (folder / "SUSY.csv").write_text("")
    with pytest.raises(DataError, match=r"SUSY\.csv: is empty"):
        load("susy", folder=folder)
