"""Variational autoencoders with the layers that the theorem asks for."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from vaentropy._typing import Bool, Float, Num, Tensor
from vaentropy.applied import Applied
from vaentropy.checks import require_count, require_instance
from vaentropy.conditions import require_condition, split_rows
from vaentropy.distributions import DiagonalNormal, normal_entropy, normal_kl
from vaentropy.errors import UsageError, shown
from vaentropy.likelihoods import Gaussian, Head, Likelihood
from vaentropy.model import placement
from vaentropy.modes import in_mode
from vaentropy.networks import as_shape
from vaentropy.priors import LearnedNormal, Prior, StandardNormal
from vaentropy.world import whole_mean

__all__ = ["VAE", "ElboTerms", "LearnedNormal", "Prior", "StandardNormal"]

Columns = Literal["free", "unit", "penalty"]
COLUMNS = ("free", "unit", "penalty")


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


def _takes_condition(encoder: nn.Module, width: int) -> bool:
    own = getattr(encoder, "condition_width", 0)
    if own and own != width:
        raise UsageError(
            f"condition={width or None} given with an encoder that takes {own}, expected the same for both"
        )
    return bool(own)


def _features_shape(network: nn.Module, examples: Sequence[Tensor], what: str) -> tuple[int, ...]:
    try:
        with torch.no_grad(), in_mode(network, "eval"):
            features = network(*examples)
    except (RuntimeError, ValueError) as error:
        first, shapes = str(error).splitlines()[0], " and ".join(str(tuple(example.shape)) for example in examples)
        raise UsageError(f"the {what} failed on an input of shape {shapes}: {first}") from error
    if not isinstance(features, Tensor) or len(features) != len(examples[0]):
        raise UsageError(
            f"the {what} returned {type(features).__name__} for 2 rows, expected a Tensor of 2 rows of features"
        )
    return tuple(features.shape[1:])


class VAE(Applied):
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
        condition: k, width of a condition c that each data point comes with, such as labels or covariates; None without
            one. The model is then one of p(x|c), with p(z) as ever: c has a linear layer of its own into the decoder's
            first features, W z + V c + b, an encoder sees x + U c, and the posterior heads see c beside the encoder's
            features. Given c all is as without one: the theorem holds, with entropies averaged over points, each
            given its condition. An encoder with an attribute `condition_width` of k is called with (x, c) instead.

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
        condition: int | None = None,
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
        self.data_shape = shape
        self.latent_shape = (latent_dim,)
        self.columns: Columns = columns
        self.encoder, self.decoder = encoder, decoder
        device, dtype = placement(nn.ModuleList([encoder, decoder]))
        self.condition_width = 0 if condition is None else require_count("condition", condition)
        # Whether the encoder takes c by itself.
        self._encoder_takes = _takes_condition(encoder, self.condition_width)
        examples = [(2, *shape), *([(2, self.condition_width)] if self._encoder_takes else [])]
        examples = [torch.zeros(example, device=device, dtype=dtype) for example in examples]
        encoded = math.prod(_features_shape(encoder, examples, "encoder"))
        encoded += 0 if self._encoder_takes else self.condition_width
        self.latent_mean = nn.Linear(encoded, latent_dim)
        self.latent_log_variance = nn.Linear(encoded, latent_dim)
        self.latent_layer = nn.Linear(latent_dim, width)
        features = _features_shape(decoder, [torch.zeros(2, width, device=device, dtype=dtype)], "decoder")
        self.head: Head = (likelihood or Gaussian()).head(features, shape)
        if self.condition_width:
            if not self._encoder_takes:
                self.condition_shift = nn.Linear(self.condition_width, math.prod(shape), bias=False)
            self.condition_layer = nn.Linear(self.condition_width, width, bias=False)
        prior = prior or StandardNormal()
        if prior.learned:
            self.prior_log_variance = nn.Parameter(torch.zeros(latent_dim))
        else:
            self.register_buffer("prior_log_variance", torch.zeros(latent_dim))
        if columns == "unit":
            # Registered here, before any optimiser sees the parameters.
            parametrize.register_parametrization(self.latent_layer, "weight", _UnitColumns())
        self.to(device=device, dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        """The state; a layer with unit columns is in it as a plain one, since torch does not pickle the other."""
        if self.columns != "unit":
            return self.__dict__
        layer = self.latent_layer
        parameters = {"weight": layer.parametrizations.weight.original, **layer._parameters}  # type: ignore[union-attr]
        plain = nn.Linear.__new__(nn.Linear)
        plain.__dict__ = {**layer.__dict__, "_parameters": parameters, "_modules": {}}
        return {**self.__dict__, "_modules": {**self._modules, "latent_layer": plain}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.columns == "unit":
            parametrize.register_parametrization(self.latent_layer, "weight", _UnitColumns())

    # The three methods of the model interface.

    def posterior(self, x: Num[Tensor, "B *data"], condition: Float[Tensor, "b k"] | None = None) -> DiagonalNormal:
        """q(z|x) for x (B, *data_shape); q(z|x, c) with conditions (B, k)."""
        return DiagonalNormal(*self._encode(x, condition), validate_args=False)

    def prior(self) -> DiagonalNormal:
        """p(z) = N(0, diag α²)."""
        mean = torch.zeros_like(self.prior_log_variance)
        return DiagonalNormal(mean, self.prior_log_variance, event_dim=1, validate_args=False)

    def likelihood(self, z: Float[Tensor, "B H"], condition: Float[Tensor, "b k"] | None = None) -> Distribution:
        """p(x|z) for z (B, H); p(x|z, c) with conditions (B, k)."""
        return self.head.distribution(self.decoder_features(z, condition))

    # The fast path, for training.

    def _encode(
        self, x: Num[Tensor, "B *data"], condition: Float[Tensor, "b k"] | None
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        require_condition(self, condition)
        # Counts and labels come as integers.
        x = x if x.is_floating_point() else x.to(self.latent_mean.weight.dtype)
        if condition is None:
            features = self.encoder(x).flatten(1)
        elif self._encoder_takes:
            features = self.encoder(x, condition.expand(len(x), -1)).flatten(1)
        else:
            features = self.encoder(x + self.condition_shift(condition).view(-1, *self.data_shape)).flatten(1)
            features = torch.cat([features, condition.expand(len(x), -1)], 1)
        mean, log_variance = self.latent_mean(features), self.latent_log_variance(features)
        # Under autocast layers return a narrower dtype, in which nothing is to be summed.
        dtype = self.latent_mean.weight.dtype
        return mean.to(dtype), log_variance.to(dtype)

    def decoder_features(self, z: Float[Tensor, "B H"], condition: Float[Tensor, "b k"] | None = None) -> Tensor:
        """What the likelihood's head sees, (B, *features_shape), of z (B, H) and conditions, repeated for all of z."""
        require_condition(self, condition)
        hidden = self.latent_layer(z)
        if condition is not None:
            hidden = hidden + self.condition_layer(condition).repeat(len(z) // max(1, len(condition)), 1)
        return self.decoder(hidden)

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
            x: (B, *data_shape), finite; where a value is missing, what the encoder sees in its place. A conditional
                model takes rows (B, D + k), with the condition behind the flattened features.
            noise: standard normal nodes (K, B, H), or (K, 1, H).
            weights: (K,), sum 1, of the nodes; None means 1/K.
            observed: which entries of x count in the likelihood (those of missing values do not), of the shape of x;
                None means all.
            adapt: first move σ² and a learned α² by this fraction towards their optima for this batch, in place
                (analytic variances, see `Head.log_prob_and_entropy`).
        """
        x, condition = split_rows(self, x)
        observed = None if observed is None else split_rows(self, observed)[0]
        mean, log_variance = self._encode(x, condition)
        z = mean + torch.exp(0.5 * log_variance) * noise
        features = self.decoder_features(z.flatten(0, 1), condition)
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
