"""The latents in one table: how much of each is used, and how they lie to each other and to the prior."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.checks import require_number
from vaentropy.distributions import diagonal_parameters
from vaentropy.errors import UsageError, shown
from vaentropy.model import LatentVariableModel
from vaentropy.results import Evaluation

__all__ = ["Collapse", "Latents", "Status", "check_collapse", "latents_of", "num_active", "statuses"]

Status = Literal["collapsed", "partly used", "active"]
Collapse = Literal["relative", "paper"] | float

# Relative: a latent with less than this fraction of the largest KL has collapsed, or is partly used.
COLLAPSED, PARTLY_USED = 0.01, 0.1
# Nats of KL below which a latent has collapsed whatever the others have: no one can tell x from it.
LEAST_KL = 0.01
# arXiv:2010.14860 counts a latent as active with less than 1 nat of encoder entropy, where the prior N(0, 1) has 1.42:
# here in nats below the prior entropy, which serves a learned prior as well.
PAPER = 0.5 * math.log(2 * math.pi * math.e) - 1.0
# Latents that a table shows.
SHOWN = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """One number for each latent (H,), float64, nats per data point; latents of several axes are flattened.

    Attributes:
        kl: KL(q(z_h|x) ‖ p(z_h)), mean over the data.
        encoder_entropy: mean entropy of q(z_h|x).
        prior_entropy: entropy of p(z_h).
        mean: mean over the data of the posterior mean.
        mean_variance: variance over the data of the posterior mean.
        posterior_variance: mean posterior variance τ².
        prior_ratio: E(z_h - m0_h)²/α_h²: 1 at a stationary point.
        spread_ratio: Var z_h/α_h² under the aggregate posterior.
        information_bound: what z_h can tell of x at most, ½ log(2πe Var z_h) - encoder entropy; never above `kl`.
        mismatch: KL between the normal with the moments of the aggregate posterior and the prior: what the best normal
            prior of this latent would bring.
        correlation: of z under the aggregate posterior, (H, H); None where there are too many latents.
        mean_correlation: of the posterior means, (H, H); None likewise.
        status: how much each is used.
    """

    kl: Float[Tensor, "H"]
    encoder_entropy: Float[Tensor, "H"]
    prior_entropy: Float[Tensor, "H"]
    mean: Float[Tensor, "H"]
    mean_variance: Float[Tensor, "H"]
    posterior_variance: Float[Tensor, "H"]
    prior_ratio: Float[Tensor, "H"]
    spread_ratio: Float[Tensor, "H"]
    information_bound: Float[Tensor, "H"]
    mismatch: Float[Tensor, "H"]
    correlation: Float[Tensor, "H H"] | None
    mean_correlation: Float[Tensor, "H H"] | None
    status: tuple[Status, ...]

    def __len__(self) -> int:
        return len(self.kl)

    def which(self, status: Status) -> list[int]:
        """Numbers of the latents of this status."""
        return [h for h, each in enumerate(self.status) if each == status]

    @property
    def shift(self) -> Float[Tensor, "H"]:
        """The part of `mismatch` that is due to the mean alone, ½ (mean - m0)²/α²."""
        return self.mismatch - 0.5 * (self.spread_ratio - 1 - self.spread_ratio.log())

    @property
    def correlation_cost(self) -> float:
        """-½ log det of `correlation`: nats that a normal prior would gain by knowing the correlations; 0 unknown."""
        return 0.0 if self.correlation is None else max(0.0, -0.5 * float(torch.linalg.slogdet(self.correlation)[1]))

    def columns(self) -> dict[str, list[Any]]:
        """The table by columns; `latent` is the number of each."""
        names = (
            "kl",
            "encoder_entropy",
            "prior_entropy",
            "mean",
            "mean_variance",
            "posterior_variance",
            "prior_ratio",
            "spread_ratio",
            "information_bound",
            "mismatch",
        )
        numbers = {name: getattr(self, name).tolist() for name in names}
        return {"latent": list(range(len(self))), "status": list(self.status), **numbers}

    def __repr__(self) -> str:
        """The table, the latents with the largest KL first."""
        shown = {
            "KL": self.kl,
            "H enc": self.encoder_entropy,
            "H prior": self.prior_entropy,
            "var mean": self.mean_variance,
            "E z²/α²": self.prior_ratio,
            "I ≤": self.information_bound,
        }
        lines = [f"{'latent':>6}  {'status':<12}" + "".join(f"{name:>10}" for name in shown)]
        for h in self.kl.argsort(descending=True).tolist()[:SHOWN]:
            numbers = "".join(f"{float(column[h]) + 0.0:>10.4f}" for column in shown.values())
            lines.append(f"{h:>6}  {self.status[h]:<12}{numbers}")
        if len(self) > SHOWN:
            lines.append(f"{'...':>6}  and {len(self) - SHOWN} more")
        return "\n".join(lines)


def statuses(kl: Float[Tensor, "H"], entropy_drop: Float[Tensor, "H"], collapse: Collapse) -> tuple[Status, ...]:
    """How much each latent is used.

    Args:
        kl: of each, nats.
        entropy_drop: prior entropy less encoder entropy of each, nats.
        collapse: see `latents_of`.
    """
    if collapse == "paper":
        return tuple("active" if drop >= PAPER else "collapsed" for drop in entropy_drop.tolist())
    largest = float(kl.max())
    if collapse == "relative":
        low, high = max(LEAST_KL, COLLAPSED * largest), max(LEAST_KL, PARTLY_USED * largest)
    else:
        low = high = float(collapse)
    return tuple("collapsed" if each < low else "partly used" if each < high else "active" for each in kl.tolist())


def num_active(kl: Tensor) -> int:
    """How many latents have not collapsed by the "relative" rule of `latents_of`; `kl` of each, nats."""
    return int((kl >= max(LEAST_KL, COLLAPSED * float(kl.max()))).sum())


def check_collapse(collapse: Any) -> None:
    """Refuse what is no rule of collapse.

    Raises:
        UsageError: it is none.
    """
    if isinstance(collapse, str):
        if collapse not in ("relative", "paper"):
            raise UsageError(f"collapse={shown(collapse)} given, expected 'relative', 'paper' or a KL in nats")
    else:
        require_number("collapse", collapse)


def latents_of(
    model: LatentVariableModel, evaluation: Evaluation, *, collapse: Collapse = "relative"
) -> Latents | None:
    """The table, from an evaluation of the model.

    Args:
        model: that was evaluated.
        evaluation: of the training data.
        collapse: "relative", a latent has collapsed with less than 1 % of the largest KL or 0.01 nats, and is partly
            used with less than 10 %; "paper", with an encoder entropy of 1 nat or more where the prior is N(0, 1),
            that is less than 0.42 nats below its prior entropy; a number, with a KL below so many nats.

    Returns:
        None where posterior or prior are not normal with independent elements, or each point has a prior of its own.
    """
    check_collapse(collapse)
    e, p = evaluation, model.prior()
    prior = diagonal_parameters(p)
    parts = (e.kl_per_latent, e.encoder_entropy_per_latent, e.prior_residuals, e.optimal_prior_variance)
    of_each_point = tuple(p.batch_shape + p.event_shape) not in ((), e.latent_shape)
    if prior is None or of_each_point or any(part is None for part in parts) or e.latent_mean_variance is None:
        return None
    shape = e.latent_shape
    prior_mean, prior_log_variance = (p.detach().cpu().expand(shape).flatten() for p in prior)
    kl, encoder_entropy, residuals, second_moment = (part.flatten() for part in parts if part is not None)
    prior_variance, mean = prior_log_variance.exp(), e.moments["latent_mean"].mean.flatten()
    mean_variance = e.latent_mean_variance.flatten()
    square = (mean - prior_mean).square()
    posterior_variance = (second_moment - square - mean_variance).clamp(min=0)
    spread = mean_variance + posterior_variance
    correlation = mean_correlation = None
    if e.latent_moments is not None:
        covariance = e.latent_moments.covariance
        mean_correlation = _correlation(covariance)
        correlation = _correlation(covariance + torch.diag(posterior_variance))
    information = 0.5 * torch.log(2 * torch.pi * torch.e * spread) - encoder_entropy
    prior_entropy = kl + encoder_entropy + residuals
    ratio = (spread + square) / prior_variance
    return Latents(
        kl=kl,
        encoder_entropy=encoder_entropy,
        prior_entropy=prior_entropy,
        mean=mean,
        mean_variance=mean_variance,
        posterior_variance=posterior_variance,
        prior_ratio=ratio,
        spread_ratio=spread / prior_variance,
        information_bound=information,
        mismatch=0.5 * (ratio - 1 - torch.log(spread / prior_variance)),
        correlation=correlation,
        mean_correlation=mean_correlation,
        status=statuses(kl, prior_entropy - encoder_entropy, collapse),
    )


def _correlation(covariance: Tensor) -> Tensor:
    """Correlations; 0 with what does not vary."""
    scale = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    correlation = covariance / torch.outer(scale, scale)
    return correlation - torch.diag(correlation.diagonal()) + torch.eye(len(correlation), dtype=correlation.dtype)
