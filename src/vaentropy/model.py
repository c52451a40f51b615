"""The one model interface, and models made of other models or of plain functions."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributions import Distribution, Normal

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance, require_variance
from vaentropy.distributions import DiagonalNormal, as_batch, diagonal_parameters
from vaentropy.errors import ModelError, UsageError

__all__ = ["LatentVariableModel", "Rescaled", "from_functions", "placement", "standard_prior"]


@runtime_checkable
class LatentVariableModel(Protocol):
    """Anything with these three methods can be evaluated, calibrated and diagnosed.

    None of them sees a sample axis: an expectation over z is a loop over calls of `likelihood`.
    """

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x) for x (B, *data_shape): batch_shape (B,), event_shape latent_shape."""
        ...

    def prior(self) -> Distribution:
        """p(z): event_shape latent_shape."""
        ...

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z) for z (B, *latent_shape): batch_shape (B,), event_shape data_shape."""
        ...


def placement(model: object) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and floating dtype of a model's first floating parameter; None, None where it has none."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return None, None


def standard_prior() -> Distribution:
    """N(0, 1) for latents of any shape: `evaluate` expands it to the posterior's."""
    return Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), validate_args=False)


class _FunctionModel(nn.Module):
    # A Module, so that encoders and decoders that are modules themselves are found by .to(), .eval() and parameters().
    def __init__(
        self,
        encode: Callable[[Tensor], Distribution | tuple[Tensor, Tensor]],
        decode: Callable[[Tensor], Distribution | Tensor],
        prior: Distribution | None,
        variance: float | Tensor | None,
        modules: Sequence[nn.Module],
    ):
        super().__init__()
        self.networks = nn.ModuleList(modules)
        self.encode, self.decode = encode, decode
        self._prior = standard_prior() if prior is None else prior
        self.variance = variance

    def posterior(self, x: Tensor) -> Distribution:
        encoded = self.encode(x)
        if isinstance(encoded, Distribution):
            return encoded
        if not (isinstance(encoded, tuple | list) and len(encoded) == 2):
            raise ModelError(
                f"encode returned {type(encoded).__name__}, expected a Distribution or the pair (mean, log_variance)"
            )
        return DiagonalNormal(*encoded, validate_args=False)

    def prior(self) -> Distribution:
        return self._prior

    def likelihood(self, z: Tensor) -> Distribution:
        decoded = self.decode(z)
        if isinstance(decoded, Distribution):
            return decoded
        if not isinstance(decoded, Tensor):
            raise ModelError(
                f"decode returned {type(decoded).__name__}, expected a torch Distribution, or the mean as a Tensor"
            )
        if self.variance is None:
            raise UsageError("decode returned a mean without a variance: return a Distribution, or pass variance=...")
        variance = torch.as_tensor(self.variance, dtype=_at_least_float32(decoded.dtype), device=decoded.device)
        return DiagonalNormal(decoded, variance.log(), validate_args=False)


def from_functions(
    encode: Callable[[Tensor], Distribution | tuple[Tensor, Tensor]],
    decode: Callable[[Tensor], Distribution | Tensor],
    *,
    prior: Distribution | None = None,
    variance: float | Tensor | None = None,
    modules: Sequence[nn.Module] = (),
) -> LatentVariableModel:
    """A model from two functions (or modules).

    Args:
        encode: x (B, *data_shape) to a Distribution, or to the pair (mean, log_variance), each (B, *latent_shape).
        decode: z (B, *latent_shape) to a Distribution, or to the mean (B, *data_shape).
        prior: p(z); N(0, I) by default.
        variance: σ² where `decode` returns a mean: a number, or a tensor that broadcasts to data_shape. For a loss
            ½‖x - x̂‖² + KL it is 1; for mean squared error over D features plus w · KL it is w·D/2.
        modules: the networks that the functions use, so that `evaluate` puts them into eval mode and data on their
            device; not needed where encode and decode are modules themselves.

    Raises:
        ModelError: at the first call, where a function returns something else.
        UsageError: a variance that is not positive, or none where `decode` returns a mean.
    """
    for name, function in (("encode", encode), ("decode", decode)):
        require_instance(name, function, Callable, "a function or a module")  # type: ignore[arg-type]
    if prior is not None:
        require_instance("prior", prior, Distribution, "a torch Distribution")
    if variance is not None:
        require_variance(variance)
    return _FunctionModel(encode, decode, prior, variance, modules)


def _scaled(distribution: Distribution, factor: Tensor, role: str) -> DiagonalNormal:
    parameters = diagonal_parameters(distribution)
    if parameters is None:
        raise ModelError(f"{role} is {type(distribution).__name__}, expected a normal with independent elements")
    mean, log_variance = parameters
    shifted = log_variance + factor.to(log_variance).log()
    dtype = distribution.mean.dtype
    return DiagonalNormal(
        mean.to(dtype),
        shifted.to(_at_least_float32(dtype)),
        event_dim=len(distribution.event_shape),
        validate_args=False,
    )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    # log σ² in half precision is off by up to 0.4 %.
    return torch.promote_types(dtype, torch.float32)


class Rescaled(nn.Module):
    """A model with its decoder variances and prior variances multiplied by constant factors.

    Args:
        model: any three-method model; it is not copied and not changed.
        variance_factor: on σ²: shape () or data_shape; None leaves the likelihood as it is.
        prior_factor: on α²: latent_shape; None leaves the prior as it is.
    """

    variance_factor: Tensor | None
    prior_factor: Tensor | None

    def __init__(
        self,
        model: LatentVariableModel,
        *,
        variance_factor: Tensor | None = None,
        prior_factor: Tensor | None = None,
    ):
        super().__init__()
        self.model = model
        self.register_buffer("variance_factor", variance_factor)
        self.register_buffer("prior_factor", prior_factor)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of the wrapped model, if it says."""
        return self.model.data_shape  # type: ignore[attr-defined]

    @property
    def condition_width(self) -> int:
        """Of the wrapped model; 0 where it takes no condition."""
        return getattr(self.model, "condition_width", 0)

    def given(self, condition: Tensor) -> "Rescaled":
        """The wrapped model at the conditions of a batch, with the same factors."""
        model = self.model.given(condition)  # type: ignore[attr-defined]
        return Rescaled(model, variance_factor=self.variance_factor, prior_factor=self.prior_factor)

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x) of the wrapped model."""
        return self.model.posterior(x)

    def prior(self) -> Distribution:
        """p(z) with α² times the factor."""
        prior = self.model.prior()
        if self.prior_factor is None:
            return prior
        if not (prior.batch_shape + prior.event_shape):
            prior = prior.expand(self.prior_factor.shape)
        scaled = _scaled(prior, self.prior_factor, "prior()")
        return DiagonalNormal(scaled.mean, scaled.log_variance, event_dim=self.prior_factor.ndim, validate_args=False)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z) with σ² times the factor."""
        likelihood = self.model.likelihood(z)
        if self.variance_factor is None:
            return likelihood
        return _scaled(as_batch(likelihood, len(z), "likelihood(z)"), self.variance_factor, "likelihood(z)")
