import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import source
from vaentropy.data.scaling import Scaling, Statistics
from vaentropy.data.source import Rows
from vaentropy.errors import DataError

NAN = math.nan


@given(
    rows=st.integers(1, 40),
    shard_size=st.integers(1, 10),
    shape=st.sampled_from([(1,), (3,), (2, 2)]),
    missing=st.floats(0, 0.5),
    seed=st.integers(0, 100),
)
def test_statistics_against_numpy(rows, shard_size, shape, missing, seed):
    rng = np.random.default_rng(seed)
    x = 1e4 + rng.normal(size=(rows, *shape))
    x[1:][rng.random(x[1:].shape) < missing] = NAN
    statistics = Statistics.of(Rows(torch.from_numpy(x), shard_size=shard_size))
    np.testing.assert_array_equal(statistics.count, np.isfinite(x).sum(0))
    np.testing.assert_array_equal(statistics.minimum, np.nanmin(x, axis=0))
    np.testing.assert_array_equal(statistics.maximum, np.nanmax(x, axis=0))
    np.testing.assert_allclose(statistics.mean, np.nanmean(x, axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, np.nanvar(x, axis=0), rtol=1e-8, atol=1e-20)


def test_a_shard_is_taken_in_pieces(monkeypatch):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = Statistics.of(Rows(x))
    monkeypatch.setattr(source, "SHARD_VALUES", 7 * 3)
    torch.testing.assert_close(Statistics.of(Rows(x)).variance, whole.variance, rtol=1e-12, atol=0)


def test_a_feature_without_values_is_named():
    x = torch.tensor([[1.0, NAN], [2.0, NAN]])
    with pytest.raises(DataError, match=r"table: column 1 \(counted from 0\) has no value in any row"):
        Statistics.of(Rows(x, "table"))
    with pytest.raises(DataError, match="table: column 'age' has no value in any row to train on; leave it out"):
        Statistics.of(Rows(x, "table", columns=["size", "age"]))
    with pytest.raises(DataError, match="got no rows"):
        Statistics.of(Rows(x[:0]))


@pytest.mark.parametrize("kind", ["standard", "min_max"])
def test_scaled_data_have_what_they_should(kind):
    x = (
        torch.rand(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1, 5, 1e6])
        + 3
    )
    x[4, 1] = NAN
    scaling = Scaling.fit(kind, Statistics.of(Rows(x)))
    y = scaling.apply(x)
    if kind == "standard":
        np.testing.assert_allclose(np.nanmean(y, axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(np.nanstd(y, axis=0), 1, rtol=1e-12)
    else:
        assert np.nanmin(y, axis=0).tolist() == [0] * 3 and np.nanmax(y, axis=0).tolist() == [1] * 3
    torch.testing.assert_close(scaling.undo(y), x, equal_nan=True, rtol=1e-12, atol=0)
    # Of a linear map, log |dy/dx| by differences.
    step = torch.ones(1, 3, dtype=torch.float64)
    slope = (scaling.apply(x[:1] + step) - scaling.apply(x[:1])).squeeze(0)
    torch.testing.assert_close(scaling.log_jacobian, slope.log(), rtol=1e-6, atol=1e-6)
    assert not scaling.trivial


@pytest.mark.parametrize("kind", ["standard", "min_max"])
@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [1e-200, 2e-200, 2e-200], [7.0]])
def test_a_constant_feature_keeps_its_scale(kind, values):
    x = torch.tensor(values, dtype=torch.float64)[:, None]
    scaling = Scaling.fit(kind, Statistics.of(Rows(x)))
    if kind == "standard" or len(set(values)) == 1:
        assert scaling.scale.item() == 1 and scaling.apply(x).abs().max() < 1e-15
    assert scaling.scale > 0 and scaling.apply(x).isfinite().all()


def test_no_scaling():
    scaling = Scaling.fit("none", None)
    x = torch.arange(6.0).reshape(2, 3)
    assert scaling.trivial and scaling.apply(x).tolist() == x.tolist() and scaling.log_jacobian == 0
    assert Scaling.by(255.0).apply(x)[1, 2] == 5 / 255 and Scaling.by(255.0).log_jacobian == -math.log(255)
    assert Scaling.by(2.0, dequantised=True).dequantised and not Scaling.by(2.0).dequantised
