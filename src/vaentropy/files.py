"""Files that survive: written aside, flushed and renamed; read with errors that a user understands; no pickles."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from vaentropy._typing import Tensor
from vaentropy.errors import DataError, MissingExtraError, shown

__all__ = [
    "append_line",
    "flush_to_disk",
    "named",
    "read_tensors",
    "read_text",
    "read_yaml",
    "to_json",
    "write_bytes",
    "write_tensors",
    "write_text",
    "write_yaml",
]

ASIDE = ".partial"
FORMAT_KEYS = ("numbers", "sha256")
MAX_TEXT = 2**30  # bytes
MAX_YAML = 2**20  # bytes: settings are short, and a parser in Python is slow


def write_bytes(path: Path, content: bytes) -> None:
    """Write aside, flush, rename: a reader sees the whole file or the one from before; a full disk loses neither.

    Raises:
        OSError: the file cannot be written; `path` is as it was.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        # Removed and made anew: what lies there may be a link that leads to another file.
        aside.unlink(missing_ok=True)
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise named(error, path) from error
    flush_to_disk(path.parent)


def named(error: OSError, path: Path) -> OSError:
    """The error of a file that is known: writing to an open one raises errors that do not name it."""
    return type(error)(error.errno, error.strerror or str(error), str(path))


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add one line to a text file and hand it to the operating system."""
    try:
        with path.open("ab") as file:
            file.write(line.encode("utf-8") + b"\n")
    except OSError as error:
        raise named(error, path) from error


def read_text(path: Path, *, at_most: int = MAX_TEXT) -> str:
    """Text of a file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, is not UTF-8, or has more than `at_most` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(at_most + 1)
        if len(content) > at_most:
            raise DataError(f"{path} is longer than {at_most} bytes, expected less text; name another file")
        return content.decode("utf-8")
    except (FileNotFoundError, DataError):
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}), expected UTF-8 text; mend it") from error


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
    """Settings from a YAML file; tags that name code are refused, and aliases, by which a few lines fill the memory.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not valid YAML, or holds something else than settings with names.
    """
    yaml, text = _yaml(), read_text(path, at_most=MAX_YAML)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise DataError(f"{path} holds aliases (*name), expected settings without them; write the values out")
        values = yaml.safe_load(text)
    except DataError:
        raise
    # A date that does not exist is a ValueError, brackets nested without end a RecursionError, an unhashable key or a
    # malformed number whatever its constructor raises.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct it") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, expected settings with names, such as epochs: 10")
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
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = to_json(numbers or {})
    write_bytes(path, _in_order(save(ready, {"numbers": text, "sha256": _digest(ready, text)})))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with the names of its header sorted: those of the metadata come in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(content)[end:]))


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
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be loaded ({reason}), expected a safetensors file; get a whole copy") from error
    if not all(key in about for key in FORMAT_KEYS):
        return tensors, {}
    if _digest(tensors, about["numbers"]) != about["sha256"]:
        how = "get a whole copy"
        raise DataError(f"{path} is damaged: its contents do not have the checksum that was written with them; {how}")
    try:
        numbers = json.loads(about["numbers"])
        if not isinstance(numbers, dict):
            raise ValueError(f"they are {shown(numbers)}")
    except (ValueError, RecursionError) as error:
        how = "expected JSON with names; get a whole copy"
        raise DataError(f"{path}: the numbers beside the tensors cannot be read ({error}), {how}") from error
    return tensors, numbers
