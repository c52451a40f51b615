"""The index of a folder of studies: one HTML page, with its figures beside it."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from vaentropy.errors import DataError, MissingExtraError, UsageError
from vaentropy.files import read_text, write_text
from vaentropy.studies.record import FIGURE, RECORD, TABLE, Record, read_record

try:
    import jinja2
except ImportError:
    raise MissingExtraError("jinja2", "report") from None

__all__ = ["INDEX", "cell", "check_index", "columns", "write_index"]

INDEX = "index.html"
# By it an index is told from a page of the user's own.
MARK = '<meta name="generator" content="vaentropy reproduce'
SIGNIFICANT, SECONDS = "{:.5g}", "{:.0f}"


def check_index(folder: Path) -> None:
    """Refuse a folder that has an index.html of another kind.

    Raises:
        UsageError: so it is.
    """
    path = folder / INDEX
    if path.exists() and MARK not in _text(path):
        raise UsageError(f"{path} is a page of another kind, which is not replaced; move it, or name another folder")


def write_index(folder: Path, names: Iterable[str]) -> Path:
    """Write index.html about all of these studies that the folder holds.

    Raises:
        UsageError: there is another page of that name.
    """
    check_index(folder)
    path = folder / INDEX
    records = [read_record(folder / name) for name in names if (folder / name / RECORD).exists()]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("vaentropy.studies").joinpath("index.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        studies=[_section(record) for record in records],
        style=files("vaentropy.report").joinpath("report.css").read_text(encoding="utf-8"),
        mark=MARK,
    )
    write_text(path, page)
    return path


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except DataError:
        return ""


def _section(record: Record) -> dict[str, Any]:
    names = columns(record)
    plan = {name: value for name, value in record.plan.items() if value not in (None, False)}
    return {
        "record": record,
        "columns": [name.replace("_", " ") for name in names],
        "rows": [[cell(row.get(name), name) for name in names] for row in record.rows],
        "texts": [number for number, name in enumerate(names) if _is_text(record, name)],
        "figure": f"{record.name}/{FIGURE}",
        "table": f"{record.name}/{TABLE}",
        "numbers": f"{record.name}/{RECORD}",
        "settings": ", ".join(f"{name} {value}" for name, value in {**plan, **record.environment}.items()),
        "seconds": SECONDS.format(record.seconds),
    }


def columns(record: Record) -> list[str]:
    """Columns of the table, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in record.rows for name in row))


def cell(value: Any, column: str) -> str:
    """A value as tables show it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return SECONDS.format(value) if column == "seconds" else SIGNIFICANT.format(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_text(record: Record, column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in record.rows)
