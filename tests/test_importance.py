"""The importance-weighted bound against exact log-likelihoods, quadrature, and by hand at the draws that it made.

Equation numbers are those of docs/mathematics.md.
"""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    kl_divergence,
)

from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import DataError, ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.families import vae1
from vaentropy.files import to_json
from vaentropy.importance import FEWEST_EFFECTIVE, _Weights, log_likelihood
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.model import from_functions
from vaentropy.networks import MLPDecoder

from .models import F64, LIKELIHOODS, POSTERIORS, PRIORS, Recording, Toy, as_torch, close

D, H = 5, 2
# Errors so many standard deviations large are bugs.
SIGMAS = 5


@pytest.fixture
def unchecked(monkeypatch):
    """No checks of annotations: functions inside functions are given theirs anew at each call, and here are many."""
    monkeypatch.setattr("jaxtyping.jaxtyped", lambda *args, **options: lambda function: function)


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def points(num_points, seed=0):
    return draw(num_points, D, seed=seed) @ draw(D, D, seed=99) + 1


def linear(perturbed):
    """The best linear VAE, whose q is the exact posterior; or one whose q is wide and somewhere else."""
    model = LinearVAE.optimum(points(300), H)
    if perturbed:
        with torch.no_grad():
            model.encoder_weight.add_(0.05 * draw(H, D, seed=2))
            # Wider than the posterior, so that the weights have a variance.
            model.latent_log_variance.add_(0.4)
    return model


def exact_posterior(model, x):
    """N(M⁻¹Wᵀ(x - b), σ² M⁻¹), M = WᵀW + σ² I, as torch's."""
    w, variance = model.weight.detach(), model.log_variance.detach().exp()
    m = w.T @ w + variance * torch.eye(w.shape[1], dtype=F64)
    return MultivariateNormal((x - model.bias.detach()) @ w @ m.inverse(), variance * m.inverse())


def rows(x):
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def log_weights(model, x, z):
    """log p(x, z)/q(z|x), (K, N), of z (K, N, *latent) by torch.distributions."""
    q, p = as_torch(model.posterior(x)), as_torch(model.prior())
    each = [
        rows(as_torch(model.likelihood(z_k)).log_prob(x)) + rows(p.log_prob(z_k)) - rows(q.log_prob(z_k)) for z_k in z
    ]
    return torch.stack(each).to(F64)


def check_by_hand(model, x, num_samples, **options):
    """Every number against those from all weights at once; returns the result."""
    recording = Recording(model)
    r = log_likelihood(recording, x, num_samples=num_samples, pointwise=True, **options)
    log_w = log_weights(model, x, torch.stack(recording.z))
    assert log_w.shape == (num_samples, len(x))
    k, size = num_samples, 1 + log_w.abs().max()
    value, elbo = torch.logsumexp(log_w, 0) - math.log(k), log_w.mean(0)
    w = torch.softmax(log_w, 0)
    effective = 1 / w.square().sum(0)
    expected = {"value": value, "elbo": elbo, "tightness": value - elbo, "effective_sample_size": effective}
    if k > 1:
        even, odd = log_w[::2], log_w[1::2]
        halves = torch.logsumexp(even, 0) - math.log(len(even)), torch.logsumexp(odd, 0) - math.log(len(odd))
        expected["value_at_half"] = (halves[0] + halves[1]) / 2
    assert r.pointwise is not None and set(r.pointwise) == {*expected, "num_features", "log_jacobian"}
    for name, values in expected.items():
        assert close(r.pointwise[name], values, size), name
    assert close(r.value, value.mean(), size) and close(r.elbo, elbo.mean(), size)
    assert close(r.tightness, (value - elbo).mean(), size)
    e = r.effective_sample_size
    assert close([e.mean, e.minimum], [effective.mean() / k, effective.min() / k], size)
    assert e.median == pytest.approx(np.median(effective) / k)
    assert e.too_small == pytest.approx(float((effective < FEWEST_EFFECTIVE).to(F64).mean()))
    if k > 1:
        # By the delta method: variances of w/mean(w), of log w and of their difference (21), with K - 1.
        a, b = k * w, log_w
        for name, influence in (("value", a), ("elbo", b), ("tightness", a - b)):
            error = (influence.var(0) / k).sum().sqrt() / len(x)
            assert r.moments[name].mc_stderr.item() == pytest.approx(float(error), rel=1e-6, abs=1e-8), name
    return r


# --- By hand, at the same draws: (20) to (22) -------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 7])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_bound_of_every_posterior_and_prior_by_hand(posterior, num_samples):
    for i, prior in enumerate(PRIORS):
        model = Toy(i, posterior, "normal, function", prior)
        r = check_by_hand(model, model.data(6), num_samples, seed=i)
        assert not r.exact and r.num_points == 6 and r.num_samples == num_samples and r.data_shape == (3,)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_bound_of_every_likelihood_by_hand(likelihood):
    model = Toy(3, likelihood=likelihood)
    assert check_by_hand(model, model.data(6), 5).num_features == 3


def test_the_bound_of_images_by_hand():
    model = Toy(5, "normal", "bernoulli", data_shape=(1, 4, 4), latent_shape=(2, 2, 2))
    assert check_by_hand(model, model.data(5), 4).num_features == 16


def test_one_draw_is_an_elbo():
    r = check_by_hand(model := Toy(1), model.data(6), 1)
    assert r.value == r.elbo and r.tightness == 0 and r.effective_sample_size.minimum == 1
    assert r.mc_stderr is r.tightness_mc_stderr is r.value_at_half is None
    assert "with half of the draws" not in repr(r) and json.loads(to_json(r.to_dict()))["mc_stderr"] is None


def test_its_mean_over_draws_is_the_elbo_of_evaluate():
    model = Toy(2, "full")
    x = model.data(200)
    r, e = log_likelihood(model, x, num_samples=100), evaluate(model, x, expectation=GaussHermite(12))
    error = r.moments["elbo"].mc_stderr.item()
    assert error < 0.1 and abs(r.elbo - e.elbo) < SIGMAS * error


# --- Exact log-likelihoods --------------------------------------------------------------------------------------------


def test_an_exact_posterior_makes_all_weights_equal():
    model, x = linear(perturbed=False), points(50, seed=3)
    r = log_likelihood(model, x, num_samples=20, exact=False, pointwise=True)
    expected = model.log_likelihood(x).detach()
    assert not r.exact and r.pointwise is not None
    assert (r.pointwise["value"] - expected).abs().max() < 1e-10
    assert (r.pointwise["elbo"] - expected).abs().max() < 1e-10
    assert r.pointwise["effective_sample_size"].numpy() == pytest.approx(20, abs=1e-9)
    assert r.effective_sample_size.minimum == pytest.approx(1) and r.effective_sample_size.too_small == 0
    assert max(abs(r.tightness), r.mc_stderr, r.tightness_mc_stderr, abs(r.value - r.value_at_half)) < 1e-7


def test_a_full_covariance_posterior_that_is_exact():
    model, x = linear(perturbed=False), points(20, seed=4)
    with torch.no_grad():
        model.weight.copy_(draw(D, H, seed=6))
    for posterior in (exact_posterior(model, x), Independent(exact_posterior(model, x), 0)):
        generic = from_functions(lambda given, q=posterior: q, model.likelihood, prior=model.prior())
        r = log_likelihood(generic, x, num_samples=9, pointwise=True)
        assert (r.pointwise["value"] - model.log_likelihood(x).detach()).abs().max() < 1e-10
        assert r.effective_sample_size.minimum == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_another_posterior_gets_to_the_same_log_likelihood(dtype):
    model, x = linear(perturbed=True), points(400, seed=5)
    exact = model.log_likelihood(x).detach()
    kl = kl_divergence(
        MultivariateNormal(model.posterior(x).mean.detach(), torch.diag(model.latent_log_variance.detach().exp())),
        exact_posterior(model, x),
    )
    given = LinearVAE(D, H).to(dtype)
    given.load_state_dict(model.state_dict())
    r = log_likelihood(given, x.to(dtype), num_samples=300, exact=False, pointwise=True)
    # Too low by the variance of the weights over 2 K (to first order), which the halves know.
    bias = r.value - r.value_at_half
    assert 0 < bias < 0.01 and r.mc_stderr < 0.01
    assert abs(r.value - exact.mean().item()) < SIGMAS * r.mc_stderr + 3 * bias
    assert kl.mean() > 0.02 and abs(r.tightness - kl.mean().item()) < SIGMAS * r.tightness_mc_stderr + 3 * bias
    assert r.tightness_mc_stderr < 0.01
    assert r.stderr == pytest.approx(exact.std().item() / 20, rel=0.02)
    # Where the model knows its log p(x), the same numbers without bias.
    known = log_likelihood(given, x.to(dtype), num_samples=30)
    assert known.exact and known.mc_stderr == 0 and known.value_at_half is None
    assert known.value == pytest.approx(exact.mean().item(), rel=1e-12 if dtype == F64 else 1e-5)
    assert abs(known.tightness - kl.mean().item()) < SIGMAS * known.tightness_mc_stderr < 0.1
    elbo = model.elbo(DataMoments.of(x)).item()
    assert abs(known.elbo - elbo) < SIGMAS * known.tightness_mc_stderr
    assert known.moments["elbo"].mc_stderr.item() == known.tightness_mc_stderr
    assert repr(known).count("at least") == 0 and "log p(x) by the model itself" in repr(known)


def grid_log_likelihood(model, x):
    """log p(x) of a model with one latent under N(0, 1), by Simpson's rule."""
    z = torch.linspace(-12, 12, 4001, dtype=F64)
    p = as_torch(model.likelihood(z.unsqueeze(1)))
    joint = torch.stack([rows(p.log_prob(x_n.expand(len(z), *x_n.shape))) for x_n in x]).numpy() + stats.norm.logpdf(z)
    highest = joint.max(1, keepdims=True)
    return highest[:, 0] + np.log(integrate.simpson(np.exp(joint - highest), x=z.numpy(), axis=1))


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "normal, function", "student t", "categorical"])
def test_one_latent_against_quadrature(likelihood):
    model = Toy(4, likelihood=likelihood, latent_shape=(1,))
    # Wider than the prior, so that all weights are bounded where the likelihood is.
    model.posterior = lambda x: Normal(
        torch.tanh(x.to(F64).mean(1, keepdim=True)) / 2, torch.tensor([[1.2]], dtype=F64)
    )
    x = model.data(100)
    r = log_likelihood(model, x, num_samples=400)
    expected = grid_log_likelihood(model, x).mean()
    bias = r.value - r.value_at_half
    assert r.mc_stderr < 0.02 and 0 < bias < 0.05
    assert abs(r.value - expected) < SIGMAS * r.mc_stderr + 3 * bias
    # It is not the ELBO that is meant.
    assert r.elbo < expected - 10 * r.mc_stderr - 3 * bias


def test_missing_values_are_integrated_out():
    model, x = linear(perturbed=True), points(200, seed=6)
    with torch.no_grad():
        model.latent_log_variance.add_(1.5)
        model.encoder_weight.mul_(0.5)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = math.nan
    w, b = model.weight.detach(), model.bias.detach()
    covariance = w @ w.T + model.log_variance.detach().exp() * torch.eye(D, dtype=F64)
    expected = 0.0
    for row in x:
        o = ~row.isnan()
        if o.any():
            expected += MultivariateNormal(b[o], covariance[o][:, o]).log_prob(row[o]).item() / len(x)
    r = log_likelihood(model, x, num_samples=800, missing="ignore", log_jacobian=0.5, pointwise=True)
    assert not r.exact
    bias = r.value - r.value_at_half
    assert r.mc_stderr < 0.05 and 0 < bias < 0.1
    assert abs(r.value - expected) < SIGMAS * r.mc_stderr + 3 * bias
    observed = (~x.isnan()).sum(1).to(F64)
    assert torch.equal(r.pointwise["num_features"], observed) and r.num_features == observed.mean()
    assert r.log_jacobian == pytest.approx(0.5 * float(observed.mean()))
    assert r.bits_per_dim == pytest.approx(-(r.value + r.log_jacobian) / (float(observed.mean()) * math.log(2)))
    with pytest.raises(DataError, match="is nan"):
        log_likelihood(model, x, num_samples=2)


# --- Errors and bias by simulation ------------------------------------------------------------------------------------


def test_the_expectation_rises_with_k_towards_log_p(unchecked):
    model = linear(perturbed=True)
    x = points(1, seed=7).repeat(4000, 1)
    exact = model.log_likelihood(x[:1]).item()
    results = [log_likelihood(model, x, num_samples=k, exact=False, seed=k) for k in (1, 2, 8, 64)]
    for lower, higher in itertools.pairwise(results):
        # `stderr` over repetitions of one point is the Monte Carlo error, without the delta method.
        assert higher.value - lower.value > SIGMAS * lower.stderr
        assert higher.value < exact + SIGMAS * higher.stderr
    assert results[-1].value == pytest.approx(exact, abs=0.01)
    # Half of the draws are a bound like any other.
    assert results[1].value_at_half == pytest.approx(results[0].value, abs=SIGMAS * 1.5 * results[0].stderr)


def test_variances_of_the_noise_are_those_between_repetitions(unchecked):
    model, repetitions, k = linear(perturbed=True), 4000, 64
    x = points(1, seed=8).repeat(repetitions, 1)
    for exact in (False, True):
        r = log_likelihood(model, x, num_samples=k, exact=exact)
        for name in ("elbo", "tightness") if exact else ("value", "elbo", "tightness"):
            moment = r.moments[name]
            # Two standard deviations of a variance from 4,000 draws are 4.5%; the delta method is off by terms of 1/K.
            assert moment.mc_stderr.item() == pytest.approx(moment.stderr.item(), rel=0.06), name
        # Draws in common: the difference is better known than what it is one of.
        assert exact or r.tightness_mc_stderr < 0.8 * float(r.moments["elbo"].mc_stderr)


def test_95_percent_intervals_cover_95_percent(unchecked):
    # Many repetitions at a time, which is faster; what `log_likelihood` makes of the terms is checked by hand above.
    model, repetitions, size, k = linear(perturbed=True), 1000, 10, 40
    x = points(size, seed=9).repeat(repetitions, 1)
    q, weights = as_torch(model.posterior(x)), _Weights()
    for noise in draw(k, len(x), H, seed=10):
        weights.add(log_weights(model, x, (q.mean + q.stddev * noise).unsqueeze(0))[0].detach())
    terms = weights.terms()
    for name in ("value", "elbo", "tightness"):
        means = terms[name].value.unflatten(0, (repetitions, size)).mean(1)
        errors = terms[name].noise.unflatten(0, (repetitions, size)).sum(1).sqrt() / size
        covered = ((means - means.mean()).abs() < 1.96 * errors).to(F64).mean()
        # 95% ± 2%: 2.9 standard deviations of the coverage in 1,000 repetitions.
        assert 0.93 < covered < 0.97, name


# --- Extreme weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_variance", [-60.0, 60.0])
@pytest.mark.parametrize("far", [0.0, 1e6])
def test_weights_beyond_what_a_float_can_hold(log_variance, far):
    # exp(±100,000) and less: every weight would overflow or vanish.
    features = 2000
    model = from_functions(
        lambda x: (torch.zeros(len(x), 1, dtype=F64), torch.zeros(len(x), 1, dtype=F64)),
        lambda z: (1e-14 * z).expand(-1, features) if log_variance < 0 else z.expand(-1, features),
        variance=math.exp(log_variance),
    )
    x = torch.full((3, features), far if log_variance > 0 else far * 1e-13, dtype=F64)
    r = check_by_hand(model, x, 6)
    assert math.isfinite(r.value) and abs(r.value) > 1e4 and math.isfinite(r.mc_stderr)
    assert 0 < r.effective_sample_size.minimum <= r.effective_sample_size.mean <= 1


class Halves:
    """z > 0 allows x = 1 alone, z < 0 x = 0 alone; x = 2 is never possible."""

    def posterior(self, x):
        return DiagonalNormal(torch.zeros(len(x), 1, dtype=F64), torch.zeros(1, dtype=F64))

    def prior(self):
        return Normal(torch.zeros(1, dtype=F64), 1.0)

    def likelihood(self, z):
        one = (z > 0).to(F64)
        return Categorical(probs=torch.stack([1 - one, one, torch.zeros_like(one)], -1), validate_args=False)


class Sure(Halves):
    """The same for Bernoulli, whose probabilities may be 0 and 1."""

    def likelihood(self, z):
        return Bernoulli(probs=(z > 0).to(F64))


def test_some_weights_are_0():
    x = torch.tensor([[0.0], [1.0]], dtype=F64).repeat(500, 1)
    recording = Recording(Sure())
    r = log_likelihood(recording, x, num_samples=20, pointwise=True)
    possible = ((torch.stack(recording.z) > 0).to(F64) == x).to(F64).mean(0)[:, 0]
    assert close(r.pointwise["value"], possible.log(), 1.0)
    assert close(r.pointwise["effective_sample_size"], 20 * possible, 20.0)
    assert abs(r.value - math.log(0.5)) < 0.05
    assert r.elbo == -math.inf and r.tightness == math.inf
    assert math.isfinite(r.mc_stderr) and math.isfinite(r.stderr)
    # Of log(mean) with K = 20 weights of 0 or 1: √((1 - ½)/½ / 20 / 1000) to first order.
    assert r.mc_stderr == pytest.approx(math.sqrt(1 / 20 / 1000), rel=0.1)
    assert "nan" not in repr(r).lower()
    json.loads(to_json(r.to_dict()))


def test_all_weights_of_a_point_are_0():
    class Never(Halves):
        def likelihood(self, z):
            return Bernoulli(probs=torch.zeros_like(z))

    for num_samples in (1, 2, 5):
        r = log_likelihood(Never(), torch.ones(4, 1, dtype=F64), num_samples=num_samples)
        assert r.value == r.elbo == -math.inf
        e = r.effective_sample_size
        assert e.mean == e.minimum == e.median == 0 and e.too_small == 1
        assert "every draw gives some data probability 0" in repr(r)
        json.loads(to_json(r.to_dict()))
    # One such point among others.
    mixed = log_likelihood(Never(), torch.tensor([[0.0], [1.0]], dtype=F64), num_samples=3, pointwise=True)
    assert mixed.pointwise["value"].tolist() == pytest.approx([0, -math.inf], abs=1e-12) and mixed.value == -math.inf


def test_weights_that_are_no_numbers_are_told():
    model = vae1(3, 2, (4,))
    with torch.no_grad():
        model.latent_layer.bias[0] = math.nan
    with pytest.raises(ModelError, match="row 0 of a batch is not a number; look for NaN"):
        log_likelihood(model, torch.zeros(3, 3), num_samples=2)


def test_few_effective_draws_are_told():
    model = Toy(4)
    model.posterior = lambda x: Normal(torch.zeros(len(x), 2, dtype=F64), 30.0)
    r = log_likelihood(model, model.data(5), num_samples=50)
    assert r.effective_sample_size.too_small == 1
    assert "100.0% of the points have fewer than 10 effective draws" in repr(r)


# --- Weights of a known distribution: log w ~ N(-s²/2, s²), so that E w = 1 and the ELBO is -s²/2 ---------------------


def log_normal_terms(s, num_points, num_samples, seed=0):
    weights, generator = _Weights(), torch.Generator().manual_seed(seed)
    for _ in range(num_samples):
        weights.add(s * torch.randn(num_points, generator=generator, dtype=F64) - s**2 / 2)
    return weights.terms()


def test_95_percent_intervals_cover_the_truth():
    repetitions, size, s = 1000, 10, 0.6
    # So many draws that the bound's bias, which is no part of the error, is small beside it.
    terms = log_normal_terms(s, repetitions * size, 1000)
    for name, truth in {"value": 0.0, "elbo": -(s**2) / 2, "tightness": s**2 / 2}.items():
        means = terms[name].value.unflatten(0, (repetitions, size)).mean(1)
        errors = terms[name].noise.unflatten(0, (repetitions, size)).sum(1).sqrt() / size
        assert 0.93 < float(((means - truth).abs() < 1.96 * errors).to(F64).mean()) < 0.97, name
    # (Σ w)²/Σ w² tends to K (E w)²/E w².
    assert float(terms["effective_sample_size"].value.mean()) / 1000 == pytest.approx(math.exp(-(s**2)), rel=0.02)


def test_the_bound_of_two_draws_by_quadrature():
    s, size = 1.0, 40_000
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    log_w = s * nodes - s**2 / 2
    of_two = float(weights @ (np.logaddexp(log_w[:, None], log_w) - math.log(2)) @ weights)
    two, four = log_normal_terms(s, size, 2), log_normal_terms(s, size, 4, seed=1)
    error = float(two["value"].value.std()) / size**0.5
    for term in (two["value"], four["value_at_half"]):
        assert abs(float(term.value.mean()) - of_two) < SIGMAS * error < 0.03


def test_half_of_the_draws_tell_what_is_missing():
    # To first order the bound is Var(w)/(2K) too low (21), and with half of the draws twice as much.
    s, k = 0.7, 100
    terms = log_normal_terms(s, 100_000, k)
    missing, value = math.expm1(s**2) / (2 * k), terms["value"].value
    assert float(value.mean()) == pytest.approx(-missing, rel=0.15)
    assert float((value - terms["value_at_half"].value).mean()) == pytest.approx(missing, rel=0.1)


def test_weights_of_0_in_any_place():
    never = -math.inf
    log_w = np.array([[never, never, 0.0], [1.0, never, never], [2.0, never, 1.0], [never, never, 0.5]])
    weights = _Weights()
    for row in log_w:
        weights.add(torch.from_numpy(row))
    terms, w = weights.terms(), np.exp(log_w)[:, [0, 2]]
    for name, term in terms.items():
        by_hand = {
            "value": np.log(w.mean(0)),
            "effective_sample_size": w.sum(0) ** 2 / (w**2).sum(0),
            "value_at_half": (np.log(w[::2].mean(0)) + np.log(w[1::2].mean(0))) / 2,
            "elbo": [never, never],
            "tightness": [math.inf, math.inf],
        }
        assert term.value[[0, 2]].numpy() == pytest.approx(np.array(by_hand[name])), name
    assert terms["value"].value[1] == never and terms["effective_sample_size"].value[1] == 0
    assert terms["value"].noise[[0, 2]].numpy() == pytest.approx((w / w.mean(0) - 1).var(0) / 3)


# --- Other latents than normal ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("posterior", "prior"), [("laplace", "standard"), ("laplace", "laplace"), ("wide", "mixture")])
def test_latents_that_are_not_normal_against_quadrature(posterior, prior, unchecked):
    model = Toy(2, "laplace", "bernoulli", latent_shape=(1,))
    a, b = torch.tensor([0.3], dtype=F64), torch.tensor([-0.2], dtype=F64)
    model.prior = lambda: PRIORS[prior](a, b)

    def encode(x):
        mean = torch.tanh(x.mean(1, keepdim=True))
        return Laplace(mean, torch.ones_like(mean)) if posterior == "laplace" else Normal(mean, 1.5)

    model.posterior, x = encode, model.data(8)

    def log_p(row):
        def integrand(z):
            at = torch.tensor([[z]], dtype=F64)
            log_prior = as_torch(PRIORS[prior](a, b)).log_prob(at).sum()
            return math.exp(float(rows(model.likelihood(at).log_prob(row)).sum() + log_prior))

        return math.log(integrate.quad(integrand, -15, 15, points=[-0.7, 0, 0.3, 1.3], limit=400, epsabs=0)[0])

    expected = np.mean([log_p(row) for row in x])
    # Many points with few draws take less time than few points with many.
    r = log_likelihood(model, x.repeat(100, 1), num_samples=150)
    bias = r.value - r.value_at_half
    assert 0 < bias < 0.02 and r.mc_stderr < 0.01 and abs(r.value + bias - expected) < SIGMAS * r.mc_stderr
    assert r.elbo < expected - 10 * r.mc_stderr


def test_binary_latents_by_a_sum_over_all(unchecked):
    model = Toy(1, likelihood="bernoulli", latent_shape=(4,))
    model.posterior = lambda x: Independent(Bernoulli(logits=model.encoders[0](x)), 1)
    model.prior = lambda: Bernoulli(logits=0.5 * model.prior_constants[0])
    x = model.data(10)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 4)
    joint = torch.stack(
        [rows(model.likelihood(z.expand(10, 4)).log_prob(x)) + model.prior().log_prob(z).sum() for z in states]
    )
    r = log_likelihood(model, x.repeat(100, 1), num_samples=150)
    bias = r.value - r.value_at_half
    assert 0 < bias < 0.02 and r.mc_stderr < 0.01
    assert abs(r.value + bias - float(torch.logsumexp(joint, 0).mean())) < SIGMAS * r.mc_stderr


def test_data_and_latents_without_axes():
    # z = x/2 + noise of variance ½ is the exact posterior of x = z + noise of variance 1.
    scale = torch.tensor(0.5, dtype=F64).sqrt()
    model = from_functions(lambda x: Normal(x / 2, scale.expand(len(x))), lambda z: Normal(z, torch.ones(1, dtype=F64)))
    x = draw(9, seed=1)
    r = log_likelihood(model, x, num_samples=3)
    assert r.value == pytest.approx(stats.norm(0, 2**0.5).logpdf(x).mean(), abs=1e-10)
    assert r.data_shape == () and r.num_features == 1


def test_the_exact_posterior_of_what_is_observed_leaves_nothing_to_chance():
    model, x = linear(perturbed=False).requires_grad_(False), points(30, seed=2)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = math.nan
    x[3] = math.nan
    variance = model.log_variance.exp()
    covariance = model.weight @ model.weight.T + variance * torch.eye(D, dtype=F64)

    def bind(batch):
        seen = (~batch.isnan()).to(F64)
        precision = torch.eye(H, dtype=F64) + torch.einsum("nd,dh,dk->nhk", seen, model.weight, model.weight) / variance

        def encode(filled):
            of_data = (seen * (filled - model.bias)) @ model.weight / variance
            return MultivariateNormal((precision.inverse() @ of_data[..., None])[..., 0], precision_matrix=precision)

        return from_functions(encode, model.likelihood, prior=model.prior()), batch

    r = log_likelihood(model, x, num_samples=4, bind=bind, batch_size=7, missing="ignore", pointwise=True)
    for n, row in enumerate(x):
        o = ~row.isnan()
        expected = MultivariateNormal(model.bias[o], covariance[o][:, o]).log_prob(row[o]) if o.any() else 0.0
        assert float(r.pointwise["value"][n]) == pytest.approx(float(expected), abs=1e-9), n


def test_no_entropy_is_sampled_for_it():
    # As `evaluate` does for a likelihood without a closed one, at several times the cost.
    class TwoBumps(MixtureSameFamily):
        def sample(self, *shape):
            raise AssertionError("sampled")

    def decode(z):
        means = z @ torch.ones(2, 3, dtype=F64)
        return TwoBumps(Categorical(torch.ones(*means.shape, 2)), Normal(torch.stack([means, -means], -1), 1.0))

    model, x = Toy(0), Toy(0).data(4)
    model.likelihood = decode
    check_by_hand(model, x, 4)
    with pytest.raises(AssertionError, match="sampled"):
        evaluate(model, x)


def test_more_draws_are_the_same_ones_and_others():
    # So that bounds by different numbers of draws compare in pairs.
    few, many = Recording(Toy(0)), Recording(Toy(0))
    x = few.model.data(5)
    log_likelihood(few, x, num_samples=2), log_likelihood(many, x, num_samples=5)
    assert all(torch.equal(one, other) for one, other in zip(few.z, many.z[:2], strict=True))


# --- Data, weights, units ---------------------------------------------------------------------------------------------


def test_one_data_point():
    r = log_likelihood(model := Toy(0), model.data(1), num_samples=50)
    assert r.num_points == 1 and math.isnan(r.stderr) and math.isnan(r.tightness_stderr)
    assert (
        math.isfinite(r.value)
        and 0 < r.mc_stderr < 10
        and r.effective_sample_size.mean == r.effective_sample_size.minimum
    )


def test_weighted_points_count_by_their_weight():
    model = Toy(0)
    x, w = model.data(8), torch.tensor([0.0, 1, 2, 3, 0, 0.5, 1, 0], dtype=F64)
    # Batches of which one has no weight at all.
    plain, weighted = (
        log_likelihood(model, x, num_samples=6, pointwise=True, batch_size=3, sample_weight=s) for s in (None, w)
    )
    for name in ("value", "elbo", "tightness"):
        assert torch.equal(plain.pointwise[name], weighted.pointwise[name])
        assert getattr(weighted, name) == pytest.approx(float((w * plain.pointwise[name]).sum() / w.sum())), name
    counted = plain.pointwise["effective_sample_size"][w > 0] / 6
    e = weighted.effective_sample_size
    assert (e.mean, e.minimum) == (pytest.approx(counted.mean().item()), pytest.approx(counted.min().item()))
    none = log_likelihood(model, x[:4], num_samples=6, batch_size=1, sample_weight=[0.0, 0.0, 0.0, 1.0])
    assert math.isnan(none.stderr) and none.num_points == 4
    # A point of weight 0 may have any value.
    impossible = log_likelihood(
        Sure(), torch.tensor([[0.5], [1.0]], dtype=F64), num_samples=9, sample_weight=[0.0, 1.0]
    )
    assert math.isfinite(impossible.value) and math.isfinite(impossible.mc_stderr)


@pytest.mark.parametrize("log_jacobian", [-1.5, torch.tensor([0.5, -2.0, 0.1])])
def test_units(log_jacobian):
    model = Toy(0)
    x = model.data(6)
    stored, scaled = (
        log_likelihood(model, x, num_samples=5, log_jacobian=log_jacobian),
        log_likelihood(model, x, num_samples=5),
    )
    added = float(torch.as_tensor(log_jacobian).expand(3).sum())
    assert stored.value == scaled.value == scaled.data_value
    assert stored.data_value == pytest.approx(scaled.value + added, rel=1e-6)
    assert stored.bits_per_dim == pytest.approx(-(scaled.value + added) / (3 * math.log(2)), rel=1e-6)
    assert "in the units of the data as stored" in repr(stored) and "as stored" not in repr(scaled)


def test_features_of_one_hot_data_are_not_their_classes():
    # As `Evaluation.bits_per_dim` counts them.
    one_hot = Toy(0, likelihood="one hot")
    x = one_hot.data(4)
    r, e = log_likelihood(one_hot, x, num_samples=3), evaluate(one_hot, x)
    assert r.num_features == 3
    assert r.bits_per_dim / r.data_value == pytest.approx(e.bits_per_dim / e.data_elbo)


def test_a_single_label_is_one_feature():
    class Label(Halves):
        def likelihood(self, z):
            return Categorical(logits=torch.cat([z, -z, 2 * z], 1))

    class OneHot(Halves):
        def likelihood(self, z):
            return OneHotCategorical(logits=torch.cat([z, -z, 2 * z], 1))

    labels = torch.tensor([0, 1, 2, 2])
    a = log_likelihood(Label(), labels, num_samples=4)
    b = log_likelihood(OneHot(), nn.functional.one_hot(labels).to(F64), num_samples=4)
    assert a.num_features == 1 and a.value == pytest.approx(b.value)


def test_a_model_per_batch():
    def bound(pair):
        x, shift = pair
        base = linear(perturbed=False)
        with torch.no_grad():
            base.bias.add_(shift)
            base.encoder_bias.sub_(base.encoder_weight.sum(1) * shift)
        return base, x

    x = points(12, seed=3)
    pairs = [(x[:5] + 2, 2.0), (x[5:] - 7, -7.0)]
    for exact in (None, False):
        r = log_likelihood(Toy(0), pairs, num_samples=3, bind=bound, exact=exact)
        assert r.num_points == 12 and r.exact == (exact is None)
        assert r.value == pytest.approx(linear(perturbed=False).log_likelihood(x).mean().item(), abs=1e-10)


def test_models_that_know_their_log_likelihood():
    model, x = Toy(0), Toy(0).data(4)
    model.log_likelihood = lambda given: torch.arange(4.0)
    r = log_likelihood(model, x, num_samples=3, pointwise=True)
    assert r.exact and r.value == 1.5 and r.pointwise["value"].tolist() == [0, 1, 2, 3]
    assert r.tightness == pytest.approx(1.5 - r.elbo) and "value_at_half" not in r.pointwise
    assert not log_likelihood(model, x, num_samples=3, missing="ignore").exact
    assert not log_likelihood(model, x, num_samples=3, exact=False).exact
    for wrong, says in ((torch.zeros(()), r"shape \(\)"), (torch.zeros(4, 1), r"shape \(4, 1\)"), (3.0, "type float")):
        model.log_likelihood = lambda given, wrong=wrong: wrong
        with pytest.raises(ModelError, match=says) as caught:
            log_likelihood(model, x, num_samples=3)
        assert "exact=False" in str(caught.value) and "\n" not in str(caught.value)


# --- One pass per draw; nothing else is touched -----------------------------------------------------------------------


def test_memory_does_not_grow_with_the_draws():
    recording, seen = Recording(Toy(0)), []
    x = recording.model.data(10)
    r = log_likelihood(recording, x, num_samples=7, batch_size=4, on_batch=seen.append)
    # Each draw is a pass of its own through the decoder, never K of them at once.
    assert [len(z) for z in recording.z] == [4] * 7 + [4] * 7 + [2] * 7
    assert seen == [4, 4, 2] and r.num_points == 10
    assert len({tuple(z.flatten().tolist()) for z in recording.z}) == 21


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_networks_generators_and_seeds(mode):
    networks = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()), MLPDecoder((4,))
    model = vae1(3, 2, networks=networks).train()
    x = draw(9, 3, seed=0).float()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    first, again, other = (log_likelihood(model, x, num_samples=4, seed=seed, mode=mode) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert first.value == again.value != other.value
    assert first.mode == mode and f"networks in {mode} mode" in repr(first)


def test_posteriors_that_draw_from_the_global_generator_are_seeded_too():
    model = Toy(0, "laplace")
    x = model.data(4)
    first, again, other = (log_likelihood(model, x, num_samples=4, seed=seed).value for seed in (1, 1, 2))
    assert first == again != other


# --- What is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [None, False])
def test_the_ledger_adds_up(exact):
    for seed in range(5):
        r = log_likelihood(linear(perturbed=True), points(9, seed=seed), num_samples=12, exact=exact)
        lines = re.findall(r"^[ +=] (ELBO|tightness|log-likelihood)\S*.*? (-?\d+\.\d{4}) ", repr(r), re.MULTILINE)
        shown = {name: round(float(number) * 1e4) for name, number in lines}
        assert shown["ELBO"] + shown["tightness"] == shown["log-likelihood"] == round(r.value * 1e4)
        assert abs(shown["ELBO"] - r.elbo * 1e4) < 1
        assert ("at least" in repr(r)) == (exact is False)
        assert r.value == pytest.approx(r.elbo + r.tightness, abs=1e-12 * abs(r.value))


def test_to_dict_is_plain():
    r = log_likelihood(model := Toy(0), model.data(5), num_samples=12, log_jacobian=1.0, pointwise=True)
    found = json.loads(to_json(r.to_dict()))
    assert found["value"] == r.value and found["data_value"] == r.data_value and found["bits_per_dim"] == r.bits_per_dim
    assert found["effective_sample_size"]["minimum"] == r.effective_sample_size.minimum
    assert not {"moments", "pointwise"} & set(found)
    assert (found["num_samples"], found["num_points"], found["exact"], found["mode"]) == (12, 5, False, "eval")


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit():
    model = Toy(0)
    x = model.data(3)
    for options, error, says in (
        ({"num_samples": 0}, UsageError, "num_samples=0"),
        ({"seed": -1}, UsageError, "seed=-1"),
        ({"batch_size": 0}, UsageError, "batch_size=0"),
        ({"exact": True}, UsageError, r"exact=True given for a Toy without a method log_likelihood"),
        ({"exact": True, "missing": "ignore"}, UsageError, "take exact=None"),
        ({"sample_weight": torch.ones(2)}, UsageError, "sample_weight holds 2"),
        ({"log_jacobian": torch.ones(2)}, UsageError, r"\(2,\)"),
    ):
        with pytest.raises(error, match=says) as caught:
            log_likelihood(model, x, **{"num_samples": 2, **options})
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no data points"):
        log_likelihood(model, x[:0])
    x[0, 0] = math.nan
    joint = Toy(0, likelihood="full normal")
    with pytest.raises(UnsupportedError):
        log_likelihood(joint, x, num_samples=2, missing="ignore")
