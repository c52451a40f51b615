"""What a model answers for a batch, checked: posterior, prior and likelihood."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from vaentropy._typing import Tensor
from vaentropy.distributions import DiagonalNormal, as_batch, as_prior, diagonal_parameters
from vaentropy.errors import DataError, ModelError
from vaentropy.model import LatentVariableModel

__all__ = ["Latents", "latents_of", "likelihood_at"]


def _on_device(p: Distribution, device: torch.device) -> Distribution:
    """A normal prior on `device`: one made of plain numbers knows nothing of the model's."""
    parameters = diagonal_parameters(p)
    # On mps, which has no float64, all float64 terms live on the CPU.
    if parameters is None or parameters[0].device == device or device.type == "mps":
        return p
    mean, log_variance = (parameter.to(device) for parameter in parameters)
    return DiagonalNormal(mean, log_variance, event_dim=len(p.event_shape), validate_args=False)


def _drawer(q: Distribution) -> Callable[[Tensor], Tensor] | None:
    """z as a function of standard normal noise (B or 1, *latent), for a normal posterior; else None."""
    while isinstance(q, Independent):
        q = q.base_dist
    if isinstance(q, DiagonalNormal):
        return q.transform
    if isinstance(q, Normal):
        return lambda noise: q.loc + q.scale * noise
    if isinstance(q, MultivariateNormal | LowRankMultivariateNormal):
        cholesky = q.scale_tril
        return lambda noise: q.loc + (cholesky @ noise.unsqueeze(-1)).squeeze(-1)
    return None


@dataclass(frozen=True)
class Latents:
    """Posterior and prior of a batch.

    Attributes:
        posterior: q(z|x), batch_shape (B,), event_shape latent_shape.
        prior: p(z), batch_shape () or (B,), event_shape latent_shape.
        draw: z (B, *latent) from standard normal noise (B or 1, *latent), for a normal posterior; else None.
        dtype: of the noise.
    """

    posterior: Distribution
    prior: Distribution
    draw: Callable[[Tensor], Tensor] | None
    dtype: torch.dtype

    def at(self, noise: Tensor) -> Tensor:
        """z (B, *latent) for noise; a draw from the global generator where noise cannot become one."""
        return self.posterior.sample() if self.draw is None else self.draw(noise)


def latents_of(model: LatentVariableModel, x: Tensor) -> Latents:
    """What the model says of the latents of x (B, *data_shape).

    Raises:
        ModelError: a method returned something of another shape.
        DataError: the model takes no integers.
    """
    try:
        q = as_batch(model.posterior(x), len(x), "posterior(x)")
    except RuntimeError as error:
        if x.is_floating_point() or "dtype" not in str(error):
            raise
        raise DataError(f"the model failed on data of dtype {x.dtype}; convert them as for its training") from error
    p = _on_device(as_prior(model.prior(), len(x), q.event_shape), x.device)
    draw = _drawer(q)
    return Latents(q, p, draw, torch.get_default_dtype() if draw is None else q.mean.dtype)


def likelihood_at(model: LatentVariableModel, z: Tensor, x: Tensor) -> Distribution:
    """p(x|z) of a batch, batch_shape (B,).

    Raises:
        ModelError: it is something else than a distribution of data of the shape of x (B, *data_shape).
    """
    px = as_batch(model.likelihood(z), len(x), "likelihood(z)")
    if px.batch_shape + px.event_shape != x.shape:
        given = tuple(px.batch_shape[1:] + px.event_shape)
        raise ModelError(f"likelihood(z) describes data of shape {given}, expected {tuple(x.shape[1:])} as x has")
    return px
