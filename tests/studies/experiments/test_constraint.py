"""Rescaling against the map it must not change; that the optimiser still moves what was rescaled."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen
from vaentropy.studies.experiments import constraint
from vaentropy.studies.experiments.constraint import CONSTRAINED, FREE, STUDY, column_norms, rescale_columns
from vaentropy.studies.study import Plan
from vaentropy.studies.trials import train

PARAMETRISED, RESCALED, PENALISED = CONSTRAINED
PLAN = Plan(device="cpu", progress=False)


@pytest.fixture(scope="module")
def x():
    return torch.randn(400, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rescaled():
    """A model before and after, with columns far from norm 1."""
    torch.manual_seed(1)
    before = RESCALED.model((10,)).double()
    with torch.no_grad():
        before.latent_layer.weight.mul_(torch.tensor([0.2, 7.0]))
        before.prior_log_variance.copy_(torch.tensor([0.3, -1.0]))
    after = copy.deepcopy(before)
    rescale_columns(after)
    return before, after


def test_rescaling_gives_norms_of_1_and_multiplies_z_by_the_old_ones(rescaled, x):
    before, after = rescaled
    norms = column_norms(before)
    torch.testing.assert_close(column_norms(after), torch.ones(2, dtype=torch.float64))
    q, scaled_q = before.posterior(x.double()), after.posterior(x.double())
    torch.testing.assert_close(scaled_q.mean, norms * q.mean)
    torch.testing.assert_close(scaled_q.variance, norms**2 * q.variance)
    torch.testing.assert_close(after.prior().variance, norms**2 * before.prior().variance)
    z = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(after.likelihood(norms * z).mean, before.likelihood(z).mean)


def test_rescaling_changes_neither_the_elbo_nor_its_gap(rescaled, x):
    elbos = [evaluate(model, x, expectation=Frozen(0, 8)) for model in rescaled]
    assert elbos[1].elbo == pytest.approx(elbos[0].elbo, rel=1e-12)
    # Both entropies have moved by Σ log ‖W_h‖.
    shift = float(column_norms(rescaled[0]).log().sum())
    assert elbos[1].entropies.encoder - elbos[0].entropies.encoder == pytest.approx(shift, rel=1e-9)
    assert elbos[1].gap == pytest.approx(elbos[0].gap, rel=1e-9)


def test_vae_1_is_a_vae_2_in_other_coordinates(x):
    torch.manual_seed(2)
    free, other = FREE.model((10,)).double(), RESCALED.model((10,)).double()
    other.load_state_dict(free.state_dict())
    rescale_columns(other)
    expected = evaluate(free, x, expectation=Frozen(0, 8)).elbo
    assert evaluate(other, x, expectation=Frozen(0, 8)).elbo == pytest.approx(expected, rel=1e-12)
    assert evaluate(other.fold_prior(), x, expectation=Frozen(0, 8)).elbo == pytest.approx(expected, rel=1e-12)


def moves(after_epoch, x):
    """Whether each epoch has turned each column, by how it stands before and after the hook of the epochs."""
    before, after = [], []

    def hook(model):
        before.append(model.latent_layer.weight.detach().clone())
        after_epoch(model)
        after.append(model.latent_layer.weight.detach().clone())

    train(replace(RESCALED, after_epoch=hook), x, None, PLAN, 1, epochs=4)
    assert len(before) == 4
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in zip(after[:-1], before[1:], strict=True)]
    return all(bool((cosine < 1 - 1e-6).all()) for cosine in cosines)


def put_in_a_new_parameter(model):
    """What the published code does: the optimiser goes on with the old one."""
    model.latent_layer.weight = nn.Parameter(model.latent_layer.weight / column_norms(model))


def test_the_optimiser_moves_the_rescaled_columns(x):
    assert moves(rescale_columns, x)
    assert not moves(put_in_a_new_parameter, x)


@pytest.mark.parametrize("arm", [PARAMETRISED, RESCALED])
def test_columns_of_all_replicates_are_of_norm_1(arm, x):
    trials = train(arm, x, None, PLAN, 2, epochs=2)
    for model in trials.models:
        torch.testing.assert_close(column_norms(model), torch.ones(2))
        assert model.prior_log_variance.abs().min() > 0


def test_the_penalty_draws_columns_towards_norm_1(x):
    free, penalised = (train(arm, x, None, PLAN, 1, epochs=40).models[0] for arm in (FREE, PENALISED))
    furthest, without = (float((column_norms(model) - 1).abs().max()) for model in (penalised, free))
    assert furthest < 0.5 * without


def test_study(monkeypatch):
    monkeypatch.setattr(constraint, "points", lambda data: data[:300])
    monkeypatch.setattr(constraint, "FREE", replace(FREE, epochs=(2, 2)))
    monkeypatch.setattr(constraint, "CONSTRAINED", tuple(replace(arm, epochs=(2, 2)) for arm in CONSTRAINED))
    outcome = STUDY.run(replace(PLAN, replicates=2))
    names = ["VAE-1", "VAE-2, parametrisation", "VAE-2, rescaling", "VAE-2, penalty"]
    assert [row["training"] for row in outcome.rows] == names
    deviations = [row["largest_deviation_of_a_norm_from_1"] for row in outcome.rows]
    assert max(deviations[1:3]) < 1e-6 and min(deviations[0], deviations[3]) > 1e-3
    elbos = [row["elbo"] for row in outcome.rows]
    assert f"from {min(elbos[1:]):.2f} to {max(elbos[1:]):.2f} nats, VAE-1 at {elbos[0]:.2f}" in outcome.finding
    assert [text.get_text() for text in outcome.figure.legends[0].get_texts()] == names


@pytest.mark.parametrize("arm", [FREE, *CONSTRAINED])
def test_exact_settings(arm):
    settings = arm.settings(Plan(scale="paper", exact_settings=True))
    assert (settings["schedule"], settings["variances"], settings["batch_size"]) == ("constant", "learned", 2_000)
