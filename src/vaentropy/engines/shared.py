"""Folders that the machines of an engine share."""

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["appears"]

# What another machine has written may be seen a little later.
SECONDS_TO_APPEAR = 10.0
LOOKS = 10


def appears(folder: Path, there: Callable[[], bool]) -> bool:
    """Whether what a task has written is there, or comes to be within seconds.

    Args:
        folder: in which it is written.
        there: looks for it.
    """
    end = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        if folder.is_dir():
            os.listdir(folder)  # which makes a network's file system look again
        if (found := there()) or time.monotonic() > end:
            return found
        time.sleep(SECONDS_TO_APPEAR / LOOKS)
