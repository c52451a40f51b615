"""`fit`: train a VAE."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from vaentropy._typing import Tensor
from vaentropy.checks import require_function, require_instance, require_path
from vaentropy.data.given import Data
from vaentropy.errors import UsageError
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.model import placement
from vaentropy.modes import in_mode
from vaentropy.options import check_log_jacobian
from vaentropy.progress import progress_bar
from vaentropy.seeding import seeded
from vaentropy.training.checkpoint import Checkpoints
from vaentropy.training.data import TrainingData, none_if_empty
from vaentropy.training.distributed.step import require_divisible, require_one_training
from vaentropy.training.history import History, Row
from vaentropy.training.interruption import interruption
from vaentropy.training.loop import Loop
from vaentropy.training.schedules import Beta
from vaentropy.training.settings import Schedule, Settings, Variances
from vaentropy.training.state import TrainingState
from vaentropy.training.step import Precision
from vaentropy.vae import VAE
from vaentropy.world import found

__all__ = ["adam", "channels_last", "fit", "prepared"]


def fit(
    model: VAE,
    data: Data,
    *,
    held_out: Data | None = None,
    epochs: int = 100,
    batch_size: int = 200,
    micro_batch_size: int | None = None,
    learning_rate: float = 5e-3,
    schedule: Schedule = "one_cycle",
    variances: Variances = "analytic",
    variance_learning_rate: float | None = None,
    variance_momentum: float = 0.9,
    beta: Beta = 1.0,
    clip_norm: float | None = None,
    expectation: Expectation = MonteCarlo(1),
    evaluation_expectation: Expectation | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    plateau: float | None = None,
    max_rollbacks: int = 3,
    compile: bool | None = None,
    precision: Precision = "full",
    missing: Literal["error", "ignore"] = "error",
    log_jacobian: Tensor | float = 0.0,
    checkpoints: Checkpoints | str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> History:
    """Train `model` in place by Adam on mini-batches; data in memory are copied once to its device and dtype.

    Equal seeds give equal results on one machine with the same number of threads; global generators are left alone. The
    initial weights are the model's, so seed those where you make it. The model's networks run in train mode (submodules
    that you have put into eval mode stay there if the model as a whole is in train mode), and are left as they were.

    If the ELBO diverges, training goes back to the end of the last good epoch and on from there with a tenth of the
    learning rate. With `checkpoints`, Ctrl-C and SIGTERM wait for the end of a step and write one; with `resume`
    training then goes the same way to the same end, bit for bit.

    In an initialised group of torch.distributed all its processes train the one model: give each the same arguments.
    Each has a part of the rows of every batch, and all end with the same weights and history, which are those of one
    process, to rounding. Only the first one writes, shows progress and calls `on_epoch`. BatchNorm in train mode,
    dropout and DataLoaders are refused; steps are neither compiled nor recorded. Training may be resumed by another
    number of processes.

    Args:
        model: changed in place.
        data: (N, *data_shape), a tensor, array or data frame; a `Source` or map-style torch Dataset, read shard by
            shard, so that it may be larger than memory; or a DataLoader, whose batches are taken as they come (of
            [data, labels] the data) and which is resumed from the beginning of an epoch. For a conditional model
            `given(x, c)`, or a DataLoader of [data, condition].
        held_out: the same, evaluated along with the training data; never trained on.
        epochs: passes over the data. Every point is used in each.
        batch_size: points per step at most; the batches of an epoch are of nearly equal size.
        micro_batch_size: rows per forward and backward pass at most, for batches that take more memory than there is;
            None takes all. The step stays that of the whole batch, to rounding: gradients of the parts add up, and
            analytic variances are set by a pass without gradients before, which takes a third of the operations
            more. Where batches have more rows than that, BatchNorm in train mode is refused, and nothing is recorded
            as a CUDA graph. Training may be resumed with another one.
        learning_rate: of Adam; the highest one under "one_cycle" and "cosine".
        schedule: "one_cycle", up and down again over all steps (Smith & Topin, arXiv:1708.07120);
            "cosine", down along half a cosine (Loshchilov & Hutter, arXiv:1608.03983); or "constant".
        variances: "analytic" sets σ² and a learned α² to a running mean of their optima in closed form, and after the
            last epoch to the optima of all the data (from other draws than those that are reported); "learned" learns
            them by gradient.
        variance_learning_rate: of "learned" variances; None takes `learning_rate`.
        variance_momentum: of the running mean of "analytic" variances; 0 takes each batch's own optimum.
        beta: weight of the KL term: a number, or a function of the fraction of steps done, as `warmup` and `cyclical`.
        clip_norm: largest norm of the gradient.
        expectation: of training steps.
        evaluation_expectation: of evaluations; None takes 16 draws per point, and fewer, but at least 2, where there
            are more than 8,192 points, so that there are about 131,000 in all.
        evaluate_every: epochs between evaluations of the held-out data; None makes about ten of them. After the last
            epoch training and held-out data are always evaluated.
        patience: stop after so many evaluations without a better held-out ELBO, and end with the weights of the best
            one; None never stops and ends with the last weights.
        plateau: stop when the entropy sum of the training data, averaged over ten epochs, rises by less than so many
            nats over the next ten; it knows nothing of overfitting. None never stops.
        max_rollbacks: how often training may go back before it gives up.
        compile: steps by torch.compile, which takes 5 to 20 s to begin with and needs a C++ compiler on the CPU (where
            it fails, training goes on without it and the log says so); None compiles on the CPU from 50,000 steps on,
            where it pays. On a GPU steps are recorded as CUDA graphs as well, with None too, unless it is False.
        precision: "bf16" runs the networks in bfloat16 (autocast), for GPUs and CPUs that have it; weights, densities,
            entropies and sums stay in the model's dtype, and evaluations are in it throughout.
        missing: "ignore" takes NaN for a missing value, which the likelihood leaves out; "error" refuses it.
        log_jacobian: for evaluations, see `evaluate`.
        checkpoints: a folder for checkpoints and the history, or a `Checkpoints` that says how often.
        resume: go on from the newest checkpoint in that folder; where there is none yet, begin.
        seed: of batch order, noise and dropout.
        progress: a bar on stderr; None shows it on a terminal.
        on_epoch: called with each row of the history as it is made.

    Returns:
        History, whose `train` and `held_out` are the evaluations after the last epoch.

    Raises:
        UsageError: an argument has a wrong value, or a checkpoint was made under other settings.
        DataError: data of another shape than the model's, or not finite; a damaged checkpoint.
        TrainingError: the loss is no longer a finite number, or has exploded, after all rollbacks.
        Interrupted: by a signal, after a checkpoint (only with `checkpoints`; without, KeyboardInterrupt as usual).
    """
    require_instance("model", model, VAE, "a VAE, as vae1(...) makes it")
    require_function("on_epoch", on_epoch)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        checkpoints = Checkpoints(require_path("checkpoints", checkpoints))
    # Here, not after all the training.
    log_jacobian = check_log_jacobian(log_jacobian, model.data_shape)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        variances=variances,
        variance_learning_rate=variance_learning_rate,
        variance_momentum=variance_momentum,
        beta=beta,
        clip_norm=clip_norm,
        expectation=expectation,
        evaluation_expectation=evaluation_expectation,
        evaluate_every=evaluate_every,
        patience=patience,
        plateau=plateau,
        max_rollbacks=max_rollbacks,
        compile=compile,
        precision=precision,
        missing=missing,
        seed=seed,
    )
    held_out = none_if_empty(held_out)
    if patience and held_out is None:
        raise UsageError(f"patience={patience} given without held-out data, expected some to judge by; pass held_out=")
    if resume and checkpoints is None:
        raise UsageError("resume=True given without checkpoints, expected their folder; pass checkpoints=...")

    device, dtype = placement(model)
    device = device or torch.device("cpu")
    world = found(device)
    if precision == "bf16":
        _check_bf16(device, dtype)
    with prepared(model, variances), seeded(seed, device), interruption(checkpoints is not None) as interrupted:
        how = {"batch_size": batch_size, "seed": seed, "missing": missing}
        x = TrainingData(model, data, "data", **how)
        x_held_out = None if held_out is None else TrainingData(model, held_out, "held_out", **how)
        settings = _undivided(settings, x)
        noise = torch.Generator(device).manual_seed(seed)
        require_divisible(world, model, settings)
        require_one_training(world, model, settings, x, x_held_out)
        shown = progress if world.first else False
        with channels_last(model), progress_bar(epochs * len(x), "steps", show=shown) as report:
            loop = Loop(
                state=TrainingState(model, adam(model, settings), noise, x.generator),
                data=x,
                held_out=x_held_out,
                settings=settings,
                log_jacobian=log_jacobian,
                report=report,
                interruption=interrupted,
                checkpoints=checkpoints,
                on_epoch=on_epoch if world.first else None,
                world=world,
            )
            loop.begin(resume=resume)
            loop.run()
    return loop.course.history


def _undivided(settings: Settings, data: TrainingData) -> Settings:
    """The settings, without `micro_batch_size` where no batch has more rows; those of a DataLoader may have any."""
    rows = settings.micro_batch_size
    whole = rows is not None and data.from_any_batch and rows >= min(settings.batch_size, data.num_points)
    return replace(settings, micro_batch_size=None) if whole else settings


@contextmanager
def prepared(model: VAE, variances: Variances) -> Iterator[None]:
    """A model as it is while it trains: in train mode, and without gradients for what is set in closed form."""
    mode = nullcontext() if model.training else in_mode(model, "train", keep_buffers=False)
    frozen = _frozen(model.variance_parameters()) if variances == "analytic" else nullcontext()
    with torch.enable_grad(), mode, frozen:
        yield


@contextmanager
def channels_last(model: VAE) -> Iterator[None]:
    """Weights of 2-D convolutions in channels-last order in memory, on the CPU; afterwards it is as before.

    A step takes 0.8 times as long (docs/performance.md).
    """
    reordered = [p for p in model.parameters() if p.ndim == 4 and p.device.type == "cpu" and p.is_contiguous()]
    for parameter in reordered:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in reordered:
            parameter.data = parameter.data.contiguous()


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """No gradients for parameters that are set in closed form."""
    required = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was_required in zip(parameters, required, strict=True):
            parameter.requires_grad_(was_required)


def _check_bf16(device: torch.device, dtype: torch.dtype | None) -> None:
    if dtype != torch.float32:
        raise UsageError(f"precision='bf16' given for a model in {dtype}, expected float32; make it model.float()")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"precision='bf16' given for {torch.cuda.get_device_name(device)}, which lacks it; use 'full'")


def adam(model: VAE, settings: Settings) -> torch.optim.Adam:
    """The optimiser of a model that is `prepared`."""
    own, rate = {id(parameter) for parameter in model.variance_parameters()}, settings.learning_rate
    groups = [{"params": [p for p in model.parameters() if id(p) not in own and p.requires_grad], "lr": rate}]
    if not groups[0]["params"]:
        raise UsageError("a model given none of whose weights requires a gradient, expected some to train")
    if settings.variances == "learned" and own:
        groups.append({"params": model.variance_parameters(), "lr": settings.variance_learning_rate or rate})
    return torch.optim.Adam(groups, fused=placement(model)[0].type in ("cpu", "cuda"))  # type: ignore[union-attr]
