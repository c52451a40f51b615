"""`select` finds what the data hold, says when they do not tell, and is fair to its candidates."""

import sys
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

import vaentropy as ve
from vaentropy.data import Dataset, LinearGaussian, Rows, load, pca, split
from vaentropy.errors import DataError, TrainingError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.selection import select
from vaentropy.training import fit

from ..models import F64

QUICK = {"epochs": 2, "progress": False}
X, _ = pca(250, 6, 2, noise=0.4, seed=1)


def small(latent_dim):
    return ve.vae1(6, latent_dim, (4,))


# --- What it finds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_three_factors_are_found_in_closed_form(noise):
    found = [
        select(pca(5_000, 20, 3, noise=noise, seed=seed)[0], range(7), model="linear", seed=seed) for seed in range(20)
    ]
    assert [s.supported for s in found].count(3) >= 19
    assert sum(bool(s.undecided) for s in found) <= 1
    assert all(s.candidates[-1].latent_dim == 0 for s in found)


@pytest.mark.slow
def test_three_factors_are_found_by_training():
    # Data, split, weights and batches are others for each seed. Two minutes.
    found = []
    for seed in range(20):
        x, _ = pca(5_000, 20, 3, noise=0.5, seed=seed)
        options = {"seed": seed, "epochs": 20, "learning_rate": 1e-2, "progress": False}
        found.append(select(x, (2, 3, 4), model=lambda h: ve.vae1(20, h, (16,)), **options))
    assert [s.supported for s in found].count(3) >= 19
    assert all(s[4].active == 3 for s in found if s.supported == 3 and s[4].reliable)


def test_few_points_do_not_decide():
    # Three factors, of which 24 points show one: it cannot be said that there are no more.
    undecided = 0
    for seed in range(10):
        x, _ = pca(30, 20, 3, noise=0.5, seed=seed)
        selection = select(x, (1, 2, 3, 4), model="linear", seed=seed)
        undecided += bool(selection.undecided)
        assert "evidence does not decide" in selection.verdict or not selection.undecided
    assert undecided >= 8
    assert select(pca(5_000, 20, 3, noise=0.5)[0], (1, 2, 3, 4), model="linear").undecided == ()


def test_noise_alone_supports_no_latent():
    for seed in range(5):
        x = torch.randn(1_000, 8, generator=torch.Generator().manual_seed(seed))
        selection = select(x, range(4), model="linear", seed=seed)
        assert selection.supported == 0 and selection.verdict.startswith("no latent is supported")


def test_noise_alone_leaves_the_latents_of_a_vae_collapsed():
    x = torch.randn(5_000, 10, generator=torch.Generator().manual_seed(0))
    selection = select(x, (1, 2), epochs=20, num_seeds=1, progress=False)
    assert selection.used == 0
    assert selection.verdict.startswith("no latent is supported: all are collapsed")


def test_the_linear_choice_is_right_about_the_population():
    # What it says of 2 against 1 latent, on new points in plenty: the error that it gives covers the truth.
    covered = 0
    for seed in range(40):
        x, truth = pca(600, 5, 2, noise=1.0, seed=0)
        x = draw(truth, 600, seed)
        new = draw(truth, 100_000, 1_000 + seed)
        selection = select(x, (1, 2), model="linear", seed=seed)
        one, two = (selection.models[h].log_likelihood(new).mean().item() for h in (1, 2))
        found = selection[1].elbo - selection[2].elbo
        error = max(selection[1].elbo_error, selection[2].elbo_error)
        covered += abs(found - (one - two)) < 2 * error
    # 95 % of 40, and three standard deviations fewer.
    assert covered >= 34


def draw(truth: LinearGaussian, num_points, seed):
    generator = torch.Generator().manual_seed(seed)
    z, eps = (torch.randn(num_points, d, generator=generator, dtype=F64) for d in (2, 5))
    return z @ truth.weight.T + truth.mean + truth.noise_std * eps


# --- Fairness -------------------------------------------------------------------------------------------------------


def test_candidates_are_what_fit_makes_from_the_same_seed_and_rows():
    selection = select(X, (1, 2), model=small, num_seeds=2, seed=5, **QUICK)
    train, held_out = split(X, 0.2, seed=5)
    for latent_dim in (1, 2):
        trained = {}
        for seed in (5, 6):
            torch.manual_seed(seed)
            model = small(latent_dim)
            trained[seed] = fit(model, train, seed=seed, **QUICK).train.elbo, model
        candidate = selection[latent_dim]
        best = max(trained, key=lambda seed: trained[seed][0])
        assert candidate.seed == best
        for name, tensor in trained[best][1].state_dict().items():
            assert torch.equal(tensor, selection.models[latent_dim].state_dict()[name]), name
        e = evaluate(trained[best][1], held_out, expectation=GaussHermite(12))
        assert candidate.elbo == pytest.approx(e.elbo, abs=4 * candidate.stderr)
        assert candidate.spread is not None and not selection.models[latent_dim].training


def test_scores_are_exact_where_the_expectation_is():
    quadrature = GaussHermite(6)
    selection = select(X, (1, 2), model=small, num_seeds=1, evaluation_expectation=quadrature, **QUICK)
    train, held_out = split(X, 0.2, seed=0)
    n, points = len(train), {}
    for h in (1, 2):
        # Quadrature in float32 sums in another order.
        of_held_out, of_train = (
            evaluate(selection.models[h], x, expectation=quadrature, pointwise=True) for x in (held_out, train)
        )
        points[h] = of_held_out.pointwise["elbo"].double()
        k = selection[h].num_parameters
        assert selection[h].elbo == pytest.approx(of_held_out.elbo, rel=1e-5)
        assert selection[h].stderr == pytest.approx(of_held_out.stderr.elbo, rel=1e-4)
        assert selection[h].train_elbo == pytest.approx(of_train.elbo, rel=1e-5)
        assert selection[h].bic == pytest.approx(of_train.elbo - k * np.log(n) / (2 * n), rel=1e-5)
        assert selection[h].gap == pytest.approx(of_train.gap, abs=1e-4)
    first, second = selection.candidates
    apart = points[first.latent_dim] - points[second.latent_dim]
    assert second.elbo_diff == pytest.approx(float(apart.mean()), rel=1e-3)
    assert second.elbo_error == pytest.approx(float(apart.std()) / len(held_out) ** 0.5, rel=1e-3)


def test_equal_calls_give_equal_answers_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    options = {"model": small, "num_seeds": 1, **QUICK}
    one, other = select(X, (1, 2, 3), **options), select(X, [3, 1, 2, 2], **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.to_dict() == other.to_dict()
    assert select(X, (1, 2, 3), **options, seed=1).to_dict() != one.to_dict()


def test_the_same_noise_makes_the_error_of_near_equals_small():
    # Of two models of which one has a collapsed latent more; with noise of their own it is the Monte Carlo error.
    x, _ = pca(1_000, 6, 1, noise=0.5, seed=2)
    options = {"epochs": 60, "learning_rate": 2e-2, "batch_size": 100, "num_seeds": 1, "progress": False}
    selection = select(x, (1, 2), model=lambda h: ve.vae1(6, h, (8,)), **options)
    assert selection[2].active == 1
    _, held_out = split(x, 0.2, seed=0)
    one, two = (
        evaluate(selection.models[h], held_out, expectation=MonteCarlo(16, seed=h), pointwise=True).pointwise["elbo"]
        for h in (1, 2)
    )
    apart = float((one - two).double().std()) / len(held_out) ** 0.5
    assert max(c.elbo_error for c in selection.candidates) < 0.7 * apart


# --- Data -----------------------------------------------------------------------------------------------------------


def test_all_kinds_of_rows_are_taken():
    expected = select(X, (1, 2), model="linear").to_dict()
    assert select(X.numpy(), (1, 2), model="linear").to_dict() == expected
    assert select(pd.DataFrame(X.numpy()), (1, 2), model="linear").to_dict() == expected
    # A source of one shard is split as a tensor is.
    assert select(Rows(X), (1, 2), model="linear").to_dict() == expected
    items = torch.utils.data.TensorDataset(X, torch.arange(250))
    assert select(items, (1, 2), model="linear").to_dict() == expected


def test_a_source_is_read_shard_by_shard():
    shards = select(Rows(X.float(), shard_size=60), (1, 2), model=small, num_seeds=1, **QUICK)
    assert (shards.num_train, shards.num_held_out) == (200, 50)
    part = torch.cat(list(Rows(X.float(), shard_size=60)))
    whole = select(part, (1, 2), model=small, num_seeds=1, held_out=part[:50], **QUICK)
    assert whole.num_train == 250 and shards[1].gap != whole[1].gap


def test_a_data_set_brings_its_own_held_out_part_and_units():
    data = load("digits")
    selection = select(data, (1, 2), model="linear")
    assert (selection.num_train, selection.num_held_out) == (len(data.train), len(data.held_out))
    assert "pixel values divided by 16" in str(selection)
    again = select(data.train, (1, 2), model="linear", held_out=data.held_out)
    assert again.to_dict()["candidates"] == selection.to_dict()["candidates"]
    smaller = select(data, (1, 2), model="linear", held_out=0.5)
    assert smaller.num_train + smaller.num_held_out == len(data.train)


@pytest.mark.parametrize("held_out", [0, 0.0, X[:0]])
def test_without_held_out_data_bic_decides(held_out):
    selection = select(X, (1, 2, 3), model="linear", held_out=held_out)
    assert selection.score == "bic" and selection.num_train == 250 and selection.num_held_out == 0
    assert selection.supported == 2 and selection[1].elbo is None and selection.candidates[0].bic_diff == 0
    own = Dataset("mine", X, X[:0], "mine, as stored")
    assert select(own, (1, 2, 3), model="linear").score == "bic"


def test_missing_values_are_left_out_in_training_and_in_scores():
    x = X.float().clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = torch.nan
    selection = select(x, (1, 2), model=small, num_seeds=1, missing="ignore", **QUICK)
    whole = select(X.float(), (1, 2), model=small, num_seeds=1, **QUICK)
    # A fifth fewer values.
    assert selection[1].elbo > whole[1].elbo
    with pytest.raises(DataError, match=r"row \d+, column \d"):
        select(x, (1, 2), model=small, **QUICK)


def test_the_row_of_a_bad_value_is_that_of_the_data_given():
    x = X.clone()
    x[137, 4] = torch.inf
    for options in ({"model": "linear"}, QUICK, {"missing": "ignore", **QUICK}):
        with pytest.raises(DataError, match="data: row 137, column 4"):
            select(x, (1, 2), **options)


# --- What cannot be relied on ---------------------------------------------------------------------------------------


def test_numbers_that_are_not_possible_stay_in_the_table():
    selection = select(X, (2, 5, 6, 7), model="linear")
    assert [c.latent_dim for c in selection.candidates] == [2, 5, 6, 7]
    assert selection[6].elbo is None and "no upper bound" in selection[6].remarks[0]
    assert set(selection.models) == {2, 5} and selection.supported == 2
    with pytest.raises(UsageError, match="no upper bound"):
        select(X, (6, 7), model="linear")


def test_training_that_has_not_ended_is_named():
    assert "has not reached a stationary point" in str(select(X, (1, 2), model=small, epochs=1, progress=False))


def test_a_fixed_variance_leaves_the_decoder_out_of_that():
    # With σ² = 1, not at its optimum, its residual is more than a nat, and stays so.
    def fixed(latent_dim):
        return ve.vae0(6, latent_dim, (4,), variance=1.0)

    options = {"epochs": 60, "learning_rate": 2e-2, "batch_size": 50, "num_seeds": 1, "progress": False}
    selection = select(X, (1, 2), model=fixed, **options)
    assert abs(selection[1].gap) > 1 and "stationary" not in str(selection)


def test_a_larger_model_that_was_trained_worse_is_named():
    # Its decoder hears nothing of its latents, and learns nothing of what the small one knows.
    def make(latent_dim):
        model = ve.vae1(6, latent_dim, (4,))
        if latent_dim == 2:
            model.latent_layer.weight.data.zero_()
            model.latent_layer.requires_grad_(False)
        return model

    selection = select(pca(1_000, 6, 2, noise=0.2)[0], (1, 2), model=make, epochs=30, num_seeds=1, progress=False)
    assert selection.supported == 1
    assert not selection[2].reliable and "bad optimum" in " ".join(selection[2].remarks)


def test_a_seed_that_diverges_is_left_out_and_one_is_enough():
    made = []

    def make(latent_dim):
        model = small(latent_dim)
        made.append(latent_dim)
        # Two of each are made to try; then those of the seeds.
        if made.count(latent_dim) == 3 and latent_dim == 1:
            model.latent_mean.weight.data.fill_(torch.inf)
        return model

    selection = select(X, (1, 2), model=make, max_rollbacks=0, **QUICK)
    assert selection[1].seed == 1 and "seed 0 diverged" in selection[1].remarks
    assert selection[1].spread is None and selection[2].spread is not None


def test_if_all_diverge_it_is_an_error():
    options = {"learning_rate": 1e9, "schedule": "constant", "variances": "learned", "max_rollbacks": 0}
    with pytest.raises(TrainingError, match="lower the learning rate"):
        select(X, (1, 2), model=small, **options, epochs=30, progress=False)


def test_how_far_it_has_come_is_shown(monkeypatch, capsys):
    shown = []

    @contextmanager
    def bar(total, what, *, show):
        shown.append((total, what, show))
        yield lambda note="", advance=1: shown.append(note)

    monkeypatch.setattr(sys.modules["vaentropy.selection.select"], "progress_bar", bar)
    select(X, (1, 2), model=small, epochs=3, num_seeds=2, progress=True)
    assert shown[0] == (2 * 2 * 3, "epochs", True) and len(shown) == 1 + 2 * 2 * 3
    assert shown[1] == "latent_dim 1, seed 0" and shown[-1] == "latent_dim 2, seed 1"
    assert capsys.readouterr() == ("", "")
