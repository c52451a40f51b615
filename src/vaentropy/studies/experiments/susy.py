"""VAE-1 on a table of SUSY's format: the theorem on millions of rows."""

from vaentropy.families import vae1
from vaentropy.studies.activity import activity
from vaentropy.studies.plots import plot_arms
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.susy_table import ROWS, susy_table
from vaentropy.studies.trials import Arm, plateau_note, points, train

LATENT_DIM = 12
# As in the published code: 128 units, and twice as many as there are latents.
HIDDEN = (128, 24)
ROWS_QUICK = 20_000
BATCH_SIZE = 1_024
ARM = Arm(
    name="VAE-1",
    model=lambda shape: vae1(shape, LATENT_DIM, HIDDEN),
    epochs=(150, 12),
    options={"learning_rate": 1e-2},
    exact={"epochs": 150},
    # The held-out half once, at the end: it is as large as what is trained on.
    always={"batch_size": BATCH_SIZE, "evaluate_every": 1_000},
)


def run(plan: Plan) -> Outcome:
    """Train, compare ELBO and entropy sum on both halves."""
    rows = plan.pick(quick=ROWS_QUICK, paper=ROWS)
    name, data = susy_table(plan, rows)
    x, held_out = points(data.train, rows // 2), points(data.held_out, rows // 2)
    trials = train(ARM, x, held_out, plan, plan.num_replicates(quick=1, paper=1))
    row = activity(name, trials, x)
    notes = [f"{name}, scaled to [0, 1] per feature; {len(x):,} rows to train on, {len(held_out):,} held out."]
    if plan.data is None:
        notes.append("The stand-in has the format of SUSY, not its physics: read the real file by --data SUSY.csv.gz.")
    notes += plateau_note(trials, x, plan)
    finding = (
        f"{name}, {len(x):,} rows: ELBO {row['elbo']:.2f} and sum of entropies {row['entropy_sum']:.2f} nats, with a "
        f"relative gap of {row['relative_gap']:.1e} on the training data and {row['held_out_relative_gap']:.1e} on "
        f"held-out data; {row['active']:g} of {row['latents']} latents are active."
    )
    return Outcome([row], plot_arms([trials]), finding, notes)


STUDY = Study(
    "susy",
    "VAE-1 on a table of SUSY's format",
    "18 features, 12 latents, networks of 128 and 24 units (ReLU), one learned variance, batches of 1,024; --data "
    "reads the file of UCI, without it a stand-in of the same format is drawn.",
    run,
    takes_data=True,
    cost=7.0,
)
