"""One step of gradient ascent on the ELBO, and the sums that watch it at no further cost."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from vaentropy._typing import Bool, Float, Tensor
from vaentropy.expectation import Nodes
from vaentropy.vae import VAE

__all__ = ["Gradients", "Objective", "Precision", "RunningSums", "as_input", "gradients", "objective", "training_step"]

Precision = Literal["full", "bf16"]
Objective = Callable[..., tuple[Tensor, Tensor]]
Gradients = Callable[..., Tensor]

# With more latents a history would hold hardly anything else than numbers of latents.
MOST_LATENTS = 256


def objective(
    model: VAE,
    x: Float[Tensor, "B *data"],
    noise: Float[Tensor, "K #B H"],
    weights: Float[Tensor, "K"] | None = None,
    *,
    observed: Bool[Tensor, "B *data"] | None = None,
    beta: float | Float[Tensor, ""] = 1.0,
    adapt: float = 0.0,
    precision: Precision = "full",
) -> tuple[Float[Tensor, ""], Float[Tensor, "S"]]:
    """What a step descends, β KL - reconstruction + penalty, and the batch's sums for `RunningSums`: one forward pass.

    Args:
        model: whose parameters it is of.
        x, noise, weights, observed, adapt: as for `VAE.elbo_terms`.
        beta: weight of the KL term.
        precision: "bf16" runs the networks' layers under autocast to bfloat16; densities and sums stay in the dtype of
            the model.

    Returns:
        The loss, nats per data point, with gradients; and Σ over the batch of what `RunningSums` reads, nats.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        terms = model.elbo_terms(x, noise, weights, observed=observed, adapt=adapt)
    kl = terms.kl.sum(-1)
    weighted = kl if not isinstance(beta, Tensor) and beta == 1 else beta * kl
    loss = (weighted - terms.reconstruction).mean()
    if model.columns == "penalty":
        loss = loss + model.penalty()
    with torch.no_grad():
        columns = [terms.reconstruction, terms.prior_entropy.expand(kl.shape), terms.decoder_entropy]
        rows = torch.cat([torch.stack(columns, 1), terms.kl, terms.encoder_entropy], 1)
        # In float32 the sums of many batches would be off by more than the gaps that are read from them.
        wide = torch.float32 if kl.device.type == "mps" else torch.float64
        return loss, rows.sum(0, dtype=wide)


def as_input(beta: float, x: Tensor) -> float | Tensor:
    """β as a tensor () like x, since each other number would be compiled or recorded anew; 1 as it is."""
    return beta if beta == 1 else x.new_full((), beta)


def gradients(
    model: VAE,
    x: Float[Tensor, "B *data"],
    noise: Float[Tensor, "K #B H"],
    weights: Float[Tensor, "K"] | None = None,
    *,
    of: Objective = objective,
    **options: Any,
) -> Float[Tensor, "S"]:
    """Add the gradients of an objective to those of the parameters; return its sums. See `objective`."""
    loss, sums = of(model, x, noise, weights, **options)
    loss.backward()
    return sums


def training_step(
    model: VAE,
    x: Float[Tensor, "B *data"],
    nodes: Nodes,
    optimizer: torch.optim.Optimizer,
    *,
    observed: Bool[Tensor, "B *data"] | None = None,
    beta: float | Float[Tensor, ""] = 1.0,
    adapt: float = 0.0,
    clip_norm: float | None = None,
    precision: Precision = "full",
    gradients: Gradients = gradients,
) -> Float[Tensor, "S"]:
    """Ascend reconstruction - β KL - penalty once; return the batch's sums from before the step.

    Args:
        model: changed in place.
        x: (B, *data_shape), finite; where a value is missing, what the encoder sees in its place.
        nodes: noise and weights of the expectation.
        optimizer: holds the parameters that are learned by gradient.
        observed: which entries of x count in the likelihood; None means all.
        beta: weight of the KL term.
        adapt: how far analytic variances move, see `VAE.elbo_terms`; 0 where they are learned by gradient.
        clip_norm: largest norm of the gradient; None does not clip.
        precision: of the networks, see `objective`.
        gradients: `gradients`, or the same compiled.
    """
    for parameter in _parameters(optimizer):
        # What optimizer.zero_grad() does, in a tenth of its time.
        parameter.grad = None
    options = {"observed": observed, "beta": beta, "adapt": adapt, "precision": precision}
    sums = gradients(model, x, nodes.noise, nodes.step_weights, **options)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(_parameters(optimizer), clip_norm)
    optimizer.step()
    return sums


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


class RunningSums:
    """Means of the ELBO's terms over the steps of an epoch; they stay on the device until they are read.

    Args:
        total: as `objective` returns them: reconstruction, prior and decoder entropy, then the KL of each latent, then
            the encoder entropy of each.
        num_points: over which it is the sum.
    """

    def __init__(self, total: Tensor | None = None, num_points: int = 0) -> None:
        self.total = total
        self.num_points = num_points

    @staticmethod
    def size(latent_dim: int) -> int:
        """Length of `total`."""
        return 3 + 2 * latent_dim

    @torch.no_grad()
    def add(self, sums: Float[Tensor, "S"], num_points: int) -> None:
        """Count a batch of so many points, of which `objective` returned these sums."""
        self.total = sums.clone() if self.total is None else self.total.add_(sums)
        self.num_points += num_points

    def read(self) -> dict[str, Any]:
        """Means per data point, nats, with ELBO, entropy sum and gap; waits for the device.

        Those of each latent are lists, named `*_per_latent`; more than `MOST_LATENTS` are left out.
        """
        assert self.total is not None
        means = self.total.double().cpu() / self.num_points
        reconstruction, prior_entropy, decoder_entropy = means[:3].tolist()
        per_latent = means[3:].unflatten(0, (2, -1))
        kl, encoder_entropy = per_latent.sum(1).tolist()
        elbo = reconstruction - kl
        entropy_sum = encoder_entropy - prior_entropy - decoder_entropy
        read: dict[str, Any] = {
            "elbo": elbo,
            "entropy_sum": entropy_sum,
            "gap": elbo - entropy_sum,
            "reconstruction": reconstruction,
            "kl": kl,
            "encoder_entropy": encoder_entropy,
            "prior_entropy": prior_entropy,
            "decoder_entropy": decoder_entropy,
        }
        if per_latent.shape[1] <= MOST_LATENTS:
            read["kl_per_latent"], read["encoder_entropy_per_latent"] = per_latent.tolist()
        return read
