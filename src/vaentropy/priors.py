"""Priors of a VAE: what they are; the VAE has the parameters."""

from dataclasses import dataclass

__all__ = ["LearnedNormal", "Prior", "StandardNormal"]


@dataclass(frozen=True)
class StandardNormal:
    """p(z) = N(0, I)."""

    learned = False


@dataclass(frozen=True)
class LearnedNormal:
    """p(z) = N(0, diag α²) with learned α², as in VAE-2; wants `columns="unit"`, or the scale of z is free."""

    learned = True


Prior = StandardNormal | LearnedNormal
