"""Counting active latents: models whose encoder entropies are set by hand."""

import math

import pytest
import torch

from vaentropy import MonteCarlo, evaluate
from vaentropy.families import vae0, vae1
from vaentropy.studies.activity import FIXED, LEARNED, activity, arms, finding, plot_activity
from vaentropy.studies.study import Plan
from vaentropy.studies.trials import Trials
from vaentropy.training import History

PRIOR_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


def trials_of(arm, entropies, *, means, x):
    """A "training" after which q(z_h|x) = N(means_h x_0, exp(2 (entropies_h - prior entropy)))."""
    model = arm.model((3,)).double()
    with torch.no_grad():
        model.latent_mean.weight.zero_()
        model.latent_mean.bias.copy_(torch.tensor(means))
        model.latent_log_variance.weight.zero_()
        model.latent_log_variance.bias.copy_(2 * (torch.tensor(entropies, dtype=torch.float64) - PRIOR_ENTROPY))
    train = evaluate(model, x, expectation=MonteCarlo(4))
    row = {"epoch": 1, "step": 1, "running_elbo": train.elbo, "running_gap": train.gap}
    return Trials(arm, [model], [History([row], train, train)], 1.0)


@pytest.fixture(scope="module")
def compared():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixed, learned = arms(lambda family, shape: family(shape, 4, (5,)), (1, 1))
    return x, [
        trials_of(fixed, [PRIOR_ENTROPY, 1.3, 1.001, 0.999], means=[0.0, 0.0, 0.0, 0.0], x=x),
        # The first has the prior's entropy, but not its mean: active by KL alone.
        trials_of(learned, [PRIOR_ENTROPY, 0.5, -1.0, 0.999], means=[1.0, 0.0, 0.0, 0.0], x=x),
    ]


def test_arms_differ_in_the_variance_alone():
    made = []
    fixed, learned = arms(lambda family, shape: made.append(family) or family(shape, 2, (4,)), (3, 7), options={"a": 1})
    models = [arm.model((3,)) for arm in (fixed, learned)]
    assert made == [vae0, vae1] and (fixed.name, learned.name) == (FIXED, LEARNED)
    assert len(list(models[1].parameters())) == len(list(models[0].parameters())) + 1
    assert fixed.settings(Plan()) == learned.settings(Plan()) == {"epochs": 3, "a": 1}


def test_a_latent_is_active_below_one_nat(compared):
    x, (fixed, learned) = compared
    row = activity("some data", fixed, x)
    assert row["active"] == 1 and row["latents"] == 4
    # KL of N(0, τ²) to the prior, ½ (τ² - 1 - log τ²): not far from 0 with an entropy of 1.3 nats, but at least 0.01.
    assert row["active_by_kl"] == 3
    other = activity("some data", learned, x)
    assert other["active"] == 3 and other["active_by_kl"] == 4
    assert (row["data"], row["training"], other["training"]) == ("some data", FIXED, LEARNED)


def test_variances_of_a_row(compared):
    x, (fixed, learned) = compared
    row = activity("some data", fixed, x)
    assert row["variance"] == 1.0
    assert row["mean_variance_of_features"] == pytest.approx(x.numpy().var(axis=0).mean(), rel=1e-12)
    model = learned.models[0]
    with torch.no_grad():
        model.head.log_variance.fill_(math.log(0.25))
    assert activity("some data", learned, x)["variance"] == pytest.approx(0.25)
    # Mean squared error of draws, directly.
    z = fixed.models[0].posterior(x).sample((2000,)).flatten(0, 1)
    error = (x.repeat(2000, 1) - fixed.models[0].likelihood(z).mean).square().mean().detach()
    assert row["optimal_variance"] == pytest.approx(float(error), rel=0.05)


def test_the_sentence_says_what_the_rows_say():
    def row(data, training, active):
        return {"data": data, "training": training, "active": active, "latents": 20}

    good = [row("A", FIXED, 1), row("A", LEARNED, 9), row("B", FIXED, 4), row("B", LEARNED, 4)]
    assert "A 1 and 9 of 20, B 4 and 4 of 20" in finding(good)
    assert finding(good).endswith("more latents active on 1 of 2 data sets.")
    assert finding(good[:2]).endswith("more latents active on 1 of 1 data sets.")
    assert finding(good[2:]).endswith("more latents active on none of 1 data sets.")


def test_the_figure_shows_sorted_entropies_and_that_of_the_prior(compared):
    _, pair = compared
    figure = plot_activity({"A": pair, "B": pair})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines[FIXED] == pytest.approx([PRIOR_ENTROPY, 1.3, 1.001, 0.999])
    assert lines[LEARNED] == pytest.approx([PRIOR_ENTROPY, 0.999, 0.5, -1.0])
    assert list(lines["prior, 1.42 nats"]) == pytest.approx([PRIOR_ENTROPY] * 2)
