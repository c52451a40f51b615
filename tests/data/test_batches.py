from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import batches as batches_module
from vaentropy.data.batches import Batches
from vaentropy.data.source import Part, Rows, Source
from vaentropy.errors import UsageError


class Numbered(Source):
    """Rows that are their own numbers, and the shards that have been read."""

    def __init__(self, shard_sizes):
        self.name, self.data_shape, self.dtype, self.shard_sizes = "numbers", (2,), torch.float32, shard_sizes
        self.was_read = []

    def read(self, shard):
        self.was_read.append(shard)
        first = sum(self.shard_sizes[:shard])
        return torch.arange(first, first + self.shard_sizes[shard]).float()[:, None].expand(-1, 2)


def numbers(batches):
    return [batch[:, 0].long().tolist() for batch in batches]


@pytest.fixture(params=["tensor", "source"])
def data(request, monkeypatch):
    monkeypatch.setattr(batches_module, "BUFFER_BYTES", 25 * 8)
    x = torch.arange(100.0)[:, None].expand(-1, 2).contiguous()
    return x if request.param == "tensor" else Rows(x, shard_size=7)


@given(
    shard_sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    batch_size=st.integers(1, 30),
    buffer=st.integers(0, 400),
    number=st.integers(0, 3),
)
def test_every_row_once_per_epoch_whatever_the_shards(shard_sizes, batch_size, buffer, number):
    total = sum(shard_sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "BUFFER_BYTES", buffer)
        source = Numbered(shard_sizes)
        batches = Batches(source, batch_size, seed=5)
        all_batches = numbers(batches.epoch(number))
        assert sorted(source.was_read) == [shard for shard, size in enumerate(shard_sizes) if size]
        assert len(all_batches) == len(batches) == -(-total // batch_size)
        assert sorted(chain(*all_batches)) == list(range(total))
        sizes = {len(batch) for batch in all_batches}
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
        for start in range(len(batches) + 1):
            assert numbers(batches.epoch(number, start)) == all_batches[start:]
        # Neither sizes nor number of batches depend on how the rows are stored.
        assert [len(batch) for batch in Batches(torch.zeros(total, 2), batch_size).epoch(0)] == [
            len(batch) for batch in all_batches
        ]


def test_the_order_depends_on_seed_and_epoch_alone(data):
    first = numbers(Batches(data, 8, seed=1).epoch(3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = Batches(data, 8, seed=1)
    numbers(batches.epoch(0))
    assert numbers(batches.epoch(3)) == first and torch.equal(torch.get_rng_state(), before)
    assert numbers(batches.epoch(4)) != first and numbers(Batches(data, 8, seed=2).epoch(3)) != first
    with torch.device("meta"):
        assert numbers(batches.epoch(3)) == first


def test_a_row_goes_anywhere(data):
    places = torch.stack([torch.cat(list(Batches(data, 10, seed).epoch(0)))[:, 0].argsort() for seed in range(400)])
    # Uniform on 0 ... 99: mean 49.5, standard deviation 28.9
    assert (places.double().mean(0) - 49.5).abs().max() < 5 * 28.9 / 20


def test_neighbours_are_parted(data):
    order = torch.cat(list(Batches(data, 10, seed=0).epoch(0)))[:, 0]
    assert (order.diff().abs() == 1).sum() < 20  # 99 in the order of the file; shuffled in windows of 21 rows, about 9


def test_resuming_reads_no_shard_of_a_window_that_is_over(monkeypatch):
    monkeypatch.setattr(batches_module, "BUFFER_BYTES", 20 * 8)  # two shards
    source = Numbered([10] * 10)
    batches = Batches(source, 10)
    list(batches.epoch(0))
    order, source.was_read = source.was_read, []
    next(batches.epoch(0, start=7))
    assert source.was_read == order[6:8]
    source.was_read = []
    assert list(batches.epoch(0, start=10)) == [] and source.was_read == []


def test_one_window_at_a_time(monkeypatch):
    monkeypatch.setattr(batches_module, "BUFFER_BYTES", 20 * 8)
    source = Numbered([10] * 10)
    epoch = Batches(source, 5).epoch(0)
    for batch in range(20):
        next(epoch)
        assert len(source.was_read) == 2 * (batch // 4 + 1)


def test_a_part_of_a_source():
    part = Part(Rows(torch.arange(50.0)[:, None].expand(-1, 2), shard_size=6), 0.2, seed=0, held_out=False)
    rows = chain(*numbers(Batches(part, 7).epoch(0)))
    assert sorted(rows) == torch.cat(list(part))[:, 0].tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((torch.zeros(3, 2), 0), "batch_size=0 given"), ((torch.zeros(0, 2), 5), "no rows given")],
)
def test_batches_that_cannot_be(arguments, words):
    with pytest.raises(UsageError, match=words):
        Batches(*arguments)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_the_epoch(start):
    with pytest.raises(UsageError, match=f"start={start} given, expected a batch from 0 to 3"):
        Batches(torch.zeros(6, 2), 2).epoch(0, start)
