"""`diagnose`: what is wrong with a VAE, how sure that is, and what to do."""

import math
from collections.abc import Callable
from typing import Any

import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_function, require_instance, require_number
from vaentropy.data.given import Data
from vaentropy.diagnosis.evidence import Evidence, Thresholds, gather
from vaentropy.diagnosis.latents import Collapse, check_collapse
from vaentropy.diagnosis.points import Reading
from vaentropy.diagnosis.report import Diagnosis, Number
from vaentropy.diagnosis.rules import findings_of
from vaentropy.diagnosis.rules.finding import residuals
from vaentropy.errors import UsageError, shown
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.model import LatentVariableModel
from vaentropy.modes import Mode
from vaentropy.options import Missing, check_log_jacobian
from vaentropy.progress import progress_bar

__all__ = ["diagnose"]

STAGES = 5


def diagnose(
    model: LatentVariableModel,
    data: Data,
    *,
    held_out: Data | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    beta: float | None = None,
    tolerance: float = 0.1,
    overfitting: float = 1.0,
    num_errors: float = 3.0,
    distance: float = 0.01,
    duplicate: float = 0.9,
    collapse: Collapse = "relative",
    expectation: Expectation = MonteCarlo(16),
    gradients: bool = True,
    num_draws: int = 4,
    batch_size: int | None = None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
    missing: Missing = "error",
    log_jacobian: Tensor | float = 0.0,
    mode: Mode = "eval",
    progress: bool | None = None,
) -> Diagnosis:
    """Find what is wrong with a VAE: verdicts with evidence and remedy, ordered by the nats at stake.

    The model is left as it was. It takes about as long as four evaluations of 16 draws.

    Args:
        model: any three-method model; from an nn.Module gradients are had, and far more can be said.
        data: the training data, as for `evaluate`; read several times.
        held_out: data that were not trained on.
        optimizer: of the training, whose weight decay is looked at.
        beta: weight of the KL term that the model was trained with; None reads it off the gradients.
        tolerance: nats per data point; where less is at stake there is no problem, at most a note.
        overfitting: nats that the held-out ELBO may be lower.
        num_errors: standard errors by which a number has to differ from 0 to count.
        distance: relative distance from one of the theorem's moves up to which the parameters can make it.
        duplicate: correlation of two latents' posterior means above which they are the same.
        collapse: rule by which latents count as collapsed: "relative", "paper", or a KL in nats; see `Latents`.
        expectation: how evaluations average over the posterior.
        gradients: also check gradients, steps and moves.
        num_draws: of z per point, for gradients.
        batch_size: rows per pass.
        bind: as for `evaluate`, for models that need more than x; moves, steps and modes are then not tested.
        missing: as for `evaluate`.
        log_jacobian: as for `evaluate`.
        mode: "eval" or "train": the one that was trained, where that makes a difference.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        Diagnosis, which prints.

    Raises:
        UsageError: an argument has a wrong value, or data that can be read only once.
        DataError, ModelError: as for `evaluate`.
    """
    for name, value in (("tolerance", tolerance), ("overfitting", overfitting), ("num_errors", num_errors)):
        require_number(name, value, positive=False)
    for name, value in (("distance", distance), ("duplicate", duplicate)):
        if require_number(name, value) > 1:
            raise UsageError(f"{name}={value} given, expected a number from 0 to 1")
    if not isinstance(gradients, bool):
        raise UsageError(f"gradients={shown(gradients)} given, expected True or False")
    if beta is not None:
        require_number("beta", beta)
    if optimizer is not None:
        require_instance("optimizer", optimizer, torch.optim.Optimizer, "a torch optimiser")
    require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    require_count("num_draws", num_draws, least=2)
    require_function("bind", bind)
    check_collapse(collapse)
    thresholds = Thresholds(
        tolerance=tolerance,
        overfitting=overfitting,
        num_errors=num_errors,
        distance=distance,
        duplicate=duplicate,
        collapse=collapse,
    )
    with progress_bar(STAGES, "stages", show=progress) as report:
        evidence = gather(
            Reading(model, batch_size, bind, missing, mode),
            data,
            held_out,
            optimizer=optimizer,
            beta=beta,
            expectation=expectation,
            num_draws=num_draws,
            log_jacobian=check_log_jacobian(log_jacobian),
            gradients=gradients,
            thresholds=thresholds,
            report=report,
        )
    return Diagnosis(
        findings=findings_of(evidence),
        tested=_tested(evidence),
        untested=evidence.untested,
        latents=evidence.latents,
        train=evidence.train,
        held_out=evidence.held_out,
        gradients=evidence.gradients,
    )


def _tested(e: Evidence) -> tuple[Number, ...]:
    """What was tested, each with its outcome."""
    numbers = residuals(e)
    if e.gradients:
        check = e.gradients
        numbers += [
            Number("gradient norm", check.norm, None, ""),
            Number("  its noise floor", check.noise_floor, None, ""),
        ]
        for move in check.moves.values():
            numbers.append(
                Number(f"slope where the parameters {move.what}", move.along_parameters, move.along_parameters_error)
            )
            numbers.append(Number("  how far from that move they stay, relatively", move.distance, None, ""))
        for beta, step in check.steps.items():
            numbers.append(Number(f"gain of a step uphill, β = {beta:.3g}", step.gain, step.gain_error))
        if not math.isnan(check.implied_beta):
            numbers.append(Number("β that the gradients imply", check.implied_beta, check.implied_beta_error, ""))
    if e.linear_elbo is not None:
        numbers.append(Number("ELBO of the best linear VAE less that of this model", e.linear_elbo - e.train.elbo))
    if e.latents is not None:
        numbers.append(Number("mismatch of aggregate posterior and prior", float(e.latents.mismatch.sum())))
        numbers.append(Number("cost of correlated latents", e.latents.correlation_cost))
    if e.lower_held_out is not None:
        lower, error = e.lower_held_out
        numbers.append(Number("held-out ELBO less that of the training data", -lower, error))
    if e.mode_difference is not None:
        numbers.append(Number("ELBO in the other mode less that in this one", *e.mode_difference))
    return tuple(numbers)
