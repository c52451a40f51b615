import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import Dataset, split
from vaentropy.data.source import Part, Rows
from vaentropy.errors import DataError, UsageError


def make(train=None, held_out=None, **more):
    train = torch.zeros(4, 3) if train is None else train
    held_out = torch.zeros(2, 3) if held_out is None else held_out
    return Dataset("toy", train, held_out, "zeros", **more)


def with_value(value, place, shape=(5, 3)):
    x = torch.zeros(shape)
    x[place] = value
    return x


def test_a_data_set_says_what_it_is():
    data = make(torch.zeros(4, 2, 3), torch.zeros(0, 2, 3))
    assert data.data_shape == (2, 3)
    assert repr(data) == "Dataset('toy', train=4, held_out=0, data_shape=(2, 3), dtype=float32, 'zeros')"
    assert data != make(torch.zeros(4, 2, 3), torch.zeros(0, 2, 3))  # by identity: comparing tensors has no one answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": torch.zeros(4, 3, dtype=torch.int64)}, r"train: got torch\.int64, expected a floating"),
        ({"train": torch.zeros(4, 3, dtype=torch.complex64)}, r"train: got torch\.complex64"),
        ({"held_out": torch.zeros(2, 3, dtype=torch.uint8)}, r"held_out: got torch\.uint8"),
        ({"train": torch.zeros(4)}, r"train: got shape \(4,\)"),
        ({"train": torch.zeros(4, 0), "held_out": torch.zeros(2, 0)}, r"train: got shape \(4, 0\)"),
        ({"train": torch.zeros(0, 3)}, "train: got no rows"),
        ({"held_out": torch.zeros(2, 4)}, r"\(3,\) of torch\.float32, held-out rows \(4,\)"),
        ({"held_out": torch.zeros(2, 3, dtype=torch.float64)}, r"held-out rows \(3,\) of torch\.float64"),
        ({"train_labels": torch.zeros(3)}, r"train: got labels of shape \(3,\) for 4 rows"),
        ({"held_out_labels": torch.tensor(1)}, r"held_out: got labels of shape \(\) for 2 rows"),
        ({"train": with_value(float("nan"), (3, 1))}, r"train: row 3, column 1 \(.*\) is nan in float32"),
        ({"held_out": with_value(-float("inf"), (0, 2))}, r"held_out: row 0, column 2 \(.*\) is -inf"),
    ],
)
def test_data_that_cannot_be_used_are_refused(arguments, words):
    with pytest.raises(DataError, match=words) as caught:
        make(**arguments)
    assert "'toy'" in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_offending_value_of_an_image_is_named():
    x = torch.zeros(5, 2, 3)
    x[4, 0, 0] = x[2, 1, 2] = x[2, 1, 1] = float("nan")
    with pytest.raises(DataError, match=r"row 2, column \(1, 1\) "):
        make(x, torch.zeros(1, 2, 3))


def test_an_array_is_refused_by_name():
    # The annotations are checked in tests, so that an array does not reach the constructor here as it does for a user.
    fields = types.SimpleNamespace(name="toy", train=np.zeros((4, 3)), train_labels=None, held_out=None)
    fields.held_out_labels = None
    with pytest.raises(DataError, match="train: got ndarray, expected a floating tensor"):
        Dataset.__post_init__(fields)  # type: ignore[arg-type]


@given(count=st.integers(1, 60), fraction=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**31))
def test_a_split_is_a_partition_that_keeps_the_order(count, fraction, seed):
    x = torch.arange(count)
    expected = max(1, round(fraction * count)) if fraction else 0
    if expected >= count:
        with pytest.raises(UsageError, match="leaves none to train on"):
            split(x, fraction, seed=seed)
        return
    train, held_out = split(x, fraction, seed=seed)
    assert len(held_out) == expected
    assert sorted(train.tolist() + held_out.tolist()) == list(range(count))
    assert train.tolist() == sorted(train.tolist()) and held_out.tolist() == sorted(held_out.tolist())


def test_a_split_depends_on_its_seed_alone():
    x = torch.arange(1000)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = split(x, 0.3, seed=7)[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(split(x, 0.3, seed=7)[1], first)
    assert not torch.equal(split(x, 0.3, seed=8)[1], first)


def test_every_row_is_held_out_equally_often():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[split(torch.arange(10), 0.3, seed=seed)[1]] += 1
    # Binomial(2000, 0.3): mean 600, standard deviation 20.5
    assert (counts - 600).abs().max() < 5 * 20.5


def test_labels_split_with_the_same_arguments_stay_aligned():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = x.sum(dim=1)
    for rows, part in zip(split(x, 0.4, seed=3), split(labels, 0.4, seed=3), strict=True):
        assert torch.equal(rows.sum(dim=1), part)


def test_a_split_copies():
    x = torch.zeros(4, 3)
    for fraction in (0.0, 0.5):
        train, _ = split(x, fraction)
        train += 1
        assert x.sum() == 0


def test_nothing_held_out_gives_an_empty_part_of_the_same_shape():
    train, held_out = split(torch.ones(4, 2, 3), 0.0)
    assert train.shape == (4, 2, 3) and held_out.shape == (0, 2, 3)
    assert make(train, held_out).data_shape == (2, 3)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fractions_outside_the_interval_are_refused(fraction):
    with pytest.raises(UsageError, match=r"expected a fraction in \[0, 1\)"):
        split(torch.zeros(10, 2), fraction)


def test_no_rows_cannot_be_split():
    with pytest.raises(UsageError, match="of 0 rows leaves none"):
        split(torch.zeros(0, 2), 0.0)


def test_a_default_device_does_not_matter():
    x = torch.arange(20)
    with torch.device("meta"):
        train, _ = split(x, 0.25, seed=1)
    assert torch.equal(train, split(x, 0.25, seed=1)[0])


def test_parts_may_be_sources():
    x = torch.arange(12.0).reshape(4, 3)
    data = make(Rows(x), Rows(x[:2]))
    assert data.data_shape == (3,) and repr(data) == repr(make(x, x[:2]))
    with pytest.raises(DataError, match=r"train: got torch\.int64, expected a floating"):
        make(Rows(x.long()))
    with pytest.raises(DataError, match="train: got no rows"):
        make(Rows(x[:0]))
    with pytest.raises(DataError, match=r"held-out rows \(2,\)"):
        make(Rows(x), Rows(x[:, :2]))


def test_missing_values_where_they_are_expected():
    x = with_value(float("nan"), (3, 1))
    assert make(x, missing="ignore").missing == "ignore"
    x[4, 0] = float("inf")
    with pytest.raises(DataError, match=r"train: row 4, column 0 .* is inf"):
        make(x, missing="ignore")


def test_labels_are_split_by_shards_as_the_rows_of_a_source():
    x = torch.arange(50.0)[:, None]
    labels = torch.arange(50)
    parts = (Part(Rows(x, shard_size=7), 0.3, seed=1, held_out=part) for part in (False, True))
    for part, chosen in zip(parts, split(labels, 0.3, seed=1, shard_size=7), strict=True):
        assert torch.cat(list(part))[:, 0].tolist() == chosen.tolist()
