import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data.source import Mapped, Part, Rows, column_name, resident, rows_per_shard, shards_of_both


def numbered(rows, shard_size=None):
    return Rows(torch.arange(float(rows))[:, None].expand(-1, 2), "numbers", shard_size, ["a", "b"])


@given(
    rows=st.integers(2, 60),
    shard_size=st.integers(1, 20),
    fraction=st.floats(0, 0.6),
    seed=st.integers(-5, 2**40),
)
def test_parts_are_a_partition_and_read_together_the_same(rows, shard_size, fraction, seed):
    source = numbered(rows, shard_size)
    parts = [Part(source, fraction, seed=seed, held_out=held_out) for held_out in (False, True)]
    expected = max(1, round(fraction * rows)) if fraction else 0
    assert [len(part) for part in parts] == [rows - expected, expected]
    read = [torch.cat([source.read(0)[:0], *part])[:, 0].tolist() for part in parts]
    assert sorted(read[0] + read[1]) == list(range(rows)) and all(part == sorted(part) for part in read)
    both = resident(*parts)
    assert [part[:, 0].tolist() for part in both] == read


def test_shards_of_two_parts_are_read_once():
    reads = []

    class Noting(Mapped):
        def function(self, x, shard):
            reads.append(shard)
            return x

    source = Noting(numbered(20, 6))
    train, held_out = (Part(source, 0.3, seed=0, held_out=part) for part in (False, True))
    for x, y in shards_of_both(train, held_out):
        assert x is not None and y is not None
    assert reads == [0, 1, 2, 3]
    separate = list(shards_of_both(numbered(4, 3), numbered(2)))
    assert [(None if x is None else len(x), None if y is None else len(y)) for x, y in separate] == [
        (3, None),
        (1, None),
        (None, 2),
    ]


def test_a_fraction_is_rounded_over_all_shards():
    part = Part(numbered(100, 3), 0.1, seed=0, held_out=True)
    assert len(part) == 10 and max(part.shard_sizes) == 1


class Doubled(Mapped):
    def function(self, x, shard):
        return (x * 2).double()


def test_what_is_known_of_a_source_goes_with_it():
    source = numbered(20, 6)
    doubled = Doubled(source, torch.float64)
    part = Part(doubled, 0.1, seed=0, held_out=False)
    for derived in (doubled, part):
        assert derived.dtype == torch.float64 and derived.columns == ["a", "b"] and derived.name == "numbers"
        assert derived.data_shape == (2,)
    assert doubled.place(2) == ("numbers", 12) and doubled.read(1).equal(source.read(1).double() * 2)


@pytest.mark.parametrize(("index", "words"), [([1], "column 'b'"), ([0, 2], r"column (0, 2) (counted from 0)")])
def test_names_of_columns(index, words):
    assert column_name(numbered(3), index) == words
    assert column_name(Rows(torch.zeros(2, 3)), [2]) == "column 2 (counted from 0)"


def test_rows_per_shard():
    assert rows_per_shard((18,)) == 2**20 // 18 and rows_per_shard((10**9,)) == 1 and rows_per_shard(()) == 2**20


def test_a_default_device_does_not_matter():
    source = numbered(20, 6)
    with torch.device("meta"):
        parts = [Part(source, 0.3, seed=0, held_out=held_out) for held_out in (False, True)]
        both = resident(*parts)
    assert torch.cat(both)[:, 0].sort().values.tolist() == list(range(20))
