"""One step uphill, and what it brings: how far from stationary a model is, in nats.

A gradient's norm means little by itself, since it depends on how the parameters are scaled. The Gauss-Newton step uses
the geometry of the model's distributions instead, and the ELBO that it reaches is then measured.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vaentropy._typing import Float, Tensor
from vaentropy.diagnosis.linearisation import Linearisation, conjugate_gradients, flat, split
from vaentropy.diagnosis.outputs import Outputs, roots_of_fisher
from vaentropy.diagnosis.points import Reading
from vaentropy.errors import ModelError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import MonteCarlo

__all__ = ["Direction", "StepCheck", "along_gradient", "best_step", "uphill"]

# More follow curvature that a few hundred points and draws do not know.
ITERATIONS = 20
# Lengths that are tried: of a Gauss-Newton step, and of the gradient made as long as the parameters.
LENGTHS = (1.0, 0.5, 0.25, 0.1)
GRADIENT_LENGTHS = tuple(4.0**-k for k in range(1, 9))
NUM_SAMPLES = 2
# Of a step that leads to where nothing is a number.
NO_GAIN = -math.inf, math.inf


@dataclass(frozen=True)
class Direction:
    """Where a step goes, and how far it may.

    Attributes:
        vector: (P,), of length 1 in `lengths`.
        lengths: to try.
        kind: where it comes from.
    """

    vector: Float[Tensor, "P"]
    lengths: tuple[float, ...]
    kind: Literal["Gauss-Newton", "gradient"]


@dataclass(frozen=True, kw_only=True)
class StepCheck:
    """What one step brought, measured on draws that its length was not chosen by.

    Attributes:
        gain: of reconstruction - β KL, nats per data point; 0 where no length of the step gained anything.
        gain_error: its standard error.
        length: of the step, 0 where none was made.
        kind: "Gauss-Newton", or "gradient" where the curvature of the likelihood is not known.
    """

    gain: float
    gain_error: float
    length: float
    kind: Literal["Gauss-Newton", "gradient"]


def uphill(outputs: Outputs, parameters: Sequence[Tensor], gradient: Float[Tensor, "P"], *, beta: float) -> Direction:
    """The Gauss-Newton step for reconstruction - β KL, cut short.

    Args:
        outputs: at a few hundred points, from which the curvature is taken.
        parameters: that training moves.
        gradient: of the objective, nats per data point.
        beta: weight of the KL term.

    Raises:
        UnsupportedError: the likelihood is of a kind whose curvature is not known.
        RuntimeError: the model cannot be differentiated twice.
    """
    decoder, number = outputs.likelihood_at(outputs.z), len(outputs.z)
    narrowed = (outputs.log_variance - outputs.prior_log_variance).detach()
    # Each with the root of the curvature of -ELBO in it, per data point.
    scaled = [
        *(value * root for value, root in zip(decoder.values(), roots_of_fisher(decoder).values(), strict=True)),
        outputs.mean * torch.exp(-0.5 * outputs.prior_log_variance.detach()) * beta**0.5,
        outputs.log_variance * torch.exp(0.5 * narrowed) * (0.5 * beta) ** 0.5,
        outputs.prior_log_variance * (0.5 * beta * number) ** 0.5,
    ]
    linear = Linearisation(torch.cat([value.flatten() for value in scaled]) / number**0.5, parameters)
    gradient = gradient.to(linear.outputs.device)
    step = conjugate_gradients(lambda v: linear.transpose(linear.forward(v)), gradient, iterations=ITERATIONS)
    return Direction(step, LENGTHS, "Gauss-Newton")


def along_gradient(parameters: Sequence[Tensor], gradient: Float[Tensor, "P"]) -> Direction:
    """A step along the gradient, for models of unknown curvature: of a length from that of the parameters downwards."""
    size = float(flat(parameters, parameters).norm())
    norm = float(gradient.norm())
    return Direction(gradient * (size / norm if norm else 0.0), GRADIENT_LENGTHS, "gradient")


def best_step(
    reading: Reading,
    x: Tensor,
    parameters: Sequence[nn.Parameter],
    direction: Direction,
    *,
    beta: float,
    seeds: tuple[int, int],
) -> StepCheck:
    """The best of a few lengths of the step, and what it brings on other draws.

    Args:
        reading: how the model is run.
        x: points to measure on.
        parameters: that move, for as long as it takes.
        direction: of the step.
        beta: weight of the KL term.
        seeds: of the draws that the length is chosen by, and of those that the gain is measured by.
    """
    gains = _gains(reading, x, parameters, [direction.vector * length for length in direction.lengths], beta, seeds[0])
    best = max(range(len(gains)), key=lambda i: gains[i][0])
    if gains[best][0] <= 0:
        return StepCheck(gain=0.0, gain_error=0.0, length=0.0, kind=direction.kind)
    length = direction.lengths[best]
    [(gain, error)] = _gains(reading, x, parameters, [direction.vector * length], beta, seeds[1])
    return StepCheck(gain=gain, gain_error=error, length=length, kind=direction.kind)


def _gains(
    reading: Reading,
    x: Tensor,
    parameters: Sequence[nn.Parameter],
    steps: Sequence[Tensor],
    beta: float,
    seed: int,
) -> list[tuple[float, float]]:
    """What each step brings, nats per data point, and its standard error, from common draws before and after."""
    expectation = MonteCarlo(NUM_SAMPLES, seed)

    def objective() -> Tensor:
        how = {"batch_size": reading.batch_size, "mode": reading.mode, "pointwise": True}
        pointwise = evaluate(reading.model, x, expectation=expectation, **how).pointwise
        assert pointwise is not None
        return pointwise["reconstruction"] - beta * pointwise["kl"]

    before, gains = objective(), []
    for step in steps:
        try:
            with _moved(parameters, step):
                risen = objective() - before
        except (ModelError, ValueError):  # not a number; distributions that check their arguments say so themselves
            risen = torch.full_like(before, -math.inf)
        finite = bool(torch.isfinite(risen).all())
        gains.append((float(risen.mean()), float(risen.std() / len(risen) ** 0.5)) if finite else NO_GAIN)
    return gains


@contextmanager
def _moved(parameters: Sequence[nn.Parameter], step: Tensor) -> Iterator[None]:
    """Parameters moved by a step (P,) for a while, then as they were, bit for bit."""
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter, shift in zip(parameters, split(step, parameters), strict=True):
                parameter.add_(shift)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
