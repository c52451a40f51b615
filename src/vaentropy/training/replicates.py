"""`fit_replicates`: many trainings of one architecture in the time of a few."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vaentropy._typing import Tensor
from vaentropy.checks import require_function, require_instance, require_seed
from vaentropy.data.conditioned import ConditionedRows
from vaentropy.data.given import Data
from vaentropy.data.source import Source
from vaentropy.errors import ModelError, UsageError, shown
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.likelihoods import Likelihood
from vaentropy.options import check_log_jacobian
from vaentropy.progress import Report, progress_bar
from vaentropy.seeding import seeded
from vaentropy.training.course import Course
from vaentropy.training.data import TrainingData, none_if_empty
from vaentropy.training.division import nearly_equal_parts
from vaentropy.training.fit import adam, channels_last, prepared
from vaentropy.training.history import History, Row
from vaentropy.training.interruption import Interruption
from vaentropy.training.loop import Loop
from vaentropy.training.schedules import Beta
from vaentropy.training.settings import Schedule, Settings, Variances
from vaentropy.training.stack import Stack, flops, memory
from vaentropy.training.state import Progress, TrainingState
from vaentropy.training.together import Together
from vaentropy.vae import VAE

__all__ = ["fit_replicates"]

logger = logging.getLogger(__name__)

# On the CPU models are stacked where the products of one model's forward pass are below so many operations per step:
# what a stack saves is the time around the products, about 0.8 ms a step, and above that it no longer fits the cache.
# Measured with 64-50-50-2: up to 640 rows.
STACKING_PAYS = 1.5e7
# Part of a GPU's free memory that stacked models may take; the rest is for evaluations, and what the estimate misses.
ROOM = 0.5
ORDER_BYTES = 4  # of a row's place in the order of an epoch, which each model has of its own


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
    computation; where one model's batch is enough work for the CPU, they are trained one after the other. On a GPU as
    many go together as there is memory for.

    A model that diverges goes back to the end of its last good epoch and stays there, as its `History.stopped` says
    (where even these weights have no finite ELBO, `train` is None); the others go on. There are no checkpoints,
    rollbacks, `patience` or `plateau`: use `fit` for these, as for `compile`, `precision` and `micro_batch_size`;
    models that go together compute no activation again (`recompute` of convolutions). In a group of torch.distributed
    each process trains all the models that it is given, and knows nothing of the others.

    Args:
        models: of the same layers, device and dtype; without dropout or other randomness of their own.
        data: (N, *data_shape), a tensor, array or data frame; for conditional models with a condition, `given(x, c)`.
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
        in_memory = isinstance(given, ConditionedRows)
        if isinstance(given, Source | DataLoader | Dataset) and not in_memory:
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
        groups = _groups(models, x, settings[0])
        report = stack.enter_context(progress_bar(epochs * len(x) * len(groups), "steps", show=progress))
        common = _Common(x, x_held_out, log_jacobian, report, on_epoch or _ignored)
        histories: list[History] = []
        for group in groups:
            if len(group) == 1:
                histories.append(_train_alone(models[group.start], settings[group.start], group.start, common))
            else:
                histories += _train_together(models, settings, group, common)
    return histories


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


def _groups(models: Sequence[VAE], x: TrainingData, settings: Settings) -> list[range]:
    """Numbers of the models that take their steps together, one group after the other.

    Raises:
        UsageError: they cannot.
    """
    assert isinstance(x.rows, Tensor)
    some = x.rows[:1].nan_to_num(nan=0.0).expand(2, *x.rows.shape[1:])
    generator = torch.Generator(some.device)
    nodes = settings.expectation.nodes(2, models[0].latent_shape, generator=generator, dtype=some.dtype)
    num_rows = min(settings.batch_size, len(x.rows)) * len(nodes.noise)
    size = ORDER_BYTES * len(x.rows) + memory(models[0], some, num_rows)
    groups = nearly_equal_parts(len(models), max(1, int(min(len(models), _room(some.device) // size))))
    for group in groups:
        copies = [copy.deepcopy(models[number]) for number in group]
        Stack(copies, [settings] * len(copies)).try_out(some, copy.deepcopy(copies), first=group.start)
    if some.device.type == "cpu" and flops(models[0], some) * num_rows > STACKING_PAYS:
        return nearly_equal_parts(len(models), 1)
    return groups


def _room(device: torch.device) -> float:
    """Bytes that stacked models may take on a device; on the CPU nobody counts, since large models are not stacked."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch holds and does not use counts as taken there.
    return ROOM * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


# Training.


@dataclass(frozen=True)
class _Common:
    """What all trainings have in common; `on_epoch` is called with the number of the model."""

    x: TrainingData
    held_out: TrainingData | None
    log_jacobian: Tensor | float
    report: Report
    on_epoch: Callable[[int, Row], None]


def _ignored(number: int, row: Row) -> None:
    return


def _train_together(
    models: Sequence[VAE], settings: Sequence[Settings], group: range, common: _Common
) -> list[History]:
    courses = [
        Course(
            models[number],
            Progress(),
            common.x,
            common.held_out,
            settings[number],
            common.log_jacobian,
            Interruption(),
        )
        for number in group
    ]
    Together(
        courses,
        common.x,
        common.report,
        on_epoch=lambda place, row: common.on_epoch(group[place], row),
        on_divergence=_stop,
    ).run()
    return [course.history for course in courses]


def _train_alone(model: VAE, settings: Settings, number: int, common: _Common) -> History:
    how = {"batch_size": settings.batch_size, "seed": settings.seed, "missing": settings.missing}
    x = TrainingData(model, common.x.rows, "data", **how)
    device = x.device or torch.device("cpu")
    with seeded(settings.seed, device), channels_last(model):
        loop = Loop(
            state=TrainingState(model, adam(model, settings), torch.Generator(device).manual_seed(settings.seed)),
            data=x,
            held_out=common.held_out,
            settings=settings,
            log_jacobian=common.log_jacobian,
            report=common.report,
            interruption=Interruption(),
            on_epoch=lambda row: common.on_epoch(number, row),
            on_divergence=_go_back_and_stop,
        )
        loop.run()
    return loop.course.history


def _go_back_and_stop(loop: Loop, elbo: float) -> None:
    loop.state.restore(loop.epoch_start)
    _stop(loop.course, elbo)


def _stop(course: Course, elbo: float) -> None:
    """End the training of a model that has diverged and gone back to the end of its last good epoch."""
    epoch, settings = course.progress.rows + 1, course.settings
    reason = (
        f"the ELBO became {elbo:.6g} in epoch {epoch}; the weights are those of the end of epoch {epoch - 1}; lower "
        f"the learning rate (now {settings.learning_rate:g}), or clip gradients (clip_norm=...)"
    )
    logger.warning("the model of seed %d stops: %s", settings.seed, reason)
    try:
        course.stop(reason)
    except ModelError as error:
        # Weights that were good at the end of an epoch may have no finite ELBO under other draws; the others go on.
        course.history.stopped = course.progress.stopped
        course.progress.finished = True
        logger.warning("the model of seed %d has no evaluation: %s", settings.seed, error)
