"""The moves of parameters that the theorem speaks of, and how near this model's parameters come to making them.

The ELBO equals the entropy sum at a stationary point because two of its directional derivatives vanish there (equations
of docs/mathematics.md): along a factor on σ², and along a factor on the latents that every consumer of z undoes. Each
is a direction d in the space of the model's outputs. A direction v of the parameters makes it if J v = d. What is left,
d - J v, is what the parameters cannot do: there a residual may stay that no training removes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.diagnosis.linearisation import (
    Linearisation,
    ScalesAndShifts,
    column_scales,
    conjugate_gradients,
)
from vaentropy.diagnosis.outputs import Outputs, roots_of_fisher

__all__ = ["Move", "moves_of"]

ITERATIONS = 600
FURTHER_ITERATIONS = 100
# A move this near, relative to its length, counts as one that can be made; the search ends there.
NEAR = 1e-3
# What changes the outputs by less than this, relative to the move, would have to be scaled by a factor beyond reason to
# have a part in it: a normalisation that nothing follows undoes any factor, but for the epsilon in it.
TOO_SMALL = 1e-4
# The search also ends where so many iterations bring it nearer by less than this fraction.
STALLED = 0.01


@dataclass(frozen=True)
class Move:
    """One of the theorem's moves and the nearest that the parameters can do.

    Attributes:
        name: "decoder" or "prior", of the residual that vanishes where the move can be made.
        what: the move in words.
        distance: ‖J v - d‖ / ‖d‖, in the metric of the Kullback-Leibler divergence, 0 to 1.
        where: the output that most of what is left is in.
        curvature: of -ELBO along the move itself, per data point, by the Fisher information; 0 where it is not that.
        direction: v, (P,).
    """

    name: str
    what: str
    distance: float
    where: str
    curvature: float
    direction: Float[Tensor, "P"]


NAMES = {
    "latent_mean": "the posterior mean",
    "latent_log_variance": "the posterior variance",
    "prior_log_variance": "the prior variance",
    "mean": "the decoder's mean",
    "log_variance": "the decoder's variance",
    "logits": "the decoder's logits",
    "log_rate": "the decoder's rates",
}


def moves_of(outputs: Outputs, parameters: Sequence[Tensor]) -> list[Move]:
    """Both moves, as near as the parameters come to them.

    Conjugate gradients begin with what scales rows and columns of weights and shifts biases, where the moves are found
    if the model has them, and go on with all parameters.

    Args:
        outputs: at a few hundred points.
        parameters: that training moves.

    Raises:
        UnsupportedError: the likelihood is of a kind whose moves are not known.
        RuntimeError: the model cannot be differentiated twice.
    """
    z = outputs.z.detach()
    decoder = outputs.likelihood_at(z)
    named = {
        "latent_mean": outputs.mean,
        "latent_log_variance": outputs.log_variance,
        "prior_log_variance": outputs.prior_log_variance,
        **decoder,
    }
    roots = {
        "latent_mean": torch.exp(-0.5 * outputs.log_variance.detach()),
        "latent_log_variance": torch.full_like(outputs.log_variance, 0.5**0.5),
        "prior_log_variance": torch.full_like(outputs.prior_log_variance, (0.5 * len(z)) ** 0.5),
        **roots_of_fisher(decoder),
    }
    linear = Linearisation(_flat(named, roots), parameters)
    targets = {"decoder": _decoder_move(decoder), "prior": _prior_move(outputs, z)}
    return [_nearest(name, what, wanted, named, roots, linear) for name, (what, wanted) in targets.items()]


# Each move is scaled so that the ELBO's derivative along it equals the residual of its name.


def _decoder_move(decoder: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    if "log_variance" in decoder:
        return "multiply σ² by a factor", {"log_variance": -torch.ones_like(decoder["log_variance"])}
    ((name, value),) = decoder.items()
    return f"multiply the {name.replace('_', ' ')} by a factor", {name: value.detach()}


def _prior_move(outputs: Outputs, z: Tensor) -> tuple[str, dict[str, Tensor]]:
    if outputs.prior_log_variance.requires_grad:
        wanted = {"prior_log_variance": -torch.ones_like(outputs.prior_log_variance)}
        return "multiply α² by a factor", wanted
    centred = outputs.mean.detach() - outputs.prior_mean
    wanted = {"latent_mean": 0.5 * centred, "latent_log_variance": torch.ones_like(centred)}
    return "scale the latents and undo it", {**wanted, **_undone(outputs, z)}


def _undone(outputs: Outputs, z: Tensor) -> dict[str, Tensor]:
    """Derivative of the decoder's outputs at z where z is divided by √c, with respect to log c."""
    shrunk = torch.zeros((), dtype=torch.float64, device=z.device, requires_grad=True)
    decoder = outputs.likelihood_at(outputs.prior_mean + (z - outputs.prior_mean) * (1 - 0.5 * shrunk))
    values = torch.cat([value.flatten() for value in decoder.values()])
    if not values.requires_grad:
        return {}
    derivative = Linearisation(values, [shrunk]).forward(torch.ones(1, dtype=torch.float64))
    parts = derivative.split([value.numel() for value in decoder.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(decoder.items(), parts, strict=True)}


def _flat(named: dict[str, Tensor], roots: dict[str, Tensor]) -> Tensor:
    return torch.cat([(value * roots[name]).flatten() for name, value in named.items()])


def _nearest(
    name: str,
    what: str,
    wanted: dict[str, Tensor],
    named: dict[str, Tensor],
    roots: dict[str, Tensor],
    linear: Linearisation,
) -> Move:
    zeros = {key: torch.zeros_like(value) for key, value in named.items()}
    target = _flat({**zeros, **wanted}, roots).detach()
    direction = _least_squares(linear, target)
    left = target - linear.forward(direction)
    shares = dict(
        zip(named, [part.square().sum() for part in left.split([v.numel() for v in named.values()])], strict=True)
    )
    distance = float(left.norm() / target.norm()) if bool(target.any()) else 0.0
    # The decoder's move leaves the latents as they are, so that the metric is the curvature of -ELBO.
    curvature = float(target.square().sum()) / len(named["latent_mean"]) if name == "decoder" else 0.0
    where = NAMES[max(shares, key=lambda key: float(shares[key]))]
    return Move(name, what, distance, where, curvature, direction)


def _least_squares(linear: Linearisation, target: Tensor) -> Tensor:
    """v (P,) with J v as near to the target as scales and shifts bring it, and then any direction."""
    basis = ScalesAndShifts(linear.parameters)

    def transpose(cotangent: Tensor) -> Tensor:
        return basis.contract(linear.transpose(cotangent))

    scales = column_scales(transpose, len(target), target, least=TOO_SMALL * float(target.norm()))

    def forward(coefficients: Tensor) -> Tensor:
        return linear.forward(basis.expand(scales * coefficients))

    # ½ ‖target - J v‖² is ½ ‖target‖² less what the iteration has risen.
    whole, history = 0.5 * float(target.square().sum()), []

    def enough(risen: float) -> bool:
        left = max(0.0, 1 - risen / whole) ** 0.5
        history.append(left)
        return left < NEAR or (len(history) > 10 and left > (1 - STALLED) * history[-10])

    coefficients = conjugate_gradients(
        lambda c: scales * transpose(forward(c)), scales * transpose(target), iterations=ITERATIONS, enough=enough
    )
    direction = basis.expand(scales * coefficients)
    left = target - linear.forward(direction)
    if float(left.norm()) <= 2 * NEAR * float(target.norm()):
        return direction
    # What a move needs of the other parameters, if anything.
    return direction + conjugate_gradients(
        lambda v: linear.transpose(linear.forward(v)), linear.transpose(left), iterations=FURTHER_ITERATIONS
    )
