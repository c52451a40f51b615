"""`Sums`: what is added up of the terms of each batch."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from vaentropy._typing import Tensor
from vaentropy.decomposition import FEATURE_TERMS, PointTerm, ScaledTerm
from vaentropy.moments import DataMoments, Moment, merge
from vaentropy.passes import Batch
from vaentropy.results import concatenate

__all__ = ["Sums"]

LATENTS_WITH_COVARIANCE = 256
# Batches whose sums are merged in one go: most terms are one number, and to merge them takes as long as of many parts.
MERGED_AT_ONCE = 8


def _moments(
    terms: Mapping[str, PointTerm], scaled: Mapping[str, ScaledTerm], weights: Tensor | None
) -> dict[str, Moment]:
    """Sums of one batch; `weights` (B,) of its data points."""

    def of_entries(weight: Tensor | None) -> Tensor | None:
        if weight is None or weights is None:
            return weights if weight is None else weight
        return weights.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1)) * weight

    moments = {name: Moment.of(term.value, of_entries(term.weight), term.noise) for name, term in terms.items()}
    return moments | {name: moments[term.of].affine(term.factor.cpu(), 0.0) for name, term in scaled.items()}


def _with_latents(
    before: DataMoments | None, terms: Mapping[str, PointTerm], weights: Tensor | None
) -> DataMoments | None:
    """Mean and covariance of the posterior means so far, with those of a further batch."""
    if "latent_mean" not in terms or (weights is not None and not bool(weights.any())):
        return before
    mean = terms["latent_mean"].value
    mean = mean.reshape(len(mean), -1)
    if not 0 < mean.shape[1] <= LATENTS_WITH_COVARIANCE:
        return None
    of_batch = DataMoments.of(mean.cpu(), weights)
    return of_batch if before is None else before.merge(of_batch)


class Sums:
    """Moments of named terms over the batches so far, and the covariance of the latents.

    Args:
        pointwise: also keep the values per data point, but for terms with one entry per feature.
    """

    def __init__(self, *, pointwise: bool = False):
        self._parts: list[dict[str, Moment]] = []
        self.latent_moments: DataMoments | None = None
        self._kept: list[dict[str, Tensor]] | None = [] if pointwise else None

    def add(
        self, terms: Mapping[str, PointTerm], batch: Batch, scaled: Mapping[str, ScaledTerm] = MappingProxyType({})
    ) -> None:
        """Count the terms of a batch, its log-Jacobian among them, and those that are another times a number."""
        exact = None if terms["elbo"].noise is None else torch.zeros_like(batch.log_jacobian)
        named = {**terms, "log_jacobian": PointTerm(batch.log_jacobian, exact)}
        self._merge(_moments(named, scaled, batch.weights))
        self.latent_moments = _with_latents(self.latent_moments, terms, batch.weights)
        if self._kept is not None:
            end = len(batch.x) - batch.padding
            self._kept.append({name: t.value[:end].cpu() for name, t in named.items() if name not in FEATURE_TERMS})

    def _merge(self, moments: dict[str, Moment]) -> None:
        self._parts.append(moments)
        if len(self._parts) == MERGED_AT_ONCE:
            self._parts = [merge(self._parts)]

    def take_in(self, other: "Sums") -> None:
        """Count what others have counted, whose data points come next."""
        if other._parts:
            self._merge(other.moments)
        if other.latent_moments is not None:
            known = self.latent_moments
            self.latent_moments = other.latent_moments if known is None else known.merge(other.latent_moments)
        if self._kept is not None and other._kept is not None:
            self._kept += other._kept

    def packed(self) -> "Sums":
        """The same in one part, to be sent: what is a view is sent with all that it is a view of."""
        packed = Sums(pointwise=self._kept is not None)
        packed._parts = [self.moments] if self._parts else []
        packed.latent_moments = self.latent_moments
        packed._kept = [concatenate(self._kept)] if self._kept else self._kept
        return packed

    @property
    def moments(self) -> dict[str, Moment]:
        """The sums over all batches so far; there has to be one."""
        return merge(self._parts)

    @property
    def pointwise(self) -> dict[str, Tensor] | None:
        """Values per data point, (N, *shape) each; None if they were not asked for."""
        return None if self._kept is None else concatenate(self._kept)
