"""The gradient check against the exact gradient of the linear VAE, its optima for any β, and what it leaves alone."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Laplace
from torch.utils.data import DataLoader

from vaentropy.data.source import Rows
from vaentropy.diagnosis import gradients
from vaentropy.diagnosis.gradients import GradientCheck, gradient_check, trainable
from vaentropy.diagnosis.step import _moved
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import DataError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import MonteCarlo
from vaentropy.families import vae0, vae1, vae2
from vaentropy.likelihoods import Bernoulli
from vaentropy.linear import LinearVAE
from vaentropy.model import from_functions
from vaentropy.moments import DataMoments
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.vae import VAE

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


DATA_DIM, LATENT_DIM = 10, 2
# Two directions of large variance, so that β = 4 still has latents.
SCALES = torch.tensor([6, 5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.3, 0.3], dtype=F64)
X = draw(400, DATA_DIM) * SCALES @ torch.linalg.qr(draw(DATA_DIM, DATA_DIM, seed=1))[0] + 1
STATISTICS = DataMoments.of(X)


def linear_optimum(beta: float) -> LinearVAE:
    """The optimum of reconstruction - β KL of the linear VAE.

    For a given σ² it is the optimum of probabilistic PCA with βσ² in the place of σ²: β then is a factor of all. Each
    latent leaves βσ² of the squared error, so that D σ² = H βσ² + the eigenvalues left out.
    """
    values, vectors = STATISTICS.eigen
    variance = values[LATENT_DIM:].sum() / (DATA_DIM - beta * LATENT_DIM)
    used, kept = values[:LATENT_DIM], vectors[:, :LATENT_DIM]
    assert float(used.min()) > beta * float(variance) > 0
    model = LinearVAE(DATA_DIM, LATENT_DIM).double()
    with torch.no_grad():
        model.weight.copy_(kept * (used - beta * variance).sqrt())
        model.encoder_weight.copy_((kept * (used - beta * variance).sqrt() / used).T)
        model.bias.copy_(STATISTICS.mean)
        model.encoder_bias.copy_(-model.encoder_weight @ STATISTICS.mean)
        model.latent_log_variance.copy_((beta * variance / used).log())
        model.log_variance.copy_(variance.log())
    return model


def elsewhere() -> LinearVAE:
    """Near the optimum, one nat away."""
    model = linear_optimum(1.0)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.01 * draw(*p.shape, seed=i))
    return model


def exact(model: LinearVAE, beta: float = 1.0) -> Tensor:
    terms = model.elbo_terms(STATISTICS)
    return terms.reconstruction - beta * terms.kl.sum()


def exact_gradient(model: LinearVAE, value: Tensor) -> Tensor:
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel(), dtype=F64) if g is None else g.flatten()
            for g, p in zip(gradients, model.parameters(), strict=True)
        ]
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
def test_the_closed_form_for_any_beta_is_stationary(beta):
    model = linear_optimum(beta)
    assert float(exact_gradient(model, exact(model, beta)).norm()) < 1e-12
    if beta == 1:
        pca = LinearVAE.optimum(X, LATENT_DIM).mean_log_likelihood(STATISTICS)
        assert float(exact(model).detach()) == pytest.approx(float(pca.detach()), rel=1e-12)


# --- Gradients --------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_the_exact_gradients():
    model = elsewhere()
    with torch.no_grad():
        # The decoder's parameters are far from their optimum, but do not count in a norm below.
        model.bias.add_(2.0)
    check = gradient_check(model, X, num_draws=16, betas=[])
    terms = model.elbo_terms(STATISTICS)
    norm = float(exact_gradient(model, terms.elbo).norm())
    assert check.noise_floor < 0.2 * norm
    assert check.norm == pytest.approx(norm, abs=3 * check.noise_floor)
    kl = exact_gradient(model, model.elbo_terms(STATISTICS).kl.sum())
    assert check.kl_norm == pytest.approx(float(kl.norm()), rel=1e-10)
    # Of the reconstruction, over the parameters that the KL depends on.
    reconstruction = exact_gradient(model, model.elbo_terms(STATISTICS).reconstruction)
    shared = float(reconstruction[kl != 0].norm())
    assert check.reconstruction_norm == pytest.approx(shared, abs=3 * check.noise_floor)
    assert shared < float(reconstruction.norm()) - 6 * check.noise_floor
    assert check.num_parameters == sum(p.numel() for p in model.parameters()) and check.num_draws == 16
    assert check.untested == () and check.steps == {}


def reparametrised(model: LinearVAE, generator: torch.Generator) -> Tensor:
    """Gradient of the ELBO with one draw of z per point, written down again."""
    noise = torch.randn(len(X), LATENT_DIM, generator=generator, dtype=F64)
    mean = X @ model.encoder_weight.T + model.encoder_bias
    z = mean + torch.exp(0.5 * model.latent_log_variance) * noise
    error = (X - z @ model.weight.T - model.bias).square().sum(1)
    reconstruction = -0.5 * (DATA_DIM * (math.log(2 * math.pi) + model.log_variance) + error / model.log_variance.exp())
    variance = model.latent_log_variance.exp()
    kl = 0.5 * (mean.square() + variance - 1 - model.latent_log_variance).sum(1)
    return exact_gradient(model, (reconstruction - kl).mean())


def test_the_noise_floor_is_the_spread_of_the_mean_gradient():
    model, generator = elsewhere(), torch.Generator().manual_seed(7)
    draws = torch.stack([reparametrised(model, generator) for _ in range(300)])
    expected = float((draws.var(0).sum() / 2).sqrt())
    found = [gradient_check(model, X, num_draws=2, betas=[], seed=seed).noise_floor for seed in range(12)]
    assert float(np.sqrt(np.mean(np.square(found)))) == pytest.approx(expected, rel=0.2)
    # With more draws the mean is less noisy.
    many = gradient_check(model, X, num_draws=16, betas=[]).noise_floor
    assert many == pytest.approx(expected / 8**0.5, rel=0.3)


def test_at_the_optimum_there_is_only_noise():
    model = linear_optimum(1.0)
    checks = [gradient_check(model, X, betas=[1.0], num_draws=16, seed=seed) for seed in range(4)]
    for check in checks:
        # The square of the norm is unbiased: about 0, of either sign before it is cut.
        assert check.norm < 1.5 * check.noise_floor
        for step in check.steps.values():
            assert step.gain <= 3 * step.gain_error + 1e-12
        for move in check.moves.values():
            assert abs(move.along_parameters) < 5 * move.along_parameters_error + 1e-12
    assert min(check.norm for check in checks) == 0


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
def test_the_implied_beta_is_the_one_trained_with(beta):
    check = gradient_check(linear_optimum(beta), X, num_draws=16, betas=[])
    assert check.implied_beta_error < 0.2 * beta
    assert abs(check.implied_beta - beta) < 4 * check.implied_beta_error
    assert check.alignment > 0.99
    assert check.balances_beside(1.0) == (beta != 1.0)
    # Nothing is said of it that no step confirms.
    assert not check.implies_other_beta(1.0)
    assert not check.balances_beside(beta)


def test_an_untrained_model_implies_no_beta():
    check = gradient_check(seeded(lambda: vae1(DATA_DIM, LATENT_DIM, (5,)).double()), X, betas=[])
    assert check.alignment < 0.9 and not check.implies_other_beta(1.0)


def test_without_betas_a_step_is_made_for_one_and_for_the_implied_one():
    other = gradient_check(linear_optimum(2.5), X, num_draws=16)
    assert list(other.steps) == [1.0, other.implied_beta]
    assert list(gradient_check(linear_optimum(1.0), X, num_draws=16).steps) == [1.0]
    assert list(gradient_check(linear_optimum(1.0), X, betas=[2.0, 1.0, 2.0]).steps) == [2.0, 1.0]


# --- Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_gain_of_a_step_is_the_change_of_the_exact_objective(beta, monkeypatch):
    taken = {}
    step = gradients.best_step

    def seen(reading, x, parameters, direction, **options):
        result = step(reading, x, parameters, direction, **options)
        taken[options["beta"]] = (direction.vector, result)
        return result

    monkeypatch.setattr(gradients, "best_step", seen)
    model = elsewhere()
    gradient_check(model, X, betas=[beta], num_draws=16)
    direction, result = taken[beta]
    before = float(exact(model, beta).detach())
    with _moved(trainable(model), direction * result.length):
        gained = float(exact(model, beta).detach()) - before
    assert result.gain > 5 * result.gain_error
    assert result.gain == pytest.approx(gained, abs=3 * result.gain_error)
    # What is to be gained at most is the way to the optimum; Gauss-Newton brings most of it.
    most = float(exact(linear_optimum(beta), beta).detach()) - before
    assert 0.5 * most < gained <= most


@pytest.mark.slow
@pytest.mark.slow
def test_steps_at_an_optimum_are_measured_without_bias(monkeypatch):
    # On the draws that its direction comes from, a step gains even where there is nothing to gain.
    differences = []
    step = gradients.best_step

    def seen(reading, x, parameters, direction, **options):
        result = step(reading, x, parameters, direction, **options)
        if result.length:
            with _moved(parameters, direction.vector * result.length):
                lost = float(exact(reading.model).detach()) - at_optimum
            differences.append((result.gain - lost) / result.gain_error)
        return result

    monkeypatch.setattr(gradients, "best_step", seen)
    model = linear_optimum(1.0)
    at_optimum = float(exact(model).detach())
    for seed in range(10):
        gradient_check(model, X, betas=[1.0], seed=seed)
    assert len(differences) > 2
    assert abs(np.mean(differences)) < 3.5 / len(differences) ** 0.5


# --- Moves ------------------------------------------------------------------------------------------------------------


def test_residuals_are_derivatives_along_the_moves():
    model = elsewhere()
    check = gradient_check(model, X, num_draws=16, betas=[])
    terms = model.elbo_terms(STATISTICS)
    variance = model.log_variance.exp()
    error = -2 * variance * (terms.reconstruction + DATA_DIM / 2 * (math.log(2 * math.pi) + model.log_variance))
    second_moment = evaluate(model, X, expectation=MonteCarlo(1)).optimal_prior_variance
    assert second_moment is not None
    decoder, prior = check.moves["decoder"], check.moves["prior"]
    expected = float((0.5 * (error / variance - DATA_DIM)).detach())
    # ½ (D - ‖x - μ‖²/σ²) of opposite sign, and ½ Σ (1 - m_h).
    assert decoder.residual == pytest.approx(-expected, abs=4 * decoder.residual_error)
    assert prior.residual == pytest.approx(float((0.5 * (1 - second_moment)).sum()), rel=1e-12)
    assert prior.residual_error == pytest.approx(0, abs=1e-14)
    gradient = exact_gradient(model, model.elbo_terms(STATISTICS).elbo)
    for move in (decoder, prior):
        assert move.distance < 0.01
        along = float(gradient @ move.direction)
        assert move.along_parameters == pytest.approx(along, abs=4 * move.along_parameters_error + 1e-12)
        assert abs(move.residual) > 5 * abs(move.out_of_reach)


def every_check() -> list[GradientCheck]:
    fixed = seeded(lambda: vae0(DATA_DIM, LATENT_DIM, (5,)).double())
    learned = seeded(lambda: vae2(DATA_DIM, LATENT_DIM, (5,)).double())
    return [gradient_check(model, X[:50], betas=[]) for model in (fixed, learned, elsewhere())]


def test_residuals_are_the_sum_of_what_parameters_reach_and_what_they_do_not():
    for check in every_check():
        for move in check.moves.values():
            size = abs(move.residual) + abs(move.along_parameters)
            assert move.residual == pytest.approx(move.along_parameters + move.out_of_reach, abs=1e-12 * (1 + size))


def test_of_a_fixed_variance_all_is_out_of_reach():
    check = gradient_check(seeded(lambda: vae0(DATA_DIM, LATENT_DIM, (5,)).double()), X, betas=[])
    decoder = check.moves["decoder"]
    assert decoder.distance == 1 and decoder.along_parameters == 0 == decoder.along_parameters_error
    assert decoder.out_of_reach == decoder.residual and decoder.out_of_reach_error == decoder.residual_error
    assert abs(decoder.residual) > 1


@pytest.mark.slow
def test_errors_are_the_spread_over_seeds():
    model = elsewhere()
    checks = [gradient_check(model, X[:100], betas=[], num_draws=6, seed=seed) for seed in range(14)]
    for spread, errors in (
        ([c.moves["decoder"].residual for c in checks], [c.moves["decoder"].residual_error for c in checks]),
        ([c.implied_beta for c in checks], [c.implied_beta_error for c in checks]),
    ):
        assert float(np.std(spread)) == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=0.5)


# --- What is left as it was -------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """A VAE with batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        encoder = nn.Sequential(nn.Linear(DATA_DIM, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        self.vae = VAE(encoder, MLPDecoder((8,), nn.Tanh), data_shape=DATA_DIM, latent_dim=LATENT_DIM)
        self.vae.latent_layer.bias.requires_grad = False
        self.vae.decoder.eval()
        self.posterior, self.prior, self.likelihood = self.vae.posterior, self.vae.prior, self.vae.likelihood


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "values": [t.clone() for t in model.state_dict().values()],
        "modes": [module.training for module in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
    }


def same(one, other) -> bool:
    if isinstance(one, dict):
        return all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_model_and_the_global_generators_are_as_before(mode, loaded):
    model = seeded(lambda: Busy().double()).train()
    model.vae.head.mean[0].weight.grad = torch.ones_like(model.vae.head.mean[0].weight)
    data = DataLoader(X, batch_size=64, shuffle=True) if loaded else X  # type: ignore[arg-type]
    before = state_of(model)
    check = gradient_check(model, data, mode=mode)
    assert check.steps and check.moves
    assert same(before, state_of(model))


@pytest.mark.parametrize("call", [3, 8, 12, 30])
def test_they_are_as_before_after_an_exception_anywhere(call):
    model = seeded(lambda: Busy().double()).train()
    calls, likelihood = [], model.likelihood

    def failing(z: Tensor):
        calls.append(z)
        if len(calls) == call:
            raise KeyError("made to fail")
        return likelihood(z)

    model.likelihood = failing
    before = state_of(model)
    with pytest.raises(KeyError, match="made to fail"):
        gradient_check(model, X, mode="train", batch_size=100)
    assert same(before, state_of(model))


@pytest.mark.parametrize("validated", [False, True])
def test_a_step_off_every_cliff_is_none(validated):
    # A step of any length ends where the mean is not a number: no gain, and the parameters are put back.
    class Cliff(LinearVAE):
        def likelihood(self, z):
            mean = z @ self.weight.T + self.bias
            fallen = not torch.equal(self.bias, start)
            return DiagonalNormal(mean * math.nan if fallen else mean, self.log_variance, validate_args=validated)

    model = Cliff(DATA_DIM, LATENT_DIM).double()
    start = model.bias.detach().clone()
    check = gradient_check(model, X, betas=[1.0])
    assert check.steps[1.0].gain == 0 and check.steps[1.0].length == 0
    assert torch.equal(model.bias, start)


# --- Data and models of every form ------------------------------------------------------------------------------------


def numbers(check: GradientCheck) -> list[float]:
    moves = [getattr(m, name) for m in check.moves.values() for name in ("residual", "along_parameters", "distance")]
    steps = [value for step in check.steps.values() for value in (step.gain, step.gain_error, step.length)]
    return [check.norm, check.noise_floor, check.implied_beta, check.alignment, *moves, *steps]


def test_data_of_every_form_give_the_same_numbers():
    model, size = elsewhere(), 240
    expected = numbers(gradient_check(model, X, batch_size=size, betas=[]))
    # Of one shard: each further one has draws of its own.
    for data in (X.numpy(), DataLoader(X, batch_size=size), Rows(X), list(X.split(size))):  # type: ignore[arg-type]
        assert numbers(gradient_check(model, data, batch_size=size, betas=[])) == pytest.approx(expected, rel=1e-12)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    model = elsewhere()
    first = numbers(gradient_check(model, X, seed=5, betas=[1.0]))
    assert numbers(gradient_check(model, X, seed=5, betas=[1.0])) == first
    assert numbers(gradient_check(model, X, seed=6, betas=[]))[0] != first[0]
    gradient_check(model, X[:20], seed=2**64 - 1, betas=[])


def test_batches_are_counted_once_per_draw():
    rows = []
    gradient_check(elsewhere(), X, num_draws=3, batch_size=150, betas=[], on_batch=rows.append)
    assert rows == [150, 150, 100] * 3


def test_a_bound_model_has_gradients_but_no_moves():
    model = elsewhere()
    plain = gradient_check(model, X, betas=[])
    bound = gradient_check(model, DataLoader(X, batch_size=len(X)), bind=lambda batch: (model, batch))  # type: ignore[arg-type]
    assert (bound.norm, bound.implied_beta) == pytest.approx((plain.norm, plain.implied_beta), rel=1e-12)
    assert bound.moves == {} and bound.steps == {}
    assert bound.untested == ("moves and steps: the model needs context (bind)",)


def test_missing_values_do_not_count():
    model, x = seeded(lambda: vae1(DATA_DIM, LATENT_DIM, (5,)).double()), X.clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.05] = math.nan
    check = gradient_check(model, x, missing="ignore", num_draws=8)
    evaluation = evaluate(model, x, missing="ignore", expectation=MonteCarlo(64))
    assert evaluation.mc_stderr is not None
    assert check.moves["prior"].residual == pytest.approx(evaluation.prior_gap, rel=1e-10)
    decoder = check.moves["decoder"]
    assert decoder.residual == pytest.approx(evaluation.decoder_gap, abs=4 * decoder.residual_error)
    assert decoder.along_parameters == pytest.approx(decoder.residual, rel=0.02)
    # The gradient is that of what is observed: twice the step, twice the change.
    with pytest.raises(DataError, match="missing"):
        gradient_check(model, x)


def test_without_complete_rows_moves_and_steps_are_not_tested():
    x = X.clone()
    x[:, 0] = math.nan
    check = gradient_check(seeded(lambda: vae1(DATA_DIM, LATENT_DIM, (5,)).double()), x, missing="ignore")
    assert check.moves == {} and check.steps == {} and check.norm > 0
    assert check.untested == ("moves and steps: fewer than two data points without missing values",)


def test_only_parameters_that_require_gradients_count():
    model = elsewhere()
    for name in ("encoder_weight", "encoder_bias", "latent_log_variance"):
        getattr(model, name).requires_grad = False
    check = gradient_check(model, X, num_draws=8)
    # Nothing that is left moves the KL.
    assert check.kl_norm == 0 and math.isnan(check.implied_beta) and check.alignment == 0
    assert not check.implies_other_beta(1.0)
    assert check.num_parameters == DATA_DIM * LATENT_DIM + DATA_DIM + 1
    value = model.elbo_terms(STATISTICS).elbo
    left = torch.autograd.grad(value, trainable(model))
    norm = float(torch.cat([g.flatten() for g in left]).norm())
    assert check.norm == pytest.approx(norm, abs=3 * check.noise_floor)
    # The best decoder for this encoder is linear regression: one step is nearly there.
    assert check.steps[1.0].gain > 0


def test_attention():
    layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True)
    encoder = nn.Sequential(nn.Unflatten(1, (5, 2)), layer, nn.Flatten())
    model = seeded(lambda: VAE(encoder, MLPDecoder((5,), nn.Tanh), data_shape=DATA_DIM, latent_dim=2)).double()
    check = gradient_check(model, X[:50], betas=[1.0])
    assert check.untested == () and check.steps[1.0].gain > 0
    assert check.moves["decoder"].distance < 0.01 and check.moves["prior"].distance < 0.01


def test_a_posterior_without_closed_forms():
    encoder, decoder = seeded(lambda: (nn.Linear(DATA_DIM, 4).double(), nn.Linear(2, DATA_DIM).double()))
    model = from_functions(
        lambda x: Laplace(encoder(x)[:, :2], (encoder(x)[:, 2:] / 4).exp()), decoder, variance=1.0, modules=[encoder]
    )
    # Draws from it have no gradients here: better none than wrong ones.
    with pytest.raises(UnsupportedError, match="not normal"):
        gradient_check(model, X)


def test_whole_numbers_and_float32():
    model = seeded(
        lambda: VAE(
            MLPEncoder(DATA_DIM, (5,)), MLPDecoder((5,)), data_shape=DATA_DIM, latent_dim=2, likelihood=Bernoulli()
        )
    )
    x = (X > 1).to(torch.uint8)
    check = gradient_check(model, x)
    same_in_float64 = gradient_check(copy.deepcopy(model).double(), x.double(), batch_size=len(x))
    assert check.steps[1.0].gain > 0 and not check.untested
    assert check.norm == pytest.approx(same_in_float64.norm, rel=0.1)


def test_one_data_point():
    check = gradient_check(elsewhere(), X[:1])
    assert check.moves == {} and check.steps == {} and len(check.untested) == 1


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 1}, "num_draws=1 given, expected a whole number of at least 2"),
        ({"seed": -1}, "seed=-1 given"),
        ({"betas": [1.0, -2.0]}, "betas=-2.0 given, expected a positive number"),
        ({"betas": [math.nan]}, "betas=nan given"),
        ({"batch_size": 0}, "batch_size=0 given"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UsageError, match=message):
        gradient_check(elsewhere(), X, **options)


def test_models_without_parameters_to_train():
    plain = from_functions(lambda x: (x[:, :2], x[:, 2:4]), lambda z: z[:, :1].expand(-1, DATA_DIM), variance=1.0)
    frozen = elsewhere().requires_grad_(False)
    for model in (plain, frozen):
        with pytest.raises(UsageError, match="without trainable parameters given"):
            gradient_check(model, X)


def test_data_that_are_none_or_can_be_read_once():
    with pytest.raises(DataError, match="no data points given"):
        gradient_check(elsewhere(), X[:0])
    with pytest.raises(UsageError, match="which can be read once"):
        gradient_check(elsewhere(), iter([X]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected \\(N, 10\\)"):
        gradient_check(elsewhere(), X[:, :3])
