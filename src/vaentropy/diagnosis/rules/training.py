"""Rules: has it been trained to a stationary point, and to a good one?"""

import math
from typing import NamedTuple

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import differs, exceeds, finding, residuals, worst

__all__ = ["below_linear", "linear_deficit", "not_stationary", "stationary_enough"]


class _AtStake(NamedTuple):
    """What could be had uphill from here, nats per data point, by each of several ways."""

    step: float
    step_error: float | None
    variance: float
    prior: float


def _at_stake(e: Evidence) -> _AtStake | None:
    """None where nothing says that the point is not stationary."""
    mc, step, variance = e.train.mc_stderr, e.step, e.variance_gain
    rises = step is not None and exceeds(e, step.gain, step.gain_error)
    prior = e.can_move("prior") and differs(e, e.train.prior_gap, None if mc is None else mc.prior_gap)
    decoder = e.can_move("decoder") and differs(e, e.train.decoder_gap, None if mc is None else mc.decoder_gap)
    if not (rises or prior or decoder):
        return None
    finite = decoder and variance is not None and math.isfinite(variance[0])
    return _AtStake(
        step=step.gain if step is not None and rises else 0.0,
        step_error=step.gain_error if step is not None and rises else None,
        variance=variance[0] if finite and variance is not None else 0.0,
        prior=e.prior_gain if prior else 0.0,
    )


def stationary_enough(e: Evidence) -> bool:
    """Whether no more than the tolerance is known to be had uphill from here."""
    at_stake = _at_stake(e)
    return at_stake is None or max(at_stake.step, at_stake.variance, at_stake.prior) <= e.thresholds.tolerance


def not_stationary(e: Evidence) -> Finding | None:
    """A step uphill gains, or residuals are not zero whose moves the parameters can make."""
    at_stake = _at_stake(e)
    if at_stake is None:
        return None
    step, evidence = e.step, residuals(e)
    if step is not None:
        beta = "" if e.trained_beta == 1 else f", for β = {e.trained_beta:.3g},"
        evidence.insert(0, Number(f"one Gauss-Newton step uphill{beta} gains", step.gain, step.gain_error))
    if e.gradients:
        evidence.append(Number("gradient norm", e.gradients.norm, None, ""))
        evidence.append(Number("its noise floor", e.gradients.noise_floor, None, ""))
    if e.train.prior_residuals is not None and e.train.prior_residuals.numel() > 1 and at_stake.prior:
        evidence += worst(e.train.prior_residuals, "residual of latent", 2)
    uphill = max(at_stake.step, at_stake.variance, at_stake.prior)
    error = at_stake.step_error if uphill == at_stake.step else None
    if uphill <= e.thresholds.tolerance:
        verdict = "not exactly stationary: something differs from 0 by more than its noise, but little is at stake"
        remedy = "none needed; a lower learning rate at the end brings the rest"
        return finding(
            e, "not_stationary", verdict, nats=uphill, error=error, evidence=evidence, remedy=remedy, level="note"
        )
    nats = max(uphill, deficit := linear_deficit(e))
    if nats > uphill:
        evidence.append(Number("a linear VAE with as many latents is better by", deficit))
    if e.moves_tested:
        verdict, remedy = "training has not reached a stationary point", f"train on: gains at least {uphill:.3g} nats"
    else:
        verdict = "residuals are not 0: training has not reached a stationary point, or the model cannot reach any"
        remedy = f"train on: gains {uphill:.3g} nats if the parameters can move that way, which was not tested"
    if at_stake.variance + at_stake.prior > e.thresholds.tolerance:
        remedy += f", {at_stake.variance + at_stake.prior:.3g} of them at once by calibrate"
    remedy += "; lower the learning rate towards the end"
    return finding(
        e,
        "not_stationary",
        verdict,
        nats=nats,
        error=error if nats == uphill else None,
        evidence=evidence,
        remedy=remedy,
        level="problem",
    )


def linear_deficit(e: Evidence) -> float:
    """How much better the best linear VAE is, with optimal variances in both; -inf where there is none."""
    if e.linear_elbo is None or e.train.gains.variance is None:
        return -math.inf
    return e.linear_elbo - e.train.elbo - e.train.gains.variance - e.prior_gain


def below_linear(e: Evidence) -> Finding | None:
    """A stationary point that is worse than a linear model, of which the latents are to blame."""
    deficit = linear_deficit(e)
    if deficit <= e.thresholds.tolerance or e.linear_elbo is None or not stationary_enough(e) or e.all_collapsed:
        return None
    evidence = [
        Number("ELBO of the best linear VAE with as many latents", e.linear_elbo),
        Number("ELBO of this model with optimal variances", e.linear_elbo - deficit),
    ]
    verdict = "a linear VAE with as many latents is better: training has ended at a bad stationary point"
    remedy = "begin again from other weights, with KL warm-up or σ² at its optimum from the start (analytic variances)"
    return finding(e, "below_linear", verdict, nats=deficit, evidence=evidence, remedy=remedy)
