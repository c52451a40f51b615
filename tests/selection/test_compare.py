"""Paired differences, their errors and what they decide, against bootstrap and simulation."""

import math

import numpy as np
import pytest
import torch

from vaentropy.selection.compare import Decision, Evidence, Score, bic_penalty, decide, training_noise

from ..models import F64, close


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_the_error_of_a_difference_is_that_of_the_bootstrap():
    # Both share the spread of the points, which cancels: the errors of the two means say nothing of their difference.
    points = 5 * normal(400)
    score = Score({1: points + 0.3 * normal(400, seed=1), 2: points + 0.3 * normal(400, seed=2) + 0.1})
    value, error = score.difference(2, 1)
    rng = np.random.default_rng(0)
    rows = rng.integers(400, size=(4000, 400))
    drawn = (score.values[2].numpy()[rows] - score.values[1].numpy()[rows]).mean(1)
    assert abs(drawn.std() / error - 1) < 0.05 and abs(drawn.mean() - value) < 5 * error / math.sqrt(4000)
    assert score.stderr(1) > 10 * error
    assert score.difference(1, 2) == pytest.approx((-value, error))


def test_a_difference_of_two_errors_is_rarely_luck():
    # Without a true difference: 2.3 % on either side.
    a, b = normal(2000, 50, seed=3), normal(2000, 50, seed=4)
    below = sum(Score({1: x, 2: y}).below(1, 2, 2.0) for x, y in zip(a, b, strict=True))
    assert 0.015 < below / 2000 < 0.035


def test_training_noise_is_in_the_error_of_both():
    score = Score({1: normal(100), 2: normal(100, seed=1)})
    noisy = Score(score.values, noise=0.3)
    assert close(noisy.difference(1, 2).error ** 2, score.difference(1, 2).error ** 2 + 2 * 0.3**2)
    assert noisy.difference(1, 1) == (0.0, 0.0)


def test_training_noise_is_the_standard_deviation_of_a_training_and_bad_optima_do_not_count():
    elbos = 0.2 * normal(4001, 2, seed=5) - 7 * (torch.rand(4001, 1, generator=torch.Generator().manual_seed(0)) > 0.5)
    assert training_noise(elbos.tolist()) == pytest.approx(0.2, rel=0.05)
    elbos[::4, 1] -= 5.0
    # A quarter of outliers moves the median of |a - b| from its quantile of 1/2 to that of 2/3: by a factor of 1.43.
    assert training_noise(elbos.tolist()) == pytest.approx(0.2 * 1.43, rel=0.06)
    assert training_noise([(1.0,), (2.0,)]) is None
    assert training_noise([()]) is None


def test_one_point_decides_nothing():
    score = Score({1: torch.zeros(1, dtype=F64), 2: torch.ones(1, dtype=F64)})
    assert math.isnan(score.difference(2, 1).error) and not score.below(1, 2, 2.0)


def scores(**means):
    """Means whose paired differences all have an error of about 0.1."""
    values = {}
    for number, (name, mean) in enumerate(means.items()):
        noise = normal(200, seed=number)
        values[int(name[1:])] = mean + (noise - noise.mean()) / noise.std()
    return Score(values)


ALL = {1: 1, 2: 2, 3: 3, 4: 4}
LARGER_IS_WORSE = scores(h1=0, h2=-9, h3=-18, h4=-27)
NO_WORD = scores(h1=0, h2=0, h3=0, h4=0)


@pytest.mark.parametrize(
    ("score", "bic", "active", "expected"),
    [
        # The best is the smallest that is level with it; BIC rules out what is larger.
        (scores(h1=-5, h2=-2, h3=0, h4=0.05), LARGER_IS_WORSE, ALL, (3, (), 3)),
        # A larger one that is as good remains, where BIC has no word against it.
        (scores(h1=-5, h2=-2, h3=0, h4=0.05), NO_WORD, ALL, (3, (4,), 3)),
        # What held-out data put below the best does not, whatever BIC says.
        (scores(h1=-5, h2=-2, h3=0, h4=-2), NO_WORD, ALL, (3, (), 3)),
        # Smaller ones are level too.
        (scores(h1=-0.1, h2=-0.05, h3=0, h4=-1), NO_WORD, ALL, (1, (2, 3), 1)),
        # The best uses 2 of its latents only: 2 are enough, although that training went worse.
        (scores(h1=-5, h2=-1, h3=-3, h4=0), NO_WORD, {**ALL, 4: 2}, (2, (), 2)),
        # So they are where one that is level with the best does so.
        (scores(h1=-5, h2=-1, h3=0, h4=-0.05), LARGER_IS_WORSE, {**ALL, 4: 2}, (2, (), 2)),
        # One that is level, but uses no more than what is supported, is no other answer.
        (scores(h1=-5, h2=0, h3=-0.01, h4=-0.02), NO_WORD, {**ALL, 3: 2}, (2, (4,), 2)),
        # All are collapsed.
        (NO_WORD, NO_WORD, {1: 0, 2: 0, 3: 0, 4: 0}, (1, (), 0)),
    ],
)
def test_what_is_supported_and_what_remains_undecided(score, bic, active, expected):
    assert decide(Evidence(score, bic, active, 2.0)) == Decision(*expected)


def test_a_number_that_was_not_offered_cannot_be_supported():
    score = scores(h2=0, h4=0.05)
    assert decide(Evidence(score, NO_WORD, {2: 1, 4: 1}, 2.0)) == Decision(2, (), 1)
    assert decide(Evidence(score, LARGER_IS_WORSE, {2: 2, 4: 3}, 2.0)) == Decision(2, (), 2)


def test_more_errors_make_fewer_differences_count():
    score = scores(h1=-0.5, h2=0)
    assert decide(Evidence(score, NO_WORD, {1: 1, 2: 2}, 2.0)).supported == 2
    assert decide(Evidence(score, NO_WORD, {1: 1, 2: 2}, 8.0)) == Decision(1, (2,), 1)


def test_bic_per_data_point():
    # BIC = k log N - 2 log L, of which less is better; here -BIC/(2N).
    rng = np.random.default_rng(0)
    log_likelihood = rng.normal(size=250)
    bic = 17 * np.log(250) - 2 * log_likelihood.sum()
    assert log_likelihood.mean() - bic_penalty(17, 250) == pytest.approx(-bic / (2 * 250), rel=1e-12)


def test_what_a_few_nats_more_would_change():
    evidence = Evidence(scores(h1=-1, h2=0), NO_WORD, {1: 1, 2: 2}, 2.0)
    assert decide(evidence).supported == 2
    assert decide(evidence.with_more(1, 0.5)).supported == 2
    assert decide(evidence.with_more(1, 0.95)).supported == 1
