"""Columns of tables by name: which to keep, which to leave out."""

import difflib
from collections.abc import Collection, Sequence

from vaentropy.errors import DataError, UsageError

__all__ = ["Names", "choose", "nearest"]

Names = Sequence[str] | str


def nearest(name: str, known: Collection[str]) -> str:
    """ "did you mean 'x'? ", or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def choose(names: Sequence[str], columns: Names | None, exclude: Names, what: str) -> list[int]:
    """Positions of the columns to keep.

    Args:
        names: of all columns.
        columns: to keep, in this order; None keeps all.
        exclude: to leave out.
        what: names the table in errors.

    Raises:
        DataError: a table with two columns of one name, or with none.
        UsageError: there is no such column, or none is left.
    """
    if not names:
        raise DataError(f"{what}: has no columns, expected at least one; get a whole copy")
    positions = {name: position for position, name in enumerate(names)}
    if len(positions) < len(names):
        twice = next(name for position, name in enumerate(names) if positions[name] != position)
        raise DataError(f"{what}: two columns are called {twice!r}, expected different names; rename one")
    wanted = names if columns is None else _listed(columns)
    unwanted = _listed(exclude)
    for name in (*wanted, *unwanted):
        if name not in positions:
            raise UsageError(f"{what}: no column {name!r}; {nearest(name, names)}there are {_some(names)}")
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"{what}: columns names {_some(wanted)}, expected each once; drop the second")
    kept = [positions[name] for name in wanted if name not in unwanted]
    if not kept:
        raise UsageError(f"{what}: of the columns {_some(names)} none is left; exclude fewer")
    return kept


def _listed(names: Names) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _some(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
