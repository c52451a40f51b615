"""Optimal variances in closed form, for any model."""

from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.data.given import Data
from vaentropy.errors import UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.model import LatentVariableModel, Rescaled, placement
from vaentropy.results import Evaluation
from vaentropy.vae import VAE
from vaentropy.variances import ratios_of_features

__all__ = ["calibrate", "fold", "optimal_factors"]


def require_usable(factor: Tensor | None, what: str) -> None:
    if factor is not None and not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise UnsupportedError(
            f"the optimal {what} is 0 or not finite: an element is reproduced exactly, so the ELBO has no upper bound; "
            "leave that element out, or calibrate one factor for all (per_feature=False)"
        )


def optimal_factors(
    evaluation: Evaluation, *, per_feature: bool | None = None, prior: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Factors on σ² and on α² that make the ELBO of these data largest, all else held fixed.

    Args:
        evaluation: of the model on the data.
        per_feature: a factor for each feature, or one for all; None keeps the form that σ² has: one for all where σ² is
            shared, else one each.
        prior: also the prior's.

    Returns:
        Factor on σ², shape () or data_shape; factor on α², latent_shape. float64; None where the distribution is not
        normal (for α², also where it was not asked for). Of a feature that is never observed the factor is 1.
    """
    moments, variance_factor = evaluation.moments, None
    if evaluation.variance_ratio is not None:
        each = evaluation.variance_kind != "shared" if per_feature is None else per_feature
        shared = torch.tensor(evaluation.variance_ratio, dtype=torch.float64)
        variance_factor = ratios_of_features(moments) if each else shared
    prior_factor = moments["prior_ratios"].mean if prior and "prior_ratios" in moments else None
    return variance_factor, prior_factor


def calibrate(
    model: LatentVariableModel,
    data: Data,
    *,
    per_feature: bool | None = None,
    prior: bool = True,
    **evaluate_options: Any,
) -> Rescaled:
    """A wrapper around the model with variances that are optimal for the data.

    Under the noise of the evaluation (see `Frozen`), its ELBO equals its entropy sum, and is higher than the model's by
    exactly the evaluation's gains. The model itself is not changed; the wrapper shares its networks.

    Args:
        model: any three-method model.
        data: as for `evaluate`.
        per_feature: a factor on σ² for each feature, or one for all; None keeps the form that σ² has.
        prior: also set the prior's variances; `fold` puts all of it into the parameters of a copy of a `VAE`.
        **evaluate_options: as for `evaluate` (`missing="ignore"` takes each optimum over the observed values), but for
            `bind`, whose models have no common variance to set.

    Raises:
        UsageError: neither likelihood nor prior is normal with independent elements, so that nothing can be set.
        UnsupportedError: an optimal variance is 0.
    """
    if evaluate_options.get("bind") is not None:
        raise UsageError("bind given, expected a model that needs no context: each batch's model would have its own σ²")
    evaluation = evaluate(model, data, **evaluate_options)
    variance_factor, prior_factor = optimal_factors(evaluation, per_feature=per_feature, prior=prior)
    if variance_factor is None and prior_factor is None:
        raise UsageError("nothing to calibrate: neither likelihood nor prior is normal with independent elements")
    require_usable(variance_factor, "variance")
    require_usable(prior_factor, "prior variance")
    device, _ = placement(model)
    return Rescaled(model, variance_factor=_on(device, variance_factor), prior_factor=_on(device, prior_factor))


def _on(device: torch.device | None, factor: Tensor | None) -> Tensor | None:
    if factor is None or device is None:
        return factor
    return factor.to(device, torch.float32 if device.type == "mps" else None)


def fold(calibrated: Rescaled) -> VAE:
    """A copy of the `VAE` inside a calibrated model that has the optimal variances in its own parameters.

    Its prior is the standard normal one: prior variances go into posterior heads and latent layer (`VAE.fold_prior`),
    which leaves the ELBO as it is. Where σ²(z) comes from a convolution, the bias of a channel takes the mean of its
    pixels' factors: the optimum if no pixel misses more values than another.

    Raises:
        UsageError: the model inside is no `VAE`, or its σ² is fixed.
    """
    if not isinstance(calibrated.model, VAE):
        raise UsageError(f"a calibrated {type(calibrated.model).__name__} given, expected a calibrated VAE")
    folded = calibrated.model.fold_prior()
    folded.rescale(variance_factor=calibrated.variance_factor, prior_factor=calibrated.prior_factor)
    return folded
