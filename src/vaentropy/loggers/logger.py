"""`Logger`: what all loggers have in common, and the names that they give to the numbers of a training."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from vaentropy.checks import require_instance, require_path
from vaentropy.errors import UsageError, shown
from vaentropy.results import Evaluation
from vaentropy.training.history import History, Row

__all__ = ["PROJECT", "Logger", "Outcome", "folder_made", "metrics", "terms"]

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "failed", "interrupted"]
Own = TypeVar("Own", bound="Logger")

# Under which the tools list runs, unless the environment names another.
PROJECT = "vaentropy"
# Dashboards draw a curve for each; the history has them all.
MAX_LATENTS = 64
# Columns of these beginnings are charts of one group; all else but the epoch is in a group of its own.
GROUPS = ("running", "held_out", "train")
OTHER = "progress"


def metrics(row: Row) -> dict[str, float]:
    """A row of a history by the names that dashboards group by.

    `running_elbo` becomes `running/elbo`, and so do columns that begin with `held_out_` and `train_`; `epoch` stays,
    any other, say `beta`, becomes `progress/beta`. A list, of numbers for each latent, becomes `NAME/0`, `NAME/1`, … of
    the first 64 latents. The step is no metric: it is what all these are drawn over.
    """
    named: dict[str, float] = {}
    for column, value in row.items():
        if isinstance(value, list | tuple):
            named |= {f"{column}/{latent}": float(x) for latent, x in enumerate(value[:MAX_LATENTS])}
        elif column != "step":
            named[_metric(column)] = float(value)
    return named


def _metric(column: str) -> str:
    for group in GROUPS:
        if column.startswith(f"{group}_"):
            return f"{group}/{column.removeprefix(f'{group}_')}"
    return column if column == "epoch" else f"{OTHER}/{column}"


class Logger(ABC):
    """Writes the rows of one training somewhere; a context manager that is given to `fit` as `on_epoch`.

    What is missing or wrong is said when the block begins. If writing fails later, say because a server is gone, one
    warning says so and training goes on without.

    A logger of your own has the methods `open`, `write` and `close`.

    Args:
        name: of the run, where the tool shows one; None leaves it to the tool.
        settings: what the training was asked for, shown beside its results.

    Raises:
        UsageError: `name` is no text, or `settings` are no mapping.
    """

    def __init__(self, *, name: str | None = None, settings: Mapping[str, Any] | None = None):
        if name is not None and (not isinstance(name, str) or not name):
            raise UsageError(f"name={shown(name)} given, expected the name of a run")
        if settings is not None:
            require_instance("settings", settings, Mapping, "a mapping from names to values")
        self.name, self.settings = name, dict(settings or {})
        self._state: Literal["new", "open", "broken", "closed"] = "new"
        self._last: Row | None = None

    @abstractmethod
    def open(self) -> None:
        """Get ready to write; raises a VaentropyError where that is not possible."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by their names; several calls may have the same step."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Write what is left, and how training ended."""

    def __enter__(self: Own) -> Own:
        """Begin.

        Raises:
            UsageError: the logger has been used before, or the tool cannot write.
        """
        if self._state != "new":
            raise UsageError(f"a {self} that was used before given, expected a new one for each training; make another")
        self.open()
        self._state = "open"
        return self

    def __call__(self, row: Row) -> None:
        """Write a row of the history.

        Raises:
            UsageError: outside of the logger's `with` block.
        """
        if self._state in ("new", "closed"):
            raise UsageError(f"a row given to a {self} that is not open, expected it within: with {self}(...) as log:")
        self._last = row
        if self._state == "open":
            self._try(lambda: self.row(row))

    def row(self, row: Row) -> None:
        """Write a row; all of its numbers unless a logger chooses."""
        self.write(int(row["step"]), metrics(row))

    def summary(self, history: History) -> None:
        """Write the terms of the evaluations after the last epoch beside its row.

        Raises:
            UsageError: `history` is none.
        """
        require_instance("history", history, History, "a History, as fit returns it")
        last = self._last
        # After no row, as of a finished training that was resumed, everything is there already.
        if last is not None and self._state == "open":
            self._try(lambda: self.end(history, last))

    def end(self, history: History, last: Row) -> None:
        """Write what the last row does not say of the evaluations after it."""
        evaluations = {"train": history.train, "held_out": history.held_out}
        named = {
            f"{name}/{term}": x for name, e in evaluations.items() if e is not None for term, x in terms(e).items()
        }
        there = metrics(last)
        self.write(int(last["step"]), {name: x for name, x in named.items() if name not in there})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome: Outcome = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            outcome = "interrupted"
        # Even after a failure: a server that is back is told how it ended, and processes of the library end.
        self._try(lambda: self.close(outcome))
        self._state = "closed"

    def _try(self, write: Callable[[], None]) -> None:
        """Write; hours of training do not end because a dashboard cannot be reached."""
        try:
            write()
        except Exception as error:  # whatever the library raises
            if self._state != "broken":
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning("%s takes no more: %s; training goes on, and its history has every row", self, reason)
            self._state = "broken"

    def __str__(self) -> str:
        return type(self).__name__


def terms(e: Evaluation) -> dict[str, float]:
    """The terms that are one number, nats per data point."""
    named = ("elbo", "reconstruction", "kl", "entropy_sum", "gap", "prior_gap", "decoder_gap", "relative_gap")
    entropies = {f"{name}_entropy": getattr(e.entropies, name) for name in ("encoder", "prior", "decoder")}
    stored = {"data_elbo": e.data_elbo, "bits_per_dim": e.bits_per_dim} if e.log_jacobian else {}
    return {**{name: getattr(e, name) for name in named}, **entropies, **stored}


def folder_made(folder: Any) -> Path:
    """The folder, which is made if there is none.

    Raises:
        UsageError: it is no path, or cannot be made.
    """
    path = require_path("folder", folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder={str(path)!r} cannot be made: {error.strerror}; name another one") from error
    return path
