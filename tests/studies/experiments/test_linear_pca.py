"""The study of the linear VAE: numbers against torch.distributions and quadrature, the control against closed forms."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from vaentropy.data.synthetic import pca
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.studies.experiments import linear_pca
from vaentropy.studies.linear import stacked
from vaentropy.studies.study import Plan

# Fewer, in longer steps, than the study's.
EPOCHS, LEARNING_RATE = 300, 0.2


@pytest.fixture(scope="module")
def outcome():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_pca, "EPOCHS", EPOCHS)
        patch.setattr(linear_pca, "LEARNING_RATE", LEARNING_RATE)
        patch.setattr(linear_pca, "NUM_RECORDS", 8)
        return linear_pca.run(Plan(replicates=2, progress=False))


@pytest.fixture(scope="module")
def problem():
    return linear_pca._problem(Plan(), 3)


@pytest.fixture(scope="module")
def model():
    made = linear_pca._models(linear_pca.ARMS[0], [5], 10)[0]
    with torch.no_grad():
        made.bias += 0.5
        made.encoder_bias += torch.tensor([0.3, -0.2])
        made.latent_log_variance += torch.tensor([-1.0, -2.0])
        made.log_variance -= 1.5
    return made


def test_learned_sigma_meets_the_closed_form_and_fixed_sigma_does_not(outcome):
    learned, fixed = outcome.rows
    for row in outcome.rows:
        assert row["replicates"] == 2 and row["epochs"] == EPOCHS
        # No ELBO is above the optimum, and none above its own log-likelihood.
        assert 0 <= row["furthest_below_optimum"] < 0.05
        assert row["elbo"] <= row["log_likelihood"]
        assert row["gap"] == pytest.approx(row["elbo"] - row["entropy_sum"])
        # The log-likelihood of the held-out part is another number: the part is another one.
        assert 1e-4 < abs(row["log_likelihood"] - row["held_out_log_likelihood"]) < 0.1
    assert learned["relative_gap"] < 0.05
    assert learned["held_out_log_likelihood"] == pytest.approx(learned["true_held_out_log_likelihood"], abs=0.02)
    assert fixed["gap"] > 3 and fixed["relative_gap"] > 0.5
    # All of one sign here; gaps of two signs would not cancel.
    assert fixed["mean_absolute_gap"] == pytest.approx(fixed["gap"])
    assert learned["mean_absolute_gap"] >= abs(learned["gap"]) - 1e-12
    assert fixed["largest_pseudo_gap"] < 0.1
    # Its σ² is 25 times that of the noise in 8 directions.
    assert fixed["log_likelihood"] < learned["log_likelihood"] - 8


def test_the_finding_is_made_from_the_numbers(outcome):
    learned, fixed = outcome.rows
    assert (
        f"{learned['elbo']:.4f}" in outcome.finding
        and f"{fixed['mean_absolute_gap']:.2f} nats apart" in outcome.finding
    )
    assert outcome.finding.endswith(".") and "\n" not in outcome.finding
    assert "10,000 points to train on and 10,000 held out" in " ".join(outcome.notes)


def test_the_truth_is_that_of_the_generator(outcome):
    # 20,000 points of each replicate's own seed, in two disjoint halves.
    truths = []
    for seed in (0, 1):
        x, truth = pca(20_000, seed=seed)
        truths.append(float(truth.log_density(x).mean()))
    row = outcome.rows[0]
    found = (row["true_log_likelihood"] + row["true_held_out_log_likelihood"]) / 2
    assert found == pytest.approx(sum(truths) / 2, abs=1e-9)


def test_parts_are_disjoint(problem):
    data = linear_pca.load_for(Plan(), "pca", seed=3, dtype=torch.float64)
    assert torch.equal(data.train, problem.x)
    assert not set(data.train[:, 0].tolist()) & set(data.held_out[:, 0].tolist())
    torch.testing.assert_close(problem.held_out.mean, data.held_out.mean(0))


def test_what_is_measured_is_exact(model, problem):
    found = linear_pca.measure(model, problem)
    x, held_out = problem.x, linear_pca.load_for(Plan(), "pca", seed=3, dtype=torch.float64).held_out
    with torch.no_grad():
        variance, std = model.log_variance.exp(), torch.exp(0.5 * model.latent_log_variance)
        covariance = model.weight @ model.weight.T + variance * torch.eye(10, dtype=torch.float64)
        density = MultivariateNormal(model.bias, covariance)
        assert found["log_likelihood"] == pytest.approx(float(density.log_prob(x).mean()), rel=1e-10)
        assert found["held_out_log_likelihood"] == pytest.approx(float(density.log_prob(held_out).mean()), rel=1e-10)
        # Two nodes of Gauss-Hermite on each axis integrate squares exactly.
        latent_mean = model.posterior(x).mean
        means = [
            (latent_mean + std * torch.tensor(node).double()) @ model.weight.T + model.bias
            for node in itertools.product((-1, 1), repeat=2)
        ]
        square = torch.stack([mean.square().sum(1) for mean in means]).mean()
        log_prob = torch.stack([MultivariateNormal(m, variance * torch.eye(10).double()).log_prob(x) for m in means])
        kl = 0.5 * (latent_mean.square() + std**2 - 1 - 2 * std.log()).sum(1).mean()
        assert found["elbo"] == pytest.approx(float(log_prob.mean() - kl), rel=1e-10)
        # theory §2, VAE-0
        pseudo = (
            5 * math.log(2 * math.pi) + 5 * model.log_variance + (x.square().sum(1).mean() - square) / (2 * variance)
        )
        assert found["pseudo_entropy_sum"] == pytest.approx(float(std.log().sum() - pseudo), rel=1e-10)
        decoder = 5 * math.log(2 * math.pi * math.e) + 5 * model.log_variance
        assert found["entropy_sum"] == pytest.approx(float(std.log().sum() - decoder), rel=1e-10)


@pytest.mark.parametrize("std", [0.5, 1.5])  # the second latent is active, or collapsed
def test_the_optimum_of_a_fixed_sigma_is_stationary(problem, std):
    values, vectors = problem.train.eigen
    excess = (values[:2] - std**2).clamp(min=0)
    assert int((excess > 0).sum()) == (2 if std == 0.5 else 1)
    model = LinearVAE(10, 2).double()
    with torch.no_grad():
        model.weight.copy_(vectors[:, :2] * excess.sqrt())
        model.encoder_weight.copy_((vectors[:, :2] * (excess.sqrt() / (excess + std**2))).T)
        model.bias.copy_(problem.train.mean)
        model.encoder_bias.copy_(-model.encoder_weight @ problem.train.mean)
        model.latent_log_variance.copy_(torch.log(std**2 / (excess + std**2)))
        model.log_variance.fill_(2 * math.log(std))
    model.log_variance.requires_grad_(False)
    elbo = model.elbo(problem.train)
    gradients = torch.autograd.grad(elbo, [p for p in model.parameters() if p.requires_grad])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10
    assert linear_pca.optimal_elbo(problem.train, 2, std) == pytest.approx(float(elbo.detach()), rel=1e-12)
    found = linear_pca.measure(model, problem)
    assert found["pseudo_entropy_sum"] == pytest.approx(found["elbo"], rel=1e-12)
    assert abs(found["entropy_sum"] - found["elbo"]) > 1


def test_a_fixed_sigma_stays_and_all_else_is_learned(problem):
    models = linear_pca._models(linear_pca.ARMS[1], [0], 10)
    parameters = stacked(models)
    before = {name: rows.detach().clone() for name, rows in parameters.items()}
    for _ in linear_pca._train(parameters, [problem], 0, linear_pca.Settings(3, 0.1)):
        pass
    assert float(parameters["log_variance"]) == pytest.approx(2 * math.log(0.5))
    assert all(not torch.equal(before[name], rows) for name, rows in parameters.items() if name != "log_variance")


def test_exact_settings_are_the_papers(problem, monkeypatch):
    how = linear_pca.settings(Plan(scale="paper", exact_settings=True))
    assert how == linear_pca.Settings(epochs=1_500, learning_rate=1e-3, batch_size=2_000, num_samples=100)
    assert linear_pca.settings(Plan(scale="paper")).num_samples is None
    # They reach the training: five batches of 2,000 points of 10,000 in an epoch, at a constant rate.
    seen = []

    def spy(parameters, x, noise):
        seen.append((tuple(x.shape), tuple(noise.shape)))
        return (parameters["weight"] ** 2).sum((-2, -1))

    monkeypatch.setattr(linear_pca, "sampled_elbo", spy)
    parameters = stacked(linear_pca._models(linear_pca.ARMS[0], [0], 10))
    before = parameters["weight"].detach().clone()
    next(linear_pca._train(parameters, [problem], 0, how))
    assert seen == [((1, 2_000, 10), (100, 1, 2_000, 2))] * 5
    # Adam's steps along a constant sign are as long as the rate.
    torch.testing.assert_close(
        (parameters["weight"] - before).detach().abs(), torch.full_like(before, 5e-3), rtol=0.05, atol=0
    )


def test_training_from_samples_climbs_too(problem):
    models = linear_pca._models(linear_pca.ARMS[0], [0], 10)
    parameters = stacked(models)
    before = float(models[0].elbo(problem.train).detach())
    for _ in linear_pca._train(parameters, [problem], 0, linear_pca.Settings(20, 2e-2, 2_000, 2)):
        pass
    linear_pca._unstack(parameters, models)
    assert float(models[0].elbo(problem.train).detach()) > before + 1


def test_the_moments_are_of_the_points(problem):
    torch.testing.assert_close(DataMoments.of(problem.x).covariance, problem.train.covariance)
