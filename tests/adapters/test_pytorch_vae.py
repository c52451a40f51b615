import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vaentropy.adapters import from_pytorch_vae
from vaentropy.adapters.pytorch_vae import REFUSED, WEIGHTED_OTHERWISE
from vaentropy.calibration import calibrate
from vaentropy.diagnosis import diagnose
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen
from vaentropy.model import LatentVariableModel

SHAPE, LATENT_DIM = (3, 4, 4), 2
D = math.prod(SHAPE)
FROZEN = Frozen(0, 4)


class VanillaVAE(nn.Module):
    """Of the shape of PyTorch-VAE's: a list of mean and log-variance, BatchNorm, tanh, a loss of means."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Flatten())
        self.fc_mu, self.fc_var = nn.Linear(32, LATENT_DIM), nn.Linear(32, LATENT_DIM)
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, D), nn.Unflatten(1, SHAPE), nn.Tanh())

    def encode(self, x):
        hidden = self.encoder(x)
        return [self.fc_mu(hidden), self.fc_var(hidden)]

    def decode(self, z):
        return self.decoder(z)

    def forward(self, x):
        raise AssertionError("what forward returns is in another order in each class")

    def loss_function(self, recons, x, mu, log_var, M_N):
        kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
        return F.mse_loss(recons, x) + M_N * kld_loss


def build(cls=VanillaVAE):
    return cls().double()


def data(n=10):
    return 2 * torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1


def losses(vae, x, kld_weight):
    """The class's own loss in eval mode, averaged over the frozen noise."""
    vae.eval()
    noise = FROZEN.nodes(len(x), (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise
    with torch.no_grad():
        mu, log_var = vae.encode(x)
        draws = [vae.decode(mu + eps * torch.exp(0.5 * log_var)) for eps in noise]
        return torch.stack([vae.loss_function(recons, x, mu, log_var, kld_weight) for recons in draws]).mean().item()


@pytest.mark.parametrize("kld_weight", [1, 0.00025])
def test_the_loss_is_minus_the_elbo_up_to_scale_and_constant(kld_weight):
    vae, x = build(), data()
    e = evaluate(from_pytorch_vae(vae, kld_weight=kld_weight), x, expectation=FROZEN, batch_size=4)
    variance = D * kld_weight / 2
    elbo = -losses(vae, x, kld_weight) * D / (2 * variance) - D / 2 * math.log(2 * math.pi * variance)
    assert e.elbo == pytest.approx(elbo, rel=1e-12)
    assert e.data_shape == SHAPE and e.latent_shape == (LATENT_DIM,)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, rel=1e-9)


def test_a_variance_of_ones_own():
    vae, x = build(), data()
    variance = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)).double() + 0.1
    e = evaluate(from_pytorch_vae(vae, variance=variance), x, expectation=FROZEN)
    vae.eval()
    noise = FROZEN.nodes(len(x), (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise
    with torch.no_grad():
        mu, log_var = vae.encode(x)
        q = torch.distributions.Normal(mu, torch.exp(0.5 * log_var))
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        likelihoods = [torch.distributions.Normal(vae.decode(q.loc + q.scale * eps), variance.sqrt()) for eps in noise]
        reconstruction = torch.stack([p.log_prob(x).flatten(1).sum(1) for p in likelihoods]).mean(0)
    assert e.elbo == pytest.approx((reconstruction - kl).mean().item(), rel=1e-12)
    assert e.variance_kind == "per_feature"


def test_calibrate_and_diagnose_take_it():
    model, x = from_pytorch_vae(build(), kld_weight=1.0), data(64)
    before, after = (evaluate(m, x, expectation=FROZEN) for m in (model, calibrate(model, x, expectation=FROZEN)))
    assert after.elbo > before.elbo and after.gap == pytest.approx(0, abs=1e-6)
    assert "fixed_variance" in {finding.kind for finding in diagnose(model, x).problems}


def test_modes_statistics_and_weights_are_left_alone():
    vae = build()
    vae.decoder.eval()
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    model = from_pytorch_vae(vae, variance=1.0)
    in_eval, in_train = (evaluate(model, data(), expectation=FROZEN, mode=mode) for mode in ("eval", "train"))
    assert isinstance(model, LatentVariableModel) and in_eval.elbo != in_train.elbo
    assert vae.training and vae.encoder.training and not vae.decoder.training
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())


def test_refused_by_name_with_a_reason():
    for name, reason in REFUSED.items():
        derived = type("Mine", (type(name, (VanillaVAE,), {}),), {})
        for cls, given in ((derived, "Mine"), (type(name, (VanillaVAE,), {}), name)):
            with pytest.raises(UnsupportedError, match=re.escape(f"{given} given: {reason}")) as caught:
                from_pytorch_vae(cls(), variance=1.0)
            assert "\n" not in str(caught.value) and "from_functions" in str(caught.value)


@pytest.mark.parametrize("name", sorted(WEIGHTED_OTHERWISE))
def test_losses_that_weigh_otherwise_want_the_variance(name):
    vae = type(name, (VanillaVAE,), {})()
    with pytest.raises(UsageError, match=re.escape(f"give variance=...: {WEIGHTED_OTHERWISE[name]}")):
        from_pytorch_vae(vae, kld_weight=0.1)
    e = evaluate(from_pytorch_vae(vae, variance=0.1), data())
    assert e.entropies.decoder == pytest.approx(D / 2 * math.log(2 * math.pi * math.e * 0.1), rel=1e-6)


class Encodes(VanillaVAE):
    """Returns something else; stands for classes whose name is not known."""

    def __init__(self, encoded):
        super().__init__()
        self.encoded = encoded

    def encode(self, x):
        return self.encoded(x.flatten(1)[:, :2].float())


@pytest.mark.parametrize(
    "encoded,says",
    [
        (lambda h: h, "one Tensor, expected .*no ELBO"),
        (lambda h: [h], "list of 1 entries"),
        (lambda h: [h, h, h], "list of 3 entries"),
        (lambda h: (h, h, h, h, h), "tuple of 5 entries"),
        (lambda h: [h, None], "list of 2 entries"),
        (lambda h: {"mean": h}, "dict, expected"),
    ],
)
def test_encoders_of_another_arity(encoded, says):
    with pytest.raises(UnsupportedError, match=rf"^encode of Encodes returned {says}"):
        evaluate(from_pytorch_vae(Encodes(encoded), variance=1.0), data())


def test_shapes_that_do_not_fit():
    with pytest.raises(ModelError, match=r"mean and log-variance of shapes \(10, 2\) and \(10, 3\), expected the same"):
        evaluate(from_pytorch_vae(Encodes(lambda h: [h, torch.zeros(len(h), 3)]), variance=1.0), data())


def test_a_decoder_that_returns_several_things():
    class Several(VanillaVAE):
        def decode(self, z):
            return self.decoder(z), z

    with pytest.raises(UnsupportedError, match=r"decode of Several returned tuple, expected the mean of x"):
        evaluate(from_pytorch_vae(Several(), variance=1.0), data())


def test_one_of_variance_and_weight():
    for options, says in [
        ({}, "neither variance nor kld_weight given, expected one"),
        ({"variance": 1.0, "kld_weight": 1.0}, "both variance and kld_weight given"),
        ({"variance": -1.0}, "expected positive numbers"),
        ({"variance": 0}, "expected positive numbers"),
        ({"kld_weight": 0.0}, "kld_weight=0.0 given, expected a positive number"),
        ({"kld_weight": math.nan}, "kld_weight=nan"),
    ]:
        with pytest.raises(UsageError, match=re.escape(says)):
            from_pytorch_vae(VanillaVAE(), **options)


def test_what_is_no_such_module():
    for wrong, name in [(nn.Linear(1, 1), "Linear"), (3, "int"), (VanillaVAE, "type")]:
        with pytest.raises(ModelError, match=rf"^{name} given, expected a VAE whose encode.*from_functions"):
            from_pytorch_vae(wrong, variance=1.0)


def test_data_parallel_is_unwrapped():
    vae, x = build(), data()
    wrapped, plain = (from_pytorch_vae(v, variance=1.0) for v in (nn.DataParallel(vae), vae))
    assert evaluate(wrapped, x, expectation=FROZEN).elbo == evaluate(plain, x, expectation=FROZEN).elbo
