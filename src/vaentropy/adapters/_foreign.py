"""What the adapters share: recognising the classes of a library without importing it, and the normal VAE's parts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from vaentropy._typing import Tensor
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import ModelError, UnsupportedError
from vaentropy.model import standard_prior

__all__ = ["NormalPair", "is_of", "module_of", "networks_of", "normal_around", "refuse_named", "unwrapped"]

REMEDY = "say what it is with vaentropy.from_functions(encode, decode)"


def is_of(cls: type, package: str) -> bool:
    """Whether `cls` itself, not only a base class of it, is defined in `package`."""
    return cls.__module__.partition(".")[0] == package


def unwrapped(model: object) -> object:
    """The module that a model wraps for several devices, or the model itself."""
    return model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model


def _otherwise(given: object, expected: str) -> ModelError:
    return ModelError(
        f"{type(given).__name__} given, expected {expected}; "
        "for any other model use vaentropy.from_functions(encode, decode)"
    )


def module_of(model: object, package: str, expected: str) -> nn.Module:
    """The module of `package` that `model` is, or that it wraps for several devices.

    Raises:
        ModelError: it is something else.
    """
    inner = unwrapped(model)
    # A class of the user's own may bear the same name as the library's: the package decides.
    if not isinstance(inner, nn.Module) or not any(is_of(cls, package) for cls in type(inner).__mro__):
        raise _otherwise(inner, expected)
    return inner


def networks_of(model: object, expected: str) -> nn.Module:
    """The module with `encode` and `decode` that `model` is, or that it wraps for several devices.

    Raises:
        ModelError: it is something else.
    """
    inner = unwrapped(model)
    if not isinstance(inner, nn.Module) or not all(callable(getattr(inner, n, None)) for n in ("encode", "decode")):
        raise _otherwise(inner, expected)
    return inner


def refuse_named(model: object, reasons: Mapping[str, str], expected: str) -> None:
    """Refuse a model whose class, or a base class of it, has one of the names.

    Raises:
        UnsupportedError: with the reason of that name.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in reasons:
            raise UnsupportedError(
                f"{type(model).__name__} given: {reasons[cls.__name__]}; expected {expected}; {REMEDY}"
            )


def normal_around(mean: Tensor, variance: float | int | Tensor) -> DiagonalNormal:
    """N(mean, σ²) for a mean (B, *data_shape) of a decoder and a σ² that broadcasts to data_shape."""
    # In half precision log σ² would be off by up to 0.4 %.
    dtype = torch.promote_types(mean.dtype, torch.float32)
    return DiagonalNormal(mean, torch.as_tensor(variance, dtype=dtype, device=mean.device).log(), validate_args=False)


class NormalPair(nn.Module):
    """A VAE whose `encode` gives mean and log-variance and whose `decode` gives the mean of x; the prior is N(0, I).

    Args:
        vae: the module; it is neither copied nor changed.
    """

    vae: Any

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x) from the pair that `encode` returns.

        Raises:
            UnsupportedError: `encode` returned something else.
            ModelError: the two differ in shape.
        """
        encoded, name = self.vae.encode(x), type(self.vae).__name__
        expected = "expected the mean and log-variance of a normal posterior"
        if isinstance(encoded, Tensor):
            raise UnsupportedError(f"encode of {name} returned one Tensor, {expected}; a point has no ELBO")
        if (
            not isinstance(encoded, list | tuple)
            or len(encoded) != 2
            or not all(isinstance(t, Tensor) for t in encoded)
        ):
            entries = f" of {len(encoded)} entries" if isinstance(encoded, list | tuple) else ""
            raise UnsupportedError(f"encode of {name} returned {type(encoded).__name__}{entries}, {expected}; {REMEDY}")
        mean, log_variance = encoded
        if mean.shape != log_variance.shape:
            shapes = f"{tuple(mean.shape)} and {tuple(log_variance.shape)}"
            raise ModelError(f"encode of {name} returned mean and log-variance of shapes {shapes}, expected the same")
        return DiagonalNormal(mean, log_variance, validate_args=False)

    def prior(self) -> Distribution:
        """N(0, I); `evaluate` expands it to the shape of the latents."""
        return standard_prior()

    def mean(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), from `decode`.

        Raises:
            UnsupportedError: `decode` returned something else than a tensor.
        """
        decoded = self.vae.decode(z)
        if not isinstance(decoded, Tensor):
            raise UnsupportedError(
                f"decode of {type(self.vae).__name__} returned {type(decoded).__name__}, expected the mean of x as a "
                f"Tensor; {REMEDY}"
            )
        return decoded
