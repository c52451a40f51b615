"""What a study leaves in its folder, and how it is read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vaentropy.errors import DataError
from vaentropy.files import read_text

__all__ = ["FIGURE", "RECORD", "TABLE", "Record", "read_record"]

TABLE, FIGURE, RECORD = "table.csv", "figure.svg", "results.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """A study that was run.

    Attributes:
        name, title, about: of the study.
        finding: one sentence.
        notes: what else a reader has to know.
        rows: the table.
        details: further numbers.
        seconds: that it took.
        cpu_seconds: of all cores together; on a busy machine what it would take alone, on one of them.
        plan: what of its plan decides on results.
        version: of vaentropy.
        environment: versions, device and threads.
    """

    name: str
    title: str
    about: str
    finding: str
    notes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    plan: Mapping[str, Any]
    version: str
    environment: Mapping[str, Any]


def read_record(folder: Path) -> Record:
    """The record in the folder of a study.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / RECORD
    try:
        values = json.loads(read_text(path))
        kinds = {"name": str, "title": str, "about": str, "finding": str, "notes": list, "rows": list, "details": dict}
        kinds |= {
            "seconds": (int, float),
            "cpu_seconds": (int, float),
            "plan": dict,
            "version": str,
            "environment": dict,
        }
        fitting = all(isinstance(values[name], kind) for name, kind in kinds.items())
        fitting = fitting and all(isinstance(row, dict) for row in values["rows"]) and values["name"] == folder.name
    except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError):
        fitting, values = False, {}
    if not fitting:
        raise DataError(f"{path} is damaged, expected the results of {folder.name}; remove it")
    return Record(**{f.name: values[f.name] for f in fields(Record)})
