"""Posterior collapse: which latents have the prior's entropy, with σ² = 1 fixed and with σ² learned."""

from vaentropy.studies.activity import activity, arms, finding, plot_activity
from vaentropy.studies.study import Outcome, Plan, Study
from vaentropy.studies.susy_table import susy_table
from vaentropy.studies.trials import load_for, plateau_note, points, train

IMAGES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
IMAGES_QUICK = 4_000
OF_IMAGES = arms(
    lambda family, shape: family(shape, 20, (50, 50)),
    epochs=(15, 30),
    options={"learning_rate": 1e-2},
    exact={"batch_size": 2_000, "epochs": 200},
)
# Half of them are held out.
ROWS_QUICK, ROWS_PAPER = 20_000, 500_000
OF_TABLES = arms(
    lambda family, shape: family(shape, 12, (128, 24)),
    epochs=(30, 30),
    options={"learning_rate": 1e-2, "batch_size": 1_024},
    exact={"batch_size": 1_024, "epochs": 150},
)


def run(plan: Plan) -> Outcome:
    """Train both on each data set; count the latents that are active."""
    rows = plan.pick(quick=ROWS_QUICK, paper=ROWS_PAPER)
    replicates = plan.num_replicates(quick=1, paper=1)
    sets = [(title, load_for(plan, name), OF_IMAGES, _images(plan)) for name, title in IMAGES.items()]
    sets.append((*susy_table(plan, rows), OF_TABLES, rows // 2))
    every, table, notes = {}, [], []
    for name, data, compared, number in sets:
        x, held_out = points(data.train, number), points(data.held_out, number)
        every[name] = [train(arm, x, held_out, plan, replicates) for arm in compared]
        table += [activity(name, trials, x) for trials in every[name]]
        notes.append(f"{name}, {data.description}: {len(x):,} points to train on, {len(held_out):,} held out.")
        notes += plateau_note(every[name][1], x, plan, of=f"the first replicate with learned σ² on {name}")
    notes.append("Whether σ² = 1 is much depends on the scale of the data: see mean_variance_of_features.")
    return Outcome(table, plot_activity(every), finding(table), notes)


def _images(plan: Plan) -> int | None:
    return plan.pick(quick=IMAGES_QUICK, paper=None)


STUDY = Study(
    "collapse",
    "Posterior collapse with σ² fixed and learned",
    "Images: 20 latents, networks of 50 and 50 units (ReLU); table of SUSY's format (--data reads the file of UCI, "
    "without it a stand-in is drawn): 12 latents, 128 and 24 units. VAE-0 (σ² = 1) and VAE-1, all else equal.",
    run,
    takes_data=True,
    cost=10.0,
)
