"""Models in the style of PyTorch-VAE (https://github.com/AntixK/PyTorch-VAE), read from its sources, a6896b9."""

from torch import nn
from torch.distributions import Distribution

from vaentropy._typing import Tensor
from vaentropy.adapters._foreign import NormalPair, networks_of, normal_around, refuse_named
from vaentropy.checks import require_number, require_variance
from vaentropy.diagnosis.implied import implied_variance
from vaentropy.errors import UsageError
from vaentropy.model import LatentVariableModel

__all__ = ["from_pytorch_vae"]

EXPECTED = "a VAE whose encode(x) returns [mean, log_variance] and whose decode(z) returns the mean of x"

_POINT = "its encoder gives a point, not a distribution, so that it has no ELBO"
_STACK = "its latents are a hierarchy, and each level's posterior or prior depends on another level's draw"
_DRAWS = "its decode takes latents with an axis of draws beside the batch"
# Some of them have an `encode` that returns a pair all the same: only the name tells.
REFUSED = {
    "HVAE": _STACK,
    "LVAE": _STACK,
    "JointVAE": "its latents are partly categorical, by a relaxation that has a temperature",
    "CategoricalVAE": "its latents are categorical, by a relaxation that has a temperature",
    "GammaVAE": "its posterior is a gamma distribution, and its encode returns the parameters of that",
    "VampVAE": "its prior is a mixture of posteriors at learned inputs, not N(0, I)",
    "VQVAE": "its latents are entries of a codebook",
    "WAE_MMD": _POINT,
    "SWAE": _POINT,
    "ConditionalVAE": "its encoder and decoder need the labels as well, which `bind` of evaluate can give",
    "IWAE": f"{_DRAWS}: decode=lambda z: model.decode(z[:, None])[:, 0]",
    "MIWAE": f"{_DRAWS}: decode=lambda z: model.decode(z[:, None, None])[:, 0, 0]",
    "LogCoshVAE": "its reconstruction error is log cosh, so that its likelihood is not normal",
    "MSSIMVAE": "its reconstruction error is a structural similarity, not a log-likelihood",
    "DFCVAE": "its reconstruction error is in part one of another network's features, not the log-likelihood of data",
}
# Whose loss is something else than mean squared error + kld_weight · KL (+ a penalty): which σ² it stands for.
WEIGHTED_OTHERWISE = {
    "BetaVAE": "for loss_type 'H' σ² is D · beta · kld_weight / 2, for 'B' there is none",
    "InfoVAE": "σ² is D · (1 - alpha) · kld_weight / (2 · beta)",
    "DIPVAE": "its squared error is summed, so that σ² is kld_weight / 2",
    "BetaTCVAE": "its squared error is summed, and the parts of its KL have weights; where these are 1, σ² is 0.5",
}


class _PyTorchVAEModel(NormalPair):
    def __init__(self, vae: nn.Module, variance: float | int | Tensor | None, kld_weight: float | int | None):
        super().__init__(vae)
        self.variance, self.kld_weight = variance, kld_weight

    def likelihood(self, z: Tensor) -> Distribution:
        mean, variance = self.mean(z), self.variance
        if variance is None:
            assert self.kld_weight is not None
            variance = implied_variance(float(self.kld_weight), data_shape=tuple(mean.shape[1:]))
        return normal_around(mean, variance)


def _require_one(model: nn.Module, variance: object, kld_weight: object) -> None:
    if (variance is None) == (kld_weight is None):
        given = "neither variance nor kld_weight" if variance is None else "both variance and kld_weight"
        raise UsageError(
            f"{given} given, expected one: σ², or the weight of the KL beside the mean squared error that the "
            "training was given"
        )
    if variance is not None:
        require_variance(variance)
        return
    require_number("kld_weight", kld_weight)
    for cls in type(model).__mro__:
        if cls.__name__ in WEIGHTED_OTHERWISE:
            raise UsageError(
                f"kld_weight given for {type(model).__name__}, whose loss weighs otherwise; give variance=...: "
                f"{WEIGHTED_OTHERWISE[cls.__name__]}"
            )


def from_pytorch_vae(
    model: object,
    *,
    variance: float | int | Tensor | None = None,
    kld_weight: float | int | None = None,
) -> LatentVariableModel:
    """A VAE in the style of PyTorch-VAE: `encode(x)` is [mean, log_variance], `decode(z)` the mean of x.

    The prior is N(0, I). Data are (N, *data_shape) as `encode` takes them. A loss of mean squared error over D features
    + kld_weight · KL is, up to scale and a constant, -ELBO with σ² = D · kld_weight / 2; that is where σ² comes from.
    PyTorch-VAE's own validation step weighs the KL by 1, whatever its training did: give the weight of the training.
    Penalties that were added to the loss (total correlation, MMD, disentanglement) are no part of the ELBO.

    The module is neither copied nor changed, and follows its own `.to()`; DistributedDataParallel is unwrapped. What
    `forward` and `loss_function` do is not looked at.

    Args:
        model: any module with such `encode` and `decode` (of a VAEXperiment, its .model).
        variance: σ², in squared units of the data: a number, or a tensor that broadcasts to data_shape.
        kld_weight: the weight of the KL, summed over latents, beside the squared error, averaged over features.

    Raises:
        ModelError: no module with encode and decode.
        UsageError: neither or both of variance and kld_weight, one that is not positive, or a class whose loss is
            weighed otherwise, with the σ² that it stands for.
        UnsupportedError: a class of PyTorch-VAE that is no such VAE, with the reason; at the first call, where `encode`
            or `decode` returned something else.
    """
    inner = networks_of(model, EXPECTED)
    refuse_named(inner, REFUSED, EXPECTED)
    _require_one(inner, variance, kld_weight)
    return _PyTorchVAEModel(inner, variance, kld_weight)
