"""Models of pythae (https://github.com/clementchadebec/benchmark_VAE), read from its sources, version 0.1.2."""

from math import prod
from typing import Any

import torch
from torch import nn
from torch.distributions import Bernoulli, Distribution, Independent

from vaentropy._typing import Tensor
from vaentropy.adapters._foreign import is_of, module_of
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import ModelError, UnsupportedError
from vaentropy.model import LatentVariableModel, placement

__all__ = ["from_pythae"]

# A normal posterior from the encoder, the prior N(0, I), the likelihood of `reconstruction_loss`. They differ in what
# training maximises (β, total correlation, MMD, importance weights), not in what the model is.
EVALUABLE = frozenset(
    {
        "VAE",
        "BetaVAE",
        "BetaTCVAE",
        "DisentangledBetaVAE",
        "FactorVAE",
        "INFOVAE_MMD",
        "IWAE",
        "CIWAE",
        "MIWAE",
        "PIWAE",
    }
)

_POINT = "its encoder gives a point, not a distribution, so that it has no ELBO"
_FLOW = "its posterior is the encoder's normal distribution sent through a normalizing flow"
_DYNAMICS = "its z is the encoder's draw moved by Hamiltonian steps, so that q(z|x) is not the encoder's distribution"
REFUSED = {
    "AE": _POINT,
    "RAE_GP": _POINT,
    "RAE_L2": _POINT,
    "WAE_MMD": _POINT,
    "VQVAE": "its latents are entries of a codebook",
    "Adversarial_AE": "its posteriors are held to the prior only all together, by a discriminator: no KL is trained",
    "VAEGAN": "its reconstruction error is one of a discriminator's features, not the log-likelihood of data",
    "MSSSIM_VAE": "its reconstruction error is a structural similarity, not a log-likelihood",
    "VAMP": "its prior is a mixture of posteriors at learned inputs, not N(0, I)",
    "SVAE": "its latents lie on a sphere: its posterior is von Mises-Fisher",
    "PoincareVAE": "its latents lie in a hyperbolic space",
    "VAE_IAF": _FLOW,
    "VAE_LinNF": _FLOW,
    "HVAE": _DYNAMICS,
    "RHVAE": _DYNAMICS,
}


def _check_class(model: nn.Module) -> None:
    """Judge by the class nearest to the model that is known, unless one nearer still has a `forward` of its own."""
    name = type(model).__name__
    for cls in type(model).__mro__:
        known = cls.__name__ if is_of(cls, "pythae") else None
        if known in EVALUABLE:
            return
        if known in REFUSED:
            raise UnsupportedError(f"pythae {name} given: {REFUSED[known]}; expected one of {sorted(EVALUABLE)}")
        if "forward" in vars(cls):
            raise UnsupportedError(
                f"pythae {name} given: {cls.__name__}.forward may be another model than the encoder and decoder make; "
                "say what it is with vaentropy.from_functions(encode, decode)"
            )


def _fields(output: object) -> str:
    return f"the fields {', '.join(map(str, output))}" if isinstance(output, dict) else type(output).__name__


class _PythaeModel(nn.Module):
    model: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def posterior(self, x: Tensor) -> Distribution:
        encoded = self.model.encoder(x)
        mean, log_variance = (getattr(encoded, name, None) for name in ("embedding", "log_covariance"))
        if not isinstance(mean, Tensor) or not isinstance(log_variance, Tensor):
            raise ModelError(
                f"encoder {type(self.model.encoder).__name__} returned {_fields(encoded)}, expected the fields "
                "embedding and log_covariance, each (B, latent_dim)"
            )
        return DiagonalNormal(mean, log_variance, validate_args=False)

    def prior(self) -> Distribution:
        device, dtype = placement(self.model)
        zeros = torch.zeros(self.model.model_config.latent_dim, device=device, dtype=dtype)
        return DiagonalNormal(zeros, zeros, event_dim=1, validate_args=False)

    def likelihood(self, z: Tensor) -> Distribution:
        decoded = self.model.decoder(z)["reconstruction"]
        # pythae compares flattened arrays, so that a decoder of the user's may give the features in any shape.
        data_shape = self.model.model_config.input_dim
        if data_shape is not None and decoded[0].numel() == prod(data_shape):
            decoded = decoded.reshape(len(z), *data_shape)
        if self.model.model_config.reconstruction_loss == "mse":
            return DiagonalNormal(decoded, decoded.new_zeros(()), validate_args=False)
        if not bool(((decoded >= 0) & (decoded <= 1)).all()):
            raise ModelError(
                f"the decoder returned values from {decoded.min():.3g} to {decoded.max():.3g}, expected probabilities, "
                'as reconstruction_loss="bce" says; end the decoder with a sigmoid'
            )
        return Independent(Bernoulli(probs=decoded, validate_args=False), decoded.ndim - 1, validate_args=False)


def from_pythae(model: object) -> LatentVariableModel:
    """A pythae model, evaluated as the plain VAE that its encoder, its decoder and the prior N(0, I) make.

    Data are (N, *input_dim), latents (latent_dim,). `reconstruction_loss="mse"` means p(x|z) = N(μ(z), I), "bce" one
    Bernoulli distribution per feature, so that only data in {0, 1} have a probability. The ELBO of a plain VAE is then
    minus pythae's loss, less D/2 log 2π for "mse". The other classes were trained on another objective than this ELBO,
    with other weights or with importance samples. As σ² = 1 is fixed, the theorem asks for `calibrate` first.

    A sigmoid in single precision reaches exactly 1; a feature that is 0 there costs infinitely many nats, where pythae
    stops at 100. Evaluate `model.double()` then.

    The model is neither copied nor changed, and follows its own `.to()`; DistributedDataParallel is unwrapped.

    Args:
        model: VAE, BetaVAE, BetaTCVAE, DisentangledBetaVAE, FactorVAE, INFOVAE_MMD, IWAE, CIWAE, MIWAE, PIWAE, or a
            class derived from one of them that does not override `forward`.

    Raises:
        ModelError: not a pythae model; at the first call, where encoder or decoder returned something else.
        UnsupportedError: another class of pythae, with the reason why it is not such a VAE.
    """
    inner = module_of(model, "pythae", "a model of pythae.models")
    _check_class(inner)
    return _PythaeModel(inner)
