"""`Loop`: epochs of steps, evaluations, and what to do when training diverges, is interrupted or no longer improves."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vaentropy._typing import Tensor
from vaentropy.calibration import optimal_factors
from vaentropy.errors import TrainingError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation
from vaentropy.progress import Report
from vaentropy.results import Evaluation
from vaentropy.training.checkpoint import Checkpoints
from vaentropy.training.compiling import COMPILING_PAYS, Compiled
from vaentropy.training.data import TrainingData
from vaentropy.training.floor import at_floor
from vaentropy.training.history import History, Row
from vaentropy.training.interruption import Interrupted, Interruption
from vaentropy.training.schedules import CYCLE_RISE, LEARNING_RATES, as_schedule
from vaentropy.training.settings import Settings, require_same
from vaentropy.training.state import Snapshot, TrainingState
from vaentropy.training.step import Gradients, RunningSums, gradients, training_step

__all__ = ["Loop"]

logger = logging.getLogger(__name__)

# After training has diverged it goes on from the last good epoch with the learning rate times this.
ROLLBACK_FACTOR = 0.1
# A running ELBO that has fallen by so many times the size of the first one counts as diverged.
EXPLOSION = 100.0
# Entropy sums of so many epochs are averaged, and compared with those of as many before, to see a plateau.
PLATEAU_EPOCHS = 10
# The progress bar moves after so many steps at the least, and after each epoch.
MIN_STEPS_SHOWN = 10


@dataclass
class Loop:
    """One training, from wherever its state is to its end.

    Args:
        state: of the model.
        data: to train on.
        held_out: to evaluate as well; None where there are none.
        settings: checked.
        log_jacobian: for evaluations.
        report: progress bar.
        interruption: signals.
        checkpoints: where to write checkpoints and history; None writes none.
        on_epoch: called with each new row.
    """

    state: TrainingState
    data: TrainingData
    held_out: TrainingData | None
    settings: Settings
    log_jacobian: Tensor | float
    report: Report
    interruption: Interruption
    checkpoints: Checkpoints | None = None
    on_epoch: Callable[[Row], None] | None = None

    def __post_init__(self) -> None:
        self.history = History()
        self.beta_at = as_schedule(self.settings.beta)
        self.rate_at = LEARNING_RATES[self.settings.schedule]
        self.highest_rates = [group["lr"] for group in self.state.optimizer.param_groups]
        self.num_steps = self.settings.epochs * len(self.data)
        # An epoch of large data may take an hour; a step of small ones takes less than to draw the bar.
        self.show_every = max(MIN_STEPS_SHOWN, self.num_steps // 1000)
        self.gradients = self._gradients()
        self.on_divergence: Callable[[float], None] = self._roll_back
        self.epoch_start = self.state.snapshot()
        self.best: Snapshot | None = None
        self.clock = time.perf_counter()
        self.shown, self.note = 0, ""
        # What a checkpoint has to have been made under.
        self.circumstances = {**self.settings.describe(), **self.data.describe()} if self.checkpoints else {}

    def _gradients(self) -> Gradients:
        compiled = self.settings.compile
        if compiled is None:
            # Measured on the CPU alone.
            compiled = self.num_steps >= COMPILING_PAYS and self.state.noise.device.type == "cpu"
        return Compiled() if compiled else gradients

    def begin(self, *, resume: bool) -> None:
        """Go to the newest checkpoint, or write the first one.

        Args:
            resume: whether there may be a checkpoint.

        Raises:
            UsageError: the folder holds a training and `resume` is False, or one of other settings or data.
            DataError: no checkpoint can be read, or it is not of this model.
        """
        if self.checkpoints is None or (resume and self._resume(self.checkpoints)):
            return
        self.checkpoints.begin()
        self._checkpoint()

    def _resume(self, checkpoints: Checkpoints) -> bool:
        found = checkpoints.newest()
        if found is None:
            return False
        now, self.epoch_start, stored = found
        require_same(self.circumstances, stored)
        self.state.restore(now, where=f"the checkpoint in {checkpoints.folder}")
        self.history.rows = checkpoints.rows(self.state.progress.rows)
        if self.settings.patience and self.state.progress.best_elbo is not None:
            self.best = checkpoints.best(self.state.progress.best_step)
        self.clock = time.perf_counter() - self.state.progress.seconds
        self._show("resumed")
        return True

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: training diverged more often than allowed.
            Interrupted: by a signal, after a checkpoint.
        """
        try:
            while not self.state.progress.finished:
                self._epoch()
            if self.history.train is None:
                # Resumed after the end: everything is there but the evaluations, which no checkpoint holds.
                self._evaluate_both()
        except Interrupted as interrupted:
            if interrupted.at_once or self.checkpoints is None:
                raise
            self._checkpoint()
            raise Interrupted(interrupted.signal, f"interrupted after step {self.state.progress.step:,}") from None

    def _epoch(self) -> None:
        progress = self.state.progress
        done = progress.step - progress.rows * len(self.data)
        for batch in self.data.epoch(progress.rows + 1, done) if done < len(self.data) else ():
            self._step(batch)
            if progress.step - self.shown >= self.show_every:
                self._show()
            if self.checkpoints and self.checkpoints.due(progress.step) and not self._diverged(self._means()["elbo"]):
                self._checkpoint()
            self.interruption.check()
        means = self._means()
        if self._diverged(means["elbo"]):
            self.on_divergence(means["elbo"])
        else:
            self.end_epoch(means)

    def _show(self, note: str | None = None) -> None:
        """Bring the progress bar to where training is; a rollback takes it back."""
        self.note = self.note if note is None else note
        self.report(self.note, self.state.progress.step - self.shown)
        self.shown = self.state.progress.step

    # Within an epoch.

    def done(self, step: int) -> float:
        """Fraction of all steps that are done before this one, 0 to 1."""
        return step / max(1, self.num_steps - 1)

    def _rate_factor(self, step: int) -> float:
        return self.state.progress.learning_rate_factor * self.rate_at(self.done(step))

    def _step(self, batch: Tensor) -> None:
        state, settings, progress = self.state, self.settings, self.state.progress
        done = self.done(progress.step)
        factor = self._rate_factor(progress.step)
        for group, highest in zip(state.optimizer.param_groups, self.highest_rates, strict=True):
            group["lr"] = highest * factor
        observed = None
        if self.data.may_be_missing:
            observed = ~batch.isnan()
            batch = batch.masked_fill(~observed, 0.0)
        nodes = settings.expectation.nodes(
            len(batch), state.model.latent_shape, generator=state.noise, dtype=batch.dtype
        )
        sums = training_step(
            state.model,
            batch,
            nodes,
            state.optimizer,
            observed=observed,
            beta=self.beta_at(done),
            adapt=settings.adapt(len(batch)),
            clip_norm=settings.clip_norm,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
            gradients=self.gradients,
        )
        state.sums.add(sums, len(batch))
        progress.step += 1

    def _means(self) -> Row:
        return self.state.sums.read()

    def _checkpoint(self) -> None:
        assert self.checkpoints is not None
        start = self.epoch_start
        if self.state.progress.step == start.numbers["step"] or self._within_epoch_of_loader():
            self.checkpoints.save(start, self.circumstances)
        else:
            self.checkpoints.save(self._snapshot(), self.circumstances, start)

    def _within_epoch_of_loader(self) -> bool:
        done = self.state.progress.step - self.state.progress.rows * len(self.data)
        return not self.data.from_any_batch and 0 < done < len(self.data)

    def _snapshot(self, over: Snapshot | None = None) -> Snapshot:
        self.state.progress.seconds = time.perf_counter() - self.clock
        return self.state.snapshot(over)

    # When it goes wrong.

    def _diverged(self, elbo: float) -> bool:
        # The last step can spoil weights of which no sum has been made yet.
        weights = self.state.model.parameters()
        return self.exploded(elbo) or not all(bool(torch.isfinite(parameter).all()) for parameter in weights)

    def exploded(self, elbo: float) -> bool:
        """Whether a running ELBO is no number, or is far below the first one."""
        first = self.state.progress.first_elbo
        return not math.isfinite(elbo) or (first is not None and elbo < first - EXPLOSION * (1 + abs(first)))

    def _roll_back(self, elbo: float) -> None:
        progress = self.state.progress
        rate = self.settings.learning_rate * progress.learning_rate_factor
        happened = f"the ELBO became {elbo:.6g} in epoch {progress.rows + 1}"
        if progress.rollbacks >= self.settings.max_rollbacks:
            raise TrainingError(
                f"{happened}, after {progress.rollbacks} rollbacks; lower the learning rate (now {rate:g}), clip "
                "gradients (clip_norm=...), or standardise the data"
            )
        rollbacks, factor = progress.rollbacks + 1, progress.learning_rate_factor * ROLLBACK_FACTOR
        self.state.restore(self.epoch_start)
        self.state.progress.rollbacks, self.state.progress.learning_rate_factor = rollbacks, factor
        self._show()
        # A further rollback comes back to here, and keeps the count.
        self.epoch_start = self._snapshot(self.epoch_start)
        if self.checkpoints:
            self._checkpoint()
        logger.warning(
            "%s: going back to the end of epoch %d, with learning rate %g instead of %g (rollback %d of %d)",
            happened,
            self.state.progress.rows,
            rate * ROLLBACK_FACTOR,
            rate,
            rollbacks,
            self.settings.max_rollbacks,
        )

    # Between epochs. Signals are taken only within evaluations, and nothing has changed when they are: a checkpoint
    # made there goes on with the same evaluation.

    def end_epoch(self, means: Row) -> None:
        """Record a good epoch, with what is due after it; after the last one training is finished.

        Args:
            means: as `RunningSums.read` gives them.
        """
        progress = self.state.progress
        row: dict[str, Any] = {
            "epoch": progress.rows + 1,
            "step": progress.step,
            "beta": self.beta_at(self.done(progress.step - 1)),
            "learning_rate": self.settings.learning_rate * self._rate_factor(progress.step - 1),
            "rollbacks": progress.rollbacks,
            **_prefixed("running_", means),
        }
        if not progress.finishing:
            row |= self._judge(means)
        if progress.finishing:
            row |= self._finish()
        row["seconds"] = time.perf_counter() - self.clock
        self._record(row)

    def stop(self, reason: str) -> None:
        """End training where it is, between epochs; the last row gets what a last row has."""
        progress = self.state.progress
        progress.stopped, progress.finishing = reason, True
        summary = self._finish()
        if self.history.rows:
            row = dict(self.history.rows[-1])
            seconds = row.pop("seconds")
            self.history.rows[-1] = {**row, **summary, "seconds": seconds}
        progress.finished = True

    def _judge(self, means: Row) -> dict[str, float]:
        """Evaluate the held-out data where that is due, and see whether training is over."""
        settings, progress = self.settings, self.state.progress
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
            self._restore_best()
        return summary

    def _compare_with_best(self, elbo: float) -> None:
        progress = self.state.progress
        if progress.best_elbo is not None and not elbo > progress.best_elbo:
            progress.evaluations_since_best += 1
            return
        progress.best_elbo, progress.best_step, progress.evaluations_since_best = elbo, progress.step, 0
        if self.checkpoints:
            self.checkpoints.save_best(self._snapshot())
        if self.settings.patience:
            # Kept in memory as well: without checkpoints there is no other place.
            self.best = self._snapshot(self.best)

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

    def _restore_best(self) -> None:
        progress = self.state.progress
        if progress.best_step == progress.step:
            return
        if self.best is None:
            raise TrainingError(
                f"the state with the best held-out ELBO, of step {progress.best_step}, is missing from checkpoints/ or "
                "damaged; start anew in another folder"
            )
        self.state.restore_weights(self.best)
        progress.restored_epoch = progress.best_step // len(self.data)

    def _finish(self) -> dict[str, float]:
        progress = self.state.progress
        if not progress.variances_set:
            if self.settings.variances == "analytic":
                self._set_optimal_variances()
            progress.variances_set = True
        summary = self._evaluate_both()
        if progress.restored_epoch is not None:
            summary["restored_epoch"] = progress.restored_epoch
        self.history.stopped = progress.stopped
        return summary

    def _record(self, row: Row) -> None:
        progress = self.state.progress
        self.history.rows.append(row)
        if self.checkpoints:
            self.checkpoints.append(row)
        progress.rows += 1
        progress.finished = progress.finishing
        self.state.sums = RunningSums()
        self.epoch_start = self._snapshot(self.epoch_start)
        if self.checkpoints and (progress.finished or self.checkpoints.due(progress.step)):
            self._checkpoint()
        if self.on_epoch:
            self.on_epoch(row)
        self._show(
            "ELBO {running_elbo:.3f}  entropy sum {running_entropy_sum:.3f}  gap {running_gap:.3f}".format(**row)
        )

    # Evaluations.

    def _evaluate(self, data: TrainingData, expectation: Expectation | None = None) -> Evaluation:
        return evaluate(
            self.state.model,
            data.rows,
            expectation=expectation or self.settings.evaluation_of(data.num_points),
            missing=self.settings.missing,  # type: ignore[arg-type]  # checked by Settings
            log_jacobian=self.log_jacobian,
            on_batch=lambda rows: self.interruption.check(),
        )

    def _evaluate_both(self) -> dict[str, float]:
        self.history.stopped = self.state.progress.stopped
        train = self._evaluate(self.data)
        held_out = None if self.held_out is None else self._evaluate(self.held_out)
        self.history.train, self.history.held_out = train, held_out
        summary = _summary("train_", train) | {"at_floor": at_floor(self.state.model, self.data.some())}
        return summary if held_out is None else summary | _summary("held_out_", held_out)

    def _set_optimal_variances(self) -> None:
        model, expectation = self.state.model, self.settings.evaluation_of(self.data.num_points)
        learned_prior = isinstance(model.prior_log_variance, nn.Parameter)
        # Other draws than those of the evaluation that follows: on the same ones residuals would be 0 by construction.
        if expectation.independent:
            expectation = expectation.with_seed(expectation.seed + 1)
        variance, prior = optimal_factors(self._evaluate(self.data, expectation), prior=learned_prior)
        model.rescale(variance_factor=variance if model.head.variance_parameters() else None, prior_factor=prior)


def _prefixed(prefix: str, values: Row) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def _summary(prefix: str, e: Evaluation) -> dict[str, float]:
    return _prefixed(prefix, {"elbo": e.elbo, "entropy_sum": e.entropy_sum, "gap": e.gap, "stderr": e.stderr.elbo})
