"""The gap identity, and everything that `evaluate` promises about weights, batches, modes, generators and errors.

Values are compared with those of torch.distributions at the same nodes, residuals with equations (6) to (8) of
docs/mathematics.md: neither knows of the other's route.
"""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Geometric,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Poisson,
)
from torch.utils.data import DataLoader, TensorDataset

from vaentropy import ledger
from vaentropy.distributions import DiagonalNormal
from vaentropy.entropy import ENTROPY_SAMPLES
from vaentropy.errors import DataError, ModelError, UsageError
from vaentropy.evaluation import Accumulator, evaluate
from vaentropy.expectation import Antithetic, Frozen, GaussHermite, MonteCarlo, Sobol
from vaentropy.families import vae1
from vaentropy.model import from_functions
from vaentropy.results import Evaluation

from .models import (
    F64,
    LIKELIHOODS,
    NORMAL_LIKELIHOODS,
    NORMAL_POSTERIORS,
    NORMAL_PRIORS,
    POSTERIORS,
    PRIORS,
    Recording,
    Toy,
    close,
    draws,
    magnitude,
    nodes_of,
    reference,
)

SCALARS = ("elbo", "reconstruction", "kl", "log_base", "entropy_sum", "gap", "prior_gap", "decoder_gap")
seeds = st.integers(0, 2**31)


def value(evaluation, name):
    """A term by its name in `moments`, as the evaluation reads it out."""
    entropy, _, kind = name.partition("_")
    return getattr(evaluation.entropies, entropy) if kind == "entropy" else getattr(evaluation, name)


def numbers(evaluation):
    """Every number that an evaluation reads out, flat."""

    def flat(x, name):
        if isinstance(x, dict):
            return {k: v for key, y in x.items() for k, v in flat(y, f"{name}.{key}").items()}
        if isinstance(x, list):
            return {k: v for i, y in enumerate(x) for k, v in flat(y, f"{name}[{i}]").items()}
        return {name: x} if isinstance(x, int | float) else {}

    return flat(evaluation.to_dict(), "")


def assert_same(first, second, scale, tolerance=1e-12, leave_out=("num_points",)):
    one, two = numbers(first), numbers(second)
    assert one.keys() == two.keys()
    for name in one:
        if not any(left in name for left in leave_out):
            # An error is the root of a sum of squares; that of a constant is the root of rounding errors.
            near = tolerance if "stderr" not in name else tolerance**0.5 if one[name] < 1e-6 * scale else 1e-9
            assert close(one[name], two[name], scale, near) or one[name] == two[name], name


def check(model, x, expectation, batch_size=1024):
    """Every term of an evaluation against its reference; returns the evaluation."""
    recording = Recording(model)
    e = evaluate(recording, x, expectation=expectation, pointwise=True, batch_size=batch_size)
    z, nodes = torch.stack(recording.z), nodes_of(expectation, len(x), model.latent_shape)
    if model.kinds[0] in NORMAL_POSTERIORS:
        assert close(z, draws(model.posterior(x), nodes.noise), 1 + z.abs())
    expected = reference(model, x, z, nodes.weights)
    scale = magnitude(expected)
    assert e.pointwise is not None
    for name in (*SCALARS, "encoder_entropy", "prior_entropy", "decoder_entropy"):
        if name not in expected:
            continue
        assert close(value(e, name), expected[name].mean(), scale), name
        if name != "log_base" or name in e.pointwise:
            largest = scale + sum(t.abs().max() for t in expected.values())
            assert close(e.pointwise[name], expected[name], largest), name
    for name in ("prior_residuals", "decoder_residuals"):
        if name in expected:
            assert close(getattr(e, name), expected[name].mean(0), scale), name
    assert (e.optimal_prior_variance is None) == ("prior_second_moment" not in expected)
    if e.optimal_prior_variance is not None:
        assert close(e.optimal_prior_variance, expected["prior_second_moment"].mean(0), scale)
    assert (e.optimal_variance is None) == ("squared_error" not in expected)
    if e.optimal_variance is not None:
        assert close(e.optimal_feature_variance, expected["squared_error"].mean(0), scale)
        assert close(e.optimal_variance, expected["squared_error"].mean(), scale)
    # The identity itself.
    assert close(e.gap, e.elbo - e.entropy_sum, scale)
    assert close(e.gap, e.prior_gap + e.decoder_gap, scale)
    h = e.entropies
    assert close(e.entropy_sum, h.encoder - h.prior - h.decoder + e.log_base, scale)
    for parts, whole in [
        (e.prior_residuals, e.prior_gap),
        (e.decoder_residuals, e.decoder_gap),
        (e.kl_per_latent, e.kl),
        (e.encoder_entropy_per_latent, h.encoder),
    ]:
        assert parts is None or close(parts.sum(), whole, scale)
    return e


expectations = st.one_of(
    st.builds(MonteCarlo, st.integers(1, 4), st.integers(0, 99)),
    st.builds(Antithetic, st.sampled_from([2, 4]), st.integers(0, 99)),
    st.builds(Frozen, st.integers(0, 99), st.integers(1, 4)),
    st.builds(Sobol, st.sampled_from([1, 4]), st.integers(0, 99)),
    st.builds(GaussHermite, st.integers(1, 3)),
)


# --- The gap identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@given(seed=seeds, expectation=expectations, num_points=st.integers(2, 7))
@settings(max_examples=4)
def test_gap_identity_for_every_likelihood(posterior, likelihood, seed, expectation, num_points):
    if posterior not in NORMAL_POSTERIORS:
        expectation = MonteCarlo(3, seed=seed)
    model = Toy(seed, posterior, likelihood)
    x = model.data(num_points)
    # Only a normal posterior says of which dtype the noise is.
    e = check(model, x if posterior in NORMAL_POSTERIORS else x.to(F64), expectation)
    assert e.sampled == ()
    assert e.variance_kind == (likelihood.removeprefix("normal, ").replace(" ", "_") if "," in likelihood else None)
    assert (e.decoder_residuals is None) == (likelihood == "full normal")
    assert (e.kl_per_latent is None) == (posterior in ("full", "low rank"))
    assert (e.log_base != 0) == (likelihood == "poisson")
    assert (e.gains.variance is None) == (likelihood not in NORMAL_LIKELIHOODS)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
@given(seed=seeds, expectation=expectations, num_points=st.integers(2, 7))
@settings(max_examples=4)
def test_gap_identity_for_every_prior(posterior, prior, seed, expectation, num_points):
    if posterior not in NORMAL_POSTERIORS:
        expectation = MonteCarlo(3, seed=seed)
    e = check(model := Toy(seed, posterior, "normal, shared", prior), model.data(num_points), expectation)
    assert e.sampled == (("prior",) if prior == "mixture" else ())
    assert (e.prior_residuals is None) == (prior in ("full", "mixture"))
    closed = prior in NORMAL_PRIORS and posterior in NORMAL_POSTERIORS
    assert (e.gains.prior_variance is None) == (not closed)


@pytest.mark.parametrize("posterior", ["normal", "diagonal", "laplace"])
@pytest.mark.parametrize("prior", ["standard", "learned", "laplace"])
@pytest.mark.parametrize("likelihood", ["normal, shared", "normal, function", "bernoulli", "poisson"])
def test_gap_identity_for_images(posterior, prior, likelihood):
    model = Toy(3, posterior, likelihood, prior, data_shape=(1, 4, 4), latent_shape=(2, 2, 2))
    e = check(model, model.data(5), MonteCarlo(3, seed=2))
    assert (e.data_shape, e.latent_shape) == ((1, 4, 4), (2, 2, 2))
    assert e.decoder_residuals is not None and e.decoder_residuals.shape == (1, 4, 4)
    assert e.prior_residuals is not None and e.prior_residuals.shape == (2, 2, 2)
    assert e.kl_per_latent is not None and e.kl_per_latent.shape == (2, 2, 2)


@given(seed=seeds)
@settings(max_examples=5)
def test_gap_identity_for_binary_latents(seed):
    # A sigmoid belief net; its ELBO is a sum of entropies too (Damm et al., and docs/mathematics.md).
    model = Toy(seed, likelihood="bernoulli", latent_shape=(4,))
    model.posterior = lambda x: Independent(Bernoulli(logits=model.encoders[0](x)), 1)
    model.prior = lambda: Bernoulli(logits=model.prior_constants[0])
    model.kinds = ("bernoulli", "bernoulli", "bernoulli")
    e = check(model, model.data(6), MonteCarlo(3))
    assert e.prior_residuals is not None and e.optimal_prior_variance is None


def test_gap_identity_for_counts_of_counts():
    # Both prior and likelihood have a base measure that is not constant.
    model = Toy(0, likelihood="poisson")
    rate = torch.tensor([1.5, 0.7], dtype=F64)
    model.posterior = lambda x: Geometric(logits=model.encoders[0](x))
    model.prior = lambda: Poisson(rate)
    recording, x = Recording(model), model.data(5)
    e = evaluate(recording, x, expectation=MonteCarlo(4))
    z, entropy = torch.stack(recording.z), model.posterior(x).entropy().sum(1).mean()
    log_p = torch.stack([model.likelihood(z_k).log_prob(x).sum(1) for z_k in z]) + Poisson(rate).log_prob(z).sum(2)
    scale = 10 * float(log_p.abs().mean())
    assert close(e.elbo, log_p.mean() + entropy, scale)
    log_base = -torch.lgamma(x + 1).sum(1).mean() - torch.lgamma(z + 1).sum(2).mean()
    assert close(e.log_base, log_base, scale)
    assert close(e.gap, e.elbo - e.entropy_sum, scale)


@given(seed=seeds)
@settings(max_examples=5)
def test_gap_identity_for_numbers(seed):
    # Data and latents without axes of their own.
    a = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    model = from_functions(
        lambda x: Normal(a[0] * x, torch.exp(a[1]).expand(len(x))), lambda z: Normal(a[2] * z, torch.exp(a[3]))
    )
    x = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=F64)
    e = evaluate(model, x, expectation=GaussHermite(3))
    variance = torch.exp(2 * a[1])
    kl = 0.5 * (variance + (a[0] * x) ** 2 - 1 - 2 * a[1]).mean()
    error = (((1 - a[0] * a[2]) * x) ** 2).mean() + a[2] ** 2 * variance
    reconstruction = -0.5 * (math.log(2 * math.pi) + 2 * a[3] + error * torch.exp(-2 * a[3]))
    scale = abs(float(reconstruction)) + abs(float(kl)) + 1
    assert close(e.kl, kl, scale) and close(e.reconstruction, reconstruction, scale)
    assert close(e.gap, e.elbo - e.entropy_sum, scale)
    assert e.data_shape == e.latent_shape == ()


def test_a_prior_may_depend_on_the_row():
    model, x = Toy(0), Toy(0).data(6)
    means = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    model.prior = lambda: Normal(means, torch.ones_like(means))
    e = evaluate(model, x, expectation=Frozen())
    q = model.posterior(x)
    kl = 0.5 * (q.variance + (q.mean - means) ** 2 - 1 - q.log_variance).sum(1).mean()
    assert close(e.kl, kl) and close(e.gap, e.elbo - e.entropy_sum, 100.0)


def test_draws_from_a_posterior_that_is_not_normal():
    model = Toy(0, "laplace")
    recording = Recording(model)
    x = model.data(2)
    evaluate(recording, x, expectation=MonteCarlo(800))
    q, z = model.posterior(x), torch.stack(recording.z)
    for n in range(2):
        for h in range(2):
            distribution = stats.laplace(float(q.loc[n, h]), float(q.scale[n, h]))
            assert stats.kstest(z[:, n, h].numpy(), distribution.cdf).pvalue > 1e-3


# --- Entropies without a closed form ----------------------------------------------------------------------------------


def test_a_sampled_prior_entropy_is_near_the_true_one():
    model = Toy(1, prior="mixture", latent_shape=(1,))
    e = evaluate(model, model.data(10), expectation=MonteCarlo(200))

    def moment(power):
        def integrand(z):
            log_p = float(model.prior().log_prob(torch.tensor([z], dtype=F64)))
            return math.exp(log_p) * log_p**power

        return integrate.quad(integrand, -15, 15, limit=200)[0]

    entropy, error = -moment(1), (moment(2) - moment(1) ** 2) ** 0.5 / (ENTROPY_SAMPLES * 200) ** 0.5
    assert e.sampled == ("prior",) and abs(e.entropies.prior - entropy) < 4 * error
    assert "Monte Carlo estimate, for want of a closed form: entropy of prior" in str(e)


def test_sampled_entropies_of_decoder_and_encoder():
    model = Toy(1)

    def two_bumps(mean):
        return MixtureSameFamily(
            Categorical(torch.ones(*mean.shape, 2, dtype=F64)),
            Normal(torch.stack([mean - 2, mean + 2], -1), torch.ones((), dtype=F64)),
        )

    x = model.data(200)
    model.posterior = lambda x: two_bumps(model.encoders[0](x))
    model.likelihood = lambda z: two_bumps(model.decoders[0](z))
    e = evaluate(model, x, expectation=MonteCarlo(8))
    assert e.sampled == ("decoder", "encoder")
    assert close(e.gap, e.elbo - e.entropy_sum, 100.0)
    # The entropy of one such bump pair, by quadrature: 2 nearly separate standard normals.
    bumps = two_bumps(torch.zeros(1, dtype=F64))

    def minus_p_log_p(v):
        log_p = float(bumps.log_prob(torch.tensor([v], dtype=F64)))
        return -math.exp(log_p) * log_p

    entropy = integrate.quad(minus_p_log_p, -12, 12)[0]
    assert e.mc_stderr is not None
    # Both posterior and likelihood vary from point to point, so that their noise is independent between points.
    assert abs(e.entropies.encoder - 2 * entropy) < 4 * e.mc_stderr.entropies.encoder
    assert abs(e.entropies.decoder - 3 * entropy) < 4 * e.mc_stderr.entropies.decoder


# --- Gains and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_gains_are_what_other_variances_bring(likelihood):
    # Directly: the ELBO at the same nodes with the variances replaced.
    model = Toy(5, likelihood=likelihood, prior="learned")
    x, expectation = model.data(50), Frozen(1, 6)
    e = evaluate(model, x, expectation=expectation)
    z = draws(model.posterior(x), nodes_of(expectation, 50, (2,)).noise)
    px, pz = [model.likelihood(z_k) for z_k in z], model.prior()

    def likelihood_with(factor):
        return sum(Normal(p.mean, (p.variance * factor).sqrt()).log_prob(x).sum(1).mean() for p in px) / len(px)

    factors = sum(((x - p.mean) ** 2 / p.variance).mean(0) for p in px) / len(px)
    before, scale = likelihood_with(torch.ones(3, dtype=F64)), abs(e.reconstruction) + 10
    assert close(before, e.reconstruction, scale)
    assert close(e.variance_ratio, factors.mean(), scale)
    assert close(likelihood_with(factors.mean()) - before, e.gains.variance, scale)
    assert e.gains.feature_variance is not None and e.gains.prior_variance is not None
    assert close(likelihood_with(factors) - before, e.gains.feature_variance.sum(), scale)
    q = model.posterior(x)
    second = (q.mean**2 + q.variance).mean(0)

    def kl(variance):
        return (0.5 * ((q.mean**2 + q.variance) / variance - 1 - (q.variance / variance).log())).mean(0)

    assert close(kl(pz.variance) - kl(second), e.gains.prior_variance, scale)
    assert close(e.latent_mean_variance, np.var(q.mean.numpy(), axis=0))


@pytest.mark.parametrize("expectation", [MonteCarlo(4), Antithetic(6)], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_against_direct_formulas(expectation, weighted):
    model = Toy(6, likelihood="normal, function")
    x = model.data(40)
    w = np.random.default_rng(0).uniform(0, 3, 40) if weighted else np.ones(40)
    recording = Recording(model)
    e = evaluate(recording, x, expectation=expectation, sample_weight=w if weighted else None)
    per_node = [reference(model, x, z_k[None], torch.ones(1, dtype=F64)) for z_k in recording.z]
    assert e.mc_stderr is not None
    for name in ("elbo", "reconstruction", "kl", "gap", "decoder_gap", "decoder_entropy", "entropy_sum", "prior_gap"):
        values = np.stack([terms[name].numpy() for terms in per_node])
        if isinstance(expectation, Antithetic):
            values = values.reshape(-1, 2, 40).mean(1)
        noise = values.var(0, ddof=1) / len(values)
        assert close(value(e.mc_stderr, name), np.sqrt((w**2 * noise).sum()) / w.sum(), 1.0), name
        point, effective = values.mean(0), w.sum() ** 2 / (w**2).sum()
        squares = (w**2 * (point - np.average(point, weights=w)) ** 2).sum() * effective / (effective - 1)
        assert close(value(e.stderr, name), np.sqrt(squares) / w.sum(), 1.0), name
    # Read-outs that are not linear: by the derivative, here a difference quotient of the formulas (10), (11).
    for error in (e.stderr, e.mc_stderr):
        assert e.variance_ratio is not None and error.decoder_residuals is not None
        ratio, step = e.variance_ratio, 1e-6

        def gain(rho):
            return 1.5 * (rho - 1 - np.log(rho))

        # Second order too: a normal ratio r around ρ makes (r - ρ)² vary with variance 2 s⁴.
        slope = (gain(ratio + step) - gain(ratio - step)) / (2 * step)
        wide = 1e-4
        bend = (gain(ratio + wide) - 2 * gain(ratio) + gain(ratio - wide)) / wide**2
        s = 2 * error.decoder_gap / 3
        assert close(error.variance_ratio, s)
        assert close(error.gains.variance, np.sqrt((slope * s) ** 2 + (bend / 2) ** 2 * 2 * s**4), tolerance=1e-6)
        rho, s = 1 - 2 * e.decoder_residuals, 2 * error.decoder_residuals
        expected = ((0.5 - 0.5 / rho) ** 2 * s**2 + 0.5 * (0.5 / rho**2) ** 2 * s**4).sqrt()
        assert close(error.gains.feature_variance, expected)


@pytest.mark.parametrize(
    "expectation",
    [MonteCarlo(1), Antithetic(2), Sobol(8), Frozen(0, 8), GaussHermite(2)],
    ids=repr,
)
def test_no_monte_carlo_error_where_there_is_none_to_be_had(expectation):
    model = Toy(0)
    e = evaluate(model, model.data(9), expectation=expectation)
    assert e.mc_stderr is None and "no Monte Carlo error" in str(e)
    assert e.to_dict()["mc_stderr"] is None and math.isfinite(e.stderr.elbo)


# --- Batches, weights, parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expectation", [Frozen(1, 5), Sobol(8), GaussHermite(2)], ids=repr)
def test_batch_sizes_do_not_matter_where_noise_is_shared(expectation):
    model = Toy(2, "full", "poisson", "laplace")
    x = model.data(23)
    whole = evaluate(model, x, expectation=expectation, pointwise=True)
    for batch_size in (1, 5, 22, 23, 1000):
        parts = evaluate(model, x, expectation=expectation, pointwise=True, batch_size=batch_size)
        assert_same(parts, whole, 100.0)
        assert parts.pointwise is not None and whole.pointwise is not None
        assert all(close(parts.pointwise[k], whole.pointwise[k], 100.0) for k in whole.pointwise)


def test_batches_have_noise_of_their_own():
    model = Toy(2)
    x = model.data(1).expand(6, 3)
    e = evaluate(model, x, expectation=MonteCarlo(2), batch_size=2, pointwise=True)
    assert e.pointwise is not None and len(e.pointwise["reconstruction"].unique()) == 6


@given(seed=seeds, cuts=st.sets(st.integers(1, 10), max_size=4), likelihood=st.sampled_from(list(LIKELIHOODS)))
@settings(max_examples=20)
def test_evaluations_of_any_parts_merge_into_the_whole(seed, cuts, likelihood):
    model, expectation = Toy(seed, likelihood=likelihood), Frozen(3, 3)
    x = model.data(11)
    w = torch.rand(11, generator=model.generator) + 0.1
    whole = evaluate(model, x, expectation=expectation, sample_weight=w, pointwise=True)
    split = [part.tensor_split(sorted(cuts)) for part in (x, w)]
    parts = [
        evaluate(model, a, expectation=expectation, sample_weight=b, pointwise=True)
        for a, b in zip(*split, strict=True)
    ]
    merged = Evaluation.merge(parts)
    assert merged.num_points == 11
    assert_same(merged, whole, 10 * (abs(whole.reconstruction) + abs(whole.kl) + 10))
    assert merged.pointwise is not None and whole.pointwise is not None
    assert torch.equal(merged.pointwise["kl"], whole.pointwise["kl"])
    parts[0] = evaluate(model, split[0][0], expectation=expectation, sample_weight=split[1][0])
    assert Evaluation.merge(parts).pointwise is None


def test_whole_numbers_as_weights_repeat_rows():
    model, counts = Toy(3, "full", "normal, function"), torch.tensor([0, 1, 2, 5, 0, 3])
    x = model.data(6)
    weighted = evaluate(model, x, expectation=Frozen(), sample_weight=counts)
    repeated = evaluate(model, x.repeat_interleave(counts, 0), expectation=Frozen())
    assert_same(weighted, repeated, 100.0, leave_out=("stderr", "num_points"))
    # Errors do not agree: a point of weight 2 is still one observation.
    assert weighted.stderr.elbo > 1.2 * repeated.stderr.elbo


def test_zero_weights_drop_rows():
    model = Toy(3, "full", "normal, function")
    x, keep = model.data(30), torch.arange(30) % 3 != 0
    keep[:10] = False  # whole batches
    weighted = evaluate(model, x, expectation=Frozen(), sample_weight=keep.double().tolist(), batch_size=5)
    dropped = evaluate(model, x[keep], expectation=Frozen())
    assert_same(weighted, dropped, 100.0)


def test_weights_are_relative():
    model = Toy(3)
    x, w = model.data(8), np.arange(8.0)
    args = {"expectation": MonteCarlo(4), "batch_size": 3}
    assert_same(evaluate(model, x, sample_weight=w, **args), evaluate(model, x, sample_weight=7 * w, **args), 100.0)


def test_values_per_point_average_to_the_terms():
    model = Toy(4, prior="laplace", likelihood="poisson")
    x = model.data(17)
    w = np.random.default_rng(0).uniform(0, 2, 17)
    e = evaluate(model, x, expectation=MonteCarlo(4), pointwise=True, batch_size=5, sample_weight=w)
    assert e.pointwise is not None
    for name, values in e.pointwise.items():
        assert len(values) == 17 and values.dtype == F64, name
        direct = np.average(values.numpy(), axis=0, weights=w)
        terms = {"kl_per_latent", "encoder_entropy_per_latent", "prior_residuals"}
        if name in terms or name in SCALARS or name.endswith("_entropy"):
            assert close(value(e, name), direct, 100.0), name
        else:
            assert close(e.moments[name].mean, direct, 100.0), name
    assert e.pointwise["prior_residuals"].shape == (17, 2)
    assert close(e.pointwise["gap"], e.pointwise["elbo"] - e.pointwise["entropy_sum"], 100.0)
    assert not {"squared_error", "decoder_residuals", "log_variance"} & e.pointwise.keys()
    assert evaluate(model, x).pointwise is None


# --- What data may be -------------------------------------------------------------------------------------------------


def test_iterables_arrays_and_loaders():
    model, args = Toy(4), {"expectation": Frozen()}
    x = model.data(10)
    whole = evaluate(model, x, **args)
    steps = np.zeros((20, 6))
    steps[::2, ::2] = x.numpy()
    assert not steps[::2, ::2].flags.c_contiguous
    for data in (
        x.numpy(),
        steps[::2, ::2],
        list(x.split(3)),
        (part for part in x.split(4)),
        [x[:0], x],
        [(x[:4],), [x[4:]]],
        DataLoader(TensorDataset(x), batch_size=3),
        DataLoader(list(x), batch_size=4),
    ):
        assert_same(evaluate(model, data, **args), whole, 100.0)


def test_loaders_in_random_order_leave_the_global_generator_alone():
    model = Toy(4)
    x = model.data(10)
    state = torch.get_rng_state()
    shuffled = evaluate(model, DataLoader(TensorDataset(x), batch_size=3, shuffle=True), expectation=Frozen())
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(shuffled, evaluate(model, x, expectation=Frozen()), 100.0)


@pytest.mark.parametrize("model", ["noisy", "drawn"])
def test_loaders_take_no_draws_from_the_model(model):
    """Dropout, and draws of z that no noise can become, are the same whatever brings the data."""
    torch.manual_seed(0)
    model = Noisy() if model == "noisy" else Toy(0, "laplace", prior="mixture")
    x = torch.randn(20, 3, dtype=F64) if isinstance(model, Noisy) else model.data(20)
    whole = evaluate(model, x, batch_size=8, mode="train")
    for data in (DataLoader(TensorDataset(x), batch_size=8), TensorDataset(x)):
        assert evaluate(model, data, batch_size=8, mode="train").elbo == whole.elbo
    with pytest.raises(DataError, match="a batch of type NoneType given"):
        evaluate(model, [x, None, x])


def read_only(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def backwards(array):
    return np.array(array[::-1])[::-1]


def big_endian(array):
    return np.array(array).astype(">f8")


@pytest.mark.parametrize("given", [read_only, backwards, big_endian])
def test_weights_and_log_jacobians_in_any_memory(given):
    model, weights = Toy(4), [1.0, 2.0, 0.5, 3.0, 0.0, 1.0, 1.0, 2.0, 2.0, 1.0]
    x = model.data(10)
    jacobian = [0.1, -0.2, 0.3]
    # torch warns once in a process of arrays that cannot be written.
    torch.set_warn_always(True)
    try:
        evaluation = evaluate(model, x, sample_weight=given(weights), log_jacobian=given(jacobian))
    finally:
        torch.set_warn_always(False)
    expected = evaluate(model, x, sample_weight=torch.tensor(weights), log_jacobian=torch.tensor(jacobian, dtype=F64))
    assert numbers(evaluation) == numbers(expected)


def test_bind_brings_context():
    toy = Toy(7)
    x, labels = toy.data(12), torch.arange(12) % 3
    shift = torch.tensor([0.0, 1.0, -2.0], dtype=F64)

    def bind(batch):
        rows, label = batch
        offset = shift[label][:, None]
        conditional = from_functions(
            lambda x: toy.posterior(x - offset), lambda z: toy.likelihood(z).mean + offset, variance=2.0
        )
        return conditional, rows

    loader = DataLoader(TensorDataset(x, labels), batch_size=5)
    e = evaluate(toy, loader, expectation=GaussHermite(3), bind=bind)
    # The same as shifting the data: a normal likelihood sees differences only.
    plain = from_functions(toy.posterior, lambda z: toy.likelihood(z).mean, variance=2.0)
    assert_same(e, evaluate(plain, x - shift[labels][:, None], expectation=GaussHermite(3)), 100.0)


def test_what_bind_returns_is_checked():
    toy = Toy(7)
    for answer, named in ((toy, "Toy"), ((toy, [1.0]), r"\(Toy, list\)"), ((), "tuple")):
        with pytest.raises(UsageError, match=f"bind returned {named}, expected the pair"):
            evaluate(toy, toy.data(5), bind=lambda batch, answer=answer: answer)
    with pytest.raises(UsageError, match="a model of type int given"):
        evaluate(toy, toy.data(5), bind=lambda batch: (5, batch))


def test_on_batch_is_told_the_rows():
    rows, model = [], Toy(0)
    e = evaluate(model, model.data(11), batch_size=4, on_batch=rows.append)
    assert rows == [4, 4, 3] and e.num_points == 11


def test_single_precision_models_get_their_precision_and_sums_in_double():
    torch.manual_seed(0)
    encoder, seen = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), []

    class Encoder(nn.Sequential):
        def forward(self, x):
            seen.append(x.dtype)
            return super().forward(x).unbind(1)

    model = from_functions(Encoder(*encoder), nn.Linear(2, 3), variance=0.5)
    x = torch.randn(50, 3, dtype=F64)
    e = evaluate(model, x.numpy(), expectation=Frozen())
    assert seen == [torch.float32]
    assert all(moment.mean.dtype == F64 for moment in e.moments.values())
    # The identity holds in double precision although networks and draws are single.
    assert close(e.gap, e.elbo - e.entropy_sum, 100.0)
    exact = evaluate(model.double(), x, expectation=Frozen())
    assert seen[-1] == F64 and close(e.elbo, exact.elbo, 100.0, tolerance=1e-6)


# --- The model is left as it was --------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A model with BatchNorm and dropout, for which the two modes are two objectives."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.double()

    def posterior(self, x):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return Normal(mean, torch.exp(log_variance / 2))

    def prior(self):
        return Normal(torch.zeros(2), torch.ones(2))

    def likelihood(self, z):
        return Normal(self.decoder(z), 0.7)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_mode_statistics_and_generators_are_restored(mode, fails):
    torch.manual_seed(0)
    model = Noisy()
    model.encoder[1].eval()  # as in fine-tuning with frozen statistics
    if fails:
        model.likelihood = lambda z: Normal(torch.zeros(7, 7), 1.0)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(50, 3, dtype=F64)
    x.requires_grad_()
    torch_state, (_, numpy_state, *_) = torch.get_rng_state(), np.random.get_state()
    if fails:
        with pytest.raises(ModelError):
            evaluate(model, x, mode=mode, batch_size=20)
    else:
        e = evaluate(model, x, mode=mode, batch_size=20)
        assert e.mode == mode and close(e.gap, e.elbo - e.entropy_sum, 100.0)
        again = evaluate(model, x, mode=mode, batch_size=20)
        assert numbers(e) == numbers(again)  # dropout is seeded too
        torch.rand(3), np.random.rand()
        assert numbers(evaluate(model, x, mode=mode, batch_size=20)) == numbers(e)
        torch.set_rng_state(torch_state)
        np.random.set_state(("MT19937", numpy_state, *np.random.get_state()[2:]))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and x.grad is None
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_global_generators_are_left_alone_by_draws_of_their_own():
    # A posterior that is not normal and a prior without closed entropy draw from the global generator.
    model = Toy(0, "laplace", prior="mixture")
    x = model.data(5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = evaluate(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert numbers(evaluate(model, x)) == numbers(first)
    assert evaluate(model, x, expectation=MonteCarlo(16, seed=1)).elbo != first.elbo


def numbers_in_pauses(model, x, **how):
    """An evaluation fed batch by batch, between which others draw from the global generators and change the mode."""
    accumulator = Accumulator(model, **how)
    for rows in x.split(8):
        torch.rand(3)
        model.train()
        state, statistics = torch.get_rng_state(), [buffer.clone() for buffer in model.buffers()]
        with accumulator.running():
            assert accumulator.take(rows) == len(rows)
        assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in model.modules())
        assert all(map(torch.equal, model.buffers(), statistics))
    return numbers(accumulator.evaluation())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batches_may_come_one_at_a_time(mode):
    torch.manual_seed(0)
    model, x = Noisy(), torch.randn(20, 3, dtype=F64)
    x[2, 1] = math.nan
    how = {"mode": mode, "missing": "ignore", "sample_weight": torch.arange(1.0, 21), "log_jacobian": 0.5}
    assert numbers_in_pauses(model, x, **how) == numbers(evaluate(model, x, batch_size=8, **how))


def test_draws_go_on_after_a_pause():
    class Sampled(nn.Module):
        """Draws from the global generator: its prior has no closed entropy."""

        def __init__(self):
            super().__init__()
            toy = Toy(0, "laplace", prior="mixture")
            self.posterior, self.prior, self.likelihood, self.data = toy.posterior, toy.prior, toy.likelihood, toy.data

    model = Sampled()
    x = model.data(20)
    assert numbers_in_pauses(model, x) == numbers(evaluate(model, x, batch_size=8))


def test_an_accumulator_refuses_what_evaluate_refuses():
    with pytest.raises(DataError, match="no data points given"):
        Accumulator(Toy(0)).evaluation()
    with pytest.raises(UsageError, match="a model of type int given"):
        Accumulator(5)
    accumulator = Accumulator(toy := Toy(0), sample_weight=torch.ones(7))
    with accumulator.running(), pytest.raises(UsageError, match="7 numbers for more data points"):
        accumulator.take(toy.data(8))
    with pytest.raises(UsageError, match="a batch given to Accumulator, which is not running; take batches inside"):
        accumulator.take(toy.data(7))


def test_a_prior_without_density_at_the_draws():
    prior = Independent(LogNormal(torch.zeros(2), 1.0, validate_args=True), 1)
    model = from_functions(lambda x: (x - 1, x), lambda z: z, variance=1.0, prior=prior)
    with pytest.raises(ModelError, match=r"^prior\(\) has no density at a draw of the posterior, .* both the same"):
        evaluate(model, torch.rand(8, 2))


def test_batches_of_different_shapes():
    model = from_functions(lambda x: (x[:, :1], x[:, :1]), lambda z: z.expand(-1, 4), variance=1.0)
    with pytest.raises(
        DataError, match=r"a batch of shape \(2, 3\) given after data of shape \(4,\), expected one shape"
    ):
        evaluate(model, [torch.ones(5, 4), torch.ones(2, 3)])


def test_copies_that_fill_a_batch_up_count_for_nothing():
    model = Toy(4)
    x, expectation = model.data(10), Frozen()
    accumulator = Accumulator(model, expectation=expectation, pointwise=True)
    with accumulator.running():
        accumulator.count(model, torch.cat([x[:6], x[:2]]), padding=2)
        accumulator.count(model, x[6:])
        accumulator.count(model, x[:3], padding=3)
    evaluation, expected = accumulator.evaluation(), evaluate(model, x, expectation=expectation, pointwise=True)
    assert_same(evaluation, expected, 100.0, leave_out=())
    assert torch.allclose(evaluation.pointwise["elbo"], expected.pointwise["elbo"], rtol=1e-12)


def test_what_inference_mode_leaves_behind_can_be_trained_with():
    """Weights of nodes are kept between evaluations and training steps."""
    torch.manual_seed(0)
    model, x = vae1(3, 2, (4,)), torch.randn(20, 3)
    samples = MonteCarlo(37)  # of a number that no other test has
    with torch.inference_mode():
        inside = evaluate(model, x.clone(), expectation=samples)
        assert torch.is_inference_mode_enabled()
    assert numbers(inside) == numbers(evaluate(model, x, expectation=samples))
    (-sum(map(torch.sum, nodes_of(samples, 20, (2,)).weights * torch.ones(37, requires_grad=True)))).backward()


def test_the_two_modes_are_two_objectives():
    torch.manual_seed(0)
    model, x = Noisy(), torch.randn(50, 3, dtype=F64)
    assert evaluate(model, x, mode="train").elbo != evaluate(model, x, mode="eval").elbo
    model.eval()
    z, nodes = model.posterior(x), nodes_of(MonteCarlo(16), 50, (2,))
    with torch.no_grad():
        expected = reference(model, x, draws(z, nodes.noise), nodes.weights)
    assert close(evaluate(model, x).elbo, expected["elbo"].mean(), 100.0)


# --- Errors -----------------------------------------------------------------------------------------------------------


def plain(decode=lambda z: torch.zeros(len(z), 3, dtype=F64), **options):
    return from_functions(lambda x: (x[:, :2], x[:, :2]), decode, **{"variance": 1.0, **options})


ROWS = torch.ones(5, 3, dtype=F64)


def with_value(number, row, shape=(5, 3)):
    x = torch.ones(shape, dtype=F64)
    x[(row, *[1] * (len(shape) - 1))] = number
    return x


IMAGE_MODEL = from_functions(
    lambda x: (x.flatten(1)[:, :2], x.flatten(1)[:, :2]), lambda z: torch.zeros(len(z), 784), variance=1.0
)
WRONG = {
    "sample axis": (
        lambda: evaluate(plain(lambda z: Normal(torch.zeros(16, len(z), 3), 1.0)), ROWS),
        ModelError,
        r"likelihood\(z\) returned batch_shape \(16, 5, 3\).*for 5 rows.*no sample axis",
    ),
    "sample axis in the posterior": (
        lambda: evaluate(from_functions(lambda x: Normal(torch.zeros(9, 5, 2), 1.0), lambda z: z), ROWS),
        ModelError,
        r"posterior\(x\) returned batch_shape \(9, 5, 2\)",
    ),
    "no batch axis": (
        lambda: evaluate(plain(lambda z: Normal(torch.zeros(3), 1.0)), ROWS),
        ModelError,
        r"batch_shape \(3,\)",
    ),
    "images for flat data": (
        lambda: evaluate(IMAGE_MODEL, torch.zeros(4, 1, 28, 28)),
        ModelError,
        r"describes data of shape \(784,\), expected \(1, 28, 28\)",
    ),
    "one feature less": (
        lambda: evaluate(plain(lambda z: z), ROWS),
        ModelError,
        r"data of shape \(2,\), expected \(3,\)",
    ),
    "another prior": (
        lambda: evaluate(plain(prior=Normal(torch.zeros(3), 1.0)), ROWS),
        ModelError,
        r"prior\(\) has batch_shape \(3,\).*expected event_shape \(2,\)",
    ),
    "encode returns the mean only": (
        lambda: evaluate(from_functions(lambda x: x, lambda z: z, variance=1.0), ROWS),
        ModelError,
        r"encode returned Tensor, expected a Distribution or the pair",
    ),
    "encode returns three things": (
        lambda: evaluate(from_functions(lambda x: (x, x, x), lambda z: z, variance=1.0), ROWS),
        ModelError,
        r"encode returned tuple",
    ),
    "decode returns a pair": (
        lambda: evaluate(plain(lambda z: (z, z)), ROWS),
        ModelError,
        r"decode returned tuple, expected a torch Distribution",
    ),
    "no variance": (lambda: evaluate(plain(variance=None), ROWS), UsageError, r"pass variance="),
    "negative variance": (lambda: plain(variance=-1.0), UsageError, r"variance=-1\.0 given, expected positive"),
    "zero variance": (lambda: plain(variance=torch.tensor([1.0, 0.0])), UsageError, r"expected positive"),
    "NaN": (lambda: evaluate(plain(), with_value(math.nan, 3)), DataError, r"row 3, column 1 .* is nan"),
    "NaN in a later batch": (
        lambda: evaluate(plain(), with_value(math.nan, 3).split(2)),
        DataError,
        r"row 3, column 1 ",
    ),
    "infinite pixel": (
        lambda: evaluate(plain(), with_value(-math.inf, 2, (4, 1 + 1, 2, 2))),
        DataError,
        r"row 2, column \(1, 1, 1\)",
    ),
    "no data": (lambda: evaluate(plain(), ROWS[:0]), DataError, "no data points given"),
    "no batches": (lambda: evaluate(plain(), []), DataError, "no data points given"),
    "empty array": (lambda: evaluate(plain(), np.zeros((0, 3))), DataError, "no data points given"),
    "objects": (lambda: evaluate(plain(), np.array([["a"]], dtype=object)), DataError, "dtype object"),
    "labels beside the data": (
        lambda: evaluate(plain(), DataLoader(TensorDataset(ROWS, ROWS))),
        DataError,
        r"batch of type list given.*bind=",
    ),
    "a dictionary as batch": (lambda: evaluate(plain(), [{"x": ROWS}]), DataError, r"batch of type dict given"),
    "negative weights": (
        lambda: evaluate(plain(), ROWS, sample_weight=[1.0, 1.0, -1.0, 1.0, 1.0]),
        UsageError,
        "negative or non-finite",
    ),
    "NaN weights": (
        lambda: evaluate(plain(), ROWS, sample_weight=np.array([1, math.nan, 1, 1, 1])),
        UsageError,
        "negative or non-finite",
    ),
    "zero weights": (lambda: evaluate(plain(), ROWS, sample_weight=torch.zeros(5)), UsageError, "only zeros"),
    "weights per element": (
        lambda: evaluate(plain(), ROWS, sample_weight=torch.ones(5, 3)),
        UsageError,
        r"sample_weight of shape \(5, 3\)",
    ),
    "too few weights": (
        lambda: evaluate(plain(), ROWS, sample_weight=[1.0] * 4),
        UsageError,
        "sample_weight holds 4 numbers for more data points",
    ),
    "too few weights for later batches": (
        lambda: evaluate(plain(), ROWS, sample_weight=[1.0] * 4, batch_size=2),
        UsageError,
        "sample_weight holds 4 numbers for more data points",
    ),
    "too many weights": (
        lambda: evaluate(plain(), ROWS, sample_weight=[1.0] * 6, batch_size=2),
        UsageError,
        "sample_weight holds 6 numbers for 5 data points",
    ),
    "batch size": (lambda: evaluate(plain(), ROWS, batch_size=0), UsageError, "batch_size=0 given"),
    "batch size that is none": (lambda: evaluate(plain(), ROWS, batch_size=True), UsageError, "batch_size=True"),
    "quadrature for another posterior": (
        lambda: evaluate(Toy(0, "laplace"), ROWS, expectation=GaussHermite(2)),
        UsageError,
        "GaussHermite needs a normal posterior, got .*; use MonteCarlo",
    ),
    "frozen noise for another posterior": (
        lambda: evaluate(Toy(0, "laplace"), ROWS, expectation=Frozen()),
        UsageError,
        "Frozen needs a normal posterior",
    ),
    "nothing to merge": (lambda: Evaluation.merge([]), UsageError, "no evaluations given"),
    "merging two settings": (
        lambda: Evaluation.merge([evaluate(plain(), ROWS, expectation=Frozen(seed)) for seed in (0, 1)]),
        UsageError,
        "expectation Frozen.* and Frozen.* given",
    ),
    "merging two modes": (
        lambda: Evaluation.merge([evaluate(plain(), ROWS, mode=mode) for mode in ("eval", "train")]),
        UsageError,
        "mode eval and train given",
    ),
    "merging two shapes": (
        lambda: Evaluation.merge([evaluate(plain(), ROWS), evaluate(plain(lambda z: z), ROWS[:, :2])]),
        UsageError,
        r"data_shape \(3,\) and \(2,\) given",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_given_in_one_line(name):
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- To dict and on paper ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_to_dict_is_json(likelihood):
    model = Toy(0, "full", likelihood, "with mean")
    e = evaluate(model, model.data(5), pointwise=True)
    read = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert read["elbo"] == e.elbo and read["entropies"]["decoder"] == e.entropies.decoder
    assert read["stderr"]["gap"] == e.stderr.gap and read["mc_stderr"]["elbo"] == e.mc_stderr.elbo
    assert read["expectation"] == repr(e.expectation) and read["latent_shape"] == [2]
    assert close(read["relative_gap"], abs(e.gap / e.elbo))
    assert not {"moments", "pointwise"} & read.keys()
    if e.decoder_residuals is not None:
        assert read["decoder_residuals"] == e.decoder_residuals.tolist()


sizes = st.floats(-1e6, 1e6) | st.floats(-1e-3, 1e-3) | st.integers(-20, 20).map(lambda i: i / 2 * 1e-4)


@given(parts=st.lists(sizes, min_size=1, max_size=8), digits=st.integers(0, 6))
@settings(max_examples=300)
def test_rounded_parts_add_up(parts, digits):
    total = math.fsum(parts)
    rounded = ledger.add_up(total, parts, digits)
    unit = 10**digits
    assert sum(round(x * unit) for x in rounded) == round(total * unit)
    assert all(abs(x * unit - y * unit) < 1 + 1e-3 for x, y in zip(rounded, parts, strict=True))
    assert all(abs(x * unit - round(x * unit)) < 1e-3 for x in rounded)


def test_parts_that_are_not_finite_are_left_alone():
    assert ledger.add_up(-math.inf, [1.23456, -math.inf]) == [1.23456, -math.inf]


NAMES = "encoder entropy|prior entropy|decoder (?:pseudo )?entropy|log base measure|entropy sum|ELBO"
LINE = re.compile(rf"^([ +=-]) ({NAMES}|(?:prior|decoder) residuals) +(-?\d+\.\d{{4}}) +\S+ +\S+$")


def printed(evaluation):
    """Sign and units of the last digit of every line, by name."""
    lines = {}
    for line in str(evaluation).splitlines():
        if found := LINE.match(line):
            sign, name, number, *_ = found.groups()
            assert not number.startswith("-0.0000")
            lines[name.replace("pseudo ", "")] = -1 if sign == "-" else 1, int(number.replace(".", ""))
    return lines


@pytest.mark.parametrize("likelihood", ["normal, shared", "normal, function", "poisson", "full normal"])
@given(seed=seeds, factor=st.sampled_from([1.0, 1e-2, 10.0]))
@settings(max_examples=15)
def test_the_ledger_adds_up_to_the_printed_digit(likelihood, seed, factor):
    model = Toy(seed, likelihood=likelihood)
    x = model.data(6)
    if likelihood != "poisson":
        x = factor * x
    e = evaluate(model, x, expectation=MonteCarlo(2))
    lines = printed(e)
    assert ("log base measure" in lines) == (likelihood == "poisson") == ("pseudo entropy" in str(e))
    entropies = ["encoder entropy", "prior entropy", "decoder entropy"]
    entropies += ["log base measure"] if likelihood == "poisson" else []
    assert sum(sign * number for sign, number in map(lines.get, entropies)) == lines["entropy sum"][1]
    residuals = lines["prior residuals"][1] + lines["decoder residuals"][1]
    assert lines["entropy sum"][1] + residuals == lines["ELBO"][1]
    assert lines["ELBO"][1] == round(e.elbo * 1e4)
    # No line is off by a whole digit; the entropy sum is that of up to four lines.
    for name, number in {
        "encoder entropy": e.entropies.encoder,
        "prior entropy": e.entropies.prior,
        "decoder entropy": e.entropies.decoder,
        "prior residuals": e.prior_gap,
        "decoder residuals": e.decoder_gap,
    }.items():
        assert abs(lines[name][1] - number * 1e4) < 1 + 1e-6
    assert abs(lines["entropy sum"][1] - e.entropy_sum * 1e4) < 4


def test_the_ledger_of_an_image_model():
    model = Toy(0, data_shape=(1, 4, 4), latent_shape=(2, 2, 2))
    text = str(evaluate(model, model.data(1234), expectation=MonteCarlo(2), batch_size=500))
    head = text.splitlines()
    assert head[0] == "1,234 data points of 1×4×4 features, 2×2×2 latents; nats per data point"
    assert head[1] == "MonteCarlo(num_samples=2, seed=0), networks in eval mode"
    assert "set σ² to" in text and "rescale the prior" in text and "± " in text


def test_a_perfect_reproduction_prints_that_there_is_no_bound():
    model = from_functions(lambda x: (x, x), lambda z: torch.zeros(len(z), 2, dtype=F64), variance=1.0)
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=F64)
    e = evaluate(model, x, expectation=GaussHermite(2))
    assert e.gains.feature_variance is not None and e.gains.feature_variance[0] == math.inf
    assert "no upper bound: some feature is reproduced exactly" in str(e)


def test_one_point_has_values_and_no_standard_errors():
    model = Toy(0)
    e = evaluate(model, model.data(1), expectation=MonteCarlo(4))
    assert math.isfinite(e.elbo) and math.isnan(e.stderr.elbo) and e.mc_stderr is not None
    assert math.isfinite(e.mc_stderr.elbo) and re.search(r"= ELBO .* -$", str(e), re.MULTILINE)


def test_laplace_prior_needs_no_module():
    # Nothing but three functions.
    model = from_functions(lambda x: (x, 0 * x), lambda z: z, prior=Laplace(torch.zeros(()), 1.0), variance=1.0)
    e = evaluate(model, torch.zeros(3, 2, dtype=F64), expectation=MonteCarlo(4))
    assert close(e.entropies.prior, 2 * (1 + math.log(2)), tolerance=1e-7)


def test_covariance_of_posterior_means():
    toy = vae1((5,), 3).double()
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    with torch.no_grad():
        means = toy.posterior(x).mean.numpy()
    evaluation = evaluate(toy, x, batch_size=7)
    assert evaluation.latent_moments is not None
    assert np.allclose(evaluation.latent_moments.covariance.numpy(), np.cov(means, rowvar=False, ddof=0), rtol=1e-10)
    halves = [evaluate(toy, part, expectation=MonteCarlo(2, seed)) for seed, part in enumerate((x[:11], x[11:]))]
    both = Evaluation.merge(halves).latent_moments
    assert both is not None and np.allclose(both.covariance.numpy(), np.cov(means, rowvar=False, ddof=0), rtol=1e-10)


def test_a_variance_that_is_no_number_is_named():
    model = vae1(3, 2, (4,))
    with torch.no_grad():
        model.head.log_variance.fill_(math.nan)
    with pytest.raises(ModelError, match="not a number"):
        evaluate(model, torch.rand(5, 3))


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("expectation", [MonteCarlo(1), MonteCarlo(4), Antithetic(4), GaussHermite(3)])
def test_one_variance_for_all_gives_what_a_variance_for_each_gives(expectation, changing):
    class Model:
        def __init__(self, model, expanded):
            self.model, self.expanded, self.calls = model, expanded, 0

        posterior, prior = (lambda self, x: self.model.posterior(x)), lambda self: self.model.prior()

        def likelihood(self, z):
            mean, self.calls = self.model.likelihood(z).mean, self.calls + 1
            log_variance = torch.tensor(-0.3 + 0.2 * self.calls * changing, dtype=torch.float64)
            return DiagonalNormal(mean, log_variance.expand(mean.shape) if self.expanded else log_variance)

    torch.manual_seed(0)
    model, x = vae1(3, 2, (4,)).double(), torch.rand(7, 3, dtype=torch.float64)
    x[2, 1] = math.nan
    one, each = (evaluate(Model(model, e), x, expectation=expectation, missing="ignore") for e in (False, True))
    for name, moment in each.moments.items():
        for field in ("mean", "spread", "noise"):
            expected, found = getattr(moment, field), getattr(one.moments[name], field)
            assert (expected is None) == (found is None), (name, field)
            if expected is not None:
                assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (name, field)
