"""The rules: each looks at the evidence and says what it finds, or nothing.

A rule returns a problem where more is at stake than the tolerance, and a note where something is worth knowing.
"""

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding
from vaentropy.diagnosis.rules.finding import Rule
from vaentropy.diagnosis.rules.held_out import overfitting
from vaentropy.diagnosis.rules.latents import collapsed, correlated_latents, prior_mismatch
from vaentropy.diagnosis.rules.loss import kl_weight, mode_difference, sampled_entropies, weight_decay
from vaentropy.diagnosis.rules.training import below_linear, not_stationary
from vaentropy.diagnosis.rules.variance import feature_variances, fixed_variance, theorem_conditions, variance

__all__ = ["RULES", "findings_of"]

# Where two have as many nats at stake, the one that comes first here is named first.
RULES: tuple[Rule, ...] = (
    not_stationary,
    fixed_variance,
    kl_weight,
    theorem_conditions,
    below_linear,
    overfitting,
    variance,
    mode_difference,
    weight_decay,
    prior_mismatch,
    correlated_latents,
    collapsed,
    feature_variances,
    sampled_entropies,
)


def findings_of(e: Evidence) -> tuple[Finding, ...]:
    """Problems, then notes, each with the most nats first."""
    found = [finding for rule in RULES if (finding := rule(e)) is not None]
    return tuple(sorted(found, key=lambda each: (each.level != "problem", -each.nats)))
