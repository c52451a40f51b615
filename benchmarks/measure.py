"""Times that a noisy machine does not spoil: candidates in turn, and ratios of what was measured side by side."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Ratio", "interleaved", "ratio", "timed"]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one candidate takes as another.

    Attributes:
        median: ratio of the median times.
        low: lowest ratio of two times that were measured one after the other.
        high: highest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number < 10 else f"{number:.1f}"


def ratio(times: list[float], floor: list[float]) -> Ratio:
    """The ratio of two candidates' times, as `interleaved` gives them."""
    pairs = [a / b for a, b in zip(times, floor, strict=True)]
    return Ratio(statistics.median(times) / statistics.median(floor), min(pairs), max(pairs))


def timed(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that a call takes, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repetitions: int, *, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each candidate in each repetition: A B C, A B C, …, so that a slow minute meets them all.

    Args:
        candidates: by name.
        repetitions: that count.
        warmup: repetitions before, that do not.
        device: whose work is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(warmup + repetitions):
        for name, call in candidates.items():
            gc.collect()
            seconds = timed(call, device)
            if repetition >= warmup:
                times[name].append(seconds)
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
