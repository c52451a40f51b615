"""Convolutions that are computed again in the backward pass: the same numbers, in less memory."""

import pytest
import torch
from torch import nn

from vaentropy import VAE, Gaussian, MonteCarlo, evaluate, fit, fit_replicates, networks, vae1
from vaentropy.diagnosis.points import Reading, spread
from vaentropy.errors import UsageError
from vaentropy.networks import ConvDecoder, ConvEncoder, keep_activations
from vaentropy.training.step import gradients, objective

SHAPE = (3, 32, 32)


def made(recompute, *, channels=(8, 16, 16), activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    networks = (
        ConvEncoder(SHAPE, channels, activation, recompute=recompute),
        ConvDecoder(SHAPE, channels[::-1], activation, recompute=recompute),
    )
    return VAE(*networks, data_shape=SHAPE, latent_dim=4, likelihood=Gaussian("function"))


class Noisy(nn.Module):
    """An activation of a user's own, which draws."""

    def forward(self, features):
        return torch.relu(features + 0.1 * torch.randn_like(features))


class NoisyReLU(nn.ReLU):
    """One that PyTorch has, made to draw."""

    def forward(self, input):
        return super().forward(input + 0.1 * torch.randn_like(input))


def nested():
    return nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(0.5)))


def hooked():
    """Hooks are a user's own, and may draw as well."""
    activation = nn.ReLU()
    activation.register_forward_hook(lambda module, args, features: features * torch.rand_like(features))
    return activation


def data(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *SHAPE, generator=generator), torch.randn(1, count, 4, generator=generator)


def kept_for_backward(model, precision="full"):
    """Bytes that a forward pass keeps, the parameters aside."""
    (x, noise), kept = data(), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective(model, x, noise, precision=precision)
    total = sum(size for place, size in kept.items() if place not in own)
    del loss  # Its graph has lived until here, so that no two tensors had the same place.
    return total


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, Noisy, NoisyReLU, nn.Dropout, nested, hooked])
def test_gradients_are_the_same_to_the_bit(activation, precision):
    results = []
    for recompute in (False, True):
        model = made(recompute, activation=activation)
        torch.manual_seed(1)  # of what draws
        sums = gradients(model, *data(), adapt=0.3, precision=precision)
        results.append([sums, *(p.detach() for p in model.parameters()), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("precision", "most"), [("full", 0.6), ("bf16", 0.7)])
def test_less_is_kept_for_the_backward_pass(precision, most):
    with_all, with_few = (kept_for_backward(made(each, activation=nn.SiLU), precision) for each in (False, True))
    # Of all activations, before SiLU and after, what is left is the input of the last convolution and its output.
    assert with_few < most * with_all


def test_in_eval_mode_and_without_gradients_nothing_is_computed_again(monkeypatch):
    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr(networks, "checkpoint", never)
    model = made(True)
    with pytest.raises(AssertionError):
        gradients(model, *data())
    with torch.no_grad():
        objective(model, *data())
    gradients(model.eval(), *data())


def test_it_is_no_property_of_the_weights():
    model, other = made(True), made(False, seed=1)
    assert model.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(model.state_dict())
    x, _ = data()
    assert torch.equal(model.eval().reconstruct(x), other.eval().reconstruct(x))
    assert keep_activations(model) is model and not model.encoder.recompute


def test_a_training_is_the_same():
    x, _ = data(20)
    histories = []
    for recompute in (False, True):
        histories.append(fit(made(recompute), x, epochs=1, batch_size=10)["running_elbo"])
    assert histories[0] == histories[1]


def test_replicates_go_together_without():
    x, _ = data(12)
    runs = []
    for recompute in (False, True):
        models = [made(recompute, seed=seed, channels=(4,)) for seed in (0, 1)]
        runs.append([history["running_elbo"] for history in fit_replicates(models, x, epochs=1, batch_size=6)])
        assert models[0].encoder.recompute is recompute
    assert runs[0] == runs[1]


def power():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)))


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.RReLU, "RReLU"), (lambda: nn.BatchNorm2d(4), "BatchNorm2d"), (power, "_SpectralNorm")],
)
def test_what_does_not_do_the_same_again_is_refused(layer, name):
    for network in (ConvEncoder, ConvDecoder):
        for activation in (layer, lambda: nn.Sequential(nn.ReLU(), nn.Sequential(layer()))):
            with pytest.raises(UsageError, match=f"^{name} given with recompute=True"):
                network(SHAPE, (4,), activation, recompute=True)
    later = ConvEncoder(SHAPE, (4,), layer)
    later.recompute = True
    with pytest.raises(UsageError, match=f"^{name} given with recompute=True"):
        later(data()[0])


def pooled():
    """Draws where to pool, and brings the image back to its size."""
    return nn.Sequential(nn.FractionalMaxPool2d(3, output_ratio=0.5), nn.Upsample(scale_factor=2))


def still():
    return nn.BatchNorm2d(4).eval()


def of_the_batch():
    return nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize("activation", [pooled, still, of_the_batch])
def test_layers_for_images_alone_are_computed_again_as_they_were(activation):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = ConvEncoder(SHAPE, (4, 4), lambda: nn.Sequential(activation(), nn.SiLU()))
        network.recompute = recompute
        network(data()[0]).square().sum().backward()
        results.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- Images of 256×256 ------------------------------------------------------------------------------------------------


def blobs(count, size=256):
    """Images with colours that change slowly, (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def of_large_images(channels, **options):
    torch.manual_seed(0)
    shape = (3, 256, 256)
    networks = ConvEncoder(shape, channels, **options), ConvDecoder(shape, channels[::-1], **options)
    return vae1(shape, 8, networks=networks)


def test_a_step_on_large_images():
    model, x = of_large_images((2, 2, 4, 4, 4), recompute=True), blobs(4)
    history = fit(model, x, epochs=1, batch_size=4, micro_batch_size=2, evaluation_expectation=MonteCarlo(1))
    assert history["train_elbo"][-1] > history["running_elbo"][0]


def test_large_images_are_taken_a_few_at_a_time():
    model, x, seen = of_large_images((1, 1)), blobs(25), []
    model.encoder.register_forward_hook(lambda module, rows, features: seen.append(len(rows[0])))
    model.decoder.register_forward_hook(lambda module, rows, features: seen.append(len(features)))
    evaluate(model, x, expectation=MonteCarlo(1))
    model.reconstruct(x)
    model.sample(25)
    assert max(seen) == 10
    # Each second one of 45, since twice 20 are too many.
    kept, _ = spread(Reading(model), blobs(45), 1000, 20 * 3 * 256**2)
    assert len(kept) == 23


@pytest.mark.slow
def test_training_on_large_images_raises_the_elbo():
    model, x = of_large_images((4, 8, 16, 32, 32, 32), recompute=True), blobs(200)
    options = {"epochs": 4, "batch_size": 20, "micro_batch_size": 10, "learning_rate": 2e-3}
    elbos = fit(model, x, evaluation_expectation=MonteCarlo(1), **options)["running_elbo"]
    assert elbos == sorted(elbos) and elbos[-1] > elbos[0] + 0.1 * 3 * 256**2


@pytest.mark.slow
def test_a_deep_network_begins_with_finite_gradients():
    model = of_large_images((32, 64, 128, 256, 512, 512))
    sums = gradients(model, blobs(2), torch.randn(1, 2, 8), adapt=0.1)
    assert bool(sums.isfinite().all())
    norms = torch.stack([p.grad.norm() for p in model.parameters()])
    assert bool(norms.isfinite().all()) and bool((norms > 0).all())
