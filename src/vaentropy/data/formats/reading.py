"""What the readers of files share: errors of one line, and the limits that keep a damaged file from filling memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaentropy.errors import DataError, VaentropyError

__all__ = ["MAX_EXPANSION", "MAX_IN_MEMORY", "one_line", "reading", "size_of"]

MAX_EXPANSION = 1032  # deflate spends at least 2 bits on a match of at most 258 bytes
MAX_IN_MEMORY = 2 * 2**30  # bytes of values that are taken from a compressed file, which cannot be read in pieces


def one_line(error: BaseException) -> str:
    """An error of another library on one line."""
    return " ".join(f"{type(error).__name__} {error}".split())


@contextmanager
def reading(path: Path, expected: str, remedy: str = "get a whole copy") -> Iterator[None]:
    """Turn whatever is raised inside into a DataError of one line: parsers raise anything on a damaged file.

    Args:
        path: the file.
        expected: what it should be, such as "a .npy file".
        remedy: what to do.
    """
    try:
        yield
    except VaentropyError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; pass the path of {expected}") from error
    except Exception as error:
        raise DataError(f"{path}: not readable as {expected} ({one_line(error)}); {remedy}") from error


def size_of(path: Path, expected: str) -> int:
    """Length in bytes of a file that exists.

    Raises:
        DataError: there is none, or it is a directory or a pipe, from which reading might never end.
    """
    with reading(path, expected):
        if path.is_dir():
            raise DataError(f"{path}: is a directory; pass the path of {expected}")
        if not path.is_file() and path.exists():
            raise DataError(f"{path}: is no regular file; pass the path of {expected}")
        return path.stat().st_size
