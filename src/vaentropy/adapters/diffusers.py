"""Autoencoders of diffusers (https://github.com/huggingface/diffusers), read from its sources, version 0.42."""

from typing import Any

from torch import nn
from torch.distributions import Distribution

from vaentropy._typing import Tensor
from vaentropy.adapters._foreign import is_of, module_of, normal_around
from vaentropy.checks import require_variance
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import ModelError, UnsupportedError
from vaentropy.model import LatentVariableModel, standard_prior

__all__ = ["from_diffusers"]

_POINT = "its encoder gives a point, not a distribution, so that it has no ELBO"
# Whatever is not named here shows at the first call whether it has a posterior.
REFUSED = {
    "AutoencoderDC": _POINT,
    "AutoencoderRAE": _POINT,
    "AutoencoderSAME": _POINT,
    "AutoencoderTiny": _POINT,
    "AutoencoderKLCosmos": _POINT,
    "VQModel": "its latents are entries of a codebook",
    "LongCatAudioDiTVae": "its encoder gives a draw, not the distribution it was drawn from",
    "ConsistencyDecoderVAE": "its decoder draws x by diffusion, so that the mean of p(x|z) is not known",
    "AutoencoderKLTemporalDecoder": "its decoder mixes the rows of a batch, which are the frames of videos",
    "MMAudioVAE": "it encodes sound and decodes spectrograms, so that p(x|z) is not one of its data",
    "RFD4ProteinaAutoencoder": "it needs more than x to encode and more than z to decode",
}


class _DiffusersModel(nn.Module):
    vae: Any

    def __init__(self, vae: nn.Module, variance: float | Tensor):
        super().__init__()
        self.vae = vae
        self.variance = variance

    def posterior(self, x: Tensor) -> Distribution:
        encoded = self.vae.encode(x)
        posterior = getattr(encoded, "latent_dist", encoded)
        mean, log_variance = (getattr(posterior, name, None) for name in ("mean", "logvar"))
        if not isinstance(mean, Tensor) or not isinstance(log_variance, Tensor):
            raise UnsupportedError(
                f"encode of {type(self.vae).__name__} gave {type(posterior).__name__}, expected a normal distribution "
                "with mean and logvar; an autoencoder without one has no ELBO"
            )
        return DiagonalNormal(mean, log_variance, validate_args=False)

    def prior(self) -> Distribution:
        # The size of the latents follows that of the images, so that only `evaluate` knows it.
        return standard_prior()

    def likelihood(self, z: Tensor) -> Distribution:
        decoded = self.vae.decode(z)
        return normal_around(getattr(decoded, "sample", decoded), self.variance)


def from_diffusers(vae: object, *, variance: float | Tensor) -> LatentVariableModel:
    """A KL autoencoder of diffusers with the likelihood N(decode(z), σ²), for images, videos or sound.

    Data are (N, channels, ...) in the units that the autoencoder was trained in, mostly [-1, 1]; latents are what
    `encode` gives, *before* `scaling_factor`, with the prior N(0, I). diffusers clamps log τ² to [-30, 20]. Slicing and
    tiling stay as they are; tiled, it is another function.

    These autoencoders have no σ²: their losses were perceptual, with a tiny weight on the KL. There is no default that
    would be right. Give the one you mean, or 1.0 and let `calibrate` estimate it: then the ELBO is that of the best
    shared σ², and the decoder's part of the gap is 0 by construction, which says nothing about training.

    The module is neither copied nor changed, and follows its own `.to()`; DistributedDataParallel is unwrapped.

    Args:
        vae: AutoencoderKL, or a class like it: `encode(x).latent_dist` is normal, `decode(z)` is the mean of x.
        variance: σ², in squared units of the data: a number, or a tensor that broadcasts to data_shape.

    Raises:
        ModelError: not an autoencoder of diffusers.
        UsageError: a variance that is not a positive number.
        UnsupportedError: an autoencoder without normal posterior or without a decoder mean, with the reason; at the
            first call for classes that vaentropy does not know.
    """
    expected = "an autoencoder of diffusers such as AutoencoderKL (of a pipeline, its .vae)"
    inner = module_of(vae, "diffusers", expected)
    for cls in type(inner).__mro__:
        if is_of(cls, "diffusers") and cls.__name__ in REFUSED:
            raise UnsupportedError(f"{type(inner).__name__} given: {REFUSED[cls.__name__]}; expected {expected}")
    if not callable(getattr(inner, "encode", None)) or not callable(getattr(inner, "decode", None)):
        raise ModelError(f"{type(inner).__name__} given, which does not encode and decode; expected {expected}")
    require_variance(variance)
    return _DiffusersModel(inner, variance)
