"""The theorem's moves made by hand, against residuals and against what the search finds; and models that cannot."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal
from torch.nn import functional

from vaentropy.diagnosis.gradients import trainable
from vaentropy.diagnosis.moves import Move, moves_of
from vaentropy.diagnosis.outputs import outputs_of
from vaentropy.distributions import DiagonalNormal
from vaentropy.errors import UnsupportedError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian, GaussianHead, Poisson
from vaentropy.linear import LinearVAE
from vaentropy.model import from_functions
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.vae import VAE, LearnedNormal

F64 = torch.float64
# As `diagnose` has it by default.
DISTANCE = 0.01


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make: Callable[[], nn.Module], scale: float = 1.0) -> nn.Module:
    """A model in float64, with larger weights and biases that are not 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.mul_(scale).add_(0.2 * draw(*p.shape, seed=i))
    return model


def with_likelihood(likelihood, prior=None) -> VAE:
    networks = MLPEncoder(4, (6,), nn.Tanh), MLPDecoder((6,), nn.Tanh)
    return VAE(*networks, data_shape=4, latent_dim=2, likelihood=likelihood, prior=prior)


def convolutional(variance) -> VAE:
    networks = ConvEncoder((1, 4, 4), (3,), nn.Tanh), ConvDecoder((1, 4, 4), (3, 2), nn.Tanh)
    return VAE(*networks, data_shape=(1, 4, 4), latent_dim=2, likelihood=Gaussian(variance))


X, IMAGES = draw(40, 4) @ draw(4, 4, seed=1) / 2, draw(40, 1, 4, 4)
MODELS = {
    "vae1": (lambda: vae1(4, 2, (6,)), X),
    "vae2": (lambda: vae2(4, 2, (6,)), X),
    "vae3": (lambda: vae3(4, 2, (6,)), X),
    "σ² per feature": (lambda: with_likelihood(Gaussian("per_feature")), X),
    "Bernoulli": (lambda: with_likelihood(Bernoulli()), (X > 0).double()),
    "Poisson": (lambda: with_likelihood(Poisson()), X.abs().mul(2).floor()),
    "Poisson, learned prior": (lambda: with_likelihood(Poisson(), LearnedNormal()), X.abs().mul(2).floor()),
    "convolutional": (lambda: convolutional("shared"), IMAGES),
    "convolutional, σ² per feature": (lambda: convolutional("per_feature"), IMAGES),
    "convolutional, σ²(z)": (lambda: convolutional("function"), IMAGES),
    "linear": (lambda: LinearVAE(4, 2), X),
}


# --- The moves by hand ------------------------------------------------------------------------------------------------


@torch.no_grad()
def scale_the_noise(model, t: float) -> None:
    """σ² times exp(-t); logits or log-rates times exp(t)."""
    if isinstance(model, LinearVAE):
        model.log_variance.sub_(t)
    elif isinstance(model.head, GaussianHead):
        model.head.variance_parameters()[0].sub_(t)
    else:
        for p in model.head.parameters():
            p.mul_(math.exp(t))


@torch.no_grad()
def scale_the_latents(model, t: float) -> None:
    """Latents times exp(½ t), undone in the decoder; a learned α² times exp(-t)."""
    if isinstance(model, LinearVAE):
        model.encoder_weight.mul_(math.exp(t / 2))
        model.encoder_bias.mul_(math.exp(t / 2))
        model.latent_log_variance.add_(t)
        model.weight.mul_(math.exp(-t / 2))
    elif isinstance(model.prior_log_variance, nn.Parameter):
        model.prior_log_variance.sub_(t)
    else:
        model.latent_mean.weight.mul_(math.exp(t / 2))
        model.latent_mean.bias.mul_(math.exp(t / 2))
        model.latent_log_variance.bias.add_(t)
        model.latent_layer.weight.mul_(math.exp(-t / 2))


HANDS = {"decoder": scale_the_noise, "prior": scale_the_latents}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("residual", HANDS)
def test_the_elbo_along_a_move_rises_by_the_residual(name, residual):
    make, x = MODELS[name]
    model = seeded(make)
    ends, step = [], 1e-4
    for t in (step, -step):
        moved = copy.deepcopy(model)
        HANDS[residual](moved, t)
        ends.append(evaluate(moved, x, expectation=GaussHermite(2)).elbo)
    expected = getattr(evaluate(model, x, expectation=GaussHermite(2)), f"{residual}_gap")
    assert abs(expected) > 1e-3
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def moves(model, x: Tensor, seed: int = 0) -> dict[str, Move]:
    return {move.name: move for move in moves_of(outputs_of(model, x, seed), trainable(model))}


def unit_outputs(model, x: Tensor, z: Tensor) -> Tensor:
    """All outputs; each in units of the noise at `model` itself, so that squares are divergences."""
    outputs = outputs_of(model, x, 0)
    decoder = outputs.likelihood_at(z)
    named = {"ν": outputs.mean, "τ": outputs.log_variance, "α": outputs.prior_log_variance, **decoder}
    return torch.cat([value.detach().flatten() for value in named.values()])


def units(model, x: Tensor, z: Tensor) -> Tensor:
    """Of `unit_outputs`: √ of the Fisher information from torch's variances."""
    q, p = model.posterior(x), model.likelihood(z)
    half = 0.5**0.5
    latent = [1 / q.stddev, torch.full_like(q.mean, half), torch.full(q.mean.shape[1:], half * len(x) ** 0.5)]
    # Of the natural parameter of an exponential family it is the variance of x.
    normal = isinstance(p, DiagonalNormal)
    decoder = [1 / p.stddev, torch.full_like(p.mean, half)] if normal else [p.variance.sqrt()]
    return torch.cat([unit.detach().flatten() for unit in [*latent, *decoder]])


def output_derivative(model, x: Tensor, z: Tensor, move: Callable[[nn.Module, float], None]) -> Tensor:
    ends, step = [], 1e-4
    for t in (step, -step):
        moved = copy.deepcopy(model)
        move(moved, t)
        ends.append(unit_outputs(moved, x, z))
    return (ends[0] - ends[1]) / (2 * step) * units(model, x, z)


def along(direction: Tensor) -> Callable[[nn.Module, float], None]:
    def move(model: nn.Module, t: float) -> None:
        with torch.no_grad():
            parameters = trainable(model)
            parts = (t * direction).split([p.numel() for p in parameters])
            for p, part in zip(parameters, parts, strict=True):
                p.add_(part.view(p.shape))

    return move


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found_changes_the_outputs_as_the_move_by_hand(name):
    make, x = MODELS[name]
    model = seeded(make)
    z = outputs_of(model, x, 0).z.detach()
    for residual, move in moves(model, x).items():
        wanted = output_derivative(model, x, z, HANDS[residual])
        found = output_derivative(model, x, z, along(move.direction))
        left = float((wanted - found).norm() / wanted.norm())
        assert move.distance < DISTANCE
        assert left == pytest.approx(move.distance, rel=1e-2, abs=1e-6), residual


@pytest.mark.parametrize("name", ["vae1", "vae2", "vae3", "convolutional", "linear"])
def test_the_moves_can_be_made_in_float32(name):
    make, x = MODELS[name]
    model = seeded(make).float()
    for move in moves(model, x.float()).values():
        assert move.distance < DISTANCE
        assert move.direction.dtype == F64


# --- Distances in closed form -----------------------------------------------------------------------------------------


def test_a_fixed_variance_does_not_move():
    fixed = moves(seeded(lambda: vae0(4, 2, (6,))), X)
    assert fixed["decoder"].distance == 1 and fixed["decoder"].where == "the decoder's variance"
    assert fixed["prior"].distance < DISTANCE
    frozen = seeded(lambda: vae1(4, 2, (6,)))
    frozen.head.log_variance.requires_grad = False
    found = moves(frozen, X)
    assert found["decoder"].distance == 1 and not found["decoder"].direction.any()
    assert found["prior"].distance < DISTANCE


@pytest.mark.parametrize(("frozen", "left"), [("encoder", "latents"), ("decoder", "outputs")])
def test_where_half_of_the_model_is_frozen_its_half_of_the_move_is_left(frozen, left):
    model = seeded(lambda: LinearVAE(4, 2))
    encoder = ["encoder_weight", "encoder_bias", "latent_log_variance"]
    names = encoder if frozen == "encoder" else ["weight", "bias"]
    for name in names:
        getattr(model, name).requires_grad = False
    found = moves(model, X)["prior"]
    with torch.no_grad():
        # ν by ½ ν, log τ² by 1; μ by -½ W z: squared lengths in the metric of the divergence.
        q, z = model.posterior(X), outputs_of(model, X, 0).z
        latents = (0.25 * q.mean**2 / q.variance + 0.5).sum()
        outputs = (0.5 * z @ model.weight.T).square().sum() / model.log_variance.exp()
        share = {"latents": latents, "outputs": outputs}[left] / (latents + outputs)
    assert found.distance == pytest.approx(float(share) ** 0.5, rel=1e-4)
    assert (found.where == "the decoder's mean") == (left == "outputs")


@pytest.mark.parametrize("num_at_floor", [0, 1, 4])
def test_variances_at_the_floor_do_not_move(num_at_floor):
    model = seeded(lambda: with_likelihood(Gaussian("per_feature", floor=0.5)))
    with torch.no_grad():
        model.head.log_variance.copy_(torch.where(torch.arange(4) < num_at_floor, -2.0, 0.3))
    found = moves(model, X)["decoder"]
    # Every variance has as large a part in the move.
    assert found.distance == pytest.approx((num_at_floor / 4) ** 0.5, abs=1e-12)


def test_variances_at_the_floor_here_and_there():
    model = seeded(lambda: with_likelihood(Gaussian("function", floor=0.9)))
    z = outputs_of(model, X, 0).z.detach()
    at_floor = model.head.at_floor(model.decoder_features(z))
    assert 0.2 < at_floor < 0.8
    found = moves(model, X)["decoder"]
    assert found.distance == pytest.approx(at_floor**0.5, abs=1e-3) and found.where == "the decoder's variance"


# --- Other models -----------------------------------------------------------------------------------------------------


class Unusual(nn.Module):
    """A VAE with one thing different, by name; without it, affine heads and a linear first layer."""

    def __init__(self, what: str = ""):
        super().__init__()
        self.what = what
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.latent_mean, self.latent_variance = nn.Linear(8, 2), nn.Linear(8, 2)
        self.first, self.last, self.skip = nn.Linear(2, 8), nn.Linear(8, 4), nn.Linear(2, 4)
        self.variance_head = nn.Linear(2, 4)
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(2, elementwise_affine="affine" in what)
        self.batch_norm = nn.BatchNorm1d(2, affine=False)
        if what == "weight norm":
            nn.utils.parametrizations.weight_norm(self.first)

    def posterior(self, x: Tensor) -> DiagonalNormal:
        features = self.body(x)
        mean, log_variance = self.latent_mean(features), self.latent_variance(features)
        if "layer norm" in self.what:
            mean = self.norm(mean)
        if self.what == "batch norm":
            mean = self.batch_norm(mean)
        if self.what == "tanh on the mean":
            mean = 2 * torch.tanh(mean)
        if self.what == "softplus on τ²":
            log_variance = functional.softplus(log_variance).log()
        if self.what == "clamp on log τ²":
            log_variance = log_variance.clamp(-0.3, 0.3)
        return DiagonalNormal(mean, log_variance)

    def prior(self) -> Normal:
        return Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))

    def likelihood(self, z: Tensor) -> DiagonalNormal:
        first = self.first(torch.tanh(z) if self.what == "no linear first layer" else z)
        mean = self.last(torch.tanh(first))
        if self.what in ("skip connection", "variance network and skip connection"):
            mean = mean + self.skip(z)
        if self.what == "skip connection of z²":
            mean = mean + self.skip(z.square())
        if self.what == "skip connection without weights":
            mean = torch.cat([mean[:, :2] + 2 * z, mean[:, 2:]], 1)
        log_variance = self.log_variance
        if self.what == "variance network and skip connection":
            log_variance = self.variance_head(z)
        if self.what == "softplus on σ²(z)":
            log_variance = functional.softplus(self.variance_head(z)).log()
        if self.what == "softplus on σ²":
            log_variance = functional.softplus(self.log_variance).log()
        return DiagonalNormal(mean, log_variance)


def unusual(what: str, scale: float = 2.0) -> nn.Module:
    return seeded(lambda: Unusual(what), scale)


@pytest.mark.parametrize(
    "what",
    [
        "",
        "layer norm, affine",  # whose own scale and shift make the move
        "skip connection",
        "variance network and skip connection",
        "skip connection of z²",  # a power of z is undone by another power of the factor
        "weight norm",  # only another way to write a weight
        "softplus on σ²",  # one number, whatever is made of it
    ],
)
def test_models_that_can_make_both_moves(what):
    found = moves(unusual(what), X)
    assert found["prior"].distance < DISTANCE and found["decoder"].distance < DISTANCE


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("layer norm", "the posterior mean"),
        ("tanh on the mean", "the posterior mean"),
        ("softplus on τ²", "the posterior variance"),
        ("clamp on log τ²", "the posterior variance"),
        ("no linear first layer", "the decoder's mean"),
        ("skip connection without weights", "the decoder's mean"),
    ],
)
def test_models_that_cannot_scale_the_latents(what, where):
    # With weights so large that softplus is far from linear.
    found = moves(unusual(what, scale=4.0), X)
    assert found["prior"].distance > DISTANCE and found["prior"].where == where
    assert found["decoder"].distance < DISTANCE


def test_a_variance_function_behind_a_softplus():
    found = moves(unusual("softplus on σ²(z)"), X)
    assert found["decoder"].distance > 5 * DISTANCE and found["decoder"].where == "the decoder's variance"
    # The variance network, too, reads z linearly.
    assert found["prior"].distance < DISTANCE


def test_batch_norm_is_affine_in_eval_mode_only():
    model = unusual("batch norm")
    assert moves(model.eval(), X)["prior"].distance < DISTANCE
    # Weights 100,000 times as large would scale the normalised means by the epsilon: that is no move.
    assert moves(model.train(), X)["prior"].distance > 10 * DISTANCE


@pytest.mark.parametrize(("activation", "possible"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_unit_columns_with_a_fixed_prior(activation, possible):
    # A positive factor passes through ReLU to the next layer, which can undo it.
    networks = MLPEncoder(4, (6,), nn.Tanh), MLPDecoder((2,), activation)
    model = seeded(lambda: VAE(*networks, data_shape=4, latent_dim=2, columns="unit"))
    assert (moves(model, X)["prior"].distance < DISTANCE) == possible


def test_a_prior_with_a_mean():
    class Model(LinearVAE):
        def prior(self) -> Normal:
            return Normal(torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.5, 1.5], dtype=F64))

    assert moves(seeded(lambda: Model(4, 2)), X)["prior"].distance < DISTANCE
    # Latents are scaled around that mean, which a decoder undoes by its bias too.
    without_bias = seeded(lambda: Model(4, 2))
    without_bias.bias.requires_grad = False
    assert moves(without_bias, X)["prior"].distance > 10 * DISTANCE


def test_a_prior_variance_that_is_the_decoders_too():
    class Model(LinearVAE):
        def prior(self) -> DiagonalNormal:
            return DiagonalNormal(torch.zeros(2, dtype=F64), self.log_variance.expand(2), event_dim=1)

    # Along log α² = log σ² every latent and every feature of each point counts the same: either move by its share.
    found = moves(seeded(lambda: Model(4, 2)), X)
    assert found["prior"].distance == pytest.approx((4 / (4 + 2)) ** 0.5, rel=1e-10)
    assert found["decoder"].distance == pytest.approx((2 / (4 + 2)) ** 0.5, rel=1e-10)
    assert found["prior"].where == found["decoder"].where == "the prior variance"


def test_a_decoder_without_parameters():
    encoder = seeded(lambda: nn.Linear(4, 4))
    model = from_functions(lambda x: encoder(x).chunk(2, 1), lambda z: z[:, :1] * 0, variance=1.0, modules=[encoder])
    found = moves(model, X)
    assert found["prior"].distance < DISTANCE and found["decoder"].distance == 1


def test_likelihoods_whose_moves_are_not_known():
    encoder = seeded(lambda: nn.Linear(4, 4))
    model = from_functions(
        lambda x: encoder(x).chunk(2, 1), lambda z: Laplace(z, torch.ones_like(z)), modules=[encoder]
    )
    with pytest.raises(UnsupportedError, match="expected a normal, Bernoulli or Poisson one"):
        moves(model, X[:, :2].repeat(1, 2))
