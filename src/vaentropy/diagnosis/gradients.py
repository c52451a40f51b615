"""The gradient check: how far from stationary a model is, and whether it can make the moves of the theorem."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaentropy._typing import Float, Tensor
from vaentropy.answers import latents_of
from vaentropy.checks import require_count, require_number, require_seed
from vaentropy.conditions import bound_to
from vaentropy.data.given import Data
from vaentropy.decomposition import decompose
from vaentropy.diagnosis.linearisation import flat, num_elements
from vaentropy.diagnosis.moves import Move, moves_of
from vaentropy.diagnosis.outputs import Outputs, num_strangers, outputs_of
from vaentropy.diagnosis.points import Reading, require_rereadable, spread
from vaentropy.diagnosis.step import StepCheck, along_gradient, best_step, uphill
from vaentropy.errors import UnsupportedError, UsageError, shown
from vaentropy.expectation import MonteCarlo
from vaentropy.model import LatentVariableModel, placement
from vaentropy.modes import Mode, in_mode
from vaentropy.options import Missing
from vaentropy.passes import Batch
from vaentropy.rows import affordable
from vaentropy.seeding import generator_of, seeded

__all__ = ["GradientCheck", "MoveCheck", "StepCheck", "gradient_check", "trainable"]

# Points, at the least, at which moves and curvature are looked at, and at which a step is measured.
LINEARISED, MEASURED = 300, 4000
# But of large ones only as many as hold so many numbers: a linearisation has several graphs of the model.
LINEARISED_VALUES, FEWEST_LINEARISED = 2**20, 8
# Where the cosine between the gradients of reconstruction and KL is above this, some β balances them.
ALIGNED = 0.95
# A β counts as another one if it differs by this fraction.
OTHER_BETA = 0.2
CLEARLY_LESS = 0.75


@dataclass(frozen=True, kw_only=True)
class MoveCheck:
    """A move of the theorem: the residual that vanishes with it at a stationary point, or what is left of that.

    Attributes:
        what: the move in words.
        residual: derivative of the ELBO along the move itself, which is the residual, nats per data point.
        along_parameters: derivative along the nearest that the parameters can do: 0 at a stationary point.
        out_of_reach: residual - along_parameters, which no training removes.
        residual_error, along_parameters_error, out_of_reach_error: their Monte Carlo errors, from common draws.
        distance: of the nearest parameter move from the wanted one, relative to the length of that: 0 if it can be
            made, 1 if nothing moves that way.
        where: the output that most of the difference is in.
        curvature: of -ELBO along the move itself, by the Fisher information; 0 where that is not known.
        direction: the nearest move of the parameters, (P,).
    """

    what: str
    residual: float
    residual_error: float
    along_parameters: float
    along_parameters_error: float
    out_of_reach: float
    out_of_reach_error: float
    distance: float
    where: str
    curvature: float
    direction: Float[Tensor, "P"] = field(repr=False)

    @property
    def gain(self) -> float | None:
        """About what the move would bring, nats per data point, by a parabola; None if its curvature is unknown."""
        return 0.5 * self.residual**2 / self.curvature if self.curvature else None

    def to_dict(self) -> dict[str, Any]:
        """All of it but the direction."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """Gradients over all the data, of the ELBO and its two terms, and what they say.

    Attributes:
        norm: ‖∇ELBO‖, nats per unit of the parameters, corrected for the noise in it.
        noise_floor: the norm that noise alone gives with so many draws.
        reconstruction_norm: ‖∇reconstruction‖ over the parameters that the KL term depends on.
        kl_norm: ‖∇KL‖.
        implied_beta: β at which the two balance best, ⟨∇reconstruction, ∇KL⟩/‖∇KL‖²: the weight of the KL term that the
            model was trained with, if it is stationary for any. NaN without a KL gradient.
        implied_beta_error: its Monte Carlo error.
        alignment: cosine between the two, corrected for noise: near 1 where they balance at `implied_beta`.
        moves: by name of the residual, "decoder" and "prior"; empty where they could not be tested.
        steps: uphill, by β; empty where none could be made.
        num_draws: of z for each point.
        num_parameters: trained ones.
        untested: why something could not be tested.
    """

    norm: float
    noise_floor: float
    reconstruction_norm: float
    kl_norm: float
    implied_beta: float
    implied_beta_error: float
    alignment: float
    moves: Mapping[str, MoveCheck]
    steps: Mapping[float, StepCheck]
    num_draws: int
    num_parameters: int
    untested: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("moves", "steps")}
        return {
            **named,
            "untested": list(self.untested),
            "moves": {name: move.to_dict() for name, move in self.moves.items()},
            "steps": [{"beta": beta, **asdict(step)} for beta, step in self.steps.items()],
        }

    def implies_other_beta(self, beta: float, *, num_errors: float = 3.0) -> bool:
        """Whether the gradients balance at a β that differs from `beta` by more than its error and a fifth.

        A step has to confirm it: for the implied β it gains clearly less.
        """
        here, there = self.steps.get(beta), self.steps.get(self.implied_beta)
        if here is None or there is None or there.gain >= CLEARLY_LESS * here.gain:
            return False
        return self.balances_beside(beta, num_errors=num_errors)

    def balances_beside(self, beta: float, *, num_errors: float = 3.0) -> bool:
        """The same, without the step."""
        differs = abs(self.implied_beta - beta)
        return self.alignment > ALIGNED and differs > max(num_errors * self.implied_beta_error, OTHER_BETA * beta)


def trainable(model: object) -> list[nn.Parameter]:
    """The parameters that training moves; none where the model shows none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return [p for p in parameters if p.requires_grad and p.is_floating_point()]


def gradient_check(
    model: LatentVariableModel,
    data: Data,
    *,
    betas: Sequence[float] | None = None,
    num_draws: int = 4,
    batch_size: int | None = None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
    missing: Missing = "error",
    mode: Mode = "eval",
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> GradientCheck:
    """Gradients of the ELBO over all of the data: their size beside their noise, and along the theorem's moves.

    The gap of a stationary point is zero, but a gap of zero is not enough; this is the other half of the evidence. The
    model is left as it was, its parameters included.

    Args:
        model: any three-method model that is an nn.Module.
        data: as for `evaluate`; read several times.
        betas: weights of the KL term, for each of which a step uphill is made; None takes 1, and the implied β where
            that is another one.
        num_draws: of z for each point; the noise is read off their differences.
        batch_size: rows per pass forward and back.
        bind: as for `evaluate`; moves and steps are then not tested.
        missing: as for `evaluate`.
        mode: as for `evaluate`.
        seed: of the draws.
        on_batch: called with the number of rows after each batch.

    Raises:
        UsageError: the model has no parameters to train, or an argument has a wrong value.
        UnsupportedError: the posterior is not normal, so that draws from it have no gradients here.
        DataError, ModelError: as for `evaluate`.
    """
    require_rereadable("data", data)
    require_count("num_draws", num_draws, least=2)
    require_seed(seed)
    if betas is not None:
        if not isinstance(betas, Iterable):
            raise UsageError(f"betas={shown(betas)} given, expected a list of positive numbers")
        betas = [require_number("betas", beta) for beta in betas]
    parameters = trainable(model)
    if not parameters:
        how = "pass modules=[...] to from_functions"
        raise UsageError(f"a model without trainable parameters given, expected an nn.Module that has some; {how}")
    look = _Look(Reading(model, batch_size, bind, missing, mode), data, parameters, seed)
    moves = look.moves()
    sums = look.gradients(moves, num_draws, on_batch)
    check = GradientCheck(
        **_summary(sums, num_draws),
        moves={move.name: _move_check(move, sums) for move in moves},
        steps={},
        num_draws=num_draws,
        num_parameters=num_elements(parameters),
        untested=(),
    )
    if betas is None:
        # Little is asked here: whoever reads the check may ask for more.
        betas = [1.0, check.implied_beta] if check.balances_beside(1.0, num_errors=1.0) else [1.0]
    return replace(check, steps=look.steps(betas, sums, num_draws), untested=tuple(look.untested))


@dataclass
class _Sums:
    """Sums over draws, and one number for each draw."""

    reconstruction: Tensor
    kl: Tensor
    squares: list[float] = field(default_factory=list)
    draws: dict[str, list[float]] = field(default_factory=dict)
    # Of the gradients, over the parameters that the KL term depends on: ‖∇reconstruction‖², ⟨∇reconstruction, ∇KL⟩.
    shared: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)


class _Look:
    """One model and its data, looked at from several sides."""

    def __init__(self, reading: Reading, data: Data, parameters: list[nn.Parameter], seed: int):
        self.reading, self.data, self.parameters, self.seed = reading, data, parameters, seed
        self.model = reading.model
        self.untested: list[str] = []
        self.points: Tensor | None = None
        if reading.bind is not None:
            self.untested.append("moves and steps: the model needs context (bind)")
            return
        # The likelihood's parameters at missing values would count as if they were observed.
        points, observed = spread(reading, data, MEASURED)
        points = points if observed is None else points[observed.flatten(1).all(1)]
        if len(points) < 2:
            self.untested.append("moves and steps: fewer than two data points without missing values")
        else:
            self.points = points

    def _seed(self, *piece: int | str) -> int:
        """Of draws that nothing else was fitted to: a step gains on the draws that its direction comes from."""
        return generator_of(self.seed, *piece).initial_seed()

    @contextmanager
    def _running(self) -> Iterator[None]:
        device = placement(self.model)[0] or torch.device("cpu")
        # The faster kernels of attention cannot be differentiated twice.
        attention = sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), in_mode(self.model, self.reading.mode), seeded(self.seed, device), attention:
            yield

    def _some(self) -> Tensor | None:
        if self.points is None:
            return None
        number = affordable(LINEARISED, self.points.shape[1:], LINEARISED_VALUES, fewest=FEWEST_LINEARISED)
        return self.points[:: max(1, len(self.points) // number)]

    def _outputs(self, points: Tensor) -> Outputs:
        model, x, _ = bound_to(self.model, points)
        return outputs_of(model, x, self.seed)

    def moves(self) -> list[Move]:
        """The theorem's moves, as near as the parameters come; none where that cannot be told."""
        points = self._some()
        if points is None:
            return []
        try:
            with self._running():
                outputs = self._outputs(points)
                if number := num_strangers(outputs, self.parameters):
                    self.untested.append(
                        f"moves of the theorem: {number} trainable tensors take part that the model does not show; "
                        "name their modules (modules=[...] of from_functions)"
                    )
                    return []
                return moves_of(outputs, self.parameters)
        except (UnsupportedError, RuntimeError) as error:
            self.untested.append(f"moves of the theorem: {str(error).splitlines()[0]}")
            return []

    def gradients(self, moves: Sequence[Move], num_draws: int, on_batch: Callable[[int], None] | None) -> _Sums:
        """Gradients of reconstruction and KL over all the data, draw by draw."""
        zeros = torch.zeros(num_elements(self.parameters), dtype=torch.float64)
        sums = _Sums(zeros, zeros)
        for draw in range(num_draws):
            reconstruction, kl, residuals = self._gradient(self._seed("gradient", draw), on_batch)
            sums.reconstruction, sums.kl = sums.reconstruction + reconstruction, sums.kl + kl
            sums.squares.append(float((reconstruction - kl).square().sum()))
            reached = kl != 0
            sums.shared.append(float(reconstruction[reached].square().sum()))
            sums.products.append(float(reconstruction.dot(kl)))
            for move in moves:
                residual, along = residuals[move.name], float((reconstruction - kl).dot(move.direction.cpu()))
                for name, value in (("residual", residual), ("along", along), ("beyond", residual - along)):
                    sums.draws.setdefault(f"{move.name}_{name}", []).append(value)
        return sums

    def _gradient(self, seed: int, on_batch: Callable[[int], None] | None) -> tuple[Tensor, Tensor, dict[str, float]]:
        """∇reconstruction and ∇KL (P,), and the residuals, means over the data with one draw of z for each point."""
        totals = [torch.zeros(num_elements(self.parameters), dtype=torch.float64)] * 2
        residuals = {"decoder": 0.0, "prior": 0.0}

        def measure(batch: Batch) -> None:
            with torch.enable_grad():
                if latents_of(batch.model, batch.x).draw is None:
                    raise UnsupportedError("a posterior that is not normal given: draws from it have no gradients here")
                terms = decompose(batch.model, batch.x, MonteCarlo(1), batch.generator, batch.observed).terms
                for i, name in enumerate(("reconstruction", "kl")):
                    value = terms[name].value.sum()
                    if value.requires_grad:
                        gradients = torch.autograd.grad(value, self.parameters, retain_graph=i == 0, allow_unused=True)
                        totals[i] = totals[i] + flat(gradients, self.parameters).cpu()
            for name in residuals:
                residuals[name] += float(terms[f"{name}_gap"].value.detach().sum())

        number = self.reading.each(self.data, measure, seed=seed, on_batch=on_batch)
        reconstruction, kl = (total / number for total in totals)
        return reconstruction, kl, {name: total / number for name, total in residuals.items()}

    def steps(self, betas: Sequence[float], sums: _Sums, num_draws: int) -> dict[float, StepCheck]:
        """A step uphill for each β."""
        points = self._some()
        if points is None:
            return {}
        steps = {}
        for beta in dict.fromkeys(betas):
            gradient = (sums.reconstruction - beta * sums.kl) / num_draws
            try:
                with self._running():
                    outputs = self._outputs(points)
                    direction = uphill(outputs, self.parameters, gradient, beta=beta)
            except (UnsupportedError, RuntimeError):
                direction = along_gradient(self.parameters, gradient)
            assert self.points is not None
            seeds = self._seed("length"), self._seed("gain")
            steps[beta] = best_step(self.reading, self.points, self.parameters, direction, beta=beta, seeds=seeds)
        return steps


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent draws, and its standard error."""
    each = torch.tensor(values, dtype=torch.float64)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def _summary(sums: _Sums, num_draws: int) -> dict[str, float]:
    reconstruction, kl = sums.reconstruction / num_draws, sums.kl / num_draws

    def noise(squares: Sequence[float], mean: Tensor) -> float:
        """Variance of the mean gradient, summed over its elements."""
        return max(0.0, sum(squares) - num_draws * float(mean.square().sum())) / (num_draws * (num_draws - 1))

    gradient = reconstruction - kl
    variance = noise(sums.squares, gradient)
    shared = reconstruction[kl != 0]
    shared_square = max(0.0, float(shared.square().sum()) - noise(sums.shared, shared))
    kl_square = float(kl.square().sum())
    product, product_error = _mean_and_error(sums.products)
    known = kl_square > 0
    denominator = (shared_square * kl_square) ** 0.5
    return {
        "norm": max(0.0, float(gradient.square().sum()) - variance) ** 0.5,
        "noise_floor": variance**0.5,
        "reconstruction_norm": shared_square**0.5,
        "kl_norm": kl_square**0.5,
        "implied_beta": product / kl_square if known else math.nan,
        "implied_beta_error": product_error / kl_square if known else math.nan,
        "alignment": min(1.0, product / denominator) if denominator > 0 else 0.0,
    }


def _move_check(move: Move, sums: _Sums) -> MoveCheck:
    residual, residual_error = _mean_and_error(sums.draws[f"{move.name}_residual"])
    along, along_error = _mean_and_error(sums.draws[f"{move.name}_along"])
    beyond, beyond_error = _mean_and_error(sums.draws[f"{move.name}_beyond"])
    return MoveCheck(
        what=move.what,
        residual=residual,
        residual_error=residual_error,
        along_parameters=along,
        along_parameters_error=along_error,
        out_of_reach=beyond,
        out_of_reach_error=beyond_error,
        distance=move.distance,
        where=move.where,
        curvature=move.curvature,
        direction=move.direction,
    )
