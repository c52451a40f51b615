"""VAEs on 8×8 digits, each with one thing wrong, and one with nothing wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import vaentropy as ve
from vaentropy.data import load
from vaentropy.likelihoods import Gaussian, GaussianHead
from vaentropy.networks import MLPDecoder, MLPEncoder


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Training and held-out part, pixels in [0, 1]."""
    data = load("digits")
    return data.train, data.held_out


@cache
def noisy_digits() -> tuple[Tensor, Tensor]:
    """Whole gray levels made continuous, centred, in units in which σ² is about 1: no σ² wants to be 0."""
    data = load("digits", dequantise=True)
    mean = data.train.mean(0)
    return (data.train - mean) * 6, (data.held_out - mean) * 6


@cache
def few_digits() -> tuple[Tensor, Tensor]:
    """100 of the digits to train on."""
    train, held_out = digits()
    return train[:100], held_out


class SoftplusHead(GaussianHead):
    """σ²(z) = softplus(affine): a constant cannot be added to log σ²(z)."""

    def log_variance_at(self, features: Tensor) -> Tensor:
        return nn.functional.softplus(super().log_variance_at(features)).log()


class Softplus(Gaussian):
    """Gaussian with that head."""

    def head(self, features_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> GaussianHead:
        return SoftplusHead(self, features_shape, data_shape)


def with_variance_function(likelihood: Gaussian) -> ve.VAE:
    """A small VAE-3."""
    return ve.VAE(MLPEncoder(64, (30,)), MLPDecoder((10,)), data_shape=64, latent_dim=2, likelihood=likelihood)


@dataclass(frozen=True)
class Recipe:
    """How a model is made and trained, and what its diagnosis has to name first; None for a clean one."""

    make: Callable[[], ve.VAE]
    data: Callable[[], tuple[Tensor, Tensor]]
    fit: dict[str, object] | None
    first: str | None


RECIPES = {
    "untrained": Recipe(lambda: ve.vae1(64, 2), digits, None, "not_stationary"),
    "half-trained": Recipe(lambda: ve.vae1(64, 2), digits, {"epochs": 40}, "not_stationary"),
    "σ² fixed": Recipe(lambda: ve.vae0(64, 2), digits, {"epochs": 100}, "fixed_variance"),
    "β = 4": Recipe(lambda: ve.vae1(64, 2, (20,)), digits, {"epochs": 150, "beta": 4.0}, "kl_weight"),
    "softplus σ²(z)": Recipe(
        lambda: with_variance_function(Softplus("function")),
        noisy_digits,
        {"epochs": 300, "learning_rate": 1e-2, "variances": "learned"},
        "theorem_conditions",
    ),
    "exp σ²(z)": Recipe(
        lambda: with_variance_function(Gaussian("function")),
        noisy_digits,
        {"epochs": 300, "learning_rate": 1e-2, "variances": "learned"},
        None,
    ),
    "overfitted": Recipe(lambda: ve.vae1(64, 2), few_digits, {"epochs": 500}, "overfitting"),
    "well-trained": Recipe(lambda: ve.vae1(64, 2, (10,)), digits, {"epochs": 400, "learning_rate": 1e-2}, None),
}


def prepared(name: str, seed: int = 0) -> tuple[ve.VAE, Tensor, Tensor]:
    """Model, training data, held-out data."""
    recipe = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.make()
    train, held_out = recipe.data()
    if recipe.fit is not None:
        ve.fit(model, train, progress=False, seed=seed, **recipe.fit)  # type: ignore[arg-type]
    return model, train, held_out
