import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from vaentropy.data import load, source
from vaentropy.data.formats.torch_dataset import TorchItems
from vaentropy.errors import DataError, UsageError


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __getitem__(self, number):
        return self.items[number]

    def __len__(self):
        return len(self.items)


def test_items_alone_and_in_tuples(monkeypatch):
    monkeypatch.setattr(source, "SHARD_VALUES", 12)
    x = torch.arange(30.0).reshape(5, 3, 2)
    for items in (list(x), [(row, 7) for row in x], [[row.numpy(), "a label", None] for row in x]):
        found = TorchItems(Items(items))
        assert found.shard_sizes == [2, 2, 1] and found.data_shape == (3, 2) and found.dtype == torch.float32
        assert torch.cat(list(found)).equal(x) and found.read(1).equal(x[2:4])
    assert torch.equal(load(TensorDataset(x, torch.arange(5)), held_out=0.0).train, x)


def test_a_number_per_item():
    data = load(TensorDataset(torch.arange(10)), held_out=0.0)
    assert data.train.tolist() == [[number] for number in range(10)] and data.train.dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "got no items"),
        (["x"], "item 0: str given as data"),
        ([torch.zeros(0)], r"item 0 has shape \(0,\)"),
        ([torch.zeros(2), torch.zeros(3)], r"item 1 is \(3,\) of torch.float32, expected \(2,\) of torch.float32"),
        ([torch.zeros(2), torch.zeros(2).double()], "item 1 is .* of torch.float64"),
        ([np.zeros(2), None], "item 1: NoneType given as data"),
    ],
)
def test_items_that_cannot_be_used(items, words):
    with pytest.raises(DataError, match=words):
        torch.cat(list(TorchItems(Items(items))))


def test_a_dataset_without_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    with pytest.raises(DataError, match="torch dataset Stream: has no length, expected a map-style dataset"):
        load(Stream())


def test_options_of_tables_are_refused():
    with pytest.raises(UsageError, match="exclude given, which is for a table"):
        load(TensorDataset(torch.zeros(5, 2)), exclude=["label"])
