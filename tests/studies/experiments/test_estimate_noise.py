"""Parts of the noise against quadrature over x of closed forms in z; the spread of repeated estimates against both."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vaentropy.model import from_functions
from vaentropy.studies.experiments import estimate_noise
from vaentropy.studies.experiments.estimate_noise import ARM, DRAWS, STUDY, Noise, measure
from vaentropy.studies.study import Plan

# Of the toy model, log τ²(x) = SLOPE x.
SLOPE = 0.4
PASSES, LARGEST, SMALLEST = 40, 2_000, 10


@pytest.fixture(scope="module")
def noises():
    """Of q(z|x) = N(0, exp(SLOPE x)), p(z) = N(0, 1), p(x|z) = N(z, 1), on x ~ N(0, 1)."""

    def draw(parameters, num_points, *, seed):
        return torch.randn(num_points, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    model = from_functions(lambda x: (torch.zeros_like(x), SLOPE * x), lambda z: z, variance=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate_noise, "more_of_pca_ring", draw)
        patch.setattr(estimate_noise, "SIZES", (SMALLEST, LARGEST))
        _, ring = estimate_noise.pca_ring(1)
        return measure(model, ring, PASSES, seed=3)


def over_x(function):
    """Mean and variance of a function of x ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights, values = weights / weights.sum(), function(nodes)
    mean = weights @ values
    return mean, weights @ (values - mean) ** 2


def test_parts_of_the_elbo(noises):
    # E_q log p(x|z) - KL, up to constants, and the variance of -(x - τε)²/2 over ε.
    _, sampling = over_x(lambda x: -0.5 * (x**2 + np.exp(SLOPE * x)) - 0.5 * (np.exp(SLOPE * x) - SLOPE * x))
    monte_carlo, _ = over_x(lambda x: (x**2 * np.exp(SLOPE * x) + 0.5 * np.exp(2 * SLOPE * x)) / DRAWS)
    assert noises["elbo"].sampling == pytest.approx(sampling, rel=0.05)
    assert noises["elbo"].monte_carlo == pytest.approx(monte_carlo, rel=0.05)
    assert monte_carlo > 0.05 * sampling  # both parts are there to be told apart


def test_parts_of_the_entropy_sum(noises):
    # H_enc = ½ log(2πe) + ½ SLOPE x; the other entropies are constants, and no draw of z changes any.
    assert noises["entropy_sum"].sampling == pytest.approx(SLOPE**2 / 4, rel=0.05)
    assert noises["entropy_sum"].monte_carlo == 0


@pytest.mark.parametrize("name", ["elbo", "entropy_sum"])
def test_repeated_estimates_spread_as_the_parts_say(noises, name):
    repetitions = PASSES * LARGEST // SMALLEST
    assert noises[name].measured_std(SMALLEST, repetitions) == pytest.approx(
        noises[name].expected_std(SMALLEST), rel=0.05
    )


def test_estimates_of_one_size_share_no_point():
    noise = Noise(torch.arange(14, dtype=torch.float64), 1.0, 0.0)
    assert noise.measured_std(3, 4) == pytest.approx(np.std([1, 4, 7, 10], ddof=1))


def test_points_and_noise_are_fresh_in_every_pass_and_of_the_ring(monkeypatch):
    seen, expectations, evaluate = [], [], estimate_noise.evaluate

    def watching(model, x, *, expectation, pointwise):
        seen.append(x)
        expectations.append(expectation)
        return evaluate(model, x, expectation=expectation, pointwise=pointwise)

    monkeypatch.setattr(estimate_noise, "evaluate", watching)
    monkeypatch.setattr(estimate_noise, "SIZES", (10, 5_000))
    x, ring = estimate_noise.pca_ring(5_000, seed=2)
    measure(ARM.model((10,)), ring, 3, seed=3)
    points = [tuple(point.tolist()) for part in (x, *seen) for point in part]
    assert len(set(points)) == 4 * 5_000
    assert len({e.seed for e in expectations}) == 3 and all(e.num_samples == DRAWS for e in expectations)
    # As far from the ring's mean as the training points are: 4 standard errors of a mean of squares.
    squares = [(part - ring.mean).square().sum(1) for part in (x, *seen)]
    errors = [part.std() / math.sqrt(len(part)) for part in squares]
    for part, error in zip(squares[1:], errors[1:], strict=True):
        assert abs(part.mean() - squares[0].mean()) < 4 * math.hypot(errors[0], error)


def test_study(monkeypatch):
    monkeypatch.setattr(estimate_noise, "SIZES", (10, 100))
    monkeypatch.setattr(estimate_noise, "NUM_POINTS", 400)
    monkeypatch.setattr(estimate_noise, "REPETITIONS", {"quick": 20, "paper": 30})
    monkeypatch.setattr(estimate_noise, "ARM", replace(ARM, epochs=(2, 3)))
    outcome = STUDY.run(Plan(replicates=2, device="cpu", progress=False))
    assert [row["points"] for row in outcome.rows] == [10, 100]
    for row in outcome.rows:
        for name in ("elbo", "entropy_sum"):
            parts = math.hypot(row[f"{name}_std_sampling"], row[f"{name}_std_monte_carlo"])
            assert row[f"{name}_std_expected"] == pytest.approx(parts)
            # A standard deviation of 20 has an error of 16 %.
            assert row[f"{name}_std"] == pytest.approx(parts, rel=0.6)
        assert row["ratio"] == pytest.approx(row["elbo_std"] / row["entropy_sum_std"])
    small, large = outcome.rows
    assert small["elbo_std_expected"] == pytest.approx(math.sqrt(10) * large["elbo_std_expected"])
    assert len(outcome.details["ratios"]) == 2 and f"{outcome.details['ratios'][0]:.1f} times" in outcome.finding
    slope = math.log10(large["elbo_std"] / small["elbo_std"])
    assert f"to the power of {slope:.2f}" in outcome.finding
    assert {axes.get_xscale() + axes.get_yscale() for axes in outcome.figure.axes} == {"loglog"}


def test_exact_settings():
    settings = ARM.settings(Plan(scale="paper", exact_settings=True))
    assert (settings["schedule"], settings["learning_rate"], settings["epochs"]) == ("constant", 1e-3, 550)
    assert settings["expectation"].num_samples == 1
