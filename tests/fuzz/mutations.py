"""Small valid files made wrong: by bytes, by values, or by nothing but noise."""

import json
import math
import random
import string
import struct
import zlib
from typing import Any

__all__ = ["any_bytes", "any_text", "any_value", "bytes_of", "png_checksums", "text_of", "value_of"]

INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TOKENS = (
    *("nan", "inf", "-inf", "1e308", "1e999", "-0", "0x1F", "1_000", "NA", "", "null", "true", "[", "{", "}", "]", ","),
    *(":", "\n", "\r\n", "\r", "\0", '"', "'", "\\", "#", "- ", "? ", "|", "&a ", "*a", "<<: *a", "!!set", "!!binary"),
    *("!!python/none", "!!timestamp 2001-99-99", "%YAML 9.9", "---", "...", "\t", "\x1b[31m", "\u2028", "\ufeff", "="),
    *("9" * 30, "9" * 5000, "[" * 300, "../", "NaN", "Infinity", "epochs", "model", "seed: 3", "hidden: [4]", "@"),
)


def any_bytes(rng: random.Random) -> bytes:
    """Noise."""
    return rng.randbytes(rng.choice((0, 1, 7, 64, 500, 3000)))


def any_text(rng: random.Random) -> str:
    """Words that mean something in one format or another."""
    letters = string.printable + "äβ\u202e\x9b"
    pieces = [rng.choice(TOKENS) if rng.random() < 0.6 else rng.choice(letters) for _ in range(rng.randrange(40))]
    return "".join(pieces)


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """A value as JSON or YAML may hold it."""
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice((*INTEGERS, -1, -(2**63), 10**30, rng.randrange(-5, 20)))
    if kind in (3, 4):
        return rng.choice((0.0, -1.5, 1e308, 1e-308, math.nan, math.inf, -math.inf, rng.random()))
    if kind in (5, 6):
        return any_text(rng)[: rng.choice((3, 40))] if rng.random() < 0.7 else rng.choice(TOKENS)
    if kind == 7:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {any_text(rng)[:8]: any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def value_of(rng: random.Random, value: Any) -> Any:
    """A value with one of its parts, however deep, changed, removed or new."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed, name = dict(value), rng.choice([*value])
        how = rng.random()
        if how < 0.15:
            del changed[name]
        elif how < 0.25:
            changed[any_text(rng)[:8]] = any_value(rng)
        else:
            changed[name] = value_of(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], value_of(rng, value[place]), *value[place + (rng.random() < 0.8) :]]
    return any_value(rng)


def bytes_of(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One to four mutations of bytes; `other` is spliced in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _mutated(rng, data, other)
    return bytes(data[: 2**20])


def _place(rng: random.Random, size: int) -> int:
    """Anywhere; more often near the beginning or the end, where headers are."""
    near = min(size, 100)
    return rng.choice((rng.randrange(size + 1), rng.randrange(near + 1), size - rng.randrange(near + 1)))


def _mutated(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    how, at, end = rng.randrange(8), _place(rng, len(data)), _place(rng, len(data))
    at, end = min(at, end), max(at, end)
    if how == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif how == 1:
        return data[:end]
    elif how == 2:
        return data[:at] + any_bytes(rng)[:64] + data[at:]
    elif how == 3 and other:
        start = rng.randrange(len(other))
        return data[:at] + other[start : start + rng.randrange(1, 200)] + data[end:]
    elif how == 4:
        return data[:end] + data[at:end] * rng.choice((1, 1, 5, 100)) + data[end:]
    elif how == 5:  # a field of a header
        kind = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
        value = rng.choice(INTEGERS) % 2 ** (8 * struct.calcsize(kind))
        data[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    elif how == 6:
        data[at:at] = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    else:
        return data[:at] + data[end:]
    return data


def text_of(rng: random.Random, content: str) -> str:
    """Text with one or two words of its lines changed."""
    lines = content.split("\n")
    for _ in range(rng.choice((1, 2))):
        at = rng.randrange(len(lines))
        line = lines[at]
        cut = rng.randrange(len(line) + 1)
        lines[at] = line[:cut] + rng.choice(TOKENS) + line[rng.choice((cut, len(line), min(len(line), cut + 3))) :]
    return "\n".join(lines)


def png_checksums(data: bytes) -> bytes:
    """The checksum of each chunk made right, so that what is wrong in it reaches the decoder."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        size = struct.unpack_from(">I", fixed, at)[0]
        if at + 12 + size > len(fixed):
            break
        struct.pack_into(">I", fixed, at + 8 + size, zlib.crc32(fixed[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(fixed)


def json_text(value: Any) -> str:
    """JSON, or what Python takes for it: NaN too."""
    return json.dumps(value)
