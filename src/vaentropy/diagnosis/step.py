"""One step uphill, and what it brings: how far from stationary a model is, in nats.

A gradient's norm means little by itself, since it depends on how the parameters are scaled. The Gauss-Newton step uses
the geometry of the model's distributions instead, and the ELBO that it reaches is then measured.
"""

from collections.abc import Sequence

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.diagnosis.linearisation import Linearisation, conjugate_gradients
from vaentropy.diagnosis.outputs import Outputs, roots_of_fisher

__all__ = ["uphill"]

# More follow curvature that a few hundred points and draws do not know.
ITERATIONS = 20


def uphill(
    outputs: Outputs, parameters: Sequence[Tensor], gradient: Float[Tensor, "P"], *, beta: float
) -> Float[Tensor, "P"]:
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
    return conjugate_gradients(lambda v: linear.transpose(linear.forward(v)), gradient, iterations=ITERATIONS)
