"""`Engine`: where tasks that need nothing of each other are done, here, in other processes or on other machines."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from vaentropy.checks import require_instance
from vaentropy.errors import TrainingError, UsageError, VaentropyError, gpu_failure
from vaentropy.progress import Report, no_progress

__all__ = [
    "Call",
    "Done",
    "Engine",
    "GpuFailed",
    "Here",
    "Lost",
    "answer_of",
    "cannot_be_sent",
    "engine_or_here",
    "require_engine",
]

# What is done with each task; the report takes a note and how many units of work are done since the last one.
Call = Callable[[Any, Report], Any]
# What a user can mend: it fails one task, and the others go on.
Failure = VaentropyError | OSError
# How often a task is tried whose worker is lost.
TRIES = 3
# What pickle raises of a thing that it cannot take, and what to do.
DEFINE = "define functions and classes in a module, or use one worker"
UNSENDABLE = (pickle.PicklingError, AttributeError, TypeError)


def require_engine(value: Any) -> None:
    """An engine, or None.

    Raises:
        UsageError: it is something else.
    """
    if value is not None:
        require_instance("engine", value, Engine, "an engine, such as vaentropy.engines.Processes(4)")


def engine_or_here(value: Any) -> "Engine":
    """The engine that is given; `Here` for None.

    Raises:
        UsageError: it is something else.
    """
    require_engine(value)
    return Here() if value is None else value


class Lost(TrainingError):
    """A task whose workers were lost, killed or out of memory, as often as it was tried."""


class GpuFailed(TrainingError):
    """A GPU that the process of a task cannot use any more."""

    def __init__(self, reason: str):
        how = "begin it again, or take an engine with processes of its own, which it replaces: engine=Processes(1)"
        super().__init__(f"the GPU failed, and this process can no longer use it ({reason}); {how}")
        self.reason = reason

    def __reduce__(self) -> tuple[type["GpuFailed"], tuple[str]]:
        return type(self), (self.reason,)


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


def answer_of(call: Call, number: int, task: Any, report: Report) -> Done:
    """Do a task; an error that a user can mend is its answer.

    Raises:
        GpuFailed: the process is of no more use.
        Exception: any other.
    """
    try:
        return Done(number, call(task, report))
    except Exception as error:
        if (reason := gpu_failure(error)) is not None:
            raise GpuFailed(reason) from error
        if isinstance(error, Failure):
            return Done(number, failure=error)
        raise


def cannot_be_sent(what: str, error: BaseException) -> UsageError:
    """What to say of a thing that pickle does not take."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"{what} cannot be sent to another process ({reason}); {DEFINE}")


class Engine(ABC):
    """Base of the ways to do tasks that need nothing of each other.

    Attributes:
        elsewhere: tasks are done by other processes than this one.
        other_machines: these may be of machines with other devices, which see files of this one a little later.
    """

    elsewhere: bool = True
    other_machines: bool = False

    @abstractmethod
    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Generator[Done, None, None]:
        """Do each task; each is answered once, as it ends, in whichever order.

        A task whose worker is lost is done again by another one, from its beginning: what it leaves behind, such as
        files, has to bear that. A worker whose GPU fails counts as lost. Where the generator is closed before its end,
        work that is under way is stopped.

        Args:
            call: what to do, of a task and a report. For other processes it is a function of a module, or an object of
                a class of one, and is sent to each worker once: what all tasks need belongs into it.
            tasks: sent one by one, so small ones.
            report: called in this process with the note of a task and the units of work it has done since; units are
                taken back where its worker is lost, and stay where the task itself fails.
            ahead: no task is begun behind the first that has not ended by more places than this many for each worker,
                so that few answers have to wait for that one; None begins any.

        Yields:
            Done, in the order in which they end. One whose workers were lost too often has the failure `Lost`.

        Raises:
            UsageError: call or tasks cannot be sent.
            GpuFailed: in this process; others are replaced.
            Exception: any that a task raises and a user cannot mend; it stops all.
        """


class Here(Engine):
    """One after the other, in this process."""

    elsewhere = False

    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Generator[Done, None, None]:
        """Do each task in its order, see `Engine.run`."""
        return (answer_of(call, number, task, report) for number, task in enumerate(tasks))
