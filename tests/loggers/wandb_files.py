"""Reads the files of Weights & Biases runs, which `wandb sync` would send, for the tests."""

import json
import struct
import time

from wandb.proto.wandb_internal_pb2 import Record

__all__ = ["of", "read", "rows", "values"]

# The format of the files: a header, then blocks of records, LevelDB's log format.
HEADER, BLOCK, WHOLE, LAST = 7, 32768, 1, 4


def records_of(path):
    """The records of a file, as far as it is written."""
    content, at, piece, records = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(content):
        if (room := BLOCK - at % BLOCK) < HEADER:
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        piece += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            records.append(Record.FromString(piece))
            piece = b""
    return records


def read(folder):
    """The records of each run below a folder; W&B's own process may write the last ones after a run has finished."""
    for _ in range(100):
        runs = [records_of(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
        if all(of(records, "exit") for records in runs):
            return runs
        time.sleep(0.1)
    raise AssertionError("a run has no end")


def of(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def values(items):
    """Metrics, without W&B's own."""
    named = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {name: value for name, value in named.items() if not name.startswith("_")}


def rows(records):
    return {row.step.num: values(row.item) for row in of(records, "history")}
