"""`fit_replicates`: the same as `fit` for each model alone, whatever the models and settings are."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from vaentropy.data import Rows, pca
from vaentropy.errors import DataError, UsageError
from vaentropy.expectation import Antithetic, GaussHermite, MonteCarlo
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian, Poisson
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.training import fit, fit_replicates, replicates, warmup
from vaentropy.training.stack import memory
from vaentropy.vae import VAE

# Batches of 24 or 25 points: smaller ones move analytic variances less.
SEEDS, OPTIONS = (0, 7, 3), {"epochs": 2, "batch_size": 25}  # 4 steps an epoch
LONG = 26  # epochs of 104 steps


@pytest.fixture(scope="module")
def x():
    return pca(97, 5, 2, seed=3)[0]


def several(make, number=3):
    models = []
    for seed in range(number):
        torch.manual_seed(seed)
        models.append(make().double())
    return models


def from_likelihood(likelihood):
    return lambda: VAE(MLPEncoder(5, (6,)), MLPDecoder((6,)), data_shape=5, latent_dim=2, likelihood=likelihood)


def with_batch_norm():
    encoder = nn.Sequential(MLPEncoder(5, (6,)), nn.BatchNorm1d(6))
    decoder = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
    return VAE(encoder, decoder, data_shape=5, latent_dim=2, decoder_features=6)


def tied():
    layer = nn.Linear(6, 6)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), layer, nn.Tanh())
    decoder = nn.Sequential(nn.Tanh(), layer, nn.Tanh())
    return VAE(encoder, decoder, data_shape=5, latent_dim=2, decoder_features=6)


def convolutional(variance="shared"):
    return VAE(
        ConvEncoder((1, 4, 4), (3,)),
        ConvDecoder((1, 4, 4), (3,)),
        data_shape=(1, 4, 4),
        latent_dim=2,
        likelihood=Gaussian(variance),
    )


def slow(name, *fast):
    """A parameter whose test is slow, unless it is one of these."""
    return pytest.param(name, marks=[] if name in fast else pytest.mark.slow)


def floats(model):
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def require_same(models, others, tolerance=1e-9):
    for model, other in zip(models, others, strict=True):
        for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def require_same_rows(history, other, tolerance=1e-8):
    assert [list(row) for row in history.rows] == [list(row) for row in other.rows]
    for row, expected in zip(history.rows, other.rows, strict=True):
        for name in row.keys() - {"seconds"}:
            assert row[name] == pytest.approx(expected[name], abs=tolerance, rel=tolerance), name


def compare(make, x, *, rates=(5e-3, 5e-3, 2e-2), tolerance=1e-9, **options):
    """Train together, and one after the other by `fit`; the same weights, buffers and histories."""
    before = several(make)
    together, alone = copy.deepcopy(before), copy.deepcopy(before)
    options = {**OPTIONS, **options}
    histories = fit_replicates(together, x, seeds=SEEDS, learning_rates=rates, **options)
    for k, model in enumerate(alone):
        history = fit(model, x, seed=SEEDS[k], learning_rate=rates[k], **options)
        require_same_rows(histories[k], history)
        assert histories[k].train.elbo == pytest.approx(history.train.elbo, abs=1e-8)
    require_same(together, alone, tolerance)
    # They have moved, and apart from each other.
    for model, start in zip(together, before, strict=True):
        assert not torch.allclose(model.latent_mean.weight, start.latent_mean.weight, atol=1e-4)
        assert all(tensor.is_leaf and tensor._base is None for tensor in model.parameters())
    return together, histories


MODELS = {
    "vae0": lambda: vae0(5, 2, (6,)),
    "vae1": lambda: vae1(5, 2, (6,)),
    "vae2": lambda: vae2(5, 2, (6,)),
    "vae2-penalty": lambda: vae2(5, 2, (6,), columns="penalty"),
    "vae3": lambda: vae3(5, 2, (6,)),
    "per-feature": from_likelihood(Gaussian("per_feature")),
    "batch-norm": with_batch_norm,
    "tied": tied,
}
BRIEFLY = ("vae2", "batch-norm")  # what is not left to the slow tests


@pytest.mark.parametrize("variances", ["analytic", "learned"])
@pytest.mark.parametrize("name", [slow(name, *BRIEFLY) for name in MODELS])
def test_each_model_is_what_fit_makes_of_it(x, name, variances):
    # A bias before a BatchNorm has no gradient but rounding errors, which Adam takes for one.
    compare(MODELS[name], x, variances=variances, tolerance=1e-7 if name == "batch-norm" else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("variances", ["analytic", "learned"])
@pytest.mark.parametrize("name", MODELS)
def test_it_still_is_after_a_hundred_steps(x, name, variances):
    compare(MODELS[name], x, variances=variances, epochs=LONG, tolerance=1e-6 if name == "batch-norm" else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [Bernoulli(), Poisson()])
def test_other_likelihoods(likelihood):
    counts = torch.poisson(torch.full((97, 5), 0.7), generator=torch.Generator().manual_seed(0)).double()
    compare(from_likelihood(likelihood), counts.clamp(max=1) if isinstance(likelihood, Bernoulli) else counts)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["shared", "function"])
def test_convolutions(variance):
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    compare(lambda: convolutional(variance), images, batch_size=20)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.5, "variances": "learned", "variance_learning_rate": 3e-2},
        {"beta": warmup(0.5), "schedule": "constant"},
        {"expectation": GaussHermite(3)},
        pytest.param({"expectation": Antithetic(4)}, marks=pytest.mark.slow),
        pytest.param({"expectation": MonteCarlo(3), "variance_momentum": 0.0}, marks=pytest.mark.slow),
    ],
    ids=["clip-learned", "beta", "gauss-hermite", "antithetic", "monte-carlo"],
)
def test_settings(x, options):
    compare(lambda: vae1(5, 2, (6,)), x, **options)


@pytest.mark.slow
def test_averages_over_draws_before_the_last_layer():
    """Few features of the decoder, many of the data, many draws: the head takes the shorter way."""
    x = pca(97, 40, 2, seed=3)[0]

    def make():
        return VAE(
            MLPEncoder(40, (4,)), MLPDecoder((3,)), data_shape=40, latent_dim=2, likelihood=Gaussian("per_feature")
        )

    compare(make, x, expectation=MonteCarlo(6))


def test_clipping_matters(x):
    # Else the cases above would prove nothing of it.
    clipped, free = several(lambda: vae1(5, 2, (6,))), several(lambda: vae1(5, 2, (6,)))
    fit_replicates(clipped, x, **OPTIONS, clip_norm=0.5)
    fit_replicates(free, x, **OPTIONS)
    assert not torch.allclose(clipped[0].latent_mean.weight, free[0].latent_mean.weight, atol=1e-5)


@pytest.mark.parametrize("likelihood", [Gaussian("per_feature"), Gaussian("function")])
def test_missing_values(x, likelihood):
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    compare(from_likelihood(likelihood), x.masked_fill(holes, math.nan), missing="ignore")


@pytest.mark.parametrize("variances", ["analytic", "learned"])
def test_a_variance_at_its_floor_finds_back(x, variances):
    # Below the floor only the gradient of `_LowerBound` raises log σ², which vmap must not hide.
    def make():
        model = vae1(5, 2, (6,))
        nn.init.constant_(model.head.log_variance, -20.0)
        return model

    together, _ = compare(make, 0.1 * x, rates=(0.1, 0.1, 0.1), variances=variances, epochs=4)
    assert all(float(model.head.log_variance.detach()) > -19.8 for model in together)


def test_held_out_data_and_calls_at_each_epoch(x):
    seen = []
    options = {"epochs": 4, "batch_size": 25, "evaluate_every": 2, "held_out": x[80:], "log_jacobian": 0.5}
    models, alone = several(lambda: vae1(5, 2, (6,)), 2), several(lambda: vae1(5, 2, (6,)), 2)
    histories = fit_replicates(models, x[:80], **options, on_epoch=lambda k, row: seen.append((k, row["epoch"])))
    assert seen == [(k, epoch) for epoch in range(1, 5) for k in (0, 1)]
    for k in (0, 1):
        history = fit(alone[k], x[:80], **options, seed=k)
        require_same_rows(histories[k], history)
        assert histories[k].held_out.data_elbo == pytest.approx(history.held_out.data_elbo, abs=1e-9)
        assert histories[k].stopped is None


def test_large_batches_are_trained_one_after_the_other(x, monkeypatch):
    sizes = []
    real = replicates.Stack.step
    monkeypatch.setattr(
        replicates.Stack, "step", lambda self, batch, *a, **o: sizes.append(len(batch)) or real(self, batch, *a, **o)
    )
    compare(with_batch_norm, x, tolerance=1e-7)
    assert set(sizes) == {3}
    monkeypatch.setattr(replicates, "STACKING_PAYS", 1.0)
    sizes.clear()
    compare(with_batch_norm, x, tolerance=1e-7)
    assert not sizes


@pytest.mark.parametrize(("room", "sizes"), [(5.5, {5}), (3.5, {2, 3}), (0.0, set())])
def test_as_many_go_together_as_there_is_memory_for(x, monkeypatch, room, sizes):
    stacked, epochs, first = set(), [], {"epochs": 1, "batch_size": 25}
    models, alone = several(lambda: vae1(5, 2, (6,)), 5), several(lambda: vae1(5, 2, (6,)), 5)
    size = 4 * len(x) + memory(models[0], x[:2], 25)
    real = replicates.Stack.step
    monkeypatch.setattr(replicates, "_room", lambda device: room * size)
    monkeypatch.setattr(
        replicates.Stack, "step", lambda self, batch, *a, **o: stacked.add(len(batch)) or real(self, batch, *a, **o)
    )
    histories = fit_replicates(models, x, **first, on_epoch=lambda number, row: epochs.append(number))
    assert stacked == sizes and epochs == list(range(5))
    for seed, (model, history) in enumerate(zip(alone, histories, strict=True)):
        require_same_rows(history, fit(model, x, seed=seed, **first))
    require_same(models, alone)


def test_a_model_that_is_none_of_a_later_group_is_named(x, monkeypatch):
    models = [with_layer(Calls(torch.relu)) for _ in range(5)] + [with_layer(Calls(torch.sin))]
    size = 4 * len(x) + memory(models[0], x[:2], len(x))
    monkeypatch.setattr(replicates, "_room", lambda device: 3.5 * size)
    with pytest.raises(UsageError, match=r"models\[5\] computes something else than the layers of models\[3\]"):
        fit_replicates(models, x)


def test_the_room_on_a_gpu_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert replicates._room(torch.device("cuda", 0)) == 600
    assert replicates._room(torch.device("cpu")) == math.inf


# In a process of its own, whose memory is that of the stack.
PEAK = """
import torch
from vaentropy import vae3
from vaentropy.training.settings import Settings
from vaentropy.training.stack import Stack, memory

def resident(name):
    lines = open("/proc/self/status")
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def stacked(number):
    models, x, noise = [vae3(64, 2) for _ in range(number)], torch.rand(number, 200, 64), torch.randn(number, 1, 200, 2)
    estimate, before = number * memory(models[0], x[0, :2], 200), resident("VmRSS")
    stack = Stack(models, [Settings()] * number)
    stack.save()
    for _ in range(2):
        stack.step(x, noise, None, beta=1.0, adapt=0.0, factor=1.0)
    return estimate / (resident("VmHWM") - before)

stacked(2)
print(stacked(150))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_memory_of_a_stack_is_about_what_was_estimated():
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < 2.5


@pytest.mark.slow
def test_training_goes_on_from_trained_weights(x):
    together, alone = several(lambda: vae1(5, 2, (6,)), 2), several(lambda: vae1(5, 2, (6,)), 2)
    for seeds in ((0, 1), (5, 6)):
        fit_replicates(together, x, seeds=seeds, epochs=2, batch_size=25)
        for model, seed in zip(alone, seeds, strict=True):
            fit(model, x, seed=seed, epochs=2, batch_size=25)
    require_same(together, alone)


def test_modes_gradients_and_memory_are_as_before(x):
    models = several(with_batch_norm, 2)
    models[0].eval(), models[1].eval()
    before = torch.get_rng_state()
    fit_replicates(models, x, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    for model in models:
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        # Memory of their own: nothing else is kept alive, and files take them.
        tensors = [*model.parameters(), *model.buffers()]
        assert all(t.untyped_storage().nbytes() == t.numel() * t.itemsize for t in tensors)


def test_an_exception_leaves_models_that_can_be_used(x):
    models = several(lambda: vae1(5, 2, (6,)), 2)

    def stop(number, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_replicates(models, x, epochs=3, on_epoch=stop)
    assert all(parameter.requires_grad for model in models for parameter in model.parameters())
    assert models[0].head.log_variance.untyped_storage().nbytes() == 8


@pytest.mark.parametrize("together", [True, False])
def test_a_model_that_diverges_stops_and_the_others_go_on(x, caplog, monkeypatch, together):
    monkeypatch.setattr(replicates, "STACKING_PAYS", math.inf if together else 0.0)
    options = {"epochs": 3, "batch_size": 25, "schedule": "constant", "variances": "learned", "held_out": x[:20]}
    models = several(lambda: vae1(5, 2, (6,)), 4)
    others = [copy.deepcopy(models[k]) for k in (0, 2, 3)]
    expected = copy.deepcopy(models[1])
    rates = [5e-3, 1e9, 5e-3, 1e-2]
    histories = fit_replicates(models, x, learning_rates=rates, **options)
    alone = fit_replicates(others, x, seeds=(0, 2, 3), learning_rates=[5e-3, 5e-3, 1e-2], **options)
    require_same([models[k] for k in (0, 2, 3)], others, 1e-12)
    for k, history in zip((0, 2, 3), alone, strict=True):
        require_same_rows(histories[k], history)
        assert histories[k].stopped is None and len(history) == 3
    reached = histories[1]
    assert "lower the learning rate (now 1e+09)" in reached.stopped and "seed 1" in caplog.text
    assert len(reached) == 0
    require_same([models[1]], [expected], 0.0)
    assert math.isfinite(reached.train.elbo) and math.isfinite(reached.held_out.elbo)


def test_a_model_that_diverges_later_keeps_its_last_good_epoch(x, monkeypatch):
    options = {"batch_size": 25, "schedule": "constant"}
    models, alone = several(lambda: vae1(5, 2, (6,)), 2), several(lambda: vae1(5, 2, (6,)), 2)
    real, done = replicates.Stack.step, 0

    def step(self, *args, **settings):
        nonlocal done
        done += 1
        if done == 10:  # in the third epoch
            with torch.no_grad():
                self.models[1].latent_mean.weight[0, 0] = math.nan
        return real(self, *args, **settings)

    monkeypatch.setattr(replicates.Stack, "step", step)
    histories = fit_replicates(models, x, epochs=4, **options)
    monkeypatch.undo()
    fit(alone[0], x, epochs=4, **options)
    last = fit(alone[1], x, epochs=2, **options, seed=1)
    require_same(models, alone)
    assert "in epoch 3; the weights are those of the end of epoch 2" in histories[1].stopped
    # It ends as if it had been trained for two epochs, evaluations and final variances included.
    require_same_rows(histories[1], last)


@pytest.mark.parametrize("together", [True, False])
def test_a_model_without_any_finite_elbo_does_not_stop_the_others(x, caplog, monkeypatch, together):
    if not together:
        monkeypatch.setattr(replicates, "STACKING_PAYS", 0.0)
    models = several(lambda: vae1(5, 2, (6,)))
    with torch.no_grad():
        models[1].latent_log_variance.bias.fill_(2000.0)  # τ is infinite from the start
    histories = fit_replicates(models, x, epochs=2, batch_size=25)
    assert "the ELBO became" in histories[1].stopped and histories[1].train is None
    assert "seed 1 has no evaluation" in caplog.text
    assert all(math.isfinite(histories[k].train.elbo) and len(histories[k]) == 2 for k in (0, 2))


def test_a_bar_on_request(x, capfd):
    fit_replicates(several(lambda: vae1(5, 2, (6,)), 2), x, epochs=2, batch_size=25, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "8/8" in err and "ELBO" in err


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def with_layer(layer):
    encoder = nn.Sequential(MLPEncoder(5, (6,)), layer)
    return VAE(encoder, MLPDecoder((6,)), data_shape=5, latent_dim=2).double()


class Calls(nn.Module):
    """A layer whose function is no part of what it says of itself."""

    def __init__(self, function):
        super().__init__()
        self.function = [function]

    def forward(self, x):
        return self.function[0](x)


class Counts(nn.Module):
    """A layer that makes its buffer anew at each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count = self.count + 1
        return x * (1 + self.count)


def spoilt(model):
    with torch.no_grad():
        model.head.log_variance.fill_(torch.inf)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [vae1(5, 2), vae1(5, 3)], r"models\[1\] differs from models\[0\] in latent_shape \(\(3,\)"),
        (lambda: [vae1(5, 2), vae2(5, 2)], r"models\[1\] differs from models\[0\]"),
        (lambda: [vae1(5, 2), vae1(5, 2), vae1(5, 2).double()], r"models\[2\] differs .*float64"),
        (lambda: [with_layer(nn.ReLU()), with_layer(nn.Tanh())], r"differs .* in encoder\.1 \(Tanh.*instead of ReLU"),
        (lambda: [with_layer(nn.LeakyReLU(0.1)), with_layer(nn.LeakyReLU(0.2))], r"differs .*slope=0\.2"),
        (lambda: [vae0(5, 2), vae0(5, 2, variance=2.0)], r"differs .*head\.likelihood"),
        (lambda: [with_layer(nn.Dropout(0.5))] * 1, r"encoder\.1 is Dropout\(p=0\.5\)"),
        (lambda: [with_layer(Calls(torch.relu)), with_layer(Calls(torch.sin))], r"models\[1\] computes something else"),
        (lambda: [with_layer(Counts())] * 1, r"another tensor in the place of its buffer 'count'"),
        (lambda: [vae1(5, 2), spoilt(vae1(5, 2))], r"models\[1\] has weights that are not finite"),
        (lambda: [with_layer(Noisy())], r"cannot run as one \(vmap: called random operation"),
        (lambda: [vae1(5, 2)] * 2, r"models\[1\] shares weights with models\[0\]"),
        (lambda: [], r"models=\[\] given"),
    ],
)
def test_models_that_are_no_replicates_are_refused(x, make, message):
    models = make()
    before = [floats(copy.deepcopy(model)) for model in models]
    with pytest.raises(UsageError, match=message) as caught:
        fit_replicates(models, x)
    assert "\n" not in str(caught.value)
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in floats(model).items())


def test_dropout_that_is_switched_off_is_no_randomness(x):
    fit_replicates([with_layer(nn.Dropout(0.0)), with_layer(nn.Dropout(0.0))], x, epochs=1)


@pytest.mark.parametrize("give", [lambda x: DataLoader(x), lambda x: Rows(x)])
def test_data_that_are_not_in_memory_are_refused(x, give):
    with pytest.raises(UsageError, match=r"expected a tensor, array or data frame; use fit"):
        fit_replicates(several(lambda: vae1(5, 2, (6,)), 2), give(x))


def test_wrong_data_are_named(x):
    with pytest.raises(DataError, match=r"data of shape \(97, 4\) given, expected \(N, 5\)"):
        fit_replicates(several(lambda: vae1(5, 2, (6,)), 2), x[:, :4])


def test_seconds_are_those_of_each_models_own_training(x, monkeypatch):
    monkeypatch.setattr(replicates, "STACKING_PAYS", 0.0)
    first, second = fit_replicates([vae1(5, 2), vae1(5, 2)], x, epochs=3, batch_size=10)
    assert second["seconds"][0] < first["seconds"][-1]
