"""Columns of tables by name: which to keep, which to leave out."""

from collections.abc import Sequence

from vaentropy.errors import DataError, UsageError, nearest, shown

__all__ = ["Names", "choose", "listed"]

Names = Sequence[str] | str


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
    wanted = names if columns is None else _names("columns", columns)
    unwanted = _names("exclude", exclude)
    for name in (*wanted, *unwanted):
        if name not in positions:
            raise UsageError(f"{what}: no column {name!r}; {nearest(name, names)}there are {listed(names)}")
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"{what}: columns names {listed(wanted)}, expected each once; drop the second")
    kept = [positions[name] for name in wanted if name not in unwanted]
    if not kept:
        raise UsageError(f"{what}: of the columns {listed(names)} none is left; exclude fewer")
    return kept


def _names(option: str, names: Names) -> Sequence[str]:
    several = (names,) if isinstance(names, str) else names
    if not isinstance(several, Sequence) or not all(isinstance(name, str) for name in several):
        raise UsageError(f"{option}={shown(names)} given, expected the name of a column, or a list of them")
    return several


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, for a message."""
    some = ", ".join(map(shown, names[:most]))
    return some if len(names) <= most else f"{some}, ... ({len(names)} in all)"
