"""The σ² that a loss implies which has none."""

import math
from typing import Literal

from vaentropy.checks import require_number
from vaentropy.errors import UsageError, shown
from vaentropy.networks import as_shape

__all__ = ["implied_variance"]

Reduction = Literal["mean", "sum"]


def implied_variance(
    kl_weight: float,
    *,
    data_shape: int | tuple[int, ...],
    latent_shape: int | tuple[int, ...] | None = None,
    squared_error: Reduction = "mean",
    kl: Reduction = "sum",
) -> float:
    """σ² of the Gaussian VAE whose negative ELBO is, up to scale and a constant, squared error + weight · KL.

    (‖x - x̂‖²/D + w KL) · D/(2σ²) is -ELBO for σ² = w D/2, and likewise for the other ways to average over features and
    latents; over data points both are averaged, or both summed.

    Args:
        kl_weight: w.
        data_shape: of one data point.
        latent_shape: of one latent; needed for `kl="mean"`.
        squared_error: whether it is averaged or summed over the features of a data point.
        kl: whether it is averaged or summed over the latents.

    Raises:
        UsageError: an argument has a wrong value.
    """
    require_number("kl_weight", kl_weight)
    for name, value in (("squared_error", squared_error), ("kl", kl)):
        if value not in ("mean", "sum"):
            raise UsageError(f"{name}={shown(value)} given, expected 'mean' or 'sum'")
    num_features = math.prod(as_shape(data_shape))
    variance = kl_weight / 2 * (num_features if squared_error == "mean" else 1)
    if kl == "sum":
        return variance
    if latent_shape is None:
        raise UsageError("kl='mean' given without latent_shape, expected the shape of one latent")
    return variance / math.prod(as_shape(latent_shape))
