"""What a step does and does not do, told by what it calls: no time is measured here."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vaentropy import VAE, MonteCarlo, fit, vae1, vae2, vae3
from vaentropy.expectation import Frozen, GaussHermite, Sobol, _kept
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder
from vaentropy.training import loop


class Waiting(TorchDispatchMode):
    """Counts operations that wait for the device: to bring a number to Python, and to take one in another dtype.

    Of copies between devices it sees those that change float64, in which everything on the CPU alone is, to float32.
    """

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.waits += 1
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.waits += 1
        return func(*args, **(kwargs or {}))


def watched(monkeypatch, model):
    """Count what each whole step of the loop does: forward passes of each network, and waits for the device."""
    counts = {"encoder": 0, "decoder": 0, "steps": 0, "waits": 0}
    for name in ("encoder", "decoder"):
        getattr(model, name).register_forward_hook(
            lambda *_, name=name: counts.update({name: counts[name] + counts["within"]})
        )
    counts["within"], real = 0, loop.Loop._step

    def step(self, batch):
        counts["within"] = 1
        with Waiting() as waiting:
            real(self, batch)
        counts["within"] = 0
        counts["waits"] += waiting.waits
        counts["steps"] += 1

    monkeypatch.setattr(loop.Loop, "_step", step)
    return counts


def test_waiting_sees_a_wait():
    with Waiting() as waiting:
        float(torch.ones(3).sum())
    assert waiting.waits == 1
    with Waiting() as waiting:
        torch.ones(3, dtype=torch.float64).to(torch.float32)
    assert waiting.waits == 1


def test_watching_costs_no_forward_pass_and_no_wait_for_the_device(monkeypatch):
    x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    x[::7, 1] = math.nan
    for make in (vae1, vae2, vae3):
        for options in ({}, {"variances": "learned"}, {"missing": "ignore"}, {"expectation": MonteCarlo(3)}):
            model = make(5, 2, (4,))
            counts = watched(monkeypatch, model)
            fit(model, x if "missing" in options else x.nan_to_num(), epochs=3, batch_size=20, **options)
            assert counts["steps"] == counts["encoder"] == counts["decoder"] == 9
            assert counts["waits"] == 0
            monkeypatch.undo()


@pytest.mark.parametrize("expectation", [Frozen(7, 3), Sobol(4, 7), GaussHermite(3)], ids=repr)
def test_nodes_that_all_points_share_are_brought_to_the_device_once(monkeypatch, expectation):
    x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    _kept.cache_clear()
    counts = watched(monkeypatch, model := vae1(5, 2, (4,)))
    fit(model, x, epochs=2, batch_size=20, expectation=expectation)
    # Noise, and weights where they differ: at the first step of six.
    assert counts["waits"] == (2 if isinstance(expectation, GaussHermite) else 1) and counts["steps"] == 6


def test_bf16_networks_learn_as_much_and_sums_are_as_exact():
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    seen = {}

    class Seen(nn.Identity):
        def forward(self, features):
            seen.setdefault("dtype", features.dtype)
            return features

    def trained(make, precision):
        torch.manual_seed(0)
        model = make(6, 2, (8,))
        model.decoder.append(Seen())
        seen.clear()
        history = fit(model, x, epochs=20, batch_size=50, precision=precision)
        return model, history, seen["dtype"]

    for make in (vae1, vae3):
        _, full, dtype = trained(make, "full")
        assert dtype == torch.float32
        model, narrow, dtype = trained(make, "bf16")
        assert dtype == torch.bfloat16
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        # bfloat16 has three digits; what is summed in it would be off by more than 0.1 nats.
        assert abs(narrow["running_elbo"][-1] - full["running_elbo"][-1]) < 0.02
        assert narrow["running_elbo"] != full["running_elbo"]
        sums = narrow.rows[-1]
        prior_entropy = 2 * 0.5 * torch.log(2 * torch.pi * torch.e * torch.ones((), dtype=torch.float64))
        assert abs(sums["running_prior_entropy"] - float(prior_entropy)) < 1e-6


def test_convolutions_keep_their_values_in_another_order_of_memory():
    torch.manual_seed(0)
    shape = (1, 8, 8)
    model = vae1(shape, 2, networks=(ConvEncoder(shape, (3, 4)), ConvDecoder(shape, (4, 3))))
    x = torch.rand(20, *shape)
    before = model.posterior(x).mean.detach()
    last = []
    fit(
        model,
        x,
        epochs=1,
        learning_rate=1e-30,
        variances="learned",
        on_epoch=lambda row: last.append(model.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)),
    )
    assert last == [True] and model.encoder[0].weight.is_contiguous()
    assert torch.allclose(model.posterior(x).mean.detach(), before, rtol=1e-5, atol=1e-6)


def test_convolutions_of_three_dimensions_beside_those_of_two():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.three, self.two = nn.Conv3d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.two(self.three(x[:, None, None])[:, :, 0]).tanh()

    model = VAE(Encoder(), MLPDecoder((8,)), data_shape=(6, 6), latent_dim=2)
    assert len(fit(model, torch.rand(20, 6, 6), epochs=1)) == 1


def test_gradients_are_switched_on():
    with torch.no_grad():
        assert len(fit(vae1(5, 2, (4,)), torch.rand(20, 5), epochs=1)) == 1


def test_each_compiled_objective_has_code_of_its_own(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: made.append(call) or call)
    for _ in range(2):
        fit(vae1(5, 2, (4,)), torch.rand(20, 5), epochs=1, compile=True)
    assert len({id(call.__code__) for call in made}) == 2
