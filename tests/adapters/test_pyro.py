import math
import re
import sys
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from vaentropy.adapters import from_pyro
from vaentropy.calibration import calibrate
from vaentropy.diagnosis import diagnose
from vaentropy.errors import MissingExtraError, ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo
from vaentropy.importance import log_likelihood

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pyro = pytest.importorskip("pyro")
    from pyro import distributions as dist
    from pyro import poutine
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
    from pyro.nn import PyroModule

D, LATENT_DIM, N = 4, 2, 10
FROZEN = Frozen(0, 1)


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


class VAE(nn.Module):
    """The VAE of Pyro's tutorials, with a likelihood of choice."""

    def __init__(self, likelihood="normal", size=None, prior_scale=1.0):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 2 * LATENT_DIM))
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, 8), nn.Softplus(), nn.Linear(8, D))
        self.likelihood, self.size, self.prior_scale = likelihood, size, prior_scale
        self.double()

    def plate(self, x):
        return pyro.plate("data", self.size or len(x), subsample_size=len(x))

    def observed(self, z):
        decoded = self.decoder(z)
        if self.likelihood == "normal":
            return dist.Normal(decoded, 0.5).to_event(1)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=decoded).to_event(1)
        return dist.Poisson(decoded.exp()).to_event(1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with self.plate(x):
            zeros = x.new_zeros(len(x), LATENT_DIM)
            z = pyro.sample("z", dist.Normal(zeros + 0.1, zeros + self.prior_scale).to_event(1))
            pyro.deterministic("mean", self.decoder(z), event_dim=1)
            pyro.sample("x", self.observed(z), obs=x)

    def posterior(self, x):
        mean, log_scale = self.encoder(x).chunk(2, 1)
        return dist.Normal(mean, log_scale.exp()).to_event(1)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with self.plate(x):
            pyro.sample("z", self.posterior(x))


def data(likelihood="normal", n=N):
    x = torch.rand((n, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {"normal": x, "bernoulli": (x > 0.5).double(), "poisson": (5 * x).floor()}[likelihood]


def loss_at(noise, elbo, vae, x, monkeypatch):
    """A loss of Pyro's own, in eval mode, where the guide's draws come from this noise."""
    vae.eval()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("torch.distributions.normal._standard_normal", lambda shape, **_: noise.expand(shape))
        return elbo.loss(vae.model, vae.guide, x)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "poisson"])
@pytest.mark.parametrize("size", [None, 1000])
def test_elbo_is_minus_the_loss_with_closed_kl(likelihood, size, monkeypatch):
    vae, x = VAE(likelihood, size, prior_scale=1.5), data(likelihood)
    e = evaluate(from_pyro(vae.model, vae.guide), x, expectation=FROZEN)
    noise = FROZEN.nodes(N, (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise[0]
    loss = loss_at(noise, TraceMeanField_ELBO(), vae, x, monkeypatch)
    assert e.elbo == pytest.approx(-loss / (size or N), rel=1e-12)
    assert e.data_shape == (D,) and e.latent_shape == (LATENT_DIM,) and not e.sampled
    assert (e.optimal_variance is not None) == (likelihood == "normal")


def test_elbo_is_minus_the_loss_of_trace_elbo_averaged_by_quadrature(monkeypatch):
    vae, x = VAE(), data()
    quadrature = GaussHermite(6)
    e = evaluate(from_pyro(vae.model, vae.guide), x, expectation=quadrature)
    nodes = quadrature.nodes(N, (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype)
    losses = [loss_at(noise, Trace_ELBO(), vae, x, monkeypatch) for noise in nodes.noise]
    loss = (torch.tensor(losses, dtype=torch.float64) * nodes.weights).sum().item()
    assert e.elbo == pytest.approx(-loss / N, rel=1e-10)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-10)


def test_batches_of_other_sizes_make_the_whole():
    vae, x = VAE(), data()
    model = from_pyro(vae.model, vae.guide)
    whole, parts = (evaluate(model, x, expectation=FROZEN, batch_size=size).elbo for size in (N, 3))
    assert parts == pytest.approx(whole, rel=1e-12)


def test_posteriors_that_are_not_normal():
    class Transformed(VAE):
        def posterior(self, x):
            mean, log_scale = self.encoder(x).chunk(2, 1)
            base = dist.Normal(torch.zeros_like(mean), 1.0).to_event(1)
            affine = dist.transforms.AffineTransform(mean, log_scale.exp(), event_dim=1)
            return dist.TransformedDistribution(base, [affine])

    x = data()
    flow, normal = (
        evaluate(from_pyro(vae.model, vae.guide), x, expectation=MonteCarlo(200)) for vae in (Transformed(), VAE())
    )
    assert flow.sampled and flow.elbo == pytest.approx(normal.elbo, abs=5 * flow.mc_stderr.elbo)
    assert flow.entropies.encoder == pytest.approx(normal.entropies.encoder, abs=0.1)


def test_calibrate_bound_and_diagnosis():
    vae, x = VAE(), data(n=100)
    model = from_pyro(vae.model, vae.guide)
    before = evaluate(model, x, expectation=FROZEN)
    after = evaluate(calibrate(model, x, expectation=FROZEN), x, expectation=FROZEN)
    gain = before.gains.variance + before.gains.prior_variance.sum().item()
    assert gain > 0.01 and after.elbo - before.elbo == pytest.approx(gain, abs=1e-10)
    bound = log_likelihood(model, x, num_samples=20)
    assert bound.value > bound.elbo
    # found by a step uphill, which takes gradients through both
    assert "not_stationary" in {finding.kind for finding in diagnose(model, x).problems}


def test_after_training_by_pyro():
    pyro.set_rng_seed(0)
    vae, x = VAE(), data()
    before = evaluate(from_pyro(vae.model, vae.guide), x)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(30):
        svi.step(x)
    assert evaluate(from_pyro(vae.model, vae.guide), x).elbo > before.elbo + 1


def test_a_prior_that_depends_on_the_row(monkeypatch):
    class Conditional(VAE):
        def model(self, x):
            with self.plate(x):
                # context: the number of the row
                mean = torch.arange(len(x), dtype=x.dtype)[:, None].expand(-1, LATENT_DIM)
                z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
                pyro.sample("x", self.observed(z), obs=x)

    vae, x = Conditional(), data()
    model = from_pyro(vae.model, vae.guide)
    e = evaluate(model, x, expectation=FROZEN)
    noise = FROZEN.nodes(N, (LATENT_DIM,), generator=torch.Generator(), dtype=x.dtype).noise[0]
    assert e.elbo == pytest.approx(-loss_at(noise, TraceMeanField_ELBO(), vae, x, monkeypatch) / N, rel=1e-12)
    assert model.prior().batch_shape == (N,)
    # where all rows share it, it is one
    plain = VAE()
    model = from_pyro(plain.model, plain.guide)
    model.posterior(x)
    assert tuple(model.prior().mean.shape) == (LATENT_DIM,)


def test_modules_and_functions():
    vae, x = VAE(), data()
    expected = evaluate(from_pyro(vae.model, vae.guide), x, expectation=FROZEN).elbo

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.vae = vae

    class Guide(Model):
        def forward(self, x):
            return vae.guide(x)

    class Whole(Model):
        def forward(self, x, scale):
            return vae.model(x * scale)

    for model, guide, modules in [
        (partial(Whole(), scale=1.0), Guide(), ()),
        (lambda x: vae.model(x), lambda x: vae.guide(x), [vae]),
    ]:
        vae.train()
        vae.decoder.eval()
        adapted = from_pyro(model, guide, modules=modules)
        assert evaluate(adapted, x, expectation=FROZEN).elbo == expected
        assert vae.training and vae.encoder.training and not vae.decoder.training
    # without its networks nothing sets the mode
    vae.train()
    assert evaluate(from_pyro(lambda x: vae.model(x), lambda x: vae.guide(x)), x, expectation=FROZEN).elbo != expected


def test_generators_and_statistics_are_left_alone():
    vae, x = VAE(), data()
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    before = torch.get_rng_state()
    evaluate(from_pyro(vae.model, vae.guide), x, expectation=FROZEN, mode="train")
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_asked_for_other_latents_than_there_were_rows():
    vae, x = VAE(), data()
    model = from_pyro(vae.model, vae.guide)
    with pytest.raises(UsageError, match=r"before it has seen data; call posterior\(x\) first"):
        model.likelihood(torch.zeros(3, LATENT_DIM, dtype=torch.float64))
    model.posterior(x)
    z = torch.randn(25, LATENT_DIM, dtype=torch.float64)
    assert torch.equal(model.likelihood(z).mean, vae.decoder(z)) and model.prior().mean.shape == (LATENT_DIM,)


class Variant(VAE):
    """A VAE whose model or guide is another one."""

    def __init__(self, change, **options):
        super().__init__(**options)
        self.change = change

    def model(self, x):
        zeros, change = x.new_zeros(len(x), LATENT_DIM), self.change
        with self.plate(x):
            if change == "discrete":
                z = pyro.sample("z", dist.Bernoulli(zeros + 0.5).to_event(1))
            else:
                with poutine.scale(scale=0.5) if change == "weight on the KL" else poutine.scale(scale=1.0):
                    z = pyro.sample("z", dist.Normal(zeros, 1 + zeros).to_event(1))
            if change == "two latents":
                pyro.sample("w", dist.Normal(zeros, 1 + zeros).to_event(1))
            if change == "labels":
                pyro.sample("y", dist.Bernoulli(zeros.sum(1) + 0.5), obs=zeros.sum(1))
            if change == "factor":
                pyro.factor("penalty", zeros.sum(1))
            p, obs = self.observed(z), x
            if change == "mask":
                p = p.mask(torch.arange(len(x)) < 3)
            if change == "feature mask":
                p = dist.Normal(self.decoder(z), 0.5).mask(x > 0.5).to_event(1)
            if change == "shape":
                obs, p = x.reshape(-1, 2, 2), dist.Normal(self.decoder(z).reshape(-1, 2, 2), 0.5).to_event(2)
            if change == "units":
                obs = x / 255
            if change == "weighted rows":
                with poutine.scale(scale=torch.arange(1.0, len(x) + 1)):
                    pyro.sample("x", p, obs=obs)
            elif change == "outer mask":
                with poutine.mask(mask=torch.arange(len(x)) < 3):
                    pyro.sample("x", p, obs=obs)
            else:
                pyro.sample("x", p, obs=None if change == "drawn" else obs)

    def guide(self, x):
        mean, log_scale = self.encoder(x).chunk(2, 1)
        with self.plate(x):
            if self.change == "discrete":
                q = dist.Bernoulli(logits=mean).to_event(1)
            elif self.change == "point":
                q = dist.Delta(mean).to_event(1)
            else:
                q = dist.Normal(mean, log_scale.exp()).to_event(1)
            with poutine.scale(scale=0.5) if self.change == "weight on the KL" else poutine.scale(scale=1.0):
                pyro.sample("z", q)
            if self.change == "auxiliary":
                pyro.sample("w", q)


@pytest.mark.parametrize(
    "change,error,says",
    [
        ("two latents", UnsupportedError, "the model has the latents 'w' beside 'z', expected one"),
        ("auxiliary", UnsupportedError, "the guide has the latents 'w' beside 'z', expected one"),
        ("discrete", UnsupportedError, "site 'z' is discrete"),
        ("point", UnsupportedError, "site 'z' of the guide is a point"),
        ("labels", UnsupportedError, "the model observes 'y' beside 'x'"),
        ("factor", UnsupportedError, "the model observes 'penalty' beside 'x'"),
        ("mask", UnsupportedError, "site 'x' has a mask, expected none"),
        ("feature mask", UnsupportedError, "site 'x' has a mask, expected none"),
        ("outer mask", UnsupportedError, "site 'x' has a mask, expected none"),
        ("weight on the KL", UnsupportedError, "scaled by 0.5 to 1, expected one factor"),
        ("weighted rows", UnsupportedError, "scaled by 1 to 10, expected one factor"),
        ("shape", ModelError, "values of shape (10, 2, 2) for data of shape (10, 4)"),
        ("units", ModelError, "site 'x' observes other values than the data"),
        ("drawn", UsageError, "observed='x' given, which the model draws"),
    ],
)
def test_refused_with_a_reason(change, error, says):
    vae = Variant(change)
    with pytest.raises(error, match=re.escape(says)) as caught:
        evaluate(from_pyro(vae.model, vae.guide), data())
    assert "\n" not in str(caught.value)


def test_a_latent_that_is_observed():
    """Its value would stay what it is, and p(x|z) would be asked for at no other."""
    vae, zeros = VAE(), torch.zeros(N, LATENT_DIM, dtype=torch.float64)

    def guide(x):
        with vae.plate(x):
            pyro.sample("z", vae.posterior(x), obs=zeros)

    conditioned = poutine.condition(vae.model, data={"z": zeros})
    for model, q, where in [(conditioned, vae.guide, "model"), (vae.model, guide, "guide")]:
        with pytest.raises(UsageError, match=rf"latent='z' given, which the {where} observes"):
            evaluate(from_pyro(model, q), data())


def test_model_and_guide_in_each_others_place():
    vae = VAE()
    with pytest.raises(UsageError, match="the guide has the site 'x' of the data; give first the model"):
        evaluate(from_pyro(vae.guide, vae.model), data())


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoDiagonalNormal"])
def test_autoguides(kind):
    vae, x = VAE(), data()
    guide = getattr(pyro.infer.autoguide, kind)(vae.model)
    guide(x)
    with pytest.raises(UnsupportedError, match=r"the guide draws 'z' by way of '.*', as autoguides do, expected"):
        evaluate(from_pyro(vae.model, guide), x)


def test_rows_that_are_not_the_first_axis():
    """With as many features as rows, shapes say nothing of it."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            with pyro.plate("features", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal(z.expand(x.shape), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(0), 0.5))

    with pytest.raises(ModelError, match="site 'x' has another plate to the left of 'data', expected the rows"):
        evaluate(from_pyro(model, guide), data(n=D))


def test_features_in_a_plate_of_their_own():
    """As one event they are the same."""
    vae, x = VAE(), data()

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1, LATENT_DIM) + 0.1, 1.0).to_event(1))
            with pyro.plate("features", D, dim=-1):
                pyro.sample("x", dist.Normal(vae.decoder(z).squeeze(-2), 0.5), obs=x)

    def guide(x):
        mean, log_scale = vae.encoder(x).chunk(2, 1)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(mean[:, None], log_scale.exp()[:, None]).to_event(1))

    apart = evaluate(from_pyro(model, guide, modules=[vae]), x, expectation=FROZEN).elbo
    assert apart == pytest.approx(evaluate(from_pyro(vae.model, vae.guide), x, expectation=FROZEN).elbo, rel=1e-12)


def test_the_variants_are_refused_for_their_changes_alone():
    vae = Variant("none")
    assert math.isfinite(evaluate(from_pyro(vae.model, vae.guide), data()).elbo)


def test_a_plate_that_is_no_axis_of_the_rows():
    vae = VAE()

    def whole(x):
        mean, log_scale = vae.encoder(x).chunk(2, 1)
        pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(2))

    with pytest.raises(ModelError, match=r"posterior\(x\) returned batch_shape \(\).*expected batch_shape \(10,\)"):
        evaluate(from_pyro(vae.model, whole), data())


def test_a_plate_that_draws_some_of_the_rows():
    vae = VAE()

    def some(x):
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("z", vae.posterior(x[rows]))

    with pytest.raises(ModelError, match=r"posterior\(x\) returned batch_shape \(3,\).*for 10 rows"):
        evaluate(from_pyro(vae.model, some), data())


def test_names_of_sites():
    vae = VAE()
    for options, says in [
        ({"latent": "Z"}, "latent='Z' given, and the guide has the sites 'z'; name one of these"),
        ({"observed": "obs"}, "observed='obs' given, and the model has the sites 'z', 'x'; name one of these"),
    ]:
        with pytest.raises(UsageError, match=re.escape(says)):
            evaluate(from_pyro(vae.model, vae.guide, **options), data())


def test_without_pyro(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro", None)
    with pytest.raises(MissingExtraError, match=r"pyro-ppl is not installed; run: pip install 'vaentropy\[pyro\]'"):
        from_pyro(abs, abs)
