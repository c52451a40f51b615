"""Files that survive: written aside, flushed and renamed; read with errors that a user understands; no pickles."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from vaentropy._typing import Tensor
from vaentropy.errors import DataError, MissingExtraError

__all__ = [
    "append_line",
    "flush_to_disk",
    "read_tensors",
    "read_text",
    "read_yaml",
    "to_json",
    "write_tensors",
    "write_text",
    "write_yaml",
    "written_aside",
]

ASIDE = ".partial"
METADATA = "vaentropy"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end: readers see a whole file or the old one.

    Raises:
        OSError: the file cannot be written, say on a full disk; `path` is as it was, and nothing is left beside it.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        # What lies there may be a link that leads to another file.
        aside.unlink(missing_ok=True)
        yield aside
        flush_to_disk(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(content, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add one line to a text file and hand it to the operating system."""
    with path.open("ab") as file:
        file.write(line.encode("utf-8") + b"\n")


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}), expected UTF-8 text") from error


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file; tags that name code are refused.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not valid YAML, or holds something else than settings with names.
    """
    yaml, text = _yaml(), read_text(path)
    try:
        values = yaml.safe_load(text)
    # A date that does not exist is a ValueError, brackets nested without end a RecursionError, an unhashable key or a
    # malformed number whatever its constructor raises.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, expected settings with names")
    return values


# --- Tensors with numbers beside them, under one checksum ------------------------------------------------------------


def _digest(tensors: Mapping[str, Tensor], numbers: str) -> str:
    digest = hashlib.sha256(numbers.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file, with plain values beside the tensors, under a checksum of both.

    Args:
        path: of the file.
        tensors: on any device; two of them must not share memory.
        numbers: JSON values; numbers that are not finite become None.

    Raises:
        OSError: the file cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = to_json(numbers or {})
    with written_aside(path) as aside:
        # One entry: the order of several is another in each file, and equal contents should be equal files.
        save_file(ready, aside, {METADATA: to_json({"numbers": text, "sha256": _digest(ready, text)})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote, or the tensors of any safetensors file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        tensors = load_file(path)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be loaded ({reason}), expected a safetensors file") from error
    if METADATA not in about:
        return tensors, {}
    try:
        beside = json.loads(about[METADATA])
        intact = _digest(tensors, beside["numbers"]) == beside["sha256"]
        numbers = json.loads(beside["numbers"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, numbers = False, {}
    if not intact or not isinstance(numbers, dict):
        how = "get a whole copy"
        raise DataError(f"{path} is damaged: its contents do not have the checksum that was written with them; {how}")
    return tensors, numbers
