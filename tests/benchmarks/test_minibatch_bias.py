import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from benchmarks.minibatch_bias import KINDS, _model, contributions, measured_bias, predicted_bias, run

MANY = 100_000  # points of a pool, so that a batch without replacement is one of independent points


def chi_squared(num_features: int, num_points: int = MANY) -> torch.Tensor:
    """Mean squares of standard normal errors."""
    draws = np.random.default_rng(0).chisquare(num_features, num_points) / num_features
    return torch.from_numpy(draws).reshape(1, -1, 1)


@pytest.mark.parametrize(("num_features", "batch_size"), [(1, 50), (10, 50), (64, 20)])
def test_the_formula_is_the_expectation_for_normal_errors(num_features, batch_size):
    # The mean of B of them is chi-squared with B D degrees of freedom, over these: E log is known in closed form.
    degrees = num_features * batch_size
    exact = float(digamma(degrees / 2) - math.log(degrees / 2))
    assert float(predicted_bias(chi_squared(num_features), batch_size)) == pytest.approx(exact, rel=0.03)
    assert exact == pytest.approx(-1 / degrees, rel=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_formula_is_what_a_simulation_gives(momentum):
    pool = chi_squared(4, 2000)
    ((measured, error),) = measured_bias(pool, 10, (momentum,), 4000)
    predicted = predicted_bias(pool, 10, momentum)
    # Within five standard errors, and the neglected next order, 1/(B D) of it.
    assert abs(float(measured - predicted)) < 5 * float(error) - 0.05 * float(predicted)
    assert float(error) < -0.3 * float(predicted)


def test_a_batch_of_all_points_is_off_by_its_draws_alone():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 50, 1, generator=generator, dtype=torch.float64) + 1
    ((measured, _),) = measured_bias(points, 50, (0.0,), 20)
    assert float(predicted_bias(points, 50)) == 0.0
    assert float(measured) == pytest.approx(0.0, abs=1e-12)
    draws = points * (1 + 0.5 * torch.rand(400, 50, 1, generator=generator, dtype=torch.float64))
    ((measured, error),) = measured_bias(draws, 50, (0.0,), 20_000)
    assert float(measured) == pytest.approx(float(predicted_bias(draws, 50)), abs=5 * float(error))
    assert float(predicted_bias(draws, 50)) < -1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_what_training_reads(kind):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    model = _model(x.float(), 2, kind, 0).double()
    noise = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(3))
    pool = contributions(model, x, 1, seed=3)
    (parameter,) = model.variance_parameters()
    before = parameter.detach().clone()
    model.elbo_terms(x, noise.double(), adapt=1.0)
    expected = parameter.detach() - (before if kind == "function" else 0)
    torch.testing.assert_close(pool.mean((0, 1)).log().reshape(expected.shape), expected)


@pytest.mark.slow
def test_a_quick_run():
    result = run(quick=True)
    assert {(row["σ²"], row["batch"], row["momentum"]) for row in result.rows} == {
        (kind, batch, momentum) for kind in KINDS for batch in (10, 50) for momentum in (0.0, 0.9, 0.99)
    }
    assert all(row["bias of log σ²"] < 0 for row in result.rows if row["momentum"] == 0)
    assert all((row["trained, less learned"] != "") == (row["batch"] == 50) for row in result.rows)
