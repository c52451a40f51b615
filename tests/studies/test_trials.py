"""Trainings of a study, and the figure that shows them."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from vaentropy import evaluate, fit, vae1
from vaentropy.data import load
from vaentropy.seeding import seeded
from vaentropy.studies.experiments import vae1_mnist, vae3_ring
from vaentropy.studies.plots import plot_arms
from vaentropy.studies.study import Plan
from vaentropy.studies.trials import (
    Arm,
    Trials,
    gain_of_twice_the_epochs,
    load_rescaled,
    num_diverged,
    plateau_note,
    summary,
    train,
)

PLAN = Plan(seed=3, device="cpu", progress=False)
ARM = Arm(
    name="arm",
    model=lambda shape: vae1(shape, 1, (4,)),
    epochs=(3, 5),
    options={"learning_rate": 1e-2},
    exact={"epochs": 2, "batch_size": 10},
    always={"evaluate_every": 7},
)


@pytest.fixture(scope="module")
def x():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def test_options_that_are_no_optimisers_stay_with_exact_settings():
    assert ARM.settings(Plan()) == {"epochs": 3, "learning_rate": 1e-2, "evaluate_every": 7}
    exact = ARM.settings(Plan(scale="paper", exact_settings=True))
    assert (exact["epochs"], exact["batch_size"], exact["learning_rate"], exact["evaluate_every"]) == (2, 10, 1e-3, 7)
    for arm in vae3_ring.ARMS:
        assert arm.settings(Plan(scale="paper", exact_settings=True))["evaluation_expectation"] == vae3_ring.FEW_DRAWS


@pytest.mark.parametrize("replicates", [1, 2])
def test_replicates_are_what_fit_makes_of_their_seeds(x, replicates):
    trials = train(ARM, x, x[:10], PLAN, replicates)
    for number, history in enumerate(trials.histories):
        with seeded(3 + number, torch.device("cpu")):
            model = vae1(3, 1, (4,))
        alone = fit(model, x, seed=3 + number, epochs=3, learning_rate=1e-2, held_out=x[:10], progress=False)
        assert history.train.elbo == pytest.approx(alone.train.elbo, rel=1e-4)


def test_an_arm_is_called_after_each_epoch(x):
    seen = []
    arm = Arm(name="arm", model=ARM.model, epochs=(3, 5), after_epoch=seen.append)
    trials = train(arm, x, None, PLAN, 2)
    assert seen == [trials.models[0]] * 3 + [trials.models[1]] * 3


def test_a_row_has_medians_and_quartiles_of_the_replicates(x):
    trials = train(ARM, x, x[:10], PLAN, 4)
    gaps = [abs((h.train.elbo - h.train.entropy_sum) / h.train.elbo) for h in trials.histories]
    row = summary(trials)
    assert row["elbo"] == pytest.approx(statistics.median(h.train.elbo for h in trials.histories))
    found = [row["relative_gap_q1"], row["relative_gap"], row["relative_gap_q3"]]
    assert found == pytest.approx(np.quantile(gaps, (0.25, 0.5, 0.75)).tolist())
    assert row["held_out_elbo"] == pytest.approx(statistics.median(h.held_out.elbo for h in trials.histories))
    assert (row["replicates"], row["epochs"], row["diverged"]) == (4, 3, 0)


def test_the_gain_is_that_of_a_training_twice_as_long(x):
    trials = train(ARM, x, None, PLAN, 2)
    with seeded(3, torch.device("cpu")):
        model = vae1(3, 1, (4,))
    fit(model, x, seed=3, epochs=6, learning_rate=1e-2, progress=False)
    gain = evaluate(model, x).elbo - evaluate(trials.models[0], x).elbo
    assert gain_of_twice_the_epochs(trials, x, PLAN) == pytest.approx(gain, abs=1e-4)
    paper = Plan(scale="paper", seed=3, progress=False)
    assert plateau_note(trials, x, paper, of="it") == [f"Twice the epochs change the ELBO of it by {gain:+.2f} nats."]
    assert plateau_note(trials, x, PLAN) == []


def test_replicates_that_diverge_are_counted_and_drawn_as_far_as_they_came(x):
    good = train(ARM, x, None, PLAN, 3)
    early, never, back = (replace(history) for history in good.histories)
    early.rows, early.stopped = early.rows[:1], "the ELBO became nan"
    never.rows, never.stopped = [], "the ELBO became nan"
    back.rows = [*back.rows[:2], {**back.rows[2], "rollbacks": 1}]
    bad = Trials(ARM, good.models, [early, never, back], 1.0)
    assert (num_diverged(good), num_diverged(bad)) == (0, 3)
    assert (summary(bad)["diverged"], summary(bad)["epochs"]) == (3, 3)
    left, right = plot_arms([bad, Trials(ARM, good.models[:1], [never], 1.0), good]).axes
    assert len(left.lines) == len(right.lines) == 2
    elbos = [early["running_elbo"][0], back["running_elbo"][0]]
    expected = [statistics.median(elbos), *back["running_elbo"][1:]]
    assert left.lines[0].get_ydata().tolist() == pytest.approx(expected)


def test_data_are_rescaled_by_the_training_part():
    x = load_rescaled(Plan(), "line", 2.0).train
    assert x.mean(0).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert x.std(0, correction=0).tolist() == pytest.approx([2, 2], rel=1e-4)


def test_the_ring(monkeypatch):
    arms = [Arm(name=a.name, model=a.model, epochs=(1, 1), options=a.options) for a in vae3_ring.ARMS]
    monkeypatch.setattr(vae3_ring, "ARMS", arms)
    outcome = vae3_ring.run(Plan(replicates=2, progress=False))
    assert [row["training"] for row in outcome.rows] == ["batches of 200", "batches of 100", "learning rate 5e-3"]
    assert f"{outcome.rows[0]['relative_gap']:.1e}" in outcome.finding
    assert f"at most {max(row['relative_gap'] for row in outcome.rows):.1e}" in outcome.finding
    assert len(outcome.figure.axes) == 2


def test_mnist(monkeypatch):
    # Of digits: MNIST's files may not be there.
    monkeypatch.setattr(vae1_mnist, "load_for", lambda plan, name: load("digits", stream=False))
    arm = Arm(name="VAE-1", model=vae1_mnist.ARM.model, epochs=(2, 2))
    monkeypatch.setattr(vae1_mnist, "ARM", arm)
    outcome = vae1_mnist.run(Plan(replicates=2, progress=False))
    (row,) = outcome.rows
    assert row["replicates"] == 2 and f"ELBO {row['elbo']:.2f} and sum of entropies {row['entropy_sum']:.2f}" in (
        outcome.finding
    )
