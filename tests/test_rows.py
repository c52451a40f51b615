from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from vaentropy.errors import DataError
from vaentropy.passes import rows_per_batch
from vaentropy.rows import affordable, as_tensor, require_finite

NAN = float("nan")


@pytest.mark.parametrize("library", [pd, pl])
def test_data_frames(library):
    x = as_tensor(library.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]}))
    assert x.tolist() == [[1, 0.5, 1], [2, 1.5, 0]] and x.dtype == torch.float64
    assert as_tensor(library.DataFrame({"a": [1, 2]})).dtype == torch.int64
    single = library.DataFrame({"a": np.float32([1, 2]), "b": np.float32([3, 4])})
    assert as_tensor(single).dtype == torch.float32


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1.0, None], "b": [2, 3]}),
        pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": pd.array([2, 3], dtype="Float32")}),
        pd.DataFrame({"a": pd.array([True, None], dtype="boolean"), "b": [2, 3]}),
        pd.DataFrame({"a": pd.Series([1.0, None], dtype=object), "b": pd.Series([2, 3], dtype=object)}),
        pd.DataFrame({"a": pd.array([1, None], dtype="int64[pyarrow]"), "b": [2, 3]}),
        pl.DataFrame({"a": [1, None], "b": [2, 3]}),
        pl.DataFrame({"a": [True, None], "b": [2, 3]}),
        pl.DataFrame({"a": [Decimal("1.0"), None], "b": [2.0, 3.0]}),
    ],
)
def test_missing_values_are_nan(frame):
    np.testing.assert_array_equal(as_tensor(frame).numpy(), [[1, 2], [NAN, 3]])


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["1", "2"]),
        pd.Series(["1", 2], dtype=object),
        pd.Series(pd.to_datetime(["2020-01-01", "2021-01-01"])),
        pd.Series(["x", "y"], dtype="category"),
        pl.Series(["1", "2"]),
        pl.Series([[1.0], [2.0]]),
    ],
)
def test_a_column_without_numbers_is_named(column):
    library = pl if isinstance(column, pl.Series) else pd
    with pytest.raises(DataError, match=r"DataFrame given as data: column 'bad' is .*, expected numbers; leave it out"):
        as_tensor(library.DataFrame({"good": [1, 2], "bad": column}))


@pytest.mark.parametrize("library", [pd, pl])
def test_a_frame_without_columns(library):
    with pytest.raises(DataError, match="DataFrame without columns"):
        as_tensor(library.DataFrame())


def test_columns_of_one_name():
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    assert as_tensor(frame).tolist() == [[1, 2], [3, 4]]


def test_a_copy_is_made():
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    x = as_tensor(frame)
    x += 1
    assert frame["a"].tolist() == [1, 2]


def test_series_and_arrays():
    assert as_tensor(pd.Series([1, 2])).tolist() == as_tensor(pl.Series([1, 2])).tolist() == [1, 2]
    with pytest.raises(DataError, match="LazyFrame given as data"):
        as_tensor(pl.DataFrame({"a": [1]}).lazy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_whose_sum_overflows_are_finite(dtype):
    x = torch.full((3, 2), torch.finfo(dtype).max, dtype=dtype)
    assert not x.sum().isfinite()
    require_finite(x, "the data")
    x[0, 0] = NAN
    require_finite(x, "the data", missing=True)


@pytest.mark.parametrize(
    ("values", "missing", "place"),
    [
        ([[1, 2], [float("inf"), -float("inf")]], False, "row 1, column 0 .* inf"),  # which cancel in no sum
        ([[1, 2], [3, NAN]], False, "row 1, column 1 .* nan"),
        ([[1, NAN], [3, -float("inf")]], True, "row 1, column 1 .* -inf"),
        ([[NAN, float("inf")], [-float("inf"), 1]], True, "row 0, column 1 .* inf"),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(values, missing, place):
    with pytest.raises(DataError, match=place):
        require_finite(torch.tensor(values), "the data", missing=missing)


@pytest.mark.parametrize("missing", [False, True])
def test_no_data_are_finite_data(missing):
    require_finite(torch.zeros(0, 2), "the data", missing=missing)


def test_of_large_rows_there_are_fewer():
    assert affordable(1000, (784,)) == 1000
    assert affordable(1000, (3, 256, 256)) == 10
    assert affordable(1000, (3, 4096, 4096)) == 1
    assert affordable(1000, (3, 256, 256), 2**22, fewest=16) == 21
    assert affordable(5, (3, 4096, 4096), fewest=16) == 5
    # Evaluations of small data take what they took.
    on_cpu, on_gpu = torch.device("cpu"), torch.device("cuda")
    sizes = {(2,): 16_384, (784,): 334, (3, 64, 64): 64, (3, 256, 256): 10, (3, 2048, 2048): 1}
    assert {shape: rows_per_batch(shape, on_cpu) for shape in sizes} == sizes
    assert [rows_per_batch(shape, on_gpu) for shape in sizes] == [16_384, 16_384, 1365, 85, 1]
