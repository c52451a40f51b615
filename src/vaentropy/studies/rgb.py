"""Colour images of one size and convolutional networks for them: what the convolutional study is made of."""

from itertools import pairwise

import torch
from torch import nn

from vaentropy._typing import Float, Tensor
from vaentropy.data import load
from vaentropy.data.source import Source
from vaentropy.errors import DataError, MissingExtraError
from vaentropy.seeding import generator_of
from vaentropy.studies.study import Plan

__all__ = ["CROP", "conv_networks", "image_folder", "photograph_patches"]

CHANNELS = (32, 64, 128, 256, 512)
# CelebA: the usual square around the face, and the part that the published code holds out.
CROP = 148
HELD_OUT = 0.4
# Images that BatchNorm can take the statistics of.
FEWEST = 2
# Columns of a photograph to the left of this part of its width are for training, the others are held out.
BOUNDARY = 0.75


def photograph_patches(
    number: int, held_out: int, size: int, seed: int
) -> tuple[Float[Tensor, "N 3 S S"], Float[Tensor, "M 3 S S"]]:
    """Squares at random places of the two photographs of scikit-learn, pixels in [0, 1].

    Those to train on lie in the left part of a photograph, those held out in the right one; patches of one part may
    overlap each other.

    Args:
        number: patches to train on.
        held_out: patches held out.
        size: pixels per side.
        seed: of the places.

    Raises:
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    train, chosen = [], []
    photographs = _photographs()
    generator = generator_of(seed, "patches")
    for place, photograph in enumerate(photographs):
        boundary = round(BOUNDARY * photograph.shape[2])
        for total, part, into in (
            (number, photograph[:, :, :boundary], train),
            (held_out, photograph[:, :, boundary:], chosen),
        ):
            # As many of each photograph, up to one.
            count = total * (place + 1) // len(photographs) - total * place // len(photographs)
            into.append(_patches(part, count, size, generator))
    return torch.cat(train).float() / 255, torch.cat(chosen).float() / 255


def _photographs() -> list[Tensor]:
    """(3, height, width) each, bytes."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    try:
        images = load_sample_images().images
    except ImportError as error:
        raise MissingExtraError("pillow", "data") from error
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images]


def _patches(photograph: Tensor, number: int, size: int, generator: torch.Generator) -> Tensor:
    # All places as a view: (3, rows, columns, size, size).
    windows = photograph.unfold(1, size, 1).unfold(2, size, 1)
    row, column = (torch.randint(places, (number,), generator=generator) for places in windows.shape[1:3])
    return windows[:, row, column].transpose(0, 1).contiguous()


def image_folder(plan: Plan, number: int, held_out: int, size: int) -> tuple[Tensor, Tensor]:
    """The first images of the two parts of a folder that is like CelebA's, cut and resized, pixels in [0, 1].

    Args:
        plan: `data` is the folder.
        number: to train on, at most.
        held_out: held out, at most.
        size: pixels per side.

    Returns:
        (N, 3, size, size) and (M, 3, size, size).

    Raises:
        DataError: no images, or such as cannot be used.
        MissingExtraError: Pillow is not installed.
    """
    # Read in pieces: all of CelebA takes 10 GB.
    data = load(plan.data, crop=CROP, image_size=size, held_out=HELD_OUT, stream=True, seed=plan.seed)
    if len(data.train) < FEWEST:
        given = f"{plan.data}: {len(data.train)} images to train on"
        raise DataError(f"{given}, expected at least {FEWEST}; name a folder with more")
    return _first(data.train, number), _first(data.held_out, held_out)


def _first(source: Tensor | Source, number: int) -> Tensor:
    shards, rows = [], 0
    for shard in source:
        shards.append(shard[: number - rows])
        rows += len(shards[-1])
        if rows == number:
            break
    return torch.cat(shards)


def conv_networks(data_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of the published code for images, up to the layers that are the VAE's.

    Five convolutions that halve the image, each with BatchNorm and LeakyReLU, and the same backwards; means of pixels
    are an affine function of the last 32 maps, without a tanh.

    Args:
        data_shape: (channels, height, width), the sides multiples of 32.
    """
    channels, height, width = data_shape
    halvings = 2 ** len(CHANNELS)
    smallest = (CHANNELS[-1], height // halvings, width // halvings)
    encoder = nn.Sequential(*[_down(a, b) for a, b in pairwise((channels, *CHANNELS))])
    backwards = (*CHANNELS[::-1], CHANNELS[0])
    decoder = nn.Sequential(nn.Unflatten(1, smallest), *[_up(a, b) for a, b in pairwise(backwards)])
    decoder.in_features = smallest[0] * smallest[1] * smallest[2]
    return encoder, decoder


def _down(channels: int, into: int) -> nn.Module:
    convolution = nn.Conv2d(channels, into, kernel_size=3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(into), nn.LeakyReLU())


def _up(channels: int, into: int) -> nn.Module:
    convolution = nn.ConvTranspose2d(channels, into, kernel_size=3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(into), nn.LeakyReLU())
