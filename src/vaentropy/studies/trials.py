"""Trainings that a study compares: arms, their replicates, and a row of the table for each."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.data import Dataset
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Source
from vaentropy.expectation import MonteCarlo
from vaentropy.results import Evaluation
from vaentropy.runs.build import torch_device
from vaentropy.seeding import seeded
from vaentropy.studies.study import Plan
from vaentropy.training import History, fit, fit_replicates
from vaentropy.vae import VAE

__all__ = [
    "PUBLISHED",
    "Arm",
    "Trials",
    "gain_of_twice_the_epochs",
    "load_for",
    "load_rescaled",
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
        options: of `fit` that differ from its defaults.
        exact: options of `fit` with the paper's optimiser, epochs among them; None where the paper has no such arm, so
            that ours stand.
        after_epoch: is called with the model after each epoch.
    """

    name: str
    model: Callable[[tuple[int, ...]], VAE]
    epochs: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, Any] | None = None
    after_epoch: Callable[[VAE], None] | None = None

    def settings(self, plan: Plan) -> dict[str, Any]:
        """Options of `fit`, epochs among them."""
        if plan.exact_settings and self.exact is not None:
            return {**PUBLISHED, **self.exact}
        return {"epochs": plan.pick(quick=self.epochs[0], paper=self.epochs[1]), **self.options}


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
    """A data set of the catalogue in memory, its files in the plan's folder; see `vaentropy.data.load`."""
    from vaentropy.data import load

    folder = None if name not in ("mnist", "fashion-mnist", "susy") else plan.data_folder
    return load(name, folder=folder, **{"stream": False, "seed": plan.seed, **options})


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
    if replicates > 1 and arm.after_epoch is None and not {"compile", "precision", "patience"} & set(options):
        rate = {"learning_rates": options.pop("learning_rate")} if "learning_rate" in options else {}
        histories = fit_replicates(models, x, seeds=seeds, **rate, **options)
    else:
        histories = [
            fit(model, x, seed=seed, on_epoch=_calling(arm, model), **options)
            for seed, model in zip(seeds, models, strict=True)
        ]
    return Trials(arm, models, histories, time.perf_counter() - start)


def _calling(arm: Arm, model: VAE) -> Callable[[Any], None] | None:
    after = arm.after_epoch
    return None if after is None else lambda row: after(model)


def gain_of_twice_the_epochs(trials: Trials, x: Tensor, plan: Plan) -> float:
    """ELBO of the training data that the first replicate would have gained by twice the epochs, nats per data point.

    A schedule that ends at a learning rate of 0 makes any training look as if it had arrived; this tells if it has.
    """
    first = trials.histories[0].train
    longer = train(trials.arm, x, None, plan, 1, epochs=2 * trials.epochs).histories[0].train
    assert first is not None
    assert longer is not None
    return longer.elbo - first.elbo


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
    row["diverged"] = sum("became" in (history.stopped or "") for history in trials.histories)
    row["seconds"] = trials.seconds
    return row


def _evaluated(evaluation: Evaluation | None) -> Evaluation:
    assert evaluation is not None  # every training ends with one
    return evaluation


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    finite = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    low, middle, high = finite.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return low, middle, high
