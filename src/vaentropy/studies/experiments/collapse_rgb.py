"""Posterior collapse of a convolutional VAE on colour images, σ² = 1 fixed and learned."""

from vaentropy.expectation import MonteCarlo
from vaentropy.studies.activity import activity, arms, finding, plot_activity
from vaentropy.studies.rgb import CROP, conv_networks, image_folder, photograph_patches
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import train

LATENT_DIM = 64
# Pixels per side; images to train on, and held out.
SIZE_QUICK, SIZE = 32, 64
NUMBER_QUICK, NUMBER = (600, 200), (6_000, 1_500)
# Each draw takes a pass of the decoder over all images.
FEW_DRAWS = MonteCarlo(2)
ARMS = arms(
    lambda family, shape: family(shape, LATENT_DIM, networks=conv_networks(shape)),
    epochs=(8, 8),
    options={"learning_rate": 2e-3, "batch_size": 50},
    exact={"batch_size": 1_024, "epochs": 150},
    always={"evaluate_every": 1_000, "evaluation_expectation": FEW_DRAWS},
)


def run(plan: Plan) -> Outcome:
    """Train both on the same images; count the latents that are active."""
    size, number = plan.pick(quick=SIZE_QUICK, paper=SIZE), plan.pick(quick=NUMBER_QUICK, paper=NUMBER)
    if plan.data is None:
        name, (x, held_out) = "RGB patches", photograph_patches(*number, size, plan.seed)
        of = "patches of the two photographs that scikit-learn ships, held-out ones from the right quarter of each"
    else:
        name, (x, held_out) = "images", image_folder(plan, *number, size)
        of = f"images of {plan.data}, the centred square of {CROP} pixels resized"
    replicates = plan.num_replicates(quick=1, paper=1)
    trials = [train(arm, x, held_out, plan, replicates) for arm in ARMS]
    rows = [activity(name, each, x) for each in trials]
    notes = [
        f"{len(x):,} {of}; {len(held_out):,} held out; {size} x {size} pixels in [0, 1].",
        "BatchNorm uses its running statistics in evaluations; the theorem is about the statistics of batches that it "
        "was trained with.",
    ]
    if not plan.exact_settings:
        notes.append(f"{trials[0].epochs} epochs are what a processor does in minutes, not training to the plateau.")
    return Outcome(rows, plot_activity({name: trials}), finding(rows), notes)


STUDY = Study(
    "collapse-rgb",
    "Posterior collapse of a convolutional VAE",
    "64 latents, convolutions of 32-64-128-256-512 channels with BatchNorm and LeakyReLU, 64 x 64 x 3 pixels (quick: "
    "32 x 32); patches of photographs, or by --data a folder of images such as CelebA's. VAE-0 (σ² = 1) and VAE-1.",
    run,
    takes_data=True,
    cost=15.0,
)
