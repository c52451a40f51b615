"""Checks of arguments: each refuses a value in one line that names it, and returns it otherwise."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vaentropy.errors import UsageError, nearest, shown

__all__ = [
    "require_choice",
    "require_count",
    "require_counts",
    "require_function",
    "require_instance",
    "require_number",
    "require_path",
    "require_seed",
    "require_variance",
]

LARGEST_COUNT = 2**31 - 1  # so that no product of two overflows torch's 64 bits
SEEDS = 2**64  # as torch's generators take them


def require_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`; no bool, no float.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={shown(value)} given, expected a whole number of at least {least}")
    if value > LARGEST_COUNT:
        raise UsageError(f"{name}={shown(value)} given, expected a whole number of at most {LARGEST_COUNT}")
    return value


def require_seed(value: Any, name: str = "seed") -> int:
    """A whole number that torch's generators take as a seed.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEEDS:
        raise UsageError(f"{name}={shown(value)} given, expected a whole number from 0 to 2^64 - 1")
    return value


def require_number(name: str, value: Any, *, positive: bool = True) -> float | int:
    """A finite number above 0, or of at least 0.

    Raises:
        UsageError: it is something else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < math.inf or (value == 0 and not positive)):
        expected = "a positive number" if positive else "a number of at least 0"
        raise UsageError(f"{name}={shown(value)} given, expected {expected}")
    return value


def require_path(name: str, value: Any) -> Path:
    """A path, of a file that may exist or not.

    Raises:
        UsageError: it is no text or path, is empty, or no path can be so.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes) or not os.fspath(value):
        raise UsageError(f"{name}={shown(value)} given, expected a path")
    if "\0" in os.fspath(value):
        raise UsageError(f"{name}={shown(value)} given, expected a path, which holds no NUL")
    path = Path(value)
    try:
        path.exists()
    except OSError as error:  # too long, or behind a folder that is closed
        how = "name another path"
        raise UsageError(f"{name}={shown(value)} given, which leads nowhere ({error.strerror}); {how}") from error
    return path


def require_instance(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """An object of a class.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, kinds):
        raise UsageError(f"{name}={shown(value)} ({type(value).__name__}) given, expected {expected}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        UsageError: it is something else.
    """
    if value not in choices:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise UsageError(f"{name}={shown(value)} given, {hint}expected {' or '.join(map(repr, choices))}")
    return value


def require_function(name: str, value: Any) -> None:
    """Something that can be called, or None.

    Raises:
        UsageError: it is something else.
    """
    if value is not None and not callable(value):
        raise UsageError(f"{name}={shown(value)} given, expected a function")


def require_counts(name: str, values: Any) -> tuple[int, ...]:
    """One or more whole numbers of at least 1.

    Raises:
        UsageError: they are something else.
    """
    each = tuple(values) if isinstance(values, Iterable) else ()
    if not each or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= LARGEST_COUNT for n in each):
        raise UsageError(f"{name}={shown(values)} given, expected one or more whole numbers from 1 to {LARGEST_COUNT}")
    return each


def require_variance(value: Any) -> None:
    """σ²: a positive, finite number, or a tensor of them.

    Raises:
        UsageError: it is something else.
    """
    import torch  # here, so that the command's help does not wait for it

    try:
        given = torch.as_tensor(value)
        positive = bool(((given > 0) & (given < math.inf)).all())
    except (TypeError, ValueError, RuntimeError):
        positive = False
    if not positive:
        raise UsageError(f"variance={shown(value)} given, expected positive numbers (σ², not log σ²)")
