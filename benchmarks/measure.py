"""Times that a noisy machine does not spoil, candidates in turn and in ratios; and the memory of processes."""

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Ratio", "grown", "interleaved", "most_memory", "ratio", "timed"]

KIBIBYTE = 1024  # in which Linux counts a process's memory


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


@contextmanager
def grown() -> Iterator[list[int]]:
    """A list that holds, afterwards, the bytes by which this process had grown at its largest; empty where unknown."""
    found: list[int] = []
    try:
        # Linux: the peak so far counts from here on. (ru_maxrss would hold that of the process this one came from.)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield found
        return
    before = _status("self", "VmRSS")
    yield found
    largest = most_memory()
    if before is not None and largest is not None:
        found.append(largest - before)


def most_memory(process: int | None = None) -> int | None:
    """Bytes that a process has had at most, this one or another; None where it has ended or the system does not tell.

    What the process that it came from has had does not count.
    """
    return _status("self" if process is None else str(process), "VmHWM")


def _status(process: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", Path(f"/proc/{process}/status").read_text("utf-8"), re.MULTILINE)
    except OSError:  # it has ended, or this is no Linux
        return None
    return int(found[1]) * KIBIBYTE if found else None


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
