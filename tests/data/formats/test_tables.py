import pytest

from vaentropy.data.formats.tables import choose
from vaentropy.errors import DataError, UsageError

NAMES = ["age", "height", "label"]


@pytest.mark.parametrize(
    ("columns", "exclude", "expected"),
    [
        (None, (), [0, 1, 2]),
        (None, ["label"], [0, 1]),
        (None, "label", [0, 1]),
        ("height", (), [1]),
        (["label", "age"], (), [2, 0]),
        (["label", "age"], ["label", "height"], [0]),
        ([], ["label"], None),
        (None, NAMES, None),
    ],
)
def test_columns_are_chosen_by_name(columns, exclude, expected):
    if expected is None:
        with pytest.raises(UsageError, match="none is left"):
            choose(NAMES, columns, exclude, "x.csv")
    else:
        assert choose(NAMES, columns, exclude, "x.csv") == expected


def test_unknown_and_repeated_names():
    for how in ({"columns": ["hight"], "exclude": ()}, {"columns": None, "exclude": ["hight"]}):
        with pytest.raises(UsageError, match=r"x\.csv: no column 'hight'; did you mean 'height'\? there are 'age', 'h"):
            choose(NAMES, **how, what="x.csv")
    with pytest.raises(UsageError, match="no column 'z'; there are 'age'"):
        choose(NAMES, ["z"], (), "x.csv")
    with pytest.raises(UsageError, match="expected each once"):
        choose(NAMES, ["age", "age"], (), "x.csv")
    with pytest.raises(DataError, match="two columns are called 'age'"):
        choose([*NAMES, "age"], None, (), "x.csv")
    with pytest.raises(DataError, match="has no columns"):
        choose([], None, (), "x.csv")


def test_a_long_list_is_cut():
    with pytest.raises(UsageError, match=r"'c19', \.\.\. \(1000 in all\)$"):
        choose([f"c{number}" for number in range(1000)], ["zzz"], (), "x.csv")
