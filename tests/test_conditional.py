"""Conditional VAEs: against closed forms, against unconditional models, and through all that takes data."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vaentropy as ve
from vaentropy.calibration import fold
from vaentropy.conditions import ConditionalModel
from vaentropy.data import Rows, load
from vaentropy.data.conditioned import Conditioned
from vaentropy.errors import DataError, UsageError
from vaentropy.expectation import Frozen, GaussHermite
from vaentropy.figures.view import look
from vaentropy.likelihoods import Gaussian
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.training import fit, fit_replicates

from .models import F64, close

D, H, K, N = 5, 2, 3, 400


@pytest.fixture(scope="module")
def linear_data():
    """x = V c + W z + b + noise, of which the covariates are correlated and not centred."""
    g = torch.Generator().manual_seed(1)
    c = torch.randn(N, K, generator=g, dtype=F64) @ torch.randn(K, K, generator=g, dtype=F64) + 1
    weights = torch.randn(K + H, D, generator=g, dtype=F64)
    z = torch.randn(N, H, generator=g, dtype=F64)
    x = torch.cat([c, z], 1) @ weights + 0.5 * torch.randn(N, D, generator=g, dtype=F64) - 2
    return x, c


def regression(x, c):
    """Coefficients (K, D), intercept, residuals, by numpy's least squares."""
    x, c = x.numpy(), c.numpy()
    design = np.hstack([c, np.ones((len(c), 1))])
    coefficients = np.linalg.lstsq(design, x, rcond=None)[0]
    return coefficients[:-1], coefficients[-1], x - design @ coefficients


def conditional_log_likelihood(x, c, latents=H):
    """Of the best linear-Gaussian model of p(x|c): probabilistic PCA of the residuals, by eigenvalues alone (17)."""
    _, _, residuals = regression(x, c)
    values = np.linalg.eigvalsh(residuals.T @ residuals / len(residuals))[::-1]
    noise = values[latents:].mean()
    d = len(values)
    return -0.5 * (d * math.log(2 * math.pi * math.e) + np.log(values[:latents]).sum() + (d - latents) * np.log(noise))


class Same(nn.Module):
    """No layer of its own: all that is left is the VAE's."""

    def __init__(self, width):
        super().__init__()
        self.in_features = width

    def forward(self, x):
        return x


def linear_vae():
    torch.manual_seed(0)
    return ve.VAE(Same(D), Same(D), data_shape=D, latent_dim=H, condition=K).double()


def at_the_optimum(x, c):
    """The linear VAE with its parameters at the closed form."""
    coefficients, intercept, residuals = (torch.from_numpy(part) for part in regression(x, c))
    pca = ve.LinearVAE.optimum(residuals, H)
    model = linear_vae()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.condition_shift.weight.copy_(-coefficients.T)
        model.latent_mean.weight[:, :D] = pca.encoder_weight
        model.latent_mean.bias.copy_(pca.encoder_bias - pca.encoder_weight @ intercept)
        model.latent_log_variance.bias.copy_(pca.latent_log_variance)
        model.latent_layer.weight.copy_(pca.weight)
        model.condition_layer.weight.copy_(coefficients.T)
        model.head.mean[0].weight.copy_(torch.eye(D))
        model.head.mean[0].bias.copy_(pca.bias + intercept)
        model.head.log_variance.copy_(pca.log_variance)
    return model


def covariance_of(model):
    weight = model.latent_layer.weight.detach()
    return weight @ weight.T + model.head.log_variance.detach().exp() * torch.eye(D, dtype=F64)


def small(make=ve.vae1, seed=0, **options):
    """A model away from its initial weights, in double precision."""
    torch.manual_seed(seed)
    model = make(D, H, (6, 4), condition=K, **options).double()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, dtype=F64))
    return model


# --- Closed forms -----------------------------------------------------------------------------------------------------


def test_at_the_closed_form_the_elbo_is_the_conditional_likelihood_and_the_entropy_sum(linear_data):
    x, c = linear_data
    model = at_the_optimum(x, c)
    # Polynomials of degree two in z: three nodes integrate them exactly.
    e = ve.evaluate(model, ve.given(x, c), expectation=GaussHermite(3))
    expected = conditional_log_likelihood(x, c)
    assert e.elbo == pytest.approx(expected, abs=1e-9) and e.entropy_sum == pytest.approx(expected, abs=1e-9)
    assert e.prior_residuals.abs().max() < 1e-10 and e.decoder_residuals.sum().abs() < 1e-10
    # Without c it is far worse.
    pca = ve.LinearVAE.optimum(x, H)
    assert float(pca.log_likelihood(x).detach().mean()) < expected - 1


def test_the_closed_form_is_stationary_and_each_point_has_its_own_likelihood(linear_data):
    x, c = linear_data
    model = at_the_optimum(x, c)
    nodes = GaussHermite(3).nodes(N, (H,), generator=torch.Generator(), dtype=F64)
    rows = ve.given(x, c).rows
    elbo = model.elbo_terms(rows, nodes.noise, nodes.weights).elbo
    elbo.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-8, name
    covariance = covariance_of(model)
    means = c @ model.condition_layer.weight.T + model.head.mean[0].bias
    exact = torch.distributions.MultivariateNormal(means, covariance).log_prob(x)
    assert close(elbo.detach(), exact.detach(), exact.detach().abs() + 1, 1e-10)
    bound = ve.log_likelihood(model, ve.given(x, c), num_samples=5)
    assert bound.value == pytest.approx(float(exact.detach().mean()), abs=1e-9) and abs(bound.tightness) < 1e-9


@pytest.mark.slow
def test_training_comes_to_the_closed_form(linear_data):
    x, c = linear_data
    # A map of c that can be undone leaves p(x|c) as it is, and this one is the faster to learn from.
    whitened = (c - c.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(c.T.cov()))
    model = linear_vae()
    history = fit(model, ve.given(x, whitened), epochs=300, batch_size=100, learning_rate=0.05)
    assert history.train.elbo == pytest.approx(conditional_log_likelihood(x, c), abs=0.04)
    assert abs(history.train.gap) < 0.04


def test_samples_have_the_conditional_moments(linear_data):
    x, c = linear_data
    model, number = at_the_optimum(x, c), 40_000
    draws = model.sample(number, condition=c[7], noise=True, seed=3)
    covariance = covariance_of(model)
    mean = c[7] @ model.condition_layer.weight.T + model.head.mean[0].bias
    errors = (covariance.diagonal() / number).sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * errors).all()
    spread = torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()
    assert ((draws.T.cov() - covariance).abs() < 5 * (spread / number).sqrt()).all()


def test_diagnose_compares_with_the_best_linear_model_given_the_condition(linear_data):
    x, c = linear_data
    model = at_the_optimum(x, c)
    diagnosis = ve.diagnose(model, ve.given(x, c), progress=False)
    numbers = {number.what: number for number in diagnosis.tested}
    # W, V, b and σ², less a rotation of z.
    parameters = D * (H + K + 1) + 1 - H * (H - 1) // 2
    linear = numbers["ELBO of the best linear VAE less that of this model"].value + diagnosis.train.elbo
    assert linear == pytest.approx(conditional_log_likelihood(x, c) - parameters / N, abs=1e-9)
    # A stationary point, where both moves can be made.
    assert diagnosis.clean and diagnosis.gradients.norm < 0.3
    assert all(move.distance < 0.01 for move in diagnosis.gradients.moves.values())


def test_diagnose_sees_a_scale_that_is_off(linear_data):
    x, c = linear_data
    model = at_the_optimum(x, c)
    with torch.no_grad():
        model.head.log_variance.add_(1.0)
    diagnosis = ve.diagnose(model, ve.given(x, c), held_out=ve.given(x, c), progress=False)
    assert "variance" in [finding.kind for finding in diagnosis.problems]
    assert diagnosis.train.optimal_variance == pytest.approx(
        float((model.head.log_variance - 1).exp().detach()), rel=0.01
    )


# --- Against other models and routes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ve.vae0, ve.vae1, ve.vae2, ve.vae3])
def test_conditions_of_zeros_are_no_condition(make):
    model, x = small(make), torch.randn(30, D, dtype=F64)
    plain = make(D, H, (6, 4)).double()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("condition_")}
    for name in ("latent_mean.weight", "latent_log_variance.weight"):
        weights[name] = weights[name][:, :-K]
    plain.load_state_dict(weights)
    zeros = torch.zeros(len(x), K, dtype=F64)
    e, expected = ve.evaluate(model, ve.given(x, zeros)), ve.evaluate(plain, x)
    assert e.elbo == pytest.approx(expected.elbo, abs=1e-12)
    assert e.entropy_sum == pytest.approx(expected.entropy_sum, abs=1e-12)
    assert torch.equal(model.sample(3, condition=zeros[:3]), plain.sample(3))
    assert torch.allclose(model.reconstruct(x, condition=zeros[0]), plain.reconstruct(x), atol=1e-12)


@pytest.mark.parametrize("make", [ve.vae1, ve.vae2, ve.vae3])
def test_entropies_are_averages_of_those_given_each_condition(make):
    model, x = small(make), torch.randn(40, D, dtype=F64)
    c = torch.eye(K, dtype=F64)[torch.arange(40) % K]
    # Nodes that all points share, so that it does not matter in which order they come.
    noise = Frozen(0, 4)
    e = ve.evaluate(model, ve.given(x, c), expectation=noise)
    total = dict.fromkeys(("elbo", "entropy_sum", "gap"), 0.0)
    for k in range(K):
        alone = c[:, k] == 1
        of_one = ve.evaluate(model.given(torch.eye(K, dtype=F64)[k : k + 1]), x[alone], expectation=noise)
        for name in total:
            total[name] += float(alone.sum()) / len(x) * getattr(of_one, name)
    for name, value in total.items():
        assert getattr(e, name) == pytest.approx(value, abs=1e-11), name
    # The decoder of VAE-3 knows σ²(z, c).
    assert (
        make is not ve.vae3
        or e.entropies.decoder != ve.evaluate(model, ve.given(x, c.roll(1, 0)), expectation=noise).entropies.decoder
    )


def test_the_fast_path_and_all_ways_of_giving_data_agree():
    model, x, c = small(ve.vae3), torch.randn(41, D, dtype=F64), torch.randn(41, K, dtype=F64)
    noise = Frozen(0, 4)
    expected = ve.evaluate(model, ve.given(x, c), expectation=noise).elbo
    loader = DataLoader(TensorDataset(x, c), batch_size=10)
    streamed = ve.given(Rows(x, shard_size=7), c)
    assert isinstance(streamed, Conditioned) and len(streamed.shard_sizes) == 6
    routes = {
        "loader": ve.evaluate(model, loader, expectation=noise).elbo,
        "source": ve.evaluate(model, streamed, expectation=noise).elbo,
        "arrays": ve.evaluate(model, ve.given(x.numpy(), c.numpy()), expectation=noise).elbo,
        "bind": ve.evaluate(model, loader, expectation=noise, bind=lambda b: (model.given(b[1]), b[0])).elbo,
    }
    nodes = noise.nodes(len(x), (H,), generator=noise.generator(), dtype=F64)
    with torch.no_grad():
        terms = model.elbo_terms(ve.given(x, c).rows, nodes.noise, nodes.weights)
    routes["fast path"] = float(terms.elbo.mean())
    for name, elbo in routes.items():
        assert elbo == pytest.approx(expected, abs=1e-11), name


def test_gradients_are_those_of_finite_differences():
    model, rows = small(ve.vae3), ve.given(torch.randn(9, D, dtype=F64), torch.randn(9, K, dtype=F64)).rows
    noise = torch.randn(3, 9, H, dtype=F64, generator=torch.Generator().manual_seed(0))
    model.elbo_terms(rows, noise).elbo.mean().backward()
    for name in ("condition_layer.weight", "condition_shift.weight", "latent_mean.weight"):
        parameter = dict(model.named_parameters())[name]
        direction = torch.randn(parameter.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
        step, values = 1e-5, []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                values.append(float(model.elbo_terms(rows, noise).elbo.mean()))
                parameter.add_(direction, alpha=-sign * step)
        slope = (values[0] - values[1]) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def test_missing_values_are_those_of_the_features_alone():
    model, x, c = small(), torch.randn(30, D, dtype=F64), torch.randn(30, K, dtype=F64)
    x[3, 1] = x[8, 0] = x[8, 4] = math.nan
    noise = Frozen(0, 4)
    loader = DataLoader(TensorDataset(x, c), batch_size=30)
    bound = ve.evaluate(model, loader, expectation=noise, missing="ignore", bind=lambda b: (model.given(b[1]), b[0]))
    e = ve.evaluate(model, ve.given(x, c), expectation=noise, missing="ignore")
    assert e.elbo == pytest.approx(bound.elbo, abs=1e-12)
    history = fit(model, ve.given(x, c), epochs=2, missing="ignore", evaluation_expectation=noise)
    again = ve.evaluate(model, loader, expectation=noise, missing="ignore", bind=lambda b: (model.given(b[1]), b[0]))
    assert history.train.elbo == pytest.approx(again.elbo, abs=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_images_counts_and_encoders_that_take_the_condition_themselves(own):
    torch.manual_seed(0)
    shape = (1, 6, 5)
    encoder = MLPEncoder(shape, (8,), condition=K) if own else ConvEncoder(shape, (3,))
    decoder = ConvDecoder(shape, (3,))
    model = ve.VAE(encoder, decoder, data_shape=shape, latent_dim=H, likelihood=ve.Poisson(), condition=K)
    x, c = torch.randint(0, 4, (20, *shape)), torch.randn(20, K)
    data = ve.given(x, c)
    history = fit(model, data, epochs=2)
    assert history.train.elbo == pytest.approx(ve.evaluate(model, data).elbo, rel=1e-6)
    assert model.reconstruct(x, condition=c).shape == x.shape and hasattr(model, "condition_shift") is not own
    assert not torch.equal(model.encode(x, condition=c), model.encode(x, condition=c.roll(1, 0)))
    assert model.sample(4, condition=c[0]).shape == (4, *shape)


# --- What takes data --------------------------------------------------------------------------------------------------


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(5)
    return ve.given(torch.randn(97, D, generator=g), torch.randn(97, K, generator=g))


class Cut(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("streamed", [False, True])
def test_training_is_resumed_bit_for_bit(data, tmp_path, streamed):
    if streamed:
        data = ve.given(Rows(data.rows[:, :D], shard_size=30), data.rows[:, D:])
    options = {"held_out": data, "epochs": 3, "batch_size": 40, "seed": 3}
    whole, cut = small().float(), small().float()
    expected = fit(whole, data, **options)

    def crash(row):
        if row["epoch"] == 1:
            raise Cut

    with pytest.raises(Cut):
        fit(cut, data, checkpoints=tmp_path, on_epoch=crash, **options)
    resumed = small(seed=1).float()
    history = fit(resumed, data, checkpoints=tmp_path, resume=True, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert history.train.elbo == expected.train.elbo and history.held_out.elbo == expected.held_out.elbo
    other = ve.given(data.rows[:, :D] if not streamed else Rows(torch.zeros(97, D)), torch.ones(97, K))
    with pytest.raises(UsageError, match="training began with"):
        fit(small().float(), other, checkpoints=tmp_path, resume=True, **options)


@pytest.mark.parametrize("make", [ve.vae1, ve.vae2])
def test_replicates_are_what_fit_makes_of_each(data, make):
    together = [small(make, seed) for seed in range(2)]
    alone = copy.deepcopy(together)
    options = {"epochs": 2, "batch_size": 25, "held_out": data}
    histories = fit_replicates(together, data, seeds=(4, 9), **options)
    for k, model in enumerate(alone):
        history = fit(model, data, seed=(4, 9)[k], **options)
        assert histories[k].held_out.elbo == pytest.approx(history.held_out.elbo, abs=1e-9)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(together[k].state_dict()[name], value, rtol=0, atol=1e-9, msg=name)


def test_a_loader_of_pairs_trains(data):
    model = small().float()
    loader = DataLoader(TensorDataset(data.rows[:, :D], data.rows[:, D:]), batch_size=30)
    history = fit(model, loader, epochs=2)
    assert history.train.elbo == pytest.approx(ve.evaluate(model, data).elbo, abs=0.05)


def test_calibrate_fold_and_prune(data):
    model, noise = small(ve.vae2), Frozen(0, 4)
    calibrated = ve.calibrate(model, data, expectation=noise)
    assert isinstance(calibrated, ConditionalModel)
    e = ve.evaluate(calibrated, data, expectation=noise)
    assert abs(e.gains.variance) < 1e-12 and abs(e.gap) < 1e-10
    folded = fold(calibrated)
    assert ve.evaluate(folded, data, expectation=noise).elbo == pytest.approx(e.elbo, abs=1e-9)
    # A latent that has collapsed and whose mean is that of the prior.
    with torch.no_grad():
        for layer in (folded.latent_mean, folded.latent_log_variance):
            layer.weight[0], layer.bias[0] = 0, 0
        folded.latent_layer.weight[:, 0] = 0
    pruned = ve.prune(folded, [0], data)
    expected = ve.evaluate(folded, data, expectation=GaussHermite(8)).elbo
    assert ve.evaluate(pruned, data, expectation=GaussHermite(8)).elbo == pytest.approx(expected, abs=1e-9)


def test_select_gives_candidates_their_condition(data):
    options = {"latent_dims": [1, 2], "num_seeds": 1, "epochs": 2, "seed": 1, "progress": False}
    named = ve.select(data, model="vae1", **options)
    made = ve.select(data, model=lambda h: ve.vae1(D, h, condition=K), **options)
    # Latent layer, that of c, one more of the decoder, mean head, σ².
    counts = {h: 50 * h + 50 + 50 * K + 50 * 51 + 51 * D + 1 for h in (1, 2)}
    assert {c.latent_dim: c.num_parameters for c in named.candidates} == counts
    assert {c.latent_dim: c.elbo for c in named.candidates} == {c.latent_dim: c.elbo for c in made.candidates}
    with pytest.raises(UsageError, match="condition of width 2"):
        ve.select(data, model=lambda h: ve.vae1(D, h, condition=2), **options)
    with pytest.raises(UsageError, match="linear"):
        ve.select(data, latent_dims=[1, 2], model="linear")


def test_pictures_are_those_of_each_points_condition(data):
    model = small().float()
    view = look(model, data, num_points=97, num_steps=3)
    x, c = data.rows[:, :D], data.rows[:, D:]
    assert torch.equal(view.x, x) and view.data_shape == (D,)
    assert torch.allclose(view.reconstruction, model.reconstruct(x, condition=c), atol=1e-6)
    middle = view.latent_mean.mean(0).repeat(3, 1).float()
    middle[:, view.order[0]] = view.traversed[0].float()
    assert torch.allclose(view.traversals[0], model.decode(middle, condition=c[0]), atol=1e-5)


@pytest.mark.slow
def test_digits_are_better_known_given_their_label():
    digits = load("digits", condition="labels")
    torch.manual_seed(0)
    models = ve.vae1(64, 2, condition=10), ve.vae1(64, 2)
    parts = (digits.train, digits.held_out), tuple(part.rows[:, :64] for part in (digits.train, digits.held_out))
    given, plain = (
        fit(model, train, held_out=held_out, epochs=60, progress=False)
        for model, (train, held_out) in zip(models, parts, strict=True)
    )
    # 8 to 12 nats, with errors of 1.
    assert given.held_out.elbo > plain.held_out.elbo + 5
    with_own = ve.VAE(
        MLPEncoder(64, condition=10), MLPDecoder(), data_shape=64, latent_dim=2, condition=10, likelihood=Gaussian()
    )
    assert fit(with_own, *parts[0][:1], epochs=60, progress=False).train.elbo > plain.train.elbo + 5


# --- Mistakes ---------------------------------------------------------------------------------------------------------

X, C = torch.zeros(6, D), torch.zeros(6, K)
MISTAKES = {
    "no condition to evaluate": (lambda m, p: ve.evaluate(m, X), UsageError, "without a condition"),
    "no condition to fit": (lambda m, p: fit(m, X), UsageError, "without a condition"),
    "no condition held out": (lambda m, p: fit(m, ve.given(X, C), held_out=X), UsageError, "held_out without"),
    "no condition to diagnose": (lambda m, p: ve.diagnose(m, X), UsageError, "without a condition"),
    "no condition in a loader": (lambda m, p: fit(m, DataLoader(X)), UsageError, "without a condition"),
    "no condition of the posterior": (lambda m, p: m.posterior(X), UsageError, "no condition"),
    "no condition of the likelihood": (lambda m, p: m.likelihood(X[:, :H]), UsageError, "no condition"),
    "no condition to encode": (lambda m, p: m.encode(X), UsageError, "no condition"),
    "no condition to sample": (lambda m, p: m.sample(3), UsageError, "no condition"),
    "unconditional, evaluate": (lambda m, p: ve.evaluate(p, ve.given(X, C)), UsageError, "takes none"),
    "unconditional, fit": (lambda m, p: fit(p, ve.given(X, C)), UsageError, "takes none"),
    "unconditional, sample": (lambda m, p: p.sample(6, condition=C), UsageError, "takes none"),
    "unconditional, given": (lambda m, p: p.given(C), UsageError, "takes none"),
    "width to evaluate": (lambda m, p: ve.evaluate(m, ve.given(X, C[:, :2])), DataError, "width 2"),
    "width to fit": (lambda m, p: fit(m, ve.given(X, C[:, :2])), DataError, "width 2"),
    "width in a loader": (lambda m, p: fit(m, DataLoader(TensorDataset(X, C[:, :2]))), DataError, r"\(B, 3\)"),
    "labels in a loader": (lambda m, p: fit(m, DataLoader(TensorDataset(X, C[:, 0].long()))), DataError, r"\(B, 3\)"),
    "width to encode": (lambda m, p: m.encode(X, condition=C[:, :2]), DataError, r"expected \(6, 3\)"),
    "features": (lambda m, p: ve.evaluate(m, ve.given(X[:, :4], C)), DataError, r"expected \(N, 5\)"),
    "rows": (lambda m, p: ve.given(X, C[:4]), DataError, "4 conditions given for 6"),
    "rows to encode": (lambda m, p: m.encode(X, condition=C[:4]), DataError, r"expected \(6, 3\)"),
    "rows of the model of a batch": (lambda m, p: m.given(C).posterior(X[:2]), UsageError, "2 rows given"),
    "nan": (lambda m, p: ve.given(X, C / 0), DataError, "row 0, column 0"),
    "nan in a loader": (lambda m, p: fit(m, DataLoader(TensorDataset(X, C / 0))), DataError, "the condition"),
    "axes": (lambda m, p: ve.given(X, C.unsqueeze(0)), DataError, "one row of numbers"),
    "twice": (lambda m, p: ve.given(ve.given(X, C), C), UsageError, "already"),
    "text": (lambda m, p: ve.given(X, ["a"] * 6), DataError, "numbers"),
    "count": (lambda m, p: ve.vae1(D, H, condition=0), UsageError, "condition=0"),
    "encoder": (lambda m, p: ve.vae1(D, H, networks=(MLPEncoder(D, condition=2), MLPDecoder())), UsageError, "takes 2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_in_one_line(name):
    do, kind, says = MISTAKES[name]
    with pytest.raises(kind, match=says) as raised:
        do(ve.vae1(D, H, condition=K), ve.vae1(D, H))
    assert "\n" not in str(raised.value)
