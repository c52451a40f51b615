"""What training leaves: a row per epoch, and the evaluations of the last one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vaentropy import markup
from vaentropy.ledger import number
from vaentropy.results import Evaluation

__all__ = ["TABLE", "History", "Row", "cell"]

# Numbers, or lists of them with one for each latent.
Row = Mapping[str, Any]

# What a table of a training shows: columns and their titles. Other numbers are nats, and printed as a ledger does.
TABLE = {
    "epoch": "epoch",
    "step": "step",
    "running_elbo": "ELBO",
    "running_entropy_sum": "entropy sum",
    "running_gap": "gap",
    "held_out_elbo": "held out",
    "learning_rate": "rate",
    "seconds": "seconds",
}
FORMATS = {"epoch": "{:.0f}", "step": "{:.0f}", "learning_rate": "{:.2e}", "seconds": "{:.1f}"}
# Rows that a notebook shows of a history, the last ones.
ROWS_SHOWN = 5


def cell(row: Row, column: str) -> str:
    """A number of a row as tables show it; nothing where the row has none."""
    if column not in row:
        return ""
    return FORMATS[column].format(row[column]) if column in FORMATS else number(row[column])


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

    def _repr_html_(self) -> str:
        if not self.rows:
            return markup.paragraph("no epochs")
        shown = [[cell(row, column) for column in TABLE] for row in self.rows[-ROWS_SHOWN:]]
        caption = f"the last {len(shown)} of {len(self)} epochs: running means, nats per data point"
        elbos = [
            f"ELBO of the {name}: {number(e.elbo)} ± {number(e.stderr.elbo)}"
            for name, e in (("training data", self.train), ("held-out data", self.held_out))
            if e is not None
        ]
        stopped = [] if self.stopped is None else [f"stopped: {self.stopped}"]
        return markup.table(list(TABLE.values()), shown, caption=caption) + markup.listed(elbos + stopped)
