"""What training leaves: a row per epoch, and the evaluations of the last one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vaentropy.results import Evaluation

__all__ = ["History"]

# Numbers, or lists of them with one for each latent.
Row = Mapping[str, Any]


@dataclass
class History:
    """Rows of numbers, nats per data point, in the order of the epochs.

    Columns that start with `running_` are means over the steps of the epoch, while the parameters moved and in train
    mode; those that end in `_per_latent` hold a list, a number for each latent. Those that start with `held_out_` come
    from `evaluate` after the epoch and stand only in rows of epochs that were evaluated, the last one always among
    them, and those that start with `train_` in the last row.

    Attributes:
        rows: one mapping from column to number (or list) per epoch.
        train: evaluation of the training data after the last epoch.
        held_out: evaluation of the held-out data after the last epoch, None without any.
        stopped: why training ended before its last epoch; None where it did not.
    """

    rows: list[Row] = field(default_factory=list)
    train: Evaluation | None = None
    held_out: Evaluation | None = None
    stopped: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def __getitem__(self, column: str) -> list[Any]:
        """What a column holds, of the rows that have it; pair them with `at(column)`."""
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; there are {', '.join(self.columns)}")
        return [row[column] for row in self.rows if column in row]

    def at(self, column: str) -> list[int]:
        """The epochs of the rows that have `column`."""
        return [int(row["epoch"]) for row in self.rows if column in row]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, for JSON."""
        evaluations = {"train": self.train, "held_out": self.held_out}
        return {
            "rows": [dict(row) for row in self.rows],
            **{name: e.to_dict() for name, e in evaluations.items() if e is not None},
        }

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no epochs)"
        last = self.rows[-1]
        return f"History({len(self.rows)} epochs, running ELBO {last['running_elbo']:.4f} nats in the last)"
