"""How many times as long one process with one thread trains as two with one thread each."""

import math
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.measure import ratio
from benchmarks.problems import images
from benchmarks.replicates import of_threads
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1
from vaentropy.training import fit
from vaentropy.training.history import Row

DATA_DIM, LATENT_DIM, HIDDEN, NUM_POINTS = 784, 10, (512,), 60_000
BATCH_SIZES = (256, 1024, 4096)
PROCESSES, REPETITIONS, EPOCHS = 2, 5, 3
QUICK_STEPS = 3


def run(quick: bool) -> Result:
    """Seconds of an epoch of 784-512-10-512-784, and of a whole `fit`, in one process and in two, which take turns.

    Two that each train on their half alone, at the same time, tell what the machine has for two.

    Args:
        quick: few steps.
    """
    rows: list[dict[str, Any]] = []
    with workers(PROCESSES) as others, workers(PROCESSES, together=False) as apart, of_threads(1):
        for batch_size in BATCH_SIZES[:1] if quick else BATCH_SIZES:
            rows.append(_row(others, apart, batch_size, QUICK_STEPS * batch_size if quick else NUM_POINTS, quick))
    notes = [
        f"One thread each, messages by gloo on one machine. An epoch is the second of {EPOCHS}, with its history and "
        "without evaluations; the whole `fit` has those at its end, with one draw per point. The ratios are of "
        "medians, with the lowest and highest of two measured side by side. Two apart: each trains a model of its own "
        "on half of the points in half of the batch, without a message."
    ]
    return Result("Two processes", rows=rows, notes=notes)


def _row(
    others: list[Connection], apart: list[Connection], batch_size: int, num_points: int, quick: bool
) -> dict[str, Any]:
    measured = [
        (
            seconds(batch_size, num_points),
            _in_all(others, batch_size, num_points),
            _in_all(apart, batch_size // PROCESSES, num_points // PROCESSES),
        )
        for _ in range(1 + (2 if quick else REPETITIONS))
    ][1:]
    # Of epochs, then of whole trainings.
    (one_epoch, one_fit), (two_epoch, two_fit), (apart_epoch, _) = (
        [list(times) for times in zip(*each, strict=True)] for each in zip(*measured, strict=True)
    )
    steps = math.ceil(num_points / batch_size)
    return {
        "batch": batch_size,
        "points": num_points,
        "one process, ms a step": 1000 * statistics.median(one_epoch) / steps,
        "two, ms a step": 1000 * statistics.median(two_epoch) / steps,
        "one / two, an epoch": str(ratio(one_epoch, two_epoch)),
        "one / two, the whole fit": str(ratio(one_fit, two_fit)),
        "one / two apart, an epoch": str(ratio(one_epoch, apart_epoch)),
    }


def seconds(batch_size: int, num_points: int) -> tuple[float, float]:
    """Of the second epoch, and of the whole `fit`; in a group of processes, of all together."""
    torch.manual_seed(0)
    x, model = _data(num_points), vae1(DATA_DIM, LATENT_DIM, HIDDEN)
    times = [time.perf_counter()]

    def clock(row: Row) -> None:
        times.append(time.perf_counter())

    fit(
        model,
        x,
        epochs=EPOCHS,
        batch_size=batch_size,
        evaluation_expectation=MonteCarlo(1),
        compile=False,
        progress=False,
        on_epoch=clock,
    )
    # The last epoch's row comes after the evaluations.
    return (times[2] - times[1], times[-1] - times[0]) if len(times) > 2 else (0.0, 0.0)


@cache
def _data(num_points: int) -> torch.Tensor:
    return images(num_points, DATA_DIM)


@contextmanager
def workers(
    number: int, *, together: bool = True, work: Callable[..., None] | None = None
) -> Iterator[list[Connection]]:
    """Processes, each of which does what its connection is sent, until that is None.

    Args:
        number: of them.
        together: whether they are one group; they are then told its address.
        work: what each does, of its connection, the address, its rank and their number; by default it trains.
    """
    context = mp.get_context("spawn")
    address = f"tcp://127.0.0.1:{free_port()}" if together else None
    pipes = [context.Pipe() for _ in range(number)]
    started = [
        context.Process(target=work or _work, args=(theirs, address, rank, number), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join()


def _in_all(connections: list[Connection], batch_size: int, num_points: int) -> tuple[float, float]:
    for connection in connections:
        connection.send((batch_size, num_points))
    # Of a group only the first process is told of epochs; others report 0.
    epochs, fits = zip(*(connection.recv() for connection in connections), strict=True)
    return max(epochs), max(fits)


def _work(connection: Connection, address: str | None, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if address is not None:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    while (asked := connection.recv()) is not None:
        connection.send(seconds(*asked))
    if address is not None:
        dist.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
