import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vaentropy.data import Batches, Dataset, load, loading, pca, pca_log_likelihood, source, split
from vaentropy.data.source import Source
from vaentropy.data.synthetic import SETS
from vaentropy.errors import DataError, UsageError


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


def test_loading_leaves_global_generators_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20.0))
    torch.manual_seed(0)
    states = torch.get_rng_state(), str(np.random.get_state())
    for name in ("digits", "pca", "pca-ring", str(tmp_path / "x.npy")):
        data = load(name, held_out=0.5, stream=True, dequantise=not name.startswith("pca"))
        list(Batches(data.train, 100).epoch(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]


@pytest.mark.parametrize(("option", "value"), [("scale", "standrad"), ("missing", "drop")])
def test_choices_are_checked(option, value):
    with pytest.raises(UsageError, match=f"{option}='{value}' given, expected .*or '"):
        load("digits", **{option: value})


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(source, "SHARD_VALUES", 24)


@pytest.fixture(params=["npy", "npz", "csv", "csv.gz", "parquet", "folder", "frame", "images"])
def stored(request, tmp_path, small_shards):
    """What `load` is given, and the values that it holds: whole numbers, 50 rows."""
    x = np.random.default_rng(0).integers(0, 256, (50, 3))
    frame, path = pd.DataFrame(x, columns=list("abc")), tmp_path / f"x.{request.param}"
    if request.param == "npy":
        np.save(path, x.astype("u1"))
    elif request.param == "npz":
        np.savez(path, x)
    elif request.param.startswith("csv"):
        frame.to_csv(path, index=False)
    elif request.param == "parquet":
        frame.to_parquet(path, row_group_size=8)
    elif request.param == "folder":
        for part, number in ((frame[:20], 0), (frame[20:], 1)):
            part.to_parquet(tmp_path / f"{number}.parquet", row_group_size=8)
        path = tmp_path
    elif request.param == "frame":
        path = frame
    else:
        for number, row in enumerate(x):
            Image.fromarray(row.astype(np.uint8)[None]).save(tmp_path / f"{number:02}.png")
        path, x = tmp_path, x[:, None, None]
    return path, x.astype(float)


def rows(part):
    return torch.cat(list(part)) if isinstance(part, Source) else part


@pytest.mark.parametrize("scale", [None, "none", "standard", "min_max"])
@pytest.mark.parametrize("dequantise", [False, True])
def test_streamed_and_in_memory_the_same(stored, scale, dequantise):
    given, _ = stored
    more = {"held_out": 0.3, "seed": 4, "scale": scale, "dequantise": dequantise}
    resident, streamed = (load(given, stream=stream, **more) for stream in (False, True))
    for part in ("train", "held_out"):
        x, y = getattr(resident, part), getattr(streamed, part)
        assert isinstance(x, torch.Tensor) and isinstance(y, Source) and len(x) == len(y)
        assert torch.equal(x, rows(y)) and torch.equal(rows(y), rows(y))
    assert resident.description == streamed.description and resident.data_shape == streamed.data_shape
    assert repr(resident) == repr(streamed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("scale", ["none", "standard", "min_max"])
def test_scaled_by_the_training_part(stored, scale, stream):
    given, x = stored
    data = load(given, held_out=0.3, scale=scale, stream=stream, dtype=torch.float64)
    train, held_out = (data.scaling.undo(rows(part)) for part in (data.train, data.held_out))
    both = torch.cat([train, held_out]).flatten(1).numpy()
    np.testing.assert_allclose(sorted(both.tolist()), sorted(x.reshape(50, 3).tolist()), atol=1e-9)
    assert (len(train), len(held_out)) == (35, 15)
    y = rows(data.train).numpy()
    if scale == "standard":
        np.testing.assert_allclose([y.mean(0), y.std(0)], [np.zeros(y.shape[1:]), np.ones(y.shape[1:])], atol=1e-12)
        assert "mean 0 and variance 1 per feature" in data.description
    elif scale == "min_max":
        assert (y.min(0) == 0).all() and (y.max(0) == 1).all() and "scaled to [0, 1] per feature" in data.description
    else:
        assert data.scaling.trivial and "not rescaled" in data.description


def test_noise_makes_whole_numbers_continuous(stored):
    given, _ = stored
    more = {"held_out": 0.3, "scale": "none", "dtype": torch.float64}
    plain, first, again = (load(given, dequantise=noisy, **more) for noisy in (False, True, True))
    other = load(given, dequantise=True, seed=1, **more)
    noise = [getattr(first, part) - getattr(plain, part) for part in ("train", "held_out")]
    for part in noise:
        assert part.min() >= 0 and part.max() < 1
    values = torch.cat([part.flatten() for part in noise])
    assert len(values.unique()) == len(values) == 150 and abs(values.mean() - 0.5) < 5 / np.sqrt(12 * 150)
    assert torch.equal(first.train, again.train) and torch.equal(first.held_out, again.held_out)
    assert not torch.equal(other.train - other.train.floor(), first.train - first.train.floor())
    assert first.scaling.dequantised and not plain.scaling.dequantised and "noise" in first.description


def test_noise_leaves_pixels_in_the_unit_interval():
    data = load("digits", dequantise=True)
    assert data.train.min() >= 0 and data.train.max() <= 1 and data.scaling.scale == 17
    assert "divided by 17, in [0, 1)" in data.description


def test_data_in_memory_are_not_changed_and_not_shared():
    x = torch.arange(20.0).reshape(10, 2)
    before = x.clone()
    data = load(x, held_out=0.0, stream=False)
    data.train.add_(1)
    for batch in Batches(load(x, held_out=0.0, stream=True).train, 10).epoch(0):
        batch.add_(1)
    assert torch.equal(x, before)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("scale", ["none", "standard", "min_max"])
def test_bad_values_are_named_wherever_they_are(small_shards, scale, stream):
    more = {"scale": scale, "stream": stream}
    for seed in range(4):  # in either part
        frame = pd.DataFrame(np.arange(100.0).reshape(50, 2), columns=["a", "b"])
        for value in (np.nan, np.inf, -np.inf):
            frame.loc[37, "b"] = value
            with pytest.raises(DataError, match=rf"row 37 \(counted from 0\), column 'b' is {value} in float64"):
                load(frame, seed=seed, **more)
        with pytest.raises(DataError, match="column 'b' is -inf in float64, expected a finite value; impute it"):
            load(frame, missing="ignore", seed=seed, **more)
        frame.loc[37, "b"] = 0.5
        with pytest.raises(DataError, match=r"row 37 .* column 'b' is 0\.5, expected whole numbers"):
            load(frame, dequantise=True, seed=seed, **more)
        x = np.arange(100.0).reshape(50, 2)
        x[37, 1] = 1e308
        if scale == "none":
            with pytest.raises(DataError, match=r"row 37, column 1 \(counted from 0\) is inf in float32 \(1e\+308 as"):
                load(x, seed=seed, **more)
        elif scale == "standard":
            with pytest.raises(DataError, match=r"column 1 .* has values too large to scale|row 37, column 1 .* inf"):
                load(x, seed=seed, **more)


def test_a_held_out_value_may_be_too_large_as_well(small_shards):
    x = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row = int(split(torch.arange(50)[:, None], 0.1, shard_size=12)[1][2])
    x[row, 1] = 1e39
    for stream in (False, True):
        with pytest.raises(DataError, match=f"row {row}, column 1 .* is inf in float32"):
            load(x, scale="standard", stream=stream)
        assert load(x, scale="standard", stream=stream, dtype=torch.float64).data_shape == (2,)


def test_missing_values():
    x = np.arange(60.0).reshape(20, 3)
    x[::4, 1] = np.nan
    for stream in (False, True):
        data = load(x, missing="ignore", scale="standard", held_out=0.0, stream=stream, dtype=torch.float64)
        y = rows(data.train).numpy()
        np.testing.assert_allclose([np.nanmean(y, 0), np.nanstd(y, 0)], [[0] * 3, [1] * 3], atol=1e-12)
        assert np.isnan(y).tolist() == np.isnan(x).tolist() and data.missing == "ignore"
    with pytest.raises(DataError, match=r"row 0, column 1 .* is nan in float64, .* or pass missing='ignore'"):
        load(x)


def test_what_fits_is_in_memory(monkeypatch):
    x = np.zeros((100, 3))
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 100 * 3 * 4)
    assert isinstance(load(x).train, torch.Tensor)
    assert isinstance(load(x, dtype=torch.float64).train, Source)
    assert isinstance(load(x, dtype=torch.float64, stream=False).train, torch.Tensor)
    assert isinstance(load(x, stream=True).held_out, Source)


def test_integers_are_not_read_to_be_checked(tmp_path, monkeypatch):
    for number in range(10):
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("vaentropy.data.formats.images.ImageFolder.read", lambda *_: pytest.fail("was read"))
    assert load(tmp_path, stream=True).data_shape == (1, 2, 2)


def test_labels_of_streamed_digits(small_shards):
    resident, streamed = (load("digits", stream=stream, seed=2) for stream in (False, True))
    assert isinstance(streamed, Dataset) and torch.equal(rows(streamed.train), resident.train)
    assert torch.equal(streamed.train_labels, resident.train_labels)
    by_row = {tuple(row): label for row, label in zip(*map(np.ndarray.tolist, _digits()), strict=True)}
    for row, label in zip((resident.train * 16).tolist(), resident.train_labels.tolist(), strict=True):
        assert by_row[tuple(row)] == label


def _digits():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def test_the_truth_is_in_the_units_of_the_model():
    data = load("pca", seed=3, scale="standard", dtype=torch.float64)
    _, parameters = pca(20_000, seed=3)
    mean, scale = data.scaling.shift, data.scaling.scale
    # y = (x - shift)/scale is probabilistic PCA too, but for noise that differs between features: by the density of x.
    x = mean + scale * data.train
    expected = pca_log_likelihood(x, *parameters) + scale.log().sum().item()
    assert data.truth is not None and data.truth["log_likelihood_train"] == pytest.approx(expected, rel=1e-9)


def test_a_file_is_called_by_its_name(stored):
    given, _ = stored
    name = load(given).name
    assert name == "DataFrame" if isinstance(given, pd.DataFrame) else name == given.name
