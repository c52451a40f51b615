"""`Course`: what a training has come to at the end of each epoch, and whether it is over."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from vaentropy._typing import Tensor
from vaentropy.calibration import optimal_factors
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation
from vaentropy.results import Evaluation
from vaentropy.training.data import TrainingData
from vaentropy.training.distributed.evaluation import evaluate_together
from vaentropy.training.floor import at_floor
from vaentropy.training.history import History, Row
from vaentropy.training.interruption import Interruption
from vaentropy.training.schedules import CYCLE_RISE, LEARNING_RATES, as_schedule
from vaentropy.training.settings import Settings
from vaentropy.training.state import Progress
from vaentropy.vae import VAE
from vaentropy.world import ALONE, World

__all__ = ["Course"]

# A running ELBO that has fallen by so many times the size of the first one counts as diverged.
EXPLOSION = 100.0
# Entropy sums of so many epochs are averaged, and compared with those of as many before, to see a plateau.
PLATEAU_EPOCHS = 10


def _nothing() -> None:
    return


@dataclass
class Course:
    """The history of one training, with evaluations and the decision when to stop; its steps are taken elsewhere.

    Signals are taken only within evaluations, and nothing has changed when they are: a checkpoint made there goes on
    with the same evaluation.

    Args:
        model: changed by the steps; here only its variances are set, at the end.
        progress: where training is; `step` is counted by who takes the steps.
        data: trained on.
        held_out: to evaluate as well; None where there are none.
        settings: checked.
        log_jacobian: for evaluations.
        interruption: signals.
        keep_best: called where the held-out ELBO is better than ever, to keep the weights.
        put_back_best: called to put these back.
        world: processes that all go through the same course together.
    """

    model: VAE
    progress: Progress
    data: TrainingData
    held_out: TrainingData | None
    settings: Settings
    log_jacobian: Tensor | float
    interruption: Interruption
    keep_best: Callable[[], None] = _nothing
    put_back_best: Callable[[], None] = _nothing
    world: World = ALONE

    def __post_init__(self) -> None:
        self.history = History()
        self.num_steps = self.settings.epochs * len(self.data)
        self._beta = as_schedule(self.settings.beta)
        self._rate = LEARNING_RATES[self.settings.schedule]
        self._begun = time.perf_counter()

    def resume(self, rows: list[Row]) -> None:
        """Go on from here, with the history so far."""
        self.history.rows = rows
        self._begun = time.perf_counter() - self.progress.seconds

    @property
    def seconds(self) -> float:
        """Spent, over all interruptions."""
        return time.perf_counter() - self._begun

    # Schedules.

    def _done(self, step: int) -> float:
        """Fraction of all steps that are done before this one, 0 to 1."""
        return step / max(1, self.num_steps - 1)

    def beta(self, step: int) -> float:
        """Weight of the KL term in a step; the first is 0."""
        return self._beta(self._done(step))

    def rate(self, step: int) -> float:
        """Factor on all learning rates in a step."""
        return self.progress.learning_rate_factor * self._rate(self._done(step))

    # Judgement.

    def exploded(self, elbo: float) -> bool:
        """Whether a running ELBO is no number, or is far below the first one."""
        first = self.progress.first_elbo
        return not math.isfinite(elbo) or (first is not None and elbo < first - EXPLOSION * (1 + abs(first)))

    def end_epoch(self, means: Row) -> Row:
        """The row of a good epoch, with what is due after it; after the last one training is finished.

        Args:
            means: as `RunningSums.read` gives them.
        """
        progress = self.progress
        row: dict[str, Any] = {
            "epoch": progress.rows + 1,
            "step": progress.step,
            "beta": self.beta(progress.step - 1),
            "learning_rate": self.settings.learning_rate * self.rate(progress.step - 1),
            "rollbacks": progress.rollbacks,
            **_prefixed("running_", means),
        }
        if not progress.finishing:
            row |= self._judge(means)
        if progress.finishing:
            row |= self._finish()
        row["seconds"] = self.seconds
        self.history.rows.append(row)
        progress.rows += 1
        progress.finished = progress.finishing
        return row

    def stop(self, reason: str) -> None:
        """End training where it is, between epochs; the last row gets what a last row has."""
        progress = self.progress
        progress.stopped, progress.finishing = reason, True
        summary = self._finish()
        if self.history.rows:
            row = dict(self.history.rows[-1])
            seconds = row.pop("seconds")
            self.history.rows[-1] = {**row, **summary, "seconds": seconds}
        progress.finished = True

    def _judge(self, means: Row) -> dict[str, float]:
        """Evaluate the held-out data where that is due, and see whether training is over."""
        settings, progress = self.settings, self.progress
        epoch = progress.rows + 1
        last = epoch == settings.epochs
        summary: dict[str, float] = {}
        due = last or epoch % settings.epochs_between_evaluations == 0
        if self.held_out is not None and due and (settings.patience or not last):
            held_out = self.history.held_out = self._evaluate(self.held_out)
            summary = _summary("held_out_", held_out)
            self._compare_with_best(held_out.elbo)
        stopped = None
        if settings.patience and progress.evaluations_since_best >= settings.patience:
            stopped = f"no better held-out ELBO in {settings.patience} evaluations"
        elif settings.plateau and self._rise(means["entropy_sum"]) < settings.plateau:
            stopped = f"the entropy sum rose by less than {settings.plateau:g} nats in {PLATEAU_EPOCHS} epochs"
        progress.first_elbo = means["elbo"] if progress.first_elbo is None else progress.first_elbo
        progress.stopped = None if last else stopped
        progress.finishing = last or stopped is not None
        if progress.finishing and settings.patience and self.held_out is not None:
            self._end_with_best()
        return summary

    def _compare_with_best(self, elbo: float) -> None:
        progress = self.progress
        if progress.best_elbo is not None and not elbo > progress.best_elbo:
            progress.evaluations_since_best += 1
            return
        progress.best_elbo, progress.best_step, progress.evaluations_since_best = elbo, progress.step, 0
        self.keep_best()

    def _end_with_best(self) -> None:
        progress = self.progress
        if progress.best_step != progress.step:
            self.put_back_best()
            progress.restored_epoch = progress.best_step // len(self.data)

    def _rise(self, entropy_sum: float) -> float:
        """How far the running entropy sum rose from one window of epochs to the next; infinite before there are two."""
        # While the learning rate rises, little progress says nothing.
        rising = self.num_steps * CYCLE_RISE if self.settings.schedule == "one_cycle" else 0
        sums = [row["running_entropy_sum"] for row in self.history.rows if row["step"] > rising]
        sums.append(entropy_sum)
        if len(sums) < 2 * PLATEAU_EPOCHS:
            return math.inf
        now, before = sums[-PLATEAU_EPOCHS:], sums[-2 * PLATEAU_EPOCHS : -PLATEAU_EPOCHS]
        return (sum(now) - sum(before)) / PLATEAU_EPOCHS

    # The end.

    def _finish(self) -> dict[str, float]:
        progress = self.progress
        if not progress.variances_set:
            if self.settings.variances == "analytic":
                self._set_optimal_variances()
            progress.variances_set = True
        summary = self.evaluate()
        if progress.restored_epoch is not None:
            summary["restored_epoch"] = progress.restored_epoch
        return summary

    def _set_optimal_variances(self) -> None:
        model, expectation = self.model, self.settings.evaluation_of(self.data.num_points)
        learned_prior = isinstance(model.prior_log_variance, nn.Parameter)
        # Other draws than those of the evaluation that follows: on the same ones residuals would be 0 by construction.
        if expectation.independent:
            expectation = expectation.with_seed(expectation.seed + 1)
        variance, prior = optimal_factors(self._evaluate(self.data, expectation), prior=learned_prior)
        model.rescale(variance_factor=variance if model.head.variance_parameters() else None, prior_factor=prior)

    def evaluate(self) -> dict[str, float]:
        """Evaluate training and held-out data, for the history and for its last row."""
        train = self._evaluate(self.data)
        held_out = None if self.held_out is None else self._evaluate(self.held_out)
        self.history.train, self.history.held_out, self.history.stopped = train, held_out, self.progress.stopped
        summary = _summary("train_", train) | {"at_floor": at_floor(self.model, self.data.some())}
        return summary if held_out is None else summary | _summary("held_out_", held_out)

    def _evaluate(self, data: TrainingData, expectation: Expectation | None = None) -> Evaluation:
        expectation = expectation or self.settings.evaluation_of(data.num_points)
        missing: Any = self.settings.missing
        how = {"expectation": expectation, "missing": missing, "log_jacobian": self.log_jacobian}
        if not self.world.alone:
            assert not isinstance(data.rows, DataLoader)
            return evaluate_together(self.world, self.model, data.rows, interruption=self.interruption, **how)
        return evaluate(self.model, data.rows, on_batch=lambda rows: self.interruption.check(), **how)


def _prefixed(prefix: str, values: Row) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def _summary(prefix: str, e: Evaluation) -> dict[str, float]:
    return _prefixed(prefix, {"elbo": e.elbo, "entropy_sum": e.entropy_sum, "gap": e.gap, "stderr": e.stderr.elbo})
