"""Missing values: every read-out is that of the observed ones, by loops over them, closed forms and derivatives."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from vaentropy.calibration import calibrate, optimal_factors
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import DataError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo
from vaentropy.likelihoods import Gaussian
from vaentropy.model import from_functions
from vaentropy.options import check_options
from vaentropy.results import Evaluation
from vaentropy.studies.stationary import descend
from vaentropy.vae import VAE

from .models import F64, LIKELIHOODS, NORMAL_LIKELIHOODS, Recording, Toy, as_torch, base_of, close, nodes_of

seeds = st.integers(0, 2**31)
FROZEN = Frozen(4, 5)
FACTORISING = [name for name in LIKELIHOODS if name not in ("full normal", "one hot")]
SCALARS = ("elbo", "reconstruction", "kl", "log_base", "entropy_sum", "gap", "prior_gap", "decoder_gap")


def holes(x, generator, probability=0.3):
    """`x` in float64 with NaN at random places, but not everywhere."""
    observed = torch.rand(x.shape, generator=generator) > probability
    observed.view(-1)[0] = True
    return torch.where(observed, x.to(F64), math.nan)


def weights_for(num_points, generator):
    return torch.rand(num_points, generator=generator, dtype=F64) + 0.1


def mean_over_points(values, w):
    """Σ w x / Σ w over the first axis."""
    return torch.tensordot(w / w.sum(), values, 1)


def by_loops(model, x, z, node_weights):
    """Terms per data point from torch.distributions, adding up one observed number after the other.

    `residuals`, `ratios` and `errors` are (N, D), 0 where a value is missing.
    """
    num_points, num_features = x.shape
    terms = {name: torch.zeros(num_points, dtype=F64) for name in ("reconstruction", "decoder_entropy", "log_base")}
    terms |= {name: torch.zeros(x.shape, dtype=F64) for name in ("residuals", "ratios", "errors")}
    for weight, z_k in zip(node_weights.tolist(), z, strict=True):
        for n in range(num_points):
            # The row alone, so that no other can mix in.
            p = base_of(as_torch(model.likelihood(z_k[n : n + 1])))
            for d in range(num_features):
                if math.isnan(float(x[n, d])):
                    continue
                one = torch.full((1, num_features), float(x[n, d]), dtype=F64)
                log_p = float(p.log_prob(one)[0, d])
                if isinstance(p, torch.distributions.Poisson):
                    rate = float(p.rate[0, d])
                    entropy, log_base = rate - rate * math.log(rate), -math.lgamma(float(x[n, d]) + 1)
                else:
                    entropy, log_base = float(p.entropy().expand(1, num_features)[0, d]), 0.0
                terms["reconstruction"][n] += weight * log_p
                terms["decoder_entropy"][n] += weight * entropy
                terms["log_base"][n] += weight * log_base
                terms["residuals"][n, d] += weight * (log_p + entropy - log_base)
                if isinstance(p, Normal):
                    error = (float(x[n, d]) - float(p.mean[0, d])) ** 2
                    terms["errors"][n, d] += weight * error
                    terms["ratios"][n, d] += weight * error / float(p.variance.expand(1, num_features)[0, d])
    return terms


def size(e):
    """The sum of the absolute terms."""
    h = e.entropies
    parts = (e.reconstruction, e.kl, h.encoder, h.prior, h.decoder, e.log_base, e.prior_gap, e.decoder_gap)
    return sum(abs(part) for part in parts) + 1


def gain(ratio):
    return 0.5 * (ratio - 1 - ratio.log())


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("likelihood", FACTORISING)
@given(seed=seeds, num_points=st.integers(2, 7), weighted=st.booleans(), batch_size=st.sampled_from([2, 100]))
@settings(max_examples=4)
def test_every_term_is_a_sum_over_observed_values(posterior, likelihood, seed, num_points, weighted, batch_size):
    model = Toy(seed, posterior, likelihood)
    x = holes(model.data(num_points), model.generator)
    observed, w = ~x.isnan(), weights_for(num_points, model.generator)
    w = w if weighted else torch.ones_like(w)
    options = {"missing": "ignore", "batch_size": batch_size}
    e = evaluate(model, x, expectation=FROZEN, sample_weight=w if weighted else None, pointwise=True, **options)
    nodes = nodes_of(FROZEN, num_points, (2,))
    q = model.posterior(torch.where(observed, x, 0.0))
    scale_tril = torch.linalg.cholesky(q.covariance_matrix) if posterior == "full" else torch.diag_embed(q.stddev)
    z = q.mean + torch.einsum("nij,kxj->kni", scale_tril, nodes.noise)
    expected, scale = by_loops(model, x, z, nodes.weights), size(e) + 10 * float(observed.sum())
    # Student's t has no closed entropy in some versions of torch, so that its parts are estimates.
    exact = "decoder" not in e.sampled
    names = ("reconstruction", "decoder_entropy", "log_base") if exact else ("reconstruction", "log_base")
    for name in names:
        assert name not in e.pointwise or close(e.pointwise[name], expected[name], scale), name
        read = e.entropies.decoder if name == "decoder_entropy" else getattr(e, name)
        assert close(read, mean_over_points(expected[name], w), scale), name
    assert close(e.elbo, mean_over_points(expected["reconstruction"], w) - e.kl, scale)
    if exact:
        assert close(e.decoder_residuals, mean_over_points(expected["residuals"], w), scale)
    # The identity, for each data point too.
    assert close(e.gap, e.elbo - e.entropy_sum, size(e)) and close(e.gap, e.prior_gap + e.decoder_gap, size(e))
    each = e.pointwise
    assert close(each["gap"], each["elbo"] - each["entropy_sum"], scale)
    assert e.decoder_residuals is not None and close(e.decoder_residuals.sum(), e.decoder_gap, size(e))
    counts = torch.einsum("n,nd->d", w, observed.to(F64))
    fraction = counts / w.sum()
    assert (e.observed_fraction is None) == bool(observed.all())
    assert e.observed_fraction is None or close(e.observed_fraction, fraction)
    assert (e.optimal_variance is not None) == (likelihood in NORMAL_LIKELIHOODS)
    if e.optimal_variance is None:
        return
    assert e.variance_kind == likelihood.removeprefix("normal, ").replace(" ", "_")
    error, ratio = (torch.einsum("n,nd->d", w, expected[name]) for name in ("errors", "ratios"))
    assert close(e.optimal_variance, error.sum() / counts.sum(), scale)
    assert close(e.variance_ratio, ratio.sum() / counts.sum(), scale)
    assert close(e.gains.variance, fraction.sum() * gain(ratio.sum() / counts.sum()), scale)
    seen = counts > 0
    assert close(e.optimal_feature_variance[seen], (error / counts)[seen], scale)
    assert close(e.gains.feature_variance[seen], (fraction * gain(ratio / counts))[seen], scale)
    assert close(e.gains.feature_variance[~seen], torch.zeros(int((~seen).sum()), dtype=F64), 1.0)
    factor, _ = optimal_factors(e, per_feature=True)
    assert close(factor, torch.where(seen, ratio / counts, 1.0), scale)
    assert close(optimal_factors(e, per_feature=False)[0], ratio.sum() / counts.sum(), scale)


W = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1], [0.6, 0.1]], dtype=F64)
V = torch.tensor([[0.5, -0.2, 0.1, 0.2], [0.1, 0.3, -0.4, 0.0]], dtype=F64)
TAU2 = torch.tensor([0.4, 0.7], dtype=F64)
SIGMA2 = torch.tensor([0.4, 3.0, 0.6, 1.3], dtype=F64)


def linear_data(num_points=40, probability=0.35):
    generator = torch.Generator().manual_seed(3)
    return holes(1.5 * torch.randn((num_points, 4), generator=generator, dtype=F64), generator, probability)


def test_a_linear_model_in_closed_form():
    model = from_functions(
        lambda x: (x @ V.T, TAU2.log().expand(len(x), 2)),
        lambda z: z @ W.T,
        variance=SIGMA2,
    )
    x = linear_data()
    e = evaluate(model, x, missing="ignore", expectation=GaussHermite(2), batch_size=7)
    observed, filled = ~x.isnan(), x.nan_to_num(0.0)
    # E_q (x_d - W_d z)² = (x_d - W_d ν)² + Σ_h W_dh² τ_h², for each observed d.
    error = (filled - filled @ V.T @ W.T) ** 2 + (W**2 * TAU2).sum(1)
    reconstruction = sum(
        -0.5 * (math.log(2 * math.pi * SIGMA2[d]) + float(error[n, d]) / float(SIGMA2[d]))
        for n, d in observed.nonzero().tolist()
    ) / len(x)
    second = ((filled @ V.T) ** 2 + TAU2).mean(0)
    kl = float(0.5 * (second - 1 - TAU2.log()).sum())
    scale = abs(reconstruction) + kl
    assert close(e.reconstruction, reconstruction, scale) and close(e.elbo, reconstruction - kl, scale)
    assert close(e.optimal_feature_variance, torch.stack([error[observed[:, d], d].mean() for d in range(4)]), scale)
    assert close(e.optimal_variance, error[observed].mean(), scale)
    assert close(e.variance_ratio, (error / SIGMA2)[observed].mean(), scale)


def test_with_the_exact_posterior_it_is_the_likelihood_of_the_observed_values():
    x = linear_data()
    x[5] = math.nan  # a point of which nothing is known has log-likelihood 0

    def bind(batch):
        observed = (~batch.isnan()).to(F64)
        precision = torch.eye(2, dtype=F64) + torch.einsum("nd,dh,dk->nhk", observed / SIGMA2, W, W)
        covariance = torch.linalg.inv(precision)

        def encode(filled):
            return MultivariateNormal(
                torch.einsum("nhk,dk,nd->nh", covariance, W, filled / SIGMA2), covariance, validate_args=False
            )

        return from_functions(encode, lambda z: z @ W.T, variance=SIGMA2), batch

    e = evaluate(bind(x)[0], x, bind=bind, missing="ignore", expectation=GaussHermite(2), batch_size=9, pointwise=True)
    covariance = (W @ W.T + torch.diag(SIGMA2)).numpy()
    for n in range(len(x)):
        seen = (~x[n].isnan()).numpy()
        expected = (
            stats.multivariate_normal(cov=covariance[seen][:, seen]).logpdf(x[n].numpy()[seen]) if seen.any() else 0.0
        )
        assert close(e.pointwise["elbo"][n], expected, 30.0), n


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_a_feature_that_is_never_observed_is_as_if_it_were_not_there(likelihood):
    model, keep = Toy(1, likelihood=likelihood), [0, 2]
    x = model.data(12)
    x[:, 1] = math.nan

    def without(z):
        p = base_of(as_torch(model.likelihood(z)))
        return Normal(p.mean[:, keep], p.stddev.expand(p.mean.shape)[:, keep])

    smaller = from_functions(lambda y: model.posterior(torch.stack([y[:, 0], 0 * y[:, 0], y[:, 1]], 1)), without)
    options = {"missing": "ignore", "expectation": MonteCarlo(4)}
    e, other = evaluate(model, x, **options), evaluate(smaller, x[:, keep], **options)
    for one, two in ((e, other), (e.stderr, other.stderr), (e.mc_stderr, other.mc_stderr)):
        near = 1e-12 if one is e else 1e-8  # an error is the root of rounding errors
        for name in (*SCALARS, "optimal_variance", "variance_ratio"):
            assert close(getattr(one, name), getattr(two, name), size(e), near), name
        assert close(one.gains.variance, two.gains.variance, size(e), near)
        for name in ("decoder_residuals", "optimal_feature_variance", "feature_gains"):
            assert close(read(one)[name][keep], read(two)[name], size(e), near), name
    # Of the feature itself: nothing to gain, σ² as it is, and no NaN in values or errors.
    assert e.decoder_residuals[1] == e.gains.feature_variance[1] == e.stderr.gains.feature_variance[1] == 0
    if likelihood == "normal, shared":
        assert close(e.optimal_feature_variance[1], math.exp(-0.7))
    assert optimal_factors(e, per_feature=True)[0][1] == 1
    text = json.dumps(e.to_dict(), allow_nan=False)
    assert json.loads(text)["observed_fraction"] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
@pytest.mark.parametrize("per_feature", [None, True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibrating_reaches_the_entropy_sum_and_gains_what_was_announced(likelihood, per_feature, weighted):
    model = Toy(2, "diagonal", likelihood, "learned", data_shape=(4,))
    x = holes(model.data(15), model.generator, 0.4)
    x[:, 2] = math.nan
    options = {"expectation": FROZEN, "missing": "ignore", "batch_size": 6}
    options |= {"sample_weight": weights_for(15, model.generator)} if weighted else {}
    before = evaluate(model, x, **options)
    calibrated = calibrate(model, x, per_feature=per_feature, **options)
    after, scale = evaluate(calibrated, x, **options), size(before)
    each = likelihood != "normal, shared" if per_feature is None else per_feature
    announced = before.gains.feature_variance.sum() if each else before.gains.variance
    assert close(after.elbo, before.elbo + announced + before.gains.prior_variance.sum(), scale)
    assert close(after.elbo, after.entropy_sum, scale)
    assert close(after.prior_gap, 0.0, scale) and close(after.decoder_gap, 0.0, scale)
    assert close(after.variance_ratio, 1.0, scale) and close(after.gains.variance, 0.0, scale)
    if each:
        assert close(after.decoder_residuals, [0.0] * 4, scale) and calibrated.variance_factor[2] == 1
        assert close(after.gains.feature_variance, [0.0] * 4, scale)
    # Of the same shared σ² the announced optimum is the one that is set.
    if before.variance_kind == "shared" and not each:
        variance = calibrated.likelihood(torch.zeros(1, 2, dtype=F64)).variance[0, 0]
        assert close(variance, before.optimal_variance, scale)


@pytest.mark.parametrize("variance", ["shared", "per_feature", "function"])
def test_the_theorem_holds_for_observed_values(variance):
    # At a stationary point of the ELBO of observed values it is the entropy sum, each residual as it should be.
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Identity())
    model = VAE(*layers, data_shape=4, latent_dim=1, decoder_features=1, likelihood=Gaussian(variance)).double()
    x = torch.randn(60, 1, dtype=F64) @ torch.randn(1, 4, dtype=F64) + 0.5 * torch.randn(60, 4, dtype=F64)
    observed, expectation = torch.rand(60, 4) > 0.3, Frozen(1, 8)
    nodes = nodes_of(expectation, 60, (1,))
    filled = torch.where(observed, x, 0.0)

    def loss():
        return -model.elbo_terms(filled, nodes.noise, nodes.weights, observed=observed).elbo.mean()

    assert descend(loss, list(model.parameters())).gradient_norm < 1e-8
    e = evaluate(model, torch.where(observed, x, math.nan), missing="ignore", expectation=expectation)
    assert close(e.elbo, e.entropy_sum, size(e), 1e-7) and close(e.prior_gap, 0.0, 1.0, 1e-7)
    assert close(e.decoder_gap, 0.0, 1.0, 1e-7)
    assert variance == "shared" or close(e.decoder_residuals, [0.0] * 4, 1.0, 1e-7)


# --- Errors of the estimates ------------------------------------------------------------------------------------------


def pointwise_ratios(model, x, expectation):
    """(x - μ)²/σ² and (x - μ)², (K, N, D) each, 0 where a value is missing."""
    recording, observed = Recording(model), ~x.isnan()
    evaluate(recording, x, missing="ignore", expectation=expectation)
    px = [as_torch(model.likelihood(z)) for z in recording.z]
    errors = torch.stack([torch.where(observed, (x - p.mean) ** 2, 0.0) for p in px])
    return errors / torch.stack([p.variance for p in px]), errors


def statistics(ratio, error, observed, w):
    """The read-outs as functions of data and weights alone, with gradients."""
    count, total = torch.einsum("n,nd->d", w, observed), w.sum()
    rho_d, rho = torch.einsum("n,nd->d", w, ratio) / count, (w @ ratio.sum(1)) / count.sum()
    return {
        "decoder_residuals": count / total * 0.5 * (1 - rho_d),
        "feature_gains": count / total * gain(rho_d),
        "gain": count.sum() / total * gain(rho),
        "variance_ratio": rho,
        "optimal_variance": (w @ error.sum(1)) / count.sum(),
        "optimal_feature_variance": torch.einsum("n,nd->d", w, error) / count,
    }


def read(terms):
    names = ("decoder_residuals", "variance_ratio", "optimal_variance", "optimal_feature_variance")
    return {name: getattr(terms, name) for name in names} | {
        "feature_gains": terms.gains.feature_variance,
        "gain": terms.gains.variance,
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_errors_are_those_of_the_infinitesimal_jackknife(likelihood, weighted):
    # By derivatives of each read-out: to a point's weight for the population, to a point's noise for these data.
    model, expectation = Toy(6, likelihood=likelihood), MonteCarlo(5)
    x = holes(model.data(60), model.generator)
    w = weights_for(60, model.generator) if weighted else torch.ones(60, dtype=F64)
    e = evaluate(model, x, missing="ignore", expectation=expectation, sample_weight=w if weighted else None)
    (ratios, errors), observed = pointwise_ratios(model, x, expectation), (~x.isnan()).to(F64)
    ratio, error = (values.mean(0).requires_grad_() for values in (ratios, errors))
    leaf = w.clone().requires_grad_()
    values = statistics(ratio, error, observed, leaf)
    found, population, noise = read(e), read(e.stderr), read(e.mc_stderr)

    def factor(weights):
        n = weights.sum(0) ** 2 / weights.square().sum(0)
        return n / (n - 1)

    # A mean over observed values has as many points as it has observed values.
    corrections = {
        "optimal_feature_variance": factor(w[:, None] * observed),
        "optimal_variance": factor(w * observed.mean(1)),
        "variance_ratio": factor(w * observed.mean(1)),
    }
    count = torch.einsum("n,nd->d", w, observed)
    for name, value in values.items():
        assert close(found[name], value.detach(), 10.0), name
        for d in range(value.numel()):
            one = value.reshape(-1)[d]
            by_weight, by_ratio, by_error = torch.autograd.grad(
                one, [leaf, ratio, error], retain_graph=True, allow_unused=True
            )
            correction = torch.as_tensor(corrections.get(name, factor(w)), dtype=F64).reshape(-1)
            squared = (w * by_weight).square().sum() * (correction[d] if correction.numel() > 1 else correction[0])
            moved = torch.zeros(5, 60, dtype=F64)
            for slope, draws in ((by_ratio, ratios), (by_error, errors)):
                if slope is not None:
                    moved = moved + (slope * (draws - draws.mean(0))).sum(2)
            mc_squared = (moved.square().sum(0) / (5 * 4)).sum()
            for first, errors_of, which in ((squared, population, e.stderr), (mc_squared, noise, e.mc_stderr)):
                second = 0.0
                # To second order: ½ f (ρ'' of the gain) times the square of a normal with the ratio's error.
                if name == "gain":
                    second = 3 * count.sum() / (3 * w.sum()) * 0.5 / e.variance_ratio**2 * which.variance_ratio**2
                elif name == "feature_gains":
                    rho, f = float(1 - 2 * e.decoder_residuals[d] * w.sum() / count[d]), count[d] / w.sum()
                    spread = ratio_error(ratios, observed, w, d, rho, which is e.mc_stderr)
                    second = f * 0.5 / rho**2 * spread**2
                expected = (first + 0.5 * second**2) ** 0.5
                got = torch.as_tensor(errors_of[name], dtype=F64).reshape(-1)[d]
                assert close(got, expected, tolerance=1e-9), (name, d)


def ratio_error(ratios, observed, w, d, rho, monte_carlo):
    """Error of the ratio of one feature over the points that have it."""
    seen = observed[:, d] > 0
    r, weights = ratios[:, seen, d], w[seen]
    if monte_carlo:
        return float((weights.square() * r.var(0) / len(r)).sum().sqrt() / weights.sum())
    n = weights.sum() ** 2 / weights.square().sum()
    squares = (weights.square() * (r.mean(0) - rho).square()).sum()
    return float((squares * n / (n - 1)).sqrt() / weights.sum())


def test_an_error_covers_the_number_of_observed_values():
    # Repeated draws of points and of what is missing scatter as `stderr` says.
    generator, gains, errors = torch.Generator().manual_seed(8), [], []
    model = from_functions(lambda x: (x @ V.T, TAU2.log().expand(len(x), 2)), lambda z: z @ W.T, variance=SIGMA2)
    for _ in range(200):
        x = holes(1.5 * torch.randn((400, 4), generator=generator, dtype=F64), generator, 0.6)
        x[torch.rand(400, generator=generator) < 0.5, 1:] = math.nan  # features go missing together
        e = evaluate(model, x, missing="ignore", expectation=GaussHermite(2))
        gains.append(torch.cat([torch.tensor([e.gains.variance], dtype=F64), e.gains.feature_variance]))
        error = e.stderr.gains
        errors.append(torch.cat([torch.tensor([error.variance], dtype=F64), error.feature_variance]))
    scatter, said = torch.stack(gains).std(0), torch.stack(errors).square().mean(0).sqrt()
    assert bool(((said / scatter - 1).abs() < 0.2).all()), (said, scatter)


# --- Weights, batches, parts ------------------------------------------------------------------------------------------


def flat(e):
    return {**{name: getattr(e, name) for name in SCALARS}, **read(e), "fraction": e.observed_fraction}


def test_whole_numbers_as_weights_repeat_rows():
    model, counts = Toy(3, likelihood="normal, function"), torch.tensor([1, 2, 5, 0, 3, 1])
    x = holes(model.data(6), model.generator)
    options = {"expectation": FROZEN, "missing": "ignore"}
    weighted = evaluate(model, x, sample_weight=counts, **options)
    repeated = evaluate(model, x.repeat_interleave(counts, 0), **options)
    one, two = flat(weighted), flat(repeated)
    assert all(close(one[name], two[name], size(weighted)) for name in one)


@pytest.mark.parametrize("likelihood", ["normal, function", "poisson"])
@given(seed=seeds, cuts=st.sets(st.integers(1, 10), max_size=4))
@settings(max_examples=10)
def test_evaluations_of_any_parts_merge_into_the_whole(likelihood, seed, cuts):
    model = Toy(seed, likelihood=likelihood)
    x, w = holes(model.data(11), model.generator, 0.2), weights_for(11, model.generator)
    x[:4] = x[:4].nan_to_num(1.0)  # parts without missing values, and features that some parts never have
    x[5:, 1], x[0, 1], x[:, 2] = math.nan, 2.0, 1.0
    whole = evaluate(model, x, expectation=FROZEN, sample_weight=w, missing="ignore", batch_size=3)
    parts = [
        evaluate(model, a, expectation=FROZEN, sample_weight=b, missing="ignore" if bool(a.isnan().any()) else "error")
        for a, b in zip(*(part.tensor_split(sorted(cuts)) for part in (x, w)), strict=True)
    ]
    merged, scale = Evaluation.merge(parts), 10 * (size(whole) + 10)
    for first, second in ((merged, whole), (merged.stderr, whole.stderr)):
        near = 1e-12 if first is merged else 1e-9
        for name in SCALARS:
            assert close(getattr(first, name), getattr(second, name), scale, near), name
        names = read(second) if likelihood != "poisson" else {"decoder_residuals": second.decoder_residuals}
        for name, number in names.items():
            number = torch.as_tensor(number, dtype=F64)
            same = close(read(first)[name], number, scale + number.abs(), near)
            assert same or torch.equal(torch.as_tensor(read(first)[name], dtype=F64).isnan(), number.isnan()), name
    assert close(merged.observed_fraction, whole.observed_fraction)


def test_nothing_missing_is_as_before():
    for likelihood in ("normal, function", "full normal", "one hot"):
        model = Toy(0, likelihood=likelihood)
        x, w = model.data(9), weights_for(9, model.generator)
        one, two = (
            evaluate(model, x, missing=missing, sample_weight=w, batch_size=4, pointwise=True)
            for missing in ("error", "ignore")
        )
        assert one.to_dict() == two.to_dict() and two.observed_fraction is None and "missing" not in str(two)
        assert all(torch.equal(one.pointwise[name], two.pointwise[name]) for name in one.pointwise)


def test_images_and_numbers():
    for data_shape in ((1, 4, 4), ()):
        for likelihood in ("normal, shared", "bernoulli"):
            model = Toy(3, likelihood=likelihood, data_shape=data_shape) if data_shape else numbers_model(likelihood)
            generator = torch.Generator().manual_seed(0)
            x = holes(torch.randint(2, (20, *data_shape), generator=generator), generator)
            e = evaluate(model, x, missing="ignore", expectation=GaussHermite(2))
            assert close(e.gap, e.elbo - e.entropy_sum, size(e))
            assert close(e.observed_fraction, (~x.isnan()).to(F64).mean(0))
            assert e.decoder_residuals is None or close(e.decoder_residuals.sum(), e.decoder_gap, size(e))
            assert (e.decoder_residuals is None) == (data_shape == ())


def numbers_model(likelihood):
    def decode(z):
        return DiagonalNormal(z, torch.zeros(()), event_dim=0) if "normal" in likelihood else bernoulli(z)

    def bernoulli(z):
        return torch.distributions.Bernoulli(logits=z)

    return from_functions(lambda x: Normal(x.to(F64), 1.0), decode)


# --- What is said -----------------------------------------------------------------------------------------------------


def test_the_ledger_says_how_much_is_missing():
    model = Toy(0)
    x = model.data(20)
    x[:5, 1] = math.nan
    text = str(evaluate(model, x, missing="ignore"))
    assert "8.33% of the values are missing, at most 25.00% of one feature" in text and "never" not in text
    x[:, 2] = math.nan
    assert "at most 100.00% of one feature; never observed: 1 of 3 features" in str(
        evaluate(model, x, missing="ignore")
    )


def nan_at(row, x):
    x = x.to(F64).clone()
    x[row].view(-1)[0] = math.nan
    return x


def infinite():
    x = nan_at(0, Toy(0).data(5))
    x[3, 1] = -math.inf
    return x


WRONG = {
    "missing": (
        lambda: evaluate(Toy(0), nan_at(3, Toy(0).data(5))),
        DataError,
        r'row 3, column 0 .* is nan .*; drop or impute it, or leave NaN out by missing="ignore"',
    ),
    "infinite": (
        lambda: evaluate(Toy(0), infinite(), missing="ignore"),
        DataError,
        r"row 3, column 1 .* is -inf .*; drop or impute it$",
    ),
    "another word": (
        # Not through evaluate, whose annotations are checked under the tests.
        lambda: check_options("eval", "drop"),
        UsageError,
        "missing='drop' given, expected 'error' or 'ignore'",
    ),
    "nothing observed": (
        lambda: evaluate(Toy(0), torch.full((5, 3), math.nan, dtype=F64), missing="ignore"),
        DataError,
        "every value is missing",
    ),
    "a likelihood with full covariance": (
        lambda: evaluate(m := Toy(0, likelihood="full normal"), nan_at(4, m.data(5)), missing="ignore", batch_size=2),
        UnsupportedError,
        "likelihood that does not factorise over the features.*; impute the values",
    ),
    "one-hot": (
        lambda: evaluate(m := Toy(0, likelihood="one hot"), nan_at(4, m.data(5)), missing="ignore"),
        UnsupportedError,
        "does not factorise",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_given_in_one_line(name):
    call, kind, words = WRONG[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
