"""Schedules over the course of training, functions of the fraction of steps done, 0 to 1: β and the learning rate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vaentropy.checks import require_number
from vaentropy.errors import UsageError

__all__ = ["LEARNING_RATES", "Beta", "as_schedule", "constant", "cosine", "cyclical", "one_cycle", "warmup"]

Beta = float | Callable[[float], float]

# The one-cycle rate: from 1/25 of the highest up to it in 30 % of the steps, then down to 1e-4 of where it began.
CYCLE_RISE, CYCLE_START, CYCLE_END = 0.3, 1 / 25, 1 / 25 * 1e-4


def warmup(fraction: float = 0.25, beta: float = 1.0) -> Callable[[float], float]:
    """β from 0 to `beta` in a straight line over the first `fraction` of training, then `beta`: by default the ELBO."""
    _check_fraction(fraction)
    return _Warmup(fraction, beta)


def cyclical(num_cycles: int = 4, ramp: float = 0.5) -> Callable[[float], float]:
    """β from 0 to 1 over the first `ramp` of each cycle, then 1 until the cycle ends (Fu et al., arXiv:1903.10145)."""
    if num_cycles < 1:
        raise UsageError(f"num_cycles={num_cycles} given, expected a whole number of at least 1")
    _check_fraction(ramp)
    return _Cyclical(num_cycles, ramp)


# Classes, not closures: they go to other processes.


@dataclass(frozen=True)
class _Warmup:
    fraction: float
    beta: float

    def __call__(self, done: float) -> float:
        return self.beta * min(1.0, done / self.fraction)


@dataclass(frozen=True)
class _Cyclical:
    num_cycles: int
    ramp: float

    def __call__(self, done: float) -> float:
        # The last step ends the last cycle; it does not begin another one at β = 0.
        return min(1.0, done * self.num_cycles % 1 / self.ramp) if done < 1 else 1.0


def as_schedule(beta: Beta) -> Callable[[float], float]:
    """A constant as a schedule.

    Raises:
        UsageError: a negative or infinite constant.
    """
    if callable(beta):
        return beta
    try:
        value = require_number("beta", beta, positive=False)
    except UsageError as error:
        raise UsageError(f"{error}, or a function such as warmup(0.25)") from None
    return lambda done: value


def one_cycle(done: float) -> float:
    """Factor on the highest learning rate: up and down again along half cosines (Smith & Topin, arXiv:1708.07120)."""
    if done < CYCLE_RISE:
        return _half_cosine(CYCLE_START, 1.0, done / CYCLE_RISE)
    return _half_cosine(1.0, CYCLE_END, (done - CYCLE_RISE) / (1 - CYCLE_RISE))


def cosine(done: float) -> float:
    """Factor on the highest learning rate: down along half a cosine, to where `one_cycle` ends (arXiv:1608.03983)."""
    return _half_cosine(1.0, CYCLE_END, done)


def constant(done: float) -> float:
    """Factor on a learning rate that stays as it is."""
    return 1.0


LEARNING_RATES: Mapping[str, Callable[[float], float]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
}


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction} given, expected one above 0 and at most 1")
