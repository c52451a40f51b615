"""`Engine`: where tasks that need nothing of each other are done, here, in other processes or on other machines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vaentropy import progress
from vaentropy.checks import require_instance
from vaentropy.errors import TrainingError, VaentropyError
from vaentropy.progress import Report

__all__ = ["Call", "Done", "Engine", "Here", "Lost", "answer_of", "no_progress", "require_engine"]

# What is done with each task; the report takes a note and how many units of work are done since the last one.
Call = Callable[[Any, Report], Any]
# What a user can mend: it fails one task, and the others go on.
Failure = VaentropyError | OSError
# How often a task is tried whose worker is lost.
TRIES = 3


def require_engine(value: Any) -> None:
    """An engine, or None.

    Raises:
        UsageError: it is something else.
    """
    if value is not None:
        require_instance("engine", value, Engine, "an engine, such as vaentropy.engines.Processes(4)")


class Lost(TrainingError):
    """A task whose workers were lost, killed or out of memory, as often as it was tried."""


class Done(NamedTuple):
    """A task that has ended.

    Attributes:
        number: of the task.
        result: what the call returned; None where it failed.
        failure: the error that a user can mend; None where there is none.
    """

    number: int
    result: Any = None
    failure: Failure | None = None


no_progress = progress.no_progress


def answer_of(call: Call, number: int, task: Any, report: Report) -> Done:
    """Do a task; an error that a user can mend is its answer.

    Raises:
        Exception: any other.
    """
    try:
        return Done(number, call(task, report))
    except (VaentropyError, OSError) as error:
        return Done(number, failure=error)


class Engine(ABC):
    """Base of the ways to do tasks that need nothing of each other.

    Attributes:
        workers: how many tasks are done at a time.
    """

    workers: int

    @abstractmethod
    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Iterator[Done]:
        """Do each task; each is answered once, as it ends, in whichever order.

        A task whose worker is lost is done again by another one, from its beginning: what it leaves behind, such as
        files, has to bear that. Where the iterator is closed before its end, work that is under way is stopped.

        Args:
            call: what to do, of a task and a report. For other processes it is a function of a module, or an object of
                a class of one, and is sent to each worker once: what all tasks need belongs into it.
            tasks: sent one by one, so small ones.
            report: called in this process with the note of a task and the units of work it has done since; units are
                taken back where a task begins again.
            ahead: no task is begun behind the first that has not ended by more places than this many for each worker,
                so that few answers have to wait for that one; None begins any.

        Yields:
            Done, in the order in which they end. One whose workers were lost too often has the failure `Lost`.

        Raises:
            UsageError: call or tasks cannot be sent.
            Exception: any that a task raises and a user cannot mend; it stops all.
        """


class Here(Engine):
    """One after the other, in this process."""

    workers = 1

    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Iterator[Done]:
        """Do each task in its order, see `Engine.run`."""
        return (answer_of(call, number, task, report) for number, task in enumerate(tasks))
