import inspect
import math
import subprocess
import sys

import pytest
import pythae.models
import torch
from pythae.models import VAE, BetaVAE, BetaVAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn

from vaentropy.adapters import from_pythae
from vaentropy.adapters.pythae import EVALUABLE, REFUSED
from vaentropy.calibration import calibrate
from vaentropy.errors import ModelError, UnsupportedError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen
from vaentropy.model import LatentVariableModel, Rescaled

INPUT_DIM, LATENT_DIM = (1, 4, 4), 3
D = math.prod(INPUT_DIM)
FROZEN = Frozen(0, 4)


def build(name, loss="mse", **networks):
    torch.manual_seed(1)
    cls = getattr(pythae.models, name)
    config = inspect.signature(cls.__init__).parameters["model_config"].annotation(INPUT_DIM, LATENT_DIM)
    config.reconstruction_loss = loss
    return cls(config, **networks)


def data(n=10, *, binary=False):
    x = torch.rand((n, *INPUT_DIM), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (x > 0.5).double() if binary else x


def by_pythae(model, x):
    """Reconstruction loss and KL of pythae's own VAE.loss_function, averaged over the frozen noise."""
    with torch.no_grad():
        o = model.encoder(x)
        noise = FROZEN.nodes(len(x), (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise
        losses = []
        for eps in noise:
            z = o.embedding + eps * torch.exp(0.5 * o.log_covariance)
            reconstruction = model.decoder(z)["reconstruction"]
            losses.append(VAE.loss_function(model, reconstruction, x, o.embedding, o.log_covariance, z))
    _, reconstruction_loss, kl = torch.tensor(losses, dtype=torch.float64).mean(0).tolist()
    return reconstruction_loss, kl


@pytest.mark.parametrize("name", sorted(EVALUABLE))
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_elbo_reconstruction_and_kl_are_those_of_pythae(name, loss):
    model, x = build(name, loss).double(), data(binary=loss == "bce")
    e = evaluate(from_pythae(model), x, expectation=FROZEN, batch_size=4)
    reconstruction_loss, kl = by_pythae(model.eval(), x)
    constant = D / 2 * math.log(2 * math.pi) if loss == "mse" else 0
    assert e.data_shape == INPUT_DIM and e.latent_shape == (LATENT_DIM,)
    assert e.kl == pytest.approx(kl, rel=1e-12)
    assert e.reconstruction == pytest.approx(-reconstruction_loss - constant, rel=1e-12)
    assert e.elbo == pytest.approx(-reconstruction_loss - constant - kl, rel=1e-12)


@pytest.mark.parametrize("name", ["VAE", "BetaVAE"])
def test_elbo_is_minus_the_loss_of_pythaes_own_forward(name):
    model, x = build(name, "bce").double().eval(), data(binary=True)
    e = evaluate(from_pythae(model), x, expectation=Frozen(0, 1))
    eps = Frozen(0, 1).nodes(len(x), (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise[0]
    model._sample_gauss = lambda mean, std: (mean + std * eps, eps)
    with torch.no_grad():
        assert e.elbo == pytest.approx(-model({"data": x}).loss.item(), rel=1e-12)


def test_single_precision():
    model, x = build("VAE"), data()
    e = evaluate(from_pythae(model), x, expectation=FROZEN)
    reconstruction_loss, kl = by_pythae(model.eval(), x.float())
    assert e.elbo == pytest.approx(-reconstruction_loss - D / 2 * math.log(2 * math.pi) - kl, rel=1e-6)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-6)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_gap_identity(loss):
    e = evaluate(from_pythae(build("BetaVAE", loss).double()), data(binary=loss == "bce"), expectation=FROZEN)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-12)
    assert abs(e.gap) > 1e-3


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_calibrate_gains_what_it_announces(loss):
    model, x = from_pythae(build("VAE", loss).double()), data(binary=loss == "bce")
    before = evaluate(model, x, expectation=FROZEN)
    calibrated = calibrate(model, x, expectation=FROZEN)
    after = evaluate(calibrated, x, expectation=FROZEN)
    assert before.gains.prior_variance is not None
    gain = before.gains.prior_variance.sum().item() + (before.gains.variance or 0)
    assert isinstance(calibrated, Rescaled) and gain > 1e-3
    assert after.elbo - before.elbo == pytest.approx(gain, abs=1e-12)
    assert after.prior_gap == pytest.approx(0, abs=1e-12)
    assert before.variance_kind == ("shared" if loss == "mse" else None)
    if loss == "mse":
        assert after.gap == pytest.approx(0, abs=1e-12)


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.Linear(8, 2 * LATENT_DIM)

    def forward(self, x):
        mean, log_variance = self.heads(self.body(x)).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class FlatDecoder(BaseDecoder):
    """Gives (B, D) where the data are (B, *input_dim), and no probabilities."""

    def __init__(self, size=D):
        super().__init__()
        self.linear = nn.Linear(LATENT_DIM, size)

    def forward(self, z):
        return ModelOutput(reconstruction=self.linear(z))


def test_own_networks_flat_decoder_and_modes():
    model, x = build("VAE", encoder=Encoder(), decoder=FlatDecoder()).double(), data()
    model.decoder.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = from_pythae(model)
    in_eval, in_train = (evaluate(adapted, x, expectation=FROZEN, mode=mode) for mode in ("eval", "train"))
    assert model.training and model.encoder.body.training and not model.decoder.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert in_eval.elbo != in_train.elbo
    assert in_eval.data_shape == INPUT_DIM
    reconstruction_loss, kl = by_pythae(model.eval(), x)
    assert in_eval.elbo == pytest.approx(-reconstruction_loss - D / 2 * math.log(2 * math.pi) - kl, rel=1e-12)


def test_decoder_of_another_size_than_the_data():
    model = from_pythae(build("VAE", decoder=FlatDecoder(5)).double())
    with pytest.raises(ModelError, match=r"data of shape \(5,\), expected \(1, 4, 4\)"):
        evaluate(model, data())


def test_decoder_that_gives_no_probabilities():
    model = from_pythae(build("VAE", "bce", decoder=FlatDecoder()).double())
    with pytest.raises(ModelError, match=r"returned values from .* expected probabilities.*sigmoid"):
        evaluate(model, data(binary=True))


def test_encoder_without_log_covariance():
    class Point(BaseEncoder):
        def forward(self, x):
            return ModelOutput(embedding=x.flatten(1)[:, :LATENT_DIM])

    with pytest.raises(ModelError, match=r"encoder Point returned the fields embedding, expected .*log_covariance"):
        evaluate(from_pythae(build("VAE", encoder=Point())), data())


def test_every_class_of_pythae_is_judged():
    classes = {n for n in pythae.models.__all__ if issubclass(getattr(pythae.models, n), nn.Module)}
    assert EVALUABLE | set(REFUSED) == classes - {"BaseAE", "AutoModel"}
    assert not EVALUABLE & set(REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_its_own_reason(name):
    with pytest.raises(UnsupportedError) as caught:
        from_pythae(build(name))
    assert f"pythae {name} given: {REFUSED[name]}" in str(caught.value) and "\n" not in str(caught.value)


def test_derived_classes():
    class Derived(BetaVAE):
        def loss_function(self, recon_x, x, mu, log_var, z):
            self.beta = min(1.0, self.beta + 0.1)
            return super().loss_function(recon_x, x, mu, log_var, z)

    class Other(Derived):
        def forward(self, inputs, **kwargs):
            return super().forward(inputs, **kwargs)

    class Flow(pythae.models.VAE_IAF):
        def forward(self, inputs, **kwargs):
            return super().forward(inputs, **kwargs)

    config = BetaVAEConfig(INPUT_DIM, LATENT_DIM)
    adapted = from_pythae(Derived(config))
    assert isinstance(adapted, LatentVariableModel) and isinstance(adapted, nn.Module)
    with pytest.raises(UnsupportedError, match=r"pythae Other given: Other\.forward.*from_functions"):
        from_pythae(Other(config))
    with pytest.raises(UnsupportedError, match=r"Flow\.forward"):
        from_pythae(Flow(pythae.models.VAE_IAF_Config(INPUT_DIM, LATENT_DIM)))


def test_what_is_not_a_pythae_model():
    class VAE(nn.Module):
        """Bears the name of one."""

    for wrong, name in [(VAE(), "VAE"), (nn.Linear(1, 1), "Linear"), (VAEConfig(), "VAEConfig"), (3, "int")]:
        with pytest.raises(ModelError, match=rf"^{name} given, expected a model of pythae\.models; .*from_functions"):
            from_pythae(wrong)
    # a network of pythae, but no model
    with pytest.raises(UnsupportedError, match="Encoder_VAE_MLP"):
        from_pythae(build("VAE").encoder)


def test_data_parallel_is_unwrapped(tmp_path):
    model, x = build("VAE"), data()
    plain = evaluate(from_pythae(model), x, expectation=FROZEN).elbo
    assert evaluate(from_pythae(nn.DataParallel(model)), x, expectation=FROZEN).elbo == plain
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert evaluate(from_pythae(wrapped), x, expectation=FROZEN).elbo == plain
    finally:
        torch.distributed.destroy_process_group()


def test_the_protocol_shapes():
    model = from_pythae(build("VAE").double())
    q, p = model.posterior(data(2)), model.prior()
    assert (q.batch_shape, q.event_shape) == ((2,), (LATENT_DIM,))
    assert (p.batch_shape, p.event_shape) == ((), (LATENT_DIM,)) and p.sample().dtype == torch.float64
    px = model.likelihood(p.sample((2,)))
    assert (px.batch_shape, px.event_shape) == ((2,), INPUT_DIM)


def test_no_foreign_library_is_imported():
    code = "import sys, vaentropy.adapters; print(*{'pythae', 'diffusers', 'pyro', 'scvi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
