"""`Settings`: what `fit` is asked to do, checked before any work is done."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vaentropy.checks import require_count, require_instance, require_number, require_seed
from vaentropy.errors import UsageError, shown
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.training.schedules import LEARNING_RATES, Beta, as_schedule
from vaentropy.training.step import Precision

__all__ = ["Schedule", "Settings", "Variances", "require_same"]

Variances = Literal["analytic", "learned"]
Schedule = Literal["one_cycle", "cosine", "constant"]
# About so many evaluations over the course of training, where the user does not say how often.
NUM_EVALUATIONS = 10
# So many draws in all make the Monte Carlo error of an evaluation small beside what else is unknown of a model that is
# still in training; per point there are as few as leave an error to be read, and no more than help small data.
EVALUATION_DRAWS = 2**17
FEWEST_DRAWS, MOST_DRAWS = 2, 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `fit`, where each is explained.

    Raises:
        UsageError: naming the setting, its value and what is expected.
    """

    epochs: int = 100
    batch_size: int = 200
    micro_batch_size: int | None = None
    learning_rate: float = 5e-3
    schedule: str = "one_cycle"
    variances: str = "analytic"
    variance_learning_rate: float | None = None
    variance_momentum: float = 0.9
    beta: Beta = 1.0
    clip_norm: float | None = None
    expectation: Expectation = MonteCarlo(1)
    evaluation_expectation: Expectation | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    plateau: float | None = None
    max_rollbacks: int = 3
    compile: bool | None = None
    precision: str = "full"
    missing: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "evaluate_every", "patience"):
            if getattr(self, name) is not None or name in ("epochs", "batch_size"):
                require_count(name, getattr(self, name))
        require_count("max_rollbacks", self.max_rollbacks, least=0)
        for name in ("learning_rate", "variance_learning_rate", "clip_norm", "plateau"):
            if getattr(self, name) is not None or name == "learning_rate":
                require_number(name, getattr(self, name))
        if require_number("variance_momentum", self.variance_momentum, positive=False) >= 1:
            given = f"variance_momentum={self.variance_momentum}"
            raise UsageError(f"{given} given, expected a number of at least 0 and below 1")
        for name in ("expectation", "evaluation_expectation"):
            if getattr(self, name) is not None or name == "expectation":
                require_instance(name, getattr(self, name), Expectation, "an Expectation such as MonteCarlo(16)")
        require_seed(self.seed)
        choices = {
            "schedule": tuple(LEARNING_RATES),
            "variances": get_args(Variances),
            "missing": ("error", "ignore"),
            "precision": get_args(Precision),
        }
        if self.compile is not None and not isinstance(self.compile, bool):
            raise UsageError(f"compile={shown(self.compile)} given, expected True, False or None")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name}={shown(getattr(self, name))} given, expected one of {', '.join(allowed)}")
        as_schedule(self.beta)

    @property
    def epochs_between_evaluations(self) -> int:
        """Epochs from one evaluation of the held-out data to the next."""
        return self.evaluate_every or max(1, self.epochs // NUM_EVALUATIONS)

    def evaluation_of(self, num_points: int) -> Expectation:
        """How evaluations of so many data points average over the posterior."""
        if self.evaluation_expectation is not None:
            return self.evaluation_expectation
        draws = round(EVALUATION_DRAWS / num_points)
        return MonteCarlo(min(max(draws, FEWEST_DRAWS), MOST_DRAWS))

    def adapt(self, num_points: int) -> float:
        """How far a step on so many points moves analytic variances; 0 where they are learned by gradient."""
        # A smaller batch moves the running mean less.
        analytic = self.variances == "analytic"
        return 1 - self.variance_momentum ** (num_points / self.batch_size) if analytic else 0.0

    def describe(self) -> dict[str, str]:
        """Each setting as text, so that a checkpoint can tell whether it was made under the same ones."""

        def text(value: Any) -> str:
            if callable(value):
                return "a function"
            # 1 and 1.0 are the same setting.
            return repr(int(value) if isinstance(value, float) and value.is_integer() else value)

        # With other parts of a batch the steps are the same.
        return {f.name: text(getattr(self, f.name)) for f in fields(self) if f.name != "micro_batch_size"}


def require_same(now: Mapping[str, str], stored: Mapping[str, Any]) -> None:
    """Refuse to go on under other circumstances than a checkpoint was made under; what it does not know may differ.

    Raises:
        UsageError: naming the first that differs.
    """
    for name, value in now.items():
        if stored.get(name, value) != value:
            raise UsageError(
                f"{name}={value} given, but training began with {name}={stored[name]}; go on with the same, or start "
                "anew in another folder"
            )
