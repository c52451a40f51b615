"""What a diagnosis stands on: evaluations, gradients, a linear model beside it, what the optimiser does besides."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vaentropy._typing import Tensor
from vaentropy.conditions import condition_width
from vaentropy.data.given import Data
from vaentropy.diagnosis.gradients import GradientCheck, StepCheck, gradient_check, trainable
from vaentropy.diagnosis.latents import Collapse, Latents, latents_of
from vaentropy.diagnosis.linearisation import split
from vaentropy.diagnosis.points import Reading, require_rereadable, spread
from vaentropy.errors import UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation
from vaentropy.linear import LinearVAE
from vaentropy.model import LatentVariableModel
from vaentropy.modes import Mode
from vaentropy.moments import DataMoments
from vaentropy.passes import Batch
from vaentropy.results import Evaluation
from vaentropy.training.floor import at_floor, explain_floor
from vaentropy.vae import VAE

__all__ = ["Decay", "Evidence", "Thresholds", "gather"]

# Features beyond which a linear model, which takes a D × D covariance, is not computed.
MOST_FEATURES = 1024
# Points on which the modes are compared, but of large ones as many as hold so many numbers.
COMPARED, COMPARED_VALUES = 1000, 2**24
# A σ² is fixed if this much of the move that scales it is left.
NOTHING_MOVES = 0.99
# A gradient stands out that is so many times its noise, and, where there is hardly any, this fraction of its parts.
CLEAR, NOTHING = 5.0, 1e-3
# The ELBO of a linear VAE is that of data which it was fitted to: with fewer points than features it says little.
FEWEST_PER_FEATURE = 2


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When something found is a problem; see `diagnose`, where each is explained."""

    tolerance: float
    overfitting: float
    num_errors: float
    distance: float
    duplicate: float
    collapse: Collapse


@dataclass(frozen=True)
class Decay:
    """What weight decay does to one residual at a stationary point of the loss with it.

    Attributes:
        name: of the residual, "decoder" or "prior".
        shift: of the residual, nats per data point.
        layers: names of the parameters that it comes from, the largest part first.
    """

    name: str
    shift: float
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the rules look at.

    Attributes:
        model: that is diagnosed.
        train, held_out: evaluations; `held_out` None without such data.
        latents: table; None where posterior or prior are not normal with independent elements.
        gradients: the gradient check; None where it was not made.
        mode_difference: ELBO in the other mode less ELBO in the mode evaluated, on some points, and its error.
        linear_elbo: of the best linear VAE with as many latents (one less than features at most), on the training data,
            less what so many parameters would lose on other data (AIC); None where it was not computed.
        beta: that the user says training had; None if nothing was said.
        decays: what weight decay shifts, where it is part of the gradient.
        decoupled: whether an optimiser with decoupled weight decay moves the parameters (AdamW).
        floor: why σ² is held at its floor, one line; None where it is not, or the model is no `VAE`.
        thresholds: when something is a problem.
        untested: what was not tested, and why.
    """

    model: LatentVariableModel
    train: Evaluation
    held_out: Evaluation | None
    latents: Latents | None
    gradients: GradientCheck | None
    mode_difference: tuple[float, float] | None
    linear_elbo: float | None
    beta: float | None
    decays: tuple[Decay, ...]
    decoupled: bool
    floor: str | None
    thresholds: Thresholds
    untested: tuple[str, ...]

    @property
    def trained_beta(self) -> float:
        """β that the model is judged to be trained with: what the user says, else what the gradients imply, else 1."""
        if self.beta is not None:
            return self.beta
        # In the mode that was not trained, the two need not balance at any β.
        modes = self.mode_difference is not None and abs(self.mode_difference[0]) > self.thresholds.tolerance
        if (
            self.gradients
            and not modes
            and self.gradients.implies_other_beta(1.0, num_errors=self.thresholds.num_errors)
        ):
            return self.gradients.implied_beta
        return 1.0

    @property
    def num_draws(self) -> int | None:
        """Of z per point, that errors of gradients were estimated from."""
        return self.gradients.num_draws if self.gradients else None

    @property
    def step(self) -> StepCheck | None:
        """The step uphill for that β; None where none could be made."""
        return self.gradients.steps.get(self.trained_beta) if self.gradients else None

    @property
    def lower_held_out(self) -> tuple[float, float] | None:
        """By how much the held-out ELBO is below that of the training data, nats per data point, and its error."""
        if self.held_out is None:
            return None
        error = math.hypot(self.train.stderr.elbo, self.held_out.stderr.elbo)
        return self.train.elbo - self.held_out.elbo, error

    @property
    def moves_tested(self) -> bool:
        """Whether it is known which of the theorem's moves the parameters can make."""
        return self.gradients is not None and bool(self.gradients.moves)

    @property
    def at_noise_floor(self) -> bool:
        """Whether the gradient is no clearer than its noise; False where it was not looked at."""
        g = self.gradients
        return g is not None and g.norm <= max(CLEAR * g.noise_floor, NOTHING * (g.reconstruction_norm + g.kl_norm))

    @property
    def variance_is_fixed(self) -> bool:
        """Whether nothing moves σ²; False where that was not tested, or the likelihood is not normal."""
        move = self.gradients.moves.get("decoder") if self.gradients else None
        return move is not None and move.distance > NOTHING_MOVES and self.train.variance_kind is not None

    @property
    def all_collapsed(self) -> bool:
        """Whether no latent says anything of x."""
        return self.latents is not None and len(self.latents.which("collapsed")) == len(self.latents)

    def can_move(self, name: str) -> bool:
        """Whether the parameters can make the move of this residual; assumed where it was not tested."""
        move = self.gradients.moves.get(name) if self.gradients else None
        return move is None or move.distance <= self.thresholds.distance

    @property
    def variance_gain(self) -> tuple[float, float | None] | None:
        """Nats that optimal σ² of the form that it has would bring, with Monte Carlo error; None without a normal."""
        gains, e = self.train.gains, self.train
        if gains.variance is None or gains.feature_variance is None:
            return None
        if e.variance_kind == "shared":
            return gains.variance, None if e.mc_stderr is None else e.mc_stderr.gains.variance
        error = None if e.mc_stderr is None else e.mc_stderr.gains.feature_variance
        # As if the features' errors were independent.
        return float(gains.feature_variance.sum()), None if error is None else float(error.square().sum().sqrt())

    @property
    def prior_gain(self) -> float:
        """Nats that optimal α² would bring; 0 where the prior is not normal."""
        gain = self.train.gains.prior_variance
        return 0.0 if gain is None else float(gain.sum())


def gather(
    reading: Reading,
    data: Data,
    held_out: Data | None,
    *,
    optimizer: torch.optim.Optimizer | None,
    beta: float | None,
    expectation: Expectation,
    num_draws: int,
    log_jacobian: Tensor | float,
    gradients: bool,
    thresholds: Thresholds,
    report: Callable[..., None],
) -> Evidence:
    """Pass over the data as often as it takes.

    Raises:
        VaentropyError: as `evaluate`; data that can be read once only.
    """
    require_rereadable("data", data)
    require_rereadable("held_out", held_out)
    model = reading.model
    options: dict[str, Any] = {
        "expectation": expectation,
        "batch_size": reading.batch_size,
        "bind": reading.bind,
        "missing": reading.missing,
        "log_jacobian": log_jacobian,
        "mode": reading.mode,
    }
    untested = []
    train = evaluate(model, data, **options)
    report("held-out data")
    tested = None if held_out is None else evaluate(model, held_out, **options)
    if held_out is None:
        untested.append("overfitting: no held-out data given (held_out=...)")
    report("modes")
    difference = _mode_difference(reading, data, expectation) if reading.bind is None else None
    report("linear model")
    linear = _linear_elbo(reading, data, train)
    if isinstance(linear, str):
        untested.append(f"against a linear VAE: {linear}")
    report("gradients")
    check = _gradients(reading, data, beta, num_draws, expectation.seed) if gradients else "gradients=False"
    if isinstance(check, str):
        untested.append(f"gradients: {check}")
        check = None
    else:
        untested += check.untested
    if train.mc_stderr is None:
        untested.append(f"residuals against their noise: {expectation} gives no Monte Carlo error")
    decays, decoupled = _decays(model, optimizer, check)
    if optimizer is not None and not (check and check.moves):
        untested.append("weight decay: the moves that it would shift were not tested")
    if optimizer is None:
        untested.append("weight decay: no optimiser given (optimizer=...)")
    report("done")
    return Evidence(
        model=model,
        train=train,
        held_out=tested,
        latents=None if reading.bind else latents_of(model, train, collapse=thresholds.collapse),
        gradients=check,
        mode_difference=difference,
        linear_elbo=None if isinstance(linear, str) else linear,
        beta=beta,
        decays=decays,
        decoupled=decoupled,
        floor=_floor(reading, data),
        thresholds=thresholds,
        untested=tuple(untested),
    )


def _gradients(reading: Reading, data: Data, beta: float | None, num_draws: int, seed: int) -> GradientCheck | str:
    """The gradient check, or why it cannot be made."""
    if not trainable(reading.model):
        return "the model shows no trainable parameters (modules=[...] of from_functions)"
    try:
        return gradient_check(
            reading.model,
            data,
            betas=None if beta is None else (beta, 1.0),
            num_draws=num_draws,
            batch_size=reading.batch_size,
            bind=reading.bind,
            missing=reading.missing,
            mode=reading.mode,
            seed=seed,
        )
    except UnsupportedError as error:
        return str(error)


def _mode_difference(reading: Reading, data: Data, expectation: Expectation) -> tuple[float, float] | None:
    """How much the ELBO of some points differs in the other mode, by common draws; None for a model without modes."""
    if not isinstance(reading.model, nn.Module):
        return None
    x, observed = spread(reading, data, COMPARED, COMPARED_VALUES)
    if observed is not None:
        x = x.masked_fill(~observed, math.nan)
    other: Mode = "train" if reading.mode == "eval" else "eval"

    def elbo(which: Mode) -> Tensor:
        how: dict[str, Any] = {"missing": reading.missing, "batch_size": reading.batch_size, "pointwise": True}
        pointwise = evaluate(reading.model, x, expectation=expectation, mode=which, **how).pointwise
        assert pointwise is not None
        return pointwise["elbo"]

    difference = elbo(other) - elbo(reading.mode)
    return float(difference.mean()), float(difference.std() / len(x) ** 0.5) if len(x) > 1 else math.nan


def _floor(reading: Reading, data: Data) -> str | None:
    if not isinstance(reading.model, VAE) or reading.bind is not None:
        return None
    x, observed = spread(reading, data, COMPARED)
    x = x if observed is None else x.masked_fill(~observed, math.nan)
    return explain_floor(reading.model, at_floor(reading.model, x), x)


def _linear_elbo(reading: Reading, data: Data, train: Evaluation) -> float | str:
    """ELBO of the best linear VAE, which is its log-likelihood, or why there is none to compare with."""
    num_features = math.prod(train.data_shape)
    num_latents = min(math.prod(train.latent_shape), num_features - 1)
    if train.variance_kind is None:
        return "the likelihood is not normal"
    if reading.bind is not None:
        return "the model needs context (bind)"
    if train.observed_fraction is not None:
        return "values are missing"
    if not num_latents > 0 or num_features > MOST_FEATURES:
        return f"{num_features} features, expected 2 to {MOST_FEATURES}"
    if train.num_points < FEWEST_PER_FEATURE * num_features:
        return f"{train.num_points} data points are few for {num_features} features"
    statistics: DataMoments | None = None
    waiting: list[Tensor] = []

    def count() -> None:
        nonlocal statistics
        moments = DataMoments.of(torch.cat(waiting))
        statistics = moments if statistics is None else statistics.merge(moments)
        waiting.clear()

    def wait(batch: Batch) -> None:
        # A covariance costs as much for few rows as for as many as there are features.
        waiting.append(batch.rows.flatten(1).cpu())
        if sum(map(len, waiting)) >= num_features:
            count()

    reading.each(data, wait)
    if waiting:
        count()
    assert statistics is not None
    # Given c it is probabilistic PCA of what a regression on c leaves.
    statistics, num_predictors = statistics.given_last(condition_width(reading.model))
    try:
        linear = LinearVAE.optimum(statistics, num_latents)
    except UsageError as error:  # σ² = 0: data that lie in a subspace
        return str(error).split(";")[0]
    num_means = num_latents + 1 + num_predictors
    num_parameters = num_features * num_means + 1 - num_latents * (num_latents - 1) // 2
    with torch.no_grad():
        return float(linear.mean_log_likelihood(statistics)) - num_parameters / train.num_points


def _decays(
    model: LatentVariableModel, optimizer: torch.optim.Optimizer | None, check: GradientCheck | None
) -> tuple[tuple[Decay, ...], bool]:
    """How weight decay shifts the residuals, and whether there is decoupled decay, for which that is not known."""
    if optimizer is None or not isinstance(model, nn.Module):
        return (), False
    rates, decoupled = {}, False
    for group in optimizer.param_groups:
        rate = float(group.get("weight_decay") or 0.0)
        apart = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
        decoupled |= rate > 0 and apart
        for parameter in group["params"]:
            rates[id(parameter)] = 0.0 if apart else rate
    parameters = trainable(model)
    if parameters and not any(id(p) in rates for p in parameters):
        raise UsageError(
            "an optimizer given that holds none of the model's parameters, expected the one that trained it; make it "
            "from model.parameters()"
        )
    if check is None or not any(rates.get(id(p)) for p in parameters):
        return (), decoupled
    names = {id(p): name for name, p in model.named_parameters()}
    decays = []
    for name, move in check.moves.items():
        # At a stationary point of -ELBO + ½ λ ‖θ‖², ∇ELBO = λ θ.
        parts = {
            names[id(p)]: rates.get(id(p), 0.0) * float((p.detach() * v).double().sum())
            for p, v in zip(parameters, split(move.direction, parameters), strict=True)
        }
        largest = sorted((n for n in parts if parts[n]), key=lambda n: -abs(parts[n]))
        decays.append(Decay(name, sum(parts.values()), tuple(largest)))
    return tuple(decays), decoupled
