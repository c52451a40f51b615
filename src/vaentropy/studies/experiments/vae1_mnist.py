"""VAE-1 on MNIST: the ELBO of a nonlinear VAE becomes a sum of three entropies (figure 3 of the paper)."""

from vaentropy.families import vae1
from vaentropy.studies.plots import plot_arms
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import Arm, load_for, plateau_note, points, summary, train

LATENT_DIM = 2
ARM = Arm(
    name="VAE-1",
    model=lambda shape: vae1(shape, LATENT_DIM, (50, 50)),
    epochs=(30, 60),
    options={"learning_rate": 1e-2},
    exact={"batch_size": 2000, "epochs": 200},
)


def run(plan: Plan) -> Outcome:
    """Train replicates, compare ELBO and entropy sum on both parts of the data."""
    data = load_for(plan, "mnist")
    number = plan.pick(quick=3_000, paper=None)
    x, held_out = points(data.train, number), points(data.held_out, number)
    trials = train(ARM, x, held_out, plan, plan.num_replicates(quick=2, paper=10))
    row = summary(trials)
    notes = [f"MNIST, {data.description}; {len(x):,} points to train on, {len(held_out):,} held out."]
    notes += plateau_note(trials, x, plan)
    finding = (
        f"ELBO {row['elbo']:.2f} and sum of entropies {row['entropy_sum']:.2f} nats, with a relative gap of "
        f"{row['relative_gap']:.1e} on the training data and {row['held_out_relative_gap']:.1e} on held-out data; each "
        f"the median of {row['replicates']} trainings."
    )
    return Outcome([row], plot_arms([trials]), finding, notes)


STUDY = Study(
    "vae1-mnist",
    "VAE-1 on MNIST",
    "2 latents, networks of 50 and 50 units (ReLU), one learned variance.",
    run,
    cost=15.0,
)
