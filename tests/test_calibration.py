"""Optimal variances: the ELBO rises by what was announced, to the entropy sum, and nothing near is better."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Laplace

from vaentropy.calibration import calibrate, fold, optimal_factors
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian
from vaentropy.model import Rescaled, from_functions
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.results import Evaluation
from vaentropy.vae import VAE, LearnedNormal

from .models import F64, NORMAL_LIKELIHOODS, NORMAL_PRIORS, Toy, close, draws, magnitude, nodes_of, reference

seeds = st.integers(0, 2**31)
FROZEN = Frozen(4, 5)


def size(e):
    """The sum of the absolute terms."""
    h = e.entropies
    parts = (e.reconstruction, e.kl, h.encoder, h.prior, h.decoder, e.prior_gap, e.decoder_gap)
    return sum(abs(part) for part in parts) + 1


def announced(e, per_feature):
    return (float(e.gains.feature_variance.sum()) if per_feature else e.gains.variance) + float(
        e.gains.prior_variance.sum()
    )


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("prior", NORMAL_PRIORS)
@pytest.mark.parametrize("per_feature", [None, True, False])
@given(seed=seeds)
@settings(max_examples=2)
def test_calibrating_any_networks_reaches_the_entropy_sum(likelihood, posterior, prior, per_feature, seed):
    model = Toy(seed, posterior, likelihood, prior)
    x = model.data(8)
    before = evaluate(model, x, expectation=FROZEN)
    calibrated = calibrate(model, x, per_feature=per_feature, expectation=FROZEN)
    after = evaluate(calibrated, x, expectation=FROZEN)
    scale = size(before) + size(after)
    assert close(after.elbo, after.entropy_sum, scale)
    # Each part, since they could cancel.
    assert close(after.prior_gap, 0.0, scale) and close(after.decoder_gap, 0.0, scale)
    assert after.prior_residuals is not None and close(after.prior_residuals, [0.0, 0.0], scale)
    each = likelihood != "normal, shared" if per_feature is None else per_feature
    if each:
        assert after.decoder_residuals is not None and close(after.decoder_residuals, [0.0] * 3, scale)
    assert close(after.elbo, before.elbo + announced(before, each), scale)
    # Independently of `evaluate`:
    nodes = nodes_of(FROZEN, 8, (2,))
    expected = reference(calibrated, x, draws(model.posterior(x), nodes.noise), nodes.weights)
    assert close(after.elbo, expected["elbo"].mean(), scale)
    assert close(expected["elbo"].mean(), expected["entropy_sum"].mean(), magnitude(expected))
    assert calibrated.model is model


def test_calibrating_changes_nothing_in_the_model():
    torch.manual_seed(0)
    model = vae2(3, 2, (4,)).double()
    state = copy.deepcopy(model.state_dict())
    calibrate(model, torch.randn(20, 3, dtype=F64))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_images(likelihood):
    model = Toy(1, "diagonal", likelihood, "learned", data_shape=(1, 4, 4), latent_shape=(2, 2, 2))
    x = model.data(9)
    before = evaluate(model, x, expectation=FROZEN)
    for per_feature in (True, False):
        calibrated = calibrate(model, x, per_feature=per_feature, expectation=FROZEN)
        assert calibrated.variance_factor is not None and calibrated.prior_factor is not None
        assert calibrated.variance_factor.shape == ((1, 4, 4) if per_feature else ())
        assert calibrated.prior_factor.shape == (2, 2, 2)
        after = evaluate(calibrated, x, expectation=FROZEN)
        assert close(after.gap, 0.0, size(after) + size(before))
        assert close(after.elbo, before.elbo + announced(before, per_feature), size(after) + size(before))
        assert (after.data_shape, after.latent_shape) == ((1, 4, 4), (2, 2, 2))


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
@pytest.mark.parametrize("per_feature", [True, False])
def test_nothing_near_is_better(likelihood, per_feature):
    model = Toy(2, likelihood=likelihood, prior="learned")
    x = model.data(30)
    calibrated = calibrate(model, x, per_feature=per_feature, expectation=FROZEN)
    assert calibrated.variance_factor is not None and calibrated.prior_factor is not None

    def elbo(log_factor, log_prior_factor):
        scaled = Rescaled(
            model,
            variance_factor=calibrated.variance_factor * torch.exp(log_factor),
            prior_factor=calibrated.prior_factor * torch.exp(log_prior_factor),
        )
        return evaluate(scaled, x, expectation=FROZEN).elbo

    zero, prior_zero = torch.zeros_like(calibrated.variance_factor), torch.zeros(2, dtype=F64)
    best, step = elbo(zero, prior_zero), 1e-3
    directions = torch.eye(3, dtype=F64) if per_feature else [torch.ones((), dtype=F64)]
    for direction in directions:
        up, down = elbo(step * direction, prior_zero), elbo(-step * direction, prior_zero)
        assert max(up, down) < best
        # ½ (ρ - 1 - log ρ) has no slope at ρ = 1 and the curvature ½, of each feature.
        assert abs(up - down) / (2 * step) < 1e-5
        assert abs((up + down - 2 * best) / step**2 + (0.5 if per_feature else 1.5)) < 1e-4
    for direction in torch.eye(2, dtype=F64):
        up, down = elbo(zero, step * direction), elbo(zero, -step * direction)
        assert max(up, down) < best and abs(up - down) / (2 * step) < 1e-5


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_residuals_are_slopes(likelihood):
    # R_dec,d = -dL/dlog σ_d², R_prior,h = -dL/dlog α_h², by difference quotients of the ELBO.
    model = Toy(3, likelihood=likelihood, prior="with mean")
    x = model.data(30)
    e = evaluate(model, x, expectation=FROZEN)
    assert e.decoder_residuals is not None and e.prior_residuals is not None
    step = 1e-4

    def slope(direction, name):
        elbos = [
            evaluate(Rescaled(model, **{name: torch.exp(sign * step * direction)}), x, expectation=FROZEN).elbo
            for sign in (1, -1)
        ]
        return (elbos[0] - elbos[1]) / (2 * step)

    for d in range(3):
        assert abs(slope(torch.eye(3, dtype=F64)[d], "variance_factor") + float(e.decoder_residuals[d])) < 1e-6
    assert abs(slope(torch.ones((), dtype=F64), "variance_factor") + e.decoder_gap) < 1e-6
    for h in range(2):
        assert abs(slope(torch.eye(2, dtype=F64)[h], "prior_factor") + float(e.prior_residuals[h])) < 1e-6


def test_what_is_calibrated_is_what_is_normal():
    x = Toy(0).data(6)
    model = Toy(0, likelihood="normal, shared", prior="laplace")
    only_decoder = calibrate(model, x, expectation=MonteCarlo(4))
    assert only_decoder.prior_factor is None and only_decoder.variance_factor is not None
    after = evaluate(only_decoder, x, expectation=MonteCarlo(4))
    assert close(after.decoder_gap, 0.0, 100.0) and after.prior_gap != 0
    model = Toy(0, likelihood="bernoulli", prior="learned")
    only_prior = calibrate(model, model.data(6), expectation=FROZEN)
    assert only_prior.variance_factor is None and only_prior.prior_factor is not None
    after = evaluate(only_prior, model.data(6), expectation=FROZEN)
    model = Toy(0, prior="learned")
    without_prior = calibrate(model, x, prior=False, expectation=FROZEN)
    assert without_prior.prior_factor is None
    before, after = (evaluate(m, x, expectation=FROZEN) for m in (model, without_prior))
    assert close(after.prior_gap, before.prior_gap) and close(after.decoder_gap, 0.0, 100.0)


def test_factors_keep_the_form_of_the_variance():
    for likelihood, shape in zip(NORMAL_LIKELIHOODS, [(), (3,), (3,)], strict=True):
        model = Toy(0, likelihood=likelihood)
        factor, prior_factor = optimal_factors(evaluate(model, model.data(6)))
        assert factor is not None and factor.shape == shape and factor.dtype == F64
        assert prior_factor is not None and prior_factor.shape == (2,) and prior_factor.dtype == F64


def test_weights_and_parts():
    model, w = Toy(0, likelihood="normal, function"), torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 0.1])
    x = model.data(6)
    calibrated = calibrate(model, x, expectation=FROZEN, sample_weight=w)
    assert close(evaluate(calibrated, x, expectation=FROZEN, sample_weight=w).gap, 0.0, 100.0)
    assert abs(evaluate(calibrated, x, expectation=FROZEN).gap) > 1e-3
    parts = [evaluate(model, x[i], expectation=FROZEN, sample_weight=w[i]) for i in (slice(2), slice(2, 6))]
    factor, _ = optimal_factors(Evaluation.merge(parts))
    assert close(factor, calibrated.variance_factor, 10.0)


def test_the_optimum_of_a_fixed_variance_is_the_mean_squared_error():
    # Equations (9) to (11), with an exact expectation.
    model = from_functions(lambda x: (x[:, :1], 0 * x[:, :1]), lambda z: torch.cat([z, 2 * z], 1), variance=7.0)
    x = torch.tensor([[1.0, 0.0], [3.0, 1.0]], dtype=F64)
    # E(x_1 - z)² = 1 and E(x_2 - 2z)² = (x_2 - 2x_1)² + 4
    e = evaluate(model, x, expectation=GaussHermite(2))
    assert close(e.optimal_feature_variance, [1.0, 18.5]) and close(e.optimal_variance, 9.75)
    assert close(e.variance_ratio, 9.75 / 7, 10.0) and close(e.optimal_prior_variance, [6.0])
    ratio = 9.75 / 7
    assert close(e.gains.variance, ratio - 1 - math.log(ratio), 1.0)
    assert close(e.gains.prior_variance, [0.5 * (5 - math.log(6))])


# --- The VAE's own parameters -----------------------------------------------------------------------------------------


def conv_vae(variance):
    return VAE(
        ConvEncoder((1, 6, 5), (2, 3)),
        ConvDecoder((1, 6, 5), (3, 2)),
        data_shape=(1, 6, 5),
        latent_dim=2,
        likelihood=Gaussian(variance=variance),
    )


def mlp_vae(variance, **options):
    return VAE(
        MLPEncoder(3, (4,)), MLPDecoder((4,)), data_shape=3, latent_dim=2, likelihood=Gaussian(variance), **options
    )


VAES = {
    "VAE-1": lambda: vae1(3, 2, (4,)),
    "VAE-2": lambda: vae2(3, 2, (4,)),
    "VAE-2 with a penalty": lambda: vae2(3, 2, (4,), columns="penalty"),
    "VAE-3": lambda: vae3(3, 2, (4,)),
    "per feature": lambda: mlp_vae("per_feature"),
    "per feature, learned prior": lambda: mlp_vae("per_feature", prior=LearnedNormal()),
    "images, shared": lambda: conv_vae("shared"),
    "images, per feature": lambda: conv_vae("per_feature"),
}


def random_vae(name, seed=0):
    torch.manual_seed(seed)
    model = VAES[name]().double()
    # Not at the initial values, where log σ² = log α² = 0.
    for parameter in model.variance_parameters():
        nn.init.normal_(parameter, std=0.5)
    generator = torch.Generator().manual_seed(seed)
    return model, torch.randn((12, *model.data_shape), generator=generator, dtype=F64)


@pytest.mark.parametrize("name", VAES)
def test_rescaling_a_vae_is_calibrating_it(name):
    model, x = random_vae(name)
    before = evaluate(model, x, expectation=FROZEN)
    factor, prior_factor = optimal_factors(before)
    wrapped = evaluate(calibrate(model, x, expectation=FROZEN), x, expectation=FROZEN)
    model.rescale(variance_factor=factor, prior_factor=prior_factor)
    after, scale = evaluate(model, x, expectation=FROZEN), size(before) + size(wrapped)
    for term in ("elbo", "reconstruction", "kl", "entropy_sum", "gap", "prior_gap", "decoder_gap", "variance_ratio"):
        assert close(getattr(after, term), getattr(wrapped, term), scale), term
    assert close(after.gap, 0.0, scale) and after.variance_kind == wrapped.variance_kind
    # A standard normal prior is still one.
    if name not in ("VAE-2", "VAE-2 with a penalty", "per feature, learned prior"):
        assert torch.equal(model.prior_log_variance, torch.zeros(2, dtype=F64))
    else:
        assert close(model.prior_log_variance.detach().exp(), before.optimal_prior_variance, 10.0)


def test_one_factor_for_the_biases_of_a_convolution():
    model, x = random_vae("images, shared")
    function = VAE(
        model.encoder, model.decoder, data_shape=(1, 6, 5), latent_dim=2, likelihood=Gaussian(variance="function")
    ).double()
    before = evaluate(function, x, expectation=FROZEN)
    factor, _ = optimal_factors(before, per_feature=False)
    function.rescale(variance_factor=factor)
    after = evaluate(function, x, expectation=FROZEN)
    assert close(after.elbo, before.elbo + before.gains.variance, size(before)) and close(after.decoder_gap, 0.0, 100.0)
    # A factor per pixel has one bias per channel to go to: their mean, which is the optimum of that bias.
    function.rescale(variance_factor=optimal_factors(after)[0])
    again = evaluate(function, x, expectation=FROZEN)
    assert close(again.elbo, after.elbo, size(before)) and close(again.decoder_gap, 0.0, 100.0)


@pytest.mark.parametrize("name", VAES)
def test_folding_the_prior_changes_no_number(name):
    model, x = random_vae(name)
    before = evaluate(model, x, expectation=FROZEN)
    log_variance, latent_mean = model.prior_log_variance.detach().clone(), model.encode(x)
    folded = model.fold_prior()
    after, scale = evaluate(folded, x, expectation=FROZEN), size(before)
    assert torch.equal(folded.prior_log_variance, torch.zeros(2, dtype=F64)) and folded.columns == "free"
    for term in ("elbo", "reconstruction", "kl", "entropy_sum", "gap", "prior_gap", "decoder_gap"):
        assert close(getattr(after, term), getattr(before, term), scale), term
    assert close(after.kl_per_latent, before.kl_per_latent, scale)
    # Encoder and prior entropy both lose log α.
    lost = 0.5 * float(log_variance.sum())
    assert close(after.entropies.prior, before.entropies.prior - lost, scale)
    assert close(after.entropies.encoder, before.entropies.encoder - lost, scale)
    assert close(folded.encode(x) * log_variance.mul(0.5).exp(), latent_mean, scale)
    # Nothing of a learned prior is left to be trained.
    assert "prior_log_variance" not in dict(folded.named_parameters())
    assert "prior_log_variance" in folded.state_dict()
    assert {p.data_ptr() for p in folded.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_calibrating_then_folding_is_a_vae_with_standard_prior_at_the_entropy_sum():
    model, x = random_vae("VAE-2 with a penalty", 3)
    before = evaluate(model, x, expectation=FROZEN)
    factor, prior_factor = optimal_factors(before)
    model.rescale(variance_factor=factor, prior_factor=prior_factor)
    folded = evaluate(model.fold_prior(), x, expectation=FROZEN)
    assert close(folded.elbo, before.elbo + announced(before, False), size(before))
    assert close(folded.gap, 0.0, size(before)) and close(folded.entropies.prior, math.log(2 * math.pi * math.e))


def test_a_single_precision_vae_is_calibrated_to_single_precision():
    torch.manual_seed(0)
    model, x = vae1(3, 2, (4,)), torch.randn(20, 3)
    calibrated = calibrate(model, x, expectation=FROZEN)
    after = evaluate(calibrated, x, expectation=FROZEN)
    assert close(after.gap, 0.0, size(after), tolerance=1e-5)
    assert calibrated.likelihood(torch.zeros(4, 2)).mean.dtype == torch.float32


def test_wrappers_are_modules():
    torch.manual_seed(0)
    model = vae1(3, 2, (4,)).double()
    x = torch.randn(20, 3, dtype=F64)
    calibrated = calibrate(model, x, expectation=FROZEN)
    assert set(calibrated.state_dict()) - {"variance_factor", "prior_factor"} == {
        f"model.{n}" for n in model.state_dict()
    }
    again = Rescaled(vae1(3, 2, (4,)).double(), variance_factor=torch.ones(()), prior_factor=torch.ones(2)).double()
    again.load_state_dict(calibrated.state_dict())
    assert evaluate(again, x, expectation=FROZEN).elbo == evaluate(calibrated, x, expectation=FROZEN).elbo
    # Wrapping twice multiplies.
    twice = Rescaled(Rescaled(model, variance_factor=torch.tensor(2.0)), variance_factor=torch.tensor(3.0))
    once = Rescaled(model, variance_factor=torch.tensor(6.0))
    assert close(evaluate(twice, x).elbo, evaluate(once, x).elbo)


def test_no_factor_leaves_the_model_as_it_is():
    model = Toy(0, likelihood="poisson", prior="laplace")
    x = model.data(5)
    assert evaluate(Rescaled(model), x).to_dict() == evaluate(model, x).to_dict()


# --- What cannot be calibrated ----------------------------------------------------------------------------------------


def perfect(x):
    return from_functions(lambda x: (x, x), lambda z: torch.zeros(len(z), 2, dtype=F64), variance=1.0), x


def one_line(caught):
    return "\n" not in str(caught.value)


def test_an_element_reproduced_exactly_has_no_optimum():
    model, x = perfect(torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=F64))
    with pytest.raises(UnsupportedError, match=r"optimal variance is 0 or not finite.*per_feature=False") as caught:
        calibrate(model, x, per_feature=True, expectation=FROZEN)
    assert one_line(caught)
    after = evaluate(calibrate(model, x, per_feature=False, expectation=FROZEN), x, expectation=FROZEN)
    assert close(after.gap, 0.0, 100.0)
    with pytest.raises(UnsupportedError, match="optimal variance is 0"):
        calibrate(model, torch.zeros(3, 2, dtype=F64), expectation=FROZEN)


def test_nothing_to_calibrate():
    model = from_functions(
        lambda x: (x[:, :2], 0 * x[:, :2]),
        lambda z: torch.distributions.Bernoulli(logits=torch.ones(len(z), 3)),
        prior=Laplace(torch.zeros(2), torch.ones(2)),
    )
    with pytest.raises(UsageError, match="nothing to calibrate: neither likelihood nor prior") as caught:
        calibrate(model, torch.ones(4, 3, dtype=F64))
    assert one_line(caught)


def test_only_normals_can_be_rescaled():
    model = Toy(0, likelihood="bernoulli", prior="laplace")
    z = torch.zeros(4, 2, dtype=F64)
    with pytest.raises(ModelError, match=r"likelihood\(z\) is Independent, expected a normal") as caught:
        Rescaled(model, variance_factor=torch.tensor(2.0)).likelihood(z)
    assert one_line(caught)
    with pytest.raises(ModelError, match=r"prior\(\) is Laplace, expected a normal"):
        Rescaled(model, prior_factor=torch.ones(2)).prior()


@pytest.mark.parametrize(
    ("make", "factors", "words"),
    [
        (lambda: vae1(3, 2, (4,)), {"variance_factor": torch.ones(3)}, r"shape \(3,\) given for σ² with 1 parameters"),
        (lambda: mlp_vae("per_feature"), {"variance_factor": torch.ones(2)}, r"shape \(2,\) given for σ² with 3"),
        (lambda: vae0(3, 2, (4,)), {"variance_factor": torch.tensor(2.0)}, r"σ² is fixed at 1\.0; use Rescaled"),
        (
            lambda: VAE(MLPEncoder(3), MLPDecoder(), data_shape=3, latent_dim=2, likelihood=Bernoulli()),
            {"variance_factor": torch.tensor(2.0)},
            "BernoulliHead has no variance to rescale",
        ),
        (lambda: mlp_vae("shared", columns="unit"), {"prior_factor": torch.ones(2)}, 'columns="unit" fix the scale'),
        (lambda: mlp_vae("shared", columns="penalty"), {"prior_factor": torch.ones(2)}, 'columns="penalty" fix'),
    ],
)
def test_factors_that_a_vae_cannot_take(make, factors, words):
    with pytest.raises(UsageError, match=words) as caught:
        make().rescale(**factors)
    assert one_line(caught)


@pytest.mark.parametrize("name", VAES)
def test_fold_puts_the_optimum_into_a_copy(name):
    model, x = random_vae(name)
    calibrated = calibrate(model, x, expectation=FROZEN)
    folded = fold(calibrated)
    expected, before = evaluate(calibrated, x, expectation=FROZEN), evaluate(model, x, expectation=FROZEN)
    after = evaluate(folded, x, expectation=FROZEN)
    assert close(after.elbo, expected.elbo, size(before)) and close(after.gap, 0.0, 100.0)
    assert type(folded) is VAE and folded is not model
    assert close(evaluate(model, x, expectation=FROZEN).elbo, before.elbo)


def test_fold_and_calibrate_say_what_they_need():
    with pytest.raises(UsageError, match="expected a calibrated VAE"):
        fold(calibrate(from_functions(lambda x: (x, x), lambda z: z, variance=1.0), torch.rand(5, 2)))
    with pytest.raises(UsageError, match="bind given"):
        calibrate(from_functions(lambda x: (x, x), lambda z: z, variance=1.0), torch.rand(5, 2), bind=lambda b: b)
