"""VAEs on digits with one thing wrong each: that is the first finding, and its remedy brings what it says."""

import copy

import pytest
import torch

import vaentropy as ve

from .recipes import digits, few_digits, prepared

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow


def diagnosed(name):
    model, train, held_out = prepared(name)
    return model, ve.diagnose(model, train, held_out=held_out)


def problems(diagnosis):
    return [finding.kind for finding in diagnosis.problems]


def trained_on(model, epochs):
    return ve.fit(copy.deepcopy(model), digits()[0], epochs=epochs, progress=False).train.elbo


def test_untrained():
    _, diagnosis = diagnosed("untrained")
    assert problems(diagnosis)[0] == "not_stationary"
    # A linear VAE of that size is an independent floor.
    linear, x = ve.LinearVAE.optimum(digits()[0], 2), digits()[0].double()
    with torch.no_grad():
        floor = float(linear.log_likelihood(x).mean())
    assert 0 < diagnosis["not_stationary"].nats < floor - diagnosis.train.elbo
    assert diagnosis["variance"].nats == diagnosis.train.gains.variance


def test_half_trained():
    model, diagnosis = diagnosed("half-trained")
    assert problems(diagnosis) == ["not_stationary"]
    # The gap is a quarter of a nat; what is left to gain is more, and training on gains it.
    assert abs(diagnosis.train.gap) < 0.5 < diagnosis["not_stationary"].nats
    assert trained_on(model, 100) - diagnosis.train.elbo > diagnosis["not_stationary"].nats


def test_fixed_variance():
    model, diagnosis = diagnosed("σ² fixed")
    finding = diagnosis.problems[0]
    assert finding.kind == "fixed_variance"
    calibrated = ve.evaluate(ve.calibrate(model, digits()[0]), digits()[0])
    gained = calibrated.elbo - diagnosis.train.elbo
    assert abs(gained - diagnosis.train.gains.variance) < 0.01 and f"gains {gained:.3f}"[:9] in finding.remedy
    assert diagnosis.gradients.moves["decoder"].distance == 1
    # σ² = 1 is far too large for these data, and the latents are not worth their KL: that is its fault.
    assert diagnosis["collapsed"].level == "note" and "fixed_variance" in diagnosis["collapsed"].remedy
    assert finding.nats > gained
    assert "the mean squared error (now 0.0312)" in finding.remedy  # 2 σ²/D


def test_other_weight_of_the_kl():
    model, diagnosis = diagnosed("β = 4")
    assert problems(diagnosis)[0] == "kl_weight"
    check = diagnosis.gradients
    assert abs(check.implied_beta - 4) < 3 * check.implied_beta_error + 0.2
    # The gap says nothing of it.
    assert abs(diagnosis.train.gap) < 0.2
    assert trained_on(model, 150) - diagnosis.train.elbo > diagnosis["kl_weight"].nats > 0.5
    said = ve.diagnose(model, digits()[0], beta=4.0)
    assert problems(said)[0] == "kl_weight" and "β = 4, as given" in said.findings[0].verdict


def test_softplus_head_is_found_by_what_it_does():
    _, diagnosis = diagnosed("softplus σ²(z)")
    assert problems(diagnosis) == ["theorem_conditions"]
    move = diagnosis.gradients.moves["decoder"]
    assert 0.02 < move.distance < 0.5 and move.where == "the decoder's variance"
    assert diagnosis["theorem_conditions"].nats == abs(move.out_of_reach) > 5 * move.out_of_reach_error


def test_exponential_head_is_clean():
    _, diagnosis = diagnosed("exp σ²(z)")
    assert diagnosis.clean and "theorem_conditions" not in diagnosis
    assert diagnosis.gradients.moves["decoder"].distance < 0.01


def test_overfitted():
    model, diagnosis = diagnosed("overfitted")
    finding, held_out = diagnosis.problems[0], ve.evaluate(model, few_digits()[1])
    assert finding.kind == "overfitting"
    assert finding.nats == diagnosis.train.elbo - held_out.elbo > 50
    assert "overfitting" not in ve.diagnose(model, few_digits()[0])


def test_well_trained_is_clean():
    _, diagnosis = diagnosed("well-trained")
    assert diagnosis.clean, diagnosis
    assert {finding.kind for finding in diagnosis.findings} <= {"not_stationary", "feature_variances"}
    text = repr(diagnosis)
    assert "no problems" in text and "That is not convergence" in text and "converged" not in text
