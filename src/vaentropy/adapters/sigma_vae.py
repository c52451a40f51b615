"""Models of sigma-vae (https://github.com/orybkin/sigma-vae-pytorch), read from its sources, 4748a3a."""

import torch
from torch import nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vaentropy._typing import Tensor
from vaentropy.adapters._foreign import NormalPair, networks_of, normal_around
from vaentropy.checks import require_variance
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import ModelError, UnsupportedError, UsageError, shown
from vaentropy.model import LatentVariableModel

__all__ = ["from_sigma_vae"]

# The loss keeps log σ above this, by log σ -> s + softplus(log σ - s): σ is never quite exp(log_sigma).
LEAST = -6.0
LEARNED, CONSTANT, OF_BATCH, AVERAGED = "sigma_vae", "gaussian_vae", "optimal_sigma_vae", "mse_vae"

EXPECTED = "a model of sigma-vae: encode(x), decode(z), and log_sigma, the logarithm of the standard deviation"


class _SigmaVAEModel(NormalPair):
    def __init__(self, vae: nn.Module, kind: str, variance: float | int | Tensor | None):
        super().__init__(vae)
        self.kind, self.variance = kind, variance

    def likelihood(self, z: Tensor) -> Distribution:
        mean = self.mean(z)
        if self.variance is not None:
            return normal_around(mean, self.variance)
        given = 0.0 if self.kind == CONSTANT else self.vae.log_sigma
        dtype = torch.promote_types(mean.dtype, torch.float32)
        log_sigma = torch.as_tensor(given, dtype=dtype, device=mean.device)
        log_variance = 2 * (LEAST + F.softplus(log_sigma - LEAST))
        return DiagonalNormal(mean, log_variance, validate_args=False)


def _kind_of(vae: nn.Module) -> str:
    """How its loss comes by σ; a class whose `model` says nothing of it learns it."""
    kind = getattr(vae, "model", LEARNED)
    if not isinstance(kind, str):
        return LEARNED
    if kind not in (LEARNED, CONSTANT, OF_BATCH, AVERAGED):
        known = f"'{LEARNED}', '{CONSTANT}', '{OF_BATCH}' or '{AVERAGED}'"
        raise UnsupportedError(f"{type(vae).__name__} with model={shown(kind)} given, expected {known}")
    return kind


def _require_log_sigma(vae: nn.Module, kind: str) -> None:
    log_sigma = getattr(vae, "log_sigma", None)
    if kind == AVERAGED:
        raise UsageError(
            f"a model of kind '{AVERAGED}' given, whose loss averages over pixels and batch, so that σ² is half the "
            "number of values in a training batch; give variance=..., that or another, or 1.0 and calibrate"
        )
    if kind == CONSTANT:
        return
    if not isinstance(log_sigma, Tensor | float | int):
        raise ModelError(f"{type(vae).__name__} given, whose log_sigma is {shown(log_sigma)}; expected {EXPECTED}")
    # A plain number is no part of a state dict.
    if kind == OF_BATCH and not isinstance(log_sigma, Tensor) and log_sigma == 0:
        raise UsageError(
            f"a model of kind '{OF_BATCH}' given whose log_sigma is still 0, as after loading its weights; give "
            "variance=..., or 1.0 and calibrate"
        )


def from_sigma_vae(model: object, *, variance: float | int | Tensor | None = None) -> LatentVariableModel:
    """A σ-VAE, with the σ that its loss uses: log_sigma is that of the standard deviation, kept above -6 the soft way.

    The prior is N(0, I). The ELBO is minus the sum of the two losses, per data point, for `model.model` "sigma_vae",
    where log_sigma is learned and followed while it is, and for "gaussian_vae", where it is 0. In "optimal_sigma_vae" σ
    is that of each batch, which is no model of a data point: taken is the one of the last batch that the loss has seen,
    which a state dict does not hold. With `variance` any kind is evaluated with that σ² instead, with 1.0 and
    `calibrate` at the best shared one.

    The module is neither copied nor changed, and follows its own `.to()`; DistributedDataParallel is unwrapped.

    Args:
        model: `encode(x)` is the pair of mean and log-variance, `decode(z)` the mean of x; without a text `model` it
            counts as "sigma_vae".
        variance: σ², in squared units of the data, instead of the model's own: a number, or a tensor that broadcasts to
            data_shape.

    Raises:
        ModelError: no module with encode and decode, or none with a log σ.
        UsageError: no `variance` for a kind without a σ ("mse_vae", or "optimal_sigma_vae" before its loss has seen a
            batch), or one that is not positive.
        UnsupportedError: another kind; at the first call, where `encode` or `decode` returned something else.
    """
    inner = networks_of(model, EXPECTED)
    kind = _kind_of(inner)
    if variance is None:
        _require_log_sigma(inner, kind)
    else:
        require_variance(variance)
    return _SigmaVAEModel(inner, kind, variance)
