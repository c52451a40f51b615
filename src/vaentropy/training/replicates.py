"""`fit_replicates`: many trainings of one architecture in the time of a few."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vaentropy._typing import Num, Tensor
from vaentropy.checks import require_function, require_instance, require_seed
from vaentropy.data.batches import Batches
from vaentropy.data.given import Data
from vaentropy.data.source import Source
from vaentropy.errors import UsageError, shown
from vaentropy.expectation import Expectation, MonteCarlo, Nodes
from vaentropy.likelihoods import Likelihood
from vaentropy.passes import check_log_jacobian
from vaentropy.progress import Report, progress_bar
from vaentropy.seeding import seeded
from vaentropy.training.data import TrainingData, none_if_empty
from vaentropy.training.fit import adam, channels_last, prepared
from vaentropy.training.history import History, Row
from vaentropy.training.interruption import Interruption
from vaentropy.training.loop import Loop
from vaentropy.training.schedules import Beta
from vaentropy.training.settings import Schedule, Settings, Variances
from vaentropy.training.stack import Stack, flops
from vaentropy.training.state import Snapshot, TrainingState
from vaentropy.training.step import RunningSums
from vaentropy.vae import VAE

__all__ = ["fit_replicates"]

logger = logging.getLogger(__name__)

# On the CPU models are stacked where the products of one model's forward pass are below so many operations per step:
# what a stack saves is the time around the products, about 0.8 ms a step, and above that it no longer fits the cache.
# Measured with 64-50-50-2: up to 640 rows.
STACKING_PAYS = 1.5e7


def fit_replicates(
    models: Sequence[VAE],
    data: Data,
    *,
    seeds: Sequence[int] | None = None,
    learning_rates: float | Sequence[float] = 5e-3,
    held_out: Data | None = None,
    epochs: int = 100,
    batch_size: int = 200,
    schedule: Schedule = "one_cycle",
    variances: Variances = "analytic",
    variance_learning_rate: float | None = None,
    variance_momentum: float = 0.9,
    beta: Beta = 1.0,
    clip_norm: float | None = None,
    expectation: Expectation = MonteCarlo(1),
    evaluation_expectation: Expectation | None = None,
    evaluate_every: int | None = None,
    missing: Literal["error", "ignore"] = "error",
    log_jacobian: Tensor | float = 0.0,
    progress: bool | None = None,
    on_epoch: Callable[[int, Row], None] | None = None,
) -> list[History]:
    """Train several models of one architecture in place, each as `fit` would with its seed, to rounding, but faster.

    Each model has its own order of the data, noise and learning rate. Small models take their steps together, as one
    computation; where one model's batch is enough work for the CPU, they are trained one after the other.

    A model that diverges goes back to the end of its last good epoch and stays there, as its `History.stopped` says;
    the others go on. There are no checkpoints, rollbacks, `patience` or `plateau`: use `fit` for these, as for
    `compile` and `precision`.

    Args:
        models: of the same layers, device and dtype; without dropout or other randomness of their own.
        data: (N, *data_shape), a tensor, array or data frame.
        seeds: one for each model, of batch order and noise; None takes 0, 1, …
        learning_rates: of Adam, one for all or one for each.
        held_out: the same as `data`, evaluated along with it; never trained on.
        epochs, batch_size, schedule, variances, variance_learning_rate, variance_momentum, beta, clip_norm: see `fit`;
            norms are those of each model's gradient.
        expectation, evaluation_expectation, evaluate_every, missing, log_jacobian: see `fit`.
        progress: a bar on stderr; None shows it on a terminal.
        on_epoch: called with a model's number and each row of its history as it is made.

    Returns:
        A History for each model, as `fit` returns it.

    Raises:
        UsageError: an argument has a wrong value, or the models cannot run as one.
        DataError: data of another shape than the models', or not finite.
    """
    models = _checked_models(models)
    require_function("on_epoch", on_epoch)
    for name, given in (("data", data), ("held_out", held_out)):
        if isinstance(given, Source | DataLoader | Dataset):
            raise UsageError(f"{name} is a {type(given).__name__}, expected a tensor, array or data frame; use fit")
    log_jacobian = check_log_jacobian(log_jacobian, models[0].data_shape)
    common = Settings(
        epochs=epochs,
        batch_size=batch_size,
        schedule=schedule,
        variances=variances,
        variance_learning_rate=variance_learning_rate,
        variance_momentum=variance_momentum,
        beta=beta,
        clip_norm=clip_norm,
        expectation=expectation,
        evaluation_expectation=evaluation_expectation,
        evaluate_every=evaluate_every,
        missing=missing,
        compile=False,
    )
    settings = _each(common, len(models), seeds, learning_rates)
    held_out = none_if_empty(held_out)
    how = {"batch_size": batch_size, "seed": 0, "missing": missing}
    x = TrainingData(models[0], data, "data", **how)
    x_held_out = None if held_out is None else TrainingData(models[0], held_out, "held_out", **how)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(prepared(model, variances))
        _check_alike(models)
        _check_not_random(models[0])
        together = _together_pays(models, x, settings[0])
        num_steps = epochs * len(x) * (1 if together else len(models))
        report = stack.enter_context(progress_bar(num_steps, "steps", show=progress))

        def loop_of(number: int) -> Loop:
            model, each = models[number], settings[number]
            if together:
                state, of_model = _StackedState(model, torch.optim.SGD(model.parameters()), _noise(x, each)), x
            else:
                state = TrainingState(model, adam(model, each), _noise(x, each))
                of_model = TrainingData(model, x.rows, "data", **{**how, "seed": each.seed})
            return Loop(
                state=state,
                data=of_model,
                held_out=x_held_out,
                settings=each,
                log_jacobian=log_jacobian,
                report=_silent if together else report,
                interruption=Interruption(),
                on_epoch=_for_model(on_epoch, number),
            )

        if together:
            loops = [loop_of(number) for number in range(len(models))]
            _Together(loops, x, report).run()
            return [loop.history for loop in loops]
        # One loop at a time: its clock runs from here, and so does its optimiser's memory.
        return [_run_alone(loop_of, number, models[number], settings[number], x) for number in range(len(models))]


# Arguments.


def _checked_models(models: Any) -> list[VAE]:
    if isinstance(models, nn.Module) or not isinstance(models, Iterable):
        raise UsageError(f"models={type(models).__name__} given, expected a list of VAEs")
    models = list(models)
    if not models:
        raise UsageError("models=[] given, expected at least one VAE")
    for number, model in enumerate(models):
        require_instance(f"models[{number}]", model, VAE, "a VAE, as vae1(...) makes it")
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise UsageError(f"models[{number}] has weights that are not finite, expected finite ones; make it anew")
    seen: dict[int, int] = {}
    for number, model in enumerate(models):
        for tensor in (*model.parameters(), *model.buffers()):
            if seen.setdefault(id(tensor), number) != number:
                raise UsageError(
                    f"models[{number}] shares weights with models[{seen[id(tensor)]}], expected models of their own; "
                    "make each anew, or copy.deepcopy it"
                )
    return models


def _each(common: Settings, number: int, seeds: Any, learning_rates: Any) -> list[Settings]:
    """The settings of each model."""
    seeds = _of_each("seeds", range(number) if seeds is None else seeds, number)
    rates = _of_each("learning_rates", learning_rates, number) if isinstance(learning_rates, Iterable) else None
    rates = [learning_rates] * number if rates is None else rates
    return [
        replace(common, seed=require_seed(seed, "seeds"), learning_rate=rate)
        for seed, rate in zip(seeds, rates, strict=True)
    ]


def _of_each(name: str, values: Any, number: int) -> list[Any]:
    each = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(each, str) or not isinstance(each, Iterable):
        raise UsageError(f"{name}={shown(values)} given, expected a list of {number}, one for each model")
    each = list(each)
    if len(each) != number:
        raise UsageError(f"{len(each)} {name} given for {number} models, expected one for each")
    return each


def _check_alike(models: Sequence[VAE]) -> None:
    """Refuse models that are not of one architecture."""
    first = _anatomy(models[0])
    for number, model in enumerate(models[1:], 1):
        other = _anatomy(model)
        for name in dict.fromkeys((*first, *other)):
            if first.get(name) != other.get(name):
                raise UsageError(
                    f"models[{number}] differs from models[0] in {name} ({other.get(name, 'missing')} instead of "
                    f"{first.get(name, 'missing')}), expected models of one architecture; train it on its own, by fit"
                )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _anatomy(model: VAE) -> dict[str, str]:
    """What two models have to have in common, by name."""
    parts = {"the model": f"data_shape={model.data_shape}, columns={model.columns!r}"}
    for name, module in model.named_modules():
        kind, mode = type(module), "train" if module.training else "eval"
        parts[name or "the model's class"] = f"{kind.__name__}({module.extra_repr()}) of {kind.__module__}, {mode} mode"
        hooks = sum(len(getattr(module, each)) for each in HOOKS)
        if hooks:
            parts[f"hooks of {name or 'the model'}"] = f"{hooks} of the model's own, object {id(module)}"
        for option, value in vars(module).items():
            # A slope, say, or a likelihood. What else a model may keep, a run of each on some rows tells.
            plain = isinstance(value, bool | int | float | str | tuple | Likelihood)
            if plain and not option.startswith("_") and option != "training":
                parts[f"{name}.{option}".lstrip(".")] = str(value)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        learned = ", fixed" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
        parts[name] = f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}{learned}"
    return parts


def _check_not_random(model: VAE) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p:
            raise UsageError(
                f"{name} is {type(module).__name__}(p={module.p:g}), expected models that draw nothing; leave it out, "
                "or train one by one, by fit"
            )


def _together_pays(models: Sequence[VAE], x: TrainingData, settings: Settings) -> bool:
    """Whether the models take their steps together.

    Raises:
        UsageError: they cannot.
    """
    assert isinstance(x.rows, Tensor)
    some = x.rows[:1].nan_to_num(nan=0.0).expand(2, *x.rows.shape[1:])
    Stack([copy.deepcopy(model) for model in models], [settings] * len(models)).try_out(some, copy.deepcopy(models))
    generator = torch.Generator(some.device)
    nodes = settings.expectation.nodes(2, models[0].latent_shape, generator=generator, dtype=some.dtype)
    work = flops(models[0], some) * min(settings.batch_size, len(x.rows)) * len(nodes.noise)
    return some.device.type != "cpu" or work <= STACKING_PAYS


def _noise(x: TrainingData, settings: Settings) -> torch.Generator:
    return torch.Generator(x.device or "cpu").manual_seed(settings.seed)


def _for_model(on_epoch: Callable[[int, Row], None] | None, number: int) -> Callable[[Row], None] | None:
    return None if on_epoch is None else lambda row: on_epoch(number, row)


# Training.


class _StackedState(TrainingState):
    """The state of one of several models; their stack takes it down and puts it back, and has the optimiser."""

    def snapshot(self, over: Snapshot | None = None) -> Snapshot:
        return Snapshot({}, {})


def _silent(note: str = "", /, advance: int = 1) -> None:
    return


def _run_alone(loop_of: Callable[[int], Loop], number: int, model: VAE, settings: Settings, x: TrainingData) -> History:
    """Train one model by itself."""

    def stop(elbo: float) -> None:
        loop.state.restore(loop.epoch_start)
        _stop(loop, elbo)

    with seeded(settings.seed, x.device or torch.device("cpu")), channels_last(model):
        loop = loop_of(number)
        loop.on_divergence = stop
        loop.run()
    return loop.history


def _stop(loop: Loop, elbo: float) -> None:
    """End the training of a model that has diverged and gone back to the end of its last good epoch."""
    epoch, settings = loop.state.progress.rows + 1, loop.settings
    reason = (
        f"the ELBO became {elbo:.6g} in epoch {epoch}; the weights are those of the end of epoch {epoch - 1}; lower "
        f"the learning rate (now {settings.learning_rate:g}), or clip gradients (clip_norm=...)"
    )
    logger.warning("the model of seed %d stops: %s", settings.seed, reason)
    loop.stop(reason)


@dataclass
class _Together:
    """Models that take their steps together.

    Args:
        loops: of each.
        x: the data, in memory.
        report: progress bar, in steps of all.
    """

    loops: Sequence[Loop]
    x: TrainingData
    report: Report

    def run(self) -> None:
        """Train to the end."""
        self.settings = self.loops[0].settings
        self.stack = Stack([loop.state.model for loop in self.loops], [loop.settings for loop in self.loops])
        self.left, self.steps, self.note = set(range(len(self.loops))), 0, ""
        try:
            for epoch in range(1, self.settings.epochs + 1):
                if not self.left:
                    break
                self.stack.save()
                self._end_epoch(*self._epoch(epoch))
        finally:
            for row in self.left:
                self.stack.release(row)

    def _epoch(self, number: int) -> tuple[Tensor, int]:
        """Take the steps of an epoch; sums of each model (R, 3+2H), and the number of points."""
        total, num_points = None, 0
        for rows in self._orders(number):
            sums = self._step(rows)
            total = sums if total is None else total.add_(sums)
            num_points += rows.shape[1]
            self.report(self.note, 1)
        assert total is not None
        return total.cpu(), num_points

    def _orders(self, number: int) -> Iterator[Num[Tensor, "R B"]]:
        """Numbers of the rows in each model's batches."""
        rows = self.x.rows
        assert isinstance(rows, Tensor)
        batches = [Batches(rows, each.settings.batch_size, each.settings.seed) for each in self.loops]
        orders = torch.stack([each.order(number) for each in batches]).to(rows.device)
        for batch in range(len(batches[0])):
            yield orders[:, batches[0].bound(batch) : batches[0].bound(batch + 1)]

    def _step(self, rows: Num[Tensor, "R B"]) -> Tensor:
        x, settings, leader = self.x.rows, self.settings, self.loops[0]
        assert isinstance(x, Tensor)
        batch = x.index_select(0, rows.flatten()).unflatten(0, tuple(rows.shape))
        observed = None
        if self.x.may_be_missing:
            observed = ~batch.isnan()
            batch = batch.masked_fill(~observed, 0.0)
        nodes = [self._nodes(loop, rows.shape[1], batch.dtype) for loop in self.loops]
        done = leader.done(self.steps)
        sums = self.stack.step(
            batch,
            torch.stack([each.noise for each in nodes]),
            nodes[0].step_weights,
            observed=observed,
            beta=leader.beta_at(done),
            adapt=settings.adapt(rows.shape[1]),
            factor=leader.rate_at(done),
        )
        self.steps += 1
        return sums

    @staticmethod
    def _nodes(loop: Loop, batch_size: int, dtype: torch.dtype) -> Nodes:
        state = loop.state
        return loop.settings.expectation.nodes(batch_size, state.model.latent_shape, generator=state.noise, dtype=dtype)

    def _end_epoch(self, totals: Tensor, num_points: int) -> None:
        finite = self.stack.finite()
        elbos = []
        for row in sorted(self.left):
            loop = self.loops[row]
            loop.state.progress.step = self.steps
            means = RunningSums(totals[row], num_points).read()
            if finite[row] and not loop.exploded(means["elbo"]):
                loop.end_epoch(means)
                elbos.append(means["elbo"])
                continue
            self.left.remove(row)
            self.stack.go_back(row)
            loop.state.progress.step = self.steps - len(self.x)
            _stop(loop, means["elbo"])
        self.note = f"ELBO {min(elbos):.3f} to {max(elbos):.3f}" if elbos else ""
