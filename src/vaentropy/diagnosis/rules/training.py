"""Rules: has it been trained to a stationary point, and to a good one?"""

import math
from typing import NamedTuple

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import differs, exceeds, finding, residuals, worst

__all__ = ["below_linear", "linear_deficit", "not_stationary", "start_again", "stationary_enough"]

# Where the gradient stands out of its noise, a step that gains this fraction of the tolerance tells of a plateau.
PLATEAU = 0.1
# σ² that is off by this factor comes of other data, or other units, more often than of little training.
OTHER_DATA = 30.0


class _AtStake(NamedTuple):
    """What could be had uphill from here, nats per data point, by each of several ways."""

    step: float
    step_error: float | None
    variance: float
    prior: float

    @property
    def calibrated(self) -> float:
        """What optimal variances bring."""
        return self.variance + self.prior

    @property
    def most(self) -> float:
        """By the better of both ways."""
        return max(self.step, self.calibrated)


def _decoder_gain(e: Evidence) -> float:
    """What the decoder's move would bring, where it is not 0."""
    if (gain := e.variance_gain) is not None:
        return gain[0] if math.isfinite(gain[0]) else 0.0  # a finding of its own
    move = e.gradients.moves.get("decoder") if e.gradients else None
    gain = None if move is None else move.gain
    # Of a likelihood of which nothing is known, the residual itself says how much is wrong.
    return abs(e.train.decoder_gap) if gain is None else gain


def _at_stake(e: Evidence) -> _AtStake | None:
    """None where nothing says that the point is not stationary."""
    mc, step = e.train.mc_stderr, e.step
    rises = step is not None and exceeds(e, step.gain, step.gain_error)
    prior = e.can_move("prior") and differs(e, e.train.prior_gap, None if mc is None else mc.prior_gap)
    decoder = e.can_move("decoder") and differs(e, e.train.decoder_gap, None if mc is None else mc.decoder_gap)
    if not (rises or prior or decoder):
        return None
    return _AtStake(
        step=step.gain if step is not None and rises else 0.0,
        step_error=step.gain_error if step is not None and rises else None,
        variance=_decoder_gain(e) if decoder else 0.0,
        prior=e.prior_gain if prior else 0.0,
    )


def _on_plateau(e: Evidence, at_stake: _AtStake) -> bool:
    return at_stake.step > PLATEAU * e.thresholds.tolerance and e.gradients is not None and not e.at_noise_floor


def stationary_enough(e: Evidence) -> bool:
    """Whether no more than the tolerance is known to be had uphill from here, and the gradient is in its noise."""
    at_stake = _at_stake(e)
    little = at_stake is None or at_stake.most <= e.thresholds.tolerance
    return little and e.at_noise_floor


def not_stationary(e: Evidence) -> Finding | None:
    """A step uphill gains, or residuals are not zero whose moves the parameters can make."""
    at_stake = _at_stake(e)
    if at_stake is None:
        return None
    step, evidence = e.step, residuals(e)
    if step is not None:
        beta = "" if e.trained_beta == 1 else f", for β = {e.trained_beta:.3g},"
        evidence.insert(0, Number(f"one {step.kind} step uphill{beta} gains", step.gain, step.gain_error))
    if e.gradients:
        evidence.append(Number("gradient norm", e.gradients.norm, None, ""))
        evidence.append(Number("its noise floor", e.gradients.noise_floor, None, ""))
    if e.train.prior_residuals is not None and e.train.prior_residuals.numel() > 1 and at_stake.prior:
        evidence += worst(e.train.prior_residuals, "residual of latent", 2)
    nats, plateau = at_stake.most, _on_plateau(e, at_stake)
    error = at_stake.step_error if nats == at_stake.step else None
    serious = nats > e.thresholds.tolerance or plateau
    if not serious:
        verdict = "not exactly stationary: something differs from 0 by more than its noise, but little is at stake"
        remedy = "a lower learning rate at the end brings the rest"
    else:
        verdict, remedy = _verdict(e, at_stake)
    level = "problem" if serious else "note"
    return finding(e, "not_stationary", verdict, nats=nats, error=error, evidence=evidence, remedy=remedy, level=level)


def _verdict(e: Evidence, at_stake: _AtStake) -> tuple[str, str]:
    """Of a point that is not stationary, verdict and remedy."""
    ratio = e.train.variance_ratio
    if not e.moves_tested and at_stake.most > at_stake.step:
        verdict = "residuals are not 0: training has not reached a stationary point, or the model cannot reach any"
        return verdict, "train on; if the residuals stay, the parameters cannot make the moves that they belong to"
    verdict = "training has not reached a stationary point"
    if at_stake.most <= e.thresholds.tolerance:
        verdict += ": a plateau, where the gradient stands out of its noise and one step gains little"
    if (
        ratio is not None
        and max(ratio, 1 / ratio if ratio else math.inf) > OTHER_DATA
        and at_stake.step < at_stake.calibrated
    ):
        remedy = "see whether these are the data, in the units, that it was trained on; if they are, " + (
            f"calibrate gains {at_stake.calibrated:.3g} nats, and then train on"
        )
        return verdict, remedy
    remedy = f"train on: gains at least {at_stake.most:.3g} nats"
    if at_stake.calibrated > e.thresholds.tolerance:
        remedy += f", {at_stake.calibrated:.3g} of it at once by calibrate"
    if e.lower_held_out is not None and exceeds(e, *e.lower_held_out):
        return verdict, remedy + "; on the training data, that is: held out it is lower already, see overfitting"
    return verdict, remedy + "; lower the learning rate towards the end"


def linear_deficit(e: Evidence) -> float:
    """How much better the best linear VAE is, with optimal variances in both; -inf where there is none."""
    if e.linear_elbo is None or e.train.gains.variance is None:
        return -math.inf
    return e.linear_elbo - e.train.elbo - e.train.gains.variance - e.prior_gain


def below_linear(e: Evidence) -> Finding | None:
    """A model that is worse than a linear one, of which the latents are to blame."""
    deficit = linear_deficit(e)
    if deficit <= e.thresholds.tolerance or e.linear_elbo is None or e.all_collapsed:
        return None
    evidence = [
        Number("ELBO of the best linear VAE with as many latents, as on other data", e.linear_elbo),
        Number("ELBO of this model with optimal variances", e.linear_elbo - deficit),
    ]
    verdict, remedy = "a linear VAE with as many latents is better", start_again(e)
    return finding(e, "below_linear", verdict, nats=deficit, evidence=evidence, remedy=remedy)


def start_again(e: Evidence) -> str:
    """What to do about latents that are not used: not before training has ended."""
    again = "begin again from other weights, with KL warm-up or σ² at its optimum from the start (analytic variances)"
    return again if stationary_enough(e) else f"train on first, since this is no stationary point; if it stays, {again}"
