"""The linear VAE, which is probabilistic PCA: ELBO, log-likelihood and stationary points in closed form.

Sources: Tipping & Bishop, "Probabilistic principal component analysis", JRSS B 61, 1999; Lucas et al., "Don't blame the
ELBO!", arXiv:1911.02469. All values are in nats per data point.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vaentropy._typing import Float, Num, Tensor
from vaentropy.checks import require_count
from vaentropy.distributions import LOG_2PI, DiagonalNormal, normal_entropy, to_float64
from vaentropy.errors import UsageError, shown
from vaentropy.moments import DataMoments
from vaentropy.seeding import seeded

__all__ = ["DataMoments", "LinearElboTerms", "LinearVAE", "linear_elbo_terms"]


class LinearElboTerms(NamedTuple):
    """The ELBO's parts averaged over the data, nats, with gradients: as `ElboTerms`, without its axis B.

    Of several models (`linear_elbo_terms`) they have the models' axes in front.
    """

    reconstruction: Float[Tensor, "*M"]
    kl: Float[Tensor, "*M H"]
    encoder_entropy: Float[Tensor, "*M"]
    prior_entropy: Float[Tensor, "*M"]
    decoder_entropy: Float[Tensor, "*M"]

    @property
    def elbo(self) -> Tensor:
        """(*M,)."""
        return self.reconstruction - self.kl.sum(-1)

    @property
    def entropy_sum(self) -> Tensor:
        """(*M,); equals the ELBO at every stationary point."""
        return self.encoder_entropy - self.prior_entropy - self.decoder_entropy


def linear_elbo_terms(
    parameters: Mapping[str, Tensor], mean: Float[Tensor, "*#M D"], factor: Float[Tensor, "*#M D K"]
) -> LinearElboTerms:
    """The ELBO's parts, exact, of one linear VAE or of several at once, whose axes stand in front of all others.

    Args:
        parameters: by name, as those of `LinearVAE`, (*M, …) each.
        mean: of the data.
        factor: A with A Aᵀ = covariance of the data, with 1/N; the centred data by themselves, over √N, are one.
    """
    weight, encoder_weight = parameters["weight"], parameters["encoder_weight"]
    latent_log_variance, log_variance = parameters["latent_log_variance"], parameters["log_variance"]
    # The columns of A stand for the centred data: no difference of large traces, as tr S - 2 tr WVS + … would be.
    latent_factor = encoder_weight @ factor
    latent_mean = _times(encoder_weight, mean) + parameters["encoder_bias"]
    latent_variance = latent_log_variance.exp()
    squared_error = (
        (factor - weight @ latent_factor).square().sum((-2, -1))
        + (mean - parameters["bias"] - _times(weight, latent_mean)).square().sum(-1)
        + (latent_variance * weight.square().sum(-2)).sum(-1)
    )
    second_moment = latent_factor.square().sum(-1) + latent_mean.square() + latent_variance
    latent_entropy, data_dim = normal_entropy(latent_log_variance), mean.shape[-1]
    log_normaliser = data_dim * (LOG_2PI + log_variance)
    return LinearElboTerms(
        reconstruction=-0.5 * (log_normaliser + squared_error * torch.exp(-log_variance)),
        kl=0.5 * (LOG_2PI + second_moment) - latent_entropy,
        encoder_entropy=latent_entropy.sum(-1),
        prior_entropy=normal_entropy(torch.zeros_like(latent_entropy)).sum(-1),
        decoder_entropy=data_dim * normal_entropy(log_variance),
    )


def _times(matrix: Float[Tensor, "*#M A B"], vector: Float[Tensor, "*#M B"]) -> Float[Tensor, "*M A"]:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class LinearVAE(nn.Module):
    """Linear decoder and encoder: p(x|z) = N(W z + b, σ² I), q(z|x) = N(V x + c, diag τ²), p(z) = N(0, I).

    At its optimum q is the exact posterior of probabilistic PCA: ELBO, entropy sum and log-likelihood are one number.
    It begins with random weights (at 0 they would stay there), all else 0, and computes in its parameters' dtype.

    Args:
        data_dim: D.
        latent_dim: H.

    Attributes:
        weight: W (D, H).
        bias: b (D,).
        encoder_weight: V (H, D).
        encoder_bias: c (H,).
        latent_log_variance: log τ² (H,), shared by all x.
        log_variance: log σ² (), shared by all features.

    Raises:
        UsageError: a size that is not a whole number of at least 1.
    """

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        for name, size in (("data_dim", data_dim), ("latent_dim", latent_dim)):
            require_count(name, size)
        self.data_shape: tuple[int, ...] = (data_dim,)
        self.latent_shape: tuple[int, ...] = (latent_dim,)
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(data_dim, latent_dim)))
        self.bias = nn.Parameter(torch.zeros(data_dim))
        self.encoder_weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(latent_dim, data_dim)))
        self.encoder_bias = nn.Parameter(torch.zeros(latent_dim))
        self.latent_log_variance = nn.Parameter(torch.zeros(latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(()))

    def posterior(self, x: Float[Tensor, "B D"]) -> DiagonalNormal:
        """q(z|x) for x (B, D)."""
        return DiagonalNormal(
            x @ self.encoder_weight.T + self.encoder_bias, self.latent_log_variance, validate_args=False
        )

    def prior(self) -> DiagonalNormal:
        """p(z) = N(0, I)."""
        zeros = torch.zeros_like(self.latent_log_variance)
        return DiagonalNormal(zeros, zeros, event_dim=1, validate_args=False)

    def likelihood(self, z: Float[Tensor, "B H"]) -> DiagonalNormal:
        """p(x|z) for z (B, H)."""
        return DiagonalNormal(z @ self.weight.T + self.bias, self.log_variance, validate_args=False)

    def elbo_terms(self, statistics: DataMoments) -> LinearElboTerms:
        """The ELBO's parts, exact: no sampling, O(D²H) for any number of data points (the first call is O(D³))."""
        return linear_elbo_terms(dict(self.named_parameters()), *self._mean_and_factor(statistics))

    def elbo(self, statistics: DataMoments) -> Float[Tensor, ""]:
        """The exact ELBO, (), with gradients."""
        return self.elbo_terms(statistics).elbo

    def log_likelihood(self, x: Num[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """Exact log p(x) = log N(x; b, W Wᵀ + σ² I), (N,), of each row of x (N, D), seen in training or not."""
        mahalanobis, log_det = self._mahalanobis(x.to(self.weight) - self.bias)
        return -0.5 * (len(self.bias) * LOG_2PI + log_det + mahalanobis)

    def mean_log_likelihood(self, statistics: DataMoments) -> Float[Tensor, ""]:
        """Mean of `log_likelihood`, (), over the data that the statistics are of."""
        mean, factor = self._mean_and_factor(statistics)
        mahalanobis, log_det = self._mahalanobis(torch.cat([factor.T, (mean - self.bias).unsqueeze(0)]))
        return -0.5 * (len(mean) * LOG_2PI + log_det + mahalanobis.sum())

    def _mean_and_factor(self, statistics: DataMoments) -> tuple[Tensor, Tensor]:
        if (given := len(statistics.mean)) != len(self.bias):
            raise UsageError(f"statistics of {given} features given, expected {len(self.bias)} as the model has")
        return statistics.mean.to(self.weight), statistics.factor.to(self.weight)

    def _mahalanobis(self, rows: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N"], Float[Tensor, ""]]:
        """rᵀ C⁻¹ r of each row and log |C|, for C = W Wᵀ + σ² I."""
        # rᵀ C⁻¹ r = min_z ‖r - W z‖²/σ² + ‖z‖²: least squares with the matrix [W; σ I] = Q R. Nothing is D × D, no two
        # large numbers are subtracted, and no condition number is squared (RᵀR = M = WᵀW + σ² I is not formed).
        (data_dim, latent_dim), std = self.weight.shape, torch.exp(0.5 * self.log_variance)
        q, r = torch.linalg.qr(torch.cat([self.weight, torch.diag(std.expand(latent_dim))]))
        fit = rows @ q[:data_dim]
        squares = (rows - fit @ q[:data_dim].T).square().sum(1) + (fit @ q[data_dim:].T).square().sum(1)
        log_det = (data_dim - latent_dim) * self.log_variance + 2 * r.diagonal().abs().log().sum()
        return squares / std.square(), log_det

    @classmethod
    def optimum(
        cls,
        data: Tensor | np.ndarray | DataMoments,
        latent_dim: int,
        *,
        eigenvectors: Sequence[int] | None = None,
        ddof: int = 0,
    ) -> "LinearVAE":
        """The global optimum of the ELBO, or another stationary point, in closed form; a model in float64.

        With U the chosen eigenvectors, λ their eigenvalues and σ² the mean of the others: W = U (λ - σ²)^½, b the mean
        of the data, q the exact posterior, τ² = σ²/λ. Such a stationary point exists where each chosen λ ≥ σ² (at λ_h =
        σ² latent h is collapsed: W_h = 0, τ_h² = 1). All choices but the first H are saddles, ties aside.

        Args:
            data: (N, D), or its moments.
            latent_dim: H.
            eigenvectors: which ones the latents take, 0 for the largest eigenvalue; by default the first H. Fewer than
                H leave the remaining latents collapsed.
            ddof: divide the covariance by N - ddof. 1 gives the model of scikit-learn's `PCA` (where N > D), which is
                not stationary for the data themselves.

        Raises:
            DataError: data that `DataMoments.of` does not take.
            UsageError: arguments that do not fit, a chosen λ < σ², or σ² = 0, where the ELBO has no upper bound.
        """
        statistics = data if isinstance(data, DataMoments) else DataMoments.of(data)
        num_points = statistics.num_points
        require_count("ddof", ddof, least=0)
        if ddof >= num_points:
            raise UsageError(f"ddof={ddof} given for {num_points} data points, expected 0 to {num_points - 1}")
        values, vectors = statistics.eigen
        values = values * (num_points / (num_points - ddof))
        with seeded(0, values.device):
            model = cls(len(values), latent_dim).to(values)
        chosen = _check_eigenvectors(eigenvectors, latent_dim, len(values))
        variance, excess = _noise_and_excess(values, chosen)
        latents, mean = slice(len(chosen)), to_float64(statistics.mean)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            model.weight[:, latents] = vectors[:, chosen] * excess.sqrt()
            model.encoder_weight[latents] = (vectors[:, chosen] * (excess.sqrt() / (variance + excess))).T
            model.bias.copy_(mean)
            model.encoder_bias.copy_(-model.encoder_weight @ mean)
            model.latent_log_variance[latents] = -torch.log1p(excess / variance)
            model.log_variance.copy_(variance.log())
        return model


def _check_eigenvectors(eigenvectors: Sequence[int] | None, latent_dim: int, data_dim: int) -> list[int]:
    try:
        chosen = [operator.index(i) for i in (range(latent_dim) if eigenvectors is None else eigenvectors)]
    except TypeError:
        raise UsageError(f"eigenvectors={shown(eigenvectors)} given, expected a list of whole numbers") from None
    if len(chosen) >= data_dim:
        raise UsageError(
            f"{len(chosen)} latents given for {data_dim} features, expected fewer: the ELBO has no upper bound (σ² → 0)"
            f"; lower latent_dim, or collapse the others with eigenvectors=range({data_dim - 1})"
        )
    if len(set(chosen)) < len(chosen) or len(chosen) > latent_dim or not all(0 <= i < data_dim for i in chosen):
        raise UsageError(
            f"eigenvectors={shown(eigenvectors)} given, expected at most latent_dim={latent_dim} different numbers "
            f"from 0 (the largest eigenvalue) to {data_dim - 1}"
        )
    return chosen


def _noise_and_excess(values: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
    """σ² () and λ - σ² of the chosen eigenvalues."""
    left_out = torch.ones_like(values, dtype=torch.bool)
    left_out[chosen] = False
    variance, rounding = values[left_out].mean(), len(values) * torch.finfo(values.dtype).eps * values[0]
    if variance <= rounding:
        raise UsageError(
            f"{len(chosen)} latents given for data of rank {int((values > rounding).sum())}, expected fewer than the "
            "rank: no variance is left for the noise and the ELBO has no upper bound (σ² → 0); lower latent_dim"
        )
    excess = values[chosen] - variance
    if bool((excess < -rounding).any()):
        lowest = chosen[int(excess.argmin())]
        raise UsageError(
            f"eigenvector {lowest} given, with eigenvalue {float(values[lowest]):.6g}, expected at least σ² = "
            f"{float(variance):.6g}, the mean of those left out: no stationary point has it; leave it out too"
        )
    return variance, excess.clamp(min=0)
