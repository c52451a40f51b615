import math
import re
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, AutoencoderTiny
from torch import nn

from vaentropy.adapters import from_diffusers
from vaentropy.adapters.diffusers import REFUSED
from vaentropy.calibration import calibrate
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen
from vaentropy.model import LatentVariableModel

SHAPE, LATENT_SHAPE = (1, 8, 8), (2, 4, 4)
D = math.prod(SHAPE)
FROZEN = Frozen(0, 4)
VARIANCE = 0.3


def build(cls=AutoencoderKL, precision="double"):
    torch.manual_seed(1)
    vae = cls(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return getattr(vae, precision)()


def video():
    torch.manual_seed(1)
    return AutoencoderKLWan(base_dim=3, z_dim=2, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True]).double()


def data(*shape, n=5):
    return 2 * torch.rand((n, *(shape or SHAPE)), generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1


def by_diffusers(vae, x, variance):
    """Reconstruction term and KL per data point, from the tensors of diffusers."""
    with torch.no_grad():
        q = vae.encode(x).latent_dist
        noise = FROZEN.nodes(len(x), tuple(q.mean.shape[1:]), generator=torch.Generator(), dtype=x.dtype).noise
        means = torch.stack([vae.decode(q.mean + q.std * eps).sample for eps in noise]).double()
        normal = torch.distributions.Normal(means, math.sqrt(variance))
        # kl() sums over three axes, and leaves one where the latents are those of videos
        kl = q.kl().double().flatten(1).sum(1) if q.mean.ndim == 5 else q.kl().double()
    return normal.log_prob(x.double()).flatten(2).sum(2).mean(0), kl


@pytest.mark.parametrize("kind", ["image", "sliced", "video"])
def test_elbo_and_kl_are_those_of_diffusers(kind):
    vae, x = (video(), data(3, 5, 8, 8, n=2)) if kind == "video" else (build(), data())
    if kind == "sliced":
        vae.enable_slicing()
    e = evaluate(from_diffusers(vae, variance=VARIANCE), x, expectation=FROZEN, batch_size=3, pointwise=True)
    reconstruction, kl = by_diffusers(vae.eval(), x, VARIANCE)
    assert e.data_shape == x.shape[1:] and e.latent_shape == ((2, 3, 4, 4) if kind == "video" else LATENT_SHAPE)
    assert e.pointwise is not None
    torch.testing.assert_close(e.pointwise["kl"], kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(e.pointwise["reconstruction"], reconstruction, rtol=1e-10, atol=0)
    assert e.elbo == pytest.approx((reconstruction - kl).mean().item(), rel=1e-10)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-9)


def test_single_precision():
    vae, x = build(precision="float"), data()
    e = evaluate(from_diffusers(vae, variance=VARIANCE), x, expectation=FROZEN)
    reconstruction, kl = by_diffusers(vae.eval(), x.float(), VARIANCE)
    assert e.elbo == pytest.approx((reconstruction - kl).mean().item(), rel=1e-6)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-6)


def test_the_variance_keeps_its_precision_where_the_network_has_little():
    e = evaluate(from_diffusers(build(precision="bfloat16"), variance=1e-4), data(), expectation=FROZEN)
    assert e.entropies.decoder == pytest.approx(D / 2 * math.log(2 * math.pi * math.e * 1e-4), rel=1e-6)


def test_calibrate_estimates_the_variance_and_gains_what_it_announces():
    model, x = from_diffusers(build(), variance=1.0), data()
    before = evaluate(model, x, expectation=FROZEN)
    after = evaluate(calibrate(model, x, expectation=FROZEN), x, expectation=FROZEN)
    assert before.variance_kind == "shared" and before.gains.variance is not None
    assert before.gains.prior_variance is not None
    gain = before.gains.variance + before.gains.prior_variance.sum().item()
    assert gain > 0.1
    assert after.elbo - before.elbo == pytest.approx(gain, abs=1e-10)
    # not 1e-10: the scalar standard prior is in single precision, and so is what it is scaled to
    assert after.gap == pytest.approx(0, abs=1e-7)
    optimum = evaluate(from_diffusers(build(), variance=before.optimal_variance), x, expectation=FROZEN)
    assert optimum.variance_ratio == pytest.approx(1, abs=1e-12)


def test_variance_per_channel():
    x, variance = data(), torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    given = [from_diffusers(build(), variance=v) for v in (0.3, variance)]
    first, second = (evaluate(model, x, expectation=FROZEN).elbo for model in given)
    assert first == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0])])
def test_variance_that_is_none(variance):
    with pytest.raises(UsageError, match="expected positive numbers"):
        from_diffusers(build(), variance=variance)


def test_modes_and_weights_are_left_alone():
    vae = build()
    vae.train()
    vae.decoder.eval()
    model = from_diffusers(vae, variance=1.0)
    evaluate(model, data(), expectation=FROZEN)
    assert isinstance(model, LatentVariableModel) and isinstance(model, nn.Module)
    assert vae.training and vae.encoder.training and not vae.decoder.training
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_refused_by_name_with_a_reason():
    with pytest.raises(UnsupportedError, match=r"^AutoencoderTiny given: its encoder gives a point"):
        from_diffusers(AutoencoderTiny(), variance=1.0)

    for name, reason in REFUSED.items():
        # without building it: the class decides
        derived = type(f"My{name}", (getattr(diffusers, name),), {"__init__": nn.Module.__init__})
        with pytest.raises(UnsupportedError, match=re.escape(f"My{name} given: {reason}")) as caught:
            from_diffusers(derived(), variance=1.0)
        assert "\n" not in str(caught.value)


class Deterministic(AutoencoderKL):
    """A class that vaentropy does not know."""

    def encode(self, x, return_dict=True):
        return SimpleNamespace(latent=x)


def test_without_a_posterior():
    model = from_diffusers(build(Deterministic), variance=1.0)
    with pytest.raises(UnsupportedError, match=r"encode of Deterministic gave SimpleNamespace, expected .* no ELBO"):
        evaluate(model, data())


def test_what_is_not_an_autoencoder_of_diffusers():
    for wrong, name in [(nn.Linear(1, 1), "Linear"), (SimpleNamespace(vae=3), "SimpleNamespace")]:
        with pytest.raises(ModelError, match=rf"^{name} given, expected an autoencoder of diffusers.*from_functions"):
            from_diffusers(wrong, variance=1.0)
    with pytest.raises(ModelError, match=r"^Encoder given, which does not encode and decode; .*pipeline, its \.vae"):
        from_diffusers(build().encoder, variance=1.0)


def test_data_parallel_is_unwrapped():
    vae, x = build(), data()
    wrapped, plain = (from_diffusers(v, variance=1.0) for v in (nn.DataParallel(vae), vae))
    assert evaluate(wrapped, x, expectation=FROZEN).elbo == evaluate(plain, x, expectation=FROZEN).elbo
