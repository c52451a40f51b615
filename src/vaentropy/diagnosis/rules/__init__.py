"""The rules: each looks at the evidence and says what it finds, or nothing.

A rule returns a problem where more is at stake than the tolerance, and a note where something is worth knowing.
"""

from dataclasses import replace

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import Rule
from vaentropy.diagnosis.rules.held_out import overfitting
from vaentropy.diagnosis.rules.latents import collapsed, correlated_latents, prior_mismatch
from vaentropy.diagnosis.rules.loss import kl_weight, mode_difference, sampled_entropies, weight_decay
from vaentropy.diagnosis.rules.training import below_linear, linear_deficit, not_stationary
from vaentropy.diagnosis.rules.variance import (
    feature_variances,
    fixed_variance,
    theorem_conditions,
    variance,
    variance_floor,
)

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
    variance_floor,
    mode_difference,
    weight_decay,
    prior_mismatch,
    correlated_latents,
    collapsed,
    feature_variances,
    sampled_entropies,
)


# What keeps a model from being as good as a linear one, in the order in which it is to blame.
CAUSES = ("fixed_variance", "kl_weight", "theorem_conditions", "weight_decay", "mode_difference", "not_stationary")


def findings_of(e: Evidence) -> tuple[Finding, ...]:
    """Problems, then notes, each with the most nats first."""
    found = {finding.kind: finding for rule in RULES if (finding := rule(e)) is not None}
    cause = next((kind for kind in CAUSES if kind in found and _is_cause(found[kind])), None)
    if cause is not None and linear_deficit(e) > e.thresholds.tolerance:
        found[cause] = _to_blame(e, found[cause])
        found.pop("below_linear", None)
        if e.all_collapsed and "collapsed" in found:
            found["collapsed"] = replace(found["collapsed"], level="note", remedy=f"see {cause}: mend that first")
    return tuple(sorted(found.values(), key=lambda each: (each.level != "problem", -each.nats)))


def _is_cause(finding: Finding) -> bool:
    # That it is not exactly stationary is no reason; that the KL has another weight is, whatever one step gains.
    return finding.level == "problem" or finding.kind in ("fixed_variance", "kl_weight")


def _to_blame(e: Evidence, finding: Finding) -> Finding:
    """The finding with all the nats that a linear model is better by."""
    assert e.linear_elbo is not None
    better = e.linear_elbo - e.train.elbo
    number = Number("a linear VAE with as many latents is better by", better)
    if better <= finding.nats:
        return replace(finding, level="problem", evidence=(*finding.evidence, number))
    return replace(finding, level="problem", nats=better, error=None, evidence=(*finding.evidence, number))
