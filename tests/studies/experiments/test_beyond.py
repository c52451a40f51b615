"""The study of β, Bernoulli and Poisson VAEs: sums against torch.distributions and scipy."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import distributions

from vaentropy.data import Dataset
from vaentropy.studies.experiments import beyond
from vaentropy.studies.study import Plan
from vaentropy.studies.trials import load_for, train

SEED = 3
EPOCHS = {"Bernoulli": 30, "Poisson": 20}
RING_EPOCHS = 15
# One of those with β.
BETA, LEFT_OUT = 2.0, (0.5, 4.0)


def grey(plan, name, **options):
    """Smooth pictures of one factor in place of MNIST, which is not on every machine; all else as it is."""
    if name != "mnist":
        return load_for(plan, name, **options)
    generator = torch.Generator().manual_seed(1)
    factor, pixel = 3 * torch.randn(600, 1, generator=generator), torch.linspace(-1, 1, 25)
    x = torch.sigmoid(4 * factor * pixel)
    return Dataset("mnist", x, x[:0], "made up")


@pytest.fixture(scope="module")
def study():
    """The outcome, and what each training was given and made: (x, trials) by model."""
    trained = {}

    def recorded(arm, x, held_out, plan, replicates):
        arm = replace(arm, epochs=(EPOCHS.get(arm.name, RING_EPOCHS), 1))
        trained[arm.name] = x, train(arm, x, held_out, plan, replicates)
        return trained[arm.name][1]

    with pytest.MonkeyPatch.context() as patch:
        left_out = {f"VAE-1, β = {beta:g}" for beta in LEFT_OUT}
        patch.setattr(beyond, "CASES", [case for case in beyond.CASES if case.arm.name not in left_out])
        patch.setattr(beyond, "RING_QUICK", 2_000)
        patch.setattr(beyond, "load_for", grey)
        patch.setattr(beyond, "train", recorded)
        return beyond.run(Plan(replicates=1, seed=SEED, progress=False)), trained


@pytest.fixture(scope="module")
def rows(study):
    return {(row["model"], row["bound"]): row for row in study[0].rows}


def parts(model, x, likelihood, entropy, draws=16):
    """Reconstruction, KL, encoder, prior and decoder entropy by torch.distributions, in float64."""
    model = model.double()
    x = x.double()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        features = model.encoder(x)
        q = distributions.Normal(model.latent_mean(features), (0.5 * model.latent_log_variance(features)).exp())
        prior = distributions.Normal(torch.zeros(2).double(), torch.ones(2).double())
        drawn = [likelihood(model, model.decoder(model.latent_layer(q.sample()))) for _ in range(draws)]
        terms = [sum(each.log_prob(x).sum() for each in drawn), sum(entropy(each).sum() for each in drawn)]
        reconstruction, decoder = (float(term) / draws / len(x) for term in terms)
        kl = float(distributions.kl_divergence(q, prior).sum(1).mean())
        return reconstruction, kl, float(q.entropy().sum(1).mean()), float(prior.entropy().sum()), decoder


def test_both_bounds_of_a_beta_vae_and_their_sums(study, rows):
    beta, name = BETA, f"VAE-1, β = {BETA:g}"
    x, trials = study[1][name]
    # The weight reached the training, in all of its steps.
    assert set(trials.histories[0]["beta"]) == {beta}
    reconstruction, kl, encoder, prior, decoder = parts(
        trials.models[0],
        x,
        lambda model, features: distributions.Normal(
            model.head.mean(features), (0.5 * model.head.log_variance).exp().expand(x.shape)
        ),
        lambda p: p.entropy(),
    )
    plain, weighted = rows[name, "ELBO"], rows[name, "weighted ELBO"]
    assert plain["value"] == pytest.approx(reconstruction - kl, abs=0.05)
    assert weighted["value"] == pytest.approx(reconstruction - beta * kl, abs=0.05)
    assert plain["entropy_sum"] == weighted["wrong_sum"] == pytest.approx(encoder - prior - decoder, abs=1e-3)
    assert weighted["entropy_sum"] == plain["wrong_sum"] == pytest.approx(beta * (encoder - prior) - decoder, abs=1e-3)
    for row in (plain, weighted):
        assert row["relative_gap"] < 0.03 < 0.06 < row["wrong_relative_gap"]


def test_the_sum_of_a_bernoulli_vae_has_the_mean_entropy_of_its_pixels(study, rows):
    x, trials = study[1]["Bernoulli"]

    def likelihood(model, features):
        return distributions.Bernoulli(logits=model.head.logits(features))

    reconstruction, kl, encoder, prior, decoder = parts(trials.models[0], x, likelihood, lambda p: p.entropy())
    row = rows["Bernoulli", "ELBO"]
    assert row["value"] == pytest.approx(reconstruction - kl, abs=0.05)
    assert row["entropy_sum"] == pytest.approx(encoder - prior - decoder, abs=0.05)
    means = []
    parts(trials.models[0], x, likelihood, lambda p: (means.append(p.mean), p.mean)[1])
    mean_pixels = distributions.Bernoulli(torch.stack(means).mean((0, 1))).entropy().sum()
    assert row["wrong_sum"] == pytest.approx(encoder - prior - float(mean_pixels), abs=0.05)
    assert row["relative_gap"] < 0.02 < 0.2 < row["wrong_relative_gap"]


def test_the_sum_of_a_poisson_vae_has_pseudo_entropies_and_the_base_measure(study, rows):
    x, trials = study[1]["Poisson"]

    def likelihood(model, features):
        return distributions.Poisson(model.head.log_rate(features).exp())

    def pseudo(p):
        return p.rate - torch.xlogy(p.rate, p.rate)

    reconstruction, kl, encoder, prior, decoder = parts(trials.models[0], x, likelihood, pseudo)
    log_base = -scipy.special.gammaln(x.double().numpy() + 1).sum(1).mean()
    row = rows["Poisson", "ELBO"]
    # Both routes draw 16 z per point.
    noise = trials.histories[0].train.mc_stderr
    assert row["value"] == pytest.approx(reconstruction - kl, abs=6 * noise.elbo)
    assert row["entropy_sum"] == pytest.approx(encoder - prior - decoder + log_base, abs=6 * noise.entropy_sum)
    assert noise.entropy_sum < 0.5
    # -log p of counts drawn from p has the entropy as its mean.
    ordinary = parts(trials.models[0], x, likelihood, lambda p: -p.log_prob(p.sample()))[-1]
    assert row["wrong_sum"] == pytest.approx(encoder - prior - ordinary, abs=0.5)
    assert row["relative_gap"] < 0.04 < 0.1 < row["wrong_relative_gap"]


def test_entropies_of_poisson_variables():
    rates = np.array([0.0, 1e-9, 0.01, 0.5, 3.0, 16.0, 49.9, 50.1, 200.0, 3_000.0])
    counts = np.arange(20_000)
    log_p = scipy.stats.poisson.logpmf(counts[:, None], rates)
    direct = -scipy.special.xlogy(np.exp(log_p), np.exp(log_p)).sum(0)
    entropies = beyond.poisson_entropy(torch.from_numpy(rates)).numpy()
    assert np.allclose(entropies, direct, rtol=1e-7, atol=1e-12)


def test_entropies_of_bernoulli_variables():
    p = torch.tensor([0.0, 1e-9, 0.3, 0.5, 1.0], dtype=torch.float64)
    assert torch.allclose(beyond.bernoulli_entropy(p), distributions.Bernoulli(p).entropy(), rtol=1e-7, atol=1e-12)
    assert beyond.bernoulli_entropy(p)[[0, 4]].tolist() == [0, 0]


def test_binary_data_are_drawn_once_by_the_seed_of_the_plan(study, monkeypatch):
    monkeypatch.setattr(beyond, "load_for", grey)
    x = study[1]["Bernoulli"][0]
    assert set(x.unique().tolist()) == {0, 1}
    assert bool((beyond._binary(Plan(seed=SEED)) == x).all())
    assert not bool((beyond._binary(Plan(seed=SEED + 1)) == x).all())
    expected = grey(Plan(), "mnist").train
    assert float((x - expected).mean()) == pytest.approx(0, abs=0.02)


def test_counts_are_whole_numbers(study):
    x = study[1]["Poisson"][0]
    assert bool((x == x.round()).all())
    assert (float(x.min()), float(x.max())) == (0, 16)


def test_the_finding_and_the_figure_are_made_from_the_numbers(study):
    outcome = study[0]
    assert len(outcome.rows) == 4
    assert outcome.finding.endswith(".") and "\n" not in outcome.finding
    assert f"at most {max(row['relative_gap'] for row in outcome.rows):.1e}" in outcome.finding
    assert "more on 4 of them" in outcome.finding
    changed = [{**row, "wrong_relative_gap": row["relative_gap"] / 2} for row in outcome.rows[:2]] + outcome.rows[2:]
    assert "more on 2 of them" in beyond._finding(changed)
    (axes,) = outcome.figure.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [
        [row[column] for row in outcome.rows] for column in ("relative_gap", "wrong_relative_gap")
    ]
    assert axes.get_xscale() == "log"


def test_every_weight_has_a_model_and_its_own_sum():
    arms = [case.arm for case in beyond.CASES]
    assert [arm.options["beta"] for arm in arms if "beta" in arm.options] == [0.5, 2.0, 4.0]
    assert [arm.name for arm in arms[3:]] == ["Bernoulli", "Poisson"]


def test_the_settings_stand_where_the_paper_has_none():
    for case in beyond.CASES:
        paper = case.arm.settings(Plan(scale="paper"))
        assert case.arm.settings(Plan(scale="paper", exact_settings=True)) == paper
        assert paper["epochs"] > case.arm.settings(Plan())["epochs"]
