"""VAE-2 with unit columns of the decoder's first layer in three ways, and VAE-1, which has the same optimum.

VAE-2 learns α² and holds the scale of its latents by ‖W_h‖ = 1; VAE-1 has α² = 1 and free columns. With z_h = α_h z'_h
and W'_h = α_h W_h each can be written as the other, so that their ELBOs have the same maximum.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.families import vae1, vae2
from vaentropy.likelihoods import Gaussian
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.priors import LearnedNormal
from vaentropy.studies.plots import plot_arms
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import Arm, Trials, load_for, plateau_note, points, summary, train
from vaentropy.vae import VAE

LATENT_DIM = 2
HIDDEN = (50, 50)


def _free_columns(shape: tuple[int, ...]) -> VAE:
    """VAE-2 but for the constraint."""
    networks = MLPEncoder(shape, HIDDEN), MLPDecoder(HIDDEN[::-1])
    return VAE(*networks, data_shape=shape, latent_dim=LATENT_DIM, likelihood=Gaussian(), prior=LearnedNormal())


@torch.no_grad()
def rescale_columns(model: VAE) -> None:
    """Give each column norm 1 and multiply z_h by the norm it had: neither p(x) nor the ELBO changes.

    In place, so that an optimiser goes on with the same parameters.
    """
    norms = column_norms(model)
    model.latent_layer.weight.div_(norms)
    model.latent_mean.weight.mul_(norms.unsqueeze(1))
    model.latent_mean.bias.mul_(norms)
    for log_variance in (model.latent_log_variance.bias, model.prior_log_variance):
        log_variance.add_(2 * norms.log())


def column_norms(model: VAE) -> Float[Tensor, " H"]:
    """‖W_h‖ of the decoder's first layer."""
    return model.latent_layer.weight.detach().norm(dim=0)


def _arm(name: str, model: Any, **options: Any) -> Arm:
    exact = {"batch_size": 2_000, "epochs": 3_000}
    return Arm(name=name, model=model, epochs=(15, 60), options={"learning_rate": 1e-2}, exact=exact, **options)


FREE = _arm("VAE-1", lambda shape: vae1(shape, LATENT_DIM, HIDDEN))
CONSTRAINED = (
    _arm("VAE-2, parametrisation", lambda shape: vae2(shape, LATENT_DIM, HIDDEN, columns="unit")),
    _arm("VAE-2, rescaling", _free_columns, after_epoch=rescale_columns),
    _arm("VAE-2, penalty", lambda shape: vae2(shape, LATENT_DIM, HIDDEN, columns="penalty")),
)


def run(plan: Plan) -> Outcome:
    """Train replicates of each arm from the same seeds; compare ELBOs, gaps and the columns' norms."""
    data = load_for(plan, "pca-ring")
    x, held_out = points(data.train), points(data.held_out)
    replicates = plan.num_replicates(quick=3, paper=10)
    every = [train(arm, x, held_out, plan, replicates) for arm in (FREE, *CONSTRAINED)]
    rows = [_row(trials) for trials in every]
    notes = [
        f"PCA-ring, {len(x):,} points to train on, {len(held_out):,} held out.",
        "The largest deviation of a norm from 1 is over latents and replicates, at the end.",
    ]
    notes += plateau_note(every[0], x, plan, of="the first replicate of VAE-1")
    return Outcome(rows, plot_arms(every), _finding(rows), notes)


def _row(trials: Trials) -> dict[str, Any]:
    row = summary(trials)
    deviations = torch.stack([(column_norms(model) - 1).abs() for model in trials.models])
    return {**row, "largest_deviation_of_a_norm_from_1": float(deviations.max())}


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    free, *constrained = rows
    elbos = [row["elbo"] for row in constrained]
    gap = max(row["relative_gap"] for row in rows)
    return (
        f"The three constraints of VAE-2 end at ELBOs from {min(elbos):.2f} to {max(elbos):.2f} nats, VAE-1 at "
        f"{free['elbo']:.2f}; the median relative gap is at most {gap:.1e} in all of them."
    )


STUDY = Study(
    "constraint",
    "Ways to hold the columns of VAE-2",
    "PCA-ring, 2 latents, networks of 50 and 50 units; norms of 1 by parametrisation, rescaling or penalty.",
    run,
    cost=5.0,
)
