"""Points spread evenly over data: which rows they are, whatever the batches."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from vaentropy.data.source import Rows
from vaentropy.diagnosis.points import Reading, spread
from vaentropy.errors import DataError
from vaentropy.families import vae1


def reading(**options) -> Reading:
    return Reading(vae1(2, 1, (3,)).double(), **options)


def numbered(size: int) -> torch.Tensor:
    """Rows that tell their number."""
    return torch.stack([torch.arange(size), -torch.arange(size)], 1).double()


@pytest.mark.parametrize("size", [1, 2, 9, 10, 19, 20, 21, 39, 40, 41, 80, 159, 160, 161, 319, 321])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 2000])
def test_rows_are_evenly_spread_and_do_not_hang_on_the_batches(size, batch_size):
    rows, observed = spread(reading(batch_size=batch_size), numbered(size), 10)
    assert observed is None
    numbers = rows[:, 0].long().tolist()
    # Every 2^k-th row, with the smallest k for which there are fewer than 20.
    step = next(2**k for k in range(20) if math.ceil(size / 2**k) < 20)
    assert numbers == list(range(0, size, step))
    assert len(numbers) < 20 and len(numbers) >= min(10, size)


@pytest.mark.parametrize("num_points", [1, 2, 3, 300])
def test_any_number_of_points(num_points):
    rows, _ = spread(reading(batch_size=17), numbered(500), num_points)
    assert min(500, num_points) <= len(rows) < max(2 * num_points, 2)
    assert rows[0, 0] == 0 and len(rows[:, 0].diff().unique()) <= 1


def test_data_of_every_form_give_the_same_rows():
    x = numbered(100)
    expected, _ = spread(reading(), x, 8)
    for data in (x.numpy(), Rows(x, shard_size=13), DataLoader(x, batch_size=9), [x[:50], x[50:50], x[50:]]):  # type: ignore[arg-type]
        rows, observed = spread(reading(), data, 8)
        assert torch.equal(rows, expected) and observed is None


def test_missing_values_are_marked_in_the_rows_that_are_kept():
    x = numbered(50)
    x[16, 1] = x[17, 0] = math.nan
    rows, observed = spread(reading(missing="ignore", batch_size=6), x, 5)
    assert rows[:, 0].tolist() == [0, 8, 16, 24, 32, 40, 48]
    assert observed is not None and observed[:, 0].all()
    assert observed[:, 1].tolist() == [True, True, False, True, True, True, True]
    assert rows[2, 1] == 0
    with pytest.raises(DataError, match="row 16, column 1"):
        spread(reading(), x, 5)


def test_rows_are_of_the_models_dtype_and_the_global_generator_is_left_alone():
    x = numbered(30).float()
    to_read = reading()
    before = torch.get_rng_state()
    rows, _ = spread(to_read, DataLoader(x, batch_size=4, shuffle=True), 10)  # type: ignore[arg-type]
    # The loader draws from it.
    assert torch.equal(torch.get_rng_state(), before)
    assert rows.dtype == torch.float64 and len(rows.unique(dim=0)) == 15


def test_no_data():
    with pytest.raises(DataError, match="no data points given"):
        spread(reading(), numbered(0), 10)
