"""Which of several candidates the evidence supports: differences of means over the same data points."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from vaentropy._typing import Float, Tensor

__all__ = ["Decision", "Difference", "Evidence", "Score", "bic_penalty", "decide", "training_noise"]

# Median of |a - b| for two independent normal numbers of standard deviation 1.
MEDIAN_DISTANCE = 0.9539


class Difference(NamedTuple):
    """A difference of two means and its standard error, nats per data point."""

    value: float
    error: float


def _stderr(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Score:
    """What candidates are compared by: for each, one number per data point, (N,), of which more is better.

    Attributes:
        values: by latent_dim, all of the same points in the same order.
        noise: standard deviation of a candidate's mean from one training to the next; None where it is unknown.
    """

    values: Mapping[int, Float[Tensor, "N"]]
    noise: float | None = None

    def mean(self, candidate: int) -> float:
        """Over the data points."""
        return float(self.values[candidate].mean())

    def stderr(self, candidate: int) -> float:
        """Of the mean, for the population that the points came from."""
        return _stderr(self.values[candidate])

    @property
    def best(self) -> int:
        """The candidate with the largest mean; of equal ones the smallest."""
        return min(self.values, key=lambda candidate: (-self.mean(candidate), candidate))

    def difference(self, one: int, other: int) -> Difference:
        """Mean of one less that of the other; the error is that of the paired differences and of two trainings."""
        if one == other:
            return Difference(0.0, 0.0)
        each = self.values[one] - self.values[other]
        return Difference(float(each.mean()), math.hypot(_stderr(each), math.sqrt(2) * (self.noise or 0.0)))

    def below(self, one: int, other: int, num_errors: float) -> bool:
        """Whether one is below the other by more than so many errors; False where the error is unknown."""
        value, error = self.difference(other, one)
        return value > num_errors * error

    def with_more(self, candidate: int, nats: float) -> "Score":
        """What it would be if this candidate came to so many nats more."""
        return replace(self, values={**self.values, candidate: self.values[candidate] + nats})


@dataclass(frozen=True)
class Evidence:
    """All that is known of the candidates, by latent_dim.

    Attributes:
        score: that decides.
        bic: the same candidates by BIC per data point.
        active: how many of its latents each uses.
        num_errors: standard errors that a difference has to have to count.
    """

    score: Score
    bic: Score
    active: Mapping[int, int]
    num_errors: float

    def with_more(self, candidate: int, nats: float) -> "Evidence":
        """What it would be if this candidate's ELBO were so many nats more."""
        return replace(self, score=self.score.with_more(candidate, nats), bic=self.bic.with_more(candidate, nats))


class Decision(NamedTuple):
    """What the evidence supports.

    Attributes:
        supported: latent_dim.
        undecided: larger ones that may be better, by which the evidence does not decide.
        used: how many latents are needed: fewer than supported where fewer were not offered.
    """

    supported: int
    undecided: tuple[int, ...]
    used: int


def decide(e: Evidence) -> Decision:
    """The smallest candidate with as many latents as one uses that is level with the best: not clearly below it.

    The best of several estimates is too high by luck, and a larger model that is as good has latents it does not need:
    hence the smallest. A larger one that is level remains undecided unless BIC puts it clearly below the supported one,
    or its own surplus latents are collapsed.
    """
    best = e.score.best
    level = [h for h in e.score.values if not e.score.below(h, best, e.num_errors)]
    used = min(e.active[h] for h in level)
    supported = min(h for h in e.score.values if h >= used)
    larger = [h for h in level if h > supported and e.active[h] > supported]
    undecided = tuple(sorted(h for h in larger if not e.bic.below(h, supported, e.num_errors)))
    return Decision(supported, undecided, used)


def training_noise(elbos: Collection[Sequence[float]]) -> float | None:
    """Standard deviation of an ELBO from one training to the next, from the two best seeds of each candidate.

    The median over the candidates of how far the two lie apart: a seed that ended in a bad optimum does not count.

    Args:
        elbos: of each candidate, its seeds' ELBOs, the best trained first.

    Returns:
        None where no candidate has two.
    """
    apart = [abs(each[0] - each[1]) for each in elbos if len(each) > 1]
    return median(apart) / MEDIAN_DISTANCE if apart else None


def bic_penalty(num_parameters: int, num_points: int) -> float:
    """k log N/(2N): what BIC takes off the log-likelihood, nats per data point."""
    return num_parameters * math.log(num_points) / (2 * num_points)
