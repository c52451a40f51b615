"""Exceptions a user meets.

Every message is one line that says what was given, what was expected and what to do.
"""

import difflib
import reprlib
import sys
from collections.abc import Collection
from typing import Any

__all__ = [
    "DataError",
    "MissingExtraError",
    "ModelError",
    "TrainingError",
    "UnsupportedError",
    "UsageError",
    "VaentropyError",
    "gpu_failure",
    "nearest",
    "out_of_memory",
    "printable",
    "shown",
]

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 6
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3
# How torch says that a CPU has no memory left; there is no class for it.
CPU_ALLOCATOR = "DefaultCPUAllocator:"


def printable(text: str) -> str:
    """Text on one line whose control characters are escaped: names from files must not command the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: Any) -> str:
    """A value as messages quote it, cut short: one from a file may be of any size."""
    return _SHORT.repr(value)


def nearest(name: str, known: Collection[str]) -> str:
    """ "did you mean 'x'? " with the nearest of the known names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def out_of_memory(error: BaseException) -> str | None:
    """What to say of an error where memory was not enough, else None."""
    of_cpu = isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    if not (isinstance(error, MemoryError | _class_of_torch("OutOfMemoryError")) or of_cpu):
        return None
    how = "lower batch_size, num_samples, hidden or latent_dim, or read data in pieces with --stream"
    return f"memory is not enough ({str(error).splitlines()[0] if str(error) else 'MemoryError'}); {how}"


def gpu_failure(error: BaseException | None) -> str | None:
    """What CUDA said, in one line, where an error or one behind it leaves this process without its GPU; else None.

    After such an error all that is asked of the GPU fails, until the process ends. Too little memory is none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _is_of_gpu(error):
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        seen.add(id(error))
        error = error.__context__ if error.__cause__ is None else error.__cause__
    return None


def _is_of_gpu(error: BaseException) -> bool:
    if isinstance(error, VaentropyError | _class_of_torch("OutOfMemoryError")):
        return False
    said = isinstance(error, RuntimeError) and "CUDA error" in str(error)
    return said or isinstance(error, _class_of_torch("AcceleratorError"))


def _class_of_torch(name: str) -> type[BaseException]:
    """A class of errors, without an import: where torch was not imported, it has raised none."""
    return getattr(sys.modules.get("torch"), name, _Never)


class _Never(BaseException):
    """An error that nobody raises."""


class VaentropyError(Exception):
    """Base of all errors that vaentropy raises on purpose; the command prints it and exits with 2.

    The message is one line of printable characters, whatever names and values from files stand in it.
    """

    def __init__(self, *arguments: object):
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in arguments))


class UsageError(VaentropyError, ValueError):
    """An argument has a wrong value or does not fit another argument."""


class DataError(VaentropyError, ValueError):
    """A data file or array cannot be used as it is."""


class ModelError(VaentropyError, TypeError):
    """A model does not return what the three-method interface asks for."""


class TrainingError(VaentropyError, RuntimeError):
    """Training cannot go on."""


class UnsupportedError(VaentropyError, NotImplementedError):
    """A model or distribution for which the mathematics here does not hold, refused with the reason."""


class MissingExtraError(VaentropyError, ImportError):
    """An optional dependency is missing.

    Args:
        package: name that failed to import.
        extra: the extra of vaentropy that brings it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; run: pip install 'vaentropy[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        """Errors travel from one process to another by their message, which is not what this one is made of."""
        return type(self), (self.package, self.extra)
