import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from vaentropy.adapters import from_sigma_vae
from vaentropy.calibration import calibrate
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen

SHAPE, LATENT_DIM = (1, 4, 4), 2
D = math.prod(SHAPE)
FROZEN = Frozen(0, 1)


class SigmaVAE(nn.Module):
    """Of the shape of sigma-vae's: log σ is a parameter, 0, or a number that the loss leaves behind."""

    def __init__(self, model="sigma_vae", log_sigma=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.model = model
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.ReLU())
        self.fc11, self.fc12 = nn.Linear(8, LATENT_DIM), nn.Linear(8, LATENT_DIM)
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, D), nn.Unflatten(1, SHAPE), nn.Sigmoid())
        self.log_sigma = nn.Parameter(torch.tensor(log_sigma)) if model == "sigma_vae" else 0

    def encode(self, x):
        hidden = self.encoder(x)
        return self.fc11(hidden), self.fc12(hidden)

    def decode(self, z):
        return self.decoder(z)

    def loss_function(self, x_hat, x, mu, logvar):
        if self.model == "mse_vae":
            rec = nn.functional.mse_loss(x_hat, x)
        else:
            if self.model == "optimal_sigma_vae":
                log_sigma = ((x - x_hat) ** 2).mean().sqrt().log()
                self.log_sigma = log_sigma.item()
            else:
                log_sigma = self.log_sigma if self.model == "sigma_vae" else torch.zeros(())
            log_sigma = torch.logaddexp(torch.full_like(log_sigma, -6.0), log_sigma)
            rec = (0.5 * ((x - x_hat) / log_sigma.exp()) ** 2 + log_sigma + 0.5 * np.log(2 * np.pi)).sum()
        return rec, -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())


def data(n=10):
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def loss(vae, x):
    """Both parts of the model's own loss, at the frozen noise, summed over the data."""
    noise = FROZEN.nodes(len(x), (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise[0]
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        return sum(vae.loss_function(vae.decode(mu + noise * torch.exp(0.5 * logvar)), x, mu, logvar)).item()


@pytest.mark.parametrize("log_sigma", [0.5, -2.0, -5.9, -9.0])
def test_elbo_is_minus_the_loss_where_sigma_is_learned(log_sigma):
    vae, x = SigmaVAE(log_sigma=log_sigma).double(), data()
    e = evaluate(from_sigma_vae(vae), x, expectation=FROZEN, batch_size=4)
    assert e.elbo == pytest.approx(-loss(vae, x) / len(x), rel=1e-12)
    assert e.variance_kind == "shared" and e.data_shape == SHAPE and e.latent_shape == (LATENT_DIM,)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, rel=1e-9)


def test_elbo_is_minus_the_loss_where_sigma_is_constant():
    vae, x = SigmaVAE("gaussian_vae").double(), data()
    # the loss has its 0 in single precision
    assert evaluate(from_sigma_vae(vae), x, expectation=FROZEN).elbo == pytest.approx(-loss(vae, x) / len(x), rel=1e-7)


def test_elbo_is_minus_the_loss_of_the_last_batch_where_sigma_is_its_optimum():
    vae, x = SigmaVAE("optimal_sigma_vae").double(), data()
    of_all = loss(vae, x)
    e = evaluate(from_sigma_vae(vae), x, expectation=FROZEN)
    assert e.elbo == pytest.approx(-of_all / len(x), rel=1e-12)
    loss(vae, 2 * x[:3])
    assert evaluate(from_sigma_vae(vae), x, expectation=FROZEN).elbo < e.elbo


def test_a_sigma_without_its_batch():
    vae, x = SigmaVAE("optimal_sigma_vae").double(), data()
    loss(vae, x)
    loaded = SigmaVAE("optimal_sigma_vae").double()
    loaded.load_state_dict(vae.state_dict())
    with pytest.raises(UsageError, match=r"log_sigma is still 0, as after loading .*variance=.*calibrate"):
        from_sigma_vae(loaded)
    optimum = evaluate(calibrate(from_sigma_vae(loaded, variance=1), x, expectation=FROZEN), x, expectation=FROZEN)
    before = evaluate(from_sigma_vae(vae), x, expectation=FROZEN)
    # but for the soft minimum, and for the prior's variance, which is calibrated too
    assert optimum.elbo >= before.elbo and optimum.optimal_variance == pytest.approx(math.exp(2 * vae.log_sigma))


def test_sigma_is_followed_while_it_is_learned():
    vae, x = SigmaVAE().double(), data()
    model = from_sigma_vae(vae)
    before = evaluate(model, x, expectation=FROZEN)
    model.likelihood(model.posterior(x).mean).log_prob(x).sum().backward()
    assert vae.log_sigma.grad is not None and abs(vae.log_sigma.grad.item()) > 1
    with torch.no_grad():
        vae.log_sigma.add_(1)
    after = evaluate(model, x, expectation=FROZEN)
    assert after.entropies.decoder == pytest.approx(before.entropies.decoder + D, abs=0.1)


def test_loss_of_means_wants_the_variance():
    vae, x = SigmaVAE("mse_vae").double(), data()
    with pytest.raises(UsageError, match=r"'mse_vae' given, whose loss averages over pixels and batch.*variance="):
        from_sigma_vae(vae)
    # the loss of one batch is minus its ELBO, up to a constant, for the σ² that the message names
    variance = len(x) * D / 2
    constant = D / 2 * math.log(2 * math.pi * variance)
    e = evaluate(from_sigma_vae(vae, variance=variance), x, expectation=FROZEN)
    assert e.elbo == pytest.approx(-loss(vae, x) / len(x) - constant, rel=1e-12)


def test_without_an_attribute_that_names_the_kind():
    vae, x = SigmaVAE(log_sigma=-1.0).double(), data()
    expected = evaluate(from_sigma_vae(vae), x, expectation=FROZEN).elbo
    vae.model = vae.decode  # something else by that name
    assert evaluate(from_sigma_vae(vae), x, expectation=FROZEN).elbo == expected
    del vae.model
    assert evaluate(from_sigma_vae(vae), x, expectation=FROZEN).elbo == expected


def test_per_feature_log_sigma():
    vae, x = SigmaVAE().double(), data()
    vae.log_sigma = nn.Parameter(torch.linspace(-2, 0, D, dtype=torch.float64).reshape(SHAPE))
    e = evaluate(from_sigma_vae(vae), x, expectation=FROZEN)
    assert e.variance_kind == "per_feature" and e.elbo == pytest.approx(-loss(vae, x) / len(x), rel=1e-12)


def test_what_is_no_sigma_vae():
    for vae, error, says in [
        (nn.Linear(1, 1), ModelError, "Linear given, expected a model of sigma-vae"),
        (SigmaVAE("beta_vae"), UnsupportedError, "model='beta_vae' given, expected 'sigma_vae', 'gaussian_vae'"),
    ]:
        with pytest.raises(error, match=re.escape(says)):
            from_sigma_vae(vae)
    vae = SigmaVAE()
    vae.log_sigma = None
    with pytest.raises(ModelError, match=r"whose log_sigma is None; expected a model of sigma-vae"):
        from_sigma_vae(vae)
    for variance in (0.0, -1, math.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(UsageError, match="expected positive numbers"):
            from_sigma_vae(SigmaVAE(), variance=variance)


def test_an_encoder_of_another_arity():
    class Point(SigmaVAE):
        def encode(self, x):
            return self.fc11(self.encoder(x))

    with pytest.raises(UnsupportedError, match=r"encode of Point returned one Tensor, .* no ELBO"):
        evaluate(from_sigma_vae(Point()), data())
