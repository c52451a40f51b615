import datetime
import decimal
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import load
from vaentropy.data.formats import parquet
from vaentropy.data.formats.parquet import ParquetFiles
from vaentropy.errors import DataError, MissingExtraError, UsageError


def frame(rows, first=0):
    numbers = np.arange(first, first + rows)
    return pd.DataFrame({"a": numbers, "b": numbers / 4, "c": numbers % 3 == 0})


def refused(path, words, **more):
    with pytest.raises(DataError, match=words) as caught:
        load(path, **more)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_row_groups_are_shards(tmp_path):
    path = tmp_path / "x.parquet"
    frame(25).to_parquet(path, row_group_size=10)
    file, expected = ParquetFiles(path), frame(25).astype(float).to_numpy()
    assert file.shard_sizes == [10, 10, 5] and file.dtype == torch.float64 and list(file.columns) == ["a", "b", "c"]
    assert torch.cat(list(file)).tolist() == expected.tolist()
    assert file.read(1).tolist() == expected[10:20].tolist()
    assert ParquetFiles(path, ["c", "a"]).read(2).tolist() == expected[20:, [2, 0]].tolist()


@given(
    rows=st.integers(1, 60),
    group=st.integers(1, 60),
    limit=st.integers(1, 30),
    batch=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_long_row_groups_are_cut_and_read_in_any_order(tmp_path_factory, rows, group, limit, batch, seed):
    path = tmp_path_factory.getbasetemp() / "cut.parquet"
    table = frame(rows)
    table.to_parquet(path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "MAX_SHARD_BYTES", limit * 3 * 8)
        patch.setattr(parquet, "BATCH_VALUES", batch)
        file = ParquetFiles(path)
        assert max(file.shard_sizes) <= min(limit, group) and len(file) == rows
        shards = np.random.default_rng(seed).permutation(len(file.shard_sizes)).tolist()
        read = {shard: file.read(shard) for shard in shards}
        assert torch.cat([read[shard] for shard in sorted(read)]).tolist() == table.astype(float).to_numpy().tolist()
        assert torch.cat(list(file)).tolist() == table.astype(float).to_numpy().tolist()


def test_numbers_of_any_kind(tmp_path):
    columns = {
        "int": pa.array([1, None, 2**53]),
        "unsigned": pa.array([1, 2, 2**64 - 1], pa.uint64()),
        "half": pa.array(np.array([0.5, 1, 2], np.float16)),
        "flag": pa.array([True, None, False]),
        "money": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-3.50")]),
        "float": pa.array([0.1, None, float("nan")]),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    x = ParquetFiles(tmp_path / "x.parquet").read(0).numpy()
    nan = np.nan
    expected = [[1, nan, 2**53], [1, 2, 2.0**64], [0.5, 1, 2], [1, nan, 0], [1.25, nan, -3.5], [0.1, nan, nan]]
    np.testing.assert_array_equal(x.T, expected)
    single = pa.table({"a": pa.array([1.5], pa.float32()), "b": pa.array(np.array([2], np.float16))})
    pq.write_table(single, tmp_path / "y.parquet")
    assert ParquetFiles(tmp_path / "y.parquet").read(0).dtype == torch.float32


@pytest.mark.parametrize("values", [["x"], [b"x"], [[1.0]], [{"y": 1}], [datetime.date(2020, 1, 1)]])
def test_columns_without_numbers_are_named(tmp_path, values):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": pa.array([1]), "label": pa.array(values)}), path)
    refused(path, r"column 'label' holds .*, expected numbers; leave it out with exclude")
    assert load(path, exclude="label", held_out=0.0).train.tolist() == [[1]]
    with pytest.raises(UsageError, match=r"no column 'lable'; did you mean 'label'\?"):
        load(path, exclude=["lable"])


def test_a_folder_in_the_order_of_names(tmp_path):
    frame(4, first=10).to_parquet(tmp_path / "b.parquet")
    frame(6)[["c", "a", "b"]].to_parquet(tmp_path / "a.parquet", row_group_size=3)
    (tmp_path / "_metadata.parquet").write_bytes(b"x")
    (tmp_path / "._a.parquet").write_bytes(b"x")
    frame(0).to_parquet(tmp_path / "aa.parquet")
    file = ParquetFiles(tmp_path)
    expected = pd.concat([frame(6), frame(4, first=10)])[["c", "a", "b"]].astype(float).to_numpy()
    assert torch.cat(list(file)).tolist() == expected.tolist() and list(file.columns) == ["c", "a", "b"]
    assert [file.place(shard) for shard, size in enumerate(file.shard_sizes) if size] == [
        (str(tmp_path / "a.parquet"), 0),
        (str(tmp_path / "a.parquet"), 3),
        (str(tmp_path / "b.parquet"), 0),
    ]
    bad = frame(4)
    bad.loc[3, "b"] = np.inf
    bad.to_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: row 3 \(counted from 0\), column 'b' is inf"):
        load(tmp_path)
    frame(4).rename(columns={"b": "d"}).to_parquet(tmp_path / "c.parquet")
    refused(tmp_path, r"c\.parquet: column 'b' is missing, expected the same")
    frame(4).assign(z=1).to_parquet(tmp_path / "c.parquet")
    refused(tmp_path, r"c\.parquet: column 'z' is not in a\.parquet")


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "x.parquet"
    refused(path, "no such file")
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"a,b\n1,2\n"):
        path.write_bytes(content)
        refused(path, "not readable as a Parquet file")
    frame(0).to_parquet(path)
    refused(path, "got no rows")
    pq.write_table(pa.table({}), path)
    refused(path, "no columns")
    frame(1000).to_parquet(path, compression=None)
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    try:
        load(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    frame(10).to_parquet(path)
    file = ParquetFiles(path)
    frame(5).to_parquet(path)
    with pytest.raises(DataError, match="row group 0 ends after 5 rows"):
        file.read(0)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        file.read(0)


def test_a_number_of_rows_that_cannot_be(tmp_path, monkeypatch):
    frame(100).to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(parquet, "MAX_SHARD_BYTES", 1)
    monkeypatch.setattr(parquet, "MAX_SHARDS", 50)
    refused(tmp_path / "x.parquet", "declares 100 rows in row group 0, which cannot be")


def test_without_pyarrow(tmp_path, monkeypatch):
    frame(4).to_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed; run: pip install 'vaentropy\[data\]'"):
        load(tmp_path / "x.parquet")
