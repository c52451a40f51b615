"""One step of gradient ascent on the ELBO, and the sums that watch it at no further cost."""

from collections.abc import Iterable

import torch
from torch import nn

from vaentropy._typing import Bool, Float, Tensor
from vaentropy.expectation import Nodes
from vaentropy.vae import VAE, ElboTerms

__all__ = ["RunningSums", "training_step"]


def training_step(
    model: VAE,
    x: Float[Tensor, "B *data"],
    nodes: Nodes,
    optimizer: torch.optim.Optimizer,
    *,
    observed: Bool[Tensor, "B *data"] | None = None,
    beta: float = 1.0,
    adapt: float = 0.0,
    clip_norm: float | None = None,
) -> ElboTerms:
    """Ascend reconstruction - β KL - penalty once; return the terms from before the step.

    Args:
        model: changed in place.
        x: (B, *data_shape), finite; where a value is missing, what the encoder sees in its place.
        nodes: noise and weights of the expectation.
        optimizer: holds the parameters that are learned by gradient.
        observed: which entries of x count in the likelihood; None means all.
        beta: weight of the KL term.
        adapt: how far analytic variances move, see `VAE.elbo_terms`; 0 where they are learned by gradient.
        clip_norm: largest norm of the gradient; None does not clip.
    """
    for parameter in _parameters(optimizer):
        # What optimizer.zero_grad() does, in a tenth of its time.
        parameter.grad = None
    weights = None if nodes.uniform else nodes.weights
    terms = model.elbo_terms(x, nodes.noise, weights, observed=observed, adapt=adapt)
    kl = terms.kl.sum(-1)
    loss = ((kl if beta == 1 else beta * kl) - terms.reconstruction).mean()
    if model.columns == "penalty":
        loss = loss + model.penalty()
    loss.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(_parameters(optimizer), clip_norm)
    optimizer.step()
    return terms


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


class RunningSums:
    """Means of the ELBO's terms over the steps of an epoch; they stay on the device until they are read."""

    NAMES = ("reconstruction", "kl", "encoder_entropy", "prior_entropy", "decoder_entropy")

    def __init__(self, total: Tensor | None = None, num_points: int = 0) -> None:
        self.total = total
        self.num_points = num_points

    @torch.no_grad()
    def add(self, terms: ElboTerms) -> None:
        """Count one batch."""
        size = len(terms.reconstruction)
        kl, prior_entropy = terms.kl.sum(-1), terms.prior_entropy.expand(size)
        rows = [terms.reconstruction, kl, terms.encoder_entropy, prior_entropy, terms.decoder_entropy]
        # In float32 the sums of many batches would be off by more than the gaps that are read from them.
        wide = torch.float32 if kl.device.type == "mps" else torch.float64
        batch = torch.stack(rows).sum(1, dtype=wide)
        self.total = batch if self.total is None else self.total.add_(batch)
        self.num_points += size

    def read(self) -> dict[str, float]:
        """Means per data point, with ELBO, entropy sum and gap; waits for the device."""
        assert self.total is not None
        means = dict(zip(self.NAMES, (self.total.double().cpu() / self.num_points).tolist(), strict=True))
        elbo = means["reconstruction"] - means["kl"]
        entropy_sum = means["encoder_entropy"] - means["prior_entropy"] - means["decoder_entropy"]
        return {"elbo": elbo, "entropy_sum": entropy_sum, "gap": elbo - entropy_sum, **means}
