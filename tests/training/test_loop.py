"""When training goes wrong or goes on too long: rollbacks, early stopping, the plateau, the floor of σ²."""

import math
import sys
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vaentropy.data import Rows, pca
from vaentropy.errors import DataError, TrainingError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.families import vae0, vae1
from vaentropy.likelihoods import Gaussian
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.training import Checkpoints, fit, loop
from vaentropy.training.floor import at_floor, explain_floor
from vaentropy.vae import VAE


@pytest.fixture(scope="module")
def x():
    return pca(200, 5, 2, seed=3)[0].float()


def make(family=vae1):
    torch.manual_seed(0)
    return family(5, 2, (6, 6))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def spoil(monkeypatch, model, steps):
    """Make a weight NaN after these steps, counted over all that are made."""
    real, done = loop.training_step, 0

    def step(*args, **options):
        nonlocal done
        terms = real(*args, **options)
        done += 1
        if done in steps:
            with torch.no_grad():
                model.latent_mean.weight[0, 0] = math.nan
        return terms

    monkeypatch.setattr(loop, "training_step", step)


OPTIONS = {"epochs": 6, "batch_size": 50, "schedule": "constant"}  # 4 steps an epoch


def test_training_goes_back_with_a_lower_learning_rate_and_says_so(x, monkeypatch, caplog):
    model = make()
    spoil(monkeypatch, model, {10})
    history = fit(model, x, **OPTIONS)
    assert history["rollbacks"] == [0, 0, 1, 1, 1, 1]
    assert history["learning_rate"] == pytest.approx([5e-3, 5e-3, 5e-4, 5e-4, 5e-4, 5e-4])
    assert history["step"] == [4, 8, 12, 16, 20, 24]
    assert "going back to the end of epoch 2, with learning rate 0.0005 instead of 0.005" in caplog.text
    assert all(math.isfinite(value) for value in history["running_elbo"])


def test_what_follows_a_rollback_is_training_from_there_at_that_rate(x, monkeypatch):
    model, other = make(), make()
    with monkeypatch.context() as patch:
        spoil(patch, model, {3})
        fit(model, x, **OPTIONS)
    fit(other, x, **OPTIONS, learning_rate=5e-4)
    assert same(model, other)


def test_training_gives_up_after_so_many_rollbacks(x, monkeypatch):
    model = make()
    spoil(monkeypatch, model, set(range(6, 100)))
    with pytest.raises(TrainingError, match=r"in epoch 2, after 2 rollbacks; lower the learning rate \(now 5e-05\)"):
        fit(model, x, **OPTIONS, max_rollbacks=2)


def test_an_elbo_that_explodes_but_stays_finite_is_a_divergence(x, monkeypatch):
    model, real, done = make(), loop.training_step, 0

    def step(*args, **options):
        nonlocal done
        done += 1
        if done == 6:
            with torch.no_grad():
                model.head.mean[0].bias.fill_(1e6)
        return real(*args, **options)

    monkeypatch.setattr(loop, "training_step", step)
    history = fit(model, x, **OPTIONS, variances="learned")
    assert history["rollbacks"][-1] == 1


def test_a_rollback_survives_an_interruption(x, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    whole = make()
    with monkeypatch.context() as patch:
        spoil(patch, whole, {10})
        fit(whole, x, **OPTIONS)
    # Steps 9 and 10 end in a rollback to the end of epoch 2; a crash before step 10 is made, so also one after it.
    for cut in (9, 11):
        folder, model = tmp_path / f"{cut}", make()
        with monkeypatch.context() as patch:
            spoil(patch, model, {10})
            real, done = loop.training_step, 0

            def step(*args, real=real, cut=cut, **options):
                nonlocal done
                if done == cut:
                    raise Cut
                done += 1
                return real(*args, **options)

            patch.setattr(loop, "training_step", step)
            with pytest.raises(Cut):
                fit(model, x, **OPTIONS, checkpoints=Checkpoints(folder, every=1))
        model = make()
        with monkeypatch.context() as patch:
            spoil(patch, model, {10 - cut} if cut < 10 else {1})
            fit(model, x, **OPTIONS, checkpoints=Checkpoints(folder, every=1), resume=True)
        assert same(whole, model)
        # No checkpoint ever held the spoiled weights.
        for path in (folder / "checkpoints").iterdir():
            assert b"nan" not in path.read_bytes()[:4000].lower()


def test_early_stopping_ends_with_the_best_held_out_weights(tmp_path):
    torch.manual_seed(1)
    train, held_out = torch.randn(30, 5), torch.randn(100, 5)
    options = {"epochs": 300, "batch_size": 30, "evaluate_every": 1, "learning_rate": 2e-2, "schedule": "constant"}
    model = make()
    history = fit(model, train, held_out=held_out, **options, patience=10, variances="learned")
    assert history.stopped == "no better held-out ELBO in 10 evaluations"
    elbos, last = history["held_out_elbo"], len(history)
    best = int(np.argmax(elbos[:-1])) + 1
    assert last < 300 and best == last - 10 == history["restored_epoch"][-1]
    assert history.held_out.elbo == elbos[best - 1] == evaluate(model, held_out).elbo
    assert elbos[-1] == history.held_out.elbo
    # The same when it is interrupted in between.
    again = make()
    fit(again, train, held_out=held_out, **options, patience=10, variances="learned", checkpoints=tmp_path)
    resumed = make()
    more = fit(
        resumed,
        train,
        held_out=held_out,
        **options,
        patience=10,
        variances="learned",
        checkpoints=tmp_path,
        resume=True,
    )
    assert same(model, again) and same(model, resumed) and more.stopped == history.stopped


def test_patience_needs_held_out_data(x):
    with pytest.raises(UsageError, match="patience=3 given without held-out data"):
        fit(make(), x, patience=3)


def test_a_plateau_of_the_entropy_sum_ends_training(x):
    model = make()
    history = fit(model, x, epochs=400, schedule="constant", learning_rate=1e-2, plateau=0.05)
    assert history.stopped == "the entropy sum rose by less than 0.05 nats in 10 epochs"
    sums = history["running_entropy_sum"]
    assert 20 <= len(history) < 400
    assert np.mean(sums[-10:]) - np.mean(sums[-20:-10]) < 0.05
    assert all(np.mean(sums[i - 10 : i]) - np.mean(sums[i - 20 : i - 10]) >= 0.05 for i in range(20, len(sums)))
    assert history.train is not None


def test_exact_data_bring_the_variance_to_its_floor_and_that_is_explained():
    torch.manual_seed(2)
    z = torch.randn(300, 1)
    exact = z @ torch.ones(1, 5)
    model = vae1(5, 2, (16, 16))
    with torch.no_grad():
        model.head.log_variance.fill_(-50.0)
    fraction = at_floor(model, exact)
    assert fraction == 1.0
    assert "the model reproduces the data exactly; use fewer latents" in explain_floor(model, fraction, exact)
    constant = torch.cat([torch.randn(300, 3), torch.ones(300, 2)], 1)
    model = VAE(
        MLPEncoder(5, (8,)), MLPDecoder((8,)), data_shape=5, latent_dim=1, likelihood=Gaussian(variance="per_feature")
    )
    history = fit(model, constant, epochs=80, batch_size=50)
    fraction = history["at_floor"][-1]
    assert fraction == pytest.approx(0.4)
    assert "2 of 5 features hardly vary in 300 rows" in explain_floor(model, fraction, constant)
    assert explain_floor(model, 0.0, constant) is None
    assert at_floor(vae0(5, 2), constant) == 0.0


def test_a_source_is_trained_on_like_a_tensor(x):
    in_memory, streamed = make(), make()
    first = fit(in_memory, x[:160], held_out=x[160:], **OPTIONS)
    second = fit(streamed, Rows(x[:160], shard_size=37), held_out=Rows(x[160:], shard_size=7), **OPTIONS)
    assert second.train.num_points == 160 and second.held_out.num_points == 40
    assert second.train.elbo == pytest.approx(first.train.elbo, abs=0.3)
    assert second.train.elbo == evaluate(streamed, Rows(x[:160], shard_size=37)).elbo


def test_a_data_loader_is_taken_with_its_own_batches(x):
    labelled = TensorDataset(x, torch.zeros(len(x)))
    model = make()
    history = fit(
        model, DataLoader(labelled, batch_size=25), held_out=DataLoader(TensorDataset(x), batch_size=40), epochs=2
    )
    assert history["step"] == [8, 16] and history.train.num_points == 200
    assert history.train.elbo == pytest.approx(evaluate(model, x).elbo, abs=0.1)


def test_a_data_loader_that_leaves_rows_out_is_refused(x):
    with pytest.raises(UsageError, match="drop_last=True"):
        fit(make(), DataLoader(TensorDataset(x), batch_size=64, drop_last=True))


def test_missing_values_are_trained_around(x):
    holes = x.clone()
    holes[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = math.nan
    with pytest.raises(DataError, match="is nan"):
        fit(make(), holes)
    model = make()
    history = fit(model, holes, epochs=60, missing="ignore")
    assert math.isfinite(history.train.elbo) and abs(history.train.decoder_gap) < 0.1


@pytest.mark.parametrize("kind", ["array", "frame", "dataset"])
def test_whatever_holds_rows_is_taken(x, kind):
    wrap = {"array": lambda t: t.numpy(), "frame": lambda t: pd.DataFrame(t.numpy()), "dataset": TensorDataset}[kind]
    model, again = make(), make()
    history = fit(model, wrap(x[:160]), held_out=wrap(x[160:]), **OPTIONS)
    source = Rows(x[:160], shard_size=160) if kind == "dataset" else x[:160]
    fit(again, source, held_out=x[160:], **OPTIONS)
    assert same(model, again)
    assert evaluate(model, wrap(x[:160])).elbo == history.train.elbo


def test_a_plateau_is_not_seen_while_the_learning_rate_still_rises(x):
    history = fit(make(), x, epochs=200, plateau=10.0)
    # Nothing rises by 10 nats in ten epochs: it ends as soon as two windows of them lie behind the rise.
    assert len(history) == 60 + 20 and history.stopped is not None


def test_missing_values_are_encoded_as_they_were_trained_on(x):
    holes = x.clone()
    holes[::3, 1] = math.nan
    model = make()
    with pytest.raises(DataError, match=r'is nan .*missing="ignore"'):
        model.encode(holes)
    assert torch.equal(model.encode(holes, missing="ignore"), model.encode(holes.nan_to_num(nan=0.0)))
    assert model.reconstruct(holes, missing="ignore").isfinite().all()


def test_progress_is_shown_within_long_epochs_and_goes_back_with_a_rollback(x, monkeypatch):
    steps = []

    @contextmanager
    def bar(total, what, *, show):
        assert (total, what) == (3 * 40, "steps")
        yield lambda note="", /, advance=1: steps.append(advance)

    monkeypatch.setattr(sys.modules["vaentropy.training.fit"], "progress_bar", bar)
    model = make()
    spoil(monkeypatch, model, {45})
    fit(model, x, epochs=3, batch_size=5)
    assert sum(steps) == 120 and len(steps) >= 12 and min(steps) < 0
