"""Weight decay at stationary points of the loss with it, the best linear model, and the other mode."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from vaentropy.diagnosis.evidence import _decays, _linear_elbo, _mode_difference
from vaentropy.diagnosis.gradients import GradientCheck, gradient_check, trainable
from vaentropy.diagnosis.points import Reading
from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.families import vae1, vae2
from vaentropy.likelihoods import Bernoulli, GaussianHead
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.results import Evaluation
from vaentropy.studies.stationary import descend
from vaentropy.vae import VAE, LearnedNormal

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


# --- Weight decay -----------------------------------------------------------------------------------------------------

DECAY, RIDGE = 0.02, 0.01
QUADRATURE = GaussHermite(3)


def data() -> Tensor:
    """A curved surface with noise, its mean not 0."""
    z = draw(50, 2) * torch.tensor([2.0, 1.5])
    linear = torch.linalg.qr(draw(3, 2, seed=1))[0].T
    bent = 0.4 * torch.tanh(z @ draw(2, 3, seed=2))
    return z @ linear + bent + 0.4 * draw(50, 3, seed=3) + torch.tensor([1.0, -0.5, 0.7])


@dataclass(frozen=True)
class Trained:
    """A model at a stationary point of -ELBO + ½ λ ‖decayed‖² + ridge; `gradient` is that of ELBO - ridge."""

    model: VAE
    decayed: list[nn.Parameter]
    evaluation: Evaluation
    gradient: Tensor
    x: Tensor

    def optimiser(self, kind: type[torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
        ids = {id(p) for p in self.decayed}
        others = [p for p in self.model.parameters() if id(p) not in ids]
        groups = [{"params": self.decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        return kind(groups, lr=1e-3, **options)  # type: ignore[call-arg]


LAYERS: dict[str, Callable[[VAE], list[nn.Parameter]]] = {
    "first decoder layer": lambda m: [m.latent_layer.weight],
    "weights of ν": lambda m: [m.latent_mean.weight],
    "bias of ν": lambda m: [m.latent_mean.bias],
    "bias of log τ²": lambda m: [m.latent_log_variance.bias],
    "log σ²": lambda m: m.head.variance_parameters(),
    "weights of log τ²": lambda m: [m.latent_log_variance.weight],
    "decoder's mean": lambda m: list(m.head.parameters()),
    "log α²": lambda m: [m.prior_log_variance],
    # Without decay of the first layer as well, logits of so few points would grow without end.
    "logits": lambda m: [*m.head.parameters(), m.latent_layer.weight],
}


def model_for(name: str) -> VAE:
    likelihood = Bernoulli() if name == "logits" else None
    options = {"prior": LearnedNormal(), "columns": "unit"} if name == "log α²" else {}
    networks = nn.Flatten(), MLPDecoder((3,), nn.Softplus)
    return VAE(*networks, data_shape=3, latent_dim=2, likelihood=likelihood, **options).double()


def elbo(model: VAE, x: Tensor) -> Tensor:
    """By quadrature, written down again: without the package's checks it is five times as fast."""
    mean, log_variance = model.latent_mean(x), model.latent_log_variance(x)
    prior = model.prior_log_variance
    kl = 0.5 * ((mean.square() + log_variance.exp()) / prior.exp() - 1 + prior - log_variance).sum(1)
    nodes = QUADRATURE.nodes(len(x), (2,), generator=torch.Generator(), dtype=F64)
    features = functional.softplus(model.latent_layer(mean + torch.exp(0.5 * log_variance) * nodes.noise))
    if isinstance(model.head, GaussianHead):
        noise, error = model.head.log_variance, (x - model.head.mean[0](features)).square()
        log_prob = -0.5 * (math.log(2 * math.pi) + noise + error / noise.exp())
    else:
        logits = model.head.logits[0](features)
        log_prob = x * logits - functional.softplus(logits)
    return torch.tensordot(nodes.weights, log_prob.sum(-1), 1).mean() - kl.mean()


@cache
def trained(name: str) -> Trained:
    """Driven to the stationary point; a ridge keeps at their start what the moves do not change."""
    model, x = seeded(lambda: model_for(name)), data()
    if name == "logits":
        x = (x > 0.5).double()
    decayed = LAYERS[name](model)
    if name == "decoder's mean":
        decayed = [p for p in decayed if p is not model.head.log_variance]
    heads = [*model.latent_mean.parameters(), model.latent_log_variance.bias, model.latent_layer.weight]
    free = {id(p) for p in [*heads, *model.variance_parameters(), *decayed]}
    held = [(p, p.detach().clone()) for p in model.parameters() if id(p) not in free]

    def without_decay() -> Tensor:
        ridge = torch.stack([(p - start).square().sum() for p, start in held]).sum()
        return RIDGE * ridge - elbo(model, x)

    def objective() -> Tensor:
        return without_decay() + 0.5 * DECAY * torch.stack([p.square().sum() for p in decayed]).sum()

    point = descend(objective, list(model.parameters()))
    assert point.gradient_norm < 1e-8
    gradient = torch.cat([-g.flatten() for g in torch.autograd.grad(without_decay(), list(model.parameters()))])
    return Trained(model, decayed, evaluate(model, x, expectation=QUADRATURE), gradient, x)


@cache
def checked(name: str) -> GradientCheck:
    return gradient_check(trained(name).model, trained(name).x, betas=[], num_draws=2)


def ratios(name: str) -> Tensor:
    """m_h, which is 1 without decay."""
    moment = trained(name).evaluation.optimal_prior_variance
    assert moment is not None
    return moment


# The formulas: at the stationary point ∇ELBO = λ θ, so that a residual, the derivative along a move v, is λ θ·v.


def test_decay_of_the_first_decoder_layer():
    columns = trained("first decoder layer").model.latent_layer.weight.detach().square().sum(0)
    assert ratios("first decoder layer").tolist() == pytest.approx((1 + DECAY * columns).tolist(), rel=1e-9)
    assert trained("first decoder layer").evaluation.decoder_gap == pytest.approx(0, abs=1e-10)


def test_decay_of_the_heads_of_the_posterior_mean():
    rows = trained("weights of ν").model.latent_mean.weight.detach().square().sum(1)
    assert ratios("weights of ν").tolist() == pytest.approx((1 - DECAY * rows).tolist(), rel=1e-9)
    bias = trained("bias of ν").model.latent_mean.bias.detach()
    assert ratios("bias of ν").tolist() == pytest.approx((1 - DECAY * bias.square()).tolist(), rel=1e-9)


def test_decay_of_the_bias_of_the_posterior_variance():
    # Where a latent is used it is negative, decay draws τ² up to 1, and m_h is above 1.
    bias = trained("bias of log τ²").model.latent_log_variance.bias.detach()
    assert float(bias.min()) < -0.5 and float(ratios("bias of log τ²").max()) > 1.05
    assert ratios("bias of log τ²").tolist() == pytest.approx((1 - 2 * DECAY * bias).tolist(), rel=1e-9)


def test_decay_of_the_variances_of_decoder_and_prior():
    point = trained("log σ²")
    log_variance = float(point.model.head.log_variance.detach())
    assert point.evaluation.decoder_gap == pytest.approx(-DECAY * log_variance, rel=1e-9)
    assert point.evaluation.prior_gap == pytest.approx(0, abs=1e-10)
    point = trained("log α²")
    residuals = point.evaluation.prior_residuals
    assert residuals is not None
    assert residuals.tolist() == pytest.approx((-DECAY * point.model.prior_log_variance.detach()).tolist(), rel=1e-9)


def test_decay_of_logits_is_no_harmless_one():
    point = trained("logits")
    square = sum(float(p.detach().square().sum()) for p in point.model.head.parameters())
    assert point.evaluation.decoder_gap == pytest.approx(DECAY * square, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights of log τ²", "decoder's mean"])
def test_decay_that_shifts_nothing(name):
    assert trained(name).evaluation.prior_gap == pytest.approx(0, abs=1e-10)
    assert trained(name).evaluation.decoder_gap == pytest.approx(0, abs=1e-10)
    decays, _ = _decays(trained(name).model, trained(name).optimiser(), checked(name))
    assert {decay.name: decay.shift for decay in decays} == pytest.approx({"decoder": 0, "prior": 0}, abs=1e-3)


SHIFTED = [name for name in LAYERS if name not in ("weights of log τ²", "decoder's mean")]


@pytest.mark.parametrize("name", SHIFTED)
def test_the_predicted_shift_is_the_residual(name):
    point, check = trained(name), checked(name)
    decays, decoupled = _decays(point.model, point.optimiser(), check)
    assert not decoupled and {decay.name for decay in decays} == {"decoder", "prior"}
    names = {id(p): key for key, p in point.model.named_parameters()}
    for decay in decays:
        # Along the direction that was found it is exact, however far that is from the move.
        assert decay.shift == pytest.approx(
            float(point.gradient @ check.moves[decay.name].direction), rel=1e-6, abs=1e-9
        )
        residual = getattr(point.evaluation, f"{decay.name}_gap")
        assert decay.shift == pytest.approx(residual, rel=0.1, abs=1e-4)
        if abs(residual) > 1e-3:
            assert set(decay.layers) == {names[id(p)] for p in point.decayed}
    assert max(abs(decay.shift) for decay in decays) > 2e-3


def test_shifts_of_every_optimiser_that_puts_decay_into_the_gradient():
    point, check = trained("bias of log τ²"), checked("bias of log τ²")
    expected, _ = _decays(point.model, point.optimiser(), check)
    for kind in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad):
        assert _decays(point.model, point.optimiser(kind), check) == (expected, False)


def test_decoupled_decay_shifts_by_an_unknown_amount():
    point, check = trained("bias of log τ²"), checked("bias of log τ²")
    assert _decays(point.model, point.optimiser(torch.optim.AdamW), check) == ((), True)
    apart = point.optimiser(torch.optim.NAdam, decoupled_weight_decay=True)
    assert _decays(point.model, apart, check) == ((), True)
    without = torch.optim.AdamW(point.model.parameters(), weight_decay=0.0)
    assert _decays(point.model, without, check) == ((), False)


def test_optimisers_without_decay_and_models_without_gradients():
    point, check = trained("bias of log τ²"), checked("bias of log τ²")
    assert _decays(point.model, None, check) == ((), False)
    assert _decays(point.model, torch.optim.SGD(point.model.parameters(), lr=0.1), check) == ((), False)
    assert _decays(point.model, torch.optim.LBFGS(point.model.parameters()), check) == ((), False)
    assert _decays(point.model, point.optimiser(), None) == ((), False)
    other = torch.optim.SGD(vae1(3, 2, (4,)).parameters(), lr=0.1, weight_decay=1.0)
    with pytest.raises(UsageError, match="none of the model's parameters"):
        _decays(point.model, other, check)


def test_parts_of_a_shift_add_up_and_the_largest_layer_comes_first():
    point, check = trained("bias of log τ²"), checked("bias of log τ²")
    both = torch.optim.SGD(point.model.parameters(), lr=0.1, weight_decay=0.3)
    decays, _ = _decays(point.model, both, check)
    for decay in decays:
        parts = check.moves[decay.name].direction.split([p.numel() for p in trainable(point.model)])
        each = {
            name: 0.3 * float(p.detach().flatten() @ part)
            for (name, p), part in zip(point.model.named_parameters(), parts, strict=True)
        }
        assert decay.shift == pytest.approx(sum(each.values()), rel=1e-12)
        assert list(decay.layers) == sorted((n for n in each if each[n]), key=lambda n: -abs(each[n]))


# --- The best linear model --------------------------------------------------------------------------------------------


MISSING = "values are missing"


def linear_elbo(model: nn.Module, x: Tensor, **options: Any) -> float | str:
    options = {"missing": "error", **options}
    return _linear_elbo(Reading(model, **options), x, evaluate(model, x, expectation=MonteCarlo(1), **options))


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_best_linear_elbo_is_the_likelihood_of_probabilistic_pca(latent_dim):
    x = draw(80, 4) @ draw(4, 4, seed=1)
    model = seeded(lambda: vae1(4, latent_dim, (3,)).double())
    # scikit-learn's covariance has 1/(N - 1), the best one 1/N: for data shrunk by √((N - 1)/N) it is that.
    mean = x.mean(0)
    expected = float(PCA(latent_dim).fit((x - mean) * (79 / 80) ** 0.5 + mean).score(x))
    assert expected > float(PCA(latent_dim).fit(x).score(x))
    # What so many free numbers of W Wᵀ, b and σ² would lose on other data, k/N.
    free = 4 * latent_dim - latent_dim * (latent_dim - 1) // 2 + 4 + 1
    found = linear_elbo(model, x, batch_size=33)
    assert found == pytest.approx(expected - free / 80, rel=1e-10)


def test_images_are_flattened_and_no_linear_model_where_none_compares():
    x = draw(60, 4)
    plain = linear_elbo(seeded(lambda: vae1(4, 2, (3,)).double()), x)
    images = linear_elbo(seeded(lambda: vae1((1, 2, 2), 2, (3,)).double()), x.view(60, 1, 2, 2))
    assert images == pytest.approx(plain, rel=1e-12)
    # As many latents as features: one less is enough.
    most = linear_elbo(seeded(lambda: vae1(4, 3, (3,)).double()), x)
    assert linear_elbo(seeded(lambda: vae1(4, 4, (3,)).double()), x) == most
    # Likelihoods of counts; values that are missing; data on a line; few points.
    networks = MLPEncoder(4, (3,)), MLPDecoder((3,))
    binary = VAE(*networks, data_shape=4, latent_dim=2, likelihood=Bernoulli()).double()
    assert "not normal" in linear_elbo(binary, (x > 0).double())
    with_missing = x.clone()
    with_missing[3, 1] = math.nan
    assert linear_elbo(seeded(lambda: vae1(4, 2, (3,)).double()), with_missing, missing="ignore") == MISSING
    assert "rank 1" in linear_elbo(seeded(lambda: vae1(4, 2, (3,)).double()), x[:, :1].expand(60, 4))
    assert "7 data points are few" in linear_elbo(seeded(lambda: vae1(4, 2, (3,)).double()), x[:7])


# --- The other mode ---------------------------------------------------------------------------------------------------


def test_modes_differ_by_the_difference_of_their_elbos():
    networks = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()), MLPDecoder((6,))
    model = seeded(lambda: VAE(*networks, data_shape=4, latent_dim=2)).double()
    x, draws = draw(90, 4), MonteCarlo(4, seed=3)
    options = {"expectation": draws, "batch_size": 90, "pointwise": True}
    in_eval, in_train = (evaluate(model, x, mode=mode, **options) for mode in ("eval", "train"))
    found = _mode_difference(Reading(model, mode="eval"), x, draws)
    assert found is not None
    assert found[0] == pytest.approx(in_train.elbo - in_eval.elbo, rel=1e-10)
    other_way = _mode_difference(Reading(model, mode="train"), x, draws)
    assert other_way is not None and other_way[0] == pytest.approx(-found[0], rel=1e-10)
    each = in_train.pointwise["elbo"] - in_eval.pointwise["elbo"]
    assert found[1] == pytest.approx(float(np.std(each.numpy(), ddof=1)) / 90**0.5, rel=1e-10)


def test_modes_that_do_not_differ():
    model, x = seeded(lambda: vae2(4, 2, (3,))).double(), draw(30, 4)
    assert _mode_difference(Reading(model), x, MonteCarlo(2)) == (0.0, 0.0)
    with_missing = x.clone()
    with_missing[2, 2] = math.nan
    assert _mode_difference(Reading(model, missing="ignore"), with_missing, MonteCarlo(2)) == (0.0, 0.0)
