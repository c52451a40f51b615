"""Each rule on a model that has what it looks for, and on one that has not."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal, StudentT

import vaentropy as ve
from vaentropy.diagnosis import implied_variance
from vaentropy.diagnosis.rules.finding import _as_student
from vaentropy.errors import UsageError
from vaentropy.networks import MLPDecoder, MLPEncoder

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def factors(num_points=400, num_factors=2, num_features=6, seed=0):
    mixing = randn(num_factors, num_features, seed=seed + 1)
    return randn(num_points, num_factors, seed=seed + 2) @ mixing + 0.3 * randn(num_points, num_features, seed=seed + 3)


X = factors()


def optimum(latent_dim=2, x=X):
    return ve.LinearVAE.optimum(x, latent_dim)


def kinds(diagnosis):
    return {finding.kind for finding in diagnosis.findings}


def test_the_linear_optimum_is_clean_and_its_neighbour_is_not():
    model = optimum()
    diagnosis = ve.diagnose(model, X)
    assert diagnosis.clean and kinds(diagnosis) <= {"feature_variances"}, diagnosis
    with torch.no_grad():
        model.weight.mul_(1.5)
    moved = ve.diagnose(model, X)
    finding = moved["not_stationary"]
    best = float(optimum().mean_log_likelihood(ve.linear.DataMoments.of(X)).detach())
    assert finding.level == "problem" and 0 < finding.nats <= best - moved.train.elbo + 0.01


def test_a_variance_at_its_floor_is_told():
    torch.manual_seed(0)
    networks = MLPEncoder(6, (8,)), MLPDecoder((8,))
    likelihood = ve.Gaussian(variance="per_feature", floor=1e-4)
    model = ve.VAE(*networks, data_shape=6, latent_dim=2, likelihood=likelihood).double().eval()
    x = X.clone()
    x[:, 3] = 1.0
    assert "variance_floor" not in kinds(ve.diagnose(model, x, gradients=False))
    with torch.no_grad():
        model.head.log_variance[3] = math.log(1e-5)
    finding = ve.diagnose(model, x, gradients=False)["variance_floor"]
    assert finding.level == "note" and "floor of 0.0001 for 16.7% of the features" in finding.verdict
    assert "1 of 6 features hardly vary" in finding.verdict and finding.remedy.startswith("leave them out")


def test_decoder_too_confident_or_not_enough():
    for factor, word in ((0.5, "over-confident"), (2.0, "under-confident")):
        model = optimum()
        with torch.no_grad():
            model.log_variance.add_(math.log(factor))
        finding = ve.diagnose(model, X)["variance"]
        # ½ D (ρ - 1 - log ρ), with ρ the factor back.
        assert abs(finding.nats - 3 * (1 / factor - 1 + math.log(factor))) < 5 * finding.error + 0.02
        assert word in finding.verdict


def test_latents_off_the_prior():
    model = optimum()
    with torch.no_grad():
        model.encoder_bias.add_(torch.tensor([1.0, 0.0], dtype=F64))
    diagnosis = ve.diagnose(model, X)
    finding = diagnosis["prior_mismatch"]
    # KL of N(1, 1) from N(0, 1) is ½.
    assert finding.level == "problem" and abs(finding.nats - 0.5) < 0.01
    assert abs(float(diagnosis.latents.shift[0]) - 0.5) < 0.01 and float(diagnosis.latents.shift[1]) < 0.01


class Doubled(nn.Module):
    """A linear VAE each of whose latents comes twice."""

    def __init__(self, noise):
        super().__init__()
        self.inner, self.noise = optimum(), noise

    def posterior(self, x):
        q = self.inner.posterior(x)
        mean = torch.cat([q.mean, q.mean + self.noise * randn(*q.mean.shape, seed=9)], -1)
        return Independent(Normal(mean, torch.cat([q.stddev, q.stddev], -1)), 1)

    def prior(self):
        return Independent(Normal(torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)), 1)

    def likelihood(self, z):
        return self.inner.likelihood((z[:, :2] + z[:, 2:]) / 2)


def test_duplicated_and_correlated_latents():
    twice = ve.diagnose(Doubled(0.0), X)["correlated_latents"]
    assert twice.level == "problem" and "say the same" in twice.verdict
    loosely = ve.diagnose(Doubled(1.0), X)["correlated_latents"]
    assert loosely.level == "note" and 0.1 < loosely.nats < twice.nats
    assert "correlated_latents" not in ve.diagnose(optimum(), X)


def test_collapsed_latents_can_be_pruned():
    model = ve.LinearVAE.optimum(X, 3, eigenvectors=(0, 1))
    diagnosis = ve.diagnose(model, X)
    assert diagnosis.latents.which("collapsed") == [2]
    finding = diagnosis["collapsed"]
    assert finding.level == "note" and "prune(model, [2])" in finding.remedy
    pruned = ve.evaluate(ve.prune(model, diagnosis.latents.which("collapsed")), X)
    assert abs(pruned.elbo - diagnosis.train.elbo) < 5 * (pruned.mc_stderr.elbo + diagnosis.train.mc_stderr.elbo)


def test_a_saddle_is_below_the_best_linear_model():
    # Stationary, with a zero gap, and one latent idle.
    model = ve.LinearVAE.optimum(X, 2, eigenvectors=(0,))
    diagnosis = ve.diagnose(model, X)
    finding = diagnosis["below_linear"]
    with torch.no_grad():
        statistics = ve.linear.DataMoments.of(X)
        lower = float(optimum().elbo(statistics) - model.elbo(statistics))
    mc = diagnosis.train.mc_stderr
    assert finding.level == "problem" and abs(finding.nats - lower) < 5 * mc.elbo + 0.05
    assert abs(diagnosis.train.gap) < 5 * mc.gap


def test_total_collapse():
    model = ve.LinearVAE.optimum(X, 2, eigenvectors=())
    diagnosis = ve.diagnose(model, X)
    assert diagnosis.problems[0].kind == "collapsed" and "all latents" in diagnosis.problems[0].verdict
    assert "below_linear" not in diagnosis  # said once


def test_overfitting_is_judged_by_both_errors():
    held_out = factors(seed=0)[:50] + 1.0
    diagnosis = ve.diagnose(optimum(), X, held_out=held_out)
    finding = diagnosis["overfitting"]
    exact = optimum()
    with torch.no_grad():
        lower = float(exact.log_likelihood(X).mean() - exact.log_likelihood(held_out).mean())
    assert abs(finding.nats - lower) < 0.2 and finding.level == "problem"
    assert "overfitting" not in ve.diagnose(optimum(), X, held_out=X[:200])
    lenient = ve.diagnose(optimum(), X, held_out=held_out, overfitting=1000.0)
    assert lenient["overfitting"].level == "note"


def test_noise_of_each_feature():
    scales = torch.tensor([0.1, 0.1, 0.1, 2.0, 2.0, 2.0], dtype=F64)
    x = randn(500, 1, seed=1) @ torch.ones(1, 6, dtype=F64) + randn(500, 6, seed=2) * scales
    diagnosis = ve.diagnose(optimum(1, x), x)
    finding, optimal = diagnosis["feature_variances"], diagnosis.train.optimal_feature_variance
    assert finding.level == "note"
    assert abs(finding.nats - 0.5 * float(6 * optimal.mean().log() - optimal.log().sum())) < 1e-3


@pytest.mark.slow
def test_train_and_eval_mode():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU())
        model = ve.VAE(MLPEncoder(6, (8,)), decoder, data_shape=6, latent_dim=2, decoder_features=8).double()
        ve.fit(model, X, epochs=60, batch_size=50, learning_rate=2e-2, progress=False)
    finding = ve.diagnose(model, X)["mode_difference"]
    other = [ve.evaluate(model, X, mode=mode).elbo for mode in ("eval", "train")]
    seen = finding.evidence[0].value
    assert finding.level == "problem" and abs(seen - (other[1] - other[0])) < 0.2 * abs(seen)
    assert model.training and "mode_difference" not in ve.diagnose(optimum(), X)


def weight_decayed(optimizer_class, **options):
    model = ve.vae1(6, 2, (8,)).double()
    return model, optimizer_class(model.parameters(), weight_decay=0.1, **options)


def test_weight_decay_where_the_theorem_looks():
    model, optimizer = weight_decayed(torch.optim.Adam, lr=1e-3)
    finding = ve.diagnose(model, X, optimizer=optimizer)["weight_decay"]
    assert any("latent_layer" in number.what for number in finding.evidence)
    model, optimizer = weight_decayed(torch.optim.AdamW, lr=1e-3)
    assert "AdamW" in ve.diagnose(model, X, optimizer=optimizer)["weight_decay"].verdict
    assert "weight_decay" not in ve.diagnose(model, X, optimizer=torch.optim.Adam(model.parameters()))


class HeavyTailed(nn.Module):
    """A likelihood without an entropy that torch knows in closed form for mixtures; normal latents."""

    def __init__(self):
        super().__init__()
        self.inner = optimum()

    def posterior(self, x):
        return self.inner.posterior(x)

    def prior(self):
        return self.inner.prior()

    def likelihood(self, z):
        mean = self.inner.likelihood(z).mean
        components = StudentT(5.0, mean.unsqueeze(-1).expand(*mean.shape, 2), torch.tensor([0.3, 0.6], dtype=F64))
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(*mean.shape, 2, dtype=F64)), components
        )
        return Independent(mixture, 1)


def test_other_likelihoods_say_what_was_not_tested():
    diagnosis = ve.diagnose(HeavyTailed(), X)
    assert "sampled_entropies" in diagnosis
    assert any(reason.startswith("moves of the theorem") for reason in diagnosis.untested)
    assert diagnosis.gradients.steps[1.0].kind == "gradient"


def test_functions_without_parameters():
    inner = optimum()
    model = ve.from_functions(
        lambda x: (inner.posterior(x).mean.detach(), inner.posterior(x).variance.log().detach()),
        lambda z: inner.likelihood(z).mean.detach(),
        variance=1.0,
    )
    diagnosis = ve.diagnose(model, X)
    assert any("no trainable parameters" in reason for reason in diagnosis.untested)
    # What cannot be told apart without parameters is not told apart.
    assert "or the model cannot reach any" in diagnosis["not_stationary"].verdict
    assert "variance" in diagnosis


def test_declared_beta_without_gradients():
    finding = ve.diagnose(optimum(), X, beta=4.0, gradients=False)["kl_weight"]
    assert abs(finding.nats - 3 * ve.evaluate(optimum(), X).kl) < 1e-9


@pytest.mark.parametrize(
    ("squared_error", "kl", "expected"),
    [("mean", "sum", 0.1 * 6 / 2), ("mean", "mean", 0.1 * 6 / 4), ("sum", "sum", 0.1 / 2), ("sum", "mean", 0.1 / 4)],
)
def test_implied_variance(squared_error, kl, expected):
    """The loss and -ELBO with the implied σ² have gradients in one ratio, for all parameters."""
    variance = implied_variance(0.1, data_shape=6, latent_shape=2, squared_error=squared_error, kl=kl)
    assert math.isclose(variance, expected)
    model = copy.deepcopy(optimum())
    q = model.posterior(X)
    z = q.mean + q.stddev * randn(*q.mean.shape, seed=3)
    divergence = 0.5 * (q.mean.square() + q.variance - 1 - q.log_variance)
    error = (X - model.likelihood(z).mean).square()
    loss = getattr(error, squared_error)(1).mean() + 0.1 * getattr(divergence, kl)(1).mean()
    elbo = -0.5 * error.sum(1).mean() / variance - divergence.sum(1).mean()
    parameters = [model.weight, model.encoder_weight, model.latent_log_variance]
    of_loss, of_elbo = (torch.autograd.grad(f, parameters, retain_graph=True) for f in (loss, elbo))
    ratios = torch.cat([(a / -b).flatten() for a, b in zip(of_loss, of_elbo, strict=True)])
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-9)


def test_implied_variance_refuses():
    for options, word in (
        ({"kl_weight": 0.0}, "positive"),
        ({"kl_weight": 1.0, "kl": "mean"}, "latent_shape"),
    ):
        with pytest.raises(UsageError, match=word):
            implied_variance(**options, data_shape=3)


def test_paper_threshold_and_thresholds():
    model = ve.LinearVAE.optimum(X, 3, eigenvectors=(0, 1))
    assert ve.diagnose(model, X, collapse="paper", gradients=False).latents.which("collapsed") == [2]
    assert ve.diagnose(model, X, collapse=100.0, gradients=False).latents.which("collapsed") == [0, 1, 2]
    with torch.no_grad():
        model.log_variance.add_(0.5)
    assert not ve.diagnose(model, X).clean
    assert ve.diagnose(model, X, tolerance=100.0).clean


@pytest.mark.parametrize(("num_draws", "tolerance"), [(4, 0.1), (8, 0.01), (16, 0.001), (64, 1e-5)])
def test_errors_of_few_draws_are_widened_as_student_does(num_draws, tolerance):
    expected = stats.t.isf(stats.norm.sf(3), num_draws - 1)
    assert math.isclose(_as_student(3.0, num_draws - 1), expected, rel_tol=tolerance)
