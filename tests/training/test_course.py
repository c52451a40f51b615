"""The judgement between epochs, of numbers that are given: no step is taken."""

import math

import pytest
import torch

from vaentropy.families import vae1
from vaentropy.training.course import PLATEAU_EPOCHS, Course
from vaentropy.training.data import TrainingData
from vaentropy.training.interruption import Interruption
from vaentropy.training.settings import Settings
from vaentropy.training.state import Progress

STEPS = 2  # an epoch


class Kept:
    """What a loop would keep of the model, for its course."""

    def __init__(self, **settings):
        torch.manual_seed(0)
        x = torch.rand(20, 3)
        self.model, self.settings = vae1(3, 1, (4,)), Settings(batch_size=10, variances="learned", **settings)
        data = TrainingData(self.model, x, "data", batch_size=10, seed=0, missing="error")
        held_out = TrainingData(self.model, x[:5], "held_out", batch_size=10, seed=0, missing="error")
        where, self.calls = (data, held_out, self.settings, 0.0, Interruption()), []
        keep, put_back = lambda: self.calls.append("keep"), lambda: self.calls.append("put back")
        self.course = Course(self.model, Progress(), *where, keep, put_back)

    def epoch(self, elbo=0.0, entropy_sum=0.0):
        self.course.progress.step += STEPS
        return self.course.end_epoch({"elbo": elbo, "entropy_sum": entropy_sum})

    def worsen(self):
        with torch.no_grad():
            self.model.head.mean[0].bias.add_(1.0)


def test_patience_counts_evaluations_since_the_best_and_puts_that_back():
    kept = Kept(epochs=50, patience=2, evaluate_every=3)
    for _ in range(9):
        assert not kept.course.progress.finished
        kept.epoch()
        kept.worsen()
    assert kept.calls == ["keep", "put back"]
    assert kept.course.history["restored_epoch"] == [3] and kept.course.history.at("held_out_elbo") == [3, 6, 9]
    assert kept.course.progress.finished
    assert kept.course.history.stopped == "no better held-out ELBO in 2 evaluations"


def test_a_plateau_compares_the_means_of_two_windows():
    kept = Kept(epochs=100, plateau=0.5, schedule="constant")
    # They rise by 0.1 an epoch, by 1 from one window of ten to the next, and after two windows no more.
    sums = [0.1 * epoch for epoch in range(2 * PLATEAU_EPOCHS)]
    while not kept.course.progress.finished:
        kept.epoch(entropy_sum=sums[min(len(kept.course.history), len(sums) - 1)])
    found = [*sums, *[sums[-1]] * (len(kept.course.history) - len(sums))]
    now, before = (
        [math.fsum(found[end - 10 : end]) / 10 for end in (len(found) - k, len(found) - 10 - k)] for k in (0, 1)
    )
    assert now[0] - now[1] < 0.5 <= before[0] - before[1]


@pytest.mark.parametrize(("elbo", "exploded"), [(-304.0, True), (-302.0, False), (math.nan, True), (math.inf, True)])
def test_an_elbo_explodes_where_it_falls_by_a_hundred_times_the_first(elbo, exploded):
    kept = Kept(epochs=9)
    assert not kept.course.exploded(-1e9)  # there is none yet
    kept.epoch(elbo=-2.0)
    assert kept.course.exploded(elbo) is exploded  # below -2 - 100 (1 + 2)


def test_training_that_is_stopped_ends_with_what_a_last_row_has():
    kept = Kept(epochs=9)
    kept.epoch()
    kept.course.stop("enough")
    history = kept.course.history
    assert kept.course.progress.finished and history.stopped == "enough" and len(history) == 1
    assert history["train_elbo"] == [history.train.elbo] and list(history.rows[-1])[-1] == "seconds"


def test_seconds_and_rows_go_on_where_they_were():
    kept = Kept(epochs=9)
    kept.course.progress.seconds = 1000.0
    kept.course.resume([{"epoch": 1}])
    assert 1000 <= kept.course.seconds < 1100 and len(kept.course.history) == 1


def test_rates_are_those_of_the_schedule_after_rollbacks():
    kept = Kept(epochs=9, schedule="cosine", beta=lambda done: done)
    last = 9 * STEPS - 1
    kept.course.progress.learning_rate_factor = 0.1
    middle = 0.5 * (kept.course.rate(0) + kept.course.rate(last))
    assert kept.course.rate(0) == 0.1 and 0.5 * (kept.course.rate(8) + kept.course.rate(9)) == pytest.approx(middle)
    assert [kept.course.beta(step) for step in (0, last)] == [0.0, 1.0]
