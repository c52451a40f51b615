"""Rules: the latents."""

import torch

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import NAMED, finding, listed, worst
from vaentropy.diagnosis.rules.training import linear_deficit, start_again, stationary_enough
from vaentropy.linear import LinearVAE
from vaentropy.vae import VAE

__all__ = ["collapsed", "correlated_latents", "prior_mismatch"]


def prior_mismatch(e: Evidence) -> Finding | None:
    """The aggregate posterior has another mean or variance than the prior."""
    if e.latents is None:
        return None
    nats = float(e.latents.mismatch.sum())
    if not nats > e.thresholds.tolerance:
        return None
    evidence = worst(e.latents.mismatch, "latent")
    index = int(e.latents.mismatch.argmax())
    evidence += [
        Number(f"E z²/α² of latent {index}", float(e.latents.prior_ratio[index]), None, ""),
        Number(f"mean of latent {index}", float(e.latents.mean[index]), None, ""),
        Number("off by their means alone", float(e.latents.shift.sum())),
    ]
    remedy = f"calibrate sets the prior's variances: gains {e.prior_gain:.3g} nats; the rest is for training to gain"
    if e.can_move("prior") and e.moves_tested:
        remedy += ", which can scale and shift the latents at no cost to the decoder"
    verdict = "the latents do not have the moments of the prior"
    return finding(e, "prior_mismatch", verdict, nats=nats, evidence=evidence, remedy=remedy)


def correlated_latents(e: Evidence) -> Finding | None:
    """Latents are correlated, or two of them are the same."""
    if e.latents is None or e.latents.mean_correlation is None or len(e.latents) < 2:
        return None
    # What a collapsed latent has of the others is noise.
    used = torch.tensor([status != "collapsed" for status in e.latents.status])
    pairs = (e.latents.mean_correlation * torch.outer(used, used)).triu(1)
    number = int(used.sum())
    # So much do latents cost of which only the sample is correlated.
    by_chance = number * (number - 1) / (4 * e.train.num_points)
    largest, nats = float(pairs.abs().max()), max(0.0, e.latents.correlation_cost - by_chance)
    if nats <= e.thresholds.tolerance:
        return None
    duplicated = largest > e.thresholds.duplicate
    order = pairs.abs().flatten().argsort(descending=True)[:NAMED].tolist()
    named = [(index // len(used), index % len(used)) for index in order]
    evidence = [
        Number(f"correlation of latents {a} and {b}", float(pairs[a, b]), None, "")
        for a, b in named
        if abs(float(pairs[a, b])) > 0.5 * largest
    ]
    if duplicated:
        verdict = f"latents {named[0][0]} and {named[0][1]} say the same"
        remedy = "train on, or with fewer latents (select)"
    else:
        verdict = "the latents are correlated, which the prior is not"
        remedy = f"train on; a normal prior with these correlations would gain {nats:.3g} nats"
    level = "problem" if duplicated else "note"
    return finding(e, "correlated_latents", verdict, nats=nats, evidence=evidence, remedy=remedy, level=level)


def collapsed(e: Evidence) -> Finding | None:
    """Latents that say nothing of x, or little."""
    if e.latents is None:
        return None
    gone, partly = e.latents.which("collapsed"), e.latents.which("partly used")
    if not gone and not partly:
        return None
    number, evidence = len(e.latents), [Number("largest KL", float(e.latents.kl.max()))]
    if not gone:
        verdict = f"{len(partly)} of {number} latents are partly used: {listed(partly)}"
        return finding(e, "collapsed", verdict, nats=0.0, evidence=evidence, remedy="none needed", level="note")
    kl = float(e.latents.kl[gone].sum())
    evidence.append(Number("KL of the collapsed latents together", kl))
    silent = kl <= e.thresholds.tolerance
    if e.all_collapsed:
        better = max(0.0, linear_deficit(e))
        if better:
            evidence.append(Number("a linear VAE is better by", better))
        verdict = "all latents have collapsed" + (": the posterior says next to nothing of x" if silent else "")
        remedy = f"{start_again(e)}; where σ² is fixed and too large, or β too large, collapse is the optimum"
        level = "problem" if silent else "note"
        return finding(e, "collapsed", verdict, nats=better, evidence=evidence, remedy=remedy, level=level)
    verdict = f"{len(gone)} of {number} latents have collapsed: {listed(gone)}"
    if not stationary_enough(e) and e.gradients is not None:
        remedy = "train to a stationary point before judging"
    elif not silent:
        remedy = "by this rule they have collapsed, yet they still say something: evaluate before and after a prune"
    elif isinstance(e.model, VAE | LinearVAE):
        remedy = f"prune(model, {gone}) leaves the ELBO as it is, or betters it by what they cost"
    else:
        remedy = f"train with {number - len(gone)} latents"
    return finding(e, "collapsed", verdict, nats=kl, evidence=evidence, remedy=remedy, level="note")
