"""A table of the training on stderr, a line now and then: for logs of machines that no one watches."""

import sys
from collections.abc import Mapping
from typing import Any

from vaentropy.checks import require_count
from vaentropy.errors import printable
from vaentropy.ledger import number
from vaentropy.loggers.logger import Logger, Outcome
from vaentropy.training.history import TABLE, History, Row, cell

__all__ = ["Console"]

# A header stands above so many lines, so that one is in sight.
LINES_PER_HEADER = 20
# Together less than the 80 columns of a terminal.
WIDTHS = {"epoch": 6, "step": 8, "running_entropy_sum": 13, "running_gap": 10, "learning_rate": 9, "seconds": 9}
WIDTH = 12


class Console(Logger):
    """A line for each row that was evaluated, and for every so many epochs; nats per data point.

    It needs no terminal; where there is a progress bar, the lines stand above it.

    Args:
        every: epochs; evaluated rows have a line whatever their number.
        stream: text stream to write to; None takes stderr.
        name: of the run, in front of each line.
        settings: not shown.

    Raises:
        UsageError: an argument has a wrong value.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        stream: Any = None,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        super().__init__(name=name, settings=settings)
        self.every, self.stream, self.lines = require_count("every", every), stream, 0

    def open(self) -> None:
        """Nothing: the header comes with the first line."""

    def row(self, row: Row) -> None:
        """Print a row, if it is one of those that are to be."""
        evaluated = "held_out_elbo" in row or "train_elbo" in row
        if not evaluated and int(row["epoch"]) % self.every:
            return
        if self.lines % LINES_PER_HEADER == 0:
            self._print(_line(TABLE))
        self.lines += 1
        self._print(_line({column: cell(row, column) for column in TABLE}))

    def end(self, history: History, last: Row) -> None:
        """Print the ELBOs of the evaluations after the last epoch."""
        evaluations = {"training data": history.train, "held out": history.held_out}
        elbos = [f"{number(e.elbo)} ({what})" for what, e in evaluations.items() if e is not None]
        self._print(f"after epoch {int(last['epoch'])}: ELBO {', '.join(elbos)}, nats per data point")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: rows are printed as they are."""

    def close(self, outcome: Outcome) -> None:
        """Nothing: how training ended is said elsewhere."""

    def _print(self, line: str) -> None:
        # stderr as it is now: a progress bar puts something in its place that prints above the bar.
        prefix = f"{printable(self.name)}: " if self.name else ""
        print(f"{prefix}{line}", file=self.stream or sys.stderr, flush=True)


def _line(texts: Mapping[str, str]) -> str:
    return "".join(text.rjust(WIDTHS.get(column, WIDTH)) for column, text in texts.items())
