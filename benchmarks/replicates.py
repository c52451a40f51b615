"""How many more points a second `fit_replicates` trains than `fit` one model after the other."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.measure import ratio
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1
from vaentropy.data import load
from vaentropy.training import fit, fit_replicates
from vaentropy.training.history import Row
from vaentropy.vae import VAE

DATA_DIM, LATENT_DIM, HIDDEN = 64, 2, (50, 50)
BATCH_SIZES = (100, 200, 2000)
STEPS, REPETITIONS = 40, 5  # of each model in a timed epoch; fewer where batches are large
ALONE = 2  # models that are timed one after the other


def run(quick: bool, threads: Sequence[int] = ()) -> Result:
    """Points per second of R models of 64-50-50-2-50-50-64 together and one after the other, on the digits.

    Args:
        quick: few steps.
        threads: numbers of threads to measure with; one after the other takes the fastest of them. Empty: 1 and as many
            as torch has.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    threads = threads or sorted({1, torch.get_num_threads()})
    rows: list[dict[str, Any]] = []
    for device in devices:
        for number in (4,) if quick else (20,) if device == "cpu" else (20, 100):
            for batch_size in BATCH_SIZES[:2] if quick else BATCH_SIZES:
                for row in _rows(device, number, batch_size, threads if device == "cpu" else threads[:1], quick):
                    rows.append(row)
    notes = [
        "Points per second of all models, in an epoch with its history and without evaluations. One after the other is "
        f"timed for {ALONE} models, at the number of threads that suits it best. The ratios are of medians, with the "
        "lowest and highest of two measured side by side."
    ]
    return Result("Replicates trained as one", rows=rows, notes=notes)


def _rows(device: str, number: int, batch_size: int, threads: Sequence[int], quick: bool) -> list[dict[str, Any]]:
    """A row for each number of threads."""
    steps = 3 if quick else STEPS if batch_size < 1000 else STEPS // 4
    x = digits(batch_size * steps).to(device)
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for count in threads for name in ("alone", "all")}
    for repetition in range(1 + (2 if quick else REPETITIONS)):
        for name, count in times:
            with of_threads(count):
                # As long as some take alone, so do as many more.
                seconds = (
                    together(x, number, batch_size) if name == "all" else alone(x, ALONE, batch_size) * number / ALONE
                )
            if repetition:
                times[name, count].append(seconds)
    best = min((times["alone", count] for count in threads), key=statistics.median)
    points = number * len(x)
    return [
        {
            "device": device,
            "models": number,
            "batch": batch_size,
            "threads": count,
            "together points/s": points / statistics.median(times["all", count]),
            "one after the other points/s": points / statistics.median(best),
            "together / one after the other": str(ratio(best, times["all", count])),
        }
        for count in threads
    ]


def digits(num_points: int) -> torch.Tensor:
    """So many points (N, 64) of the digits, over and over."""
    x = load("digits").train
    return x.repeat(math.ceil(num_points / len(x)), 1)[:num_points]


def make(number: int, device: str) -> list[VAE]:
    """Models of the same initial weights, which is as good as others for time."""
    return [vae1(DATA_DIM, LATENT_DIM, HIDDEN).to(device) for _ in range(number)]


def together(x: torch.Tensor, number: int, batch_size: int) -> float:
    """Seconds of an epoch of all models, by `fit_replicates`."""
    clock = _SecondEpoch()
    fit_replicates(make(number, x.device.type), x, on_epoch=lambda _, row: clock(row), **_options(batch_size))
    return clock.seconds


def alone(x: torch.Tensor, number: int, batch_size: int) -> float:
    """Seconds of an epoch of one model after the other, by `fit`."""
    clock = _SecondEpoch()
    for seed, model in enumerate(make(number, x.device.type)):
        fit(model, x, seed=seed, on_epoch=clock, **_options(batch_size))
    return clock.seconds


class _SecondEpoch:
    """Seconds of second epochs of three: the first warms up, the last one ends in evaluations."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.perf_counter()

    def __call__(self, row: Row) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last if row["epoch"] == 2 else 0.0
        self._last = now


def _options(batch_size: int) -> dict[str, Any]:
    return {
        "epochs": 3,
        "batch_size": batch_size,
        "evaluation_expectation": MonteCarlo(1),
        "progress": False,
    }


@contextmanager
def of_threads(count: int) -> Iterator[None]:
    """So many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
