"""`fit`: what is learned, what is left alone, what is recorded."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from vaentropy.data import load, pca, pca_log_likelihood
from vaentropy.errors import DataError, TrainingError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Antithetic, Frozen, MonteCarlo, Nodes
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.likelihoods import Bernoulli, Gaussian, Poisson
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.training import fit, warmup
from vaentropy.training.settings import Settings
from vaentropy.training.step import MOST_LATENTS, RunningSums, objective, training_step
from vaentropy.vae import VAE


@pytest.fixture(scope="module")
def x():
    return pca(450, 6, 2, seed=3)[0].float()


def make(family=vae1, data_dim=6, latent_dim=2, hidden=(8, 8)):
    torch.manual_seed(0)
    return family(data_dim, latent_dim, hidden)


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_equal_seeds_give_equal_models_and_global_generators_are_left_alone(x):
    results = []
    for seed in (1, 1, 2):
        model = make()
        torch.manual_seed(11 + len(results))  # the state of the global generator must not matter
        before = torch.get_rng_state()
        fit(model, x, epochs=3, batch_size=64, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_dropout_is_seeded_too(x):
    results = []
    for other in (5, 6):
        torch.manual_seed(0)
        encoder = nn.Sequential(MLPEncoder(6, (8,)), nn.Dropout(0.5))
        model = VAE(encoder, MLPDecoder((8,)), data_shape=6, latent_dim=2)
        torch.manual_seed(other)
        fit(model, x, epochs=2, seed=3)
        results.append(weights(model))
    assert torch.equal(*results)


def test_held_out_data_do_not_change_training(x):
    with_held_out, without = make(), make()
    history = fit(with_held_out, x[:400], held_out=x[400:], epochs=4, evaluate_every=1)
    fit(without, x[:400], epochs=4)
    assert torch.equal(weights(with_held_out), weights(without))
    assert history.held_out.num_points == 50
    assert history.at("held_out_elbo") == [1, 2, 3, 4]


def test_every_point_is_used_once_an_epoch_in_batches_of_nearly_equal_size(x):
    seen = []

    class Watching(MLPEncoder):
        def forward(self, batch):
            if self.training:
                seen.append(batch.clone())
            return super().forward(batch)

    model = VAE(Watching(6, (8,)), MLPDecoder((8,)), data_shape=6, latent_dim=2)
    seen.clear()
    history = fit(model, x, epochs=2, batch_size=200, variances="learned")
    assert [len(batch) for batch in seen] == [150, 150, 150] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort(0).values, x.sort(0).values)
    assert history["step"] == [3, 6]


def test_the_last_epoch_is_always_evaluated_and_the_numbers_are_the_models(x):
    model = make()
    history = fit(model, x[:400], held_out=x[400:], epochs=5, evaluate_every=3)
    assert history.at("held_out_elbo") == [3, 5]
    assert history.at("train_elbo") == [5]
    again = evaluate(model, x[:400])
    assert history.train.elbo == again.elbo == history["train_elbo"][-1]
    assert history.held_out.elbo == evaluate(model, x[400:]).elbo == history["held_out_elbo"][-1]
    with pytest.raises(KeyError, match="no column 'elbow'; there are epoch"):
        history["elbow"]
    assert len(history) == 5 and "5 epochs" in repr(history)


@pytest.mark.parametrize("family", [vae1, vae2, vae3])
def test_analytic_variances_end_at_their_optimum(x, family):
    model = make(family)
    history = fit(model, x, epochs=10, variances="analytic", evaluation_expectation=Frozen(0, 16))
    assert abs(history.train.decoder_gap) < 1e-5
    if family is vae2:
        assert abs(history.train.prior_gap) < 1e-5


def test_learned_variances_are_learned_at_their_own_rate(x):
    variances = []
    for rate in (None, 0.2):
        model = make()
        fit(
            model,
            0.1 * x,
            epochs=2,
            variances="learned",
            learning_rate=1e-3,
            variance_learning_rate=rate,
            schedule="constant",
        )
        variances.append(float(model.head.log_variance.detach()))
    steps = 2 * math.ceil(450 / 200)
    # Adam moves a parameter by at most about its rate a step; with a steady gradient by just about that.
    assert -1.01e-3 * steps < variances[0] < 0
    assert -0.2 * 1.01 * steps < variances[1] < -0.2 * 0.5 * steps


@pytest.mark.parametrize("variances", ["analytic", "learned"])
def test_vae2s_columns_move_and_keep_their_norms(x, variances):
    model = make(vae2)
    before = model.latent_layer.weight.detach().clone()
    fit(model, x, epochs=20, variances=variances)
    after = model.latent_layer.weight.detach()
    assert (after - before).abs().max() > 0.05
    assert torch.allclose(after.norm(dim=0), torch.ones(2), atol=1e-6)
    assert (model.prior_log_variance.detach().abs() > 1e-3).all()


def test_vae2s_penalty_draws_columns_to_norm_one(x):
    torch.manual_seed(0)
    model = vae2(6, 2, (8, 8), columns="penalty")
    with torch.no_grad():
        model.latent_layer.weight.mul_(3)
    fit(model, x, epochs=150, learning_rate=5e-2)
    assert torch.allclose(model.latent_layer.weight.norm(dim=0), torch.ones(2), atol=0.05)


def test_vae3s_variance_is_a_function_of_z(x):
    model = make(vae3)
    history = fit(model, x, epochs=20)
    assert history.train.variance_kind == "function"
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    assert (model.likelihood(z).variance.std(0) / model.likelihood(z).variance.mean(0)).min() > 1e-3


def test_vae0_keeps_its_variance(x):
    model = make(vae0)
    fit(model, x, epochs=2)
    assert model.likelihood(torch.zeros(1, 2)).variance.unique().tolist() == [1.0]


@pytest.mark.slow
def test_linear_data_reach_the_ground_truth():
    # 2,000 points of a linear Gaussian model with 2 latents: the ELBO of a good VAE comes close to the true
    # log-likelihood, and its gap close to 0.
    x, truth = pca(2000, 10, 2, noise=0.1, seed=1)
    torch.manual_seed(0)
    model = vae1(10, 2, (32,)).double()
    history = fit(model, x, epochs=250, batch_size=100, learning_rate=1e-2)
    log_likelihood = pca_log_likelihood(x, *truth)
    assert log_likelihood - 0.5 < history.train.elbo < log_likelihood + 0.1
    assert abs(history.train.gap) < 0.1
    assert history.train.optimal_variance == pytest.approx(0.01, rel=0.1)


def test_images_and_convolutions_batchnorm_included():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 8, 8, generator=generator)
    torch.manual_seed(0)
    encoder = nn.Sequential(ConvEncoder((1, 8, 8), (4, 8)), nn.BatchNorm1d(32))
    model = VAE(encoder, ConvDecoder((1, 8, 8), (8, 4)), data_shape=(1, 8, 8), latent_dim=3)
    history = fit(model, images, epochs=10, batch_size=16)
    assert history["running_elbo"][-1] > history["running_elbo"][0] + 5
    assert history.train.data_shape == (1, 8, 8)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Poisson()])
def test_other_likelihoods_train(likelihood):
    generator = torch.Generator().manual_seed(0)
    rates = softplus(torch.randn(300, 2, generator=generator) @ torch.randn(2, 6, generator=generator))
    x = torch.poisson(rates, generator=generator)
    x = x.clamp(max=1) if isinstance(likelihood, Bernoulli) else x
    torch.manual_seed(0)
    model = VAE(MLPEncoder(6, (16,)), MLPDecoder((16,)), data_shape=6, latent_dim=2, likelihood=likelihood)
    before = evaluate(model, x)
    history = fit(model, x, epochs=50, batch_size=50, learning_rate=1e-2)
    assert history.train.elbo > before.elbo + 0.2
    assert abs(history.train.gap) < 0.15


def test_running_columns_are_means_over_the_points_of_the_epoch(x):
    # With a step size of next to nothing the model does not move, so that they must equal an evaluation.
    model = make()
    frozen = Frozen(0, 4)
    expected = evaluate(model, x, expectation=frozen)
    history = fit(
        model,
        x,
        epochs=1,
        batch_size=64,
        learning_rate=1e-12,
        variances="learned",
        schedule="constant",
        expectation=frozen,
    )
    row = history.rows[0]
    for name in ("elbo", "entropy_sum", "gap", "reconstruction", "kl"):
        assert row[f"running_{name}"] == pytest.approx(getattr(expected, name), abs=1e-4)


def test_beta_follows_its_schedule_and_is_recorded(x):
    history = fit(make(), x, epochs=8, beta=warmup(0.5))
    assert history["beta"][0] < 0.3 and history["beta"][-1] == 1.0
    assert history["beta"] == sorted(history["beta"])
    weak = fit(make(), x, epochs=30, beta=0.01)
    strong = fit(make(), x, epochs=30, beta=20.0)
    assert weak.train.kl > strong.train.kl + 0.2


def test_a_step_ascends_the_weighted_elbo_and_clips(x):
    model = make().double()
    batch = x[:50].double()
    nodes = Antithetic(4).nodes(50, (2,), generator=torch.Generator().manual_seed(0), dtype=batch.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = weights(model)
    training_step(copy.deepcopy(model), batch, nodes, optimizer)  # a copy: the optimiser's own model stays

    def loss():
        terms = model.elbo_terms(batch, nodes.noise, nodes.weights)
        return 0.3 * terms.kl.sum(-1).mean() - terms.reconstruction.mean()

    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), list(model.parameters()))])
    training_step(model, batch, nodes, optimizer, beta=0.3)
    assert torch.allclose(weights(model), before - gradient, atol=1e-12)
    before = weights(model)
    training_step(model, batch, nodes, optimizer, clip_norm=1e-3)
    assert (weights(model) - before).norm() == pytest.approx(1e-3, rel=1e-3)


def test_running_sums_weight_batches_by_their_size(x):
    model = make().double()
    sums, elbos = RunningSums(), []
    for batch in (x[:10].double(), x[10:17].double()):
        noise = torch.zeros(1, 1, 2, dtype=torch.float64)
        terms = model.elbo_terms(batch, noise, Nodes(noise, torch.ones(1, dtype=torch.float64), None).weights)
        sums.add(objective(model, batch, noise, torch.ones(1, dtype=torch.float64))[1], len(batch))
        elbos += terms.elbo.tolist()
    assert sums.read()["elbo"] == pytest.approx(sum(elbos) / 17, rel=1e-12)


def test_history_has_kl_and_encoder_entropy_of_each_latent(x):
    model = make()
    model.double()
    # A step that changes nothing, so that the epoch's means are those of the model afterwards.
    history = fit(model, x.double(), epochs=1, batch_size=len(x), learning_rate=1e-300, variances="learned")
    with torch.no_grad():
        posterior = model.posterior(x.double())
        q = torch.distributions.Normal(posterior.mean, posterior.stddev)
        unit = torch.distributions.Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
        expected = torch.distributions.kl_divergence(q, unit)
    (row,) = history.rows
    assert row["running_kl_per_latent"] == pytest.approx(expected.mean(0).tolist(), rel=1e-12)
    assert row["running_encoder_entropy_per_latent"] == pytest.approx(q.entropy().mean(0).tolist(), rel=1e-12)
    assert sum(row["running_kl_per_latent"]) == pytest.approx(row["running_kl"], rel=1e-12)


def test_very_many_latents_are_left_out_of_the_history(x):
    history = fit(vae1(x.shape[1], MOST_LATENTS + 1), x, epochs=1)
    assert not [column for column in history.columns if column.endswith("per_latent")]
    assert math.isfinite(history["running_kl"][0])


def test_evaluations_take_fewer_draws_of_many_points(x):
    default = Settings()
    draws = {1: 16, 8192: 16, 8193: 16, 50_000: 3, 60_000: 2, 10**6: 2}
    assert {n: default.evaluation_of(n).num_samples for n in draws} == draws
    chosen = Settings(evaluation_expectation=Frozen(0, 8))
    assert chosen.evaluation_of(10**6) == Frozen(0, 8)
    many = x.repeat(50, 1)
    history = fit(make(), many, held_out=x, epochs=1, batch_size=2000)
    assert (history.train.expectation.num_samples, history.held_out.expectation.num_samples) == (6, 16)


def test_no_terminal_no_output(x, capfd):
    fit(make(), x, epochs=1)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_request(x, capfd):
    fit(make(), x, epochs=2, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "6/6" in err and "gap" in err


def test_the_model_keeps_its_mode_and_float64(x):
    model = make().double().eval()
    history = fit(model, x, epochs=1, expectation=MonteCarlo(3))
    assert not model.training and next(model.parameters()).dtype == torch.float64
    assert history.to_dict()["rows"][0]["epoch"] == 1


def test_numpy_data_are_taken(x):
    assert fit(make(), x.numpy(), epochs=1).train.num_points == 450


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0 given"),
        ({"batch_size": -5}, "batch_size=-5 given"),
        ({"evaluate_every": 0}, "evaluate_every=0 given"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 given"),
        ({"variance_learning_rate": -1.0}, "variance_learning_rate=-1.0 given"),
        ({"clip_norm": math.inf}, "clip_norm=inf given"),
        ({"variance_momentum": 1.0}, "variance_momentum=1.0 given"),
        ({"beta": -0.5}, "beta=-0.5 given"),
    ],
)
def test_wrong_settings_are_named(x, options, message):
    with pytest.raises(UsageError, match=message):
        fit(make(), x, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(5, 7), r"data of shape \(5, 7\) given, expected \(N, 6\)"),
        (torch.zeros(0, 6), r"data of shape \(0, 6\)"),
        (
            torch.tensor([[0.0] * 6, [0.0, math.nan] + [0.0] * 4]),
            r"data: row 1, column 1 \(counted from 0\) is nan",
        ),
    ],
)
def test_wrong_data_are_named(data, message):
    with pytest.raises(DataError, match=message):
        fit(make(), data)


def test_a_diverging_run_says_what_to_do(x):
    with pytest.raises(TrainingError, match=r"in epoch 1, after 3 rollbacks; lower the learning rate"):
        fit(make(), x, epochs=50, learning_rate=1e8, schedule="constant", variances="learned")


@pytest.mark.slow
def test_mnist_reaches_a_positive_elbo_quickly(data_folder):
    data = load("mnist", folder=str(data_folder))
    torch.manual_seed(0)
    model = vae1(784, 10, (64,))
    history = fit(model, data.train[:6000], held_out=data.held_out[:1000], epochs=3, batch_size=100)
    # What one variance around the mean image gives, without a latent: a VAE that learns is far above.
    without_latents = -392 * math.log(2 * math.pi * math.e * float(data.train[:6000].var(0).mean()))
    assert history.held_out.elbo > without_latents + 100
    assert abs(history.train.decoder_gap) < 5 * history.train.mc_stderr.decoder_gap


def test_gaussian_with_a_variance_per_feature(x):
    torch.manual_seed(0)
    model = VAE(MLPEncoder(6, (8,)), MLPDecoder((8,)), data_shape=6, latent_dim=2, likelihood=Gaussian("per_feature"))
    history = fit(model, x, epochs=10, evaluation_expectation=Frozen(0, 8))
    assert history.train.variance_kind == "per_feature"
    assert history.train.decoder_residuals.abs().max() < 1e-5


def test_a_convolutional_variance_function_trains_analytically():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = VAE(
        ConvEncoder((1, 8, 8), (4,)),
        ConvDecoder((1, 8, 8), (4,)),
        data_shape=(1, 8, 8),
        latent_dim=2,
        likelihood=Gaussian("function"),
    )
    history = fit(model, images, epochs=5, batch_size=20, evaluation_expectation=Frozen(0, 16))
    assert abs(history.train.decoder_gap) < 1e-4


@pytest.mark.parametrize("variance", ["shared", "per_feature", "function"])
def test_a_constant_feature_stops_at_the_floor_and_finds_back(variance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    x[:, 0] = 0.25
    x = x if variance != "shared" else torch.full_like(x, 0.25)
    torch.manual_seed(0)
    likelihood = Gaussian(variance, floor=1e-3)
    model = VAE(MLPEncoder(3, (8,)), MLPDecoder((8,)), data_shape=3, latent_dim=1, likelihood=likelihood)
    history = fit(model, x, epochs=100, batch_size=100, learning_rate=1e-2)
    assert history["at_floor"][-1] >= (1.0 if variance == "shared" else 0.3)
    assert math.isfinite(history.train.elbo)
    noisy = x + torch.randn(200, 3, generator=generator)
    assert fit(model, noisy, epochs=30, batch_size=50)["at_floor"][-1] == 0


def test_submodules_that_are_in_eval_mode_stay_there(x):
    torch.manual_seed(0)
    normalisation = nn.BatchNorm1d(8)
    encoder = nn.Sequential(MLPEncoder(6, (8,)), normalisation)
    model = VAE(encoder, MLPDecoder((8,)), data_shape=6, latent_dim=2)
    normalisation.eval()
    fit(model, x, epochs=1)
    assert torch.equal(normalisation.running_mean, torch.zeros(8))
    assert not normalisation.training and model.training


def test_an_exception_restores_modes_and_gradients(x):
    model = make().eval()

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, x, epochs=3, on_epoch=stop)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.head.log_variance.grad is None  # set in closed form, so no gradient was ever made


def test_a_small_last_batch_does_not_spoil_the_running_variance():
    x = pca(201, 6, 2, seed=3)[0].float()
    torch.manual_seed(0)
    model = VAE(nn.Sequential(MLPEncoder(6, (8,)), nn.BatchNorm1d(8)), MLPDecoder((8,)), data_shape=6, latent_dim=2)
    assert fit(model, x, epochs=2, batch_size=200)["step"] == [2, 4]
