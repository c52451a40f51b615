"""What it means that a decoder's variance has come down to its floor."""

import torch

from vaentropy._typing import Tensor
from vaentropy.conditions import split_rows
from vaentropy.data.source import Source, first_rows
from vaentropy.likelihoods import GaussianHead
from vaentropy.modes import in_mode
from vaentropy.vae import VAE

__all__ = ["at_floor", "explain_floor"]


@torch.no_grad()
def at_floor(model: VAE, x: Tensor) -> float:
    """Fraction of the decoder's variances that are at their floor, at the posterior means of rows x of data."""
    if not isinstance(model.head, GaussianHead):
        return 0.0
    x, condition = split_rows(model, x.nan_to_num(nan=0.0))
    with in_mode(model, "eval"):
        return model.head.at_floor(model.decoder_features(model.posterior(x, condition).mean, condition))


def explain_floor(model: VAE, fraction: float, x: Tensor | Source) -> str | None:
    """Why σ² is at its floor and what to do, one line; None where it is not.

    Args:
        model: trained.
        fraction: of its variances that are at the floor, see `at_floor`.
        x: (N, *data_shape), the training data, of which the first rows are looked at.
    """
    if not fraction or not isinstance(model.head, GaussianHead):
        return None
    floor = model.head.likelihood.floor
    values = split_rows(model, first_rows(x))[0].double()
    constant = int((values.nan_to_num(nan=0.0).var(0, correction=0) <= floor).sum())
    what = f"σ² is held at its floor of {floor:g} for {fraction:.1%} of the features, where the theorem does not hold: "
    if constant:
        return what + (
            f"{constant} of {values[0].numel()} features hardly vary in {len(values):,} rows; leave them out, or share "
            "one σ²"
        )
    return what + "the model reproduces the data exactly; use fewer latents or more data, or accept the floor"
