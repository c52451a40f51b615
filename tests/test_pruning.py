"""Pruned models: the same ELBO where latents have collapsed, and models like any other in every further use."""

import pytest
import torch
from torch import nn

from vaentropy.calibration import calibrate
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.families import vae0, vae1, vae2, vae3
from vaentropy.files import read_tensors, write_tensors
from vaentropy.likelihoods import Bernoulli, Gaussian, Poisson
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.priors import LearnedNormal
from vaentropy.pruning import prune
from vaentropy.training import fit
from vaentropy.vae import VAE

from .models import F64, close, magnitude, nodes_of, reference, draws

D, H, ROWS = 4, 3, 12
# Two removed latents are not neighbours, so that rows and columns that are mixed up show.
REMOVED, KEPT = [0, 2], [1]
EXACT = GaussHermite(7)


def mlp(likelihood, **options):
    return VAE(MLPEncoder(D, (6,)), MLPDecoder((5,)), data_shape=D, latent_dim=H, likelihood=likelihood, **options)


def conv(likelihood):
    networks = ConvEncoder((2, 4, 5), (3,)), ConvDecoder((2, 4, 5), (3,))
    return VAE(*networks, data_shape=(2, 4, 5), latent_dim=H, likelihood=likelihood)


MODELS = {
    "VAE-0": lambda: vae0(D, H, (6,), variance=0.5),
    "VAE-1": lambda: vae1(D, H, (6,)),
    "VAE-2": lambda: vae2(D, H, (6,)),
    "VAE-2 with a penalty": lambda: vae2(D, H, (6,), columns="penalty"),
    "VAE-3": lambda: vae3(D, H, (6,)),
    "per feature, learned prior": lambda: mlp(Gaussian("per_feature"), prior=LearnedNormal()),
    "unit columns, standard prior": lambda: mlp(Gaussian(), columns="unit"),
    "Bernoulli": lambda: mlp(Bernoulli()),
    "Poisson, learned prior": lambda: mlp(Poisson(), prior=LearnedNormal(), columns="unit"),
    "images": lambda: conv(Gaussian("function")),
}
