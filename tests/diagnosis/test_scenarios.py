"""VAEs on digits with one thing wrong each: that is the first finding, and its remedy brings what it says."""

import copy

import pytest
import torch
from torch import nn

import vaentropy as ve
from vaentropy.data import load
from vaentropy.likelihoods import Gaussian, GaussianHead
from vaentropy.networks import MLPDecoder, MLPEncoder

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def noisy_digits():
    """Whole gray levels made continuous, centred, in units in which σ² is about 1: no σ² wants to be 0."""
    data = load("digits", dequantise=True)
    mean = data.train.mean(0)
    return (data.train - mean) * 6, (data.held_out - mean) * 6


def made(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def problems(diagnosis):
    return [finding.kind for finding in diagnosis.problems]


def fit(model, x, **options):
    return ve.fit(model, x, progress=False, **options).train


def test_untrained(digits):
    model = made(lambda: ve.vae1(64, 2))
    diagnosis = ve.diagnose(model, digits.train, held_out=digits.held_out)
    assert problems(diagnosis)[0] == "not_stationary"
    # A linear VAE of that size is an independent floor.
    linear = ve.LinearVAE.optimum(digits.train, 2)
    floor = float(linear.log_likelihood(digits.train.double()).mean().detach())
    finding = diagnosis["not_stationary"]
    assert 0 < finding.nats < floor - diagnosis.train.elbo
    assert diagnosis["variance"].nats == diagnosis.train.gains.variance


def test_half_trained(digits):
    model = made(lambda: ve.vae1(64, 2))
    fit(model, digits.train, epochs=40)
    diagnosis = ve.diagnose(model, digits.train, held_out=digits.held_out)
    assert problems(diagnosis) == ["not_stationary"]
    # The gap is a quarter of a nat; what is left to gain is more, and training on gains it.
    assert abs(diagnosis.train.gap) < 0.5 < diagnosis["not_stationary"].nats
    after = fit(model, digits.train, epochs=100)
    assert after.elbo - diagnosis.train.elbo > diagnosis["not_stationary"].nats


def test_fixed_variance(digits):
    model = made(lambda: ve.vae0(64, 2))
    fit(model, digits.train, epochs=100)
    diagnosis = ve.diagnose(model, digits.train, held_out=digits.held_out)
    finding = diagnosis.findings[0]
    assert (finding.kind, finding.level) == ("fixed_variance", "problem")
    calibrated = ve.evaluate(ve.calibrate(model, digits.train), digits.train)
    assert abs(calibrated.elbo - diagnosis.train.elbo - finding.nats) < 0.01
    assert diagnosis.gradients.moves["decoder"].distance == 1
    # σ² = 1 is far too large for these data, and the latents are not worth their KL: both are said.
    assert "collapsed" in problems(diagnosis)
    assert "the mean squared error (now 0.0312)" in finding.remedy  # 2 σ²/D


def test_other_weight_of_the_kl(digits):
    model = made(lambda: ve.vae1(64, 2, (20,)))
    fit(model, digits.train, epochs=150, beta=4.0)
    diagnosis = ve.diagnose(model, digits.train, held_out=digits.held_out)
    assert problems(diagnosis)[0] == "kl_weight"
    check = diagnosis.gradients
    assert abs(check.implied_beta - 4) < 3 * check.implied_beta_error + 0.2
    # The gap says nothing of it.
    assert abs(diagnosis.train.gap) < 0.2
    after = fit(copy.deepcopy(model), digits.train, epochs=150)
    assert after.elbo - diagnosis.train.elbo > diagnosis["kl_weight"].nats > 0.5
    said = ve.diagnose(model, digits.train, beta=4.0)
    assert problems(said)[0] == "kl_weight" and "β = 4, as given" in said.findings[0].verdict


class SoftplusHead(GaussianHead):
    def log_variance_at(self, features):
        return nn.functional.softplus(super().log_variance_at(features)).log()


class Softplus(Gaussian):
    def head(self, features_shape, data_shape):
        return SoftplusHead(self, features_shape, data_shape)


def variance_function(likelihood):
    return ve.VAE(MLPEncoder(64, (30,)), MLPDecoder((10,)), data_shape=64, latent_dim=2, likelihood=likelihood)


@pytest.mark.slow
def test_softplus_head_is_found_by_what_it_does(noisy_digits):
    train, held_out = noisy_digits
    model = made(lambda: variance_function(Softplus("function")))
    fit(model, train, epochs=300, learning_rate=1e-2, variances="learned")
    diagnosis = ve.diagnose(model, train, held_out=held_out)
    assert problems(diagnosis) == ["theorem_conditions"]
    move = diagnosis.gradients.moves["decoder"]
    assert 0.02 < move.distance < 0.5 and move.where == "the decoder's variance"
    assert diagnosis["theorem_conditions"].nats == abs(move.out_of_reach) > 5 * move.out_of_reach_error


@pytest.mark.slow
def test_exponential_head_is_clean(noisy_digits):
    train, held_out = noisy_digits
    model = made(lambda: variance_function(Gaussian("function")))
    fit(model, train, epochs=300, learning_rate=1e-2, variances="learned")
    diagnosis = ve.diagnose(model, train, held_out=held_out)
    assert diagnosis.clean and "theorem_conditions" not in diagnosis
    assert diagnosis.gradients.moves["decoder"].distance < 0.01


def test_overfitted(digits):
    few = digits.train[:100]
    model = made(lambda: ve.vae1(64, 2))
    fit(model, few, epochs=500)
    diagnosis = ve.diagnose(model, few, held_out=digits.held_out)
    finding = diagnosis.findings[0]
    assert (finding.kind, finding.level) == ("overfitting", "problem")
    held_out = ve.evaluate(model, digits.held_out)
    assert finding.nats == diagnosis.train.elbo - held_out.elbo > 50
    assert "overfitting" not in ve.diagnose(model, few)


@pytest.mark.slow
def test_well_trained_is_clean(digits):
    model = made(lambda: ve.vae1(64, 2, (10,)))
    fit(model, digits.train, epochs=400, learning_rate=1e-2)
    diagnosis = ve.diagnose(model, digits.train, held_out=digits.held_out)
    assert diagnosis.clean, diagnosis
    assert {finding.kind for finding in diagnosis.findings} <= {"not_stationary", "feature_variances"}
    text = repr(diagnosis)
    assert "no problems" in text and "That is not convergence" in text and "converged" not in text
