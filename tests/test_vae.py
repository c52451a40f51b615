"""VAE-0 to VAE-3: the same numbers as torch.distributions gives, the moves of the theorem, and what a user does."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Antithetic, Frozen, GaussHermite, MonteCarlo
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian, GaussianHead, Head, Poisson
from vaentropy.model import LatentVariableModel
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.training.step import training_step
from vaentropy.vae import VAE, LearnedNormal, StandardNormal

from .models import F64, as_torch, base_of, close, draws, magnitude, nodes_of, reference

D, H = 5, 2


def mlp(likelihood, data_shape=D, **options):
    return VAE(
        MLPEncoder(data_shape, (6, 4)),
        MLPDecoder((4, 6)),
        data_shape=data_shape,
        latent_dim=H,
        likelihood=likelihood,
        **options,
    )


def conv(data_shape, likelihood, channels=(2, 3), **options):
    return VAE(
        ConvEncoder(data_shape, channels),
        ConvDecoder(data_shape, channels[::-1]),
        data_shape=data_shape,
        latent_dim=H,
        likelihood=likelihood,
        **options,
    )


MODELS = {
    "VAE-0": lambda: vae0(D, H, (6, 4), variance=0.5),
    "VAE-1": lambda: vae1(D, H, (6, 4)),
    "VAE-2": lambda: vae2(D, H, (6, 4)),
    "VAE-2 with a penalty": lambda: vae2(D, H, (6, 4), columns="penalty"),
    "VAE-3": lambda: vae3(D, H, (6, 4)),
    "VAE-3, learned prior": lambda: mlp(Gaussian("function"), prior=LearnedNormal(), columns="unit"),
    "per feature": lambda: mlp(Gaussian("per_feature")),
    "Bernoulli": lambda: mlp(Bernoulli()),
    "Bernoulli, learned prior": lambda: mlp(Bernoulli(), prior=LearnedNormal(), columns="unit"),
    "Poisson": lambda: mlp(Poisson()),
    "images of 28×28": lambda: conv((1, 28, 28), Bernoulli()),
    "images of 27×21": lambda: conv((1, 27, 21), Gaussian()),
    "images of 27×21, three layers": lambda: conv((1, 27, 21), Gaussian("per_feature"), (2, 3, 4)),
    "RGB images": lambda: conv((3, 9, 10), Gaussian("function")),
    "RGB images, counts": lambda: conv((3, 9, 10), Poisson()),
    "images by linear layers": lambda: mlp(Gaussian("function"), (3, 2, 4)),
}
LEARNED_VARIANCES = [name for name in MODELS if name not in ("VAE-0", "Bernoulli", "Poisson", "images of 28×28")]
NORMAL = [
    "VAE-1",
    "VAE-2",
    "VAE-3",
    "VAE-3, learned prior",
    "per feature",
    "images of 27×21",
    "images by linear layers",
]


def build(name, seed=0, rows=7):
    """A model away from its initial values, in double precision, and data for it."""
    torch.manual_seed(seed)
    model = MODELS[name]().double()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, dtype=F64))
    shape = (rows, *model.data_shape)
    x = torch.randn(shape, dtype=F64)
    likelihood = type(model.head).__name__
    x = {"BernoulliHead": (x > 0).to(F64), "PoissonHead": (2 * x).abs().round()}.get(likelihood, x)
    return model, x


# --- The fast path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("expectation", [MonteCarlo(3), GaussHermite(3), Frozen(0, 1)], ids=repr)
def test_the_fast_path_gives_the_distributions_numbers(name, expectation):
    model, x = build(name)
    assert isinstance(model, LatentVariableModel)
    nodes = nodes_of(expectation, len(x), (H,))
    terms = model.elbo_terms(x, nodes.noise, nodes.weights)
    expected = reference(model, x, draws(model.posterior(x), nodes.noise), nodes.weights)
    largest = magnitude(expected) + sum(float(t.detach().abs().max()) for t in expected.values())
    for term in ("reconstruction", "elbo", "entropy_sum"):
        assert close(getattr(terms, term).detach(), expected[term].detach(), largest), term
    for term in ("kl", "encoder_entropy"):
        per_latent = getattr(terms, term).detach()
        assert per_latent.shape == (len(x), H) and close(per_latent.sum(-1), expected[term].detach(), largest), term
    assert close(terms.prior_entropy.detach(), expected["prior_entropy"][0].detach(), largest)
    decoder = expected["decoder_entropy"] - expected["log_base"]
    assert close(terms.decoder_entropy.detach(), decoder.detach(), largest)
    # Without weights the nodes count equally.
    if not isinstance(expectation, GaussHermite):
        assert close(model.elbo_terms(x, nodes.noise).elbo.detach(), terms.elbo.detach(), largest)


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_gives_the_fast_paths_numbers(name):
    model, x = build(name)
    expectation = Antithetic(4)
    e = evaluate(model, x, expectation=expectation)
    terms = model.elbo_terms(x, nodes_of(expectation, len(x), (H,)).noise)
    scale = abs(e.reconstruction) + abs(e.kl) + abs(e.entropies.decoder) + 1
    assert close(e.elbo, terms.elbo.mean().detach(), scale)
    assert close(e.entropy_sum, terms.entropy_sum.mean().detach(), scale)
    assert close(e.gap, (terms.elbo - terms.entropy_sum).mean().detach(), scale)


def numpy_forward(model, x, noise):
    """The ELBO of VAE-1, VAE-2 or VAE-3 of the paper from the bare weights, one draw."""
    p = {name: parameter.detach().numpy() for name, parameter in model.state_dict().items()}

    def linear(name, value):
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    hidden = x.numpy()
    for layer in ("encoder.1", "encoder.3"):
        hidden = np.maximum(linear(layer, hidden), 0)
    mean, log_variance = linear("latent_mean", hidden), linear("latent_log_variance", hidden)
    z = mean + np.exp(log_variance / 2) * noise.numpy()
    if "latent_layer.parametrizations.weight.original" in p:
        weight = p["latent_layer.parametrizations.weight.original"]
        p["latent_layer.weight"] = weight / np.sqrt((weight**2).sum(0))
    features = np.maximum(linear("latent_layer", z), 0)
    features = np.maximum(linear("decoder.1", features), 0)
    data_mean = linear("head.mean.0", features)
    if "head.log_variance" in p:
        log_sigma2 = p["head.log_variance"] * np.ones_like(data_mean)
    elif "head.log_variance.0.weight" in p:
        log_sigma2 = linear("head.log_variance.0", features)
    else:
        log_sigma2 = np.full_like(data_mean, np.log(model.head.likelihood.variance))  # VAE-0
    log_likelihood = -0.5 * (np.log(2 * np.pi) + log_sigma2 + (x.numpy() - data_mean) ** 2 / np.exp(log_sigma2))
    alpha2 = np.exp(p["prior_log_variance"])
    kl = 0.5 * ((mean**2 + np.exp(log_variance)) / alpha2 - 1 - log_variance + np.log(alpha2))
    return log_likelihood.sum(1) - kl.sum(1)


@pytest.mark.parametrize("name", ["VAE-0", "VAE-1", "VAE-2", "VAE-3"])
def test_the_papers_models_from_their_bare_weights(name):
    model, x = build(name)
    noise = torch.randn(1, len(x), H, dtype=F64)
    elbo = model.elbo_terms(x, noise).elbo.detach()
    assert close(elbo, numpy_forward(model, x, noise[0]), elbo.abs() + 10)


# --- Gradients and the moves of the theorem ---------------------------------------------------------------------------


def elbo_of(model, x, nodes):
    """The objective of training at fixed nodes."""
    return model.elbo_terms(x, nodes.noise, nodes.weights).elbo.mean()


@pytest.mark.parametrize("name", NORMAL)
def test_residuals_are_gradients(name):
    # R_dec = -σ² dL/dσ² and R_prior,h = -α_h² dL/dα_h² (docs/mathematics.md).
    model, x = build(name)
    e, nodes = evaluate(model, x, expectation=Frozen(1, 4)), nodes_of(Frozen(1, 4), len(x), (H,))
    gradients = torch.autograd.grad(elbo_of(model, x, nodes), model.variance_parameters())
    assert e.decoder_residuals is not None and e.prior_residuals is not None
    decoder, scale = gradients[0], e.decoder_residuals.abs().sum() + 10
    if decoder.ndim == 0:
        assert close(-decoder, e.decoder_gap, scale)
    else:
        assert close(-decoder.flatten(), e.decoder_residuals.flatten(), scale)
    learned = name in ("VAE-2", "VAE-3, learned prior")
    assert len(gradients) == 1 + learned
    if learned:
        assert close(-gradients[1], e.prior_residuals, 10.0)


@pytest.mark.parametrize("name", ["VAE-0", "VAE-1", "VAE-3", "per feature", "Bernoulli", "Poisson", "images of 27×21"])
def test_latents_can_be_scaled_without_changing_what_they_decode_to(name):
    # Move (ii): ν_h -> c ν_h, τ_h -> c τ_h, and the decoder's first layer by 1/c; then dL/dlog c_h = 1 - m_h/α_h².
    model, x = build(name)
    expectation = Frozen(2, 4)
    nodes = nodes_of(expectation, len(x), (H,))
    e = evaluate(model, x, expectation=expectation)

    def moved(log_c):
        other = copy.deepcopy(model)
        with torch.no_grad():
            c = torch.exp(log_c)
            other.latent_mean.weight.mul_(c[:, None])
            other.latent_mean.bias.mul_(c)
            other.latent_log_variance.bias.add_(2 * log_c)
            other.latent_layer.weight.div_(c)
        return other

    far = moved(torch.tensor([1.3, -0.7], dtype=F64))
    for k in range(len(nodes.noise)):
        z, z_far = (draws(m.posterior(x), nodes.noise)[k] for m in (model, far))
        d, d_far = model.likelihood(z), far.likelihood(z_far)
        assert close(d.mean.detach(), d_far.mean.detach(), 1 + d.mean.detach().abs())
        assert close(d.variance.detach(), d_far.variance.detach(), 1 + d.variance.detach().abs())
    step = 1e-5
    for h in range(H):
        direction = step * torch.eye(H, dtype=F64)[h]
        up, down = (elbo_of(moved(sign * direction), x, nodes).detach() for sign in (1, -1))
        slope = float(up - down) / (2 * step)
        assert e.optimal_prior_variance is not None
        assert abs(slope - (1 - float(e.optimal_prior_variance[h]))) < 1e-6


@pytest.mark.parametrize("name", NORMAL)
def test_variances_can_be_scaled_alone(name):
    # Move (i): its parameters multiply σ² for all x and z, and nothing else.
    model, x = build(name)
    z = torch.randn(4, H, dtype=F64)
    before = model.likelihood(z)
    posterior = model.posterior(x)
    parameter = model.head.variance_parameters()[0]
    shift = torch.randn(parameter.shape, dtype=F64)
    with torch.no_grad():
        parameter.add_(shift)
    after, moved = model.likelihood(z), model.posterior(x)
    ratio = (after.variance / before.variance).detach()
    expected = (
        shift.exp().expand(model.data_shape) if shift.numel() in (1, D) else shift.exp().reshape(model.data_shape)
    )
    assert close(ratio, expected.expand(ratio.shape), 10 * ratio)
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(moved.mean, posterior.mean) and torch.equal(moved.log_variance, posterior.log_variance)


def test_a_fixed_variance_and_a_standard_prior_have_no_parameters():
    assert vae0(D, H).variance_parameters() == [] and mlp(Bernoulli()).variance_parameters() == []
    assert [p.shape for p in vae1(D, H).variance_parameters()] == [()]
    assert [p.shape for p in vae2(D, H).variance_parameters()] == [(), (H,)]
    assert [p.shape for p in vae3(D, H).variance_parameters()] == [(D,)]
    assert "prior_log_variance" in dict(vae1(D, H).named_buffers())


# --- VAE-2 and VAE-3 --------------------------------------------------------------------------------------------------


def test_unit_columns_move_and_stay_unit():
    model, x = build("VAE-2", rows=50)
    noise = torch.randn(1, 50, H, dtype=F64)
    before = model.latent_layer.weight.detach().clone()
    prior = model.prior_log_variance.detach().clone()
    assert close(before.norm(dim=0), [1.0] * H)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    elbos = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = -model.elbo_terms(x, noise).elbo.mean()
        loss.backward()
        original = model.latent_layer.parametrizations.weight.original
        # A direction has no gradient along itself.
        along = (original.grad * original.detach()).sum(0)
        assert close(along, [0.0] * H, (original.grad.norm() * original.detach().norm()))
        assert float(original.grad.norm()) > 0
        optimiser.step()
        elbos.append(-float(loss.detach()))
        assert close(model.latent_layer.weight.detach().norm(dim=0), [1.0] * H)
    after = model.latent_layer.weight.detach()
    assert float((after - before).abs().min()) > 1e-4 and elbos[-1] > elbos[0]
    assert float((model.prior_log_variance.detach() - prior).abs().min()) > 1e-2
    assert float(model.penalty()) == 0


def test_the_penalty_draws_columns_to_norm_1():
    torch.manual_seed(0)
    model = vae2(D, H, (4,), columns="penalty").double()
    weight = model.latent_layer.weight
    expected = sum((float(weight[:, h].detach() @ weight[:, h].detach()) - 1) ** 2 for h in range(H))
    assert close(model.penalty().detach(), expected)
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        model.penalty().backward()
        optimiser.step()
    assert close(model.latent_layer.weight.detach().norm(dim=0), [1.0] * H, tolerance=1e-6)
    assert float(vae1(D, H).penalty()) == 0


def test_the_prior_of_vae_2_learns_its_optimum():
    model, x = build("VAE-2", rows=50)
    noise = torch.randn(1, 50, H, dtype=F64)
    optimiser = torch.optim.Adam([model.prior_log_variance], 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (-model.elbo_terms(x, noise).elbo.mean()).backward()
        optimiser.step()
    q = model.posterior(x)
    optimum = (q.mean**2 + q.variance).mean(0).detach()
    assert close(model.prior_log_variance.detach().exp(), optimum, optimum, tolerance=1e-3)


def test_the_variance_of_vae_3_is_a_function():
    model, _ = build("VAE-3")
    z = torch.randn(40, H, dtype=F64)
    variance = model.likelihood(z).variance.detach()
    # Not all differ: where all rectifiers are off, the features are constant.
    assert float(variance.log().std(0).min()) > 1e-2 and len(variance.unique()) > 0.9 * variance.numel()
    for name in ("VAE-1", "per feature"):
        model, _ = build(name)
        assert float(model.likelihood(z).variance.detach().std(0).max()) < 1e-15


# --- Floors of the variance -------------------------------------------------------------------------------------------


def head_and_features(variance, floor, rows=6):
    torch.manual_seed(0)
    head = Gaussian(variance=variance, floor=floor).head((3,), (2,)).double()
    return head, torch.randn(rows, 3, dtype=F64)


@pytest.mark.parametrize("variance", ["shared", "per_feature", "function"])
def test_the_floor_bounds_the_variance(variance):
    head, features = head_and_features(variance, 0.3)
    (parameter,) = head.variance_parameters()
    parameter.data.fill_(5.0)
    above = head.distribution(features).variance.detach()
    assert head.at_floor(features) == 0 and float(above.min()) > 0.3
    parameter.data.fill_(-20.0)
    assert close(head.distribution(features).variance.detach(), torch.full((6, 2), 0.3, dtype=F64), 1.0)
    assert head.at_floor(features) == 1


def test_some_features_at_the_floor():
    head, features = head_and_features("per_feature", 0.3)
    head.log_variance.data.copy_(torch.tensor([2.0, -4.0]))
    assert head.at_floor(features) == 0.5
    assert Gaussian(0.01, floor=0.3).head((3,), (2,)).at_floor(features) == 0  # fixed on purpose


@pytest.mark.parametrize("variance", ["shared", "per_feature", "function"])
@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("wants", ["more", "less"])
def test_gradients_at_the_floor(variance, below, wants):
    # Above it the ordinary gradient; below it only one that raises σ², so that it can recover.
    floor = 0.3
    head, features = head_and_features(variance, floor)
    (parameter,) = head.variance_parameters()
    parameter.data.fill_(math.log(floor) + (-9.0 if below else 5.0))
    mean = head.mean(features).detach()
    x = mean + (100.0 if wants == "more" else 1e-3)
    log_prob, _ = head.log_prob_and_entropy(x, features)
    (gradient,) = torch.autograd.grad(-log_prob.mean(), [parameter])
    if below and wants == "less":
        assert torch.equal(gradient, torch.zeros_like(gradient))
    else:
        # dL/dlog σ² = ½ (error/σ² - 1), of the loss -L, at the σ² that was used.
        used = head.distribution(features).variance.detach()
        expected = -0.5 * ((x - mean) ** 2 / used - 1).mean(0)
        expected = expected.sum() if variance == "shared" else expected
        assert close(gradient, expected) and (gradient < 0).all() == (wants == "more")


def test_a_variance_that_fell_below_the_floor_recovers():
    head, features = head_and_features("shared", 1e-2)
    head.log_variance.data.fill_(-12.0)
    x = head.mean(features).detach() + torch.tensor([0.7, -0.7], dtype=F64)
    optimiser = torch.optim.SGD([head.log_variance], 0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (-head.log_prob_and_entropy(x, features)[0].mean()).backward()
        optimiser.step()
    assert close(head.log_variance.detach().exp(), 0.49, 1.0, tolerance=1e-3)


# --- Analytic variances -----------------------------------------------------------------------------------------------


def optimal_parts(model, x, noise, weights):
    """Squared errors (K, B, *data), σ²(z) likewise, ν² + τ² (B, H): with gradients, without the fast path."""
    q = model.posterior(x)
    likelihoods = [model.likelihood(z_k) for z_k in draws(q, noise)]
    errors = torch.stack([(x - p.mean) ** 2 for p in likelihoods])
    variances = torch.stack([p.variance for p in likelihoods])
    return torch.einsum("k,kb...->...", weights, errors) / len(x), errors, variances, q


def entropy_objective(name, model, x, noise, weights):
    """L_H, equation (12): the ELBO at the variances that are optimal for this batch."""
    mean_error, errors, variances, q = optimal_parts(model, x, noise, weights)
    count, constant = math.prod(model.data_shape), math.log(2 * math.pi * math.e)
    encoder = 0.5 * (constant + q.log_variance).sum(1).mean()
    second = (q.mean**2 + q.variance).mean(0)
    learned = isinstance(model.prior_log_variance, nn.Parameter)
    # A fixed prior stays: then the cross entropy, not the entropy.
    prior = -0.5 * ((constant + second.log()) if learned else (constant - 1 + second)).sum()
    if name == "function":
        ratio = torch.einsum("k,kb...->...", weights, errors / variances) / len(x)
        # One factor for each bias: a feature's, or a channel's.
        ratio = ratio.flatten() if isinstance(model.head.mean, nn.Sequential) else ratio.flatten(1).mean(1)
        factors = ratio.log().repeat_interleave(count // len(ratio)).sum()
        log_variance = torch.einsum("k,kb...->", weights, variances.log()) / len(x)
        return encoder + prior - 0.5 * (count * constant + log_variance + factors)
    decoder = count * mean_error.mean().log() if name == "shared" else mean_error.log().sum()
    return encoder + prior - 0.5 * (count * constant + decoder)


ANALYTIC = {
    "VAE-1": "shared",
    "VAE-2": "shared",
    "VAE-3": "function",
    "VAE-3, learned prior": "function",
    "per feature": "per_feature",
    "images of 27×21": "shared",
    "images of 27×21, three layers": "per_feature",
    "RGB images": "function",
    "images by linear layers": "function",
}


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("expectation", [MonteCarlo(3), GaussHermite(3)], ids=repr)
def test_analytic_variances_make_the_elbo_the_entropy_objective(name, expectation):
    model, x = build(name, rows=9)
    nodes = nodes_of(expectation, 9, (H,))
    weights = nodes.weights
    variances = {id(p) for p in model.variance_parameters()}
    networks = [p for p in model.parameters() if id(p) not in variances]
    direct = entropy_objective(ANALYTIC[name], model, x, nodes.noise, weights)
    expected = torch.autograd.grad(direct, networks, allow_unused=True)
    terms = model.elbo_terms(x, nodes.noise, weights if isinstance(expectation, GaussHermite) else None, adapt=1.0)
    elbo = terms.elbo.mean()
    scale = float(terms.reconstruction.detach().abs().mean()) + 10
    assert close(elbo.detach(), direct.detach(), scale)
    # At the optimum the ELBO is the entropy sum, if the prior is learned too.
    if isinstance(model.prior_log_variance, nn.Parameter):
        assert close(elbo.detach(), terms.entropy_sum.mean().detach(), scale)
    gradients = torch.autograd.grad(elbo, [*networks, *model.variance_parameters()])
    largest = max(float(g.abs().max()) for g in gradients) + 1
    for gradient, other in zip(gradients, expected, strict=False):
        assert close(gradient, torch.zeros_like(gradient) if other is None else other, largest, tolerance=1e-11)
    # The variances themselves are stationary.
    for gradient in gradients[len(networks) :]:
        assert close(gradient, torch.zeros_like(gradient), scale)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_variances_move_by_the_rate_towards_their_optima(rate):
    for name in ("VAE-2", "per feature", "VAE-3", "VAE-0"):
        model, x = build(name)
        nodes = nodes_of(GaussHermite(3), len(x), (H,))
        mean_error, errors, variances, q = optimal_parts(model, x, nodes.noise, nodes.weights)
        state = {n: t.clone() for n, t in model.state_dict().items()}
        model.elbo_terms(x, nodes.noise, nodes.weights, adapt=rate)
        moved = {n: (state[n], t) for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
        if name == "VAE-0":
            assert moved == {}
            continue
        if name == "VAE-3":
            ratio = torch.einsum("k,kb...->...", nodes.weights, errors / variances) / len(x)
            before, after = moved.pop("head.log_variance.0.bias")
            assert close((after - before).exp(), (1 + rate * (ratio - 1)).detach(), 10.0)
        else:
            before, after = (t.exp() for t in moved.pop("head.log_variance"))
            optimum = mean_error.mean() if name == "VAE-2" else mean_error
            assert close(after, ((1 - rate) * before + rate * optimum).detach(), 10.0)
        if name == "VAE-2":
            before, after = (t.exp() for t in moved.pop("prior_log_variance"))
            optimum = (q.mean**2 + q.variance).mean(0)
            assert close(after, ((1 - rate) * before + rate * optimum).detach(), 10.0)
        assert moved == {}


def test_no_rate_moves_nothing():
    model, x = build("VAE-2")
    state = copy.deepcopy(model.state_dict())
    model.elbo_terms(x, torch.randn(2, len(x), H, dtype=F64))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_analytic_variances_stop_at_the_floor():
    for variance in ("shared", "per_feature"):
        model = mlp(Gaussian(variance, floor=0.05)).double()
        nn.init.zeros_(model.head.mean[0].weight)
        nn.init.zeros_(model.head.mean[0].bias)
        x = 1e-3 * torch.randn(4, D, dtype=F64)
        terms = model.elbo_terms(x, torch.randn(1, 4, H, dtype=F64), adapt=1.0)
        found = model.head.log_variance.detach().exp()
        assert close(found, torch.full_like(found, 0.05))
        assert bool(torch.isfinite(terms.elbo).all()) and model.head.at_floor(torch.zeros(4, 6, dtype=F64)) == 1


# --- The fast path where values are missing --------------------------------------------------------------------------


def holes(x, probability=0.4):
    """Which entries are observed: the first feature nowhere, the last everywhere."""
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) > probability
    observed.flatten(1)[:, 0], observed.flatten(1)[:, -1] = False, True
    return observed


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("expectation", [MonteCarlo(3), GaussHermite(3), Frozen(0, 1)], ids=repr)
def test_the_fast_path_sums_over_observed_values(name, expectation):
    model, x = build(name)
    observed = holes(x)
    x = torch.where(observed, x, 0.0)
    nodes = nodes_of(expectation, len(x), (H,))
    terms = model.elbo_terms(x, nodes.noise, nodes.weights, observed=observed)
    log_prob, entropy = torch.zeros(len(x), dtype=F64), torch.zeros(len(x), dtype=F64)
    for weight, z in zip(nodes.weights, draws(model.posterior(x), nodes.noise), strict=True):
        p = base_of(as_torch(model.likelihood(z)))
        each = p.log_prob(x)
        if isinstance(p, torch.distributions.Poisson):
            pseudo = p.rate - torch.special.xlogy(p.rate, p.rate) + torch.lgamma(x + 1)
        else:
            pseudo = p.entropy().expand(x.shape)
        for n in range(len(x)):
            log_prob[n] += weight * each[n][observed[n]].sum().detach()
            entropy[n] += weight * pseudo[n][observed[n]].sum().detach()
    scale = float((log_prob.abs() + entropy.abs()).max()) + 10 * math.prod(model.data_shape)
    assert close(terms.reconstruction.detach(), log_prob, scale)
    assert close(terms.decoder_entropy.detach(), entropy, scale)
    whole = model.elbo_terms(x, nodes.noise, nodes.weights)
    assert torch.equal(terms.kl, whole.kl)
    # What stands where a value is missing is of no account to the likelihood.
    features = model.decoder_features(torch.zeros(len(x), H, dtype=F64))
    one, other = (
        model.head.log_prob_and_entropy(torch.where(observed, x, filled), features, observed=observed)
        for filled in (0.0, 1.0)
    )
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    every = model.elbo_terms(x, nodes.noise, nodes.weights, observed=torch.ones_like(observed))
    # Without missing values the average over nodes is taken before the last layer.
    torch.testing.assert_close(every.reconstruction, whole.reconstruction, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_gives_the_fast_paths_numbers_of_observed_values(name):
    model, x = build(name)
    observed, expectation = holes(x), Antithetic(4)
    e = evaluate(model, torch.where(observed, x, math.nan), expectation=expectation, missing="ignore")
    noise = nodes_of(expectation, len(x), (H,)).noise
    terms = model.elbo_terms(torch.where(observed, x, 0.0), noise, observed=observed)
    scale = abs(e.reconstruction) + abs(e.kl) + abs(e.entropies.decoder) + 1
    assert close(e.elbo, terms.elbo.mean().detach(), scale)
    assert close(e.entropy_sum, terms.entropy_sum.mean().detach(), scale)


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("expectation", [MonteCarlo(3), GaussHermite(3)], ids=repr)
def test_analytic_variances_are_optimal_for_observed_values(name, expectation):
    # At the optimum of these observed values the ELBO is stationary in every variance parameter.
    model, x = build(name, rows=9)
    observed = holes(x)
    x = torch.where(observed, x, 0.0)
    nodes = nodes_of(expectation, 9, (H,))
    weights = nodes.weights if isinstance(expectation, GaussHermite) else None
    (parameter,) = model.head.variance_parameters()
    before = parameter.detach().clone()
    _, errors, variances, _ = optimal_parts(model, x, nodes.noise, nodes.weights)
    model.elbo_terms(x, nodes.noise, weights, observed=observed, adapt=1.0)
    terms = model.elbo_terms(x, nodes.noise, weights, observed=observed)
    gradients = torch.autograd.grad(terms.elbo.mean(), model.variance_parameters())
    scale = float(terms.reconstruction.detach().abs().mean()) + 10
    assert all(close(gradient, torch.zeros_like(gradient), scale) for gradient in gradients)
    # And by loops over features, where each has a parameter of its own; the first is never observed and stays.
    if parameter.numel() == math.prod(model.data_shape):
        old, new = before.flatten(), parameter.detach().flatten()
        assert new[0] == old[0]
        relative = errors / variances
        for d in range(1, len(new)):
            seen = observed.flatten(1)[:, d]
            if not bool(seen.any()):
                assert new[d] == old[d]
                continue
            ratio = torch.einsum("k,kn->n", nodes.weights, relative.flatten(2)[:, seen, d]).mean().detach()
            assert close((new[d] - old[d]).exp(), ratio, 10.0)


@pytest.mark.parametrize("name", ["VAE-1", "VAE-3", "per feature"])
def test_without_observed_values_the_variances_stay(name):
    model, x = build(name)
    before = copy.deepcopy(model.state_dict())
    terms = model.elbo_terms(
        x, torch.zeros(1, len(x), H, dtype=F64), observed=torch.zeros_like(x, dtype=torch.bool), adapt=1.0
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(terms.reconstruction, torch.zeros(len(x), dtype=F64))


def test_the_mean_over_observed_values_moves_by_the_rate():
    model, x = build("VAE-2")
    observed = holes(x)
    nodes = nodes_of(GaussHermite(3), len(x), (H,))
    _, errors, _, _ = optimal_parts(model, x, nodes.noise, nodes.weights)
    optimum = torch.einsum("k,kn->n", nodes.weights, errors[:, observed]).mean().detach()
    before = model.head.log_variance.detach().exp()
    model.elbo_terms(x, nodes.noise, nodes.weights, observed=observed, adapt=0.25)
    assert close(model.head.log_variance.detach().exp(), 0.75 * before + 0.25 * optimum, 10.0)


@pytest.mark.parametrize("adapt", [0.0, 0.5])
def test_a_training_step_learns_from_observed_values(adapt):
    (model, x), (other, _) = build("VAE-3"), build("VAE-3")
    observed = holes(x)
    nodes = nodes_of(MonteCarlo(2), len(x), (H,))
    for m, target in ((model, x), (other, torch.where(observed, x, 0.0))):
        # The encoder would see what stands in the place of a missing value.
        m.encoder = nn.Sequential(_Zeros(observed), m.encoder)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        training_step(m, target, nodes, optimizer, observed=observed, adapt=adapt)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    before = build("VAE-3")[0].parameters()
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


class _Zeros(nn.Module):
    def __init__(self, observed):
        super().__init__()
        self.observed = observed

    def forward(self, x):
        return torch.where(self.observed, x, 0.0)


# --- What a user does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_encode_reconstruct_and_sample(name, dtype):
    model, x = build(name)
    model, x = model.to(dtype), x.float()
    z, again, samples = model.encode(x), model.reconstruct(x), model.sample(5)
    assert z.shape == (7, H) and again.shape == x.shape and samples.shape == (5, *model.data_shape)
    assert z.dtype == again.dtype == samples.dtype == dtype
    assert not (z.requires_grad or again.requires_grad or samples.requires_grad)
    assert torch.equal(z, model.posterior(x.to(dtype)).mean)
    assert torch.equal(again, model.likelihood(z).mean)
    if not isinstance(model.likelihood(z), torch.distributions.Independent):
        assert torch.equal(again, model.head.mean(model.decoder(model.latent_layer(z))))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert close(model.encode(x, batch_size=2), z, 1 + z.abs(), tolerance)
    assert close(model.reconstruct(x, batch_size=3), again, 1 + again.abs(), tolerance)
    assert close(model.decode(z, batch_size=3), again, 1 + again.abs(), tolerance)


def test_whole_numbers_are_cast():
    model, _ = build("VAE-1")
    x = torch.arange(10).reshape(2, D)
    assert torch.equal(model.encode(x), model.encode(x.double()))
    assert model.reconstruct(x.byte()).dtype == F64


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("name", ["VAE-2", "Bernoulli", "Poisson"])
def test_samples_are_reproducible_and_leave_the_global_generator_alone(name, noise):
    model, _ = build(name)
    state = torch.get_rng_state()
    first = model.sample(6, noise=noise, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(model.sample(6, noise=noise, seed=3), first)
    assert not torch.isclose(model.sample(6, noise=noise, seed=4), first).all()
    if name == "Bernoulli":
        assert set(first.flatten().tolist()) <= {0.0, 1.0} or not noise


def test_samples_have_the_models_moments():
    # x = z + noise, with decoder and heads set to the identity.
    model = VAE(
        MLPEncoder(2, (3,)),
        nn.Identity(),
        data_shape=2,
        latent_dim=2,
        decoder_features=2,
        likelihood=Gaussian("per_feature"),
        prior=LearnedNormal(),
    ).double()
    with torch.no_grad():
        for layer in (model.latent_layer, model.head.mean[0]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.copy_(torch.tensor([1.0, 0.0]) if layer is model.latent_layer else torch.zeros(2))
        model.prior_log_variance.copy_(torch.tensor([4.0, 0.25]).log())
        model.head.log_variance.copy_(torch.tensor([1.0, 0.09]).log())
    num = 20_000
    for noise, variance in ((False, [4.0, 0.25]), (True, [5.0, 0.34])):
        x = model.sample(num, noise=noise)
        expected = torch.tensor(variance, dtype=F64)
        assert ((x.var(0) / expected - 1).abs() < 5 * (2 / num) ** 0.5).all()
        assert ((x.mean(0) - torch.tensor([1.0, 0.0])).abs() < 5 * (expected / num).sqrt()).all()


def test_parameters_are_where_the_networks_are():
    encoder, decoder = MLPEncoder(D, (4,)).double(), MLPDecoder((4,)).double()
    model = VAE(encoder, decoder, data_shape=D, latent_dim=H, prior=LearnedNormal(), columns="unit")
    assert {p.dtype for p in model.parameters()} == {b.dtype for b in model.buffers()} | {F64}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.posterior(torch.zeros(3, D, dtype=F64)).mean.dtype == F64
    meta = VAE(
        MLPEncoder(D, (4,)).to("meta"), MLPDecoder((4,)).to("meta"), data_shape=D, latent_dim=H, prior=StandardNormal()
    )
    assert {p.device.type for p in [*meta.parameters(), *meta.buffers()]} == {"meta"}


@pytest.mark.parametrize("name", ["VAE-1", "VAE-2", "VAE-2 with a penalty", "VAE-3, learned prior", "RGB images"])
def test_models_can_be_pickled_and_copied(name):
    model, x = build(name, 1)
    if model.columns == "unit":
        # Not those that the layer would make of its own weight: it keeps a norm.
        model.latent_layer.parametrizations.weight.original.data.mul_(3.0)
    model.latent_layer.requires_grad_(False)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        ours, theirs = model.state_dict(), other.state_dict()
        assert list(ours) == list(theirs) and all(tensor.equal(theirs[key]) for key, tensor in ours.items())
        flags = [(key, p.requires_grad) for key, p in model.named_parameters()]
        assert [(key, p.requires_grad) for key, p in other.named_parameters()] == flags
        assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
        assert other.reconstruct(x).equal(model.reconstruct(x))
        other.latent_layer.requires_grad_(True)
        other.elbo_terms(x, torch.zeros(1, len(x), H, dtype=x.dtype)).elbo.sum().backward()
        trained = [p.grad is not None for p in other.latent_layer.parameters()]
        assert all(trained) and len(trained) == 2


def test_state_goes_from_model_to_model():
    for name in ("VAE-2", "VAE-3", "RGB images"):
        (model, x), (other, _) = build(name, 1), build(name, 2)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.reconstruct(x), model.reconstruct(x))
        assert evaluate(other, x).elbo == evaluate(model, x).elbo


class Residual(nn.Module):
    """A decoder of one's own, with a skip connection and maps as output."""

    def __init__(self, width, channels, size):
        super().__init__()
        self.layer, self.last, self.shape = nn.Linear(width, width), nn.Linear(width, channels * size), channels

    def forward(self, features):
        return self.last(torch.tanh(features + self.layer(features))).unflatten(1, (self.shape, 4, 4))


@pytest.mark.parametrize("variance", ["shared", "function", 0.3])
def test_networks_of_ones_own(variance):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.SiLU())  # its features are maps
    model = VAE(
        encoder,
        Residual(6, 3, 16),
        data_shape=(1, 4, 4),
        latent_dim=H,
        likelihood=Gaussian(variance=variance),
        decoder_features=6,
    ).double()
    x = torch.randn(8, 1, 4, 4, dtype=F64)
    e = evaluate(model, x, mode="train", expectation=Frozen())
    assert close(e.gap, e.elbo - e.entropy_sum, 1000.0) and e.data_shape == (1, 4, 4)
    assert e.variance_kind == ("function" if variance == "function" else "shared")
    # Building it moved no statistics and left the networks training.
    assert model.training and encoder.training and encoder[1].training
    assert torch.equal(encoder[1].running_mean, torch.zeros(2, dtype=F64))


@given(
    size=st.tuples(st.integers(1, 3), st.integers(8, 33), st.integers(8, 33)),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
@settings(max_examples=25)
def test_convolutions_return_to_the_size_of_the_data(size, channels):
    encoder, decoder = ConvEncoder(size, channels), ConvDecoder(size, channels[::-1])
    maps = nn.Sequential(*list(encoder)[:-1])(torch.zeros(2, *size))
    assert maps.shape == (2, channels[-1], size[1] >> len(channels), size[2] >> len(channels))
    assert maps[0].numel() == decoder.in_features
    assert decoder(maps.flatten(1)).shape == (2, channels[0], *size[1:])


def test_shapes_and_widths_of_multi_layer_networks():
    assert MLPEncoder((2, 3), (7, 4))(torch.zeros(5, 2, 3)).shape == (5, 4)
    decoder = MLPDecoder((4, 7), nn.Tanh)
    assert decoder.in_features == 4 and decoder(torch.zeros(5, 4)).shape == (5, 7)
    assert isinstance(decoder[0], nn.Tanh)
    model = vae1(D, H, (8, 6))
    assert model.latent_layer.weight.shape == (6, H) and model.head.mean[0].weight.shape == (D, 8)


WRONG = {
    "no width": (
        lambda: VAE(MLPEncoder(D), nn.Sequential(nn.ReLU()), data_shape=D, latent_dim=H),
        r"no attribute in_features; pass decoder_features=",
    ),
    "another width": (
        lambda: VAE(MLPEncoder(D), MLPDecoder((4, 4)), data_shape=D, latent_dim=H, decoder_features=5),
        r"the decoder failed on an input of shape \(2, 5\)",
    ),
    "other data": (
        lambda: VAE(MLPEncoder(7), MLPDecoder(), data_shape=D, latent_dim=H),
        r"the encoder failed on an input of shape \(2, 5\)",
    ),
    "flat data for convolutions": (
        lambda: VAE(ConvEncoder((1, 8, 8)), MLPDecoder(), data_shape=64, latent_dim=H),
        r"the encoder failed on an input of shape \(2, 64\)",
    ),
    "maps of another size": (
        lambda: VAE(ConvEncoder((1, 8, 8)), ConvDecoder((1, 8, 6)), data_shape=(1, 8, 8), latent_dim=H),
        r"features of shape \(32, 8, 6\) for data of shape \(1, 8, 8\), expected a vector, or",
    ),
    "one row": (
        lambda: VAE(nn.Flatten(0), MLPDecoder(), data_shape=D, latent_dim=H),
        "the encoder returned Tensor for 2 rows, expected a Tensor of 2 rows",
    ),
    "no tensor": (
        lambda: VAE(nn.LSTM(D, 2), MLPDecoder(), data_shape=D, latent_dim=H),
        "the encoder returned tuple for 2 rows",
    ),
    "no latents": (lambda: vae1(D, 0), r"latent_dim=0 given, expected a whole number"),
    "a truth value as latents": (lambda: vae1(D, True), "latent_dim=.*True.* given"),
    "no data": (lambda: VAE(nn.Flatten(), MLPDecoder(), data_shape=0, latent_dim=H), r"data_shape=\(0,\) given"),
    "no axes": (lambda: VAE(nn.Flatten(), MLPDecoder(), data_shape=(), latent_dim=H), r"data_shape=\(\) given"),
    "negative variance": (lambda: Gaussian(variance=-1.0), r"variance=-1\.0 given, expected one of shared"),
    "zero variance": (lambda: vae0(D, H, variance=0.0), r"variance=0\.0 given"),
    "infinite variance": (lambda: Gaussian(variance=math.inf), "variance=inf given"),
    "floor": (lambda: Gaussian(floor=0.0), r"floor=0\.0 given, expected a positive number"),
    "NaN as floor": (lambda: Gaussian(floor=math.nan), "floor=nan given"),
    "no hidden layers": (lambda: vae1(D, H, ()), r"hidden=\(\) given, expected one or more whole numbers"),
    "hidden layers of width 0": (lambda: MLPDecoder((4, 0)), r"hidden=\(4, 0\) given"),
    "no channels": (lambda: ConvEncoder((1, 8, 8), ()), r"channels=\(\) given"),
    "flat convolutions": (lambda: ConvDecoder((64,)), r"data_shape=\(64,\) given, expected \(channels, height"),
    "too many halvings": (lambda: ConvEncoder((1, 3, 28), (2, 2)), "2 layers given for images of 3×28"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(name):
    call, words = WRONG[name]
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("expectation", [MonteCarlo(6), GaussHermite(3)], ids=["draws", "weights"])
@pytest.mark.parametrize("variance", ["shared", "per_feature", 0.3])
def test_averages_before_the_last_layer_are_averages_over_nodes(variance, expectation, monkeypatch):
    """(36), where many features come from few."""
    torch.manual_seed(0)
    model = VAE(MLPEncoder(40, (5,)), MLPDecoder((3,)), data_shape=(4, 10), latent_dim=2, likelihood=Gaussian(variance))
    model, x = model.double(), torch.randn(7, 4, 10, dtype=F64)
    nodes = nodes_of(expectation, 7, (2,))
    results = []
    for each in (model, copy.deepcopy(model)):
        if results:
            monkeypatch.setattr(GaussianHead, "average_log_prob_and_entropy", Head.average_log_prob_and_entropy)
        terms = each.elbo_terms(x, nodes.noise, nodes.step_weights, adapt=0.3)
        terms.elbo.sum().backward()
        gradients = [p.grad for p in each.parameters() if p.grad is not None]
        results.append([terms.reconstruction, terms.decoder_entropy, *each.variance_parameters(), *gradients])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_averages_before_the_last_layer_stay_exact_where_data_are_reproduced():
    """Large values, reproduced with σ² = 1e-5: the squares of x and μ multiplied out would be off by hundreds."""
    torch.manual_seed(0)
    model = vae1(400, 2, (3,))
    with torch.no_grad():
        model.latent_mean.weight.zero_()
        model.latent_log_variance.weight.zero_()
        model.latent_log_variance.bias.fill_(-15.0)
        model.head.mean[0].bias.add_(10.0)
        model.head.log_variance.fill_(math.log(1e-5))
        x = model.head.mean(model.decoder_features(model.latent_mean.bias.expand(5, 2)))
    noise = torch.randn(50, 5, 2)
    double = copy.deepcopy(model).double().elbo_terms(x.double(), noise.double())
    single = model.elbo_terms(x, noise)
    torch.testing.assert_close(single.reconstruction.double(), double.reconstruction, rtol=1e-5, atol=2e-2)
