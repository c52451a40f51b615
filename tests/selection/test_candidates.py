"""What a candidate comes to: parameters, log-likelihoods and noise, each by another route."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from vaentropy.data import Rows, pca
from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.families import FAMILIES, vae0, vae1, vae2
from vaentropy.moments import DataMoments
from vaentropy.selection.aligned import Aligned
from vaentropy.selection.candidates import Parts, Trainer, data_moments, fit_linear, num_parameters

from ..models import F64, close

X, _ = pca(300, 6, 2, noise=0.4, seed=3)
PARTS = Parts(X[:200], X[200:])


# --- In closed form -------------------------------------------------------------------------------------------------


def test_log_likelihood_of_held_out_data_is_that_of_scikit_learn():
    # Its covariance has 1/(N - 1), ours 1/N.
    moments = data_moments(PARTS.train)
    unbiased = DataMoments(moments.mean, moments.covariance * 200 / 199, 200)
    for latent_dim in (1, 2, 4):
        expected = PCA(latent_dim).fit(PARTS.train.numpy())
        found = fit_linear(latent_dim, unbiased, PARTS)
        assert close(found.held_out, torch.from_numpy(expected.score_samples(PARTS.held_out.numpy())), tolerance=1e-10)
        assert close(found.train, torch.from_numpy(expected.score_samples(PARTS.train.numpy())), tolerance=1e-10)


@pytest.mark.parametrize("latent_dim", [0, 1, 3])
def test_the_linear_candidate_is_the_normal_of_its_eigenvalues(latent_dim):
    train = PARTS.train.numpy()
    values, vectors = np.linalg.eigh(np.cov(train.T, bias=True))
    values = np.concatenate([np.full(6 - latent_dim, values[: 6 - latent_dim].mean()), values[6 - latent_dim :]])
    normal = multivariate_normal(train.mean(0), vectors @ np.diag(values) @ vectors.T)
    found = fit_linear(latent_dim, data_moments(PARTS.train), PARTS)
    assert close(found.train, torch.from_numpy(normal.logpdf(train)), tolerance=1e-10)
    assert close(found.held_out, torch.from_numpy(normal.logpdf(PARTS.held_out.numpy())), tolerance=1e-10)
    # Stationary: ELBO, entropy sum and log-likelihood are one number.
    assert found.entropy_sum == pytest.approx(float(found.train.mean()), rel=1e-12)
    assert abs(found.gap) < 1e-12 and found.active == latent_dim


@pytest.mark.parametrize("latent_dim", [0, 1, 2, 4])
def test_parameters_of_the_linear_model_are_the_directions_in_which_its_normal_changes(latent_dim):
    # Mean b and covariance W Wᵀ + σ² I as functions of (W, b, σ²): the rank of their Jacobian at a point at random.
    torch.manual_seed(0)
    data_dim = 6
    theta = torch.randn(data_dim * (latent_dim + 1) + 1, dtype=F64)

    def normal(theta):
        weight = theta[: data_dim * latent_dim].view(data_dim, latent_dim)
        covariance = weight @ weight.T + theta[-1].exp() * torch.eye(data_dim, dtype=F64)
        return torch.cat([theta[data_dim * latent_dim : -1], covariance.flatten()])

    rank = torch.linalg.matrix_rank(torch.autograd.functional.jacobian(normal, theta))
    assert fit_linear(latent_dim, data_moments(X), Parts(X, None)).num_parameters == int(rank)


def test_a_source_is_what_a_tensor_is():
    rows = fit_linear(2, data_moments(X), Parts(X, None))
    shards = Rows(X, shard_size=70)
    assert close(fit_linear(2, data_moments(shards), Parts(shards, None)).train, rows.train, tolerance=1e-10)


def test_no_variance_is_left_for_the_noise():
    flat = torch.cat([X[:, :2], X[:, :2]], 1)
    assert fit_linear(1, data_moments(flat), Parts(flat, None)).num_parameters == 9
    with pytest.raises(UsageError, match="rank 2"):
        fit_linear(2, data_moments(flat), Parts(flat, None))


# --- Parameters of a VAE --------------------------------------------------------------------------------------------


def test_decoder_likelihood_and_prior_count_and_the_encoder_does_not():
    # Latent layer 3·7 + 7, decoder 7·5 + 5, mean 5·4 + 4, and what belongs to σ².
    decoder = 3 * 7 + 7 + 7 * 5 + 5 + 5 * 4 + 4
    expected = {"vae0": decoder, "vae1": decoder + 1, "vae2": decoder + 1, "vae3": decoder + 5 * 4 + 4}
    for name, family in FAMILIES.items():
        assert num_parameters(family(4, 3, (5, 7))) == expected[name], name
    # VAE-2 is VAE-1 with the scale of its columns in the prior, however they are held at norm 1.
    assert num_parameters(vae2(4, 3, (5, 7), columns="penalty")) == decoder + 1


def test_what_is_not_trained_does_not_count():
    model = vae1(4, 3, (5, 7))
    model.decoder.requires_grad_(False)
    assert num_parameters(model) == num_parameters(vae1(4, 3, (5, 7))) - (7 * 5 + 5)


# --- The same noise -------------------------------------------------------------------------------------------------


def random_vae(family, latent_dim=3):
    torch.manual_seed(1)
    model = family(6, latent_dim, (5,)).double()
    if family is vae2:
        model.prior_log_variance.data.normal_()
    return model


@pytest.mark.parametrize("family", [vae0, vae1, vae2])
def test_other_places_and_added_latents_change_no_term(family):
    model, quadrature = random_vae(family), GaussHermite(4)
    own = evaluate(model, X, expectation=quadrature)
    # Each latent takes the place of another, and none of them swap.
    order = [1, 2, 0]
    found = evaluate(Aligned(model, torch.tensor([0.2, 1.3, 0.7]), 4), X, expectation=quadrature)
    for term in ("elbo", "kl", "entropy_sum", "gap", "prior_gap", "decoder_gap"):
        assert close(getattr(found, term), getattr(own, term), abs(own.elbo), tolerance=1e-11), term
    assert close(found.kl_per_latent, [*own.kl_per_latent[order].tolist(), 0], tolerance=1e-12)


def test_equal_models_get_equal_noise_in_whatever_order_their_latents_are():
    model, other = random_vae(vae1), random_vae(vae1)
    order = torch.tensor([2, 0, 1])
    for head in (other.latent_mean, other.latent_log_variance):
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    other.latent_layer.weight.data = other.latent_layer.weight.data[:, order]

    def elbos(model, size):
        kl = evaluate(model, X, expectation=GaussHermite(2)).kl_per_latent
        return evaluate(Aligned(model, kl, size), X, expectation=MonteCarlo(4), pointwise=True).pointwise["elbo"]

    assert close(elbos(other, 5), elbos(model, 5), tolerance=1e-12)
    plain = [evaluate(m, X, expectation=MonteCarlo(4), pointwise=True).pointwise["elbo"] for m in (model, other)]
    assert float((plain[0] - plain[1]).abs().min()) > 0


def test_shards_have_noise_of_their_own():
    # Equal rows: with equal noise the two halves would be the same numbers, and the Monte Carlo error unknown.
    twice = Rows(torch.cat([X[:50], X[:50]]), shard_size=50)
    how = {"parts": Parts(X, None), "largest": 3, "settings": {"missing": "error"}}
    trainer = Trainer(make=lambda h: vae1(6, h), expectation=MonteCarlo(4), **how)
    evaluation, elbos = trainer._evaluate(random_vae(vae1), twice)
    assert float((elbos[:50] - elbos[50:]).abs().min()) > 0
    assert evaluation.mc_stderr is not None and evaluation.num_points == 100
    assert evaluation.elbo == pytest.approx(float(elbos.mean()), rel=1e-12)
    # As `evaluate` of a source has it; no shard has what the next seed has in the one before.
    assert elbos.equal(evaluate(random_vae(vae1), twice, expectation=MonteCarlo(4), pointwise=True).pointwise["elbo"])
    _, others = Trainer(make=trainer.make, expectation=MonteCarlo(4, seed=1), **how)._evaluate(random_vae(vae1), twice)
    assert float((elbos[50:] - others[:50]).abs().min()) > 0
