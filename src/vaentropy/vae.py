"""Variational autoencoders with the layers that the theorem asks for."""

import copy
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from vaentropy._typing import Bool, Float, Num, Tensor
from vaentropy.checks import require_count, require_instance, require_seed
from vaentropy.distributions import DiagonalNormal, normal_entropy, normal_kl
from vaentropy.errors import DataError, UsageError, shown
from vaentropy.likelihoods import Gaussian, Head, Likelihood
from vaentropy.model import placement
from vaentropy.modes import in_mode
from vaentropy.networks import as_shape
from vaentropy.priors import LearnedNormal, Prior, StandardNormal
from vaentropy.processes import whole_mean
from vaentropy.rows import REMEDY, fill_missing, require_finite
from vaentropy.seeding import seeded

__all__ = ["VAE", "ElboTerms", "LearnedNormal", "Prior", "StandardNormal"]

Columns = Literal["free", "unit", "penalty"]
COLUMNS = ("free", "unit", "penalty")
BATCH_SIZE = 1024


class ElboTerms(NamedTuple):
    """The ELBO's parts per data point, nats, averaged over nodes; with gradients.

    Attributes:
        reconstruction: (B,).
        kl: (B, H).
        encoder_entropy: (B, H).
        prior_entropy: ().
        decoder_entropy: (B,); for Poisson less the log base measure.
    """

    reconstruction: Float[Tensor, "B"]
    kl: Float[Tensor, "B H"]
    encoder_entropy: Float[Tensor, "B H"]
    prior_entropy: Float[Tensor, ""]
    decoder_entropy: Float[Tensor, "B"]

    @property
    def elbo(self) -> Tensor:
        """(B,)."""
        return self.reconstruction - self.kl.sum(-1)

    @property
    def entropy_sum(self) -> Tensor:
        """(B,)."""
        return self.encoder_entropy.sum(-1) - self.prior_entropy - self.decoder_entropy


class _UnitColumns(nn.Module):
    """Parametrises a weight (F, H) by its columns' directions."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm(dim=0, keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def _features_shape(network: nn.Module, example: Tensor, what: str) -> tuple[int, ...]:
    try:
        with torch.no_grad(), in_mode(network, "eval"):
            features = network(example)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"the {what} failed on an input of shape {tuple(example.shape)}: {first}") from error
    if not isinstance(features, Tensor) or len(features) != len(example):
        raise UsageError(
            f"the {what} returned {type(features).__name__} for 2 rows, expected a Tensor of 2 rows of features"
        )
    return tuple(features.shape[1:])


class VAE(nn.Module):
    """A variational autoencoder with normal posterior N(ν(x), diag τ²(x)).

    The networks go from data to features and from features to features. The VAE owns the affine heads for ν and log τ²,
    the linear layer from latents to the decoder's features, and the likelihood's heads: with these the parameters can
    make the moves under which the ELBO equals the entropy sum at every stationary point (arXiv:2010.14860).

    Args:
        encoder: x (B, *data_shape) to features, of any shape; they are flattened.
        decoder: features (B, in_features) to features: a vector, or maps (channels, height, width) of the data's size.
            It begins with an activation, since a linear layer comes before it.
        data_shape: of one data point.
        latent_dim: H.
        likelihood: p(x|z).
        prior: p(z).
        columns: of the latent layer's weight: "free"; "unit", norm 1 by parametrisation; "penalty", drawn to norm 1 by
            `penalty()`.
        decoder_features: width of the decoder's input; by default the attribute `in_features` of the decoder.

    Raises:
        UsageError: arguments that do not fit each other.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: int | tuple[int, ...],
        latent_dim: int,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        columns: Columns = "free",
        decoder_features: int | None = None,
    ):
        super().__init__()
        shape = as_shape(data_shape)
        require_count("latent_dim", latent_dim)
        for name, network in (("encoder", encoder), ("decoder", decoder)):
            require_instance(name, network, nn.Module, "a torch module")
        if likelihood is not None:
            require_instance("likelihood", likelihood, Likelihood, "a likelihood such as Gaussian()")
        if prior is not None:
            require_instance("prior", prior, (StandardNormal, LearnedNormal), "StandardNormal() or LearnedNormal()")
        if columns not in COLUMNS:
            raise UsageError(f"columns={shown(columns)} given, expected one of {', '.join(COLUMNS)}")
        width = getattr(decoder, "in_features", None) if decoder_features is None else decoder_features
        if not isinstance(width, int):
            raise UsageError(
                "the decoder has no attribute in_features; pass decoder_features=..., the width of its input"
            )
        self.data_shape: tuple[int, ...] = shape
        self.latent_shape: tuple[int, ...] = (latent_dim,)
        self.columns: Columns = columns
        self.encoder, self.decoder = encoder, decoder
        device, dtype = placement(nn.ModuleList([encoder, decoder]))
        encoded = math.prod(_features_shape(encoder, torch.zeros(2, *shape, device=device, dtype=dtype), "encoder"))
        self.latent_mean = nn.Linear(encoded, latent_dim)
        self.latent_log_variance = nn.Linear(encoded, latent_dim)
        self.latent_layer = nn.Linear(latent_dim, width)
        features = _features_shape(decoder, torch.zeros(2, width, device=device, dtype=dtype), "decoder")
        self.head: Head = (likelihood or Gaussian()).head(features, shape)
        prior = prior or StandardNormal()
        self.prior_log_variance: Tensor
        if prior.learned:
            self.prior_log_variance = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.register_buffer("prior_log_variance", torch.zeros(latent_dim))
        if columns == "unit":
            # Registered here, before any optimiser sees the parameters.
            parametrize.register_parametrization(self.latent_layer, "weight", _UnitColumns())
        self.to(device=device, dtype=dtype)

    # The three methods of the model interface.

    def posterior(self, x: Num[Tensor, "B *data"]) -> DiagonalNormal:
        """q(z|x) for x (B, *data_shape)."""
        return DiagonalNormal(*self._encode(x), validate_args=False)

    def prior(self) -> DiagonalNormal:
        """p(z) = N(0, diag α²)."""
        mean = torch.zeros_like(self.prior_log_variance)
        return DiagonalNormal(mean, self.prior_log_variance, event_dim=1, validate_args=False)

    def likelihood(self, z: Float[Tensor, "B H"]) -> Distribution:
        """p(x|z) for z (B, H)."""
        return self.head.distribution(self.decoder_features(z))

    # The fast path, for training.

    def _encode(self, x: Num[Tensor, "B *data"]) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        # Counts and labels come as integers.
        x = x if x.is_floating_point() else x.to(self.latent_mean.weight.dtype)
        features = self.encoder(x).flatten(1)
        mean, log_variance = self.latent_mean(features), self.latent_log_variance(features)
        # Under autocast layers return a narrower dtype, in which nothing is to be summed.
        dtype = self.latent_mean.weight.dtype
        return mean.to(dtype), log_variance.to(dtype)

    def decoder_features(self, z: Float[Tensor, "B H"]) -> Tensor:
        """What the likelihood's head sees, (B, *features_shape), of z (B, H)."""
        return self.decoder(self.latent_layer(z))

    def elbo_terms(
        self,
        x: Float[Tensor, "B *data"],
        noise: Float[Tensor, "K #B H"],
        weights: Float[Tensor, "K"] | None = None,
        *,
        observed: Bool[Tensor, "B *data"] | None = None,
        adapt: float = 0.0,
    ) -> ElboTerms:
        """The ELBO's parts with gradients, without torch.distributions: the same numbers, faster.

        Args:
            x: (B, *data_shape), finite; where a value is missing, what the encoder sees in its place.
            noise: standard normal nodes (K, B, H), or (K, 1, H).
            weights: (K,), sum 1, of the nodes; None means 1/K.
            observed: which entries of x count in the likelihood (those of missing values do not); None means all.
            adapt: first move σ² and a learned α² by this fraction towards their optima for this batch, in place
                (analytic variances, see `Head.log_prob_and_entropy`).
        """
        mean, log_variance = self._encode(x)
        z = mean + torch.exp(0.5 * log_variance) * noise
        features = self.decoder_features(z.flatten(0, 1))
        log_prob, entropy = self.head.average_log_prob_and_entropy(
            x, features, observed=observed, weights=weights, adapt=adapt
        )
        if adapt:
            self._adapt_prior(mean, log_variance, adapt)
        return ElboTerms(
            reconstruction=log_prob,
            kl=normal_kl(mean, log_variance, None, self.prior_log_variance),
            encoder_entropy=normal_entropy(log_variance),
            prior_entropy=normal_entropy(self.prior_log_variance).sum(),
            decoder_entropy=entropy,
        )

    @torch.no_grad()
    def _adapt_prior(self, mean: Tensor, log_variance: Tensor, step: float) -> None:
        if isinstance(self.prior_log_variance, nn.Parameter):
            variance = self.prior_log_variance.exp()
            optimum = whole_mean((mean.square() + log_variance.exp()).mean(0))
            # A latent that collapses in VAE-2 takes its α² to 0.
            floor = torch.finfo(variance.dtype).tiny
            self.prior_log_variance.copy_((variance + step * (optimum - variance)).clamp(min=floor).log())

    def variance_parameters(self) -> list[nn.Parameter]:
        """Parameters that scale σ² or α² and nothing else."""
        learned = isinstance(self.prior_log_variance, nn.Parameter)
        return self.head.variance_parameters() + ([self.prior_log_variance] if learned else [])  # type: ignore[list-item]

    def penalty(self) -> Tensor:
        """Σ_h (‖W_h‖² - 1)² over the latent layer's columns where `columns="penalty"`, else 0; added to -ELBO."""
        weight = self.latent_layer.weight
        return (weight.square().sum(0) - 1).square().sum() if self.columns == "penalty" else weight.new_zeros(())

    # Optimal variances put into the parameters.

    @torch.no_grad()
    def rescale(self, *, variance_factor: Tensor | None = None, prior_factor: Tensor | None = None) -> None:
        """Multiply σ² and α² by factors (see `optimal_factors`), in place.

        A standard normal prior stays one: the factors go into the networks instead, z_h = α_h z'_h, which gives the
        same ELBO as the rescaled prior would.

        Args:
            variance_factor: () or data_shape.
            prior_factor: (H,).

        Raises:
            UsageError: σ² is fixed or has another shape, or the columns' norm forbids to scale them.
        """
        standard = not isinstance(self.prior_log_variance, nn.Parameter)
        if prior_factor is not None and standard:
            self._require_free_columns()
        if variance_factor is not None:
            self.head.rescale(variance_factor)
        if prior_factor is not None:
            log_factor = prior_factor.to(self.prior_log_variance).clamp(min=torch.finfo(torch.float32).tiny).log()
            self.prior_log_variance.add_(log_factor)
            if standard:
                self._fold_prior()

    def fold_prior(self) -> "VAE":
        """A copy with a standard normal prior and the same ELBO: α goes into posterior heads and latent layer.

        z_h = α_h z'_h, so W'_h = α_h W_h, ν'_h = ν_h/α_h, τ'_h = τ_h/α_h. The columns of the copy are free.
        """
        folded = copy.deepcopy(self)
        if folded.columns == "unit":
            # Not remove_parametrizations: the copy shares its class with the original, which would lose its weight too.
            weight, bias = folded.latent_layer.weight.detach(), folded.latent_layer.bias
            width, latent_dim = weight.shape
            folded.latent_layer = nn.Linear(latent_dim, width, device=weight.device, dtype=weight.dtype)
            folded.latent_layer.weight.data.copy_(weight)
            folded.latent_layer.bias.data.copy_(bias.data)
        folded.columns = "free"
        with torch.no_grad():
            folded._fold_prior()
        log_variance = folded.prior_log_variance.detach()
        del folded.prior_log_variance
        folded.register_buffer("prior_log_variance", log_variance)
        return folded

    def _require_free_columns(self) -> None:
        if self.columns != "free":
            raise UsageError(
                f'columns="{self.columns}" fix the scale of z; use fold_prior(), whose copy has free columns'
            )

    def _fold_prior(self) -> None:
        self._require_free_columns()
        log_variance = self.prior_log_variance.detach().clone()
        scale = torch.exp(0.5 * log_variance)
        self.latent_layer.weight.mul_(scale)
        self.latent_mean.weight.div_(scale.unsqueeze(-1))
        self.latent_mean.bias.div_(scale)
        self.latent_log_variance.bias.sub_(log_variance)
        self.prior_log_variance.zero_()

    # What a user does with a trained model, in eval mode whichever mode it is in.

    def _parts(self, x: Tensor, shape: tuple[int, ...], batch_size: int) -> Sequence[Tensor]:
        require_count("batch_size", batch_size)
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != shape:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise DataError(f"rows of {given} given, expected a Tensor (N, {', '.join(map(str, shape))})")
        return x.split(batch_size)

    def _to_model(self, x: Tensor) -> Tensor:
        weight = self.latent_mean.weight
        return x.to(device=weight.device, dtype=weight.dtype)

    @torch.no_grad()
    def encode(
        self, x: Num[Tensor, "N *data"], *, missing: Literal["error", "ignore"] = "error", batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "N H"]:
        """Posterior means ν(x), (N, H), of x (N, *data_shape); `posterior(x)` has the variances too.

        Args:
            x: data as in training, scaled in the same way.
            missing: "ignore" takes NaN for a missing value, as in training; "error" refuses it.
            batch_size: rows per forward pass.

        Raises:
            DataError: data of another shape, or not finite.
        """
        parts = self._parts(x, self.data_shape, batch_size)
        if missing == "ignore":
            parts = [fill_missing(part)[0] for part in parts]
        for part in parts:
            require_finite(part, "the data", remedy=f'{REMEDY}, or take NaN for missing values by missing="ignore"')
        with in_mode(self, "eval"):
            return torch.cat([self.posterior(self._to_model(part)).mean for part in parts])

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "N H"], *, batch_size: int = BATCH_SIZE) -> Float[Tensor, "N *data"]:
        """Means of p(x|z), (N, *data_shape), of z (N, H)."""
        with in_mode(self, "eval"):
            return torch.cat(
                [self.likelihood(self._to_model(part)).mean for part in self._parts(z, self.latent_shape, batch_size)]
            )

    def reconstruct(
        self, x: Num[Tensor, "N *data"], *, missing: Literal["error", "ignore"] = "error", batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "N *data"]:
        """Means of p(x|z) at the posterior means, (N, *data_shape); arguments and errors are those of `encode`."""
        return self.decode(self.encode(x, missing=missing, batch_size=batch_size), batch_size=batch_size)

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, noise: bool = False, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "N *data"]:
        """Draws (num_samples, *data_shape) from the model; equal seeds give equal draws.

        Args:
            num_samples: how many.
            noise: draw x from p(x|z); by default its mean is returned, as is usual for images.
            seed: of the draws; global generators are left alone.
            batch_size: rows per forward pass.
        """
        require_count("num_samples", num_samples, least=0)
        require_count("batch_size", batch_size)
        require_seed(seed)
        with in_mode(self, "eval"), seeded(seed, self.prior_log_variance.device):
            z = self.prior().sample(torch.Size([num_samples]))
            if not noise:
                return self.decode(z, batch_size=batch_size)
            return torch.cat([self.likelihood(part).sample() for part in z.split(batch_size)])
