"""The files of a run folder: written aside and renamed, read with errors that a user understands."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaentropy.errors import DataError, MissingExtraError, UsageError

__all__ = ["new_folder", "read_text", "read_yaml", "to_json", "unfinished", "write_text", "write_yaml"]

RUNS = Path("runs")


def new_folder(out: str | Path | None, name: str) -> Path:
    """An empty folder of a run's own: `out`, or the first of runs/name, runs/name-2, … that does not exist yet.

    Raises:
        UsageError: `out` exists and is not an empty folder, or no folder can be made.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not an empty folder; name another one with --out")
        _make(folder, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            _make(folder, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return folder


def _make(folder: Path, *, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}; name another folder with --out") from error


def write_text(path: Path, content: str) -> None:
    """Write aside, flush, rename: a reader sees the whole file or none."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of plain values; numbers that are not finite, which JSON does not have, become null."""

    def finite(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, Mapping):
            return {key: finite(item) for key, item in v.items()}
        return [finite(item) for item in v] if isinstance(v, list | tuple) else v

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "cli") from None
    return yaml


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write settings, in their order."""
    write_text(path, _yaml().safe_dump(dict(values), sort_keys=False))


def read_yaml(folder: Path, name: str) -> dict[str, Any]:
    """Settings from a file of a run; DataError where it is not valid YAML or holds something else."""
    yaml = _yaml()
    try:
        values = yaml.safe_load(read_text(folder, name))
    except yaml.YAMLError as error:
        raise DataError(f"{folder / name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{folder / name} holds {type(values).__name__}, expected settings with names")
    return values


def unfinished(folder: Path, missing: str) -> DataError:
    """The error that a folder lacks a file of a finished run."""
    return DataError(f"{folder} is no finished run: it has no {missing}; train one with vaentropy train")


def read_text(folder: Path, name: str) -> str:
    """Text of a file of a run; DataError where there is none."""
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise unfinished(folder, name) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / name} cannot be read: {error}") from error
