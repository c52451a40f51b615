"""`Together`: models of one architecture that are trained as one, in the steps of a `Stack`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from vaentropy._typing import Num, Tensor
from vaentropy.data.batches import Batches
from vaentropy.progress import Report
from vaentropy.training.course import Course
from vaentropy.training.data import TrainingData
from vaentropy.training.history import Row
from vaentropy.training.stack import Stack
from vaentropy.training.step import RunningSums, as_input

__all__ = ["Together"]


@dataclass
class Together:
    """The training of some models that take their steps together.

    Args:
        courses: of each; their settings differ in seeds and learning rates at most.
        x: the data, in memory.
        report: progress bar, in steps of all.
        on_epoch: called with the place of a model among these and each new row of it.
        on_divergence: called with a model's course and ELBO where it has diverged, and has been taken out of the stack
            with the weights of the end of its last good epoch.
    """

    courses: Sequence[Course]
    x: TrainingData
    report: Report
    on_epoch: Callable[[int, Row], None]
    on_divergence: Callable[[Course, float], None]

    def run(self) -> None:
        """Train to the end."""
        self.settings = self.courses[0].settings
        device = self.x.device or torch.device("cpu")
        seeds = [course.settings.seed for course in self.courses]
        self.noise = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.stack = Stack([course.model for course in self.courses], [course.settings for course in self.courses])
        self.left, self.steps, self.note = set(range(len(self.courses))), 0, ""
        try:
            for epoch in range(1, self.settings.epochs + 1):
                if not self.left:
                    break
                self.stack.save()
                self._end_epoch(*self._epoch(epoch))
        finally:
            for row in self.left:
                self.stack.release(row)

    def _epoch(self, number: int) -> tuple[Tensor, int]:
        """Take the steps of an epoch; sums of each model (R, 3+2H), and the number of points."""
        total, num_points = None, 0
        for rows in self._orders(number):
            sums = self._step(rows)
            total = sums if total is None else total.add_(sums)
            num_points += rows.shape[1]
            self.report(self.note, 1)
        assert total is not None
        return total.cpu(), num_points

    def _orders(self, number: int) -> Iterator[Num[Tensor, "R B"]]:
        """Numbers of the rows in each model's batches."""
        rows = self.x.rows
        assert isinstance(rows, Tensor)
        batches = [Batches(rows, course.settings.batch_size, course.settings.seed) for course in self.courses]
        # One after the other, at half the size that they are made in.
        dtype = torch.int32 if len(rows) <= torch.iinfo(torch.int32).max else torch.int64
        orders = torch.empty(len(batches), len(rows), dtype=dtype, device=rows.device)
        for order, each in zip(orders, batches, strict=True):
            order.copy_(each.order(number))
        for batch in range(len(batches[0])):
            yield orders[:, batches[0].bound(batch) : batches[0].bound(batch + 1)]

    def _step(self, rows: Num[Tensor, "R B"]) -> Tensor:
        x, settings, leader = self.x.rows, self.settings, self.courses[0]
        assert isinstance(x, Tensor)
        batch = x.index_select(0, rows.flatten()).unflatten(0, tuple(rows.shape))
        observed = None
        if self.x.may_be_missing:
            observed = ~batch.isnan()
            batch = batch.masked_fill(~observed, 0.0)
        size, draw = rows.shape[1], settings.expectation.several
        noise, weights = draw(size, leader.model.latent_shape, generators=self.noise, dtype=batch.dtype)
        sums = self.stack.step(
            batch,
            noise,
            weights,
            observed=observed,
            beta=as_input(leader.beta(self.steps), batch),
            adapt=settings.adapt(size),
            factor=leader.rate(self.steps),
        )
        self.steps += 1
        return sums

    def _end_epoch(self, totals: Tensor, num_points: int) -> None:
        finite = self.stack.finite()
        elbos = []
        for row in sorted(self.left):
            course = self.courses[row]
            means = RunningSums(totals[row], num_points).read()
            if finite[row] and not course.exploded(means["elbo"]):
                course.progress.step = self.steps
                self.on_epoch(row, course.end_epoch(means))
                elbos.append(means["elbo"])
                continue
            self.left.remove(row)
            self.stack.go_back(row)
            self.on_divergence(course, means["elbo"])
        self.note = f"ELBO {min(elbos):.3f} to {max(elbos):.3f}" if elbos else ""
