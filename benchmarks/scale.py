"""What a row, a step and a message cost here, and what they come to at 10⁹ rows and 64 processes."""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.measure import interleaved, timed
from benchmarks.problems import images
from benchmarks.processes import workers
from benchmarks.replicates import of_threads
from benchmarks.results import Result
from vaentropy import MonteCarlo, evaluate, vae1
from vaentropy.data.batches import Batches
from vaentropy.data.formats.arrays import NpyFile
from vaentropy.data.formats.parquet import ParquetFiles
from vaentropy.training import fit
from vaentropy.training.history import Row
from vaentropy.vae import VAE

__all__ = ["GPU", "Costs", "Workload", "plan", "run"]

ROWS, PROCESSES = 10**9, (1, 8, 64)
SMALL_BATCH, LARGE_BATCH = 256, 4096
# Of the whole, such that each of 64 processes has about a thousand.
BATCH_SIZE = 65_536
REPETITIONS, EPOCHS = 5, 3
MEGABYTE = 1e6


class Workload(NamedTuple):
    """What is trained: features, widths of the layers, latents."""

    name: str
    data_dim: int
    hidden: tuple[int, ...]
    latent_dim: int

    def model(self) -> VAE:
        """An untrained one."""
        torch.manual_seed(0)
        return vae1(self.data_dim, self.latent_dim, self.hidden)

    @property
    def row_bytes(self) -> int:
        """Of a row in float32."""
        return 4 * self.data_dim


WORKLOADS = (Workload("images", 784, (512,), 10), Workload("a table", 8, (50, 50), 2))


@dataclass(frozen=True)
class Costs:
    """Seconds, of one process.

    Attributes:
        step: of training, whatever its size.
        row: of a step, for each row.
        evaluated_row: of an evaluation with two draws.
        message: of a sum over all processes, whatever its size; and of each of its two a step.
        byte: of such a sum, for each byte that a process sends or gets.
        read_byte: of a source, shuffled in windows.
        sent_byte: of rows that go from one process to another.
    """

    step: float
    row: float
    evaluated_row: float
    message: float
    byte: float
    read_byte: float
    sent_byte: float


# Measured on an H200 (docs/performance.md, "On a GPU"): a step of 784-512-10 that is not recorded as a CUDA graph, as
# those of several processes are not, and an evaluation with two draws. What a row adds to a step did not show at 256
# rows; taken for it is what that evaluation takes for a row. Messages between GPUs were never measured: these two are
# guesses of the usual size, named as such below the table.
H200_STEP, H200_EVALUATED_ROW = 3.19e-3, 0.037 / 60_000
GUESSED_MESSAGE, GUESSED_BYTES_PER_SECOND = 5e-5, 2e10
GPU = {"step": H200_STEP, "row": H200_EVALUATED_ROW, "evaluated_row": H200_EVALUATED_ROW}
GPU |= {"message": GUESSED_MESSAGE, "byte": 1 / GUESSED_BYTES_PER_SECOND, "sent_byte": 1 / GUESSED_BYTES_PER_SECOND}


def run(quick: bool) -> Result:
    """Costs of one process here, and seconds of an epoch of 10⁹ rows that follow from them.

    Args:
        quick: few rows.
    """
    rows: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    with of_threads(1), workers(2, work=_work) as others:
        message, byte, sent_byte = messages(others, quick)
        for workload in WORKLOADS:
            step, row = costs_of_steps(workload, quick)
            common = {"step": step, "row": row, "message": message, "byte": byte, "sent_byte": sent_byte}
            evaluated_row = cost_of_evaluation(workload, quick)
            for kind, read_byte in costs_of_reading(workload, quick).items():
                costs = Costs(**common, evaluated_row=evaluated_row, read_byte=read_byte)
                measured[f"{workload.name}, {kind}"] = costs.__dict__
                for machine, these in (("CPU", costs), ("H200", replace(costs, **GPU))):
                    for processes in PROCESSES:
                        rows.append(_row(workload, kind, machine, processes, plan(workload, these, processes)))
    notes = [
        f"Seconds of one epoch of {ROWS:,} rows in batches of {BATCH_SIZE:,}, from costs that were measured with one "
        "process of one thread (messages: with two). They add up, since nothing is done at the same time as another "
        "thing. CPU: as many cores as processes, each as fast as the one here. H200: steps and evaluations as measured "
        f"there; messages are guessed ({1e6 * GUESSED_MESSAGE:.0f} µs and {GUESSED_BYTES_PER_SECOND / 1e9:.0f} GB/s), "
        "files are read as here.",
        *(_said(name, costs) for name, costs in measured.items()),
    ]
    return Result("An epoch of 10⁹ rows", rows=rows, notes=notes, data=measured)


def plan(workload: Workload, costs: Costs, processes: int, *, rows: int = ROWS) -> dict[str, float]:
    """Seconds of an epoch by what they go into.

    Args:
        workload: what is trained.
        costs: of one process.
        processes: that share the rows.
        rows: of an epoch.
    """
    steps = math.ceil(rows / BATCH_SIZE)
    own = rows / processes
    gradients = 4 * sum(parameter.numel() for parameter in workload.model().parameters())
    apart = (processes - 1) / processes
    return {
        "steps": steps * costs.step,
        "rows": own * costs.row,
        # Around a ring each process passes on every byte but its own part twice; σ², and flags with the sums, go before
        # the gradients.
        "messages": 0.0 if processes == 1 else steps * (3 * costs.message + 2 * apart * gradients * costs.byte),
        "reading": own * workload.row_bytes * costs.read_byte,
        "rows sent": own * apart * workload.row_bytes * costs.sent_byte,
    }


def _row(workload: Workload, kind: str, machine: str, processes: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    total = sum(seconds.values())
    largest = max(seconds, key=lambda name: seconds[name])
    named = {f"{name}, s": each for name, each in seconds.items()}
    about = {"data": f"{workload.name}, {kind}", "processes": f"{processes} {machine}"}
    return {**about, **named, "an epoch, s": total, "most of it": f"{largest} ({seconds[largest] / total:.0%})"}


def _said(name: str, costs: Mapping[str, float]) -> str:
    speed = {name: 1 / costs[name] / MEGABYTE for name in ("read_byte", "byte", "sent_byte")}
    return (
        f"{name}: {1e3 * costs['step']:.2f} ms a step and {1e6 * costs['row']:.2f} µs a row; read at "
        f"{speed['read_byte']:.0f} MB/s, evaluated at {1e6 * costs['evaluated_row']:.2f} µs a row; a sum over two "
        f"processes {1e3 * costs['message']:.2f} ms and {speed['byte']:.0f} MB/s, rows sent at "
        f"{speed['sent_byte']:.0f} MB/s."
    )


# --- Steps, evaluations, reading --------------------------------------------------------------------------------------


def costs_of_steps(workload: Workload, quick: bool) -> tuple[float, float]:
    """Seconds of a step without rows, and of each row, from steps of few rows and of many."""
    num_rows = (4 if quick else 15) * LARGE_BATCH
    x = images(num_rows, workload.data_dim)
    small, large = (
        statistics.median(_epoch(workload, x, batch_size) for _ in range(1 if quick else REPETITIONS))
        / math.ceil(num_rows / batch_size)
        for batch_size in (SMALL_BATCH, LARGE_BATCH)
    )
    row = (large - small) / (LARGE_BATCH - SMALL_BATCH)
    return max(0.0, small - SMALL_BATCH * row), row


def _epoch(workload: Workload, x: torch.Tensor, batch_size: int) -> float:
    """Seconds of the second epoch of a training."""
    times: list[float] = []

    def clock(row: Row) -> None:
        times.append(time.perf_counter())

    how = {"compile": False, "progress": False, "evaluation_expectation": MonteCarlo(1)}
    fit(workload.model(), x, epochs=EPOCHS, batch_size=batch_size, on_epoch=clock, **how)
    return times[1] - times[0]


def cost_of_evaluation(workload: Workload, quick: bool) -> float:
    """Seconds for each row, two draws."""
    x, model = images((4 if quick else 15) * LARGE_BATCH, workload.data_dim), workload.model()
    seconds = [timed(lambda: evaluate(model, x, expectation=MonteCarlo(2))) for _ in range(2 if quick else REPETITIONS)]
    return statistics.median(seconds) / len(x)


def costs_of_reading(workload: Workload, quick: bool) -> dict[str, float]:
    """Seconds for each byte of rows that are read and shuffled in windows, of files that the system has in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    x = images((2 if quick else 64) * 2**20 // workload.data_dim, workload.data_dim)
    with tempfile.TemporaryDirectory() as folder:
        npy, table = Path(folder) / "x.npy", Path(folder) / "x.parquet"
        np.save(npy, x.numpy())
        columns = [pa.array(np.ascontiguousarray(column)) for column in x.numpy().T]
        names = [f"x_{number}" for number in range(workload.data_dim)]
        parquet.write_table(pa.table(columns, names), table, row_group_size=max(1, 2**22 // workload.data_dim))
        del columns
        sources = {"Parquet": lambda: ParquetFiles(table), ".npy": lambda: NpyFile(npy)}
        seconds = interleaved(
            {kind: partial(_read_all, make) for kind, make in sources.items()}, 1 if quick else REPETITIONS
        )
        return {kind: statistics.median(times) / x.nbytes for kind, times in seconds.items()}


def _read_all(make: Any) -> None:
    for _ in Batches(make(), LARGE_BATCH, seed=0).epoch(1):
        pass


# --- Messages ---------------------------------------------------------------------------------------------------------


def messages(others: list[Connection], quick: bool) -> tuple[float, float, float]:
    """Seconds of a sum over two processes, for each byte that goes through it, and for each byte of rows sent."""
    few, many = 2**6, 2 ** (20 if quick else 25)
    small, large = (_in_all(others, "sum", count, quick) for count in (few, many))
    # Of two, each sends half of the numbers and then the half that it has summed.
    byte = (large - small) / (4 * (many - few))
    return small, byte, _in_all(others, "send", many, quick) / (4 * many)


def _in_all(connections: list[Connection], what: str, count: int, quick: bool) -> float:
    for connection in connections:
        connection.send((what, count, 3 if quick else 4 * REPETITIONS))
    return max(connection.recv() for connection in connections)


def _work(connection: Connection, address: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    while (asked := connection.recv()) is not None:
        what, count, repetitions = asked
        x = torch.zeros(count)
        call = {
            "sum": partial(dist.all_reduce, x),
            "send": partial(dist.send, x, 1) if rank == 0 else partial(dist.recv, x, 0),
        }[what]
        times = [timed(call) for _ in range(1 + repetitions)]
        connection.send(statistics.median(times[1:]))
    dist.destroy_process_group()
