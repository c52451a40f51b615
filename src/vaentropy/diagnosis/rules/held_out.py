"""Rules: data that were not trained on."""

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import exceeds, finding

__all__ = ["overfitting"]


def overfitting(e: Evidence) -> Finding | None:
    """The held-out ELBO is lower than that of the training data."""
    if e.held_out is None or e.lower_held_out is None or not exceeds(e, *e.lower_held_out):
        return None
    train, held_out, (lower, error) = e.train, e.held_out, e.lower_held_out
    evidence = [
        Number("ELBO of the training data", train.elbo, train.stderr.elbo),
        Number("held out", held_out.elbo, held_out.stderr.elbo),
        Number("decoder residuals held out", held_out.decoder_gap, held_out.stderr.decoder_gap),
        Number("reconstruction is lower by", train.reconstruction - held_out.reconstruction),
        Number("KL is higher by", held_out.kl - train.kl),
    ]
    remedy = "stop at the best held-out ELBO (patience), use smaller networks or more data"
    ratio, gain = held_out.variance_ratio, held_out.gains.variance
    if ratio is not None and gain is not None and ratio > 1 and gain > e.thresholds.tolerance:
        remedy += f"; σ² times {ratio:.3g} alone brings {gain:.3g} nats held out"
    confident = exceeds(e, -held_out.decoder_gap, held_out.stderr.decoder_gap)
    verdict = "the held-out ELBO is lower: the model overfits" + (", and is over-confident there" if confident else "")
    remedy += "; or see whether the held-out data are scaled and drawn as the training data are"
    return finding(
        e,
        "overfitting",
        verdict,
        nats=lower,
        error=error,
        evidence=evidence,
        remedy=remedy,
        least=e.thresholds.overfitting,
    )
