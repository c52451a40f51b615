"""A progress bar on stderr; silent without a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from vaentropy.errors import MissingExtraError

__all__ = ["Report", "counting", "no_progress", "progress_bar", "reporting"]

# Drawing takes milliseconds, in which Python does nothing else: ten times a second it would take 3 % of training.
REFRESHES_PER_SECOND = 2


@runtime_checkable
class Report(Protocol):
    """Called after an epoch (or any other unit of work) with what to show."""

    def __call__(self, note: str = "", /, advance: int = 1) -> None: ...


def no_progress(note: str = "", /, advance: int = 1) -> None:
    """A report that nobody reads."""


def counting(report: Report) -> Callable[[int], None]:
    """A report as an `on_batch`, which is called with units of work alone."""
    return lambda units: report("", units)


def reporting(on_batch: Callable[[int], None] | None) -> Report:
    """An `on_batch` as a report: notes, which may come without any work done, are for nobody."""
    if on_batch is None:
        return no_progress

    def report(note: str = "", /, advance: int = 1) -> None:
        if advance:
            on_batch(advance)

    return report


@contextmanager
def progress_bar(total: int | None, what: str, *, show: bool | None = None) -> Iterator[Report]:
    """A bar of `total` units.

    Args:
        total: units of work; None where it is not known.
        what: shown in front of the bar.
        show: None shows it where stderr is a terminal and rich is installed.

    Raises:
        MissingExtraError: `show` is True and rich is not installed.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield no_progress
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        if show:
            raise MissingExtraError("rich", "cli") from None
        yield no_progress
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=REFRESHES_PER_SECOND) as bar:
        task = bar.add_task("", total=total)
        yield lambda note="", /, advance=1: bar.update(task, advance=advance, description=note)
