from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from vaentropy.errors import DataError
from vaentropy.rows import as_tensor

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
