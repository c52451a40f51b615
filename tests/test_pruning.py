"""Pruned models: the same ELBO where latents have collapsed, and models like any other in every further use.

What is left of a model is compared with the whole at the same z, distribution by distribution; ELBOs by quadrature,
whose nodes for the latents that are left do not depend on how many others there were.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian, Poisson
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.priors import LearnedNormal
from vaentropy.pruning import prune
from vaentropy.training import fit
from vaentropy.vae import VAE

from .models import F64, as_torch, base_of, close

D, H, ROWS = 4, 3, 12
# Two removed latents are not neighbours, so that rows and columns that are mixed up show.
REMOVED, KEPT = [0, 2], [1]
NODES = GaussHermite(3)
# Of a collapsed latent of VAE-2, whose columns have norm 1: small enough that z_h is nothing beside the others.
COLLAPSED_LOG_VARIANCE = -170.0


def mlp(latent_dim, likelihood, **options):
    networks = MLPEncoder(D, (6,)), MLPDecoder((5,))
    return VAE(*networks, data_shape=D, latent_dim=latent_dim, likelihood=likelihood, **options)


def conv(latent_dim, likelihood):
    networks = ConvEncoder((2, 4, 4), (3,)), ConvDecoder((2, 4, 4), (3,))
    return VAE(*networks, data_shape=(2, 4, 4), latent_dim=latent_dim, likelihood=likelihood)


MODELS = {
    "VAE-0": lambda h: vae0(D, h, (6,), variance=0.5),
    "VAE-1": lambda h: vae1(D, h, (6,)),
    "VAE-2": lambda h: vae2(D, h, (6,)),
    "VAE-2 with a penalty": lambda h: vae2(D, h, (6,), columns="penalty"),
    "VAE-3": lambda h: vae3(D, h, (6,)),
    "per feature, learned prior": lambda h: mlp(h, Gaussian("per_feature"), prior=LearnedNormal()),
    "unit columns, standard prior": lambda h: mlp(h, Gaussian(), columns="unit"),
    "Bernoulli": lambda h: mlp(h, Bernoulli()),
    "Poisson, learned prior, unit columns": lambda h: mlp(h, Poisson(), prior=LearnedNormal(), columns="unit"),
    "images": lambda h: conv(h, Gaussian("function")),
    "linear": lambda h: LinearVAE(D, h),
}
# A latent with a unit column and a prior of variance 1 cannot be ignored.
IDLE = [name for name in MODELS if name != "unit columns, standard prior"]
each_model = pytest.mark.parametrize("kind", MODELS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, F64])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(kind, dtype=F64, seed=0):
    """A model none of whose parameters is 0."""
    model, noise = MODELS[kind](H).to(dtype), generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise, dtype=F64).to(dtype))
    return model.eval()


def data_for(model, rows=ROWS, seed=1):
    shape, noise = (rows, *(getattr(model, "data_shape", (D,)))), generator(seed)
    counts = torch.randint(2, shape, generator=noise).to(F64)
    return (
        counts
        if type(getattr(model, "head", None)).__name__ in ("BernoulliHead", "PoissonHead")
        else 1.5 * (torch.randn(shape, generator=noise, dtype=F64) + 0.4)
    )


@torch.no_grad()
def make_idle(model, latents, *, at_prior=True):
    """Latents that the encoder leaves at the prior, or at another constant, and the decoder at a constant."""
    linear = isinstance(model, LinearVAE)
    unit = not linear and model.columns == "unit"
    for h in latents:
        if linear:
            model.encoder_weight[h], model.encoder_bias[h], model.weight[:, h] = 0, 0, 0
            model.latent_log_variance[h] = 0.0 if at_prior else -1.0
            continue
        if unit:
            model.prior_log_variance[h] = COLLAPSED_LOG_VARIANCE
        else:
            model.latent_layer.weight[:, h] = 0
        model.latent_mean.weight[h], model.latent_mean.bias[h], model.latent_log_variance.weight[h] = 0, 0, 0
        model.latent_log_variance.bias[h] = model.prior_log_variance[h] - (0.0 if at_prior else 1.0)
    return model


def parameters_of(distribution):
    """What a distribution of data consists of, as tensors."""
    base = base_of(as_torch(distribution))
    return [getattr(base, name).expand(base.batch_shape) for name in base.arg_constraints if name != "probs"]


def same_distribution(one, other, tolerance):
    return all(
        close(a, b, 1 + b.abs(), tolerance) for a, b in zip(parameters_of(one), parameters_of(other), strict=True)
    )


def rounding(dtype):
    return 1e-12 if dtype == F64 else 2e-5


# --- Any model: the rest of it is unchanged ---------------------------------------------------------------------------


@each_dtype
@each_model
def test_the_rest_is_the_model_at_a_constant(kind, dtype):
    model = random_model(kind, dtype)
    x = data_for(model).to(dtype)
    whole = model.posterior(x)
    # By hand: the mean over the data of what the encoder says.
    mean = whole.mean.detach().to(F64).mean(0)
    for data, constant in ((None, torch.zeros(H, dtype=F64)), (x, mean)):
        pruned = prune(model, REMOVED, data)
        assert pruned.latent_shape == (1,) and type(pruned) is type(model)
        assert {p.dtype for p in pruned.parameters()} == {dtype}
        left = pruned.posterior(x)
        for given, expected in ((left.mean, whole.mean), (left.variance, whole.variance)):
            assert close(given.detach(), expected[:, KEPT].detach(), 1 + expected.detach().abs().max(), rounding(dtype))
        assert torch.equal(pruned.prior().variance, model.prior().variance[KEPT])
        z = torch.randn(ROWS, 1, generator=generator(2), dtype=F64).to(dtype)
        filled = constant.to(dtype).repeat(ROWS, 1)
        filled[:, KEPT] = z
        assert same_distribution(pruned.likelihood(z), model.likelihood(filled), rounding(dtype))


def test_the_constants_are_means_over_what_the_encoder_sees():
    model = random_model("VAE-1")
    x = data_for(model)
    x[3, 1], x[5] = math.nan, math.nan
    pruned = prune(model, [0], x, missing="ignore")
    layer = model.latent_layer
    mean = model.posterior(x.nan_to_num(0.0)).mean.detach().mean(0)
    assert close(pruned.latent_layer.bias.detach(), (layer.bias + layer.weight[:, 0] * mean[0]).detach(), 1.0)
    with pytest.raises(DataError, match="row 3, column 1"):
        prune(model, [0], x)


@pytest.mark.parametrize(
    "latents", [[0, 2], (2, 0), {0, 2}, range(0, 3, 2), iter([0, 2]), np.array([0, 2]), torch.tensor([0, 2])]
)
def test_latents_in_any_container_and_order(latents):
    model = random_model("VAE-2")
    expected = prune(model, REMOVED).state_dict()
    given = prune(model, latents).state_dict()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@each_model
def test_one_after_the_other_is_both_at_once(kind):
    model = random_model(kind)
    at_once, apart = prune(model, REMOVED).state_dict(), prune(prune(model, [2]), [0]).state_dict()
    assert at_once.keys() == apart.keys()
    assert all(close(apart[name], at_once[name], 1.0) for name in at_once)


# --- Collapsed latents are not missed ---------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("kind", IDLE)
def test_without_idle_latents_the_elbo_is_the_same(kind, dtype):
    model = make_idle(random_model(kind, dtype), REMOVED)
    x = data_for(model).to(dtype)
    before = evaluate(model, x, expectation=NODES)
    for data in (None, x):
        after = evaluate(prune(model, REMOVED, data), x, expectation=NODES)
        scale = 1 + abs(before.reconstruction) + before.kl
        tolerance = rounding(dtype)
        # Term by term; encoder and prior entropy lose the same.
        for name in ("elbo", "reconstruction", "kl", "log_base", "entropy_sum", "gap", "prior_gap", "decoder_gap"):
            assert close(getattr(after, name), getattr(before, name), scale, tolerance), name
        h, g = before.entropies, after.entropies
        assert close(g.decoder, h.decoder, scale, tolerance)
        lost = float(
            model.prior().variance[REMOVED].detach().to(F64).log().add(math.log(2 * math.pi * math.e)).sum() / 2
        )
        size = scale + abs(lost)
        assert close(g.prior, h.prior - lost, size, tolerance) and close(g.encoder, h.encoder - lost, size, tolerance)
        assert close(after.kl_per_latent, before.kl_per_latent[KEPT], scale, tolerance)
        assert before.kl_per_latent[REMOVED].abs().max() <= tolerance


@pytest.mark.parametrize("kind", IDLE)
def test_a_latent_that_only_costs_gives_its_kl_back(kind):
    model = make_idle(random_model(kind), REMOVED, at_prior=False)
    x = data_for(model)
    q, p = (as_torch(distribution).base_dist for distribution in (model.posterior(x[:1]), model.prior()))
    # τ² = α²/e: ½ (1/e - 1 + 1) nats each.
    kl = len(REMOVED) * 0.5 / math.e
    assert kl_divergence(q, p).detach()[0, REMOVED].sum().item() == pytest.approx(kl)
    before, after = (evaluate(m, x, expectation=NODES) for m in (model, prune(model, REMOVED)))
    assert close(after.elbo - before.elbo, kl, abs(before.elbo) + before.kl)


@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.3, 2.0])
def test_a_weak_component_is_worth_less_than_its_kl(ratio):
    # The second of the best linear VAE, of eigenvalue λ = ratio σ²: it pays KL_h = ½ log(λ/σ²), for squared errors of
    # σ² in its direction, which are λ without it.
    eigenvalues = torch.tensor([5.0, ratio, 1.0, 1.0], dtype=F64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator(), dtype=F64))[0]
    statistics = DataMoments(torch.ones(4, dtype=F64), rotation * eigenvalues @ rotation.T, 100)
    model = LinearVAE.optimum(statistics, 2)
    pruned = prune(model, [1])
    kl = 0.5 * math.log(ratio)
    assert model.elbo_terms(statistics).kl[1].item() == pytest.approx(kl, abs=1e-12)
    change = (pruned.elbo(statistics) - model.elbo(statistics)).item()
    assert change == pytest.approx(kl - 0.5 * (ratio - 1), abs=1e-12)
    assert abs(change) <= kl + 1e-12


@pytest.mark.slow
def test_nearly_collapsed_latents_of_a_trained_model_are_hardly_missed():
    noise = generator(3)
    x = torch.randn(400, 1, generator=noise) @ torch.tensor([[2.0, -1.0, 1.0, 0.5]]) + 1.0
    x = x + 0.5 * torch.randn(400, D, generator=noise)
    torch.manual_seed(0)
    model = vae1(D, H, (8,))
    fit(model, x, epochs=40, batch_size=40, learning_rate=2e-2, progress=False)
    before = evaluate(model, x, expectation=MonteCarlo(64))
    order = before.kl_per_latent.argsort().tolist()
    idle, used = order[:2], order[2]
    lost = float(before.kl_per_latent[idle].sum())
    # Otherwise there is nothing to see here.
    assert lost < 0.2 and before.kl_per_latent[used] > 1
    after = evaluate(prune(model, idle, x), x, expectation=MonteCarlo(64, seed=1))
    error = 5 * math.hypot(before.mc_stderr.elbo, after.mc_stderr.elbo)
    assert error < 0.1
    assert abs(after.elbo - before.elbo) <= lost + error
    without_used = evaluate(prune(model, [used], x), x, expectation=MonteCarlo(16))
    assert without_used.elbo < before.elbo - 1


# --- A model like any other -------------------------------------------------------------------------------------------


@each_model
def test_the_original_is_not_changed(kind):
    model = random_model(kind).train()
    state, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    before = torch.get_rng_state()
    pruned = prune(model, REMOVED, data_for(model))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for tensor in (*pruned.parameters(), *pruned.buffers()):
            tensor.fill_(7)
    assert model.latent_shape == (H,) and model.training and pruned.training
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in pruned.parameters()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@each_model
def test_a_fresh_model_of_its_size_takes_its_weights(kind):
    model = random_model(kind)
    pruned = prune(model, REMOVED)
    fresh = MODELS[kind](len(KEPT)).to(F64).eval()
    fresh.load_state_dict(pruned.state_dict())
    x = data_for(model)
    first, second = (evaluate(m, x, expectation=NODES).elbo for m in (pruned, fresh))
    assert first == second
    if isinstance(pruned, VAE):
        assert (pruned.latent_layer.in_features, pruned.latent_mean.out_features) == (1, 1)
        assert pruned.sample(5).shape == (5, *model.data_shape) and pruned.encode(x).shape == (ROWS, 1)


@pytest.mark.parametrize("kind", [name for name in MODELS if name != "linear"])
def test_the_copy_trains_on(kind):
    model = random_model(kind, torch.float32).train()
    x = data_for(model, rows=64).float()
    pruned = prune(model, REMOVED, x)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    elbo = evaluate(pruned, x, expectation=NODES).elbo
    fit(pruned, x, epochs=5, learning_rate=1e-3, progress=False)
    assert evaluate(pruned, x, expectation=NODES).elbo > elbo
    # Not one parameter was left behind by the optimiser.
    for name, parameter in pruned.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert model.latent_shape == (H,)


def test_a_linear_copy_has_gradients():
    pruned, x = prune(random_model("linear"), REMOVED), torch.ones(3, D, dtype=F64)
    pruned.elbo(DataMoments.of(x)).backward()
    assert all(
        parameter.grad is not None and parameter.grad.shape == parameter.shape for parameter in pruned.parameters()
    )


def test_none_to_remove_gives_a_copy():
    model = random_model("VAE-2")
    same = prune(model, [])
    assert same is not model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in same.state_dict().items())


# --- Errors -----------------------------------------------------------------------------------------------------------


# Arguments of a wrong type are cases in tests/bad_inputs, where annotations are not checked.


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ([True, False, True], "the latents to remove"),
        (torch.tensor([True, False, False]), "the latents to remove"),
        (torch.tensor([0.0, 1.0]), "the latents to remove"),
        ([3], "from 0 to 2"),
        ([-1], "from 0 to 2"),
        ([0, 0], "different"),
        ([10**30], "from 0 to 2"),
        ([0, 1, 2], "all 3 latents given to remove"),
        (range(3), "at least one to be left"),
    ],
)
def test_latents_that_it_does_not_have(latents, message):
    for kind in ("VAE-1", "linear"):
        with pytest.raises(UsageError, match=message) as caught:
            prune(random_model(kind), latents)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [(torch.zeros(3, D + 1), r"\(3, 5\)"), (torch.zeros(0, D), "no data points"), (torch.zeros(()), "single number")],
)
def test_data_that_do_not_fit(data, message):
    with pytest.raises(DataError, match=message):
        prune(random_model("VAE-1"), [0], data)
