"""Optimal variances in closed form, for any model."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.errors import UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.model import LatentVariableModel, Rescaled, placement
from vaentropy.results import Evaluation

__all__ = ["calibrate", "optimal_factors"]


def _usable(factor: Tensor, what: str) -> Tensor:
    if not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise UnsupportedError(
            f"the optimal {what} is 0 or not finite: an element is reproduced exactly, so the ELBO has no upper bound; "
            "leave that element out, or calibrate one factor for all (per_feature=False)"
        )
    return factor


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
        normal (for α², also where it was not asked for).

    Raises:
        UnsupportedError: an optimum is at 0.
    """
    variance_factor = prior_factor = None
    if evaluation.variance_ratio is not None and evaluation.decoder_residuals is not None:
        each = evaluation.variance_kind != "shared" if per_feature is None else per_feature
        ratio = (
            1 - 2 * evaluation.decoder_residuals
            if each
            else torch.tensor(evaluation.variance_ratio, dtype=torch.float64)
        )
        variance_factor = _usable(ratio, "variance")
    if prior and evaluation.optimal_prior_variance is not None and evaluation.prior_residuals is not None:
        prior_factor = _usable(1 - 2 * evaluation.prior_residuals, "prior variance")
    return variance_factor, prior_factor


def calibrate(
    model: LatentVariableModel,
    data: Tensor | np.ndarray | Iterable[Any],
    *,
    per_feature: bool | None = None,
    prior: bool = True,
    **evaluate_options: Any,
) -> Rescaled:
    """A wrapped copy of the model whose variances are optimal for the data.

    Under the noise of the evaluation (see `Frozen`), its ELBO equals its entropy sum, and is higher than the model's by
    exactly the evaluation's gains. The model itself is not changed.

    Args:
        model: any three-method model.
        data: as for `evaluate`.
        per_feature: a factor on σ² for each feature, or one for all; None keeps the form that σ² has.
        prior: also set the prior's variances; fold them into the networks of a `VAE` with `VAE.fold_prior`.
        **evaluate_options: as for `evaluate`.

    Raises:
        UsageError: neither likelihood nor prior is normal with independent elements, so that nothing can be set.
        UnsupportedError: an optimal variance is 0.
    """
    evaluation = evaluate(model, data, **evaluate_options)
    variance_factor, prior_factor = optimal_factors(evaluation, per_feature=per_feature, prior=prior)
    if variance_factor is None and prior_factor is None:
        raise UsageError(
            "nothing to calibrate: neither the likelihood nor the prior is normal with independent elements"
        )
    wrapped = Rescaled(model, variance_factor=variance_factor, prior_factor=prior_factor)
    device, _ = placement(model)
    return wrapped if device is None else wrapped.to(device)
