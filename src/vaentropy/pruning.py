"""`prune`: a model without some of its latents."""

import copy
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from vaentropy._typing import Tensor
from vaentropy.data.given import Data
from vaentropy.distributions import to_float64
from vaentropy.errors import UsageError, shown
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.linear import LinearVAE
from vaentropy.options import Missing
from vaentropy.vae import VAE

__all__ = ["check_latents", "prune"]

Prunable = TypeVar("Prunable", bound=VAE | LinearVAE)


@torch.no_grad()
def prune(
    model: Prunable, latents: Iterable[SupportsIndex], data: Data | None = None, *, missing: Missing = "error"
) -> Prunable:
    """A copy of the model without the latents that are named; the decoder sees a constant in their place.

    Of a collapsed latent, whose q(z_h|x) is the prior and whose z_h the decoder ignores, neither is missed: the ELBO
    stays the same. Of any other it changes by what `evaluate` says before and after: it no longer pays the latent's KL,
    and no longer reconstructs with it. The copy can be trained on.

    Args:
        model: a `VAE` or `LinearVAE`; it is not changed.
        latents: which ones, counted from 0; not all of them.
        data: the constants are means over these data of the posterior mean; None takes 0, the prior's mean. They go
            through the latent layer into its bias.
        missing: as for `evaluate`, where values of the data are missing.

    Raises:
        UsageError: another model, or `latents` that it does not have, that are repeated, or that are all it has.
        DataError: data that `evaluate` does not take.
    """
    if not isinstance(model, VAE | LinearVAE):
        how = "fold a calibrated model before (vaentropy.calibration.fold)"
        raise UsageError(f"a model of type {type(model).__name__} given, expected a VAE or LinearVAE; {how}")
    (num_latents,) = model.latent_shape
    removed = check_latents(latents, num_latents)
    kept = [h for h in range(num_latents) if h not in removed]
    constant = torch.zeros(num_latents, dtype=torch.float64)
    if data is not None:
        # One node at the posterior mean: nothing is drawn.
        constant = evaluate(model, data, expectation=GaussHermite(1), missing=missing).moments["latent_mean"].mean
    pruned = copy.deepcopy(model)
    _remove(pruned, removed, kept, constant)
    pruned.latent_shape = (len(kept),)
    return pruned


def check_latents(latents: Any, num_latents: int) -> list[int]:
    """The latents to remove, as a list.

    Raises:
        UsageError: there are no such latents, some are repeated, or none would be left.
    """
    try:
        chosen = [_index(h) for h in latents]
    except TypeError:
        chosen = None
    if chosen is None or len(set(chosen)) < len(chosen) or not all(0 <= h < num_latents for h in chosen):
        expected = f"expected different whole numbers from 0 to {num_latents - 1}"
        raise UsageError(f"latents={shown(latents)} given, {expected}, the latents to remove")
    if len(chosen) == num_latents:
        raise UsageError(f"all {num_latents} latents given to remove, expected at least one to be left")
    return chosen


def _index(h: Any) -> int:
    # A mask, in whatever library, would pass as the indices 0 and 1.
    if isinstance(h, bool) or "bool" in str(getattr(h, "dtype", "")):
        raise TypeError
    return operator.index(h)


def _remove(model: VAE | LinearVAE, removed: list[int], kept: list[int], constant: Tensor) -> None:
    """Take the latents out of every parameter that has them, in place."""
    if isinstance(model, LinearVAE):
        _absorb(model.bias, model.weight, removed, constant)
        _select(model, "weight", kept, dim=1)
        for name in ("encoder_weight", "encoder_bias", "latent_log_variance"):
            _select(model, name, kept)
        return
    layer = model.latent_layer
    _absorb(layer.bias, layer.weight, removed, constant)
    if parametrize.is_parametrized(layer, "weight"):
        # Columns of any norm, of which the layer takes the directions.
        _select(layer.parametrizations.weight, "original", kept, dim=1)  # type: ignore[union-attr]
    else:
        _select(layer, "weight", kept, dim=1)
    layer.in_features = len(kept)
    for head in (model.latent_mean, model.latent_log_variance):
        _select(head, "weight", kept)
        _select(head, "bias", kept)
        head.out_features = len(kept)
    _select(model, "prior_log_variance", kept)


def _absorb(bias: Tensor, weight: Tensor, removed: list[int], constant: Tensor) -> None:
    """Add to the bias what the removed latents contribute at the constants."""
    shift = to_float64(weight[:, removed]) @ constant[removed].to(to_float64(weight).device)
    bias.add_(shift.to(bias))


def _select(module: Any, name: str, kept: list[int], *, dim: int = 0) -> None:
    """Replace a parameter or buffer of a module by its entries of the kept latents."""
    before = getattr(module, name)
    entries = before.detach().index_select(dim, torch.tensor(kept, device=before.device))
    if isinstance(before, nn.Parameter):
        entries = nn.Parameter(entries, requires_grad=before.requires_grad)
    setattr(module, name, entries)
