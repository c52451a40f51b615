"""Rules: σ², and the moves of the theorem."""

import math

from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number
from vaentropy.diagnosis.rules.finding import exceeds, finding, residuals, worst

__all__ = ["feature_variances", "fixed_variance", "theorem_conditions", "variance", "variance_floor"]

# A feature whose noise is smaller than this fraction of the mean one hardly varies, and would take σ_d² → 0.
HARDLY_VARIES = 1e-3


def _ratio(e: Evidence) -> Number:
    errors, ratio = e.train.mc_stderr, e.train.variance_ratio
    assert ratio is not None
    return Number("σ²*/σ²", ratio, None if errors is None else errors.variance_ratio, "")


def fixed_variance(e: Evidence) -> Finding | None:
    """Nothing moves σ²."""
    gain, ratio, optimum = e.variance_gain, e.train.variance_ratio, e.train.optimal_variance
    if not e.variance_is_fixed or gain is None or ratio is None or optimum is None:
        return None
    evidence = [_ratio(e), residuals(e)[1]]
    remedy = "learn σ², such as Gaussian('shared') or vae1 do"
    if e.train.variance_kind == "shared" and ratio > 0:
        fixed, num_features = optimum / ratio, math.prod(e.train.data_shape)
        loss = e.trained_beta * fixed
        verdict = f"σ² is fixed at {fixed:.4g}, and its optimum is {optimum:.4g}"
        if e.trained_beta != 1:
            evidence.append(Number("σ² that the loss implies, β σ²", loss, None, ""))
        remedy += (
            f", or set it to {optimum:.4g} (calibrate): gains {gain[0]:.4g} nats; as the weight of the KL in a loss: "
            f"{2 * optimum / num_features:.3g} beside the mean squared error (now {2 * loss / num_features:.3g}), "
            f"{2 * optimum:.3g} beside the summed one (now {2 * loss:.3g}), {optimum:.3g} beside half of that (now "
            f"{loss:.3g})"
        )
    else:
        verdict = "σ² is fixed, and not at its optimum"
        remedy += f", or multiply it by {ratio:.3g} (calibrate): gains {gain[0]:.4g} nats"
    return finding(e, "fixed_variance", verdict, nats=gain[0], error=gain[1], evidence=evidence, remedy=remedy)


def variance(e: Evidence) -> Finding | None:
    """σ² that is learned is not at its optimum."""
    gain, ratio = e.variance_gain, e.train.variance_ratio
    if gain is None or ratio is None or e.variance_is_fixed:
        return None
    if gain[0] <= e.thresholds.tolerance or not exceeds(e, *gain):
        return None
    evidence = [_ratio(e), residuals(e)[1]]
    if math.isinf(gain[0]):
        verdict = "some feature is reproduced exactly: the ELBO has no upper bound (σ² → 0)"
        remedy = "leave out features that do not vary, share one σ², or dequantise whole numbers"
        return finding(e, "exact_features", verdict, nats=gain[0], evidence=evidence, remedy=remedy)
    verdict = (
        f"the decoder is {'over' if ratio > 1 else 'under'}-confident: σ² is too {'small' if ratio > 1 else 'large'}"
    )
    if e.train.variance_kind == "shared" and e.train.optimal_variance is not None:
        evidence.append(Number("σ²*", e.train.optimal_variance, None, ""))
    elif e.train.decoder_residuals is not None:
        if abs(math.log(ratio)) < 0.5 * gain[0] / math.prod(e.train.data_shape):
            verdict = "the decoder is over- or under-confident in single features"
        evidence += worst(e.train.decoder_residuals, "residual of feature", 3)
    remedy = f"calibrate, or train on with analytic variances: gains {gain[0]:.4g} nats"
    return finding(e, "variance", verdict, nats=gain[0], error=gain[1], evidence=evidence, remedy=remedy)


def variance_floor(e: Evidence) -> Finding | None:
    """σ² would go on down if it were let."""
    if e.floor is None:
        return None
    verdict, _, remedy = e.floor.partition("; ")
    return finding(e, "variance_floor", verdict, nats=0.0, evidence=[residuals(e)[1]], remedy=remedy, level="note")


HEADS = {
    "decoder": "an affine head for log σ²(z) (for the natural parameters, if it is not normal) without softplus, clamp "
    "or a floor that is active; leave out features that do not vary",
    "prior": "affine heads for ν and log τ² and a linear first layer of the decoder, or learned prior variances",
}


def theorem_conditions(e: Evidence) -> Finding | None:
    """No way was found in which the parameters make a move: a residual then stays however long the model is trained."""
    moves = e.gradients.moves if e.gradients else {}
    fixed = "decoder" if e.variance_is_fixed else None  # a finding of its own
    left = {name: move for name, move in moves.items() if not e.can_move(name) and name != fixed}
    if not left:
        return None
    name = max(left, key=lambda each: abs(left[each].out_of_reach))
    evidence = []
    for each, move in left.items():
        evidence.append(Number(f"{each} residual out of reach", move.out_of_reach, move.out_of_reach_error))
        what = f"distance of the nearest parameter move, mostly in {move.where}"
        evidence.append(Number(what, move.distance, None, ""))
    move = left[name]
    verdict = f"nothing was found by which the parameters {move.what}: the theorem may not hold, and a gap stays"
    clear = exceeds(e, abs(move.out_of_reach), move.out_of_reach_error, num_draws=e.num_draws)
    return finding(
        e,
        "theorem_conditions",
        verdict,
        nats=abs(move.out_of_reach),
        error=move.out_of_reach_error,
        level=None if clear else "note",
        evidence=evidence,
        remedy=HEADS[name],
    )


def feature_variances(e: Evidence) -> Finding | None:
    """What noise of its own for each feature would gain over one σ²."""
    gains, optimal = e.train.gains, e.train.optimal_feature_variance
    if e.train.variance_kind != "shared" or optimal is None or gains.feature_variance is None or gains.variance is None:
        return None
    nats = float(gains.feature_variance.sum()) - gains.variance
    if optimal.numel() < 2 or not nats > e.thresholds.tolerance:
        return None
    evidence = [
        Number("smallest σ_d²*", float(optimal.min()), None, ""),
        Number("largest σ_d²*", float(optimal.max()), None, ""),
    ]
    remedy = "Gaussian('per_feature')"
    if still := int((optimal <= HARDLY_VARIES * optimal.mean()).sum()):
        evidence.append(Number("features that hardly vary", float(still), None, ""))
        remedy += ", if their densities mean something: features that hardly vary take the ELBO as high as one likes"
    verdict = "noise of its own for each feature would gain over one shared σ²"
    return finding(e, "feature_variances", verdict, nats=nats, evidence=evidence, remedy=remedy, level="note")
