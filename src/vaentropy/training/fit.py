"""`fit`: train a VAE on data in memory."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from vaentropy._typing import Tensor
from vaentropy.calibration import optimal_factors
from vaentropy.errors import DataError, TrainingError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.likelihoods import GaussianHead
from vaentropy.model import placement
from vaentropy.modes import in_mode
from vaentropy.progress import progress_bar
from vaentropy.results import Evaluation
from vaentropy.rows import as_tensor, require_finite
from vaentropy.seeding import seeded
from vaentropy.training.history import History, Row
from vaentropy.training.schedules import Beta, as_schedule
from vaentropy.training.settings import Schedule, Variances, check_settings
from vaentropy.training.step import RunningSums, training_step
from vaentropy.vae import VAE

__all__ = ["fit"]

# About so many evaluations over the course of training, where the user does not say how often.
NUM_EVALUATIONS = 10


def fit(
    model: VAE,
    data: Tensor | np.ndarray,
    *,
    held_out: Tensor | np.ndarray | None = None,
    epochs: int = 100,
    batch_size: int = 200,
    learning_rate: float = 5e-3,
    schedule: Schedule = "one_cycle",
    variances: Variances = "analytic",
    variance_learning_rate: float | None = None,
    variance_momentum: float = 0.9,
    beta: Beta = 1.0,
    clip_norm: float | None = None,
    expectation: Expectation = MonteCarlo(1),
    evaluation_expectation: Expectation = MonteCarlo(16),
    evaluate_every: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> History:
    """Train `model` in place by Adam on mini-batches; data in memory are copied once to its device and dtype.

    Equal seeds give equal results on one machine with the same number of threads; global generators are left alone. The
    initial weights are the model's, so seed those where you make it. The model's networks run in train mode (submodules
    that you have put into eval mode stay there if the model as a whole is in train mode), and are left as they were.

    Args:
        model: changed in place.
        data: (N, *data_shape).
        held_out: (M, *data_shape), evaluated along with the training data; never trained on.
        epochs: passes over the data. Every point is used in each.
        batch_size: points per step at most; the batches of an epoch are of nearly equal size.
        learning_rate: of Adam; the highest one under "one_cycle".
        schedule: "one_cycle", up and down again over all steps (Smith & Topin, arXiv:1708.07120), or "constant".
        variances: "analytic" sets σ² and a learned α² to a running mean of their optima in closed form, and after the
            last epoch to the optima of all the data (from other draws than those that are reported); "learned" learns
            them by gradient.
        variance_learning_rate: of "learned" variances; None takes `learning_rate`.
        variance_momentum: of the running mean of "analytic" variances; 0 takes each batch's own optimum.
        beta: weight of the KL term: a number, or a function of the fraction of steps done, as `warmup` and `cyclical`.
        clip_norm: largest norm of the gradient.
        expectation: of training steps.
        evaluation_expectation: of evaluations.
        evaluate_every: epochs between evaluations of the held-out data; None makes about ten of them. After the last
            epoch training and held-out data are always evaluated.
        seed: of batch order, noise and dropout.
        progress: a bar on stderr; None shows it on a terminal.
        on_epoch: called with each row of the history as it is made.

    Returns:
        History, whose `train` and `held_out` are the evaluations after the last epoch.

    Raises:
        UsageError: an argument has a wrong value.
        DataError: data of another shape than the model's, or not finite.
        TrainingError: the loss is no longer a finite number.
    """
    check_settings(
        epochs=epochs,
        batch_size=batch_size,
        evaluate_every=evaluate_every,
        learning_rate=learning_rate,
        variance_learning_rate=variance_learning_rate,
        variance_momentum=variance_momentum,
        clip_norm=clip_norm,
        schedule=schedule,
        variances=variances,
    )
    x = _resident(model, data, "data")
    x_held_out = None if held_out is None or len(held_out) == 0 else _resident(model, held_out, "held_out")
    analytic = variances == "analytic"
    beta_at = as_schedule(beta)
    steps = epochs * math.ceil(len(x) / batch_size)
    evaluate_every = evaluate_every or max(1, epochs // NUM_EVALUATIONS)
    optimizer = _adam(model, learning_rate, variances, variance_learning_rate)
    scheduler = _scheduler(optimizer, schedule, steps)
    generator = torch.Generator(x.device).manual_seed(seed)
    history, start, step = History(), time.perf_counter(), 0

    mode = nullcontext() if model.training else in_mode(model, "train", keep_buffers=False)
    frozen = _frozen(model.variance_parameters()) if analytic else nullcontext()
    with mode, frozen, seeded(seed, x.device), progress_bar(epochs, "epochs", show=progress) as report:
        for epoch in range(1, epochs + 1):
            sums, beta_now = RunningSums(), beta_at(1.0)
            for batch in _shuffled(x, batch_size, generator):
                nodes = expectation.nodes(len(batch), model.latent_shape, generator=generator, dtype=batch.dtype)
                beta_now = beta_at(step / max(1, steps - 1))
                # A smaller batch moves the running mean less.
                adapt = 1 - variance_momentum ** (len(batch) / batch_size) if analytic else 0.0
                sums.add(training_step(model, batch, nodes, optimizer, beta=beta_now, adapt=adapt, clip_norm=clip_norm))
                scheduler.step()
                step += 1
            row = {"epoch": epoch, "step": step, "beta": beta_now, **_prefixed("running_", sums.read())}
            _check_finite(model, row, learning_rate)
            last = epoch == epochs
            if last:
                if analytic:
                    _set_optimal_variances(model, x, evaluation_expectation)
                history.train = evaluate(model, x, expectation=evaluation_expectation)
                row |= _summary("train_", history.train) | {"at_floor": _at_floor(model, x[:batch_size])}
            if x_held_out is not None and (last or epoch % evaluate_every == 0):
                history.held_out = evaluate(model, x_held_out, expectation=evaluation_expectation)
                row |= _summary("held_out_", history.held_out)
            row["seconds"] = time.perf_counter() - start
            history.rows.append(row)
            if on_epoch:
                on_epoch(row)
            report(
                "ELBO {running_elbo:.3f}  entropy sum {running_entropy_sum:.3f}  gap {running_gap:.3f}".format(**row)
            )
    return history


def _shuffled(x: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of nearly equal size, at most `batch_size`: a last one of only a few points would be mostly noise."""
    order = torch.randperm(len(x), generator=generator, device=x.device)
    for rows in order.tensor_split(math.ceil(len(x) / batch_size)):
        yield x[rows]


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


def _adam(model: VAE, learning_rate: float, variances: Variances, variance_rate: float | None) -> torch.optim.Adam:
    own = {id(parameter) for parameter in model.variance_parameters()}
    groups = [{"params": [p for p in model.parameters() if id(p) not in own and p.requires_grad], "lr": learning_rate}]
    if variances == "learned" and own:
        groups.append({"params": model.variance_parameters(), "lr": variance_rate or learning_rate})
    return torch.optim.Adam(groups, fused=placement(model)[0].type in ("cpu", "cuda"))  # type: ignore[union-attr]


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    highest = [group["lr"] for group in optimizer.param_groups]
    # One step more than there are, since the scheduler is also advanced after the last one.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps + 1, cycle_momentum=False)


def _set_optimal_variances(model: VAE, x: Tensor, expectation: Expectation) -> None:
    learned_prior = isinstance(model.prior_log_variance, nn.Parameter)
    # Other draws than those of the evaluation that follows: on the same ones the residuals would be 0 by construction.
    if expectation.independent:
        expectation = expectation.with_seed(expectation.seed + 1)
    variance, prior = optimal_factors(evaluate(model, x, expectation=expectation), prior=learned_prior)
    model.rescale(variance_factor=variance if model.head.variance_parameters() else None, prior_factor=prior)


@torch.no_grad()
def _at_floor(model: VAE, x: Tensor) -> float:
    """Fraction of the decoder's variances that are held at their floor, at the posterior means of x."""
    if not isinstance(model.head, GaussianHead):
        return 0.0
    with in_mode(model, "eval"):
        return model.head.at_floor(model.decoder_features(model.posterior(x).mean))


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in values.items()}


def _summary(prefix: str, e: Evaluation) -> dict[str, float]:
    return _prefixed(prefix, {"elbo": e.elbo, "entropy_sum": e.entropy_sum, "gap": e.gap, "stderr": e.stderr.elbo})


def _resident(model: VAE, data: Tensor | np.ndarray, name: str) -> Tensor:
    x = as_tensor(data)
    if tuple(x.shape[1:]) != model.data_shape or len(x) == 0:
        raise DataError(
            f"{name} of shape {tuple(x.shape)} given, expected (N, {', '.join(map(str, model.data_shape))})"
        )
    device, dtype = placement(model)
    x = x.to(device=device, dtype=dtype)
    require_finite(x, name)
    return x


def _check_finite(model: VAE, row: Row, learning_rate: float) -> None:
    # The last step can spoil weights of which no sum has been made yet.
    weights = all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    if not weights or not math.isfinite(row["running_elbo"]):
        raise TrainingError(
            f"the ELBO became {row['running_elbo']} in epoch {row['epoch']:.0f}; lower the learning rate (now "
            f"{learning_rate}), clip gradients (clip_norm=...), or rescale the data"
        )
