"""`Loop`: steps and checkpoints, and what to do when training diverges or is interrupted."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from vaentropy._typing import Tensor
from vaentropy.errors import TrainingError
from vaentropy.expectation import Nodes
from vaentropy.progress import Report
from vaentropy.training.checkpoint import Checkpoints
from vaentropy.training.compiling import COMPILING_PAYS, Compiled
from vaentropy.training.course import Course
from vaentropy.training.data import TrainingData
from vaentropy.training.distributed.batches import OwnRows, Share
from vaentropy.training.distributed.step import Shared, Unwritten
from vaentropy.training.graphed import Graphed
from vaentropy.training.history import Row
from vaentropy.training.interruption import Interrupted, Interruption
from vaentropy.training.micro_batches import gradients_in_parts
from vaentropy.training.resuming import newest, past
from vaentropy.training.settings import Settings
from vaentropy.training.state import Snapshot, TrainingState
from vaentropy.training.step import Gradients, RunningSums, as_input, gradients, training_step
from vaentropy.world import ALONE, Packet, World

__all__ = ["Loop"]

logger = logging.getLogger(__name__)

# After training has diverged it goes on from the last good epoch with the learning rate times this.
ROLLBACK_FACTOR = 0.1
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
        on_divergence: called with the ELBO where training has diverged; None goes back to the last good epoch, with a
            lower learning rate.
        world: processes that all go through the same training together. Only the first one writes checkpoints.
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
    on_divergence: Callable[["Loop", float], None] | None = None
    world: World = ALONE

    def __post_init__(self) -> None:
        if self.checkpoints is not None and not self.world.first:
            self.checkpoints = Unwritten(self.checkpoints.folder)
        self.course = Course(
            self.state.model,
            self.state.progress,
            self.data,
            self.held_out,
            self.settings,
            self.log_jacobian,
            self.interruption,
            self._keep_best,
            self._put_back_best,
            self.world,
        )
        self.highest_rates = [group["lr"] for group in self.state.optimizer.param_groups]
        # An epoch of large data may take an hour; a step of small ones takes less than to draw the bar.
        self.show_every = max(MIN_STEPS_SHOWN, self.course.num_steps // 1000)
        self.gradients = self._gradients()
        self.epoch_start = self.state.snapshot()
        self.best: Snapshot | None = None
        self.shown, self.note = 0, ""
        # What a checkpoint has to have been made under.
        self.circumstances = {**self.settings.describe(), **self.data.describe()} if self.checkpoints else {}

    def _gradients(self) -> Gradients:
        rows = self.settings.micro_batch_size
        if not self.world.alone:
            # Sums between processes in the midst of it can be neither compiled nor recorded.
            return Shared(self.world, self.state.model, rows)
        device, compiled = self.state.noise.device.type, self.settings.compile
        if compiled is None:
            compiled = self.course.num_steps >= COMPILING_PAYS and device == "cpu"
        # Of parts only the passes are compiled, and nothing is recorded: a replay would take the place of gradients.
        step = gradients if rows is None else partial(gradients_in_parts, rows=rows)
        call = Compiled(step=step) if compiled else step
        recorded = device == "cuda" and self.settings.compile is not False and rows is None
        return Graphed(call, self.state.model.parameters) if recorded else call

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
        self.world.from_first(self._begin)
        self._checkpoint()

    def _begin(self) -> Packet:
        assert self.checkpoints is not None
        self.checkpoints.begin()
        return Packet({}, None)

    def _resume(self, checkpoints: Checkpoints) -> bool:
        found = newest(self.world, checkpoints, self.circumstances)
        if found is None:
            return False
        now, self.epoch_start = found
        self.state.restore(now, where=f"the checkpoint in {checkpoints.folder}")
        rows, self.best = past(self.world, checkpoints, self.state.progress, patience=bool(self.settings.patience))
        self.course.resume(rows)
        self._show("resumed")
        return True

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: training diverged more often than allowed.
            Interrupted: by a signal, after a checkpoint.
        """
        try:
            if self.state.progress.finished:
                # Resumed after the end: everything is there but the evaluations, which no checkpoint holds.
                self.course.evaluate()
            while not self.state.progress.finished:
                self._epoch()
        except Interrupted as interrupted:
            if interrupted.at_once or self.checkpoints is None:
                raise
            self._checkpoint()
            raise Interrupted(interrupted.signal, f"interrupted after step {self.state.progress.step:,}") from None

    def _epoch(self) -> None:
        progress = self.state.progress
        done = progress.step - progress.rows * len(self.data)
        for batch in self.data.epoch(progress.rows + 1, done, self.world) if done < len(self.data) else ():
            self._step(batch)
            if progress.step - self.shown >= self.show_every:
                self._show()
            if self._due_now() and not self._diverged(self._means()["elbo"]):
                self._checkpoint()
            self._stop_if_asked()
        means = self._means()
        if not self._diverged(means["elbo"]):
            self._end_epoch(means)
        elif self.on_divergence:
            self.on_divergence(self, means["elbo"])
        else:
            self._roll_back(means["elbo"])

    def _show(self, note: str | None = None) -> None:
        """Bring the progress bar to where training is; a rollback takes it back."""
        self.note = self.note if note is None else note
        self.report(self.note, self.state.progress.step - self.shown)
        self.shown = self.state.progress.step

    # Within an epoch.

    def _step(self, own: OwnRows) -> None:
        state, settings, progress = self.state, self.settings, self.state.progress
        batch, share, num_rows = own
        factor = self.course.rate(progress.step)
        for group, highest in zip(state.optimizer.param_groups, self.highest_rates, strict=True):
            group["lr"] = highest * factor
        nodes = settings.expectation.nodes(num_rows, state.model.latent_shape, generator=state.noise, dtype=batch.dtype)
        if isinstance(self.gradients, Shared):
            nodes = self._own(self.gradients, share, nodes)
        observed = None
        if self.data.may_be_missing:
            observed = ~batch.isnan()
            batch = batch.masked_fill(~observed, 0.0)
        sums = training_step(
            state.model,
            batch,
            nodes,
            state.optimizer,
            observed=observed,
            beta=as_input(self.course.beta(progress.step), batch),
            adapt=settings.adapt(num_rows),
            clip_norm=settings.clip_norm,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by Settings
            gradients=self.gradients,
        )
        state.sums.add(sums, num_rows)
        progress.step += 1

    def _due_now(self) -> bool:
        """Whether a checkpoint is due after the step, in all processes."""
        return self.gradients.due if isinstance(self.gradients, Shared) else self._due(self.state.progress.step)

    def _stop_if_asked(self) -> None:
        """Raise the signal that has come, in all processes after the same step."""
        if not isinstance(self.gradients, Shared):
            self.interruption.check()
        elif self.gradients.signal is not None:
            self.interruption.check(self.gradients.signal)

    def _own(self, gradients: Shared, share: Share, nodes: Nodes) -> Nodes:
        """The noise of this process's rows of a batch; and what the step is to tell the others."""
        gradients.share, gradients.signal = share.fraction, self.interruption.signal
        gradients.due = self._due(self.state.progress.step + 1)
        noise = nodes.noise if nodes.noise.shape[1] == 1 else nodes.noise[:, share.rows]
        return replace(nodes, noise=noise)

    def _due(self, step: int) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(step)

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
        self.state.progress.seconds = self.course.seconds
        return self.state.snapshot(over)

    def _end_epoch(self, means: Row) -> None:
        row, progress = self.course.end_epoch(means), self.state.progress
        if self.checkpoints:
            self.checkpoints.append(row)
        self.state.sums = RunningSums()
        self.epoch_start = self._snapshot(self.epoch_start)
        if self.checkpoints and self.world.any(progress.finished or self._due(progress.step)):
            self._checkpoint()
        if self.on_epoch:
            self.on_epoch(row)
        self._show(
            "ELBO {running_elbo:.3f}  entropy sum {running_entropy_sum:.3f}  gap {running_gap:.3f}".format(**row)
        )

    # The best state.

    def _keep_best(self) -> None:
        if self.checkpoints:
            self.checkpoints.save_best(self._snapshot())
        if self.settings.patience:
            # Kept in memory as well: without checkpoints there is no other place.
            self.best = self._snapshot(self.best)

    def _put_back_best(self) -> None:
        if self.best is None:
            raise TrainingError(
                f"the state with the best held-out ELBO, of step {self.state.progress.best_step}, is missing from "
                "checkpoints/ or damaged; start anew in another folder"
            )
        self.state.restore_weights(self.best)

    # When it goes wrong.

    def _diverged(self, elbo: float) -> bool:
        # The last step can spoil weights of which no sum has been made yet.
        weights = self.state.model.parameters()
        spoiled = self.course.exploded(elbo) or not all(bool(torch.isfinite(each).all()) for each in weights)
        return self.world.any(spoiled)

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
        progress.rollbacks, progress.learning_rate_factor = rollbacks, factor
        self._show()
        # A further rollback comes back to here, and keeps the count.
        self.epoch_start = self._snapshot(self.epoch_start)
        if self.checkpoints:
            self._checkpoint()
        if not self.world.first:
            return
        logger.warning(
            "%s: going back to the end of epoch %d, with learning rate %g instead of %g (rollback %d of %d)",
            happened,
            progress.rows,
            rate * ROLLBACK_FACTOR,
            rate,
            rollbacks,
            self.settings.max_rollbacks,
        )
