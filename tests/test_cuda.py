"""On a GPU: the numbers of the CPU, the same at each run, and each verb. `make test-gpu`; else skipped."""

import copy
import json

import pytest
import torch
from torch import nn

from vaentropy.calibration import calibrate, fold
from vaentropy.cli import main
from vaentropy.data import Rows, load, pca
from vaentropy.data.conditioned import given
from vaentropy.diagnosis import diagnose
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.importance import log_likelihood
from vaentropy.likelihoods import Bernoulli, Poisson
from vaentropy.linear import LinearVAE
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.pruning import prune
from vaentropy.selection import select
from vaentropy.training import fit, fit_replicates, warmup
from vaentropy.vae import VAE

from .workers import Sent

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not run by make test-gpu")

# Nodes that are no random numbers, which a GPU draws otherwise.
NODES = GaussHermite(3)
FAMILIES = [vae0, vae1, vae2, vae3]


@pytest.fixture(scope="module")
def x():
    return pca(450, 6, 2, seed=3)[0]


def make(family=vae1, dtype=torch.float64, device=DEVICE):
    torch.manual_seed(0)
    return family(6, 2, (8, 8)).to(device, dtype)


def convolutional():
    torch.manual_seed(0)
    shape = (1, 8, 8)
    return vae1(shape, 2, networks=(ConvEncoder(shape, (4, 8)), ConvDecoder(shape, (8, 4)))).to(DEVICE)


def weights(model):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("missing", [False, True])
def test_training_and_evaluation_give_the_numbers_of_the_cpu(x, family, missing):
    data = x.clone()
    if missing:
        data[::7, 2] = torch.nan
    results = []
    for device in ("cpu", DEVICE):
        model = make(family, device=device)
        options = {"missing": "ignore" if missing else "error", "evaluation_expectation": NODES, "compile": False}
        fit(model, data, epochs=4, batch_size=64, expectation=NODES, **options)
        elbo = evaluate(model, data, expectation=NODES, missing=options["missing"]).elbo
        results.append((weights(model), torch.tensor(elbo, dtype=torch.float64)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == torch.float64
        torch.testing.assert_close(theirs, ours, rtol=1e-7, atol=1e-7)


def test_conditional_models_give_the_numbers_of_the_cpu(x):
    data, results = given(x[:, :4], x[:, 4:]), []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = vae3(4, 2, (8, 8), condition=2).to(device, torch.float64)
        pair = [copy.deepcopy(model) for _ in range(2)]
        options = {"epochs": 4, "batch_size": 64, "expectation": NODES, "evaluation_expectation": NODES}
        fit(model, data, **options)
        fit_replicates(pair, data, **options)
        diagnosis = diagnose(model, data, held_out=data, expectation=NODES, progress=False)
        encoded = model.encode(x[:, :4], condition=x[0, 4:]).cpu()
        numbers = torch.tensor([diagnosis.train.elbo, diagnosis.gradients.norm], dtype=torch.float64)
        results.append((weights(model), weights(pair[1]), encoded, numbers))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Poisson()])
def test_likelihoods_of_other_data(likelihood):
    torch.manual_seed(0)
    data = (torch.rand(300, 6) > 0.4).double()
    model = VAE(MLPEncoder(6, (8,)), MLPDecoder((8,)), data_shape=6, latent_dim=2, likelihood=likelihood).double()
    on_gpu = copy.deepcopy(model).to(DEVICE)
    for each in (model, on_gpu):
        fit(each, data, epochs=3, expectation=NODES, evaluation_expectation=NODES)
    torch.testing.assert_close(weights(on_gpu), weights(model), rtol=1e-7, atol=1e-7)


def test_shards_that_are_shared_out_have_the_numbers_of_one_process(x):
    model, data = make(), Rows(x, shard_size=70)
    expected, found = evaluate(model, data), evaluate(model, data, engine=Sent())
    assert found.elbo == pytest.approx(expected.elbo, rel=1e-12)
    assert found.mc_stderr.gap == pytest.approx(expected.mc_stderr.gap, rel=1e-9)


def test_equal_seeds_give_equal_models_and_global_generators_are_left_alone(x):
    results = []
    for number in range(2):
        model = make(dtype=torch.float32)
        torch.cuda.manual_seed(11 + number)
        before = torch.cuda.get_rng_state()
        fit(model, x.float(), epochs=3, batch_size=64, seed=1)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        results.append(weights(model))
    assert torch.equal(*results)


def test_steps_are_recorded_and_give_the_numbers_of_plain_ones(x, caplog):
    results = []
    for compiled in (None, False):
        model = make(vae3, dtype=torch.float32)
        fit(model, x.float(), epochs=5, batch_size=64, beta=warmup(0.5), compile=compiled)
        results.append(weights(model))
    assert torch.equal(*results)
    assert not caplog.records


def test_a_model_that_waits_for_the_device_is_trained_as_it_is(x, caplog):
    class Waiting(MLPEncoder):
        def forward(self, x):
            assert float(x.sum()) < torch.inf
            return super().forward(x)

    torch.manual_seed(0)
    model = VAE(Waiting(6, (8,)), MLPDecoder((8,)), data_shape=6, latent_dim=2).to(DEVICE)
    with caplog.at_level("WARNING"):
        history = fit(model, x.float(), epochs=5, batch_size=64)
    assert "without CUDA graphs" in caplog.text and history.train is not None


def test_resumed_training_ends_where_an_uninterrupted_one_does(x, tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["epoch"] == 3:
            raise Stop

    def with_dropout():
        torch.manual_seed(0)
        encoder = nn.Sequential(MLPEncoder(6, (8,)), nn.Dropout(0.5))
        return VAE(encoder, MLPDecoder((8,)), data_shape=6, latent_dim=2).to(DEVICE)

    options = {"epochs": 6, "batch_size": 64, "checkpoints": tmp_path / "a"}
    straight = with_dropout()
    fit(straight, x, **options)
    options["checkpoints"] = tmp_path / "b"
    with pytest.raises(Stop):
        fit(with_dropout(), x, on_epoch=stop, **options)
    resumed = with_dropout()
    fit(resumed, x, resume=True, **options)
    assert torch.equal(weights(resumed), weights(straight))


@pytest.mark.parametrize("family", FAMILIES)
def test_replicates_are_their_single_trainings(x, family):
    together = [make(family) for _ in range(3)]
    alone = copy.deepcopy(together)
    options = {"epochs": 3, "batch_size": 50}
    fit_replicates(together, x, seeds=[0, 5, 9], **options)
    for model, other, seed in zip(together, alone, [0, 5, 9], strict=True):
        fit(other, x, seed=seed, **options)
        torch.testing.assert_close(weights(model), weights(other), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_compiled_steps_and_bf16_come_to_about_the_same(network):
    data = load("digits").train[:600]
    data = data if network == "mlp" else data.unflatten(1, (1, 8, 8))
    elbos = {}
    for name, options in {"plain": {}, "compiled": {"compile": True}, "bf16": {"precision": "bf16"}}.items():
        torch.manual_seed(0)
        model = vae1(64, 2).to(DEVICE) if network == "mlp" else convolutional()
        history = fit(model, data, epochs=30, **options)
        elbos[name] = history.train.elbo
    assert elbos["compiled"] == pytest.approx(elbos["plain"], abs=1.5), elbos
    assert elbos["bf16"] == pytest.approx(elbos["plain"], abs=3), elbos


def test_read_outs(x):
    def elbo(model):
        return evaluate(model, x, expectation=NODES).elbo

    model = make()
    history = fit(model, x[:300], held_out=x[300:], epochs=20)
    assert history.held_out.num_points == 150
    assert diagnose(model, x[:300], held_out=x[300:]).findings
    better = calibrate(model, x, expectation=NODES)
    assert elbo(better) >= elbo(model)
    assert elbo(fold(better)) == pytest.approx(elbo(better), abs=1e-9)
    assert elbo(prune(model, [0], x)) < elbo(model)
    assert model.sample(3).device.type == DEVICE
    exact = log_likelihood(LinearVAE.optimum(x, 2).to(DEVICE), x, num_samples=50)
    assert exact.value == pytest.approx(exact.elbo, abs=1e-6)


def test_candidates_of_a_selection(x):
    chosen = select(x.float(), [1, 2, 3], model=lambda h: vae1(6, h, (8, 8)).to(DEVICE), epochs=20)
    assert len(chosen.candidates) == 3


def test_verbs(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", "pca-ring", "--epochs", "2", "--no-report", "--device", DEVICE, "--out", run]) == 0
    for device in (DEVICE, "cpu"):
        capsys.readouterr()
        assert main(["evaluate", run, "--device", device, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert main(["diagnose", run, "--device", device]) == 0
