"""Files that survive: written aside, flushed and renamed; read with errors that a user understands; no pickles."""

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from vaentropy._typing import Tensor
from vaentropy.errors import DataError, MissingExtraError, UsageError, shown

__all__ = [
    "append_line",
    "flush_to_disk",
    "named",
    "read_tensors",
    "read_text",
    "read_yaml",
    "require_file_or_nothing",
    "to_json",
    "write_tensors",
    "write_text",
    "write_yaml",
    "written_aside",
    "yaml_list",
]

ASIDE = ".partial"
METADATA = "vaentropy"
MAX_TEXT = 2**30  # bytes
MAX_YAML = 2**20  # bytes: settings are short, and a parser in Python is slow


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end: readers see a whole file or the old one.

    Raises:
        UsageError: what has that name is no file, but a device, a pipe or a folder.
        OSError: the file cannot be written, say on a full disk; `path` is as it was, and nothing is left beside it.
    """
    require_file_or_nothing(path)
    aside = path.with_name(path.name + ASIDE)
    try:
        # What lies there may be a link that leads to another file.
        aside.unlink(missing_ok=True)
        yield aside
        flush_to_disk(aside)
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise named(error, path) from error
        raise
    flush_to_disk(path.parent)


def require_file_or_nothing(path: Path) -> None:
    """Refuse what a file must not take the place of.

    Raises:
        UsageError: there is a device, a pipe or a folder.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file, expected one to replace or nothing; name another place to write to")


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
    """Write UTF-8 text, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with written_aside(path) as aside:
        aside.write_text(content, encoding="utf-8")


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
    values = _values_of(read_text(path, at_most=MAX_YAML), path)
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, expected settings with names, such as epochs: 10")
    return values


def yaml_list(text: str, where: str) -> list[Any]:
    """The values of YAML text with commas between them, such as "2, 5" or "[50, 50], [100]"; as safe as `read_yaml`.

    Raises:
        DataError: it is not valid YAML.
    """
    return _values_of(f"[{text}]", where)


def _values_of(text: str, where: object) -> Any:
    yaml = _yaml()
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise DataError(f"{where} holds aliases (*name), expected settings without them; write the values out")
        twice = _named_twice(yaml.compose(text, yaml.SafeLoader))
        if twice is not None:
            raise DataError(f"{where} names {shown(twice)} twice, expected each setting once; leave one of them out")
        return yaml.safe_load(text)
    except DataError:
        raise
    # A date that does not exist is a ValueError, brackets nested without end a RecursionError, an unhashable key or a
    # malformed number whatever its constructor raises.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise DataError(f"{where} is not valid YAML: {' '.join(str(error).split())}; correct it") from error


def _named_twice(node: Any) -> Any:
    """The first key of a YAML mapping that stands there twice, of which the parser would take the last; or None."""
    pairs = node.value if getattr(node, "id", None) == "mapping" else []
    keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
    return next((key for number, key in enumerate(keys) if key in keys[:number]), None)


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
        aside.touch()
        mode = aside.stat().st_mode
        # One entry: the order of several is another in each file, and equal contents should be equal files.
        about = {METADATA: to_json({"numbers": text, "sha256": _digest(ready, text)})}
        try:
            save_file(ready, aside, about)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        # safetensors lets nobody else read what it writes; it is as readable as every other file of the user's.
        aside.chmod(mode)


def _as_os_error(error: SafetensorError) -> OSError:
    """What safetensors says of a full disk, say, as Python says it."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number))


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
