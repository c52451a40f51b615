"""Labels and covariates as numbers: `one_hot`, and `Coding`, which remembers how columns became a condition."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaentropy.data.formats.tables import listed
from vaentropy.errors import DataError, UsageError, nearest, shown

__all__ = ["Coding", "Column", "one_hot"]

# A column of whole numbers counts as one of categories if it has no more different ones, else as a covariate.
MOST_CODES = 20
MOST_CATEGORIES = 1000

Label = int | str


def one_hot(labels: Any, categories: Sequence[Label] | None = None) -> Tensor:
    """Labels as a condition: (N, k), a 1 in the place of each label's category.

    Args:
        labels: (N,), whole numbers or texts: a tensor, array, list or column of a data frame.
        categories: k, in order; None takes those that are there, sorted. Keep them to code further labels alike.

    Raises:
        DataError: labels of another kind, or one that is none of the categories.
        UsageError: categories that are repeated, or not of one kind.
    """
    values = _labels(labels)
    if categories is None:
        found = sorted(set(values.tolist()))
    else:
        found = list(categories)
        kinds = {isinstance(each, str) for each in found}
        if not found or len(set(found)) < len(found) or len(kinds) > 1:
            raise UsageError(f"categories={shown(categories)} given, expected different ones, all numbers or all texts")
    return Column("labels", tuple(found)).encode(values)


@dataclass(frozen=True)
class Column:
    """How one column becomes numbers.

    Attributes:
        name: of the column.
        categories: of labels, which become one-hot vectors; () for a covariate.
        mean, scale: of a covariate, which becomes (value - mean)/scale.
    """

    name: str
    categories: tuple[Label, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Numbers that it becomes."""
        return len(self.categories) or 1

    def encode(self, values: np.ndarray) -> Tensor:
        """(N, width), float64, of a column (N,)."""
        if not self.categories:
            if values.dtype.kind not in "biuf":
                raise DataError(f"{self.name!r} holds texts, expected numbers as in training")
            return (torch.from_numpy(values.astype(np.float64)).unsqueeze(1) - self.mean) / self.scale
        positions = {category: position for position, category in enumerate(self.categories)}
        if values.dtype.kind == "U" and not isinstance(self.categories[0], str):
            raise DataError(f"{self.name!r} holds texts, expected whole numbers: {listed(_texts(self.categories))}")
        if values.dtype.kind != "U" and isinstance(self.categories[0], str):
            values = values.astype(np.int64).astype(str)
        kinds, inverse = np.unique(values, return_inverse=True)
        for kind in kinds.tolist():
            if kind not in positions:
                known = _texts(self.categories)
                hint = nearest(str(kind), known)
                raise DataError(f"{self.name!r} is {shown(kind)}, {hint}expected one of {listed(known)}")
        places = torch.tensor([positions[kind] for kind in kinds.tolist()], dtype=torch.long)
        return torch.eye(self.width, dtype=torch.float64)[places[torch.from_numpy(inverse.reshape(-1))]]

    @classmethod
    def fit(cls, name: str, values: np.ndarray, train: np.ndarray) -> "Column":
        """The coding of a column: one-hot of texts and of at most 20 different whole numbers, else standardised.

        Args:
            name: of the column.
            values: all of it, (N,), numbers or texts.
            train: of the rows to train on, whose mean and standard deviation count.
        """
        kinds = np.unique(values)
        if len(kinds) < 2:
            raise DataError(f"column {name!r} is {shown(kinds.tolist()[0])} throughout, expected one that varies")
        text = values.dtype.kind == "U"
        if text and len(kinds) > MOST_CATEGORIES:
            how = "leave it out"
            raise DataError(
                f"column {name!r} has {len(kinds)} different texts, expected up to {MOST_CATEGORIES}; {how}"
            )
        if text or (len(kinds) <= MOST_CODES and bool((kinds == np.floor(kinds)).all())):
            return cls(name, tuple(kinds.tolist() if text else kinds.astype(np.int64).tolist()))
        scale = float(train.std())
        if not (math.isfinite(scale) and scale > 0):
            raise DataError(f"column {name!r} does not vary in the rows to train on, or by too much; leave it out")
        return cls(name, mean=float(train.mean()), scale=scale)

    def of_text(self, text: str) -> Tensor:
        """(1, width) of a value as a user writes it.

        Raises:
            DataError: it is none.
        """
        if self.categories and isinstance(self.categories[0], str):
            return self.encode(np.array([text]))
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (self.categories and not number.is_integer()):
            expected = f"one of {listed(_texts(self.categories))}" if self.categories else "a number"
            raise DataError(f"{self.name!r}: {shown(text)} given, expected {expected}")
        return self.encode(np.array([int(number) if self.categories else number]))


def _labels(labels: Any) -> np.ndarray:
    """(N,) of int64 or of texts."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(each, str) for each in array.tolist()):
        array = array.astype(str)
    whole = array.dtype.kind == "f" and bool((array == np.floor(array)).all())
    if array.ndim != 1 or not len(array) or not (array.dtype.kind in "biuU" or whole):
        given = f"labels of shape {array.shape} and {array.dtype}"
        raise DataError(f"{given} given, expected (N,) whole numbers or texts; covariates are a condition as they are")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _texts(categories: Sequence[Label]) -> list[str]:
    return [str(category) for category in categories]


@dataclass(frozen=True)
class Coding:
    """How columns become a condition, so that further data are coded alike.

    Attributes:
        columns: of the condition, in order.
    """

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def width(self) -> int:
        """k, numbers of a condition."""
        return sum(column.width for column in self.columns)

    def __str__(self) -> str:
        parts = [f"{c.name} ({len(c.categories)} categories)" if c.categories else c.name for c in self.columns]
        return ", ".join(parts)

    @classmethod
    def fit(cls, values: Mapping[str, np.ndarray], train: Mapping[str, np.ndarray]) -> "Coding":
        """The coding of columns (N,), see `Column.fit`; `train` are their rows to train on."""
        return cls(tuple(Column.fit(name, column, train[name]) for name, column in values.items()))

    def encode(self, values: Mapping[str, np.ndarray]) -> Tensor:
        """The condition (N, k), float64.

        Raises:
            DataError: a value that the coding does not know.
        """
        return torch.cat([column.encode(values[column.name]) for column in self.columns], 1)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """One condition (k,) of values as a user writes them, one for each column.

        Raises:
            UsageError: too few or too many.
            DataError: one that is none.
        """
        if len(texts) != len(self.columns):
            given = ",".join(texts)
            raise UsageError(
                f"condition {given} given, expected a value for each of {', '.join(self.names)}, with commas"
            )
        return torch.cat([c.of_text(text.strip()) for c, text in zip(self.columns, texts, strict=True)], 1)[0]

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        return [
            {"name": c.name, "categories": list(c.categories)}
            if c.categories
            else {"name": c.name, "mean": c.mean, "scale": c.scale}
            for c in self.columns
        ]

    @classmethod
    def from_dict(cls, values: Any) -> "Coding":
        """The inverse of `to_dict`.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(values, list) or not values:
            raise ValueError(f"a condition is {shown(values)}")
        return cls(tuple(_column(each) for each in values))


def _column(values: Any) -> Column:
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ValueError(f"a column of the condition is {shown(values)}")
    name, categories = values["name"], values.get("categories")
    if categories is not None:
        kinds = {type(each) for each in categories} if isinstance(categories, list) else set()
        if kinds not in ({int}, {str}) or len(set(categories)) < len(categories):
            raise ValueError(f"categories of {shown(name)} are {shown(categories)}")
        return Column(name, tuple(categories))
    mean, scale = (_number(values.get(each), f"{each} of {shown(name)}") for each in ("mean", "scale"))
    if scale <= 0:
        raise ValueError(f"scale of {shown(name)} is {scale}")
    return Column(name, mean=mean, scale=scale)


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{what} is {shown(value)}")
    return float(value)
