"""Ctrl-C and SIGTERM, taken between steps so that a checkpoint can be written first."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "Interruption", "interruption"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal.

    Attributes:
        signal: its number.
        at_once: it did not wait for the end of a step, so that what was being changed is of no use.
    """

    def __init__(self, number: int, message: str, *, at_once: bool = False):
        super().__init__(message)
        self.signal = number
        self.at_once = at_once


class Interruption:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """The handler: the first signal is remembered, a second one no longer waits."""
        if self.signal is not None:
            raise Interrupted(number, "stopped at once, by a second signal", at_once=True)
        self.signal = number
        if number == signal.SIGINT and sys.stderr.isatty():
            print("\ninterrupting after this step; once more to stop at once", file=sys.stderr)

    def check(self, elsewhere: int | None = None) -> None:
        """Raise what has come; for work between steps, after which nothing has changed.

        Args:
            elsewhere: a signal that another process has got.

        Raises:
            Interrupted: a signal has come.
        """
        if (number := elsewhere or self.signal) is not None:
            raise Interrupted(number, "interrupted")


@contextmanager
def interruption(active: bool = True) -> Iterator[Interruption]:
    """Take signals for a while, where that is possible (in the main thread only) and asked for.

    A signal that came too late to be looked at is raised again at the end.
    """
    taken = Interruption()
    if not active or threading.current_thread() is not threading.main_thread():
        yield taken
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # What is ignored, as Ctrl-C is in background jobs, stays so; None is a handler that could not be put back.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, taken)
    try:
        yield taken
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if taken.signal is not None:
        signal.raise_signal(taken.signal)
