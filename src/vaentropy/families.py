"""The paper's models: `vae0` to `vae3`, each a `VAE` of one likelihood and one prior."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import nn

from vaentropy.checks import require_count, require_counts
from vaentropy.errors import UsageError, shown
from vaentropy.likelihoods import Gaussian
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.priors import LearnedNormal
from vaentropy.vae import VAE

__all__ = ["FAMILIES", "vae0", "vae1", "vae2", "vae3"]

Networks = tuple[nn.Module, nn.Module]


def _family(
    data_shape: int | tuple[int, ...], latent_dim: int, hidden: Sequence[int], networks: Networks | None, **options
) -> VAE:
    require_count("latent_dim", latent_dim)
    if networks is None:
        hidden = require_counts("hidden", hidden)
        networks = MLPEncoder(data_shape, hidden), MLPDecoder(hidden[::-1])
    elif not isinstance(networks, tuple | list) or len(networks) != 2:
        raise UsageError(f"networks={shown(networks)} given, expected the pair (encoder, decoder)")
    encoder, decoder = networks
    return VAE(encoder, decoder, data_shape=data_shape, latent_dim=latent_dim, **options)


def vae0(
    data_shape: int | tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int] = (50, 50),
    *,
    networks: Networks | None = None,
    variance: float = 1.0,
    condition: int | None = None,
) -> VAE:
    """VAE-0: σ² fixed. Not covered by the theorem: ELBO and entropy sum differ however well it is trained.

    Args:
        data_shape: of one data point.
        latent_dim: H.
        hidden: widths of the MLP encoder's layers; the decoder's are these in reverse.
        networks: an encoder and a decoder, as for `VAE`, in place of MLPs.
        variance: σ².
        condition: width of a condition, see `VAE`; None without one.
    """
    likelihood = Gaussian(variance=variance)
    return _family(data_shape, latent_dim, hidden, networks, likelihood=likelihood, condition=condition)


def vae1(
    data_shape: int | tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int] = (50, 50),
    *,
    networks: Networks | None = None,
    condition: int | None = None,
) -> VAE:
    """VAE-1: one learned σ², standard normal prior. Arguments are those of `vae0`."""
    likelihood = Gaussian(variance="shared")
    return _family(data_shape, latent_dim, hidden, networks, likelihood=likelihood, condition=condition)


def vae2(
    data_shape: int | tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int] = (50, 50),
    *,
    networks: Networks | None = None,
    columns: Literal["unit", "penalty"] = "unit",
    condition: int | None = None,
) -> VAE:
    """VAE-2: one learned σ², learned prior variances α², unit-norm columns in the decoder's first layer.

    Arguments are those of `vae0`, and how the columns get norm 1, see `VAE`.
    """
    options = {"likelihood": Gaussian(variance="shared"), "prior": LearnedNormal(), "columns": columns}
    return _family(data_shape, latent_dim, hidden, networks, condition=condition, **options)


def vae3(
    data_shape: int | tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int] = (50, 50),
    *,
    networks: Networks | None = None,
    condition: int | None = None,
) -> VAE:
    """VAE-3: σ_d²(z) by an affine log-variance head, standard normal prior. Arguments are those of `vae0`."""
    likelihood = Gaussian(variance="function")
    return _family(data_shape, latent_dim, hidden, networks, likelihood=likelihood, condition=condition)


# By name: nothing that names one, such as a file, decides which code runs.
FAMILIES: Mapping[str, Callable[..., VAE]] = {"vae0": vae0, "vae1": vae1, "vae2": vae2, "vae3": vae3}
