"""Several loggers as one: of one training, or one for each of many."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from vaentropy.checks import require_instance
from vaentropy.errors import UsageError
from vaentropy.loggers.logger import Logger
from vaentropy.training.history import History, Row

__all__ = ["PerModel", "Together"]

Own = TypeVar("Own", bound="_Several")


class _Several:
    """Loggers that begin and end together.

    Args:
        loggers: of which none has been used.
    """

    def __init__(self, loggers: Iterable[Logger]):
        require_instance("loggers", loggers, Iterable, "a list of loggers")
        self.loggers = list(loggers)
        for number, log in enumerate(self.loggers):
            require_instance(f"loggers[{number}]", log, Logger, "a logger such as TensorBoard(...)")
        self._stack = ExitStack()

    def __enter__(self: Own) -> Own:
        """Begin all; those that have begun are closed if another cannot."""
        with ExitStack() as stack:
            for log in self.loggers:
                stack.enter_context(log)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class Together(_Several):
    """Several loggers of one training.

        with Together([Console(), TensorBoard("logs")]) as log:
            fit(model, x, on_epoch=log)

    Args:
        loggers: any number.

    Raises:
        UsageError: there is something else among them.
    """

    def __call__(self, row: Row) -> None:
        """Give all a row."""
        for log in self.loggers:
            log(row)

    def summary(self, history: History) -> None:
        """Let all write the terms of the evaluations after the last epoch."""
        for log in self.loggers:
            log.summary(history)


class PerModel(_Several):
    """A logger for each of the models that `fit_replicates` trains.

        with PerModel(TensorBoard("logs", name=f"seed-{seed}") for seed in range(3)) as log:
            log.summary(fit_replicates(models, x, on_epoch=log))

    Args:
        loggers: one for each model.

    Raises:
        UsageError: there is something else among them.
    """

    def __call__(self, number: int, row: Row) -> None:
        """Give the logger of a model a row.

        Raises:
            UsageError: there are fewer loggers than models.
        """
        if number >= len(self.loggers):
            raise UsageError(f"{len(self.loggers)} loggers given for more models, expected one for each")
        self.loggers[number](row)

    def summary(self, histories: Sequence[History]) -> None:
        """Let each write the terms of its model's evaluations after the last epoch.

        Raises:
            UsageError: there are more or fewer histories than loggers.
        """
        if len(histories) != len(self.loggers):
            raise UsageError(f"{len(histories)} histories given to {len(self.loggers)} loggers, expected one for each")
        for log, history in zip(self.loggers, histories, strict=True):
            log.summary(history)
