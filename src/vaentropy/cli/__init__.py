"""The `vaentropy` command. It needs the extra `cli`; without it, `main` says how to get it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["main"]

USER_ERROR, INTERRUPTED = 2, 130
# A shell's exit status for a process that a signal ended is this plus the signal's number.
SIGNALLED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status: 0; 1 where a check failed; 2 for a user's mistake, one line on stderr; 130 after Ctrl-C, 143
        after SIGTERM.
    """
    try:
        import click
    except ImportError:
        return _fail("click is not installed; run: pip install 'vaentropy[cli]'")
    from vaentropy.cli import commands, studies, sweeps  # noqa: F401  # they add their verbs to it
    from vaentropy.cli.group import vaentropy
    from vaentropy.errors import VaentropyError, out_of_memory

    try:
        with _ended_by_exceptions():
            status = vaentropy.main(arguments, prog_name="vaentropy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USER_ERROR
    except click.ClickException as error:
        return _fail(error.format_message())
    except VaentropyError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a closed terminal
        _forget_output()
        where, how = error.filename or "output", "make room, or name another place"
        return _fail(f"{where} cannot be written or read: {error.strerror or error}; {how}")
    except (KeyboardInterrupt, click.Abort) as error:
        # click wraps what interrupts it, and has ended the line of the ^C already.
        cause = error.__cause__ or error
        number = getattr(cause, "signal", None)
        print(f"vaentropy: {cause if number else 'interrupted'}", file=sys.stderr)
        return SIGNALLED + number if number else INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        message = out_of_memory(error)
        if message is None:
            raise
        return _fail(message)
    return status if isinstance(status, int) else 0


class _Ended(KeyboardInterrupt):
    """By SIGTERM, as Ctrl-C would: so that nothing is left half done."""

    signal = signal.SIGTERM


@contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """Let SIGTERM be an exception, where nobody else has it in hand."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended("ended by SIGTERM")

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _forget_output() -> None:
    """Drop what stdout has not taken, or Python would try again when it ends, and tell of it."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _fail(message: str) -> int:
    from vaentropy.errors import printable

    print(f"vaentropy: {printable(' '.join(message.split()))}", file=sys.stderr)
    return USER_ERROR
