"""The rules: each looks at the evidence and says what it finds, or nothing.

A rule returns a problem where more is at stake than the tolerance, and a note where something is worth knowing.
"""

import math
from collections.abc import Callable

import torch

from vaentropy._typing import Tensor
from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Number

__all__ = ["RULES", "findings_of", "tested"]

Rule = Callable[[Evidence], Finding | None]

# Latents and features that a line names.
NAMED = 5
# A feature whose noise is smaller than this fraction of the mean one hardly varies, and would take σ_d² → 0.
HARDLY_VARIES = 1e-3
# A fixed σ² is one that nothing moves: this much of the move is left.
NOTHING_MOVES = 0.99


def findings_of(e: Evidence) -> tuple[Finding, ...]:
    """Problems, then notes, each with the most nats first."""
    found = [finding for rule in RULES if (finding := rule(e)) is not None]
    return tuple(sorted(found, key=lambda f: (f.level != "problem", -f.nats)))


def _finding(
    e: Evidence, kind: str, nats: float, verdict: str, evidence: list[Number], remedy: str, **options
) -> Finding:
    """A problem where more is at stake than tolerance and error, else a note; by `level` either."""
    error = options.get("error")
    least = options.get("least", e.thresholds.tolerance)
    serious = nats > least and nats > e.thresholds.num_errors * (error or 0.0)
    return Finding(
        kind=kind,
        level=options.get("level") or ("problem" if serious else "note"),
        nats=nats,
        error=error,
        verdict=verdict,
        evidence=tuple(evidence),
        remedy=remedy,
    )


def _differs(e: Evidence, value: float, error: float | None) -> bool:
    """Whether a residual differs from 0 by more than its Monte Carlo error, and than rounding."""
    h = e.train.entropies
    rounding = 1e-6 * (abs(h.encoder) + abs(h.prior) + abs(h.decoder))
    return abs(value) > e.thresholds.num_errors * (error or 0.0) + rounding


def _worst(values: Tensor, *, what: str, unit: str = "nats") -> list[Number]:
    """The largest of the values, by absolute value, each with its number."""
    flat = values.flatten()
    order = flat.abs().argsort(descending=True)[: min(NAMED, len(flat))].tolist()
    return [Number(f"{what} {index}", float(flat[index]), None, unit) for index in order if float(flat[index])]


def _residuals(e: Evidence) -> list[Number]:
    mc = e.train.mc_stderr
    return [
        Number("prior residuals", e.train.prior_gap, None if mc is None else mc.prior_gap),
        Number("decoder residuals", e.train.decoder_gap, None if mc is None else mc.decoder_gap),
    ]


# --- Has it been trained to a stationary point? ---------------------------------------------------------------------


def not_stationary(e: Evidence) -> Finding | None:
    """A step uphill gains, or residuals whose moves can be made are not zero."""
    mc = e.train.mc_stderr
    step = e.gradients.steps.get(e.trained_beta) if e.gradients else None
    variance = e.variance_gain if e.can_move("decoder") else None
    at_stake: list[tuple[float, float | None]] = [(0.0, None)]
    prior_moves = e.can_move("prior") and _differs(e, e.train.prior_gap, None if mc is None else mc.prior_gap)
    decoder_moves = e.can_move("decoder") and _differs(e, e.train.decoder_gap, None if mc is None else mc.decoder_gap)
    if step and step.gain > e.thresholds.num_errors * step.gain_error:
        at_stake.append((step.gain, step.gain_error))
    if prior_moves:
        at_stake.append((e.prior_gain, None))
    if decoder_moves and variance and math.isfinite(variance[0]):
        at_stake.append(variance)
    if len(at_stake) == 1:
        return None
    evidence = _residuals(e)
    if step:
        beta = "" if e.trained_beta == 1 else f" for β = {e.trained_beta:.3g}"
        evidence.insert(0, Number(f"one Gauss-Newton step uphill{beta} gains", step.gain, step.gain_error))
    uphill = max(at_stake)
    if uphill[0] > e.thresholds.tolerance and (deficit := _linear_deficit(e)) > e.thresholds.tolerance:
        evidence.append(Number("a linear VAE of as many latents is better by", deficit))
        at_stake.append((deficit, None))
    if e.gradients:
        evidence.append(Number("gradient norm", e.gradients.norm, None, ""))
        evidence.append(Number("its noise floor", e.gradients.noise_floor, None, ""))
    if prior_moves and e.train.prior_residuals is not None and e.train.prior_residuals.numel() > 1:
        evidence += _worst(e.train.prior_residuals, what="residual of latent")[:2]
    nats, error = max(at_stake)
    verdict = "training has not reached a stationary point"
    remedy = f"train on: at least {uphill[0]:.3g} nats are to be had"
    calibrated = (variance[0] if variance and decoder_moves else 0.0) + (e.prior_gain if prior_moves else 0.0)
    if math.isfinite(calibrated) and calibrated > e.thresholds.tolerance:
        remedy += f", {calibrated:.3g} of them at once by calibrate"
    remedy += "; lower the learning rate towards the end"
    if nats <= e.thresholds.tolerance:
        verdict = "not exactly stationary: residuals differ from 0, though little is at stake"
    return _finding(e, "not_stationary", nats, verdict, evidence, remedy, error=error)


def _linear_deficit(e: Evidence) -> float:
    """How much better the best linear VAE is, with optimal variances in both; -inf where there is none."""
    if e.linear_elbo is None or e.train.gains.variance is None:
        return -math.inf
    return e.linear_elbo - e.train.elbo - e.train.gains.variance - e.prior_gain


def below_linear(e: Evidence) -> Finding | None:
    """A stationary point that is worse than a linear model: the latents are not used as they could be."""
    deficit = _linear_deficit(e)
    stationary = not_stationary(e)
    if deficit <= e.thresholds.tolerance or (stationary is not None and stationary.level == "problem"):
        return None
    evidence = [
        Number("ELBO of the best linear VAE with as many latents", e.linear_elbo or math.nan),
        Number("ELBO of this model with optimal variances", (e.linear_elbo or math.nan) - deficit),
    ]
    verdict = "a linear VAE with as many latents is better: this is a bad stationary point"
    remedy = "begin again from other weights, with KL warm-up or σ² at its optimum from the start (analytic variances)"
    return _finding(e, "below_linear", deficit, verdict, evidence, remedy)


# --- σ² and the moves of the theorem --------------------------------------------------------------------------------


def _move_left(e: Evidence, name: str) -> float:
    move = e.gradients.moves.get(name) if e.gradients else None
    return 0.0 if move is None else move.distance


def fixed_variance(e: Evidence) -> Finding | None:
    """Nothing moves σ²."""
    gain = e.variance_gain
    if gain is None or _move_left(e, "decoder") < NOTHING_MOVES or e.train.variance_ratio is None:
        return None
    ratio, num_features = e.train.variance_ratio, math.prod(e.train.data_shape)
    kind, optimum = e.train.variance_kind, e.train.optimal_variance
    errors = e.train.mc_stderr
    evidence = [
        Number("σ²*/σ²", ratio, None if errors is None else errors.variance_ratio, ""),
        *_residuals(e)[1:],
    ]
    remedy = f"learn σ² (a shared one: vae1, or Gaussian('shared')), or multiply it by {ratio:.3g} (calibrate)"
    if kind == "shared" and optimum is not None and ratio > 0:
        variance = optimum / ratio
        verdict = f"σ² is fixed at {variance:.4g}, and its optimum is {optimum:.4g}"
        if e.trained_beta != 1:
            evidence.append(Number("σ² that the loss implies, β σ²", e.trained_beta * variance, None, ""))
        loss = e.trained_beta * variance
        remedy += (
            f"; as the weight of the KL in a loss: {2 * optimum / num_features:.3g} beside the mean squared error (now "
            f"{2 * loss / num_features:.3g}), {2 * optimum:.3g} beside the summed one (now {2 * loss:.3g})"
        )
    else:
        verdict = f"σ² is fixed, and {1 / ratio if ratio else math.inf:.3g} times its optimum"
    remedy += f": gains {gain[0]:.4g} nats"
    return _finding(e, "fixed_variance", gain[0], verdict, evidence, remedy, error=gain[1])


def variance(e: Evidence) -> Finding | None:
    """σ² that is learned is not at its optimum."""
    gain, ratio = e.variance_gain, e.train.variance_ratio
    if gain is None or ratio is None or _move_left(e, "decoder") >= NOTHING_MOVES:
        return None
    if not gain[0] > max(e.thresholds.tolerance, e.thresholds.num_errors * (gain[1] or 0.0)):
        return None
    if math.isinf(gain[0]):
        return _finding(
            e,
            "exact_features",
            math.inf,
            "some feature is reproduced exactly: the ELBO has no upper bound (σ² → 0)",
            _residuals(e)[1:],
            "leave out features that do not vary, share one σ², or add noise to whole numbers (dequantise)",
            level="problem",
        )
    errors = e.train.mc_stderr
    how = "over-confident: σ² is too small" if ratio > 1 else "under-confident: σ² is too large"
    evidence = [
        Number("σ²*/σ²", ratio, None if errors is None else errors.variance_ratio, ""),
        *_residuals(e)[1:],
    ]
    if e.train.optimal_variance is not None and e.train.variance_kind == "shared":
        evidence.append(
            Number("σ²*", e.train.optimal_variance, None if errors is None else errors.optimal_variance, "")
        )
    if e.train.variance_kind != "shared" and e.train.decoder_residuals is not None:
        how = how if abs(math.log(ratio)) > 0.1 else "off for single features"
        evidence += _worst(e.train.decoder_residuals, what="residual of feature")[:3]
    remedy = f"calibrate, or train on with analytic variances: gains {gain[0]:.4g} nats"
    return _finding(e, "variance", gain[0], f"the decoder is {how}", evidence, remedy, error=gain[1])


def theorem_conditions(e: Evidence) -> Finding | None:
    """The parameters cannot make a move, so that a residual stays however long the model is trained."""
    moves = e.gradients.moves if e.gradients else {}
    left = {
        name: move
        for name, move in moves.items()
        if move.distance > e.thresholds.distance and (name != "decoder" or move.distance < NOTHING_MOVES)
    }
    if not left:
        if "decoder" in moves and moves["decoder"].distance >= NOTHING_MOVES and e.variance_gain is None:
            left = {"decoder": moves["decoder"]}
        else:
            return None
    name = max(left, key=lambda each: abs(left[each].out_of_reach))
    move = left[name]
    evidence = []
    for each, m in left.items():
        evidence += [
            Number(f"{each} residual out of reach", m.out_of_reach, m.out_of_reach_error),
            Number(f"distance of the nearest parameter move, mostly in {m.where}", m.distance, None, ""),
        ]
    heads = {
        "decoder": "an affine head for log σ²(z): no softplus, clamp or active floor; leave out features that do not "
        "vary",
        "prior": "affine heads for ν and log τ² and a linear first layer of the decoder, or learned prior variances",
    }
    verdict = f"the parameters cannot {move.what}: the theorem does not hold, and a gap stays"
    return _finding(
        e, "theorem_conditions", abs(move.out_of_reach), verdict, evidence, heads[name], error=move.out_of_reach_error
    )


# --- The latents ----------------------------------------------------------------------------------------------------


def prior_mismatch(e: Evidence) -> Finding | None:
    """The aggregate posterior has another mean or variance than the prior."""
    if e.latents is None:
        return None
    nats = float(e.latents.mismatch.sum())
    if not nats > e.thresholds.tolerance:
        return None
    evidence = _worst(e.latents.mismatch, what="latent")
    worst = int(e.latents.mismatch.argmax())
    evidence += [
        Number(f"E z²/α² of latent {worst}", float(e.latents.prior_ratio[worst]), None, ""),
        Number(f"mean of latent {worst}", float(e.latents.mean[worst]), None, ""),
    ]
    remedy = f"calibrate sets the prior's variances: gains {e.prior_gain:.3g} nats; the rest is for training to gain"
    return _finding(e, "prior_mismatch", nats, "the latents do not have the moments of the prior", evidence, remedy)


def correlated(e: Evidence) -> Finding | None:
    """Latents are correlated, or two of them are the same."""
    if e.latents is None or e.latents.mean_correlation is None or len(e.latents) < 2:
        return None
    correlation = e.latents.mean_correlation
    # What a collapsed latent has of the others is noise.
    used = torch.tensor([status != "collapsed" for status in e.latents.status])
    pairs = (correlation * torch.outer(used, used)).triu(1)
    order = pairs.abs().flatten().argsort(descending=True)[:NAMED].tolist()
    named = [(index // len(used), index % len(used)) for index in order]
    largest = float(pairs.abs().max())
    nats = e.latents.correlation_cost
    duplicated = largest > e.thresholds.duplicate
    if not duplicated and nats <= e.thresholds.tolerance:
        return None
    evidence = [
        Number(f"correlation of latents {a} and {b}", float(pairs[a, b]), None, "")
        for a, b in named
        if abs(float(pairs[a, b])) > min(0.5 * largest, e.thresholds.duplicate)
    ]
    if duplicated:
        verdict = f"latents {named[0][0]} and {named[0][1]} say the same"
        remedy = "train with fewer latents (select), or on: at a good stationary point each says something of its own"
    else:
        verdict = "the latents are correlated, which the prior is not"
        remedy = f"train on; a prior with these correlations would gain {nats:.3g} nats"
    level = "problem" if duplicated else "note"
    return _finding(e, "correlated_latents", nats, verdict, evidence, remedy, level=level)


def collapsed(e: Evidence) -> Finding | None:
    """Latents that say nothing of x."""
    if e.latents is None:
        return None
    gone, partly = e.latents.which("collapsed"), e.latents.which("partly used")
    number, kl = len(e.latents), float(e.latents.kl[gone].sum()) if gone else 0.0
    if not gone and not partly:
        return None
    evidence = [Number("KL of the collapsed latents together", kl), Number("largest KL", float(e.latents.kl.max()))]
    some = ", ".join(map(str, gone[:NAMED])) + (", ..." if len(gone) > NAMED else "")
    if not gone:
        verdict = f"{len(partly)} of {number} latents are partly used: {', '.join(map(str, partly[:NAMED]))}"
        return _finding(e, "collapsed", 0.0, verdict, evidence[1:], "none needed", level="note")
    if len(gone) == number:
        better = max(0.0, _linear_deficit(e))
        verdict = "all latents have collapsed: the posterior says nothing of x"
        remedy = (
            "begin again with σ² at its optimum from the start (analytic variances) or KL warm-up; with σ² fixed too "
            "large, or β too large, collapse is the optimum"
        )
        if better:
            evidence.append(Number("a linear VAE is better by", better))
        return _finding(e, "collapsed", better, verdict, evidence, remedy, level="problem")
    verdict = f"{len(gone)} of {number} latents have collapsed: {some}"
    return _finding(
        e, "collapsed", kl, verdict, evidence, f"prune(model, [{some}]) leaves the ELBO as it is", level="note"
    )


# --- Held-out data --------------------------------------------------------------------------------------------------


def overfitting(e: Evidence) -> Finding | None:
    """The held-out ELBO is lower than that of the training data."""
    if e.held_out is None:
        return None
    train, held_out = e.train, e.held_out
    lower = train.elbo - held_out.elbo
    error = math.hypot(train.stderr.elbo, held_out.stderr.elbo)
    if not lower > e.thresholds.num_errors * error:
        return None
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
    verdict = "the model is over-confident on held-out data: it overfits"
    return _finding(e, "overfitting", lower, verdict, evidence, remedy, error=error, least=e.thresholds.overfitting)


# --- The loss -------------------------------------------------------------------------------------------------------


def kl_weight(e: Evidence) -> Finding | None:
    """The model was trained with another weight of the KL than 1."""
    check = e.gradients
    if check is None or e.trained_beta == 1:
        declared_only = e.beta is not None and e.beta != 1
        if not declared_only:
            return None
    beta = e.trained_beta
    step = check.steps.get(1.0) if check else None
    nats, error = (step.gain, step.gain_error) if step else (abs(beta - 1) * e.train.kl, None)
    evidence = []
    if check and not math.isnan(check.implied_beta):
        evidence.append(
            Number(
                "β at which the gradients of reconstruction and KL balance",
                check.implied_beta,
                check.implied_beta_error,
                "",
            )
        )
        evidence.append(Number("cosine between them", check.alignment, None, ""))
    evidence.append(Number("KL", e.train.kl))
    said = "" if e.beta is None else ", as given"
    verdict = f"trained with the KL weighted by β = {beta:.3g}{said}: this is no maximum of the ELBO"
    remedy = f"train on with β = 1: gains at least {nats:.3g} nats" if nats else "train on with β = 1"
    if _move_left(e, "decoder") >= NOTHING_MOVES and e.train.variance_ratio and e.train.optimal_variance:
        implied = beta * e.train.optimal_variance / e.train.variance_ratio
        remedy += f"; with σ² fixed, the loss is an ELBO with σ² = {implied:.3g}: evaluate it as that, or learn σ²"
    return _finding(e, "kl_weight", nats, verdict, evidence, remedy, error=error)


def weight_decay(e: Evidence) -> Finding | None:
    """Weight decay acts on layers that the theorem speaks about."""
    shifts = [decay for decay in e.decays if decay.layers and decay.shift]
    if not shifts:
        if not e.decoupled:
            return None
        verdict = "weight decay apart from the gradient (AdamW) moves the parameters: residuals need not vanish"
        remedy = "no weight decay on the posterior's heads, the first decoder layer and log σ²"
        return _finding(e, "weight_decay", 0.0, verdict, _residuals(e), remedy, level="note")
    nats = sum(abs(decay.shift) for decay in shifts)
    evidence = []
    for decay in shifts:
        move = e.gradients.moves[decay.name] if e.gradients else None
        seen = "" if move is None else f" (seen: {move.along_parameters:.4g} ± {move.along_parameters_error:.2g})"
        layers = ", ".join(decay.layers[:3])
        evidence.append(Number(f"shift of the {decay.name} residuals by {layers}{seen}", decay.shift))
    verdict = "weight decay acts on layers that the theorem speaks of: residuals stay where it has ended"
    remedy = (
        "no weight decay on the posterior's heads, the first decoder layer and log σ²; on hidden layers it is harmless"
    )
    return _finding(e, "weight_decay", nats, verdict, evidence, remedy)


def feature_variances(e: Evidence) -> Finding | None:
    """What noise of its own for each feature would gain over one σ²."""
    gains = e.train.gains
    if e.train.variance_kind != "shared" or gains.feature_variance is None or gains.variance is None:
        return None
    nats = float(gains.feature_variance.sum()) - gains.variance
    if gains.feature_variance.numel() < 2 or not nats > e.thresholds.tolerance:
        return None
    optimal = e.train.optimal_feature_variance
    assert optimal is not None
    still = int((optimal <= HARDLY_VARIES * optimal.mean()).sum())
    evidence = [
        Number("smallest σ_d²*", float(optimal.min()), None, ""),
        Number("largest σ_d²*", float(optimal.max()), None, ""),
    ]
    remedy = "Gaussian('per_feature')"
    if still:
        evidence.append(Number("features that hardly vary", still, None, ""))
        remedy += ", if these densities mean something: features that hardly vary take it as high as one likes"
    verdict = "noise of its own for each feature would gain over one shared σ²"
    return _finding(e, "feature_variances", nats, verdict, evidence, remedy, level="note")


def mode_difference(e: Evidence) -> Finding | None:
    """Train and eval mode are two objectives (BatchNorm, dropout)."""
    if e.mode_difference is None or not any(e.mode_difference):
        return None
    difference, error = e.mode_difference
    other = "train" if e.train.mode == "eval" else "eval"
    evidence = [Number(f"ELBO in {other} mode less that in {e.train.mode} mode", difference, error)]
    verdict = "the ELBO differs between train and eval mode, and the theorem holds in the one that was trained"
    remedy = f'diagnose with mode="{other}" if that is how it was trained (BatchNorm, dropout)'
    return _finding(e, "mode_difference", abs(difference), verdict, evidence, remedy, error=error)


def sampled_entropies(e: Evidence) -> Finding | None:
    """Entropies without a closed form."""
    if not e.train.sampled:
        return None
    verdict = f"the entropy of {', '.join(e.train.sampled)} is a Monte Carlo estimate: the theorem may not hold"
    remedy = "none needed: the gap's terms are exact in expectation, but need not vanish"
    return _finding(e, "sampled_entropies", 0.0, verdict, _residuals(e), remedy, level="note")


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
    correlated,
    collapsed,
    feature_variances,
    sampled_entropies,
)


def tested(e: Evidence) -> tuple[Number, ...]:
    """What was tested, each with its outcome."""
    numbers = _residuals(e)
    if check := e.gradients:
        numbers += [
            Number("gradient norm", check.norm, None, ""),
            Number("  its noise floor", check.noise_floor, None, ""),
            *(
                Number(f"derivative along: {move.what}", move.along_parameters, move.along_parameters_error)
                for move in check.moves.values()
            ),
            *(Number("  distance of that move", move.distance, None, "") for move in check.moves.values()),
            *(
                Number(f"gain of one step uphill, β = {beta:.3g}", step.gain, step.gain_error)
                for beta, step in check.steps.items()
            ),
        ]
        if not math.isnan(check.implied_beta):
            numbers.append(Number("β that the gradients imply", check.implied_beta, check.implied_beta_error, ""))
    if e.latents is not None:
        numbers.append(Number("mismatch of latents and prior", float(e.latents.mismatch.sum())))
        numbers.append(Number("cost of correlations", e.latents.correlation_cost))
    if e.linear_elbo is not None:
        numbers.append(Number("ELBO of the best linear VAE", e.linear_elbo))
    if e.held_out is not None:
        error = math.hypot(e.train.stderr.elbo, e.held_out.stderr.elbo)
        numbers.append(Number("ELBO held out less that of the training data", e.held_out.elbo - e.train.elbo, error))
    if e.mode_difference is not None:
        numbers.append(Number("ELBO in the other mode less this one", *e.mode_difference))
    return tuple(numbers)
