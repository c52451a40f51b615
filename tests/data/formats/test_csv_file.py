import gzip
import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import load, source
from vaentropy.data.formats import csv_file
from vaentropy.data.formats.csv_file import CsvFile, csv_columns
from vaentropy.errors import DataError, MissingExtraError, UsageError


@pytest.fixture(params=["x.csv", "x.csv.gz", "X.CSV"])
def write(request, tmp_path):
    def write(text):
        content = text if isinstance(text, bytes) else text.encode()
        path = tmp_path / request.param
        path.write_bytes(gzip.compress(content) if request.param.endswith("gz") else content)
        return path

    return write


def values(path, **more):
    return torch.cat(list(CsvFile(path, **more)))


def refused(path, words, **more):
    with pytest.raises(DataError, match=words) as caught:
        values(path, **more)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_values_as_pandas(write):
    text = "a,b,c\n1,2.5,-3e-5\n+4,,6\n 7 ,NA,nan\n0.1,1e300,5e-324\n"
    expected = pd.read_csv(io.StringIO(text)).to_numpy()
    x = values(write(text))
    assert x.dtype == torch.float64
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1,2\n3,4\n", ["0", "1"]),
        ("a,b\n1,2\n3,4\n", ["a", "b"]),
        ("a,2\n1,2\n3,4\n", ["a", "2"]),
        ('"a, or b",""\n1,2\n3,4\n', ["a, or b", "1"]),
        ("\ufeffa,b\n1,2\n3,4\n", ["a", "b"]),
        ("\ufeff1,2\n3,4\n", ["0", "1"]),
        ("\n\r\na,b\r\n1,2\r\n\r\n3,4", ["a", "b"]),
        ("a,b\r1,2\r3,4\r", ["a", "b"]),
        ('"1","2"\n3,"4"', ["0", "1"]),
        ("größe,Ω\n1,2\n3,4\n", ["größe", "Ω"]),
    ],
)
def test_headers_and_line_ends(write, text, columns):
    path = write(text)
    file = CsvFile(path)
    assert list(file.columns) == columns == csv_columns(path)
    assert torch.cat(list(file)).tolist() == [[1, 2], [3, 4]] and file.data_shape == (2,)


def test_one_column_in_which_empty_lines_do_not_count(write):
    assert values(write("x\n1\n\n2\nNA\n")).isnan().tolist() == [[False], [False], [True]]


def test_columns_by_name_and_by_number(write):
    path = write("a,word,c\n1,one,2\n3,\xff,4\n".encode("latin-1"))
    assert values(path, exclude="word").tolist() == [[1, 2], [3, 4]]
    assert values(path, columns=["c", "a"]).tolist() == [[2, 1], [4, 3]]
    assert values(path, columns=["c", "a"], exclude=["a"]).tolist() == [[2], [4]]
    with pytest.raises(UsageError, match=r"no column 'wrod'; did you mean 'word'\? there are 'a', 'word', 'c'"):
        CsvFile(path, exclude=["wrod"])
    assert values(write("1,x,2\n".replace("x", "5")), exclude=["1"]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\r\n", "is empty"),
        ("a,b\n", "got no rows of data"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("a;b\n1;2\n", "first line is 'a;b', expected fields divided by commas"),
        ("a\tb\n1\t2\n", "expected fields divided by commas"),
        ("1,2\n3,4\n5\n", r"row 2 has 1 fields, expected 2 as in the first line; .* data rows are counted from 0$"),
        ("a,b\n1,2\n3,4,5\n", "row 1 has 3 fields, expected 2 .* counted from 0, after the header"),
        ("a,b\n1,2\n\n3,x1\n", "row 1, column 'b' is 'x1', expected a number or nothing; correct it, or leave"),
        ("1,2\n3,1_0\n", "row 1, column '1' is '1_0'"),
        ("1,2\n3,0x1\n", "row 1, column '1' is '0x1'"),
        ("1,2\n3,True\n", "row 1, column '1' is 'True'"),
        ("1,2\n3,4\x00\n", r"row 1, column '1' is '4\\x00'"),
        (b"1,2\n3,\xff\n", "row 1, column '1' is '\ufffd'"),
        (b"\xff,2\n3,4\n", "not readable as a CSV file in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not readable as a CSV file in UTF-8"),
        ('a,b\n1,"2\n3"\n', "row 0, column 'b' is '2', expected|row 1 has 1 fields|no value may hold a line end"),
    ],
)
def test_files_that_cannot_be_used(write, text, words):
    refused(write(text), words)


def test_the_row_is_that_of_the_file(write, monkeypatch):
    monkeypatch.setattr(source, "SHARD_VALUES", 4)
    lines = [f"{row},{row}\n" for row in range(100)]
    lines[71] = "71,seventy-one\n"
    refused(write("".join(lines)), "row 71, column '1' is 'seventy-one'")
    lines[71] = "71\n"
    refused(write("".join(lines)), "row 71 has 1 fields")
    lines[71] = "71,inf\n"
    for seed in range(3):
        with pytest.raises(DataError, match=r"row 71 \(counted from 0\), column '1' is inf in float64"):
            load(write("".join(lines)), seed=seed)


@pytest.mark.slow
@given(
    lines=st.lists(st.sampled_from(["1,2", "3,4", "", " 5,6", '"7",8']), min_size=1, max_size=30),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
    block=st.integers(1, 40),
    rows=st.integers(1, 12),
    longest=st.sampled_from([1, 10, 10**6]),
)
def test_however_the_file_is_cut(tmp_path_factory, lines, ends, last, block, rows, longest):
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.write_bytes((ends.join(["a,b", *lines]) + (ends if last else "")).encode())
    expected = [[float(field.strip('" ')) for field in line.split(",")] for line in lines if line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_file, "BLOCK", block)
        patch.setattr(csv_file, "MAX_SLICE", longest)
        patch.setattr(source, "SHARD_VALUES", 2 * rows)
        if not expected:
            refused(path, "got no rows of data")
            return
        file = CsvFile(path)
        assert max(file.shard_sizes) <= rows
        if longest == 10**6:
            assert set(file.shard_sizes[:-1]) <= {rows}
        assert torch.cat(list(file)).tolist() == expected
        for shard, first in enumerate(itertools.accumulate([0, *file.shard_sizes[:-1]])):
            assert file.read(shard).tolist() == expected[first : first + file.shard_sizes[shard]]


def test_lines_without_end_and_bombs_are_bounded(write, monkeypatch):
    monkeypatch.setattr(csv_file, "MAX_LINE", 1000)
    monkeypatch.setattr(csv_file, "BLOCK", 100)
    refused(write("1," * 1000), "the line at byte 0 is longer than 1000 bytes")
    refused(write("1,2\n" + "3" * 2000 + ",4\n"), "the line at byte 4 is longer than 1000 bytes")
    monkeypatch.setattr(csv_file, "MAX_IN_MEMORY", 100)
    monkeypatch.setattr(source, "SHARD_VALUES", 4)
    path = write("1,2\n" * 7)
    if path.name.endswith("gz"):
        refused(path, "holds more than 100 bytes of values; unpack it")
    else:
        assert len(CsvFile(path)) == 7


def test_a_compressed_file_that_is_damaged(tmp_path):
    path = tmp_path / "x.csv.gz"
    whole = gzip.compress(b"".join(b"%d,%d\n" % (row, row**3) for row in range(1000)))
    for content in (b"1,2\n", whole[:-4], whole[: len(whole) // 2], whole[:-8] + b"\0" * 8, b""):
        path.write_bytes(content)
        refused(path, "not readable as a CSV file|is empty")


def test_a_file_that_becomes_shorter_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2\n3,4\n")
    file = CsvFile(path)
    path.write_text("1,2\n")
    with pytest.raises(DataError, match="1 rows in 2 lines"):
        file.read(0)


def test_without_pyarrow(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed; run: pip install 'vaentropy\[data\]'"):
        CsvFile(write("1,2\n"))
