"""Conditions of labels and of columns of tables: `one_hot`, `Coding`, `load(..., condition=...)`."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from vaentropy.data import Coding, load, one_hot
from vaentropy.data.coding import MOST_CODES
from vaentropy.errors import DataError, UsageError

NAMES = ["site", "age", "sex"]


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(60, 3)), columns=["a", "b", "c"])
    table.insert(1, "site", random.choice(["north", "south", "x, y"], 60))
    table["age"], table["sex"] = random.normal(50, 10, 60), random.integers(0, 2, 60)
    return table


def by_hand(frame, train):
    """What the condition has to be, by pandas."""
    age = frame["age"].to_numpy()
    of_train = age[train]
    parts = [pd.get_dummies(frame[name]).to_numpy(dtype=float) for name in ("site", "sex")]
    return np.hstack([parts[0], ((age - of_train.mean()) / of_train.std())[:, None], parts[1]])


def test_tables_of_every_kind_give_the_same_rows(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "parts").mkdir()
    for number in range(2):
        part = frame.iloc[30 * number : 30 * number + 30].assign(site=lambda t: t["site"].astype("category"))
        part.to_parquet(tmp_path / "parts" / f"{number}.parquet")
    paths = [tmp_path / name for name in ("t.csv", "t.csv.gz", "t.parquet", "parts")]
    for table in [*paths, frame, pl.from_pandas(frame)]:
        data = load(table, condition=NAMES, held_out=0.25, dtype=torch.float64)
        assert data.columns == ("a", "b", "c") and data.data_shape == (3,) and data.coding.width == 6
        assert data.coding.names == tuple(NAMES) and "given site (3 categories)" in data.description
        # The rows say by their features which they are.
        rows = {row["a"]: number for number, row in frame.iterrows()}
        train = [rows[value] for value in data.train.rows[:, 0].tolist()]
        assert len(train) == 45 and len(data.held_out) == 15
        expected = torch.from_numpy(by_hand(frame, train))
        torch.testing.assert_close(data.train.rows[:, 3:], expected[train])
        held_out = [rows[value] for value in data.held_out.rows[:, 0].tolist()]
        torch.testing.assert_close(data.held_out.rows[:, 3:], expected[held_out])


def test_streams_carry_their_condition(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    whole = load(tmp_path / "t.csv", condition=NAMES, scale="standard")
    streamed = load(tmp_path / "t.csv", condition=NAMES, scale="standard", stream=True)
    assert streamed.train.condition_width == 6 and streamed.train.features_shape == (3,)
    assert torch.equal(torch.cat(list(streamed.train)), whole.train.rows)


def test_a_coding_codes_other_data_alike_and_is_kept_as_plain_values(frame):
    data = load(frame, condition=NAMES)
    coding = Coding.from_dict(data.coding.to_dict())
    assert coding == data.coding
    other = load(frame.iloc[:10], condition=coding, held_out=0.0)
    ages = torch.from_numpy((frame["age"].to_numpy()[:10] - coding.columns[1].mean) / coding.columns[1].scale)
    torch.testing.assert_close(other.train.rows[:, 6], ages.float())
    one = coding.of_texts(["south", "50", "1"])
    assert one.tolist() == [0, 1, 0, pytest.approx((50 - coding.columns[1].mean) / coding.columns[1].scale), 0, 1]
    with pytest.raises(DataError, match=r"'east'.*expected one of"):
        load(frame.assign(site="east"), condition=coding, held_out=0.0)


def test_labels_of_named_sets_and_what_is_known_of_p_of_x():
    data, plain = load("digits", condition="labels"), load("digits")
    assert torch.equal(data.train.rows[:, :64], plain.train)
    assert torch.equal(data.train.rows[:, 64:].argmax(1), plain.train_labels.long())
    assert torch.equal(data.train_labels, plain.train_labels)
    assert load("pca").truth is not None


def test_few_whole_numbers_are_categories_and_many_are_covariates():
    for number, width in ((MOST_CODES, MOST_CODES), (MOST_CODES + 1, 1)):
        table = pd.DataFrame({"x": range(number), "k": range(number)})
        assert load(table, condition="k").coding.width == width


def test_one_hot():
    assert one_hot(["b", "a", "b"]).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert one_hot(torch.tensor([3, 1]), [1, 2, 3]).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.equal(one_hot(pd.Series([2.0, 5.0])), torch.eye(2, dtype=torch.float64))


MISTAKES = {
    "other labels": (lambda f: one_hot(["c"], ["a", "b"]), DataError, "'c'.*expected one of 'a', 'b'"),
    "fractions": (lambda f: one_hot([0.5, 1.0]), DataError, "whole numbers or texts"),
    "texts for numbers": (lambda f: one_hot(["a"], [1, 2]), DataError, "texts, expected whole numbers"),
    "axes": (lambda f: one_hot([[1, 2]]), DataError, r"\(N,\)"),
    "categories": (lambda f: one_hot([1], [1, 1]), UsageError, "expected different ones"),
    "mixed categories": (lambda f: one_hot([1], [1, "a"]), UsageError, "all numbers or all texts"),
    "no column": (lambda f: load(f, condition="sight"), UsageError, "no column 'sight'.*'site'"),
    "no table": (lambda f: load(np.zeros((4, 2)), condition="a"), UsageError, "for a table"),
    "named set": (lambda f: load("digits", condition="site"), UsageError, "expected 'labels'"),
    "no labels": (lambda f: load("pca", condition="labels"), DataError, "no labels"),
    "nothing": (lambda f: load(f, condition=[]), UsageError, "names of columns"),
    "missing": (lambda f: load(f.assign(age=np.nan), condition="age"), DataError, "row 0.*'age' is missing"),
    "missing text": (lambda f: load(f.assign(site=None), condition="site"), DataError, "row 0.*'site' is missing"),
    "constant": (lambda f: load(f.assign(sex=1), condition="sex", exclude="site"), DataError, "1.0 throughout"),
    "objects": (lambda f: load(f.assign(sex=[[]] * 60), condition="sex"), DataError, "neither numbers nor texts"),
    "many texts": (
        lambda f: load(pd.DataFrame({"x": range(1001), "t": map(str, range(1001))}), condition="t"),
        DataError,
        "1001 different texts",
    ),
    "too few values": (
        lambda f: load(f, condition=NAMES).coding.of_texts(["north"]),
        UsageError,
        "each of site, age, sex",
    ),
    "no category": (
        lambda f: load(f, condition="sex", exclude="site").coding.of_texts(["0.5"]),
        DataError,
        "'0.5' given",
    ),
    "no number": (
        lambda f: load(f, condition="age", exclude="site").coding.of_texts(["old"]),
        DataError,
        "expected a number",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_in_one_line(name, frame):
    do, kind, says = MISTAKES[name]
    with pytest.raises(kind, match=says) as raised:
        do(frame)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        [3],
        [{"name": 3, "categories": [1]}],
        [{"name": "a"}],
        [{"name": "a", "categories": []}],
        [{"name": "a", "categories": [1, "b"]}],
        [{"name": "a", "categories": [1, 1]}],
        [{"name": "a", "categories": [True]}],
        [{"name": "a", "mean": 0.0, "scale": 0.0}],
        [{"name": "a", "mean": float("nan"), "scale": 1.0}],
        [{"name": "a", "mean": "0", "scale": 1.0}],
    ],
)
def test_what_is_no_coding_is_refused(values):
    with pytest.raises(ValueError):
        Coding.from_dict(values)
