"""Patches of photographs, folders of images, and the convolutional networks."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vaentropy.errors import DataError, MissingExtraError
from vaentropy.families import vae1
from vaentropy.studies import rgb
from vaentropy.studies.study import Plan


def test_parts_of_the_photographs_do_not_meet(monkeypatch):
    # Pixels that say where they are: (row, column, number of the photograph).
    rows, columns = torch.meshgrid(torch.arange(50), torch.arange(80), indexing="ij")
    photographs = [torch.stack([rows, columns, torch.full_like(rows, number)]) for number in (0, 1)]
    monkeypatch.setattr(rgb, "_photographs", lambda: photographs)
    train, held_out = ((255 * part).round().long() for part in rgb.photograph_patches(301, 100, 16, seed=0))
    assert train.shape == (301, 3, 16, 16) and held_out.shape == (100, 3, 16, 16)
    assert train[:, 1].max() == 59 and held_out[:, 1].min() == 60 and held_out[:, 1].max() == 79
    assert train[:, 1].min() == 0 and train[:, 0].min() == 0 and train[:, 0].max() == 49
    for part in (train, held_out):
        assert (part[:, 0].diff(dim=1) == 1).all() and (part[:, 1].diff(dim=2) == 1).all()
        assert abs(int(2 * part[:, 2, 0, 0].sum()) - len(part)) <= 1
    assert len(train[:, :, 0, 0].unique(dim=0)) > 250


def test_photographs_are_those_of_scikit_learn():
    from sklearn.datasets import load_sample_images

    train, held_out = rgb.photograph_patches(2, 2, 32, seed=1)
    assert min(train.min(), held_out.min()) >= 0 and max(train.max(), held_out.max()) <= 1
    again, _ = rgb.photograph_patches(2, 2, 32, seed=1)
    assert torch.equal(train, again)
    for patch, image in zip((255 * train).round().numpy(), load_sample_images().images, strict=True):
        corners = np.argwhere((image == patch[:, 0, 0]).all(-1))
        inside = [(r, c) for r, c in corners if r <= 427 - 32 and c <= 480 - 32]
        assert any((image[r : r + 32, c : c + 32].transpose(2, 0, 1) == patch).all() for r, c in inside)


@pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("PIL", "pillow")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*vaentropy\[data\]"):
        rgb.photograph_patches(2, 2, 32, seed=0)


def test_a_folder_like_celebas_is_cut_and_resized(tmp_path):
    # 178 x 218 pixels, red but for the square of 148 in the middle, which is grey.
    for number in range(10):
        pixels = np.zeros((218, 178, 3), dtype=np.uint8)
        pixels[..., 0] = 255
        pixels[35:183, 15:163] = 20 * number
        Image.fromarray(pixels).save(tmp_path / f"{number:06}.jpg", quality=95)
    train, held_out = rgb.image_folder(Plan(data=str(tmp_path)), 100, 100, 32)
    assert train.shape == (6, 3, 32, 32) and held_out.shape == (4, 3, 32, 32)
    both = torch.cat([train, held_out])[:, :, 1:-1, 1:-1]
    levels = both.mean((1, 2, 3)).sort().values
    assert levels.tolist() == pytest.approx([20 * number / 255 for number in range(10)], abs=0.02)
    assert both.std((1, 2, 3)).max() < 0.02
    few, fewer = rgb.image_folder(Plan(data=str(tmp_path)), 5, 1, 32)
    assert torch.equal(few, train[:5]) and torch.equal(fewer, held_out[:1])


def test_images_that_are_too_small_are_one_line(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="is 100 x 100 pixels, expected at least 148") as caught:
        rgb.image_folder(Plan(data=str(tmp_path)), 5, 5, 32)
    assert "\n" not in str(caught.value)


def test_networks_are_those_of_the_published_code():
    encoder, decoder = rgb.conv_networks((3, 64, 64))
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256, 512]
    back = [layer for layer in decoder.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in back] == [256, 128, 64, 32, 32]
    for network in (encoder, decoder):
        assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()) == 5
    assert encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 512, 2, 2)
    assert decoder(torch.zeros(2, decoder.in_features)).shape == (2, 32, 64, 64)


def test_the_moves_of_the_theorem_are_possible():
    torch.manual_seed(0)
    model = vae1((3, 32, 32), 3, networks=rgb.conv_networks((3, 32, 32))).double().eval()
    x, noise = torch.rand(4, 3, 32, 32, dtype=torch.float64), torch.randn(1, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        before = model.elbo_terms(x, noise)
        # (ii): ν and τ by 2, the latent layer's column by ½; nothing but the KL of this latent changes.
        model.latent_mean.weight[1] *= 2
        model.latent_mean.bias[1] *= 2
        model.latent_log_variance.bias[1] += 2 * np.log(2)
        model.latent_layer.weight[:, 1] /= 2
        after = model.elbo_terms(x, noise)
        assert after.reconstruction.numpy() == pytest.approx(before.reconstruction.numpy(), rel=1e-10)
        change = (after.encoder_entropy - before.encoder_entropy).numpy()
        assert change == pytest.approx(np.tile([0, np.log(2), 0], (4, 1)), abs=1e-12)
    # (i), and heads without an activation: means of pixels of both signs, one affine map for all pixels.
    assert model.head.variance_parameters()[0].shape == ()
    assert isinstance(model.head.mean, torch.nn.Conv2d) and model.head.mean.kernel_size == (1, 1)
    assert isinstance(model.latent_mean, torch.nn.Linear)
