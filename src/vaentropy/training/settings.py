"""Settings of `fit`, checked before any work is done."""

import math
from typing import Any, Literal, get_args

from vaentropy.errors import UsageError

__all__ = ["Schedule", "Variances", "check_settings"]

Variances = Literal["analytic", "learned"]
Schedule = Literal["one_cycle", "constant"]


def check_settings(
    *,
    epochs: Any,
    batch_size: Any,
    learning_rate: Any,
    schedule: Any,
    variances: Any,
    clip_norm: Any = None,
    evaluate_every: Any = None,
    variance_learning_rate: Any = None,
    variance_momentum: Any = 0.0,
) -> None:
    """Refuse what `fit` cannot use; None stands for a default.

    Raises:
        UsageError: naming the setting, its value and what is expected.
    """
    for name, count in {"epochs": epochs, "batch_size": batch_size, "evaluate_every": evaluate_every}.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UsageError(f"{name}={count!r} given, expected a whole number of at least 1")
    rates = {"learning_rate": learning_rate, "variance_learning_rate": variance_learning_rate, "clip_norm": clip_norm}
    for name, value in rates.items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value} given, expected a positive number")
    if not 0 <= variance_momentum < 1:
        raise UsageError(f"variance_momentum={variance_momentum} given, expected a number of at least 0 and below 1")
    for name, value, kind in (("schedule", schedule, Schedule), ("variances", variances, Variances)):
        if value not in get_args(kind):
            raise UsageError(f"{name}={value!r} given, expected one of {', '.join(get_args(kind))}")
