"""That β moves the loss, that arms differ in the one setting they are named after, and what is set beside what."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vaentropy.expectation import MonteCarlo
from vaentropy.studies.experiments import variables
from vaentropy.studies.experiments.variables import ARMS, AS_PUBLISHED, STUDY
from vaentropy.studies.study import Plan
from vaentropy.studies.trials import train
from vaentropy.training.step import objective

PLAN = Plan(device="cpu", progress=False)
BY_NAME = {arm.name: arm for arm in ARMS}
ANNEALED = pytest.mark.parametrize("name", ["KL warm-up", "cyclical KL"])


@pytest.fixture(scope="module")
def x():
    return torch.rand(400, 64, generator=torch.Generator().manual_seed(0))


@ANNEALED
def test_beta_of_a_schedule_moves_the_loss_by_that_much_of_the_kl(name, x):
    beta = BY_NAME[name].settings(PLAN)["beta"]
    torch.manual_seed(0)
    model, noise = BY_NAME[name].model((64,)).double(), torch.randn(1, 400, 2, dtype=torch.float64)
    q = model.posterior(x.double())
    kl = kl_divergence(Independent(Normal(q.mean, q.stddev), 1), Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    losses = [objective(model, x.double(), noise, beta=beta(done))[0].item() for done in (0.0, 0.1, 1.0)]
    assert beta(0.0) == 0 and 0 < beta(0.1) < 1 and beta(1.0) == 1
    assert losses[2] - losses[0] == pytest.approx(kl.mean().item(), rel=1e-9)
    assert losses[1] - losses[0] == pytest.approx(beta(0.1) * kl.mean().item(), rel=1e-9)


@pytest.mark.parametrize(("name", "replicates"), [("KL warm-up", 1), ("cyclical KL", 2)])
def test_annealing_changes_the_way(name, replicates, x):
    # Of one model by `fit`, of two by `fit_replicates`.
    plain, annealed = (train(BY_NAME[each], x, None, PLAN, replicates, epochs=40) for each in ("ours", name))
    for before, after in zip(plain.histories, annealed.histories, strict=True):
        assert set(before["beta"]) == {1.0}
        assert after["beta"][0] < 0.2 and after["beta"][-1] == 1.0
        # While the KL costs little, there is more of it.
        assert sum(after["running_kl"][:5]) > 1.1 * sum(before["running_kl"][:5])


def test_arms_differ_from_ours_in_one_setting():
    ours = BY_NAME["ours"].settings(PLAN)
    changed = {
        name: {key for key in {**ours, **arm.settings(PLAN)} if ours.get(key) != arm.settings(PLAN).get(key)}
        for name, arm in BY_NAME.items()
    }
    assert changed == {
        "ours": set(),
        "KL warm-up": {"beta"},
        "cyclical KL": {"beta"},
        "learned variances": {"variances"},
        "learning rate 3e-3": {"learning_rate"},
        "learning rate 2e-2": {"learning_rate"},
        "10 samples": {"expectation"},
    }


@pytest.mark.parametrize("samples", [1, 100])
def test_as_published(samples):
    settings = AS_PUBLISHED[samples].settings(Plan(scale="paper"))
    assert settings["expectation"] == MonteCarlo(samples) and settings["epochs"] == 500
    assert (settings["schedule"], settings["learning_rate"], settings["variances"]) == ("constant", 1e-3, "learned")
    assert "batch_size" not in settings  # 200, as fit has it


def test_a_step_of_variances_as_published_is_one_of_a_softplus():
    # σ = softplus(raw): d log σ² / d raw at the σ of digits is what the rate of log σ² has to be multiplied by.
    raw = torch.tensor(0.1).expm1().log().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.softplus(raw).square().log(), raw)
    settings = AS_PUBLISHED[1].settings(PLAN)
    assert settings["variance_learning_rate"] / settings["learning_rate"] == pytest.approx(slope.item(), rel=0.1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(variables, "points", lambda data: data[:100])
    monkeypatch.setattr(variables, "ARMS", tuple(replace(arm, epochs=(2, 3)) for arm in ARMS))
    published = {samples: replace(arm, epochs=(2, 3)) for samples, arm in AS_PUBLISHED.items()}
    monkeypatch.setattr(variables, "AS_PUBLISHED", published)


def test_study(small):
    outcome = STUDY.run(replace(PLAN, replicates=1))
    assert [row["training"] for row in outcome.rows] == list(BY_NAME)
    elbos = {row["training"]: row["elbo"] for row in outcome.rows}
    assert f"{max(elbos.values()):.2f} nats ({max(elbos, key=elbos.__getitem__)})" in outcome.finding
    gaps = [row["relative_gap"] for row in outcome.rows]
    assert f"{min(gaps):.1e}" in outcome.finding and f"{max(gaps):.1e}" in outcome.finding
    for row in outcome.rows:
        assert row["relative_gap"] == pytest.approx(abs(row["elbo"] - row["entropy_sum"]) / abs(row["elbo"]))
    assert len(outcome.notes) == 1


def test_study_at_the_scale_of_the_paper_sets_ours_beside_the_published(small, monkeypatch):
    monkeypatch.setattr(variables, "ARMS", variables.ARMS[:1])
    outcome = STUDY.run(replace(PLAN, scale="paper", replicates=2))
    last = outcome.rows[-2:]
    assert [(row["training"], row["replicates"]) for row in last] == [
        ("as published, 100 samples", 1),
        ("as published, 1 sample", 2),
    ]
    for row, note, ends in zip(last, outcome.notes[1:3], ("22.20 and 22.15", "20.57 and 20.62"), strict=True):
        assert f"ELBO {row['elbo']:.2f}, entropy sum {row['entropy_sum']:.2f} nats" in note and ends in note
    assert "Twice the epochs" in outcome.notes[-1]
