"""DiagonalNormal against torch's Normal, and the terms of every distribution against entropies from elsewhere."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    TransformedDistribution,
    kl_divergence,
    transforms,
)

from vaentropy.distributions import DiagonalNormal, as_batch, as_prior, diagonal_parameters, full_parameters
from vaentropy.entropy import factor_terms
from vaentropy.errors import ModelError

from .models import F64, TIGHT, close

# Batch and event shapes; (2, 2, 2) and (1, 4, 4) are images.
SHAPES = [((), (3,)), ((4,), ()), ((4,), (3,)), ((4,), (1, 4, 4)), ((2, 4), (2, 2, 2)), ((1,), (1,))]


def normals(seed, batch_shape, event_shape):
    """The same distribution as ours and as torch's."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn((2, *batch_shape, *event_shape), generator=generator, dtype=F64).mul(2)
    ours = DiagonalNormal(mean, log_variance, event_dim=len(event_shape))
    return ours, Independent(Normal(mean, log_variance.exp().sqrt()), len(event_shape))


# --- DiagonalNormal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_shape", "event_shape"), SHAPES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_diagonal_normal_is_torchs_normal(batch_shape, event_shape, seed):
    ours, theirs = normals(seed, batch_shape, event_shape)
    x = theirs.sample((5,))
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    scale = Independent(theirs.base_dist, 0).log_prob(x).abs().sum() + 1
    assert close(ours.log_prob(x), theirs.log_prob(x), scale)
    assert close(ours.entropy(), theirs.entropy(), theirs.base_dist.entropy().abs().sum() + 1)
    for name in ("mean", "mode", "variance", "stddev"):
        assert close(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize(("batch_shape", "event_shape"), SHAPES)
def test_kl_divergence_is_registered(batch_shape, event_shape):
    (q, torch_q), (p, torch_p) = normals(1, batch_shape, event_shape), normals(2, batch_shape, event_shape)
    assert close(kl_divergence(q, p), kl_divergence(torch_q, torch_p))
    assert close(kl_divergence(q, q), torch.zeros(batch_shape, dtype=F64), 1.0)
    p, torch_p = normals(3, (), event_shape)
    assert close(kl_divergence(q, p), kl_divergence(torch_q, torch_p.expand(batch_shape)))


def test_the_event_is_all_but_the_first_axis_by_default():
    q = DiagonalNormal(torch.zeros(4, 2, 3), torch.zeros(2, 3))
    assert (q.batch_shape, q.event_shape) == ((4,), (2, 3))
    assert q.variance.shape == (4, 2, 3)


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 2), (4, 1, 2), (1, 4, 2)])
def test_a_log_variance_that_does_not_fit(shape):
    with pytest.raises(ModelError, match=r"log-variance of shape .* for a mean of shape \(4, 2\), expected"):
        DiagonalNormal(torch.zeros(4, 2), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 2), (4, 1), (1, 1), (4, 2)])
def test_a_log_variance_that_broadcasts(shape):
    assert DiagonalNormal(torch.zeros(4, 2), torch.zeros(shape)).variance.shape == (4, 2)


def test_nothing_goes_through_exp_and_log():
    log_variance = torch.tensor([[-700.1, 700.3]], dtype=F64)
    q = DiagonalNormal(torch.zeros(1, 2, dtype=F64), log_variance)
    constant = math.log(2 * math.pi)
    assert close(q.entropy(), [constant + 1.1], 1400.0)
    assert close(q.log_prob(torch.zeros(1, 2, dtype=F64)), [-constant - 0.1], 1400.0)


def test_draws_have_the_moments_and_the_gradients():
    mean = torch.tensor([[1.0, -2.0]], dtype=F64, requires_grad=True)
    log_variance = torch.tensor([[0.5, -1.0]], dtype=F64, requires_grad=True)
    q = DiagonalNormal(mean, log_variance)
    torch.manual_seed(0)
    num = 40_000
    z = q.rsample((num,))
    assert z.shape == (num, 1, 2) and not q.sample((3,)).requires_grad and q.rsample().shape == (1, 2)
    sd = log_variance.detach().exp().sqrt()
    assert ((z.detach().mean(0) - mean.detach()).abs() < 5 * sd / num**0.5).all()
    assert ((z.detach().var(0) / sd**2 - 1).abs() < 5 * (2 / num) ** 0.5).all()
    for h in range(2):
        assert stats.kstest(((z[:, 0, h] - mean[0, h]) / sd[0, h]).detach().numpy(), "norm").pvalue > 1e-3
    # dz/dν = 1 and dz/dlog τ² = (z - ν)/2
    by_mean, by_log_variance = torch.autograd.grad(z[7].sum(), (mean, log_variance))
    assert torch.equal(by_mean, torch.ones_like(mean))
    assert close(by_log_variance, ((z[7] - mean) / 2).detach(), 10.0)


def test_draws_come_from_the_global_generator():
    q, _ = normals(0, (3,), (2,))
    torch.manual_seed(5)
    first = q.rsample((4,))
    torch.manual_seed(5)
    assert torch.equal(q.rsample((4,)), first)


@pytest.mark.parametrize(("batch_shape", "event_shape"), SHAPES)
def test_expanding_repeats_the_batch(batch_shape, event_shape):
    ours, theirs = normals(4, batch_shape, event_shape)
    wide, torch_wide = ours.expand((6, *batch_shape)), theirs.expand((6, *batch_shape))
    x = torch_wide.sample()
    assert wide.batch_shape == torch_wide.batch_shape and wide.event_shape == torch_wide.event_shape
    assert close(wide.log_prob(x), torch_wide.log_prob(x), torch_wide.base_dist.log_prob(x).abs().sum() + 1)
    assert wide.rsample((2,)).shape == (2, 6, *batch_shape, *event_shape)


def test_torchs_independent_accepts_it():
    mean = torch.randn(4, 3, 2, dtype=F64)
    q = Independent(DiagonalNormal(mean, torch.zeros_like(mean), event_dim=0), 2)
    whole = DiagonalNormal(mean, torch.zeros_like(mean))
    assert q.batch_shape == (4,) and q.event_shape == (3, 2)
    assert close(q.log_prob(mean + 1), whole.log_prob(mean + 1), 100.0)
    assert close(kl_divergence(q, q.expand((4,))), torch.zeros(4), 1.0)


def test_arguments_are_validated_as_torch_does():
    with pytest.raises(ValueError, match="loc"):
        DiagonalNormal(torch.tensor([[math.nan]]), torch.zeros(1, 1), validate_args=True)
    q = DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match=r"event_shape|single"):
        q.log_prob(torch.zeros(2, 4))


# --- Parameters of normals ------------------------------------------------------------------------------------------


def test_parameters_of_independent_normals():
    mean, scale = torch.randn(4, 3), torch.rand(4, 3) + 0.1
    for d in (Normal(mean, scale), Independent(Independent(Normal(mean, scale), 1), 1)):
        parameters = diagonal_parameters(d)
        assert parameters is not None and all(p.dtype == F64 for p in parameters)
        assert close(parameters[0], mean.double()) and close(parameters[1], 2 * scale.double().log(), 20.0)
    for d in (Laplace(mean, scale), MultivariateNormal(mean, torch.eye(3))):
        assert diagonal_parameters(d) is None


def test_parameters_of_full_normals():
    factor = torch.randn(4, 3, 2, dtype=F64)
    d = LowRankMultivariateNormal(torch.randn(4, 3, dtype=F64), factor, torch.rand(4, 3, dtype=F64) + 0.1)
    parameters = full_parameters(d)
    assert parameters is not None
    covariance = factor @ factor.mT + torch.diag_embed(d.cov_diag)
    assert close(parameters[1] @ parameters[1].mT, covariance, 10.0) and close(parameters[0], d.loc)
    assert full_parameters(Normal(torch.zeros(4, 3), 1.0)) is None


# --- The terms of log p + H -----------------------------------------------------------------------------------------


def grid(*values):
    return torch.tensor(values, dtype=F64).reshape(-1, 1)


def bernoulli_entropy(d):
    p = (1 / (1 + torch.exp(-d.logits)) if "logits" in d.__dict__ else d.probs).numpy()
    return torch.from_numpy(stats.entropy(np.stack([p, 1 - p])))


def class_entropy(d):
    return torch.from_numpy(stats.entropy(d.logits.exp().numpy(), axis=-1))


def poisson_pseudo_entropy(d):
    """H + E[log h], both by summing over the support: -Σ p(x) (log p(x) + log x!)."""
    x = np.arange(400.0)[:, None, None]
    rate = d.rate.numpy()
    log_p = stats.poisson.logpmf(x, rate)
    log_factorial = torch.lgamma(torch.from_numpy(x) + 1).numpy()
    terms = np.where(log_p > -700, np.exp(log_p) * (np.where(log_p > -700, log_p, 0) + log_factorial), 0)
    return torch.from_numpy(-terms.sum(0))


CLASS_LOGITS = torch.tensor([[[0.0, 1.0, -2.0]], [[30.0, 0.0, -30.0]], [[-math.inf, 0.0, 1.0]]], dtype=F64)
# Distribution with two axes (B, factors), value, entropy by another route.
CASES = {
    "normal": (
        Normal(grid(0, 1, -2), grid(1, 0.01, 50)),
        grid(0.3, 1.02, 40),
        lambda d: torch.from_numpy(stats.norm(d.loc, d.scale).entropy()),
    ),
    "diagonal normal": (
        DiagonalNormal(grid(0, 1, -2), grid(0, -9, 5), event_dim=0),
        grid(0.3, 1.02, 40),
        lambda d: torch.from_numpy(stats.norm(d.mean, d.stddev).entropy()),
    ),
    "bernoulli by logits": (
        Bernoulli(logits=grid(0, 3, -3, 40, -40, 900, -900, 900)),
        grid(1, 0, 0, 1, 1, 1, 0, 0),
        bernoulli_entropy,
    ),
    "bernoulli by probabilities": (Bernoulli(probs=grid(0.5, 0.9, 1e-12)), grid(1, 0, 1), bernoulli_entropy),
    "laplace": (
        Laplace(grid(0, 1, -2), grid(1, 0.01, 50)),
        grid(0.3, 1.0, 40),
        lambda d: torch.from_numpy(stats.laplace(d.loc, d.scale).entropy()),
    ),
    "poisson": (Poisson(grid(0.001, 1, 8, 100, 3)), grid(0, 0, 5, 130, 3), poisson_pseudo_entropy),
    "poisson, rate 0": (
        Poisson(grid(0, 0), validate_args=False),
        grid(0, 0),
        lambda d: torch.zeros_like(d.rate),
    ),
    "categorical": (
        Categorical(logits=CLASS_LOGITS.repeat(2, 1, 1)),
        torch.tensor([[0], [0], [1], [2], [2], [2]]),
        class_entropy,
    ),
    "one hot": (
        OneHotCategorical(logits=CLASS_LOGITS),
        torch.eye(3, dtype=F64)[[1, 0, 2]].unsqueeze(1),
        class_entropy,
    ),
    "student t": (
        StudentT(grid(1, 3, 30), grid(0, 1, 2), grid(1, 0.1, 5)),
        grid(0.5, 1, -20),
        lambda d: torch.from_numpy(stats.t(d.df, d.loc, d.scale).entropy()),
    ),
    "exponential": (
        Exponential(grid(1, 0.01, 50)),
        grid(0.5, 10, 0.01),
        lambda d: torch.from_numpy(stats.expon(scale=1 / d.rate).entropy()),
    ),
}


def holds_together(terms, scale=1.0):
    """log_prob = residual - entropy + log_base up to rounding of these terms and of terms of size `scale`."""
    log_base = torch.zeros(()) if terms.log_base is None else terms.log_base
    parts = [terms.residual, -terms.entropy, log_base]
    scale = scale + sum(part.abs() for part in parts) + terms.log_prob.abs()
    return close(sum(parts), terms.log_prob, scale)


@pytest.mark.parametrize("name", CASES)
def test_terms_of_every_distribution(name):
    distribution, value, entropy = CASES[name]
    terms = factor_terms(distribution, value)
    expected = distribution.log_prob(value)
    assert close(terms.log_prob, expected, expected.abs() + 1)
    reference = entropy(distribution)
    # The brute sums and scipy's own formulas lose a few digits more than rounding.
    assert close(terms.entropy, reference, reference.abs() + 1, tolerance=1e-11)
    assert holds_together(terms, 1000.0 if "logits" in name else 1.0) and not terms.sampled
    assert (terms.log_base is not None) == name.startswith("poisson")
    assert (terms.squared_error is not None) == ("normal" in name)
    for term in (terms.log_prob, terms.entropy, terms.residual):
        assert term.dtype == F64 and torch.broadcast_shapes(term.shape, expected.shape) == expected.shape
    # Wrapping changes nothing.
    wrapped = factor_terms(Independent(Independent(distribution, 1), 0), value)
    assert close(wrapped.log_prob, terms.log_prob, expected.abs() + 1)
    assert close(wrapped.residual, terms.residual, expected.abs() + reference.abs() + 1)


def test_certain_bernoullis():
    # By probabilities, 0 · log 0 = 0; torch itself clamps p to [ε, 1 - ε], hence its log p = -36 for the impossible.
    p, x = grid(0, 0, 1, 1), grid(0, 1, 1, 0)
    terms = factor_terms(Bernoulli(probs=p), x)
    assert terms.log_prob.flatten().tolist() == [0, -math.inf, 0, -math.inf]
    assert terms.entropy.flatten().tolist() == [0, 0, 0, 0]
    assert terms.residual.flatten().tolist() == [0, -math.inf, 0, -math.inf]


def test_poisson_counts_at_rate_0_are_impossible():
    terms = factor_terms(Poisson(grid(0), validate_args=False), grid(2))
    assert float(terms.log_prob) == float(terms.residual) == -math.inf
    assert close(terms.log_base, grid(-math.log(2)))


def test_classes_excluded():
    d = Categorical(logits=torch.tensor([[-math.inf, 0.0, math.log(3)]], dtype=F64))
    assert float(factor_terms(d, torch.tensor([0])).log_prob) == -math.inf
    assert close(factor_terms(d, torch.tensor([2])).log_prob, [math.log(0.75)])
    assert close(factor_terms(d, torch.tensor([2])).entropy, [stats.entropy([0.25, 0.75])])


def test_float32_parameters_give_float64_terms():
    for d, x in [
        (Normal(torch.zeros(2, 3), torch.ones(2, 3)), torch.ones(2, 3)),
        (Bernoulli(logits=torch.ones(2, 3)), torch.ones(2, 3)),
        (Poisson(torch.ones(2, 3)), torch.ones(2, 3)),
        (Laplace(torch.ones(2, 3), torch.ones(2, 3)), torch.ones(2, 3)),
        (Categorical(torch.ones(2, 3, 4)), torch.ones(2, 3, dtype=torch.int32)),
        (StudentT(torch.full((2, 3), 3.0)), torch.ones(2, 3)),
    ]:
        terms = factor_terms(d, x)
        assert terms.log_prob.dtype == terms.entropy.dtype == terms.residual.dtype == F64


@given(
    location=st.floats(-1e3, 1e3),
    log_scale=st.floats(-20, 20),
    deviation=st.floats(-30, 30),
    count=st.integers(0, 1000),
    label=st.integers(0, 1),
)
@settings(max_examples=40)
def test_the_three_terms_belong_together(location, log_scale, deviation, count, label):
    scale = math.exp(log_scale)
    x = grid(location + scale * deviation)
    for d, value in [
        (Normal(grid(location), grid(scale)), x),
        (DiagonalNormal(grid(location), grid(2 * log_scale), event_dim=0), x),
        (Laplace(grid(location), grid(scale)), x),
        (StudentT(grid(2.5), grid(location), grid(scale)), x),
        (Exponential(grid(scale)), grid(abs(deviation) / scale)),
        (Poisson(grid(scale)), grid(count)),
        (Bernoulli(logits=grid(location / 50)), grid(label)),
        (Bernoulli(probs=torch.sigmoid(grid(deviation))), grid(label)),
        (Categorical(logits=torch.tensor([[[deviation, 0.0]]], dtype=F64)), torch.tensor([[label]])),
    ]:
        terms = factor_terms(d, value)
        expected = d.log_prob(value)
        assert holds_together(terms, 1 + abs(location)), d
        # Neither route knows (x - location)/scale better than x is rounded, relative to the scale.
        lost = 1e-15 * abs(location) / scale * (1 + deviation**2)
        assert close(terms.log_prob, expected, expected.abs() + terms.entropy.abs() + 1 + lost / TIGHT), d


def test_the_residual_is_zero_on_average_where_the_model_is_right():
    bernoulli = Bernoulli(logits=grid(0.7, -2).expand(2, 2))
    x = grid(0, 1).T.expand(2, 2)
    p = bernoulli.log_prob(x).exp()
    assert close((p * factor_terms(bernoulli, x).residual).sum(1), torch.zeros(2), 1.0)
    poisson = Poisson(torch.full((1, 200), 7.3, dtype=F64))
    counts = torch.arange(200.0, dtype=F64)[None]
    weighted = torch.from_numpy(stats.poisson.pmf(counts, 7.3)) * factor_terms(poisson, counts).residual
    assert close(weighted.sum(), 0.0, weighted.abs().sum())
    for d in (
        Normal(torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64)),
        Laplace(torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64)),
        StudentT(torch.tensor(4.0, dtype=F64)),
    ):

        def integrand(x, d=d):
            x = torch.tensor([x], dtype=F64)
            return float(d.log_prob(x).exp() * factor_terms(d.expand((1,)), x).residual)

        halves = [integrate.quad(integrand, a, b)[0] for a, b in ((-math.inf, 0.5), (0.5, math.inf))]
        assert abs(sum(halves)) < 1e-6


def mixture(rows):
    weights = torch.tensor([0.3, 0.7], dtype=F64).expand(rows, 1, 2)
    means = torch.tensor([-2.0, 1.0], dtype=F64).expand(rows, 1, 2)
    return MixtureSameFamily(Categorical(weights), Normal(means, torch.full_like(means, 0.8)))


def test_an_entropy_without_closed_form_is_a_flagged_unbiased_estimate():
    num = 4000
    torch.manual_seed(0)
    terms = factor_terms(mixture(num), torch.zeros(num, 1, dtype=F64))

    def minus_p_log_p(x):
        log_p = float(mixture(1).log_prob(torch.tensor([[x]], dtype=F64)))
        return -math.exp(log_p) * log_p

    entropy = integrate.quad(minus_p_log_p, -10, 10)[0]
    assert terms.sampled and holds_together(terms) and terms.entropy.shape == (num, 1)
    assert abs(float(terms.entropy.mean()) - entropy) < 4 * float(terms.entropy.std()) / num**0.5


def test_a_transformed_distribution_has_a_sampled_entropy():
    num = 4000
    base = Normal(torch.zeros(num, 2, dtype=F64), 0.5 * torch.ones(num, 2, dtype=F64))
    squashed = TransformedDistribution(base, [transforms.AffineTransform(1.0, -3.0)])
    torch.manual_seed(0)
    x = squashed.sample()
    terms = factor_terms(squashed, x)
    assert terms.sampled and holds_together(terms)
    assert close(terms.log_prob, stats.norm(1.0, 1.5).logpdf(x), 100.0)
    error = float(terms.entropy.std()) / (2 * num) ** 0.5
    assert abs(float(terms.entropy.mean()) - stats.norm(1.0, 1.5).entropy()) < 4 * error


def test_terms_for_a_distribution_of_ones_own():
    class Shifted(Laplace):
        pass

    @factor_terms.register
    def _(distribution: Shifted, value: torch.Tensor):
        return factor_terms(Laplace(distribution.loc + 1, distribution.scale), value)

    d = Shifted(grid(0), grid(1))
    assert close(factor_terms(Independent(d, 1), grid(1)).log_prob, grid(-math.log(2)))


# What tests check annotations for, users meet as these errors.
unchecked = inspect.unwrap

# --- Shapes at the boundary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distribution",
    [
        Normal(torch.zeros(4, 2, 3), torch.ones(4, 2, 3)),
        Independent(Normal(torch.zeros(4, 2, 3), torch.ones(4, 2, 3)), 1),
        Independent(Normal(torch.zeros(4, 2, 3), torch.ones(4, 2, 3)), 2),
        DiagonalNormal(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3), event_dim=0),
        MultivariateNormal(torch.zeros(4, 2, 3), torch.eye(3)),
        OneHotCategorical(torch.ones(4, 2, 3)),
    ],
)
def test_trailing_batch_axes_become_the_event(distribution):
    rows = as_batch(distribution, 4, "posterior(x)")
    assert rows.batch_shape == (4,) and rows.event_shape == (2, 3)
    x = distribution.sample()
    assert close(rows.log_prob(x), distribution.log_prob(x).reshape(4, -1).sum(1), 1000.0, tolerance=1e-6)


def test_a_distribution_with_one_batch_axis_is_left_as_it_is():
    d = MultivariateNormal(torch.zeros(4, 3), torch.eye(3))
    assert as_batch(d, 4, "posterior(x)") is d
    assert as_batch(Normal(torch.zeros(4), 1.0), 4, "posterior(x)").event_shape == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(4, 2), r"likelihood\(z\) returned Tensor, expected a torch\.distributions"),
        ((torch.zeros(4, 2), torch.zeros(4, 2)), r"returned tuple.*from_functions"),
        (Normal(0.0, 1.0), r"batch_shape \(\) and event_shape \(\) for 4 rows, expected batch_shape \(4,\)"),
        (Normal(torch.zeros(5, 4, 2), 1.0), r"batch_shape \(5, 4, 2\).*no sample axis"),
        (Independent(Normal(torch.zeros(4, 2), 1.0), 2), r"batch_shape \(\) and event_shape \(4, 2\)"),
    ],
)
def test_what_is_no_distribution_of_rows_is_refused(given, words):
    with pytest.raises(ModelError, match=words) as caught:
        unchecked(as_batch)(given, 4, "likelihood(z)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("latent_shape", [(3,), (2, 2, 2), (4,)])
@pytest.mark.parametrize("family", [Normal, Laplace])
def test_priors_take_the_posteriors_shape(latent_shape, family):
    ones = torch.ones(latent_shape)
    shapes = [family(0.0, 1.0), family(0 * ones, ones), Independent(family(0 * ones, ones), 1)]
    shapes.append(Independent(family(0 * ones, ones), len(latent_shape)))
    for d in shapes:
        prior = as_prior(d, 4, torch.Size(latent_shape))
        assert prior.batch_shape == () and prior.event_shape == latent_shape
        assert close(prior.log_prob(ones), family(0 * ones, ones).log_prob(ones).sum(), 100.0, tolerance=1e-6)
    rows = family(torch.zeros(5, *latent_shape), 1.0)
    prior = as_prior(rows, 5, torch.Size(latent_shape))
    assert prior.batch_shape == (5,) and prior.event_shape == latent_shape


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (torch.zeros(3), r"prior\(\) returned Tensor"),
        (Normal(torch.zeros(2), 1.0), r"batch_shape \(2,\) and event_shape \(\), expected event_shape \(3,\)"),
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), r"event_shape \(2,\), expected event_shape \(3,\)"),
        (Normal(torch.zeros(6, 3), 1.0), r"batch_shape \(6, 3\)"),
    ],
)
def test_priors_of_another_shape_are_refused(prior, words):
    with pytest.raises(ModelError, match=words) as caught:
        unchecked(as_prior)(prior, 4, torch.Size((3,)))
    assert "\n" not in str(caught.value)


def test_scalar_latents_need_no_event():
    prior = as_prior(Normal(0.0, 1.0), 4, torch.Size(()))
    assert isinstance(prior, Distribution) and prior.event_shape == prior.batch_shape == ()
