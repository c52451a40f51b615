"""Trainings that a study compares: arms, their replicates, and a row of the table for each."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.data import Dataset, load
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Source
from vaentropy.expectation import MonteCarlo
from vaentropy.results import Evaluation
from vaentropy.runs.build import torch_device
from vaentropy.seeding import seeded
from vaentropy.studies.study import Plan
from vaentropy.training import History, fit, fit_replicates
from vaentropy.training.history import Row
from vaentropy.vae import VAE

__all__ = [
    "PUBLISHED",
    "Arm",
    "Trials",
    "gain_of_twice_the_epochs",
    "load_for",
    "load_rescaled",
    "num_diverged",
    "plateau_note",
    "points",
    "summary",
    "train",
]

# The optimiser of the paper; epochs and sizes of batches differ between its experiments. Its code learns σ through a
# softplus, where a step moves log σ² by 1.4 (at σ = 0.7) to 2 times (for small σ) as much as one of log σ² itself.
PUBLISHED: Mapping[str, Any] = {
    "learning_rate": 1e-3,
    "variance_learning_rate": 2e-3,
    "schedule": "constant",
    "variances": "learned",
    "expectation": MonteCarlo(100),
}
# Of the held-out data, over a training; each of a hundred replicates takes its time.
NUM_EVALUATIONS = 5


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: in the table.
        model: an untrained model for a data shape.
        epochs: of our optimiser, (quick, paper).
        options: of `fit`, for our optimiser, that differ from its defaults.
        exact: options of `fit` with the paper's optimiser, epochs among them; None where the paper has no such arm, so
            that ours stand.
        always: options of `fit` with either, such as how evaluations are made.
        after_epoch: is called with the model after each epoch.
    """

    name: str
    model: Callable[[tuple[int, ...]], VAE]
    epochs: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, Any] | None = None
    always: Mapping[str, Any] = field(default_factory=dict)
    after_epoch: Callable[[VAE], None] | None = None

    def settings(self, plan: Plan) -> dict[str, Any]:
        """Options of `fit`, epochs among them."""
        if plan.exact_settings and self.exact is not None:
            return {**PUBLISHED, **self.exact, **self.always}
        epochs = plan.pick(quick=self.epochs[0], paper=self.epochs[1])
        return {"epochs": epochs, **self.options, **self.always}


@dataclass(frozen=True, eq=False)
class Trials:
    """Replicates of an arm, trained.

    Attributes:
        arm: what they are replicates of.
        models: trained.
        histories: one each.
        seconds: for all of them.
    """

    arm: Arm
    models: Sequence[VAE]
    histories: Sequence[History]
    seconds: float

    @property
    def epochs(self) -> int:
        """How many they were trained for, the longest of them."""
        return max(len(history) for history in self.histories)


def load_for(plan: Plan, name: str, **options: Any) -> Dataset:
    """A data set of the catalogue in memory, its files, if it has any, in the plan's folder; see `data.load`."""
    return load(name, folder=plan.data_folder, **{"stream": False, "seed": plan.seed, **options})


def load_rescaled(plan: Plan, name: str, deviation: float) -> Dataset:
    """As `load_for`, each feature scaled to mean 0 and this standard deviation on the training part."""
    standard = load_for(plan, name, scale="standard").scaling
    return load_for(plan, name, scale=Scaling(standard.shift, standard.scale / deviation))


def points(x: Tensor | Source, number: int | None = None) -> Tensor:
    """The first points of a part of a data set that is in memory; None is all."""
    assert isinstance(x, Tensor)
    return x[:number]


def train(
    arm: Arm, x: Tensor, held_out: Tensor | None, plan: Plan, replicates: int, *, epochs: int | None = None
) -> Trials:
    """Train replicates of an arm: seeds of weights, batches and noise count from the plan's on.

    Args:
        arm: what to train.
        x: (N, *data_shape).
        held_out: the same, or None.
        plan: its scale, settings, seed and device.
        replicates: how many.
        epochs: in place of the arm's.

    A replicate that diverges stops at its last good epoch; one of an arm with `after_epoch` goes back there and on, as
    `fit` does.

    Raises:
        VaentropyError: training failed.
    """
    start, device = time.perf_counter(), torch_device(plan.device)
    seeds, models = list(range(plan.seed, plan.seed + replicates)), []
    for seed in seeds:
        with seeded(seed, torch.device("cpu")):
            models.append(arm.model(tuple(x.shape[1:])).to(device))
    settings = arm.settings(plan)
    settings["epochs"] = epochs or settings["epochs"]
    settings.setdefault("evaluate_every", max(1, settings["epochs"] // NUM_EVALUATIONS))
    options = {"held_out": held_out, "progress": plan.progress, **settings}
    if arm.after_epoch is None:
        rate = {"learning_rates": options.pop("learning_rate")} if "learning_rate" in options else {}
        histories = fit_replicates(models, x, seeds=seeds, **rate, **options)
    else:
        # While models train together, their parameters are elsewhere.
        histories = [
            fit(model, x, seed=seed, on_epoch=_calling(arm.after_epoch, model), **options)
            for seed, model in zip(seeds, models, strict=True)
        ]
    return Trials(arm, models, histories, time.perf_counter() - start)


def _calling(after_epoch: Callable[[VAE], None], model: VAE) -> Callable[[Row], None]:
    return lambda row: after_epoch(model)


def gain_of_twice_the_epochs(trials: Trials, x: Tensor, plan: Plan) -> float:
    """ELBO of the training data that the first replicate would have gained by twice the epochs, nats per data point.

    A schedule that ends at a learning rate of 0 makes any training look as if it had arrived; this tells if it has.
    """
    longer = train(trials.arm, x, None, plan, 1, epochs=2 * trials.epochs).histories[0]
    return _evaluated(longer.train).elbo - _evaluated(trials.histories[0].train).elbo


def plateau_note(trials: Trials, x: Tensor, plan: Plan, *, of: str = "the first replicate") -> list[str]:
    """`gain_of_twice_the_epochs` in a sentence; none where training was not meant to reach a plateau by our optimiser.

    Args:
        trials, x, plan: of the training.
        of: whose ELBO it is.
    """
    if plan.scale == "quick" or plan.exact_settings:
        return []
    return [f"Twice the epochs change the ELBO of {of} by {gain_of_twice_the_epochs(trials, x, plan):+.2f} nats."]


def summary(trials: Trials) -> dict[str, Any]:
    """A row of the table: medians over the replicates, nats per data point; quartiles of the relative gap."""
    train = [_evaluated(history.train) for history in trials.histories]
    held_out = [history.held_out for history in trials.histories if history.held_out is not None]
    low, middle, high = _quartiles([each.relative_gap for each in train])
    row: dict[str, Any] = {
        "training": trials.arm.name,
        "replicates": len(train),
        "epochs": trials.epochs,
        "elbo": statistics.median(each.elbo for each in train),
        "entropy_sum": statistics.median(each.entropy_sum for each in train),
        "relative_gap": middle,
        "relative_gap_q1": low,
        "relative_gap_q3": high,
    }
    if held_out:
        row["held_out_elbo"] = statistics.median(each.elbo for each in held_out)
        row["held_out_relative_gap"] = statistics.median(each.relative_gap for each in held_out)
    row["diverged"] = num_diverged(trials)
    row["seconds"] = trials.seconds
    return row


def num_diverged(trials: Trials) -> int:
    """How many replicates diverged at some time, and so stopped early or went back."""
    # No study stops a training for another reason.
    return sum(
        history.stopped is not None or any(row.get("rollbacks") for row in history.rows) for history in trials.histories
    )


def _evaluated(evaluation: Evaluation | None) -> Evaluation:
    assert evaluation is not None  # every training ends with one
    return evaluation


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    finite = torch.tensor([value for value in values if math.isfinite(value)] or [math.nan], dtype=torch.float64)
    low, middle, high = finite.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return low, middle, high
