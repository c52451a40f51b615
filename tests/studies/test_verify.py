"""The theorem at stationary points, through both routes: the training path optimises, `evaluate` judges."""

import numpy as np
import pytest
import torch

from vaentropy.studies.stationary import curvature, descend
from vaentropy.studies.verify import CASES, verify

# Cases that take a second together; the others run with `make slow`.
QUICK = ("linear-optimum", "linear-saddle", "linear-collapsed")


def test_descend_finds_the_minimum_of_a_curved_valley():
    point = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)

    def rosenbrock():
        return 100 * (point[1] - point[0] ** 2) ** 2 + (1 - point[0]) ** 2

    found = descend(rosenbrock, [point])
    assert np.allclose(point.detach().numpy(), [1, 1], atol=1e-9)
    assert found.gradient_norm < 1e-9
    # Eigenvalues of the Hessian [[802, -400], [-400, 200]] there.
    assert found.hessian_min == pytest.approx(np.linalg.eigvalsh([[802, -400], [-400, 200]])[0], rel=1e-6)


def test_curvature_tells_a_saddle():
    point = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    at_saddle = curvature(lambda: point[0] ** 2 - 3 * point[1] ** 2, [point])
    assert at_saddle.gradient_norm == 0 and at_saddle.hessian_min == pytest.approx(-6)


@pytest.mark.parametrize("name", QUICK)
def test_linear_cases(name):
    case = CASES[name]()
    assert case.relative_gap <= 1e-12 and case.gradient_norm <= 1e-10 and case.holds
    assert (case.hessian_min > 0) == (name == "linear-optimum")
    assert case.active_latents == 2


@pytest.mark.slow
def test_every_case_of_verify_holds():
    seen = []
    cases = verify(on_case=seen.append)
    assert seen == cases and len(cases) == len(CASES)
    by_model = {case.model: case for case in cases}
    for name in ("VAE-1", "VAE-2", "VAE-3"):
        case = by_model[name]
        assert case.theorem and case.holds
        assert case.relative_gap <= 1e-8 and case.gradient_norm <= 1e-6
        assert case.active_latents == 2 and case.hessian_min > 0
    softplus, vae0 = by_model["VAE-3, softplus head"], by_model["VAE-0"]
    assert not softplus.theorem and softplus.relative_gap > 1e-5 and softplus.gradient_norm <= 1e-6
    assert not vae0.theorem and vae0.relative_gap > 1e-2 and vae0.gradient_norm <= 1e-6
    assert vae0.own_relative_gap <= 1e-8
    assert all(case.holds for case in cases)


@pytest.mark.slow
def test_the_nonlinear_vae1_holds():
    case = CASES["vae1"]()
    assert case.relative_gap <= 1e-8 and case.gradient_norm <= 1e-6
    assert case.active_latents == 2 and case.hessian_min > 0 and case.holds
