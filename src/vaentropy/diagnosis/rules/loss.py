"""Rules: what the loss was, and in which mode."""

import math

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import differs, finding, residuals

__all__ = ["kl_weight", "mode_difference", "sampled_entropies", "weight_decay"]


def kl_weight(e: Evidence) -> Finding | None:
    """The model was trained with another weight of the KL than 1."""
    beta, check = e.trained_beta, e.gradients
    if beta == 1:
        return None
    step = check.steps.get(1.0) if check else None
    nats, error = (step.gain, step.gain_error) if step else (abs(beta - 1) * e.train.kl, None)
    evidence = [Number("KL", e.train.kl)]
    if check and not math.isnan(check.implied_beta):
        balance = "β at which the gradients of reconstruction and KL balance"
        evidence.append(Number(balance, check.implied_beta, check.implied_beta_error, ""))
        evidence.append(Number("cosine between them", check.alignment, None, ""))
    verdict = (
        f"the gradients balance at β = {beta:.3g}, as after training with that weight of the KL: no maximum of the ELBO"
        if e.beta is None
        else f"trained with the KL weighted by β = {beta:.3g}, as given: this is no maximum of the ELBO"
    )
    remedy = "train on with β = 1" + (f": gains at least {nats:.3g} nats" if step and nats > 0 else "")
    if (
        e.variance_is_fixed
        and e.train.variance_kind == "shared"
        and e.train.variance_ratio
        and e.train.optimal_variance is not None
    ):
        implied = beta * e.train.optimal_variance / e.train.variance_ratio
        remedy += f"; σ² being fixed, the loss is an ELBO with σ² = {implied:.3g}: evaluate it with that, or learn σ²"
    level = None if step else "note"  # what there is to gain is then not known
    return finding(e, "kl_weight", verdict, nats=nats, error=error, evidence=evidence, remedy=remedy, level=level)


DECAYED = (
    "no weight decay on the posterior's heads, the first decoder layer and log σ²; on hidden layers it does no harm"
)


def weight_decay(e: Evidence) -> Finding | None:
    """Weight decay acts on layers that the theorem speaks of."""
    shifts = [decay for decay in e.decays if decay.shift]
    if not shifts:
        if not e.decoupled:
            return None
        verdict = "weight decay apart from the gradient (AdamW) moves the parameters: residuals need not vanish"
        return finding(e, "weight_decay", verdict, nats=0.0, evidence=residuals(e), remedy=DECAYED, level="note")
    evidence = []
    for decay in shifts:
        layers = ", ".join(decay.layers[:3])
        evidence.append(Number(f"shift of the {decay.name} residuals, from {layers}", decay.shift))
        if e.gradients:
            move = e.gradients.moves[decay.name]
            evidence.append(Number("seen", move.along_parameters, move.along_parameters_error))
    verdict = "weight decay acts on layers that the theorem speaks of: residuals stay where it has ended"
    nats = sum(abs(decay.shift) for decay in shifts)
    return finding(e, "weight_decay", verdict, nats=nats, evidence=evidence, remedy=DECAYED)


def mode_difference(e: Evidence) -> Finding | None:
    """Train and eval mode are two objectives (BatchNorm, dropout)."""
    if e.mode_difference is None:
        return None
    difference, error = e.mode_difference
    if not differs(e, difference, error):
        return None
    other = "train" if e.train.mode == "eval" else "eval"
    evidence = [Number(f"ELBO in {other} mode less that in {e.train.mode} mode", difference, error)]
    if e.train.mode == "train":
        verdict = "the ELBO differs in eval mode, in which the model will be used (BatchNorm, dropout)"
        remedy = "no BatchNorm, no dropout; or more data for its running means"
        return finding(
            e,
            "mode_difference",
            verdict,
            nats=abs(difference),
            error=error,
            evidence=evidence,
            remedy=remedy,
            level="note",
        )
    verdict = "the ELBO differs between train and eval mode, and the theorem holds in the one that was trained"
    remedy = 'diagnose with mode="train", and the batch_size of training, if that is how it was trained'
    return finding(e, "mode_difference", verdict, nats=abs(difference), error=error, evidence=evidence, remedy=remedy)


def sampled_entropies(e: Evidence) -> Finding | None:
    """Entropies without a closed form."""
    if not e.train.sampled:
        return None
    verdict = f"the entropy of {' and '.join(e.train.sampled)} has no closed form: the theorem may not hold"
    remedy = "none needed: the terms of the gap are right in expectation, but need not vanish"
    return finding(e, "sampled_entropies", verdict, nats=0.0, evidence=residuals(e), remedy=remedy, level="note")
