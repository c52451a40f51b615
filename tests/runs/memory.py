"""Trains on and evaluates a table larger than memory should have to hold, and measures how much memory that takes.

    python tests/runs/memory.py --rows 20000000 --kind parquet

prints one JSON object: rows, sizes on disk and in float32, and of each verb seconds and peak memory (of its process, as
the operating system counts it, PyTorch included).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

COLUMNS, ROWS_PER_FILE = 18, 1_000_000
LATENTS = 4
TRAIN = ["--scale", "standard", "--held-out", "0.1", "--latent-dim", str(LATENTS), "--hidden", "16", "--threads", "1"]
TRAIN += ["--batch-size", "4096", "--epochs", "1", "--evaluation-samples", "2"]


def pieces(rows: int) -> Iterator[np.ndarray]:
    """Draws from a linear Gaussian model."""
    chance = np.random.default_rng(0)
    weight = chance.normal(size=(LATENTS, COLUMNS))
    for first in range(0, rows, ROWS_PER_FILE):
        size = min(ROWS_PER_FILE, rows - first)
        x = chance.normal(size=(size, LATENTS)) @ weight + 0.3 * chance.normal(size=(size, COLUMNS))
        yield x.astype(np.float32)


def write_apart(folder: Path, rows: int, kind: str) -> Path:
    """Data of one kind, written by a process of its own: what this one once held would count for those it starts."""
    child = os.fork()
    if child == 0:
        write(folder, rows, kind)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return next(folder.iterdir())


def write(folder: Path, rows: int, kind: str) -> Path:
    """Data of one kind."""
    if kind == "npy":
        path = folder / "data.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, COLUMNS))
        for number, x in enumerate(pieces(rows)):
            array[number * ROWS_PER_FILE :][: len(x)] = x
        array.flush()
        return path
    tables = (pa.table({f"feature_{column}": x[:, column] for column in range(COLUMNS)}) for x in pieces(rows))
    if kind == "csv":
        path = folder / "data.csv"
        first = next(tables)
        with csv.CSVWriter(path, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        return path
    path = folder / "data"
    path.mkdir()
    for number, table in enumerate(tables):
        parquet.write_table(table, path / f"part-{number:04d}.parquet", row_group_size=250_000)
    return path


def measured(arguments: list[str]) -> dict:
    """A verb in a process of its own: seconds, peak memory, what it printed."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, "-m", "vaentropy", *arguments, "--json"], stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, arguments
        output.seek(0)
        printed = json.loads(output.read())
    per_unit = 1 if sys.platform == "darwin" else 1024
    assert isinstance(usage, resource.struct_rusage)
    figures = {"seconds": round(time.monotonic() - start, 1), "peak_mib": round(usage.ru_maxrss * per_unit / 2**20)}
    return {**figures, "printed": printed}


def main(rows: int, kind: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data, run = write_apart(Path(folder), rows, kind), Path(folder) / "run"
        size = sum(path.stat().st_size for path in ([data] if data.is_file() else data.iterdir()))
        train = measured(["train", str(data), *TRAIN, "--out", str(run)])
        evaluate = measured(["evaluate", str(run), "--num-samples", "2"])
        encode = measured(["encode", str(run), "--out", str(Path(folder) / "z.npy")])
    trained, again = train.pop("printed"), evaluate.pop("printed")
    assert again["train"]["elbo"] == trained["elbo"], "evaluating a run again gives the same"
    assert encode.pop("printed")["rows"] == rows
    sizes = {
        "kind": kind,
        "rows": rows,
        "columns": COLUMNS,
        "mib_on_disk": size >> 20,
        "mib_as_float32": rows * COLUMNS * 4 >> 20,
    }
    return {**sizes, "elbo": round(trained["elbo"], 4), "train": train, "evaluate": evaluate, "encode": encode}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kind", choices=["parquet", "csv", "npy"], default="parquet")
    print(json.dumps(main(**vars(parser.parse_args()))))
