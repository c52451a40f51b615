"""VAE-3 on PCA-ring: decoder variances that are a function of the latents, under three settings of the optimiser."""

from vaentropy.expectation import MonteCarlo
from vaentropy.families import vae3
from vaentropy.studies.plots import plot_arms
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.trials import Arm, load_for, plateau_note, points, summary, train
from vaentropy.vae import VAE

LATENT_DIM = 2
# Of a hundred models, each of which is evaluated on 10,000 points.
FEW_DRAWS = MonteCarlo(4)


def _model(shape: tuple[int, ...]) -> VAE:
    return vae3(shape, LATENT_DIM, (50, 50))


def _arm(name: str, epochs: tuple[int, int], *, exact: dict, **options: object) -> Arm:
    return Arm(
        name=name,
        model=_model,
        epochs=epochs,
        options={"learning_rate": 1e-2, **options},
        exact={**exact, "epochs": 3_000},
        always={"evaluation_expectation": FEW_DRAWS},
    )


ARMS = (
    _arm("batches of 200", (20, 60), exact={"batch_size": 2_000}),
    _arm("batches of 100", (20, 40), exact={"batch_size": 100}, batch_size=100),
    _arm("learning rate 5e-3", (20, 60), exact={"batch_size": 2_000, "learning_rate": 5e-3}, learning_rate=5e-3),
)


def run(plan: Plan) -> Outcome:
    """Train many replicates of each arm; medians and quartiles of the relative gap."""
    data = load_for(plan, "pca-ring")
    number = plan.pick(quick=5_000, paper=None)
    x, held_out = points(data.train, number), points(data.held_out, number)
    replicates = plan.num_replicates(quick=10, paper=100)
    every = [train(arm, x, held_out, plan, replicates) for arm in ARMS]
    rows = [summary(trials) for trials in every]
    notes = [f"PCA-ring, {len(x):,} points to train on, {len(held_out):,} held out."]
    notes += plateau_note(every[0], x, plan)
    first = rows[0]
    finding = (
        f"Of {replicates} replicates the median relative gap is {first['relative_gap']:.1e} (quartiles "
        f"{first['relative_gap_q1']:.1e} and {first['relative_gap_q3']:.1e}); in all three ways of training it is at "
        f"most {max(row['relative_gap'] for row in rows):.1e}."
    )
    return Outcome(rows, plot_arms(every), finding, notes)


STUDY = Study(
    "vae3-ring",
    "VAE-3 on PCA-ring",
    "z → z/10 + z/‖z‖ in 10 dimensions, 2 latents, networks of 50 and 50 units; batches of 200, of 100, and another "
    "learning rate.",
    run,
    cost=15.0,
)
