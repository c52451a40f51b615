"""Weights β of the KL term over the course of training: functions of the fraction of steps done, 0 to 1."""

from collections.abc import Callable

from vaentropy.errors import UsageError

__all__ = ["Beta", "as_schedule", "cyclical", "warmup"]

Beta = float | Callable[[float], float]


def warmup(fraction: float = 0.25) -> Callable[[float], float]:
    """β from 0 to 1 in a straight line over the first `fraction` of training, then 1: training ends on the ELBO."""
    _check_fraction(fraction)
    return lambda done: min(1.0, done / fraction)


def cyclical(num_cycles: int = 4, ramp: float = 0.5) -> Callable[[float], float]:
    """β from 0 to 1 over the first `ramp` of each cycle, then 1 until the cycle ends (Fu et al., arXiv:1903.10145)."""
    if num_cycles < 1:
        raise UsageError(f"num_cycles={num_cycles} given, expected a whole number of at least 1")
    _check_fraction(ramp)
    # The last step ends the last cycle; it does not begin another one at β = 0.
    return lambda done: min(1.0, done * num_cycles % 1 / ramp) if done < 1 else 1.0


def as_schedule(beta: Beta) -> Callable[[float], float]:
    """A constant as a schedule.

    Raises:
        UsageError: a negative or infinite constant.
    """
    if callable(beta):
        return beta
    constant = float(beta)
    if not 0 <= constant < float("inf"):
        raise UsageError(f"beta={beta} given, expected a number of at least 0, or a function such as warmup(0.25)")
    return lambda done: constant


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction} given, expected one above 0 and at most 1")
