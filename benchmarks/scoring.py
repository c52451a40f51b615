"""Rows per second that one process and two evaluate and encode, of a table that no one wants in memory."""

import math
import multiprocessing
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.measure import interleaved, most_memory, ratio
from benchmarks.replicates import of_threads
from benchmarks.results import Result
from vaentropy.data.files import Options, source_of_file
from vaentropy.data.source import Source
from vaentropy.engines import Processes
from vaentropy.runs import RunConfig, encode_run, evaluate_run, train

__all__ = ["alike", "difference", "run", "table"]

NUM_POINTS, NUM_TRAIN, QUICK_POINTS = 20_000_000, 50_000, 300_000
DATA_DIM, FACTORS, LATENT_DIM, HIDDEN = 8, 3, 4, (64, 64)
ROW_GROUPS = 20
PROCESSES, REPETITIONS = 2, 3
MIB = 2**20
SECONDS_BETWEEN_LOOKS = 0.2


def run(quick: bool) -> Result:
    """Seconds of `evaluate_run` and `encode_run` on a Parquet file, here and by two processes, which take turns.

    Args:
        quick: a small table, once.
    """
    num_points = QUICK_POINTS if quick else NUM_POINTS
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder, of_threads(1):
        data = str(table(Path(folder) / "x.parquet", num_points, seed=0))
        rows, notes = _measured(trained(Path(folder)), data, num_points, 1 if quick else REPETITIONS)
    return Result("Scoring many rows", rows=rows, notes=notes)


def table(path: Path, num_points: int, *, seed: int) -> Path:
    """A Parquet file of float32 columns with a few common factors, written row group by row group."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(FACTORS, DATA_DIM))
    schema = pa.schema([(f"x_{column}", pa.float32()) for column in range(DATA_DIM)])
    with parquet.ParquetWriter(path, schema) as writer:
        group = math.ceil(num_points / ROW_GROUPS)
        for first in range(0, num_points, group):
            size = min(group, num_points - first)
            x = np.tanh(generator.normal(size=(size, FACTORS))) @ mixing + 0.3 * generator.normal(size=(size, DATA_DIM))
            writer.write_table(pa.table(list(x.astype(np.float32).T.copy()), schema=schema))
    return path


def trained(folder: Path) -> Path:
    """A run of a small VAE, trained on a part of such rows."""
    own = str(table(folder / "train.parquet", NUM_TRAIN, seed=2))
    config = RunConfig(
        data=own, scale="standard", latent_dim=LATENT_DIM, hidden=HIDDEN, epochs=1, batch_size=500, stream=True
    )
    return train(config, out=folder / "run").folder


def _measured(made: Path, data: str, num_points: int, repetitions: int) -> tuple[list[dict[str, Any]], list[str]]:
    found: dict[str, Any] = {}
    work: dict[str, list[float]] = {}
    two = Processes(PROCESSES)

    def evaluating(name: str, engine: Processes | None) -> Callable[[], None]:
        return lambda: found.update({name: evaluate_run(made, data=data, engine=engine)["data"].to_dict()})

    def encoding(name: str, engine: Processes | None) -> Callable[[], int]:
        return lambda: encode_run(made, f"{made.parent}/{name}/", data=data, overwrite=True, engine=engine)

    with peaks() as peak:
        times = interleaved(
            {
                name: _weighed(call, work.setdefault(name, []))
                for name, call in {
                    "reading": lambda: _read(Path(data)),
                    "evaluate, one": evaluating("one", None),
                    "evaluate, two": evaluating("two", two),
                    "encode, one": encoding("one", None),
                    "encode, two": encoding("two", two),
                }.items()
            },
            repetitions,
            warmup=0,
        )
    latents = (source_of_file(made.parent / name, Options()) for name in ("one", "two"))
    differences = {"evaluate": difference(found["one"], found["two"]), "encode": alike(*latents)}  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = [{"": "reading alone", "one process, rows/s": _rate(num_points, times["reading"])}]
    for what, apart in differences.items():
        one, both = times[f"{what}, one"], times[f"{what}, two"]
        rows.append(
            {
                "": what,
                "one process, rows/s": _rate(num_points, one),
                "two, rows/s": _rate(num_points, both),
                "one / two": str(ratio(one, both)),
                "CPU seconds, one": f"{statistics.median(work[f'{what}, one']):.1f}",
                "two together": f"{statistics.median(work[f'{what}, two']):.1f}",
                "largest relative difference": f"{apart:.1e}",
            }
        )
    size = Path(data).stat().st_size
    notes = [
        f"{num_points:,} rows of {DATA_DIM} float32 columns in one Parquet file of {ROW_GROUPS} row groups, "
        f"{size / MIB:,.0f} MiB; {DATA_DIM}-{'-'.join(map(str, HIDDEN))}-{LATENT_DIM} and back, one thread each. Times "
        f"are those of a whole call, the start of the processes among them: medians of {repetitions} in turn; ratios "
        "with the lowest and highest of two measured side by side. CPU seconds are of all processes together.",
        f"Most memory that this process had at any time: {peak['here']:,.0f} MiB; a worker: {peak['worker']:,.0f} MiB.",
    ]
    return rows, notes


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """MiB of memory that this process and any of its workers had at most; 0 where the system does not tell."""
    peak, ended = {"here": 0.0, "worker": 0.0}, threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            peak["here"] = max(peak["here"], _peak())
            peak["worker"] = max([peak["worker"], *(_peak(each.pid) for each in multiprocessing.active_children())])

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()


def _peak(process: int | None = None) -> float:
    """MiB that a process has had at most."""
    return (most_memory(process) or 0) / MIB


def _weighed(call: Callable[[], object], into: list[float]) -> Callable[[], None]:
    """The call, whose seconds of the CPU are noted: what other programs take from it does not count."""

    def weighed() -> None:
        before = _cpu_seconds()
        call()
        into.append(_cpu_seconds() - before)

    return weighed


def _cpu_seconds() -> float:
    """Of this process, and of those of its workers that have ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def _read(path: Path) -> None:
    source = source_of_file(path, Options())
    assert source is not None
    for _ in source:
        pass


def _rate(num_points: int, seconds: list[float]) -> str:
    return f"{num_points / statistics.median(seconds):,.0f}"


def difference(one: Any, other: Any) -> float:
    """Largest difference of two numbers of the same name, relative to the larger of them and at least 1e-3 nats."""
    pairs = list(zip(_numbers(one), _numbers(other), strict=True))
    return max((abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in pairs if math.isfinite(a) or math.isfinite(b)))


def _numbers(x: Any) -> Iterator[float]:
    if isinstance(x, dict | list):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _numbers(each)
    elif isinstance(x, float):
        yield x


def alike(one: Source, other: Source) -> float:
    """Largest difference of two numbers at the same place, relative to the largest number.

    Raises:
        AssertionError: one of them has other rows.
    """
    assert list(one.shard_sizes) == list(other.shard_sizes)
    apart = [((a - b).abs().max(), a.abs().max()) for a, b in zip(one, other, strict=True)]
    return float(max(a for a, _ in apart) / max(b for _, b in apart))
